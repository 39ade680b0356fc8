//! What a worker sends is input: what no worker may send costs it its life and nobody an item
//! (invariants 1 and 7).

use crate::ledger::End::{Answered, Lost};
use crate::world::{SIGKILL, World};
use rightlane_core::{Event, Exit, Lane, PieceSeq, Unexpected, WorkerId};

#[test]
fn a_piece_ended_too_early_is_still_accounted_for() {
    let mut world = World::new(1, 1);
    let map = world.map(Lane::Process, 6, 3);
    world.begin(WorkerId(0));
    world.talk_rubbish(WorkerId(0), 1);
    world.read(WorkerId(0));
    world.finish();
    assert_eq!(world.ends(map)[0], Some(Lost));
    assert_eq!(world.ends(map)[1..], [Some(Answered); 5]);
}

#[test]
fn a_piece_skipped_that_was_never_revoked_is_still_accounted_for() {
    let mut world = World::new(1, 1);
    let map = world.map(Lane::Process, 6, 3);
    world.begin(WorkerId(0));
    let skipped = Event::Skipped {
        worker: WorkerId(0),
        seq: PieceSeq(0),
        from: 0,
    };
    assert_eq!(world.scheduler.handle(skipped, world.now), Err(Unexpected));
    world.kill_for_rubbish(WorkerId(0));
    world.read(WorkerId(0));
    world.finish();
    assert_eq!(world.ends(map)[0], Some(Lost));
    assert_eq!(world.ends(map)[1..], [Some(Answered); 5]);
}

#[test]
fn news_of_a_worker_that_is_gone_is_refused() {
    let mut world = World::new(1, 1);
    world.submit(Lane::Process);
    world.begin(WorkerId(0));
    world.kill_and_report(WorkerId(0));
    let (worker, seq) = (WorkerId(0), PieceSeq(0));
    let exit = Exit::Signal(SIGKILL);
    for event in [
        Event::Started(worker),
        Event::Ready(worker),
        Event::PieceDone {
            worker,
            seq,
            busy_ns: 1,
        },
        Event::Skipped {
            worker,
            seq,
            from: 0,
        },
        Event::Gone {
            worker,
            exit,
            claim: None,
        },
        Event::SpawnFailed(worker),
    ] {
        assert_eq!(
            world.scheduler.handle(event, world.now),
            Err(Unexpected),
            "{event:?}"
        );
    }
    assert_eq!(world.scheduler.answered(worker, seq, 0), Err(Unexpected));
    world.finish();
}
