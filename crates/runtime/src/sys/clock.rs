//! The one clock of the engine.

use rightlane_core::Moment;

/// Now, on the monotonic clock, which counts from the same point in every process of this boot.
pub fn now() -> Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Moment(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// The same in steps of some milliseconds, at a tenth of the cost.
pub fn coarse_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
