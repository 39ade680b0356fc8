//! Stretches of memfds, mapped.

use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// What maps and files are counted in.
pub fn page_bytes() -> usize {
    rustix::param::page_size()
}

/// A mapped stretch, or a copy of one. Nobody here makes references into it: other processes write there, and so may
/// Python code of any thread.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<c_void>,
    len: usize,
    /// It lies on the heap.
    copied: bool,
}

// SAFETY: it is an address range that belongs to this value alone; what lies there is only touched through raw
// pointers, whose users answer for it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps it so that writes are everybody's. `in_children`: also in processes that are forked from this one.
    pub fn shared(
        fd: BorrowedFd<'_>,
        at: u64,
        len: usize,
        in_children: bool,
    ) -> io::Result<Mapping> {
        let mapping = Mapping::map(fd, at, len, MapFlags::SHARED)?;
        if !in_children {
            mapping.advise(0, len, Advice::LinuxDontFork)?;
        }
        // The memory of others is of no use in a core file.
        let _ = mapping.advise(0, len, Advice::LinuxDontDump);
        Ok(mapping)
    }

    /// Maps it so that writes stay here: what was written no longer follows the file.
    pub fn private(fd: BorrowedFd<'_>, at: u64, len: usize) -> io::Result<Mapping> {
        let mapping = Mapping::map(fd, at, len, MapFlags::PRIVATE)?;
        // After `mlockall` each new mapping is locked and has copies of all its pages, which follow nothing.
        // SAFETY: the range is the mapping, of which nobody knows yet.
        unsafe { rustix::mm::munlock(mapping.start.as_ptr(), len)? };
        mapping.advise(0, len, Advice::LinuxDontNeed)?;
        Ok(mapping)
    }

    /// A page of memory that nobody ever touches: see [`Mapping::is_touched`].
    pub fn untouched() -> io::Result<Mapping> {
        Mapping::anonymous(page_bytes())
    }

    /// Of such a page: whether it is there all the same, because all memory of the process was locked. Then private
    /// mappings have copies of all their pages, too. Where that can't be told the answer is yes.
    pub fn is_touched(&self) -> bool {
        let mut there = [0_u8; 1];
        // SAFETY: the range is one page of this mapping, and the answer has one byte for it.
        let asked = unsafe { libc::mincore(self.start.as_ptr(), self.len, there.as_mut_ptr()) };
        asked != 0 || there[0] & 1 != 0
    }

    fn map(fd: BorrowedFd<'_>, at: u64, len: usize, kind: MapFlags) -> io::Result<Mapping> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel finds room touches no memory of anybody's.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                access,
                kind | MapFlags::NORESERVE,
                fd,
                at,
            )?
        };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        let copied = false;
        Ok(Mapping { start, len, copied })
    }

    /// A copy of a stretch of another one, in fresh memory. Nobody may be writing there.
    pub fn copy_of(other: &Mapping, at: usize, len: usize) -> io::Result<Mapping> {
        let Some(from) = other.pointer(at, len) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let copy = Mapping::anonymous(len)?;
        // All of it is written to: the larger its pages, the better.
        let _ = copy.advise(0, len, Advice::LinuxHugepage);
        // SAFETY: both stretches are as long, and the new one is nobody's yet.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), copy.start.as_ptr().cast(), len) };
        Ok(copy)
    }

    fn anonymous(len: usize) -> io::Result<Mapping> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as in `map`.
        let start = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE)?
        };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        let copied = false;
        Ok(Mapping { start, len, copied })
    }

    /// A copy of the stretch on the heap, for where there is no room for a mapping.
    pub fn copy(fd: BorrowedFd<'_>, at: u64, len: usize) -> io::Result<Mapping> {
        let mut bytes: Vec<u8> = Vec::new();
        bytes.try_reserve_exact(len.max(1))?;
        bytes.resize(len.max(1), 0);
        let mut done = 0;
        while done < len {
            match rustix::io::pread(fd, &mut bytes[done..len], at + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => done += read,
            }
        }
        let bytes = Box::leak(bytes.into_boxed_slice());
        Ok(Mapping {
            start: NonNull::from(&mut *bytes).cast(),
            len,
            copied: true,
        })
    }

    /// Of a mapping of the file from `file_at` on: maps this stretch anew, at the same address. `private`: writes from
    /// now on stay here, and what was written before is in the file. Else they are everybody's, and what was written
    /// here alone is gone. Both bounds are whole pages.
    pub fn remap(
        &self,
        fd: BorrowedFd<'_>,
        file_at: u64,
        at: usize,
        len: usize,
        private: bool,
    ) -> io::Result<()> {
        let kind = if private {
            MapFlags::PRIVATE
        } else {
            MapFlags::SHARED
        };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let kind = kind | MapFlags::NORESERVE | MapFlags::FIXED;
        let Some(start) = self.pointer(at, len).filter(|_| !self.copied) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: it replaces a stretch of a mapping that is this value's own by one of the same length and of the
        // same stretch of the file; whoever reads or writes there meanwhile meets the one or the other.
        unsafe {
            rustix::mm::mmap(
                start.as_ptr().cast(),
                len,
                access,
                kind,
                fd,
                file_at + at as u64,
            )?;
        }
        let _ = self.advise(at, len, Advice::LinuxDontDump);
        Ok(())
    }

    /// How long it is.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the bytes from `at` on lie, if there are as many as `len`.
    pub fn pointer(&self, at: usize, len: usize) -> Option<NonNull<u8>> {
        let fits = at.checked_add(len).is_some_and(|end| end <= self.len);
        // SAFETY: within the mapping, as was just checked.
        fits.then(|| unsafe { self.start.cast().add(at) })
    }

    fn advise(&self, at: usize, len: usize, advice: Advice) -> io::Result<()> {
        let Some(start) = self.pointer(at, len) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: none of the kinds of advice used here frees or changes what somebody may still read: see
        // `forget_writes`.
        unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, advice)? };
        Ok(())
    }

    /// Of a private mapping: all pages in this stretch no longer follow the file, as if they had been written to. Both
    /// bounds are whole pages.
    pub fn make_own(&self, at: usize, len: usize) {
        use std::sync::atomic::{AtomicU8, Ordering};
        if self.advise(at, len, Advice::LinuxPopulateWrite).is_ok() {
            return;
        }
        // Before Linux 5.14.
        for page in (at..at.saturating_add(len)).step_by(page_bytes()) {
            let Some(pointer) = self.pointer(page, 1) else {
                return;
            };
            // SAFETY: within the mapping. Others may write there meanwhile: nothing of that is undone.
            let byte = unsafe { AtomicU8::from_ptr(pointer.as_ptr()) };
            let mut value = byte.load(Ordering::Relaxed);
            while let Err(now) =
                byte.compare_exchange_weak(value, value, Ordering::Relaxed, Ordering::Relaxed)
            {
                value = now;
            }
        }
    }

    /// Of a private mapping: the pages in this stretch that were written to follow the file again. Only when nobody
    /// reads or writes there any more. Both bounds are whole pages. Returns how many there were, if that can be told.
    pub fn forget_writes(&self, at: usize, len: usize) -> io::Result<Option<usize>> {
        let page_bytes = page_bytes();
        let mut pages = 0;
        let known = self.each_chunk(at, len, |chunk, written| {
            let mut page = 0;
            for run in written.chunk_by(|a, b| a == b) {
                if run[0] {
                    pages += run.len();
                    let start = chunk + page * page_bytes;
                    self.advise(start, run.len() * page_bytes, Advice::LinuxDontNeed)?;
                }
                page += run.len();
            }
            Ok(true)
        })?;
        match known {
            Some(_) => Ok(Some(pages)),
            None => self.advise(at, len, Advice::LinuxDontNeed).map(|()| None),
        }
    }

    /// Of a private mapping: whether a page in this stretch was written to. Where that can't be told the answer is yes.
    /// Both bounds are whole pages.
    pub fn is_written(&self, at: usize, len: usize) -> bool {
        let clean = self.each_chunk(at, len, |_, written| Ok(!written.contains(&true)));
        !matches!(clean, Ok(Some(true)))
    }

    /// Calls `each` with a place in this mapping and which of the pages from there on were written to, chunk by chunk,
    /// until it says false. The answer is its last one; None if the kernel does not tell.
    fn each_chunk(
        &self,
        at: usize,
        len: usize,
        mut each: impl FnMut(usize, &[bool]) -> io::Result<bool>,
    ) -> io::Result<Option<bool>> {
        let Some(start) = self.pointer(at, len) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let Some(pagemap) = open_pagemap() else {
            return Ok(None);
        };
        let page_bytes = page_bytes();
        let first_page = start.as_ptr() as usize / page_bytes;
        let mut entries = vec![0; 8 * (len / page_bytes).min(PAGEMAP_PAGES)];
        for chunk in (0..len).step_by(PAGEMAP_PAGES * page_bytes) {
            let pages = (len - chunk).div_ceil(page_bytes).min(PAGEMAP_PAGES);
            let offset = 8 * (first_page + chunk / page_bytes) as u64;
            let read = rustix::io::pread(&pagemap, &mut entries[..8 * pages], offset);
            if !read.is_ok_and(|read| read == 8 * pages) {
                return Ok(None);
            }
            let written: Vec<bool> = entries[..8 * pages]
                .chunks_exact(8)
                .map(|entry| is_written(u64::from_ne_bytes(entry.try_into().unwrap_or_default())))
                .collect();
            if !each(at + chunk, &written)? {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }

    #[cfg(test)]
    pub(crate) fn write_byte(&self, at: usize, value: u8) {
        let byte = self.pointer(at, 1).unwrap();
        // SAFETY: within the mapping; in tests nobody reads or writes there meanwhile.
        unsafe { byte.as_ptr().write_volatile(value) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.copied {
            let bytes = std::ptr::slice_from_raw_parts_mut(
                self.start.as_ptr().cast::<u8>(),
                self.len.max(1),
            );
            // SAFETY: it is what `copy` has leaked, of that length, and nobody points into it any more.
            drop(unsafe { Box::from_raw(bytes) });
            return;
        }
        // SAFETY: the range is this value's own, and nobody points into it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.len) };
    }
}

/// How many pages are looked at together.
const PAGEMAP_PAGES: usize = 8192;

fn open_pagemap() -> Option<std::os::fd::OwnedFd> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/pagemap", flags, rustix::fs::Mode::empty()).ok()
}

/// Whether a page of a private mapping of a file is no longer the file's. `Documentation/admin-guide/mm/pagemap.rst`
/// of the kernel: bit 63 present, 62 swapped, 61 a page of a file or shared.
fn is_written(entry: u64) -> bool {
    let bit = |at: u32| entry & (1 << at) != 0;
    bit(62) || bit(63) && !bit(61)
}

/// How many pages this process has faulted in so far, with all its threads.
pub fn faults() -> u64 {
    // SAFETY: a struct of numbers may be all zeros, and the call fills it in.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    (usage.ru_minflt + usage.ru_majflt) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    fn file(pages: usize) -> OwnedFd {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, (pages * page_bytes()) as u64).unwrap();
        fd
    }

    fn read(mapping: &Mapping, at: usize) -> u8 {
        let byte = mapping.pointer(at, 1).unwrap();
        // SAFETY: within the mapping, and nobody writes meanwhile.
        unsafe { byte.as_ptr().read_volatile() }
    }

    fn write(mapping: &Mapping, at: usize, value: u8) {
        mapping.write_byte(at, value);
    }

    #[test]
    fn private_writes_stay_private_until_they_are_forgotten() {
        let fd = file(20_000);
        let len = 20_000 * page_bytes();
        let ours = Mapping::shared(fd.as_fd(), 0, len, true).unwrap();
        let theirs = Mapping::private(fd.as_fd(), 0, len).unwrap();
        let places = [0, 5, 6, 8_191, 8_192, 19_999].map(|page| page * page_bytes() + 7);
        for at in places {
            write(&ours, at, 1);
            write(&theirs, at, 2);
            write(&ours, at, 3);
            assert_eq!((read(&ours, at), read(&theirs, at)), (3, 2));
        }
        let forgotten = theirs.forget_writes(0, 6 * page_bytes()).unwrap();
        assert_eq!(forgotten, Some(2));
        let seen = places.map(|at| read(&theirs, at));
        assert_eq!(seen, [3, 3, 2, 2, 2, 2]);
        theirs
            .forget_writes(6 * page_bytes(), len - 6 * page_bytes())
            .unwrap();
        assert_eq!(places.map(|at| read(&theirs, at)), [3; 6]);
    }

    #[test]
    fn a_mapping_made_private_keeps_what_it_had() {
        let fd = file(2);
        let ours = Mapping::shared(fd.as_fd(), 0, 2 * page_bytes(), true).unwrap();
        let other = Mapping::shared(fd.as_fd(), 0, 2 * page_bytes(), true).unwrap();
        write(&ours, 1, 9);
        ours.remap(fd.as_fd(), 0, 0, 2 * page_bytes(), true)
            .unwrap();
        write(&ours, 2, 8);
        assert_eq!([1, 2].map(|at| read(&ours, at)), [9, 8]);
        assert_eq!([1, 2].map(|at| read(&other, at)), [9, 0]);
        assert!(
            ours.is_written(0, 2 * page_bytes()) && !ours.is_written(page_bytes(), page_bytes())
        );
        ours.remap(fd.as_fd(), 0, 0, page_bytes(), false).unwrap();
        assert_eq!([1, 2].map(|at| read(&ours, at)), [9, 0]);
        write(&ours, 2, 7);
        assert_eq!(read(&other, 2), 7);
    }

    #[test]
    fn a_page_is_untouched_until_it_is_touched() {
        let page = Mapping::untouched().unwrap();
        assert!(!page.is_touched() && !page.is_touched());
        write(&page, 5, 1);
        assert!(page.is_touched());
    }

    #[test]
    fn a_copy_is_a_copy() {
        let fd = file(3);
        let ours = Mapping::shared(fd.as_fd(), 0, 3 * page_bytes(), true).unwrap();
        write(&ours, page_bytes() + 1, 9);
        let copy = Mapping::copy(fd.as_fd(), page_bytes() as u64, 5).unwrap();
        write(&ours, page_bytes() + 1, 8);
        assert_eq!((copy.len(), read(&copy, 1)), (5, 9));
        let empty = Mapping::copy(fd.as_fd(), 0, 0).unwrap();
        assert!(empty.pointer(0, 0).is_some() && empty.pointer(0, 1).is_none());
        assert!(Mapping::copy(fd.as_fd(), 2 * page_bytes() as u64, page_bytes() + 1).is_err());
        assert!(Mapping::copy(fd.as_fd(), 0, usize::MAX / 2).is_err());
    }

    #[test]
    fn a_copy_of_a_stretch_is_one_of_that() {
        let fd = file(3);
        let ours = Mapping::shared(fd.as_fd(), 0, 3 * page_bytes(), true).unwrap();
        write(&ours, page_bytes() + 1, 9);
        let copy = Mapping::copy_of(&ours, page_bytes(), 2 * page_bytes()).unwrap();
        write(&ours, page_bytes() + 1, 8);
        assert_eq!((copy.len(), read(&copy, 1)), (2 * page_bytes(), 9));
        assert!(Mapping::copy_of(&ours, page_bytes(), 3 * page_bytes()).is_err());
    }

    #[test]
    fn nobody_gets_a_pointer_beyond_the_end() {
        let fd = file(1);
        let mapping = Mapping::private(fd.as_fd(), 0, page_bytes()).unwrap();
        assert!(mapping.pointer(page_bytes(), 0).is_some());
        assert!(mapping.pointer(1, page_bytes()).is_none());
        assert!(mapping.pointer(usize::MAX, 2).is_none());
    }
}
