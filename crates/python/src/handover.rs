//! Handing the interpreter's lock between a lane thread and whoever waits for it.
//!
//! A thread that asks for the lock while another holds it goes to sleep, and being woken takes ten times as long as a
//! short task. So both sides say when they have let go of it: a lane thread that has found work asks once the
//! thread that gave it waits, and a waiting thread whose result is there asks once the lane thread has looked for
//! more. Both do so for a few microseconds only; after that they ask as anybody does.

use rightlane_runtime::poll_until;
use std::sync::atomic::{AtomicU32, Ordering};

/// How long to wait for the other side to let go.
const COURTESY_NS: u64 = 5_000;

/// How long a thread polls for a lane thread's result before it sleeps: as the engine's waits, where cores are busy.
const POLL_NS: u64 = 20_000;

/// Threads that wait for lane threads, without the interpreter's lock.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// Lane threads that are not waiting for work.
static WORKING: AtomicU32 = AtomicU32::new(0);

/// A lane thread begins.
pub(crate) fn lane_begins() {
    WORKING.fetch_add(1, Ordering::SeqCst);
}

/// A lane thread ends.
pub(crate) fn lane_ends() {
    WORKING.fetch_sub(1, Ordering::SeqCst);
}

/// A lane thread without the interpreter's lock waits for work.
pub(crate) fn lane_waits<R>(wait: impl FnOnce() -> R) -> R {
    WORKING.fetch_sub(1, Ordering::SeqCst);
    let waited = wait();
    poll_until(COURTESY_NS, || WAITING.load(Ordering::SeqCst) > 0);
    WORKING.fetch_add(1, Ordering::SeqCst);
    waited
}

/// A thread without the interpreter's lock waits for a lane thread: by polling, then by `sleep`.
pub(crate) fn client_waits<R>(ready: impl Fn() -> bool, sleep: impl FnOnce() -> R) -> Option<R> {
    WAITING.fetch_add(1, Ordering::SeqCst);
    let polled = poll_until(POLL_NS, &ready);
    let slept = (!polled).then(sleep);
    WAITING.fetch_sub(1, Ordering::SeqCst);
    if polled || ready() {
        poll_until(COURTESY_NS, || WORKING.load(Ordering::SeqCst) == 0);
    }
    slept
}

/// In a forked child: none of those threads is there.
pub(crate) fn forked_child() {
    WAITING.store(0, Ordering::SeqCst);
    WORKING.store(0, Ordering::SeqCst);
}
