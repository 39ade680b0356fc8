//! The book of every item: where it is, how often it ran, how it ended. It judges the scheduler's
//! decisions by what users are promised, without knowing how they come about.

use rightlane_core::{CallId, CallSpec, Lane, PieceSeq, WorkerId};
use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Waiting,
    Worker(WorkerId, PieceSeq),
    Thread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Answered,
    Cancelled,
    Lost,
    Broken,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) place: Place,
    /// The worker that claimed it while it was still that worker's to claim.
    pub(crate) claimed_by: Option<WorkerId>,
    pub(crate) runs: u32,
    pub(crate) end: Option<End>,
}

#[derive(Debug)]
pub(crate) struct CallBook {
    pub(crate) lane: Lane,
    pub(crate) items: Vec<Item>,
    pub(crate) closed: bool,
    pub(crate) cancel_asked: bool,
    pub(crate) abandoned: bool,
    pub(crate) done: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) calls: BTreeMap<CallId, CallBook>,
    /// Whether something happened that may break the executor.
    pub(crate) may_break: bool,
    pub(crate) drained: bool,
}

impl Ledger {
    pub(crate) fn open(&mut self, id: CallId, spec: &CallSpec) {
        let book = CallBook {
            lane: spec.lane,
            items: Vec::new(),
            closed: spec.closed,
            cancel_asked: false,
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
        let fresh = Item {
            place: Place::Waiting,
            claimed_by: None,
            runs: 0,
            end: None,
        };
        let items = &mut self.call(id).items;
        items.resize(items.len() + more as usize, fresh);
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
        if call.items[items.start as usize].place == Place::Waiting {
            let earlier = &call.items[..items.start as usize];
            assert!(
                earlier
                    .iter()
                    .all(|i| i.end.is_some() || i.place != Place::Waiting),
                "{id:?}: items {items:?} start before an earlier one that waits"
            );
        }
        for place in items.clone() {
            let item = self.item(id, place);
            assert_eq!(item.end, None, "{id:?} item {place} has ended and is sent");
            assert_eq!(
                item.runs, 0,
                "{id:?} item {place} was run and is sent again"
            );
            item.place = to;
            item.claimed_by = None;
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
        }
        item.end = Some(end);
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

    /// Whether an item of an executor that is not broken waits for a slot.
    pub(crate) fn anything_waits(&self) -> bool {
        let mut items = self.calls.values().flat_map(|c| &c.items);
        items.any(|i| i.end.is_none() && i.place == Place::Waiting)
    }
}
