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
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use std::ffi::{CStr, c_char};

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
