//! What a worker's functions do, measured in the worker itself while they run (rule 28).
//!
//! Two threads take part. The task's own thread reads clocks where a piece begins and ends ([`Meter::begin`],
//! [`Meter::end`]). While a piece of a function runs of which too little is known, a second one looks every
//! millisecond at what the first is doing: the kernel's file of its system call says that it runs or what it waits in,
//! and the word in which the client's interpreter keeps its lock says whether that is held. Both are only read: nobody
//! is stopped, and no lock of the client's is taken. Where the kernel does not show system calls, CPU clocks say how
//! much of the time the thread ran.
//!
//! A function is *settled* when enough was seen of it. From then on nobody looks, and now and then its own thread
//! compares a piece with what is known; a function that has become another one is measured anew, as a new *epoch*. The
//! first call is an epoch of its own (number 0), because it pays for imports and cold caches.
//!
//! What is known lies on the [`Board`](rightlane_ring::Board), where the engine reads it with the answers. In the
//! middle of a long call the second thread writes it there, and wakes the engine.
//!
//! The lock around the books is held for some hundred nanoseconds, never while anything is read from the kernel. A
//! child that a task forks may find it taken, and never asks for it: such a child ends with its task.

use crate::hub::lock;
use crate::sys::clocks::{self, Activity, CallKind, Thread};
use crate::sys::futex::{self, Scope};
use crate::sys::process::{block_all_signals, cpu_ns};
use rightlane_core::lane::{Doing, LONG_FIRST_NS, Measured, WORDS};
use rightlane_ring::Notes;
use rightlane_ring::board::{RECORD_WORDS, SLOTS};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const _: () = assert!(RECORD_WORDS >= WORDS + 2);

/// A call is first looked at when it has lasted so long, then once in each [`LOOK_NS`].
const GRACE_NS: u64 = 300_000;
const LOOK_NS: u64 = 1_000_000;

/// After so many looks at one call they become rarer, down to [`RAREST_NS`].
const DENSE_LOOKS: u32 = 64;
const RAREST_NS: u64 = 20_000_000;

/// Enough was seen of a function when it ended so often and was watched so long; or was looked at so often in long
/// calls; or ended so very often.
const SETTLED_CALLS: u64 = 3;
const SETTLED_NS: u64 = 20_000_000;
const SETTLED_LOOKS: u32 = 12;
const MANY_LOOKS: u32 = 64;
const MANY_CALLS: u64 = 2_000;
const MANY_CALLS_NS: u64 = 4_000_000;

/// After so many looks without anything to look at the second thread sleeps until it is woken.
const IDLE_LOOKS: u32 = 25;

/// Pieces of a settled function that last so long are compared with what is known, of others one in so many.
const COMPARED_NS: u64 = 500_000;
const COMPARED_EACH: u32 = 64;

/// How many functions are remembered. Whoever alternates between more has the oldest measured again.
const MOST_BOOKS: usize = 64;

/// So many in a row that differ make a new epoch.
const ODD_PIECES: u32 = 3;

/// The lock of the client's interpreter, as it looks from outside.
#[derive(Clone, Debug, Default)]
pub struct ClientLock {
    /// Words of which one is not zero while the lock is held. None: nobody can tell.
    pub words: Vec<&'static AtomicU32>,
    /// Where those lie on which threads wait for it.
    pub area: Range<u64>,
}

impl ClientLock {
    fn is_held(&self) -> bool {
        // Who burns CPU and cannot show that the lock is free is taken to hold it.
        self.words.is_empty()
            || self
                .words
                .iter()
                .any(|word| word.load(Ordering::Relaxed) != 0)
    }
}

/// What a piece was, told at its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How many calls ended.
    pub calls: u64,
    /// How long the function ran.
    pub run_ns: u64,
    /// How much CPU time its thread used; only of calls that are watched.
    pub cpu_ns: u64,
    /// What unpickling the arguments took.
    pub unpack_ns: u64,
    /// What pickling the results took.
    pub pack_ns: u64,
    /// How large these were.
    pub result_bytes: u64,
}

/// How a piece is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// Not at all.
    None,
    /// Its clocks are compared with what is known.
    Compared { cpu_ns: u64 },
    /// Each call is timed, and looked at.
    Watched,
}

#[derive(Debug, Default)]
struct Book {
    definition: u64,
    epoch: u64,
    total: Measured,
    looks: u32,
    settled: bool,
    odd: u32,
    /// How long its last piece lasted.
    piece_ns: u64,
}

impl Book {
    fn record(&self, with: &Measured) -> [u64; RECORD_WORDS] {
        let mut record = [0; RECORD_WORDS];
        record[0] = self.definition;
        record[1] = self.epoch;
        record[2..2 + WORDS].copy_from_slice(&self.total.plus(with).to_words());
        record
    }

    fn is_enough(&self) -> bool {
        let total = &self.total;
        if self.epoch == 0 {
            return total.done > 0 && total.wall_ns / total.done >= LONG_FIRST_NS;
        }
        let watched = total.watched_ns() >= SETTLED_NS && self.looks >= SETTLED_LOOKS;
        total.done >= SETTLED_CALLS && watched
            || self.looks >= MANY_LOOKS
            || total.done >= MANY_CALLS && total.wall_ns >= MANY_CALLS_NS
    }

    /// What is measured from here on is another function's: of the epoch after this one, but never the second, which is
    /// what follows a first call.
    fn renew(&mut self) {
        self.epoch = (self.epoch + 1).max(2);
        self.restart();
    }

    fn restart(&mut self) {
        self.total = Measured::default();
        self.looks = 0;
        self.odd = 0;
        self.settled = false;
    }

    /// Whether a piece of so many calls is another function's, by its looks.
    fn differs(&self, tally: &Tally, cpu_ns: u64) -> bool {
        let known = &self.total;
        let each = |sum: u64, calls: u64| sum as f64 / calls.max(1) as f64;
        let far = |now: f64, then: f64| {
            (now > then * 3.0 || now * 3.0 < then) && (now - then).abs() > 1e5
        };
        let wall_then = known.wall_ns + known.pack_ns + known.unpack_ns;
        far(
            each(cpu_ns, tally.calls),
            each(known.cpu_ns + known.pack_ns + known.unpack_ns, known.begun),
        ) || far(
            each(tally.run_ns, tally.calls),
            each(wall_then, known.begun),
        )
    }
}

/// The piece that is watched.
#[derive(Debug)]
struct Running {
    book: usize,
    began_ns: u64,
    seen_ns: u64,
    looks: u32,
    clocks: Clocks,
    /// How often the task's thread had waited for anything.
    waits: u64,
}

/// What had been used up when a piece began.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    cpu_ns: u64,
    delay_ns: u64,
    process_ns: u64,
    sampler_ns: u64,
    child_ns: u64,
}

#[derive(Debug, Default)]
struct Books {
    books: Vec<Book>,
    next_slot: usize,
    running: Option<Running>,
    /// Counts the pieces that were watched.
    serial: u64,
}

#[derive(Debug)]
struct Shared {
    books: Mutex<Books>,
    bell: AtomicU32,
    asleep: AtomicBool,
    /// CPU time of the thread that looks.
    sampler_ns: AtomicU64,
    thread: Thread,
    client: ClientLock,
    notes: Notes,
    /// Whoever reads the board in the engine sleeps on one of these.
    signals: Vec<OwnedFd>,
}

/// See the module. Used by the thread that runs tasks.
#[derive(Debug)]
pub struct Meter {
    shared: Arc<Shared>,
    started: bool,
    /// The last piece's function, if it is settled, and where its book is.
    settled: Option<(u64, usize)>,
    /// Pieces of it that nobody has compared.
    passed: u32,
    piece_ns: u64,
}

impl Meter {
    /// Of the calling thread. `clocks_only`: see [`Thread::current`].
    pub fn new(
        client: ClientLock,
        notes: Notes,
        signals: Vec<OwnedFd>,
        clocks_only: bool,
    ) -> Meter {
        let shared = Shared {
            books: Mutex::default(),
            bell: AtomicU32::new(0),
            asleep: AtomicBool::new(false),
            sampler_ns: AtomicU64::new(0),
            thread: Thread::current(clocks_only),
            client,
            notes,
            signals,
        };
        Meter {
            shared: Arc::new(shared),
            started: false,
            settled: None,
            passed: 0,
            piece_ns: 0,
        }
    }

    /// A piece of this function begins.
    pub fn begin(&mut self, definition: u64) -> Care {
        if let Some((known, _)) = self.settled
            && known == definition
        {
            self.passed += 1;
            if self.piece_ns < COMPARED_NS && self.passed < COMPARED_EACH {
                return Care::None;
            }
            self.passed = 0;
            return Care::Compared {
                cpu_ns: clocks::thread_cpu_ns(),
            };
        }
        self.watch(definition)
    }

    #[cold]
    fn watch(&mut self, definition: u64) -> Care {
        let shared = &self.shared;
        {
            let mut books = lock(&shared.books);
            let at = books.find(definition);
            let book = &books.books[at];
            if book.settled {
                self.settled = Some((definition, at));
                self.piece_ns = book.piece_ns;
                drop(books);
                return self.begin(definition);
            }
        }
        if !self.started {
            self.started = true;
            start(shared);
        }
        let clocks = shared.used();
        let mut books = lock(&shared.books);
        let at = books.find(definition);
        let book = &mut books.books[at];
        if book.epoch == 0 && book.total.done > 0 {
            book.epoch = 1;
            book.restart();
        }
        let now_ns = crate::sys::now().0;
        books.serial += 1;
        books.running = Some(Running {
            book: at,
            began_ns: now_ns,
            seen_ns: now_ns,
            looks: 0,
            clocks,
            waits: clocks::own_waits(),
        });
        drop(books);
        // Pairs with the store before the other thread's last look.
        if shared.asleep.swap(false, Ordering::SeqCst) {
            shared.bell.fetch_add(1, Ordering::SeqCst);
            futex::wake(&shared.bell, 1, Scope::Private);
        }
        Care::Watched
    }

    /// It has ended; `care` is what [`Meter::begin`] said.
    pub fn end(&mut self, care: Care, tally: &Tally) {
        match care {
            Care::None => self.piece_ns = tally.run_ns,
            Care::Compared { cpu_ns } => {
                self.piece_ns = tally.run_ns;
                self.compare(tally, clocks::thread_cpu_ns() - cpu_ns);
            }
            Care::Watched => self.close(tally),
        }
    }

    fn compare(&mut self, tally: &Tally, cpu_ns: u64) {
        let Some((definition, at)) = self.settled else {
            return;
        };
        let mut books = lock(&self.shared.books);
        let book = &mut books.books[at];
        if book.definition != definition {
            // Its book was given to another one.
            self.settled = None;
            return;
        }
        if tally.calls == 0 || !book.differs(tally, cpu_ns) {
            book.odd = 0;
            return;
        }
        book.odd += 1;
        if book.odd >= ODD_PIECES {
            book.renew();
            self.settled = None;
        }
    }

    fn close(&mut self, tally: &Tally) {
        let shared = &self.shared;
        let (used, waits) = (shared.used(), clocks::own_waits());
        let mut books = lock(&shared.books);
        let Some(running) = books.running.take() else {
            return;
        };
        let (at, since) = (running.book, running.clocks);
        let book = &mut books.books[at];
        let delay_ns = used.delay_ns - since.delay_ns;
        let run_ns = tally.run_ns.max(1);
        // Reading the clocks takes longer than a short call.
        let cpu_ns = tally.cpu_ns.min(run_ns);
        // What others took of the cores is not the function's, as far as it must have been within the calls.
        let piece_ns = crate::sys::now().0.saturating_sub(running.began_ns);
        let delay_ns = delay_ns.saturating_sub(piece_ns.saturating_sub(run_ns));
        // And who never gave up the core waited for nothing.
        let wall_ns = if waits == running.waits {
            cpu_ns.max(1)
        } else {
            run_ns.saturating_sub(delay_ns).max(cpu_ns).max(1)
        };
        book.total = book.total.plus(&Measured {
            begun: tally.calls,
            done: tally.calls,
            wall_ns,
            cpu_ns,
            others_cpu_ns: used.others_since(&since),
            child_cpu_ns: used.child_ns - since.child_ns,
            unpack_ns: tally.unpack_ns,
            pack_ns: tally.pack_ns,
            result_bytes: tally.result_bytes,
            seen_ns: Default::default(),
        });
        book.piece_ns = tally.run_ns;
        book.settled = book.is_enough();
        let record = book.record(&Measured::default());
        if book.settled {
            self.settled = Some((book.definition, at));
            self.piece_ns = tally.run_ns;
            self.passed = 0;
        }
        shared.notes.board().write(at % SLOTS, &record);
    }
}

impl Clocks {
    fn others_since(&self, since: &Clocks) -> u64 {
        let all = self.process_ns - since.process_ns;
        let known = self.cpu_ns - since.cpu_ns + self.sampler_ns - since.sampler_ns;
        // The clocks are read one after the other.
        all.saturating_sub(known)
    }
}

impl Books {
    /// The book of a function; a new one takes the place of the oldest.
    fn find(&mut self, definition: u64) -> usize {
        let known = self
            .books
            .iter()
            .position(|book| book.definition == definition);
        known.unwrap_or_else(|| {
            let book = Book {
                definition,
                ..Book::default()
            };
            if self.books.len() < MOST_BOOKS {
                self.books.push(book);
                return self.books.len() - 1;
            }
            let at = self.next_slot;
            self.next_slot = (at + 1) % MOST_BOOKS;
            self.books[at] = book;
            at
        })
    }
}

fn start(shared: &Arc<Shared>) {
    let shared = shared.clone();
    // Without it there are clocks still.
    let _ = std::thread::Builder::new()
        .name("rightlane-sampler".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            block_all_signals();
            shared.sample();
        });
}

impl Shared {
    fn used(&self) -> Clocks {
        Clocks {
            cpu_ns: self.thread.cpu_ns(),
            delay_ns: self.thread.delay_ns(),
            process_ns: clocks::process_cpu_ns(),
            sampler_ns: self.sampler_ns.load(Ordering::Relaxed),
            child_ns: clocks::children_cpu_ns(),
        }
    }

    /// The life of the thread that looks.
    fn sample(&self) -> ! {
        loop {
            let seen = self.bell.load(Ordering::SeqCst);
            self.asleep.store(true, Ordering::SeqCst);
            if lock(&self.books).running.is_none() {
                let _ = futex::wait(&self.bell, seen, None, Scope::Private);
            }
            self.asleep.store(false, Ordering::SeqCst);
            let mut last = None;
            let (mut nap_ns, mut idle) = (GRACE_NS, 0);
            while idle < IDLE_LOOKS {
                std::thread::sleep(Duration::from_nanos(nap_ns));
                match self.look(&mut last) {
                    Some(next_ns) => (nap_ns, idle) = (next_ns, 0),
                    None => (nap_ns, idle) = (LOOK_NS, idle + 1),
                }
                self.sampler_ns
                    .store(clocks::thread_cpu_ns(), Ordering::Relaxed);
            }
        }
    }

    /// Looks once at the piece that runs, if one does; returns when to look again.
    fn look(&self, last: &mut Option<(u64, Clocks)>) -> Option<u64> {
        let (serial, since_ns, long) = {
            let books = lock(&self.books);
            let running = books.running.as_ref()?;
            (books.serial, running.seen_ns, running.looks >= DENSE_LOOKS)
        };
        let now_ns = crate::sys::now().0;
        let passed_ns = now_ns.saturating_sub(since_ns);
        let held = self.client.is_held();
        let activity = self.thread.activity();
        let used = self.used();
        let before = match last.replace((serial, used)) {
            Some((known, before)) if known == serial => before,
            _ => lock(&self.books).running.as_ref()?.clocks,
        };
        let doing = activity.and_then(|activity| self.name(activity, &used, &before, passed_ns));
        // Of calls that have not ended nobody has counted the children's time yet.
        let children = doing == Some(Doing::Child) || doing.is_none() && activity.is_none();
        let children = if children {
            self.thread.children()
        } else {
            Vec::new()
        };
        let child_ns: u64 = children.into_iter().filter_map(cpu_ns).sum();

        let mut books = lock(&self.books);
        if books.serial != serial {
            return Some(LOOK_NS);
        }
        let Books { books, running, .. } = &mut *books;
        let running = running.as_mut()?;
        let book = &mut books[running.book];
        let burning = if held { Doing::Holding } else { Doing::Free };
        match (activity, doing) {
            (None, _) => {
                // By clocks: it ran, or would have, for so much of the time.
                let ran_ns = used.cpu_ns - before.cpu_ns + used.delay_ns - before.delay_ns;
                let ran_ns = ran_ns.min(passed_ns);
                book.total.see(burning, ran_ns);
                book.total.see(Doing::Unclear, passed_ns - ran_ns);
            }
            (Some(_), None) => book.total.see(burning, passed_ns),
            (Some(_), Some(waits)) => book.total.see(waits, passed_ns),
        }
        running.seen_ns = now_ns;
        running.looks += 1;
        book.looks += 1;
        if running.looks >= 8 && running.looks.is_power_of_two() {
            let since = &running.clocks;
            let delay_ns = used.delay_ns - since.delay_ns;
            let wall_ns = (now_ns - running.began_ns).saturating_sub(delay_ns).max(1);
            let so_far = Measured {
                begun: 1,
                wall_ns,
                cpu_ns: (used.cpu_ns - since.cpu_ns).min(wall_ns),
                others_cpu_ns: used.others_since(since),
                child_cpu_ns: used.child_ns - since.child_ns + child_ns,
                ..Measured::default()
            };
            let record = book.record(&so_far);
            self.notes.board().write(running.book % SLOTS, &record);
            for signal in &self.signals {
                let _ = rustix::io::write(signal, &1_u64.to_ne_bytes());
            }
        }
        let rarer = u64::from(running.looks / DENSE_LOOKS);
        Some(if long {
            (LOOK_NS << rarer.min(5)).min(RAREST_NS)
        } else {
            LOOK_NS
        })
    }

    /// What it waits for; None if it runs.
    fn name(
        &self,
        activity: Activity,
        used: &Clocks,
        before: &Clocks,
        passed_ns: u64,
    ) -> Option<Doing> {
        let Activity::Call(number, [first, _]) = activity else {
            return None;
        };
        let streams = || {
            // A parent that reads what its child writes waits for the child.
            if self.thread.children().is_empty() {
                Doing::Network
            } else {
                Doing::Child
            }
        };
        Some(match clocks::call_kind(number, first) {
            CallKind::Yield => return None,
            CallKind::Sleep => Doing::Sleep,
            CallKind::Child => Doing::Child,
            CallKind::Streams => streams(),
            CallKind::Descriptor if clocks::is_stream(first).unwrap_or(false) => streams(),
            CallKind::Descriptor | CallKind::Other => Doing::Disk,
            CallKind::Futex if self.client.area.contains(&first) => Doing::Gil,
            CallKind::Futex if used.others_since(before) > passed_ns / 4 => Doing::Pool,
            CallKind::Futex => Doing::Lock,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rightlane_ring::{ParentEnd, WorkerEnd};

    fn meter(clocks_only: bool) -> (Meter, ParentEnd) {
        let (parent, tasks, answers) = ParentEnd::create(4096, 4096).expect("segments");
        let worker = WorkerEnd::attach(tasks, answers).expect("attached");
        let meter = Meter::new(
            ClientLock::default(),
            worker.notes(),
            Vec::new(),
            clocks_only,
        );
        (meter, parent)
    }

    /// One call of this definition, measured as a worker does it.
    fn call(meter: &mut Meter, definition: u64, run: impl FnOnce()) -> Care {
        let care = meter.begin(definition);
        let (begun, cpu_ns) = (crate::sys::now(), clocks::thread_cpu_ns());
        run();
        let tally = Tally {
            calls: 1,
            run_ns: crate::sys::now().0 - begun.0,
            cpu_ns: clocks::thread_cpu_ns() - cpu_ns,
            ..Tally::default()
        };
        meter.end(care, &tally);
        care
    }

    fn nap() {
        std::thread::sleep(Duration::from_millis(10));
    }

    fn burn() {
        let begun = clocks::thread_cpu_ns();
        while clocks::thread_cpu_ns() - begun < 10_000_000 {}
    }

    fn record(parent: &ParentEnd) -> (u64, u64, Measured) {
        let (_, record) = parent.board().read(0, 0).expect("written");
        let mut words = [0; WORDS];
        words.copy_from_slice(&record[2..2 + WORDS]);
        (record[0], record[1], Measured::from_words(&words))
    }

    fn settle(meter: &mut Meter, run: impl Fn()) {
        while call(meter, 7, &run) == Care::Watched {}
    }

    #[test]
    fn a_call_is_seen_doing_what_it_does() {
        for clocks_only in [false, true] {
            let (mut meter, parent) = meter(clocks_only);
            settle(&mut meter, nap);
            let (definition, epoch, seen) = record(&parent);
            assert_eq!((definition, epoch), (7, 1));
            assert!(seen.done >= SETTLED_CALLS && seen.wall_ns >= seen.done * 10_000_000);
            assert!(seen.cpu_ns < seen.wall_ns / 2, "{seen:?}");
            let (mut meter, parent) = self::meter(clocks_only);
            settle(&mut meter, burn);
            let (_, _, seen) = record(&parent);
            // Nobody can show that the lock is free.
            assert!(seen.seen_ns[Doing::Holding as usize] > 0, "{seen:?}");
            assert!(seen.cpu_ns >= seen.wall_ns / 2, "{seen:?}");
        }
    }

    #[test]
    fn what_is_known_is_left_alone_until_it_is_something_else() {
        let (mut meter, parent) = meter(false);
        settle(&mut meter, nap);
        let news = parent.board().news();
        assert!(matches!(call(&mut meter, 7, nap), Care::Compared { .. }));
        assert_eq!(parent.board().news(), news);
        while call(&mut meter, 7, burn) != Care::Watched {}
        settle(&mut meter, burn);
        assert_eq!(record(&parent).1, 2);
    }

    #[test]
    fn short_pieces_of_what_is_known_cost_nothing() {
        let (mut meter, _parent) = meter(false);
        let short = || {
            let begun = crate::sys::now();
            while crate::sys::now().0 - begun.0 < 100_000 {}
        };
        settle(&mut meter, short);
        let cared = (0..COMPARED_EACH * 4).filter(|_| call(&mut meter, 7, short) != Care::None);
        // More than one in so many only where the machine has made a piece a long one.
        assert!(cared.count() <= 64);
    }

    #[test]
    fn who_has_too_many_functions_has_the_oldest_measured_again() {
        let (mut meter, _parent) = meter(true);
        settle(&mut meter, nap);
        for definition in 100..100 + MOST_BOOKS as u64 {
            assert_eq!(call(&mut meter, definition, || {}), Care::Watched);
        }
        assert_ne!(call(&mut meter, 7, nap), Care::None);
        assert_eq!(call(&mut meter, 7, nap), Care::Watched);
    }
}
