//! The completion thread: a `threading.Thread` that announces the ends of observed futures, in batches.
//!
//! It starts with the first callback or condition, and ends with the last executor (rule 17: its `run` is
//! one Rust loop). A native thread would need the interpreter's lock for each end.

use crate::ffi;
use crate::future::Slot;
use pyo3::prelude::*;
use rightlane_runtime::sys::futex::{self, Scope};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Queue {
    arrived: VecDeque<Arc<Slot>>,
    current: Option<Arc<Slot>>,
    running: bool,
    stopping: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    arrived: VecDeque::new(),
    current: None,
    running: false,
    stopping: false,
});
static BELL: AtomicU32 = AtomicU32::new(0);
static THREAD: Mutex<Option<Py<PyAny>>> = Mutex::new(None);

thread_local! {
    static HERE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the caller runs on the completion thread, in a callback.
pub(crate) fn is_here() -> bool {
    HERE.get()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ring() {
    BELL.fetch_add(1, Ordering::SeqCst);
    futex::wake(&BELL, 1, Scope::Private);
}

/// An observed future has come to its end. Called from any thread, the interpreter's lock held or not.
pub(crate) fn push(slot: Arc<Slot>) {
    let mut queue = lock(&QUEUE);
    queue.arrived.push_back(slot);
    let first = queue.arrived.len() == 1;
    drop(queue);
    if first {
        ring();
    }
}

/// Starts the thread unless it runs.
pub(crate) fn start(py: Python<'_>) -> PyResult<()> {
    {
        let mut queue = lock(&QUEUE);
        queue.stopping = false;
        if queue.running {
            return Ok(());
        }
        queue.running = true;
    }
    let started = (|| -> PyResult<Py<PyAny>> {
        let keywords = pyo3::types::PyDict::new(py);
        keywords.set_item("target", wrap_pyfunction!(run_completions, py)?)?;
        keywords.set_item("name", "rightlane-completion")?;
        keywords.set_item("daemon", true)?;
        let class = ffi::import(py, c"threading")?.getattr("Thread")?;
        let thread = ffi::call(&class, &pyo3::types::PyTuple::empty(py), Some(&keywords))?;
        ffi::call_method(&thread, "start", ())?;
        Ok(thread.unbind())
    })();
    match started {
        Ok(thread) => {
            let old = lock(&THREAD).replace(thread);
            drop(old);
            Ok(())
        }
        Err(error) => {
            lock(&QUEUE).running = false;
            Err(error)
        }
    }
}

/// The thread's `run`.
#[pyfunction]
pub(crate) fn run_completions(py: Python<'_>) {
    HERE.set(true);
    loop {
        let seen = BELL.load(Ordering::SeqCst);
        let next = {
            let mut queue = lock(&QUEUE);
            if queue.arrived.is_empty() && queue.stopping {
                queue.running = false;
                return;
            }
            // One at a time, and known while it is under way: a forked child has to finish it.
            let next = queue.arrived.pop_front();
            queue.current.clone_from(&next);
            next
        };
        let Some(slot) = next else {
            let _ = py.detach(|| futex::wait(&BELL, seen, None, Scope::Private));
            continue;
        };
        if let Err(error) = slot.announce(py) {
            error.write_unraisable(py, None);
        }
        let done = lock(&QUEUE).current.take();
        drop((slot, done));
    }
}

/// Ends the thread once it has announced everything, and waits for it unless it is the caller.
#[pyfunction]
pub(crate) fn stop_completions(py: Python<'_>) -> PyResult<()> {
    lock(&QUEUE).stopping = true;
    ring();
    let Some(thread) = lock(&THREAD).take() else {
        return Ok(());
    };
    let threading = ffi::import(py, c"threading")?;
    let current = ffi::call_method(&threading, "current_thread", ())?;
    // Not one plain join: another executor may want the thread after all.
    while !current.is(&thread) && ends() {
        ffi::call_method(thread.bind(py), "join", (0.05,))?;
    }
    Ok(())
}

fn ends() -> bool {
    let queue = lock(&QUEUE);
    queue.running && queue.stopping
}

/// In a forked child: the thread is not there.
pub(crate) fn forked_child() {
    let old = {
        let mut queue = lock(&QUEUE);
        queue.running = false;
        queue.stopping = false;
        let current = queue.current.take();
        let arrived = std::mem::take(&mut queue.arrived);
        current.into_iter().chain(arrived).collect::<Vec<_>>()
    };
    for slot in old {
        slot.take_effect_in_child();
    }
    drop(lock(&THREAD).take());
}
