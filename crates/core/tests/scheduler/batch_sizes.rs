//! Batching by measured time: grows from one, keeps to the user's size, shares the tail.

use crate::world::World;
use rightlane_core::{
    Action, CallId, CallSpec, Claim, Config, Lane, Moment, PieceSeq, Port, Scheduler, WorkerId,
};
use std::ops::Range;

fn sizes(log: &[Action]) -> Vec<u64> {
    let size = |action: &Action| match action {
        Action::Send { items, .. } | Action::RunOnThread { items, .. } => {
            Some(items.end - items.start)
        }
        _ => None,
    };
    log.iter().filter_map(size).collect()
}

fn measured(items: u64) -> CallSpec {
    CallSpec {
        lane: Lane::Process,
        chunk_items: None,
        items,
        closed: true,
        pace: None,
    }
}

#[test]
fn a_map_of_nothings_soon_moves_in_thousands() {
    let mut world = World::new(1, 0);
    world.outside.busy_ns_per_item = 500;
    world.open(&measured(20_000));
    world.start(WorkerId(0));
    while sizes(&world.take_log()).iter().all(|&size| size < 1_000) {
        world.step(WorkerId(0), 3 * 4_096);
        assert!(world.read(WorkerId(0)), "never grew");
    }
    world.abandon_all();
    world.finish();
}

#[test]
fn slow_tasks_travel_alone() {
    let mut world = World::new(2, 1);
    world.open(&measured(50));
    world.finish();
    assert_eq!(sizes(&world.take_log()), [1; 50]);
}

#[test]
fn the_users_size_is_kept() {
    let mut world = World::new(1, 1);
    world.map(Lane::Process, 17, 5);
    world.map(Lane::Thread, 7, 3);
    world.finish();
    assert_eq!(sizes(&world.take_log()), [5, 5, 5, 2, 3, 3, 1]);
}

#[test]
fn an_input_that_is_still_read_travels_as_it_comes() {
    let mut world = World::new(1, 0);
    let spec = CallSpec {
        closed: false,
        chunk_items: Some(4),
        ..measured(0)
    };
    let call = world.open(&spec).expect("an executor that takes calls");
    world.extend(call, 2);
    world.extend(call, 5);
    world.run_dry(WorkerId(0));
    assert_eq!(sizes(&world.take_log()), [2, 4, 1]);
    world.finish();
}

/// A port whose messages hold three items.
struct Narrow;

impl Port for Narrow {
    fn fit(&self, _: CallId, _: &Range<u64>) -> u64 {
        3
    }

    fn revoke(&mut self, _: WorkerId, _: PieceSeq) -> Option<Claim> {
        unreachable!("nothing is taken back here")
    }
}

#[test]
fn a_message_holds_no_more_than_fits() {
    let mut scheduler = Scheduler::new(Config::new(1, 3));
    let spec = CallSpec {
        chunk_items: Some(8),
        ..measured(10)
    };
    scheduler.open(&spec).expect("an executor that takes calls");
    scheduler.dispatch(Moment(0), &mut Narrow);
    assert_eq!(sizes(&scheduler.take_actions(Vec::new())), [3, 3, 3, 1]);
    scheduler.sanity_check();
}
