//! One `submit` or `map`: which of its items wait, travel, or have ended.
//!
//! Items are only ever counted here; what they are is the runtime's business. An item is in exactly
//! one place: not read yet, waiting (never cut, or put back), in a piece, or settled.

use crate::batch::Sizer;
use crate::event::Lane;
use std::collections::VecDeque;
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
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) lane: Lane,
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
    /// Items in pieces, on workers or lane threads.
    pub(crate) travelling: u64,
    pub(crate) settled: u64,
    /// Whether the call stands in the queue.
    pub(crate) queued: bool,
}

impl Call {
    pub(crate) fn new(spec: &CallSpec) -> Call {
        Call {
            lane: spec.lane,
            sizer: Sizer::new(spec.chunk_items),
            items: spec.items,
            closed: spec.closed,
            cancelled: false,
            next: 0,
            returned: VecDeque::new(),
            travelling: 0,
            settled: 0,
            queued: false,
        }
    }

    pub(crate) fn waiting(&self) -> u64 {
        self.items - self.next + self.returned.iter().map(|r| r.end - r.start).sum::<u64>()
    }

    pub(crate) fn has_waiting(&self) -> bool {
        self.next < self.items || !self.returned.is_empty()
    }

    pub(crate) fn done(&self) -> bool {
        self.closed && self.settled == self.items
    }

    /// Cuts the next piece: at most `most` items, contiguous, earliest first. `fit` may shorten it.
    pub(crate) fn cut(&mut self, slots: u64, fit: impl FnOnce(&Range<u64>) -> u64) -> Range<u64> {
        let size = self.sizer.next(self.waiting(), slots);
        let (start, end) = match self.returned.front() {
            Some(range) => (range.start, range.end),
            None => (self.next, self.items),
        };
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
        piece
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
        let mut taken: Vec<_> = self.returned.drain(..).collect();
        if self.next < self.items {
            taken.push(self.next..self.items);
            self.next = self.items;
        }
        self.settled += taken.iter().map(|r| r.end - r.start).sum::<u64>();
        taken
    }

    pub(crate) fn sanity_check(&self) {
        assert!(self.next <= self.items, "cut more than there is");
        assert_eq!(
            self.settled + self.travelling + self.waiting(),
            self.items,
            "an item is in two places or in none: {self:?}"
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
