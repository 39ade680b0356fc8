//! No more started, unfinished tasks than slots, over all lanes (rule 4).

use crate::ledger::End::Answered;
use crate::world::{SIGKILL, World};
use rightlane_core::{Action, Lane, WorkerId};

fn count(log: &[Action], wanted: impl Fn(&Action) -> bool) -> usize {
    log.iter().filter(|a| wanted(a)).count()
}

#[test]
fn lanes_share_the_slots() {
    let mut world = World::new(3, 0);
    let lanes = [
        Lane::Process,
        Lane::Thread,
        Lane::Thread,
        Lane::Process,
        Lane::Thread,
    ];
    let calls = lanes.map(|lane| world.submit(lane));
    let log = world.take_log();
    assert_eq!(count(&log, |a| matches!(a, Action::Send { .. })), 1);
    assert_eq!(count(&log, |a| matches!(a, Action::RunOnThread { .. })), 2);
    world.finish();
    assert!(
        calls
            .iter()
            .all(|&call| world.ends(call) == [Some(Answered)])
    );
}

#[test]
fn workers_started_ahead_are_those_that_work_would_start() {
    let mut world = World::new(3, 0);
    world.start_workers(2);
    let spawns = |log: &[Action]| count(log, |a| matches!(a, Action::Spawn(_)));
    assert_eq!(spawns(&world.take_log()), 2);
    world.start_workers(2);
    assert_eq!(spawns(&world.take_log()), 0);
    world.start_workers(9);
    assert_eq!(spawns(&world.take_log()), 1, "no more than slots");
    for _ in 0..3 {
        world.submit(Lane::Process);
    }
    let log = world.take_log();
    assert_eq!(spawns(&log), 0);
    assert_eq!(count(&log, |a| matches!(a, Action::Send { .. })), 3);
    world.finish();
}

#[test]
fn a_killed_worker_holds_its_slot_until_it_is_gone() {
    let mut world = World::new(1, 0);
    world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.submit(Lane::Process);
    world.submit(Lane::Thread);
    world.take_log();
    world.kill_for_rubbish(WorkerId(0));
    world.kill_all();
    assert_eq!(world.take_log(), [Action::Kill(WorkerId(0))]);
    world.read(WorkerId(0));
    assert!(world.take_log().contains(&Action::Spawn(WorkerId(1))));
    world.finish();
}

#[test]
fn service_is_in_order_across_lanes() {
    let mut world = World::new(1, 0);
    world.submit(Lane::Process);
    let second = world.submit(Lane::Thread);
    let third = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.take_log();
    world.run_dry(WorkerId(0));
    assert!(world.take_log().contains(&Action::RunOnThread {
        call: second,
        items: 0..1
    }));
    while world.threads() > 0 {
        world.thread_step(0);
    }
    world.finish();
    assert_eq!(world.ends(third), [Some(Answered)]);
}

#[test]
fn no_worker_beyond_the_cap_is_started_for_those_that_died_unseen() {
    let mut world = World::new(2, 1);
    world.map(Lane::Process, 10, 1);
    world.begin(WorkerId(0));
    world.kill(WorkerId(0), SIGKILL);
    world.submit(Lane::Process);
    assert_eq!(world.workers().len(), 2);
    world.finish();
}
