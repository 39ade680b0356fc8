//! Submits of one function in a row are one call: they travel together, and each can be cancelled alone.

use crate::ledger::End::{Answered, Cancelled};
use crate::world::World;
use rightlane_core::batch::Sizer;
use rightlane_core::{
    Action, CallId, CallSpec, Cancel, Claim, Lane, Pace, PieceSeq, Verdict, WorkerId,
};
use std::ops::Range;

/// A call that stays open, with pieces of `chunk_items`, or by measured time.
fn stream(world: &mut World, items: u64, chunk_items: Option<u64>) -> CallId {
    stream_at(world, items, chunk_items, None)
}

fn stream_at(
    world: &mut World,
    items: u64,
    chunk_items: Option<u64>,
    pace: Option<Pace>,
) -> CallId {
    let spec = CallSpec {
        lane: Lane::Process,
        chunk_items,
        items,
        closed: false,
        pace,
    };
    world.open(&spec).expect("an executor that takes calls")
}

fn sent(log: &[Action], id: CallId) -> Vec<Range<u64>> {
    let items = |action: &Action| match action {
        Action::Send { call, items, .. } if *call == id => Some(items.clone()),
        _ => None,
    };
    log.iter().filter_map(items).collect()
}

fn settled(call: CallId, item: u64) -> Action {
    Action::Settle {
        call,
        items: item..item + 1,
        verdict: Verdict::Cancelled,
    }
}

#[test]
fn submits_join_as_long_as_nothing_else_waits_behind() {
    let mut world = World::new(1, 0);
    let call = stream(&mut world, 1, None);
    assert!(world.scheduler.joins_in_order(call), "nothing waits");
    world.extend(call, 1);
    assert!(world.scheduler.joins_in_order(call), "last in the queue");
    let other = world.submit(Lane::Process);
    assert!(!world.scheduler.joins_in_order(call), "others came later");
    assert!(!world.scheduler.joins_in_order(other), "closed");
    world.run_dry(WorkerId(0));
    assert!(world.scheduler.joins_in_order(call), "nothing waits again");
    world.close_call(call);
    assert!(!world.scheduler.joins_in_order(call), "ended");
    assert!(!world.scheduler.joins_in_order(CallId(99)));
    world.finish();
}

#[test]
fn nothing_joins_a_call_or_an_executor_that_ends() {
    let mut world = World::new(1, 0);
    let call = stream(&mut world, 1, None);
    let abandoned = stream(&mut world, 1, None);
    world.begin(WorkerId(0));
    world.abandon(abandoned);
    assert!(!world.scheduler.joins_in_order(abandoned));
    assert!(world.scheduler.joins_in_order(call));
    world.close();
    assert!(!world.scheduler.joins_in_order(call));
    world.finish();
    assert_eq!(world.ends(call), [Some(Answered)]);
}

#[test]
fn what_gathers_behind_busy_workers_travels_together() {
    let mut world = World::new(2, 1);
    world.outside.busy_ns_per_item = 1_000;
    let call = stream(&mut world, 1, None);
    let mut pieces = 0;
    for _ in 0..20 {
        for _ in 0..100 {
            world.extend(call, 1);
        }
        for id in world.workers() {
            world.run_dry(id);
        }
        pieces += sent(&world.take_log(), call).len();
    }
    assert_eq!(world.ends(call), [Some(Answered); 2_001]);
    assert!(pieces < 400, "{pieces} pieces");
    world.finish();
}

#[test]
fn a_known_function_does_not_start_at_one() {
    let mut world = World::new(2, 0);
    let mut sizer = Sizer::new(None);
    sizer.measured(1_000, 1_000_000);
    let call = stream_at(&mut world, 100, None, sizer.pace());
    assert_eq!(sent(&world.take_log(), call), [0..25, 25..44]);
    assert_eq!(world.scheduler.pace(call), sizer.pace());
    assert_eq!(world.scheduler.pace(CallId(99)), None);
    world.finish();
}

#[test]
fn waiting_items_are_cancelled_one_by_one() {
    let mut world = World::new(1, 0);
    let call = stream(&mut world, 12, Some(10));
    // The first piece is away, so that the rest waits.
    world.extend(call, 10);
    world.take_log();
    for item in [15, 17, 12, 21, 13, 20] {
        assert_eq!(world.cancel_item(call, item), Cancel::Cancelled);
        assert_eq!(world.cancel_item(call, item), Cancel::TooLate);
        assert_eq!(world.take_log(), [settled(call, item)]);
    }
    assert_eq!(world.outside.revocations, 0);
    assert_eq!(world.scheduler.waiting(), 6);
    world.run_dry(WorkerId(0));
    let pieces = [10..12, 14..15, 16..17, 18..20];
    assert_eq!(sent(&world.take_log(), call), pieces);
    world.extend(call, 1);
    world.run_dry(WorkerId(0));
    assert_eq!(sent(&world.take_log(), call).last(), Some(&(22..23)));
    world.finish();
}

#[test]
fn a_call_whose_waiting_items_are_all_cancelled_goes_on() {
    let mut world = World::new(1, 0);
    let call = stream(&mut world, 1, None);
    world.extend(call, 3);
    assert!(world.scheduler.has_backlog());
    for item in [2, 3, 1] {
        assert_eq!(world.cancel_item(call, item), Cancel::Cancelled);
    }
    assert!(!world.scheduler.has_backlog());
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call)[0], Some(Answered));
    assert_eq!(world.ends(call)[1..], [Some(Cancelled); 3]);
    world.extend(call, 1);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call)[4], Some(Answered));
    world.take_log();
    world.close_call(call);
    assert_eq!(world.take_log(), [Action::CallDone(call)]);
    world.finish();
}

#[test]
fn the_last_cancelled_item_ends_a_closed_call() {
    let mut world = World::new(1, 0);
    let running = world.submit(Lane::Process);
    let call = world.map(Lane::Process, 2, 2);
    world.take_log();
    assert_eq!(world.cancel_item(call, 1), Cancel::Cancelled);
    assert_eq!(world.cancel_item(call, 0), Cancel::Cancelled);
    let log = [settled(call, 1), settled(call, 0), Action::CallDone(call)];
    assert_eq!(world.take_log(), log);
    world.finish();
    assert_eq!(world.ends(running), [Some(Answered)]);
}

#[test]
fn what_travels_with_a_cancelled_item_runs_before_what_came_later() {
    let mut world = World::new(1, 1);
    world.submit(Lane::Process);
    world.begin(WorkerId(0));
    let call = stream(&mut world, 6, Some(5));
    let later = world.submit(Lane::Process);
    assert_eq!(sent(&world.take_log(), call).last(), Some(&(0..5)));
    assert_eq!(world.cancel_item(call, 2), Cancel::Cancelled);
    assert_eq!(world.outside.revocations, 1);
    assert_eq!(world.cancel_item(call, 3), Cancel::Cancelled);
    assert_eq!(world.outside.revocations, 1, "it waits by now");
    world.run_dry(WorkerId(0));
    let log = world.take_log();
    assert_eq!(sent(&log, call), [0..2, 4..5, 5..6]);
    let last_sent = log.iter().rfind(|a| matches!(a, Action::Send { .. }));
    assert!(matches!(last_sent, Some(Action::Send { call, .. }) if *call == later));
    world.finish();
    let ends = world.ends(call);
    assert_eq!(ends.iter().filter(|e| **e == Some(Cancelled)).count(), 2);
}

#[test]
fn a_claimed_item_in_the_middle_goes_on_and_so_do_its_neighbours() {
    let mut world = World::new(1, 1);
    let call = stream(&mut world, 6, Some(6));
    world.begin(WorkerId(0));
    // Two answers unread, the third item runs.
    world.step(WorkerId(0), 2 * 3);
    for item in 0..3 {
        assert_eq!(world.cancel_item(call, item), Cancel::TooLate);
    }
    assert_eq!(world.cancel_item(call, 4), Cancel::Cancelled);
    world.run_dry(WorkerId(0));
    let mut expected = [Some(Answered); 6];
    expected[4] = Some(Cancelled);
    assert_eq!(world.ends(call), expected);
    assert_eq!(world.cancel_item(call, 5), Cancel::TooLate);
    assert_eq!(world.cancel_item(call, 0), Cancel::TooLate);
    world.finish();
}

#[test]
fn too_late_holds_when_the_worker_stands_back_in_the_middle() {
    let mut world = World::new(1, 1);
    let call = stream(&mut world, 4, Some(4));
    world.begin(WorkerId(0));
    // The first has ended, the second is claimed, and the look at the mark still to come.
    world.step(WorkerId(0), 2);
    assert_eq!(world.cancel_item(call, 1), Cancel::TooLate);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(call), [Some(Answered); 4]);
    world.finish();
}

#[test]
fn who_holds_an_item_and_whether_it_runs_is_known_for_each() {
    let mut world = World::new(1, 1);
    let call = stream(&mut world, 4, Some(4));
    world.extend(call, 4);
    world.begin(WorkerId(0));
    world.step(WorkerId(0), 1);
    world.read(WorkerId(0));
    let claim = |seq, item| Claim {
        seq: PieceSeq(seq),
        item,
    };
    let held = |item| world.scheduler.holder(call, item);
    assert_eq!(held(0), None, "answered");
    assert_eq!(held(1), Some((WorkerId(0), claim(0, 1))));
    assert_eq!(held(7), Some((WorkerId(0), claim(1, 3))));
    assert_eq!(held(8), None, "not there yet");
    let is_claimed = |held, word| world.scheduler.is_claimed(WorkerId(0), held, word);
    assert!(!is_claimed(claim(0, 2), None));
    assert!(!is_claimed(claim(0, 2), Some(claim(0, 1))));
    assert!(is_claimed(claim(0, 2), Some(claim(0, 2))));
    assert!(is_claimed(claim(0, 2), Some(claim(1, 0))));
    assert!(!is_claimed(claim(1, 3), Some(claim(0, 3))));
    assert!(!is_claimed(claim(1, 3), Some(claim(1, 2))));
    world.finish();
}

#[test]
fn an_item_on_no_thread_yet_is_cancelled_alone() {
    let mut world = World::new(1, 0);
    let call = world.map(Lane::Thread, 4, 2);
    assert_eq!(world.cancel_item(call, 1), Cancel::Cancelled);
    world.thread_step(0);
    assert_eq!(world.cancel_item(call, 0), Cancel::TooLate);
    assert_eq!(world.cancel_item(call, 3), Cancel::Cancelled);
    world.finish();
    let ends = [Answered, Cancelled, Answered, Cancelled].map(Some);
    assert_eq!(world.ends(call), ends);
}

#[test]
fn a_dead_worker_costs_a_stream_one_item() {
    let mut world = World::new(1, 1);
    let call = stream(&mut world, 5, Some(5));
    world.begin(WorkerId(0));
    assert_eq!(world.cancel_item(call, 3), Cancel::Cancelled);
    world.kill_and_report(WorkerId(0));
    world.extend(call, 1);
    world.run_dry(WorkerId(1));
    let answered = |e: &&Option<_>| **e == Some(Answered);
    assert_eq!(world.ends(call).iter().filter(answered).count(), 4);
    world.finish();
}

#[test]
fn processes_have_a_backlog_whatever_threads_have() {
    let mut world = World::new(1, 0);
    world.submit(Lane::Thread);
    world.submit(Lane::Thread);
    assert!(!world.scheduler.has_backlog());
    world.submit(Lane::Process);
    assert!(world.scheduler.has_backlog());
    world.finish();
    assert!(!world.scheduler.has_backlog());
}
