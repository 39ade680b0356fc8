//! Functions whose definitions still hold, seen without a call of Python.
//!
//! `rightlane._byvalue` decides what a function's definition is and what it was made from (rule 5). For plain
//! functions that is a short list of things that must still be the same objects: the code, the defaults, the
//! globals it names. Comparing them here takes a tenth of the time that asking takes.

use crate::cached::Cached;
use crate::definition::PyDefinition;
use crate::executor::lock;
use crate::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySet, PyString, PyTuple};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How many functions are remembered.
const MOST: usize = 8;

/// One thing that must still be so.
#[derive(Debug)]
enum Check {
    /// The function's attribute of this name is this object.
    Attribute(Py<PyString>, Py<PyAny>),
    /// The function's attribute of this name is a dictionary without items.
    Empty(Py<PyString>),
    /// The dictionary has this object under the name, or has nothing.
    Item(Py<PyDict>, Py<PyString>, Option<Py<PyAny>>),
    /// The dictionary has the function itself under the name.
    Itself(Py<PyDict>, Py<PyString>),
    /// This set is empty.
    NoneIn(Py<PySet>),
    /// This object's attribute of this name is this object.
    Of(Py<PyAny>, Py<PyString>, Py<PyAny>),
}

#[derive(Debug)]
struct Known {
    /// The function's address; not the function, which must be free to go. Another one at the same address for
    /// which all checks hold has the same code and the same world, so the same definition.
    function: usize,
    checks: Vec<Check>,
    definition: Py<PyDefinition>,
}

/// Held by attached threads only, and while no Python code runs: it is free in the moment of a fork.
static KNOWN: Mutex<Vec<Arc<Known>>> = Mutex::new(Vec::new());

/// The definition of a function for which nothing has changed.
pub(crate) fn find<'py>(function: &Bound<'py, PyAny>) -> Option<Bound<'py, PyDefinition>> {
    static FUNCTION: Cached = Cached::new(c"types", "FunctionType");
    let py = function.py();
    // Before the lock is taken: the first time this imports.
    let kind = FUNCTION.get(py).ok()?;
    let address = function.as_ptr() as usize;
    let known = {
        let all = lock(&KNOWN);
        all.iter().find(|known| known.function == address)?.clone()
    };
    // Not under the lock: an attribute may be made in this moment, and what is collected then runs Python code.
    let plain = function.get_type_ptr().cast() == kind.as_ptr();
    let holds = plain && known.checks.iter().all(|check| check.holds(function));
    holds.then(|| known.definition.bind(py).clone())
}

impl Check {
    fn holds(&self, function: &Bound<'_, PyAny>) -> bool {
        let py = function.py();
        match self {
            Check::Attribute(name, wanted) => function
                .getattr(name.bind(py))
                .is_ok_and(|found| found.is(wanted)),
            Check::Empty(name) => function
                .getattr(name.bind(py))
                .is_ok_and(|found| found.cast::<PyDict>().is_ok_and(|dict| dict.is_empty())),
            Check::Item(dict, name, wanted) => {
                match (dict.bind(py).get_item(name.bind(py)), wanted) {
                    (Ok(Some(found)), Some(wanted)) => found.is(wanted),
                    (Ok(None), None) => true,
                    _ => false,
                }
            }
            Check::NoneIn(set) => set.bind(py).is_empty(),
            Check::Of(object, name, wanted) => object
                .bind(py)
                .getattr(name.bind(py))
                .is_ok_and(|found| found.is(wanted)),
            Check::Itself(dict, name) => matches!(
                dict.bind(py).get_item(name.bind(py)),
                Ok(Some(found)) if found.is(function)
            ),
        }
    }
}

/// Remembers what `rightlane._byvalue` says a definition was made from, if it says so: from the second time on that
/// it is the same one, because most functions are sent once.
pub(crate) fn remember(
    function: &Bound<'_, PyAny>,
    definition: &Bound<'_, PyDefinition>,
) -> PyResult<()> {
    static MADE_FROM: Cached = Cached::new(c"rightlane._byvalue", "made_from");
    static LAST: AtomicU64 = AtomicU64::new(0);
    let py = function.py();
    let id = definition.get().inner.id();
    if LAST.swap(id, Ordering::Relaxed) != id {
        return Ok(());
    }
    let made_from = ffi::call1(MADE_FROM.get(py)?, (function, definition))?;
    let Ok(made_from) = made_from.cast_into::<PyTuple>() else {
        return Ok(());
    };
    let mut checks = Vec::with_capacity(made_from.len());
    for check in made_from.iter() {
        checks.push(
            match check.extract::<(u8, Option<Py<PyDict>>, Py<PyString>, Py<PyAny>)>()? {
                (0, _, name, wanted) => Check::Attribute(name, wanted),
                (1, _, name, _) => Check::Empty(name),
                (2, Some(dict), name, wanted) => Check::Item(dict, name, Some(wanted)),
                (3, Some(dict), name, _) => Check::Item(dict, name, None),
                (4, Some(dict), name, _) => Check::Itself(dict, name),
                (5, _, _, set) => Check::NoneIn(set.extract(py).map_err(PyErr::from)?),
                (6, _, name, pair) => {
                    let (object, wanted) = pair.extract(py)?;
                    Check::Of(object, name, wanted)
                }
                _ => return Err(crate::raw::bug("an unknown kind of check")),
            },
        );
    }
    let address = function.as_ptr() as usize;
    let known = Arc::new(Known {
        function: address,
        checks,
        definition: definition.clone().unbind(),
    });
    let old = {
        let mut all = lock(&KNOWN);
        let at = all.iter().position(|known| known.function == address);
        let old = match at {
            Some(at) => Some(all.remove(at)),
            None if all.len() == MOST => Some(all.remove(0)),
            None => None,
        };
        all.push(known);
        old
    };
    drop(old);
    Ok(())
}
