//! The scheduler against a simulated world: no processes, no clock, no sleeps.
//!
//! [`world`] plays everything outside the scheduler by its protocol and keeps a ledger of what must
//! be true of every item. `properties` throws random events at it; the other modules tell one
//! story each and are named after the behaviour they pin down.

mod batch_sizes;
mod boot_fails;
mod cancel;
mod hard_cap;
mod holding;
mod idle;
mod ledger;
mod many_calls;
mod properties;
mod protocol;
mod recycling;
mod refused;
mod shutdown;
mod streams;
mod take_back;
mod worker_killed;
mod world;
mod worlds;
