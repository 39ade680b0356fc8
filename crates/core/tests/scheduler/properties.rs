//! Random events in random order: whatever happens, the ledger's promises hold and there is an end.

use crate::world::{SIGKILL, World};
use proptest::prelude::*;
use rightlane_core::{CallId, CallSpec, Config, Lane, WorkerId};

#[derive(Clone, Debug)]
enum Op {
    Open {
        thread: bool,
        items: u64,
        closed: bool,
        chunk_items: Option<u64>,
    },
    Submit(usize),
    Extend(usize, u64),
    CloseCall(usize),
    Cancel(usize, u64),
    Abandon(usize),
    GiveAway(usize, u64),
    AbandonAll,
    Close,
    KillAll,
    Start(usize),
    Step(usize, u64),
    StepAll(u64),
    Read(usize),
    ReadOne(usize),
    ReadAll,
    Thread(usize),
    Kill(usize),
    KillAndReport(usize),
    SpawnFails(usize),
    TemplateDies(usize),
    InitializerRaises(usize),
    ThreadInitializerRaises,
    Rubbish(usize, u64),
    Stubborn(usize),
    PassTime(u64),
    Turn(u32),
    Busy(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0..64_usize;
    let items = prop_oneof![3 => Just(1_u64), 2 => 0..6_u64, 1 => 6..60_u64];
    let chunk = prop_oneof![2 => Just(None), 1 => (1..9_u64).prop_map(Some)];
    prop_oneof![
        20 => (any::<bool>(), items, prop::bool::weighted(0.8), chunk).prop_map(
            |(thread, items, closed, chunk_items)| Op::Open { thread, items, closed, chunk_items }
        ),
        10 => (0..FUNCTIONS).prop_map(Op::Submit),
        4 => (which(), 0..20_u64).prop_map(|(i, n)| Op::Extend(i, n)),
        2 => which().prop_map(Op::CloseCall),
        12 => (which(), any::<u64>()).prop_map(|(i, n)| Op::Cancel(i, n)),
        3 => which().prop_map(Op::Abandon),
        3 => (which(), 0..9_u64).prop_map(|(i, n)| Op::GiveAway(i, n)),
        1 => Just(Op::AbandonAll),
        12 => which().prop_map(Op::Start),
        30 => (which(), 1..8_u64).prop_map(|(i, n)| Op::Step(i, n)),
        10 => (1..5_u64).prop_map(Op::StepAll),
        10 => which().prop_map(Op::Read),
        10 => which().prop_map(Op::ReadOne),
        6 => Just(Op::ReadAll),
        14 => which().prop_map(Op::Thread),
        4 => which().prop_map(Op::Kill),
        4 => which().prop_map(Op::KillAndReport),
        1 => which().prop_map(Op::SpawnFails),
        1 => which().prop_map(Op::TemplateDies),
        1 => (which(), any::<u64>()).prop_map(|(i, n)| Op::Rubbish(i, n)),
        2 => which().prop_map(Op::Stubborn),
        3 => passing(),
        2 => (0..3_u32).prop_map(Op::Turn),
        1 => prop_oneof![Just(1_u64), Just(1_000), Just(100_000_000)].prop_map(Op::Busy),
    ]
}

fn passing() -> impl Strategy<Value = Op> {
    prop_oneof![0..10_000_000_u64, 0..4_000_000_000_u64].prop_map(Op::PassTime)
}

/// What happens to single submits that join streams wherever that keeps their order.
fn stream_op() -> impl Strategy<Value = Op> {
    let which = || 0..64_usize;
    prop_oneof![
        40 => (0..FUNCTIONS).prop_map(Op::Submit),
        12 => (which(), any::<u64>()).prop_map(|(i, n)| Op::Cancel(i, n)),
        1 => which().prop_map(Op::Abandon),
        6 => which().prop_map(Op::Start),
        20 => (which(), 1..8_u64).prop_map(|(i, n)| Op::Step(i, n)),
        20 => (1..12_u64).prop_map(Op::StepAll),
        10 => which().prop_map(Op::ReadOne),
        10 => Just(Op::ReadAll),
        10 => which().prop_map(Op::Thread),
        2 => which().prop_map(Op::KillAndReport),
        6 => passing(),
        1 => (0..2_u32).prop_map(Op::Turn),
        2 => prop_oneof![Just(1_u64), Just(1_000), Just(100_000_000)].prop_map(Op::Busy),
    ]
}

/// What ends or breaks an executor, kept apart so that most runs see much before it.
fn last_op() -> impl Strategy<Value = Op> {
    let which = || 0..64_usize;
    prop_oneof![
        Just(Op::Close),
        Just(Op::KillAll),
        Just(Op::AbandonAll),
        which().prop_map(Op::InitializerRaises),
        Just(Op::ThreadInitializerRaises),
        which().prop_map(Op::SpawnFails),
    ]
}

/// How many functions are submitted; the last one to threads.
const FUNCTIONS: usize = 4;

struct Run {
    world: World,
    calls: Vec<CallId>,
    /// The call that submits of a function join, if they may.
    streams: [Option<CallId>; FUNCTIONS],
}

impl Run {
    fn new(world: World) -> Run {
        Run {
            world,
            calls: Vec::new(),
            streams: [None; FUNCTIONS],
        }
    }

    fn submit(&mut self, function: usize) {
        let stream = self.streams[function];
        if let Some(id) = stream.filter(|&id| self.world.scheduler.joins_in_order(id)) {
            return self.world.extend(id, 1);
        }
        let pace = stream.and_then(|id| self.world.scheduler.pace(id));
        if let Some(id) = stream {
            self.world.close_call(id);
        }
        let threads = function == FUNCTIONS - 1;
        let spec = CallSpec {
            lane: if threads { Lane::Thread } else { Lane::Process },
            chunk_items: None,
            items: 1,
            closed: false,
            pace,
        };
        self.streams[function] = self.world.open(&spec);
        self.calls.extend(self.streams[function]);
    }

    fn call(&self, which: usize) -> Option<CallId> {
        // The latest ones are most likely to be in a state worth disturbing.
        let at = self
            .calls
            .len()
            .checked_sub(1 + which % self.calls.len().clamp(1, 12))?;
        self.calls.get(at).copied()
    }

    fn worker(&self, which: usize) -> WorkerId {
        let workers = self.world.workers();
        workers
            .get(which % workers.len().max(1))
            .copied()
            .unwrap_or(WorkerId(u32::MAX))
    }

    fn play(&mut self, op: &Op) {
        match *op {
            Op::Open {
                thread,
                items,
                closed,
                chunk_items,
            } => {
                let lane = if thread { Lane::Thread } else { Lane::Process };
                let spec = CallSpec {
                    lane,
                    chunk_items,
                    items,
                    closed,
                    pace: None,
                };
                self.calls.extend(self.world.open(&spec));
            }
            Op::Submit(function) => self.submit(function),
            Op::Extend(which, more) => {
                if let Some(id) = self.call(which) {
                    self.world.extend(id, more);
                }
            }
            Op::CloseCall(which) => {
                if let Some(id) = self.call(which) {
                    self.world.close_call(id);
                }
            }
            Op::Cancel(which, item) => {
                if let Some(id) = self.call(which) {
                    let items = self.world.outside.ledger.calls[&id].items.len() as u64;
                    if let Some(item) = item.checked_rem(items) {
                        let _either = self.world.cancel_item(id, item);
                    }
                }
            }
            Op::Abandon(which) => {
                if let Some(id) = self.call(which) {
                    self.world.abandon(id);
                }
            }
            Op::GiveAway(which, count) => {
                if let Some(id) = self.call(which) {
                    self.world.give_away(id, count);
                }
            }
            Op::AbandonAll => self.world.abandon_all(),
            Op::Close => self.world.close(),
            Op::KillAll => self.world.kill_all(),
            Op::Start(which) => self.world.start(self.worker(which)),
            Op::Step(which, steps) => {
                self.world.step(self.worker(which), steps);
            }
            Op::StepAll(steps) => {
                for id in self.world.workers() {
                    self.world.step(id, steps);
                }
            }
            Op::Read(which) => {
                self.world.read(self.worker(which));
            }
            Op::ReadOne(which) => {
                self.world.read_one(self.worker(which));
            }
            Op::ReadAll => {
                for id in self.world.workers() {
                    self.world.read(id);
                }
            }
            Op::Thread(which) => {
                self.world.thread_step(which % self.world.threads().max(1));
            }
            Op::Kill(which) => self.world.kill(self.worker(which), SIGKILL),
            Op::KillAndReport(which) => self.world.kill_and_report(self.worker(which)),
            Op::SpawnFails(which) => self.world.spawn_fails(self.worker(which)),
            Op::TemplateDies(which) => self.world.template_dies(self.worker(which)),
            Op::InitializerRaises(which) => self.world.initializer_raises(self.worker(which)),
            Op::ThreadInitializerRaises => self.world.thread_initializer_raises(),
            Op::Rubbish(which, kind) => self.world.talk_rubbish(self.worker(which), kind),
            Op::Stubborn(which) => {
                let id = self.worker(which);
                if self.world.workers().contains(&id) {
                    self.world.make_stubborn(id);
                }
            }
            Op::PassTime(ns) => self.world.pass_time(ns),
            Op::Turn(world) => self.world.turn(world),
            Op::Busy(ns) => self.world.outside.busy_ns_per_item = ns,
        }
    }
}

/// A few hundred cases take a few seconds; `PROPTEST_CASES` is for long campaigns.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 150;
    }
    config
}

/// Executors with and without limits to their workers' lives.
fn executor() -> impl Strategy<Value = Config> {
    let items = prop_oneof![2 => Just(None), 1 => Just(Some(1)), 2 => (2..9_u64).prop_map(Some)];
    let idle = prop_oneof![2 => Just(None), 1 => (1..2_000_000_000_u64).prop_map(Some)];
    let cores = prop_oneof![1 => Just(u32::MAX), 1 => 1..4_u32];
    (1..6_u32, 0..4_u32, items, idle, cores).prop_map(
        |(max_slots, prefetch, items_per_worker, idle_ns, cores)| Config {
            items_per_worker,
            idle_ns,
            cores,
            ..Config::new(max_slots, prefetch)
        },
    )
}

proptest! {
    #![proptest_config(config())]

    /// Invariants 1, 2 and 4, rules 4, 8, 10, 16 and 20: see `world` and `ledger` for what is checked.
    #[test]
    fn every_item_ends_once_and_every_ending_ends(
        config in executor(),
        initializer in prop::bool::weighted(0.2),
        seed in any::<u64>(),
        ops in prop::collection::vec(op(), 1..160),
        last in prop::collection::vec(last_op(), 0..2),
        after in prop::collection::vec(op(), 0..40),
    ) {
        let mut world = World::with(config).with_random_sight(seed);
        if initializer {
            world = world.with_initializer();
        }
        let mut run = Run::new(world);
        for op in ops.iter().chain(&last).chain(&after) {
            run.play(op);
        }
        run.world.finish();
    }

    /// First come, first served, though submits join streams and are cancelled one by one: the ledger
    /// compares whatever leaves for the first time with all that waits.
    #[test]
    fn submits_are_served_in_order(
        config in executor(),
        seed in any::<u64>(),
        ops in prop::collection::vec(stream_op(), 1..300),
    ) {
        let mut world = World::with(config).with_random_sight(seed);
        world.outside.ledger.in_order = true;
        let mut run = Run::new(world);
        for op in &ops {
            run.play(op);
        }
        run.world.finish();
    }
}
