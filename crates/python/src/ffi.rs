//! Calls into Python from which the calling thread may never come back. The one file of the binding with `unsafe`.
//!
//! While the interpreter ends, up to Python 3.13, a daemon thread that asks for the interpreter's lock is ended on
//! the spot, by an unwinding that no Rust frame may stop or take part in: it would abort the process. Python code
//! asks for that lock every few milliseconds, so whatever of ours runs Python code of unknown length in a thread
//! of the user's calls it through here: the frame below Python's stops the unwinding by sleeping for ever, which
//! is what Python 3.14 does by itself.

#![allow(unsafe_code, reason = "see the module")]

use pyo3::ffi::PyObject;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

type Call =
    unsafe extern "C-unwind" fn(*mut PyObject, *mut PyObject, *mut PyObject) -> *mut PyObject;
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
