//! The ends over mapped memory, between real processes.
//!
//! Each case forks a worker and talks to it with the real system calls: futex for the worker's
//! sleep, eventfd and poll for the parent's. It brings its own `main`, because forking needs a
//! single thread. A lost wake-up is a hang; an alarm ends it, in the parent and in every child.
//!
//! `RIGHTLANE_SEED` chooses other random numbers, `RIGHTLANE_ROUNDS` multiplies the rounds.
#![allow(unsafe_code)]

#[cfg(loom)]
fn main() {}

#[cfg(not(loom))]
fn main() {
    mapped::main();
}

#[cfg(not(loom))]
mod mapped {
    use std::collections::VecDeque;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::sync::atomic::AtomicU32;
    use std::time::Instant;

    use rightlane_ring::{
        AnswerRing, Assembler, Attempt, Claim, Outgoing, ParentEnd, Progress, Wants, WorkerEnd,
    };

    const MAX_MESSAGE_BYTES: usize = 1 << 20;
    /// Seconds after which a case counts as hung.
    const WATCHDOG_S: u32 = 120;

    type Case = fn(&mut Random);

    pub(super) fn main() {
        // `cargo test -- --list` and filters come as arguments; there is one thing to run here.
        if std::env::args().any(|argument| argument == "--list") {
            println!("mapped: test\n\n1 test, 0 benchmarks");
            return;
        }
        let number = |name: &str, default| match std::env::var(name) {
            Ok(text) => text.parse().expect(name),
            Err(_) => default,
        };
        let seed = number("RIGHTLANE_SEED", 1);
        let rounds = number("RIGHTLANE_ROUNDS", 1);
        let cases: [(&str, u64, Case); 4] = [
            ("messages_go_both_ways", 4, messages_go_both_ways),
            ("small_messages_ping_pong", 1, small_messages_ping_pong),
            (
                "what_a_killed_worker_published_is_whole",
                150,
                what_a_killed_worker_published_is_whole,
            ),
            (
                "a_worker_that_scribbles_harms_nobody",
                100,
                a_worker_that_scribbles_harms_nobody,
            ),
        ];
        for (name, times, case) in cases {
            let begin = Instant::now();
            for round in 0..times * rounds {
                // Printed only when something fails: the panic message says which round.
                let mut random = Random::new(seed * 1_000_003 + round);
                let _context = Context(name, seed, round);
                case(&mut random);
            }
            println!("test {name} ... ok ({} ms)", begin.elapsed().as_millis());
        }
    }

    /// Says which round panicked.
    struct Context(&'static str, u64, u64);

    impl Drop for Context {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("in {}, RIGHTLANE_SEED={}, round {}", self.0, self.1, self.2);
            }
        }
    }

    /// splitmix64.
    #[derive(Clone)]
    struct Random(u64);

    impl Random {
        fn new(seed: u64) -> Self {
            Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        }

        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        fn below(&mut self, bound: u64) -> u64 {
            self.next() % bound
        }
    }

    /// Message number `index` of a stream: what both sides agree on without talking.
    fn message(stream: u64, index: u64) -> (u32, Vec<u8>) {
        let mut random = Random::new(stream ^ index << 20);
        // Mostly small, some of about the ring's size, a few much larger.
        let len = match random.below(20) {
            0 => random.below(60_000),
            1..5 => random.below(5000),
            _ => random.below(100),
        };
        let mut bytes: Vec<u8> = (0..len.div_ceil(8))
            .flat_map(|_| random.next().to_ne_bytes())
            .collect();
        bytes.truncate(len as usize);
        (random.next() as u32 >> 1, bytes)
    }

    fn ring_bytes(random: &mut Random) -> usize {
        4096 << random.below(4)
    }

    /// A forked process; killed and reaped when the test gives up.
    struct Child(libc::pid_t);

    impl Drop for Child {
        fn drop(&mut self) {
            self.kill();
            self.reap();
        }
    }

    impl Child {
        /// Forks. The child runs `run` and exits with 0, or with 101 if it panics.
        fn fork(run: impl FnOnce()) -> Self {
            // SAFETY: this process has one thread, so the child may do what it likes.
            match unsafe { libc::fork() } {
                -1 => panic!("fork: {}", std::io::Error::last_os_error()),
                0 => {
                    watch();
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                    // SAFETY: ends the child without running the parent's destructors.
                    unsafe { libc::_exit(if outcome.is_ok() { 0 } else { 101 }) }
                }
                pid => Self(pid),
            }
        }

        fn kill(&self) {
            // SAFETY: the child is ours and not reaped yet, so the pid is its own.
            assert_eq!(unsafe { libc::kill(self.0, libc::SIGKILL) }, 0);
        }

        /// Waits for the end; returns the exit code, or minus the signal.
        fn wait(self) -> i32 {
            let status = self.reap();
            std::mem::forget(self);
            if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                -libc::WTERMSIG(status)
            }
        }

        fn reap(&self) -> i32 {
            let mut status = 0;
            // SAFETY: `status` is a valid place to write.
            assert_eq!(unsafe { libc::waitpid(self.0, &mut status, 0) }, self.0);
            status
        }
    }

    /// Arms the watchdog of this process.
    fn watch() {
        // SAFETY: no memory involved. The default action of SIGALRM ends the process.
        unsafe { libc::alarm(WATCHDOG_S) };
    }

    fn futex(word: &AtomicU32, operation: i32, value: u32) {
        // SAFETY: the word is valid for the call, there is no timeout. Without FUTEX_PRIVATE_FLAG,
        // because the other side is another process.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, 0_usize) };
    }

    struct Event(OwnedFd);

    impl Event {
        fn new() -> Self {
            // SAFETY: a new descriptor, owned from here on.
            unsafe {
                let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
                assert!(fd >= 0);
                Self(OwnedFd::from_raw_fd(fd))
            }
        }

        fn signal(&self) {
            let one = 1_u64.to_ne_bytes();
            // SAFETY: eight bytes to read from.
            let written = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), 8) };
            assert_eq!(written, 8);
        }

        fn wait(&self) {
            let mut poll = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let mut count = [0_u8; 8];
            // SAFETY: one pollfd, and eight bytes to write to.
            unsafe {
                assert_eq!(libc::poll(&mut poll, 1, -1), 1);
                assert_eq!(
                    libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), 8),
                    8
                );
            }
        }
    }

    fn wake_worker(end: &ParentEnd, provided: Wants) {
        if end.must_wake(provided) {
            futex(end.doorbell(), libc::FUTEX_WAKE, 1);
        }
    }

    fn wake_parent(end: &mut WorkerEnd, event: &Event, provided: Wants) {
        if end.parent_to_wake(provided).is_some() {
            event.signal();
        }
    }

    fn worker_sleeps_unless(
        end: &mut WorkerEnd,
        wants: Wants,
        ready: impl FnOnce(&mut WorkerEnd) -> bool,
    ) {
        let value = end.prepare_sleep(wants);
        if !ready(end) {
            futex(end.doorbell(), libc::FUTEX_WAIT, value);
        }
        end.cancel_sleep();
    }

    /// Worker: sends all of a message, sleeping while there is no room. Reads nothing meanwhile.
    fn answer(end: &mut WorkerEnd, event: &Event, tag: u32, bytes: Vec<u8>) {
        let mut outgoing = Outgoing::new(tag, bytes);
        let mut push = |end: &mut WorkerEnd| {
            let published = end.answers.published();
            let progress = outgoing.push_some(&mut end.answers).unwrap();
            let pushed = end.answers.published() != published;
            if pushed {
                wake_parent(end, event, Wants::MESSAGES);
            }
            (pushed, progress == Progress::Done)
        };
        while !push(end).1 {
            worker_sleeps_unless(end, Wants::ROOM, |end| push(end).0);
        }
    }

    /// Worker: the next task, sleeping until there is one.
    fn next_task(end: &mut WorkerEnd, event: &Event, assembler: &mut Assembler) -> (u32, Vec<u8>) {
        loop {
            let consumed = end.tasks.consumed();
            let popped = assembler.try_pop(&mut end.tasks).unwrap();
            if end.tasks.consumed() != consumed {
                wake_parent(end, event, Wants::ROOM);
            }
            match popped {
                Some(task) => return task,
                None => worker_sleeps_unless(end, Wants::MESSAGES, |end| !end.tasks.is_empty()),
            }
        }
    }

    /// Messages of all sizes to the worker and back, with both rings full at times: the worker reads
    /// no task while it has an answer to send, the parent always reads.
    fn messages_go_both_ways(random: &mut Random) {
        exchange(random, 1500, u64::MAX, message);
    }

    /// One small message at a time: every one has to wake a sleeper.
    fn small_messages_ping_pong(random: &mut Random) {
        exchange(random, 20_000, 1, |stream, index| {
            let bytes = (stream ^ index).to_ne_bytes().to_vec();
            (index as u32, bytes)
        });
    }

    fn exchange(
        random: &mut Random,
        count: u64,
        window: u64,
        message: fn(u64, u64) -> (u32, Vec<u8>),
    ) {
        watch();
        let (down, up) = (random.next(), random.next());
        let (mut end, tasks, answers) =
            ParentEnd::create(ring_bytes(random), ring_bytes(random)).unwrap();
        let event = Event::new();
        let child = Child::fork(|| {
            let mut end = WorkerEnd::attach(tasks, answers).unwrap();
            let mut assembler = Assembler::new(MAX_MESSAGE_BYTES);
            for index in 0..count {
                let task = next_task(&mut end, &event, &mut assembler);
                assert!(task == message(down, index), "task {index} differs");
                let (tag, bytes) = message(up, index);
                answer(&mut end, &event, tag, bytes);
            }
        });
        let mut assembler = Assembler::new(MAX_MESSAGE_BYTES);
        let (mut sent, mut received) = (0, 0);
        let mut outgoing: Option<Outgoing<Vec<u8>>> = None;
        while received < count {
            let mut push = |end: &mut ParentEnd, received: u64| {
                let published = end.tasks.published();
                if outgoing.is_none() && sent < count && sent - received < window {
                    let (tag, bytes) = message(down, sent);
                    outgoing = Some(Outgoing::new(tag, bytes));
                    sent += 1;
                }
                if let Some(message) = &mut outgoing
                    && message.push_some(&mut end.tasks).unwrap() == Progress::Done
                {
                    outgoing = None;
                }
                let pushed = end.tasks.published() != published;
                if pushed {
                    wake_worker(end, Wants::MESSAGES);
                }
                (pushed, outgoing.is_some())
            };
            let (pushed, pending) = push(&mut end, received);
            let consumed = end.answers.consumed();
            assembler
                .pop_batch(&mut end.answers, 64, |tag, bytes| {
                    assert!(
                        (tag, bytes.into_owned()) == message(up, received),
                        "answer {received} differs"
                    );
                    received += 1;
                })
                .unwrap();
            let popped = end.answers.consumed() != consumed;
            if popped {
                wake_worker(&end, Wants::ROOM);
            }
            if !pushed && !popped {
                end.prepare_sleep(if pending {
                    Wants::EITHER
                } else {
                    Wants::MESSAGES
                });
                if !push(&mut end, received).0 && !end.has_answers() {
                    event.wait();
                }
                end.awake();
            }
        }
        assert_eq!(child.wait(), 0);
        assert!(end.answers.is_empty() && !assembler.is_midway());
        assert_eq!(end.tasks.consumed(), Ok(end.tasks.published()));
        assert!(!end.worker_asleep());
    }

    /// A worker publishes answers as fast as it can and dies somewhere; what it published is there,
    /// whole and in order, and its claim names the item whose answer is missing, or the last one.
    fn what_a_killed_worker_published_is_whole(random: &mut Random) {
        watch();
        let stream = random.next();
        let (mut end, tasks, answers) = ParentEnd::create(4096, ring_bytes(random)).unwrap();
        let child = Child::fork(|| {
            let mut end = WorkerEnd::attach(tasks, answers).unwrap();
            for index in 0.. {
                assert_eq!(end.claim(index, 0), Attempt::Claimed);
                let (tag, bytes) = message(stream, index);
                let mut outgoing = Outgoing::new(tag, bytes);
                while outgoing.push_some(&mut end.answers).unwrap() == Progress::Partial {
                    std::thread::yield_now();
                }
                end.release_claim();
            }
        });
        let mut assembler = Assembler::new(MAX_MESSAGE_BYTES);
        let mut received = 0;
        let mut drain = |end: &mut ParentEnd, max: usize| {
            let consumer: &mut rightlane_ring::Consumer<AnswerRing> = &mut end.answers;
            assembler
                .pop_batch(consumer, max, |tag, bytes| {
                    assert!(
                        (tag, bytes.into_owned()) == message(stream, received),
                        "answer {received} differs"
                    );
                    received += 1;
                })
                .unwrap();
            received
        };
        // The kill comes when the worker has got to some place, however long that takes it.
        let enough = random.below(60);
        while drain(&mut end, 1 + random.below(4) as usize) < enough {
            std::thread::yield_now();
        }
        for _ in 0..random.below(20_000) {
            std::hint::spin_loop();
        }
        child.kill();
        assert_eq!(child.wait(), -libc::SIGKILL);
        let received = drain(&mut end, usize::MAX);
        assert!(end.answers.is_empty());
        let claim = end.claim();
        assert!(
            claim == Claim::NOTHING
                || claim.item_of(received) == Some(0)
                || received > 0 && claim.item_of(received - 1) == Some(0),
            "{claim:?} after {received} answers"
        );
        // What had begun to arrive was claimed.
        if assembler.is_midway() {
            assert_eq!(claim.item_of(received), Some(0));
        }
    }

    /// A worker overwrites all that it can, all the time. The parent sees errors, or nonsense within
    /// bounds.
    fn a_worker_that_scribbles_harms_nobody(random: &mut Random) {
        watch();
        let (mut end, _tasks, answers) = ParentEnd::create(4096, 4096).unwrap();
        let mut noise = random.clone();
        let child = Child::fork(|| {
            let map = memmap2::MmapOptions::new().map_raw(&answers).unwrap();
            let first: *mut u64 = map.as_mut_ptr().cast();
            let words = map.len() as u64 / 8;
            let mut near: VecDeque<u64> = (0..512).collect();
            loop {
                // Positions that could be, headers that could be, and noise.
                let value = match noise.below(4) {
                    0 => noise.next(),
                    1 => noise.below(300) | noise.below(2) << 63,
                    _ => {
                        near.rotate_left(7);
                        near[0] * noise.below(9)
                    }
                };
                let header_word = [8, 16, 24, 32][noise.below(4) as usize];
                let at = if noise.below(8) == 0 {
                    header_word
                } else {
                    64 + noise.below(words - 64)
                };
                // SAFETY: `at` is within the mapping, which is ours alone to write.
                unsafe { std::sync::atomic::AtomicU64::from_ptr(first.add(at as usize)) }
                    .store(value, std::sync::atomic::Ordering::Relaxed);
            }
        });
        let mut errors = 0;
        let mut assembler = Assembler::new(10_000);
        // The worker writes for as long as it lives, so there is always another error to come.
        while errors < 2000 {
            if assembler
                .pop_batch(&mut end.answers, 8, |_, bytes| {
                    assert!(bytes.len() <= 10_000)
                })
                .is_err()
            {
                errors += 1;
                assembler = Assembler::new(10_000);
            }
            let _ = end.tasks.try_push(1, &[&[0; 100]]);
            let _ = (
                end.revoke(errors),
                end.must_wake(Wants::EITHER),
                end.has_answers(),
            );
        }
        child.kill();
        assert_eq!(child.wait(), -libc::SIGKILL);
    }
}
