//! The decisions of the engine, as pure state machines.
//!
//! This crate knows no operating system, no Python, no memory shared with anyone and no clock: time is
//! passed in, effects come out. Whatever it decides can be replayed, tested without processes or
//! sleeps, and asked for in words.
//!
//! * [`ids`]: calls, workers, pieces, worlds, moments.
//! * [`event`]: what can happen ([`Event`]) and what can be decided ([`Action`]).
//! * [`batch`]: how many items travel together, by measured time.
//! * [`lane`]: which lane a function belongs in, from what was measured of it.
//! * [`scheduler`]: the reactor: queue, dispatch, worker life cycle, supervision.
//!
//! A **call** is one `map`, or `submit`s of one function in a row: items, known or still coming. A **piece** is a run of
//! its items that travels to a worker as one message. An item is claimed by the worker before it is
//! touched, and answered when it ends; so what a dead worker held is known exactly.

pub mod batch;
mod call;
pub mod event;
pub mod ids;
pub mod lane;
pub mod scheduler;
mod worker;

pub use batch::Pace;
pub use call::CallSpec;
pub use event::{Action, Breakage, Claim, Event, Exit, Lane, Verdict};
pub use ids::{CallId, Moment, PieceSeq, WorkerId, WorldId};
pub use scheduler::{Cancel, Config, HOLD_NS, Port, Refused, Scheduler, Unexpected};
pub use worker::{RETIRE_NS, TERMINATE_NS};
