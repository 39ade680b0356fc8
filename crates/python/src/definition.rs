//! `rightlane._core.Definition`: a function or class that messages name by number.

use crate::future::function_name;
use crate::profile::{self, Profile};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rightlane_runtime::Definition;
use std::sync::{Arc, OnceLock};

/// A function or class that is sent to each worker once and named by `id` afterwards.
#[pyclass(name = "Definition", module = "rightlane._core", frozen, weakref)]
#[derive(Debug)]
pub(crate) struct PyDefinition {
    pub(crate) inner: Arc<Definition>,
    name: OnceLock<Arc<str>>,
    profile: OnceLock<Arc<Profile>>,
}

impl PyDefinition {
    /// Another name for this one.
    pub(crate) fn of(inner: Arc<Definition>) -> PyDefinition {
        PyDefinition {
            inner,
            name: OnceLock::new(),
            profile: OnceLock::new(),
        }
    }

    /// What the function behind it is called in messages.
    pub(crate) fn name(&self, function: &Bound<'_, PyAny>) -> Arc<str> {
        if let Some(name) = self.name.get() {
            return name.clone();
        }
        // Not in a cell that makes others wait: looking the name up may run Python code.
        let name: Arc<str> = function_name(function).into();
        self.name.get_or_init(|| name).clone()
    }
}

impl PyDefinition {
    /// What is known of the function behind it.
    pub(crate) fn profile(&self, function: &Bound<'_, PyAny>) -> &Arc<Profile> {
        if let Some(profile) = self.profile.get() {
            return profile;
        }
        // As above.
        let profile = profile::of(function);
        let profile = self.profile.get_or_init(|| profile);
        profile::name_definition(self.inner.id(), profile);
        profile
    }
}

impl Drop for PyDefinition {
    fn drop(&mut self) {
        if self.profile.get().is_some() {
            profile::forget_definition(self.inner.id());
        }
    }
}

#[pymethods]
impl PyDefinition {
    /// `blob` is what the worker unpickles when it is first needed, `deps` what that refers to.
    #[new]
    fn new(blob: &[u8], deps: Vec<Bound<'_, PyDefinition>>) -> PyDefinition {
        let inner = Definition::reserve();
        let needs = deps.iter().map(|dep| dep.get().inner.clone()).collect();
        let filled = inner.fill(blob, needs, None);
        debug_assert!(filled, "it was reserved a moment ago");
        PyDefinition::of(inner)
    }

    /// Ids and bytes of this one and of all that it refers to, for a worker that was not sent them.
    fn frames<'py>(&self, py: Python<'py>) -> Vec<(u64, Bound<'py, PyBytes>)> {
        let mut found = vec![self.inner.clone()];
        let mut at = 0;
        while let Some(definition) = found.get(at).cloned() {
            for need in definition.needs() {
                if !found.iter().any(|known| known.id() == need.id()) {
                    found.push(need.clone());
                }
            }
            at += 1;
        }
        let frame =
            |definition: &Arc<Definition>| (definition.id(), PyBytes::new(py, definition.bytes()));
        found.iter().map(frame).collect()
    }

    /// Its number; never used for another.
    #[getter]
    fn id(&self) -> u64 {
        self.inner.id()
    }
}
