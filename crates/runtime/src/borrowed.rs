//! Large buffers of arguments, as a worker reads them.
//!
//! They are mapped privately: a task may write into its arguments, and nobody else ever sees that. But a page that was
//! written to no longer follows the file, and the next buffer in its place would be read with the last one's
//! contents; so when the last view of a buffer goes, its written pages are dropped. Where nothing was written nothing
//! is: a page that is mapped costs nothing the next time. Whether something was is judged by the faults of the
//! whole process, because it may have been written by any thread (rule 26), and then page by page.

use crate::arena::{Placement, Regions};
use crate::sys::memory::{self, Mapping, page_bytes};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What this worker has borrowed, for forks.
static MINE: Mutex<Weak<Borrowed>> = Mutex::new(Weak::new());

/// What a worker has borrowed of the engine's arena.
#[derive(Debug)]
pub struct Borrowed {
    file: OwnedFd,
    /// None where it cannot be had.
    untouched: Option<Mapping>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    regions: Regions,
    views: HashMap<u64, Live>,
    /// Released since the engine was told that they are kept.
    released: Vec<u64>,
    /// Private pages could not be dropped: from now on buffers are copied.
    stuck: bool,
}

#[derive(Debug)]
struct Live {
    views: usize,
    /// The engine knows that it outlasts its piece.
    kept: bool,
    /// The process's faults when the first view was made.
    faults: u64,
    mapping: Arc<Mapping>,
    at: usize,
    len: usize,
    /// All its pages are this process's own, since a fork.
    own: bool,
}

impl Borrowed {
    pub(crate) fn new(file: OwnedFd) -> Arc<Borrowed> {
        let borrowed = Arc::new(Borrowed {
            file,
            untouched: Mapping::untouched().ok(),
            inner: Mutex::new(Inner {
                regions: Regions::new(),
                views: HashMap::new(),
                released: Vec::new(),
                stuck: false,
            }),
        });
        let mut mine = MINE.lock().unwrap_or_else(PoisonError::into_inner);
        *mine = Arc::downgrade(&borrowed);
        drop(mine);
        borrowed
    }

    /// The buffer at this place, which belongs to an item that this worker has claimed.
    pub fn view(self: &Arc<Borrowed>, placement: Placement) -> io::Result<View> {
        let mut inner = self.lock();
        let map = |at, len| Mapping::private(self.file.as_fd(), at, len);
        if self.untouched.as_ref().is_none_or(Mapping::is_touched) {
            inner.stuck = true;
        }
        let mapped = match inner.stuck {
            true => Err(io::ErrorKind::Unsupported.into()),
            false => inner.regions.get(&placement, map),
        };
        let mapping = match mapped {
            Ok(mapping) => mapping,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            // No room for a mapping, but there may be for a copy, of which the engine need not know.
            Err(_) => {
                return Ok(View {
                    borrowed: self.clone(),
                    placement: placement.of_copy(),
                    mapping: Arc::new(placement.copy(self.file.as_fd())?),
                    copied: true,
                });
            }
        };
        let live = inner.views.entry(placement.id()).or_insert_with(|| Live {
            views: 0,
            kept: false,
            faults: memory::faults(),
            mapping: mapping.clone(),
            at: placement.at as usize,
            len: whole_pages(&placement),
            own: false,
        });
        live.views += 1;
        Ok(View {
            borrowed: self.clone(),
            placement,
            mapping,
            copied: false,
        })
    }

    /// What the engine must know before the piece ends: the buffers that are still used and it has not been told of,
    /// and those that are not used any more.
    pub(crate) fn take_news(&self) -> (Vec<u64>, Vec<u64>) {
        let mut inner = self.lock();
        let untold = inner.views.iter_mut().filter(|(_, live)| !live.kept);
        let kept = untold
            .map(|(&id, live)| {
                live.kept = true;
                id
            })
            .collect();
        (kept, std::mem::take(&mut inner.released))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One large buffer of an argument.
#[derive(Debug)]
pub struct View {
    borrowed: Arc<Borrowed>,
    placement: Placement,
    mapping: Arc<Mapping>,
    copied: bool,
}

impl View {
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

impl Drop for View {
    fn drop(&mut self) {
        if self.copied {
            return;
        }
        let id = self.placement.id();
        let mut inner = self.borrowed.lock();
        let Some(live) = inner.views.get_mut(&id) else {
            return;
        };
        live.views -= 1;
        if live.views > 0 {
            return;
        }
        let (kept, faults_then) = (live.kept, live.faults);
        // Some systems that are not quite Linux count none at all.
        let faults = memory::faults();
        let inner = &mut *inner;
        if faults != faults_then || faults == 0 {
            let len = whole_pages(&self.placement);
            let forgotten = self.mapping.forget_writes(self.placement.at as usize, len);
            inner.stuck |= forgotten.is_err();
        }
        inner.views.remove(&id);
        if kept {
            inner.released.push(id);
        }
    }
}

/// This process is about to be forked, by a task: the child may read its arguments for longer than the task runs, and
/// their pages are used for others then. So they become this process's own, and the child inherits those.
pub(crate) fn before_fork() {
    let mine = MINE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .upgrade();
    let Some(mine) = mine else { return };
    let mut inner = mine.lock();
    for live in inner.views.values_mut().filter(|live| !live.own) {
        live.mapping.make_own(live.at, live.len);
        live.own = true;
    }
}

fn whole_pages(placement: &Placement) -> usize {
    (placement.bytes as usize)
        .max(1)
        .next_multiple_of(page_bytes())
}
