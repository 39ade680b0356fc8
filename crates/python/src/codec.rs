//! How Python values travel: exact scalars, short strings and tuples of them in a form of our own, everything
//! else as CPython's pickle.
//!
//! Exact types only: a subclass has a meaning that only its own pickling knows. Strings that no UTF-8 can
//! hold (lone surrogates) and integers beyond 64 bits are left to the pickler as well.

use crate::cached::Cached;
use crate::ffi;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyString, PyTuple};

pub(crate) const NONE: u8 = b'N';
const TRUE: u8 = b'T';
const FALSE: u8 = b'F';
const INT: u8 = b'i';
/// An integer of 32 bits.
const SHORT: u8 = b'j';
const FLOAT: u8 = b'd';
const STR: u8 = b's';
const BYTES: u8 = b'b';
const TUPLE: u8 = b't';
/// The rest is a pickle.
pub(crate) const PICKLE: u8 = b'P';

/// Longer strings and bytes gain nothing from passing the pickler by.
const MOST_STR_BYTES: usize = 4 * 1024;
const MOST_BYTES: usize = 64 * 1024;
/// Deeper or longer tuples are the pickler's business: it remembers what it has seen.
const MOST_TUPLE_ITEMS: usize = 64;
const MOST_DEPTH: u32 = 4;

/// Appends the value if it is one that we encode ourselves; leaves `out` as it was if not.
pub(crate) fn encode_scalar(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    let mark = out.len();
    let done = scalar(value, out, 0);
    if !done {
        out.truncate(mark);
    }
    done
}

fn scalar(value: &Bound<'_, PyAny>, out: &mut Vec<u8>, depth: u32) -> bool {
    if value.is_none() {
        out.push(NONE);
    } else if let Ok(value) = value.cast_exact::<PyInt>() {
        let Ok(number) = value.extract::<i64>() else {
            return false;
        };
        match i32::try_from(number) {
            Ok(number) => {
                let [a, b, c, d] = number.to_le_bytes();
                out.extend_from_slice(&[SHORT, a, b, c, d]);
            }
            Err(_) => {
                out.push(INT);
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
    } else if let Ok(value) = value.cast_exact::<PyBool>() {
        out.push(if value.is_true() { TRUE } else { FALSE });
    } else if let Ok(value) = value.cast_exact::<PyString>() {
        let Ok(text) = value.to_cow() else {
            return false;
        };
        if text.len() > MOST_STR_BYTES {
            return false;
        }
        out.push(STR);
        sized(text.as_bytes(), out);
    } else if let Ok(value) = value.cast_exact::<PyFloat>() {
        out.push(FLOAT);
        out.extend_from_slice(&value.value().to_le_bytes());
    } else if let Ok(value) = value.cast_exact::<PyTuple>() {
        if depth == MOST_DEPTH || value.len() > MOST_TUPLE_ITEMS {
            return false;
        }
        out.push(TUPLE);
        out.push(value.len() as u8);
        return value
            .iter_borrowed()
            .all(|item| scalar(&item, out, depth + 1));
    } else if let Ok(value) = value.cast_exact::<PyBytes>() {
        if value.as_bytes().len() > MOST_BYTES {
            return false;
        }
        out.push(BYTES);
        sized(value.as_bytes(), out);
    } else {
        return false;
    }
    true
}

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads a value back: one of ours, or a pickle.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if let Some((&PICKLE, pickle)) = bytes.split_first() {
        return unpickle(py, pickle);
    }
    let mut rest = bytes;
    let value = read(py, &mut rest, 0)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(garbled())
    }
}

fn read<'py>(py: Python<'py>, rest: &mut &[u8], depth: u32) -> PyResult<Bound<'py, PyAny>> {
    let [tag] = take::<1>(rest)?;
    Ok(match tag {
        NONE => py.None().into_bound(py),
        TRUE => PyBool::new(py, true).to_owned().into_any(),
        FALSE => PyBool::new(py, false).to_owned().into_any(),
        SHORT => i32::from_le_bytes(take(rest)?)
            .into_pyobject(py)?
            .into_any(),
        INT => i64::from_le_bytes(take(rest)?)
            .into_pyobject(py)?
            .into_any(),
        FLOAT => PyFloat::new(py, f64::from_le_bytes(take(rest)?)).into_any(),
        STR => {
            let text = std::str::from_utf8(run(rest)?).map_err(|_| garbled())?;
            PyString::new(py, text).into_any()
        }
        BYTES => PyBytes::new(py, run(rest)?).into_any(),
        TUPLE if depth < MOST_DEPTH => {
            let [len] = take::<1>(rest)?;
            let items = (0..len)
                .map(|_| read(py, rest, depth + 1))
                .collect::<PyResult<Vec<_>>>()?;
            PyTuple::new(py, items)?.into_any()
        }
        _ => return Err(garbled()),
    })
}

/// Whether reading this value makes one object that refers to no other: that runs no code of anybody's.
pub(crate) fn is_atom(bytes: &[u8]) -> bool {
    bytes
        .first()
        .is_some_and(|tag| !matches!(*tag, TUPLE | PICKLE))
}

fn take<const N: usize>(rest: &mut &[u8]) -> PyResult<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(garbled)?;
    *rest = tail;
    Ok(*head)
}

fn run<'a>(rest: &mut &'a [u8]) -> PyResult<&'a [u8]> {
    let len = u32::from_le_bytes(take(rest)?) as usize;
    let (head, tail) = rest.split_at_checked(len).ok_or_else(garbled)?;
    *rest = tail;
    Ok(head)
}

fn garbled() -> PyErr {
    PyValueError::new_err("a message between processes is garbled")
}

/// CPython's own pickler, protocol 5.
pub(crate) fn plain_pickle<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    static DUMPS: Cached = Cached::new(c"_pickle", "dumps");
    Ok(ffi::call1(DUMPS.get(value.py())?, (value, 5))?.cast_into::<PyBytes>()?)
}

fn unpickle<'py>(py: Python<'py>, pickle: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: Cached = Cached::new(c"_pickle", "loads");
    // A view would do, but the limited API before 3.11 has none over foreign memory, and the pickler copies
    // what it keeps: for large pickles this is one more copy, until they travel out of band.
    ffi::call1(LOADS.get(py)?, (PyBytes::new(py, pickle),))
}

/// Whether a pickle may name something of `__main__`, which is another module in a worker.
pub(crate) fn mentions_main(pickle: &[u8]) -> bool {
    memchr::memmem::find(pickle, b"__main__").is_some()
}

/// Pickles `(args, kwargs)` of one call.
pub(crate) fn call_payload<'py>(
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = args.py();
    let kwargs = match kwargs {
        Some(kwargs) => kwargs.clone().into_any(),
        None => py.None().into_bound(py),
    };
    Ok((args, kwargs).into_pyobject(py)?.into_any())
}
