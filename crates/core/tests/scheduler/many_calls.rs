//! A million pending calls are ordinary: no step may look at all of them.
//!
//! No time is asserted. What would be quadratic does not end, and what the port is asked is counted.

use rightlane_core::batch::Sizer;
use rightlane_core::{
    Action, CallId, CallSpec, Cancel, Claim, Config, Lane, Moment, PieceSeq, Port, Scheduler,
    WorkerId,
};
use std::ops::Range;

const CALLS: u64 = 1_000_000;

#[derive(Default)]
struct Asked {
    fits: u64,
    revocations: u64,
}

struct Counting(std::cell::RefCell<Asked>);

impl Port for Counting {
    fn fit(&self, _: CallId, items: &Range<u64>) -> u64 {
        self.0.borrow_mut().fits += 1;
        items.end - items.start
    }

    fn revoke(&mut self, _: WorkerId, _: PieceSeq) -> Option<Claim> {
        self.0.borrow_mut().revocations += 1;
        None
    }
}

const NOW: Moment = Moment(0);
const ONE: CallSpec = CallSpec {
    lane: Lane::Process,
    chunk_items: None,
    items: 1,
    closed: true,
    pace: None,
};

fn submit(scheduler: &mut Scheduler, port: &mut Counting) -> CallId {
    let id = scheduler.open(&ONE).expect("an executor that takes calls");
    scheduler.dispatch(NOW, port);
    id
}

fn full(max_slots: u32) -> (Scheduler, Counting) {
    let port = Counting(Asked::default().into());
    (Scheduler::new(Config::new(max_slots, 1)), port)
}

#[test]
fn abandoned_at_once() {
    let (mut scheduler, mut port) = full(512);
    for _ in 0..CALLS {
        submit(&mut scheduler, &mut port);
    }
    assert_eq!(scheduler.waiting(), CALLS - 2 * 512);
    scheduler.abandon_all(&mut port);
    let done = |a: &&Action| matches!(a, Action::CallDone(_));
    let actions = scheduler.take_actions(Vec::new());
    assert_eq!(actions.iter().filter(done).count() as u64, CALLS);
    let asked = port.0.borrow();
    assert_eq!((asked.fits, asked.revocations), (2 * 512, 2 * 512));
    scheduler.sanity_check();
}

#[test]
fn cancelled_one_by_one_behind_a_head_that_never_moves() {
    let (mut scheduler, mut port) = full(2);
    for _ in 0..4 {
        submit(&mut scheduler, &mut port);
    }
    let head = submit(&mut scheduler, &mut port);
    for _ in 0..CALLS {
        let id = submit(&mut scheduler, &mut port);
        assert_eq!(scheduler.cancel(id, 0, &mut port), Cancel::Cancelled);
        scheduler.take_actions(Vec::new());
    }
    assert_eq!(scheduler.open_calls().len(), 5);
    assert_eq!(scheduler.open_calls()[4], head);
    assert_eq!(port.0.borrow().revocations, 0);
    scheduler.sanity_check();
}

#[test]
fn run_one_by_one() {
    let (mut scheduler, mut port) = full(2);
    for _ in 0..CALLS / 4 {
        submit(&mut scheduler, &mut port);
    }
    let mut ended = 0;
    let mut actions = scheduler.take_actions(Vec::new());
    while !actions.is_empty() {
        for action in std::mem::take(&mut actions) {
            let Action::Send {
                worker, seq, call, ..
            } = action
            else {
                continue;
            };
            assert_eq!(call, CallId(ended), "first come, first served");
            assert_eq!(scheduler.answered(worker, seq, 0), Ok((call, 0)));
            let done = rightlane_core::Event::PieceDone {
                worker,
                seq,
                busy_ns: 1_000,
            };
            scheduler.handle(done, NOW).expect("the first piece");
            ended += 1;
        }
        scheduler.dispatch(NOW, &mut port);
        actions = scheduler.take_actions(Vec::new());
    }
    assert_eq!(ended, CALLS / 4);
    assert_eq!(port.0.borrow().revocations, 0);
    scheduler.sanity_check();
}

/// A stream that takes a million items, one by one, behind workers that are busy.
fn long_stream(scheduler: &mut Scheduler, port: &mut Counting) -> CallId {
    let mut sizer = Sizer::new(None);
    sizer.measured(1_000, 1_000_000);
    let spec = CallSpec {
        closed: false,
        pace: sizer.pace(),
        ..ONE
    };
    let id = scheduler.open(&spec).expect("an executor that takes calls");
    scheduler.dispatch(NOW, port);
    for _ in 0..CALLS {
        assert!(scheduler.joins_in_order(id));
        scheduler.extend(id, 1);
        scheduler.dispatch(NOW, port);
    }
    id
}

#[test]
fn items_of_a_stream_cancelled_one_by_one() {
    let (mut scheduler, mut port) = full(2);
    let id = long_stream(&mut scheduler, &mut port);
    scheduler.take_actions(Vec::new());
    // In an order that is neither that of their coming nor its reverse; four are on their way.
    for step in 0..CALLS {
        let item = 4 + step * 7_919 % (CALLS - 3);
        if step < CALLS - 3 {
            assert_eq!(scheduler.cancel(id, item, &mut port), Cancel::Cancelled);
        }
    }
    assert_eq!(scheduler.waiting(), 0);
    assert_eq!(port.0.borrow().revocations, 0);
    assert_eq!(
        scheduler.take_actions(Vec::new()).len() as u64,
        CALLS - 3,
        "one word for each"
    );
    scheduler.sanity_check();
}

#[test]
fn a_stream_costs_its_pieces_and_not_its_items() {
    let (mut scheduler, mut port) = full(2);
    let id = long_stream(&mut scheduler, &mut port);
    let mut ended = 0;
    let mut actions = scheduler.take_actions(Vec::new());
    while !actions.is_empty() {
        for action in std::mem::take(&mut actions) {
            let Action::Send {
                worker, seq, items, ..
            } = action
            else {
                continue;
            };
            let count = items.end - items.start;
            for item in 0..count {
                let place = scheduler.answered(worker, seq, item as u32);
                assert_eq!(place, Ok((id, items.start + item)));
            }
            ended += count;
            let done = rightlane_core::Event::PieceDone {
                worker,
                seq,
                busy_ns: count * 1_000,
            };
            scheduler.handle(done, NOW).expect("the first piece");
            scheduler.dispatch(NOW, &mut port);
            actions.extend(scheduler.take_actions(Vec::new()));
        }
    }
    assert_eq!(ended, CALLS + 1);
    let fits = port.0.borrow().fits;
    assert!(fits < CALLS / 1_000, "{fits} pieces");
    assert_eq!(scheduler.deadline(), None);
    scheduler.sanity_check();
}
