//! What the messages say: between engine and worker (through rings) and between engine and template
//! (through a socket pair). Both ends are the same build of the same library, so the layouts may
//! change freely; what the worker wrote is checked all the same (invariant 7).

use std::fmt;
use std::sync::Arc;

/// Message kinds from the engine to a worker; the tag of a record.
pub mod to_worker {
    /// The caller's world; always first.
    pub const BOOT: u32 = 1;
    /// A definition: its id, then its bytes.
    pub const DEFINE: u32 = 2;
    /// The definition with this id is no longer needed.
    pub const FORGET: u32 = 3;
    /// A piece: [`super::PieceHead`], then its items.
    pub const PIECE: u32 = 4;
    /// A piece whose items follow as a message of their own, because they are too large to be copied.
    pub const PIECE_HEAD: u32 = 5;
    /// The items of the piece before.
    pub const ITEMS: u32 = 6;
    /// End by yourself.
    pub const RETIRE: u32 = 7;
    /// Run the initializer, if there is one, and say that you are ready; always before the first piece.
    pub const BEGIN: u32 = 8;
    /// These results are read by nobody any more: [`super::take_u64`] for each.
    pub const FREE: u32 = 9;
    /// From this region no more results are to be placed.
    pub const RETIRE_REGION: u32 = 10;
}

/// Message kinds from a worker to the engine; the low byte of a record's tag.
pub mod to_engine {
    /// The process is up and about to run the initializer.
    pub const STARTED: u32 = 1;
    /// Ready for work.
    pub const READY: u32 = 2;
    /// The initializer raised; the payload is the client's.
    pub const INITIALIZER_RAISED: u32 = 3;
    /// The end of a piece's last item: [`super::AnswerHead`], then the client's bytes. Above the kind, the
    /// tag holds the client's flavor and [`LAST`].
    pub const ANSWER: u32 = 4;
    /// The piece was revoked; everything from this item on is untouched.
    pub const SKIPPED: u32 = 5;
    /// Something the client's worker half tells the client's engine half.
    pub const NOTICE: u32 = 6;
    /// The end of the next item of the worker's first piece, which goes on: the client's bytes and nothing else.
    /// Above the kind, the tag holds the client's flavor.
    pub const NEXT: u32 = 7;
    /// This item of the first piece, and whatever comes after it, must be run by another worker; this one ends.
    pub const REFUSED: u32 = 8;
    /// These buffers of the piece that ends next are still used: the place of each, in 64 bits.
    pub const KEPT: u32 = 9;
    /// These of those not any more.
    pub const RELEASED: u32 = 10;
    /// In an answer's tag: before the client's bytes stand how many large buffers lie in the worker's arena, in
    /// 32 bits, and their [`crate::arena::Placement`]s.
    pub const PLACED: u32 = 1 << 17;
    /// In an answer's tag: the piece ends here.
    pub const LAST: u32 = 1 << 16;
    /// Where the flavor lies in an answer's tag.
    pub const FLAVOR_SHIFT: u32 = 8;
}

/// Most bytes that one answer may have; beyond it the worker is taken for mad.
pub const MOST_ANSWER_BYTES: usize = 1 << 40;

/// The head of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceHead {
    /// The piece's number at this worker.
    pub seq: u64,
    /// How many items follow.
    pub items: u32,
    /// The definition to call.
    pub function: u64,
    /// How the client reads the items; and [`GENERATED`].
    pub shape: u32,
}

/// In a piece's shape: the items do not come one by one but as the number of the first and a rule by which the
/// client makes them from their numbers.
pub const GENERATED: u32 = 1 << 31;

impl PieceHead {
    /// How long a head is.
    pub const BYTES: usize = 24;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..8].copy_from_slice(&self.seq.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.function.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.items.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.shape.to_le_bytes());
        bytes
    }

    /// Splits a message into head and rest.
    pub fn split(bytes: &[u8]) -> Option<(PieceHead, &[u8])> {
        let (seq, rest) = take_u64(bytes)?;
        let (function, rest) = take_u64(rest)?;
        let (items, rest) = take_u32(rest)?;
        let (shape, rest) = take_u32(rest)?;
        Some((
            PieceHead {
                seq,
                items,
                function,
                shape,
            },
            rest,
        ))
    }
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// The piece.
    pub seq: u64,
    /// The item, counted from the start of the piece.
    pub item: u32,
    /// How long the piece has kept the worker busy; only with the last item.
    pub busy_ns: u64,
}

impl AnswerHead {
    /// How long a head is.
    pub const BYTES: usize = 24;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..8].copy_from_slice(&self.seq.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.busy_ns.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.item.to_le_bytes());
        bytes
    }

    /// Splits a message into head and rest.
    pub fn split(bytes: &[u8]) -> Option<(AnswerHead, &[u8])> {
        let (seq, rest) = take_u64(bytes)?;
        let (busy_ns, rest) = take_u64(rest)?;
        let (item, rest) = take_u32(rest)?;
        Some((AnswerHead { seq, item, busy_ns }, rest.get(4..)?))
    }
}

/// In place of a length that takes 64 bits, which follow.
const LONG: u32 = u32::MAX;

/// Appends one item to a row of items: its length, then its bytes.
pub fn push_item(row: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = row.len();
    row.extend_from_slice(&[0; 4]);
    write(row);
    let len = row.len() - at - 4;
    let short = u32::try_from(len).ok().filter(|len| *len != LONG);
    row[at..at + 4].copy_from_slice(&short.unwrap_or(LONG).to_le_bytes());
    if short.is_none() {
        row.splice(at + 4..at + 4, (len as u64).to_le_bytes());
    }
}

/// Splits the first item off a row.
pub fn take_item(row: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = take_u32(row)?;
    if len == LONG {
        let (len, rest) = take_u64(rest)?;
        return rest.split_at_checked(usize::try_from(len).ok()?);
    }
    rest.split_at_checked(len as usize)
}

/// Reads a row of numbers; None if it is none.
pub fn take_all_u64(bytes: &[u8]) -> Option<impl Iterator<Item = u64>> {
    let (words, rest) = bytes.as_chunks::<8>();
    rest.is_empty()
        .then(|| words.iter().map(|word| u64::from_le_bytes(*word)))
}

/// Splits a number off.
pub fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*head), rest))
}

/// Splits a number off.
pub fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*head), rest))
}

/// From the engine to the template; one datagram each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToTemplate {
    /// Fork a worker; its task segment, answer segment and the engine's two signals come
    /// along as descriptors.
    Fork { key: u64 },
    /// A worker that an earlier template forked lives; its pidfd comes along.
    Watch { pid: i32 },
    /// Run the interpreter's `site`, so that later workers find what needs it.
    RunSite,
    /// Import this, once nobody asks for anything; what it means is the client's (rule 19).
    Learn { lesson: u32, what: Arc<[u8]> },
    /// End.
    Quit,
}

/// From the template to the engine; one datagram each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromTemplate {
    /// The interpreter is up.
    Ready,
    /// The worker is forked; its pidfd comes along.
    Forked { key: u64, pid: i32 },
    /// The fork failed with this error.
    NotForked { key: u64, errno: i32 },
    /// A child has ended, with this wait status, after this much CPU time.
    Exited { pid: i32, status: i32, cpu_us: u64 },
    /// Running `site` left more than one thread, raised or took too long: this template is not fit
    /// to fork any more (rule 19).
    Spoiled,
    /// About to import this in the template itself.
    Learning { lesson: u32 },
    /// That is done, and the template is as fit as before.
    Learned { lesson: u32 },
    /// This is not to be imported in a template. `spoiled`: it was, and this one is not fit to fork any more.
    Unfit { lesson: u32, spoiled: bool },
}

/// How long a datagram is, but for those with a lesson.
const DATAGRAM_BYTES: usize = 24;

/// Longest datagram.
pub const MOST_DATAGRAM_BYTES: usize = 8192;

/// Longest lesson.
pub const MOST_LESSON_BYTES: usize = MOST_DATAGRAM_BYTES - DATAGRAM_BYTES;

/// A datagram that is none of ours.
#[derive(Debug)]
pub struct Garbled;

impl fmt::Display for Garbled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message that is not one of ours")
    }
}

fn datagram(kind: u8, a: u64, b: u32, c: u32) -> [u8; DATAGRAM_BYTES] {
    let mut bytes = [0; DATAGRAM_BYTES];
    bytes[0] = kind;
    bytes[8..16].copy_from_slice(&a.to_le_bytes());
    bytes[16..20].copy_from_slice(&b.to_le_bytes());
    bytes[20..24].copy_from_slice(&c.to_le_bytes());
    bytes
}

fn parse(bytes: &[u8]) -> Option<(u8, u64, u32, u32)> {
    let rest = bytes.get(8..)?;
    let (a, rest) = take_u64(rest)?;
    let (b, rest) = take_u32(rest)?;
    let (c, _) = take_u32(rest)?;
    Some((bytes[0], a, b, c))
}

impl ToTemplate {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let head = match self {
            ToTemplate::Fork { key } => datagram(b'F', *key, 0, 0),
            ToTemplate::Watch { pid } => datagram(b'W', 0, *pid as u32, 0),
            ToTemplate::RunSite => datagram(b'S', 0, 0, 0),
            ToTemplate::Learn { lesson, .. } => datagram(b'L', 0, *lesson, 0),
            ToTemplate::Quit => datagram(b'Q', 0, 0, 0),
        };
        let mut bytes = head.to_vec();
        if let ToTemplate::Learn { what, .. } = self {
            bytes.extend_from_slice(what);
        }
        bytes
    }

    /// From bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<ToTemplate, Garbled> {
        match parse(bytes).ok_or(Garbled)? {
            (b'F', key, _, _) => Ok(ToTemplate::Fork { key }),
            (b'W', _, pid, _) => Ok(ToTemplate::Watch { pid: pid as i32 }),
            (b'S', ..) => Ok(ToTemplate::RunSite),
            (b'L', _, lesson, _) => Ok(ToTemplate::Learn {
                lesson,
                what: bytes[DATAGRAM_BYTES..].into(),
            }),
            (b'Q', ..) => Ok(ToTemplate::Quit),
            _ => Err(Garbled),
        }
    }
}

impl FromTemplate {
    /// As bytes.
    pub fn to_bytes(self) -> [u8; DATAGRAM_BYTES] {
        match self {
            FromTemplate::Ready => datagram(b'R', 0, 0, 0),
            FromTemplate::Forked { key, pid } => datagram(b'F', key, pid as u32, 0),
            FromTemplate::NotForked { key, errno } => datagram(b'N', key, errno as u32, 0),
            FromTemplate::Exited {
                pid,
                status,
                cpu_us,
            } => datagram(b'E', cpu_us, pid as u32, status as u32),
            FromTemplate::Spoiled => datagram(b'X', 0, 0, 0),
            FromTemplate::Learning { lesson } => datagram(b'L', 0, lesson, 0),
            FromTemplate::Learned { lesson } => datagram(b'D', 0, lesson, 0),
            FromTemplate::Unfit { lesson, spoiled } => {
                datagram(b'U', 0, lesson, u32::from(spoiled))
            }
        }
    }

    /// From bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<FromTemplate, Garbled> {
        match parse(bytes).ok_or(Garbled)? {
            (b'R', ..) => Ok(FromTemplate::Ready),
            (b'F', key, pid, _) => Ok(FromTemplate::Forked {
                key,
                pid: pid as i32,
            }),
            (b'N', key, errno, _) => Ok(FromTemplate::NotForked {
                key,
                errno: errno as i32,
            }),
            (b'E', cpu_us, pid, status) => Ok(FromTemplate::Exited {
                pid: pid as i32,
                status: status as i32,
                cpu_us,
            }),
            (b'X', ..) => Ok(FromTemplate::Spoiled),
            (b'L', _, lesson, _) => Ok(FromTemplate::Learning { lesson }),
            (b'D', _, lesson, _) => Ok(FromTemplate::Learned { lesson }),
            (b'U', _, lesson, spoiled) => Ok(FromTemplate::Unfit {
                lesson,
                spoiled: spoiled != 0,
            }),
            _ => Err(Garbled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_datagrams_come_back() {
        let head = PieceHead {
            seq: 7,
            items: 3,
            function: 1 << 40,
            shape: 2,
        };
        let mut bytes = head.to_bytes().to_vec();
        bytes.extend(b"rest");
        assert_eq!(PieceHead::split(&bytes), Some((head, &b"rest"[..])));
        assert_eq!(PieceHead::split(&bytes[..20]), None);
        for message in [
            FromTemplate::Ready,
            FromTemplate::Forked {
                key: u64::MAX,
                pid: 12,
            },
            FromTemplate::Exited {
                pid: 4,
                status: 9,
                cpu_us: 1,
            },
            FromTemplate::Spoiled,
            FromTemplate::Learned { lesson: 3 },
            FromTemplate::Unfit {
                lesson: 4,
                spoiled: true,
            },
        ] {
            assert_eq!(
                FromTemplate::from_bytes(&message.to_bytes()).ok(),
                Some(message)
            );
        }
        assert!(FromTemplate::from_bytes(b"x").is_err());
        assert!(ToTemplate::from_bytes(&[0; DATAGRAM_BYTES]).is_err());
        for what in [&b""[..], b"one two"] {
            let message = ToTemplate::Learn {
                lesson: 5,
                what: what.into(),
            };
            let came = ToTemplate::from_bytes(&message.to_bytes()).ok();
            assert_eq!(came, Some(message));
        }
    }

    #[test]
    fn rows_of_items_come_apart() {
        let mut row = Vec::new();
        push_item(&mut row, |row| row.extend(b"one"));
        push_item(&mut row, |_| ());
        let (first, rest) = take_item(&row).unwrap();
        assert_eq!(first, b"one");
        assert_eq!(take_item(rest), Some((&b""[..], &b""[..])));
        assert_eq!(take_item(&row[..5]), None);
    }
}
