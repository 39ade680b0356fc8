//! The Rust half of a future: one object with the Python class, which inherits from this one and from
//! `concurrent.futures.Future`.
//!
//! # Protocol
//!
//! A future's state moves once: pending (or, for futures that users drive themselves, running) to
//! finished or cancelled. Whoever notices the end stores it, raw, under the slot's lock.
//!
//! Unless somebody asked for the future's condition, the end takes effect at once and whoever sleeps in
//! `result()` is woken. With a condition the state becomes `ARRIVED` first, which outsiders see as running,
//! until the completion thread, or a thread that waits for this very future, changes it under the
//! condition, as the standard library's waiters rely on, and tells them. Callbacks are the completion
//! thread's alone: a thread that waits for one future never runs another's (rule 9).
//!
//! The slot's lock is held for a few instructions, never while Python code runs, and is the last one
//! taken: the engine's may be held already.

use crate::cached::Cached;
use crate::codec;
use crate::completion;
use crate::executor::{Executor, Local, lock};
use crate::ffi;
use crate::guard;
use crate::handover;
use crate::profile::Profile;
use crate::raw::{Raw, cancelled_error, flavor};
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyType};
use rightlane_runtime::sys::futex::{self, Scope, Waited};
use rightlane_runtime::{Attended, CallId, End, Patience, Run, Watch};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const PENDING: u8 = 0;
const RUNNING: u8 = 1;
const ARRIVED: u8 = 2;
const FINISHED: u8 = 3;
const CANCELLED: u8 = 4;
/// Cancelled by `cancel()` of a future that its user drives; not announced yet.
const CANCELLED_QUIETLY: u8 = 5;

/// What the futures of one call have in common.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) executor: Arc<Executor>,
    pub(crate) call: CallId,
    /// What runs, for messages.
    pub(crate) name: Arc<str>,
    /// Where lane threads find the calls.
    pub(crate) local: Option<Arc<Local>>,
    /// The number of what workers call, if they do.
    pub(crate) definition: u64,
    /// Where it is noted what moving takes.
    pub(crate) profile: Option<Arc<Profile>>,
}

impl Origin {
    fn is_running(&self, item: u64) -> bool {
        match &self.local {
            Some(local) => local.is_running(item),
            None => self.executor.is_running(self.call, item),
        }
    }
}

/// A call that single items join: the futures of those that have not ended, in order.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) origin: Arc<Origin>,
    open: Mutex<OpenSlots>,
}

#[derive(Debug, Default)]
struct OpenSlots {
    first: u64,
    slots: VecDeque<Option<Arc<Slot>>>,
}

impl Stream {
    pub(crate) fn new(origin: Origin) -> Stream {
        Stream {
            origin: Arc::new(origin),
            open: Mutex::default(),
        }
    }

    /// One more item, the next one.
    pub(crate) fn join(&self, slot: &Arc<Slot>, item: u64) {
        slot.set_origin(self.origin.clone(), item);
        let mut open = lock(&self.open);
        if open.slots.is_empty() {
            open.first = item;
        }
        debug_assert_eq!(
            open.first + open.slots.len() as u64,
            item,
            "items join in order"
        );
        open.slots.push_back(Some(slot.clone()));
    }

    pub(crate) fn settle(&self, item: u64, end: End<'_>) {
        if let Some(slot) = self.take(item) {
            slot.settle(end);
        }
    }

    fn take(&self, item: u64) -> Option<Arc<Slot>> {
        let mut open = lock(&self.open);
        let at = item.checked_sub(open.first);
        let slot = at.and_then(|at| open.slots.get_mut(at as usize)?.take());
        while let Some(None) = open.slots.front() {
            open.slots.pop_front();
            open.first += 1;
        }
        slot
    }

    pub(crate) fn settle_run(&self, first: u64, run: &Run) {
        for (item, (flavor, bytes)) in (first..).zip(run.iter()) {
            if let Some(slot) = self.take(item) {
                slot.arrive(Ending::Raw(Raw::answer(flavor, bytes)));
            }
        }
    }

    pub(crate) fn cancel_in_child(&self) {
        for slot in lock(&self.open).slots.iter().flatten() {
            slot.cancel_in_child();
        }
    }

    /// A lane thread reports the end of this item.
    pub(crate) fn settle_local(&self, item: u64, outcome: Result<Py<PyAny>, Py<PyAny>>) {
        if let Some(slot) = self.take(item) {
            slot.settle_local(outcome);
        }
    }

    /// What has not ended, in words.
    pub(crate) fn names(&self, py: Python<'_>) -> Vec<String> {
        if let Some(local) = &self.origin.local {
            return local.names(py);
        }
        match lock(&self.open).slots.iter().flatten().count() {
            0 => Vec::new(),
            1 => vec![self.origin.name.to_string()],
            many => vec![format!("{many} calls of {}", self.origin.name)],
        }
    }
}

#[derive(Debug, Default)]
enum Ending {
    #[default]
    None,
    Raw(Raw),
    /// A thread is unpickling it: what the function returned.
    OpeningValue(std::thread::ThreadId),
    /// ... or something else.
    OpeningError(std::thread::ThreadId),
    Value(Py<PyAny>),
    Exception(Py<PyAny>),
}

#[derive(Debug, Default)]
struct Observers {
    /// The future itself, for as long as somebody has to be told: callbacks and waiters are given it.
    future: Option<Py<PyAny>>,
    condition: Option<Py<PyAny>>,
    waiters: Option<Py<PyList>>,
    callbacks: Vec<Py<PyAny>>,
    /// The engine was asked to report the end at once.
    watched: Option<Watch>,
    /// ... or will be, by a thread that has just seen that it is not.
    watch_due: bool,
}

#[derive(Debug, Default)]
struct Inner {
    ending: Ending,
    observers: Option<Box<Observers>>,
    /// Where the task is, unless it never went anywhere.
    origin: Option<Arc<Origin>>,
}

/// What engine and future share.
#[derive(Debug)]
pub(crate) struct Slot {
    state: AtomicU8,
    /// Changes whenever somebody who waits should look again.
    bell: AtomicU32,
    waiting: AtomicU16,
    inner: Mutex<Inner>,
    /// Which item of its call the task is; set with the origin.
    item: AtomicU64,
}

// With the counts of its `Arc`, a piece of memory of the size that the pickler leaves behind: nothing is wasted.
const _: () = assert!(size_of::<Slot>() == 56);

impl Slot {
    pub(crate) fn new() -> Slot {
        Slot {
            state: AtomicU8::new(PENDING),
            bell: AtomicU32::new(0),
            waiting: AtomicU16::new(0),
            inner: Mutex::default(),
            item: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_origin(&self, origin: Arc<Origin>, item: u64) {
        self.item.store(item, Ordering::Relaxed);
        self.lock().origin = Some(origin);
    }

    /// What the task is called in messages.
    pub(crate) fn name(&self) -> String {
        self.origin()
            .map_or_else(|| "a task".to_owned(), |origin| origin.name.to_string())
    }

    /// Has the engine cancel the task, unless it has been claimed.
    pub(crate) fn withdraw(&self) -> bool {
        let Some(origin) = self.origin() else {
            return false;
        };
        let cancelled = origin.executor.cancel(origin.call, self.item());
        if cancelled && let Some(local) = &origin.local {
            local.forget(self.item());
        }
        cancelled
    }

    fn origin(&self) -> Option<Arc<Origin>> {
        self.lock().origin.clone()
    }

    fn item(&self) -> u64 {
        self.item.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            futex::wake(&self.bell, u32::MAX, Scope::Private);
        }
    }

    fn is_done(&self) -> bool {
        matches!(
            self.state.load(Ordering::SeqCst),
            FINISHED | CANCELLED | CANCELLED_QUIETLY
        )
    }

    /// The engine reports the end. Called without the interpreter's lock, with the engine's.
    pub(crate) fn settle(self: &Arc<Slot>, end: End<'_>) {
        self.arrive(Ending::Raw(Raw::new(end)));
    }

    /// A lane thread reports the end.
    pub(crate) fn settle_local(self: &Arc<Slot>, outcome: Result<Py<PyAny>, Py<PyAny>>) {
        self.arrive(match outcome {
            Ok(value) => Ending::Value(value),
            Err(exception) => Ending::Exception(exception),
        });
    }

    /// Every item of a map has ended; how, the map is asked.
    pub(crate) fn settle_whole(self: &Arc<Slot>) {
        self.arrive(Ending::Raw(Raw::answer(flavor::RETURNED, &[codec::NONE])));
    }

    fn arrive(self: &Arc<Slot>, ending: Ending) {
        let cancelled = matches!(ending, Ending::Raw(Raw::Cancelled));
        let mut inner = self.lock();
        inner.ending = ending;
        let observed = inner.observers.is_some();
        let watched = inner.observers.as_mut().and_then(|o| o.watched.take());
        // Whoever holds the condition may be looking at the state; without one nobody can be.
        let has_condition = inner
            .observers
            .as_ref()
            .is_some_and(|o| o.condition.is_some());
        let state = match (has_condition, cancelled) {
            (true, _) => ARRIVED,
            (false, true) => CANCELLED,
            (false, false) => FINISHED,
        };
        self.state.store(state, Ordering::SeqCst);
        drop(inner);
        self.ring();
        if let Some(watch) = watched
            && let Some(origin) = self.origin()
        {
            origin.executor.engine.unwatch(watch);
        }
        if observed {
            completion::push(self.clone());
        }
    }

    /// Has the engine report the end at once, because somebody will be told of it.
    fn watch(&self) {
        let Some(origin) = self.origin() else {
            return;
        };
        {
            let mut inner = self.lock();
            if self.has_arrived() {
                return;
            }
            match &mut inner.observers {
                Some(observers) if !observers.watch_due => observers.watch_due = true,
                _ => return,
            }
        }
        // Not under the slot's lock, which is the last to be taken.
        let watch = origin.executor.engine.watch();
        let spare = {
            let mut inner = self.lock();
            match &mut inner.observers {
                // The end may have come in between.
                Some(observers) if !self.has_arrived() => {
                    observers.watched = Some(watch);
                    None
                }
                _ => Some(watch),
            }
        };
        if let Some(watch) = spare {
            origin.executor.engine.unwatch(watch);
        }
    }

    fn has_arrived(&self) -> bool {
        self.is_done() || self.state.load(Ordering::SeqCst) == ARRIVED
    }

    /// Reads what the workers have said, which may be the end of this task.
    fn look(&self) {
        if !self.has_arrived()
            && let Some(origin) = self.origin()
        {
            origin.executor.engine.look();
        }
    }

    /// In a forked child: an unfinished future is cancelled there, and nobody is told.
    pub(crate) fn cancel_in_child(&self) {
        if !self.is_done() {
            self.lock().ending = Ending::Raw(Raw::Cancelled);
            self.state.store(CANCELLED, Ordering::SeqCst);
        }
    }

    /// In a forked child: an end that had arrived counts, and nobody is told.
    pub(crate) fn take_effect_in_child(&self) {
        if self.state.load(Ordering::SeqCst) != ARRIVED {
            return;
        }
        let cancelled = matches!(self.lock().ending, Ending::Raw(Raw::Cancelled));
        self.state.store(
            if cancelled { CANCELLED } else { FINISHED },
            Ordering::SeqCst,
        );
    }

    /// Announces an end that has arrived, and runs the callbacks.
    pub(crate) fn announce(self: &Arc<Slot>, py: Python<'_>) -> PyResult<()> {
        let concluded = self.conclude(py);
        let (future, callbacks) = {
            let mut inner = self.lock();
            let Some(observers) = &mut inner.observers else {
                return concluded;
            };
            (
                observers.future.take(),
                std::mem::take(&mut observers.callbacks),
            )
        };
        if let Some(future) = future {
            for callback in callbacks {
                run_callback(py, callback.bind(py), future.bind(py));
            }
        }
        concluded
    }

    /// Changes the state under the condition and tells waiters, if nobody has yet. Runs no callback: whoever
    /// waits for this future may do it.
    fn conclude(self: &Arc<Slot>, py: Python<'_>) -> PyResult<()> {
        if self.state.load(Ordering::SeqCst) != ARRIVED {
            return Ok(());
        }
        let condition = {
            let inner = self.lock();
            let condition = inner.observers.as_ref().and_then(|o| o.condition.as_ref());
            condition.map(|condition| condition.clone_ref(py))
        };
        let Some(condition) = condition else {
            return Ok(());
        };
        ffi::call_method(condition.bind(py), "acquire", ())?;
        let told = self
            .tell_waiters(py)
            .and_then(|()| ffi::call_method(condition.bind(py), "notify_all", ()).map(drop));
        ffi::call_method(condition.bind(py), "release", ())?;
        told
    }

    /// The part that happens under the condition.
    fn tell_waiters(self: &Arc<Slot>, py: Python<'_>) -> PyResult<()> {
        let (future, waiters, method) = {
            let inner = self.lock();
            if self.state.load(Ordering::SeqCst) != ARRIVED {
                return Ok(());
            }
            let method = match &inner.ending {
                Ending::Raw(Raw::Cancelled) => "add_cancelled",
                Ending::Raw(raw) if raw.is_success() => "add_result",
                Ending::Value(_) => "add_result",
                _ => "add_exception",
            };
            let state = if method == "add_cancelled" {
                CANCELLED
            } else {
                FINISHED
            };
            self.state.store(state, Ordering::SeqCst);
            let observers = inner.observers.as_ref();
            let future = observers
                .and_then(|o| o.future.as_ref())
                .map(|future| future.clone_ref(py));
            let waiters = observers
                .and_then(|o| o.waiters.as_ref())
                .map(|waiters| waiters.clone_ref(py));
            (future, waiters, method)
        };
        self.ring();
        if let (Some(future), Some(waiters)) = (future, waiters) {
            for waiter in waiters.bind(py).iter() {
                if let Err(error) = ffi::call_method(&waiter, method, (&future,)) {
                    error.write_unraisable(py, Some(&waiter));
                }
            }
        }
        Ok(())
    }

    /// Sleeps until `ready` holds. False when the time is over.
    fn wait_until(
        &self,
        py: Python<'_>,
        deadline: Option<Instant>,
        ready: impl Fn(&Slot) -> bool + Sync,
    ) -> PyResult<bool> {
        if ready(self) {
            return Ok(true);
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waited = loop {
            let seen = self.bell.load(Ordering::SeqCst);
            if ready(self) {
                break Ok(true);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break Ok(false);
            }
            let nap = until_signals(left);
            let sleep = || futex::wait(&self.bell, seen, nap, Scope::Private);
            let waited = py.detach(|| handover::client_waits(|| ready(self), sleep));
            let waited = waited.unwrap_or(Waited::Woken);
            if waited != Waited::Woken
                && let Err(error) = py.check_signals()
            {
                break Err(error);
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        waited
    }

    /// Waits for the end, doing the engine's work meanwhile where nobody else does. False when the time is over.
    fn wait_arrived(&self, py: Python<'_>, deadline: Option<Instant>) -> PyResult<bool> {
        let Some(origin) = self.origin() else {
            return self.wait_until(py, deadline, Slot::has_arrived);
        };
        if origin.local.is_some() {
            return self.wait_until(py, deadline, Slot::has_arrived);
        }
        let engine = &origin.executor.engine;
        let mut patience = Patience::default();
        loop {
            let attended =
                py.detach(|| engine.attend(deadline, &mut patience, || self.has_arrived()));
            match attended {
                Attended::Ready => return Ok(true),
                Attended::TimedOut => return Ok(false),
                Attended::Interrupted => py.check_signals()?,
                Attended::Taken => {
                    let watch = engine.watch();
                    let waited = self.wait_until(py, deadline, Slot::has_arrived);
                    engine.unwatch(watch);
                    return waited;
                }
            }
        }
    }

    fn wait_done(self: &Arc<Slot>, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        if self.is_done() {
            return Ok(());
        }
        let deadline = deadline_after(timeout)?;
        if !self.wait_arrived(py, deadline)? {
            return Err(PyTimeoutError::new_err(()));
        }
        // The completion thread may be busy with somebody's slow callback: do not wait for it.
        self.conclude(py)
    }

    /// The value or the exception; unpickled once, by whoever asks first. `future` is the slot's own.
    fn open(
        self: &Arc<Slot>,
        future: &Bound<'_, FutureCore>,
    ) -> PyResult<Result<Py<PyAny>, Py<PyAny>>> {
        let py = future.py();
        loop {
            let mut inner = self.lock();
            let raw = match &mut inner.ending {
                Ending::Value(value) => return Ok(Ok(value.clone_ref(py))),
                Ending::Exception(exception) => return Ok(Err(exception.clone_ref(py))),
                Ending::None => return Err(crate::raw::bug("a future is done and has no end")),
                Ending::OpeningValue(thread) | Ending::OpeningError(thread)
                    if *thread == std::thread::current().id() =>
                {
                    return Err(PyRuntimeError::new_err(
                        "a result asks for itself while it is being unpickled",
                    ));
                }
                Ending::OpeningValue(_) | Ending::OpeningError(_) => {
                    drop(inner);
                    self.wait_until(py, None, |slot| {
                        let ending = &slot.lock().ending;
                        !matches!(ending, Ending::OpeningValue(_) | Ending::OpeningError(_))
                    })?;
                    continue;
                }
                raw @ Ending::Raw(_) => {
                    let Ending::Raw(raw) = std::mem::take(raw) else {
                        continue;
                    };
                    let thread = std::thread::current().id();
                    inner.ending = if raw.is_success() {
                        Ending::OpeningValue(thread)
                    } else {
                        Ending::OpeningError(thread)
                    };
                    raw
                }
            };
            drop(inner);
            let name = self.name();
            let begun = raw.is_large().then(Instant::now);
            let opened = raw.open(py, &name, |breakage| match self.origin() {
                Some(origin) => origin.executor.breakage_error(py, breakage),
                None => crate::raw::bug("a broken future without an executor"),
            });
            if let Some(begun) = begun
                && let Some(origin) = self.origin()
                && let Some(profile) = &origin.profile
            {
                profile.moved.opened(begun);
            }
            let (Ok(object) | Err(object)) = &opened;
            if ffi::may_have_cycles(object.bind(py)) {
                ffi::track(future.as_any());
            }
            self.lock().ending = match &opened {
                Ok(value) => Ending::Value(value.clone_ref(py)),
                Err(exception) => Ending::Exception(exception.clone_ref(py)),
            };
            self.ring();
            return Ok(opened);
        }
    }

    /// Whether it failed, without unpickling anything.
    fn failed(&self) -> bool {
        match &self.lock().ending {
            Ending::None | Ending::Value(_) | Ending::OpeningValue(_) => false,
            Ending::Raw(raw) => !raw.is_success(),
            Ending::OpeningError(_) | Ending::Exception(_) => true,
        }
    }

    fn state_name(&self) -> &'static str {
        match self.state.load(Ordering::SeqCst) {
            FINISHED => "FINISHED",
            CANCELLED => "CANCELLED_AND_NOTIFIED",
            CANCELLED_QUIETLY => "CANCELLED",
            RUNNING | ARRIVED => "RUNNING",
            _ => match self.origin() {
                Some(origin) if origin.is_running(self.item()) => "RUNNING",
                _ => "PENDING",
            },
        }
    }
}

/// How to call a function in a message.
pub(crate) fn function_name(function: &Bound<'_, PyAny>) -> String {
    let function = &crate::executor::without_partials(function.clone());
    for attribute in ["__qualname__", "__name__"] {
        if let Ok(name) = function
            .getattr(attribute)
            .and_then(|name| name.extract::<String>())
        {
            return name;
        }
    }
    function
        .get_type()
        .name()
        .map_or_else(|_| "a callable".into(), |name| name.to_string())
}

/// Turns a timeout in seconds into a moment.
pub(crate) fn deadline_after(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(seconds) = timeout else {
        return Ok(None);
    };
    if seconds.is_nan() {
        return Err(pyo3::exceptions::PyValueError::new_err(
            "a timeout must be a number of seconds, not NaN",
        ));
    }
    let duration = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    // Beyond the clock's range is for ever.
    Ok(Instant::now().checked_add(duration))
}

/// How long to sleep before signals are looked for: one that comes just before the system call does not interrupt it.
pub(crate) fn until_signals(left: Option<Duration>) -> Option<Duration> {
    let most = Duration::from_nanos(rightlane_runtime::engine::waiting::SLEEP_NS);
    Some(left.map_or(most, |left| left.min(most)))
}

fn run_callback(py: Python<'_>, callback: &Bound<'_, PyAny>, future: &Bound<'_, PyAny>) {
    if let Err(error) = ffi::call1(callback, (future,)) {
        let logged = (|| -> PyResult<()> {
            let logger = ffi::import(py, c"concurrent.futures._base")?.getattr("LOGGER")?;
            let details = pyo3::types::PyDict::new(py);
            // A value by itself has no traceback before Python 3.12.
            details.set_item("exc_info", error.clone_ref(py).into_value(py))?;
            let message = ("exception calling callback for %r", future).into_pyobject(py)?;
            ffi::call(&logger.getattr("error")?, &message, Some(&details))?;
            Ok(())
        })();
        if logged.is_err() {
            error.write_unraisable(py, Some(callback));
        }
    }
}

/// A future that is pending, of a class that inherits from `rightlane.Future`, or of that one.
pub(crate) fn new_future(
    py: Python<'_>,
    class: Option<&Bound<'_, PyType>>,
) -> PyResult<(Py<PyAny>, Arc<Slot>)> {
    static CLASS: Cached = Cached::new(c"rightlane._future", "Future");
    // By `__new__`, so that the standard class's `__init__`, which makes a condition, does not run.
    let future = match class {
        Some(class) => ffi::new_object(class)?,
        None => ffi::new_object(CLASS.get(py)?.cast()?)?,
    };
    let slot = future.cast::<FutureCore>()?.get().slot.clone();
    Ok((future.unbind(), slot))
}

/// The first base of `rightlane.Future`.
#[pyclass(subclass, module = "rightlane._core", frozen)]
#[derive(Debug)]
pub(crate) struct FutureCore {
    pub(crate) slot: Arc<Slot>,
}

impl FutureCore {
    /// Makes sure that the end will be announced, and changes what is to be told.
    fn observe<R>(slf: &Bound<'_, Self>, change: impl FnOnce(&mut Observers) -> R) -> R {
        ffi::track(slf.as_any());
        let slot = &slf.get().slot;
        let mut inner = slot.lock();
        let done = slot.is_done();
        let observers = inner.observers.get_or_insert_default();
        if !done && observers.future.is_none() {
            observers.future = Some(slf.clone().into_any().unbind());
        }
        let changed = change(observers);
        drop(inner);
        slot.watch();
        changed
    }
}

#[pymethods]
impl FutureCore {
    #[new]
    fn new() -> FutureCore {
        FutureCore {
            slot: Arc::new(Slot::new()),
        }
    }

    /// The value, or raises what the task raised. Waits at most `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn result(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let (py, slot) = (slf.py(), &slf.get().slot);
        slot.wait_done(py, timeout)?;
        guard::tell(py)?;
        if slot.state.load(Ordering::SeqCst) != FINISHED {
            return Err(cancelled_error(py));
        }
        slot.open(slf)?
            .map_err(|exception| PyErr::from_value(exception.into_bound(py)))
    }

    /// What the task raised, or None.
    #[pyo3(signature = (timeout=None))]
    fn exception(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        let (py, slot) = (slf.py(), &slf.get().slot);
        slot.wait_done(py, timeout)?;
        guard::tell(py)?;
        if slot.state.load(Ordering::SeqCst) != FINISHED {
            return Err(cancelled_error(py));
        }
        if !slot.failed() {
            return Ok(None);
        }
        Ok(slot.open(slf)?.err())
    }

    /// The value, or raises what the task raised.
    ///
    /// Parameters
    /// ----------
    /// timeout : float, optional
    ///     Seconds to wait at most. Default: no limit.
    ///
    /// Raises
    /// ------
    /// multiprocessing.TimeoutError
    ///     The result was not ready in time.
    /// WorkerLost
    ///     The worker died while it ran the task, also because the pool was terminated.
    /// CancelledError
    ///     The pool was terminated before the task began.
    /// SerializationError
    ///     An argument or the result cannot be pickled; the latter as `MaybeEncodingError`.
    // For `AsyncResult`, which has it from here because a function of Python's would cost as much as all the rest.
    #[pyo3(name = "_get", signature = (timeout=None))]
    fn get_of_pool(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        if slf.get().slot.lock().observers.is_some() {
            return Ok(ffi::call_method(slf, "_get_told", (timeout,))?.unbind());
        }
        Self::result(slf, timeout).or_else(|error| {
            let raised = ffi::call_method(slf, "_raised", (error.value(py),))?;
            Err(PyErr::from_value(raised))
        })
    }

    /// Waits until it is done, at most `timeout` seconds. Whether it is.
    #[pyo3(name = "_wait", signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        match self.slot.wait_done(py, timeout) {
            Ok(()) => Ok(true),
            Err(error) if !self.slot.is_done() && error.is_instance_of::<PyTimeoutError>(py) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether it has ended, in whatever way.
    fn done(&self) -> bool {
        self.slot.look();
        self.slot.is_done()
    }

    /// Whether it was cancelled.
    fn cancelled(&self) -> bool {
        match self.slot.state.load(Ordering::SeqCst) {
            CANCELLED | CANCELLED_QUIETLY => true,
            // Decided, if not announced yet.
            ARRIVED => matches!(self.slot.lock().ending, Ending::Raw(Raw::Cancelled)),
            _ => false,
        }
    }

    /// Whether it has been claimed and has not ended.
    fn running(&self) -> bool {
        self.slot.look();
        self.slot.state_name() == "RUNNING"
    }

    /// Cancels it unless it has been claimed.
    fn cancel(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let (py, slot) = (slf.py(), &slf.get().slot);
        if slot.origin().is_some() {
            if !slot.is_done() && slot.withdraw() {
                slot.announce(py)?;
            }
            return Ok(slf.get().cancelled());
        }
        let cancelled = {
            let mut inner = slot.lock();
            match slot.state.load(Ordering::SeqCst) {
                PENDING => {
                    inner.ending = Ending::Raw(Raw::Cancelled);
                    slot.state.store(CANCELLED_QUIETLY, Ordering::SeqCst);
                    true
                }
                CANCELLED | CANCELLED_QUIETLY => return Ok(true),
                _ => false,
            }
        };
        if cancelled {
            slot.ring();
            Self::tell(slf, None)?;
        }
        Ok(cancelled)
    }

    /// Calls `callback(future)` when the future is done: at once, in this thread, if it is; else on the
    /// completion thread.
    fn add_done_callback(slf: &Bound<'_, Self>, callback: Bound<'_, PyAny>) -> PyResult<()> {
        ffi::track(slf.as_any());
        let slot = &slf.get().slot;
        let queued = {
            let mut inner = slot.lock();
            if slot.is_done() {
                false
            } else {
                let observers = inner.observers.get_or_insert_default();
                observers.callbacks.push(callback.clone().unbind());
                observers
                    .future
                    .get_or_insert_with(|| slf.clone().into_any().unbind());
                true
            }
        };
        if queued {
            slot.watch();
            return if slot.origin().is_some() {
                completion::start(slf.py())
            } else {
                Ok(())
            };
        }
        run_callback(slf.py(), &callback, slf.as_any());
        Ok(())
    }

    /// Calls `callback(future)` on the completion thread, even if the future is done already.
    #[pyo3(name = "_call_back")]
    fn call_back(slf: &Bound<'_, Self>, callback: Bound<'_, PyAny>) -> PyResult<()> {
        let slot = &slf.get().slot;
        let done = Self::observe(slf, |observers| {
            observers.callbacks.push(callback.unbind());
            observers.future = Some(slf.clone().into_any().unbind());
            slot.is_done()
        });
        completion::start(slf.py())?;
        if done {
            completion::push(slot.clone());
        }
        Ok(())
    }

    /// For futures that their user drives, as in the standard library.
    fn set_running_or_notify_cancel(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let slot = &slf.get().slot;
        match slot.state.load(Ordering::SeqCst) {
            PENDING => {
                slot.state.store(RUNNING, Ordering::SeqCst);
                Ok(true)
            }
            CANCELLED_QUIETLY => {
                slot.state.store(CANCELLED, Ordering::SeqCst);
                Self::tell(slf, Some("add_cancelled"))?;
                Ok(false)
            }
            _ => Err(PyRuntimeError::new_err("Future in unexpected state")),
        }
    }

    /// For futures that their user drives, as in the standard library.
    fn set_result(slf: &Bound<'_, Self>, result: Py<PyAny>) -> PyResult<()> {
        Self::finish(slf, Ending::Value(result), "add_result")
    }

    /// For futures that their user drives, as in the standard library.
    fn set_exception(slf: &Bound<'_, Self>, exception: Py<PyAny>) -> PyResult<()> {
        Self::finish(slf, Ending::Exception(exception), "add_exception")
    }

    #[getter(_state)]
    fn state(&self) -> &'static str {
        self.slot.look();
        self.slot.state_name()
    }

    #[getter(_condition)]
    fn condition(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        if let Some(known) = Self::observe(slf, |o| o.condition.as_ref().map(|c| c.clone_ref(py))) {
            return Ok(known);
        }
        if slf.get().slot.origin().is_some() {
            completion::start(py)?;
        }
        let made = ffi::call_method(&ffi::import(py, c"threading")?, "Condition", ())?.unbind();
        Ok(Self::observe(slf, |o| {
            o.condition.get_or_insert(made).clone_ref(py)
        }))
    }

    #[getter(_waiters)]
    fn waiters(slf: &Bound<'_, Self>) -> Py<PyList> {
        let made = PyList::empty(slf.py()).unbind();
        Self::observe(slf, |o| o.waiters.get_or_insert(made).clone_ref(slf.py()))
    }

    #[getter(_done_callbacks)]
    fn done_callbacks(slf: &Bound<'_, Self>) -> Vec<Py<PyAny>> {
        let inner = slf.get().slot.lock();
        inner
            .observers
            .iter()
            .flat_map(|o| &o.callbacks)
            .map(|c| c.clone_ref(slf.py()))
            .collect()
    }

    #[getter(_result)]
    fn raw_result(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let future = slf.get();
        if !future.slot.is_done() || future.cancelled() || future.slot.failed() {
            return Ok(None);
        }
        Ok(future.slot.open(slf)?.ok())
    }

    #[getter(_exception)]
    fn raw_exception(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let future = slf.get();
        if !future.slot.is_done() || future.cancelled() || !future.slot.failed() {
            return Ok(None);
        }
        Ok(future.slot.open(slf)?.err())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let slot = &slf.get().slot;
        let at = slf.as_ptr() as usize;
        let name = slf.get_type().name()?;
        let state = slot.state_name();
        let shown = if state.starts_with("CANCELLED") {
            "cancelled".to_owned()
        } else {
            state.to_lowercase()
        };
        // Without unpickling anything: a repr must not run user code that nobody asked for.
        let ending = match &slot.lock().ending {
            Ending::Value(value) => {
                format!(" returned {}", value.bind(slf.py()).get_type().name()?)
            }
            Ending::Exception(exception) => {
                format!(" raised {}", exception.bind(slf.py()).get_type().name()?)
            }
            _ => String::new(),
        };
        Ok(format!("<{name} at {at:#x} state={shown}{ending}>"))
    }

    fn __setattr__(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        // From here on it may be part of a cycle.
        ffi::track(slf.as_any());
        ffi::set_attribute(slf.as_any(), name, Some(value))
    }

    fn __delattr__(slf: &Bound<'_, Self>, name: &Bound<'_, PyAny>) -> PyResult<()> {
        ffi::set_attribute(slf.as_any(), name, None)
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        // Whoever holds the lock now is not letting go of these objects either.
        let Ok(inner) = self.slot.inner.try_lock() else {
            return Ok(());
        };
        if Arc::strong_count(&self.slot) > 1 {
            // The engine holds the slot as well: what hangs on it is reachable from there.
            return Ok(());
        }
        match &inner.ending {
            Ending::Value(object) | Ending::Exception(object) => visit.call(object)?,
            _ => {}
        }
        if let Some(observers) = &inner.observers {
            visit.call(&observers.future)?;
            visit.call(&observers.condition)?;
            visit.call(&observers.waiters)?;
            for callback in &observers.callbacks {
                visit.call(callback)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let (ending, observers) = {
            let mut inner = self.slot.lock();
            (std::mem::take(&mut inner.ending), inner.observers.take())
        };
        drop((ending, observers));
    }
}

impl FutureCore {
    fn finish(slf: &Bound<'_, Self>, ending: Ending, method: &str) -> PyResult<()> {
        let slot = &slf.get().slot;
        let refused = {
            let mut inner = slot.lock();
            let refused = slot.is_done() || inner.origin.is_some();
            if !refused {
                inner.ending = ending;
                slot.state.store(FINISHED, Ordering::SeqCst);
            }
            refused
        };
        if refused {
            let text = format!("{}: {}", slot.state_name(), slf.repr()?);
            let futures = ffi::import(slf.py(), c"concurrent.futures")?;
            let error = ffi::call_method(&futures, "InvalidStateError", (text,))?;
            return Err(PyErr::from_value(error));
        }
        slot.ring();
        Self::tell(slf, Some(method))
    }

    /// For futures that their user drives: tells whoever looks on, in the caller.
    fn tell(slf: &Bound<'_, Self>, method: Option<&str>) -> PyResult<()> {
        let py = slf.py();
        let (condition, waiters, callbacks) = {
            let mut inner = slf.get().slot.lock();
            let Some(observers) = &mut inner.observers else {
                return Ok(());
            };
            observers.future = None;
            (
                observers.condition.as_ref().map(|c| c.clone_ref(py)),
                observers.waiters.as_ref().map(|w| w.clone_ref(py)),
                std::mem::take(&mut observers.callbacks),
            )
        };
        if let Some(condition) = condition {
            ffi::call_method(condition.bind(py), "acquire", ())?;
            if let (Some(waiters), Some(method)) = (&waiters, method) {
                for waiter in waiters.bind(py).iter() {
                    ffi::call_method(&waiter, method, (slf,))?;
                }
            }
            ffi::call_method(condition.bind(py), "notify_all", ())?;
            ffi::call_method(condition.bind(py), "release", ())?;
        }
        for callback in callbacks {
            run_callback(py, callback.bind(py), slf.as_any());
        }
        Ok(())
    }
}
