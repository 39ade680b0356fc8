//! Which lane a function belongs in: a decision from measurements, and from nothing else.
//!
//! [`measured`] holds what samplers count while a function runs; [`choice`] works out what a call would cost in each
//! place, and takes the cheapest. Whoever measures, and what may not leave its worker whatever it costs, is told from
//! outside: this module knows no clock, no process and no Python. `docs/design/lanes.md` has the measurements behind
//! each constant.

mod choice;
mod measured;
pub mod past;
#[cfg(test)]
mod tests;

pub use choice::{Bar, Choice, Costs, Ground, Known, Place, Reason, TINY_CALLS, Terms, choose};
pub use measured::{Doing, LONG_FIRST_NS, Measured, Nature, WORDS};
