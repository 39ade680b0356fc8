//! Going to sleep without missing what the other side provides meanwhile.
//!
//! Both directions are Dekker's argument again. The sleeper announces that it sleeps, passes a
//! SeqCst fence, looks once more whether there is something to do, and only then waits. The waker
//! provides (publishes records, frees room), passes a SeqCst fence, and looks for the announcement.
//! At least one sees the other, so either the sleeper does not wait or the waker wakes it.
//!
//! **The worker sleeps** on the doorbell, a futex word that only the parent writes. Its announcement
//! holds the doorbell's value and what it waits for. The parent rings (adds one, then wakes the
//! futex) only if the announced value is still the doorbell's: one that is older belongs to a sleep
//! that has been ended already, because the futex does not wait once the word has changed. So each
//! sleep costs at most one wake, however much the parent provides before the worker gets up.
//!
//! **The parent sleeps** in epoll on an eventfd per worker. Its announcement holds the number of the
//! sleep and what it waits for. A worker signals at most once per sleep: the eventfd keeps the
//! signal until the parent, awake, reads it. The parent must therefore announce a new sleep before
//! every wait, and look at everything after announcing.
//!
//! The system calls (futex, epoll, eventfd) are the runtime's.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// What a sleeper waits for, or what a waker has provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants(u64);

impl Wants {
    /// Records to read.
    pub const MESSAGES: Self = Self(1);
    /// Room to write.
    pub const ROOM: Self = Self(2);
    /// One or the other.
    pub const EITHER: Self = Self(3);
}

const WANTS_MASK: u64 = Wants::EITHER.0;
/// Announcements are a number (doorbell value, or number of the sleep) above the `Wants`.
const NUMBER_SHIFT: u32 = 2;

/// Worker: announces a sleep; returns the value to wait on the doorbell with.
///
/// Look for something to do after this and before waiting.
pub fn worker_prepare(asleep: &AtomicU64, doorbell: &AtomicU32, wants: Wants) -> u32 {
    // Relaxed: if this value is older than a ring, the futex does not wait; nothing is read on the
    // strength of it.
    let value = doorbell.load(Ordering::Relaxed);
    asleep.store(
        u64::from(value) << NUMBER_SHIFT | wants.0,
        Ordering::Relaxed,
    );
    // Pairs with the fence in `must_ring`.
    fence(Ordering::SeqCst);
    value
}

/// Worker: no longer asleep, or not going to be.
pub fn worker_awake(asleep: &AtomicU64) {
    asleep.store(0, Ordering::Relaxed);
}

/// Parent: whether the worker's announcement says that it sleeps.
pub fn worker_is_asleep(asleep: &AtomicU64) -> bool {
    asleep.load(Ordering::Relaxed) & WANTS_MASK != 0
}

/// Parent, after providing `provided`: rings if the worker sleeps for it.
///
/// If true, the doorbell has been rung and the caller must wake its futex.
#[must_use]
pub fn must_ring(asleep: &AtomicU64, doorbell: &AtomicU32, provided: Wants) -> bool {
    // Pairs with the fence in `worker_prepare`.
    fence(Ordering::SeqCst);
    let announced = asleep.load(Ordering::Relaxed);
    // Relaxed: only the parent writes the doorbell.
    let value = doorbell.load(Ordering::Relaxed);
    if announced & provided.0 == 0 || announced >> NUMBER_SHIFT != u64::from(value) {
        return false;
    }
    // Relaxed: the futex system calls order themselves, and the worker looks at the rings with
    // their own Acquire loads once it is up.
    doorbell.store(value.wrapping_add(1), Ordering::Relaxed);
    true
}

/// Parent: announces a new sleep. Look at every ring after this and before waiting.
pub fn parent_prepare(parent_asleep: &AtomicU64, wants: Wants) {
    // Relaxed: only the parent writes this word.
    let number = (parent_asleep.load(Ordering::Relaxed) >> NUMBER_SHIFT) + 1;
    parent_asleep.store(number << NUMBER_SHIFT | wants.0, Ordering::Relaxed);
    // Pairs with the fence in `must_signal`.
    fence(Ordering::SeqCst);
}

/// Parent: no longer asleep, or not going to be. The number of the sleep stays, so that the next
/// one gets another.
pub fn parent_awake(parent_asleep: &AtomicU64) {
    let announced = parent_asleep.load(Ordering::Relaxed);
    parent_asleep.store(announced & !WANTS_MASK, Ordering::Relaxed);
}

/// Worker, after providing `provided`: whether it must signal the parent.
///
/// `signalled` is the worker's own memory of the last sleep it ended; it begins at 0.
#[must_use]
pub fn must_signal(parent_asleep: &AtomicU64, provided: Wants, signalled: &mut u64) -> bool {
    // Pairs with the fence in `parent_prepare`.
    fence(Ordering::SeqCst);
    let announced = parent_asleep.load(Ordering::Relaxed);
    let number = announced >> NUMBER_SHIFT;
    if announced & provided.0 == 0 || number == *signalled {
        return false;
    }
    *signalled = number;
    true
}
