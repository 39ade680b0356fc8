//! How many items travel as one message (a piece): sized by measured time.
//!
//! The sizes start at one, because nothing is known, and grow at most fourfold from one measured
//! piece to the next until a piece lasts [`TARGET_NS`]. So a map of no-ops soon moves in thousands and
//! a map of slow tasks stays at one. Near the end pieces shrink with what is left, so that no worker
//! sits on a long tail alone. A call of a function that is known already starts at its pace.

/// How long a piece should last: below it the wakes for each piece show, above it what stands behind one waits
/// for long. `docs/design/waking.md` has the measurement.
pub const TARGET_NS: u64 = 4_000_000;

/// Items that take at most this long are not worth the wake of a worker that has to wait for a core.
pub const SHORT_NS: u64 = 50_000;

/// The most items in a piece, whatever they cost.
pub const MOST_ITEMS: u64 = 16_384;

/// The most items in a piece of the user's own size: a claim has 31 bits for the item.
pub const MOST_FIXED_ITEMS: u64 = (1 << 31) - 1;

/// What was measured of a function's tasks, for the next call of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    per_item_ns: f64,
    largest_measured: u64,
}

impl Pace {
    /// How long an item takes.
    pub fn item_ns(self) -> u64 {
        self.per_item_ns as u64
    }
}

/// The sizing of one call's pieces.
#[derive(Clone, Debug)]
pub struct Sizer {
    fixed: Option<u64>,
    per_item_ns: Option<f64>,
    largest_measured: u64,
}

impl Sizer {
    /// `fixed` is the user's own chunk size, which is then taken at its word.
    pub fn new(fixed: Option<u64>) -> Sizer {
        Sizer {
            fixed,
            per_item_ns: None,
            largest_measured: 0,
        }
    }

    /// Starts where another call of the same function is.
    pub fn with_pace(mut self, pace: Pace) -> Sizer {
        self.per_item_ns = Some(pace.per_item_ns);
        self.largest_measured = pace.largest_measured;
        self
    }

    /// What is known by now, if anything is.
    pub fn pace(&self) -> Option<Pace> {
        Some(Pace {
            per_item_ns: self.per_item_ns?,
            largest_measured: self.largest_measured,
        })
    }

    /// A piece of `items` kept its runner busy for `busy_ns`.
    pub fn measured(&mut self, items: u64, busy_ns: u64) {
        if items == 0 {
            return;
        }
        let sample = busy_ns as f64 / items as f64;
        // An exponential average: an old belief counts for two thirds, so that one page fault does
        // not shrink the pieces and a change of phase shows within a few of them.
        self.per_item_ns = Some(match self.per_item_ns {
            None => sample,
            Some(old) => old + (sample - old) / 3.0,
        });
        self.largest_measured = self.largest_measured.max(items);
    }

    /// The size of the next piece, where `left` items wait and `slots` runners share them.
    pub fn next(&self, left: u64, slots: u64) -> u64 {
        if let Some(fixed) = self.fixed {
            return fixed.min(MOST_FIXED_ITEMS).clamp(1, left.max(1));
        }
        let Some(per_item_ns) = self.per_item_ns else {
            return 1;
        };
        let by_time = (TARGET_NS as f64 / per_item_ns.max(1.0)) as u64;
        let by_growth = self.largest_measured.saturating_mul(4);
        let by_share = left.div_ceil(slots.max(1) * 2);
        by_time.min(by_growth).min(by_share).clamp(1, MOST_ITEMS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_at_one_and_grows_fourfold_to_the_target() {
        let mut sizer = Sizer::new(None);
        let mut sizes = Vec::new();
        for _ in 0..9 {
            let size = sizer.next(u64::MAX, 2);
            sizes.push(size);
            sizer.measured(size, size * 1_000);
        }
        assert_eq!(sizes, [1, 4, 16, 64, 256, 1024, 4000, 4000, 4000]);
    }

    #[test]
    fn slow_items_travel_alone() {
        let mut sizer = Sizer::new(None);
        sizer.measured(1, 10_000_000);
        assert_eq!(sizer.next(1_000, 2), 1);
    }

    #[test]
    fn the_tail_is_shared() {
        let mut sizer = Sizer::new(None);
        sizer.measured(10_000, 10_000);
        assert_eq!(sizer.next(100, 2), 25);
        assert_eq!(sizer.next(1, 2), 1);
    }

    #[test]
    fn a_known_function_goes_on_at_its_pace() {
        let mut sizer = Sizer::new(None);
        assert_eq!(sizer.pace(), None);
        sizer.measured(10, 10_000);
        let pace = sizer.pace().expect("measured");
        let mut next = Sizer::new(None).with_pace(pace);
        assert_eq!(next.pace(), Some(pace));
        assert_eq!(next.next(u64::MAX, 2), 40);
        // It was wrong: the next pieces show it.
        next.measured(40, 40_000_000_000);
        assert_eq!(next.next(u64::MAX, 2), 1);
        assert_eq!(Sizer::new(Some(7)).with_pace(pace).next(100, 2), 7);
    }

    /// A stream that is extended one item at a time: what has gathered behind the busy workers goes in a
    /// few pieces, and the fewer there are, the smaller, so that nobody waits for company.
    #[test]
    fn a_trickle_is_shared_and_a_flood_goes_in_large_pieces() {
        let mut sizer = Sizer::new(None);
        for size in [1, 4, 16, 64, 256, 1024] {
            sizer.measured(size, size * 1_000);
        }
        assert_eq!(
            [1, 3, 10, 100].map(|left| sizer.next(left, 2)),
            [1, 1, 3, 25]
        );
        assert_eq!(sizer.next(100_000, 2), 4_000);
    }

    #[test]
    fn a_fixed_size_is_taken_at_its_word() {
        let mut sizer = Sizer::new(Some(7));
        sizer.measured(7, u64::MAX);
        assert_eq!(sizer.next(100, 2), 7);
        assert_eq!(sizer.next(3, 2), 3);
        assert_eq!(
            Sizer::new(Some(u64::MAX)).next(u64::MAX, 2),
            MOST_FIXED_ITEMS
        );
    }
}
