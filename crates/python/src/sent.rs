//! Large buffers that were sent a moment ago, so that the same bytes are placed once.
//!
//! An array that goes to many tasks need lie in shared memory only once. But it may have changed in between, and a task
//! sees its argument as it was when it was submitted. So what is remembered of a buffer, its address and its length,
//! only tells where to look: it counts as sent if its bytes are those that lie there, every one of them. That takes
//! no longer than a copy, and no memory.
//!
//! Within a *sweep* they are not compared: arrays among the items of one map that are read one after the other from a
//! list or the like, and pickled without any code of the user's. Only such code could change an array in between, but for
//! other threads and signal handlers, which the caller of a map has to keep from its items.

use crate::codec::{self, Part};
use crate::executor::lock;
use crate::ffi::{self, RawBuffer};
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyBytes, PyDict, PyFloat, PyInt, PyIterator, PyList, PyRange, PyString, PyTuple, PyType,
};
use rightlane_runtime::{Arena, Definition, Placement, Span};
use std::ffi::CStr;
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
}

/// A stretch of a map's input during which no array changes. Bytes never do.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// NumPy's class of arrays, if there may be any.
    arrays: Option<Py<PyType>>,
    inner: Mutex<Swept>,
}

#[derive(Debug, Default)]
struct Swept {
    /// The arrays of the item that is being pickled.
    present: Vec<Py<PyAny>>,
    /// Arrays that were placed in this sweep, alive, so that nothing else takes their place.
    placed: Vec<(Py<PyAny>, usize, usize, Arc<Span>)>,
}

/// How many arrays are remembered for a sweep.
const MOST_SWEPT: usize = 16;

impl Sweep {
    /// If the items of this iterator come without running any code of the user's.
    pub(crate) fn of(iterator: &Bound<'_, PyAny>) -> Option<Arc<Sweep>> {
        let arrays = class_of_arrays(iterator.py()).ok().flatten();
        is_steady(iterator).unwrap_or(false).then(|| {
            Arc::new(Sweep {
                arrays: arrays.map(Bound::unbind),
                inner: Mutex::default(),
            })
        })
    }

    /// The next item is this one. False if pickling it may run code of the user's: then nothing counts that was before.
    pub(crate) fn turn_to(&self, item: &Bound<'_, PyAny>) -> bool {
        let mut present = Vec::new();
        let plain = self.is_plain(item, 2, &mut present);
        if !plain {
            present.clear();
        }
        let old = {
            let mut inner = lock(&self.inner);
            let placed = if plain {
                Vec::new()
            } else {
                std::mem::take(&mut inner.placed)
            };
            (std::mem::replace(&mut inner.present, present), placed)
        };
        drop(old);
        plain
    }

    /// Whether pickling it runs no code but that of Python and NumPy.
    fn is_plain(&self, value: &Bound<'_, PyAny>, depth: u32, found: &mut Vec<Py<PyAny>>) -> bool {
        if let Ok(parts) = value.cast_exact::<PyTuple>() {
            let mut parts = parts.iter_borrowed();
            return depth > 0 && parts.all(|part| self.is_plain(&part, depth - 1, found));
        }
        if codec::is_large_bytes(value) {
            found.push(value.clone().unbind());
            return true;
        }
        let arrays = self.arrays.as_ref().map(|arrays| arrays.bind(value.py()));
        if arrays.is_some_and(|arrays| value.get_type().is(arrays)) {
            found.push(value.clone().unbind());
            return is_plain_array(value).unwrap_or(false);
        }
        value.is_none()
            || value.is_exact_instance_of::<PyInt>()
            || value.is_exact_instance_of::<PyFloat>()
            || value.is_exact_instance_of::<PyString>()
            || value.is_exact_instance_of::<PyBytes>()
            || value.is_exact_instance_of::<PyBool>()
    }

    /// What was placed may have changed since.
    pub(crate) fn forget(&self) {
        let old = std::mem::take(&mut *lock(&self.inner));
        drop(old);
    }

    /// Where an array of the present item lies, which was placed before.
    fn find(&self, address: usize, bytes: usize) -> Option<Arc<Span>> {
        let inner = lock(&self.inner);
        let (_, _, _, span) = inner.placed.iter().find(|(array, at, len, _)| {
            (*at, *len) == (address, bytes) && inner.present.iter().any(|one| one.is(array))
        })?;
        Some(span.clone())
    }

    /// These bytes have been placed there.
    fn remember(&self, py: Python<'_>, address: usize, bytes: usize, span: &Arc<Span>) {
        let present: Vec<_> = lock(&self.inner)
            .present
            .iter()
            .map(|array| array.clone_ref(py))
            .collect();
        // Of an array whose memory that is not, nothing is known.
        let own = present
            .into_iter()
            .find(|array| address_of(array.bind(py)).is_ok_and(|found| found == address));
        let Some(own) = own else { return };
        let dropped = {
            let mut inner = lock(&self.inner);
            let full = inner.placed.len() == MOST_SWEPT;
            let dropped = full.then(|| inner.placed.remove(0));
            inner.placed.push((own, address, bytes, span.clone()));
            dropped
        };
        drop(dropped);
    }
}

/// NumPy's class of arrays, if anybody has imported it and they are pickled as NumPy has it.
fn class_of_arrays(py: Python<'_>) -> PyResult<Option<Bound<'_, PyType>>> {
    let modules = ffi::import(py, c"sys")?.getattr("modules")?;
    let Ok(numpy) = modules.get_item("numpy") else {
        return Ok(None);
    };
    let arrays = numpy.getattr("ndarray")?.cast_into::<PyType>()?;
    let table = ffi::import(py, c"copyreg")?.getattr("dispatch_table")?;
    let usual = !table.cast_into::<PyDict>()?.contains(&arrays)?;
    Ok(usual.then_some(arrays))
}

/// Whether an array's elements are plain, too.
fn is_plain_array(array: &Bound<'_, PyAny>) -> PyResult<bool> {
    let dtype = array.getattr("dtype")?;
    let has = |name: &str| Ok::<_, PyErr>(!dtype.getattr(name)?.is_none());
    let of_objects: bool = dtype.getattr("hasobject")?.extract()?;
    Ok(!of_objects && !has("metadata")? && !has("fields")? && !has("subdtype")?)
}

/// Whether it is an array of NumPy's whose memory is its own, and holds no objects.
pub(crate) fn is_array_of_its_own(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    let arrays = class_of_arrays(value.py())?;
    if !arrays.is_some_and(|arrays| value.get_type().is(&arrays)) {
        return Ok(false);
    }
    let of_objects: bool = value.getattr("dtype")?.getattr("hasobject")?.extract()?;
    let own: bool = value.getattr("flags")?.getattr("owndata")?.extract()?;
    Ok(own && !of_objects && value.getattr("base")?.is_none())
}

fn address_of(array: &Bound<'_, PyAny>) -> PyResult<usize> {
    if let Ok(bytes) = array.cast_exact::<PyBytes>() {
        return Ok(bytes.as_bytes().as_ptr() as usize);
    }
    let interface = array.getattr("__array_interface__")?;
    let (address, _): (usize, bool) = interface.get_item("data")?.extract()?;
    Ok(address)
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
    let is_named = |module: &CStr, name: &str| -> PyResult<bool> {
        Ok(kind.is(&ffi::import(py, module)?.getattr(name)?))
    };
    if is_named(c"itertools", "repeat")? {
        return Ok(true);
    }
    if !is_named(c"builtins", "zip")? {
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

/// Where these bytes lie, sent before or now; None where there is no room.
pub(crate) fn place(
    py: Python<'_>,
    buffer: &RawBuffer<'_>,
    arena: &Arc<Arena>,
    sweep: Option<&Sweep>,
    reserve: impl FnOnce() -> PyResult<Option<Span>>,
) -> PyResult<Option<Part>> {
    let (address, bytes) = (buffer.address(), buffer.bytes());
    if let Some(span) = sweep.and_then(|sweep| sweep.find(address, bytes)) {
        return Ok(Some(Part::whole(span, false)));
    }
    let known = lock(&SENT)
        .iter()
        .rev()
        .find(|sent| sent.address == address && sent.bytes == bytes)
        .and_then(|sent| sent.span.upgrade());
    let known = known.filter(|span| span.is_of(arena) && buffer.equals(py, span));
    let new = known.is_none();
    let span = match known {
        Some(span) => span,
        None => {
            let Some(span) = reserve()? else {
                return Ok(None);
            };
            let span = Arc::new(span);
            buffer.copy(py, &span);
            remember(address, bytes, &span);
            span
        }
    };
    if let Some(sweep) = sweep {
        sweep.remember(py, address, bytes, &span);
    }
    Ok(Some(Part::whole(span, new)))
}

fn remember(address: usize, bytes: usize, span: &Arc<Span>) {
    let mut all = lock(&SENT);
    let known = all
        .iter()
        .position(|sent| sent.address == address && sent.bytes == bytes);
    match known {
        Some(at) => drop(all.remove(at)),
        None if all.len() == MOST => drop(all.remove(0)),
        None => {}
    }
    all.push(Sent {
        address,
        bytes,
        span: Arc::downgrade(span),
    });
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
