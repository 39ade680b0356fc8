//! Where there is no memory left for large buffers: who may waits a while, then they travel with the message, and the
//! user is told, once.

use crate::cached::Cached;
use crate::executor::{Executor, WhenFull};
use crate::{ffi, guard};
use pyo3::prelude::*;
use rightlane_runtime::arena::LARGE_BYTES;
use rightlane_runtime::{Amount, Arena, MemoryBudget, Span};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long a buffer waits for memory that others may give back.
pub(crate) const MOST_WAIT: Duration = Duration::from_secs(1);

/// Somebody who may wait.
#[derive(Clone, Debug)]
pub(crate) struct Patient {
    pub(crate) executor: Arc<Executor>,
    pub(crate) when: WhenFull,
}

/// The user was told, or will be.
static SAID: AtomicBool = AtomicBool::new(false);

/// Somebody has waited in vain while the arena's word said this.
static IN_VAIN: AtomicU64 = AtomicU64::new(u64::MAX);

/// In a worker: how large a buffer was for which there was no room, if the engine is to be told.
static UNTOLD_BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// Room for a buffer of an argument, for which there was none a moment ago. Fails where a signal handler does.
pub(crate) fn reserve(
    py: Python<'_>,
    arena: &Arc<Arena>,
    bytes: usize,
    patient: Option<&Patient>,
) -> PyResult<Option<Span>> {
    let mut span = None;
    if let Some(Patient { executor, when }) = patient {
        let waited = executor.wait_for_memory(py, arena, bytes, *when);
        span = waited.inspect_err(|_| INTERRUPTED.set(true))?;
    }
    if span.is_none() {
        note(bytes as u64, false);
    }
    Ok(span)
}

/// A pickling begins; an earlier one, or what came after it, may have been interrupted.
pub(crate) fn begin() {
    INTERRUPTED.set(false);
}

/// Whether a signal handler has failed since it began, while it waited for memory.
pub(crate) fn was_interrupted() -> bool {
    INTERRUPTED.get()
}

/// Whether some memory may be free again before long: tasks have some, and nobody has waited for it in vain since.
pub(crate) fn may_end(arena: &Arena, seen: u32, pending: Amount) -> bool {
    pending.bytes >= LARGE_BYTES as u64
        && arena.is_lent()
        && IN_VAIN.load(Ordering::Relaxed) != u64::from(seen)
}

/// Nothing was free again, or too little.
pub(crate) fn waited_in_vain(seen: u32) {
    IN_VAIN.store(u64::from(seen), Ordering::Relaxed);
}

fn note(bytes: u64, in_worker: bool) {
    if !SAID.swap(true, Ordering::Relaxed) {
        let left = MemoryBudget::read().available_bytes();
        guard::add_due(guard::Warning::Short(bytes, left, in_worker));
    }
}

/// A worker has no room for a buffer of a result; as it tells that.
pub(crate) fn note_worker(told: &[u8]) {
    if let Ok(bytes) = told.try_into() {
        note(u64::from_le_bytes(bytes), true);
    }
}

/// In a worker: there is no room for a buffer of a result.
pub(crate) fn note_result(bytes: usize) {
    if !SAID.swap(true, Ordering::Relaxed) {
        UNTOLD_BYTES.store(bytes as u64, Ordering::Relaxed);
    }
}

/// What the engine is to be told of that, once.
pub(crate) fn take_notice() -> Option<Vec<u8>> {
    if UNTOLD_BYTES.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let bytes = UNTOLD_BYTES.swap(0, Ordering::Relaxed).to_le_bytes();
    Some([&b"short\0"[..], &bytes].concat())
}

/// Tells the user.
pub(crate) fn tell(py: Python<'_>, bytes: u64, left: u64, in_worker: bool) -> PyResult<()> {
    static TELL: Cached = Cached::new(c"rightlane._memory", "tell_short");
    ffi::call1(TELL.get(py)?, (bytes, left, in_worker)).map(drop)
}

/// In a forked child, which has memory of its own.
pub(crate) fn forked_child() {
    SAID.store(false, Ordering::Relaxed);
    IN_VAIN.store(u64::MAX, Ordering::Relaxed);
}
