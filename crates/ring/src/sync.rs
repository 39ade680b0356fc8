//! The atomics of this crate: the standard ones, or loom's under `--cfg loom`.
//!
//! Everything else names atomics through this module, so that what loom checks is what runs.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// An acquire load of a word that may lie in a read-only mapping.
///
/// Rust promises that a *relaxed* load works on read-only memory, and nothing about stronger ones; a
/// relaxed load followed by an acquire fence is the form its documentation recommends for them.
pub(crate) fn load_acquire(word: &AtomicU64) -> u64 {
    let value = word.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    value
}
