//! The engine's end of one worker: its rings, its process, what it knows.
//!
//! A link exists from the moment a worker is wanted. Work may be written for it before its process is
//! there; nothing reaches the ring until the template has confirmed the fork ([`Link::born`]), so a
//! process that was forked but never confirmed, because the template died in between, finds an
//! empty ring and runs nothing.

use crate::arena;
use crate::definition::Definition;
use crate::engine::Initializer;
use crate::harvest::Harvest;
use crate::items::Slice;
use crate::loans::Loans;
use crate::sys::futex::{self, Scope};
use crate::wire::{self, PieceHead, to_worker};
use rightlane_core::lane::{Measured, WORDS};
use rightlane_core::{Claim, Moment, PieceSeq};
use rightlane_ring::board::SLOTS;
use rightlane_ring::{
    Assembler, Corrupt, Listener, Outgoing, ParentEnd, Peephole, Progress, Wants, sleep,
};
use rustix::process::Signal;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

/// Size of each ring. A message may be larger than its ring: it travels in fragments.
const RING_BYTES: usize = 256 * 1024;

/// Bytes of a message, wherever they live.
#[derive(Debug)]
enum Bytes {
    Own(Vec<u8>),
    Items(Slice),
    Definition(Arc<Definition>),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::Own(bytes) => bytes,
            Bytes::Items(slice) => slice.as_ref(),
            Bytes::Definition(definition) => definition.frame(),
        }
    }
}

/// What was last read of the worker's board.
#[derive(Debug, Default)]
struct Notebook {
    news: u64,
    versions: [u64; SLOTS],
    /// Epoch and sums of each definition.
    totals: HashMap<u64, (u64, Measured)>,
}

/// Of so many definitions at most, since the numbers are the worker's.
const MOST_NOTED: usize = 256;

#[derive(Debug)]
pub(crate) struct Link {
    end: ParentEnd,
    assembler: Assembler,
    outbox: VecDeque<Outgoing<Bytes>>,
    /// What the worker was last told to signal, beside room where something waits for it, and to whom.
    told: (Wants, Listener),
    pub(crate) pid: Option<i32>,
    pub(crate) pidfd: Option<OwnedFd>,
    /// The segments' descriptors, until the template has them.
    segments: Option<(OwnedFd, OwnedFd)>,
    /// What the worker has been sent.
    known: HashMap<u64, Weak<Definition>>,
    /// At how many known definitions it is worth looking for dead ones.
    prune_at: usize,
    /// Set when the process is seen to have ended: until when to wait for the template to say how.
    pub(crate) dead_by: Option<Moment>,
    /// A signal to send as soon as there is a process to send it to.
    wanted_signal: Option<Signal>,
    /// The number of the last piece sent.
    last_seq: u64,
    /// What it wrote made no sense: nothing is read or written any more.
    given_up: bool,
    /// Which large buffers of arguments it may be reading.
    pub(crate) loans: Loans,
    /// Where large buffers of its results are read; None where no memory file is to be had.
    pub(crate) harvest: Option<Arc<Harvest>>,
    noted: Notebook,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(harvest) = &self.harvest {
            harvest.orphan();
        }
    }
}

impl Link {
    /// `with_arena`: large buffers of its results are read where it has placed them.
    pub(crate) fn create(with_arena: bool) -> io::Result<Link> {
        // Without a file for them they come with the answers.
        let file = with_arena.then(arena::create_file).and_then(Result::ok);
        let harvest = file.map(Harvest::new);
        let (end, tasks, answers) = ParentEnd::create(RING_BYTES, RING_BYTES)?;
        Ok(Link {
            end,
            assembler: Assembler::new(wire::MOST_ANSWER_BYTES),
            outbox: VecDeque::new(),
            told: (Wants::NOTHING, Listener::Keeper),
            pid: None,
            pidfd: None,
            segments: Some((tasks, answers)),
            known: HashMap::new(),
            prune_at: 64,
            dead_by: None,
            wanted_signal: None,
            last_seq: 0,
            given_up: false,
            loans: Loans::default(),
            harvest,
            noted: Notebook::default(),
        })
    }

    pub(crate) fn segments(&self) -> Option<&(OwnedFd, OwnedFd)> {
        self.segments.as_ref()
    }

    /// The template has forked the process.
    pub(crate) fn born(&mut self, pid: i32, pidfd: OwnedFd) -> Result<(), Corrupt> {
        self.segments = None;
        self.pid = Some(pid);
        self.pidfd = Some(pidfd);
        if let Some(signal) = self.wanted_signal.take() {
            self.kill(signal);
        }
        self.flush()
    }

    /// The process was never confirmed. Should it exist all the same, this makes it end.
    pub(crate) fn stillborn(&mut self) {
        self.outbox.clear();
        let _ = self.end.tasks.try_push(to_worker::RETIRE, &[]);
        self.ring_doorbell();
    }

    /// Writes what a worker needs before its first piece.
    pub(crate) fn boot(&mut self, world: Vec<u8>, initializer: Option<&Initializer>) {
        self.outbox
            .push_back(Outgoing::new(to_worker::BOOT, Bytes::Own(world)));
        let mut begin = Vec::new();
        if let Some(initializer) = initializer {
            for definition in std::iter::once(&initializer.function).chain(&initializer.needs) {
                debug_assert!(definition.spans().is_empty(), "nobody would lend them");
                self.define(definition);
            }
            begin.extend_from_slice(&initializer.function.id().to_le_bytes());
            begin.extend_from_slice(&initializer.arguments);
        }
        self.outbox
            .push_back(Outgoing::new(to_worker::BEGIN, Bytes::Own(begin)));
    }

    /// Sends the definition and all it needs, unless the worker has them.
    pub(crate) fn define(&mut self, definition: &Arc<Definition>) {
        let mut open = vec![definition];
        while let Some(definition) = open.pop() {
            if self.known.contains_key(&definition.id()) {
                continue;
            }
            self.known
                .insert(definition.id(), Arc::downgrade(definition));
            self.outbox.push_back(Outgoing::new(
                to_worker::DEFINE,
                Bytes::Definition(definition.clone()),
            ));
            open.extend(definition.needs());
        }
    }

    fn forget_dead_definitions(&mut self) {
        if self.known.len() < self.prune_at {
            return;
        }
        let outbox = &mut self.outbox;
        self.known.retain(|id, definition| {
            let alive = definition.strong_count() > 0;
            if !alive {
                outbox.push_back(Outgoing::new(
                    to_worker::FORGET,
                    Bytes::Own(id.to_le_bytes().to_vec()),
                ));
            }
            alive
        });
        self.prune_at = (self.known.len() * 2).max(64);
    }

    pub(crate) fn send_piece(
        &mut self,
        head: PieceHead,
        function: &Arc<Definition>,
        items: Slice,
    ) -> Result<(), Corrupt> {
        self.forget_dead_definitions();
        self.last_seq = head.seq;
        let definitions = std::iter::once(function).chain(items.needs());
        let of_definitions = definitions.flat_map(|definition| definition.spans());
        self.loans
            .lend(head.seq, items.spans().chain(of_definitions));
        self.tell_harvested();
        self.define(function);
        for definition in items.needs() {
            self.define(definition);
        }
        let head = head.to_bytes();
        if self.pid.is_some() && self.outbox.is_empty() {
            // The usual case: straight into the ring, without a copy on the heap.
            if self
                .end
                .tasks
                .try_push(to_worker::PIECE, &[&head, items.as_ref()])
                .is_ok()
            {
                self.ring_doorbell();
                return Ok(());
            }
        }
        self.outbox.push_back(Outgoing::new(
            to_worker::PIECE_HEAD,
            Bytes::Own(head.to_vec()),
        ));
        self.outbox
            .push_back(Outgoing::new(to_worker::ITEMS, Bytes::Items(items)));
        self.flush()
    }

    /// Tells the worker which of its results nobody reads any more. There is no hurry: before the next piece.
    fn tell_harvested(&mut self) {
        let Some(harvest) = &self.harvest else { return };
        let (free, retired) = harvest.take_news();
        for (tag, places) in [(to_worker::FREE, free), (to_worker::RETIRE_REGION, retired)] {
            if !places.is_empty() {
                let bytes = places.iter().flat_map(|place| place.to_le_bytes());
                self.outbox
                    .push_back(Outgoing::new(tag, Bytes::Own(bytes.collect())));
            }
        }
    }

    pub(crate) fn retire(&mut self) -> Result<(), Corrupt> {
        self.outbox
            .push_back(Outgoing::new(to_worker::RETIRE, Bytes::Own(Vec::new())));
        self.flush()
    }

    /// Moves as much as fits into the ring.
    pub(crate) fn flush(&mut self) -> Result<(), Corrupt> {
        if self.pid.is_none() || self.given_up {
            return Ok(());
        }
        let mut announced = false;
        while !self.outbox.is_empty() {
            let before = self.end.tasks.published();
            self.push_some()?;
            let progress = self.end.tasks.published() != before;
            if progress {
                self.ring_doorbell();
            } else if announced {
                break;
            }
            if !self.outbox.is_empty() {
                // The engine may be asleep already, waiting for answers only: from now on room wakes it
                // too. What the worker read before it could see that is room by now, so try once more.
                let (wants, listener) = self.told;
                self.end.announce(wants.and(Wants::ROOM), listener);
                sleep::announced();
                announced = true;
            }
        }
        Ok(())
    }

    fn push_some(&mut self) -> Result<(), Corrupt> {
        while let Some(message) = self.outbox.front_mut() {
            if message.push_some(&mut self.end.tasks)? == Progress::Partial {
                break;
            }
            self.outbox.pop_front();
        }
        Ok(())
    }

    fn ring_doorbell(&self) {
        if self.end.must_wake(Wants::MESSAGES) {
            futex::wake(self.end.doorbell(), 1, Scope::Shared);
        }
    }

    /// Hands every message that has arrived to `each`. True if there was any.
    pub(crate) fn read(
        &mut self,
        mut each: impl FnMut(u32, Cow<'_, [u8]>),
    ) -> Result<bool, Corrupt> {
        let mut any = false;
        // In batches, so that the worker gets room back while we go on reading.
        while !self.given_up && self.end.has_answers() {
            let popped = self
                .assembler
                .pop_batch(&mut self.end.answers, 512, &mut each);
            any = true;
            if popped? == 0 && !self.end.has_answers() {
                break;
            }
        }
        if any && self.end.must_wake(Wants::ROOM) {
            futex::wake(self.end.doorbell(), 1, Scope::Shared);
        }
        Ok(any)
    }

    /// Announces that the engine is about to sleep. Then [`sleep::announced`], then [`Link::is_busy`].
    pub(crate) fn announce(&mut self, wants: Wants, listener: Listener) {
        self.told = (wants, listener);
        self.end
            .announce(wants.and_if(!self.outbox.is_empty(), Wants::ROOM), listener);
    }

    /// Whether there is something to read. Tries once more to write what waits for room.
    pub(crate) fn is_busy(&mut self) -> bool {
        // A corrupt ring shows when it is read.
        let _ = self.flush();
        !self.given_up && self.end.has_answers()
    }

    /// The worker does not keep to the protocol, and will be killed: its rings hold nothing any more.
    pub(crate) fn give_up(&mut self) {
        self.given_up = true;
        self.outbox.clear();
    }

    pub(crate) fn awake(&mut self) {
        self.told.0 = Wants::NOTHING;
        if self.outbox.is_empty() {
            self.end.awake();
        }
    }

    pub(crate) fn peephole(&self) -> Peephole {
        self.end.peephole()
    }

    /// Whether the worker has measured something since this was last asked.
    pub(crate) fn has_notes(&self) -> bool {
        self.end.board().news() != self.noted.news
    }

    /// Hands out what the worker has measured since: of which definition, in which of its epochs, what
    /// was known of that before, and what is now.
    pub(crate) fn read_notes(&mut self, mut each: impl FnMut(u64, u64, &Measured, &Measured)) {
        self.noted.news = self.end.board().news();
        for (at, version) in self.noted.versions.iter_mut().enumerate() {
            let Some((read, record)) = self.end.board().read(at, *version) else {
                continue;
            };
            *version = read;
            let mut words = [0; WORDS];
            words.copy_from_slice(&record[2..2 + WORDS]);
            let total = Measured::from_words(&words);
            let (definition, epoch) = (record[0], record[1]);
            if self.noted.totals.len() >= MOST_NOTED {
                self.noted.totals.clear();
            }
            let before = self.noted.totals.insert(definition, (epoch, total));
            // Of a call that goes on, what was told in its middle is told again at its end, and may have been too much.
            let before = before.filter(|(known, _)| *known == epoch);
            let before = before.map(|(_, before)| before).unwrap_or_default();
            each(definition, epoch, &before, &total);
        }
    }

    /// Whether the worker has said something, or there may be room for what waits for it.
    pub(crate) fn has_news(&self) -> bool {
        !self.given_up && (self.end.has_answers() || self.has_notes() || !self.outbox.is_empty())
    }

    pub(crate) fn revoke(&self, seq: PieceSeq) -> Option<Claim> {
        self.read_claim(self.end.revoke(seq.0))
    }

    pub(crate) fn claim(&self) -> Option<Claim> {
        self.read_claim(self.end.claim())
    }

    /// The claim word holds the low half of a piece's number; the rest follows from the last one sent,
    /// because a worker never holds pieces that are four billion apart.
    fn read_claim(&self, claim: rightlane_ring::Claim) -> Option<Claim> {
        if claim == rightlane_ring::Claim::NOTHING {
            return None;
        }
        let (low, item) = claim.parts().unwrap_or((u32::MAX, 0));
        let back = u64::from((self.last_seq as u32).wrapping_sub(low));
        // Further back than there were pieces: not a claim but rubbish, and the scheduler is told so.
        let seq = self.last_seq.checked_sub(back).unwrap_or(u64::MAX);
        Some(Claim {
            seq: PieceSeq(seq),
            item,
        })
    }

    /// Sends a signal to the worker's whole group, or keeps it for when there is a process.
    pub(crate) fn kill(&mut self, signal: Signal) {
        let (Some(pid), Some(pidfd)) = (self.pid, &self.pidfd) else {
            self.wanted_signal = Some(signal);
            return;
        };
        // By the pidfd first: where it says that the process is gone, its number may be somebody else's.
        if rustix::process::pidfd_send_signal(pidfd, signal).is_ok()
            && let Some(group) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}
