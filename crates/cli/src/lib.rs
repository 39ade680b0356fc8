//! The commands, as a library: `rightlane compare`, `rightlane doctor`, `rightlane --version`.
//!
//! Everything here is pure but for the [`Host`] it is handed: parsing, the plan of a comparison, the
//! choice of the best size, the verdict and the text. What runs functions, reads clocks and probes the
//! machine stands behind the trait, so that this crate knows neither Python nor an operating system,
//! and its tests run the whole of a comparison on made-up measurements.
//!
//! - [`args`]: the command line
//! - [`host`]: what the commands need from the outside
//! - [`plan`]: which sizes are tried on what, and how the final runs are interleaved
//! - [`compare`]: carries the plan out and judges
//! - [`table`]: a comparison as text
//! - [`doctor`]: what the machine allows, as text
//! - [`exit`]: the exit codes

pub mod args;
pub mod compare;
pub mod doctor;
pub mod exit;
pub mod host;
pub mod plan;
pub mod table;

pub use compare::{Comparison, Figures, Row, compare};
pub use host::{Engine, Finding, Host, Job, Lane, LaneError, Measurement, Portion, Refusal, State};

use std::ffi::OsString;
use std::io::Write;

/// Runs one command and returns its exit code (see [`exit`]).
///
/// `args` starts with the name of the program. A host that stops in the middle (the user's Ctrl-C, a
/// defect) keeps its own reason; the caller asks it after the return.
pub fn run(args: &[OsString], host: &mut dyn Host, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let command = match args::parse(args) {
        Ok(command) => command,
        Err(answer) if answer.is_error => {
            // Nobody is left to tell when the error stream is closed.
            let _ = write!(err, "{}", answer.text);
            return exit::USAGE;
        }
        Err(answer) => return written(write!(out, "{}", answer.text), exit::OK),
    };
    match command {
        args::Command::Compare {
            spec,
            items,
            max_workers,
        } => {
            let compared = host
                .load(&spec, &items)
                .and_then(|job| compare(&job, max_workers, host));
            match compared {
                Ok(comparison) => {
                    let code = if comparison.is_sound() {
                        exit::OK
                    } else {
                        exit::FAILED
                    };
                    written(writeln!(out, "{comparison}"), code)
                }
                Err(refusal) => refused(refusal, err),
            }
        }
        args::Command::Doctor => match host.findings() {
            Ok(findings) => written(write!(out, "{}", doctor::render(&findings)), exit::OK),
            Err(refusal) => refused(refusal, err),
        },
    }
}

/// `code`, or [`exit::FAILED`] when the output could not be written (`rightlane doctor | head -1`).
fn written(result: std::io::Result<()>, code: u8) -> u8 {
    if result.is_ok() { code } else { exit::FAILED }
}

fn refused(refusal: Refusal, err: &mut dyn Write) -> u8 {
    match refusal {
        Refusal::Usage(message) => {
            let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
            let _ = writeln!(err, "rightlane: {line}");
            exit::USAGE
        }
        Refusal::Stopped => exit::FAILED,
    }
}
