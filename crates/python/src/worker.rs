//! The inside of template and worker processes: the loops that their interpreters run.
//!
//! In a worker, one thread runs this loop and every task. The Python half of what it does (the caller's world,
//! definitions, exceptions) is `rightlane._worker`.

use crate::codec;
use crate::executor::{call_item, shape};
use crate::map::Numbers;
use crate::raw::{describe, flavor};
use crate::shortage;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use rightlane_runtime::meter::{Care, ClientLock, Meter, Tally};
use rightlane_runtime::nursery::{Interpreter, Nursery, Seat};
use rightlane_runtime::sys::clocks::thread_cpu_ns;
use rightlane_runtime::sys::futex::Waited;
use rightlane_runtime::sys::process::{exit_now, forked};
use rightlane_runtime::wire::GENERATED;
use rightlane_runtime::worker::{Desk, Message, Piece, WorkerError};
use std::collections::HashMap;
use std::io;
use std::os::fd::IntoRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Bytes that an answer's head takes; the client's bytes follow.
const HEAD_BYTES: usize = rightlane_runtime::wire::AnswerHead::BYTES;

/// Within a piece of short items, how long the loop goes without looking at the clock.
const CLOCK_EVERY_NS: u64 = 20_000;

/// Within a piece, standard output is flushed after each task that ends this long after the last flush.
const FLUSH_EVERY_NS: u64 = 500_000;

/// For tests: workers behave as where the kernel does not tell what a thread waits in.
const CLOCKS_ONLY: &str = "_RIGHTLANE_CLOCKS_ONLY";

/// What took this long at a function's first use is worth a look at what it imported.
const NEWS_NS: u64 = 5_000_000;

/// A worker's place, handed from the template's loop to the worker's.
#[pyclass(module = "rightlane._core")]
#[derive(Debug)]
pub(crate) struct WorkerSeat {
    seat: Option<Seat>,
}

#[pymethods]
impl WorkerSeat {
    /// Which worker of its executor this is, counted from one.
    #[getter]
    fn number(&self) -> u32 {
        self.seat.as_ref().map_or(0, Seat::number)
    }

    /// The descriptor to send requests to the user's process by, for the caller to own; None the second time.
    fn take_door(&mut self) -> Option<i32> {
        let door = self.seat.as_mut()?.take_door()?;
        Some(door.into_raw_fd())
    }
}

struct PythonInterpreter<'py> {
    fork: Bound<'py, PyAny>,
    run_site: Bound<'py, PyAny>,
    warm_up: Bound<'py, PyAny>,
    knows: Bound<'py, PyAny>,
    learn: Bound<'py, PyAny>,
}

impl Interpreter for PythonInterpreter<'_> {
    fn fork(&mut self) -> io::Result<i32> {
        let pid = self.fork.call0().and_then(|pid| pid.extract());
        pid.map_err(|error| {
            let errno = error
                .value(self.fork.py())
                .getattr("errno")
                .and_then(|errno| errno.extract());
            errno.map_or_else(|_| io::Error::other("fork"), io::Error::from_raw_os_error)
        })
    }

    fn run_site(&mut self) -> bool {
        self.run_site
            .call0()
            .and_then(|fit| fit.extract())
            .unwrap_or(false)
    }

    fn warm_up(&mut self) -> bool {
        self.warm_up
            .call0()
            .and_then(|more| more.extract())
            .unwrap_or(false)
    }

    fn knows(&mut self, lesson: &[u8]) -> bool {
        // What it can't read it need not import.
        self.knows
            .call1((lesson,))
            .and_then(|known| known.extract())
            .unwrap_or(true)
    }

    fn learn(&mut self, lesson: &[u8]) -> bool {
        self.learn
            .call1((lesson,))
            .and_then(|fit| fit.extract())
            .unwrap_or(false)
    }
}

/// The template's life. Returns None when it is over, and a seat in each worker that it forks.
#[pyfunction]
pub(crate) fn serve_template(
    fork: Bound<'_, PyAny>,
    run_site: Bound<'_, PyAny>,
    warm_up: Bound<'_, PyAny>,
    knows: Bound<'_, PyAny>,
    learn: Bound<'_, PyAny>,
) -> PyResult<Option<WorkerSeat>> {
    let mut nursery = Nursery::open()?;
    // Here, where there is one thread; workers inherit what is found.
    client_lock(fork.py());
    let seat = nursery.run(&mut PythonInterpreter {
        fork,
        run_site,
        warm_up,
        knows,
        learn,
    });
    // Dropped in the worker as well: none of the template's descriptors stay open there.
    drop(nursery);
    Ok(seat.map(|seat| WorkerSeat { seat: Some(seat) }))
}

/// Set where tasks of worker processes run, and in whatever such a process forks.
static IS_WORKER: AtomicBool = AtomicBool::new(false);

/// Whether this process is a worker.
pub(crate) fn is_worker() -> bool {
    IS_WORKER.load(Ordering::Relaxed)
}

/// The worker's life: returns when it is asked to retire.
#[pyfunction]
pub(crate) fn serve_worker(
    py: Python<'_>,
    seat: &Bound<'_, WorkerSeat>,
    hooks: Bound<'_, PyAny>,
) -> PyResult<bool> {
    let Some(seat) = seat.borrow_mut().seat.take() else {
        return Err(PyRuntimeError::new_err("this seat is taken"));
    };
    IS_WORKER.store(true, Ordering::Relaxed);
    let desk = Desk::sit(seat).map_err(broken)?;
    let hooks = Hooks {
        boot: hooks.getattr("boot")?,
        define: hooks.getattr("define")?,
        forget: hooks.getattr("forget")?,
        resolve: hooks.getattr("resolve")?,
        pack: hooks.getattr("pack")?,
        initializer_raised: hooks.getattr("initializer_raised")?,
        dumps: hooks.getattr("dumps")?,
        unreadable: hooks.getattr("unreadable")?,
        flush: hooks.getattr("flush")?,
        take_notices: hooks.getattr("take_notices")?,
        news: hooks.getattr("news")?,
        watch: hooks.getattr("watch")?,
    };
    Worker {
        py,
        desk,
        meter: None,
        timed: false,
        tally: Tally::default(),
        hooks,
        functions: HashMap::new(),
        current: None,
        passing: None,
        fresh: false,
        serving: false,
        answer: Vec::new(),
        placed: false,
        homes: codec::LentHomes::default(),
    }
    .run()
}

/// Where the interpreter keeps its lock: the words of its state that are one while this thread holds the lock and zero
/// while it does not. So its holder can be looked for without asking for the lock, which would disturb who is looked at.
fn client_lock(py: Python<'_>) -> ClientLock {
    static FOUND: OnceLock<ClientLock> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return found.clone();
    }
    let all = rightlane_runtime::sys::symbol::words(c"_PyRuntime").unwrap_or_default();
    let held = |word: &AtomicU32| word.load(Ordering::Relaxed) == 1;
    let mut words: Vec<&'static AtomicU32> = all.iter().filter(|word| held(word)).collect();
    for _ in 0..3 {
        py.detach(|| words.retain(|word| word.load(Ordering::Relaxed) == 0));
        words.retain(|word| held(word));
    }
    let start = all.as_ptr() as u64;
    let lock = ClientLock {
        words,
        area: start..start + size_of_val(all) as u64,
    };
    FOUND.get_or_init(|| lock).clone()
}

fn broken(error: WorkerError) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

/// What the loop asks of Python; see `rightlane._worker`.
struct Hooks<'py> {
    boot: Bound<'py, PyAny>,
    define: Bound<'py, PyAny>,
    forget: Bound<'py, PyAny>,
    resolve: Bound<'py, PyAny>,
    pack: Bound<'py, PyAny>,
    initializer_raised: Bound<'py, PyAny>,
    dumps: Bound<'py, PyAny>,
    unreadable: Bound<'py, PyAny>,
    flush: Bound<'py, PyAny>,
    take_notices: Bound<'py, PyAny>,
    news: Bound<'py, PyAny>,
    watch: Bound<'py, PyAny>,
}

/// A function that has been resolved.
#[derive(Clone)]
struct Function<'py> {
    object: Bound<'py, PyAny>,
    guard: Guard<'py>,
}

/// Whether somebody looks at what the calls of a function change (rule 3).
#[derive(Clone)]
enum Guard<'py> {
    /// Nobody has been asked.
    Unasked,
    Watched(Bound<'py, PyAny>),
    Done,
}

struct Worker<'py> {
    py: Python<'py>,
    desk: Desk,
    /// From the start of the initializer on.
    meter: Option<Meter>,
    /// Whether each call of the piece is timed, and the sums.
    timed: bool,
    tally: Tally,
    hooks: Hooks<'py>,
    /// Functions that have been resolved, by definition.
    functions: HashMap<u64, Function<'py>>,
    /// The one that the piece under way calls.
    current: Option<(u64, Function<'py>)>,
    /// Which of them must not outlast the piece that runs.
    passing: Option<u64>,
    /// A function was resolved, and nobody has looked yet at what it imported.
    fresh: bool,
    /// The initializer is behind it.
    serving: bool,
    /// Room for an answer's head, then its bytes; kept for its capacity.
    answer: Vec<u8>,
    /// Large buffers of it lie in shared memory.
    placed: bool,
    /// Homes among them.
    homes: codec::LentHomes,
}

impl<'py> Worker<'py> {
    /// True: retire in good order. False: end without further ado.
    fn run(&mut self) -> PyResult<bool> {
        let mut booted = false;
        loop {
            match self.next_message()? {
                Message::Boot { world } => {
                    self.hooks.boot.call1((&world[..],))?;
                }
                Message::Begin { initializer } => {
                    booted = true;
                    let clocks_only = std::env::var_os(CLOCKS_ONLY).is_some();
                    self.meter = Some(self.desk.meter(client_lock(self.py), clocks_only));
                    if !self.begin(initializer)? {
                        return Ok(false);
                    }
                }
                Message::Define { id, bytes } => {
                    self.hooks.define.call1((id, bytes))?;
                }
                Message::Forget { id } => {
                    self.functions.remove(&id);
                    self.hooks.forget.call1((id,))?;
                }
                Message::Piece(piece) => {
                    if !self.run_piece(piece)? {
                        return Ok(true);
                    }
                }
                Message::Retire => return Ok(booted),
            }
        }
    }

    fn next_message(&mut self) -> PyResult<Message> {
        loop {
            if let Some(message) = self.desk.try_next().map_err(broken)? {
                return Ok(message);
            }
            self.desk.tell_loans().map_err(broken)?;
            let desk = &mut self.desk;
            if self.py.detach(|| desk.wait()) == Waited::Interrupted {
                self.py.check_signals()?;
            }
        }
    }

    fn begin(&mut self, initializer: Option<(u64, Vec<u8>)>) -> PyResult<bool> {
        let begun_ns = rightlane_runtime::sys::now().0;
        if let Some((id, arguments)) = initializer {
            // From here on a death is the initializer's, not a failed boot (rule 10).
            self.desk.started().map_err(broken)?;
            let outcome = self.call(id, shape::SPREAD, Argument::Bytes(&arguments));
            self.flush();
            let raised = match outcome {
                Ok(_) => None,
                Err(Failed::Raised(error) | Failed::Unreadable(error)) => Some(error),
                Err(Failed::Outdated) => Some(PyRuntimeError::new_err(
                    "the module of the initializer is out of date in a worker that has just started",
                )),
            };
            if let Some(error) = raised {
                let told = &self.hooks.initializer_raised;
                let packed: Vec<u8> = told.call1((error.value(self.py),))?.extract()?;
                self.flush();
                self.desk.initializer_raised(&packed).map_err(broken)?;
                return Ok(false);
            }
        }
        self.serving = true;
        self.desk.ready().map_err(broken)?;
        self.tell_notices();
        self.tell_news(rightlane_runtime::sys::now().0 - begun_ns);
        Ok(true)
    }

    /// False: this worker is out of date, and ends.
    fn run_piece(&mut self, mut piece: Piece) -> PyResult<bool> {
        let head = piece.head;
        let begun_ns = rightlane_runtime::sys::now().0;
        let mut now_ns = begun_ns;
        let mut flushed_ns = begun_ns;
        let mut look_at_clock = 0;
        let mut skipped = Ok(());
        let shape = head.shape & !GENERATED;
        let mut numbers = piece
            .rule()
            .and_then(|(first, rule)| Numbers::from_rule(first, rule));
        let meter = self.meter.as_mut();
        let care = meter.map_or(Care::None, |meter| meter.begin(head.function));
        self.timed = care == Care::Watched;
        self.tally = Tally::default();
        for item in 0..head.items {
            // Before anything that belongs to the item is unpickled: user code may run there (rule 8).
            if !self.desk.claim(head.seq, item) {
                self.flush();
                self.end_piece(care, item, now_ns - begun_ns);
                self.desk.tell_loans().map_err(broken)?;
                skipped = self.desk.skipped(head.seq, item);
                break;
            }
            let argument = match &mut numbers {
                Some(numbers) => numbers.next().map(Argument::Number),
                None => piece.next_item().map(Argument::Bytes),
            };
            let Some(argument) = argument else {
                return Err(PyRuntimeError::new_err(
                    "a piece is shorter than its head says",
                ));
            };
            let Some(flavor) = self.run_item(head.function, shape, argument) else {
                self.flush();
                self.tell_notices();
                self.desk.refused(head.seq, item).map_err(broken)?;
                return Ok(false);
            };
            if forked() {
                // The task forked and came back in the child: the answer is its parent's to give.
                self.flush();
                exit_now(0);
            }
            let last = item + 1 == head.items;
            if last || item >= look_at_clock {
                now_ns = rightlane_runtime::sys::now().0;
                if last || now_ns - flushed_ns >= FLUSH_EVERY_NS {
                    // What a task wrote is out before its result is (rule 14). In a batch of tasks
                    // too short for that, lines go out as they are written, the rest within this time.
                    self.flush();
                    flushed_ns = now_ns;
                }
                let per_item_ns = (now_ns - begun_ns) / u64::from(item + 1);
                look_at_clock = item + 1 + (CLOCK_EVERY_NS / per_item_ns.max(1)).min(63) as u32;
            }
            let busy_ns = last.then_some(now_ns - begun_ns);
            if last {
                // Before the answer, so that whoever reads that has this.
                self.end_piece(care, head.items, now_ns - begun_ns);
                self.desk.tell_loans().map_err(broken)?;
            }
            self.publish(head.seq, item, flavor, busy_ns)?;
        }
        if let Some(passing) = self.passing.take() {
            self.functions.remove(&passing);
        }
        self.current = None;
        self.tell_news(now_ns - begun_ns);
        skipped.map_err(broken)?;
        Ok(true)
    }

    fn end_piece(&mut self, care: Care, calls: u32, busy_ns: u64) {
        let mut tally = std::mem::take(&mut self.tally);
        tally.calls = u64::from(calls);
        if !self.timed {
            tally.run_ns = busy_ns;
        }
        if let Some(meter) = &mut self.meter {
            meter.end(care, &tally);
        }
    }

    /// Where calls are timed, the time since, and now.
    fn lap(&self, since_ns: &mut u64) -> u64 {
        if !self.timed {
            return 0;
        }
        let now_ns = rightlane_runtime::sys::now().0;
        now_ns - std::mem::replace(since_ns, now_ns)
    }

    fn publish(&mut self, seq: u64, item: u32, flavor: u8, busy_ns: Option<u64>) -> PyResult<()> {
        // Who reads the answer may write there.
        for home in self.homes.take() {
            if let Some(home) = home.upgrade() {
                home.part_with();
            }
        }
        let mut bytes = std::mem::take(&mut self.answer);
        {
            let placed = std::mem::take(&mut self.placed);
            let desk = &self.desk;
            let mut answer = desk.answer(seq, item, flavor, placed, busy_ns, &mut bytes);
            while !self.desk.publish(&mut answer).map_err(broken)? {
                let desk = &mut self.desk;
                if self.py.detach(|| desk.wait_for_room()) == Waited::Interrupted {
                    self.py.check_signals()?;
                }
            }
        }
        // A large answer's memory goes back; a small one's is kept.
        if bytes.capacity() <= 1024 * 1024 {
            self.answer = bytes;
        }
        Ok(())
    }

    /// Runs one item and leaves its outcome in `answer`; returns the flavor. None if it must not be run here.
    fn run_item(&mut self, function: u64, shape: u32, argument: Argument<'_>) -> Option<u8> {
        let py = self.py;
        let outcome = self.call(function, shape, argument);
        // The head is written last; what lies there until then is no matter.
        self.answer.resize(self.answer.len().max(HEAD_BYTES), 0);
        self.answer.truncate(HEAD_BYTES);
        let mut clock_ns = 0;
        self.lap(&mut clock_ns);
        let raised = match outcome {
            Ok(value) => match self.write_value(&value) {
                Ok(()) => {
                    self.tally.pack_ns += self.lap(&mut clock_ns);
                    self.tally.result_bytes += (self.answer.len() - HEAD_BYTES) as u64;
                    return Some(flavor::RETURNED);
                }
                // An exit, raised by the result's own reduction, ends the task as one raised by its function.
                Err(error) if !error.is_instance_of::<PyException>(py) => error,
                Err(error) => return Some(self.write_unsendable(&error, "result")),
            },
            Err(Failed::Raised(error)) => error,
            Err(Failed::Unreadable(error)) => {
                self.write_unsendable(&error, "");
                return Some(flavor::UNREADABLE);
            }
            Err(Failed::Outdated) => return None,
        };
        self.answer.truncate(HEAD_BYTES);
        // `pack` never raises; should it do so all the same, the worker is at its end.
        let packed = self
            .hooks
            .pack
            .call1((raised.value(py),))
            .and_then(|packed| packed.extract::<Vec<u8>>());
        Some(match packed {
            Ok(packed) => {
                self.answer.extend_from_slice(&packed);
                flavor::RAISED
            }
            Err(error) => self.write_unsendable(&error, "exception"),
        })
    }

    fn call(
        &mut self,
        function: u64,
        shape: u32,
        argument: Argument<'_>,
    ) -> Result<Bound<'py, PyAny>, Failed> {
        let py = self.py;
        let guarding = shape & (shape::GUARDED | shape::STRICT);
        let shape = shape & !guarding;
        let current = match &self.current {
            Some((id, current)) if *id == function => current,
            _ => {
                let found = self.function(function).map_err(Failed::Unreadable)?;
                let found = found.ok_or(Failed::Outdated)?;
                if let Some(borrowed) = self.desk.borrowed() {
                    borrowed.enter(function);
                }
                &self.current.insert((function, found)).1
            }
        };
        let watched = guarding != 0 && !matches!(current.guard, Guard::Done);
        let object = current.object.clone();
        let mut clock_ns = 0;
        self.lap(&mut clock_ns);
        let argument = match argument {
            Argument::Bytes(bytes) => codec::decode_argument(py, bytes, self.desk.borrowed()),
            Argument::Number(number) => number
                .into_pyobject(py)
                .map(Bound::into_any)
                .map_err(PyErr::from),
        };
        let argument = argument.map_err(Failed::Unreadable)?;
        self.tally.unpack_ns += self.lap(&mut clock_ns);
        if watched {
            return self.call_watched(function, &object, shape, guarding, &argument);
        }
        self.call_timed(&object, shape, &argument)
    }

    /// Calls it, and nothing else within the times that are taken.
    fn call_timed(
        &mut self,
        function: &Bound<'py, PyAny>,
        shape: u32,
        argument: &Bound<'py, PyAny>,
    ) -> Result<Bound<'py, PyAny>, Failed> {
        if !self.timed {
            return call_as(function, shape, argument);
        }
        let cpu_ns = thread_cpu_ns();
        let mut clock_ns = 0;
        self.lap(&mut clock_ns);
        let called = call_as(function, shape, argument);
        self.tally.run_ns += self.lap(&mut clock_ns);
        self.tally.cpu_ns += thread_cpu_ns() - cpu_ns;
        called
    }

    /// One of the first calls of a function. Its notice is on its way before its answer is.
    #[cold]
    fn call_watched(
        &mut self,
        id: u64,
        function: &Bound<'py, PyAny>,
        shape: u32,
        guarding: u32,
        argument: &Bound<'py, PyAny>,
    ) -> Result<Bound<'py, PyAny>, Failed> {
        let py = self.py;
        let Some(watch) = self.watch(id, function, guarding & shape::STRICT != 0) else {
            return self.call_timed(function, shape, argument);
        };
        let (args, kwargs): (Bound<'_, PyTuple>, Option<Bound<'_, PyDict>>) = match shape {
            shape::ONE => {
                let args = PyTuple::new(py, [argument]).map_err(Failed::Unreadable)?;
                (args, None)
            }
            shape::SPREAD => (
                argument
                    .cast::<PyTuple>()
                    .map_err(|error| Failed::Unreadable(error.into()))?
                    .clone(),
                None,
            ),
            _ => argument.extract().map_err(Failed::Unreadable)?,
        };
        let refused = watch.call_method1("before", (args, kwargs));
        let refused = refused.map(|refused| (!refused.is_none()).then_some(refused));
        let called = match refused {
            Ok(Some(error)) => Err(Failed::Raised(PyErr::from_value(error))),
            _ => self.call_timed(function, shape, argument),
        };
        if forked() {
            // The parent speaks for both.
            return called;
        }
        type Seen<'py> = (Option<Vec<u8>>, bool, Option<Bound<'py, PyAny>>);
        let seen = watch.call_method0("after");
        match seen.and_then(|seen| seen.extract::<Seen<'py>>()) {
            Ok((notice, over, error)) => {
                if let Some(notice) = notice {
                    let _ = self.desk.notice(&notice);
                }
                if over {
                    self.set_guard(id, Guard::Done);
                }
                match error {
                    Some(error) => Err(Failed::Raised(PyErr::from_value(error))),
                    None => called,
                }
            }
            Err(_) => {
                self.set_guard(id, Guard::Done);
                called
            }
        }
    }

    /// Who watches the next call of a function, if anybody does.
    fn watch(
        &mut self,
        id: u64,
        function: &Bound<'py, PyAny>,
        strict: bool,
    ) -> Option<Bound<'py, PyAny>> {
        if let Some((_, current)) = &self.current
            && let Guard::Watched(watch) = &current.guard
        {
            return Some(watch.clone());
        }
        let asked = self.hooks.watch.call1((function, strict));
        let watch = asked.ok().filter(|watch| !watch.is_none());
        let guard = watch.clone().map_or(Guard::Done, Guard::Watched);
        self.set_guard(id, guard);
        watch
    }

    fn set_guard(&mut self, id: u64, guard: Guard<'py>) {
        if let Some(function) = self.functions.get_mut(&id) {
            function.guard = guard.clone();
        }
        if let Some((current, function)) = &mut self.current
            && *current == id
        {
            function.guard = guard;
        }
    }

    /// The function behind a definition. What has a state of its own lasts for one piece only. None if a worker that
    /// starts now would find what is wanted, and this one does not (rule 5).
    fn function(&mut self, id: u64) -> PyResult<Option<Function<'py>>> {
        if let Some(function) = self.functions.get(&id) {
            return Ok(Some(function.clone()));
        }
        let resolved = self.hooks.resolve.call1((id, self.serving))?;
        if resolved.is_none() {
            return Ok(None);
        }
        let (object, lasting): (Bound<'py, PyAny>, bool) = resolved.extract()?;
        let function = Function {
            object,
            guard: Guard::Unasked,
        };
        self.functions.insert(id, function.clone());
        self.fresh = true;
        self.tell_notices();
        if !lasting {
            self.passing = Some(id);
        }
        Ok(Some(function))
    }

    fn write_value(&mut self, value: &Bound<'py, PyAny>) -> PyResult<()> {
        if codec::encode_scalar(value, &mut self.answer) {
            return Ok(());
        }
        let homes = &self.homes;
        let placing = self.desk.results().cloned();
        let placing = placing.map(|arena| codec::Placing::Results(arena, homes.clone()));
        if let Some(placing) = &placing
            && codec::is_large_bytes(value)
            && let Some(part) = placing.place_bytes(value)?
        {
            self.place(vec![part]);
            self.answer.push(codec::PLACED_BYTES);
            return Ok(());
        }
        let mut pickled = match codec::pickle(value, placing.as_ref()) {
            Ok(pickled) if !codec::mentions_main(pickled.pickle.as_bytes()) => pickled,
            _ => {
                let pickle = self.hooks.dumps.call1((value,))?;
                codec::Pickled::plain(pickle.cast_into::<PyBytes>()?)
            }
        };
        let tag = pickled.place(placing.as_ref())?;
        if let Some(notice) = shortage::take_notice() {
            let _ = self.desk.notice(&notice);
        }
        let codec::Pickled { pickle, parts } = pickled;
        if !parts.is_empty() {
            self.place(parts);
        }
        self.answer.push(tag);
        if tag == codec::PICKLE {
            self.answer.extend_from_slice(pickle.as_bytes());
        }
        Ok(())
    }

    /// Has large buffers of a result travel beside it.
    fn place(&mut self, parts: Vec<codec::Part>) {
        self.tally.result_bytes += parts
            .iter()
            .map(|part| part.span.bytes() as u64)
            .sum::<u64>();
        let moved = codec::moved(&parts);
        let spans = parts.into_iter().map(|part| part.span);
        self.desk.place(spans, moved, &mut self.answer);
        self.placed = true;
    }

    /// Something could not be pickled or unpickled: that is this item's end, and nobody else's.
    fn write_unsendable(&mut self, error: &PyErr, what: &str) -> u8 {
        let py = self.py;
        self.answer.truncate(HEAD_BYTES);
        let told = self.hooks.unreadable.call1((error.value(py), what));
        let written = told.is_ok_and(|told| codec::encode_scalar(&told, &mut self.answer));
        if !written {
            self.answer.truncate(HEAD_BYTES);
            let text = describe(py, error);
            if let Ok(fallback) =
                (text.chars().take(500).collect::<String>(), what).into_pyobject(py)
            {
                codec::encode_scalar(fallback.as_any(), &mut self.answer);
            }
        }
        flavor::UNSENDABLE
    }

    fn flush(&self) {
        if let Err(error) = self.hooks.flush.call0() {
            error.write_unraisable(self.py, None);
        }
    }

    /// After a function's first use, and its answer: what it imported that templates should have (rule 19).
    fn tell_news(&mut self, took_ns: u64) {
        if std::mem::take(&mut self.fresh)
            && took_ns >= NEWS_NS
            && let Ok(news) = self.hooks.news.call0()
            && !news.is_none()
            && let Ok(bytes) = news.extract::<Vec<u8>>()
        {
            let _ = self.desk.notice(&bytes);
        }
    }

    fn tell_notices(&mut self) {
        // Almost always None. Asked for first: trying to read that as bytes imports `collections.abc`.
        if let Ok(notice) = self.hooks.take_notices.call0()
            && !notice.is_none()
            && let Ok(bytes) = notice.extract::<Vec<u8>>()
        {
            let _ = self.desk.notice(&bytes);
        }
    }
}

fn call_as<'py>(
    function: &Bound<'py, PyAny>,
    shape: u32,
    argument: &Bound<'py, PyAny>,
) -> Result<Bound<'py, PyAny>, Failed> {
    let py = function.py();
    let called = match shape {
        shape::ONE => call_item(function, argument, false),
        shape::SPREAD => call_item(function, argument, true),
        _ => {
            let (args, kwargs): (Bound<'_, PyTuple>, Option<Bound<'_, PyDict>>) =
                argument.extract().map_err(Failed::Unreadable)?;
            crate::executor::call(function, &args, kwargs.as_ref())
        }
    };
    called
        .map(|value| value.into_bound(py))
        .map_err(|exception| Failed::Raised(PyErr::from_value(exception.into_bound(py))))
}

/// What an item is made from.
enum Argument<'a> {
    Bytes(&'a [u8]),
    Number(i64),
}

enum Failed {
    /// The function raised.
    Raised(PyErr),
    /// The function or its arguments could not be unpickled.
    Unreadable(PyErr),
    /// This worker has imported what is not what the caller's process has any more.
    Outdated,
}
