//! A piece that stands behind a running one goes to whoever is free, and never runs twice (rule 16).

use crate::ledger::End::{Answered, Lost};
use crate::world::{Sight, World};
use rightlane_core::{Action, CallId, Lane, WorkerId};

/// Two workers with a running task each; the third task stands behind the first worker's.
fn one_behind() -> (World, CallId) {
    let mut world = World::new(2, 1);
    world.submit(Lane::Process);
    world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.begin(WorkerId(1));
    let behind = world.submit(Lane::Process);
    let sent_to_first =
        |a: &Action| matches!(a, Action::Send { worker: WorkerId(0), call, .. } if *call == behind);
    assert!(world.take_log().iter().any(sent_to_first));
    (world, behind)
}

fn sends_of(log: &[Action], id: CallId) -> Vec<WorkerId> {
    let sent_to = |action: &Action| match action {
        Action::Send { worker, call, .. } if *call == id => Some(*worker),
        _ => None,
    };
    log.iter().filter_map(sent_to).collect()
}

#[test]
fn an_idle_worker_gets_it() {
    let (mut world, behind) = one_behind();
    world.run_dry(WorkerId(1));
    assert_eq!(sends_of(&world.take_log(), behind), [WorkerId(1)]);
    assert_eq!(world.ends(behind), [Some(Answered)]);
    // The first worker finds the mark later and says so; nothing is sent again.
    world.run_dry(WorkerId(0));
    assert_eq!(sends_of(&world.take_log(), behind), []);
    world.finish();
}

#[test]
fn one_that_was_claimed_meanwhile_stays_where_it_is() {
    let (mut world, behind) = one_behind();
    world.outside.sight = Sight::Misses;
    // Answer, end of the piece, claim of the next: nothing of it read.
    world.step(WorkerId(0), 3);
    world.run_dry(WorkerId(1));
    assert_eq!(world.outside.revocations, 1);
    world.run_dry(WorkerId(0));
    assert_eq!(sends_of(&world.take_log(), behind), []);
    assert_eq!(world.ends(behind), [Some(Answered)]);
    world.finish();
}

#[test]
fn one_that_the_worker_stood_back_from_after_its_claim_moves_on() {
    let (mut world, behind) = one_behind();
    world.step(WorkerId(0), 3);
    world.run_dry(WorkerId(1));
    assert_eq!(sends_of(&world.take_log(), behind), []);
    // It looks, stands back, and the piece is waiting work again.
    world.run_dry(WorkerId(0));
    assert_eq!(sends_of(&world.take_log(), behind).len(), 1);
    world.finish();
    assert_eq!(world.ends(behind), [Some(Answered)]);
}

#[test]
fn one_that_ended_unread_is_not_run_again() {
    let (mut world, behind) = one_behind();
    world.step(WorkerId(0), 100);
    world.run_dry(WorkerId(1));
    assert_eq!(sends_of(&world.take_log(), behind), []);
    world.read(WorkerId(0));
    assert_eq!(world.ends(behind), [Some(Answered)]);
    world.finish();
}

#[test]
fn of_a_long_piece_only_the_unclaimed_rest_moves() {
    let mut world = World::new(2, 1);
    world.submit(Lane::Process);
    world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.begin(WorkerId(1));
    world.outside.sight = Sight::Misses;
    let map = world.map(Lane::Process, 10, 10);
    // The first worker has ended three items of it and runs the fourth; nothing of it is read.
    world.step(WorkerId(0), 2 + 3 * 3 + 2);
    world.run_dry(WorkerId(1));
    let moved = Action::Send {
        worker: WorkerId(1),
        seq: rightlane_core::PieceSeq(1),
        call: map,
        items: 4..10,
    };
    assert!(world.take_log().contains(&moved));
    world.finish();
    assert_eq!(world.ends(map), [Some(Answered); 10]);
}

#[test]
fn the_oldest_call_goes_first() {
    let mut world = World::new(3, 1);
    for id in 0..3 {
        world.submit(Lane::Process);
        world.begin(WorkerId(id));
    }
    let behind: Vec<_> = (0..3).map(|_| world.submit(Lane::Process)).collect();
    world.take_log();
    world.run_dry(WorkerId(2));
    let log = world.take_log();
    assert_eq!(sends_of(&log, behind[0]), [WorkerId(2)]);
    assert_eq!(sends_of(&log, behind[1]), [WorkerId(2)]);
    world.finish();
}

#[test]
fn a_slot_without_a_worker_gets_a_new_one() {
    let (mut world, behind) = one_behind();
    // The second worker takes its task with it, so no work comes back that would ask for a new one.
    world.kill_and_report(WorkerId(1));
    assert_eq!(world.ends(CallId(1)), [Some(Lost)]);
    let log = world.take_log();
    assert!(log.contains(&Action::Spawn(WorkerId(2))));
    assert_eq!(sends_of(&log, behind), [WorkerId(2)]);
    world.run_dry(WorkerId(2));
    assert_eq!(world.ends(behind), [Some(Answered)]);
    world.finish();
}

#[test]
fn a_slot_that_a_thread_leaves_is_used_too() {
    let mut world = World::new(2, 1);
    world.submit(Lane::Thread);
    world.submit(Lane::Process);
    world.begin(WorkerId(0));
    let behind = world.submit(Lane::Process);
    assert_eq!(sends_of(&world.take_log(), behind), [WorkerId(0)]);
    while world.threads() > 0 {
        world.thread_step(0);
    }
    assert_eq!(sends_of(&world.take_log(), behind), [WorkerId(1)]);
    world.finish();
}
