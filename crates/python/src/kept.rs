//! The ends of a map's items, from when they come until they are yielded, in order or as they come.
//!
//! Short answers come in runs and stay together: a map of a million tiny tasks costs a copy of its bytes, and no
//! step for each item until it is yielded.

use crate::codec;
use crate::future::Slot;
use crate::raw::{Raw, flavor};
use pyo3::prelude::*;
use rightlane_runtime::Run;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// How an item ended.
#[derive(Debug)]
pub(crate) enum Entry {
    Raw(Raw),
    /// And how much memory lies behind it.
    Value(Py<PyAny>, u64),
    Exception(Py<PyAny>),
}

impl Entry {
    /// How much memory it keeps.
    fn bytes(&self) -> u64 {
        match self {
            Entry::Raw(raw) => raw.bytes(),
            Entry::Value(_, bytes) => *bytes,
            Entry::Exception(_) => 0,
        }
    }
}

/// The ends of consecutive items.
#[derive(Debug)]
pub(crate) enum Part {
    One(Option<Entry>),
    Run(Answers),
    /// Those of items that ran in the caller.
    Own(VecDeque<Entry>),
    /// So many that ended alike, without an answer.
    Same(u64, Raw),
}

impl Part {
    /// How many are left.
    pub(crate) fn len(&self) -> usize {
        match self {
            Part::One(entry) => usize::from(entry.is_some()),
            Part::Run(answers) => answers.run.len() - answers.next,
            Part::Own(entries) => entries.len(),
            Part::Same(left, _) => usize::try_from(*left).unwrap_or(usize::MAX),
        }
    }

    /// How much memory is left in it.
    fn bytes(&self) -> u64 {
        match self {
            Part::One(entry) => entry.as_ref().map_or(0, Entry::bytes),
            Part::Own(entries) => entries.iter().map(Entry::bytes).sum(),
            Part::Run(answers) => answers.run.bytes_from(answers.next) as u64,
            Part::Same(..) => 0,
        }
    }

    /// Takes the first.
    pub(crate) fn next(&mut self) -> Option<Entry> {
        match self {
            Part::One(entry) => entry.take(),
            Part::Run(answers) => {
                let (flavor, answer) = answers.peek()?;
                let entry = Entry::Raw(Raw::answer(flavor, answer));
                answers.advance();
                Some(entry)
            }
            Part::Own(entries) => entries.pop_front(),
            Part::Same(left, raw) => {
                *left = left.checked_sub(1)?;
                Some(Entry::Raw(raw.again()))
            }
        }
    }
}

/// A run of answers, partly taken.
#[derive(Debug)]
pub(crate) struct Answers {
    run: Run,
    next: usize,
}

impl Answers {
    fn peek(&self) -> Option<(u8, &[u8])> {
        self.run.get(self.next)
    }

    fn advance(&mut self) {
        self.next += 1;
    }

    /// Takes the first if it is a value that needs no unpickling.
    pub(crate) fn next_plain(&mut self) -> Option<&[u8]> {
        let (flavor, answer) = self.run.get(self.next)?;
        if flavor != flavor::RETURNED || answer.first().is_none_or(|tag| *tag == codec::PICKLE) {
            return None;
        }
        self.next += 1;
        Some(answer)
    }
}

impl Answers {
    /// Takes the first if it is a value whose reading runs no code of anybody's.
    pub(crate) fn next_atom(&mut self) -> Option<&[u8]> {
        let (_, answer) = self.peek()?;
        if !codec::is_atom(answer) {
            return None;
        }
        self.next_plain()
    }
}

/// Where the engine's items stand among all: in rows, between which are those that went another way.
#[derive(Debug, Default)]
struct Rows {
    /// From which of the engine's items on which place, but for the first row: it begins with the first of both.
    later: Vec<(u64, u64)>,
}

impl Rows {
    /// Whether all places from this one on are the engine's.
    fn is_last(&self, place: u64) -> bool {
        self.later.last().is_none_or(|(_, at)| *at <= place)
    }

    /// The row before this one of `later`, and of which length it is; the last one has no end.
    fn get(&self, next: usize) -> (u64, u64, u64) {
        let (item, at) = next.checked_sub(1).map_or((0, 0), |row| self.later[row]);
        let end = self.later.get(next).map_or(u64::MAX, |(item, _)| *item);
        (item, at, end - item)
    }

    /// Where this item stands, and how many stand there in a row.
    fn row(&self, item: u64) -> (u64, u64) {
        let next = self.later.partition_point(|(first, _)| *first <= item);
        let (first, at, count) = self.get(next);
        (at + (item - first), count - (item - first))
    }

    /// Whether one of the engine's stands there.
    fn holds(&self, place: u64) -> bool {
        let next = self.later.partition_point(|(_, at)| *at <= place);
        let (_, at, count) = self.get(next);
        place - at < count
    }

    /// So many from this place on, behind all others, go another way.
    fn set_aside(&mut self, place: u64, count: u64) {
        let (first, at, _) = self.get(self.later.len());
        let next = first + (place - at);
        match self.later.last_mut() {
            Some(last) if last.0 == next => last.1 = place + count,
            _ => self.later.push((next, place + count)),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// What has ended and is not taken, by its first item.
    parts: BTreeMap<u64, Part>,
    /// How much memory they keep.
    pub(crate) bytes: u64,
    /// The next item to be taken; or how many have been, where they are taken as they come.
    pub(crate) first: u64,
    /// Ends are taken as they come.
    pub(crate) unordered: bool,
    /// Items from here on that have not ended were cancelled.
    cancelled_from: Option<u64>,
    /// Items that have ended.
    pub(crate) ended: u64,
    /// Items read.
    pub(crate) read: u64,
    /// Where the engine's items stand, which counts only those that it has.
    rows: Rows,
    /// Nobody will ask any more.
    discard: bool,
    /// Nothing more will be read.
    pub(crate) closed: bool,
    /// What is done when every item has ended.
    pub(crate) whole: Option<Arc<Slot>>,
    /// Whoever reads on need not wait until something is taken.
    pub(crate) lifted: bool,
    /// The item somebody waits for; and whether somebody waits for any at all, to read on.
    pub(crate) wanted: Option<u64>,
    pub(crate) any_wanted: bool,
}

impl Kept {
    pub(crate) fn new(unordered: bool) -> Kept {
        Kept {
            unordered,
            ..Kept::default()
        }
    }

    /// Where the engine's item of this number stands.
    pub(crate) fn place(&self, item: u64) -> u64 {
        self.rows.row(item).0
    }

    /// The same, and how many of the engine's stand there in a row.
    pub(crate) fn row(&self, item: u64) -> (u64, u64) {
        self.rows.row(item)
    }

    /// The last so many items read go another way than the engine's.
    pub(crate) fn set_aside(&mut self, count: u64) {
        self.rows.set_aside(self.read - count, count);
    }

    /// Whether somebody waits for one of these items, or for any.
    fn is_wanted(&self, first: u64, count: u64) -> bool {
        let waits_for = |wanted| (first..first.saturating_add(count)).contains(&wanted);
        self.any_wanted || self.wanted.is_some_and(waits_for)
    }

    fn insert(&mut self, at: u64, part: Part) {
        self.bytes += part.bytes();
        self.parts.insert(at, part);
    }

    /// An item has ended. Returns whether that is worth a wake, and what is to be dropped without the lock.
    pub(crate) fn put(&mut self, at: u64, entry: Entry) -> (bool, Option<Entry>) {
        self.ended += 1;
        if self.discard || !self.unordered && at < self.first {
            return (self.any_wanted, Some(entry));
        }
        self.insert(at, Part::One(Some(entry)));
        (self.is_wanted(at, 1), None)
    }

    /// Consecutive items of the engine's have been answered. Returns whether that is worth a wake.
    pub(crate) fn put_run(&mut self, first: u64, run: &Run) -> bool {
        let count = run.len() as u64;
        let (at, most) = self.rows.row(first);
        if count <= most && !self.discard {
            self.ended += count;
            let answers = Answers {
                run: run.clone(),
                next: 0,
            };
            self.insert(at, Part::Run(answers));
            return self.is_wanted(at, count);
        }
        let mut wanted = false;
        for (item, (flavor, answer)) in (first..).zip(run.iter()) {
            let at = self.place(item);
            wanted |= self.put(at, Entry::Raw(Raw::answer(flavor, answer))).0;
        }
        wanted
    }

    /// The last items read have ended in the caller. Returns whether that is worth a wake, and what is to be dropped
    /// without the lock.
    pub(crate) fn put_own(&mut self, entries: VecDeque<Entry>) -> (bool, VecDeque<Entry>) {
        let count = entries.len() as u64;
        self.ended += count;
        self.set_aside(count);
        if self.discard || count == 0 {
            return (self.any_wanted, entries);
        }
        let first = self.read - count;
        self.insert(first, Part::Own(entries));
        (self.is_wanted(first, count), VecDeque::new())
    }

    /// Consecutive items of the engine's have ended alike. Returns whether that is worth a wake.
    pub(crate) fn put_all(&mut self, items: Range<u64>, raw: &Raw) -> bool {
        let mut wanted = false;
        let mut item = items.start;
        while item < items.end {
            // Up to the next item that went its own way.
            let (at, most) = self.rows.row(item);
            let count = most.min(items.end - item);
            self.ended += count;
            if !self.discard {
                self.insert(at, Part::Same(count, raw.again()));
            }
            wanted |= self.is_wanted(at, count);
            item += count;
        }
        wanted
    }

    /// The last so many items of the engine's end as cancelled.
    pub(crate) fn cancel_last(&mut self, count: u64) {
        let from = self.read - count;
        if self.rows.is_last(from) {
            // There may be more of them than there is memory for.
            self.ended += count;
            self.cancelled_from = Some(self.cancelled_from.map_or(from, |old| old.min(from)));
            return;
        }
        // Where ends are taken as they come, or not at all, `first` is no item's number.
        let lowest = if self.unordered || self.discard {
            0
        } else {
            self.first
        };
        let (mut at, mut left) = (self.read, count);
        while left > 0 && at > lowest {
            at -= 1;
            if self.rows.holds(at) {
                left -= 1;
                let _ = self.put(at, Entry::Raw(Raw::Cancelled));
            }
        }
    }

    /// Everything that has not ended ends as cancelled.
    pub(crate) fn cancel_rest(&mut self) {
        self.cancelled_from = Some(0);
        self.ended = self.read;
    }

    /// Keeps nothing any more; returns what is to be dropped without the lock.
    #[must_use]
    pub(crate) fn discard(&mut self) -> impl Sized + use<> {
        self.discard = true;
        self.first = self.read;
        self.bytes = 0;
        std::mem::take(&mut self.parts)
    }

    /// What is to be told that every item has ended, if they have.
    #[must_use]
    pub(crate) fn take_whole(&mut self) -> Option<Arc<Slot>> {
        if self.closed && self.ended == self.read {
            self.whole.take()
        } else {
            None
        }
    }

    /// Whether reading on waits for ends, and not for somebody to take them.
    pub(crate) fn is_lifted(&self) -> bool {
        self.discard || self.lifted
    }

    fn is_front_cancelled(&self) -> bool {
        match self.cancelled_from {
            None => false,
            // What has not come by the end was cancelled.
            Some(_) if self.unordered => {
                self.parts.is_empty() && self.first < self.read && self.ended == self.read
            }
            Some(from) => self.first < self.read && from <= self.first,
        }
    }

    /// Whether the next item in order has ended.
    pub(crate) fn is_front_ready(&self) -> bool {
        let front = self.parts.first_key_value();
        front.is_some_and(|(at, _)| self.unordered || *at == self.first)
            || self.is_front_cancelled()
    }

    /// Takes the ends of the next items in order, if there are any: those that lie together, or the first.
    pub(crate) fn take_front(&mut self, all: bool) -> Option<Part> {
        if self
            .parts
            .first_key_value()
            .is_none_or(|(at, _)| !self.unordered && *at != self.first)
        {
            let cancelled = self.is_front_cancelled();
            self.first += u64::from(cancelled);
            return cancelled.then(|| Part::One(Some(Entry::Raw(Raw::Cancelled))));
        }
        let (_, mut part) = self.parts.pop_first()?;
        self.bytes -= part.bytes();
        if all || part.len() == 1 {
            self.first += part.len() as u64;
            return Some(part);
        }
        let one = part.next();
        self.first += 1;
        self.insert(self.first, part);
        Some(Part::One(one))
    }
}
