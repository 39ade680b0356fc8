//! The operating system, one small file per mechanism, each with a safe face.
//!
//! This is the only place of the crate where `unsafe` may stand.
#![allow(unsafe_code)]

pub mod blas;
pub mod clock;
pub mod clocks;
pub mod futex;
pub mod memory;
pub mod process;
pub mod spawn;
pub mod symbol;

pub use clock::now;
