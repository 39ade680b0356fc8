//! The hot paths that run on one thread, as many times as the name of each says, under callgrind.
//!
//! What is counted is the function with the attribute; what `setup` makes is not, and what is returned
//! is dropped outside. `scripts/instructions.py` runs this and compares. Paths on which two threads
//! meet are not here: how often one waits for the other is not a property of the code.

use gungraun::prelude::*;
use rightlane_core::{
    Action, CallId, CallSpec, Claim, Config, Event, Lane, Moment, PieceSeq, Port, Scheduler,
    WorkerId,
};
use rightlane_ring::{Assembler, Attempt, Consumer, Outgoing, Producer, Progress, RingView, claim};
// What the module below refers to as `crate::…`.
use rightlane_runtime::{arena, bounds, definition, wire};
use std::collections::VecDeque;
use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::AtomicU64;

/// The runtime keeps its items to itself; here they are compiled once more from the same source.
#[allow(dead_code)]
#[path = "../../crates/runtime/src/items.rs"]
mod items;

// ---- rings ----------------------------------------------------------------------------------------

type View = RingView<'static>;

struct Pipe {
    producer: Producer<View>,
    consumer: Consumer<View>,
    payload: Vec<u8>,
    popped: Vec<u8>,
}

/// A ring of so many bytes over plain memory, and a payload to send.
fn pipe(ring_bytes: usize, payload_bytes: usize) -> Pipe {
    let data: Vec<AtomicU64> = (0..ring_bytes / 8).map(|_| AtomicU64::new(0)).collect();
    let view = RingView {
        tail: Box::leak(Box::default()),
        head: Box::leak(Box::default()),
        data: Vec::leak(data),
    };
    Pipe {
        producer: Producer::new(view),
        consumer: Consumer::new(view),
        payload: vec![7; payload_bytes],
        popped: Vec::with_capacity(payload_bytes),
    }
}

fn push_and_pop(pipe: &mut Pipe, times: usize) {
    for _ in 0..times {
        pipe.producer
            .try_push(1, &[black_box(&pipe.payload)])
            .expect("room");
        pipe.popped.clear();
        let tag = pipe.consumer.try_pop(&mut pipe.popped);
        assert_eq!(black_box(tag), Ok(Some(1)));
    }
}

#[library_benchmark(setup = pipe)]
#[bench::small_1000(64 * 1024, 32)]
fn records_of_32_bytes(mut pipe: Pipe) -> Pipe {
    push_and_pop(&mut pipe, 1000);
    pipe
}

#[library_benchmark(setup = pipe)]
#[bench::page_100(64 * 1024, 4096)]
fn records_of_4_kib(mut pipe: Pipe) -> Pipe {
    push_and_pop(&mut pipe, 100);
    pipe
}

#[library_benchmark(setup = pipe)]
#[bench::small_1000(64 * 1024, 32)]
fn batches_of_10_records(mut pipe: Pipe) -> Pipe {
    for _ in 0..100 {
        for _ in 0..10 {
            pipe.producer
                .push(1, &[black_box(&pipe.payload)])
                .expect("room");
        }
        pipe.producer.publish();
        let popped = pipe.consumer.pop_batch(10, |tag, bytes| {
            black_box((tag, bytes));
        });
        assert_eq!(popped, Ok(10));
    }
    pipe
}

#[library_benchmark(setup = pipe)]
#[bench::mebibyte_once(64 * 1024, 1024 * 1024)]
fn fragments(mut pipe: Pipe) -> (Pipe, Vec<u8>) {
    let mut outgoing = Outgoing::new(1, std::mem::take(&mut pipe.payload));
    let mut assembler = Assembler::new(usize::MAX);
    loop {
        let _: Progress = outgoing.push_some(&mut pipe.producer).expect("healthy");
        let message = assembler.try_pop(&mut pipe.consumer).expect("healthy");
        if let Some((_, bytes)) = message {
            assert!(outgoing.is_done());
            return (pipe, bytes);
        }
    }
}

#[library_benchmark]
#[bench::once_1000()]
fn claims() {
    let (word, slot) = (AtomicU64::new(0), AtomicU64::new(0));
    for item in 0..1000 {
        let attempt = claim::claim(black_box(&word), black_box(&slot), 1, item);
        assert_eq!(attempt, Attempt::Claimed);
        black_box(claim::claimed(&word));
    }
    claim::release(&word);
}

#[library_benchmark]
#[bench::once_1000()]
fn revocations() {
    let (word, slot) = (AtomicU64::new(0), AtomicU64::new(0));
    for seq in 0..1000 {
        black_box(claim::revoke(black_box(&slot), black_box(&word), seq));
        let attempt = claim::claim(black_box(&word), black_box(&slot), seq, 0);
        assert_eq!(attempt, Attempt::Revoked);
    }
}

library_benchmark_group!(
    name = ring,
    benchmarks = [
        records_of_32_bytes,
        records_of_4_kib,
        batches_of_10_records,
        fragments,
        claims,
        revocations
    ]
);

// ---- the scheduler --------------------------------------------------------------------------------

const WORKERS: u32 = 2;

/// An outside where every piece fits and nobody has claimed anything.
struct Outside;

impl Port for Outside {
    fn fit(&self, _: CallId, items: &Range<u64>) -> u64 {
        items.end - items.start
    }

    fn revoke(&mut self, _: WorkerId, _: PieceSeq) -> Option<Claim> {
        None
    }
}

/// A scheduler whose workers answer at once and in the order in which pieces were sent.
struct Engine {
    scheduler: Scheduler,
    sent: VecDeque<(WorkerId, PieceSeq, u32)>,
    spare: Vec<Action>,
    calls_done: u64,
}

impl Engine {
    fn open(&mut self, items: u64, closed: bool) -> CallId {
        let spec = CallSpec {
            lane: Lane::Process,
            chunk_items: None,
            items,
            closed,
            pace: None,
        };
        self.scheduler.open(&spec).expect("open for work")
    }

    fn dispatch(&mut self) {
        self.scheduler.dispatch(Moment(0), &mut Outside);
        let mut actions = self.scheduler.take_actions(std::mem::take(&mut self.spare));
        for action in actions.drain(..) {
            match action {
                Action::Spawn(worker) => {
                    for event in [Event::Started(worker), Event::Ready(worker)] {
                        self.scheduler.handle(event, Moment(0)).expect("known");
                    }
                }
                Action::Send {
                    worker, seq, items, ..
                } => {
                    let count = (items.end - items.start) as u32;
                    self.sent.push_back((worker, seq, count));
                }
                Action::CallDone(_) => self.calls_done += 1,
                other => unreachable!("{other:?}"),
            }
        }
        self.spare = actions;
    }

    /// Dispatches and answers until so many calls are done.
    fn run(&mut self, calls: u64) {
        let wanted = self.calls_done + calls;
        self.dispatch();
        while let Some((worker, seq, items)) = self.sent.pop_front() {
            for item in 0..items {
                let place = self.scheduler.answered(worker, seq, item);
                black_box(place.expect("in turn"));
            }
            let done = Event::PieceDone {
                worker,
                seq,
                busy_ns: u64::from(items) * 100_000,
            };
            self.scheduler.handle(done, Moment(0)).expect("in turn");
            self.dispatch();
        }
        assert_eq!(self.calls_done, wanted);
    }
}

/// An engine whose workers are up.
fn engine() -> Engine {
    let mut engine = Engine {
        scheduler: Scheduler::new(Config::new(WORKERS, 1)),
        sent: VecDeque::with_capacity(64),
        spare: Vec::with_capacity(64),
        calls_done: 0,
    };
    engine.open(100, true);
    engine.run(1);
    engine
}

#[library_benchmark(setup = engine)]
#[bench::items_1000()]
fn one_call(mut engine: Engine) -> Engine {
    engine.open(black_box(1000), true);
    engine.run(1);
    engine
}

#[library_benchmark(setup = engine)]
#[bench::items_1000()]
fn one_call_read_in_tens(mut engine: Engine) -> Engine {
    let call = engine.open(0, false);
    for _ in 0..100 {
        engine.scheduler.extend(call, black_box(10));
        engine.dispatch();
    }
    engine.scheduler.close_call(call);
    engine.run(1);
    engine
}

#[library_benchmark(setup = engine)]
#[bench::calls_1000()]
fn calls_of_one_item(mut engine: Engine) -> Engine {
    for _ in 0..1000 {
        engine.open(black_box(1), true);
    }
    engine.run(1000);
    engine
}

#[library_benchmark(setup = engine)]
#[bench::calls_1000()]
fn calls_in_turn(mut engine: Engine) -> Engine {
    for _ in 0..1000 {
        engine.open(black_box(1), true);
        engine.run(1);
    }
    engine
}

library_benchmark_group!(
    name = scheduler,
    benchmarks = [
        one_call,
        one_call_read_in_tens,
        calls_of_one_item,
        calls_in_turn
    ]
);

// ---- items ----------------------------------------------------------------------------------------

fn block() -> items::Block {
    let mut block = items::Block::new();
    for _ in 0..1000 {
        block.push(|row| row.extend_from_slice(black_box(&[7; 32])));
    }
    block
}

#[library_benchmark]
#[bench::items_1000()]
fn append() -> items::Block {
    block()
}

#[library_benchmark(setup = block)]
#[bench::items_1000()]
fn slice_and_end(block: items::Block) -> items::Items {
    let mut kept = items::Items::default();
    kept.extend(block);
    let mut first = 0;
    while first < 1000 {
        let piece = first..first + kept.fit(&(first..(first + 10).min(1000)));
        let slice = kept.slice(&piece).expect("in one block");
        black_box(slice.as_ref());
        first = piece.end;
        black_box(kept.ended(piece));
    }
    kept
}

#[library_benchmark]
#[bench::blocks_1000()]
fn blocks_of_one_item() -> items::Items {
    let mut kept = items::Items::default();
    for item in 0..1000 {
        let mut block = items::Block::new();
        block.push(|row| row.extend_from_slice(black_box(&[7; 32])));
        kept.extend(block);
        black_box(kept.slice(&(item..item + 1)));
    }
    black_box(kept.ended(0..1000));
    kept
}

library_benchmark_group!(
    name = kept_items,
    benchmarks = [append, slice_and_end, blocks_of_one_item]
);

main!(library_benchmark_groups = ring, scheduler, kept_items);
