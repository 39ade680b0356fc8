//! A call runs on workers that were forked in the caller's world at the time of the call (rule 20).

use crate::ledger::End::Answered;
use crate::world::World;
use rightlane_core::{Action, CallSpec, Lane, WorkerId, WorldId};

#[test]
fn after_a_change_a_new_worker_takes_the_place_of_an_idle_one() {
    let mut world = World::new(1, 1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    world.turn(1);
    assert!(
        !world.take_log().contains(&Action::Retire(WorkerId(0))),
        "nobody needs its place yet"
    );
    let after = world.submit(Lane::Process);
    let log = world.take_log();
    assert!(
        log.contains(&Action::Retire(WorkerId(0))) && log.contains(&Action::Spawn(WorkerId(1)))
    );
    assert_eq!(world.scheduler.world_of(WorkerId(1)), Some(WorldId(1)));
    world.run_dry(WorkerId(1));
    assert_eq!(world.ends(after), [Some(Answered)]);
    world.finish();
}

#[test]
fn what_was_submitted_before_keeps_its_world() {
    let mut world = World::new(1, 1);
    let before = world.map(Lane::Process, 6, 1);
    world.begin(WorkerId(0));
    world.turn(1);
    let after = world.map(Lane::Process, 3, 1);
    world.run_dry(WorkerId(0));
    assert_eq!(world.ends(before), [Some(Answered); 6]);
    assert_eq!(world.ends(after), [None; 3]);
    world.run_dry(WorkerId(1));
    assert_eq!(world.ends(after), [Some(Answered); 3]);
    world.finish();
}

/// The worker of an earlier call died: what comes back needs one of its world, though that is gone.
#[test]
fn what_comes_back_gets_a_worker_of_its_own_world() {
    let mut world = World::new(1, 1);
    let before = world.map(Lane::Process, 4, 4);
    world.begin(WorkerId(0));
    world.turn(1);
    world.kill_and_report(WorkerId(0));
    assert_eq!(world.scheduler.world_of(WorkerId(1)), Some(WorldId(0)));
    assert_eq!(world.scheduler.worlds().len(), 2);
    world.run_dry(WorkerId(1));
    assert_eq!(world.ends(before)[1..], [Some(Answered); 3]);
    world.finish();
}

#[test]
fn a_world_that_comes_back_finds_its_workers() {
    let mut world = World::new(2, 1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    world.turn(1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(1));
    world.turn(0);
    world.take_log();
    world.submit(Lane::Process);
    let spawned = world
        .take_log()
        .iter()
        .any(|a| matches!(a, Action::Spawn(_)));
    assert!(!spawned, "the first worker is still there");
    world.finish();
}

#[test]
fn threads_run_in_whatever_world() {
    let mut world = World::new(1, 1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    world.turn(1);
    let call = world.submit(Lane::Thread);
    world.finish();
    assert_eq!(world.ends(call), [Some(Answered)]);
}

/// Where no process can be made, an idle worker of another world does not count as one that works: its end
/// is what may help.
#[test]
fn idle_strangers_end_where_no_process_can_be_made() {
    let mut world = World::new(2, 1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    world.turn(1);
    let call = world.submit(Lane::Process);
    world.spawn_fails(WorkerId(1));
    assert!(world.take_log().contains(&Action::Retire(WorkerId(0))));
    world.finish();
    assert_eq!(world.ends(call), [Some(Answered)]);
}

/// A stream of single submits belongs to one world; threads' streams to none.
#[test]
fn a_stream_takes_no_items_of_another_world() {
    let mut world = World::new(2, 1);
    let open = |lane| CallSpec {
        lane,
        chunk_items: None,
        items: 1,
        closed: false,
        pace: None,
    };
    let [processes, threads] = [Lane::Process, Lane::Thread].map(|lane| {
        let call = world.open(&open(lane)).expect("an executor");
        world.run_dry(WorkerId(0));
        call
    });
    let joins = |world: &World| [processes, threads].map(|id| world.scheduler.joins_in_order(id));
    assert_eq!(joins(&world), [true, true]);
    world.turn(1);
    assert_eq!(joins(&world), [false, true]);
    world.turn(0);
    assert_eq!(joins(&world), [true, true]);
    world.finish();
}
