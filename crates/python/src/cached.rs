//! Python objects that are looked up once.

use crate::ffi;
use pyo3::prelude::*;
use std::ffi::CStr;
use std::sync::OnceLock;

/// A name of a module, looked up at the first use.
///
/// Not a cell that makes others wait while it is filled: filling imports, which lets other threads run, and
/// one of them may fork the process; in the child nobody would ever finish (invariant 6). Here two threads may
/// look up the same name, and the first answer is kept. `pyo3::intern!` is such a cell, too: strings are interned at
/// each use instead.
#[derive(Debug)]
pub(crate) struct Cached {
    module: &'static CStr,
    name: &'static str,
    found: OnceLock<Py<PyAny>>,
}

impl Cached {
    pub(crate) const fn new(module: &'static CStr, name: &'static str) -> Cached {
        Cached {
            module,
            name,
            found: OnceLock::new(),
        }
    }

    pub(crate) fn get<'a, 'py>(&'a self, py: Python<'py>) -> PyResult<&'a Bound<'py, PyAny>> {
        if let Some(found) = self.found.get() {
            return Ok(found.bind(py));
        }
        let found = ffi::import(py, self.module)?.getattr(self.name)?.unbind();
        Ok(self.found.get_or_init(|| found).bind(py))
    }
}
