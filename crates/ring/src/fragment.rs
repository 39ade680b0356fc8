//! Messages of any length over a ring of fixed length.
//!
//! A message whose record takes at most half the ring travels as one record, as it is. A longer one
//! travels as several, each but the last with the tag's top bit set, none of more than half the
//! ring, so that the consumer reads one half while the producer fills the other. Records of one
//! message follow each other directly: once begun, a message must be pushed to its end before
//! anything else.
//!
//! The producer never waits here: [`Outgoing::push_some`] pushes what fits and says whether
//! something is left, so two ends that both have large messages for each other cannot deadlock as
//! long as each goes on popping.

use std::borrow::Cow;

use crate::copy::WORD_BYTES;
use crate::ring::{Batch, Consumer, Corrupt, MORE, Producer, PushError, Ring};

/// How far a message got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// All of it is published.
    Done,
    /// The ring has no room for the rest; call again when the consumer has read.
    Partial,
}

/// A message on its way into a ring.
#[derive(Debug)]
pub struct Outgoing<B> {
    tag: u32,
    bytes: B,
    sent: usize,
    done: bool,
}

impl<B: AsRef<[u8]>> Outgoing<B> {
    /// A message of which nothing is sent yet.
    ///
    /// # Panics
    ///
    /// When the tag has more than 31 bits.
    pub fn new(tag: u32, bytes: B) -> Self {
        assert!(tag & MORE == 0, "tag {tag:#x} has more than 31 bits");
        Self {
            tag,
            bytes,
            sent: 0,
            done: false,
        }
    }

    /// Pushes and publishes as much of the message as there is room for, and publishes what was
    /// written before it.
    pub fn push_some<R: Ring>(&mut self, producer: &mut Producer<R>) -> Result<Progress, Corrupt> {
        // Otherwise records that nobody can read could be what takes up the room we wait for.
        producer.publish();
        let capacity = producer.capacity_words();
        let bytes = self.bytes.as_ref();
        while !self.done {
            let rest = &bytes[self.sent..];
            let rest_words = 1 + rest.len().div_ceil(WORD_BYTES) as u64;
            let most_words = rest_words.min(capacity / 2);
            if producer.free_words() < most_words {
                producer.refresh()?;
            }
            let free_words = producer.free_words();
            let last = rest_words <= capacity / 2;
            // Small fragments would cost a header and a wake-up each while the consumer is just as
            // slow; the last one, and a message that fits, go as they are or wait.
            let least_words = if last {
                rest_words
            } else {
                (capacity / 8).max(2)
            };
            if free_words < least_words {
                return Ok(Progress::Partial);
            }
            let (tag, part) = if last {
                (self.tag, rest)
            } else {
                let words = free_words.min(capacity / 2);
                (self.tag | MORE, &rest[..(words - 1) as usize * WORD_BYTES])
            };
            match producer.push_raw(tag, &[part]) {
                Ok(()) => producer.publish(),
                Err(PushError::Corrupt(corrupt)) => return Err(corrupt),
                Err(PushError::Full | PushError::TooLarge) => unreachable!("room was checked"),
            }
            self.sent += part.len();
            self.done = last;
        }
        Ok(Progress::Done)
    }

    /// Bytes pushed so far.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// Whether anything was pushed. What has begun must be finished before anything else is pushed.
    pub fn has_begun(&self) -> bool {
        self.done || self.sent > 0
    }

    /// Whether all of it is published.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The message's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The message's tag.
    pub fn tag(&self) -> u32 {
        self.tag
    }

    /// Gives the bytes back.
    pub fn into_bytes(self) -> B {
        self.bytes
    }
}

/// Puts fragments together again, on the consumer's side.
#[derive(Debug)]
pub struct Assembler {
    max_bytes: usize,
    /// The tag of the message under way, and what has arrived of it.
    partial: Option<(u32, Vec<u8>)>,
}

impl Assembler {
    /// An assembler that takes messages of at most `max_bytes`; a longer one is [`Corrupt`].
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            partial: None,
        }
    }

    /// Pops one whole message: its tag and its payload.
    ///
    /// Fragments that arrived are read and their space freed, even if the message is not complete.
    pub fn try_pop<R: Ring>(
        &mut self,
        consumer: &mut Consumer<R>,
    ) -> Result<Option<(u32, Vec<u8>)>, Corrupt> {
        let mut out = Vec::new();
        while let Some(step) = self.step(consumer, &mut out)? {
            consumer.release();
            match step {
                Step::Fragment => {}
                Step::Single(tag) => return Ok(Some((tag, out))),
                Step::Assembled(tag, bytes) => return Ok(Some((tag, bytes))),
            }
        }
        Ok(None)
    }

    /// Pops up to `max` whole messages and hands each to `each`; returns how many.
    ///
    /// Small messages are borrowed from a buffer that is used again, assembled ones are owned, so
    /// `into_owned` copies only the small. Space is freed at the end and after each fragment.
    /// Messages before a corrupt record have been handed out when the error returns.
    pub fn pop_batch<R: Ring>(
        &mut self,
        consumer: &mut Consumer<R>,
        max: usize,
        mut each: impl FnMut(u32, Cow<'_, [u8]>),
    ) -> Result<usize, Corrupt> {
        let mut batch = Batch::new(consumer);
        let mut popped = 0;
        while popped < max {
            batch.scratch.clear();
            let Some(step) = self.step(batch.consumer, &mut batch.scratch)? else {
                break;
            };
            match step {
                Step::Fragment => batch.consumer.release(),
                Step::Single(tag) => {
                    popped += 1;
                    each(tag, Cow::Borrowed(&batch.scratch));
                }
                Step::Assembled(tag, bytes) => {
                    batch.consumer.release();
                    popped += 1;
                    each(tag, Cow::Owned(bytes));
                }
            }
        }
        Ok(popped)
    }

    /// Whether a message has begun to arrive and is not complete.
    pub fn is_midway(&self) -> bool {
        self.partial.is_some()
    }

    /// Takes one record. A message of one record goes to `single`.
    fn step<R: Ring>(
        &mut self,
        consumer: &mut Consumer<R>,
        single: &mut Vec<u8>,
    ) -> Result<Option<Step>, Corrupt> {
        let Some(record) = consumer.peek()? else {
            return Ok(None);
        };
        let (tag, more) = (record.tag & !MORE, record.tag & MORE != 0);
        let arrived = match &self.partial {
            Some((expected, _)) if *expected != tag => {
                return Err(Corrupt::Fragment {
                    found: record.tag,
                    expected: *expected,
                });
            }
            Some((_, bytes)) => bytes.len(),
            None => 0,
        };
        if (more || self.partial.is_some()) && record.len_bytes == 0 {
            return Err(Corrupt::Fragment {
                found: record.tag,
                expected: tag,
            });
        }
        if record.len_bytes > self.max_bytes - arrived {
            return Err(Corrupt::Message {
                max_bytes: self.max_bytes,
            });
        }
        Ok(Some(if more {
            let (_, bytes) = self.partial.get_or_insert_with(|| (tag, Vec::new()));
            consumer.take(record, bytes);
            Step::Fragment
        } else if let Some((tag, mut bytes)) = self.partial.take() {
            consumer.take(record, &mut bytes);
            Step::Assembled(tag, bytes)
        } else {
            consumer.take(record, single);
            Step::Single(tag)
        }))
    }
}

enum Step {
    /// A fragment that is not the last.
    Fragment,
    /// A message of one record.
    Single(u32),
    /// A message of several, complete.
    Assembled(u32, Vec<u8>),
}
