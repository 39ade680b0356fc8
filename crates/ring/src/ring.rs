//! A single-producer single-consumer ring of records, over any memory of 64-bit words.
//!
//! The ring knows two positions, counts of words since the beginning that never wrap: `tail`, up to
//! where the producer has published, and `head`, up to where the consumer has read. The words from
//! `head` to `tail` belong to the consumer, the others to the producer; data word `p` lies in slot
//! `p % len`.
//!
//! | word   | written by | read by  | ordering                                                      |
//! |--------|------------|----------|---------------------------------------------------------------|
//! | `tail` | producer   | consumer | Release in [`Producer::publish`], Acquire in `Consumer::look`  |
//! | `head` | consumer   | producer | Release in `Consumer::release`, Acquire in `Producer::refresh` |
//! | data   | producer   | consumer | Relaxed, ordered by the two pairs above                       |
//!
//! A record is one header word (length in bytes, tag) and as many words as its payload needs; it may
//! go round the end of the ring. Only whole records are published.
//!
//! The other side may be another process that has gone mad. What it wrote is checked before use:
//! positions must move forwards and stay within the ring, a record must lie within what is
//! published. Anything else is [`Corrupt`], never a panic or a read out of bounds; wrong payload
//! bytes cannot be told from right ones here. An error changes nothing, so it repeats when asked
//! again: give the peer up.
//!
//! Not done here: waiting ([`sleep`](crate::sleep)), messages larger than the ring
//! ([`fragment`](crate::fragment)).

use crate::copy::{WORD_BYTES, copy_in, copy_out};
use crate::sync::{AtomicU64, Ordering, load_acquire};

/// The tag bit that says that the next record continues this one; users' tags have the other 31.
pub(crate) const MORE: u32 = 1 << 31;

/// The fewest words a ring can have: two fragments of one payload word each.
pub const MIN_RING_WORDS: usize = 4;
/// The most words a ring can have (2 GiB), so that a record's length always fits its header.
pub const MAX_RING_WORDS: usize = 1 << 28;

/// Where a ring's words are.
///
/// `data` must always be the same slice; its length is a power of two, from [`MIN_RING_WORDS`] to
/// [`MAX_RING_WORDS`].
pub trait Ring {
    /// The position up to which records are published; written by the producer only.
    fn tail(&self) -> &AtomicU64;
    /// The position up to which records are read; written by the consumer only.
    fn head(&self) -> &AtomicU64;
    /// The data words; written by the producer only.
    fn data(&self) -> &[AtomicU64];
}

/// A ring over borrowed words.
#[derive(Clone, Copy, Debug)]
pub struct RingView<'a> {
    /// See [`Ring::tail`].
    pub tail: &'a AtomicU64,
    /// See [`Ring::head`].
    pub head: &'a AtomicU64,
    /// See [`Ring::data`].
    pub data: &'a [AtomicU64],
}

impl Ring for RingView<'_> {
    fn tail(&self) -> &AtomicU64 {
        self.tail
    }

    fn head(&self) -> &AtomicU64 {
        self.head
    }

    fn data(&self) -> &[AtomicU64] {
        self.data
    }
}

/// The peer broke the protocol: what it wrote cannot be what a healthy one writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corrupt {
    /// The peer's position went backwards or beyond what can be.
    #[error("ring position {found} lies outside {low}..={high}")]
    Position {
        /// The position read.
        found: u64,
        /// The lowest that would be right.
        low: u64,
        /// The highest that would be right.
        high: u64,
    },
    /// A record is longer than what is published.
    #[error("record of {len_bytes} bytes in {available_words} published words")]
    Record {
        /// The payload's length according to the header.
        len_bytes: u32,
        /// Published words from the header on.
        available_words: u64,
    },
    /// A record inside a fragmented message does not continue it, or carries nothing.
    #[error("record with tag {found:#x} in the middle of a message with tag {expected:#x}")]
    Fragment {
        /// The record's tag.
        found: u32,
        /// The tag of the message.
        expected: u32,
    },
    /// A message is longer than the consumer accepts.
    #[error("message of over {max_bytes} bytes")]
    Message {
        /// The consumer's bound.
        max_bytes: usize,
    },
}

/// Why a record was not pushed. Nothing was written then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Not enough room now.
    #[error("ring is full")]
    Full,
    /// Not enough room ever; see [`Outgoing`](crate::fragment::Outgoing).
    #[error("record is larger than the ring")]
    TooLarge,
    /// The consumer's position is impossible.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

fn check_len(words: usize) -> u64 {
    assert!(
        words.is_power_of_two() && (MIN_RING_WORDS..=MAX_RING_WORDS).contains(&words),
        "a ring of {words} words"
    );
    words as u64
}

fn record_words(len_bytes: usize) -> u64 {
    1 + len_bytes.div_ceil(WORD_BYTES) as u64
}

/// The writing end. There must be only one per ring.
#[derive(Debug)]
pub struct Producer<R> {
    ring: R,
    capacity: u64,
    /// Up to where records are written.
    written: u64,
    /// Up to where they are published.
    published: u64,
    /// A lower bound of the consumer's position, read again only when the ring looks full.
    head: u64,
}

impl<R: Ring> Producer<R> {
    /// Takes up the ring at its published position.
    ///
    /// # Panics
    ///
    /// When the ring's length is not one a ring can have.
    pub fn new(ring: R) -> Self {
        let capacity = check_len(ring.data().len());
        // Relaxed: only producers write the tail, and the one before us, if any, handed over.
        let published = ring.tail().load(Ordering::Relaxed);
        Self {
            ring,
            capacity,
            written: published,
            published,
            head: published.saturating_sub(capacity),
        }
    }

    /// Pushes and publishes one record whose payload is the `parts`, one after the other.
    ///
    /// # Panics
    ///
    /// When the tag has more than 31 bits.
    pub fn try_push(&mut self, tag: u32, parts: &[&[u8]]) -> Result<(), PushError> {
        self.push(tag, parts)?;
        self.publish();
        Ok(())
    }

    /// Writes one record without publishing it, so that many records cost one
    /// [`publish`](Self::publish). Publish before waiting for room: the consumer cannot free what it
    /// cannot see.
    ///
    /// # Panics
    ///
    /// When the tag has more than 31 bits.
    pub fn push(&mut self, tag: u32, parts: &[&[u8]]) -> Result<(), PushError> {
        assert!(tag & MORE == 0, "tag {tag:#x} has more than 31 bits");
        self.push_raw(tag, parts)
    }

    pub(crate) fn push_raw(&mut self, tag: u32, parts: &[&[u8]]) -> Result<(), PushError> {
        // Saturating, so that a sum of lengths beyond the address space is too large and not small.
        let len_bytes = parts
            .iter()
            .fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        let words = record_words(len_bytes);
        if words > self.capacity {
            return Err(PushError::TooLarge);
        }
        if words > self.free_words() {
            self.refresh()?;
            if words > self.free_words() {
                return Err(PushError::Full);
            }
        }
        let data = self.ring.data();
        let header = u64::from(tag) << 32 | len_bytes as u64;
        data[(self.written & (data.len() as u64 - 1)) as usize].store(header, Ordering::Relaxed);
        copy_in(data, self.written + 1, parts);
        self.written += words;
        Ok(())
    }

    /// Makes everything written so far visible to the consumer.
    pub fn publish(&mut self) {
        if self.published != self.written {
            self.published = self.written;
            // Release: pairs with the Acquire load of the tail in `Consumer::look`; the consumer
            // that sees this position sees the records before it.
            self.ring.tail().store(self.published, Ordering::Release);
        }
    }

    /// The position up to which records are published.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// The position up to which the consumer has read.
    pub fn consumed(&mut self) -> Result<u64, Corrupt> {
        self.refresh()?;
        Ok(self.head)
    }

    /// The largest payload that fits now; 0 also when not even an empty one does.
    pub fn free_bytes(&mut self) -> Result<usize, Corrupt> {
        self.refresh()?;
        Ok(self.free_words().saturating_sub(1) as usize * WORD_BYTES)
    }

    /// The largest payload that fits when the ring is empty.
    pub fn max_bytes(&self) -> usize {
        (self.capacity - 1) as usize * WORD_BYTES
    }

    pub(crate) fn capacity_words(&self) -> u64 {
        self.capacity
    }

    /// Free words as far as we know; the consumer may have freed more.
    pub(crate) fn free_words(&self) -> u64 {
        self.capacity - (self.written - self.head)
    }

    /// Reads the consumer's position.
    pub(crate) fn refresh(&mut self) -> Result<(), Corrupt> {
        // Acquire: pairs with the Release store of the head in `Consumer::release`; the consumer's
        // reads of the words before it are over, and we may overwrite them.
        let found = load_acquire(self.ring.head());
        // A consumer that frees what it was never given would let us count more room than there is.
        if found < self.head || found > self.published {
            return Err(Corrupt::Position {
                found,
                low: self.head,
                high: self.published,
            });
        }
        self.head = found;
        Ok(())
    }
}

/// The reading end. There must be only one per ring.
#[derive(Debug)]
pub struct Consumer<R> {
    ring: R,
    capacity: u64,
    /// Up to where records are read, whether or not that space is freed yet.
    position: u64,
    /// Up to where the space is freed.
    released: u64,
    /// A lower bound of the producer's position, read again only when the ring looks empty.
    tail: u64,
    scratch: Vec<u8>,
}

/// A record's header, checked against what is published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) tag: u32,
    pub(crate) len_bytes: usize,
}

impl<R: Ring> Consumer<R> {
    /// Takes up the ring at its read position.
    ///
    /// # Panics
    ///
    /// When the ring's length is not one a ring can have.
    pub fn new(ring: R) -> Self {
        let capacity = check_len(ring.data().len());
        // Relaxed: only consumers write the head, and the one before us, if any, handed over.
        let position = ring.head().load(Ordering::Relaxed);
        Self {
            ring,
            capacity,
            position,
            released: position,
            tail: position,
            scratch: Vec::new(),
        }
    }

    /// Pops one record: appends its payload to `out`, frees its space and returns its tag.
    ///
    /// A record that is a fragment of a larger message has the tag's top bit set, except the last;
    /// where such messages are sent, pop through an [`Assembler`](crate::fragment::Assembler).
    pub fn try_pop(&mut self, out: &mut Vec<u8>) -> Result<Option<u32>, Corrupt> {
        let Some(record) = self.peek()? else {
            return Ok(None);
        };
        self.take(record, out);
        self.release();
        Ok(Some(record.tag))
    }

    /// Pops up to `max` records, hands each to `each`, and frees their space in one go at the end.
    ///
    /// Returns how many. Records before a corrupt one have been handed out when the error returns.
    /// A record counts as popped once `each` was called with it, even if `each` panics.
    pub fn pop_batch(
        &mut self,
        max: usize,
        mut each: impl FnMut(u32, &[u8]),
    ) -> Result<usize, Corrupt> {
        let mut batch = Batch::new(self);
        for popped in 0..max {
            let Some(record) = batch.consumer.peek()? else {
                return Ok(popped);
            };
            batch.scratch.clear();
            batch.consumer.take(record, &mut batch.scratch);
            each(record.tag, &batch.scratch);
        }
        Ok(max)
    }

    /// Whether nothing is there to pop now. A corrupt ring is not empty: popping says so.
    pub fn is_empty(&self) -> bool {
        // Acquire only to be the same load as in `look`; nothing is read after it here.
        self.position == self.tail && self.position == load_acquire(self.ring.tail())
    }

    /// The position up to which records are read.
    pub fn consumed(&self) -> u64 {
        self.position
    }

    /// The next record, if one is published.
    pub(crate) fn peek(&mut self) -> Result<Option<Record>, Corrupt> {
        if self.position == self.tail {
            self.look()?;
            if self.position == self.tail {
                return Ok(None);
            }
        }
        let data = self.ring.data();
        // Read once: the peer could change it between a check and a second read.
        let header =
            data[(self.position & (data.len() as u64 - 1)) as usize].load(Ordering::Relaxed);
        let (tag, len_bytes) = ((header >> 32) as u32, header as u32);
        let available_words = self.tail - self.position;
        if record_words(len_bytes as usize) > available_words {
            return Err(Corrupt::Record {
                len_bytes,
                available_words,
            });
        }
        Ok(Some(Record {
            tag,
            len_bytes: len_bytes as usize,
        }))
    }

    /// Appends the payload of the record just peeked to `out` and moves beyond it, without freeing.
    pub(crate) fn take(&mut self, record: Record, out: &mut Vec<u8>) {
        copy_out(self.ring.data(), self.position + 1, record.len_bytes, out);
        self.position += record_words(record.len_bytes);
    }

    /// Frees the space of everything taken.
    pub(crate) fn release(&mut self) {
        if self.released != self.position {
            self.released = self.position;
            // Release: pairs with the Acquire load of the head in `Producer::refresh`; our reads of
            // these words come before the producer's next writes to them.
            self.ring.head().store(self.released, Ordering::Release);
        }
    }

    /// Reads the producer's position.
    fn look(&mut self) -> Result<(), Corrupt> {
        // Acquire: pairs with the Release store of the tail in `Producer::publish`; the records
        // before it are visible.
        let found = load_acquire(self.ring.tail());
        // What is not released is still occupied, so the producer cannot be further than one ring
        // from there.
        let high = self.released.saturating_add(self.capacity);
        if found < self.tail || found > high {
            return Err(Corrupt::Position {
                found,
                low: self.tail,
                high,
            });
        }
        self.tail = found;
        Ok(())
    }
}

/// Frees the space of a batch however it ends, and returns the scratch buffer.
pub(crate) struct Batch<'a, R: Ring> {
    pub(crate) consumer: &'a mut Consumer<R>,
    pub(crate) scratch: Vec<u8>,
}

impl<'a, R: Ring> Batch<'a, R> {
    pub(crate) fn new(consumer: &'a mut Consumer<R>) -> Self {
        Self {
            scratch: std::mem::take(&mut consumer.scratch),
            consumer,
        }
    }
}

impl<R: Ring> Drop for Batch<'_, R> {
    fn drop(&mut self) {
        self.consumer.release();
        self.consumer.scratch = std::mem::take(&mut self.scratch);
    }
}
