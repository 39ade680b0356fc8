//! The life of one worker process, as an explicit state machine.
//!
//! ```text
//! booting ──ready──▶ serving ──retire──▶ retiring ──deadline──▶ terminating ──deadline──▶ killed
//!    │                  │                    │                      │                       │
//!    └──────────────────┴────────── gone ────┴──────────────────────┴───────────────────────┘
//! ```
//! Once a worker is told to stop, every phase has a deadline, so every ending is bounded
//! (invariant 4): ask, SIGTERM to the group, grace, SIGKILL. "Idle" and "busy" are not phases of their
//! own: a serving worker is idle exactly when it holds no piece. Nor is "leaving": a worker that boots or
//! serves may have been sent the last item it will get, and is asked to retire when it holds none.

use crate::event::Claim;
use crate::ids::{CallId, Moment, PieceSeq, WorkerId, WorldId};
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

/// A worker's world and how many pieces it holds, as one number: they are compared at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Load(u64);

impl Load {
    pub(crate) fn new(world: WorldId, pieces: u32) -> Load {
        Load(u64::from(world.0) << 32 | u64::from(pieces))
    }

    pub(crate) fn world(self) -> WorldId {
        WorldId((self.0 >> 32) as u32)
    }

    pub(crate) fn pieces(self) -> u32 {
        self.0 as u32
    }
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) phase: Phase,
    pub(crate) pieces: VecDeque<Piece>,
    next_seq: PieceSeq,
    /// The caller's world in which it is forked.
    pub(crate) world: WorldId,
    /// How many more items it may be sent.
    pub(crate) allowance: u64,
    /// Gets no more work, and is retired as soon as it holds none. For good, though items be taken back from
    /// it: another worker may have been started in its stead.
    pub(crate) leaving: bool,
    /// Since when it has held no piece, if it holds none.
    pub(crate) idle_since: Moment,
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
    /// One that runs at most so many items.
    pub(crate) fn new(world: WorldId, allowance: u64) -> Worker {
        Worker {
            phase: Phase::Booting {
                initializing: false,
            },
            pieces: VecDeque::new(),
            next_seq: PieceSeq(0),
            world,
            allowance,
            leaving: false,
            idle_since: Moment(0),
            front_since: Moment(0),
            watched: false,
            worked: false,
            faulty: false,
            unborn: false,
        }
    }

    /// Whether nobody has told it to end.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Booting { .. } | Phase::Serving)
    }

    /// Whether it may be given work: work can wait in the ring of a worker that is still booting.
    pub(crate) fn takes_work(&self) -> bool {
        self.is_up() && !self.leaving
    }

    /// What it stands under among those with room.
    pub(crate) fn load(&self) -> Load {
        Load::new(self.world, self.pieces.len() as u32)
    }

    /// Whether it takes work and has none.
    pub(crate) fn is_idle(&self) -> bool {
        self.takes_work() && self.pieces.is_empty()
    }

    /// Whether it holds the last items it will get.
    pub(crate) fn runs_its_last(&self) -> bool {
        self.leaving && !self.pieces.is_empty()
    }

    pub(crate) fn push(&mut self, call: CallId, items: Range<u64>) -> PieceSeq {
        let seq = self.next_seq;
        self.allowance -= items.end - items.start;
        self.leaving |= self.allowance == 0;
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

    /// Of what was sent, so many items were taken back untouched.
    pub(crate) fn give_back(&mut self, items: u64) {
        self.allowance += items;
    }

    /// Returns the deadline, unless it has been told to end already.
    pub(crate) fn retire(&mut self, now: Moment) -> Option<Moment> {
        if !self.is_up() {
            return None;
        }
        let deadline = now.after_ns(RETIRE_NS);
        self.phase = Phase::Retiring { deadline };
        Some(deadline)
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
