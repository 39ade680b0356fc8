//! Random events in random order: whatever happens, the ledger's promises hold and there is an end.

use crate::world::{SIGKILL, World};
use proptest::prelude::*;
use rightlane_core::{CallId, CallSpec, Lane, WorkerId};

#[derive(Clone, Debug)]
enum Op {
    Open {
        thread: bool,
        items: u64,
        closed: bool,
        chunk_items: Option<u64>,
    },
    Extend(usize, u64),
    CloseCall(usize),
    Cancel(usize),
    Abandon(usize),
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
        4 => (which(), 0..20_u64).prop_map(|(i, n)| Op::Extend(i, n)),
        2 => which().prop_map(Op::CloseCall),
        8 => which().prop_map(Op::Cancel),
        3 => which().prop_map(Op::Abandon),
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
        2 => (0..4_000_000_000_u64).prop_map(Op::PassTime),
        1 => prop_oneof![Just(1_u64), Just(1_000), Just(100_000_000)].prop_map(Op::Busy),
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

struct Run {
    world: World,
    calls: Vec<CallId>,
}

impl Run {
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
        let world = &self.world;
        let one_item = |id: &CallId| world.outside.ledger.calls[id].items.len() == 1;
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
                };
                self.calls.extend(self.world.open(&spec));
            }
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
            Op::Cancel(which) => {
                if let Some(id) = self.call(which).filter(one_item) {
                    let _either = self.world.cancel(id);
                }
            }
            Op::Abandon(which) => {
                if let Some(id) = self.call(which) {
                    self.world.abandon(id);
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

proptest! {
    #![proptest_config(config())]

    /// Invariants 1, 2 and 4, rules 4, 8 and 16: see `world` and `ledger` for what is checked.
    #[test]
    fn every_item_ends_once_and_every_ending_ends(
        max_slots in 1..6_u32,
        prefetch in 0..4_u32,
        initializer in prop::bool::weighted(0.2),
        seed in any::<u64>(),
        ops in prop::collection::vec(op(), 1..160),
        last in prop::collection::vec(last_op(), 0..2),
        after in prop::collection::vec(op(), 0..40),
    ) {
        let mut world = World::new(max_slots, prefetch).with_random_sight(seed);
        if initializer {
            world = world.with_initializer();
        }
        let mut run = Run { world, calls: Vec::new() };
        for op in ops.iter().chain(&last).chain(&after) {
            run.play(op);
        }
        run.world.finish();
    }
}
