//! Short items wait for one of the busy workers where there are more workers than cores.

use crate::ledger::End::Answered;
use crate::world::World;
use rightlane_core::{Action, CallId, CallSpec, Config, HOLD_NS, Lane, WorkerId};

/// Two cores, four slots, and a call whose items are known to take as long as that, two of which run.
fn two_busy(busy_ns_per_item: u64) -> (World, CallId) {
    let mut world = World::with(Config {
        cores: 2,
        ..Config::new(4, 1)
    });
    world.outside.busy_ns_per_item = busy_ns_per_item;
    let call = world
        .open(&CallSpec {
            lane: Lane::Process,
            chunk_items: None,
            items: 1,
            closed: false,
            pace: None,
        })
        .expect("an executor that takes calls");
    world.run_dry(WorkerId(0));
    world.extend(call, 2);
    for id in [0, 1].map(WorkerId) {
        world.begin(id);
    }
    world.take_log();
    (world, call)
}

fn sent(world: &mut World) -> Vec<(WorkerId, u64)> {
    let sent = |action: &Action| match action {
        Action::Send { worker, items, .. } => Some((*worker, items.end - items.start)),
        _ => None,
    };
    world.take_log().iter().filter_map(sent).collect()
}

#[test]
fn short_items_wait_for_a_busy_worker_and_go_together() {
    let (mut world, call) = two_busy(1_000);
    world.extend(call, 1);
    world.extend(call, 3);
    assert_eq!(sent(&mut world), []);
    world.step(WorkerId(1), 8);
    world.read(WorkerId(1));
    // Shared among as many as there are cores.
    assert_eq!(sent(&mut world), [(WorkerId(1), 1)]);
    world.finish();
    assert_eq!(world.ends(call), [Some(Answered); 7]);
}

/// Whatever the busy workers are at: it may be something else, or this function may have become slow.
#[test]
fn they_are_held_back_for_a_bounded_time() {
    let (mut world, call) = two_busy(1_000);
    world.pass_time(5);
    world.extend(call, 1);
    assert_eq!(world.scheduler.deadline().map(|at| at.0), Some(5 + HOLD_NS));
    world.pass_time(HOLD_NS - 1);
    assert_eq!(sent(&mut world), []);
    world.extend(call, 1);
    world.pass_time(1);
    assert_eq!(sent(&mut world), [(WorkerId(2), 1)]);
    // One more is awake, and the next wait begins.
    assert_eq!(
        world.scheduler.deadline().map(|at| at.0),
        Some(5 + 2 * HOLD_NS)
    );
    world.pass_time(HOLD_NS);
    assert_eq!(sent(&mut world), [(WorkerId(3), 1)]);
    world.finish();
}

#[test]
fn long_items_are_sent_at_once() {
    let (mut world, call) = two_busy(1_000_000);
    world.extend(call, 1);
    assert_eq!(sent(&mut world), [(WorkerId(2), 1)]);
    world.finish();
}

/// A single short call behind others' work is answered at once.
#[test]
fn a_call_that_is_at_no_worker_is_sent_at_once() {
    let (mut world, _) = two_busy(1_000);
    world.submit(Lane::Process);
    assert_eq!(sent(&mut world), [(WorkerId(2), 1)]);
    world.finish();
}

#[test]
fn nobody_waits_behind_what_is_held_back() {
    let (mut world, call) = two_busy(1_000);
    world.extend(call, 1);
    assert_eq!(sent(&mut world), []);
    world.submit(Lane::Process);
    assert_eq!(sent(&mut world), [(WorkerId(2), 1), (WorkerId(3), 1)]);
    assert_eq!(world.scheduler.deadline(), None);
    world.finish();
}
