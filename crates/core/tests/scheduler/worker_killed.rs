//! A dead worker costs at most the task it was running (invariant 2, rule 8).

use crate::ledger::End::{Answered, Lost};
use crate::world::{SIGKILL, World};
use rightlane_core::{Action, Exit, Lane, Verdict, WorkerId};

#[test]
fn the_running_task_is_lost_and_the_next_one_moves_to_the_replacement() {
    let mut world = World::new(1, 1);
    let running = world.submit(Lane::Process);
    let next = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.take_log();
    world.kill_and_report(WorkerId(0));

    let log = world.take_log();
    let exit = Exit::Signal(SIGKILL);
    let verdict = Verdict::Lost {
        worker: WorkerId(0),
        exit,
        attempt: 1,
    };
    // The verdict names the worker, so what is known of it is forgotten only afterwards.
    assert_eq!(
        log[0],
        Action::Settle {
            call: running,
            items: 0..1,
            verdict
        }
    );
    assert_eq!(log[1], Action::CallDone(running));
    assert_eq!(log[2], Action::Drop(WorkerId(0)));
    assert_eq!(log[3], Action::Spawn(WorkerId(1)));
    world.run_dry(WorkerId(1));
    assert_eq!(world.ends(next), [Some(Answered)]);
    world.finish();
}

#[test]
fn inside_a_piece_the_published_is_done_the_claimed_lost_the_rest_requeued() {
    let mut world = World::new(1, 0);
    let call = world.map(Lane::Process, 10, 10);
    world.begin(WorkerId(0));
    // Three answers that the parent has not read yet, and the fourth item running.
    world.step(WorkerId(0), 3 * 3);
    world.kill_and_report(WorkerId(0));
    world.run_dry(WorkerId(1));
    let mut expected = [Some(Answered); 10];
    expected[3] = Some(Lost);
    assert_eq!(world.ends(call), expected);
    world.finish();
}

#[test]
fn between_two_items_nothing_is_lost() {
    let mut world = World::new(1, 0);
    let call = world.map(Lane::Process, 5, 5);
    world.begin(WorkerId(0));
    world.step(WorkerId(0), 1);
    world.kill_and_report(WorkerId(0));
    world.run_dry(WorkerId(1));
    assert_eq!(world.ends(call), [Some(Answered); 5]);
    world.finish();
}

#[test]
fn after_the_last_answer_the_call_is_done_without_the_end_of_its_piece() {
    let mut world = World::new(1, 0);
    let call = world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.step(WorkerId(0), 1);
    world.take_log();
    world.read_one(WorkerId(0));
    assert_eq!(world.take_log(), [Action::CallDone(call)]);
    world.kill_and_report(WorkerId(0));
    assert_eq!(world.take_log(), [Action::Drop(WorkerId(0))]);
    world.finish();
}

#[test]
fn pieces_of_several_dead_workers_run_again_in_order() {
    let mut world = World::new(3, 1);
    let call = world.map(Lane::Process, 12, 2);
    world.take_log();
    for id in [1, 0, 2] {
        // Up, so that nobody takes it for a failed boot; nothing is claimed.
        world.start(WorkerId(id));
        world.step(WorkerId(id), 1);
        world.read(WorkerId(id));
    }
    world.begin(WorkerId(0));
    world.step(WorkerId(0), 1);
    world.read(WorkerId(0));
    for id in [1, 2] {
        world.kill(WorkerId(id), SIGKILL);
    }
    world.read(WorkerId(2));
    world.read(WorkerId(1));
    // The ledger checks that no item starts before an earlier one that waits.
    world.finish();
    assert_eq!(world.ends(call), [Some(Answered); 12]);
}

#[test]
fn tasks_that_kill_every_worker_break_nothing() {
    let mut world = World::new(1, 1);
    let calls: Vec<_> = (0..10).map(|_| world.submit(Lane::Process)).collect();
    for id in 0..10 {
        world.begin(WorkerId(id));
        world.kill_and_report(WorkerId(id));
    }
    assert!(calls.iter().all(|&call| world.ends(call) == [Some(Lost)]));
    assert_eq!(world.scheduler.accepts(), Ok(()));
    world.finish();
}

#[test]
fn nobody_replaces_a_worker_without_work() {
    let mut world = World::new(2, 1);
    world.submit(Lane::Process);
    world.run_dry(WorkerId(0));
    world.take_log();
    world.kill_and_report(WorkerId(0));
    assert_eq!(world.take_log(), [Action::Drop(WorkerId(0))]);
    world.finish();
}
