//! Large buffers of arguments, as a worker reads them.
//!
//! They are mapped privately: a task may write into its arguments, and nobody else ever sees that. But a page that was
//! written to no longer follows the file, and the next buffer in its place would be read with the last one's
//! contents; so when the last view of a buffer goes, its written pages are dropped. Where nothing was written nothing
//! is: a page that is mapped costs nothing the next time. Whether something was is judged by the faults of the
//! whole process, because it may have been written by any thread (rule 26), and then page by page.
//!
//! A page that is written costs several times what copying it does. So a function that wrote most of its buffer the last
//! time gets a copy at once, and now and then a look whether that is still so.
//!
//! A buffer may be an argument of several tasks. One of them may have kept what it got, and written into it: then
//! the next one gets a mapping of its own, of just those pages.

use crate::arena::{Placement, Regions};
use crate::sys::memory::{self, Mapping, page_bytes};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What this worker has borrowed.
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
    /// By number.
    views: HashMap<u64, Live>,
    next_number: u64,
    /// Which pages of the regions these are in, from where to where in the file.
    seen: BTreeMap<u64, u64>,
    /// The function that is called now, by its definition.
    function: u64,
    /// Those that write most of what they are given; how many times more they get copies.
    writers: HashMap<u64, u32>,
    /// Released since the engine was told that they are kept.
    released: Vec<u64>,
    /// Private pages could not be dropped: from now on buffers are copied.
    stuck: bool,
}

#[derive(Debug)]
struct Live {
    /// Where it begins in the file.
    place: u64,
    /// The engine knows that it outlasts its piece.
    kept: bool,
    /// The process's faults when it was made.
    faults: u64,
    mapping: Arc<Mapping>,
    /// The pages of the mapping that are its own.
    pages: Range<usize>,
    /// Where its pages begin in the file, if the mapping is of its region; else it is of these pages alone.
    in_region: Option<u64>,
    /// All its pages are this process's own, since a fork.
    own: bool,
    /// What function it was made for.
    function: u64,
}

/// Buffers below this are never copied for a writer: too little is won.
const MOST_UNCOPIED_BYTES: u64 = 1024 * 1024;

/// So many times a writer gets copies before it is looked at again: that time costs two or three copies.
const COPIES: u32 = 32;

/// How many writers are remembered.
const MOST_WRITERS: usize = 1024;

impl Borrowed {
    pub(crate) fn new(file: OwnedFd) -> Arc<Borrowed> {
        let borrowed = Arc::new(Borrowed {
            file,
            untouched: Mapping::untouched().ok(),
            inner: Mutex::new(Inner {
                regions: Regions::new(),
                views: HashMap::new(),
                next_number: 0,
                seen: BTreeMap::new(),
                function: 0,
                writers: HashMap::new(),
                released: Vec::new(),
                stuck: false,
            }),
        });
        let mut mine = MINE.lock().unwrap_or_else(PoisonError::into_inner);
        *mine = Arc::downgrade(&borrowed);
        drop(mine);
        borrowed
    }

    /// What is viewed from here on are arguments of this function, by its definition.
    pub fn enter(&self, function: u64) {
        self.lock().function = function;
    }

    /// The buffer at this place, which belongs to an item that this worker has claimed.
    pub fn view(self: &Arc<Borrowed>, placement: Placement) -> io::Result<View> {
        let mut inner = self.lock();
        let map = |at, len| Mapping::private(self.file.as_fd(), at, len);
        if self.untouched.as_ref().is_none_or(Mapping::is_touched) {
            inner.stuck = true;
        }
        let pages = placement.pages();
        let in_file = placement.region_at + pages.start as u64;
        let in_file = in_file..in_file + pages.len() as u64;
        let in_region = !inner.is_seen(&in_file);
        let mapped = match (inner.stuck, in_region) {
            (true, _) => Err(io::ErrorKind::Unsupported.into()),
            (false, true) => inner.regions.get(&placement, map),
            (false, false) => map(in_file.start, pages.len()).map(Arc::new),
        };
        let mapping = match mapped {
            Ok(mapping) => mapping,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            // No room for a mapping, but there may be for a copy, of which the engine need not know.
            Err(_) => {
                return Ok(View {
                    borrowed: self.clone(),
                    number: None,
                    mapping: Arc::new(placement.copy(self.file.as_fd())?),
                    at: 0,
                    bytes: placement.bytes as usize,
                });
            }
        };
        let offset = placement.at as usize - pages.start;
        if in_region
            && inner.wants_copy(&placement)
            && let Ok(copy) = Mapping::copy_of(&mapping, pages.start, pages.len())
        {
            return Ok(View {
                borrowed: self.clone(),
                number: None,
                mapping: Arc::new(copy),
                at: offset,
                bytes: placement.bytes as usize,
            });
        }
        // Where its pages begin in the mapping.
        let start = if in_region { pages.start } else { 0 };
        if in_region {
            inner.seen.insert(in_file.start, in_file.end);
        }
        inner.next_number += 1;
        let number = inner.next_number;
        let live = Live {
            place: placement.id(),
            kept: false,
            faults: memory::faults(),
            mapping: mapping.clone(),
            pages: start..start + pages.len(),
            in_region: in_region.then_some(in_file.start),
            own: false,
            function: inner.function,
        };
        inner.views.insert(number, live);
        Ok(View {
            borrowed: self.clone(),
            number: Some(number),
            mapping,
            at: start + offset,
            bytes: placement.bytes as usize,
        })
    }

    /// What the engine must know before the piece ends: the buffers that are still used and it has not been told of,
    /// and those that are not used any more.
    pub(crate) fn take_news(&self) -> (Vec<u64>, Vec<u64>) {
        let mut inner = self.lock();
        let untold = inner.views.values_mut().filter(|live| !live.kept);
        let kept = untold
            .map(|live| {
                live.kept = true;
                live.place
            })
            .collect();
        (kept, std::mem::take(&mut inner.released))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether the function that is called now is known to write most of such a buffer.
    fn wants_copy(&mut self, placement: &Placement) -> bool {
        if placement.bytes < MOST_UNCOPIED_BYTES {
            return false;
        }
        let Some(left) = self.writers.get_mut(&self.function) else {
            return false;
        };
        *left = left.saturating_sub(1);
        *left > 0
    }

    /// A function has written to so many pages of a buffer of so many.
    fn learn(&mut self, function: u64, written: usize, pages: usize) {
        if written * 2 < pages {
            self.writers.remove(&function);
        } else if self.writers.len() < MOST_WRITERS {
            self.writers.insert(function, COPIES);
        }
    }

    /// Whether somebody looks at some of these pages already.
    fn is_seen(&self, pages: &Range<u64>) -> bool {
        let before = self.seen.range(..pages.end).next_back();
        before.is_some_and(|(_, &end)| end > pages.start)
    }
}

/// One large buffer of an argument.
#[derive(Debug)]
pub struct View {
    borrowed: Arc<Borrowed>,
    /// None: it is a copy.
    number: Option<u64>,
    mapping: Arc<Mapping>,
    /// Where it begins in the mapping.
    at: usize,
    bytes: usize,
}

impl View {
    /// How large it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it lies.
    pub fn pointer(&self) -> NonNull<u8> {
        let pointer = self.mapping.pointer(self.at, self.bytes);
        pointer.unwrap_or_else(|| unreachable!("placements are checked when they come"))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut inner = self.borrowed.lock();
        let Some(live) = inner.views.remove(&number) else {
            return;
        };
        if let Some(at) = live.in_region {
            inner.seen.remove(&at);
            // Some systems that are not quite Linux count none at all.
            let faults = memory::faults();
            let Range { start, end } = live.pages;
            let written = match faults != live.faults || faults == 0 {
                true => self.mapping.forget_writes(start, end - start),
                false => Ok(Some(0)),
            };
            inner.stuck |= written.is_err();
            let large = self.bytes as u64 >= MOST_UNCOPIED_BYTES && !live.own;
            if let (true, Ok(Some(written))) = (large, written) {
                inner.learn(live.function, written, (end - start) / page_bytes());
            }
        }
        if live.kept {
            inner.released.push(live.place);
        }
    }
}

/// What this worker has borrowed, if this process is one and has taken up its work.
pub fn mine() -> Option<Arc<Borrowed>> {
    MINE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .upgrade()
}

/// This process is about to be forked, by a task: the child may read its arguments for longer than the task runs, and
/// their pages are used for others then. So they become this process's own, and the child inherits those.
pub(crate) fn before_fork() {
    let Some(mine) = mine() else { return };
    let mut inner = mine.lock();
    for live in inner.views.values_mut().filter(|live| !live.own) {
        live.mapping.make_own(live.pages.start, live.pages.len());
        live.own = true;
    }
}
