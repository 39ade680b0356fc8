//! What lies where in the two segments of a worker.
//!
//! Each segment is a header of one page and a ring's data. The parent alone writes the task
//! segment, the worker alone the answer segment; each maps the other's read-only, so every word has
//! one writer by construction. Words that are written while work flows lie on cache lines of their
//! own. All words are atomics, and every bit pattern of them is valid.

use std::mem::offset_of;

use crate::board::Board;
use crate::claim::REVOKE_SLOTS;
use crate::sync::{AtomicU32, AtomicU64};

/// Bytes before a ring's data.
pub const HEADER_BYTES: usize = 4096;
/// The smallest ring that a segment can hold.
pub const MIN_RING_BYTES: usize = 4096;
/// The largest ring that a segment can hold.
pub const MAX_RING_BYTES: usize = 1 << 30;

/// Changes whenever the layout does. Parent and workers come from one installation, so a mismatch
/// means that it was replaced while the parent ran.
pub const VERSION: u64 = 2;
pub(crate) const TASKS_MAGIC: u64 = u64::from_le_bytes(*b"rl-tasks");
pub(crate) const ANSWERS_MAGIC: u64 = u64::from_le_bytes(*b"rl-answr");

const LINE_BYTES: usize = 64;

/// A value on a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct Line<T>(pub(crate) T);

/// What a segment is. Written by the parent before anyone else has the segment; never changes.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU64,
    pub(crate) task_ring_bytes: AtomicU64,
    pub(crate) answer_ring_bytes: AtomicU64,
}

/// The first page of the task segment: written by the parent, read by the worker.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct TaskHeader {
    pub(crate) identity: Line<Identity>,
    /// Task ring: published up to here.
    pub(crate) tasks_tail: Line<AtomicU64>,
    /// Answer ring: read up to here.
    pub(crate) answers_head: Line<AtomicU64>,
    /// The futex word on which the worker sleeps; see [`sleep`](crate::sleep).
    pub(crate) doorbell: Line<AtomicU32>,
    /// The parent's announcement that it sleeps; see [`sleep`](crate::sleep).
    pub(crate) parent_asleep: Line<AtomicU64>,
    /// Pieces taken back: `seq + 1` in slot `seq % 64`; see [`claim`](crate::claim).
    pub(crate) revoked: Line<[AtomicU64; REVOKE_SLOTS]>,
    rest: [AtomicU64; (HEADER_BYTES - 5 * LINE_BYTES) / 8 - REVOKE_SLOTS],
}

/// The first page of the answer segment: written by the worker, read by the parent.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct AnswerHeader {
    pub(crate) identity: Line<Identity>,
    /// Answer ring: published up to here.
    pub(crate) answers_tail: Line<AtomicU64>,
    /// Task ring: read up to here.
    pub(crate) tasks_head: Line<AtomicU64>,
    /// The item that the worker has claimed; see [`claim`](crate::claim).
    pub(crate) claim: Line<AtomicU64>,
    /// The worker's announcement that it sleeps; see [`sleep`](crate::sleep).
    pub(crate) asleep: Line<AtomicU64>,
    /// What the worker has measured; see [`board`](crate::board).
    pub(crate) board: Line<Board>,
    rest: [AtomicU64; (HEADER_BYTES - 5 * LINE_BYTES - size_of::<Line<Board>>()) / 8],
}

const _: () = {
    assert!(size_of::<Line<AtomicU64>>() == LINE_BYTES);
    assert!(size_of::<TaskHeader>() == HEADER_BYTES && align_of::<TaskHeader>() == LINE_BYTES);
    assert!(offset_of!(TaskHeader, identity) == 0);
    assert!(offset_of!(TaskHeader, tasks_tail) == 64);
    assert!(offset_of!(TaskHeader, answers_head) == 128);
    assert!(offset_of!(TaskHeader, doorbell) == 192);
    assert!(offset_of!(TaskHeader, parent_asleep) == 256);
    assert!(offset_of!(TaskHeader, revoked) == 320);
    assert!(size_of::<AnswerHeader>() == HEADER_BYTES && align_of::<AnswerHeader>() == LINE_BYTES);
    assert!(offset_of!(AnswerHeader, identity) == 0);
    assert!(offset_of!(AnswerHeader, answers_tail) == 64);
    assert!(offset_of!(AnswerHeader, tasks_head) == 128);
    assert!(offset_of!(AnswerHeader, claim) == 192);
    assert!(offset_of!(AnswerHeader, asleep) == 256);
    assert!(offset_of!(AnswerHeader, board) == 320);
    assert!(offset_of!(Identity, magic) == 0 && offset_of!(Identity, version) == 8);
    assert!(offset_of!(Identity, task_ring_bytes) == 16 && size_of::<Identity>() == 32);
};

/// Whether a segment can hold a ring of so many bytes.
pub(crate) fn is_ring_size(ring_bytes: u64) -> bool {
    ring_bytes.is_power_of_two()
        && (MIN_RING_BYTES as u64..=MAX_RING_BYTES as u64).contains(&ring_bytes)
}
