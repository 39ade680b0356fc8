//! The serialised items of a call, kept until they have ended.
//!
//! The heap holds the copy from which work is sent again after a worker's death; the rings only pass
//! it on. Items lie in blocks, in the order and layout in which they travel, so that a piece is a
//! slice of a block. A block is freed when all its items have ended.

use crate::arena::Span;
use crate::bounds::Amount;
use crate::definition::Definition;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Some consecutive items of a call.
#[derive(Debug, Default)]
pub struct Block {
    /// If they are not here one by one: how many there are, and the client's rule by which to make them.
    generated: Option<(u64, Box<[u8]>)>,
    /// Each item's length and bytes, one after the other; see [`crate::wire::push_item`].
    row: Vec<u8>,
    /// Where each item ends in the row. The last one's end is the row's: only that one may lie beyond what these
    /// numbers hold, because a block as large as [`MOST_BLOCK_BYTES`] takes no more items.
    ends: Vec<u32>,
    /// What the items refer to.
    needs: Vec<Arc<Definition>>,
    /// Few blocks have any.
    placed: Option<Box<Placed>>,
}

/// What it took to have large buffers lie in shared memory, of those that were to travel through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// How large those were that lay there already.
    pub saved_bytes: u64,
    /// How many were copied.
    pub copies: u64,
    /// How long that took, and finding out what lies there.
    pub ns: u64,
}

impl Moved {
    /// How long one is in a message.
    pub const BYTES: usize = 24;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let words = [self.saved_bytes, self.copies, self.ns];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Splits one off. Whatever a worker has written there, sums of them do not overflow.
    pub(crate) fn take(bytes: &[u8]) -> Option<(Moved, &[u8])> {
        let (saved_bytes, rest) = crate::wire::take_u64(bytes)?;
        let (copies, rest) = crate::wire::take_u64(rest)?;
        let (ns, rest) = crate::wire::take_u64(rest)?;
        let bounded = |word: u64| word.min(1 << 40);
        let moved = Moved {
            saved_bytes: bounded(saved_bytes),
            copies: bounded(copies),
            ns: bounded(ns),
        };
        Some((moved, rest))
    }

    /// Counts these as well.
    pub fn add(&mut self, more: Moved) {
        self.saved_bytes += more.saved_bytes;
        self.copies += more.copies;
        self.ns += more.ns;
    }
}

/// Large buffers of a block's items.
#[derive(Debug, Default)]
struct Placed {
    /// Where they lie, and of which item they are.
    spans: Vec<(u32, Arc<Span>)>,
    /// How large they are.
    bytes: usize,
    /// What it took to place them, and how many items have any.
    moved: Moved,
    items: u64,
}

impl Block {
    /// A block without items.
    pub fn new() -> Block {
        Block::default()
    }

    /// A block of so many items that the client's worker half makes from their numbers.
    pub fn generated(count: u64, rule: Box<[u8]>) -> Block {
        Block {
            generated: Some((count, rule)),
            ..Block::default()
        }
    }

    /// Adds an item, written by `write`.
    pub fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        crate::wire::push_item(&mut self.row, write);
        self.push_end();
    }

    fn push_end(&mut self) {
        self.ends.push(self.row.len().min(u32::MAX as usize) as u32);
    }

    /// Whether it takes one more item. What lies in shared memory counts: it is free again when the block is.
    pub fn has_room(&self) -> bool {
        self.row.len() + self.placed_bytes() < MOST_BLOCK_BYTES
    }

    /// The next item that is pushed has large buffers there. With each: whether its memory was taken for this item, and
    /// not for an earlier one, or by the user.
    pub fn place(&mut self, spans: impl IntoIterator<Item = (Arc<Span>, bool)>) {
        let item = self.ends.len() as u32;
        for (span, taken) in spans {
            let placed = self.placed.get_or_insert_default();
            placed.bytes += if taken { span.bytes() } else { 0 };
            placed.spans.push((item, span));
        }
    }

    /// What it took to place the buffers of the item that is pushed next.
    pub fn note_moved(&mut self, moved: Moved) {
        let placed = self.placed.get_or_insert_default();
        placed.moved.add(moved);
        placed.items += 1;
    }

    /// What it took to place the large buffers of its items, and how many items have any.
    pub fn moved(&self) -> Option<(Moved, u64)> {
        let placed = self.placed.as_ref()?;
        Some((placed.moved, placed.items))
    }

    /// How large its items are, also where what they hold lay in shared memory already.
    pub fn size(&self) -> u64 {
        let saved = self.moved().map_or(0, |(moved, _)| moved.saved_bytes);
        self.amount().bytes + saved
    }

    fn placed_bytes(&self) -> usize {
        self.placed.as_ref().map_or(0, |placed| placed.bytes)
    }

    /// What its items add to what is pending. Those that workers make from their numbers are not kept anywhere.
    pub fn amount(&self) -> Amount {
        Amount {
            items: self.ends.len() as u64,
            bytes: (self.row.len() + self.placed_bytes()) as u64,
        }
    }

    /// Takes over the only item of another block, which is empty then.
    fn take_only_item(&mut self, other: &mut Block) {
        debug_assert_eq!(other.len(), 1, "a block of one item");
        self.row.extend_from_slice(&other.row);
        self.push_end();
        for definition in other.needs.drain(..) {
            self.need(definition);
        }
        if let Some(other) = other.placed.take() {
            let item = self.ends.len() as u32 - 1;
            let placed = self.placed.get_or_insert_default();
            let spans = other.spans.into_iter();
            placed.spans.extend(spans.map(|(_, span)| (item, span)));
            placed.bytes += other.bytes;
        }
        other.clear();
    }

    /// Forgets its items, and keeps its memory for others.
    pub fn clear(&mut self) {
        self.row.clear();
        self.ends.clear();
        self.needs.clear();
        self.placed = None;
    }

    /// Adds an item if `write` says that it wrote one; else leaves the block as it was.
    pub fn try_push(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let mark = self.row.len();
        let mut written = false;
        crate::wire::push_item(&mut self.row, |row| written = write(row));
        if written {
            self.push_end();
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
        match &self.generated {
            Some((count, _)) => *count as usize,
            None => self.ends.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a block's only item, and what they refer to.
    pub fn into_only_item(mut self) -> (Box<[u8]>, Vec<Arc<Definition>>) {
        assert_eq!(self.len(), 1, "a block of one item");
        let item = crate::wire::take_item(&self.row).map_or(&[][..], |(item, _)| item);
        let header = self.row.len() - item.len();
        self.row.drain(..header);
        (self.row.into_boxed_slice(), self.needs)
    }

    pub(crate) fn needs(&self) -> &[Arc<Definition>] {
        &self.needs
    }

    /// Which of the spans belong to these items.
    fn spans_of(&self, items: Range<usize>) -> Range<u32> {
        let Some(placed) = &self.placed else {
            return 0..0;
        };
        let before = |bound: usize| {
            let spans = &placed.spans;
            spans.partition_point(|(item, _)| (*item as usize) < bound) as u32
        };
        before(items.start)..before(items.end)
    }

    fn bounds(&self, items: Range<usize>) -> Range<usize> {
        let start = match items.start {
            0 => 0,
            start => self.ends[start - 1] as usize,
        };
        let end = if items.end == self.ends.len() {
            self.row.len()
        } else {
            self.ends[items.end - 1] as usize
        };
        start..end
    }
}

/// Some items of a block as they travel; keeps the block alive.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    block: Arc<Block>,
    bounds: Range<usize>,
    spans: Range<u32>,
    /// Of a block of generated items: the first item's number and the rule.
    made: Option<Box<[u8]>>,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        match &self.made {
            Some(made) => made,
            None => &self.block.row[self.bounds.clone()],
        }
    }
}

impl Slice {
    pub(crate) fn is_generated(&self) -> bool {
        self.made.is_some()
    }

    pub(crate) fn needs(&self) -> &[Arc<Definition>] {
        self.block.needs()
    }

    /// Where large buffers of its items lie.
    pub(crate) fn spans(&self) -> impl Iterator<Item = &Arc<Span>> {
        let placed = self.block.placed.as_ref();
        let spans = placed.map_or(&[][..], |placed| {
            &placed.spans[self.spans.start as usize..self.spans.end as usize]
        });
        spans.iter().map(|(_, span)| span)
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

/// A block that is this large takes no more items.
pub const MOST_BLOCK_BYTES: usize = 1024 * 1024;

/// A block that grows item by item takes no more from here on: its memory doubles as it grows, and is given
/// back as a whole.
const MOST_GROWN_BYTES: usize = 64 * 1024;

impl Items {
    /// Adds the only item of a block, and leaves that one empty.
    pub(crate) fn push(&mut self, item: &mut Block) {
        let next = self.next;
        let grown = self.blocks.back_mut().and_then(|held| {
            // The last block may have ended before an earlier one.
            if held.first + held.block.len() as u64 != next {
                return None;
            }
            // Not while a part of it is on its way.
            let block = Arc::get_mut(&mut held.block)?;
            // One with large buffers stays alone: they are free again as soon as it has ended.
            let placed = block.placed.is_some() || item.placed.is_some();
            let bytes = block.row.len() + item.row.len();
            let fits = block.generated.is_none() && !placed && bytes <= MOST_GROWN_BYTES;
            fits.then_some((&mut held.unended, block))
        });
        match grown {
            Some((unended, block)) => {
                block.take_only_item(item);
                *unended += 1;
            }
            None => {
                let mut block = Block::new();
                // After a full block comes another one: it need not grow, which would leave holes behind.
                if let Some(full) = self.blocks.back().map(|held| &held.block)
                    && full.row.len() > MOST_GROWN_BYTES / 2
                    && full.row.len() <= MOST_GROWN_BYTES
                {
                    block.row.reserve_exact(MOST_GROWN_BYTES);
                    block
                        .ends
                        .reserve_exact(full.ends.len() + full.ends.len() / 8);
                }
                block.take_only_item(item);
                self.blocks.push_back(Held {
                    first: self.next,
                    unended: 1,
                    block: Arc::new(block),
                });
            }
        }
        self.next += 1;
    }

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

    /// How many there have been.
    pub(crate) fn count(&self) -> u64 {
        self.next
    }

    fn at(&self, item: u64) -> Option<usize> {
        // Almost always the first one: items are handed out, and end, in order.
        let index = match self.blocks.get(1) {
            Some(second) if item >= second.first => {
                self.blocks.partition_point(|held| held.first <= item) - 1
            }
            _ => 0,
        };
        if self.blocks.get(index)?.first > item {
            return None;
        }
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
        if held.block.generated.is_some() {
            return (end - start) as u64;
        }
        let from = held.block.bounds(start..start + 1).start;
        let ends = &held.block.ends[start..end];
        (ends.partition_point(|&e| e as usize - from <= MOST_PIECE_BYTES) as u64).max(1)
    }

    /// These items, which must lie in one block.
    pub(crate) fn slice(&self, items: &Range<u64>) -> Option<Slice> {
        let held = &self.blocks[self.at(items.start)?];
        let start = (items.start - held.first) as usize;
        let end = (items.end - held.first) as usize;
        if end > held.block.len() {
            return None;
        }
        let made = held.block.generated.as_ref().map(|(_, rule)| {
            let first = (start as u64).to_le_bytes();
            [&first, &**rule].concat().into_boxed_slice()
        });
        Some(Slice {
            bounds: if made.is_some() {
                0..0
            } else {
                held.block.bounds(start..end)
            },
            spans: held.block.spans_of(start..end),
            block: held.block.clone(),
            made,
        })
    }

    /// These items have ended; frees the blocks of which nothing is left. Returns what is pending no more: the items
    /// at once, their bytes with their block.
    #[must_use]
    pub(crate) fn ended(&mut self, items: Range<u64>) -> Amount {
        let mut over = Amount::default();
        let mut item = items.start;
        while item < items.end {
            let Some(index) = self.at(item) else { break };
            let held = &mut self.blocks[index];
            let end = items.end.min(held.first + held.block.len() as u64);
            let count = (end - item).min(held.unended);
            held.unended -= count;
            let kept = held.block.amount();
            over.items += count.min(kept.items);
            let empty = held.unended == 0;
            item = end;
            if empty {
                over.bytes += kept.bytes;
                // Almost always the first one: items are handed out in order.
                self.blocks.remove(index);
            }
        }
        over
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
        assert_eq!(items.slice(&(12..13)).unwrap().as_ref().len(), 60_004);
        assert!(items.slice(&(9..11)).is_none());
    }

    #[test]
    fn single_items_share_blocks_unless_one_is_on_its_way() {
        let mut items = Items::default();
        let mut one = block(1, 8);
        items.push(&mut one);
        assert!(one.is_empty());
        items.push(&mut block(1, 8));
        assert_eq!(items.fit(&(0..2)), 2);
        let slice = items.slice(&(0..2)).unwrap();
        items.push(&mut block(1, 8));
        assert_eq!(items.fit(&(0..3)), 2);
        drop(slice);
        let _ = items.ended(0..2);
        items.push(&mut block(1, 70_000));
        items.push(&mut block(1, 8));
        let lens: Vec<_> = items.blocks.iter().map(|held| held.block.len()).collect();
        assert_eq!(lens, [1, 1, 1]);
        assert_eq!(
            items.slice(&(4..5)).unwrap().as_ref(),
            items.slice(&(2..3)).unwrap().as_ref()
        );
    }

    #[test]
    fn a_single_item_joins_the_block_before_it_only() {
        let mut items = Items::default();
        for _ in 0..2 {
            items.push(&mut block(1, 8));
        }
        let slice = items.slice(&(0..2)).unwrap();
        items.push(&mut block(1, 8));
        drop(slice);
        let _ = items.ended(2..3);
        items.push(&mut block(1, 9));
        assert_eq!(items.slice(&(3..4)).unwrap().as_ref().len(), 13);
        assert_eq!(items.slice(&(1..2)).unwrap().as_ref().len(), 12);
    }

    #[test]
    fn generated_items_travel_as_their_rule() {
        let mut items = Items::default();
        items.extend(block(2, 1));
        items.extend(Block::generated(1_000_000, Box::new(*b"rule")));
        assert_eq!(items.fit(&(0..9)), 2);
        assert_eq!(items.fit(&(2..1_000_002)), 1_000_000);
        let slice = items.slice(&(5..9)).unwrap();
        assert!(slice.is_generated());
        assert_eq!(
            slice.as_ref(),
            [&3_u64.to_le_bytes(), &b"rule"[..]].concat()
        );
        let _ = items.ended(0..1_000_002);
        assert!(items.blocks.is_empty());
    }

    #[test]
    fn blocks_go_when_their_items_have_ended() {
        let mut items = Items::default();
        items.extend(block(2, 1));
        items.extend(block(2, 1));
        let _ = items.ended(1..3);
        assert_eq!(items.blocks.len(), 2);
        let _ = items.ended(0..1);
        assert_eq!(items.blocks.len(), 1);
        assert!(items.slice(&(0..1)).is_none());
        assert!(items.slice(&(3..4)).is_some());
        let _ = items.ended(3..4);
        assert!(items.blocks.is_empty());
    }

    #[test]
    fn what_was_pending_is_pending_no_more_once_it_has_ended() {
        let amount = |items, bytes| Amount { items, bytes };
        let arena = crate::arena::Arena::of_results(crate::arena::create_file().unwrap());
        let mut items = Items::default();
        let mut pending = Amount::default();
        let mut large = Block::new();
        large.place(arena.reserve(1000).map(|span| (Arc::new(span), true)));
        large.push(|row| row.push(1));
        assert_eq!(large.amount(), amount(1, 1005));
        large.push(|row| row.extend([1; 5]));
        assert_eq!(large.amount(), amount(2, 1014));
        for _ in 0..3 {
            let mut one = block(1, 8);
            pending.add(one.amount());
            items.push(&mut one);
        }
        for more in [
            large,
            block(5, 100),
            Block::generated(7, Box::new([])),
            block(1, 1),
        ] {
            pending.add(more.amount());
            items.extend(more);
        }
        assert_eq!(pending, amount(11, 36 + 1014 + 520 + 5));
        // In any order, as deaths and cancellations have it.
        let left = [
            (4..5, amount(10, 1575)),
            (0..1, amount(9, 1575)),
            (9..12, amount(8, 1575)),
            (2..4, amount(6, 561)),
            (12..17, amount(6, 561)),
            (1..2, amount(5, 525)),
            (5..9, amount(1, 5)),
            (17..18, amount(0, 0)),
        ];
        for (range, left) in left {
            pending.take(items.ended(range.clone()));
            assert_eq!(pending, left, "{range:?}");
        }
    }
}
