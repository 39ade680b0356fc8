//! Maps of a pool: `multiprocessing.Pool` asks for more than `Executor.map` gives.
//!
//! [`PoolMap`] yields in order or as results come, goes on after an error, waits with a time limit at each step,
//! and may be used by several threads. It can also be waited for as a whole, by a future. Dropping it cancels
//! nothing: what was given to a pool is run.
//!
//! [`Inlet`] is the other end of a map whose input is read by a thread of the pool's, because reading it may
//! block or never end. That thread reads on until so many items are read and not taken; then it waits for room.
//! What it has pushed goes to the engine in blocks: at once while the engine has little to do, and whenever
//! somebody waits for a result. A thread that waits does not have to get hold of the source for that: if the
//! feeder has it at that moment, it finds the wish when it has put the source back.

use crate::codec;
use crate::executor::{Executor, WhenFull, lock};
use crate::ffi;
use crate::future::{Origin, deadline_after, new_future};
use crate::kept::{Entry, Kept, Part};
use crate::map::{Feed, MapState, READ_AHEAD_ITEMS, Reader, Source};
use crate::raw::cancelled_error;
use pyo3::exceptions::{PyKeyboardInterrupt, PyStopIteration};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyType};
use rightlane_runtime::CallId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Memory is kept ready for portions up to this size.
const MOST_PORTION: usize = 512;

/// See the module.
#[pyclass(module = "rightlane._core", frozen)]
#[derive(Debug)]
pub(crate) struct PoolMap {
    feed: Arc<Feed>,
    /// Ends that were taken together and are next.
    ready: Mutex<Option<Part>>,
    unordered: bool,
    /// Somebody waits: what is read is to be handed over.
    hungry: Arc<AtomicBool>,
    /// Makes the error to raise out of the one that came.
    convert: Option<Py<PyAny>>,
}

/// The end of an item that was next.
enum Taken {
    Value(Py<PyAny>),
    Entry(Entry),
}

/// What a map of a pool is asked to be.
#[derive(Debug)]
pub(crate) struct Shape {
    /// The input is pushed through an [`Inlet`].
    pub(crate) fed: bool,
    pub(crate) unordered: bool,
}

impl PoolMap {
    pub(crate) fn start(
        py: Python<'_>,
        executor: Arc<Executor>,
        function: &Bound<'_, PyAny>,
        source: Source,
        shape: &Shape,
        convert: Option<Py<PyAny>>,
    ) -> PyResult<PoolMap> {
        let state = MapState::new(function.clone().unbind(), shape.unordered);
        let reader = if shape.fed {
            Reader::Feeder
        } else {
            Reader::OpenEnded
        };
        let feed = Feed::new(executor, state, source, reader);
        if !shape.fed {
            let read = feed.read(py, usize::MAX, Some(WhenFull::Ask));
            let raised = feed.take_error();
            let error = read
                .err()
                .or_else(|| raised.map(|error| PyErr::from_value(error.into_bound(py))));
            if let Some(error) = error {
                feed.cancel();
                return Err(error);
            }
        }
        Ok(PoolMap {
            feed,
            ready: Mutex::new(None),
            unordered: shape.unordered,
            hungry: Arc::new(AtomicBool::new(false)),
            convert,
        })
    }

    /// Takes the next end that is there.
    fn take(&self, py: Python<'_>) -> PyResult<Option<Taken>> {
        let mut ready = lock(&self.ready);
        loop {
            // The usual case first, without a copy.
            if let Some(Part::Run(answers)) = ready.as_mut()
                && let Some(answer) = answers.next_atom()
            {
                let value = codec::decode(py, answer)?.unbind();
                self.feed.state.yielded(1);
                return Ok(Some(Taken::Value(value)));
            }
            if let Some(entry) = ready.as_mut().and_then(Part::next) {
                self.feed.state.yielded(1);
                return Ok(Some(Taken::Entry(entry)));
            }
            *ready = self.feed.state.take_next();
            if ready.is_none() {
                return Ok(None);
            }
        }
    }

    /// The same, all that were taken together.
    fn take_part(&self) -> Option<Part> {
        let ready = lock(&self.ready).take().filter(|part| part.len() > 0);
        ready.or_else(|| self.feed.state.take_next())
    }

    fn collect(
        &self,
        py: Python<'_>,
        part: &mut Part,
        values: &Bound<'_, PyList>,
        errors: &Bound<'_, PyList>,
    ) -> PyResult<()> {
        while errors.is_empty() {
            if let Part::Run(answers) = part {
                while let Some(plain) = answers.next_plain() {
                    values.append(codec::decode(py, plain)?)?;
                }
            }
            let Some(entry) = part.next() else { break };
            match self.open(py, entry) {
                Ok(value) => values.append(value)?,
                Err(error) => errors.append(error.value(py))?,
            }
        }
        Ok(())
    }

    /// Waits for the next end. False when the time is over.
    fn wait_for_next(&self, py: Python<'_>, deadline: Option<Instant>) -> PyResult<bool> {
        self.hungry.store(true, Ordering::SeqCst);
        self.feed.flush(py, self.feed.when_waiting())?;
        let ready = |kept: &Kept| kept.is_front_ready() || kept.closed && kept.first == kept.read;
        let feed = &self.feed;
        let engine = &feed.executor.engine;
        feed.state.wait(py, engine, deadline, self.unordered, ready)
    }

    /// The next value, or None at the end.
    fn step(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
        let mut deadline = None;
        loop {
            match self.take(py)? {
                Some(Taken::Value(value)) => return Ok(Some(value)),
                Some(Taken::Entry(entry)) => return self.open(py, entry).map(Some),
                None => {}
            }
            if self.feed.state.is_over().1 {
                return match self.feed.take_error() {
                    Some(error) => Err(self.converted(py, PyErr::from_value(error.into_bound(py)))),
                    None => Ok(None),
                };
            }
            if deadline.is_none() {
                deadline = deadline_after(timeout)?;
            }
            if !self.wait_for_next(py, deadline)? {
                return Err(timeout_error(py));
            }
        }
    }

    fn open(&self, py: Python<'_>, entry: Entry) -> PyResult<Py<PyAny>> {
        if let Entry::Raw(raw) = &entry
            && let Some(plain) = raw.plain_value()
        {
            return Ok(codec::decode(py, plain)?.unbind());
        }
        let opened = self.feed.open(py, entry);
        opened.map_err(|error| self.converted(py, error))
    }

    fn converted(&self, py: Python<'_>, error: PyErr) -> PyErr {
        let Some(convert) = &self.convert else {
            return error;
        };
        match ffi::call1(convert.bind(py), (error.value(py),)) {
            Ok(converted) => PyErr::from_value(converted),
            Err(error) => error,
        }
    }
}

#[pymethods]
impl PoolMap {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.step(py, None)
    }

    /// The next result. Raises what its task raised, StopIteration after the last, and
    /// `multiprocessing.TimeoutError` if it does not come within `timeout` seconds; it may be asked for again.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        self.step(py, timeout)?
            .ok_or_else(|| PyStopIteration::new_err(()))
    }

    /// Appends the results to `values` as they come, until the first error, which is appended to `errors`; false
    /// when `timeout` seconds are over before every item has ended. One thread at a time.
    #[pyo3(signature = (values, errors, timeout=None))]
    fn gather(
        &self,
        py: Python<'_>,
        values: &Bound<'_, PyList>,
        errors: &Bound<'_, PyList>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let deadline = deadline_after(timeout)?;
        loop {
            while let Some(mut part) = self.take_part() {
                self.feed.state.yielded(part.len());
                self.collect(py, &mut part, values, errors)?;
            }
            if self.feed.state.is_over().1 {
                return Ok(true);
            }
            if !self.wait_for_next(py, deadline)? {
                return Ok(false);
            }
        }
    }

    /// A future of this class, done when every item has ended. Its own value says nothing.
    #[pyo3(signature = (cls))]
    fn whole(&self, py: Python<'_>, cls: &Bound<'_, PyType>) -> PyResult<Py<PyAny>> {
        let (future, slot) = new_future(py, Some(cls))?;
        let origin = Origin {
            executor: self.feed.executor.clone(),
            call: self.feed.call().unwrap_or(CallId(u64::MAX)),
            name: self.feed.state.name(py).into(),
            local: None,
            definition: 0,
            profile: None,
        };
        // No item has this number: the future is not one item's.
        slot.set_origin(Arc::new(origin), u64::MAX);
        self.feed.state.tell_whole(slot);
        Ok(future)
    }

    /// The end through which a thread of the pool's pushes the input.
    fn inlet(&self) -> Inlet {
        Inlet {
            feed: self.feed.clone(),
            hungry: self.hungry.clone(),
            bytes: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
        }
    }
}

impl Drop for PoolMap {
    fn drop(&mut self) {
        // Nobody will take what is to come; it runs all the same.
        self.feed.state.discard();
        self.feed.state.ring_room();
    }
}

/// See the module.
#[pyclass(module = "rightlane._core", frozen)]
#[derive(Debug)]
pub(crate) struct Inlet {
    feed: Arc<Feed>,
    hungry: Arc<AtomicBool>,
    /// How much of what was pushed had to be serialised.
    bytes: AtomicU64,
    waiting: AtomicBool,
}

impl Inlet {
    /// Takes in items. False if nobody needs more.
    fn push(&self, py: Python<'_>, items: &[Bound<'_, PyAny>]) -> PyResult<bool> {
        let feed = &self.feed;
        let when = Some(WhenFull::Ask);
        let mut source = loop {
            if feed.is_exhausted() {
                return Ok(false);
            }
            match feed.take_source() {
                Some(source) => break source,
                // Somebody who waits for a result hands over what was read; that takes a moment, or until there is
                // room.
                None => py.detach(|| feed.let_others_hand_over()),
            }
        };
        let pushed = items
            .iter()
            .try_for_each(|item| source.push(feed, item, when));
        let unflushed = source.has_unflushed();
        let flushed = pushed.and_then(|()| {
            if unflushed > 0 && unflushed * 8 >= feed.state.unended() as usize {
                source.flush(feed, py, when)?;
            }
            Ok(())
        });
        let bytes = source.bytes;
        feed.put_back(source);
        flushed?;
        self.bytes.store(bytes, Ordering::Relaxed);
        if self.hungry.swap(false, Ordering::SeqCst) {
            feed.flush(py, when)?;
        }
        if feed.in_vain.load(Ordering::SeqCst) {
            let error = cancelled_error(py).into_value(py).into_any();
            feed.end(Some(error));
        }
        if feed.is_exhausted() {
            // Cut off meanwhile, when there was no source to drop.
            feed.drop_source();
            return Ok(false);
        }
        Ok(true)
    }

    /// Sleeps until there is room.
    fn wait_for_room(&self, py: Python<'_>) -> PyResult<()> {
        let feed = &self.feed;
        feed.flush(py, Some(WhenFull::Ask))?;
        self.waiting.store(true, Ordering::SeqCst);
        feed.state
            .wait_for_room(py, &feed.executor.engine, || feed.is_exhausted());
        self.waiting.store(false, Ordering::SeqCst);
        Ok(())
    }
}

#[pymethods]
impl Inlet {
    /// Reads `items` in portions of so many, waiting for room where that is needed; or, with `most_bytes`, without
    /// waiting until so much was serialised. False if there may be more.
    ///
    /// What was read of a portion before the input raised is lost, as in the standard pool: had it been passed on,
    /// results would come before the error that the standard pool does not give.
    #[pyo3(signature = (items, portion, most_bytes=None))]
    fn feed(
        &self,
        items: &Bound<'_, PyAny>,
        portion: usize,
        most_bytes: Option<u64>,
    ) -> PyResult<bool> {
        let py = items.py();
        let mut read = Vec::with_capacity(portion.min(MOST_PORTION));
        while most_bytes.is_none_or(|most| self.bytes.load(Ordering::Relaxed) < most) {
            while read.len() < portion
                && let Some(item) = ffi::next(items)?
            {
                read.push(item);
            }
            if read.is_empty() || !self.push(py, &read)? || read.len() < portion {
                return Ok(true);
            }
            read.clear();
            let feed = &self.feed;
            let too_much = || {
                let held = feed.state.holds_too_much(&feed.executor.engine);
                held || feed.read_ahead() >= READ_AHEAD_ITEMS
            };
            if most_bytes.is_none() && too_much() {
                self.wait_for_room(py)?;
            }
        }
        Ok(false)
    }

    /// Whether the thread that feeds waits for room, and not for the input.
    #[getter]
    fn waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) || self.feed.waits_for_room()
    }

    /// From now on the input is read on as items end, whether or not anybody takes them.
    fn lift(&self) {
        self.feed.state.lift();
    }

    /// The input is over: well, or with an exception.
    fn end(&self, py: Python<'_>, error: Option<Py<PyAny>>) -> PyResult<()> {
        let flushed = self.feed.flush(py, Some(WhenFull::Ask));
        match flushed {
            Err(raised) if !raised.is_instance_of::<PyKeyboardInterrupt>(py) => {
                self.feed.end(Some(raised.into_value(py).into_any()));
            }
            other => {
                self.feed.end(error);
                other?;
            }
        }
        Ok(())
    }
}

/// The standard `multiprocessing.TimeoutError`, which is no built-in one.
fn timeout_error(py: Python<'_>) -> PyErr {
    let made = ffi::import(py, c"multiprocessing")
        .and_then(|module| ffi::call_method(&module, "TimeoutError", ()));
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
