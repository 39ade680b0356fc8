//! A board on which a worker writes what it has measured, for the parent to read whenever it likes.
//!
//! There are a few slots, each with a record of fixed size; a new record replaces what its slot had. The writer makes
//! a slot's version odd, writes, and makes it even again; a reader that meets an odd one, or another one afterwards,
//! has read nothing. So neither waits for the other, and a writer that dies in the middle leaves one slot that is never
//! read. The words are in the worker's segment: what they say is input.

use crate::sync::{AtomicU64, Ordering, fence, load_acquire};

/// How many records there are.
pub const SLOTS: usize = 8;
/// How many words a record has.
pub const RECORD_WORDS: usize = 23;

/// The words of a board. Written by the worker, one thread of it at a time; read by the parent.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Board {
    /// Grows with each record written.
    news: AtomicU64,
    slots: [Slot; SLOTS],
}

#[repr(C)]
#[derive(Debug, Default)]
struct Slot {
    version: AtomicU64,
    words: [AtomicU64; RECORD_WORDS],
}

impl Board {
    /// Replaces the record of a slot. By one thread at a time.
    pub fn write(&self, slot: usize, record: &[u64; RECORD_WORDS]) {
        let slot = &self.slots[slot];
        let version = slot.version.load(Ordering::Relaxed);
        slot.version.store(version | 1, Ordering::Relaxed);
        // Pairs with the reader's fence: who sees a word of this record sees the odd version.
        fence(Ordering::Release);
        for (word, value) in slot.words.iter().zip(record) {
            word.store(*value, Ordering::Relaxed);
        }
        // Release, for the reader's first load of the version: who sees this sees the whole record.
        slot.version
            .store((version | 1).wrapping_add(1), Ordering::Release);
        // Release, for the load in `news`.
        self.news.fetch_add(1, Ordering::Release);
    }

    /// Changes with each record.
    pub fn news(&self) -> u64 {
        load_acquire(&self.news)
    }

    /// Version and record of a slot, if it has one, it is not just being written, and its version is not `known`.
    pub fn read(&self, slot: usize, known: u64) -> Option<(u64, [u64; RECORD_WORDS])> {
        let slot = &self.slots[slot];
        let version = load_acquire(&slot.version);
        if version == known || version & 1 == 1 {
            return None;
        }
        let record = std::array::from_fn(|at| slot.words[at].load(Ordering::Relaxed));
        // Pairs with the writer's fence.
        fence(Ordering::Acquire);
        (slot.version.load(Ordering::Relaxed) == version).then_some((version, record))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_once_and_replaced_by_the_next() {
        let board = Board::default();
        assert_eq!((board.news(), board.read(3, 0)), (0, None));
        board.write(3, &[7; RECORD_WORDS]);
        let (version, record) = board.read(3, 0).expect("written");
        assert_eq!((board.news(), record), (1, [7; RECORD_WORDS]));
        assert_eq!(board.read(3, version), None);
        board.write(3, &[8; RECORD_WORDS]);
        assert_eq!(board.read(3, version).expect("newer").1[22], 8);
        assert_eq!(board.read(2, 0), None);
    }

    #[test]
    fn nobody_reads_half_a_record() {
        let board = Board::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..=200_000 {
                    board.write(0, &[value; RECORD_WORDS]);
                }
            });
            let (mut known, mut last) = (0, 0);
            while last < 200_000 {
                if let Some((version, record)) = board.read(0, known) {
                    assert!(record.iter().all(|word| *word == record[0]));
                    assert!(record[0] > last);
                    (known, last) = (version, record[0]);
                }
            }
        });
    }
}
