//! Everything outside the scheduler, played by its protocol.
//!
//! A simulated worker boots, claims its items in order, looks for revocations after each claim,
//! answers in order, and dies whenever a test wants. What it publishes lies in its outbox until the
//! parent reads it, so the parent is as late as a test wants too. Of Dekker's rule exactly this is
//! kept: a claim made after the mark sees the mark; a claim made before it may or may not.
//!
//! After each step the world carries out what was decided, dispatches, and checks the invariants.

use crate::ledger::{End, Ledger, Place};
use rightlane_core::scheduler::FAILED_BOOTS;
use rightlane_core::{
    Action, CallId, CallSpec, Cancel, Claim, Config, Event, Exit, HOLD_NS, Lane, Moment, PieceSeq,
    Port, RETIRE_NS, Refused, Scheduler, TERMINATE_NS, Unexpected, Verdict, WorkerId, WorldId,
};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGTERM: i32 = 15;

/// A small generator, so that what the proptest seed does not decide is still replayed exactly.
#[derive(Debug)]
pub(crate) struct Coin(u64);

impl Coin {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// What a worker does where Dekker's rule leaves it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    Sees,
    Misses,
    /// Either, and workers move on while the parent decides.
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Requested,
    Initializing,
    Serving,
    Dead(Exit),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Between,
    Claimed { marked_before: bool },
    Running,
}

#[derive(Clone, Copy, Debug)]
enum Message {
    Ready,
    Answer { seq: PieceSeq, item: u32 },
    Done { seq: PieceSeq, busy_ns: u64 },
    Skipped { seq: PieceSeq, from: u32 },
}

#[derive(Debug)]
struct Held {
    seq: PieceSeq,
    call: CallId,
    items: Range<u64>,
    next: u32,
}

/// A piece as the parent knows it.
#[derive(Debug)]
struct Sent {
    seq: PieceSeq,
    call: CallId,
    items: Range<u64>,
    revoked: bool,
    answered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Retire { at: Moment },
    Terminate { at: Moment },
    Kill,
}

#[derive(Debug)]
struct SimWorker {
    life: Life,
    at: At,
    ring: VecDeque<Held>,
    outbox: VecDeque<Message>,
    claim: Option<Claim>,
    claim_before: Option<Claim>,
    sent: VecDeque<Sent>,
    /// The world it was forked in.
    world: WorldId,
    /// How many items it was sent, and how many it began to run.
    received: u64,
    ran: u64,
    /// When it last had something to do.
    last_held: Moment,
    told: Told,
    /// Ignores requests to end, SIGTERM included.
    stubborn: bool,
    worked: bool,
    /// Whether it is in the user's initializer, or died there.
    initializing: bool,
    reported: bool,
}

#[derive(Debug)]
struct LaneThread {
    call: CallId,
    items: Range<u64>,
    next: u64,
    running: bool,
}

/// The workers, the lane threads and the ledger: what the scheduler reaches through its port.
#[derive(Debug)]
pub(crate) struct Outside {
    workers: BTreeMap<WorkerId, SimWorker>,
    /// The most items that a worker may run.
    most_items: u64,
    threads: Vec<LaneThread>,
    pub(crate) ledger: Ledger,
    pub(crate) coin: Coin,
    pub(crate) sight: Sight,
    pub(crate) busy_ns_per_item: u64,
    pub(crate) revocations: usize,
}

impl Port for Outside {
    fn fit(&self, _: CallId, items: &Range<u64>) -> u64 {
        match self.sight {
            // Any number of them, none included: the scheduler must send at least one.
            Sight::Random => (items.end - items.start) * (self.coin.0 % 5) / 3,
            _ => items.end - items.start,
        }
    }

    fn revoke(&mut self, id: WorkerId, seq: PieceSeq) -> Option<Claim> {
        self.revocations += 1;
        if self.sight == Sight::Random {
            for _ in 0..self.coin.below(4) {
                self.step(id);
            }
        }
        let worker = self.workers.get_mut(&id).expect("a worker that is there");
        let sent = worker
            .sent
            .iter_mut()
            .find(|p| p.seq == seq)
            .expect("a piece under way");
        sent.revoked = true;
        // What was not claimed before the mark is the parent's again from here on.
        for place in sent.items.clone() {
            let item = self.ledger.item(sent.call, place);
            if item.place == Place::Worker(id, seq) && !item.is_claimed(id, seq, worker.claim) {
                item.place = Place::TakenBack;
            }
        }
        worker.claim
    }
}

impl Outside {
    /// The worker does the next thing. Returns whether there was one.
    fn step(&mut self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        match worker.life {
            Life::Requested | Life::Dead(_) => return false,
            Life::Initializing => {
                worker.life = Life::Serving;
                worker.initializing = false;
                worker.outbox.push_back(Message::Ready);
                return true;
            }
            Life::Serving => {}
        }
        let Some(piece) = worker.ring.front_mut() else {
            let asked = matches!(worker.told, Told::Retire { .. } | Told::Terminate { .. });
            if asked && !worker.stubborn {
                worker.life = Life::Dead(Exit::Code(0));
                return true;
            }
            return false;
        };
        let seq = piece.seq;
        let marked = worker.sent.iter().any(|p| p.seq == seq && p.revoked);
        let place = piece.items.start + u64::from(piece.next);
        match worker.at {
            At::Between if place == piece.items.end => {
                let busy_ns = u64::from(piece.next) * self.busy_ns_per_item;
                worker.outbox.push_back(Message::Done { seq, busy_ns });
                worker.ring.pop_front();
            }
            At::Between => {
                worker.claim_before = worker.claim;
                worker.claim = Some(Claim {
                    seq,
                    item: piece.next,
                });
                worker.at = At::Claimed {
                    marked_before: marked,
                };
                if !marked {
                    self.ledger.item(piece.call, place).claimed_by = Some(id);
                }
            }
            At::Claimed { marked_before } => {
                let sees = match self.sight {
                    Sight::Sees => true,
                    Sight::Misses => false,
                    Sight::Random => self.coin.below(2) == 0,
                };
                if marked_before || (marked && sees) {
                    worker.outbox.push_back(Message::Skipped {
                        seq,
                        from: piece.next,
                    });
                    if self.sight == Sight::Random && self.coin.below(2) == 0 {
                        worker.claim = worker.claim_before;
                        if !marked_before {
                            self.ledger.item(piece.call, place).claim_withdrawn = true;
                        }
                    }
                    worker.ring.pop_front();
                    worker.at = At::Between;
                } else {
                    self.ledger.begin_run(piece.call, place);
                    worker.at = At::Running;
                    worker.ran += 1;
                    assert!(
                        worker.ran <= self.most_items,
                        "{id} runs more than it may (rule 10)"
                    );
                }
            }
            At::Running => {
                worker.outbox.push_back(Message::Answer {
                    seq,
                    item: piece.next,
                });
                worker.at = At::Between;
                piece.next += 1;
            }
        }
        true
    }

    /// The worker's process dies where it stands.
    fn die(&mut self, id: WorkerId, exit: Exit) {
        if let Some(worker) = self.workers.get_mut(&id)
            && !matches!(worker.life, Life::Dead(_))
        {
            worker.life = Life::Dead(exit);
        }
    }

    fn running(&self) -> usize {
        let on_workers = self
            .workers
            .values()
            .filter(|w| w.at == At::Running && !matches!(w.life, Life::Dead(_)));
        on_workers.count() + self.threads.iter().filter(|t| t.running).count()
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scheduler: Scheduler,
    pub(crate) outside: Outside,
    pub(crate) now: Moment,
    /// Decisions since [`World::take_log`].
    log: Vec<Action>,
    max_slots: usize,
    prefetch: usize,
    idle_ns: Option<u64>,
    cores: usize,
    /// The world that each call belongs to.
    world_of: BTreeMap<CallId, WorldId>,
    initializer: bool,
    /// Whether a kill was asked for in this step.
    kill_asked: bool,
    /// Workers that died without having answered, since the last answer.
    failed_boots: u32,
    /// The worker whose death is being reported, with its lost items so far.
    dying: Option<(WorkerId, Exit, u32)>,
}

impl World {
    pub(crate) fn new(max_slots: u32, prefetch: u32) -> World {
        World::with(Config::new(max_slots, prefetch))
    }

    pub(crate) fn with(config: Config) -> World {
        let (max_slots, prefetch, idle_ns) = (config.max_slots, config.prefetch, config.idle_ns);
        let cores = config.cores as usize;
        let most_items = config.items_per_worker.unwrap_or(u64::MAX);
        World {
            scheduler: Scheduler::new(config),
            outside: Outside {
                workers: BTreeMap::new(),
                most_items,
                threads: Vec::new(),
                ledger: Ledger::default(),
                coin: Coin(1),
                sight: Sight::Sees,
                busy_ns_per_item: 10_000_000,
                revocations: 0,
            },
            now: Moment(0),
            log: Vec::new(),
            max_slots: max_slots as usize,
            prefetch: prefetch as usize,
            idle_ns,
            cores,
            world_of: BTreeMap::new(),
            initializer: false,
            kill_asked: false,
            failed_boots: 0,
            dying: None,
        }
    }

    pub(crate) fn with_initializer(mut self) -> World {
        self.initializer = true;
        self
    }

    pub(crate) fn with_random_sight(mut self, seed: u64) -> World {
        self.outside.coin = Coin(seed | 1);
        self.outside.sight = Sight::Random;
        self
    }

    // ---- the user ----------------------------------------------------------------------------

    pub(crate) fn open(&mut self, spec: &CallSpec) -> Option<CallId> {
        let opened = self.scheduler.open(spec);
        assert_eq!(opened.is_ok(), self.scheduler.accepts().is_ok());
        let id = opened.ok()?;
        self.outside.ledger.open(id, spec);
        self.world_of.insert(id, self.scheduler.world());
        self.after_step();
        Some(id)
    }

    /// The caller's world changes.
    pub(crate) fn turn(&mut self, world: u32) {
        self.scheduler.set_world(WorldId(world));
        self.after_step();
    }

    /// How many items a worker has begun.
    pub(crate) fn ran(&self, id: WorkerId) -> u64 {
        self.outside.workers[&id].ran
    }

    pub(crate) fn submit(&mut self, lane: Lane) -> CallId {
        let spec = CallSpec {
            lane,
            chunk_items: None,
            items: 1,
            closed: true,
            pace: None,
        };
        self.open(&spec).expect("an executor that takes calls")
    }

    /// A map whose items travel `chunk_items` at a time.
    pub(crate) fn map(&mut self, lane: Lane, items: u64, chunk_items: u64) -> CallId {
        let spec = CallSpec {
            lane,
            chunk_items: Some(chunk_items),
            items,
            closed: true,
            pace: None,
        };
        self.open(&spec).expect("an executor that takes calls")
    }

    pub(crate) fn extend(&mut self, id: CallId, more: u64) {
        let call = self.outside.ledger.call(id);
        let ended = call.done;
        if call.closed && !call.abandoned {
            return;
        }
        if !ended {
            self.outside.ledger.extend(id, more);
        }
        self.scheduler.extend(id, more);
        self.after_step();
    }

    pub(crate) fn close_call(&mut self, id: CallId) {
        self.outside.ledger.call(id).closed = true;
        self.scheduler.close_call(id);
        self.after_step();
    }

    pub(crate) fn cancel(&mut self, id: CallId) -> Cancel {
        assert_eq!(self.outside.ledger.call(id).items.len(), 1);
        self.cancel_item(id, 0)
    }

    pub(crate) fn cancel_item(&mut self, id: CallId, item: u64) -> Cancel {
        self.call_back_threads(id);
        self.check_holder(id, item);
        let before = *self.outside.ledger.item(id, item);
        self.outside.ledger.item(id, item).cancel_asked = true;
        let said = self.scheduler.cancel(id, item, &mut self.outside);
        self.carry_out();
        let item = self.outside.ledger.item(id, item);
        match said {
            Cancel::Cancelled => {
                assert_eq!((before.end, item.end), (None, Some(End::Cancelled)));
            }
            Cancel::TooLate => {
                let claimed = item.claimed_by.is_some() && item.place != Place::Waiting;
                assert!(
                    claimed || item.place == Place::Thread || item.end.is_some(),
                    "too late for an item nobody claimed: {item:?}"
                );
                item.cancel_asked = before.cancel_asked;
            }
        }
        self.after_step();
        said
    }

    /// Whoever asks whether an item runs is told the truth.
    fn check_holder(&mut self, id: CallId, place: u64) {
        let item = *self.outside.ledger.item(id, place);
        let holder = self.scheduler.holder(id, place);
        match item.place {
            Place::Worker(worker, seq) if item.end.is_none() => {
                let (held_by, held) = holder.expect("a worker that holds it");
                assert_eq!((held_by, held.seq), (worker, seq));
                let claim = self.outside.workers[&worker].claim;
                let claimed = self.scheduler.is_claimed(worker, held, claim);
                assert_eq!(claimed, item.is_claimed(worker, seq, claim), "{item:?}");
            }
            _ => assert_eq!(holder, None, "{item:?}"),
        }
    }

    /// The pieces of a call that no lane thread has picked up wait again, as the engine has it before a
    /// cancel.
    fn call_back_threads(&mut self, id: CallId) {
        let (back, kept) = std::mem::take(&mut self.outside.threads)
            .into_iter()
            .partition(|t: &LaneThread| t.call == id && !t.running && t.next == t.items.start);
        self.outside.threads = kept;
        for LaneThread { call, items, .. } in back {
            self.scheduler.thread_skipped(call, items.clone());
            for place in items {
                self.outside.ledger.item(call, place).place = Place::Waiting;
            }
            self.event(Event::ThreadPieceDone {
                call,
                items: 0,
                busy_ns: 0,
            })
            .expect("a thread's piece");
        }
    }

    pub(crate) fn abandon(&mut self, id: CallId) {
        self.mark_abandoned(id);
        self.scheduler.abandon(id, &mut self.outside);
        self.carry_out();
        self.check_abandoned(id);
        self.after_step();
    }

    /// So many of what waits and never left become somebody else's; they count as ended here.
    pub(crate) fn give_away(&mut self, id: CallId, count: u64) -> Range<u64> {
        let fresh = self.scheduler.fresh(id);
        let given = self.scheduler.give_away(id, count);
        assert_eq!(given.end - given.start, count.min(fresh.end - fresh.start));
        assert!(given.is_empty() || given.start == fresh.start);
        self.outside.ledger.give_away(id, given.clone());
        self.carry_out();
        self.after_step();
        given
    }

    pub(crate) fn abandon_all(&mut self) {
        let ids: Vec<CallId> = self.outside.ledger.calls.keys().copied().collect();
        for &id in &ids {
            self.mark_abandoned(id);
        }
        self.scheduler.abandon_all(&mut self.outside);
        self.carry_out();
        for id in ids {
            self.check_abandoned(id);
        }
        self.after_step();
    }

    fn mark_abandoned(&mut self, id: CallId) {
        let call = self.outside.ledger.call(id);
        if !call.done {
            (call.closed, call.abandoned) = (true, true);
        }
    }

    fn check_abandoned(&mut self, id: CallId) {
        for item in &self.outside.ledger.call(id).items {
            let claimed = item.claimed_by.is_some() || item.place == Place::Thread;
            assert!(
                item.end.is_some() || claimed,
                "abandoned, unclaimed and still there: {item:?}"
            );
        }
    }

    pub(crate) fn close(&mut self) {
        self.scheduler.close(self.now);
        self.after_step();
    }

    pub(crate) fn start_workers(&mut self, count: u32) {
        self.scheduler.start_workers(count, self.now);
        self.after_step();
    }

    pub(crate) fn kill_all(&mut self) {
        self.scheduler.kill_all();
        self.kill_asked = true;
        self.after_step();
        self.kill_asked = false;
    }

    // ---- the workers -------------------------------------------------------------------------

    /// The workers the scheduler has asked for and not dropped, oldest first.
    pub(crate) fn workers(&self) -> Vec<WorkerId> {
        self.outside.workers.keys().copied().collect()
    }

    /// The template has forked the worker.
    pub(crate) fn start(&mut self, id: WorkerId) {
        let Some(worker) = self.outside.workers.get_mut(&id) else {
            return;
        };
        if worker.life != Life::Requested {
            return;
        }
        worker.life = Life::Initializing;
        if self.initializer {
            worker.initializing = true;
            self.event(Event::Started(id))
                .expect("a worker that is there");
            self.after_step();
        }
    }

    /// The template could not fork the worker.
    pub(crate) fn spawn_fails(&mut self, id: WorkerId) {
        let Some(worker) = self.outside.workers.get_mut(&id) else {
            return;
        };
        if worker.life == Life::Requested {
            worker.life = Life::Dead(Exit::Unknown);
            worker.reported = true;
            self.report(id, Event::SpawnFailed(id), Exit::Unknown);
        }
    }

    /// The template dies before it could fork this worker.
    pub(crate) fn template_dies(&mut self, id: WorkerId) {
        let Some(worker) = self.outside.workers.get_mut(&id) else {
            return;
        };
        if worker.life == Life::Requested {
            worker.life = Life::Dead(Exit::Unknown);
            worker.reported = true;
            // No boot at all, so none that failed.
            worker.worked = true;
            self.report(id, Event::Unborn(id), Exit::Unknown);
        }
    }

    pub(crate) fn initializer_raises(&mut self, id: WorkerId) {
        let Some(worker) = self.outside.workers.get_mut(&id) else {
            return;
        };
        if self.initializer && worker.life == Life::Initializing {
            worker.life = Life::Dead(Exit::Code(1));
            self.outside.ledger.may_break = true;
            self.event(Event::InitializerRaised(id))
                .expect("a worker that is there");
            assert!(
                self.scheduler.accepts().is_err(),
                "the initializer raised and nothing broke"
            );
            self.after_step();
        }
    }

    pub(crate) fn thread_initializer_raises(&mut self) {
        if self.initializer {
            self.outside.ledger.may_break = true;
            self.event(Event::ThreadInitializerRaised)
                .expect("always taken");
            self.after_step();
        }
    }

    /// The worker takes at most `steps` steps: boot, then claim, look and answer, in turn.
    pub(crate) fn step(&mut self, id: WorkerId, steps: u64) -> bool {
        let mut moved = false;
        for _ in 0..steps {
            moved |= self.outside.step(id);
        }
        self.check();
        moved
    }

    /// The worker is up and has claimed and begun the first item of its ring.
    pub(crate) fn begin(&mut self, id: WorkerId) {
        self.start(id);
        while self.outside.workers[&id].at != At::Running {
            assert!(self.step(id, 1), "nothing to begin");
        }
        self.read(id);
    }

    /// The worker runs until its ring is empty, and the parent reads it all.
    pub(crate) fn run_dry(&mut self, id: WorkerId) {
        self.start(id);
        while self.step(id, 1) {
            self.read(id);
        }
        self.read(id);
    }

    /// Somebody kills the worker; the parent does not know yet.
    pub(crate) fn kill(&mut self, id: WorkerId, signal: i32) {
        self.outside.die(id, Exit::Signal(signal));
    }

    /// Kills the worker and lets the parent find out.
    pub(crate) fn kill_and_report(&mut self, id: WorkerId) {
        self.kill(id, SIGKILL);
        self.read(id);
    }

    pub(crate) fn make_stubborn(&mut self, id: WorkerId) {
        self.outside
            .workers
            .get_mut(&id)
            .expect("a worker that is there")
            .stubborn = true;
    }

    /// The parent reads all the worker has published, and its death if it has died.
    pub(crate) fn read(&mut self, id: WorkerId) -> bool {
        let mut moved = false;
        while self.read_one(id) {
            moved = true;
        }
        moved
    }

    /// The parent reads the next message of the worker, or, after the last one, of its death.
    pub(crate) fn read_one(&mut self, id: WorkerId) -> bool {
        let Some(worker) = self.outside.workers.get_mut(&id) else {
            return false;
        };
        let Some(message) = worker.outbox.pop_front() else {
            let Life::Dead(exit) = worker.life else {
                return false;
            };
            worker.reported = true;
            let claim = worker.claim;
            self.report(
                id,
                Event::Gone {
                    worker: id,
                    exit,
                    claim,
                },
                exit,
            );
            return true;
        };
        match message {
            Message::Ready => self
                .event(Event::Ready(id))
                .expect("a worker that is there"),
            Message::Answer { seq, item } => {
                worker.worked = true;
                worker.sent.front_mut().expect("a piece under way").answered = true;
                self.failed_boots = 0;
                let (call, place) = self
                    .scheduler
                    .answered(id, seq, item)
                    .expect("the next answer");
                assert_eq!(
                    self.outside.ledger.item(call, place).place,
                    Place::Worker(id, seq)
                );
                self.outside.ledger.end(call, place, End::Answered);
            }
            Message::Done { seq, busy_ns } => {
                worker.sent.pop_front();
                worker.last_held = self.now;
                self.event(Event::PieceDone {
                    worker: id,
                    seq,
                    busy_ns,
                })
                .expect("the first piece");
            }
            Message::Skipped { seq, from } => {
                worker.sent.pop_front();
                worker.last_held = self.now;
                self.event(Event::Skipped {
                    worker: id,
                    seq,
                    from,
                })
                .expect("a revoked piece");
                self.outside
                    .ledger
                    .come_back(|place| place == Place::Worker(id, seq));
            }
        }
        self.after_step();
        true
    }

    fn report(&mut self, id: WorkerId, event: Event, exit: Exit) {
        let worker = &self.outside.workers[&id];
        if !worker.worked {
            self.failed_boots += 1;
        }
        self.outside.ledger.may_break |= worker.initializing || self.failed_boots >= FAILED_BOOTS;
        self.dying = Some((id, exit, 0));
        self.event(event).expect("a worker that is there");
        self.dying = None;
        assert!(
            !self.outside.workers.contains_key(&id),
            "{id} is gone and not dropped"
        );
        self.outside
            .ledger
            .come_back(|place| matches!(place, Place::Worker(w, _) if w == id));
        self.after_step();
    }

    /// The worker sends what no worker may send; the parent kills it for that.
    pub(crate) fn talk_rubbish(&mut self, id: WorkerId, which: u64) {
        let Some(worker) = self.outside.workers.get(&id) else {
            return;
        };
        let first = worker.sent.front().map_or(PieceSeq(77), |p| p.seq);
        // Of a revoked piece nothing may be left to answer: then its end is believed.
        let revoked = worker.sent.front().is_some_and(|p| p.revoked);
        let front = worker.ring.front().filter(|p| p.seq == first && !revoked);
        let unfinished = front.is_some_and(|p| u64::from(p.next) < p.items.end - p.items.start);
        let refused = match which % 5 {
            0 => self.scheduler.handle(
                Event::PieceDone {
                    worker: id,
                    seq: PieceSeq(first.0.wrapping_add(1)),
                    busy_ns: 0,
                },
                self.now,
            ),
            1 if unfinished => self.scheduler.handle(
                Event::PieceDone {
                    worker: id,
                    seq: first,
                    busy_ns: 0,
                },
                self.now,
            ),
            2 => self.scheduler.handle(
                Event::Skipped {
                    worker: id,
                    seq: first,
                    from: 1 << 20,
                },
                self.now,
            ),
            3 => self.scheduler.answered(id, first, 1 << 20).map(|_| ()),
            _ => self
                .scheduler
                .answered(id, PieceSeq(first.0.wrapping_add(9)), 0)
                .map(|_| ()),
        };
        assert_eq!(refused, Err(Unexpected));
        self.kill_for_rubbish(id);
    }

    pub(crate) fn kill_for_rubbish(&mut self, id: WorkerId) {
        self.scheduler.kill(id);
        self.kill_asked = true;
        self.after_step();
        self.kill_asked = false;
    }

    // ---- the lane threads --------------------------------------------------------------------

    pub(crate) fn threads(&self) -> usize {
        self.outside.threads.len()
    }

    /// A lane thread begins its next item, or ends the one it runs.
    pub(crate) fn thread_step(&mut self, which: usize) -> bool {
        let Outside {
            threads, ledger, ..
        } = &mut self.outside;
        let Some(thread) = threads.get_mut(which) else {
            return false;
        };
        let (call, place) = (thread.call, thread.next);
        if thread.running {
            thread.running = false;
            thread.next += 1;
            self.scheduler.thread_answered(call);
            ledger.end(call, place, End::Answered);
        } else if ledger.call(call).abandoned && place < thread.items.end {
            let rest = place..std::mem::replace(&mut thread.items.end, place);
            self.scheduler.thread_skipped(call, rest.clone());
        } else if place < thread.items.end {
            ledger.begin_run(call, place);
            thread.running = true;
        } else {
            let thread = threads.swap_remove(which);
            let items = (thread.items.end - thread.items.start) as u32;
            let busy_ns = u64::from(items) * self.outside.busy_ns_per_item;
            self.event(Event::ThreadPieceDone {
                call,
                items,
                busy_ns,
            })
            .expect("a thread's piece");
        }
        self.after_step();
        true
    }

    // ---- time --------------------------------------------------------------------------------

    pub(crate) fn pass_time(&mut self, ns: u64) {
        self.now = self.now.after_ns(ns);
        self.scheduler.tick(self.now);
        self.after_step();
    }

    // ---- carrying out ------------------------------------------------------------------------

    /// What was decided since this was last asked for.
    pub(crate) fn take_log(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.log)
    }

    /// How the items of a call have ended.
    pub(crate) fn ends(&self, id: CallId) -> Vec<Option<End>> {
        self.outside.ledger.calls[&id]
            .items
            .iter()
            .map(|i| i.end)
            .collect()
    }

    fn event(&mut self, event: Event) -> Result<(), Unexpected> {
        let handled = self.scheduler.handle(event, self.now);
        self.carry_out();
        handled
    }

    fn after_step(&mut self) {
        self.carry_out();
        self.scheduler.dispatch(self.now, &mut self.outside);
        self.carry_out();
        self.check();
        assert!(
            self.scheduler.deadline().is_none_or(|d| d > self.now),
            "a deadline was left behind"
        );
    }

    fn carry_out(&mut self) {
        for action in self.scheduler.take_actions(Vec::new()) {
            self.log.push(action.clone());
            self.act(action);
        }
        self.outside
            .ledger
            .come_back(|place| place == Place::TakenBack);
    }

    fn act(&mut self, action: Action) {
        assert!(!self.outside.ledger.drained, "{action:?} after the end");
        match action {
            Action::Spawn(id) => {
                assert!(!self.is_broken(), "{id} is started for a broken executor");
                let worker = SimWorker {
                    life: Life::Requested,
                    at: At::Between,
                    ring: VecDeque::new(),
                    outbox: VecDeque::new(),
                    claim: None,
                    claim_before: None,
                    sent: VecDeque::new(),
                    world: self.scheduler.world_of(id).expect("a worker that is there"),
                    received: 0,
                    ran: 0,
                    last_held: self.now,
                    told: Told::Nothing,
                    stubborn: false,
                    worked: false,
                    initializing: false,
                    reported: false,
                };
                assert!(self.outside.workers.insert(id, worker).is_none());
            }
            Action::Send {
                worker: id,
                seq,
                call,
                items,
            } => {
                self.outside
                    .ledger
                    .travel(call, &items, Place::Worker(id, seq), Lane::Process);
                let worker = self.outside.workers.get_mut(&id).expect("sent to a worker");
                assert_eq!(
                    worker.told,
                    Told::Nothing,
                    "work for {id}, which was told to end"
                );
                assert_eq!(
                    worker.world, self.world_of[&call],
                    "{id} is of another world than {call:?}"
                );
                worker.received += items.end - items.start;
                worker.sent.push_back(Sent {
                    seq,
                    call,
                    items: items.clone(),
                    revoked: false,
                    answered: false,
                });
                assert!(
                    worker.sent.len() <= self.prefetch + 1,
                    "more than the prefetch"
                );
                worker.ring.push_back(Held {
                    seq,
                    call,
                    items,
                    next: 0,
                });
            }
            Action::RunOnThread { call, items } => {
                self.outside
                    .ledger
                    .travel(call, &items, Place::Thread, Lane::Thread);
                let next = items.start;
                self.outside.threads.push(LaneThread {
                    call,
                    items,
                    next,
                    running: false,
                });
            }
            Action::Retire(id) => {
                let over = self.outside.ledger.calls.values().all(|c| c.done);
                let strange = self.world_of.values().any(|&world| world != WorldId(0));
                let worker = self.outside.workers.get_mut(&id).expect("a worker");
                assert_eq!(worker.told, Told::Nothing);
                let used_up = worker.received >= self.outside.most_items;
                let rested = self
                    .idle_ns
                    .is_some_and(|ns| worker.last_held.after_ns(ns) <= self.now);
                assert!(
                    over || worker.sent.is_empty() && (used_up || rested || strange),
                    "{id} is retired too early"
                );
                worker.told = Told::Retire { at: self.now };
            }
            Action::Terminate(id) => {
                let worker = self.outside.workers.get_mut(&id).expect("a worker");
                let Told::Retire { at } = worker.told else {
                    panic!("{id} was not asked first")
                };
                assert!(self.now >= at.after_ns(RETIRE_NS));
                worker.told = Told::Terminate { at: self.now };
                if !worker.stubborn {
                    self.outside.die(id, Exit::Signal(SIGTERM));
                }
            }
            Action::Kill(id) => {
                let worker = self.outside.workers.get_mut(&id).expect("a worker");
                assert_ne!(worker.told, Told::Kill, "{id} is killed twice");
                let overdue = match worker.told {
                    Told::Terminate { at } => self.now >= at.after_ns(TERMINATE_NS),
                    _ => false,
                };
                assert!(
                    overdue || self.kill_asked || self.outside.ledger.may_break,
                    "{id} is killed for nothing"
                );
                worker.told = Told::Kill;
                self.outside.die(id, Exit::Signal(SIGKILL));
            }
            Action::Drop(id) => {
                let worker = self.outside.workers.remove(&id).expect("a worker");
                assert!(
                    worker.reported,
                    "{id} is forgotten before its death is known"
                );
            }
            Action::Settle {
                call,
                items,
                verdict,
            } => {
                assert!(items.start < items.end);
                for place in items {
                    self.settle(call, place, verdict);
                }
            }
            Action::CallDone(id) => self.outside.ledger.call_done(id),
            Action::Drained => {
                assert!(self.outside.workers.is_empty() && self.outside.threads.is_empty());
                assert!(self.outside.ledger.calls.values().all(|c| c.done));
                self.outside.ledger.drained = true;
            }
        }
    }

    fn settle(&mut self, id: CallId, place: u64, verdict: Verdict) {
        let ledger = &mut self.outside.ledger;
        match verdict {
            Verdict::Cancelled => {
                let asked = ledger.call(id).abandoned || ledger.item(id, place).cancel_asked;
                assert!(asked, "nobody cancelled {id:?} item {place}");
                ledger.end(id, place, End::Cancelled);
            }
            Verdict::Lost {
                worker,
                exit,
                attempt,
            } => {
                assert_eq!(attempt, 1);
                let (dying, its_exit, lost) =
                    self.dying.as_mut().expect("lost, and no worker died");
                assert_eq!((worker, exit), (*dying, *its_exit));
                *lost += 1;
                assert_eq!(*lost, 1, "{worker} took more than one item with it");
                assert_eq!(
                    ledger.item(id, place).claimed_by,
                    Some(worker),
                    "lost, not claimed"
                );
                assert!(
                    self.outside.workers.contains_key(&worker),
                    "lost by a worker that is forgotten"
                );
                ledger.end(id, place, End::Lost);
            }
            Verdict::Broken(_) => {
                assert!(ledger.may_break, "{id:?} broke for no reason");
                ledger.end(id, place, End::Broken);
            }
        }
    }

    fn is_broken(&self) -> bool {
        matches!(self.scheduler.accepts(), Err(Refused::Broken(_)))
    }

    fn check(&self) {
        self.scheduler.sanity_check();
        assert!(
            self.outside.running() <= self.max_slots,
            "the hard cap is broken (rule 4)"
        );
        assert_eq!(self.scheduler.is_drained(), self.outside.ledger.drained);
        let broken = self.is_broken();
        assert!(
            self.outside.ledger.may_break || !broken,
            "broke for no reason"
        );
        if broken {
            assert!(
                !self.outside.ledger.anything_waits(),
                "work waits for a broken executor"
            );
            return;
        }
        let [processes, threads] =
            [Lane::Process, Lane::Thread].map(|lane| self.outside.ledger.waiting(lane));
        assert_eq!(self.scheduler.waiting(), (processes + threads) as u64);
        assert_eq!(self.scheduler.has_backlog(), processes > 0);
        let workers = &self.outside.workers;
        let busy =
            workers.values().filter(|w| !w.sent.is_empty()).count() + self.outside.threads.len();
        assert!(busy <= self.max_slots);
        // Where a process could not be made while others work, theirs is the next answer to wait for.
        let live = workers.values().filter(|w| w.told != Told::Kill).count();
        assert!(live <= 3 * self.max_slots + 1, "processes pile up");
        // Nor does anybody wait beside a slot, but for workers that are asked to end and take their time, and
        // short items for a moment where the cores are busy.
        let held = self.scheduler.held_until();
        if let Some(until) = held {
            assert!(self.now < until && until <= self.now.after_ns(HOLD_NS));
            let busy_workers = workers.values().filter(|w| !w.sent.is_empty()).count();
            assert!(busy_workers >= self.cores, "held back beside a free core");
        }
        let waits = self.scheduler.is_spawning_paused()
            || self.scheduler.waits_for_endings()
            || held.is_some();
        if busy < self.max_slots && !waits {
            assert!(
                !self.outside.ledger.anything_waits(),
                "work waits beside a free slot"
            );
            let behind = |w: &SimWorker| w.sent.iter().skip(1).any(|p| !p.revoked && !p.answered);
            assert!(
                !workers.values().any(behind),
                "a piece stands behind another beside a free slot"
            );
        }
    }

    // ---- to the end --------------------------------------------------------------------------

    /// Shuts down, lets everybody do their part, and checks that this is the end: every call done,
    /// no worker left. What hangs is ended by deadlines alone.
    pub(crate) fn finish(&mut self) {
        let ids: Vec<CallId> = self.outside.ledger.calls.keys().copied().collect();
        for id in ids {
            if !self.outside.ledger.call(id).closed {
                self.close_call(id);
            }
        }
        self.close();
        let items: usize = self
            .outside
            .ledger
            .calls
            .values()
            .map(|c| c.items.len())
            .sum();
        let most_rounds = 200 + 30 * items;
        for _ in 0..most_rounds {
            if self.scheduler.is_drained() {
                return self.check_end();
            }
            let mut moved = false;
            for id in self.workers() {
                self.start(id);
                moved |= self.step(id, 1);
                moved |= self.read(id);
            }
            for which in (0..self.threads()).rev() {
                moved |= self.thread_step(which);
            }
            if !moved {
                let Some(deadline) = self.scheduler.deadline() else {
                    continue;
                };
                self.pass_time(deadline.0.saturating_sub(self.now.0));
            }
        }
        panic!("no end in sight: {:?}", self.scheduler);
    }

    fn check_end(&mut self) {
        assert_eq!(self.scheduler.workers().count(), 0);
        assert_eq!(self.scheduler.open_calls(), []);
        assert_eq!(self.scheduler.waiting(), 0);
        assert_eq!(self.scheduler.deadline(), None);
        assert!(self.outside.workers.is_empty() && self.outside.threads.is_empty());
        for call in self.outside.ledger.calls.values() {
            assert!(
                call.done && call.items.iter().all(|i| i.end.is_some()),
                "{call:?}"
            );
        }
    }
}
