//! Accepted work is finished, and every ending is bounded (rule 2, invariant 4).

use crate::ledger::End::{Answered, Cancelled, Lost};
use crate::world::World;
use rightlane_core::{Action, CallSpec, Lane, RETIRE_NS, Refused, TERMINATE_NS, WorkerId};

fn spec(lane: Lane) -> CallSpec {
    CallSpec {
        lane,
        chunk_items: None,
        items: 1,
        closed: true,
        pace: None,
    }
}

#[test]
fn without_work_or_workers_it_is_over_at_once() {
    let mut world = World::new(2, 1);
    world.close();
    assert_eq!(world.take_log(), [Action::Drained]);
    world.close();
    assert_eq!(world.take_log(), []);
}

#[test]
fn accepted_work_is_finished_and_new_work_refused() {
    let mut world = World::new(2, 1);
    let map = world.map(Lane::Process, 9, 2);
    let thread = world.submit(Lane::Thread);
    world.close();
    assert_eq!(
        world.scheduler.open(&spec(Lane::Process)),
        Err(Refused::ShutDown)
    );
    world.finish();
    assert_eq!(world.ends(map), [Some(Answered); 9]);
    assert_eq!(world.ends(thread), [Some(Answered)]);
    assert_eq!(world.take_log().last(), Some(&Action::Drained));
}

#[test]
fn a_call_whose_items_are_still_coming_keeps_the_workers() {
    let mut world = World::new(1, 1);
    let call = world
        .open(&CallSpec {
            closed: false,
            pace: None,
            ..spec(Lane::Process)
        })
        .expect("an executor");
    world.run_dry(WorkerId(0));
    world.close();
    assert!(!world.take_log().contains(&Action::Retire(WorkerId(0))));
    world.extend(call, 1);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call), [Some(Answered); 2]);
    world.close_call(call);
    assert_eq!(world.take_log().last(), Some(&Action::Retire(WorkerId(0))));
    world.finish();
}

#[test]
fn a_worker_that_will_not_end_is_terminated_then_killed() {
    let mut world = World::new(1, 1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    world.make_stubborn(WorkerId(0));
    world.take_log();
    world.close();
    assert_eq!(world.take_log(), [Action::Retire(WorkerId(0))]);
    world.pass_time(RETIRE_NS - 1);
    assert_eq!(world.take_log(), []);
    world.pass_time(1);
    assert_eq!(world.take_log(), [Action::Terminate(WorkerId(0))]);
    world.pass_time(TERMINATE_NS - 1);
    assert_eq!(world.take_log(), []);
    world.pass_time(1);
    assert_eq!(world.take_log(), [Action::Kill(WorkerId(0))]);
    assert_eq!(world.scheduler.deadline(), None);
    world.read(WorkerId(0));
    assert_eq!(
        world.take_log(),
        [Action::Drop(WorkerId(0)), Action::Drained]
    );
}

#[test]
fn one_that_never_gets_ready_is_bounded_too() {
    let mut world = World::new(1, 1).with_initializer();
    let call = world.submit(Lane::Process);
    world.start(WorkerId(0));
    world.make_stubborn(WorkerId(0));
    world.abandon(call);
    world.close();
    for _ in 0..2 {
        let deadline = world
            .scheduler
            .deadline()
            .expect("a deadline in every phase");
        world.pass_time(deadline.0 - world.now.0);
    }
    world.read(WorkerId(0));
    assert!(world.scheduler.is_drained());
}

#[test]
fn cancelling_the_futures_lets_the_running_ones_end() {
    let mut world = World::new(2, 1);
    let map = world.map(Lane::Process, 20, 5);
    world.begin(WorkerId(0));
    world.close();
    world.abandon_all();
    world.finish();
    let ends = world.ends(map);
    assert_eq!(ends[0], Some(Answered));
    assert_eq!(ends[1..], [Some(Cancelled); 19]);
}

#[test]
fn killing_costs_what_was_claimed_and_ends() {
    let mut world = World::new(3, 1);
    let calls: Vec<_> = (0..9).map(|_| world.submit(Lane::Process)).collect();
    world.begin(WorkerId(0));
    world.close();
    world.abandon_all();
    world.kill_all();
    // No time passes: nothing here waits for a deadline.
    for id in world.workers() {
        world.read(id);
    }
    assert!(world.scheduler.is_drained());
    assert_eq!(world.ends(calls[0]), [Some(Lost)]);
    assert!(
        calls[1..]
            .iter()
            .all(|&call| world.ends(call) == [Some(Cancelled)])
    );
}

#[test]
fn the_users_kill_of_booting_workers_is_no_failed_boot() {
    let mut world = World::new(4, 0);
    let map = world.map(Lane::Process, 8, 1);
    world.kill_all();
    for id in 0..4 {
        world.read(WorkerId(id));
    }
    assert_eq!(world.scheduler.accepts(), Ok(()));
    world.finish();
    assert_eq!(world.ends(map), [Some(Answered); 8]);
}
