//! Names for things, as types, so that a worker can't be taken for a call.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

/// One `map`, or `submit`s of one function in a row, unique within an executor and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// One worker process, unique within an executor and never reused, so that news of a dead worker
/// can't be taken for news of its replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u32);

/// The number of a piece among those sent to one worker; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceSeq(pub u64);

/// One world of the caller's (directory, environment and so on), in which workers are forked (rule 20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorldId(pub u32);

impl PieceSeq {
    /// The number after this one.
    pub fn next(self) -> PieceSeq {
        PieceSeq(self.0 + 1)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.0)
    }
}

/// A moment, in nanoseconds since some fixed point of the caller's choice. The core never reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment, `ns` nanoseconds later.
    pub fn after_ns(self, ns: u64) -> Moment {
        Moment(self.0.saturating_add(ns))
    }
}

/// Ids are small consecutive numbers made by us: one multiplication spreads them, and nobody can
/// choose them to collide, which is what the standard hasher pays for.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u32(&mut self, id: u32) {
        self.write_u64(u64::from(id));
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29);
    }
}

/// A map keyed by ids.
pub type IdMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<IdHasher>>;
