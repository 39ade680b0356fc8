//! The ring against a queue: random operations on one thread, and random garbage.
#![cfg(not(loom))]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use rightlane_ring::{Assembler, Consumer, Outgoing, Producer, Progress, PushError, RingView};

struct Memory {
    tail: AtomicU64,
    head: AtomicU64,
    data: Vec<AtomicU64>,
}

impl Memory {
    fn new(words: usize) -> Self {
        Self::starting_at(words, 0)
    }

    /// A ring in which `position` words have come and gone.
    fn starting_at(words: usize, position: u64) -> Self {
        let data = (0..words).map(|_| AtomicU64::new(u64::MAX)).collect();
        Self {
            tail: AtomicU64::new(position),
            head: AtomicU64::new(position),
            data,
        }
    }

    fn view(&self) -> RingView<'_> {
        RingView {
            tail: &self.tail,
            head: &self.head,
            data: &self.data,
        }
    }
}

fn payload(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + salt * 17) as u8).collect()
}

fn words(len: usize) -> usize {
    1 + len.div_ceil(8)
}

#[derive(Clone, Debug)]
enum Op {
    Push(Vec<usize>),
    Publish,
    TryPush(usize),
    Pop,
    PopBatch(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let len = 0_usize..80;
    prop_oneof![
        prop::collection::vec(0_usize..24, 0..5).prop_map(Op::Push),
        Just(Op::Publish),
        len.prop_map(Op::TryPush),
        Just(Op::Pop),
        (0_usize..6).prop_map(Op::PopBatch),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn records_come_out_as_they_went_in(
        size in 2_u32..7,
        start in prop_oneof![Just(0_u64), 0..1000_u64, Just(u64::MAX / 2)],
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let capacity = 1_usize << size;
        let memory = Memory::starting_at(capacity, start);
        let mut producer = Producer::new(memory.view());
        let mut consumer = Consumer::new(memory.view());
        let mut queue = VecDeque::new();
        let mut unpublished = VecDeque::new();
        let mut used = 0;
        for (step, op) in ops.into_iter().enumerate() {
            let tag = step as u32;
            match op {
                Op::Push(lens) => {
                    let bytes = payload(lens.iter().sum(), step);
                    let mut rest = &bytes[..];
                    let parts: Vec<&[u8]> = lens.iter().map(|&len| rest.split_off(..len).unwrap()).collect();
                    let expected = expected_push(capacity, used, bytes.len());
                    prop_assert_eq!(producer.push(tag, &parts), expected);
                    if expected.is_ok() {
                        used += words(bytes.len());
                        unpublished.push_back((tag, bytes));
                    }
                }
                Op::Publish => {
                    producer.publish();
                    queue.append(&mut unpublished);
                }
                Op::TryPush(len) => {
                    let bytes = payload(len, step);
                    let expected = expected_push(capacity, used, len);
                    let free = (capacity - used).saturating_sub(1) * 8;
                    prop_assert_eq!(producer.free_bytes(), Ok(free));
                    prop_assert_eq!(producer.try_push(tag, &[&bytes]), expected);
                    if expected.is_ok() {
                        used += words(len);
                        queue.append(&mut unpublished);
                        queue.push_back((tag, bytes));
                    }
                }
                Op::Pop => {
                    prop_assert_eq!(consumer.is_empty(), queue.is_empty());
                    let mut out = b"before".to_vec();
                    let popped = consumer.try_pop(&mut out).unwrap();
                    match queue.pop_front() {
                        Some((tag, bytes)) => {
                            prop_assert_eq!(popped, Some(tag));
                            prop_assert_eq!(out, [b"before", &bytes[..]].concat());
                            used -= words(bytes.len());
                        }
                        None => prop_assert_eq!((popped, &out[..]), (None, &b"before"[..])),
                    }
                }
                Op::PopBatch(max) => {
                    let mut got = Vec::new();
                    let popped = consumer.pop_batch(max, |tag, bytes| got.push((tag, bytes.to_vec())));
                    prop_assert_eq!(popped, Ok(got.len()));
                    let expected: Vec<_> = queue.drain(..max.min(queue.len())).collect();
                    used -= expected.iter().map(|(_, bytes)| words(bytes.len())).sum::<usize>();
                    prop_assert_eq!(got, expected);
                }
            }
        }
    }

    #[test]
    fn messages_of_any_size_arrive_whole(
        size in 2_u32..8,
        lens in prop::collection::vec(prop_oneof![0_usize..40, 0_usize..3000], 1..12),
        takes in prop::collection::vec(0_usize..3, 1..50),
    ) {
        let capacity = 1_usize << size;
        let memory = Memory::new(capacity);
        let mut producer = Producer::new(memory.view());
        let mut consumer = Consumer::new(memory.view());
        let mut assembler = Assembler::new(*lens.iter().max().unwrap());
        let mut takes = takes.iter().cycle();
        let mut got = Vec::new();
        for (index, &len) in lens.iter().enumerate() {
            let mut message = Outgoing::new(index as u32, payload(len, index));
            prop_assert!(!message.has_begun());
            while message.push_some(&mut producer).unwrap() == Progress::Partial {
                match takes.next().unwrap() {
                    0 => got.extend(assembler.try_pop(&mut consumer).unwrap()),
                    1 => {
                        assembler
                            .pop_batch(&mut consumer, 1, |tag, bytes| got.push((tag, bytes.into_owned())))
                            .unwrap();
                    }
                    _ => {
                        assembler
                            .pop_batch(&mut consumer, 9, |tag, bytes| got.push((tag, bytes.into_owned())))
                            .unwrap();
                    }
                }
            }
            prop_assert_eq!(message.sent(), len);
            // Pushing a message that is done pushes nothing.
            let published = producer.published();
            prop_assert_eq!(message.push_some(&mut producer), Ok(Progress::Done));
            prop_assert_eq!(producer.published(), published);
        }
        while let Some(message) = assembler.try_pop(&mut consumer).unwrap() {
            got.push(message);
        }
        prop_assert!(!assembler.is_midway());
        let sent: Vec<_> = lens.iter().enumerate().map(|(i, &len)| (i as u32, payload(len, i))).collect();
        prop_assert_eq!(got, sent);
    }

    /// Fragments are worth their header: at least an eighth of the ring, at most half of it.
    #[test]
    fn fragments_are_neither_tiny_nor_huge(
        size in 4_u32..8,
        len in 0_usize..3000,
        fill in 0_usize..600,
    ) {
        let capacity = 1_usize << size;
        let memory = Memory::new(capacity);
        let mut producer = Producer::new(memory.view());
        let mut consumer = Consumer::new(memory.view());
        let filled = producer.try_push(1, &[&payload(fill, 0)]).is_ok();
        let mut message = Outgoing::new(2, payload(len, 0));
        let mut out = Vec::new();
        let mut records = Vec::new();
        loop {
            let progress = message.push_some(&mut producer).unwrap();
            loop {
                let before = out.len();
                let Some(tag) = consumer.try_pop(&mut out).unwrap() else { break };
                records.push((tag, words(out.len() - before)));
            }
            if progress == Progress::Done {
                break;
            }
        }
        if filled {
            records.remove(0);
        }
        let (last, others) = records.split_last().unwrap();
        prop_assert_eq!(last.0, 2);
        prop_assert!(last.1 <= capacity / 2);
        for other in others {
            prop_assert_eq!(other.0, 2 | 1 << 31);
            prop_assert!((capacity / 8..=capacity / 2).contains(&other.1), "{:?}", other);
        }
        prop_assert_eq!(others.is_empty(), words(len) <= capacity / 2);
    }

    /// Whatever the producer writes, popping ends in a record within the ring or an error.
    #[test]
    fn a_mad_producer_is_an_error(
        size in 2_u32..6,
        tails in prop::collection::vec(near_word(), 1..20),
        words in prop::collection::vec(near_word(), 64),
        max_bytes in 0_usize..600,
    ) {
        let capacity = 1_usize << size;
        let memory = Memory::new(capacity);
        let mut consumer = Consumer::new(memory.view());
        let mut assembler = Assembler::new(max_bytes);
        let mut given = 0;
        for (tail, shift) in tails.into_iter().zip(0..) {
            memory.tail.store(tail, Ordering::Relaxed);
            for (slot, word) in memory.data.iter().zip(words.iter().cycle().skip(shift)) {
                slot.store(*word, Ordering::Relaxed);
            }
            let mut out = Vec::new();
            let before = consumer.consumed();
            let _ = consumer.try_pop(&mut out);
            prop_assert!(out.len() <= 8 * (capacity - 1));
            let _ = consumer.pop_batch(3, |_, bytes| assert!(bytes.len() <= 8 * (capacity - 1)));
            let _ = assembler.pop_batch(&mut consumer, 3, |_, bytes| assert!(bytes.len() <= max_bytes));
            let _ = consumer.is_empty();
            prop_assert!(consumer.consumed() >= before);
            given = given.max(tail);
            prop_assert!(consumer.consumed() <= given);
        }
    }

    /// Whatever the consumer writes, the producer never overwrites what was not read.
    #[test]
    fn a_mad_consumer_is_an_error(
        size in 2_u32..6,
        heads in prop::collection::vec(near_word(), 1..40),
        len in 0_usize..100,
    ) {
        let memory = Memory::new(1 << size);
        let mut producer = Producer::new(memory.view());
        for (step, &head) in heads.iter().enumerate() {
            memory.head.store(head, Ordering::Relaxed);
            let before = producer.published();
            let _ = producer.try_push(1, &[&payload(len, 0)]);
            let _ = Outgoing::new(2, payload(len * 7, 0)).push_some(&mut producer);
            if let Ok(free) = producer.free_bytes() {
                prop_assert!(free <= producer.max_bytes());
            }
            let published = producer.published();
            prop_assert!(published >= before);
            // A position that is not beyond what is published may be believed.
            let believable = heads[..=step].iter().filter(|&&head| head <= published).max();
            prop_assert!(published <= believable.unwrap_or(&0) + (1 << size));
        }
    }
}

fn expected_push(capacity: usize, used: usize, len: usize) -> Result<(), PushError> {
    match words(len) {
        words if words > capacity => Err(PushError::TooLarge),
        words if words > capacity - used => Err(PushError::Full),
        _ => Ok(()),
    }
}

/// Words that are likely to be almost right: small positions, small lengths with any tag, and noise.
fn near_word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..40_u64,
        (0..64_u64, 0..4_u64).prop_map(|(len, tag)| len | tag << 32),
        (0..64_u64).prop_map(|len| len | 1 << 63),
        any::<u64>(),
    ]
}

#[test]
fn a_panicking_callback_does_not_pop_twice() {
    let memory = Memory::new(16);
    let mut producer = Producer::new(memory.view());
    let mut consumer = Consumer::new(memory.view());
    for tag in 0..3 {
        producer.try_push(tag, &[b"x"]).unwrap();
    }
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        consumer.pop_batch(9, |tag, _| assert_ne!(tag, 1)).unwrap();
    }));
    assert!(caught.is_err());
    assert_eq!(producer.consumed(), Ok(4));
    let mut out = Vec::new();
    assert_eq!(consumer.try_pop(&mut out), Ok(Some(2)));
}

#[test]
fn a_message_that_has_to_wait_publishes_what_is_in_its_way() {
    let memory = Memory::new(16);
    let mut producer = Producer::new(memory.view());
    let mut consumer = Consumer::new(memory.view());
    producer.push(1, &[&[0; 96]]).unwrap();
    assert!(consumer.is_empty());
    let mut message = Outgoing::new(2, payload(50, 0));
    assert_eq!(message.push_some(&mut producer), Ok(Progress::Partial));
    assert_eq!(consumer.try_pop(&mut Vec::new()), Ok(Some(1)));
    assert_eq!(message.push_some(&mut producer), Ok(Progress::Done));
}

#[test]
fn messages_over_the_bound_are_corrupt() {
    for len in [100, 1000] {
        let memory = Memory::new(64);
        let mut producer = Producer::new(memory.view());
        let mut consumer = Consumer::new(memory.view());
        let mut assembler = Assembler::new(len - 1);
        let mut message = Outgoing::new(1, payload(len, 0));
        let error = loop {
            let _ = message.push_some(&mut producer).unwrap();
            match assembler.try_pop(&mut consumer) {
                Ok(popped) => assert_eq!(popped, None),
                Err(error) => break error,
            }
        };
        assert_eq!(
            error,
            rightlane_ring::Corrupt::Message { max_bytes: len - 1 }
        );
    }
}

#[test]
fn a_message_must_be_finished_before_the_next() {
    let memory = Memory::new(16);
    let mut producer = Producer::new(memory.view());
    let mut consumer = Consumer::new(memory.view());
    let mut assembler = Assembler::new(1000);
    assert_eq!(
        Outgoing::new(5, payload(500, 0)).push_some(&mut producer),
        Ok(Progress::Partial)
    );
    assert_eq!(assembler.try_pop(&mut consumer), Ok(None));
    assert!(assembler.is_midway());
    producer.try_push(6, &[b"intruder"]).unwrap();
    assert_eq!(
        assembler.try_pop(&mut consumer),
        Err(rightlane_ring::Corrupt::Fragment {
            found: 6,
            expected: 5
        })
    );
}

#[test]
#[should_panic(expected = "more than 31 bits")]
fn tags_have_31_bits() {
    let memory = Memory::new(16);
    let _ = Producer::new(memory.view()).push(1 << 31, &[]);
}

#[test]
#[should_panic(expected = "a ring of 12 words")]
fn lengths_are_powers_of_two() {
    let memory = Memory::new(12);
    let _ = Consumer::new(memory.view());
}
