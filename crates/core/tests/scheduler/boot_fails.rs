//! What breaks an executor, and what does not (rule 10, invariant 2).

use crate::ledger::End::{Answered, Broken};
use crate::world::{SIGKILL, World};
use rightlane_core::{
    Action, Breakage, CallSpec, Event, Exit, Lane, Moment, Refused, Unexpected, WorkerId,
};

#[test]
fn three_in_a_row_break_it_with_the_cause() {
    let mut world = World::new(1, 0);
    let call = world.map(Lane::Process, 3, 1);
    for id in 0..2 {
        world.spawn_fails(WorkerId(id));
        assert_eq!(world.scheduler.accepts(), Ok(()));
    }
    world.start(WorkerId(2));
    world.kill_and_report(WorkerId(2));
    let cause = Breakage::BootFailed(Exit::Signal(SIGKILL));
    assert_eq!(world.scheduler.accepts(), Err(Refused::Broken(cause)));
    assert_eq!(world.ends(call), [Some(Broken); 3]);
    let spec = CallSpec {
        lane: Lane::Thread,
        chunk_items: None,
        items: 1,
        closed: true,
        pace: None,
    };
    assert_eq!(world.scheduler.open(&spec), Err(Refused::Broken(cause)));
    world.finish();
}

#[test]
fn a_task_that_runs_starts_the_count_again() {
    let mut world = World::new(1, 0);
    for _ in 0..4 {
        let call = world.submit(Lane::Process);
        for _ in 0..2 {
            let id = world.workers()[0];
            world.spawn_fails(id);
        }
        let id = world.workers()[0];
        world.run_dry(id);
        assert_eq!(world.ends(call), [Some(Answered)]);
        world.kill_and_report(id);
    }
    assert_eq!(world.scheduler.accepts(), Ok(()));
    world.finish();
}

#[test]
fn the_death_of_the_template_is_nobodys_failed_boot() {
    let mut world = World::new(1, 0);
    let call = world.submit(Lane::Process);
    world.spawn_fails(WorkerId(0));
    world.spawn_fails(WorkerId(1));
    for id in 2..6 {
        world.template_dies(WorkerId(id));
    }
    assert_eq!(world.scheduler.accepts(), Ok(()));
    world.finish();
    assert_eq!(world.ends(call), [Some(Answered)]);
}

#[test]
fn ready_workers_killed_while_idle_break_nothing() {
    let mut world = World::new(1, 0);
    for id in 0..5 {
        let call = world.submit(Lane::Process);
        world.start(WorkerId(id));
        let _cancelled = world.cancel(call);
        world.run_dry(WorkerId(id));
        world.kill_and_report(WorkerId(id));
    }
    assert_eq!(world.scheduler.accepts(), Ok(()));
    world.finish();
}

#[test]
fn workers_that_only_send_rubbish_are_not_replaced_for_ever() {
    let mut world = World::new(1, 0);
    world.submit(Lane::Process);
    for id in 0..3 {
        world.start(WorkerId(id));
        world.talk_rubbish(WorkerId(id), 3);
        world.read(WorkerId(id));
    }
    assert!(matches!(
        world.scheduler.accepts(),
        Err(Refused::Broken(Breakage::BootFailed(_)))
    ));
    world.finish();
}

#[test]
fn an_initializer_that_raises_breaks_it_and_kills_the_others() {
    let mut world = World::new(2, 0).with_initializer();
    let running = world.submit(Lane::Process);
    let waiting = world.map(Lane::Process, 4, 1);
    world.begin(WorkerId(0));
    world.start(WorkerId(1));
    world.take_log();
    world.initializer_raises(WorkerId(1));
    let log = world.take_log();
    assert!(log.contains(&Action::Kill(WorkerId(0))) && log.contains(&Action::Kill(WorkerId(1))));
    let broken = Refused::Broken(Breakage::InitializerRaised);
    assert_eq!(world.scheduler.accepts(), Err(broken));
    world.finish();
    assert_eq!(world.ends(running), [Some(Broken)]);
    assert_eq!(world.ends(waiting), [Some(Broken); 4]);
}

#[test]
fn one_in_a_lane_thread_breaks_it_too() {
    let mut world = World::new(2, 0).with_initializer();
    let call = world.map(Lane::Process, 4, 1);
    world.thread_initializer_raises();
    world.finish();
    assert_eq!(world.ends(call), [Some(Broken); 4]);
}

#[test]
fn a_worker_that_dies_in_its_initializer_counts_as_one_that_raised() {
    let mut world = World::new(2, 0).with_initializer();
    world.submit(Lane::Process);
    world.start(WorkerId(0));
    world.kill_and_report(WorkerId(0));
    let cause = Breakage::InitializerDied(Exit::Signal(SIGKILL));
    assert_eq!(world.scheduler.accepts(), Err(Refused::Broken(cause)));
    world.finish();
}

#[test]
fn the_word_of_a_ready_worker_does_not_break_it() {
    let mut world = World::new(1, 0);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    for id in [WorkerId(0), WorkerId(7)] {
        let said = world
            .scheduler
            .handle(Event::InitializerRaised(id), Moment(0));
        assert_eq!(said, Err(Unexpected));
    }
    assert_eq!(world.scheduler.accepts(), Ok(()));
    world.finish();
}

#[test]
fn nothing_is_taken_back_from_the_workers_of_a_broken_executor() {
    let mut world = World::new(2, 1).with_initializer();
    let calls: Vec<_> = (0..4).map(|_| world.submit(Lane::Process)).collect();
    world.begin(WorkerId(0));
    world.start(WorkerId(1));
    world.kill_and_report(WorkerId(1));
    assert!(world.scheduler.accepts().is_err());
    world.finish();
    assert!(calls.iter().all(|&call| world.ends(call) == [Some(Broken)]));
}

#[test]
fn items_that_arrive_after_the_break_end_with_it() {
    let mut world = World::new(1, 0).with_initializer();
    let spec = CallSpec {
        lane: Lane::Process,
        chunk_items: None,
        items: 0,
        closed: false,
        pace: None,
    };
    let call = world.open(&spec).expect("an executor that takes calls");
    world.thread_initializer_raises();
    world.extend(call, 2);
    assert_eq!(world.ends(call), [Some(Broken); 2]);
    world.finish();
}
