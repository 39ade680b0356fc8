//! A worker runs at most so many items, then another takes its place (rule 10).

use crate::ledger::End::{Answered, Cancelled, Lost};
use crate::world::World;
use rightlane_core::{Action, Cancel, Config, Lane, RETIRE_NS, WorkerId};

fn executor(max_slots: u32, items_per_worker: u64) -> World {
    World::with(Config {
        items_per_worker: Some(items_per_worker),
        ..Config::new(max_slots, 1)
    })
}

fn retired(log: &[Action]) -> Vec<WorkerId> {
    let retired = log.iter().filter_map(|action| match action {
        Action::Retire(worker) => Some(*worker),
        _ => None,
    });
    retired.collect()
}

fn spawned(log: &[Action]) -> usize {
    let spawn = |action: &&Action| matches!(action, Action::Spawn(_));
    log.iter().filter(spawn).count()
}

#[test]
fn each_worker_of_one_runs_exactly_its_share() {
    let mut world = executor(1, 7);
    let map = world.map(Lane::Process, 1_000, 50);
    let mut ran = Vec::new();
    for worker in 0..143 {
        let worker = WorkerId(worker);
        world.run_dry(worker);
        ran.push(7.min(1_000 - 7 * u64::from(worker.0)));
        assert!(!world.workers().contains(&worker) || world.ran(worker) == ran[worker.0 as usize]);
    }
    assert_eq!(world.ends(map), [Some(Answered); 1_000]);
    assert_eq!(ran.iter().sum::<u64>(), 1_000);
    let log = world.take_log();
    assert_eq!((spawned(&log), retired(&log).len()), (143, 142));
    world.finish();
}

#[test]
fn a_chunk_is_cut_to_what_the_worker_may_still_run() {
    let mut world = executor(1, 3);
    world.map(Lane::Process, 8, 8);
    let sends = |log: Vec<Action>| -> Vec<(WorkerId, u64)> {
        let sent = log.into_iter().filter_map(|action| match action {
            Action::Send { worker, items, .. } => Some((worker, items.end - items.start)),
            _ => None,
        });
        sent.collect()
    };
    assert_eq!(sends(world.take_log()), [(WorkerId(0), 3)]);
    world.run_dry(WorkerId(0));
    assert_eq!(sends(world.take_log()), [(WorkerId(1), 3)]);
    world.run_dry(WorkerId(1));
    assert_eq!(sends(world.take_log()), [(WorkerId(2), 2)]);
    world.finish();
}

/// While the last items run, the successor boots; it gets work when the slot is free and not before.
#[test]
fn a_successor_boots_meanwhile() {
    let mut world = executor(1, 1);
    world.map(Lane::Process, 3, 1);
    assert_eq!(world.workers(), [WorkerId(0), WorkerId(1)]);
    world.begin(WorkerId(0));
    world.start(WorkerId(1));
    world.step(WorkerId(1), 5);
    world.read(WorkerId(1));
    let log = world.take_log();
    assert_eq!(spawned(&log), 2, "one successor is enough: {log:?}");
    world.run_dry(WorkerId(0));
    assert!(
        world
            .take_log()
            .iter()
            .any(|action| matches!(action, Action::Send { worker, .. } if *worker == WorkerId(1)))
    );
    world.finish();
}

#[test]
fn nobody_is_started_for_work_that_is_not_there() {
    let mut world = executor(2, 1);
    let only = world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(only), [Some(Answered)]);
    let log = world.take_log();
    assert_eq!((spawned(&log), retired(&log)), (1, vec![WorkerId(0)]));
    world.read(WorkerId(0));
    assert_eq!(world.workers(), []);
    world.finish();
}

/// Their exit handlers may take long: tasks do not wait for one, nor do processes pile up.
#[test]
fn slow_endings_hold_nobody_up_until_there_are_too_many() {
    let mut world = executor(2, 1);
    world.map(Lane::Process, 40, 1);
    for _ in 0..10 {
        for id in world.workers() {
            world.make_stubborn(id);
            world.run_dry(id);
        }
    }
    let living = world.workers().len();
    assert!((3..=7).contains(&living), "{living} workers");
    world.pass_time(RETIRE_NS);
    world.finish();
}

/// A worker that was given its last item leaves, though some of it be taken back.
#[test]
fn who_was_taken_back_from_runs_less() {
    let mut world = executor(2, 4);
    let map = world.map(Lane::Process, 4, 2);
    world.begin(WorkerId(0));
    world.run_dry(WorkerId(1));
    // Nothing waits and a slot is free: if the first worker holds a second piece, that goes to the other one.
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(map), [Some(Answered); 4]);
    world.finish();
}

#[test]
fn what_is_taken_back_is_not_more_than_the_taker_may_run() {
    let mut world = executor(2, 5);
    let long = world.map(Lane::Process, 1, 1);
    let early = world.map(Lane::Process, 4, 4);
    // Two busy workers; the next pieces stand behind these.
    world.begin(WorkerId(0));
    world.begin(WorkerId(1));
    let behind = world.map(Lane::Process, 4, 4);
    world.run_dry(WorkerId(1));
    world.finish();
    for call in [long, early, behind] {
        assert!(world.ends(call).iter().all(|end| *end == Some(Answered)));
    }
}

#[test]
fn a_kill_on_the_last_item_costs_that_item() {
    let mut world = executor(1, 2);
    let map = world.map(Lane::Process, 6, 2);
    world.begin(WorkerId(0));
    world.step(WorkerId(0), 3);
    world.kill_and_report(WorkerId(0));
    world.finish();
    let ends = world.ends(map);
    assert_eq!(ends[..2], [Some(Answered), Some(Lost)]);
    assert_eq!(ends[2..], [Some(Answered); 4]);
}

#[test]
fn a_kill_of_one_that_ends_costs_nothing() {
    let mut world = executor(1, 2);
    let map = world.map(Lane::Process, 6, 2);
    world.make_stubborn(WorkerId(0));
    world.run_dry(WorkerId(0));
    assert_eq!(retired(&world.take_log()), [WorkerId(0)]);
    world.kill_and_report(WorkerId(0));
    world.finish();
    assert_eq!(world.ends(map), [Some(Answered); 6]);
}

#[test]
fn a_worker_that_does_not_end_is_killed_while_the_executor_goes_on() {
    let mut world = executor(1, 1);
    world.submit(Lane::Process);
    world.make_stubborn(WorkerId(0));
    world.run_dry(WorkerId(0));
    world.pass_time(RETIRE_NS);
    assert!(world.take_log().contains(&Action::Terminate(WorkerId(0))));
    let left = world.scheduler.deadline().expect("a deadline").0 - world.now.0;
    world.pass_time(left);
    assert!(world.take_log().contains(&Action::Kill(WorkerId(0))));
    world.read(WorkerId(0));
    assert_eq!(world.scheduler.deadline(), None);
    let after = world.submit(Lane::Process);
    world.finish();
    assert_eq!(world.ends(after), [Some(Answered)]);
}

#[test]
fn shutting_down_asks_those_that_end_only_once() {
    let mut world = executor(2, 1);
    world.submit(Lane::Process);
    world.make_stubborn(WorkerId(0));
    world.run_dry(WorkerId(0));
    world.close();
    assert_eq!(retired(&world.take_log()), [WorkerId(0)]);
    world.finish();
}

#[test]
fn a_cancelled_item_is_not_counted() {
    let mut world = executor(1, 3);
    let first = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    let second = world.submit(Lane::Process);
    assert_eq!(world.cancel(second), Cancel::Cancelled);
    let more = world.map(Lane::Process, 2, 2);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(first), [Some(Answered)]);
    assert_eq!(world.ends(second), [Some(Cancelled)]);
    assert_eq!(world.ends(more), [Some(Answered); 2]);
    assert!(
        !world.workers().iter().any(|&id| id > WorkerId(0)),
        "one worker ran all three"
    );
    world.finish();
}

/// Three boots in a row that fail break an executor (rule 10): workers that ran their share are none of them.
#[test]
fn workers_that_ran_their_share_are_no_failed_boots() {
    let mut world = executor(1, 1).with_initializer();
    let map = world.map(Lane::Process, 20, 5);
    world.finish();
    assert_eq!(world.ends(map), [Some(Answered); 20]);
}

#[test]
fn threads_have_no_such_limit() {
    let mut world = executor(1, 1);
    let map = world.map(Lane::Thread, 5, 5);
    world.finish();
    assert_eq!(world.ends(map), [Some(Answered); 5]);
    assert_eq!(spawned(&world.take_log()), 0);
}
