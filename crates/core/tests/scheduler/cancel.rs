//! `cancel` succeeds until the claim, and what it says is true (rules 11 and 16).

use crate::ledger::End::{Answered, Cancelled};
use crate::world::{Sight, World};
use rightlane_core::{Action, CallSpec, Cancel, Lane, Verdict, WorkerId};

#[test]
fn a_waiting_task_is_cancelled_without_a_word_to_any_worker() {
    let mut world = World::new(1, 0);
    world.submit(Lane::Process);
    let call = world.submit(Lane::Process);
    world.take_log();
    assert_eq!(world.cancel(call), Cancel::Cancelled);
    let settled = Action::Settle {
        call,
        items: 0..1,
        verdict: Verdict::Cancelled,
    };
    assert_eq!(world.take_log(), [settled, Action::CallDone(call)]);
    assert_eq!(world.outside.revocations, 0);
    world.finish();
}

#[test]
fn a_prefetched_task_is_cancelled_and_never_run() {
    let mut world = World::new(1, 1);
    let running = world.submit(Lane::Process);
    let call = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    assert_eq!(world.cancel(call), Cancel::Cancelled);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(running), [Some(Answered)]);
    assert_eq!(world.ends(call), [Some(Cancelled)]);
    world.finish();
}

#[test]
fn a_running_task_goes_on_as_if_never_asked() {
    let mut world = World::new(1, 1);
    let call = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    assert_eq!(world.cancel(call), Cancel::TooLate);
    assert_eq!(world.cancel(call), Cancel::TooLate);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call), [Some(Answered)]);
    world.finish();
}

#[test]
fn too_late_holds_when_the_worker_stands_back() {
    let mut world = World::new(1, 1);
    let call = world.submit(Lane::Process);
    world.start(WorkerId(0));
    // Ready, claimed, and the look at the mark still to come.
    world.step(WorkerId(0), 2);
    assert_eq!(world.cancel(call), Cancel::TooLate);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call), [Some(Answered)]);
    world.finish();
}

#[test]
fn too_late_holds_when_the_worker_misses_the_mark() {
    let mut world = World::new(1, 1);
    world.outside.sight = Sight::Misses;
    let call = world.submit(Lane::Process);
    world.start(WorkerId(0));
    world.step(WorkerId(0), 2);
    assert_eq!(world.cancel(call), Cancel::TooLate);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call), [Some(Answered)]);
    world.finish();
}

#[test]
fn an_answered_task_is_too_late_before_the_end_of_its_piece_is_read() {
    let mut world = World::new(1, 1);
    let call = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.step(WorkerId(0), 1);
    world.read_one(WorkerId(0));
    assert_eq!(world.cancel(call), Cancel::TooLate);
    assert_eq!(world.ends(call), [Some(Answered)]);
    world.finish();
}

#[test]
fn a_finished_task_whose_answer_is_unread_is_too_late() {
    let mut world = World::new(1, 1);
    let call = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.step(WorkerId(0), 100);
    assert_eq!(world.cancel(call), Cancel::TooLate);
    world.read(WorkerId(0));
    assert_eq!(world.ends(call), [Some(Answered)]);
    world.finish();
}

#[test]
fn an_abandoned_map_ends_with_what_was_claimed() {
    let mut world = World::new(2, 1);
    let call = world.map(Lane::Process, 40, 8);
    world.begin(WorkerId(0));
    world.abandon(call);
    let ends = world.ends(call);
    assert_eq!(ends.iter().filter(|e| e.is_none()).count(), 1);
    assert_eq!(ends[0], None);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call)[0], Some(Answered));
    assert_eq!(world.take_log().last(), Some(&Action::CallDone(call)));
    world.finish();
}

#[test]
fn a_cancel_does_not_revive_an_abandoned_task() {
    let mut world = World::new(1, 1);
    let call = world.submit(Lane::Process);
    world.start(WorkerId(0));
    world.step(WorkerId(0), 2);
    world.abandon(call);
    assert_eq!(world.cancel(call), Cancel::TooLate);
    // The worker stands back: then the first wish counts.
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call), [Some(Cancelled)]);
    world.finish();
}

#[test]
fn items_that_come_after_the_abandoning_end_at_once() {
    let mut world = World::new(1, 0);
    let spec = CallSpec {
        lane: Lane::Process,
        chunk_items: None,
        items: 2,
        closed: false,
        pace: None,
    };
    let call = world.open(&spec).expect("an open executor");
    world.begin(WorkerId(0));
    world.abandon(call);
    world.extend(call, 3);
    assert_eq!(world.ends(call)[1..], [Some(Cancelled); 4]);
    world.run_dry(WorkerId(0));
    world.extend(call, 3);
    world.finish();
}

#[test]
fn a_lane_thread_stands_back_from_the_rest_of_an_abandoned_map() {
    let mut world = World::new(1, 0);
    let call = world.map(Lane::Thread, 6, 4);
    world.thread_step(0);
    world.abandon(call);
    while world.threads() > 0 {
        world.thread_step(0);
    }
    assert_eq!(world.ends(call)[0], Some(Answered));
    assert_eq!(world.ends(call)[1..], [Some(Cancelled); 5]);
    world.finish();
}
