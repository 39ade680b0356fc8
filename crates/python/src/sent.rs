//! Large buffers that were sent a moment ago, so that the same bytes are placed once.
//!
//! An array that goes to many tasks need lie in shared memory only once. But it may have changed in between, and a task
//! sees its argument as it was when it was submitted. So what is remembered of a buffer, its address and its length,
//! only tells where to look: it counts as sent if its bytes are those that lie there, every one of them. That takes
//! no longer than a copy, and no memory.
//!
//! Within a *sweep* they are not compared: items of one map that are read one after the other from a list or the like,
//! and pickled without any code of the user's, which alone could change an array in between.

use crate::codec::Part;
use crate::executor::lock;
use crate::ffi::RawBuffer;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyBytes, PyFloat, PyInt, PyIterator, PyList, PyRange, PyString, PyTuple, PyType,
};
use rightlane_runtime::{Arena, Definition, Placement, Span};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// How many buffers are remembered.
const MOST: usize = 64;

/// Held by attached threads only, and while no Python code runs.
static SENT: Mutex<Vec<Sent>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Sent {
    address: usize,
    bytes: usize,
    /// Only while somebody else holds it: no memory is kept for what may never come again.
    span: Weak<Span>,
    /// The sweep in which it was met last.
    sweep: u64,
    /// From the second time in a sweep until its end.
    pinned: Option<Arc<Span>>,
}

/// A stretch of a map's input during which no buffer changes.
#[derive(Debug)]
pub(crate) struct Sweep(u64);

impl Sweep {
    /// If the items of this iterator come without running any code of the user's.
    pub(crate) fn of(iterator: &Bound<'_, PyAny>) -> Option<Sweep> {
        is_steady(iterator).unwrap_or(false).then(Sweep::begin)
    }

    fn begin() -> Sweep {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Sweep(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Its number, by which an item of it is pickled; 0 if that may run code of the user's, which ends it.
    pub(crate) fn number_for(&mut self, item: &Bound<'_, PyAny>) -> u64 {
        if is_plain(item, 2) {
            return self.0;
        }
        *self = Sweep::begin();
        0
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        let pinned: Vec<_> = lock(&SENT)
            .iter_mut()
            .filter(|sent| sent.sweep == self.0)
            .filter_map(|sent| sent.pinned.take())
            .collect();
        drop(pinned);
    }
}

fn is_steady(iterator: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = iterator.py();
    let kind = iterator.get_type();
    let is = |known: PyResult<Bound<'_, PyIterator>>| {
        known.is_ok_and(|known| known.get_type().is(&kind))
    };
    if is(PyList::empty(py).try_iter())
        || is(PyTuple::empty(py).try_iter())
        || is(PyRange::new(py, 0, 0).and_then(|range| range.try_iter()))
    {
        return Ok(true);
    }
    let is_named = |module: &str, name: &str| -> PyResult<bool> {
        Ok(kind.is(&py.import(module)?.getattr(name)?))
    };
    if is_named("itertools", "repeat")? {
        return Ok(true);
    }
    if !is_named("builtins", "zip")? {
        return Ok(false);
    }
    let (_, parts): (Bound<'_, PyAny>, Bound<'_, PyTuple>) =
        iterator.call_method0("__reduce__")?.extract()?;
    for part in parts {
        if part.get_type().is(&kind) || !is_steady(&part)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether pickling it runs no code but that of Python and NumPy.
fn is_plain(value: &Bound<'_, PyAny>, depth: u32) -> bool {
    if let Ok(parts) = value.cast_exact::<PyTuple>() {
        return depth > 0 && parts.iter_borrowed().all(|part| is_plain(&part, depth - 1));
    }
    value.is_none()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyBytes>()
        || value.is_exact_instance_of::<PyBool>()
        || is_array(value).unwrap_or(false)
}

/// Whether it is an array of NumPy's, and not one of objects.
fn is_array(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let modules = value.py().import("sys")?.getattr("modules")?;
    let Ok(numpy) = modules.get_item("numpy") else {
        return Ok(false);
    };
    let kind = numpy.getattr("ndarray")?.cast_into::<PyType>()?;
    let of_objects = || {
        value
            .getattr("dtype")?
            .getattr("hasobject")?
            .extract::<bool>()
    };
    Ok(value.get_type().is(&kind) && !of_objects()?)
}

/// Where these bytes lie, sent before or now; None where there is no room.
pub(crate) fn place(
    py: Python<'_>,
    buffer: &RawBuffer<'_>,
    arena: &Arc<Arena>,
    sweep: u64,
) -> Option<Arc<Span>> {
    let (address, bytes) = (buffer.address(), buffer.bytes());
    let known = lock(&SENT)
        .iter()
        .rev()
        .find(|sent| sent.address == address && sent.bytes == bytes)
        .and_then(|sent| Some((sent.span.upgrade()?, sent.sweep)));
    if let Some((span, last)) = known
        && span.is_of(arena)
    {
        let swept = sweep > 0 && last == sweep;
        if swept || buffer.equals(py, &span) {
            remember(address, bytes, &span, sweep, swept);
            return Some(span);
        }
    }
    let span = Arc::new(arena.reserve(bytes)?);
    buffer.copy(py, &span);
    remember(address, bytes, &span, sweep, false);
    Some(span)
}

fn remember(address: usize, bytes: usize, span: &Arc<Span>, sweep: u64, pin: bool) {
    let mut all = lock(&SENT);
    let at = all
        .iter()
        .rposition(|sent| sent.address == address && sent.bytes == bytes);
    let before = match at {
        Some(at) => Some(all.remove(at)),
        None if all.len() == MOST => Some(all.remove(0)),
        None => None,
    };
    all.push(Sent {
        address,
        bytes,
        span: Arc::downgrade(span),
        sweep,
        pinned: pin.then(|| span.clone()),
    });
    drop(all);
    drop(before);
}

/// The definition by which functions name this buffer.
pub(crate) fn definition(part: &Part) -> Arc<Definition> {
    static NAMED: Mutex<Vec<Named>> = Mutex::new(Vec::new());
    let known = lock(&NAMED).iter().find_map(|named| {
        let same =
            named.placement == part.placement && named.span.as_ptr() == Arc::as_ptr(&part.span);
        same.then(|| named.definition.upgrade()).flatten()
    });
    if let Some(known) = known {
        return known;
    }
    let made = Definition::reserve();
    let bytes = [&b"B"[..], &part.placement.to_bytes()].concat();
    made.fill(&bytes, Vec::new(), Some(part.span.clone()));
    let mut all = lock(&NAMED);
    all.retain(|named| named.definition.strong_count() > 0);
    all.push(Named {
        span: Arc::downgrade(&part.span),
        placement: part.placement,
        definition: Arc::downgrade(&made),
    });
    drop(all);
    made
}

#[derive(Debug)]
struct Named {
    span: Weak<Span>,
    placement: Placement,
    definition: Weak<Definition>,
}

/// In a forked child, where no worker sees what its parent has placed.
pub(crate) fn forked_child() {
    let forgotten = std::mem::take(&mut *lock(&SENT));
    drop(forgotten);
}
