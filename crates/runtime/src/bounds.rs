//! How much may be pending, that is accepted and not ended: a number of items, and the bytes that are kept for them
//! (invariant 8).
//!
//! What bounds it by default follows from the memory that is free when so much is first pending that it matters;
//! until then nothing is read. Nobody waits for more than that others end: what is alone is taken, however large.

use crate::budget::MemoryBudget;
use std::sync::OnceLock;

/// By default at least so many items may be pending.
pub const LEAST_ITEMS: u64 = 1_000_000;

/// Items may take this part of the free memory, each counted as [`ITEM_BYTES`].
pub const ITEMS_SHARE: u64 = 16;

/// What a pending item takes beside its arguments, as a rule.
pub const ITEM_BYTES: u64 = 256;

/// Arguments may take this part of the free memory.
pub const BYTES_SHARE: u64 = 4;

/// And at least so much.
pub const LEAST_BYTES: u64 = 16 * 1024 * 1024;

/// Whoever waits for room is woken once a part of the bound is free, so that not each end wakes somebody.
const STEP_SHARE: u64 = 8;

/// A step is never more items than that.
const MOST_STEP_ITEMS: u64 = 4096;

/// How much is pending, or may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Items.
    pub items: u64,
    /// The bytes of their arguments, as far as they are kept here: serialised, or placed in shared memory.
    pub bytes: u64,
}

impl Amount {
    const NO_BOUND: Amount = Amount {
        items: u64::MAX,
        bytes: u64::MAX,
    };

    pub(crate) fn add(&mut self, more: Amount) {
        self.items += more.items;
        self.bytes += more.bytes;
    }

    pub(crate) fn take(&mut self, less: Amount) {
        debug_assert!(less.is_within(*self), "more has ended than was pending");
        self.items = self.items.saturating_sub(less.items);
        self.bytes = self.bytes.saturating_sub(less.bytes);
    }

    /// Whether it is no more than that, in both.
    pub(crate) fn is_within(self, most: Amount) -> bool {
        self.items <= most.items && self.bytes <= most.bytes
    }
}

/// What the user says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxPending {
    /// As the memory allows.
    #[default]
    Default,
    /// So many items, and as many bytes as the memory allows.
    Items(u64),
    /// No bound at all.
    Unbounded,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Bounds {
    max: MaxPending,
    by_memory: OnceLock<Amount>,
}

impl Bounds {
    pub(crate) fn new(max: MaxPending) -> Bounds {
        Bounds {
            max,
            by_memory: OnceLock::new(),
        }
    }

    /// Takes this for the memory that is free, unless it was looked at already.
    pub(crate) fn assume(&self, free_bytes: u64) {
        let _ = self.by_memory.set(by_memory(free_bytes));
    }

    /// What may be pending.
    pub(crate) fn most(&self) -> Amount {
        let read = || by_memory(MemoryBudget::read().available_bytes());
        self.with(|| *self.by_memory.get_or_init(read))
    }

    fn with(&self, by_memory: impl FnOnce() -> Amount) -> Amount {
        match self.max {
            MaxPending::Default => by_memory(),
            MaxPending::Items(items) => Amount {
                items,
                ..by_memory()
            },
            MaxPending::Unbounded => Amount::NO_BOUND,
        }
    }

    /// Whether there is room for so much more.
    pub(crate) fn fits(&self, pending: Amount, more: Amount) -> bool {
        let items = pending.items.saturating_add(more.items);
        let bytes = pending.bytes.saturating_add(more.bytes);
        let fits = |most: Amount| {
            (items <= most.items || pending.items == 0)
                && (bytes <= most.bytes || pending.bytes == 0)
        };
        let least = Amount {
            items: LEAST_ITEMS,
            bytes: LEAST_BYTES,
        };
        // However little memory is free: so the usual case reads nothing.
        fits(self.with(|| least)) || fits(self.most())
    }

    /// How little must be pending for somebody who waits for room for so much more to be woken.
    pub(crate) fn mark(&self, more: Amount) -> Amount {
        let most = self.most();
        let items = more
            .items
            .max((most.items / STEP_SHARE).min(MOST_STEP_ITEMS));
        let bytes = more.bytes.max(most.bytes / STEP_SHARE);
        Amount {
            items: most.items.saturating_sub(items),
            bytes: most.bytes.saturating_sub(bytes),
        }
    }
}

fn by_memory(free_bytes: u64) -> Amount {
    Amount {
        items: (free_bytes / ITEMS_SHARE / ITEM_BYTES).max(LEAST_ITEMS),
        bytes: (free_bytes / BYTES_SHARE).max(LEAST_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn amount(items: u64, bytes: u64) -> Amount {
        Amount { items, bytes }
    }

    fn bounds(max: MaxPending, free_bytes: u64) -> Bounds {
        let bounds = Bounds::new(max);
        bounds.assume(free_bytes);
        bounds
    }

    #[test]
    fn the_default_follows_from_the_memory_and_has_a_floor() {
        let most = |free_bytes| bounds(MaxPending::Default, free_bytes).most();
        assert_eq!(most(64 * MIB * 1024), amount(16 * MIB, 16 * MIB * 1024));
        assert_eq!(most(0), amount(LEAST_ITEMS, LEAST_BYTES));
        assert_eq!(
            bounds(MaxPending::Items(3), 256 * MIB).most(),
            amount(3, 64 * MIB)
        );
        assert_eq!(
            bounds(MaxPending::Unbounded, 0).most(),
            amount(u64::MAX, u64::MAX)
        );
    }

    #[test]
    fn what_is_alone_always_fits() {
        let bounds = bounds(MaxPending::Items(2), 0);
        let large = amount(1, 1 << 40);
        assert!(bounds.fits(amount(0, 0), large));
        assert!(bounds.fits(amount(0, 0), amount(5, 0)));
        assert!(bounds.fits(amount(1, 0), large), "others take no memory");
        assert!(!bounds.fits(amount(1, 1), large));
        assert!(!bounds.fits(amount(2, 0), amount(1, 0)));
    }

    #[test]
    fn each_bound_counts_by_itself() {
        let bounds = bounds(MaxPending::Items(10), 400 * MIB);
        assert!(bounds.fits(amount(9, 0), amount(1, 100 * MIB)));
        assert!(!bounds.fits(amount(1, MIB), amount(1, 100 * MIB)));
        assert!(bounds.fits(amount(1, MIB), amount(1, 99 * MIB)));
        let unbounded = Bounds::new(MaxPending::Unbounded);
        assert!(unbounded.fits(amount(u64::MAX - 1, u64::MAX - 1), amount(1, 1)));
    }

    #[test]
    fn who_waits_is_woken_in_steps_and_never_without_room() {
        for (max, more) in [(1, 1), (2, 1), (64, 1), (64, 9), (1 << 40, 1)] {
            let bounds = bounds(MaxPending::Items(max), 400 * MIB);
            let more = amount(more, 3);
            let mark = bounds.mark(more);
            assert!(bounds.fits(mark, more), "{mark:?}");
            assert!(mark.bytes > 0 && mark.items < max);
            assert_eq!(mark.items, max - more.items.max((max / 8).min(4096)));
        }
        let bounds = bounds(MaxPending::Default, 400 * MIB);
        assert_eq!(
            bounds.mark(amount(1, 1 << 40)).bytes,
            0,
            "until it is alone"
        );
    }
}
