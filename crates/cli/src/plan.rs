//! The plan of a comparison: which pool sizes are tried, on how many items, and how the final runs are
//! interleaved. Pure arithmetic; carrying it out is [`crate::compare`]'s part.
//!
//! A comparison has two stages, because a minimum over noisy runs flatters (rule 29): a *sweep* on a
//! sample only chooses the size of each lane; what is reported is measured again on all items, every
//! engine in turn within the same stretch of time, so that a clock that drifts meets all of them.

use crate::host::{Lane, Portion};

/// What the sample takes serially. Long enough for a pool's start to be a small part of it, short
/// enough to try seven pools on.
pub const SAMPLE_S: f64 = 0.5;

/// Differences up to this factor are no difference: a tie.
pub const TIE: f64 = 1.10;

/// A larger pool has to beat a smaller one by this factor in the sweep to be chosen. More than [`TIE`],
/// for each size is run only once there.
const SWEEP_TIE: f64 = 1.25;

/// Below this many cores in use, a serial loop is mostly waiting.
pub const WAITING_CORES: f64 = 0.5;

/// All engines together may take this long per pass for the passes to be repeated.
const REPEATED_PASS_S: f64 = 4.0;
const PASSES: usize = 3;
/// A longer pass is made once, cut into this many blocks.
const BLOCKS: usize = 3;
/// How many items per worker a block must hold: with fewer, what a run takes is decided by the workers
/// that have nothing left to do at its end, and cutting would triple that.
const BLOCK_ITEMS_PER_WORKER: usize = 16;

/// The sizes to try for a lane: multiples of the cores, no larger than the items or `max_workers` allow.
pub fn sizes(lane: Lane, cores: usize, items: usize, max_workers: Option<usize>) -> Vec<usize> {
    let multiples: &[usize] = match lane {
        Lane::Process => &[1, 4, 16],
        Lane::Thread => &[1, 4, 16, 64],
    };
    let cap = items.min(max_workers.unwrap_or(usize::MAX)).max(1);
    let mut sizes: Vec<usize> = multiples.iter().map(|m| (m * cores).min(cap)).collect();
    sizes.dedup();
    sizes
}

/// How many items a pool of `size` is tried on, when the serial sample had `sampled` items and used
/// `serial_cores` cores.
///
/// Work that waits overlaps, so twice the size of the pool takes only about two items' time, and a
/// smaller sample could not tell a large pool from a middling one. Work that burns CPU does not, and
/// there the sample of [`SAMPLE_S`] tells all there is.
pub fn sample_items(size: usize, sampled: usize, serial_cores: f64, items: usize) -> usize {
    let wanted = if serial_cores < WAITING_CORES {
        sampled.max(2 * size)
    } else {
        sampled
    };
    wanted.min(items)
}

/// Chooses among `(size, tasks per second)`: the fastest, or a smaller one that comes near it, for a
/// smaller pool costs the machine less.
pub fn best_size(rates: &[(usize, f64)]) -> Option<usize> {
    let fastest = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    rates
        .iter()
        .filter(|(_, rate)| rate * SWEEP_TIE >= fastest)
        .map(|(size, _)| *size)
        .min()
}

/// How the final runs go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Every engine runs all items, this often; the median counts.
    Passes(usize),
    /// Every engine runs every item once, block after block; the sum counts.
    Blocks(usize),
}

impl Schedule {
    /// For engines of which one pass over all items takes `pass_s` together, the largest a pool of
    /// `largest` workers.
    pub fn choose(pass_s: f64, items: usize, largest: usize) -> Schedule {
        if pass_s <= REPEATED_PASS_S {
            Schedule::Passes(PASSES)
        } else if items / BLOCKS >= BLOCK_ITEMS_PER_WORKER * largest {
            Schedule::Blocks(BLOCKS)
        } else {
            Schedule::Passes(1)
        }
    }

    /// The portions to run, in order.
    pub fn portions(self) -> Vec<Portion> {
        match self {
            Schedule::Passes(count) => vec![Portion::ALL; count],
            Schedule::Blocks(of) => (0..of).map(|index| Portion::Block { index, of }).collect(),
        }
    }

    /// One engine's time for all items, from its time for each portion.
    pub fn total_s(self, portions_s: &[f64]) -> f64 {
        match self {
            Schedule::Passes(_) => median(portions_s),
            Schedule::Blocks(_) => portions_s.iter().sum(),
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_the_cores() {
        assert_eq!(sizes(Lane::Process, 2, 1000, None), [2, 8, 32]);
        assert_eq!(sizes(Lane::Thread, 2, 1000, None), [2, 8, 32, 128]);
    }

    #[test]
    fn no_pool_is_larger_than_items_or_max_workers() {
        assert_eq!(sizes(Lane::Thread, 2, 10, None), [2, 8, 10]);
        assert_eq!(sizes(Lane::Thread, 4, 1000, Some(3)), [3]);
        assert_eq!(sizes(Lane::Process, 8, 1, None), [1]);
    }

    #[test]
    fn only_waiting_work_gets_more_items_for_larger_pools() {
        assert_eq!(sample_items(128, 25, 0.05, 300), 256);
        assert_eq!(sample_items(128, 25, 0.05, 100), 100);
        assert_eq!(sample_items(2, 25, 0.05, 300), 25);
        assert_eq!(sample_items(128, 25, 1.0, 300), 25);
    }

    #[test]
    fn the_smaller_of_two_sizes_that_tie_is_chosen() {
        assert_eq!(best_size(&[(2, 100.0), (8, 124.0), (32, 90.0)]), Some(2));
        assert_eq!(best_size(&[(2, 100.0), (8, 390.0), (32, 400.0)]), Some(8));
        assert_eq!(best_size(&[]), None);
    }

    #[test]
    fn short_jobs_are_repeated_and_long_ones_cut_into_blocks() {
        assert_eq!(Schedule::choose(2.0, 1000, 2), Schedule::Passes(3));
        assert_eq!(Schedule::choose(30.0, 1790, 8), Schedule::Blocks(3));
        assert_eq!(Schedule::choose(11.0, 300, 32), Schedule::Passes(1));
        assert_eq!(
            Schedule::Blocks(3).portions()[2],
            Portion::Block { index: 2, of: 3 }
        );
    }

    #[test]
    fn passes_give_a_median_and_blocks_a_sum() {
        assert_eq!(Schedule::Passes(3).total_s(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(Schedule::Blocks(3).total_s(&[3.0, 1.0, 2.0]), 6.0);
    }
}
