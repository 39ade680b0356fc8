//! Shared memory for large buffers: whoever writes them allocates, whoever reads them maps.
//!
//! An [`Arena`] is one memfd of its writer's, so large that nothing ever has to be added to it, and empty: pages are
//! there once they are written. It has no name, so nothing can be left behind, and nobody but the writer allocates
//! in it: where everything lies is known on the writer's heap alone, where no other process can spoil it. A process
//! has one for the arguments of all its executors, and each worker one for its results.
//!
//! The file is cut into *regions*, each mapped once and for good; a *span* is a part of a region, in whole pages,
//! that holds one buffer. Freed spans are given out again first, because their pages are there: the first touch of
//! a page costs ten times as much as a copy of it. A region of which nothing is in use gives its pages back to the
//! system where more are kept than [`MOST_IDLE_SHARE`] allows. The last executor takes all that is not in use along.
//!
//! *Kept* spans hold what Python objects of the user's process look into. They lie in regions of their own, which
//! forked children see as well: in one that had any at a fork nothing is placed any more, so what lies there stays.
//!
//! What is asked for beyond the pages that are there is checked against what the machine and every control group
//! can still give: a page that cannot be had kills instead of failing (rule 27). The answer is then "no", and whoever
//! asked may wait until something is free again ([`Arena::vacancies`]), or has the buffer travel as any other bytes.

use crate::budget::MemoryBudget;
use crate::sys::futex::{self, Scope, Waited};
use crate::sys::memory::{Mapping, page_bytes};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Buffers below this travel with the message: at this size both ways cost the same (`docs/design/arena.md`).
pub const LARGE_BYTES: usize = 64 * 1024;

/// How large the files are said to be; nothing of that is allocated.
const FILE_BYTES: u64 = 1 << 44;

/// The usual size of a region.
const REGION_BYTES: usize = 64 * 1024 * 1024;

/// Which part of the memory that is free may be kept by regions of which nothing is in use.
const MOST_IDLE_SHARE: u64 = 16;

/// So many new pages are taken between two looks at what the system has left.
const UNCHECKED_BYTES: u64 = 1024 * 1024;

/// For tests: no arena takes more memory than this variable of the environment says.
const MOST_BYTES: &str = "_RIGHTLANE_ARENA_BYTES";

/// Where a buffer lies in its writer's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where its region begins in the file.
    pub region_at: u64,
    /// How long its region is.
    pub region_bytes: u64,
    /// Where the buffer begins in the region.
    pub at: u64,
    /// How long the buffer is.
    pub bytes: u64,
}

impl Placement {
    /// How long one is in a message.
    pub const BYTES: usize = 32;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let words = [self.region_at, self.region_bytes, self.at, self.bytes];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Splits one off; None if that is none that an arena makes.
    pub fn take(bytes: &[u8]) -> Option<(Placement, &[u8])> {
        let (region_at, rest) = crate::wire::take_u64(bytes)?;
        let (region_bytes, rest) = crate::wire::take_u64(rest)?;
        let (at, rest) = crate::wire::take_u64(rest)?;
        let (bytes, rest) = crate::wire::take_u64(rest)?;
        let placement = Placement {
            region_at,
            region_bytes,
            at,
            bytes,
        };
        let page = page_bytes() as u64;
        let fits = region_at.checked_add(region_bytes)? <= FILE_BYTES
            && at.checked_add(bytes)? <= region_bytes
            && region_at % page == 0
            && region_bytes % page == 0;
        fits.then_some((placement, rest))
    }

    /// Where it begins in the file. Of a whole span that tells it from every other one in use at the same time.
    pub fn id(&self) -> u64 {
        self.region_at + self.at
    }

    /// Whether it begins with a page, as whole spans do.
    pub(crate) fn is_aligned(&self) -> bool {
        self.at.is_multiple_of(page_bytes() as u64)
    }

    /// The pages that it touches, as a stretch of its region.
    pub(crate) fn pages(&self) -> std::ops::Range<usize> {
        let page = page_bytes();
        let start = self.at as usize / page * page;
        // An empty one has a page of its own.
        let end = (self.at + self.bytes.max(1)) as usize;
        start..end.next_multiple_of(page)
    }

    /// A copy of the buffer, for where its region cannot be mapped.
    pub(crate) fn copy(&self, file: BorrowedFd<'_>) -> io::Result<Mapping> {
        let len = usize::try_from(self.bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Mapping::copy(file, self.id(), len)
    }

    /// Where the buffer lies in such a copy.
    pub(crate) fn of_copy(&self) -> Placement {
        Placement { at: 0, ..*self }
    }

    fn region_len(&self) -> Option<usize> {
        usize::try_from(self.region_bytes).ok()
    }
}

/// Gives the pages of a stretch of an arena back to the system. What is read there from then on is zeros.
pub(crate) fn empty(fd: BorrowedFd<'_>, at: u64, bytes: u64) -> io::Result<()> {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(fd, how, at, bytes)?)
}

/// Makes the file of an arena. It can neither grow nor shrink: a reader of a shrunk file dies of SIGBUS.
pub fn create_file() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know NOEXEC_SEAL, later ones may insist on it.
    let fd = match rustix::fs::memfd_create("rightlane-arena", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("rightlane-arena", flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, FILE_BYTES)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Another descriptor of the file, through which nothing can be written; the same where that cannot be had.
pub fn read_only(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
        Ok(fd) => Ok(fd),
        Err(_) => Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?),
    }
}

/// See the module.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    /// Who made it: in a forked child it is not to be touched.
    owner: u32,
    /// It is a worker's, for results. Forked children see it, too.
    of_results: bool,
    /// Which part of the memory that is free its idle regions may keep.
    idle_share: u64,
    /// For tests: how much it may have, whatever the system can give.
    most_bytes: Option<u64>,
    /// Changes when something is free again; and how many wait for that.
    vacancies: AtomicU32,
    waiting: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    regions: Vec<Region>,
    /// Where the next region begins.
    next_at: u64,
    /// New pages since the last look at what the system has left.
    unchecked_bytes: u64,
    /// What that was.
    available_bytes: u64,
}

#[derive(Debug)]
struct Region {
    at: u64,
    mapping: Arc<Mapping>,
    /// Where what is free begins, and how long it is.
    free: BTreeMap<usize, usize>,
    used_bytes: usize,
    /// Up to here pages may be there.
    touched: usize,
    /// Nothing is given out of it any more.
    retired: bool,
    /// It holds what Python objects look into, and forked children see it.
    kept: bool,
    /// A child may be reading what lies there: its pages stay.
    inherited: bool,
}

impl Region {
    /// The smallest part that is free and large enough; the first one among equals, which is the warmest.
    fn best(&self, len: usize) -> Option<(usize, usize)> {
        let fitting = self.free.iter().filter(|&(_, &free)| free >= len);
        let (&at, &free) = fitting.min_by_key(|&(&at, &free)| (free, at))?;
        Some((at, free))
    }

    fn take(&mut self, at: usize, free: usize, len: usize) {
        self.free.remove(&at);
        if free > len {
            self.free.insert(at + len, free - len);
        }
        self.used_bytes += len;
        self.touched = self.touched.max(at + len);
    }

    fn give_back(&mut self, mut at: usize, mut len: usize) {
        self.used_bytes -= len;
        if let Some((&before, &free)) = self.free.range(..at).next_back()
            && before + free == at
        {
            self.free.remove(&before);
            at = before;
            len += free;
        }
        if let Some(free) = self.free.remove(&(at + len)) {
            len += free;
        }
        self.free.insert(at, len);
    }
}

impl Arena {
    /// For arguments, in this file, which is nobody else's.
    pub fn of_arguments(file: OwnedFd) -> Arc<Arena> {
        Arena::new(file, false, MOST_IDLE_SHARE)
    }

    /// A worker's, for results, likewise. There are as many workers as cores, as a rule.
    pub fn of_results(file: OwnedFd) -> Arc<Arena> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Arena::new(file, true, MOST_IDLE_SHARE * cores)
    }

    fn new(file: OwnedFd, of_results: bool, idle_share: u64) -> Arc<Arena> {
        Arc::new(Arena {
            file,
            owner: std::process::id(),
            of_results,
            idle_share,
            most_bytes: std::env::var(MOST_BYTES)
                .ok()
                .and_then(|most| most.parse().ok()),
            vacancies: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            inner: Mutex::default(),
        })
    }

    /// Its file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Room for a buffer, if there is memory for it.
    pub fn reserve(self: &Arc<Arena>, bytes: usize) -> Option<Span> {
        self.reserve_in(bytes, false)
    }

    /// The same, for what Python objects of this process look into.
    pub fn reserve_kept(self: &Arc<Arena>, bytes: usize) -> Option<Span> {
        self.reserve_in(bytes, true)
    }

    fn reserve_in(self: &Arc<Arena>, bytes: usize, kept: bool) -> Option<Span> {
        // In a child that was forked in the middle of pickling the memory is another process's.
        if std::process::id() != self.owner {
            return None;
        }
        let page = page_bytes();
        let len = bytes.max(1).checked_next_multiple_of(page)?;
        let mut inner = self.lock();
        let fitting = inner.regions.iter().enumerate();
        let best = fitting
            .filter(|(_, region)| !region.retired && region.kept == kept)
            .filter_map(|(index, region)| Some((region.best(len)?, index)))
            .min_by_key(|&((at, free), index)| (free, index, at));
        let (index, at, free) = match best {
            Some(((at, free), index)) => (index, at, free),
            None => (self.add_region(&mut inner, len, kept)?, 0, 0),
        };
        let touched = inner.regions[index].touched;
        let new_bytes = (at + len).saturating_sub(touched.max(at)) as u64;
        let may = self.may_take(&mut inner, new_bytes)
            || self.empty_all_idle(&mut inner, index) && self.may_take(&mut inner, new_bytes);
        if !may {
            return None;
        }
        let region = &mut inner.regions[index];
        let free = if free == 0 {
            region.mapping.len()
        } else {
            free
        };
        region.take(at, free, len);
        Some(Span {
            arena: self.clone(),
            placement: Placement {
                region_at: region.at,
                region_bytes: region.mapping.len() as u64,
                at: at as u64,
                bytes: bytes as u64,
            },
            mapping: region.mapping.clone(),
            len,
        })
    }

    fn add_region(&self, inner: &mut Inner, len: usize, kept: bool) -> Option<usize> {
        let len = len
            .max(REGION_BYTES)
            .checked_next_multiple_of(page_bytes())?;
        let at = inner.next_at;
        if at.checked_add(len as u64)? > FILE_BYTES {
            return None;
        }
        let in_children = kept || self.of_results;
        let mapping = Mapping::shared(self.file(), at, len, in_children).ok()?;
        inner.next_at += len as u64;
        inner.regions.push(Region {
            at,
            mapping: Arc::new(mapping),
            free: BTreeMap::from([(0, len)]),
            used_bytes: 0,
            touched: 0,
            retired: false,
            kept,
            inherited: false,
        });
        Some(inner.regions.len() - 1)
    }

    fn give_back(&self, placement: &Placement, len: usize) {
        if std::process::id() != self.owner {
            return;
        }
        let mut inner = self.lock();
        let inner = &mut *inner;
        let found = inner
            .regions
            .binary_search_by_key(&placement.region_at, |region| region.at);
        let Ok(index) = found else { return };
        inner.regions[index].give_back(placement.at as usize, len);
        self.vacancies.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            futex::wake(&self.vacancies, u32::MAX, Scope::Private);
        }
        if inner.regions[index].used_bytes > 0 {
            return;
        }
        let idle = inner.regions.iter().filter(|r| r.used_bytes == 0);
        let idle_bytes: u64 = idle.map(|region| region.touched as u64).sum();
        if idle_bytes > (inner.available_bytes / self.idle_share).max(REGION_BYTES as u64) {
            self.empty(&mut inner.regions[index]);
        }
    }

    /// Gives the pages of a region of which nothing is in use back to the system.
    fn empty(&self, region: &mut Region) {
        let touched = region.touched as u64;
        if touched > 0 && !region.inherited && empty(self.file(), region.at, touched).is_ok() {
            region.touched = 0;
        }
    }

    /// Gives the pages of all regions of which nothing is in use back to the system.
    fn empty_idle(&self) {
        self.empty_all_idle(&mut self.lock(), usize::MAX);
    }

    /// The same, of all but this one. Whether there were any.
    fn empty_all_idle(&self, inner: &mut Inner, but: usize) -> bool {
        let mut any = false;
        for (index, region) in inner.regions.iter_mut().enumerate() {
            if index != but && region.used_bytes == 0 && region.touched > 0 {
                self.empty(region);
                any |= region.touched == 0;
            }
        }
        any
    }

    /// Whether the system can give so much that was never touched.
    fn may_take(&self, inner: &mut Inner, new_bytes: u64) -> bool {
        let touched = || inner.regions.iter().map(|r| r.touched as u64).sum::<u64>();
        if let Some(most) = self.most_bytes
            && touched() + new_bytes > most
        {
            return new_bytes == 0;
        }
        inner.may_take(new_bytes)
    }

    /// A word that changes when something is free again.
    pub fn vacancies(&self) -> &AtomicU32 {
        &self.vacancies
    }

    /// Sleeps until that word is another one.
    pub fn wait_for_vacancy(&self, seen: u32, most: Option<Duration>) -> Waited {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waited = futex::wait(&self.vacancies, seen, most, Scope::Private);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        waited
    }

    /// Whether anything is in use that is free again with the end of a task, as a rule.
    pub fn is_lent(&self) -> bool {
        let inner = self.lock();
        inner.regions.iter().any(|r| !r.kept && r.used_bytes > 0)
    }

    /// This process is about to be forked: what is kept stays for both, and nothing is placed beside it.
    fn part(&self) {
        let mut inner = self.lock();
        for region in inner.regions.iter_mut() {
            if region.kept && region.used_bytes > 0 {
                region.retired = true;
                region.inherited = true;
            }
        }
    }

    /// Gives nothing out of this region any more.
    pub fn retire_region(&self, region_at: u64) {
        let mut inner = self.lock();
        let region = inner.regions.iter_mut().find(|r| r.at == region_at);
        if let Some(region) = region {
            region.retired = true;
        }
    }

    /// How many bytes are in use.
    pub fn used_bytes(&self) -> usize {
        self.lock().regions.iter().map(|r| r.used_bytes).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.of_results && std::process::id() != self.owner {
            // Not mapped here: something else may lie at these addresses.
            for region in self.lock().regions.drain(..).filter(|r| !r.kept) {
                std::mem::forget(region.mapping);
            }
        }
    }
}

impl Inner {
    /// Whether the system can give so much that was never touched.
    fn may_take(&mut self, new_bytes: u64) -> bool {
        if new_bytes == 0 {
            return true;
        }
        let unchecked_bytes = self.unchecked_bytes + new_bytes;
        if self.available_bytes == 0 || unchecked_bytes > UNCHECKED_BYTES {
            self.available_bytes = MemoryBudget::read().available_bytes();
            self.unchecked_bytes = 0;
        } else {
            self.unchecked_bytes = unchecked_bytes;
        }
        let enough = new_bytes <= self.available_bytes;
        if !enough {
            // Who asks again wants to know what it is then.
            self.available_bytes = 0;
        }
        enough
    }
}

/// Room for one buffer; free again when this goes.
#[derive(Debug)]
pub struct Span {
    arena: Arc<Arena>,
    placement: Placement,
    mapping: Arc<Mapping>,
    /// In whole pages.
    len: usize,
}

impl Span {
    /// Where it lies, for readers.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// How large the buffer is.
    pub fn bytes(&self) -> usize {
        self.placement.bytes as usize
    }

    /// From now on this process sees private pages there: what it writes stays here, what was written before is in the
    /// file.
    pub(crate) fn make_private(&self) -> io::Result<()> {
        self.remap(true)
    }

    /// The reverse; what was written in private is gone.
    pub(crate) fn make_shared(&self) -> io::Result<()> {
        self.remap(false)
    }

    fn remap(&self, private: bool) -> io::Result<()> {
        let Placement { region_at, at, .. } = self.placement;
        let (file, at) = (self.arena.file(), at as usize);
        self.mapping.remap(file, region_at, at, self.len, private)
    }

    /// Of private pages: each becomes this process's own.
    pub(crate) fn make_own(&self) {
        self.mapping.make_own(self.placement.at as usize, self.len);
    }

    /// Of private pages: whether this process has written to one of those in which these bytes lie.
    pub(crate) fn is_written(&self, at: usize, bytes: usize) -> bool {
        let page = page_bytes();
        let start = at / page * page;
        let len = (at + bytes.max(1)).next_multiple_of(page) - start;
        let in_region = self.placement.at as usize + start;
        self.mapping.is_written(in_region, len)
    }

    /// Whether it lies in a worker's arena.
    pub(crate) fn is_of_results(&self) -> bool {
        self.arena.of_results
    }

    /// Whether it lies in this arena, and not in one that was given up.
    pub fn is_of(&self, arena: &Arc<Arena>) -> bool {
        Arc::ptr_eq(&self.arena, arena)
    }

    #[cfg(test)]
    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    #[cfg(test)]
    pub(crate) fn write_byte(&self, at: usize, value: u8) {
        self.mapping
            .write_byte(self.placement.at as usize + at, value);
    }

    /// Whether this place of the file lies in it.
    pub(crate) fn contains(&self, place: u64) -> bool {
        let start = self.placement.id();
        // An empty one has its place, too.
        start <= place && place < start + self.placement.bytes.max(1)
    }

    /// Where to write it.
    pub fn pointer(&self) -> NonNull<u8> {
        let pointer = self
            .mapping
            .pointer(self.placement.at as usize, self.bytes());
        pointer.unwrap_or_else(|| unreachable!("a span lies in its region"))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.arena.give_back(&self.placement, self.len);
        if !self.arena.of_results && STAYING.load(Ordering::SeqCst) == 0 {
            close_unused();
        }
    }
}

/// The arena for arguments of this process. None: not made yet. None in it: there is none to be had.
static MINE: Mutex<Option<Option<Arc<Arena>>>> = Mutex::new(None);

/// How many executors and others may use it.
static STAYING: AtomicUsize = AtomicUsize::new(0);

/// The arena for arguments of this process, if memory files are to be had. It stays the one that workers know while
/// what is returned, an executor or a span of it lives.
pub fn mine() -> Option<Mine> {
    let stay = Stay::new();
    let make = || create_file().ok().map(Arena::of_arguments);
    let arena = lock(&MINE).get_or_insert_with(make).clone()?;
    Some(Mine { arena, _stay: stay })
}

/// See [`mine`].
#[derive(Clone, Debug)]
pub struct Mine {
    arena: Arc<Arena>,
    _stay: Stay,
}

impl std::ops::Deref for Mine {
    type Target = Arc<Arena>;

    fn deref(&self) -> &Arc<Arena> {
        &self.arena
    }
}

/// While an executor has one, memory of its arguments is kept for the next ones.
#[derive(Debug)]
pub(crate) struct Stay(u32);

impl Clone for Stay {
    fn clone(&self) -> Stay {
        Stay::new()
    }
}

impl Stay {
    pub(crate) fn new() -> Stay {
        STAYING.fetch_add(1, Ordering::SeqCst);
        Stay(std::process::id())
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // In a forked child they are counted anew.
        if self.0 == std::process::id() && STAYING.fetch_sub(1, Ordering::SeqCst) == 1 {
            close_unused();
        }
    }
}

/// No executor may use the arena any more: gives back what of it is not in use, the arena itself if nothing is.
fn close_unused() {
    let mut mine = lock(&MINE);
    let unused = match &*mine {
        _ if STAYING.load(Ordering::SeqCst) > 0 => None,
        Some(Some(arena)) if arena.used_bytes() > 0 => {
            arena.empty_idle();
            None
        }
        // Where there was none to be had, there may be next time.
        _ => mine.take(),
    };
    drop(mine);
    drop(unused);
}

/// This process is about to be forked.
pub(crate) fn before_fork() {
    let made = lock(&MINE).clone();
    if let Some(arena) = made.flatten() {
        arena.part();
    }
}

/// In a forked child, to which the arena of its parent is not mapped: there will be another one.
pub(crate) fn forked_child() {
    STAYING.store(0, Ordering::SeqCst);
    let old = lock(&MINE).take();
    drop(old);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Regions of another process's arena, mapped as they are needed.
#[derive(Debug)]
pub(crate) struct Regions {
    by_place: BTreeMap<u64, Arc<Mapping>>,
}

impl Regions {
    pub(crate) fn new() -> Regions {
        Regions {
            by_place: BTreeMap::new(),
        }
    }

    /// The region of a placement, mapped by `map` if it is not yet. None for what contradicts earlier placements.
    pub(crate) fn get(
        &mut self,
        placement: &Placement,
        map: impl FnOnce(u64, usize) -> io::Result<Mapping>,
    ) -> io::Result<Arc<Mapping>> {
        let garbled = || io::Error::from(io::ErrorKind::InvalidData);
        let len = placement.region_len().ok_or_else(garbled)?;
        if let Some(mapping) = self.by_place.get(&placement.region_at) {
            if mapping.len() != len {
                return Err(garbled());
            }
            return Ok(mapping.clone());
        }
        let mapping = Arc::new(map(placement.region_at, len)?);
        self.by_place.insert(placement.region_at, mapping.clone());
        Ok(mapping)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Arc<Mapping>)> {
        self.by_place.iter().map(|(&at, mapping)| (at, mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arc<Arena> {
        Arena::of_results(create_file().unwrap())
    }

    fn place(span: &Span) -> (u64, u64) {
        (span.placement().region_at, span.placement().at)
    }

    fn pages_there(arena: &Arena) -> u64 {
        rustix::fs::fstat(arena.file()).unwrap().st_blocks as u64 * 512 / page_bytes() as u64
    }

    fn touch(span: &Span) {
        for at in (0..span.bytes()).step_by(page_bytes()) {
            let byte = span.mapping.pointer(span.placement.at as usize + at, 1);
            assert!(byte.is_some());
        }
        // Through the file, so that nothing here is unsafe.
        let placement = span.placement();
        let bytes = vec![7; span.bytes()];
        let written = rustix::io::pwrite(span.arena.file(), &bytes, placement.id());
        assert_eq!(written, Ok(bytes.len()));
    }

    #[test]
    fn what_is_free_again_is_given_out_first() {
        let arena = arena();
        let [a, b, c] = [1, page_bytes() + 1, 5].map(|bytes| arena.reserve(bytes).unwrap());
        let page = page_bytes() as u64;
        assert_eq!([&a, &b, &c].map(place), [(0, 0), (0, page), (0, 3 * page)]);
        assert_eq!(arena.used_bytes() as u64, 4 * page);
        drop(b);
        let small = arena.reserve(10).unwrap();
        assert_eq!(place(&small), (0, page));
        let large = arena.reserve(2 * page_bytes()).unwrap();
        assert_eq!(place(&large), (0, 4 * page));
        drop((a, c, small, large));
        assert_eq!(arena.used_bytes(), 0);
        assert_eq!(
            place(&arena.reserve(REGION_BYTES).unwrap()),
            (0, 0),
            "what was free has grown together"
        );
    }

    #[test]
    fn what_fits_nowhere_gets_a_region() {
        let arena = arena();
        let first = arena.reserve(1).unwrap();
        let large = arena.reserve(REGION_BYTES + 1).unwrap();
        assert_eq!(place(&large), (REGION_BYTES as u64, 0));
        assert_eq!(
            large.placement().region_bytes,
            (REGION_BYTES + page_bytes()) as u64
        );
        drop(first);
        let third = arena.reserve(REGION_BYTES).unwrap();
        assert_eq!(place(&third), (0, 0));
    }

    fn small_arena(most_bytes: usize) -> Arc<Arena> {
        let mut arena = arena();
        Arc::get_mut(&mut arena).unwrap().most_bytes = Some(most_bytes as u64);
        arena
    }

    #[test]
    fn where_memory_is_short_what_is_kept_in_vain_goes_first() {
        let arena = small_arena(REGION_BYTES + 4 * page_bytes());
        let idle = arena.reserve(REGION_BYTES).unwrap();
        let used = arena.reserve(1).unwrap();
        touch(&idle);
        assert!(arena.reserve(4 * page_bytes()).is_none());
        drop(idle);
        let large = arena.reserve(REGION_BYTES + page_bytes()).unwrap();
        assert_eq!(place(&large), (2 * REGION_BYTES as u64, 0));
        assert_eq!(pages_there(&arena), 0, "nothing of it was touched");
        drop((large, used));
    }

    #[test]
    fn who_waits_for_memory_is_told_when_some_is_free() {
        let arena = small_arena(2 * page_bytes());
        let [one, two] = [1, 1].map(|bytes| arena.reserve(bytes).unwrap());
        let seen = arena.vacancies().load(Ordering::SeqCst);
        assert!(arena.is_lent() && arena.reserve(1).is_none());
        let span = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let _ = arena.wait_for_vacancy(seen, None);
                arena.reserve(1)
            });
            while arena.waiting.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            drop(one);
            waiting.join().unwrap()
        });
        assert!(span.is_some());
        drop((two, span));
        assert!(!arena.is_lent());
    }

    #[test]
    fn a_retired_region_gives_nothing_out() {
        let arena = arena();
        let first = arena.reserve(1).unwrap();
        arena.retire_region(first.placement().region_at);
        assert_eq!(
            arena.reserve(1).unwrap().placement().region_at,
            REGION_BYTES as u64
        );
        drop(first);
        assert_eq!(
            arena.reserve(1).unwrap().placement().region_at,
            REGION_BYTES as u64
        );
    }

    #[test]
    fn idle_regions_give_their_pages_back_beyond_a_bound() {
        let arena = arena();
        let [a, b] = [3, 2].map(|pages| arena.reserve(pages * page_bytes()).unwrap());
        touch(&a);
        touch(&b);
        drop((a, b));
        assert_eq!(pages_there(&arena), 5, "warm");
        let most = arena.reserve(REGION_BYTES).unwrap();
        let other = arena.reserve(page_bytes()).unwrap();
        touch(&other);
        arena.lock().available_bytes = 1;
        drop((most, other));
        assert_eq!(
            pages_there(&arena),
            5,
            "the second region went beyond the bound"
        );
    }

    #[test]
    fn more_than_there_is_is_refused() {
        assert!(arena().reserve(1 << 43).is_none());
        assert!(arena().reserve(usize::MAX).is_none());
    }

    #[test]
    fn only_what_an_arena_makes_is_a_placement() {
        let arena = arena();
        let placement = arena.reserve(100).unwrap().placement();
        let mut bytes = placement.to_bytes().to_vec();
        bytes.push(9);
        assert_eq!(Placement::take(&bytes), Some((placement, &[9][..])));
        let page = page_bytes() as u64;
        for wrong in [
            Placement {
                region_at: 1,
                ..placement
            },
            Placement {
                region_at: u64::MAX - page + 1,
                ..placement
            },
            Placement {
                region_bytes: FILE_BYTES + page,
                ..placement
            },
            Placement {
                at: placement.region_bytes,
                ..placement
            },
            Placement {
                bytes: u64::MAX,
                ..placement
            },
        ] {
            assert_eq!(Placement::take(&wrong.to_bytes()), None, "{wrong:?}");
        }
    }
}
