//! Everything that can happen to the engine, and everything it can decide, as two closed types.
//!
//! The scheduler takes an [`Event`] and answers with [`Action`]s; a trace, a report or a test reads
//! the same two types that the runtime acts on.

use crate::ids::{CallId, PieceSeq, WorkerId};
use std::ops::Range;

/// Where a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// In a worker process.
    Process,
    /// In a thread of the caller's process.
    Thread,
}

/// How a worker process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned or called `_exit` with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// The process that could have told is gone (rule 12).
    Unknown,
}

/// The item a worker has announced that it is about to touch (rule 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The piece.
    pub seq: PieceSeq,
    /// The item, counted from the start of the piece.
    pub item: u32,
}

/// Why the executor takes no more work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakage {
    /// The initializer raised; the runtime holds the exception.
    InitializerRaised,
    /// A worker died while it ran the initializer.
    InitializerDied(Exit),
    /// Three workers in a row could not be started.
    BootFailed(Exit),
}

/// What the outside world reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The worker's process is up and about to run the initializer.
    Started(WorkerId),
    /// The worker is ready for work.
    Ready(WorkerId),
    /// The initializer raised in this worker.
    InitializerRaised(WorkerId),
    /// The initializer raised in a lane thread.
    ThreadInitializerRaised,
    /// The worker finished the last item of a piece, after `busy_ns` of running it.
    PieceDone {
        worker: WorkerId,
        seq: PieceSeq,
        busy_ns: u64,
    },
    /// The worker saw the piece revoked and left every item from `from` on untouched.
    Skipped {
        worker: WorkerId,
        seq: PieceSeq,
        from: u32,
    },
    /// The worker will not run item `from` of its first piece, nor anything after it, because what it has imported
    /// is out of date (rule 5); it has touched none of that, and ends.
    Refused {
        worker: WorkerId,
        seq: PieceSeq,
        from: u32,
    },
    /// The worker's process is gone; its answers have all been read. `claim` is its last word.
    Gone {
        worker: WorkerId,
        exit: Exit,
        claim: Option<Claim>,
    },
    /// A process for this worker could not be made.
    SpawnFailed(WorkerId),
    /// The template died before it could fork this worker, which is nobody's failed boot.
    Unborn(WorkerId),
    /// A lane thread finished a piece.
    ThreadPieceDone {
        call: CallId,
        items: u32,
        busy_ns: u64,
    },
}

/// The end of items that no answer settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Cancelled before it was claimed.
    Cancelled,
    /// The worker died while it ran this item.
    Lost {
        worker: WorkerId,
        exit: Exit,
        attempt: u32,
    },
    /// The executor broke.
    Broken(Breakage),
}

/// What the runtime is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have the template fork a process for this worker.
    Spawn(WorkerId),
    /// Write these items of the call into the worker's ring.
    Send {
        worker: WorkerId,
        seq: PieceSeq,
        call: CallId,
        items: Range<u64>,
    },
    /// Hand these items of the call to a lane thread.
    RunOnThread { call: CallId, items: Range<u64> },
    /// Ask the worker to end by itself.
    Retire(WorkerId),
    /// SIGTERM to the worker's group.
    Terminate(WorkerId),
    /// SIGKILL to the worker's group.
    Kill(WorkerId),
    /// Forget the worker: its process is gone and what it held is settled or queued again.
    Drop(WorkerId),
    /// These items have ended without an answer.
    Settle {
        call: CallId,
        items: Range<u64>,
        verdict: Verdict,
    },
    /// Every item has ended and no more will come: free what the call holds.
    CallDone(CallId),
    /// Shutting down is complete: no call is open and no worker is left.
    Drained,
}
