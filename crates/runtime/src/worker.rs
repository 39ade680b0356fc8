//! A worker process from the inside: reads messages, claims items, answers.
//!
//! What running an item means is the client's. The order of things is ours (rule 8): an item is
//! claimed before anything that belongs to it is unpickled, its answer is published as soon as it
//! ends, and the engine is woken only where it has something to do.

use crate::arena::{Arena, Span};
use crate::borrowed::Borrowed;
use crate::items::Moved;
use crate::meter::{ClientLock, Meter};
use crate::nursery::Seat;
use crate::sys::futex::{self, Scope, Waited};
use crate::sys::process::{block_all_signals, empty_mask, exit_now, watch_forks};
use crate::wire::{self, AnswerHead, PieceHead, to_engine, to_worker};
use rightlane_ring::{
    Assembler, AttachError, Attempt, Corrupt, Listener, Outgoing, Progress, Wants, WorkerEnd,
};
use rustix::process::Signal;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How long a worker with nothing to do looks again and again before it sleeps. Settled by the
/// prototype: longer steals from whoever shares the core, shorter pays for a wake with each task.
const SPIN_NS: u64 = 20_000;

/// What the engine says.
#[derive(Debug)]
pub enum Message {
    /// The caller's world.
    Boot {
        /// As the client captured it.
        world: Vec<u8>,
    },
    /// Run the initializer, if there is one, and say that you are ready.
    Begin {
        /// Its definition and arguments.
        initializer: Option<(u64, Vec<u8>)>,
    },
    /// A definition.
    Define { id: u64, bytes: Vec<u8> },
    /// A definition that is no longer needed.
    Forget { id: u64 },
    /// Work.
    Piece(Piece),
    /// End by yourself.
    Retire,
}

/// Items to run.
#[derive(Debug)]
pub struct Piece {
    /// Its head.
    pub head: PieceHead,
    message: Vec<u8>,
    next_at: usize,
}

impl Piece {
    /// The number of the first item and the rule by which the client makes all of them, if they come so.
    pub fn rule(&self) -> Option<(u64, &[u8])> {
        if self.head.shape & wire::GENERATED == 0 {
            return None;
        }
        wire::take_u64(&self.message[self.next_at..])
    }

    /// The next item's bytes.
    pub fn next_item(&mut self) -> Option<&[u8]> {
        let (item, rest) = wire::take_item(&self.message[self.next_at..])?;
        self.next_at = self.message.len() - rest.len();
        Some(item)
    }
}

/// Why a worker can't go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The segments are not what they should be.
    #[error("failed to attach to the engine: {0}")]
    Attach(#[from] AttachError),
    /// The engine wrote something that makes no sense.
    #[error("the engine's ring is corrupt: {0}")]
    Ring(#[from] Corrupt),
    /// The engine sent a message that makes no sense.
    #[error("the engine sent a message of unknown kind {0}")]
    Message(u32),
    /// A thread could not be started.
    #[error("failed to start the watcher thread: {0}")]
    Watcher(#[from] io::Error),
}

/// Where a worker works.
#[derive(Debug)]
pub struct Desk {
    end: WorkerEnd,
    keeper: OwnedFd,
    waiter: OwnedFd,
    assembler: Assembler,
    /// The head of a piece whose items come as the next message.
    announced: Option<PieceHead>,
    /// How far the engine had read before the last attempt to write.
    read_then: u64,
    borrowed: Option<Arc<Borrowed>>,
    results: Option<Arc<Arena>>,
    /// Large buffers of results that somebody may still read, by their place.
    placed: HashMap<u64, Arc<Span>>,
}

impl Desk {
    /// Takes up work in a freshly forked process.
    pub fn sit(seat: Seat) -> Result<Desk, WorkerError> {
        empty_mask();
        watch_forks();
        let Seat {
            tasks,
            answers,
            keeper,
            waiter,
            engine,
            arenas,
            ..
        } = seat;
        let end = WorkerEnd::attach(tasks, answers)?;
        watch_engine(engine)?;
        let (borrowed, results) = match arenas {
            Some(arenas) => (
                Some(Borrowed::new(arenas.arguments)),
                arenas.results.map(Arena::of_results),
            ),
            None => (None, None),
        };
        if let Some(results) = &results {
            crate::homes::in_worker(results);
        }
        Ok(Desk {
            end,
            keeper,
            waiter,
            assembler: Assembler::new(usize::MAX),
            announced: None,
            read_then: 0,
            borrowed,
            results,
            placed: HashMap::new(),
        })
    }

    /// What measures the tasks that the calling thread runs.
    pub fn meter(&self, client: ClientLock, clocks_only: bool) -> Meter {
        let signals = [&self.keeper, &self.waiter].map(OwnedFd::try_clone);
        let signals = signals.into_iter().flatten().collect();
        Meter::new(client, self.end.notes(), signals, clocks_only)
    }

    /// Where large buffers of arguments are read.
    pub fn borrowed(&self) -> Option<&Arc<Borrowed>> {
        self.borrowed.as_ref()
    }

    /// Where large buffers of results are placed.
    pub fn results(&self) -> Option<&Arc<Arena>> {
        self.results.as_ref()
    }

    /// Writes what goes before the client's bytes in an answer with these buffers. They are kept until the engine
    /// says that nobody reads them any more.
    pub fn place(
        &mut self,
        spans: impl ExactSizeIterator<Item = Arc<Span>>,
        moved: Moved,
        answer: &mut Vec<u8>,
    ) {
        answer.extend_from_slice(&(spans.len() as u32).to_le_bytes());
        answer.extend_from_slice(&moved.to_bytes());
        for span in spans {
            let placement = span.placement();
            answer.extend_from_slice(&placement.to_bytes());
            self.placed.insert(placement.id(), span);
        }
    }

    /// The next message, if one is there.
    pub fn try_next(&mut self) -> Result<Option<Message>, WorkerError> {
        while let Some((tag, bytes)) = self.assembler.try_pop(&mut self.end.tasks)? {
            self.provide(Wants::ROOM);
            match self.understand(tag, bytes) {
                Some(Some(message)) => {
                    if self.end.tasks.is_empty() {
                        self.provide(Wants::DRY);
                    }
                    return Ok(Some(message));
                }
                Some(None) => {}
                None => return Err(WorkerError::Message(tag)),
            }
        }
        // A message that comes in fragments frees room as it is read.
        if self.assembler.is_midway() {
            self.provide(Wants::ROOM);
        }
        Ok(None)
    }

    fn understand(&mut self, tag: u32, mut bytes: Vec<u8>) -> Option<Option<Message>> {
        let message = match tag {
            to_worker::BOOT => Message::Boot { world: bytes },
            to_worker::BEGIN => {
                let initializer =
                    wire::take_u64(&bytes).map(|(id, arguments)| (id, arguments.to_vec()));
                Message::Begin { initializer }
            }
            to_worker::DEFINE => {
                let (id, _) = wire::take_u64(&bytes)?;
                bytes.drain(..8);
                Message::Define { id, bytes }
            }
            to_worker::FORGET => Message::Forget {
                id: wire::take_u64(&bytes)?.0,
            },
            to_worker::PIECE => {
                let (head, _) = PieceHead::split(&bytes)?;
                Message::Piece(Piece {
                    head,
                    message: bytes,
                    next_at: PieceHead::BYTES,
                })
            }
            to_worker::PIECE_HEAD => {
                self.announced = Some(PieceHead::split(&bytes)?.0);
                return Some(None);
            }
            to_worker::ITEMS => Message::Piece(Piece {
                head: self.announced.take()?,
                message: bytes,
                next_at: 0,
            }),
            to_worker::RETIRE => Message::Retire,
            to_worker::FREE => {
                for place in wire::take_all_u64(&bytes)? {
                    self.placed.remove(&place);
                }
                return Some(None);
            }
            to_worker::RETIRE_REGION => {
                for region_at in wire::take_all_u64(&bytes)? {
                    if let Some(results) = &self.results {
                        results.retire_region(region_at);
                    }
                }
                return Some(None);
            }
            _ => return None,
        };
        Some(Some(message))
    }

    /// Waits until a message may be there. Returns early if a signal arrives: its handler may have to run.
    pub fn wait(&mut self) -> Waited {
        self.wait_for(Wants::MESSAGES)
    }

    fn wait_for(&mut self, wants: Wants) -> Waited {
        let read_then = self.read_then;
        let there = |end: &mut WorkerEnd| match wants {
            Wants::MESSAGES => !end.tasks.is_empty(),
            // A corrupt position ends the wait as well; pushing says so.
            _ => end.answers.consumed() != Ok(read_then),
        };
        let begun = crate::sys::now();
        for round in 0_u32.. {
            if there(&mut self.end) {
                return Waited::Woken;
            }
            if round < 64 {
                std::hint::spin_loop();
            } else {
                // Never spin without yielding: the engine may be waiting for this very core.
                rustix::thread::sched_yield();
                if crate::sys::now().0 - begun.0 > SPIN_NS {
                    break;
                }
            }
        }
        let seen = self.end.prepare_sleep(wants);
        let waited = if there(&mut self.end) {
            Waited::Woken
        } else {
            futex::wait(self.end.doorbell(), seen, None, Scope::Shared)
        };
        self.end.cancel_sleep();
        waited
    }

    /// Claims an item; false if its piece was taken back: then say so with [`Desk::skipped`].
    #[must_use]
    pub fn claim(&mut self, seq: u64, item: u32) -> bool {
        self.end.claim(seq, item) == Attempt::Claimed
    }

    /// Begins the answer to a claimed item. `busy_ns`, with the last item of a piece: how long it took. `placed`:
    /// the bytes begin with what [`Desk::place`] wrote.
    pub fn answer<'b>(
        &self,
        seq: u64,
        item: u32,
        flavor: u8,
        placed: bool,
        busy_ns: Option<u64>,
        bytes: &'b mut [u8],
    ) -> Answer<'b> {
        debug_assert!(
            bytes.len() >= AnswerHead::BYTES,
            "the client leaves room for the head"
        );
        let mut flavor = u32::from(flavor) << to_engine::FLAVOR_SHIFT;
        if placed {
            flavor |= to_engine::PLACED;
        }
        let (tag, bytes) = match busy_ns {
            Some(busy_ns) => {
                let head = AnswerHead { seq, item, busy_ns };
                bytes[..AnswerHead::BYTES].copy_from_slice(&head.to_bytes());
                (to_engine::ANSWER | to_engine::LAST | flavor, &*bytes)
            }
            None => (to_engine::NEXT | flavor, &bytes[AnswerHead::BYTES..]),
        };
        Answer {
            outgoing: Outgoing::new(tag, bytes),
            last: busy_ns.is_some(),
            looks_at_room: item.is_multiple_of(64),
        }
    }

    /// Publishes as much of an answer as there is room for; false: wait with [`Desk::wait_for_room`] and go
    /// on.
    pub fn publish(&mut self, answer: &mut Answer<'_>) -> Result<bool, WorkerError> {
        let done = answer.push_whole(&mut self.end) || self.push_some(&mut answer.outgoing)?;
        // Stored as it ends; a wake only where the engine has asked for one.
        if !done {
            self.provide(Wants::ANY);
        } else if answer.last {
            let idle = self.end.tasks.is_empty();
            self.provide(Wants::MESSAGES.and_if(idle, Wants::IDLE));
        } else {
            let full = answer.looks_at_room && self.is_filling();
            let provided = Wants::MESSAGES.and_if(full, Wants::FULL);
            // Nearly always nobody listens within a piece, and a fence costs as much as a short item.
            if self.end.parent_may_want(provided) {
                self.provide(provided);
            }
        }
        Ok(done)
    }

    /// Wakes whoever in the engine waits for this.
    fn provide(&mut self, provided: Wants) {
        let signal = match self.end.parent_to_wake(provided) {
            None => return,
            Some(Listener::Keeper) => &self.keeper,
            Some(Listener::Waiter) => &self.waiter,
        };
        let _ = rustix::io::write(signal, &1_u64.to_ne_bytes());
    }

    /// True when all of it is published.
    fn push_some<B: AsRef<[u8]>>(
        &mut self,
        outgoing: &mut Outgoing<B>,
    ) -> Result<bool, WorkerError> {
        // Before the attempt: whatever the engine reads from here on may make the room that is missing.
        self.read_then = self.end.answers.consumed()?;
        Ok(outgoing.push_some(&mut self.end.answers)? == Progress::Done)
    }

    fn is_filling(&mut self) -> bool {
        self.end
            .answers
            .free_bytes()
            .is_ok_and(|free| free < self.end.answers.max_bytes() / 2)
    }

    /// Waits for room in the answer ring.
    pub fn wait_for_room(&mut self) -> Waited {
        self.wait_for(Wants::ROOM)
    }

    /// Before the end of a piece: which large buffers of its arguments are still used, and which of those before are
    /// not any more.
    pub fn tell_loans(&mut self) -> Result<(), WorkerError> {
        let Some(borrowed) = &self.borrowed else {
            return Ok(());
        };
        let (kept, released) = borrowed.take_news();
        for (tag, places) in [(to_engine::KEPT, kept), (to_engine::RELEASED, released)] {
            if !places.is_empty() {
                let bytes: Vec<u8> = places
                    .iter()
                    .flat_map(|place| place.to_le_bytes())
                    .collect();
                self.tell(tag, &bytes)?;
            }
        }
        Ok(())
    }

    /// The items from `from` on were not touched, because the piece was taken back.
    pub fn skipped(&mut self, seq: u64, from: u32) -> Result<(), WorkerError> {
        let head = AnswerHead {
            seq,
            item: from,
            busy_ns: 0,
        };
        self.tell(to_engine::SKIPPED, &head.to_bytes())
    }

    /// This item, which has been claimed and not touched, and all that follows it are for another worker; this one
    /// ends. The claim stands until the engine has read of it.
    pub fn refused(&mut self, seq: u64, from: u32) -> Result<(), WorkerError> {
        let head = AnswerHead {
            seq,
            item: from,
            busy_ns: 0,
        };
        self.tell(to_engine::REFUSED, &head.to_bytes())
    }

    /// The process is up.
    pub fn started(&mut self) -> Result<(), WorkerError> {
        self.tell(to_engine::STARTED, &[])
    }

    /// Ready for work.
    pub fn ready(&mut self) -> Result<(), WorkerError> {
        self.tell(to_engine::READY, &[])
    }

    /// The initializer raised this.
    pub fn initializer_raised(&mut self, packed: &[u8]) -> Result<(), WorkerError> {
        self.tell(to_engine::INITIALIZER_RAISED, packed)
    }

    /// Something for the client's other half.
    pub fn notice(&mut self, bytes: &[u8]) -> Result<(), WorkerError> {
        self.tell(to_engine::NOTICE, bytes)
    }

    /// For messages between tasks: waits for room, if need be, without minding signals.
    fn tell(&mut self, tag: u32, bytes: &[u8]) -> Result<(), WorkerError> {
        let mut outgoing = Outgoing::new(tag, bytes);
        while !self.push_some(&mut outgoing)? {
            self.provide(Wants::ANY);
            let _ = self.wait_for(Wants::ROOM);
        }
        self.provide(Wants::ANY);
        Ok(())
    }
}

impl Answer<'_> {
    /// The usual case: all of it fits.
    fn push_whole(&self, end: &mut WorkerEnd) -> bool {
        let bytes = self.outgoing.as_bytes();
        bytes.len() <= 64
            && !self.outgoing.has_begun()
            && end.answers.try_push(self.outgoing.tag(), &[bytes]).is_ok()
    }
}

/// An answer on its way.
#[derive(Debug)]
pub struct Answer<'b> {
    outgoing: Outgoing<&'b [u8]>,
    last: bool,
    /// Whether to see how full the ring is: now and then is enough, and each look costs the engine's cache line.
    looks_at_room: bool,
}

/// When the engine dies, this process and everything in its group dies, whatever it is doing (rule 13).
fn watch_engine(engine: OwnedFd) -> io::Result<()> {
    let watch = move || {
        block_all_signals();
        let mut fds = [rustix::event::PollFd::new(
            &engine,
            rustix::event::PollFlags::IN,
        )];
        while rustix::event::poll(&mut fds, None).is_err() || fds[0].revents().is_empty() {}
        let _ = rustix::process::kill_process_group(rustix::process::getpgrp(), Signal::KILL);
        exit_now(1);
    };
    std::thread::Builder::new()
        .name("rightlane-watch".into())
        .stack_size(64 * 1024)
        .spawn(watch)?;
    Ok(())
}
