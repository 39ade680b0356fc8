//! The life of one worker process, as an explicit state machine.
//!
//! ```text
//! booting ──ready──▶ serving ──retire──▶ retiring ──deadline──▶ terminating ──deadline──▶ killed
//!    │                  │                    │                      │                       │
//!    └──────────────────┴────────── gone ────┴──────────────────────┴───────────────────────┘
//! ```
//! Once a worker is told to stop, every phase has a deadline, so every ending is bounded
//! (invariant 4): ask, SIGTERM to the group, grace, SIGKILL. "Idle" and "busy" are not phases of their
//! own: a serving worker is idle exactly when it holds no piece.

use crate::event::Claim;
use crate::ids::{CallId, Moment, PieceSeq, WorkerId};
use std::collections::VecDeque;
use std::ops::Range;

/// How long a worker may take to run its exit handlers and join its threads once it is asked to end
/// (rule 22).
pub const RETIRE_NS: u64 = 5_000_000_000;

/// How long a worker may take to die of SIGTERM.
pub const TERMINATE_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Asked for; not ready yet. `initializing`: its process is up and runs the initializer.
    Booting {
        initializing: bool,
    },
    Serving,
    Retiring {
        deadline: Moment,
    },
    Terminating {
        deadline: Moment,
    },
    Killed,
}

/// What a deadline that has passed asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Overdue {
    Nothing,
    Terminate,
    Kill,
}

/// Items of one call on their way through one worker.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) seq: PieceSeq,
    pub(crate) call: CallId,
    pub(crate) items: Range<u64>,
    /// How many of them have been answered; a worker answers in order.
    pub(crate) answered: u32,
    pub(crate) revoked: bool,
}

impl Piece {
    pub(crate) fn unanswered(&self) -> Range<u64> {
        self.items.start + u64::from(self.answered)..self.items.end
    }

    /// What it stands under among the pieces that may be taken back from their workers.
    pub(crate) fn key(&self, worker: WorkerId) -> (CallId, u64, WorkerId, PieceSeq) {
        (self.call, self.items.start, worker, self.seq)
    }

    /// Whether there may be items behind the one that runs which another worker could run.
    pub(crate) fn may_be_split(&self) -> bool {
        let unanswered = self.unanswered();
        !self.revoked && unanswered.end - unanswered.start > 1
    }
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) phase: Phase,
    pub(crate) pieces: VecDeque<Piece>,
    next_seq: PieceSeq,
    /// When the first piece became the first, or the worker ready for it.
    pub(crate) front_since: Moment,
    /// Whether the first piece is among those that may be split.
    pub(crate) watched: bool,
    /// Whether it ever answered an item: a boot that fails afterwards is no failed boot.
    pub(crate) worked: bool,
    /// Whether it was killed because it broke the protocol.
    pub(crate) faulty: bool,
    /// Whether the template died before it could fork this one.
    pub(crate) unborn: bool,
}

impl Worker {
    pub(crate) fn new() -> Worker {
        Worker {
            phase: Phase::Booting {
                initializing: false,
            },
            pieces: VecDeque::new(),
            next_seq: PieceSeq(0),
            front_since: Moment(0),
            watched: false,
            worked: false,
            faulty: false,
            unborn: false,
        }
    }

    /// Whether it may be given work: work can wait in the ring of a worker that is still booting.
    pub(crate) fn takes_work(&self) -> bool {
        matches!(self.phase, Phase::Booting { .. } | Phase::Serving)
    }

    pub(crate) fn push(&mut self, call: CallId, items: Range<u64>) -> PieceSeq {
        let seq = self.next_seq;
        self.next_seq = seq.next();
        self.pieces.push_back(Piece {
            seq,
            call,
            items,
            answered: 0,
            revoked: false,
        });
        seq
    }

    pub(crate) fn retire(&mut self, now: Moment) -> bool {
        if !self.takes_work() {
            return false;
        }
        self.phase = Phase::Retiring {
            deadline: now.after_ns(RETIRE_NS),
        };
        true
    }

    pub(crate) fn kill(&mut self) -> bool {
        if self.phase == Phase::Killed {
            return false;
        }
        self.phase = Phase::Killed;
        true
    }

    pub(crate) fn deadline(&self) -> Option<Moment> {
        match self.phase {
            Phase::Retiring { deadline } | Phase::Terminating { deadline } => Some(deadline),
            _ => None,
        }
    }

    pub(crate) fn overdue(&mut self, now: Moment) -> Overdue {
        match self.phase {
            Phase::Retiring { deadline } if deadline <= now => {
                self.phase = Phase::Terminating {
                    deadline: now.after_ns(TERMINATE_NS),
                };
                Overdue::Terminate
            }
            Phase::Terminating { deadline } if deadline <= now => {
                self.phase = Phase::Killed;
                Overdue::Kill
            }
            _ => Overdue::Nothing,
        }
    }

    /// The worker's last word, made sense of. One that names a piece it was never sent is rubbish that it
    /// wrote over its own word: what it was at then is the next item that it owes an answer for.
    pub(crate) fn sensible(&self, claim: Option<Claim>) -> Option<Claim> {
        let claim = claim?;
        if claim.seq.0 < self.next_seq.0 {
            return Some(claim);
        }
        let piece = self.pieces.iter().find(|p| !p.unanswered().is_empty())?;
        Some(Claim {
            seq: piece.seq,
            item: piece.answered,
        })
    }

    /// Whether `claim` says that item `item` (counted from its start) of `piece` has been touched.
    pub(crate) fn claimed(&self, piece: &Piece, item: u32, claim: Option<Claim>) -> bool {
        let Some(claim) = self.sensible(claim) else {
            return false;
        };
        if claim.seq == piece.seq {
            return claim.item >= item;
        }
        // A later piece has been claimed: the worker is past this one.
        self.pieces
            .iter()
            .skip_while(|p| p.seq != piece.seq)
            .any(|p| p.seq == claim.seq)
    }
}
