//! Memory for what is to be sent later, in the arena from the start: then sending it copies nothing.
//!
//! What was sent has to stay as it was, because somebody reads it. So when a home is sent for the first time, the
//! pages that this process sees there become private ones: what it writes from then on it alone sees. Whether it has
//! written since, the kernel's page map tells. If it has, the home is memory like any other, and sending it copies.
//!
//! The reader of a *result* may write as well, and into the same pages. So a home that outlives the task which returned
//! it takes a copy of its own before the answer is out ([`Home::part_with`]).
//!
//! Before a fork every home becomes private likewise, so that neither process sees what the other writes.

use crate::arena::{self, Arena, Placement, Span};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The homes of this process, by their address. Held by attached threads only, or around a fork.
static HOMES: Mutex<BTreeMap<usize, Weak<Home>>> = Mutex::new(BTreeMap::new());

/// In a worker: where its results are placed.
static RESULTS: Mutex<Weak<Arena>> = Mutex::new(Weak::new());

/// See the module.
#[derive(Debug)]
pub struct Home {
    span: Arc<Span>,
    /// Who made it.
    owner: u32,
    /// The pages that this process sees are private ones.
    private: AtomicBool,
    /// What lies in the arena is another's.
    parted: AtomicBool,
}

impl Home {
    /// Memory of this size, if there is any: in a worker where its results lie, else where arguments do.
    pub fn make(bytes: usize) -> Option<Arc<Home>> {
        let results = lock(&RESULTS).upgrade();
        let span = match results {
            Some(results) => results.reserve(bytes)?,
            None => arena::mine()?.reserve_kept(bytes)?,
        };
        Some(Home::over(span))
    }

    fn over(span: Span) -> Arc<Home> {
        let home = Arc::new(Home {
            span: Arc::new(span),
            owner: std::process::id(),
            private: AtomicBool::new(false),
            parted: AtomicBool::new(false),
        });
        lock(&HOMES).insert(home.address(), Arc::downgrade(&home));
        home
    }

    /// Where it lies, to be written before it is sent.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// The home in which these bytes lie, if they lie in one.
    pub fn of(address: usize, bytes: usize) -> Option<Arc<Home>> {
        let home = {
            let homes = lock(&HOMES);
            let (_, home) = homes.range(..=address).next_back()?;
            home.upgrade()?
        };
        let end = home.address() + home.bytes();
        (address.checked_add(bytes)? <= end).then_some(home)
    }

    fn address(&self) -> usize {
        self.pointer().as_ptr() as usize
    }

    /// Where it lies.
    pub fn pointer(&self) -> NonNull<u8> {
        self.span.pointer()
    }

    /// How large it is.
    pub fn bytes(&self) -> usize {
        self.span.bytes()
    }

    /// To send these bytes of it, by this arena: what lies there stays as it is now. None if they have to be copied.
    pub fn lend(
        &self,
        arena: &Arc<Arena>,
        address: usize,
        bytes: usize,
    ) -> Option<(Arc<Span>, Placement)> {
        if !self.span.is_of(arena) || self.parted.load(Ordering::Relaxed) {
            return None;
        }
        let at = address - self.address();
        if self.private.load(Ordering::Relaxed) {
            if self.span.is_written(at, bytes) {
                return None;
            }
        } else {
            self.make_private()?;
        }
        let placement = Placement {
            at: self.span.placement().at + at as u64,
            bytes: bytes as u64,
            ..self.span.placement()
        };
        Some((self.span.clone(), placement))
    }

    fn make_private(&self) -> Option<()> {
        self.span.make_private().ok()?;
        self.private.store(true, Ordering::Relaxed);
        Some(())
    }

    /// It was sent to somebody who may write there: from now on it has memory of its own, with the same contents.
    pub fn part_with(&self) {
        self.span.make_own();
        self.parted.store(true, Ordering::Relaxed);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            return;
        }
        let forgotten = lock(&HOMES).remove(&self.address());
        drop(forgotten);
        if self.private.load(Ordering::Relaxed) && self.span.make_shared().is_err() {
            // Nothing can be placed there any more.
            std::mem::forget(self.span.clone());
        }
    }
}

/// This process is a worker, whose results lie here.
pub(crate) fn in_worker(results: &Arc<Arena>) {
    *lock(&RESULTS) = Arc::downgrade(results);
}

/// This process is about to be forked.
pub(crate) fn before_fork() {
    let homes: Vec<_> = lock(&HOMES).values().filter_map(Weak::upgrade).collect();
    for home in &homes {
        // Where that fails there is no memory for a mapping, and hardly any for a process.
        let private = home.private.load(Ordering::Relaxed) || home.make_private().is_some();
        if private && home.span.is_of_results() {
            // Its region will be used for other results, while the child still looks there.
            home.span.make_own();
        }
    }
}

/// In a forked child: what it has inherited is memory like any other.
pub(crate) fn forked_child() {
    let forgotten = std::mem::take(&mut *lock(&HOMES));
    drop(forgotten);
    *lock(&RESULTS) = Weak::new();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(home: &Home) -> u8 {
        let mut byte = [0];
        let placement = home.span.placement();
        let read = rustix::io::pread(home.span.arena().file(), &mut byte, placement.id());
        assert_eq!(read, Ok(1));
        byte[0]
    }

    #[test]
    fn only_what_lies_in_a_home_is_found() {
        let home = Home::make(100_000).unwrap();
        let start = home.address();
        assert!(Arc::ptr_eq(&Home::of(start, 100_000).unwrap(), &home));
        assert!(Home::of(start + 99_999, 1).is_some());
        assert!(Home::of(start + 1, 100_000).is_none());
        assert!(Home::of(start, usize::MAX).is_none());
        drop(home);
        assert!(Home::of(start, 1).is_none());
    }

    #[test]
    fn what_was_sent_stays_as_it_was() {
        let home = Home::make(100_000).unwrap();
        let arena = arena::mine().unwrap();
        home.span.write_byte(0, 1);
        let (span, placement) = home.lend(&arena, home.address(), 100_000).unwrap();
        assert_eq!(placement, span.placement());
        assert!(home.lend(&arena, home.address() + 8, 70_000).is_some());
        home.span.write_byte(0, 2);
        assert_eq!(read(&home), 1);
        assert!(
            home.lend(&arena, home.address(), 100_000).is_none(),
            "it has changed"
        );
        let page = crate::sys::memory::page_bytes();
        let (_, placement) = home.lend(&arena, home.address() + page, 70_000).unwrap();
        assert_eq!(placement.id(), span.placement().id() + page as u64);
    }

    #[test]
    fn the_next_one_in_its_place_is_shared_again() {
        let arena = Arena::of_arguments(arena::create_file().unwrap());
        let make = || Home::over(arena.reserve_kept(100_000).unwrap());
        let home = make();
        let place = home.span.placement();
        home.lend(&arena, home.address(), 100_000).unwrap();
        home.span.write_byte(0, 2);
        drop(home);
        let next = make();
        assert_eq!(next.span.placement(), place);
        next.span.write_byte(0, 7);
        assert_eq!(read(&next), 7);
    }
}
