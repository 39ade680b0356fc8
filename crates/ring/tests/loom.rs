//! The algorithms under every interleaving and every outcome that the memory model allows.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p rightlane-ring --test loom --release`; deeper with
//! `LOOM_MAX_PREEMPTIONS`. A lost wake-up shows as a deadlock, which loom reports (and then aborts).
//!
//! One thing loom cannot show: that the consumer's store of the head must be Release. It would take
//! a load that returns a value stored later, and loom runs loads in program order.
#![cfg(loom)]

use std::collections::VecDeque;

use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use rightlane_ring::claim::{self, Attempt};
use rightlane_ring::{
    Assembler, Consumer, Listener, Outgoing, Producer, Progress, Ring, Wants, sleep,
};

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // The builder reads LOOM_MAX_PREEMPTIONS. Most bugs need no more than two; four take seconds.
    builder.preemption_bound.get_or_insert(4);
    builder.check(test);
}

struct Memory {
    tail: AtomicU64,
    head: AtomicU64,
    data: Vec<AtomicU64>,
}

#[derive(Clone)]
struct Shared(Arc<Memory>);

impl Shared {
    fn new(words: usize) -> Self {
        let data = (0..words).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Memory {
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            data,
        }))
    }
}

impl Ring for Shared {
    fn tail(&self) -> &AtomicU64 {
        &self.0.tail
    }

    fn head(&self) -> &AtomicU64 {
        &self.0.head
    }

    fn data(&self) -> &[AtomicU64] {
        &self.0.data
    }
}

/// A futex, as the kernel promises it: comparing and beginning to wait are one step to a waker.
#[derive(Default)]
struct Futex {
    queue: Mutex<()>,
    woken: Condvar,
}

impl Futex {
    fn wait(&self, word: &AtomicU32, value: u32) {
        let queue = self.queue.lock().unwrap();
        if word.load(Ordering::SeqCst) == value {
            drop(self.woken.wait(queue).unwrap());
        }
    }

    fn wake(&self) {
        drop(self.queue.lock().unwrap());
        self.woken.notify_one();
    }
}

/// An eventfd that is waited for and then read.
#[derive(Default)]
struct Event {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn wait(&self) {
        let mut signalled = self.signalled.lock().unwrap();
        while !*signalled {
            signalled = self.changed.wait(signalled).unwrap();
        }
        *signalled = false;
    }

    fn signal(&self) {
        *self.signalled.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

#[test]
fn records_arrive_in_order_and_none_is_lost() {
    model(|| {
        let ring = Shared::new(4);
        let mut producer = Producer::new(ring.clone());
        let pushing = thread::spawn(move || {
            // Two words each: the third goes round the end and needs the first to be read.
            for value in 1..=3_u64 {
                while producer
                    .try_push(value as u32, &[&value.to_ne_bytes()])
                    .is_err()
                {
                    thread::yield_now();
                }
            }
        });
        let mut consumer = Consumer::new(ring);
        for value in 1..=3_u64 {
            let mut out = Vec::new();
            let tag = loop {
                match consumer.try_pop(&mut out).unwrap() {
                    Some(tag) => break tag,
                    None => thread::yield_now(),
                }
            };
            assert_eq!((tag, &out[..]), (value as u32, &value.to_ne_bytes()[..]));
        }
        assert!(consumer.is_empty());
        pushing.join().unwrap();
    });
}

#[test]
fn what_is_published_at_once_arrives_at_once() {
    model(|| {
        let ring = Shared::new(4);
        let mut producer = Producer::new(ring.clone());
        let pushing = thread::spawn(move || {
            producer.push(1, &[]).unwrap();
            producer.push(2, &[b"abc"]).unwrap();
            producer.publish();
        });
        let mut consumer = Consumer::new(ring);
        let mut got = Vec::new();
        let popped = consumer
            .pop_batch(9, |tag, bytes| got.push((tag, bytes.to_vec())))
            .unwrap();
        assert!(popped == 0 || popped == 2, "{popped} records");
        pushing.join().unwrap();
        consumer
            .pop_batch(9, |tag, bytes| got.push((tag, bytes.to_vec())))
            .unwrap();
        assert_eq!(got, [(1, vec![]), (2, b"abc".to_vec())]);
    });
}

#[test]
fn a_message_larger_than_the_ring_arrives_whole() {
    model(|| {
        let ring = Shared::new(4);
        let mut producer = Producer::new(ring.clone());
        let bytes: Vec<u8> = (0..21).collect();
        let mut message = Outgoing::new(9, bytes.clone());
        let pushing = thread::spawn(move || {
            while message.push_some(&mut producer).unwrap() == Progress::Partial {
                thread::yield_now();
            }
        });
        let mut consumer = Consumer::new(ring);
        let mut assembler = Assembler::new(21);
        let message = loop {
            match assembler.try_pop(&mut consumer).unwrap() {
                Some(message) => break message,
                None => thread::yield_now(),
            }
        };
        assert_eq!(message, (9, bytes));
        pushing.join().unwrap();
    });
}

/// The words of both headers that the sleep protocols use.
struct Words {
    doorbell: AtomicU32,
    asleep: AtomicU64,
    parent_asleep: AtomicU64,
    futex: Futex,
    event: Event,
}

impl Words {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            doorbell: AtomicU32::new(0),
            asleep: AtomicU64::new(0),
            parent_asleep: AtomicU64::new(0),
            futex: Futex::default(),
            event: Event::default(),
        })
    }

    fn wake_worker(&self, provided: Wants) -> bool {
        let must = sleep::must_ring(&self.asleep, &self.doorbell, provided);
        if must {
            self.futex.wake();
        }
        must
    }

    fn worker_sleeps_unless(&self, wants: Wants, mut ready: impl FnMut() -> bool) {
        let value = sleep::worker_prepare(&self.asleep, &self.doorbell, wants);
        if !ready() {
            self.futex.wait(&self.doorbell, value);
        }
        sleep::worker_awake(&self.asleep);
    }

    fn wake_parent(&self, provided: Wants, signalled: &mut u64) {
        if sleep::must_signal(&self.parent_asleep, provided, signalled).is_some() {
            self.event.signal();
        }
    }

    fn parent_sleeps_unless(&self, wants: Wants, mut ready: impl FnMut() -> bool) {
        sleep::parent_announce(&self.parent_asleep, wants, Listener::Keeper);
        sleep::announced();
        if !ready() {
            self.event.wait();
        }
        sleep::parent_awake(&self.parent_asleep);
    }
}

#[test]
fn the_worker_misses_no_task() {
    model(|| {
        let (ring, words) = (Shared::new(4), Words::new());
        let mut producer = Producer::new(ring.clone());
        let worker = thread::spawn({
            let words = words.clone();
            move || {
                let mut consumer = Consumer::new(ring);
                let mut got = 0;
                while got < 2 {
                    let popped = consumer.pop_batch(9, |_, _| ()).unwrap();
                    got += popped;
                    if popped == 0 {
                        words.worker_sleeps_unless(Wants::MESSAGES, || !consumer.is_empty());
                    }
                }
            }
        });
        for tag in 0..2 {
            producer.try_push(tag, &[]).unwrap();
            words.wake_worker(Wants::MESSAGES);
        }
        worker.join().unwrap();
    });
}

#[test]
fn the_parent_misses_no_answer() {
    model(|| {
        let (ring, words) = (Shared::new(4), Words::new());
        let mut producer = Producer::new(ring.clone());
        let worker = thread::spawn({
            let words = words.clone();
            move || {
                let mut signalled = 0;
                for tag in 0..2 {
                    producer.try_push(tag, &[]).unwrap();
                    words.wake_parent(Wants::MESSAGES, &mut signalled);
                }
            }
        });
        let mut consumer = Consumer::new(ring);
        let mut got = 0;
        while got < 2 {
            let popped = consumer.pop_batch(9, |_, _| ()).unwrap();
            got += popped;
            if popped == 0 {
                words.parent_sleeps_unless(Wants::MESSAGES, || !consumer.is_empty());
            }
        }
        worker.join().unwrap();
    });
}

/// One eventfd for several workers would do as well: the parent waits for whoever comes first.
#[test]
fn the_parent_misses_neither_of_two_workers() {
    model(|| {
        let words = Words::new();
        let rings = [Shared::new(4), Shared::new(4)];
        let workers: Vec<_> = rings
            .iter()
            .cloned()
            .map(|ring| {
                let words = words.clone();
                thread::spawn(move || {
                    Producer::new(ring).try_push(1, &[]).unwrap();
                    words.wake_parent(Wants::MESSAGES, &mut 0);
                })
            })
            .collect();
        let mut consumers = rings.map(Consumer::new);
        let mut got = 0;
        while got < 2 {
            let mut popped = 0;
            for consumer in &mut consumers {
                popped += consumer.pop_batch(9, |_, _| ()).unwrap();
            }
            got += popped;
            if popped == 0 {
                words.parent_sleeps_unless(Wants::MESSAGES, || {
                    consumers.iter().any(|c| !c.is_empty())
                });
            }
        }
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

/// Both ends sleep: the parent for room, the worker for tasks.
#[test]
fn room_wakes_as_messages_do() {
    model(|| {
        let (ring, words) = (Shared::new(4), Words::new());
        let mut producer = Producer::new(ring.clone());
        let worker = thread::spawn({
            let words = words.clone();
            move || {
                let mut consumer = Consumer::new(ring);
                let mut signalled = 0;
                let mut got = VecDeque::new();
                while got.len() < 2 {
                    if consumer.pop_batch(1, |tag, _| got.push_back(tag)).unwrap() == 0 {
                        words.worker_sleeps_unless(Wants::MESSAGES, || !consumer.is_empty());
                    } else {
                        words.wake_parent(Wants::ROOM, &mut signalled);
                    }
                }
                assert_eq!(got, [0, 1]);
            }
        });
        for tag in 0..2 {
            // Three words of four: the second has no room until the first is read.
            while producer.try_push(tag, &[&[0; 16]]).is_err() {
                words.parent_sleeps_unless(Wants::ROOM, || producer.free_bytes().unwrap() >= 16);
            }
            words.wake_worker(Wants::MESSAGES);
        }
        worker.join().unwrap();
    });
}

/// The worker is blocked on a full answer ring; the parent reads and wakes it.
#[test]
fn the_worker_waits_for_room() {
    model(|| {
        let (ring, words) = (Shared::new(4), Words::new());
        let mut producer = Producer::new(ring.clone());
        let worker = thread::spawn({
            let words = words.clone();
            move || {
                for tag in 0..2 {
                    while producer.try_push(tag, &[&[0; 16]]).is_err() {
                        words.worker_sleeps_unless(Wants::ROOM, || {
                            producer.free_bytes().unwrap() >= 16
                        });
                    }
                }
            }
        });
        let mut consumer = Consumer::new(ring);
        let mut got = 0;
        while got < 2 {
            let popped = consumer.pop_batch(9, |_, _| ()).unwrap();
            got += popped;
            if popped == 0 {
                thread::yield_now();
            } else {
                words.wake_worker(Wants::ROOM);
            }
        }
        worker.join().unwrap();
    });
}

/// However much is provided, one sleep is ended once.
#[test]
fn a_sleep_is_ended_once() {
    model(|| {
        let words = Words::new();
        let flag = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let (words, flag) = (words.clone(), flag.clone());
            move || words.worker_sleeps_unless(Wants::MESSAGES, || flag.load(Ordering::Relaxed))
        });
        flag.store(true, Ordering::Relaxed);
        let wakes = (0..3)
            .filter(|_| words.wake_worker(Wants::MESSAGES))
            .count();
        assert!(wakes <= 1, "{wakes} wakes");
        worker.join().unwrap();
    });
}

#[test]
fn claim_and_revocation_see_each_other() {
    model(|| {
        let words = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let worker = thread::spawn({
            let words = words.clone();
            move || claim::claim(&words.0, &words.1, 7, 0)
        });
        let seen = claim::revoke(&words.1, &words.0, 7).item_of(7);
        let attempt = worker.join().unwrap();
        assert!(
            attempt == Attempt::Revoked || seen == Some(0),
            "the item is run and taken back"
        );
    });
}

/// A piece of two items: each is run and answered, declined, or taken back, and what the parent may
/// take back at once is never run.
#[test]
fn a_piece_is_split_between_worker_and_parent() {
    model(|| {
        struct Piece {
            claim: AtomicU64,
            slot: AtomicU64,
            answered: AtomicU64,
        }
        let piece = Arc::new(Piece {
            claim: AtomicU64::new(0),
            slot: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });
        let worker = thread::spawn({
            let piece = piece.clone();
            move || {
                for item in 0..2 {
                    match claim::claim(&piece.claim, &piece.slot, 7, item) {
                        Attempt::Claimed => {
                            piece.answered.store(u64::from(item) + 1, Ordering::Release)
                        }
                        Attempt::Revoked => return item,
                    }
                }
                claim::release(&piece.claim);
                2
            }
        });
        let seen = claim::revoke(&piece.slot, &piece.claim, 7).item_of(7);
        let answered = piece.answered.load(Ordering::Acquire) as u32;
        let declined_from = worker.join().unwrap();
        match seen {
            // Answers come before the release of the claim and before the next claim.
            None => assert!(declined_from == answered, "{declined_from} {answered}"),
            Some(item) => {
                assert!(answered >= item);
                assert!(declined_from == item || declined_from == item + 1);
            }
        }
    });
}

/// That the model can fail: without the fences both sides miss each other.
#[test]
#[should_panic(expected = "missed each other")]
fn without_fences_both_sides_miss_each_other() {
    model(|| {
        let words = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let worker = thread::spawn({
            let words = words.clone();
            move || {
                words.0.store(1, Ordering::Release);
                words.1.load(Ordering::Acquire)
            }
        });
        words.1.store(1, Ordering::Release);
        let seen = words.0.load(Ordering::Acquire);
        assert!(worker.join().unwrap() + seen > 0, "missed each other");
    });
}

/// Whether the worker goes to wait and nobody wakes it. It looks before or after announcing.
fn a_wake_is_lost(looks_before: bool) -> bool {
    let words = Words::new();
    let flag = Arc::new(AtomicBool::new(false));
    let worker = thread::spawn({
        let (words, flag) = (words.clone(), flag.clone());
        move || {
            let before = flag.load(Ordering::SeqCst);
            let value = sleep::worker_prepare(&words.asleep, &words.doorbell, Wants::MESSAGES);
            let after = flag.load(Ordering::Relaxed);
            let ready = if looks_before { before } else { after };
            (!ready).then_some(value)
        }
    });
    flag.store(true, Ordering::Release);
    let _ = sleep::must_ring(&words.asleep, &words.doorbell, Wants::MESSAGES);
    let waits_with = worker.join().unwrap();
    waits_with == Some(words.doorbell.load(Ordering::SeqCst))
}

#[test]
fn looking_after_announcing_loses_no_wake() {
    model(|| assert!(!a_wake_is_lost(false)));
}

/// That the model can fail, too.
#[test]
#[should_panic(expected = "a wake is lost")]
fn looking_before_announcing_loses_a_wake() {
    model(|| assert!(!a_wake_is_lost(true), "a wake is lost"));
}
