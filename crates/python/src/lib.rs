//! The binding: converts, releases the interpreter lock, maps errors; nothing else.
//!
//! * [`executor`]: one executor: calls in, lane threads.
//! * [`future`]: the Rust half of a future; [`completion`]: who announces ends.
//! * [`map`]: reading inputs, yielding results in order; [`kept`]: the ends in between.
//! * [`pool`]: the maps of `multiprocessing.Pool`, waited for in other ways.
//! * [`cached`]: Python objects looked up once.
//! * [`handover`]: the interpreter's lock between lane threads and those who wait for them.
//! * [`codec`], [`raw`]: how values travel, and how ends arrive.
//! * [`definition`]: functions and classes named by number.
//! * [`known`]: functions whose definitions still hold.
//! * [`guard`]: functions that were seen to change shared state.
//! * [`profile`]: what is known of each function, and where it runs because of that.
//! * [`worker`]: the loops of template and worker processes.
//! * [`ffi`]: calls of Python code in threads that may end in it.
//! * [`cli`]: the commands.

mod cached;
mod cli;
mod codec;
mod completion;
mod definition;
mod executor;
mod ffi;
mod future;
mod guard;
mod handover;
mod kept;
mod known;
mod map;
mod moved;
mod pool;
mod profile;
mod raw;
mod remembered;
mod sent;
mod shortage;
mod worker;

use pyo3::prelude::*;
use rightlane_runtime::CpuBudget;
use rightlane_runtime::sys::spawn::Program;
use std::ffi::CString;
use std::os::fd::IntoRawFd;

/// Says how to start the template: path, arguments, environment (`NAME=value`), as bytes.
#[pyfunction]
fn set_template_program(path: Vec<u8>, argv: Vec<Vec<u8>>, env: Vec<Vec<u8>>) -> PyResult<()> {
    let strings = |list: Vec<Vec<u8>>| {
        list.into_iter()
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()
    };
    let program = Program {
        path: CString::new(path)?,
        argv: strings(argv)?,
        env: strings(env)?,
    };
    rightlane_runtime::set_program(program);
    Ok(())
}

/// From now on templates run `site` before they fork.
#[pyfunction]
fn want_site() {
    rightlane_runtime::want_site();
}

/// The descriptor at which workers' requests arrive, for the caller to own; None if it was taken, or no engine runs.
#[pyfunction]
fn take_door() -> Option<i32> {
    rightlane_runtime::take_door().map(IntoRawFd::into_raw_fd)
}

/// Lets a BLAS library that the template held to one thread use as many as the caller wants.
#[pyfunction]
fn allow_blas_threads() {
    rightlane_runtime::sys::blas::allow_blas_threads();
}

/// The umask, which is `expected` as a rule: then nothing changes at any moment. See
/// [`rightlane_runtime::sys::process::umask`].
#[pyfunction]
fn umask(expected: u32) -> u32 {
    rightlane_runtime::sys::process::umask(expected)
}

/// CPUs by affinity, the tightest quota in CPUs or None, and how many workers that makes.
#[pyfunction]
fn cpu_budget() -> (u32, Option<f64>, u32) {
    let budget = CpuBudget::read();
    (budget.affinity, budget.quota, budget.workers())
}

/// The compiled half of Rightlane; `rightlane._native` alone imports it.
#[pymodule(gil_used = true)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        allow_blas_threads,
        cli::{cli_main, compare},
        codec::{allocate, define_buffer, is_allocated, keep_in_band, store, view_buffer},
        completion::{run_completions, stop_completions},
        cpu_budget,
        definition::PyDefinition,
        executor::{
            PyEngine, after_fork_in_child, after_fork_in_parent, before_fork, begin_exit, nesting,
            retire_completions,
        },
        ffi::SharedBuffer,
        future::FutureCore,
        guard::{guard_settle, guard_tell, guard_verdict},
        map::MapResults,
        pool::{Inlet, PoolMap},
        profile::{forget_measurements, save_profiles},
        set_template_program, take_door, umask, want_site,
        worker::{WorkerSeat, serve_template, serve_worker},
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("_placing", super::codec::placing_keywords(module.py())?)
    }
}
