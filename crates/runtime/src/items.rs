//! The serialised items of a call, kept until they have ended.
//!
//! The heap holds the copy from which work is sent again after a worker's death; the rings only pass
//! it on. Items lie in blocks, in the order and layout in which they travel, so that a piece is a
//! slice of a block. A block is freed when all its items have ended.

use crate::definition::Definition;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Some consecutive items of a call.
#[derive(Debug, Default)]
pub struct Block {
    /// Each item's length and bytes, one after the other; see [`crate::wire::push_item`].
    row: Vec<u8>,
    /// Where each item ends in the row.
    ends: Vec<usize>,
    /// What the items refer to.
    needs: Vec<Arc<Definition>>,
}

impl Block {
    /// A block without items.
    pub fn new() -> Block {
        Block::default()
    }

    /// Adds an item, written by `write`.
    pub fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        crate::wire::push_item(&mut self.row, write);
        self.ends.push(self.row.len());
    }

    /// Adds an item if `write` says that it wrote one; else leaves the block as it was.
    pub fn try_push(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let mark = self.row.len();
        let mut written = false;
        crate::wire::push_item(&mut self.row, |row| written = write(row));
        if written {
            self.ends.push(self.row.len());
        } else {
            self.row.truncate(mark);
        }
        written
    }

    /// The items refer to this definition.
    pub fn need(&mut self, definition: Arc<Definition>) {
        if !self.needs.iter().any(|known| known.id() == definition.id()) {
            self.needs.push(definition);
        }
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes they take.
    pub fn row_bytes(&self) -> usize {
        self.row.len()
    }

    /// The bytes of a block's only item, and what they refer to.
    pub fn into_only_item(mut self) -> (Box<[u8]>, Vec<Arc<Definition>>) {
        assert_eq!(self.len(), 1, "a block of one item");
        self.row.drain(..8);
        (self.row.into_boxed_slice(), self.needs)
    }

    pub(crate) fn needs(&self) -> &[Arc<Definition>] {
        &self.needs
    }

    fn bounds(&self, items: Range<usize>) -> Range<usize> {
        let start = if items.start == 0 {
            0
        } else {
            self.ends[items.start - 1]
        };
        start..self.ends[items.end - 1]
    }
}

/// Some items of a block as they travel; keeps the block alive.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    block: Arc<Block>,
    bounds: Range<usize>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.block.row[self.bounds.clone()]
    }
}

impl Slice {
    pub(crate) fn needs(&self) -> &[Arc<Definition>] {
        self.block.needs()
    }
}

#[derive(Debug)]
struct Held {
    first: u64,
    unended: u64,
    block: Arc<Block>,
}

/// All items of a call that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Items {
    blocks: VecDeque<Held>,
    next: u64,
}

/// A piece carries at most this many bytes if it has more than one item, so that the first answer
/// of a piece of large items does not wait for megabytes to be copied.
const MOST_PIECE_BYTES: usize = 64 * 1024;

impl Items {
    pub(crate) fn extend(&mut self, block: Block) {
        let count = block.len() as u64;
        if count > 0 {
            self.blocks.push_back(Held {
                first: self.next,
                unended: count,
                block: Arc::new(block),
            });
            self.next += count;
        }
    }

    fn at(&self, item: u64) -> Option<usize> {
        let after = self.blocks.partition_point(|held| held.first <= item);
        let index = after.checked_sub(1)?;
        let held = &self.blocks[index];
        (item - held.first < held.block.len() as u64).then_some(index)
    }

    /// How many of these items make one message: within one block, and not too many bytes.
    pub(crate) fn fit(&self, items: &Range<u64>) -> u64 {
        let Some(held) = self.at(items.start).map(|index| &self.blocks[index]) else {
            return 1;
        };
        let start = (items.start - held.first) as usize;
        let end = held.block.len().min((items.end - held.first) as usize);
        let from = held.block.bounds(start..start + 1).start;
        let ends = &held.block.ends[start..end];
        (ends.partition_point(|&e| e - from <= MOST_PIECE_BYTES) as u64).max(1)
    }

    /// These items, which must lie in one block.
    pub(crate) fn slice(&self, items: &Range<u64>) -> Option<Slice> {
        let held = &self.blocks[self.at(items.start)?];
        let start = (items.start - held.first) as usize;
        let end = (items.end - held.first) as usize;
        if end > held.block.len() {
            return None;
        }
        Some(Slice {
            bounds: held.block.bounds(start..end),
            block: held.block.clone(),
        })
    }

    /// These items have ended; frees the blocks of which nothing is left.
    pub(crate) fn ended(&mut self, items: Range<u64>) {
        let mut item = items.start;
        while item < items.end {
            let Some(index) = self.at(item) else { return };
            let held = &mut self.blocks[index];
            let end = items.end.min(held.first + held.block.len() as u64);
            held.unended = held.unended.saturating_sub(end - item);
            let empty = held.unended == 0;
            item = end;
            if empty {
                // Almost always the first one: items are handed out in order.
                self.blocks.remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(items: usize, bytes: usize) -> Block {
        let mut block = Block::new();
        for _ in 0..items {
            block.push(|row| row.resize(row.len() + bytes, 7));
        }
        block
    }

    #[test]
    fn pieces_stay_within_a_block_and_a_size() {
        let mut items = Items::default();
        items.extend(block(10, 1));
        items.extend(block(4, 60_000));
        assert_eq!(items.fit(&(3..14)), 7);
        assert_eq!(items.fit(&(10..14)), 1);
        assert_eq!(items.slice(&(12..13)).unwrap().as_ref().len(), 60_008);
        assert!(items.slice(&(9..11)).is_none());
    }

    #[test]
    fn blocks_go_when_their_items_have_ended() {
        let mut items = Items::default();
        items.extend(block(2, 1));
        items.extend(block(2, 1));
        items.ended(1..3);
        assert_eq!(items.blocks.len(), 2);
        items.ended(0..1);
        assert_eq!(items.blocks.len(), 1);
        assert!(items.slice(&(0..1)).is_none());
        assert!(items.slice(&(3..4)).is_some());
        items.ended(3..4);
        assert!(items.blocks.is_empty());
    }
}
