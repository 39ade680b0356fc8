//! Claim and revoke: a worker starts an item while the parent takes its piece back.
//!
//! Two flags and Dekker's argument. The worker stores its claim, then looks at the revocation; the
//! parent stores the revocation, then looks at the claim. Between store and load each has a SeqCst
//! fence, so at least one sees the other:
//!
//! * The parent sees no claim of the piece: the worker will see the revocation before it runs
//!   anything more of it. What it has run is published, because answers are published before a claim
//!   is released. Once the parent has popped those, the rest of the piece is its own again.
//! * The parent sees a claim of the piece: the worker may or may not have seen the revocation. The
//!   claimed item is the worker's until the worker answers for it, with a result or by declining.
//!   A worker that sees a revocation therefore always says from which item on it declined.
//!
//! Not done here: what to do with a piece taken back, and how a worker's death settles it (the
//! claim word outlives the worker; reading it after the death needs no protocol).

use std::fmt;

use crate::sync::{AtomicU64, Ordering, fence};

/// How many pieces can be under way at one worker, so that each has a revocation word of its own.
pub const REVOKE_SLOTS: usize = 64;

/// The item that a worker has claimed, as one word: the low 32 bits of the piece's number, one bit
/// that says that anything is claimed, 31 bits of item. Zero is “nothing claimed”.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Claim(u64);

const CLAIMED: u64 = 1 << 31;

impl Claim {
    /// Nothing is claimed.
    pub const NOTHING: Self = Self(0);

    /// The claim of one item of the piece number `seq`.
    ///
    /// # Panics
    ///
    /// When `item` has more than 31 bits.
    pub fn new(seq: u64, item: u32) -> Self {
        assert!(
            u64::from(item) < CLAIMED,
            "item {item} has more than 31 bits"
        );
        Self(seq << 32 | CLAIMED | u64::from(item))
    }

    /// The item claimed, if the claim is of the piece `seq`.
    ///
    /// Only the low 32 bits of the number are compared. That is enough, because a worker never has
    /// pieces under way whose numbers lie further apart than [`REVOKE_SLOTS`].
    pub fn item_of(self, seq: u64) -> Option<u32> {
        self.parts()
            .filter(|&(low, _)| low == seq as u32)
            .map(|(_, item)| item)
    }

    /// The low 32 bits of the piece's number, and the item; `None` if nothing is claimed.
    pub fn parts(self) -> Option<(u32, u32)> {
        (self.0 & CLAIMED != 0).then_some(((self.0 >> 32) as u32, (self.0 & (CLAIMED - 1)) as u32))
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            Some((low, item)) => write!(f, "Claim(piece {low}, item {item})"),
            None => f.write_str("Claim(nothing)"),
        }
    }
}

/// What became of a worker's attempt to claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Attempt {
    /// The item is the worker's: run it.
    Claimed,
    /// The piece was taken back; the claim is withdrawn. Decline the item and those after it.
    Revoked,
}

/// Worker: claims an item, unless its piece was taken back. `slot` is the word of [`slot`]`(seq)`.
pub fn claim(word: &AtomicU64, slot: &AtomicU64, seq: u64, item: u32) -> Attempt {
    // Relaxed: only the worker writes this word.
    let before = word.load(Ordering::Relaxed);
    // Release, so that a parent that sees the claim sees what the worker did before it.
    word.store(Claim::new(seq, item).0, Ordering::Release);
    // The fence pairs with the one in `revoke`: of our store and the parent's, at least one comes
    // before the other side's load.
    fence(Ordering::SeqCst);
    if is_revoked(slot, seq) {
        // The claim before, not none: the parent may not have read the answers of earlier items yet,
        // and must not take them for untouched when it revokes the piece once more.
        word.store(before, Ordering::Release);
        return Attempt::Revoked;
    }
    Attempt::Claimed
}

/// Worker: nothing is claimed any more. To be called after the last item's answer is published.
pub fn release(word: &AtomicU64) {
    // Release: pairs with the acquire fence in `claimed`; who sees it sees the answers before it.
    word.store(Claim::NOTHING.0, Ordering::Release);
}

/// Worker: whether the piece `seq` was taken back.
pub fn is_revoked(slot: &AtomicU64, seq: u64) -> bool {
    slot.load(Ordering::Relaxed) == seq.wrapping_add(1)
}

/// Parent: takes the piece `seq` back and returns the claim that stood against it; see the module.
pub fn revoke(slot: &AtomicU64, word: &AtomicU64, seq: u64) -> Claim {
    slot.store(seq.wrapping_add(1), Ordering::Relaxed);
    // Pairs with the fence in `claim`.
    fence(Ordering::SeqCst);
    claimed(word)
}

/// Parent: what is claimed now.
pub fn claimed(word: &AtomicU64) -> Claim {
    Claim(crate::sync::load_acquire(word))
}

/// The revocation word of the piece `seq`.
pub fn slot(seq: u64) -> usize {
    (seq % REVOKE_SLOTS as u64) as usize
}
