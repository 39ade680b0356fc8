//! The book of every item: where it is, how often it ran, how it ended. It judges the scheduler's
//! decisions by what users are promised, without knowing how they come about.

use rightlane_core::{CallId, CallSpec, Claim, Lane, PieceSeq, WorkerId};
use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Waiting,
    Worker(WorkerId, PieceSeq),
    Thread,
    /// Taken back by decisions that are not carried out yet: it is sent again, ends, or waits after them.
    TakenBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Answered,
    Cancelled,
    Lost,
    Broken,
    GivenAway,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) place: Place,
    /// Its number in the order of coming, over all calls.
    born: u64,
    /// Whether it ever left for a worker or a thread.
    travelled: bool,
    pub(crate) cancel_asked: bool,
    /// The worker that claimed it while it was still that worker's to claim.
    pub(crate) claimed_by: Option<WorkerId>,
    /// Whether that worker has stood back from it, and its claim word says so.
    pub(crate) claim_withdrawn: bool,
    pub(crate) runs: u32,
    pub(crate) end: Option<End>,
}

impl Item {
    fn waits(&self) -> bool {
        self.end.is_none() && self.place == Place::Waiting
    }

    /// Whether the worker's claim word says that the worker has claimed it. A word that names a later
    /// piece says so, too, until it is read that the worker stood back.
    pub(crate) fn is_claimed(&self, worker: WorkerId, seq: PieceSeq, word: Option<Claim>) -> bool {
        let is_past = word.is_some_and(|word| word.seq > seq);
        self.claimed_by == Some(worker) && (!self.claim_withdrawn || is_past)
    }
}

#[derive(Debug)]
pub(crate) struct CallBook {
    pub(crate) lane: Lane,
    pub(crate) items: Vec<Item>,
    pub(crate) closed: bool,
    pub(crate) abandoned: bool,
    pub(crate) done: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) calls: BTreeMap<CallId, CallBook>,
    /// Whether something happened that may break the executor.
    pub(crate) may_break: bool,
    pub(crate) drained: bool,
    /// Whether what never travelled is to leave in the order of its coming.
    pub(crate) in_order: bool,
    born: u64,
}

impl Ledger {
    pub(crate) fn open(&mut self, id: CallId, spec: &CallSpec) {
        let book = CallBook {
            lane: spec.lane,
            items: Vec::new(),
            closed: spec.closed,
            abandoned: false,
            done: false,
        };
        assert!(
            self.calls.insert(id, book).is_none(),
            "{id:?} was used before"
        );
        self.extend(id, spec.items);
    }

    pub(crate) fn extend(&mut self, id: CallId, more: u64) {
        let born = self.born;
        self.born += more;
        let fresh = (born..self.born).map(|born| Item {
            place: Place::Waiting,
            born,
            travelled: false,
            cancel_asked: false,
            claimed_by: None,
            claim_withdrawn: false,
            runs: 0,
            end: None,
        });
        self.call(id).items.extend(fresh);
    }

    pub(crate) fn call(&mut self, id: CallId) -> &mut CallBook {
        self.calls.get_mut(&id).expect("a call that was opened")
    }

    pub(crate) fn item(&mut self, id: CallId, place: u64) -> &mut Item {
        &mut self.call(id).items[place as usize]
    }

    /// Items leave for a worker or a thread.
    pub(crate) fn travel(&mut self, id: CallId, items: &Range<u64>, to: Place, lane: Lane) {
        assert!(items.start < items.end, "an empty piece");
        let call = self.call(id);
        assert_eq!(call.lane, lane, "{id:?} in the wrong lane");
        let earlier = &call.items[..items.start as usize];
        assert!(
            !earlier.iter().any(Item::waits),
            "{id:?}: items {items:?} start before an earlier one that waits"
        );
        let first = call.items[items.start as usize];
        if self.in_order && !first.travelled {
            let earlier = |i: &Item| i.waits() && i.born < first.born;
            assert!(
                !self.calls.values().flat_map(|c| &c.items).any(earlier),
                "{id:?}: items {items:?} start before something that came before them"
            );
        }
        for place in items.clone() {
            let item = self.item(id, place);
            assert_eq!(item.end, None, "{id:?} item {place} has ended and is sent");
            assert_eq!(
                item.runs, 0,
                "{id:?} item {place} was run and is sent again"
            );
            assert!(
                matches!(item.place, Place::Waiting | Place::TakenBack),
                "{id:?} item {place} is in two places"
            );
            item.place = to;
            item.travelled = true;
            item.claimed_by = None;
            item.claim_withdrawn = false;
        }
    }

    /// Unended items that were at this place wait again.
    pub(crate) fn come_back(&mut self, from: impl Fn(Place) -> bool) {
        for item in self.calls.values_mut().flat_map(|c| &mut c.items) {
            if item.end.is_none() && from(item.place) {
                item.place = Place::Waiting;
            }
        }
    }

    pub(crate) fn begin_run(&mut self, id: CallId, place: u64) {
        let item = self.item(id, place);
        assert_eq!(item.end, None, "{id:?} item {place} has ended and is run");
        item.runs += 1;
        assert_eq!(item.runs, 1, "{id:?} item {place} is run twice");
    }

    pub(crate) fn end(&mut self, id: CallId, place: u64, end: End) {
        let item = self.item(id, place);
        assert_eq!(
            item.end, None,
            "{id:?} item {place} ends twice, now as {end:?}"
        );
        match end {
            End::Answered => assert_eq!(item.runs, 1, "{id:?} item {place} answered, not run"),
            End::Cancelled => {
                assert_eq!(item.runs, 0, "{id:?} item {place} was run, not cancelled")
            }
            End::Lost | End::Broken => {}
            End::GivenAway => panic!("{id:?} item {place} was given away"),
        }
        item.end = Some(end);
    }

    /// Items that wait, and never left, are somebody else's now.
    pub(crate) fn give_away(&mut self, id: CallId, items: Range<u64>) {
        for place in items {
            let item = self.item(id, place);
            assert!(
                item.waits() && !item.travelled,
                "{id:?} item {place}: {item:?}"
            );
            item.end = Some(End::GivenAway);
        }
    }

    pub(crate) fn call_done(&mut self, id: CallId) {
        let call = self.call(id);
        assert!(call.closed, "{id:?} is done, and more may come");
        assert!(
            call.items.iter().all(|i| i.end.is_some()),
            "{id:?} is done, its items are not"
        );
        assert!(!call.done, "{id:?} is done twice");
        call.done = true;
    }

    /// How many items of a lane wait for a slot.
    pub(crate) fn waiting(&self, lane: Lane) -> usize {
        let calls = self.calls.values().filter(|c| c.lane == lane);
        calls.flat_map(|c| &c.items).filter(|i| i.waits()).count()
    }

    /// Whether an item of an executor that is not broken waits for a slot.
    pub(crate) fn anything_waits(&self) -> bool {
        self.waiting(Lane::Process) + self.waiting(Lane::Thread) > 0
    }
}
