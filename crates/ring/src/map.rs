//! A mapped segment, seen as its header and its data words.
//!
//! The only place where mapped bytes become references. What makes that sound: the references are
//! to atomics and nothing else, so it does not matter who writes meanwhile; and segments are sealed
//! against shrinking before they are mapped here or checked to be, so the pages stay.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::slice;

use memmap2::{MmapOptions, MmapRaw};

use crate::copy::WORD_BYTES;
use crate::layout::{AnswerHeader, HEADER_BYTES, TaskHeader};
use crate::sync::AtomicU64;

#[derive(Debug)]
pub(crate) struct Map(MmapRaw);

impl Map {
    /// Maps header and ring shared and writable.
    pub(crate) fn writable(fd: BorrowedFd<'_>, ring_bytes: usize) -> io::Result<Self> {
        Self::options(ring_bytes).map_raw(fd.as_raw_fd()).map(Self)
    }

    /// Maps header and ring shared and read-only. Storing to its atomics is a segmentation fault.
    pub(crate) fn read_only(fd: BorrowedFd<'_>, ring_bytes: usize) -> io::Result<Self> {
        Self::options(ring_bytes)
            .map_raw_read_only(fd.as_raw_fd())
            .map(Self)
    }

    fn options(ring_bytes: usize) -> MmapOptions {
        let mut options = MmapOptions::new();
        options.len(HEADER_BYTES + ring_bytes);
        options
    }

    pub(crate) fn task_header(&self) -> &TaskHeader {
        // SAFETY: the mapping is page-aligned, at least `HEADER_BYTES` long (see `options`) and lives
        // as long as `self`. `TaskHeader` has that size and consists of atomics, for which concurrent
        // writes by other processes are no data race; all bit patterns are
        // valid. Loads from read-only mappings are relaxed, which Rust allows there.
        unsafe { &*self.0.as_ptr().cast() }
    }

    pub(crate) fn answer_header(&self) -> &AnswerHeader {
        // SAFETY: as in `task_header`.
        unsafe { &*self.0.as_ptr().cast() }
    }

    pub(crate) fn data(&self) -> &[AtomicU64] {
        let ring_bytes = self.0.len() - HEADER_BYTES;
        // SAFETY: `options` maps `ring_bytes` bytes after the header, which keeps the page's
        // alignment; the words are atomics, as in `task_header`.
        unsafe {
            let first = self.0.as_ptr().add(HEADER_BYTES).cast();
            slice::from_raw_parts(first, ring_bytes / WORD_BYTES)
        }
    }
}
