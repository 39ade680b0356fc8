//! The reactor: takes what happened, decides what to do.
//!
//! One scheduler serves one executor. It owns the queue of calls, knows which piece travels on which
//! worker, and keeps the hard cap on started, unfinished work over all lanes (rule 4). It performs
//! nothing: decisions leave as [`Action`]s, in the order in which they must be carried out. Where a
//! decision hangs on an answer that only the outside has, it asks through [`Port`].
//!
//! Order of service is first come, first served, across lanes: a call at the head that has no slot
//! holds back what is behind it, so a stream of process tasks can't starve a thread task or the
//! reverse. What comes back from a worker goes before all that was never sent. Fair share between calls
//! will change `dispatch` and nothing else.
//!
//! A call belongs to the caller's world at the time of the call, a worker to the one it was forked in, and the
//! first runs only on the second. What makes a worker end while the executor goes on: it has been sent as
//! many items as one may run, it has been idle for long, or it is idle and its place is needed for a worker
//! of another world.
//!
//! What happens once for each item, piece or call costs the same however many of them are pending, and
//! at most the logarithm of the number of workers.

use crate::batch::{Pace, TARGET_NS};
use crate::call::{Call, CallSpec};
use crate::event::{Action, Breakage, Claim, Event, Exit, Lane, Verdict};
use crate::ids::{CallId, IdMap, Moment, PieceSeq, WorkerId, WorldId};
use crate::worker::{Load, Overdue, Phase, Piece, Worker};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// Failed boots in a row that break an executor (rule 10).
pub const FAILED_BOOTS: u32 = 3;

/// How long a first piece may run before a free slot is given the rest of it: pieces that last as long
/// as they should are never split.
pub const PATIENCE_NS: u64 = 2 * TARGET_NS;

/// How long short items are held back at most where as many workers as there are cores are busy: another one
/// would have to wait for a core, and its wake costs more than it could run meanwhile.
pub const HOLD_NS: u64 = 1_000_000;

/// How far the patience grows where pieces are not even begun in time.
pub const MOST_PATIENCE_NS: u64 = 1_000_000_000;

/// What is fixed when an executor is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// The hard cap on started, unfinished pieces of work over all lanes.
    pub max_slots: u32,
    /// How many pieces may wait in a busy worker's ring beyond the running one.
    pub prefetch: u32,
    /// How many items one worker may run.
    pub items_per_worker: Option<u64>,
    /// After how long an idle worker is retired.
    pub idle_ns: Option<u64>,
    /// How many workers can run at once; more of them are woken only for what is worth it.
    pub cores: u32,
}

impl Config {
    /// Workers that last as long as the executor.
    pub fn new(max_slots: u32, prefetch: u32) -> Config {
        Config {
            max_slots,
            prefetch,
            items_per_worker: None,
            idle_ns: None,
            cores: u32::MAX,
        }
    }
}

/// What a decision must learn from the outside at once.
pub trait Port {
    /// How many of these items fit into one message, at least one.
    fn fit(&self, call: CallId, items: &Range<u64>) -> u64;

    /// Marks the piece as revoked and returns what the worker had claimed after the mark was visible
    /// to it: an item not claimed then will never be touched (rule 16).
    ///
    /// The claim is the last one the worker made for an item whose answer has not been handed to the
    /// scheduler yet. A worker that has published its answers and then cleared its claim word must not
    /// look like one that never began: those items would run twice. So either the word keeps the last
    /// claim, or unread answers count as claims here.
    fn revoke(&mut self, worker: WorkerId, seq: PieceSeq) -> Option<Claim>;
}

/// What became of a request to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Cancel {
    /// Nobody will run it; a `Settle` action says so as well.
    Cancelled,
    /// It has been claimed: it runs, or has ended.
    TooLate,
}

/// Why a call was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The executor was shut down.
    ShutDown,
    /// The executor is broken.
    Broken(Breakage),
}

/// An answer that no well-behaved worker sends: it is treated as dead (invariant 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    Closing,
    Drained,
}

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    stage: Stage,
    broken: Option<Breakage>,
    calls: IdMap<CallId, Call>,
    next_call: u64,
    /// Calls with items that were never cut.
    queue: VecDeque<CallId>,
    /// Calls with items that came back. They are served before the queue, the oldest one first.
    returned: BTreeSet<CallId>,
    /// How many items wait in each lane.
    waiting: [u64; 2],
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: u32,
    /// Which world calls and workers belong to that are made now.
    world: WorldId,
    /// Workers that take work, by world and how many pieces they hold: the first one of a world is the best
    /// choice, and the lowest id, hence the warmest, among equals.
    room: BTreeSet<(Load, WorkerId)>,
    /// Workers that hold pieces and will get no more.
    last_runners: u32,
    /// Workers that were asked to end, by when that must be done.
    ending: BTreeSet<(Moment, WorkerId)>,
    /// When to look for workers that have been idle for long.
    idle_check: Option<Moment>,
    /// Until when short items are held back, if any are.
    held_until: Option<Moment>,
    /// Workers that hold a piece.
    busy_workers: u32,
    /// Pieces that stand behind another one and were not revoked, on any worker: the oldest call first.
    behind: BTreeSet<(CallId, u64, WorkerId, PieceSeq)>,
    /// Workers whose first piece may be split, by when it became the first.
    fronts: BTreeSet<(Moment, WorkerId)>,
    patience_ns: u64,
    busy_threads: u32,
    failed_boots: u32,
    /// A process could not be made while others work: no more are asked for until one of them answers.
    spawning_paused: bool,
    actions: Vec<Action>,
}

impl Scheduler {
    /// A scheduler with no work and no workers.
    pub fn new(config: Config) -> Scheduler {
        assert!(config.max_slots > 0, "an executor needs a slot");
        assert_ne!(config.items_per_worker, Some(0), "a worker runs something");
        Scheduler {
            config,
            stage: Stage::Open,
            broken: None,
            calls: IdMap::default(),
            next_call: 0,
            queue: VecDeque::new(),
            returned: BTreeSet::new(),
            waiting: [0; 2],
            workers: BTreeMap::new(),
            next_worker: 0,
            world: WorldId::default(),
            room: BTreeSet::new(),
            last_runners: 0,
            ending: BTreeSet::new(),
            idle_check: None,
            held_until: None,
            busy_workers: 0,
            behind: BTreeSet::new(),
            fronts: BTreeSet::new(),
            patience_ns: PATIENCE_NS,
            busy_threads: 0,
            failed_boots: 0,
            spawning_paused: false,
            actions: Vec::new(),
        }
    }

    /// Numbers its calls on from where `other` is, so that the two are never taken for each other.
    pub fn number_calls_after(&mut self, other: &Scheduler) {
        self.next_call = self.next_call.max(other.next_call);
    }

    /// Takes what is to be done, in order. `done` gives a vector back for its capacity.
    pub fn take_actions(&mut self, done: Vec<Action>) -> Vec<Action> {
        debug_assert!(done.is_empty());
        std::mem::replace(&mut self.actions, done)
    }

    // ---- what users ask for ------------------------------------------------------------------

    /// Whether a new call would be taken.
    pub fn accepts(&self) -> Result<(), Refused> {
        if let Some(breakage) = self.broken {
            return Err(Refused::Broken(breakage));
        }
        match self.stage {
            Stage::Open => Ok(()),
            Stage::Closing | Stage::Drained => Err(Refused::ShutDown),
        }
    }

    /// Accepts a call. Its payload must be in place before [`Scheduler::dispatch`] is next called.
    pub fn open(&mut self, spec: &CallSpec) -> Result<CallId, Refused> {
        self.accepts()?;
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.calls.insert(id, Call::new(spec, self.world));
        self.waiting[spec.lane as usize] += spec.items;
        self.enqueue(id);
        Ok(id)
    }

    /// Whether the call takes more items, and they would be served in the order of their coming: after
    /// all that came before them, to whatever call.
    pub fn joins_in_order(&self, id: CallId) -> bool {
        let Some(call) = self.calls.get(&id) else {
            return false;
        };
        let in_order = !call.queued || self.queue.back() == Some(&id);
        let here = call.world == self.world || call.lane == Lane::Thread;
        here && in_order && !call.closed && !call.cancelled && self.accepts().is_ok()
    }

    /// From now on calls belong to this world.
    pub fn set_world(&mut self, world: WorldId) {
        self.world = world;
    }

    /// The world of calls that are opened now.
    pub fn world(&self) -> WorldId {
        self.world
    }

    /// The worlds that a worker may still be started for, and those of the workers that are there.
    pub fn worlds(&self) -> BTreeSet<WorldId> {
        let of_calls = self.calls.values().map(|call| call.world);
        let of_workers = self.workers.values().map(|worker| worker.world);
        let now = [self.world];
        now.into_iter().chain(of_calls).chain(of_workers).collect()
    }

    /// The world in which this worker is to be forked.
    pub fn world_of(&self, id: WorkerId) -> Option<WorldId> {
        Some(self.workers.get(&id)?.world)
    }

    /// More items of an open call are there. For a call that has ended (it was abandoned, say) this does
    /// nothing: no `Settle` follows, the caller drops them.
    pub fn extend(&mut self, id: CallId, more: u64) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        // Whoever reads an input may not know yet that its call was abandoned.
        debug_assert!(
            !call.closed || call.cancelled,
            "more items for a call that was closed"
        );
        call.items += more;
        self.waiting[call.lane as usize] += more;
        if let Some(breakage) = self.broken {
            self.end_waiting(id, Verdict::Broken(breakage));
        } else if call.cancelled {
            self.end_waiting(id, Verdict::Cancelled);
        } else {
            self.enqueue(id);
        }
    }

    /// No more items will come.
    pub fn close_call(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        call.closed = true;
        self.finish_if_done(id);
    }

    /// Cancels one item, unless it has been claimed: then it goes on as if never asked. Of a piece that is
    /// taken back for this, the other unclaimed items wait again, before all that was never sent. From a
    /// lane thread nothing is taken back.
    pub fn cancel(&mut self, id: CallId, item: u64, port: &mut impl Port) -> Cancel {
        let Some(call) = self.calls.get_mut(&id) else {
            return Cancel::TooLate;
        };
        if call.cancel_waiting(item) {
            self.waiting[call.lane as usize] -= 1;
            self.settle(id, item..item + 1, Verdict::Cancelled);
            return Cancel::Cancelled;
        }
        let Some((worker, held)) = self.holder(id, item) else {
            return Cancel::TooLate;
        };
        let rest = self.withdraw(worker, held.seq, port);
        if !rest.contains(&item) {
            // It is claimed. Should the worker stand back from it, having seen the mark after its claim,
            // then it runs again: its user was told "too late".
            self.come_back(id, rest);
            return Cancel::TooLate;
        }
        self.come_back(id, rest.start..item);
        self.come_back(id, item + 1..rest.end);
        self.end_travelling(id, item..item + 1, Verdict::Cancelled);
        Cancel::Cancelled
    }

    /// A call that was opened just now is served before another one, in whose place it stands.
    pub fn serve_before(&mut self, id: CallId, other: CallId) {
        if self.queue.back() == Some(&id)
            && let Some(at) = self.queue.iter().position(|queued| *queued == other)
        {
            self.queue.pop_back();
            self.queue.insert(at, id);
        }
    }

    /// Which items of a call were never sent anywhere; none if some of them were cancelled.
    pub fn fresh(&self, id: CallId) -> Range<u64> {
        self.calls.get(&id).map_or(0..0, Call::fresh)
    }

    /// The first so many of those are the caller's from now on: they are neither sent nor settled.
    pub fn give_away(&mut self, id: CallId, count: u64) -> Range<u64> {
        let Some(call) = self.calls.get_mut(&id) else {
            return 0..0;
        };
        let count = count.min(call.fresh().end - call.fresh().start);
        let given = call.give_away(count);
        self.waiting[call.lane as usize] -= count;
        self.finish_if_done(id);
        given
    }

    /// Cancels whatever of the call is unclaimed, and lets no more items in.
    pub fn abandon(&mut self, id: CallId, port: &mut impl Port) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        call.closed = true;
        call.cancelled = true;
        self.end_waiting(id, Verdict::Cancelled);
        // Few calls travel, however many are open: only for those the workers are asked.
        if !self.calls.get(&id).is_some_and(Call::is_on_workers) {
            return;
        }
        let holders: Vec<(WorkerId, PieceSeq)> = self
            .workers
            .iter()
            .flat_map(|(&worker, w)| w.pieces.iter().map(move |p| (worker, p)))
            .filter(|(_, piece)| piece.call == id && !piece.unanswered().is_empty())
            .map(|(worker, piece)| (worker, piece.seq))
            .collect();
        for (worker, seq) in holders {
            let withdrawn = self.withdraw(worker, seq, port);
            self.end_travelling(id, withdrawn, Verdict::Cancelled);
        }
    }

    /// Abandons every call, oldest first.
    pub fn abandon_all(&mut self, port: &mut impl Port) {
        for id in self.open_calls() {
            self.abandon(id, port);
        }
    }

    /// Takes no more calls; retires the workers once the accepted ones are done.
    pub fn close(&mut self, now: Moment) {
        if self.stage == Stage::Open {
            self.stage = Stage::Closing;
        }
        self.wind_down(now);
    }

    /// Kills every worker. What they hold is lost or, unclaimed, put back: cancel first.
    pub fn kill_all(&mut self) {
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            self.kill_worker(id);
        }
    }

    /// Kills one worker that broke the protocol. If it never ran a task, that was a failed boot: or one
    /// that only ever sends rubbish would be replaced for ever.
    pub fn kill(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.faulty |= worker.phase != Phase::Killed;
            self.kill_worker(id);
        }
    }

    fn kill_worker(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if let Some(deadline) = worker.deadline() {
            self.ending.remove(&(deadline, id));
        }
        if worker.kill() {
            self.actions.push(Action::Kill(id));
        }
        self.unwatch(id);
        self.update_room(id);
    }

    // ---- what the outside reports ------------------------------------------------------------

    /// The worker has answered the next item of its first unfinished piece. If it was the last one of its
    /// call, `CallDone` is among the actions: keep the answer before carrying them out.
    pub fn answered(
        &mut self,
        id: WorkerId,
        seq: PieceSeq,
        item: u32,
    ) -> Result<(CallId, u64), Unexpected> {
        let worker = self.workers.get(&id).ok_or(Unexpected)?;
        let piece = worker.pieces.front().ok_or(Unexpected)?;
        if piece.seq != seq || piece.answered != item {
            return Err(Unexpected);
        }
        let (call, items) = self.answered_next(id, 1)?;
        Ok((call, items.start))
    }

    /// The worker has answered so many more items of its first unfinished piece, in order.
    pub fn answered_next(
        &mut self,
        id: WorkerId,
        count: u32,
    ) -> Result<(CallId, Range<u64>), Unexpected> {
        let worker = self.workers.get_mut(&id).ok_or(Unexpected)?;
        let piece = worker.pieces.front_mut().ok_or(Unexpected)?;
        let unanswered = piece.unanswered();
        if count == 0 || u64::from(count) > unanswered.end - unanswered.start {
            return Err(Unexpected);
        }
        let items = unanswered.start..unanswered.start + u64::from(count);
        piece.answered += count;
        let call = piece.call;
        if worker.watched && !piece.may_be_split() {
            worker.watched = false;
            self.fronts.remove(&(worker.front_since, id));
        }
        worker.worked = true;
        self.failed_boots = 0;
        self.spawning_paused = false;
        self.calls
            .get_mut(&call)
            .ok_or(Unexpected)?
            .settle_travelling(u64::from(count));
        // With the answer, not with the end of its piece: the worker may die between the two.
        self.finish_if_done(call);
        Ok((call, items))
    }

    /// Something else happened.
    pub fn handle(&mut self, event: Event, now: Moment) -> Result<(), Unexpected> {
        match event {
            Event::Started(id) => {
                let worker = self.workers.get_mut(&id).ok_or(Unexpected)?;
                if let Phase::Booting { initializing } = &mut worker.phase {
                    *initializing = true;
                }
            }
            Event::Ready(id) => {
                let worker = self.workers.get_mut(&id).ok_or(Unexpected)?;
                if let Phase::Booting { .. } = worker.phase {
                    worker.phase = Phase::Serving;
                    self.watch(id, now);
                    self.look_idle(id, now);
                }
            }
            Event::InitializerRaised(id) => {
                let worker = self.workers.get(&id).ok_or(Unexpected)?;
                // A worker that is ready has its initializer behind it; its word alone breaks nothing.
                if worker.phase == Phase::Serving {
                    return Err(Unexpected);
                }
                self.kill_worker(id);
                self.break_down(Breakage::InitializerRaised);
            }
            Event::ThreadInitializerRaised => self.break_down(Breakage::InitializerRaised),
            Event::PieceDone {
                worker: id,
                seq,
                busy_ns,
            } => {
                let done = |piece: &Piece| piece.unanswered().is_empty();
                let (piece, _) = self.finish_piece(id, seq, now, done)?;
                self.measured(piece.call, u64::from(piece.answered), busy_ns);
            }
            Event::Skipped {
                worker: id,
                seq,
                from,
            } => {
                let stopped = |piece: &Piece| piece.revoked && piece.answered == from;
                let (piece, since) = self.finish_piece(id, seq, now, stopped)?;
                // Nobody measured it. One that ran for far too long must teach something all the same, or
                // the next ones would be as large.
                let took_ns = now.0.saturating_sub(since.0);
                if took_ns >= PATIENCE_NS {
                    self.measured(piece.call, u64::from(piece.answered), took_ns);
                }
                // Claimed when we looked, but the worker saw the mark after its claim and stood back.
                let rest = piece.unanswered();
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.give_back(rest.end - rest.start);
                }
                self.come_back(piece.call, rest);
            }
            Event::Refused {
                worker: id,
                seq,
                from,
            } => self.refused(id, seq, from, now)?,
            Event::Gone {
                worker,
                exit,
                claim,
            } => self.gone(worker, exit, claim)?,
            Event::SpawnFailed(id) => {
                // Where others work, what is missing now (descriptors, memory) may be there soon: their
                // answers are the time to try again, and this is no failed boot in a row. The same goes for
                // the end of one, so whoever has nothing to do for the world in question makes room.
                let world = self.workers.get(&id).ok_or(Unexpected)?.world;
                let strangers: Vec<WorkerId> = self
                    .workers
                    .iter()
                    .filter(|(_, w)| w.world != world && w.is_idle())
                    .map(|(&stranger, _)| stranger)
                    .collect();
                for stranger in strangers {
                    self.leave(stranger, now);
                }
                let others = |w: &Worker| w.worked && w.phase != Phase::Killed;
                let others_work = self.workers.values().any(others);
                if others_work {
                    self.spawning_paused = true;
                    self.workers.get_mut(&id).ok_or(Unexpected)?.unborn = true;
                }
                self.gone(id, Exit::Unknown, None)?;
            }
            Event::Unborn(id) => {
                // Nothing of it ever ran, and it is not to blame.
                self.workers.get_mut(&id).ok_or(Unexpected)?.unborn = true;
                self.gone(id, Exit::Unknown, None)?;
            }
            Event::ThreadPieceDone {
                call,
                items,
                busy_ns,
            } => {
                self.busy_threads -= 1;
                self.measured(call, u64::from(items), busy_ns);
            }
        }
        self.wind_down(now);
        Ok(())
    }

    /// A lane thread has ended one item; as with [`Scheduler::answered`], the call may be done now.
    pub fn thread_answered(&mut self, id: CallId) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.settle_travelling(1);
            self.finish_if_done(id);
        }
    }

    /// A lane thread did not begin these items of its piece, or the piece was called back before any
    /// thread had it.
    pub fn thread_skipped(&mut self, id: CallId, items: Range<u64>) {
        self.come_back(id, items);
    }

    /// Acts on deadlines that have passed; what they free is for [`Scheduler::dispatch`].
    pub fn tick(&mut self, now: Moment) {
        while let Some(&(deadline, id)) = self.ending.first()
            && deadline <= now
        {
            self.ending.pop_first();
            let Some(worker) = self.workers.get_mut(&id) else {
                continue;
            };
            match worker.overdue(now) {
                Overdue::Nothing => {}
                Overdue::Terminate => self.actions.push(Action::Terminate(id)),
                Overdue::Kill => self.actions.push(Action::Kill(id)),
            }
            if let Some(deadline) = worker.deadline() {
                self.ending.insert((deadline, id));
            }
        }
        if self.idle_check.is_some_and(|at| at <= now) {
            self.retire_idle(now);
        }
    }

    /// The next moment at which [`Scheduler::tick`] or [`Scheduler::dispatch`] has something to do, though
    /// nothing happens until then.
    pub fn deadline(&self) -> Option<Moment> {
        let ending = self.ending.first().map(|&(deadline, _)| deadline);
        let all = [ending, self.idle_check, self.held_until, self.next_split()];
        all.into_iter().flatten().min()
    }

    /// When the first of the pieces that may be split has lasted long enough, if somebody could take of it.
    fn next_split(&self) -> Option<Moment> {
        if self.waiting() > 0 || !self.has_slot() {
            return None;
        }
        let &(since, worker) = self.fronts.first()?;
        let splits = self.has_taker(self.workers.get(&worker)?.world);
        splits.then(|| since.after_ns(self.patience_ns))
    }

    // ---- what the outside may ask ------------------------------------------------------------

    /// The worker and piece that hold this item, if one does and has not answered it.
    pub fn holder(&self, id: CallId, item: u64) -> Option<(WorkerId, Claim)> {
        self.calls.get(&id).filter(|call| call.is_on_workers())?;
        self.workers.iter().find_map(|(&worker, w)| {
            let holds = |p: &&Piece| p.call == id && p.unanswered().contains(&item);
            let piece = w.pieces.iter().find(holds)?;
            let held = Claim {
                seq: piece.seq,
                item: (item - piece.items.start) as u32,
            };
            Some((worker, held))
        })
    }

    /// The workers that hold items of this call.
    pub fn holders(&self, id: CallId) -> impl Iterator<Item = WorkerId> + '_ {
        let holds = move |w: &Worker| w.pieces.iter().any(|p| p.call == id);
        let holders = self.workers.iter().filter(move |(_, w)| holds(w));
        holders.map(|(&worker, _)| worker)
    }

    /// Whether the item behind `held`, as [`Scheduler::holder`] said, has been claimed, given the worker's
    /// claim word.
    pub fn is_claimed(&self, worker: WorkerId, held: Claim, claim: Option<Claim>) -> bool {
        let Some(w) = self.workers.get(&worker) else {
            return false;
        };
        w.pieces
            .iter()
            .find(|p| p.seq == held.seq)
            .is_some_and(|p| w.claimed(p, held.item, claim))
    }

    /// Whether items of this call run on lane threads or travel on workers.
    pub fn travelling(&self, id: CallId) -> u64 {
        self.calls.get(&id).map_or(0, |call| call.travelling)
    }

    /// What is known of the time that the call's items take: for the next call of the same function.
    pub fn pace(&self, id: CallId) -> Option<Pace> {
        self.calls.get(&id)?.sizer.pace()
    }

    /// Whether a worker may be started for a free slot: if as many as there may be take work, one of another
    /// world is idle and makes room. Those that end slowly put a limit to how fast they are followed.
    fn may_spawn(&self) -> bool {
        !self.spawning_paused && !self.waits_for_endings()
    }

    /// Whether as many workers take work as there may be.
    fn is_full(&self) -> bool {
        self.room.len() as u32 >= self.config.max_slots
    }

    /// Whether no process is asked for until a worker has answered, because the last one could not be made.
    pub fn is_spawning_paused(&self) -> bool {
        self.spawning_paused
    }

    /// Starts workers ahead of their work, until there are so many that take some; no more than slots.
    pub fn start_workers(&mut self, count: u32, now: Moment) {
        let count = count.min(self.config.max_slots);
        while self.accepts().is_ok() && self.may_spawn() && (self.room.len() as u32) < count {
            self.spawn(self.world, now);
        }
    }

    /// Whether a process task accepted now would start a worker, because none is idle.
    pub fn would_spawn(&self) -> bool {
        self.may_spawn() && self.has_slot() && self.idle_in(self.world).is_none()
    }

    /// Whether a worker may be started for what is accepted now, or is to take the place of one that leaves.
    pub fn may_spawn_for_more(&self) -> bool {
        self.would_spawn() || self.last_runners > 0
    }

    /// Whether work waits only because too many workers are about to end: the end of one is the next thing
    /// that happens.
    pub fn waits_for_endings(&self) -> bool {
        self.ending.len() as u32 > self.config.max_slots
    }

    /// Until when short items wait for a busy worker though there is a slot for them, if any do.
    pub fn held_until(&self) -> Option<Moment> {
        self.held_until
    }

    /// The calls that have not ended, oldest first.
    pub fn open_calls(&self) -> Vec<CallId> {
        let mut ids: Vec<CallId> = self.calls.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Whether this worker is there and nobody has told it to end.
    pub fn is_up(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(Worker::is_up)
    }

    /// The workers that are there, dying ones included.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.workers.keys().copied()
    }

    /// Items waiting for a slot.
    pub fn waiting(&self) -> u64 {
        self.waiting.iter().sum()
    }

    /// Whether items for processes wait for a slot, so that another one would wait, too.
    pub fn has_backlog(&self) -> bool {
        self.waiting[Lane::Process as usize] > 0
    }

    /// Whether a worker that becomes idle could be given something to do, or leaves a slot that somebody waits for.
    pub fn could_feed_idle(&self) -> bool {
        self.waiting() > 0
            || !self.behind.is_empty()
            || !self.fronts.is_empty()
            || self.last_runners > 0
    }

    /// Whether what runs on workers takes at least this long for each item, as far as two of them tell.
    pub fn runs_long(&self, ns: u64) -> bool {
        let fronts = self.workers.values().filter_map(|w| w.pieces.front());
        let mut paces = fronts.take(2).map(|piece| self.pace(piece.call));
        let long = |pace: Option<Pace>| pace.is_some_and(|pace| pace.item_ns() >= ns);
        self.busy_workers > 0 && paces.all(long)
    }

    /// How many workers hold a piece.
    pub fn busy_workers(&self) -> u32 {
        self.busy_workers
    }

    /// Whether shutting down is complete.
    pub fn is_drained(&self) -> bool {
        self.stage == Stage::Drained
    }

    // ---- the decisions -----------------------------------------------------------------------

    /// Moves waiting work to whoever has room. To be called after anything above.
    pub fn dispatch(&mut self, now: Moment, port: &mut impl Port) {
        self.serve(now, port);
        // Every round revokes one more piece, so the rounds come to an end.
        while self.waiting() == 0 && self.take_back(now, port) {
            self.serve(now, port);
        }
        if self.last_runners > 0 && self.broken.is_none() {
            self.start_successors(now);
        }
        self.wind_down(now);
    }

    fn serve(&mut self, now: Moment, port: &mut impl Port) {
        let held_until = self.held_until.take();
        let mut over = held_until.is_some_and(|until| until <= now);
        while let Some((id, lane, world)) = self.next_served() {
            let target = match lane {
                Lane::Thread if self.has_slot() => None,
                Lane::Thread => break,
                Lane::Process => {
                    if !std::mem::take(&mut over) && self.holds_back(id) {
                        self.held_until = held_until
                            .filter(|&until| until > now)
                            .or(Some(now.after_ns(HOLD_NS)));
                        break;
                    }
                    match self.pick_worker(world, now) {
                        Some(worker) => Some(worker),
                        None => break,
                    }
                }
            };
            let most = target.map_or(u64::MAX, |worker| self.allowance(worker));
            let Some(call) = self.calls.get_mut(&id) else {
                break;
            };
            let sharers = if call.is_short() {
                self.config.cores.min(self.config.max_slots)
            } else {
                self.config.max_slots
            };
            let items = call.cut(u64::from(sharers), most, |wanted| port.fit(id, wanted));
            self.waiting[lane as usize] -= items.end - items.start;
            match target {
                None => {
                    self.busy_threads += 1;
                    self.actions.push(Action::RunOnThread { call: id, items });
                }
                Some(worker) => self.send(worker, id, items, now),
            }
        }
    }

    /// Whether the call's next items are to wait for one of the busy workers, though there is a slot for them:
    /// they are short, others of the call are at it, and nobody else's work stands behind them.
    fn holds_back(&self, id: CallId) -> bool {
        if self.busy_workers < self.config.cores || !self.has_slot() {
            return false;
        }
        let Some(call) = self.calls.get(&id).filter(|call| call.is_on_workers()) else {
            return false;
        };
        let alone = self.waiting() == call.waiting();
        alone && call.is_short()
    }

    /// The call whose turn it is.
    fn next_served(&mut self) -> Option<(CallId, Lane, WorldId)> {
        while let Some(&id) = self.returned.first() {
            if let Some(call) = self.calls.get(&id).filter(|call| call.has_returned()) {
                return Some((id, call.lane, call.world));
            }
            self.returned.pop_first();
        }
        while let Some(&id) = self.queue.front() {
            match self.calls.get_mut(&id) {
                Some(call) if call.has_fresh() => return Some((id, call.lane, call.world)),
                Some(call) => call.queued = false,
                None => {}
            }
            self.queue.pop_front();
        }
        None
    }

    /// Finds work for free slots where none waits. True if some waits now.
    fn take_back(&mut self, now: Moment, port: &mut impl Port) -> bool {
        // First what stands behind other pieces, the oldest call first.
        while let Some((call, world, worker, seq)) = self.first_behind() {
            let mut items = self.withdraw(worker, seq, port);
            if items.is_empty() {
                continue;
            }
            // A free slot without an idle worker is rare (a worker died, or a thread left the slot), but
            // without a new one a piece would wait for a task that may last for hours.
            let idle = match self.idle_in(world) {
                Some(idle) => idle,
                None => self.spawn(world, now),
            };
            let end = items.end;
            items.end = end.min(items.start.saturating_add(self.allowance(idle)));
            let too_many = items.end..end;
            self.send(idle, call, items, now);
            if !too_many.is_empty() {
                self.come_back(call, too_many);
                return true;
            }
        }
        // Then what a worker would run next, if it has been at its piece for far longer than one should
        // last: an item takes long, and those behind it need not wait.
        while self.has_slot()
            && let Some(&(since, id)) = self.fronts.first()
            && since.after_ns(self.patience_ns) <= now
            && let Some(worker) = self.workers.get(&id)
            && self.has_taker(worker.world)
        {
            let Some(piece) = worker.pieces.front() else {
                unreachable!("a worker without pieces is watched")
            };
            let (call, seq, begun) = (piece.call, piece.seq, piece.unanswered().start);
            let rest = self.withdraw(id, seq, port);
            // A worker that has claimed nothing has not had the CPU. Where that is so for long, pieces that
            // are moved again and again would never be run: each one is given more time.
            self.patience_ns = if rest.start > begun {
                PATIENCE_NS
            } else {
                MOST_PATIENCE_NS.min(self.patience_ns * 2)
            };
            if !rest.is_empty() {
                self.come_back(call, rest);
                return true;
            }
        }
        false
    }

    /// The first piece that stands behind another and that somebody else could take.
    fn first_behind(&self) -> Option<(CallId, WorldId, WorkerId, PieceSeq)> {
        if !self.has_slot() {
            return None;
        }
        self.behind.iter().find_map(|&(call, _, worker, seq)| {
            let world = self.calls.get(&call)?.world;
            self.has_taker(world).then_some((call, world, worker, seq))
        })
    }

    /// Whether there is a slot for more work of processes of this world, and a worker or the prospect of one.
    fn has_taker(&self, world: WorldId) -> bool {
        self.has_slot()
            && (self.may_spawn() || self.idle_in(world).is_some())
            && self.broken.is_none()
    }

    fn idle_in(&self, world: WorldId) -> Option<WorkerId> {
        // Usually there is but one world.
        let &(first, worker) = self.room.first()?;
        if first.world() == world {
            return (first.pieces() == 0).then_some(worker);
        }
        if first.world() > world {
            return None;
        }
        let from = (Load::new(world, 0), WorkerId(0));
        let &(load, worker) = self.room.range(from..).next()?;
        (load == from.0).then_some(worker)
    }

    fn allowance(&self, worker: WorkerId) -> u64 {
        if self.config.items_per_worker.is_none() {
            return u64::MAX;
        }
        self.workers.get(&worker).map_or(0, |w| w.allowance)
    }

    fn send(&mut self, worker: WorkerId, call: CallId, items: Range<u64>, now: Moment) {
        let Some(w) = self.workers.get_mut(&worker) else {
            unreachable!("sent to a worker that is not there")
        };
        let before = w.pieces.len();
        debug_assert!(w.takes_work(), "work for one that takes none");
        let seq = w.push(call, items.clone());
        self.last_runners += u32::from(w.leaving);
        if before > 0 {
            self.behind.insert((call, items.start, worker, seq));
        } else {
            self.watch(worker, now);
        }
        self.actions.push(Action::Send {
            worker,
            seq,
            call,
            items,
        });
        self.pieces_changed(worker, before);
    }

    fn has_slot(&self) -> bool {
        self.busy_workers + self.busy_threads < self.config.max_slots
    }

    /// An idle worker if there is a slot for it, else a new one, else a busy one with room in its ring.
    fn pick_worker(&mut self, world: WorldId, now: Moment) -> Option<WorkerId> {
        if self.has_slot() {
            if let Some(worker) = self.idle_in(world) {
                return Some(worker);
            }
            if self.may_spawn() {
                return Some(self.spawn(world, now));
            }
        }
        let from = (Load::new(world, 1), WorkerId(0));
        let &(load, worker) = self.room.range(from..).next()?;
        let has_room = load.world() == world && load.pieces() <= self.config.prefetch;
        has_room.then_some(worker)
    }

    /// Where as many take work as there may be, an idle one of another world makes room.
    fn spawn(&mut self, world: WorldId, now: Moment) -> WorkerId {
        if self.is_full() {
            let stranger = self.room.iter().find(|(load, _)| load.pieces() == 0);
            if let Some(&(_, stranger)) = stranger {
                self.leave(stranger, now);
            }
        }
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        let allowance = self.config.items_per_worker.unwrap_or(u64::MAX);
        self.workers.insert(id, Worker::new(world, allowance));
        self.room.insert((Load::new(world, 0), id));
        self.actions.push(Action::Spawn(id));
        id
    }

    /// Where work waits behind workers that run their last items, others boot meanwhile to take their slots.
    fn start_successors(&mut self, now: Moment) {
        let Some((_, Lane::Process, world)) = self.next_served() else {
            return;
        };
        let wanted = u64::from(self.last_runners).min(self.waiting[Lane::Process as usize]);
        let [free, busy] = [0, 1].map(|pieces| (Load::new(world, pieces), WorkerId(0)));
        let idle = self.room.range(free..busy);
        let idle = idle.take(wanted as usize).count() as u64;
        for _ in idle..wanted {
            if !self.may_spawn() || self.is_full() {
                return;
            }
            self.spawn(world, now);
        }
    }

    /// The worker gets no more work, and is asked to end now if it holds none.
    fn leave(&mut self, id: WorkerId, now: Moment) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let had_work = worker.runs_its_last();
        worker.leaving = true;
        if worker.pieces.is_empty() {
            self.retire(id, now);
        } else {
            self.last_runners += u32::from(!had_work);
            self.update_room(id);
        }
    }

    fn retire(&mut self, id: WorkerId, now: Moment) {
        if let Some(worker) = self.workers.get_mut(&id)
            && let Some(deadline) = worker.retire(now)
        {
            self.ending.insert((deadline, id));
            self.actions.push(Action::Retire(id));
            self.update_room(id);
        }
    }

    /// A worker may just have become idle.
    fn look_idle(&mut self, id: WorkerId, now: Moment) {
        if let Some(ns) = self.config.idle_ns
            && let Some(worker) = self.workers.get_mut(&id)
            && worker.is_idle()
        {
            worker.idle_since = now;
            // Nobody is woken for it sooner, however often workers become busy and idle again.
            self.idle_check.get_or_insert(now.after_ns(ns));
        }
    }

    /// Retires the workers that have been idle for long, and plans the next look.
    fn retire_idle(&mut self, now: Moment) {
        self.idle_check = None;
        let Some(ns) = self.config.idle_ns else {
            return;
        };
        let serves = |w: &Worker| w.is_idle() && w.phase == Phase::Serving;
        let idle = self.workers.iter().filter(|(_, w)| serves(w));
        let (due, later): (Vec<_>, Vec<_>) = idle
            .map(|(&id, w)| (w.idle_since.after_ns(ns), id))
            .partition(|&(at, _)| at <= now);
        self.idle_check = later.into_iter().map(|(at, _)| at).min();
        for (_, id) in due {
            self.leave(id, now);
        }
    }

    /// Takes the unclaimed rest of a piece away from its worker; the caller decides what becomes of it.
    fn withdraw(&mut self, id: WorkerId, seq: PieceSeq, port: &mut impl Port) -> Range<u64> {
        let claim = port.revoke(id, seq);
        let Some(worker) = self.workers.get_mut(&id) else {
            return 0..0;
        };
        let Some(at) = worker.pieces.iter().position(|p| p.seq == seq) else {
            return 0..0;
        };
        let piece = &worker.pieces[at];
        let first_unclaimed = match claim {
            Some(claim) if claim.seq == seq => {
                piece.items.start + u64::from(claim.item.saturating_add(1).max(piece.answered))
            }
            _ if worker.claimed(piece, piece.answered, claim) => piece.items.end,
            _ => piece.items.start + u64::from(piece.answered),
        };
        let piece = &mut worker.pieces[at];
        piece.revoked = true;
        let rest = first_unclaimed.min(piece.items.end)..piece.items.end;
        piece.items.end = rest.start;
        let key = piece.key(id);
        worker.give_back(rest.end - rest.start);
        if at == 0 {
            self.unwatch(id);
        } else {
            self.behind.remove(&key);
        }
        rest
    }

    /// The worker's first piece has just become the first, or the worker ready for it.
    fn watch(&mut self, id: WorkerId, now: Moment) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.front_since = now;
        // One that boots may take long, and its pieces nevertheless be short.
        worker.watched = worker.phase == Phase::Serving
            && worker.pieces.front().is_some_and(Piece::may_be_split);
        if worker.watched {
            self.fronts.insert((now, id));
        }
    }

    fn unwatch(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id)
            && std::mem::take(&mut worker.watched)
        {
            self.fronts.remove(&(worker.front_since, id));
        }
    }

    /// Takes the first piece off a worker, if it is this one and `fits`, and says since when it was the
    /// first. One that does not stays where it is: its items are settled when the worker, as good as dead,
    /// is gone.
    fn finish_piece(
        &mut self,
        id: WorkerId,
        seq: PieceSeq,
        now: Moment,
        fits: impl FnOnce(&Piece) -> bool,
    ) -> Result<(Piece, Moment), Unexpected> {
        let worker = self.workers.get_mut(&id).ok_or(Unexpected)?;
        let before = worker.pieces.len();
        let piece = worker
            .pieces
            .pop_front_if(|piece| piece.seq == seq && fits(piece))
            .ok_or(Unexpected)?;
        let since = worker.front_since;
        if let Some(front) = worker.pieces.front() {
            self.behind.remove(&front.key(id));
        }
        let leaves = worker.leaving && worker.pieces.is_empty();
        self.last_runners -= u32::from(leaves);
        self.unwatch(id);
        self.watch(id, now);
        self.pieces_changed(id, before);
        if leaves {
            self.retire(id, now);
        } else {
            self.look_idle(id, now);
        }
        Ok((piece, since))
    }

    /// All that a worker holds goes back, as if it had never been sent, and the worker is asked to end.
    fn refused(
        &mut self,
        id: WorkerId,
        seq: PieceSeq,
        from: u32,
        now: Moment,
    ) -> Result<(), Unexpected> {
        let worker = self.workers.get(&id).ok_or(Unexpected)?;
        let front = worker.pieces.front().ok_or(Unexpected)?;
        if front.seq != seq || front.answered != from {
            return Err(Unexpected);
        }
        self.unwatch(id);
        let worker = self.workers.get_mut(&id).ok_or(Unexpected)?;
        self.last_runners -= u32::from(worker.runs_its_last());
        let pieces = std::mem::take(&mut worker.pieces);
        for piece in &pieces {
            self.behind.remove(&piece.key(id));
        }
        self.pieces_changed(id, pieces.len());
        self.leave(id, now);
        for piece in pieces {
            self.come_back(piece.call, piece.unanswered());
        }
        Ok(())
    }

    fn gone(&mut self, id: WorkerId, exit: Exit, claim: Option<Claim>) -> Result<(), Unexpected> {
        self.unwatch(id);
        let mut worker = self.workers.remove(&id).ok_or(Unexpected)?;
        for piece in &worker.pieces {
            self.behind.remove(&piece.key(id));
        }
        if let Some(deadline) = worker.deadline() {
            self.ending.remove(&(deadline, id));
        }
        self.room.remove(&(worker.load(), id));
        self.last_runners -= u32::from(worker.runs_its_last());
        self.count_pieces(worker.pieces.len(), 0);
        if !worker.unborn {
            self.spawning_paused = false;
        }
        let claim = worker.sensible(claim);
        // A claim counts only while its item is unanswered; after the last answer it is history.
        let last_claimed = worker.pieces.iter().position(|p| {
            claim.is_some_and(|c| c.seq == p.seq && c.item >= p.answered)
                && !p.unanswered().is_empty()
        });
        let touched = last_claimed.is_some();
        let mut returned = Vec::new();
        for (at, piece) in std::mem::take(&mut worker.pieces).into_iter().enumerate() {
            let unanswered = piece.unanswered();
            let lost_end = match (last_claimed, claim) {
                (Some(last), _) if at < last => unanswered.end,
                (Some(last), Some(claim)) if at == last => {
                    (piece.items.start + u64::from(claim.item) + 1).min(unanswered.end)
                }
                _ => unanswered.start,
            };
            // A worker answers in order and claims in order, so this is one item; whatever else a
            // worker that broke the protocol may have touched is not run twice either.
            if let Some(breakage) = self.broken {
                self.end_travelling(piece.call, unanswered, Verdict::Broken(breakage));
                continue;
            }
            let lost = unanswered.start..lost_end;
            let verdict = Verdict::Lost {
                worker: id,
                exit,
                attempt: 1,
            };
            self.end_travelling(piece.call, lost, verdict);
            let rest = lost_end..unanswered.end;
            if !rest.is_empty() {
                returned.push((piece.call, rest));
            }
        }
        let booting = matches!(worker.phase, Phase::Booting { .. });
        // One that was ready and idle failed at nothing, and nothing of it is tried again.
        let failed = worker.faulty || booting || (worker.is_up() && !returned.is_empty());
        for (call, items) in returned {
            self.come_back(call, items);
        }
        // After what it held is settled: a verdict that names the worker may need what is known of it.
        self.actions.push(Action::Drop(id));
        if touched {
            self.failed_boots = 0;
        } else if failed && !worker.worked && !worker.unborn {
            self.failed_boots += 1;
            if let Phase::Booting { initializing: true } = worker.phase {
                self.break_down(Breakage::InitializerDied(exit));
            } else if self.failed_boots >= FAILED_BOOTS {
                self.break_down(Breakage::BootFailed(exit));
            }
        }
        Ok(())
    }

    /// Nothing but failing initializers, failed boots and the user's own kill comes here (invariant 2).
    fn break_down(&mut self, breakage: Breakage) {
        if self.broken.is_some() {
            return;
        }
        self.broken = Some(breakage);
        self.queue.clear();
        self.returned.clear();
        let ids: Vec<CallId> = self.open_calls();
        for id in ids {
            if let Some(call) = self.calls.get_mut(&id) {
                call.queued = false;
            }
            self.end_waiting(id, Verdict::Broken(breakage));
        }
        self.kill_all();
    }

    fn measured(&mut self, id: CallId, items: u64, busy_ns: u64) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.sizer.measured(items, busy_ns);
        }
    }

    /// Travelling items that nobody ran: back to the queue, before everything else, or to their end.
    fn come_back(&mut self, id: CallId, items: Range<u64>) {
        if items.is_empty() {
            return;
        }
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        if let Some(breakage) = self.broken {
            self.end_travelling(id, items, Verdict::Broken(breakage));
        } else if call.cancelled {
            self.end_travelling(id, items, Verdict::Cancelled);
        } else {
            self.waiting[call.lane as usize] += items.end - items.start;
            call.put_back(items);
            self.returned.insert(id);
        }
    }

    fn end_travelling(&mut self, id: CallId, items: Range<u64>, verdict: Verdict) {
        if items.is_empty() {
            return;
        }
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        call.settle_travelling(items.end - items.start);
        self.settle(id, items, verdict);
    }

    fn settle(&mut self, id: CallId, items: Range<u64>, verdict: Verdict) {
        self.actions.push(Action::Settle {
            call: id,
            items,
            verdict,
        });
        self.finish_if_done(id);
    }

    fn end_waiting(&mut self, id: CallId, verdict: Verdict) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        for items in call.take_waiting() {
            self.waiting[call.lane as usize] -= items.end - items.start;
            self.actions.push(Action::Settle {
                call: id,
                items,
                verdict,
            });
        }
        self.finish_if_done(id);
    }

    fn finish_if_done(&mut self, id: CallId) {
        if self.calls.get(&id).is_some_and(Call::done) {
            self.calls.remove(&id);
            self.actions.push(Action::CallDone(id));
        }
    }

    fn enqueue(&mut self, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        if call.has_fresh() && !std::mem::replace(&mut call.queued, true) {
            self.queue.push_back(id);
            self.sweep_queue();
        }
        self.finish_if_done(id);
    }

    /// Calls cancelled while they wait leave their ids in the queue. Behind a head that has no slot for
    /// hours they would pile up, so they go when they outnumber the calls that are there.
    fn sweep_queue(&mut self) {
        if self.queue.len() / 2 <= self.calls.len() + 32 {
            return;
        }
        let calls = &mut self.calls;
        self.queue.retain(|id| {
            let Some(call) = calls.get_mut(id) else {
                return false;
            };
            call.queued = call.has_fresh();
            call.queued
        });
    }

    /// Retires the workers of a closing executor that has nothing left to do.
    fn wind_down(&mut self, now: Moment) {
        if self.stage != Stage::Closing || !self.calls.is_empty() {
            return;
        }
        let ids: Vec<WorkerId> = self.workers.keys().copied().collect();
        for id in ids {
            self.retire(id, now);
        }
        if self.workers.is_empty() && self.busy_threads == 0 {
            self.stage = Stage::Drained;
            self.idle_check = None;
            self.actions.push(Action::Drained);
        }
    }

    fn pieces_changed(&mut self, id: WorkerId, before: usize) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let after = worker.pieces.len();
        let load = |pieces| Load::new(worker.world, pieces as u32);
        self.room.remove(&(load(before), id));
        if worker.takes_work() {
            self.room.insert((load(after), id));
        }
        self.count_pieces(before, after);
    }

    fn count_pieces(&mut self, before: usize, after: usize) {
        match (before, after) {
            (0, 1..) => self.busy_workers += 1,
            (1.., 0) => self.busy_workers -= 1,
            _ => {}
        }
    }

    fn update_room(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get(&id) {
            let pieces = worker.pieces.len();
            self.pieces_changed(id, pieces);
        }
    }

    /// Checks what must hold between any two events. For tests.
    pub fn sanity_check(&self) {
        let mut travelling: IdMap<CallId, u64> = IdMap::default();
        for (id, worker) in &self.workers {
            for piece in &worker.pieces {
                assert!(
                    u64::from(piece.answered) <= piece.items.end - piece.items.start
                        || piece.revoked
                );
                let unanswered = piece.unanswered();
                if !unanswered.is_empty() {
                    *travelling.entry(piece.call).or_default() += unanswered.end - unanswered.start;
                }
            }
            assert_eq!(
                self.room.contains(&(worker.load(), *id)),
                worker.takes_work(),
                "{id}: {worker:?}"
            );
        }
        let takers = self.workers.values().filter(|w| w.takes_work()).count();
        assert_eq!(
            self.room.len(),
            takers,
            "a worker stands twice in the list of those with room"
        );
        let busy = self
            .workers
            .values()
            .filter(|w| !w.pieces.is_empty())
            .count();
        assert_eq!(self.busy_workers as usize, busy);
        let behind = self.workers.iter().flat_map(|(&id, w)| {
            let pieces = w.pieces.iter().skip(1).filter(|p| !p.revoked);
            pieces.map(move |p| p.key(id))
        });
        assert_eq!(self.behind, behind.collect());
        let serving = |w: &&Worker| w.phase == Phase::Serving;
        for worker in self.workers.values().filter(serving) {
            let splits = worker.pieces.front().is_some_and(Piece::may_be_split);
            assert_eq!(worker.watched, splits, "{worker:?}");
        }
        let watched = self.workers.iter().filter(|(_, w)| w.watched);
        let fronts = watched.map(|(&id, w)| (w.front_since, id));
        assert_eq!(self.fronts, fronts.collect());
        let deadlines = self
            .workers
            .iter()
            .filter_map(|(&id, w)| Some((w.deadline()?, id)));
        assert_eq!(self.ending, deadlines.collect());
        let last_runners = self.workers.values().filter(|w| w.runs_its_last()).count();
        assert_eq!(self.last_runners as usize, last_runners);
        for worker in self.workers.values() {
            assert!(
                !worker.leaving || !worker.is_up() || !worker.pieces.is_empty(),
                "has nothing left to do here, and was not told so: {worker:?}"
            );
            assert!(worker.allowance > 0 || !worker.takes_work(), "{worker:?}");
            assert!(
                self.config.idle_ns.is_none()
                    || !worker.is_idle()
                    || worker.phase != Phase::Serving
                    || self.idle_check.is_some(),
                "idle, and nobody will look: {worker:?}"
            );
            for piece in &worker.pieces {
                let call = self.calls.get(&piece.call);
                assert!(call.is_none_or(|call| call.world == worker.world));
            }
        }
        let most = self.config.prefetch as usize + 1;
        assert!(
            self.workers.values().all(|w| w.pieces.len() <= most),
            "more than one running piece and the prefetch"
        );
        assert!(
            takers <= self.config.max_slots as usize,
            "more workers than slots"
        );
        assert!(
            self.busy_workers + self.busy_threads <= self.config.max_slots,
            "the hard cap is broken (rule 4)"
        );
        for (id, call) in &self.calls {
            call.sanity_check();
            assert!(!call.done(), "a call that is done is still held");
            let on_workers = travelling.get(id).copied().unwrap_or(0);
            match call.lane {
                Lane::Process => assert_eq!(call.travelling, on_workers, "call {id:?}"),
                Lane::Thread => assert_eq!(on_workers, 0),
            }
            let in_queue = self.queue.iter().filter(|q| *q == id).count();
            assert_eq!(in_queue, usize::from(call.queued), "call {id:?}");
            if self.broken.is_none() {
                assert!(
                    !call.has_fresh() || call.queued,
                    "work waits outside the queue"
                );
                assert!(
                    !call.has_returned() || self.returned.contains(id),
                    "what came back waits outside the queue"
                );
            }
        }
        for lane in [Lane::Process, Lane::Thread] {
            let calls = self.calls.values().filter(|call| call.lane == lane);
            let waiting: u64 = calls.map(Call::waiting).sum();
            assert_eq!(self.waiting[lane as usize], waiting);
        }
        assert!(
            travelling.keys().all(|id| self.calls.contains_key(id)),
            "a piece of a call that is over"
        );
        if self.stage == Stage::Drained {
            assert!(self.calls.is_empty() && self.workers.is_empty());
        }
    }
}
