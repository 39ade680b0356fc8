//! What the engine asks of whoever uses it. Python is the first client; nothing here knows it.

use crate::harvest::Fruit;
use crate::items::Moved;
use rightlane_core::lane::Measured;
use rightlane_core::{Breakage, Exit};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Who uses the engine: what work is to it, and where the ends of work go.
///
/// `settle` is called with the engine's lock held, on whichever thread noticed the end: it stores and
/// wakes, and does nothing that could wait, run foreign code or call the engine.
pub trait Client: Send + Sync + Sized + 'static {
    /// What the client wants to see again when an item of a call ends.
    type Ticket: Send + Sync + 'static;
    /// What lane threads run; the engine only hands it over.
    type Local: Send + Sync + 'static;

    /// An item has come to its end. Called exactly once for each item.
    fn settle(&self, ticket: &Self::Ticket, item: u64, end: End<'_>);

    /// Consecutive items have come to their ends, the first of them `first`: as `settle` for each.
    fn settle_run(&self, ticket: &Self::Ticket, first: u64, run: &Run);

    /// Consecutive items have come to the same end, without an answer: as `settle` for each. There may be more of
    /// them than there is memory for.
    fn settle_all(&self, ticket: &Self::Ticket, items: Range<u64>, end: &End<'static>);

    /// A worker tells the client something beside its answers.
    fn notice(&self, bytes: &[u8]);

    /// What a worker has measured of this definition, in this epoch of its (see [`crate::meter`]), and what it had told
    /// of that before. Called with the engine's lock held, before the answers that came with it are settled.
    fn measured(&self, definition: u64, epoch: u64, before: &Measured, now: &Measured);

    /// In a forked child: every item of the call that has not ended there is cancelled.
    fn cancel_in_child(&self, ticket: &Self::Ticket);
}

/// How an item ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<'a> {
    /// The worker answered; flavor and bytes are the client's.
    Answer { flavor: u8, bytes: AnswerBytes<'a> },
    /// Cancelled before it was claimed.
    Cancelled,
    /// The worker died while it ran the item.
    Lost(Loss),
    /// The executor broke before the item ran.
    Broken(Breakage),
}

/// The client's bytes in an answer: borrowed from the ring's reader where they were small, owned where
/// they came in fragments, so that a large answer is not copied once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerBytes<'a> {
    message: Cow<'a, [u8]>,
    skip: usize,
    fruits: Vec<Arc<Fruit>>,
    moved: Moved,
}

impl<'a> AnswerBytes<'a> {
    pub(crate) fn new(message: Cow<'a, [u8]>, skip: usize) -> AnswerBytes<'a> {
        AnswerBytes {
            message,
            skip,
            fruits: Vec::new(),
            moved: Moved::default(),
        }
    }

    pub(crate) fn with_fruits(
        mut self,
        skip: usize,
        fruits: Vec<Arc<Fruit>>,
        moved: Moved,
    ) -> AnswerBytes<'a> {
        self.skip += skip;
        self.fruits = fruits;
        self.moved = moved;
        self
    }

    /// Large buffers that came along, in shared memory.
    pub fn take_fruits(&mut self) -> Vec<Arc<Fruit>> {
        std::mem::take(&mut self.fruits)
    }

    /// How large these are, and what the worker says of placing them; None if there are none.
    pub fn moved(&self) -> Option<(u64, Moved)> {
        let bytes = self.fruits.iter().map(|fruit| fruit.bytes() as u64);
        (!self.fruits.is_empty()).then(|| (bytes.sum(), self.moved))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.message[self.skip..]
    }

    /// Keeps them: the bytes are what follows the first so many of the vector.
    pub fn into_owned(self) -> (Vec<u8>, usize) {
        match self.message {
            Cow::Borrowed(message) => (message[self.skip..].to_vec(), 0),
            Cow::Owned(message) => (message, self.skip),
        }
    }
}

/// Short answers to consecutive items.
#[derive(Clone, Debug, Default)]
pub struct Run {
    bytes: Vec<u8>,
    /// Where each answer ends, and its flavor.
    ends: Vec<(u32, u8)>,
}

impl Run {
    /// A run is handed on when it is this long.
    pub(crate) const MOST_BYTES: usize = 256 * 1024;

    pub(crate) fn push(&mut self, flavor: u8, answer: &[u8]) {
        self.bytes.extend_from_slice(answer);
        self.ends.push((self.bytes.len() as u32, flavor));
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= Run::MOST_BYTES
    }

    /// How many answers.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Flavor and bytes of one.
    pub fn get(&self, index: usize) -> Option<(u8, &[u8])> {
        let (end, flavor) = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].0);
        Some((flavor, &self.bytes[start as usize..end as usize]))
    }

    /// How many bytes there are from this one on.
    pub fn bytes_from(&self, index: usize) -> usize {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].0);
        self.bytes.len() - start as usize
    }

    /// Flavor and bytes of each.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(end, flavor)| {
            let answer = &self.bytes[start..end as usize];
            start = end as usize;
            (flavor, answer)
        })
    }
}

/// What is known about a worker's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The worker's process, if it ever had one.
    pub pid: Option<i32>,
    /// How it ended.
    pub exit: Exit,
    /// Which attempt to run the item this was, counted from one.
    pub attempt: u32,
    /// Whether the user had asked for the workers to be killed.
    pub killed_by_user: bool,
}
