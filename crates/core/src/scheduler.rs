//! The reactor: takes what happened, decides what to do.
//!
//! One scheduler serves one executor. It owns the queue of calls, knows which piece travels on which
//! worker, and keeps the hard cap on started, unfinished work over all lanes (rule 4). It performs
//! nothing: decisions leave as [`Action`]s, in the order in which they must be carried out. Where a
//! decision hangs on an answer that only the outside has, it asks through [`Port`].
//!
//! Order of service is first come, first served, across lanes: a call at the head that has no slot
//! holds back what is behind it, so a stream of process tasks can't starve a thread task or the
//! reverse. Fair share between calls will change `dispatch` and nothing else.

use crate::call::{Call, CallSpec};
use crate::event::{Action, Breakage, Claim, Event, Exit, Lane, Verdict};
use crate::ids::{CallId, IdMap, Moment, PieceSeq, WorkerId};
use crate::worker::{Overdue, Phase, Piece, Worker};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// Failed boots in a row that break an executor (rule 10).
pub const FAILED_BOOTS: u32 = 3;

/// What is fixed when an executor is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// The hard cap on started, unfinished pieces of work over all lanes.
    pub max_slots: u32,
    /// How many pieces may wait in a busy worker's ring beyond the running one.
    pub prefetch: u32,
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
    queue: VecDeque<CallId>,
    workers: BTreeMap<WorkerId, Worker>,
    next_worker: u32,
    /// Workers that take work, by how many pieces they hold: the first one is the best choice, and the
    /// lowest id, hence the warmest, among equals.
    room: BTreeSet<(usize, WorkerId)>,
    /// Workers that hold a piece.
    busy_workers: u32,
    /// Pieces that stand behind another one, on any worker, so that nobody looks for them in vain.
    behind: usize,
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
        Scheduler {
            config,
            stage: Stage::Open,
            broken: None,
            calls: IdMap::default(),
            next_call: 0,
            queue: VecDeque::new(),
            workers: BTreeMap::new(),
            next_worker: 0,
            room: BTreeSet::new(),
            busy_workers: 0,
            behind: 0,
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
        self.calls.insert(id, Call::new(spec));
        self.enqueue(id);
        Ok(id)
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

    /// Cancels a call of one item, unless it has been claimed: then it goes on as if never asked.
    pub fn cancel(&mut self, id: CallId, port: &mut impl Port) -> Cancel {
        let Some(call) = self.calls.get(&id) else {
            return Cancel::TooLate;
        };
        let abandoned = call.cancelled;
        if call.settled == call.items {
            self.close_call(id);
            return Cancel::TooLate;
        }
        self.abandon(id, port);
        // A call that is still open now has its item claimed. Should the worker stand back from it,
        // having seen the mark after its claim, then it runs again: its user was told "too late".
        // Only a call that was abandoned before keeps to that.
        match self.calls.get_mut(&id) {
            None => Cancel::Cancelled,
            Some(call) => {
                call.cancelled = abandoned;
                Cancel::TooLate
            }
        }
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
        let on_workers = |call: &Call| call.lane == Lane::Process && call.travelling > 0;
        if !self.calls.get(&id).is_some_and(on_workers) {
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
        if worker.kill() {
            self.actions.push(Action::Kill(id));
        }
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
        let worker = self.workers.get_mut(&id).ok_or(Unexpected)?;
        let piece = worker.pieces.front_mut().ok_or(Unexpected)?;
        if piece.seq != seq || piece.answered != item || piece.unanswered().is_empty() {
            return Err(Unexpected);
        }
        let place = piece.items.start + u64::from(item);
        piece.answered += 1;
        worker.worked = true;
        self.failed_boots = 0;
        self.spawning_paused = false;
        let call = piece.call;
        self.calls
            .get_mut(&call)
            .ok_or(Unexpected)?
            .settle_travelling(1);
        // With the answer, not with the end of its piece: the worker may die between the two.
        self.finish_if_done(call);
        Ok((call, place))
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
                let piece = self.finish_piece(id, seq, |piece| piece.unanswered().is_empty())?;
                self.measured(piece.call, u64::from(piece.answered), busy_ns);
            }
            Event::Skipped {
                worker: id,
                seq,
                from,
            } => {
                let piece =
                    self.finish_piece(id, seq, |piece| piece.revoked && piece.answered == from)?;
                // Claimed when we looked, but the worker saw the mark after its claim and stood back.
                self.come_back(piece.call, piece.unanswered());
            }
            Event::Gone {
                worker,
                exit,
                claim,
            } => self.gone(worker, exit, claim)?,
            Event::SpawnFailed(id) => {
                // Where others work, what is missing now (descriptors, memory) may be there soon: their
                // answers are the time to try again, and this is no failed boot in a row.
                let others_work = self.workers.values().any(|w| w.worked && w.takes_work());
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

    /// A lane thread stood back from these items of its piece because the call was cancelled.
    pub fn thread_skipped(&mut self, id: CallId, items: Range<u64>) {
        self.come_back(id, items);
    }

    /// Acts on deadlines that have passed.
    pub fn tick(&mut self, now: Moment) {
        for (&id, worker) in &mut self.workers {
            match worker.overdue(now) {
                Overdue::Nothing => {}
                Overdue::Terminate => self.actions.push(Action::Terminate(id)),
                Overdue::Kill => self.actions.push(Action::Kill(id)),
            }
        }
    }

    /// The next moment at which [`Scheduler::tick`] has something to do.
    pub fn deadline(&self) -> Option<Moment> {
        self.workers.values().filter_map(Worker::deadline).min()
    }

    // ---- what the outside may ask ------------------------------------------------------------

    /// The worker and piece that hold the single item of this call, if one does.
    pub fn holder(&self, id: CallId) -> Option<(WorkerId, Claim)> {
        self.workers.iter().find_map(|(&worker, w)| {
            let piece = w
                .pieces
                .iter()
                .find(|p| p.call == id && !p.unanswered().is_empty())?;
            Some((
                worker,
                Claim {
                    seq: piece.seq,
                    item: piece.answered,
                },
            ))
        })
    }

    /// Whether the item behind `held` has been claimed, given the worker's claim word.
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

    /// Whether another worker might be started for work that is accepted now.
    pub fn may_spawn(&self) -> bool {
        !self.spawning_paused && (self.room.len() as u32) < self.config.max_slots
    }

    /// Whether no process is asked for until a worker has answered, because the last one could not be made.
    pub fn is_spawning_paused(&self) -> bool {
        self.spawning_paused
    }

    /// Whether a process task accepted now would start a worker, because none is idle.
    pub fn would_spawn(&self) -> bool {
        self.may_spawn()
            && self.has_slot()
            && self.room.first().is_none_or(|&(pieces, _)| pieces > 0)
    }

    /// The calls that have not ended, oldest first.
    pub fn open_calls(&self) -> Vec<CallId> {
        let mut ids: Vec<CallId> = self.calls.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// The workers that are there, dying ones included.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.workers.keys().copied()
    }

    /// Items waiting for a slot.
    pub fn waiting(&self) -> u64 {
        self.queue
            .iter()
            .filter_map(|id| self.calls.get(id))
            .map(Call::waiting)
            .sum()
    }

    /// Whether shutting down is complete.
    pub fn is_drained(&self) -> bool {
        self.stage == Stage::Drained
    }

    // ---- the decisions -----------------------------------------------------------------------

    /// Moves waiting work to whoever has room. To be called after anything above.
    pub fn dispatch(&mut self, now: Moment, port: &mut impl Port) {
        while let Some(&id) = self.queue.front() {
            let Some(call) = self.calls.get(&id).filter(|call| call.has_waiting()) else {
                self.queue.pop_front();
                if let Some(call) = self.calls.get_mut(&id) {
                    call.queued = false;
                }
                continue;
            };
            let lane = call.lane;
            let target = match lane {
                Lane::Thread if self.has_slot() => None,
                Lane::Thread => break,
                Lane::Process => match self.pick_worker() {
                    Some(worker) => Some(worker),
                    None => break,
                },
            };
            let slots = u64::from(self.config.max_slots);
            let Some(call) = self.calls.get_mut(&id) else {
                break;
            };
            let items = call.cut(slots, |wanted| port.fit(id, wanted));
            match target {
                None => {
                    self.busy_threads += 1;
                    self.actions.push(Action::RunOnThread { call: id, items });
                }
                Some(worker) => self.send(worker, id, items),
            }
        }
        if self.queue.is_empty() {
            self.take_back(port);
        }
        self.wind_down(now);
    }

    /// Gives free slots the pieces that wait behind others, oldest call first.
    fn take_back(&mut self, port: &mut impl Port) {
        // Every round marks one more piece as revoked or leaves, so the rounds come to an end.
        while self.behind > 0 && self.has_slot() && self.broken.is_none() {
            let behind = self.workers.iter().flat_map(|(&worker, w)| {
                // The first piece runs, or is about to; only what stands behind it can be had.
                let pieces = w
                    .pieces
                    .iter()
                    .skip(1)
                    .filter(|p| !p.revoked && p.answered == 0);
                pieces.map(move |p| (p.call, p.items.start, worker, p.seq))
            });
            let Some((call, _, worker, seq)) =
                behind.min_by_key(|&(call, start, ..)| (call, start))
            else {
                return;
            };
            let items = self.withdraw(worker, seq, port);
            if items.is_empty() {
                continue;
            }
            // A free slot without an idle worker is rare (a worker died, or a thread left the slot), but
            // without a new one a piece would wait for a task that may last for hours.
            let idle = match self.room.first() {
                Some(&(0, idle)) => idle,
                _ => self.spawn(),
            };
            self.send(idle, call, items);
        }
    }

    fn send(&mut self, worker: WorkerId, call: CallId, items: Range<u64>) {
        let Some(w) = self.workers.get_mut(&worker) else {
            unreachable!("sent to a worker that is not there")
        };
        let before = w.pieces.len();
        let seq = w.push(call, items.clone());
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
    fn pick_worker(&mut self) -> Option<WorkerId> {
        if self.has_slot() {
            if let Some(&(0, worker)) = self.room.first() {
                return Some(worker);
            }
            if self.may_spawn() {
                return Some(self.spawn());
            }
        }
        let &(pieces, worker) = self.room.range((1, WorkerId(0))..).next()?;
        (pieces <= self.config.prefetch as usize).then_some(worker)
    }

    fn spawn(&mut self) -> WorkerId {
        let id = WorkerId(self.next_worker);
        self.next_worker += 1;
        self.workers.insert(id, Worker::new());
        self.room.insert((0, id));
        self.actions.push(Action::Spawn(id));
        id
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
        rest
    }

    /// Takes the first piece off a worker, if it is this one and `fits`. One that does not stays where it
    /// is: its items are settled when the worker, as good as dead, is gone.
    fn finish_piece(
        &mut self,
        id: WorkerId,
        seq: PieceSeq,
        fits: impl FnOnce(&Piece) -> bool,
    ) -> Result<Piece, Unexpected> {
        let worker = self.workers.get_mut(&id).ok_or(Unexpected)?;
        let before = worker.pieces.len();
        let piece = worker
            .pieces
            .pop_front_if(|piece| piece.seq == seq && fits(piece))
            .ok_or(Unexpected)?;
        self.pieces_changed(id, before);
        Ok(piece)
    }

    fn gone(&mut self, id: WorkerId, exit: Exit, claim: Option<Claim>) -> Result<(), Unexpected> {
        let mut worker = self.workers.remove(&id).ok_or(Unexpected)?;
        self.room.remove(&(worker.pieces.len(), id));
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
        let failed = worker.faulty || booting || (worker.takes_work() && !returned.is_empty());
        for (call, items) in returned.into_iter().rev() {
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
            call.put_back(items);
            if !std::mem::replace(&mut call.queued, true) {
                self.queue.push_front(id);
            }
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
        if call.has_waiting() && !std::mem::replace(&mut call.queued, true) {
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
            call.queued = call.has_waiting();
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
            if self.workers.get_mut(&id).is_some_and(|w| w.retire(now)) {
                self.actions.push(Action::Retire(id));
                self.update_room(id);
            }
        }
        if self.workers.is_empty() && self.busy_threads == 0 {
            self.stage = Stage::Drained;
            self.actions.push(Action::Drained);
        }
    }

    fn pieces_changed(&mut self, id: WorkerId, before: usize) {
        let Some(worker) = self.workers.get(&id) else {
            return;
        };
        let after = worker.pieces.len();
        self.room.remove(&(before, id));
        if worker.takes_work() {
            self.room.insert((after, id));
        }
        self.count_pieces(before, after);
    }

    fn count_pieces(&mut self, before: usize, after: usize) {
        match (before, after) {
            (0, 1..) => self.busy_workers += 1,
            (1.., 0) => self.busy_workers -= 1,
            _ => {}
        }
        self.behind = self.behind + after.saturating_sub(1) - before.saturating_sub(1);
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
                self.room.contains(&(worker.pieces.len(), *id)),
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
        let behind: usize = self
            .workers
            .values()
            .map(|w| w.pieces.len().saturating_sub(1))
            .sum();
        assert_eq!(self.behind, behind);
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
                    !call.has_waiting() || call.queued,
                    "work waits outside the queue"
                );
            }
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
