//! Large buffers of results, read where the worker has put them.
//!
//! A worker places them in an arena of its own. The engine maps what it is told of, and a [`Fruit`] keeps its buffer
//! there until it goes; then the worker is told, and may use the place again, not before (rule 25). A fruit can
//! outlive its worker and its executor: it holds what it needs.
//!
//! A fork of the user's process copies its memory, but what is mapped shared would stay one: neither process may see
//! what the other writes from then on (rule 24). So before a fork the regions in which fruits live are mapped
//! anew, privately, at the same address, and no more is ever placed in them: what lies there stays for both.

use crate::arena::{self, Placement, Regions};
use crate::sys::memory::{Mapping, page_bytes};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The harvests of which something may be alive, for forks.
static ALL: Mutex<Vec<Weak<Harvest>>> = Mutex::new(Vec::new());

/// What one worker has placed, and still is to be read.
#[derive(Debug)]
pub(crate) struct Harvest {
    file: OwnedFd,
    /// Who made it: a forked child gives nothing back.
    owner: u32,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    regions: Regions,
    /// Regions in which the worker is to place nothing any more, since a fork: what lies there stays.
    retired: BTreeSet<u64>,
    /// Of these the worker has not been told.
    retired_now: Vec<u64>,
    /// Places that it may use again.
    free: Vec<u64>,
    /// The buffers that are read, by their place; how many fruits each has, and how long it is.
    alive: BTreeMap<u64, (usize, u64)>,
    /// The worker is gone: nothing is placed here any more, and what nobody reads need not be kept.
    orphaned: bool,
}

impl Harvest {
    pub(crate) fn new(file: OwnedFd) -> Arc<Harvest> {
        let harvest = Arc::new(Harvest {
            file,
            owner: std::process::id(),
            inner: Mutex::new(Inner {
                regions: Regions::new(),
                retired: BTreeSet::new(),
                retired_now: Vec::new(),
                free: Vec::new(),
                alive: BTreeMap::new(),
                orphaned: false,
            }),
        });
        let mut all = lock(&ALL);
        all.retain(|harvest| harvest.strong_count() > 0);
        all.push(Arc::downgrade(&harvest));
        harvest
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The buffer at this place.
    pub(crate) fn pick(self: &Arc<Harvest>, placement: Placement) -> io::Result<Fruit> {
        if !placement.is_aligned() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut inner = lock(&self.inner);
        let map = |at, len| Mapping::shared(self.file(), at, len, true);
        let mapping = match inner.regions.get(&placement, map) {
            Ok(mapping) => mapping,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            Err(_) => {
                // No room for a mapping, but there may be for a copy; then the worker has its place back.
                let copy = placement.copy(self.file())?;
                inner.free.push(placement.id());
                return Ok(Fruit {
                    harvest: self.clone(),
                    placement: placement.of_copy(),
                    mapping: Arc::new(copy),
                    copied: true,
                });
            }
        };
        let bytes = placement.bytes.max(1).next_multiple_of(page_bytes() as u64);
        inner.alive.entry(placement.id()).or_insert((0, bytes)).0 += 1;
        Ok(Fruit {
            harvest: self.clone(),
            placement,
            mapping,
            copied: false,
        })
    }

    /// What the worker has not been told: places that are free again, and regions that are not to be used any more.
    pub(crate) fn take_news(&self) -> (Vec<u64>, Vec<u64>) {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        (
            std::mem::take(&mut inner.free),
            std::mem::take(&mut inner.retired_now),
        )
    }

    /// The worker is gone.
    pub(crate) fn orphan(&self) {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        inner.orphaned = true;
        for (region_at, mapping) in inner.regions.iter() {
            let end = region_at + mapping.len() as u64;
            let mut at = region_at;
            for (&place, &(_, bytes)) in inner.alive.range(region_at..end) {
                self.empty(inner.retired.contains(&region_at), at..place);
                at = place + bytes;
            }
            self.empty(inner.retired.contains(&region_at), at..end);
        }
    }

    /// Gives pages that nobody reads back to the system; in a forked child, or where one may read them, it does not.
    fn empty(&self, retired: bool, places: Range<u64>) {
        if !retired && !places.is_empty() && std::process::id() == self.owner {
            let _ = arena::empty(self.file(), places.start, places.end - places.start);
        }
    }

    /// This process is about to be forked.
    fn part(&self) {
        let mut inner = lock(&self.inner);
        let inner = &mut *inner;
        for (region_at, mapping) in inner.regions.iter() {
            let end = region_at + mapping.len() as u64;
            let is_read = inner.alive.range(region_at..end).next().is_some();
            if is_read && inner.retired.insert(region_at) {
                // Where that fails there is no memory for a mapping, and hardly any for a process.
                let _ = mapping.remap(self.file(), region_at, 0, mapping.len(), true);
                inner.retired_now.push(region_at);
            }
        }
    }
}

/// One large buffer of a result.
#[derive(Debug)]
pub struct Fruit {
    harvest: Arc<Harvest>,
    placement: Placement,
    mapping: Arc<Mapping>,
    copied: bool,
}

impl Fruit {
    /// How large it is.
    pub fn bytes(&self) -> usize {
        self.placement.bytes as usize
    }

    /// Where it lies.
    pub fn pointer(&self) -> NonNull<u8> {
        let pointer = self
            .mapping
            .pointer(self.placement.at as usize, self.bytes());
        pointer.unwrap_or_else(|| unreachable!("placements are checked when they come"))
    }
}

impl Drop for Fruit {
    fn drop(&mut self) {
        if self.copied {
            return;
        }
        let mut inner = lock(&self.harvest.inner);
        let inner = &mut *inner;
        let id = self.placement.id();
        let Some((fruits, bytes)) = inner.alive.get_mut(&id) else {
            return;
        };
        *fruits -= 1;
        if *fruits > 0 {
            return;
        }
        let bytes = *bytes;
        inner.alive.remove(&id);
        let retired = inner.retired.contains(&self.placement.region_at);
        if inner.orphaned {
            self.harvest.empty(retired, id..id + bytes);
        } else if !retired {
            inner.free.push(id);
        }
    }
}

impl PartialEq for Fruit {
    fn eq(&self, other: &Fruit) -> bool {
        self.placement == other.placement && Arc::ptr_eq(&self.harvest, &other.harvest)
    }
}

impl Eq for Fruit {}

/// This process is about to be forked: see the module.
pub(crate) fn before_fork() {
    for harvest in lock(&ALL).iter().filter_map(Weak::upgrade) {
        harvest.part();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
