//! The engine against the operating system.
//!
//! The core decides; this crate does: it maps rings, starts the template, supervises workers, and
//! hands ends of work to a [`Client`]. It knows nothing of Python: what a task is, the client knows.
//!
//! * [`engine`]: one executor; [`engine::waiting`]: who reads answers, and who is woken for it.
//! * [`hub`]: the one native thread, shared by all executors.
//! * [`meter`]: what a worker measures of the functions it runs.
//! * `link`: the engine's end of one worker; [`worker`]: the worker's own.
//! * `template`: the engine's side of the template process; [`nursery`]: its inside.
//! * [`items`], [`definition`]: serialised work, and what it refers to.
//! * [`wire`]: what messages say.
//! * [`arena`]: shared memory for large buffers.
//! * [`borrowed`]: the worker's view of it.
//! * [`budget`]: how many CPUs there are, and how much memory; [`bounds`]: how much may be pending.
//! * [`sys`]: the operating system, one file per mechanism.

pub mod arena;
pub mod borrowed;
pub mod bounds;
pub mod budget;
pub mod client;
pub mod definition;
pub mod engine;
mod harvest;
pub mod homes;
mod hub;
pub mod items;
mod link;
mod loans;
pub mod meter;
pub mod nursery;
pub mod past;
pub mod sys;
mod template;
pub mod wire;
pub mod worker;

pub use arena::{Arena, Placement, Span};
pub use bounds::{Amount, MaxPending};
pub use budget::{CpuBudget, MemoryBudget};
pub use client::{AnswerBytes, Client, End, Loss, Run};
pub use definition::Definition;
pub use engine::waiting::{Attended, Patience, Watch, cores, poll_until};
pub use engine::{
    BreakageReport, Engine, Initializer, Limits, Plan, Remote, Room, Single, SubmitError,
    ThreadDone, ThreadNext, ThreadPiece, begin_in_child, forked_child,
};
pub use harvest::Fruit;
pub use hub::{
    Ending, ForkGuard, has_door, has_program, learn, set_program, take_door, try_before_fork,
    unlearn, wait_for_fork, want_site,
};
pub use items::{Block, Moved};
pub use rightlane_core::lane;
pub use rightlane_core::{Breakage, CallId, Exit, Refused};
