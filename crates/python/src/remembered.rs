//! What earlier runs knew of functions: where that is, and under which name each function is there.
//!
//! It is read once per process, when automatic choice first has a function, and never believed in what could do harm:
//! see [`crate::profile`] for what it decides.

use crate::cached::Cached;
use crate::executor::{lock, without_partials};
use crate::ffi;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use rightlane_runtime::lane::past::{Book, Key, Past};
use rightlane_runtime::past::Shelf;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Switches it off for the whole process.
const SWITCH: &str = "RIGHTLANE_PROFILES";
const OFF: [&str; 4] = ["0", "off", "no", "false"];

/// The book as it was when this process first looked.
#[derive(Debug)]
pub(crate) struct Memory {
    shelf: Shelf,
    book: Book,
}

/// Held for a few instructions by attached threads. None: nobody has looked yet.
static MEMORY: Mutex<Option<Option<Arc<Memory>>>> = Mutex::new(None);

/// None where it is switched off, or there is no place for it.
pub(crate) fn memory(py: Python<'_>) -> Option<Arc<Memory>> {
    static IMPLEMENTATION: Cached = Cached::new(c"sys", "implementation");
    if let Some(memory) = &*lock(&MEMORY) {
        return memory.clone();
    }
    let interpreter = IMPLEMENTATION
        .get(py)
        .and_then(|about| about.getattr("cache_tag")?.extract::<String>());
    let found = match (directory(), interpreter) {
        (Some(directory), Ok(interpreter)) => py.detach(|| {
            let shelf = Shelf::new(&directory, &interpreter);
            let book = shelf.read();
            Some(Arc::new(Memory { shelf, book }))
        }),
        _ => None,
    };
    lock(&MEMORY).get_or_insert(found).clone()
}

impl Memory {
    pub(crate) fn find(&self, key: &Key) -> Option<Past> {
        self.book.find(key)
    }

    /// Takes a function out of the book, until it is written down again. Whether that was done.
    pub(crate) fn forget(&self, py: Python<'_>, key: &Key) -> bool {
        py.detach(|| self.shelf.forget(key))
    }

    pub(crate) fn write(&self, py: Python<'_>, news: &[(Key, Option<Past>)]) {
        // What cannot be written is not kept.
        py.detach(|| self.shelf.write(news));
    }
}

/// Where the user has his caches, and this one among them.
fn directory() -> Option<PathBuf> {
    let switch = env::var_os(SWITCH).unwrap_or_default();
    if OFF.iter().any(|off| switch.eq_ignore_ascii_case(off)) {
        return None;
    }
    let absolute = |name: &str| {
        let path = PathBuf::from(env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let caches = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(Path::new(".cache"))))?;
    Some(caches.join("rightlane"))
}

/// The name of a function in the book, if it has one.
pub(crate) fn key_of(function: &Bound<'_, PyAny>) -> PyResult<Option<Key>> {
    static KEY: Cached = Cached::new(c"rightlane._remembered", "key");
    let py = function.py();
    let innermost = without_partials(function.clone());
    let key =
        ffi::call1(KEY.get(py)?, (innermost,)).and_then(|key| key.extract::<Option<String>>());
    match key {
        Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => Err(error),
        Ok(Some(key)) => Ok(key.as_bytes().first_chunk().copied()),
        Ok(None) | Err(_) => Ok(None),
    }
}
