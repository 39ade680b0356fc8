//! One executor: the pure scheduler wired to rings, processes and threads.
//!
//! All state lies under one lock, held for microseconds. Two kinds of threads come here: the user's,
//! which submit, cancel and wait, and the hub's, which reads answers and supervises. A thread of the
//! user takes the lock only while it holds its interpreter's lock (for Python), the hub's never holds
//! that one; so neither can wait for the other. What a call held is dropped after the lock is
//! released, because dropping may run foreign code.

use crate::arena::{self, Placement, Span};
use crate::bounds::{Amount, Bounds, MaxPending};
use crate::client::{AnswerBytes, Client, End, Loss, Run};
use crate::definition::Definition;
use crate::engine::waiting::{Care, Rest, Signals};
use crate::harvest::{Fruit, Harvest};
use crate::hub::{self, Ending, ForkGuard, Member, Membership, lock};
use crate::items::{Block, Items, Moved};
use crate::link::Link;
use crate::loans::News;
use crate::sys::futex::{self, Scope, Waited};
use crate::wire::{self, AnswerHead, GENERATED, PieceHead, to_engine};
use rightlane_core::event::{Action, Breakage, Claim, Event, Exit, Lane, Verdict};
use rightlane_core::ids::IdMap;
use rightlane_core::{
    CallId, CallSpec, Cancel, Config, Moment, PieceSeq, Port, Refused, Scheduler, WorkerId, WorldId,
};
use rustix::process::Signal;
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

pub mod waiting;

/// How long to wait for the template to say how a worker ended, once it is seen to have ended.
const EXIT_STATUS_NS: u64 = 1_000_000_000;

/// How many pieces may wait in a busy worker's ring.
const PREFETCH: u32 = 1;

/// What is fixed when an executor is made.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The hard cap on started, unfinished tasks.
    pub max_slots: u32,
    /// How many items one worker process may run.
    pub items_per_worker: Option<u64>,
    /// After how long an idle worker process or lane thread ends.
    pub idle: Option<Duration>,
    /// How much may be pending.
    pub max_pending: MaxPending,
}

impl Limits {
    fn config(&self) -> Config {
        let ns = |idle: Duration| u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
        Config {
            items_per_worker: self.items_per_worker,
            idle_ns: self.idle.map(ns),
            cores: waiting::cores(),
            ..Config::new(self.max_slots, PREFETCH)
        }
    }
}

/// What a call carries to worker processes.
#[derive(Debug)]
pub struct Remote {
    /// What to call.
    pub function: Arc<Definition>,
    /// How the client's worker half reads the items.
    pub shape: u32,
    /// The first items.
    pub items: Block,
}

/// A call of one item, which may travel together with others of the same function.
#[derive(Debug)]
pub struct Single<'a> {
    /// What to call.
    pub function: &'a Arc<Definition>,
    /// How the client's worker half reads the item.
    pub shape: u32,
    /// The item; an empty block is left.
    pub item: &'a mut Block,
}

/// How the items of a call come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// The user's own chunk size.
    pub chunk_items: Option<u64>,
    /// Whether more items may come.
    pub open: bool,
}

/// What runs in each worker before its first task.
#[derive(Debug)]
pub struct Initializer {
    /// What to call.
    pub function: Arc<Definition>,
    /// The client's bytes.
    pub arguments: Box<[u8]>,
    /// What the arguments refer to.
    pub needs: Vec<Arc<Definition>>,
}

enum Body<C: Client> {
    Remote {
        function: Arc<Definition>,
        shape: u32,
        items: Items,
    },
    Local(Arc<C::Local>),
}

struct Held<C: Client> {
    ticket: Arc<C::Ticket>,
    body: Body<C>,
    abandoned: Arc<AtomicBool>,
}

/// An open call that single items of one function join, so that they travel in pieces sized by measured time.
#[derive(Debug)]
struct Stream {
    function: u64,
    shape: u32,
    call: CallId,
}

/// How many functions have a stream at a time. Whoever alternates between more pays for calls of their own.
const MOST_STREAMS: usize = 4;

/// An item whose arguments are not kept here.
const ONE: Amount = Amount { items: 1, bytes: 0 };

/// Items of a call for a lane thread to run.
pub struct ThreadPiece<C: Client> {
    /// The call, to be named in [`ThreadDone`].
    pub call: CallId,
    /// Which of its items.
    pub items: Range<u64>,
    /// Whose they are.
    pub ticket: Arc<C::Ticket>,
    /// What to run.
    pub local: Arc<C::Local>,
    abandoned: Arc<AtomicBool>,
}

impl<C: Client> ThreadPiece<C> {
    /// Whether the items not yet begun have been cancelled.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

/// What a lane thread did with a piece.
#[derive(Clone, Debug)]
pub struct ThreadDone {
    /// The call.
    pub call: CallId,
    /// How many items it ran and settled.
    pub ran: u32,
    /// What it stood back from.
    pub rest: Range<u64>,
    /// How long that took.
    pub busy_ns: u64,
}

/// What a lane thread is to do next.
pub enum ThreadNext<C: Client> {
    /// Run this.
    Run(ThreadPiece<C>),
    /// Call [`Engine::wait_for_thread_work`] with this, then ask again.
    Wait(u32),
    /// End.
    End,
}

/// Why the executor is broken, in full.
#[derive(Clone, Debug)]
pub struct BreakageReport {
    /// What happened.
    pub breakage: Breakage,
    /// What the initializer raised, as the worker packed it.
    pub raised: Option<Vec<u8>>,
    /// Why a process could not be made.
    pub spawn_error: Option<String>,
}

struct State<C: Client> {
    scheduler: Scheduler,
    floor: Floor<C>,
}

/// How little must be pending for those to be told who wait for room.
#[derive(Clone, Copy, Debug)]
struct RoomMark {
    pending: Amount,
    /// Whether calls were accepted when they began to wait: they are told, too, when that changes.
    open: bool,
}

/// Everything the scheduler's decisions act on.
struct Floor<C: Client> {
    links: BTreeMap<WorkerId, Link>,
    calls: IdMap<CallId, Held<C>>,
    streams: Vec<Stream>,
    /// The stream of lane threads, and how many items it has had.
    local_stream: Option<(CallId, u64)>,
    /// Kept for its memory.
    run: Run,
    membership: Option<Membership>,
    /// What workers signal when somebody should look.
    signals: Option<Arc<Signals>>,
    care: Care,
    /// The hub's end, if this executor was its last.
    ending: Option<Arc<Ending>>,
    /// The caller's worlds, as the client captured them: the present one, and those that open calls and living
    /// workers belong to.
    worlds: BTreeMap<WorldId, Arc<[u8]>>,
    initializer: Option<Arc<Initializer>>,
    raised: Option<Vec<u8>>,
    spawn_error: Option<String>,
    killed_by_user: bool,
    drained: bool,
    /// Something was settled of which a thread that attends does not know.
    settled: bool,
    /// The membership is still to be left, and whoever waits to be told.
    just_drained: bool,

    threads: VecDeque<ThreadPiece<C>>,
    live_threads: u32,
    /// Calls and items of the thread lane that have not ended: there are never more threads than items.
    open_thread_calls: u64,
    open_thread_items: u64,
    /// What has not ended of the process lane.
    pending: Amount,
    /// If anybody waits for room.
    room_mark: Option<RoomMark>,

    /// News made while acting on decisions.
    faults: Vec<Event>,
    /// What to drop after the lock is released.
    garbage: Vec<Held<C>>,
    garbage_pieces: Vec<ThreadPiece<C>>,
    garbage_spans: Vec<Arc<Span>>,
    garbage_links: Vec<Link>,
    threads_to_wake: u32,
    /// Deadlines have come up that the hub thread does not know of.
    wake_hub: bool,
    /// When the hub thread will act on deadlines by itself.
    hub_until: Option<Moment>,
    /// For standard error, which may be a full pipe: written after the lock is released.
    messages: String,
}

impl<C: Client> Port for Floor<C> {
    fn fit(&self, call: CallId, items: &Range<u64>) -> u64 {
        match self.calls.get(&call).map(|held| &held.body) {
            Some(Body::Remote { items: kept, .. }) => kept.fit(items),
            Some(Body::Local(_)) | None => items.end - items.start,
        }
    }

    fn revoke(&mut self, worker: WorkerId, seq: PieceSeq) -> Option<Claim> {
        self.links.get(&worker)?.revoke(seq)
    }
}

/// See the module.
pub struct Engine<C: Client> {
    client: C,
    limits: Limits,
    state: Mutex<State<C>>,
    /// Changes whenever a lane thread may have something to do.
    thread_bell: AtomicU32,
    thread_sleepers: AtomicU32,
    /// Whether one of them polls instead.
    thread_polls: AtomicBool,
    /// Changes when the executor has drained.
    drained_bell: AtomicU32,
    bounds: Bounds,
    /// Changes when whoever waits for room should look again.
    room_bell: AtomicU32,
    /// How many of the thread lane's items have ended whose threads have not reported it: nobody may see an end, and
    /// then be told that there is no room.
    threads_ended: AtomicU64,
    /// Whether a thread attends, for those who do not hold the lock.
    attended: AtomicBool,
    /// How many wait to be told of ends, without attending.
    watchers: AtomicU32,
    /// Changes in a forked child.
    forks: AtomicU32,
    /// Changes with the set of workers.
    links_changed: AtomicU32,
    /// Until everything is over.
    stay: Mutex<Option<arena::Stay>>,
    myself: Weak<Engine<C>>,
}

impl<C: Client> std::fmt::Debug for Engine<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<C: Client> Floor<C> {
    fn new(initializer: Option<Arc<Initializer>>) -> Floor<C> {
        Floor {
            links: BTreeMap::new(),
            calls: IdMap::default(),
            streams: Vec::new(),
            local_stream: None,
            run: Run::default(),
            membership: None,
            signals: None,
            care: Care::default(),
            ending: None,
            worlds: BTreeMap::new(),
            initializer,
            raised: None,
            spawn_error: None,
            killed_by_user: false,
            drained: false,
            settled: false,
            just_drained: false,
            threads: VecDeque::new(),
            live_threads: 0,
            open_thread_calls: 0,
            open_thread_items: 0,
            pending: Amount::default(),
            room_mark: None,
            faults: Vec::new(),
            garbage: Vec::new(),
            garbage_pieces: Vec::new(),
            garbage_spans: Vec::new(),
            garbage_links: Vec::new(),
            threads_to_wake: 0,
            wake_hub: false,
            hub_until: None,
            messages: String::new(),
        }
    }
}

impl<C: Client> Engine<C> {
    /// An executor within these limits. Nothing is started yet.
    pub fn new(client: C, limits: Limits, initializer: Option<Initializer>) -> Arc<Engine<C>> {
        let state = State {
            scheduler: Scheduler::new(limits.config()),
            floor: Floor::new(initializer.map(Arc::new)),
        };
        Arc::new_cyclic(|myself| Engine {
            client,
            limits,
            state: Mutex::new(state),
            thread_bell: AtomicU32::new(0),
            thread_sleepers: AtomicU32::new(0),
            thread_polls: AtomicBool::new(false),
            drained_bell: AtomicU32::new(0),
            bounds: Bounds::new(limits.max_pending),
            room_bell: AtomicU32::new(0),
            threads_ended: AtomicU64::new(0),
            attended: AtomicBool::new(false),
            watchers: AtomicU32::new(0),
            forks: AtomicU32::new(0),
            links_changed: AtomicU32::new(0),
            stay: Mutex::new(Some(arena::Stay::new())),
            myself: myself.clone(),
        })
    }

    /// The client.
    pub fn client(&self) -> &C {
        &self.client
    }

    /// Has the template started, so that it is up by the time the first task is.
    pub fn prepare_processes(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        self.join_hub(&mut state)
    }

    fn join_hub(&self, state: &mut State<C>) -> io::Result<()> {
        if state.floor.membership.is_none()
            && let Some(me) = self.myself.upgrade()
        {
            let membership = hub::join(me)?;
            let signals = Signals::create()
                .and_then(|signals| membership.listen(signals.keeper.as_fd()).map(|()| signals));
            match signals {
                Ok(signals) => state.floor.signals = Some(Arc::new(signals)),
                Err(error) => {
                    membership.leave(None);
                    return Err(error);
                }
            }
            state.floor.membership = Some(membership);
        }
        Ok(())
    }

    // ---- calls ---------------------------------------------------------------------------------

    /// Accepts a call for worker processes.
    pub fn submit_remote(
        &self,
        remote: Remote,
        ticket: C::Ticket,
        plan: Plan,
    ) -> Result<CallId, SubmitError> {
        self.with(|engine, state| {
            state.scheduler.accepts()?;
            engine.join_hub(state)?;
            let mut items = Items::default();
            let count = remote.items.len() as u64;
            let amount = remote.items.amount();
            items.extend(remote.items);
            let body = Body::Remote {
                function: remote.function,
                shape: remote.shape,
                items,
            };
            let id = engine.accept(state, Lane::Process, count, body, ticket, plan)?;
            state.floor.pending.add(amount);
            Ok(id)
        })
    }

    /// Accepts a single item for worker processes: it joins the stream of its function where that keeps the order
    /// of service, else it opens one. `open` makes a new stream's ticket; `join` tells a stream's ticket of the
    /// item, whose number it is given, before anything can happen to it. Where there is no room, the item is left.
    pub fn submit_single(
        &self,
        single: Single<'_>,
        room: Room,
        open: impl FnOnce(CallId) -> C::Ticket,
        join: impl FnOnce(&C::Ticket, u64),
    ) -> Result<(), SubmitError> {
        self.with(|engine, state| {
            state.scheduler.accepts()?;
            let Single {
                function,
                shape,
                item,
            } = single;
            let amount = item.amount();
            engine.check_room(state, amount, room)?;
            engine.join_hub(state)?;
            let floor = &mut state.floor;
            let known = floor
                .streams
                .iter()
                .position(|stream| stream.function == function.id() && stream.shape == shape);
            let mut pace = None;
            if let Some(at) = known {
                let call = floor.streams[at].call;
                if state.scheduler.joins_in_order(call)
                    && let Some(Held {
                        ticket,
                        body: Body::Remote { items, .. },
                        ..
                    }) = floor.calls.get_mut(&call)
                {
                    items.push(item);
                    floor.pending.add(amount);
                    join(ticket, items.count() - 1);
                    state.scheduler.extend(call, 1);
                    return Ok(());
                }
                pace = state.scheduler.pace(call);
            }
            let out = known.or((floor.streams.len() == MOST_STREAMS).then_some(0));
            if let Some(at) = out {
                let old = floor.streams.remove(at);
                state.scheduler.close_call(old.call);
            }
            let spec = CallSpec {
                lane: Lane::Process,
                chunk_items: None,
                items: 1,
                closed: false,
                pace,
            };
            let call = state.scheduler.open(&spec)?;
            let ticket = open(call);
            join(&ticket, 0);
            let mut items = Items::default();
            items.push(item);
            state.floor.pending.add(amount);
            let body = Body::Remote {
                function: function.clone(),
                shape,
                items,
            };
            let held = Held {
                ticket: Arc::new(ticket),
                body,
                abandoned: Arc::new(AtomicBool::new(false)),
            };
            state.floor.calls.insert(call, held);
            state.floor.streams.push(Stream {
                function: function.id(),
                shape,
                call,
            });
            Ok(())
        })
    }

    /// Accepts a single item for lane threads, as [`Engine::submit_single`] does for processes; one stream takes
    /// them all, because each item brings its own function. Each travels alone: one that waits must not hold up
    /// others.
    pub fn submit_local_single(
        &self,
        room: Room,
        open: impl FnOnce(CallId) -> (C::Ticket, Arc<C::Local>),
        join: impl FnOnce(&C::Ticket, &C::Local, u64),
    ) -> Result<(), SubmitError> {
        self.with(|engine, state| {
            state.scheduler.accepts()?;
            engine.check_room(state, ONE, room)?;
            state.floor.open_thread_items += 1;
            if let Some((call, items)) = &mut state.floor.local_stream
                && state.scheduler.joins_in_order(*call)
                && let Some(Held {
                    ticket,
                    body: Body::Local(local),
                    ..
                }) = state.floor.calls.get(call)
            {
                join(ticket, local, *items);
                *items += 1;
                state.scheduler.extend(*call, 1);
                return Ok(());
            }
            if let Some((old, _)) = state.floor.local_stream.take() {
                state.scheduler.close_call(old);
            }
            let spec = CallSpec {
                lane: Lane::Thread,
                chunk_items: Some(1),
                items: 1,
                closed: false,
                pace: None,
            };
            let call = state.scheduler.open(&spec)?;
            let (ticket, local) = open(call);
            join(&ticket, &local, 0);
            let held = Held {
                ticket: Arc::new(ticket),
                body: Body::Local(local),
                abandoned: Arc::new(AtomicBool::new(false)),
            };
            state.floor.calls.insert(call, held);
            state.floor.open_thread_calls += 1;
            state.floor.local_stream = Some((call, 1));
            Ok(())
        })
    }

    /// Accepts a call of `count` items for lane threads.
    pub fn submit_local(
        &self,
        local: Arc<C::Local>,
        count: u64,
        ticket: C::Ticket,
        plan: Plan,
    ) -> Result<CallId, SubmitError> {
        self.with(|engine, state| {
            let id = engine.accept(state, Lane::Thread, count, Body::Local(local), ticket, plan)?;
            state.floor.open_thread_calls += 1;
            state.floor.open_thread_items += count;
            Ok(id)
        })
    }

    fn accept(
        &self,
        state: &mut State<C>,
        lane: Lane,
        items: u64,
        body: Body<C>,
        ticket: C::Ticket,
        plan: Plan,
    ) -> Result<CallId, SubmitError> {
        let spec = CallSpec {
            lane,
            chunk_items: plan.chunk_items,
            items,
            closed: !plan.open,
            pace: None,
        };
        // The scheduler dispatches only afterwards, so the payload is in place in time.
        let id = state.scheduler.open(&spec)?;
        let held = Held {
            ticket: Arc::new(ticket),
            body,
            abandoned: Arc::new(AtomicBool::new(false)),
        };
        state.floor.calls.insert(id, held);
        Ok(id)
    }

    /// More items of an open call. False if the call has ended meanwhile: then nobody settles them.
    pub fn extend_remote(&self, call: CallId, block: Block) -> bool {
        self.with(|_, state| {
            let count = block.len() as u64;
            let Some(Held {
                body: Body::Remote { items, .. },
                ..
            }) = state.floor.calls.get_mut(&call)
            else {
                return false;
            };
            state.floor.pending.add(block.amount());
            items.extend(block);
            state.scheduler.extend(call, count);
            true
        })
    }

    /// More items of an open call; what they are, the client keeps in its `Local`. False as above.
    pub fn extend_local(&self, call: CallId, count: u64) -> bool {
        self.with(|_, state| {
            let open = state.floor.calls.contains_key(&call);
            if open {
                state.floor.open_thread_items += count;
                state.scheduler.extend(call, count);
            }
            open
        })
    }

    /// Which items of a call no worker was sent yet.
    pub fn fresh(&self, call: CallId) -> Range<u64> {
        lock(&self.state).scheduler.fresh(call)
    }

    /// Of these items some go to lane threads instead: `take` is told which there are, and says how many of the first
    /// of them, and what they are there. It runs under the engine's lock. None if nothing has moved.
    pub fn move_to_threads(
        &self,
        call: CallId,
        take: impl FnOnce(Range<u64>) -> Option<(u64, C::Ticket, Arc<C::Local>)>,
    ) -> Option<CallId> {
        self.with(|engine, state| {
            state.scheduler.accepts().ok()?;
            let fresh = state.scheduler.fresh(call);
            let (count, ticket, local) = take(fresh.clone())?;
            let count = count.min(fresh.end - fresh.start);
            let body = Body::Local(local);
            let plan = Plan::default();
            let moved = engine.accept(state, Lane::Thread, count, body, ticket, plan);
            let moved = moved.ok()?;
            state.floor.open_thread_calls += 1;
            state.floor.open_thread_items += count;
            state.scheduler.serve_before(moved, call);
            let given = state.scheduler.give_away(call, count);
            if let Some(Held {
                body: Body::Remote { items, .. },
                ..
            }) = state.floor.calls.get_mut(&call)
            {
                state.floor.pending.take(items.ended(given));
            }
            Some(moved)
        })
    }

    /// No more items will come.
    pub fn close_call(&self, call: CallId) {
        self.with(|_, state| state.scheduler.close_call(call));
    }

    /// Cancels one item; false if it has been claimed or has ended.
    pub fn cancel(&self, call: CallId, item: u64) -> bool {
        self.with(|_, state| {
            state.call_back_thread_pieces(Some(call));
            // Not by revoking its piece to find out: the items around it would travel again.
            if state.is_claimed(call, item) {
                return false;
            }
            state.scheduler.cancel(call, item, &mut state.floor) == Cancel::Cancelled
        })
    }

    /// Cancels what is unclaimed of a call, and lets no more items in.
    pub fn abandon(&self, call: CallId) {
        self.with(|_, state| {
            state.call_back_thread_pieces(Some(call));
            if let Some(held) = state.floor.calls.get(&call) {
                held.abandoned.store(true, Ordering::Relaxed);
            }
            state.scheduler.abandon(call, &mut state.floor);
        });
    }

    /// Whether this item, of a stream or of a thread's call, has been claimed and has not ended.
    pub fn is_running(&self, call: CallId, item: u64) -> bool {
        let state = lock(&self.state);
        if state.floor.threads.iter().any(|piece| piece.call == call) {
            return false;
        }
        match state.scheduler.holder(call, item) {
            Some(_) => state.is_claimed(call, item),
            None => {
                let is_local = |held: &Held<C>| matches!(held.body, Body::Local(_));
                state.floor.calls.get(&call).is_some_and(is_local)
                    && state.scheduler.travelling(call) > 0
            }
        }
    }
    /// The caller's world, as workers forked from now on shall have it (rule 20). Those that are there will do.
    pub fn set_world(&self, world: &[u8]) {
        let state = &mut *lock(&self.state);
        let now = state.floor.worlds.entry(state.scheduler.world());
        let now = now.or_insert_with(|| Arc::new([]));
        if **now != *world {
            *now = Arc::from(world);
        }
    }

    /// Whether the caller's world should be told before a call: there is none yet, or, `anew`, the call may have a
    /// worker started.
    pub fn wants_world(&self, anew: bool) -> bool {
        let state = lock(&self.state);
        let known = state.floor.worlds.contains_key(&state.scheduler.world());
        !known || anew && state.scheduler.may_spawn_for_more()
    }

    /// The caller's world has become another one: calls that are accepted from now on run only on workers forked
    /// in it, those accepted before on workers of theirs.
    pub fn turn_world(&self, world: &[u8]) {
        let State { scheduler, floor } = &mut *lock(&self.state);
        let known = floor.worlds.iter().find(|(_, known)| ***known == *world);
        let id = known.map(|(&id, _)| id).unwrap_or_else(|| {
            let last = floor.worlds.keys().next_back().copied();
            let last = last.max(Some(scheduler.world()));
            WorldId(last.map_or(0, |last| last.0 + 1))
        });
        scheduler.set_world(id);
        floor.worlds.entry(id).or_insert_with(|| Arc::from(world));
        let used = scheduler.worlds();
        floor.worlds.retain(|id, _| used.contains(id));
    }

    // ---- room ----------------------------------------------------------------------------------

    /// What is accepted and has not ended.
    pub fn pending(&self) -> Amount {
        lock(&self.state).pending(self)
    }

    /// What may be, as far as that bounds anything.
    pub fn most_pending(&self) -> Amount {
        self.bounds.most()
    }

    /// Takes this for the memory that is free; for tests.
    pub fn assume_memory(&self, free_bytes: u64) {
        self.bounds.assume(free_bytes);
    }

    /// Whether calls are accepted, and whether there is room for one more item, as far as its arguments do not matter.
    pub fn admits(&self) -> Result<bool, Refused> {
        let state = lock(&self.state);
        state.scheduler.accepts()?;
        Ok(self.bounds.fits(state.pending(self), ONE))
    }

    /// Whether there is room for so much more.
    pub fn has_room(&self, more: Amount) -> bool {
        self.bounds.fits(self.pending(), more)
    }

    /// How many tasks run at a time, at most.
    pub fn max_slots(&self) -> u32 {
        self.limits.max_slots
    }

    fn check_room(&self, state: &State<C>, more: Amount, room: Room) -> Result<(), SubmitError> {
        if room == Room::Needed && !self.bounds.fits(state.pending(self), more) {
            return Err(SubmitError::Full(more));
        }
        Ok(())
    }

    /// A word to sleep on until there may be room for so much more, and what it says now: it changes then, and when
    /// calls are no longer accepted. None if there is room.
    pub fn wait_for_room(&self, more: Amount) -> Option<(&AtomicU32, u32)> {
        let mut state = lock(&self.state);
        if self.bounds.fits(state.pending(self), more) {
            return None;
        }
        let mut mark = RoomMark {
            pending: self.bounds.mark(more),
            open: state.scheduler.accepts().is_ok(),
        };
        if let Some(other) = state.floor.room_mark {
            mark.pending.items = mark.pending.items.max(other.pending.items);
            mark.pending.bytes = mark.pending.bytes.max(other.pending.bytes);
        }
        state.floor.room_mark = Some(mark);
        Some((&self.room_bell, self.room_bell.load(Ordering::SeqCst)))
    }

    // ---- lane threads --------------------------------------------------------------------------

    /// An item of the thread lane ends: to be said before its end can be seen, once for each that [`ThreadDone`]
    /// counts.
    pub fn thread_item_ends(&self) {
        self.threads_ended.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a lane thread should be started now; if so it is counted, and the caller starts it.
    pub fn wants_thread(&self) -> bool {
        let floor = &mut lock(&self.state).floor;
        let useful = floor
            .open_thread_items
            .min(u64::from(self.limits.max_slots));
        // One for each item that has not ended, whether or not it has a slot yet: who gives a slot back may be
        // the hub, which can start no thread.
        let wanted = u64::from(floor.live_threads) < useful;
        if wanted {
            floor.live_threads += 1;
        }
        wanted
    }

    /// Whether a lane thread that has waited in vain for as long as one may is to end: then it is counted no more.
    pub fn thread_may_end(&self) -> bool {
        let floor = &mut lock(&self.state).floor;
        let useful = floor
            .open_thread_items
            .min(u64::from(self.limits.max_slots));
        let ends = floor.threads.is_empty() && u64::from(floor.live_threads) > useful;
        floor.live_threads -= u32::from(ends);
        ends
    }

    /// A thread that was counted could not be started, or has ended.
    pub fn thread_ended(&self) {
        let mut state = lock(&self.state);
        state.floor.live_threads -= 1;
    }

    /// What a lane thread is to do, now that it is `done` with what it had.
    pub fn thread_next(&self, done: Option<ThreadDone>) -> ThreadNext<C> {
        self.with(|engine, state| {
            if let Some(done) = done {
                state.thread_piece_done(&done);
                let ran = u64::from(done.ran);
                engine.threads_ended.fetch_sub(ran, Ordering::SeqCst);
            }
            state.act(engine);
            match state.floor.threads.pop_front() {
                Some(piece) => ThreadNext::Run(piece),
                None if state.floor.drained
                    || state.scheduler.accepts().is_err() && !state.has_thread_work() =>
                {
                    ThreadNext::End
                }
                None => ThreadNext::Wait(engine.thread_bell.load(Ordering::SeqCst)),
            }
        })
    }

    /// A lane thread's initializer raised.
    pub fn thread_initializer_raised(&self) {
        self.with(|_, state| {
            // What no thread has picked up waits again, and breaks with the rest.
            state.call_back_thread_pieces(None);
            let _ = state
                .scheduler
                .handle(Event::ThreadInitializerRaised, crate::sys::now());
        });
    }

    // ---- endings -------------------------------------------------------------------------------

    /// Takes no more calls and lets what is accepted finish; `cancel` ends what is unclaimed instead, `kill`
    /// ends the workers too.
    pub fn shutdown(&self, cancel: bool, kill: bool) {
        self.with(|_, state| {
            let streams = std::mem::take(&mut state.floor.streams);
            let calls = streams.iter().map(|stream| stream.call);
            let local = state.floor.local_stream.take();
            for call in calls.chain(local.map(|(call, _)| call)) {
                state.scheduler.close_call(call);
            }
            if cancel || kill {
                state.call_back_thread_pieces(None);
                for held in state.floor.calls.values() {
                    held.abandoned.store(true, Ordering::Relaxed);
                }
                state.scheduler.abandon_all(&mut state.floor);
            }
            if kill {
                state.floor.killed_by_user = true;
                state.scheduler.kill_all();
            }
            state.scheduler.close(crate::sys::now());
        });
        self.ring_threads(u32::MAX);
    }

    /// Starts workers ahead of their work, until there are so many.
    pub fn start_workers(&self, count: u32) -> io::Result<()> {
        self.with(|engine, state| {
            engine.join_hub(state)?;
            state.scheduler.start_workers(count, crate::sys::now());
            Ok(())
        })
    }

    /// Whether nothing is left: no call, no worker.
    pub fn is_drained(&self) -> bool {
        lock(&self.state).floor.drained
    }

    /// A word to sleep on until the executor has drained: changes then.
    pub fn drained_bell(&self) -> &AtomicU32 {
        &self.drained_bell
    }

    /// The end of the hub, if it ends on behalf of this executor and has not yet.
    pub fn hub_ending(&self) -> Option<Arc<Ending>> {
        let state = lock(&self.state);
        state
            .floor
            .ending
            .clone()
            .filter(|ending| !ending.is_over())
    }

    /// Why the executor takes no more calls, if it doesn't.
    pub fn refusal(&self) -> Option<Refused> {
        lock(&self.state).scheduler.accepts().err()
    }

    /// All that is known about a breakage.
    pub fn breakage(&self, breakage: Breakage) -> BreakageReport {
        let floor = &lock(&self.state).floor;
        BreakageReport {
            breakage,
            raised: floor.raised.clone(),
            spawn_error: floor.spawn_error.clone(),
        }
    }

    /// The calls that have not ended and, where a worker holds them, its pid.
    pub fn open_calls(&self) -> Vec<(Arc<C::Ticket>, Option<i32>)> {
        let state = lock(&self.state);
        let ids = state.scheduler.open_calls();
        let open = ids.iter().filter_map(|id| {
            let held = state.floor.calls.get(id)?;
            let pid = state
                .scheduler
                .holders(*id)
                .find_map(|worker| state.floor.links.get(&worker)?.pid);
            Some((held.ticket.clone(), pid))
        });
        open.collect()
    }

    /// The pids of the workers that live and were not told to end, in the order in which they were asked for.
    pub fn worker_pids(&self) -> Vec<i32> {
        let state = lock(&self.state);
        let links = state.floor.links.iter();
        let up = links.filter(|(id, link)| link.dead_by.is_none() && state.scheduler.is_up(**id));
        up.filter_map(|(_, link)| link.pid).collect()
    }

    /// Sends a signal to every worker process that lives, those that are about to end included; not to what its
    /// tasks have started. False if that is not the number of a signal.
    #[must_use]
    pub fn signal_workers(&self, signal: i32) -> bool {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return false;
        };
        for link in lock(&self.state).floor.links.values() {
            if let Some(pidfd) = &link.pidfd {
                // Whoever is gone needs none.
                let _ = rustix::process::pidfd_send_signal(pidfd, signal);
            }
        }
        true
    }

    /// The workers that have not been told to end, each with a pidfd of its own, and whether some are asked for that
    /// are not there yet.
    pub fn worker_handles(&self) -> io::Result<(Vec<(i32, OwnedFd)>, bool)> {
        let state = lock(&self.state);
        let mut awaited = false;
        let mut handles = Vec::new();
        for (&worker, link) in &state.floor.links {
            if !state.scheduler.is_up(worker) || link.dead_by.is_some() {
                continue;
            }
            match (link.pid, &link.pidfd) {
                (Some(pid), Some(pidfd)) => handles.push((pid, pidfd.try_clone()?)),
                _ => awaited = true,
            }
        }
        Ok((handles, awaited))
    }

    /// In a forked child: forgets workers and threads, ends every call as cancelled, and is ready for new
    /// work, unless it had been shut down.
    pub fn reset_in_child(&self) {
        let old = {
            let mut state = lock(&self.state);
            let was_open = !matches!(state.scheduler.accepts(), Err(Refused::ShutDown));
            *lock(&self.stay) = was_open.then(arena::Stay::new);
            let floor = Floor::new(state.floor.initializer.clone());
            let mut fresh = State {
                scheduler: Scheduler::new(self.limits.config()),
                floor,
            };
            // Futures and maps from before the fork must not be taken for new ones.
            fresh.scheduler.number_calls_after(&state.scheduler);
            if !was_open {
                fresh.scheduler.close(crate::sys::now());
                fresh.floor.drained = true;
            }
            let open = state.scheduler.open_calls();
            for id in open {
                if let Some(held) = state.floor.calls.get(&id) {
                    self.client.cancel_in_child(&held.ticket);
                }
            }
            self.watchers.store(0, Ordering::SeqCst);
            self.forks.fetch_add(1, Ordering::SeqCst);
            self.attended.store(false, Ordering::SeqCst);
            self.thread_sleepers.store(0, Ordering::SeqCst);
            self.thread_polls.store(false, Ordering::SeqCst);
            self.threads_ended.store(0, Ordering::SeqCst);
            std::mem::replace(&mut *state, fresh)
        };
        drop(old);
    }

    // ---- the lock ------------------------------------------------------------------------------

    /// Runs `change` under the lock, acts on what the scheduler decides, and drops the leftovers after.
    fn with<R>(&self, change: impl FnOnce(&Engine<C>, &mut State<C>) -> R) -> R {
        let mut state = lock(&self.state);
        let result = change(self, &mut state);
        self.finish(state);
        result
    }

    fn finish(&self, mut state: MutexGuard<'_, State<C>>) {
        state.act(self);
        state.see_to_care(self);
        let planned = state.floor.hub_until;
        if let Some(at) = state.scheduler.deadline()
            && planned.is_none_or(|planned| at < planned)
        {
            state.floor.hub_until = Some(at);
            state.floor.wake_hub = true;
        }
        let ring_room = state.takes_room_mark(self);
        if ring_room {
            self.room_bell.fetch_add(1, Ordering::SeqCst);
        }
        if std::mem::take(&mut state.floor.settled) || ring_room {
            state.signal_waiter();
        }
        let garbage = std::mem::take(&mut state.floor.garbage);
        let pieces = std::mem::take(&mut state.floor.garbage_pieces);
        let spans = std::mem::take(&mut state.floor.garbage_spans);
        let links = std::mem::take(&mut state.floor.garbage_links);
        let to_wake = std::mem::take(&mut state.floor.threads_to_wake);
        let messages = std::mem::take(&mut state.floor.messages);
        if std::mem::take(&mut state.floor.wake_hub)
            && let Some(membership) = &state.floor.membership
        {
            membership.wake();
        }
        let just_drained = std::mem::take(&mut state.floor.just_drained);
        if just_drained && let Some(membership) = state.floor.membership.take() {
            // Under the lock: who sees that the executor has drained sees whether the hub goes with it.
            let signals = state.floor.signals.take();
            let signal = signals.as_ref().map(|signals| signals.keeper.as_fd());
            state.floor.ending = membership.leave(signal);
        }
        drop(state);
        // Giving gigabytes back to the system may take a second; before anybody hears that all has ended.
        drop(links);
        self.ring_threads(to_wake);
        if ring_room {
            futex::wake(&self.room_bell, u32::MAX, Scope::Private);
        }
        if just_drained {
            self.drained_bell.fetch_add(1, Ordering::Release);
            futex::wake(&self.drained_bell, u32::MAX, Scope::Private);
        }
        if !messages.is_empty() {
            let _ = rustix::io::write(rustix::stdio::stderr(), messages.as_bytes());
        }
        drop(garbage);
        drop(pieces);
        drop(spans);
    }

    fn ring_threads(&self, count: u32) {
        if count == 0 {
            return;
        }
        self.thread_bell.fetch_add(1, Ordering::SeqCst);
        // One thread polls as a rule: it is there at once.
        let polls = u32::from(self.thread_polls.load(Ordering::SeqCst));
        if count > polls && self.thread_sleepers.load(Ordering::SeqCst) > 0 {
            futex::wake(&self.thread_bell, count - polls, Scope::Private);
        }
    }

    /// What a lane thread does with [`ThreadNext::Wait`]: returns when there may be something to do; false when it
    /// has waited in vain for as long as one may. Without the interpreter's lock.
    #[must_use]
    pub fn wait_for_thread_work(&self, seen: u32) -> bool {
        let changed = || self.thread_bell.load(Ordering::SeqCst) != seen;
        if !self.thread_polls.swap(true, Ordering::SeqCst) {
            waiting::poll_until(waiting::SPIN_CROWDED_NS, changed);
            self.thread_polls.store(false, Ordering::SeqCst);
        }
        self.thread_sleepers.fetch_add(1, Ordering::SeqCst);
        let waited = futex::wait(&self.thread_bell, seen, self.limits.idle, Scope::Private);
        self.thread_sleepers.fetch_sub(1, Ordering::SeqCst);
        waited != Waited::TimedOut
    }
}

impl<C: Client> State<C> {
    /// What is accepted and has not ended, in all lanes.
    fn pending(&self, engine: &Engine<C>) -> Amount {
        let of_threads = self.floor.open_thread_items;
        let ended = engine.threads_ended.load(Ordering::SeqCst);
        Amount {
            items: self.floor.pending.items + of_threads.saturating_sub(ended),
            ..self.floor.pending
        }
    }

    /// Whether somebody who waits for room is to be told; then nobody waits any more.
    fn takes_room_mark(&mut self, engine: &Engine<C>) -> bool {
        let Some(mark) = self.floor.room_mark else {
            return false;
        };
        let is_open = self.scheduler.accepts().is_ok();
        let told = mark.open != is_open || self.pending(engine).is_within(mark.pending);
        if told {
            self.floor.room_mark = None;
        }
        told
    }

    /// Whether a worker has claimed this item and not answered it.
    fn is_claimed(&self, call: CallId, item: u64) -> bool {
        self.scheduler
            .holder(call, item)
            .is_some_and(|(worker, held)| {
                let claim = self.floor.links.get(&worker).and_then(Link::claim);
                self.scheduler.is_claimed(worker, held, claim)
            })
    }

    fn has_thread_work(&self) -> bool {
        self.floor.open_thread_calls > 0
    }

    /// Takes back pieces that no thread has picked up yet, as if they had never been handed out.
    fn call_back_thread_pieces(&mut self, call: Option<CallId>) {
        let mut kept = VecDeque::new();
        for piece in std::mem::take(&mut self.floor.threads) {
            if call.is_none_or(|call| call == piece.call) {
                let done = ThreadDone {
                    call: piece.call,
                    ran: 0,
                    rest: piece.items.clone(),
                    busy_ns: 0,
                };
                self.thread_piece_done(&done);
                self.floor.garbage_pieces.push(piece);
            } else {
                kept.push_back(piece);
            }
        }
        self.floor.threads = kept;
    }

    fn thread_piece_done(&mut self, done: &ThreadDone) {
        self.floor.open_thread_items -= u64::from(done.ran);
        for _ in 0..done.ran {
            self.scheduler.thread_answered(done.call);
        }
        self.scheduler.thread_skipped(done.call, done.rest.clone());
        let event = Event::ThreadPieceDone {
            call: done.call,
            items: done.ran,
            busy_ns: done.busy_ns,
        };
        let _ = self.scheduler.handle(event, crate::sys::now());
    }

    /// Has the scheduler decide and carries its decisions out, until there are none.
    fn act(&mut self, engine: &Engine<C>) {
        let now = crate::sys::now();
        let mut spare = Vec::new();
        loop {
            self.scheduler.dispatch(now, &mut self.floor);
            let mut actions = self.scheduler.take_actions(spare);
            if actions.is_empty() && self.floor.faults.is_empty() {
                break;
            }
            for action in actions.drain(..) {
                self.perform(engine, action);
            }
            spare = actions;
            for fault in std::mem::take(&mut self.floor.faults) {
                let _ = self.scheduler.handle(fault, now);
            }
        }
    }

    fn perform(&mut self, engine: &Engine<C>, action: Action) {
        let floor = &mut self.floor;
        match action {
            Action::Spawn(worker) => {
                engine.links_changed.fetch_add(1, Ordering::Release);
                let world = self.scheduler.world_of(worker);
                if let Err(error) = floor.spawn(worker, world.unwrap_or_default(), arena::mine()) {
                    floor.spawn_error = Some(error.to_string());
                    floor.faults.push(Event::SpawnFailed(worker));
                }
            }
            Action::Send {
                worker,
                seq,
                call,
                items,
            } => {
                let (Some(link), Some(held)) =
                    (floor.links.get_mut(&worker), floor.calls.get(&call))
                else {
                    return;
                };
                let Body::Remote {
                    function,
                    shape,
                    items: kept,
                } = &held.body
                else {
                    return;
                };
                let Some(slice) = kept.slice(&items) else {
                    return;
                };
                let count = (items.end - items.start) as u32;
                let head = PieceHead {
                    seq: seq.0,
                    items: count,
                    function: function.id(),
                    shape: if slice.is_generated() {
                        *shape | GENERATED
                    } else {
                        *shape
                    },
                };
                if link.send_piece(head, function, slice).is_err() {
                    self.scheduler.kill(worker);
                }
            }
            Action::RunOnThread { call, items } => {
                let Some(held) = floor.calls.get(&call) else {
                    return;
                };
                let Body::Local(local) = &held.body else {
                    return;
                };
                floor.threads.push_back(ThreadPiece {
                    call,
                    items,
                    ticket: held.ticket.clone(),
                    local: local.clone(),
                    abandoned: held.abandoned.clone(),
                });
                floor.threads_to_wake = floor.threads_to_wake.saturating_add(1);
            }
            Action::Retire(worker) => {
                floor.wake_hub = true;
                if let Some(link) = floor.links.get_mut(&worker) {
                    let _ = link.retire();
                }
            }
            Action::Terminate(worker) => {
                if let Some(link) = floor.links.get_mut(&worker) {
                    let pid = link.pid.unwrap_or(0);
                    let text = format!(
                        "rightlane: worker {pid} has not ended {} s after it was asked to, and is \
                         stopped before its exit handlers have finished\n",
                        rightlane_core::RETIRE_NS / 1_000_000_000
                    );
                    floor.messages.push_str(&text);
                    link.kill(Signal::TERM);
                }
            }
            Action::Kill(worker) => {
                if let Some(link) = floor.links.get_mut(&worker) {
                    link.kill(Signal::KILL);
                }
            }
            Action::Drop(worker) => {
                engine.links_changed.fetch_add(1, Ordering::Release);
                if let Some(link) = floor.links.remove(&worker) {
                    if let Some(membership) = &floor.membership
                        && let Some(pid) = link.pid
                    {
                        membership.forget(pid);
                    }
                    floor.garbage_links.push(link);
                }
            }
            Action::Settle {
                call,
                items,
                verdict,
            } => {
                let pid = match verdict {
                    Verdict::Lost { worker, .. } => {
                        floor.links.get(&worker).and_then(|link| link.pid)
                    }
                    _ => None,
                };
                let Some(held) = floor.calls.get_mut(&call) else {
                    return;
                };
                floor.settled = true;
                let end = match verdict {
                    Verdict::Cancelled => End::Cancelled,
                    Verdict::Lost { exit, attempt, .. } => End::Lost(Loss {
                        pid,
                        exit,
                        attempt,
                        killed_by_user: floor.killed_by_user,
                    }),
                    Verdict::Broken(breakage) => End::Broken(breakage),
                };
                engine.client.settle_all(&held.ticket, items.clone(), &end);
                match &mut held.body {
                    Body::Remote { items: kept, .. } => floor.pending.take(kept.ended(items)),
                    Body::Local(_) => floor.open_thread_items -= items.end - items.start,
                }
            }
            Action::CallDone(call) => {
                if let Some(held) = floor.calls.remove(&call) {
                    if let Body::Local(_) = held.body {
                        floor.open_thread_calls -= 1;
                        if self.scheduler.accepts().is_err() && floor.open_thread_calls == 0 {
                            floor.threads_to_wake = u32::MAX;
                        }
                    }
                    floor.garbage.push(held);
                }
            }
            Action::Drained => {
                floor.drained = true;
                floor.just_drained = true;
                drop(lock(&engine.stay).take());
                floor.threads_to_wake = u32::MAX;
            }
        }
    }

    /// Reads what one worker has said. True if it has said anything.
    fn read(&mut self, engine: &Engine<C>, worker: WorkerId) -> bool {
        let Some(mut link) = self.floor.links.remove(&worker) else {
            return false;
        };
        let mut sane = true;
        let mut run = std::mem::take(&mut self.floor.run);
        let harvest = link.harvest.clone();
        if link.has_notes() {
            let client = &engine.client;
            link.read_notes(|definition, epoch, before, now| {
                client.measured(definition, epoch, before, now);
            });
        }
        let mut loans = Vec::new();
        let read = link.read(|tag, message| {
            // Short answers within a piece come by the thousand: they are settled together.
            let is_short = tag & (0xff | to_engine::PLACED) == to_engine::NEXT;
            if is_short && matches!(message, Cow::Borrowed(_)) {
                run.push((tag >> to_engine::FLAVOR_SHIFT) as u8, &message);
                if run.is_full() {
                    sane = sane && self.settle_run(engine, worker, &mut run);
                }
                return;
            }
            sane = sane
                && self.settle_run(engine, worker, &mut run)
                && self.hear(engine, worker, tag, message, harvest.as_ref(), &mut loans);
        });
        let over = &mut self.floor.garbage_spans;
        sane = sane && loans.into_iter().all(|news| link.loans.hear(news, over));
        sane = sane && self.settle_run(engine, worker, &mut run);
        run.clear();
        self.floor.run = run;
        let broken = read.is_err() || link.flush().is_err() || !sane;
        if broken {
            link.give_up();
        }
        self.floor.links.insert(worker, link);
        if broken {
            // What it wrote is input; it is not one of ours any more (invariant 7).
            self.scheduler.kill(worker);
        }
        read.unwrap_or(true)
    }

    /// The answers to the next items of a worker's first piece. False if it has not so many.
    fn settle_run(&mut self, engine: &Engine<C>, worker: WorkerId, run: &mut Run) -> bool {
        if run.is_empty() {
            return true;
        }
        let answered = self.scheduler.answered_next(worker, run.len() as u32);
        let Ok((call, places)) = answered else {
            return false;
        };
        self.floor.settled = true;
        if let Some(held) = self.floor.calls.get_mut(&call) {
            engine.client.settle_run(&held.ticket, places.start, run);
            if let Body::Remote { items, .. } = &mut held.body {
                self.floor.pending.take(items.ended(places));
            }
        }
        run.clear();
        true
    }

    /// One message of a worker. False if no well-behaved worker sends it.
    fn hear(
        &mut self,
        engine: &Engine<C>,
        worker: WorkerId,
        tag: u32,
        message: Cow<'_, [u8]>,
        harvest: Option<&Arc<Harvest>>,
        loans: &mut Vec<News>,
    ) -> bool {
        match tag & 0xff {
            to_engine::ANSWER => {
                let Some((head, _)) = AnswerHead::split(&message) else {
                    return false;
                };
                let seq = PieceSeq(head.seq);
                // First of all: what cannot be read is not an answer, and its item must still come to an end.
                let answer = AnswerBytes::new(message, AnswerHead::BYTES);
                let Some(bytes) = with_fruits(answer, tag, harvest) else {
                    return false;
                };
                let Ok((call, place)) = self.scheduler.answered(worker, seq, head.item) else {
                    return false;
                };
                self.floor.settled = true;
                if let Some(held) = self.floor.calls.get_mut(&call) {
                    let flavor = (tag >> to_engine::FLAVOR_SHIFT) as u8;
                    engine
                        .client
                        .settle(&held.ticket, place, End::Answer { flavor, bytes });
                    if let Body::Remote { items, .. } = &mut held.body {
                        self.floor.pending.take(items.ended(place..place + 1));
                    }
                }
                if tag & to_engine::LAST == 0 {
                    return true;
                }
                loans.push(News::Ended(head.seq));
                let done = Event::PieceDone {
                    worker,
                    seq,
                    busy_ns: head.busy_ns,
                };
                self.scheduler.handle(done, crate::sys::now()).is_ok()
            }
            to_engine::NEXT => {
                let Some(bytes) = with_fruits(AnswerBytes::new(message, 0), tag, harvest) else {
                    return false;
                };
                let Ok((call, places)) = self.scheduler.answered_next(worker, 1) else {
                    return false;
                };
                self.floor.settled = true;
                if let Some(held) = self.floor.calls.get_mut(&call) {
                    let flavor = (tag >> to_engine::FLAVOR_SHIFT) as u8;
                    let end = End::Answer { flavor, bytes };
                    engine.client.settle(&held.ticket, places.start, end);
                    if let Body::Remote { items, .. } = &mut held.body {
                        self.floor.pending.take(items.ended(places));
                    }
                }
                true
            }
            to_engine::SKIPPED => {
                let Some((head, _)) = AnswerHead::split(&message) else {
                    return false;
                };
                loans.push(News::Ended(head.seq));
                let event = Event::Skipped {
                    worker,
                    seq: PieceSeq(head.seq),
                    from: head.item,
                };
                self.scheduler.handle(event, crate::sys::now()).is_ok()
            }
            to_engine::REFUSED => {
                let Some((head, _)) = AnswerHead::split(&message) else {
                    return false;
                };
                loans.push(News::Ended(u64::MAX));
                let event = Event::Refused {
                    worker,
                    seq: PieceSeq(head.seq),
                    from: head.item,
                };
                self.scheduler.handle(event, crate::sys::now()).is_ok()
            }
            to_engine::STARTED => self
                .scheduler
                .handle(Event::Started(worker), crate::sys::now())
                .is_ok(),
            to_engine::READY => self
                .scheduler
                .handle(Event::Ready(worker), crate::sys::now())
                .is_ok(),
            to_engine::INITIALIZER_RAISED => {
                self.floor
                    .raised
                    .get_or_insert_with(|| message.into_owned());
                self.scheduler
                    .handle(Event::InitializerRaised(worker), crate::sys::now())
                    .is_ok()
            }
            to_engine::KEPT | to_engine::RELEASED => {
                let Some(places) = wire::take_all_u64(&message) else {
                    return false;
                };
                let places = places.collect();
                loans.push(match tag & 0xff {
                    to_engine::KEPT => News::Kept(places),
                    _ => News::Released(places),
                });
                true
            }
            to_engine::NOTICE => {
                engine.client.notice(&message);
                true
            }
            _ => false,
        }
    }

    /// The process is gone, and everything it said has been read or never will be.
    fn worker_gone(&mut self, engine: &Engine<C>, worker: WorkerId, exit: Exit) {
        self.read(engine, worker);
        let claim = self.floor.links.get(&worker).and_then(Link::claim);
        let _ = self.scheduler.handle(
            Event::Gone {
                worker,
                exit,
                claim,
            },
            crate::sys::now(),
        );
    }
}

/// Takes what stands before the client's bytes where an answer has large buffers. None if a worker would not write it.
fn with_fruits<'a>(
    answer: AnswerBytes<'a>,
    tag: u32,
    harvest: Option<&Arc<Harvest>>,
) -> Option<AnswerBytes<'a>> {
    if tag & to_engine::PLACED == 0 {
        return Some(answer);
    }
    let harvest = harvest?;
    let all = answer.as_slice();
    let (count, rest) = wire::take_u32(all)?;
    let (moved, mut rest) = Moved::take(rest)?;
    let mut fruits: Vec<Arc<Fruit>> = Vec::new();
    for _ in 0..count {
        let (placement, after) = Placement::take(rest)?;
        rest = after;
        fruits.push(Arc::new(harvest.pick(placement).ok()?));
    }
    let skip = all.len() - rest.len();
    Some(answer.with_fruits(skip, fruits, moved))
}

impl<C: Client> Floor<C> {
    fn spawn(
        &mut self,
        worker: WorkerId,
        world: WorldId,
        arena: Option<arena::Mine>,
    ) -> io::Result<()> {
        let membership = self
            .membership
            .as_ref()
            .ok_or_else(|| io::Error::other("not a member of the hub"))?;
        let mut link = Link::create(arena.is_some())?;
        let world = self.worlds.get(&world).map(|world| world.to_vec());
        link.boot(world.unwrap_or_default(), self.initializer.as_deref());
        // From its first message on the worker is to wake an engine that sleeps already.
        link.announce(self.care.told, self.care.listener);
        if let (Some((tasks, answers)), Some(signals)) = (link.segments(), &self.signals) {
            let signals = [signals.keeper.as_fd(), signals.waiter.as_fd()];
            let [keeper, waiter] = signals;
            let mut descriptors = vec![tasks.as_fd(), answers.as_fd(), keeper, waiter];
            // What has been placed there every worker must be able to read.
            let arguments = match &arena {
                Some(arena) => Some(arena::read_only(arena.file())?),
                None => None,
            };
            if let Some(arguments) = &arguments {
                descriptors.push(arguments.as_fd());
                descriptors.extend(link.harvest.as_ref().map(|harvest| harvest.file()));
            }
            membership.fork(worker, &descriptors)?;
        }
        self.links.insert(worker, link);
        Ok(())
    }
}

impl<C: Client> Member for Engine<C> {
    fn pump(&self, signalled: bool) {
        self.keep(signalled);
    }

    fn prepare_sleep(&self, now: Moment) -> Rest {
        self.prepare_rest(now)
    }

    fn tick(&self, now: Moment) -> Option<Moment> {
        let mut state = lock(&self.state);
        let overdue = |link: &Link| link.dead_by.is_some_and(|by| by <= now);
        let silent: Vec<WorkerId> = state
            .floor
            .links
            .iter()
            .filter(|(_, link)| overdue(link))
            .map(|(id, _)| *id)
            .collect();
        for worker in silent {
            state.worker_gone(self, worker, Exit::Unknown);
        }
        state.scheduler.tick(now);
        state.act(self);
        let of_scheduler = state.scheduler.deadline();
        let of_links = state
            .floor
            .links
            .values()
            .filter_map(|link| link.dead_by)
            .min();
        state.floor.hub_until = of_scheduler;
        self.finish(state);
        of_scheduler.into_iter().chain(of_links).min()
    }

    fn forked(&self, worker: WorkerId, pid: i32, pidfd: OwnedFd) {
        let mut state = lock(&self.state);
        let Some(link) = state.floor.links.get_mut(&worker) else {
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            return;
        };
        if link.born(pid, pidfd).is_err() {
            state.scheduler.kill(worker);
        }
        self.finish(state);
    }

    fn not_forked(&self, worker: WorkerId, why: String) {
        let mut state = lock(&self.state);
        state.floor.spawn_error = Some(why);
        if let Some(link) = state.floor.links.get_mut(&worker) {
            // Should the process exist all the same, it ends.
            link.stillborn();
        }
        let _ = state
            .scheduler
            .handle(Event::SpawnFailed(worker), crate::sys::now());
        self.finish(state);
    }

    fn template_died(&self, fit: bool) {
        let mut state = lock(&self.state);
        let unborn: Vec<WorkerId> = state
            .floor
            .links
            .iter()
            .filter(|(_, link)| link.pid.is_none())
            .map(|(id, _)| *id)
            .collect();
        let waiting_for_status: Vec<WorkerId> = state
            .floor
            .links
            .iter()
            .filter(|(_, link)| link.dead_by.is_some())
            .map(|(id, _)| *id)
            .collect();
        if !fit {
            state.floor.spawn_error = Some("the template process ended before it was ready".into());
        }
        for (at, worker) in unborn.into_iter().enumerate() {
            if let Some(link) = state.floor.links.get_mut(&worker) {
                link.stillborn();
            }
            // One template that did not get ready is one failed boot, however many workers waited for it.
            let event = if fit || at > 0 {
                Event::Unborn(worker)
            } else {
                Event::SpawnFailed(worker)
            };
            let _ = state.scheduler.handle(event, crate::sys::now());
        }
        for worker in waiting_for_status {
            state.worker_gone(self, worker, Exit::Unknown);
        }
        // What these held is dispatched by the hub's next round, once there is a template again.
    }

    fn ended(&self, worker: WorkerId, template_lives: bool) {
        let mut state = lock(&self.state);
        if template_lives {
            let by = crate::sys::now().after_ns(EXIT_STATUS_NS);
            if let Some(link) = state.floor.links.get_mut(&worker) {
                link.dead_by = Some(by);
            }
            return;
        }
        state.worker_gone(self, worker, Exit::Unknown);
        self.finish(state);
    }

    fn exited(&self, worker: WorkerId, exit: Exit) {
        let mut state = lock(&self.state);
        state.worker_gone(self, worker, exit);
        self.finish(state);
    }

    fn hand_over(&self, each: &mut dyn FnMut(i32, BorrowedFd<'_>)) {
        for link in lock(&self.state).floor.links.values() {
            if let (Some(pid), Some(pidfd)) = (link.pid, &link.pidfd) {
                each(pid, pidfd.as_fd());
            }
        }
    }
}

/// Whether an item is accepted without room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It is not.
    Needed,
    /// It is: whoever submits it may neither wait nor be refused.
    Beyond,
}

/// Why a call was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// There is no room for so much more.
    #[error("too much is pending")]
    Full(Amount),
    /// The scheduler does not take it.
    #[error("the executor takes no more work")]
    Refused(Refused),
    /// The hub or its template could not be started.
    #[error("failed to start the template process: {0}")]
    Os(#[from] io::Error),
}

impl From<Refused> for SubmitError {
    fn from(refused: Refused) -> SubmitError {
        SubmitError::Refused(refused)
    }
}

/// In a forked child, before the engines are reset: they have no part in the memory of their parent.
pub fn begin_in_child() {
    arena::forked_child();
    crate::homes::forked_child();
}

/// In a forked child, after every engine was reset: forgets the hub.
pub fn forked_child(guard: ForkGuard) {
    hub::forget_in_child(guard);
}
