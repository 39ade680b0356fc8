//! Rings and segments through which a parent and one worker process talk.
//!
//! Read in this order:
//!
//! * [`ring`]: single-producer single-consumer records over plain memory.
//! * [`fragment`]: messages larger than a ring.
//! * [`claim`]: a worker starts an item while the parent takes it back.
//! * [`sleep`]: going to sleep, and waking only who sleeps.
//! * [`board`]: what a worker has measured, to be read at any time.
//! * `layout`: what lies where in the two segments of a worker.
//! * `segment`: the segments themselves, mapped, and the safe ends of both sides.
//!
//! The algorithms know nothing of mapping, so that loom can run them on plain memory (`--cfg loom`
//! leaves the mapped half out). There are no system calls but those that make and map a segment:
//! who waits, on what and for how long is the runtime's.
//!
//! # Protocol
//!
//! A worker has two segments. The parent writes the task segment: tasks, how far it has read
//! answers, the doorbell, its sleep, its revocations. The worker writes the answer segment: answers,
//! how far it has read tasks, its claim, its sleep. Nobody writes the other's, and the kernel sees to
//! that for the task segment: it is sealed once the parent has mapped it.
//!
//! 1. The parent pushes tasks and publishes them, then asks [`must_wake`](ParentEnd::must_wake).
//! 2. The worker pops a task, which frees its room, and asks
//!    [`parent_to_wake`](WorkerEnd::parent_to_wake), because the parent may have more to
//!    send than there was room for.
//! 3. Before anything of an item runs, not even its unpickling, the worker claims it. Revoked: it
//!    declines the rest of the piece.
//! 4. It publishes the item's answer, claims the next, and asks again. The last claim of a piece stays:
//!    an answer that the parent has not read yet must not look like an item that was never begun.
//! 5. An end with nothing to do announces its sleep, looks once more, and waits.
//!
//! After a worker's death its segments stay as they were: what is published is done, what is
//! claimed and not published is lost, the rest never began. There is no lock to be left held.

pub mod board;
pub mod claim;
mod copy;
pub mod fragment;
#[cfg(not(loom))]
pub mod layout;
#[cfg(not(loom))]
mod map;
pub mod ring;
#[cfg(not(loom))]
pub mod segment;
pub mod sleep;
mod sync;

pub use board::Board;
pub use claim::{Attempt, Claim};
pub use fragment::{Assembler, Outgoing, Progress};
pub use ring::{Consumer, Corrupt, Producer, PushError, Ring, RingView};
#[cfg(not(loom))]
pub use segment::{AnswerRing, AttachError, Notes, ParentEnd, Peephole, TaskRing, WorkerEnd};
pub use sleep::{Listener, Wants};
