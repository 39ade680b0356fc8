//! One `map`, or `submit`s of one function in a row: which of its items wait, travel, or have ended.
//!
//! Items are only ever counted here; what they are is the runtime's business. An item is in exactly
//! one place: not read yet, waiting (never cut, or put back), in a piece, or settled. An item that is
//! cancelled while it waits is settled at once and leaves a tombstone, so that what waits around it
//! need not move; it goes when the cutting comes to it.

use crate::batch::{Pace, SHORT_NS, Sizer};
use crate::event::Lane;
use crate::ids::WorldId;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// What a new call is.
#[derive(Clone, Debug)]
pub struct CallSpec {
    /// Where its items run.
    pub lane: Lane,
    /// The user's chunk size, if any.
    pub chunk_items: Option<u64>,
    /// How many items are there already.
    pub items: u64,
    /// Whether no more will come.
    pub closed: bool,
    /// What is known of the function's tasks from an earlier call of it.
    pub pace: Option<Pace>,
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) lane: Lane,
    /// The caller's world at the call: only workers of it run its items.
    pub(crate) world: WorldId,
    pub(crate) sizer: Sizer,
    /// Items known so far.
    pub(crate) items: u64,
    pub(crate) closed: bool,
    /// Cancelled as a whole: what comes back from workers ends here instead of in the queue.
    pub(crate) cancelled: bool,
    /// The first item that was never cut into a piece.
    next: u64,
    /// Ranges that came back from a dead worker or a revoked piece, in order.
    returned: VecDeque<Range<u64>>,
    /// Tombstones: items of `returned` or from `next` on that were cancelled there. Neither `next` nor the
    /// start of the first range in `returned` is ever one.
    cancelled_waiting: BTreeSet<u64>,
    /// Items in pieces, on workers or lane threads.
    pub(crate) travelling: u64,
    pub(crate) settled: u64,
    /// Whether the call stands in the queue of those with items that were never cut.
    pub(crate) queued: bool,
}

impl Call {
    pub(crate) fn new(spec: &CallSpec, world: WorldId) -> Call {
        let sizer = Sizer::new(spec.chunk_items);
        Call {
            lane: spec.lane,
            world,
            sizer: match spec.pace {
                Some(pace) => sizer.with_pace(pace),
                None => sizer,
            },
            items: spec.items,
            closed: spec.closed,
            cancelled: false,
            next: 0,
            returned: VecDeque::new(),
            cancelled_waiting: BTreeSet::new(),
            travelling: 0,
            settled: 0,
            queued: false,
        }
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.items - self.travelling - self.settled
    }

    /// Whether items wait that were never cut.
    pub(crate) fn has_fresh(&self) -> bool {
        self.next < self.items
    }

    /// Whether items wait that came back.
    pub(crate) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Whether workers hold items of it.
    pub(crate) fn is_on_workers(&self) -> bool {
        self.lane == Lane::Process && self.travelling > 0
    }

    /// Whether its items are known to be shorter than what it costs to wake a worker.
    pub(crate) fn is_short(&self) -> bool {
        self.sizer
            .pace()
            .is_some_and(|pace| pace.item_ns() <= SHORT_NS)
    }

    pub(crate) fn done(&self) -> bool {
        self.closed && self.settled == self.items
    }

    /// Cuts the next piece: at most `most` items, contiguous, earliest first. `fit` may shorten it.
    pub(crate) fn cut(
        &mut self,
        slots: u64,
        most: u64,
        fit: impl FnOnce(&Range<u64>) -> u64,
    ) -> Range<u64> {
        let size = self.sizer.next(self.waiting(), slots).min(most);
        let (start, end) = match self.returned.front() {
            Some(range) => (range.start, range.end),
            None => (self.next, self.items),
        };
        let tombstone = self.cancelled_waiting.range(start..end).next();
        let end = tombstone.copied().unwrap_or(end);
        let wanted = start..end.min(start.saturating_add(size));
        let len = fit(&wanted).clamp(1, wanted.end - wanted.start);
        let piece = start..start + len;
        match self.returned.front_mut() {
            Some(range) if piece.end < range.end => range.start = piece.end,
            Some(_) => {
                self.returned.pop_front();
            }
            None => self.next = piece.end,
        }
        self.travelling += len;
        self.pass_tombstones();
        piece
    }

    fn pass_tombstones(&mut self) {
        while let Some(range) = self.returned.front_mut()
            && self.cancelled_waiting.remove(&range.start)
        {
            range.start += 1;
            if range.is_empty() {
                self.returned.pop_front();
            }
        }
        while self.cancelled_waiting.remove(&self.next) {
            self.next += 1;
        }
    }

    /// Cancels an item that waits; false if it does not.
    pub(crate) fn cancel_waiting(&mut self, item: u64) -> bool {
        let waits = if item < self.next {
            let at = self.returned.partition_point(|r| r.end <= item);
            self.returned.get(at).is_some_and(|r| r.contains(&item))
        } else {
            item < self.items
        };
        if !waits || !self.cancelled_waiting.insert(item) {
            return false;
        }
        self.settled += 1;
        self.pass_tombstones();
        true
    }

    /// The items that wait and were never cut; none if some of them were cancelled.
    pub(crate) fn fresh(&self) -> Range<u64> {
        match self.cancelled_waiting.range(self.next..).next() {
            Some(_) => self.next..self.next,
            None => self.next..self.items,
        }
    }

    /// Lets go of the first so many of these.
    pub(crate) fn give_away(&mut self, count: u64) -> Range<u64> {
        let first = self.next;
        self.next = self.items.min(first + count);
        self.settled += self.next - first;
        first..self.next
    }

    /// Puts items of a piece back, before what else waits.
    pub(crate) fn put_back(&mut self, items: Range<u64>) {
        if items.is_empty() {
            return;
        }
        self.travelling -= items.end - items.start;
        // Pieces come back in any order when several workers die at once; the earliest goes first.
        let at = self.returned.partition_point(|r| r.start < items.start);
        // Neighbours grow together again, or every death would leave smaller pieces behind.
        let joins_next = self.returned.get(at).is_some_and(|r| r.start == items.end);
        let joins_previous = at > 0 && self.returned[at - 1].end == items.start;
        match (joins_previous, joins_next) {
            (true, true) => {
                self.returned[at - 1].end = self.returned[at].end;
                self.returned.remove(at);
            }
            (true, false) => self.returned[at - 1].end = items.end,
            (false, true) => self.returned[at].start = items.start,
            (false, false) => self.returned.insert(at, items),
        }
    }

    /// Items of a piece that ended.
    pub(crate) fn settle_travelling(&mut self, count: u64) {
        self.travelling -= count;
        self.settled += count;
    }

    /// Takes everything that waits, for a cancellation; the ranges are settled with this call.
    pub(crate) fn take_waiting(&mut self) -> Vec<Range<u64>> {
        let mut ranges = std::mem::take(&mut self.returned);
        ranges.push_back(self.next..self.items);
        self.settled += self.waiting();
        self.next = self.items;
        let mut tombstones = std::mem::take(&mut self.cancelled_waiting)
            .into_iter()
            .peekable();
        let mut taken = Vec::new();
        for mut range in ranges {
            while let Some(tombstone) = tombstones.next_if(|t| range.contains(t)) {
                taken.push(range.start..tombstone);
                range.start = tombstone + 1;
            }
            taken.push(range);
        }
        taken.retain(|range| !range.is_empty());
        taken
    }

    pub(crate) fn sanity_check(&self) {
        assert!(self.next <= self.items, "cut more than there is");
        let returned = self.returned.iter().map(|r| r.end - r.start).sum::<u64>();
        assert_eq!(
            self.settled + self.travelling + returned + (self.items - self.next),
            self.items + self.cancelled_waiting.len() as u64,
            "an item is in two places or in none: {self:?}"
        );
        for tombstone in &self.cancelled_waiting {
            let waits = |r: &Range<u64>| r.contains(tombstone);
            assert!(
                waits(&(self.next..self.items)) || self.returned.iter().any(waits),
                "a tombstone outside of what waits: {self:?}"
            );
        }
        let first = self.returned.front().map(|r| r.start);
        assert!(
            first
                .into_iter()
                .chain([self.next])
                .all(|i| !self.cancelled_waiting.contains(&i)),
            "what waits begins with a tombstone: {self:?}"
        );
        for pair in self.returned.iter().zip(self.returned.iter().skip(1)) {
            assert!(
                pair.0.end < pair.1.start,
                "returned ranges overlap or touch: {self:?}"
            );
        }
        assert!(
            self.returned
                .iter()
                .all(|r| r.start < r.end && r.end <= self.next)
        );
    }
}
