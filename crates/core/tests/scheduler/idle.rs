//! Workers that have been idle for long are retired, and started again when there is work.

use crate::ledger::End::Answered;
use crate::world::World;
use rightlane_core::{Action, Config, Lane, WorkerId};

const IDLE_NS: u64 = 1_000_000_000;

fn executor(max_slots: u32) -> World {
    World::with(Config {
        idle_ns: Some(IDLE_NS),
        ..Config::new(max_slots, 1)
    })
}

#[test]
fn an_idle_worker_ends_and_the_next_task_starts_another() {
    let mut world = executor(2);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    let at = world.scheduler.deadline().expect("a look at the idle ones");
    assert_eq!(at.0, IDLE_NS);
    world.pass_time(IDLE_NS - 1);
    assert!(!world.take_log().contains(&Action::Retire(WorkerId(0))));
    world.pass_time(1);
    assert_eq!(world.take_log(), [Action::Retire(WorkerId(0))]);
    world.run_dry(WorkerId(0));
    assert_eq!(
        (world.workers(), world.scheduler.deadline()),
        (vec![], None)
    );
    let later = world.submit(Lane::Process);
    world.run_dry(WorkerId(1));
    assert_eq!(world.ends(later), [Some(Answered)]);
    world.finish();
}

/// Nobody is woken at each pause between two tasks: a look that finds nobody plans the next one.
#[test]
fn work_in_between_does_not_bring_the_look_forward() {
    let mut world = executor(1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    world.pass_time(IDLE_NS / 2);
    world.submit(Lane::Process);
    assert_eq!(world.scheduler.deadline().map(|at| at.0), Some(IDLE_NS));
    world.run_dry(WorkerId(0));
    assert_eq!(world.scheduler.deadline().map(|at| at.0), Some(IDLE_NS));
    world.take_log();
    world.pass_time(IDLE_NS / 2);
    assert_eq!(world.take_log(), []);
    assert_eq!(
        world.scheduler.deadline().map(|at| at.0),
        Some(IDLE_NS / 2 + IDLE_NS)
    );
    world.pass_time(IDLE_NS / 2);
    assert_eq!(world.take_log(), [Action::Retire(WorkerId(0))]);
    world.finish();
}

#[test]
fn a_busy_worker_is_left_alone_and_nobody_looks_for_ever() {
    let mut world = executor(1);
    let long = world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    let longer = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.pass_time(2 * IDLE_NS);
    assert_eq!(
        world.scheduler.deadline(),
        None,
        "there is nobody to look for"
    );
    world.run_dry(WorkerId(0));
    assert_eq!(world.scheduler.deadline().map(|at| at.0), Some(3 * IDLE_NS));
    assert_eq!(
        [world.ends(long), world.ends(longer)],
        [[Some(Answered)], [Some(Answered)]]
    );
    world.finish();
}

#[test]
fn without_a_limit_nobody_ever_looks() {
    let mut world = World::new(1, 1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    assert_eq!(world.scheduler.deadline(), None);
    world.pass_time(u64::MAX / 2);
    assert_eq!(world.workers(), [WorkerId(0)]);
    world.finish();
}
