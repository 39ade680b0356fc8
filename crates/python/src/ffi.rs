//! Calls into Python from which the calling thread may never come back. The one file of the binding with `unsafe`.
//!
//! While the interpreter ends, up to Python 3.13, a daemon thread that asks for the interpreter's lock is ended on
//! the spot, by an unwinding that no Rust frame may stop or take part in: it would abort the process. Python code
//! asks for that lock every few milliseconds, so whatever of ours runs Python code of unknown length in a thread
//! of the user's calls it through here: the frame below Python's stops the unwinding by sleeping for ever, which
//! is what Python 3.14 does by itself.
//!
//! Also what Python's buffers and shared memory have to do with each other: copies into the arena, and views of it.

#![allow(unsafe_code, reason = "see the module")]

use pyo3::buffer::{PyBuffer, PyUntypedBuffer};
use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMemoryView, PyString, PyTuple, PyType};
use rightlane_runtime::borrowed::View;
use rightlane_runtime::homes::Home;
use rightlane_runtime::{Fruit, Span};
use std::ffi::{CStr, c_char, c_int};
use std::ptr::NonNull;
use std::sync::Arc;

type Call =
    unsafe extern "C-unwind" fn(*mut PyObject, *mut PyObject, *mut PyObject) -> *mut PyObject;
type Import = unsafe extern "C-unwind" fn(*const c_char) -> *mut PyObject;
type Next = unsafe extern "C-unwind" fn(*mut PyObject) -> *mut PyObject;

/// `PyObject_Call`, as a function that may unwind.
fn object_call() -> Call {
    // SAFETY: the two types differ only in whether the function may unwind, and this one may, whatever its
    // declaration says: therefore `black_box`, or the optimiser would go by the declaration.
    unsafe { std::mem::transmute(std::hint::black_box(pyo3::ffi::PyObject_Call as *const ())) }
}

/// `PyIter_Next`, as a function that may unwind.
fn iter_next() -> Next {
    // SAFETY: as above.
    unsafe { std::mem::transmute(std::hint::black_box(pyo3::ffi::PyIter_Next as *const ())) }
}

/// Dropped only by an unwinding.
struct Stay;

impl Drop for Stay {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// `callable(*args, **kwargs)`.
pub(crate) fn call<'py>(
    callable: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let kwargs = kwargs.map_or(std::ptr::null_mut(), Bound::as_ptr);
    let stay = Stay;
    // SAFETY: the thread is attached, as the `Bound`s prove, and these keep callable, tuple and dict alive during
    // the call. The answer is a new reference, or null with an exception set.
    let answer = unsafe { object_call()(callable.as_ptr(), args.as_ptr(), kwargs) };
    std::mem::forget(stay);
    // SAFETY: see above.
    unsafe { Bound::from_owned_ptr_or_err(callable.py(), answer) }
}

type CallObjArgs = unsafe extern "C-unwind" fn(*mut PyObject, ...) -> *mut PyObject;

/// `callable(argument)`, without a tuple.
pub(crate) fn call_one<'py>(
    callable: &Bound<'py, PyAny>,
    argument: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: as in `object_call`.
    let call: CallObjArgs = unsafe {
        std::mem::transmute(std::hint::black_box(
            pyo3::ffi::PyObject_CallFunctionObjArgs as *const (),
        ))
    };
    let end = std::ptr::null_mut::<PyObject>();
    let stay = Stay;
    // SAFETY: the thread is attached and the `Bound`s keep both objects alive; a null pointer ends the arguments.
    let answer = unsafe { call(callable.as_ptr(), argument.as_ptr(), end) };
    std::mem::forget(stay);
    // SAFETY: the answer is a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(callable.py(), answer) }
}

/// A Rust tuple of arguments.
pub(crate) trait Args<'py>:
    IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>>
{
}

impl<'py, T: IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>>> Args<'py> for T {}

/// `callable(*args)`.
pub(crate) fn call1<'py>(
    callable: &Bound<'py, PyAny>,
    args: impl Args<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let args = args.into_pyobject(callable.py()).map_err(Into::into)?;
    call(callable, &args, None)
}

/// `object.name(*args)`.
pub(crate) fn call_method<'py>(
    object: &Bound<'py, PyAny>,
    name: &str,
    args: impl Args<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    call1(&object.getattr(PyString::intern(object.py(), name))?, args)
}

/// `import name`.
pub(crate) fn import<'py>(py: Python<'py>, name: &CStr) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: as in `object_call`.
    let import: Import = unsafe {
        std::mem::transmute(std::hint::black_box(
            pyo3::ffi::PyImport_ImportModule as *const (),
        ))
    };
    let stay = Stay;
    // SAFETY: the thread is attached and the name ends with a zero. The answer is a new reference, or null with an
    // exception set.
    let module = unsafe { import(name.as_ptr()) };
    std::mem::forget(stay);
    // SAFETY: see above.
    unsafe { Bound::from_owned_ptr_or_err(py, module) }
}

/// A new instance, without `__init__`: what `class.__new__(class)` gives, at a fifth of the cost.
pub(crate) fn new_object<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyAny>> {
    let py = class.py();
    // SAFETY: the class is alive; every class has the slot, and what it holds is a `newfunc`, which takes a type,
    // a tuple and a dict or null, and returns a new reference, or null with an exception set.
    unsafe {
        let slot = pyo3::ffi::PyType_GetSlot(class.as_type_ptr(), pyo3::ffi::Py_tp_new);
        if slot.is_null() {
            return Err(crate::raw::bug("a class without __new__"));
        }
        let new: pyo3::ffi::newfunc = std::mem::transmute(slot);
        let made = new(
            class.as_type_ptr(),
            PyTuple::empty(py).as_ptr(),
            std::ptr::null_mut(),
        );
        Bound::from_owned_ptr_or_err(py, made)
    }
}

/// Takes a new object out of the garbage collector's lists. Only for one whose class takes part in collection,
/// that is in the lists, and that refers to nothing that could refer to it.
pub(crate) fn untrack(object: &Bound<'_, PyAny>) {
    // SAFETY: the object is alive, of such a class, and we hold the interpreter's lock.
    unsafe { pyo3::ffi::PyObject_GC_UnTrack(object.as_ptr().cast()) }
}

/// Puts back what [`untrack`] took out, unless somebody has.
pub(crate) fn track(object: &Bound<'_, PyAny>) {
    // SAFETY: as above, and the object is complete: traversing it finds valid references.
    unsafe {
        if pyo3::ffi::PyObject_GC_IsTracked(object.as_ptr()) == 0 {
            pyo3::ffi::PyObject_GC_Track(object.as_ptr().cast());
        }
    }
}

/// Whether an object could be part of a cycle.
pub(crate) fn may_have_cycles(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: the class is alive.
    let flags = unsafe { pyo3::ffi::PyType_GetFlags(object.get_type_ptr()) };
    flags & pyo3::ffi::Py_TPFLAGS_HAVE_GC != 0
}

/// `object.name = value` (or `del object.name`), as every plain object does it.
pub(crate) fn set_attribute(
    object: &Bound<'_, PyAny>,
    name: &Bound<'_, PyAny>,
    value: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let value = value.map_or(std::ptr::null_mut(), Bound::as_ptr);
    // SAFETY: all three are alive; the answer is zero, or -1 with an exception set.
    let failed =
        unsafe { pyo3::ffi::PyObject_GenericSetAttr(object.as_ptr(), name.as_ptr(), value) };
    if failed == 0 {
        Ok(())
    } else {
        Err(PyErr::fetch(object.py()))
    }
}

/// The next item of an iterator.
pub(crate) fn next<'py>(iterator: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = iterator.py();
    let stay = Stay;
    // SAFETY: the thread is attached and the `Bound` keeps the object alive; callers pass what `iter()` returned.
    // The answer is a new reference, or null: with an exception set, or without one at the end.
    let item = unsafe { iter_next()(iterator.as_ptr()) };
    std::mem::forget(stay);
    if item.is_null() {
        return PyErr::take(py).map_or(Ok(None), Err);
    }
    // SAFETY: see above.
    Ok(Some(unsafe { Bound::from_owned_ptr(py, item) }))
}

/// Copies of this size are made without the interpreter's lock.
const LONG_COPY_BYTES: usize = 1024 * 1024;

/// Copies bytes into a span of their length.
pub(crate) fn fill(py: Python<'_>, span: &Span, bytes: &[u8]) {
    assert_eq!(bytes.len(), span.bytes());
    // SAFETY: the bytes stay as they are while they are borrowed, and the span is as long.
    unsafe { copy(py, bytes.as_ptr(), span) };
}

/// How much memory lies behind an array or another buffer, or behind those that a tuple holds; 0 for other objects.
pub(crate) fn buffer_bytes(object: &Bound<'_, PyAny>) -> u64 {
    if let Ok(tuple) = object.cast_exact::<PyTuple>() {
        return tuple.iter_borrowed().map(|item| one_buffer(&item)).sum();
    }
    one_buffer(object)
}

fn one_buffer(object: &Bound<'_, PyAny>) -> u64 {
    // SAFETY: the object is one; nothing but its type is looked at.
    if unsafe { pyo3::ffi::PyObject_CheckBuffer(object.as_ptr()) } == 0 {
        return 0;
    }
    PyUntypedBuffer::get(object).map_or(0, |memory| memory.len_bytes() as u64)
}

/// The memory behind a `PickleBuffer`, if it is contiguous, kept in its place.
pub(crate) struct RawBuffer<'py> {
    memory: PyBuffer<u8>,
    _object: Bound<'py, PyAny>,
}

/// Whether nobody but the one who holds this holds the object.
pub(crate) fn is_held_once(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: the object is alive, and this thread is attached.
    unsafe { pyo3::ffi::Py_REFCNT(object.as_ptr()) == 1 }
}

impl<'py> RawBuffer<'py> {
    /// One that is not contiguous cannot travel beside a pickle; the pickler says so.
    pub(crate) fn of(buffer: &Bound<'py, PyAny>) -> Option<RawBuffer<'py>> {
        let raw = buffer
            .call_method0(PyString::intern(buffer.py(), "raw"))
            .ok()?;
        let memory = PyBuffer::<u8>::get(&raw).ok()?;
        Some(RawBuffer {
            memory,
            _object: raw,
        })
    }

    /// Of bytes.
    pub(crate) fn of_bytes(bytes: &Bound<'py, PyAny>) -> Option<RawBuffer<'py>> {
        let memory = PyBuffer::<u8>::get(bytes).ok()?;
        Some(RawBuffer {
            memory,
            _object: bytes.clone(),
        })
    }

    pub(crate) fn address(&self) -> usize {
        self.memory.buf_ptr() as usize
    }

    pub(crate) fn bytes(&self) -> usize {
        self.memory.len_bytes()
    }

    /// Copies it into a span of its length. Other threads of the user's may write to the buffer meanwhile, as they
    /// may whenever an array is copied: the copy has the old or the new bytes then.
    pub(crate) fn copy(&self, py: Python<'_>, span: &Span) {
        debug_assert_eq!(self.bytes(), span.bytes());
        // SAFETY: the buffer is contiguous, kept while this is borrowed, and as long as the span.
        unsafe { copy(py, self.memory.buf_ptr().cast(), span) };
    }

    /// Whether its bytes are those of the span.
    pub(crate) fn equals(&self, py: Python<'_>, span: &Span) -> bool {
        if self.bytes() != span.bytes() {
            return false;
        }
        let addresses = Addresses {
            from: self.memory.buf_ptr().cast(),
            to: span.pointer().as_ptr(),
            bytes: span.bytes(),
        };
        let go = move || {
            let Addresses { from, to, bytes } = { addresses };
            // SAFETY: both are as long, and kept until this returns. The C function may meet bytes that another
            // thread is writing: then the answer is that of before or after.
            unsafe { libc::memcmp(from.cast(), to.cast(), bytes) == 0 }
        };
        without_lock(py, span.bytes(), go)
    }
}

struct Addresses {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
}

// SAFETY: they are only used by whoever made them, who waits meanwhile.
unsafe impl Send for Addresses {}

/// Does something with so many bytes, without the interpreter's lock where that takes long.
fn without_lock<T: Send>(py: Python<'_>, bytes: usize, go: impl FnOnce() -> T + Send) -> T {
    if bytes < LONG_COPY_BYTES {
        return go();
    }
    let stay = Stay;
    let done = py.detach(go);
    std::mem::forget(stay);
    done
}

/// # Safety
/// From `source` on there are as many bytes as the span has, until this returns.
unsafe fn copy(py: Python<'_>, source: *const u8, span: &Span) {
    let addresses = Addresses {
        from: source,
        to: span.pointer().as_ptr(),
        bytes: span.bytes(),
    };
    let go = move || {
        let Addresses { from, to, bytes } = { addresses };
        // SAFETY: the caller vouches for the source; the span is ours alone and as long; shared memory that was just
        // given out is nobody's source.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    };
    without_lock(py, span.bytes(), go);
}

/// Shared memory, kept as long as somebody reads it.
#[derive(Debug)]
pub(crate) enum Memory {
    Argument(View),
    Result(Arc<Fruit>),
    Home(Arc<Home>),
}

impl From<Arc<Home>> for Memory {
    fn from(home: Arc<Home>) -> Memory {
        Memory::Home(home)
    }
}

impl From<View> for Memory {
    fn from(view: View) -> Memory {
        Memory::Argument(view)
    }
}

impl From<Arc<Fruit>> for Memory {
    fn from(fruit: Arc<Fruit>) -> Memory {
        Memory::Result(fruit)
    }
}

/// A large buffer as Python sees it: writable bytes.
#[pyclass(frozen, module = "rightlane._core")]
#[derive(Debug)]
pub(crate) struct SharedBuffer {
    memory: Memory,
}

impl SharedBuffer {
    /// A `memoryview` of this memory, in bytes.
    pub(crate) fn over<'py>(
        py: Python<'py>,
        memory: impl Into<Memory>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let memory = memory.into();
        let buffer = Bound::new(py, SharedBuffer { memory })?;
        Ok(PyMemoryView::from(&buffer)?.into_any())
    }

    fn place(&self) -> (NonNull<u8>, usize) {
        match &self.memory {
            Memory::Argument(view) => (view.pointer(), view.bytes()),
            Memory::Result(fruit) => (fruit.pointer(), fruit.bytes()),
            Memory::Home(home) => (home.pointer(), home.bytes()),
        }
    }
}

#[pymethods]
impl SharedBuffer {
    fn __len__(&self) -> usize {
        self.place().1
    }

    /// # Safety
    /// As for every `bf_getbuffer`: `view` is where to write.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut pyo3::ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let (start, bytes) = slf.get().place();
        // SAFETY: the object, to which the view holds a reference, keeps the memory at its place. It is written to
        // by nobody but who has a buffer of it.
        let failed = unsafe {
            pyo3::ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                start.as_ptr().cast(),
                bytes as isize,
                0,
                flags,
            )
        };
        if failed == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}
