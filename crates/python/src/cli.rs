//! The commands for Python: a `Host` whose answers come from a Python object, and two functions.
//!
//! The Python half is `rightlane._compare._Host`. It answers in plain values, and expected failures are
//! values too; an exception that escapes it is the user's Ctrl-C or a defect, is kept here, and is
//! raised again once the command has returned.

use pyo3::call::PyCallArgs;
use pyo3::conversion::FromPyObjectOwned;
use pyo3::prelude::*;
use rightlane_cli as cli;
use rightlane_cli::{Engine, Finding, Job, LaneError, Measurement, Portion, Refusal, State};
use std::ffi::OsString;
use std::io;

/// Runs `rightlane` with `argv`, whose first entry is the name of the program; returns the exit code.
/// Text goes to `out` and `err`, which have a `write(str)`.
#[pyfunction]
pub(crate) fn cli_main(
    argv: Vec<OsString>,
    host: Bound<'_, PyAny>,
    out: Bound<'_, PyAny>,
    err: Bound<'_, PyAny>,
) -> PyResult<u8> {
    let mut host = PyHost { host, raised: None };
    let code = cli::run(&argv, &mut host, &mut TextWriter(out), &mut TextWriter(err));
    match host.raised {
        Some(error) => Err(error),
        None => Ok(code),
    }
}

/// `(lane, size, (items, time_s, speed_up, cores_used, tasks_per_s) or None, note)`.
type RowTuple = (
    &'static str,
    Option<usize>,
    Option<(usize, f64, f64, f64, f64)>,
    String,
);

/// `(rows, sweep, index of the best row, verdict, whether all is well, text)`.
type ComparisonTuple = (Vec<RowTuple>, Vec<RowTuple>, usize, String, bool, String);

/// Compares the lanes on a job the host already has.
#[pyfunction]
pub(crate) fn compare(
    name: String,
    items: usize,
    cores: usize,
    max_workers: Option<usize>,
    host: Bound<'_, PyAny>,
) -> PyResult<ComparisonTuple> {
    let mut host = PyHost { host, raised: None };
    let job = Job { name, items, cores };
    match (cli::compare(&job, max_workers, &mut host), host.raised) {
        (_, Some(error)) => Err(error),
        (Ok(comparison), None) => Ok((
            comparison.rows.iter().map(row_tuple).collect(),
            comparison.sweep.iter().map(row_tuple).collect(),
            comparison.best,
            comparison.verdict.clone(),
            comparison.is_sound(),
            comparison.to_string(),
        )),
        (Err(Refusal::Usage(message)), None) => {
            Err(pyo3::exceptions::PyValueError::new_err(message))
        }
        (Err(Refusal::Stopped), None) => Err(pyo3::exceptions::PyRuntimeError::new_err(
            "the comparison was stopped without a reason",
        )),
    }
}

fn row_tuple(row: &cli::Row) -> RowTuple {
    let (lane, size) = match row.engine {
        Engine::Serial => ("serial", None),
        Engine::Pool { lane, size } => (lane.name(), Some(size)),
    };
    let figures = row.figures.map(|figures| {
        (
            figures.items,
            figures.time_s,
            figures.speed_up,
            figures.cores_used,
            figures.tasks_per_s,
        )
    });
    (lane, size, figures, row.note.clone())
}

struct PyHost<'py> {
    host: Bound<'py, PyAny>,
    /// The first exception that escaped from the host.
    raised: Option<PyErr>,
}

/// `(items, wall_s, cpu_s, delayed_s, raised, first differing item or None)`.
type MeasurementTuple = (usize, f64, f64, f64, usize, Option<usize>);

fn measurement(
    (items, wall_s, cpu_s, delayed_s, raised, differing): MeasurementTuple,
) -> Measurement {
    Measurement {
        items,
        wall_s,
        cpu_s,
        delayed_s,
        raised,
        differing,
    }
}

impl<'py> PyHost<'py> {
    /// The host's answer, or None when it raised or answered with something else.
    fn call<T>(&mut self, method: &str, args: impl PyCallArgs<'py>) -> Option<T>
    where
        T: FromPyObjectOwned<'py>,
    {
        let answer = self.host.call_method1(method, args);
        match answer.and_then(|answer| answer.extract::<T>().map_err(Into::into)) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.raised.get_or_insert(error);
                None
            }
        }
    }
}

#[derive(FromPyObject)]
enum Loaded {
    Job(String, usize, usize),
    Wrong(String),
}

#[derive(FromPyObject)]
enum Measured {
    Figures(usize, f64, f64, f64, usize, Option<usize>),
    /// Whether it is a failure, and why there is no measurement.
    Not(bool, String),
}

impl cli::Host for PyHost<'_> {
    fn load(&mut self, spec: &str, items: &str) -> Result<Job, Refusal> {
        match self.call("load", (spec, items)) {
            Some(Loaded::Job(name, items, cores)) => Ok(Job { name, items, cores }),
            Some(Loaded::Wrong(message)) => Err(Refusal::Usage(message)),
            None => Err(Refusal::Stopped),
        }
    }

    fn calibrate(&mut self, budget_s: f64) -> Result<Measurement, Refusal> {
        self.call("calibrate", (budget_s,))
            .map(measurement)
            .ok_or(Refusal::Stopped)
    }

    fn measure(&mut self, engine: Engine, portion: Portion) -> Result<Measurement, LaneError> {
        let (lane, size) = match engine {
            Engine::Serial => ("serial", 0),
            Engine::Pool { lane, size } => (lane.name(), size),
        };
        let (sample, index, of) = match portion {
            Portion::Sample { items } => (Some(items), 0, 0),
            Portion::Block { index, of } => (None, index, of),
        };
        match self.call("measure", (lane, size, sample, index, of)) {
            Some(Measured::Figures(items, wall_s, cpu_s, delayed_s, raised, differing)) => Ok(
                measurement((items, wall_s, cpu_s, delayed_s, raised, differing)),
            ),
            Some(Measured::Not(false, reason)) => Err(LaneError::CannotSend(reason)),
            Some(Measured::Not(true, reason)) => Err(LaneError::Failed(reason)),
            None => Err(LaneError::Stopped),
        }
    }

    fn progress(&mut self, line: &str) {
        // A failure is kept like any other, and raised at the end.
        let _: Option<Bound<'_, PyAny>> = self.call("progress", (line,));
    }

    fn findings(&mut self) -> Result<Vec<Finding>, Refusal> {
        let found: Vec<(String, String, String, String)> =
            self.call("findings", ()).ok_or(Refusal::Stopped)?;
        let finding = |(section, name, state, text): (String, String, String, String)| Finding {
            section,
            name,
            state: match state.as_str() {
                "works" => State::Works,
                "limited" => State::Limited,
                "missing" => State::Missing,
                _ => State::Fact,
            },
            text,
        };
        Ok(found.into_iter().map(finding).collect())
    }
}

/// A Python text stream.
struct TextWriter<'py>(Bound<'py, PyAny>);

impl io::Write for TextWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The command writes text; should a write end within a character, the next one begins with it.
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        };
        self.0
            .call_method1("write", (text,))
            .map_err(io::Error::other)?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.call_method0("flush").map_err(io::Error::other)?;
        Ok(())
    }
}
