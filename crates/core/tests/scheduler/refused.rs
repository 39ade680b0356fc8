//! A worker that is out of date refuses what it holds, and ends: nothing is lost, and nobody waits for it (rule 5).

use rightlane_core::event::{Action, Claim, Event, Exit};
use rightlane_core::{
    CallId, CallSpec, Config, Lane, Moment, PieceSeq, Port, RETIRE_NS, Scheduler, TERMINATE_NS,
    Unexpected, WorkerId,
};
use std::ops::Range;

/// A worker that has claimed nothing.
struct Unclaimed;

impl Port for Unclaimed {
    fn fit(&self, _: CallId, items: &Range<u64>) -> u64 {
        items.end - items.start
    }

    fn revoke(&mut self, _: WorkerId, _: PieceSeq) -> Option<Claim> {
        None
    }
}

const FIRST: WorkerId = WorkerId(0);
const NOW: Moment = Moment(1_000);

fn decide(scheduler: &mut Scheduler) -> Vec<Action> {
    let mut all = Vec::new();
    loop {
        scheduler.dispatch(NOW, &mut Unclaimed);
        let actions = scheduler.take_actions(Vec::new());
        scheduler.sanity_check();
        if actions.is_empty() {
            return all;
        }
        all.extend(actions);
    }
}

/// One slot, a call of six items in pieces of two: the first worker runs one piece and holds another.
fn begun() -> Scheduler {
    let mut scheduler = Scheduler::new(Config::new(1, 1));
    let spec = CallSpec {
        lane: Lane::Process,
        chunk_items: Some(2),
        items: 6,
        closed: true,
        pace: None,
    };
    scheduler.open(&spec).unwrap();
    decide(&mut scheduler);
    scheduler.handle(Event::Ready(FIRST), NOW).unwrap();
    decide(&mut scheduler);
    scheduler
}

fn refused(seq: u64, from: u32) -> Event {
    Event::Refused {
        worker: FIRST,
        seq: PieceSeq(seq),
        from,
    }
}

#[test]
fn what_a_worker_refuses_goes_to_another_in_order() {
    let mut scheduler = begun();
    scheduler.answered(FIRST, PieceSeq(0), 0).unwrap();
    scheduler.handle(refused(0, 1), NOW).unwrap();
    let actions = decide(&mut scheduler);
    assert_eq!(actions[0], Action::Retire(FIRST));
    assert_eq!(actions[1], Action::Spawn(WorkerId(1)));
    let sent: Vec<_> = actions[2..]
        .iter()
        .map(|action| match action {
            Action::Send { worker, items, .. } => (*worker, items.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sent, [(WorkerId(1), 1..3), (WorkerId(1), 3..4)]);
    assert_eq!(scheduler.holder(CallId(0), 0), None);
}

#[test]
fn one_that_refused_has_so_long_to_end_and_no_longer() {
    let mut scheduler = begun();
    scheduler.handle(refused(0, 0), NOW).unwrap();
    decide(&mut scheduler);
    let by = NOW.after_ns(RETIRE_NS);
    assert_eq!(scheduler.deadline(), Some(by));
    scheduler.tick(by);
    assert!(scheduler.take_actions(Vec::new()) == [Action::Terminate(FIRST)]);
    let by = by.after_ns(TERMINATE_NS);
    assert_eq!(scheduler.deadline(), Some(by));
    let gone = Event::Gone {
        worker: FIRST,
        exit: Exit::Code(0),
        claim: Some(Claim {
            seq: PieceSeq(0),
            item: 0,
        }),
    };
    scheduler.handle(gone, by).unwrap();
    // It claimed the item before it refused it: nothing is lost by that.
    assert_eq!(decide(&mut scheduler), [Action::Drop(FIRST)]);
    assert_eq!(scheduler.deadline(), None);
}

#[test]
fn a_refusal_that_makes_no_sense_changes_nothing() {
    let mut scheduler = begun();
    for event in [refused(1, 0), refused(0, 1), refused(9, 0)] {
        assert_eq!(scheduler.handle(event, NOW), Err(Unexpected));
        assert_eq!(decide(&mut scheduler), []);
    }
    assert_eq!(scheduler.answered(FIRST, PieceSeq(0), 0).unwrap().1, 0);
}
