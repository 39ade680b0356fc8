//! What the shared-state guard has found, in the user's process (rule 3).
//!
//! `rightlane._guard` looks for changes in workers, which tell the engine ahead of the answer of the call that was
//! watched. What they say arrives with the engine's lock held and without the interpreter's, so it is only written
//! down here. The warning is issued by a thread of the user's, where it takes a result, makes a call, or has waited
//! for the end.

use crate::cached::Cached;
use crate::executor::{Lane, lock, shape};
use crate::{ffi, shortage};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many functions' verdicts are kept: far more than a program has.
const MOST: usize = 10_000;

/// What an executor does about functions that change shared state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guarding {
    /// It does not look, as existing code expects of a pool of processes.
    Off,
    Warn,
    /// With lane "auto" they run in threads, once it is known.
    Thread,
    /// Their tasks fail.
    Error,
}

impl<'a, 'py> FromPyObject<'a, 'py> for Guarding {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Guarding> {
        let name: String = object.extract()?;
        match name.as_str() {
            "warn" => Ok(Guarding::Warn),
            "thread" => Ok(Guarding::Thread),
            "error" => Ok(Guarding::Error),
            _ => Err(PyValueError::new_err(format!(
                "unknown way of guarding {name:?}"
            ))),
        }
    }
}

impl Guarding {
    /// What is added to the shape of its calls, for the worker half.
    pub(crate) fn flags(self) -> u32 {
        match self {
            Guarding::Off => 0,
            Guarding::Warn | Guarding::Thread => shape::GUARDED,
            Guarding::Error => shape::GUARDED | shape::STRICT,
        }
    }

    /// The lane for a function, which is another than the one that was asked for where it is known to change shared
    /// state and may be helped.
    pub(crate) fn lane(self, lane: Lane, function: &Bound<'_, PyAny>) -> PyResult<Lane> {
        static ASK: Cached = Cached::new(c"rightlane._guard", "goes_to_threads");
        if self != Guarding::Thread || lane != Lane::Auto {
            return Ok(lane);
        }
        let py = function.py();
        let goes = ffi::call1(ASK.get(py)?, (function,))?.is_truthy()?;
        Ok(if goes { Lane::Thread } else { lane })
    }
}

/// One warning that is due.
#[derive(Debug)]
pub(crate) enum Warning {
    /// Name, verdict, module, line and file of a function that changes shared state.
    Changes([String; 5]),
    /// There was no memory for a buffer of so many bytes, the system had so many left, and whether that was in a worker.
    Short(u64, u64, bool),
}

/// Verdicts by function, as `rightlane._guard` names them.
static VERDICTS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Warnings that nobody has issued yet.
static DUE: Mutex<Vec<Warning>> = Mutex::new(Vec::new());

/// Whether there are any; to be asked often.
static ANY_DUE: AtomicBool = AtomicBool::new(false);

/// What one executor's workers have said.
#[derive(Debug)]
pub(crate) struct Told {
    guarding: Guarding,
    /// Functions of which it was said that they change shared state.
    functions: Mutex<HashSet<String>>,
}

impl Told {
    pub(crate) fn new(guarding: Guarding) -> Told {
        Told {
            guarding,
            functions: Mutex::default(),
        }
    }

    /// A worker's notice, without its first word. Called with the engine's lock held.
    pub(crate) fn notice(&self, bytes: &[u8]) {
        let Ok(text) = str::from_utf8(bytes) else {
            return;
        };
        let mut parts = text.split('\0').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        let (key, verdict) = (next(), next());
        let warning = [next(), verdict.clone(), next(), next(), next()];
        let changes = is_change(&verdict);
        settle(&key, verdict);
        let warns = changes && self.guarding != Guarding::Error;
        if warns && lock(&self.functions).insert(key) {
            add_due(Warning::Changes(warning));
        }
    }
}

/// The next thread of the user's that comes along issues this.
pub(crate) fn add_due(warning: Warning) {
    let mut due = lock(&DUE);
    due.push(warning);
    ANY_DUE.store(true, Ordering::Release);
}

fn is_change(verdict: &str) -> bool {
    verdict.starts_with("changes ")
}

/// Which verdict outlasts others.
fn weight(verdict: &str) -> u8 {
    match verdict {
        "unchanged" => 0,
        "not checked" => 1,
        _ => 2,
    }
}

fn settle(key: &str, verdict: String) {
    let mut verdicts = lock(&VERDICTS);
    if let Some(known) = verdicts.get_mut(key) {
        if weight(known) < weight(&verdict) {
            *known = verdict;
        }
    } else if verdicts.len() < MOST {
        verdicts.insert(key.to_owned(), verdict);
    }
}

/// What is known of a function, by the name that `rightlane._guard` has for it; None if nothing is.
#[pyfunction]
pub(crate) fn guard_verdict(key: &str) -> Option<String> {
    lock(&VERDICTS).get(key).cloned()
}

/// Whether a function of this qualified name was seen to change what is shared, or another one of that name.
pub(crate) fn has_changed(qualname: &str) -> bool {
    let ending = format!(".{qualname}");
    let verdicts = lock(&VERDICTS);
    let mut changing = verdicts.iter().filter(|(_, verdict)| is_change(verdict));
    changing.any(|(key, _)| {
        key.split(':')
            .next()
            .is_some_and(|name| name.ends_with(&ending))
    })
}

/// Something was found out about a function here.
#[pyfunction]
pub(crate) fn guard_settle(key: &str, verdict: String) {
    settle(key, verdict);
}

/// As [`tell`].
#[pyfunction]
pub(crate) fn guard_tell(py: Python<'_>) -> PyResult<()> {
    tell(py)
}

/// Issues the warnings that are due, in the caller's thread. Fails where a warnings filter makes errors of them.
#[inline]
pub(crate) fn tell(py: Python<'_>) -> PyResult<()> {
    // Pairs with the store in `notice`.
    if ANY_DUE.load(Ordering::Acquire) {
        tell_all(py)
    } else {
        Ok(())
    }
}

#[cold]
fn tell_all(py: Python<'_>) -> PyResult<()> {
    static TELL: Cached = Cached::new(c"rightlane._guard", "tell");
    let due = {
        let mut due = lock(&DUE);
        ANY_DUE.store(false, Ordering::Relaxed);
        std::mem::take(&mut *due)
    };
    let mut told = Ok(());
    for warning in due {
        let one = match warning {
            Warning::Changes([name, verdict, module, line, file]) => TELL
                .get(py)
                .and_then(|tell| ffi::call1(tell, (name, verdict, module, line, file)))
                .map(drop),
            Warning::Short(bytes, left, in_worker) => shortage::tell(py, bytes, left, in_worker),
        };
        told = told.and(one);
    }
    told
}

/// In a forked child: the parent issues what was due.
pub(crate) fn forked_child() {
    ANY_DUE.store(false, Ordering::Relaxed);
    lock(&DUE).clear();
    shortage::forked_child();
}
