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
//! **The parent sleeps** on an eventfd. Its announcement holds the number of the sleep, what it waits
//! for, and which of two threads sleeps: its keeper, or one that waits for a result and does the
//! keeper's work meanwhile. A worker signals at most once per sleep: the eventfd keeps the signal
//! until the parent, awake, reads it. The parent must therefore announce a new sleep before every
//! wait, and look at everything after announcing. With several workers it announces to each
//! ([`parent_announce`]), passes one fence ([`announced`]) and looks then.
//!
//! The system calls (futex, epoll, eventfd) are the runtime's.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// What a sleeper waits for, or what a waker has provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants(u64);

impl Wants {
    /// Nothing: awake.
    pub const NOTHING: Self = Self(0);
    /// Records to read.
    pub const MESSAGES: Self = Self(1);
    /// Room to write.
    pub const ROOM: Self = Self(2);
    /// One or the other.
    pub const EITHER: Self = Self(3);
    /// The worker has begun with the last thing it was sent.
    pub const DRY: Self = Self(4);
    /// The worker has answered everything it was sent.
    pub const IDLE: Self = Self(8);
    /// Records to read that leave little room for more.
    pub const FULL: Self = Self(16);
    /// Whatever it is that somebody waits for.
    pub const ANY: Self = Self(31);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// `self`, and `other` if `also`.
    #[must_use]
    pub const fn and_if(self, also: bool, other: Self) -> Self {
        if also { self.and(other) } else { self }
    }

    /// Whether all of `other` is wanted.
    pub const fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Which thread of the parent sleeps, and so which eventfd wakes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The one that is always there.
    Keeper,
    /// One that waits for a result.
    Waiter,
}

const WANTS_MASK: u64 = Wants::ANY.0;
/// Set where the waiter listens.
const WAITER: u64 = 32;
/// Announcements are a number (doorbell value, or number of the sleep) above the `Wants`.
const NUMBER_SHIFT: u32 = 6;

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

/// Parent: announces a new sleep. Then [`announced`], a look at every ring, and only then the wait.
pub fn parent_announce(parent_asleep: &AtomicU64, wants: Wants, listener: Listener) {
    // Relaxed: only the parent writes this word.
    let number = (parent_asleep.load(Ordering::Relaxed) >> NUMBER_SHIFT) + 1;
    let waiter = if listener == Listener::Waiter {
        WAITER
    } else {
        0
    };
    parent_asleep.store(number << NUMBER_SHIFT | waiter | wants.0, Ordering::Relaxed);
}

/// Parent: makes what it has announced count before it looks at the rings.
pub fn announced() {
    // Pairs with the fence in `must_signal`.
    fence(Ordering::SeqCst);
}

/// Parent: no longer asleep, or not going to be. The number of the sleep stays, so that the next
/// one gets another.
pub fn parent_awake(parent_asleep: &AtomicU64) {
    let announced = parent_asleep.load(Ordering::Relaxed);
    parent_asleep.store(announced & !WANTS_MASK, Ordering::Relaxed);
}

/// Worker, after providing `provided`: whom it must signal, if anybody.
///
/// `signalled` is the worker's own memory of the last sleep it ended; it begins at 0.
#[must_use]
pub fn must_signal(
    parent_asleep: &AtomicU64,
    provided: Wants,
    signalled: &mut u64,
) -> Option<Listener> {
    // Pairs with the fence in `announced`.
    fence(Ordering::SeqCst);
    let announced = parent_asleep.load(Ordering::Relaxed);
    let number = announced >> NUMBER_SHIFT;
    if announced & provided.0 == 0 || number == *signalled {
        return None;
    }
    *signalled = number;
    Some(if announced & WAITER == 0 {
        Listener::Keeper
    } else {
        Listener::Waiter
    })
}

/// Worker: whether [`must_signal`] is worth its fence. Without one it may miss an announcement that is being
/// made at this moment: only for a parent that looks again by itself soon after it has announced.
pub fn is_worth_asking(parent_asleep: &AtomicU64, provided: Wants, signalled: u64) -> bool {
    let announced = parent_asleep.load(Ordering::Relaxed);
    announced & provided.0 != 0 && announced >> NUMBER_SHIFT != signalled
}
