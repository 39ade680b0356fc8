//! The end of an item as the engine delivers it: bytes that nobody has unpickled yet.

use crate::codec;
use crate::ffi;
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;
use rightlane_runtime::arena::LARGE_BYTES;
use rightlane_runtime::{AnswerBytes, Breakage, End, Exit, Fruit, Loss};
use std::sync::Arc;

/// What the flavor of an answer says; written by the worker half, read by the engine half.
pub(crate) mod flavor {
    /// The function returned; a value.
    pub(crate) const RETURNED: u8 = 0;
    /// The function raised; packed by `rightlane._remote`.
    pub(crate) const RAISED: u8 = 1;
    /// Something could not be pickled; a tuple of message and path.
    pub(crate) const UNSENDABLE: u8 = 2;
    /// The function or its arguments could not be unpickled; a tuple of message and path.
    pub(crate) const UNREADABLE: u8 = 3;
}

#[derive(Debug)]
pub(crate) struct Large {
    bytes: Vec<u8>,
    skip: usize,
    /// Large buffers, in shared memory.
    fruits: Vec<Arc<Fruit>>,
}

/// How many bytes of an answer are kept in place.
const SHORT_BYTES: usize = 13;

/// How an item ended. Sixteen bytes, because every pending future has room for one.
#[derive(Debug)]
pub(crate) enum Raw {
    /// An answer of few bytes.
    Short {
        flavor: u8,
        len: u8,
        bytes: [u8; SHORT_BYTES],
    },
    /// An answer of more.
    Long {
        flavor: u8,
        bytes: Box<Large>,
    },
    Cancelled,
    Lost(Box<Loss>),
    Broken(Box<Breakage>),
}

const _: () = assert!(size_of::<Raw>() == 16);

impl Raw {
    pub(crate) fn new(end: End<'_>) -> Raw {
        match end {
            End::Answer { flavor, bytes } => Raw::of(flavor, bytes),
            End::Cancelled => Raw::Cancelled,
            End::Lost(loss) => Raw::Lost(Box::new(loss)),
            End::Broken(breakage) => Raw::Broken(Box::new(breakage)),
        }
    }

    fn of(flavor: u8, mut answer: AnswerBytes<'_>) -> Raw {
        let fruits = answer.take_fruits();
        if fruits.is_empty()
            && let Some(short) = Raw::short(flavor, answer.as_slice())
        {
            return short;
        }
        let (bytes, skip) = answer.into_owned();
        let bytes = Box::new(Large {
            bytes,
            skip,
            fruits,
        });
        Raw::Long { flavor, bytes }
    }

    fn short(flavor: u8, answer: &[u8]) -> Option<Raw> {
        let mut bytes = [0; SHORT_BYTES];
        bytes.get_mut(..answer.len())?.copy_from_slice(answer);
        Some(Raw::Short {
            flavor,
            len: answer.len() as u8,
            bytes,
        })
    }

    /// An answer, copied.
    pub(crate) fn answer(flavor: u8, answer: &[u8]) -> Raw {
        Raw::short(flavor, answer).unwrap_or_else(|| {
            let bytes = Box::new(Large {
                bytes: answer.to_vec(),
                skip: 0,
                fruits: Vec::new(),
            });
            Raw::Long { flavor, bytes }
        })
    }

    /// Flavor and bytes, if it is an answer.
    fn as_answer(&self) -> Option<(u8, &[u8])> {
        match self {
            Raw::Short { flavor, len, bytes } => Some((*flavor, &bytes[..usize::from(*len)])),
            Raw::Long { flavor, bytes } => Some((*flavor, &bytes.bytes[bytes.skip..])),
            Raw::Cancelled | Raw::Lost(_) | Raw::Broken(_) => None,
        }
    }

    /// How much memory it keeps beside itself.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Raw::Long { bytes, .. } => {
                let fruits = bytes.fruits.iter().map(|fruit| fruit.bytes());
                (bytes.bytes.len() + fruits.sum::<usize>()) as u64
            }
            _ => 0,
        }
    }

    /// Large buffers that the answer came with.
    fn fruits(&self) -> &[Arc<Fruit>] {
        match self {
            Raw::Long { bytes, .. } => &bytes.fruits,
            _ => &[],
        }
    }

    /// Whether reading it may take long for its size.
    pub(crate) fn is_large(&self) -> bool {
        match self {
            Raw::Long { bytes, .. } => !bytes.fruits.is_empty() || bytes.bytes.len() >= LARGE_BYTES,
            _ => false,
        }
    }

    /// The same end again; an answer, which belongs to one item only, is none of those that it is asked of.
    pub(crate) fn again(&self) -> Raw {
        match self {
            Raw::Short { .. } | Raw::Long { .. } | Raw::Cancelled => Raw::Cancelled,
            Raw::Lost(loss) => Raw::Lost(loss.clone()),
            Raw::Broken(breakage) => Raw::Broken(breakage.clone()),
        }
    }

    /// Whether the function returned: a flag on the wire, so nothing is unpickled to know it (rule 9).
    pub(crate) fn is_success(&self) -> bool {
        self.as_answer()
            .is_some_and(|(flavor, _)| flavor == flavor::RETURNED)
    }

    /// The answer, if it is a value that needs no unpickling.
    pub(crate) fn plain_value(&self) -> Option<&[u8]> {
        let (flavor, answer) = self.as_answer()?;
        let plain = answer.first().is_some_and(|tag| !codec::is_pickle(*tag));
        (plain && flavor == flavor::RETURNED).then_some(answer)
    }

    /// The value, or the exception to raise. `name` is what was running, for messages.
    pub(crate) fn open(
        &self,
        py: Python<'_>,
        name: &str,
        breakage: impl FnOnce(Breakage) -> PyErr,
    ) -> Result<Py<PyAny>, Py<PyAny>> {
        let opened = match self {
            Raw::Cancelled => Err(cancelled_error(py)),
            Raw::Lost(loss) => worker_lost(py, loss, name),
            Raw::Broken(reason) => Err(breakage(**reason)),
            Raw::Short { .. } | Raw::Long { .. } => {
                let (flavor, bytes) = self.as_answer().unwrap_or_default();
                match flavor {
                    flavor::RETURNED => match codec::decode_result(py, bytes, self.fruits()) {
                        Ok(value) => return Ok(value.unbind()),
                        Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => Err(error),
                        Err(error) => unreadable(py, name, error),
                    },
                    flavor::RAISED => raised(py, bytes),
                    flavor::UNREADABLE => unsendable(py, bytes, "DeserializationError"),
                    _ => unsendable(py, bytes, "SerializationError"),
                }
            }
        };
        Err(match opened {
            Ok(exception) => exception,
            Err(error) => error.into_value(py).into_any(),
        })
    }
}

fn raised(py: Python<'_>, packed: &[u8]) -> PyResult<Py<PyAny>> {
    let remote = ffi::import(py, c"rightlane._remote")?;
    Ok(ffi::call_method(&remote, "unpack", (packed,))?.unbind())
}

fn unsendable(py: Python<'_>, bytes: &[u8], class: &str) -> PyResult<Py<PyAny>> {
    let (message, path): (String, String) = codec::decode(py, bytes)?.extract()?;
    let errors = ffi::import(py, c"rightlane._errors")?;
    Ok(ffi::call_method(&errors, class, (message, path))?.unbind())
}

/// A `SerializationError`.
pub(crate) fn serialization_error(
    py: Python<'_>,
    message: &str,
    path: &str,
) -> PyResult<Py<PyAny>> {
    let errors = ffi::import(py, c"rightlane._errors")?;
    Ok(ffi::call_method(&errors, "SerializationError", (message, path))?.unbind())
}

fn unreadable(py: Python<'_>, name: &str, error: PyErr) -> PyResult<Py<PyAny>> {
    let message = format!(
        "the result of {name} cannot be unpickled here: {}",
        describe(py, &error)
    );
    let errors = ffi::import(py, c"rightlane._errors")?;
    let made = ffi::call_method(&errors, "DeserializationError", (message, "result"))?;
    made.setattr("__cause__", error.into_value(py))?;
    Ok(made.unbind())
}

/// An error in one line, as a traceback ends.
pub(crate) fn describe(py: Python<'_>, error: &PyErr) -> String {
    let kind = error
        .get_type(py)
        .qualname()
        .map_or_else(|_| "error".into(), |name| name.to_string());
    match error.value(py).str() {
        Ok(text) if !text.to_string_lossy().is_empty() => {
            format!("{kind}: {}", text.to_string_lossy())
        }
        _ => kind,
    }
}

fn worker_lost(py: Python<'_>, loss: &Loss, name: &str) -> PyResult<Py<PyAny>> {
    let (signal, code) = match loss.exit {
        Exit::Signal(signal) => (Some(signal), None),
        Exit::Code(code) => (None, Some(code)),
        Exit::Unknown => (None, None),
    };
    let errors = ffi::import(py, c"rightlane._errors")?;
    let args = (loss.pid.unwrap_or(0), signal, code, name, loss.attempt);
    Ok(ffi::call_method(&errors, "WorkerLost", args)?.unbind())
}

/// The standard `concurrent.futures.CancelledError` (rule 11).
pub(crate) fn cancelled_error(py: Python<'_>) -> PyErr {
    match ffi::import(py, c"concurrent.futures")
        .and_then(|module| ffi::call_method(&module, "CancelledError", ()))
    {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// An invariant of this crate that turned out not to hold.
pub(crate) fn bug(what: &str) -> PyErr {
    PyRuntimeError::new_err(format!("rightlane: {what}; please report this"))
}
