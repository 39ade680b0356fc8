//! A piece that stands behind a running one, and what is left of one that runs for too long, goes to whoever is free, and never runs twice (rule 16).

use crate::ledger::End::{Answered, Lost};
use crate::world::{Sight, World};
use rightlane_core::batch::Sizer;
use rightlane_core::scheduler::PATIENCE_NS;
use rightlane_core::{Action, CallId, CallSpec, Lane, Moment, WorkerId};

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

/// One worker runs the first of ten items that travel together; the other slot is free.
fn long_piece() -> (World, CallId) {
    let mut world = World::new(2, 1);
    let map = world.map(Lane::Process, 10, 10);
    world.begin(WorkerId(0));
    world.take_log();
    (world, map)
}

#[test]
fn the_rest_of_a_piece_that_runs_for_too_long_goes_to_a_free_slot() {
    let (mut world, map) = long_piece();
    assert_eq!(world.scheduler.deadline(), Some(Moment(PATIENCE_NS)));
    world.pass_time(PATIENCE_NS - 1);
    assert_eq!(world.take_log(), []);
    world.pass_time(1);
    let log = world.take_log();
    assert_eq!(log[0], Action::Spawn(WorkerId(1)));
    assert!(
        matches!(&log[1], Action::Send { worker: WorkerId(1), items, .. } if *items == (1..10))
    );
    assert_eq!(world.scheduler.deadline(), None);
    world.run_dry(WorkerId(1));
    // The first worker finds the mark after the item it was at; nothing is sent again.
    world.run_dry(WorkerId(0));
    assert_eq!(sends_of(&world.take_log(), map), []);
    assert_eq!(world.ends(map), [Some(Answered); 10]);
    assert_eq!(world.outside.revocations, 1);
    world.finish();
}

#[test]
fn the_rest_moves_although_answers_are_unread() {
    let (mut world, map) = long_piece();
    world.step(WorkerId(0), 3 * 3);
    world.pass_time(PATIENCE_NS);
    let moved = |a: &Action| matches!(a, Action::Send { items, .. } if *items == (4..10));
    assert!(world.take_log().iter().any(moved));
    world.finish();
    assert_eq!(world.ends(map), [Some(Answered); 10]);
}

#[test]
fn the_worker_may_die_with_what_is_left_to_it() {
    let (mut world, map) = long_piece();
    world.pass_time(PATIENCE_NS);
    world.kill_and_report(WorkerId(0));
    world.finish();
    assert_eq!(world.ends(map)[0], Some(Lost));
    assert_eq!(world.ends(map)[1..], [Some(Answered); 9]);
}

#[test]
fn a_piece_whose_last_item_runs_is_left_alone() {
    let (mut world, map) = long_piece();
    world.step(WorkerId(0), 9 * 3);
    world.read(WorkerId(0));
    assert_eq!(world.scheduler.deadline(), None);
    world.pass_time(10 * PATIENCE_NS);
    assert_eq!(world.outside.revocations, 0);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(map), [Some(Answered); 10]);
    world.finish();
}

/// All answers and the claim of the last item are in shared memory, and the parent has not looked.
#[test]
fn a_piece_with_nothing_left_ends_as_usual() {
    let (mut world, map) = long_piece();
    world.step(WorkerId(0), 9 * 3);
    world.pass_time(PATIENCE_NS);
    assert_eq!(world.outside.revocations, 1);
    assert_eq!(world.scheduler.deadline(), None);
    world.run_dry(WorkerId(0));
    assert_eq!(sends_of(&world.take_log(), map), []);
    assert_eq!(world.ends(map), [Some(Answered); 10]);
    world.finish();
}

#[test]
fn without_a_free_slot_or_with_other_work_nobody_looks() {
    let (mut world, map) = long_piece();
    world.submit(Lane::Process);
    world.begin(WorkerId(1));
    assert_eq!(world.scheduler.deadline(), None);
    world.pass_time(10 * PATIENCE_NS);
    assert_eq!(world.outside.revocations, 0);
    // The slot is free, and the wait was long enough.
    world.run_dry(WorkerId(1));
    assert_eq!(sends_of(&world.take_log(), map).last(), Some(&WorkerId(1)));
    assert_eq!(world.ends(map)[1..], [Some(Answered); 9]);
    world.finish();
}

#[test]
fn the_wait_counts_from_when_a_piece_becomes_the_first() {
    let mut world = World::new(2, 1);
    world.submit(Lane::Process);
    world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.begin(WorkerId(1));
    world.map(Lane::Process, 10, 10);
    world.pass_time(10 * PATIENCE_NS);
    // The first worker goes on with the map, the second has nothing left.
    world.step(WorkerId(0), 4);
    world.read(WorkerId(0));
    world.run_dry(WorkerId(1));
    assert_eq!(world.outside.revocations, 0);
    let due = world.now.after_ns(PATIENCE_NS);
    assert_eq!(world.scheduler.deadline(), Some(due));
    world.finish();
}

#[test]
fn a_piece_that_waits_for_a_boot_is_not_moved_from_one_boot_to_the_next() {
    let mut world = World::new(4, 1);
    world.map(Lane::Process, 10, 10);
    assert_eq!(world.scheduler.deadline(), None);
    world.pass_time(100 * PATIENCE_NS);
    assert_eq!(world.workers(), [WorkerId(0)]);
    world.finish();
}

/// On a machine that is busy with other things a piece must not wander for ever.
#[test]
fn where_nothing_was_begun_the_patience_grows() {
    let mut world = World::new(4, 1);
    let map = world.map(Lane::Process, 10, 10);
    let mut waits = Vec::new();
    for id in 0..4 {
        world.start(WorkerId(id));
        world.step(WorkerId(id), 1);
        world.read(WorkerId(id));
        let Some(due) = world.scheduler.deadline() else {
            break;
        };
        waits.push((due.0 - world.now.0) / PATIENCE_NS);
        world.pass_time(due.0 - world.now.0);
    }
    // The fourth worker has it, and there is no slot left.
    assert_eq!(waits, [1, 2, 4]);
    world.finish();
    assert_eq!(world.ends(map), [Some(Answered); 10]);
}

#[test]
fn a_split_piece_teaches_how_long_its_items_take() {
    let mut world = World::new(2, 1);
    let mut sizer = Sizer::new(None);
    sizer.measured(1_000, 1_000_000);
    let spec = CallSpec {
        lane: Lane::Process,
        chunk_items: Some(10),
        items: 10,
        closed: true,
        pace: sizer.pace(),
    };
    let call = world.open(&spec).expect("an executor that takes calls");
    world.begin(WorkerId(0));
    world.pass_time(1_000 * PATIENCE_NS);
    assert_eq!(world.scheduler.pace(call), sizer.pace());
    world.run_dry(WorkerId(0));
    sizer.measured(1, 1_000 * PATIENCE_NS);
    assert_eq!(world.scheduler.pace(call), sizer.pace());
    world.finish();
}

#[test]
fn what_never_left_can_be_given_away() {
    let mut world = World::new(2, 1);
    let call = world.map(Lane::Process, 40, 4);
    world.begin(WorkerId(0));
    let fresh = world.scheduler.fresh(call);
    assert_eq!(world.give_away(call, 3), fresh.start..fresh.start + 3);
    assert_eq!(world.give_away(call, 100), fresh.start + 3..40);
    assert!(world.give_away(call, 1).is_empty());
    world.run_dry(WorkerId(0));
    world.finish();
}

#[test]
fn where_something_was_cancelled_nothing_is_given_away() {
    let mut world = World::new(1, 1);
    let call = world.map(Lane::Process, 10, 1);
    let _ = world.cancel_item(call, 8);
    assert!(world.give_away(call, 5).is_empty());
    world.finish();
}

#[test]
fn a_call_in_the_place_of_another_is_served_first() {
    let mut world = World::new(1, 1);
    let first = world.map(Lane::Process, 10, 1);
    let other = world.map(Lane::Process, 10, 1);
    let moved = world.map(Lane::Thread, 4, 4);
    world.scheduler.serve_before(moved, first);
    world.take_log();
    world.run_dry(WorkerId(0));
    let log = world.take_log();
    let is_other = |a: &Action| matches!(a, Action::Send { call, .. } if *call == other);
    let is_moved = |a: &Action| matches!(a, Action::RunOnThread { call, .. } if *call == moved);
    let at = log.iter().position(is_moved).expect("it is served");
    assert!(
        !log[..at].iter().any(is_other),
        "before what stood behind the first"
    );
    world.finish();
}
