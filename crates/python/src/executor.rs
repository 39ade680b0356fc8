//! One executor for Python: turns calls into work for the engine, and runs the lane threads.

use crate::cached::Cached;
use crate::codec;
use crate::definition::PyDefinition;
use crate::ffi;
use crate::future::{Origin, Slot, Stream, function_name, new_future};
use crate::guard::{self, Guarding};
use crate::map::{Feed, MapResults, MapState, Source};
use crate::moved::{Account, Load};
use crate::pool::{PoolMap, Shape};
use crate::profile::{self, Here, House, Profile, are_constant};
use crate::raw::serialization_error;
use crate::sent::Sweep;
use crate::shortage::{self, Patient};
use crate::{handover, known, remembered};
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple, PyType};
use rightlane_runtime::lane::{Ground, Measured, Place};
use rightlane_runtime::sys::futex::{self, Scope, Waited};
use rightlane_runtime::{
    Amount, Arena, Attended, Block, Breakage, CallId, End, Engine, Initializer, Limits, Loss,
    MaxPending, Patience, Plan, Refused, Room, Run, Single, Span, SubmitError, ThreadDone,
    ThreadNext, ThreadPiece,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How the worker half reads the items of a piece.
pub(crate) mod shape {
    /// Each item is the positional arguments, or a pickled pair of positional and keyword arguments.
    pub(crate) const CALL: u32 = 0;
    /// Each item is the one argument.
    pub(crate) const ONE: u32 = 1;
    /// Each item is a tuple of the positional arguments.
    pub(crate) const SPREAD: u32 = 2;
    /// Added to one of these: the function's first calls are watched (rule 3).
    pub(crate) const GUARDED: u32 = 1 << 8;
    /// ... and those that change shared state fail.
    pub(crate) const STRICT: u32 = 1 << 9;
}

/// An exit of the interpreter has begun: nothing new is accepted.
static EXITING: AtomicBool = AtomicBool::new(false);

/// Every executor that is not done: accepted work is finished, whether or not anybody still holds what it was
/// given to (rule 2).
static EXECUTORS: Mutex<Vec<Arc<Executor>>> = Mutex::new(Vec::new());

/// The executors that are not done.
fn open_executors() -> Vec<Arc<Executor>> {
    let (open, done) = {
        let mut executors = lock(&EXECUTORS);
        let all = std::mem::take(&mut *executors);
        let (done, open): (Vec<_>, Vec<_>) = all.into_iter().partition(|e| e.engine.is_drained());
        executors.clone_from(&open);
        (open, done)
    };
    // Outside the lock: what they hold may run anything when it goes.
    drop(done);
    open
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What becomes of what there is no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// It waits, unless its caller must not: then it is refused, or, by what stands for a pool of the standard library,
    /// accepted all the same.
    Ask,
    /// It is refused.
    Refuse,
    /// It waits, whoever the caller is.
    Wait,
}

/// An item whose arguments are not kept by the engine.
pub(crate) const ONE: Amount = Amount { items: 1, bytes: 0 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Auto,
    Process,
    Thread,
    Inline,
}

impl<'a, 'py> FromPyObject<'a, 'py> for Lane {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Lane> {
        let name: String = object.extract()?;
        match name.as_str() {
            "auto" => Ok(Lane::Auto),
            "process" => Ok(Lane::Process),
            "thread" => Ok(Lane::Thread),
            "inline" => Ok(Lane::Inline),
            _ => Err(PyValueError::new_err(format!("unknown lane {name:?}"))),
        }
    }
}

/// Where the ends of a call go.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// Single calls, each with a future of its own.
    Stream(Stream),
    /// The items of a map, in order.
    Map(Arc<MapState>),
    /// One item of a map that went its own way.
    MapItem(Arc<MapState>, u64),
    /// Consecutive items of a map that threads run instead of workers, from this one on.
    MapPart(Arc<MapState>, u64),
}

impl Ticket {
    /// Where it is noted what moving takes.
    fn account(&self) -> Option<&Account> {
        match self {
            Ticket::Stream(stream) => Some(&stream.origin.profile.as_ref()?.moved),
            Ticket::Map(map) | Ticket::MapItem(map, _) | Ticket::MapPart(map, _) => map.account(),
        }
    }
}

/// What a lane thread runs.
#[derive(Debug)]
pub(crate) enum Local {
    Call {
        function: Py<PyAny>,
        args: Py<PyTuple>,
        kwargs: Option<Py<PyDict>>,
        level: Level,
    },
    /// Single calls, in the order in which they were made.
    Stream { calls: Mutex<LocalCalls> },
    /// A map's function; its arguments are queued here until a thread takes them.
    Map {
        function: Py<PyAny>,
        spread: bool,
        items: Mutex<LocalItems>,
        level: Level,
        /// Where it was auto that chose a thread.
        here: Option<Here>,
    },
}

/// The calls of a lane threads' stream that have not ended.
#[derive(Debug, Default)]
pub(crate) struct LocalCalls {
    first: u64,
    calls: VecDeque<LocalCall>,
}

#[derive(Debug)]
enum LocalCall {
    Waiting {
        function: Py<PyAny>,
        args: Py<PyTuple>,
        kwargs: Option<Py<PyDict>>,
        level: Level,
        /// Where it was auto that chose a thread.
        here: Option<Here>,
    },
    Running(Py<PyAny>),
    Ended,
}

impl LocalCalls {
    fn push(&mut self, at: u64, call: LocalCall) {
        if self.calls.is_empty() {
            self.first = at;
        }
        debug_assert_eq!(
            self.first + self.calls.len() as u64,
            at,
            "calls come in order"
        );
        self.calls.push_back(call);
    }

    fn get(&mut self, at: u64) -> Option<&mut LocalCall> {
        self.calls.get_mut(at.checked_sub(self.first)? as usize)
    }

    /// Takes what a thread is to run.
    fn begin(&mut self, py: Python<'_>, at: u64) -> Option<LocalCall> {
        let call = self.get(at)?;
        let LocalCall::Waiting { function, .. } = call else {
            return None;
        };
        let running = LocalCall::Running(function.clone_ref(py));
        Some(std::mem::replace(call, running))
    }

    /// Forgets a call; returns what is to be dropped without the lock.
    #[must_use]
    fn end(&mut self, at: u64) -> Option<LocalCall> {
        let ended = self
            .get(at)
            .map(|call| std::mem::replace(call, LocalCall::Ended));
        while let Some(LocalCall::Ended) = self.calls.front() {
            self.calls.pop_front();
            self.first += 1;
        }
        ended
    }

    /// The functions of those that have not ended.
    fn functions(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        let open = self.calls.iter().filter_map(|call| match call {
            LocalCall::Waiting { function, .. } | LocalCall::Running(function) => Some(function),
            LocalCall::Ended => None,
        });
        open.map(|function| function.clone_ref(py)).collect()
    }
}

impl Local {
    /// The names of a stream's calls that have not ended.
    pub(crate) fn names(&self, py: Python<'_>) -> Vec<String> {
        let Local::Stream { calls } = self else {
            return Vec::new();
        };
        let functions = lock(calls).functions(py);
        let names = functions.iter().map(|f| function_name(f.bind(py)));
        names.collect()
    }

    /// Whether a thread runs this call of a stream.
    pub(crate) fn is_running(&self, at: u64) -> bool {
        match self {
            Local::Stream { calls } => matches!(lock(calls).get(at), Some(LocalCall::Running(_))),
            Local::Call { .. } | Local::Map { .. } => false,
        }
    }

    /// This call of a stream was cancelled.
    pub(crate) fn forget(&self, at: u64) {
        if let Local::Stream { calls } = self {
            let dropped = lock(calls).end(at);
            drop(dropped);
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct LocalItems {
    first: u64,
    items: VecDeque<Option<Py<PyAny>>>,
}

impl From<VecDeque<Option<Py<PyAny>>>> for LocalItems {
    fn from(items: VecDeque<Option<Py<PyAny>>>) -> LocalItems {
        LocalItems { first: 0, items }
    }
}

impl LocalItems {
    pub(crate) fn push(&mut self, item: Py<PyAny>) {
        self.items.push_back(Some(item));
    }

    fn take(&mut self, at: u64) -> Option<Py<PyAny>> {
        let item = self.items.get_mut((at - self.first) as usize)?.take();
        while matches!(self.items.front(), Some(None)) {
            self.items.pop_front();
            self.first += 1;
        }
        item
    }
}

/// What became of a call for auto.
enum Submitted {
    Sent(PyResult<()>),
    /// A lane thread is to run it.
    Kept(Here),
}

/// The engine's client.
#[derive(Debug)]
pub(crate) struct Client {
    guard: guard::Told,
}

impl rightlane_runtime::Client for Client {
    type Ticket = Ticket;
    type Local = Local;

    fn settle(&self, ticket: &Ticket, item: u64, end: End<'_>) {
        if let End::Answer { bytes, .. } = &end
            && let Some(account) = ticket.account()
        {
            account.answered(bytes);
        }
        match ticket {
            Ticket::Stream(stream) => stream.settle(item, end),
            Ticket::Map(map) => map.settle_remote(item, end),
            Ticket::MapItem(map, at) => map.settle(*at, end),
            Ticket::MapPart(map, from) => map.settle(from + item, end),
        }
    }

    fn settle_all(&self, ticket: &Ticket, items: Range<u64>, end: &End<'static>) {
        if let End::Lost(Loss {
            killed_by_user: false,
            ..
        }) = end
        {
            profile::died(match ticket {
                Ticket::Stream(stream) => stream.origin.definition,
                Ticket::Map(map) | Ticket::MapItem(map, _) | Ticket::MapPart(map, _) => {
                    map.definition()
                }
            });
        }
        match ticket {
            Ticket::Map(map) => map.settle_all(items, end),
            Ticket::Stream(_) | Ticket::MapItem(..) | Ticket::MapPart(..) => {
                for item in items {
                    self.settle(ticket, item, end.clone());
                }
            }
        }
    }

    fn settle_run(&self, ticket: &Ticket, first: u64, run: &Run) {
        if let Some(account) = ticket.account() {
            account.answered_run(run);
        }
        match ticket {
            Ticket::Map(map) => map.settle_run(first, run),
            Ticket::Stream(stream) => stream.settle_run(first, run),
            // One item: never more than an answer, which ends its piece. Threads do not answer in runs.
            Ticket::MapItem(..) | Ticket::MapPart(..) => {
                debug_assert!(false, "several answers to one item");
            }
        }
    }

    fn notice(&self, bytes: &[u8]) {
        if let Some(bytes) = bytes.strip_prefix(b"short\0") {
            shortage::note_worker(bytes);
            return;
        }
        if bytes == b"site" {
            rightlane_runtime::want_site();
            return;
        }
        if let Some(told) = bytes.strip_prefix(b"outdated\0") {
            if let Ok(told) = str::from_utf8(told)
                && let Some((template, subject)) = told.split_once('\0')
                && let Ok(template) = template.parse()
            {
                rightlane_runtime::unlearn(subject, template);
            }
            return;
        }
        if let Some(told) = bytes.strip_prefix(b"guard\0") {
            self.guard.notice(told);
            return;
        }
        // As `rightlane._preload` writes it: what each lesson imports, its subject first, then what is common to all.
        let mut parts = bytes.splitn(3, |byte| *byte == 0);
        if let (Some(b"learn"), Some(lessons), Some(common)) =
            (parts.next(), parts.next(), parts.next())
        {
            for names in lessons.split(|byte| *byte == b'\n') {
                let subject = names.split(|byte| *byte == b' ').next().unwrap_or(names);
                let what = [names, b"\0", common].concat();
                if let Ok(subject) = str::from_utf8(subject) {
                    rightlane_runtime::learn(subject, names, &what);
                }
            }
        }
    }

    fn measured(&self, definition: u64, epoch: u64, before: &Measured, now: &Measured) {
        profile::measured(definition, epoch, before, now);
    }

    fn cancel_in_child(&self, ticket: &Ticket) {
        match ticket {
            Ticket::Stream(stream) => stream.cancel_in_child(),
            Ticket::Map(map) | Ticket::MapItem(map, _) | Ticket::MapPart(map, _) => {
                map.cancel_in_child();
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) engine: Arc<Engine<Client>>,
    thread_initializer: Option<(Py<PyAny>, Py<PyTuple>)>,
    thread_name: String,
    threads: Mutex<Vec<Py<PyAny>>>,
    /// How many lane threads were ever started, and how many ended because there was nothing to do.
    threads_started: AtomicU32,
    threads_rested: AtomicU32,
    /// Whether it is one of those of `rightlane._shared`.
    shared: bool,
    /// Whether it stands for a pool of the standard library, which refuses nothing for want of room.
    standard: bool,
    /// Whether the user has said how much may be pending.
    pub(crate) max_pending: Option<u64>,
    /// What is done about functions that change shared state.
    pub(crate) guarding: Guarding,
    /// What choosing a lane depends on.
    pub(crate) house: House,
    /// The level of what its lane threads run, or more where the caller's is higher.
    task_level: Level,
    /// What a lane thread's initializer raised.
    thread_raised: Mutex<Option<Py<PyAny>>>,
    /// Inputs of maps that have not been read to their end.
    feeds: Mutex<Vec<Arc<Feed>>>,
    closed: AtomicBool,
}

impl Executor {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn is_running(&self, call: CallId, item: u64) -> bool {
        self.engine.is_running(call, item)
    }

    pub(crate) fn cancel(&self, call: CallId, item: u64) -> bool {
        self.engine.cancel(call, item)
    }

    fn refuses(&self) -> bool {
        EXITING.load(Ordering::Relaxed) || self.engine.refusal().is_some()
    }

    /// Why nothing is accepted, as an exception, if nothing is.
    pub(crate) fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        if EXITING.load(Ordering::Relaxed) {
            return Err(PyRuntimeError::new_err(
                "cannot schedule new futures after interpreter shutdown",
            ));
        }
        match self.engine.refusal() {
            None => Ok(()),
            Some(refused) => Err(self.refusal_error(py, refused)),
        }
    }

    fn refusal_error(&self, py: Python<'_>, refused: Refused) -> PyErr {
        match refused {
            Refused::ShutDown => PyRuntimeError::new_err(
                "cannot schedule new futures after shutdown; make a new Executor",
            ),
            Refused::Broken(breakage) => self.breakage_error(py, breakage),
        }
    }

    pub(crate) fn submit_error(&self, py: Python<'_>, error: SubmitError) -> PyErr {
        match error {
            SubmitError::Refused(refused) => self.refusal_error(py, refused),
            SubmitError::Os(error) => PyErr::from(error),
            SubmitError::Full(_) => self.queue_full(py, "there is no room"),
        }
    }

    /// Why nothing is accepted, or whether there is room for what takes none; waits for it as `when` says.
    fn admit(&self, py: Python<'_>, when: WhenFull) -> PyResult<()> {
        loop {
            if EXITING.load(Ordering::Relaxed) {
                return self.check_open(py);
            }
            match self.engine.admits() {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    if self.make_room(py, ONE, when, || self.refuses())? == Room::Beyond {
                        return Ok(());
                    }
                }
                Err(refused) => return Err(self.refusal_error(py, refused)),
            }
        }
    }

    /// There is no room for so much: waits until there may be, or says that it is to be accepted all the same, or
    /// raises `QueueFull`. `over`: nobody needs the room any more.
    pub(crate) fn make_room(
        &self,
        py: Python<'_>,
        more: Amount,
        when: WhenFull,
        over: impl Fn() -> bool,
    ) -> PyResult<Room> {
        match when {
            WhenFull::Refuse => return Err(self.queue_full(py, "submit() would wait")),
            WhenFull::Ask => {
                if let Some(why) = self.why_not_wait(py)? {
                    return match self.standard {
                        true => Ok(Room::Beyond),
                        false => Err(self.queue_full(py, why)),
                    };
                }
            }
            WhenFull::Wait => {}
        }
        let engine = &self.engine;
        let mut patience = Patience::default();
        // In this order: whoever makes it over from here on changes the word.
        while let Some((bell, seen)) = engine.wait_for_room(more)
            && !over()
        {
            let changed = || bell.load(Ordering::SeqCst) != seen;
            match py.detach(|| engine.attend(None, &mut patience, changed)) {
                Attended::Ready | Attended::TimedOut => {}
                Attended::Interrupted => py.check_signals()?,
                Attended::Taken => {
                    let watch = engine.watch();
                    let nap = crate::future::until_signals(None);
                    let waited = py.detach(|| futex::wait(bell, seen, nap, Scope::Private));
                    engine.unwatch(watch);
                    if waited != Waited::Woken {
                        py.check_signals()?;
                    }
                }
            }
        }
        Ok(Room::Needed)
    }

    /// There is no memory for a large buffer of an argument: waits a while for that of tasks that end, if there are any and
    /// `when` allows it.
    pub(crate) fn wait_for_memory(
        &self,
        py: Python<'_>,
        arena: &Arc<Arena>,
        bytes: usize,
        when: WhenFull,
    ) -> PyResult<Option<Span>> {
        let may = match when {
            WhenFull::Refuse => false,
            WhenFull::Ask => self.why_not_wait(py)?.is_none(),
            WhenFull::Wait => true,
        };
        if !may {
            return Ok(None);
        }
        let engine = &self.engine;
        let deadline = Instant::now() + shortage::MOST_WAIT;
        let mut patience = Patience::default();
        loop {
            // In this order: what is free again from here on changes the word.
            let seen = arena.vacancies().load(Ordering::SeqCst);
            let span = arena.reserve(bytes);
            let in_vain = || !shortage::may_end(arena, seen, engine.pending()) || self.refuses();
            if span.is_some() || in_vain() {
                return Ok(span);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                shortage::waited_in_vain(seen);
                return Ok(None);
            }
            let changed = || arena.vacancies().load(Ordering::SeqCst) != seen;
            match py.detach(|| engine.attend(Some(deadline), &mut patience, changed)) {
                Attended::Ready | Attended::TimedOut => {}
                Attended::Interrupted => py.check_signals()?,
                Attended::Taken => {
                    let watch = engine.watch();
                    let nap = crate::future::until_signals(Some(left));
                    let waited = py.detach(|| arena.wait_for_vacancy(seen, nap));
                    engine.unwatch(watch);
                    if waited != Waited::Woken {
                        py.check_signals()?;
                    }
                }
            }
        }
    }

    /// Why the caller must not wait for room, if it mustn't.
    fn why_not_wait(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        if crate::completion::is_here() {
            // It tells everybody of ends, and may not be kept from that.
            return Ok(Some("a callback must not wait"));
        }
        if LANE_OF.get() == std::ptr::from_ref(self) as usize {
            // The slot that it holds may be what others wait for.
            return Ok(Some("a task must not wait for its own executor"));
        }
        // Without cells that are filled at the first use: another thread may fork in that moment, and the child would
        // wait for the end of it.
        let modules = ffi::import(py, c"sys")?.getattr("modules")?;
        if let Ok(asyncio) = modules.get_item("asyncio.events")
            && !ffi::call_method(&asyncio, "_get_running_loop", ())?.is_none()
        {
            return Ok(Some("an event loop must not wait"));
        }
        Ok(None)
    }

    /// A `QueueFull`.
    fn queue_full(&self, py: Python<'_>, why: &str) -> PyErr {
        let (pending, most) = (self.engine.pending(), self.engine.most_pending());
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let message = format!(
            "{why}: {} tasks with {:.1} MiB of arguments are pending, \
             and at most {} with {:.1} MiB may be; try again when some have ended, or set max_pending",
            pending.items,
            mib(pending.bytes),
            most.items,
            mib(most.bytes)
        );
        let made = ffi::import(py, c"rightlane._errors")
            .and_then(|errors| ffi::call_method(&errors, "QueueFull", (message,)));
        made.map_or_else(|error| error, PyErr::from_value)
    }

    /// A `BrokenExecutor` with its cause.
    pub(crate) fn breakage_error(&self, py: Python<'_>, breakage: Breakage) -> PyErr {
        let report = self.engine.breakage(breakage);
        let message = match breakage {
            Breakage::InitializerRaised => {
                "the initializer raised an exception, so the executor can run nothing; \
                 make a new one with an initializer that succeeds"
                    .to_owned()
            }
            Breakage::InitializerDied(exit) => {
                format!(
                    "a worker died in the initializer ({}), so the executor can run nothing",
                    how(exit)
                )
            }
            Breakage::BootFailed(exit) => format!(
                "three workers in a row failed to start ({}); `rightlane doctor` shows what this machine allows",
                report.spawn_error.unwrap_or_else(|| how(exit))
            ),
        };
        let made = (|| -> PyResult<Bound<'_, PyAny>> {
            let errors = ffi::import(py, c"rightlane._errors")?;
            let error = ffi::call_method(&errors, "BrokenExecutor", (message,))?;
            // Not under the lock: what was raised is unpickled here, which may run anything.
            let raised = lock(&self.thread_raised)
                .as_ref()
                .map(|raised| raised.clone_ref(py));
            let cause = match (&report.raised, raised) {
                (Some(packed), _) => {
                    let remote = ffi::import(py, c"rightlane._remote")?;
                    Some(ffi::call_method(&remote, "unpack", (&packed[..],))?)
                }
                (None, raised) => raised.map(|raised| raised.into_bound(py)),
            };
            error.setattr("__cause__", cause)?;
            Ok(error)
        })();
        made.map_or_else(|error| error, PyErr::from_value)
    }

    /// Workers started from here on shall live in the caller's present world (rule 20).
    pub(crate) fn refresh_world(&self, py: Python<'_>) -> PyResult<()> {
        // Who looks at the world at each call has told it already, and what it tells must stay what it saw.
        if self.engine.wants_world(!self.shared) {
            let module = ffi::import(py, c"rightlane._world")?;
            let world = ffi::call_method(&module, "capture", ())?;
            self.engine.set_world(world.extract()?);
        }
        Ok(())
    }

    /// After a call for processes was accepted: has somebody answer what its tasks may ask (rule 21).
    pub(crate) fn attend_door(py: Python<'_>) {
        if rightlane_runtime::has_door() {
            let attended = ffi::import(py, c"rightlane._door")
                .and_then(|door| ffi::call_method(&door, "attend", ()));
            if let Err(error) = attended {
                error.write_unraisable(py, None);
            }
        }
    }

    fn submit(
        self: &Arc<Executor>,
        lane: Lane,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        class: Option<&Bound<'_, PyType>>,
        when: WhenFull,
    ) -> PyResult<Py<PyAny>> {
        let py = function.py();
        guard::tell(py)?;
        let lane = self.guarding.lane(lane, function)?;
        match lane {
            Lane::Inline => self.check_open(py)?,
            Lane::Auto | Lane::Process | Lane::Thread => self.admit(py, when)?,
        }
        let kwargs = kwargs.filter(|kwargs| !kwargs.is_empty());
        let (future, slot) = new_future(py, class)?;
        let known = match lane {
            Lane::Process | Lane::Auto => known::find(function),
            Lane::Thread | Lane::Inline => None,
        };
        if known.is_none() {
            check_function(function)?;
        }
        match lane {
            Lane::Inline => slot.settle_local(call(function, args, kwargs)),
            Lane::Thread => self.submit_thread(slot, function, args, kwargs, when, None)?,
            Lane::Process | Lane::Auto => {
                match self.submit_or_keep(lane, &slot, function, known, args, kwargs, when) {
                    Ok(Submitted::Sent(submitted)) => {
                        submitted?;
                        // A million pending futures would be walked again and again. Until it is observed or opened,
                        // this one refers to nothing of Python's.
                        ffi::untrack(future.bind(py));
                    }
                    Ok(Submitted::Kept(here)) => {
                        self.submit_thread(slot, function, args, kwargs, when, Some(here))?;
                    }
                    Err(error) if lane == Lane::Auto && is_unsendable(py, &error) => {
                        let profile = profile::of(function);
                        profile.unpicklable();
                        let here = Here::new(profile, false);
                        self.submit_thread(slot, function, args, kwargs, when, Some(here))?;
                    }
                    Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => {
                        return Err(error);
                    }
                    Err(error) => slot.settle_local(Err(as_serialization_error(
                        py,
                        error,
                        &function_name(function),
                    )?)),
                }
            }
        }
        Ok(future)
    }

    /// Has the engine accept an item, as soon as there is room for it.
    fn accept(
        &self,
        py: Python<'_>,
        when: WhenFull,
        mut submit: impl FnMut(Room) -> Result<(), SubmitError>,
    ) -> PyResult<()> {
        let mut room = Room::Needed;
        loop {
            match submit(room) {
                Ok(()) => return Ok(()),
                Err(SubmitError::Full(more)) => {
                    room = self.make_room(py, more, when, || self.refuses())?;
                    self.check_open(py)?;
                }
                Err(error) => return Err(self.submit_error(py, error)),
            }
        }
    }

    /// Sends a call to the workers, unless auto has it run in a thread. The outer error: it can't be sent.
    #[expect(clippy::too_many_arguments, reason = "a call, and what is known of it")]
    fn submit_or_keep(
        self: &Arc<Executor>,
        lane: Lane,
        slot: &Arc<Slot>,
        function: &Bound<'_, PyAny>,
        known: Option<Bound<'_, PyDefinition>>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        when: WhenFull,
    ) -> PyResult<Submitted> {
        let definition = match known {
            Some(known) => known,
            None => record(function)?,
        };
        let profile = definition.get().profile(function);
        if lane == Lane::Auto {
            profile.recall(function, &self.house)?;
        }
        if lane == Lane::Auto && profile.may_leave() {
            let id = definition.get().inner.id();
            let constant = || are_constant(args, kwargs);
            let (place, trusted) = profile.place(function, id, &self.house, false, constant)?;
            if place == Place::Thread {
                return Ok(Submitted::Kept(Here::new(profile.clone(), trusted)));
            }
        }
        let sent = self.submit_process(slot, function, &definition, profile, args, kwargs, when)?;
        Ok(Submitted::Sent(sent))
    }

    /// Where auto has the items of a map run, and whether it may do so whatever they are.
    pub(crate) fn place_map(
        &self,
        function: &Bound<'_, PyAny>,
        definition: u64,
        profile: &Profile,
    ) -> PyResult<(Place, bool)> {
        profile.recall(function, &self.house)?;
        if !profile.may_leave() && !profile.may_stay() {
            return Ok((Place::Process, false));
        }
        let caller = profile.may_stay() && !runs_event_loop(function.py())?;
        profile.place(function, definition, &self.house, caller, || true)
    }

    /// The outer error: it can't be sent.
    #[expect(clippy::too_many_arguments, reason = "a call, and what is known of it")]
    fn submit_process(
        self: &Arc<Executor>,
        slot: &Arc<Slot>,
        function: &Bound<'_, PyAny>,
        definition: &Bound<'_, PyDefinition>,
        profile: &Arc<Profile>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        when: WhenFull,
    ) -> PyResult<PyResult<()>> {
        let py = function.py();
        let name = definition.get().name(function);
        // Taken out of its cell while it is filled: pickling may run code that submits.
        let mut item = SCRATCH.take();
        let timed = profile.times_pickles().then(Instant::now);
        let buffers = Where::Arena {
            sweep: None,
            patient: Some((self, when)),
        };
        let shape = write_call(args, kwargs, buffers, &mut item);
        let load = Load::of(&item);
        if let (Some(begun), Ok(_)) = (timed, &shape) {
            profile.pickled(begun, item.size(), item.moved().is_some());
        }
        let submitted = shape.and_then(|shape| {
            self.refresh_world(py)?;
            Ok(self.accept(py, when, |room| {
                let single = Single {
                    function: &definition.get().inner,
                    shape: shape | self.guarding.flags(),
                    item: &mut item,
                };
                let open = |call| {
                    Ticket::Stream(Stream::new(Origin {
                        executor: self.clone(),
                        call,
                        name: name.clone(),
                        local: None,
                        definition: definition.get().inner.id(),
                        profile: Some(profile.clone()),
                    }))
                };
                self.engine.submit_single(single, room, open, |ticket, at| {
                    if let Ticket::Stream(stream) = ticket {
                        stream.join(slot, at);
                    }
                })
            }))
        });
        if let Ok(Ok(())) = &submitted {
            profile.moved.sent(&load);
        }
        item.clear();
        SCRATCH.set(item);
        Executor::attend_door(py);
        submitted
    }

    fn submit_thread(
        self: &Arc<Executor>,
        slot: Arc<Slot>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        when: WhenFull,
        here: Option<Here>,
    ) -> PyResult<()> {
        let py = function.py();
        self.accept(py, when, |room| {
            let open = |call| {
                let calls = Mutex::default();
                let local = Arc::new(Local::Stream { calls });
                let origin = Origin {
                    executor: self.clone(),
                    call,
                    name: "a task".into(),
                    local: Some(local.clone()),
                    definition: 0,
                    profile: None,
                };
                (Ticket::Stream(Stream::new(origin)), local)
            };
            let one = LocalCall::Waiting {
                function: function.clone().unbind(),
                args: args.clone().unbind(),
                kwargs: kwargs.map(|kwargs| kwargs.clone().unbind()),
                level: nesting().1,
                here: here.clone(),
            };
            let join = |ticket: &Ticket, local: &Local, at| {
                if let (Ticket::Stream(stream), Local::Stream { calls }) = (ticket, local) {
                    stream.join(&slot, at);
                    lock(calls).push(at, one);
                }
            };
            self.engine.submit_local_single(room, open, join)
        })?;
        self.start_threads(py).inspect_err(|_| {
            slot.withdraw();
        })
    }

    /// Accepts items for lane threads, and starts a thread if there are too few.
    pub(crate) fn submit_local(
        self: &Arc<Executor>,
        py: Python<'_>,
        local: Arc<Local>,
        items: u64,
        ticket: Ticket,
        plan: Plan,
    ) -> PyResult<CallId> {
        let submitted = self.engine.submit_local(local, items, ticket, plan);
        let call = submitted.map_err(|error| self.submit_error(py, error))?;
        if let Err(error) = self.start_threads(py) {
            self.engine.abandon(call);
            return Err(error);
        }
        Ok(call)
    }

    pub(crate) fn start_threads(self: &Arc<Executor>, py: Python<'_>) -> PyResult<()> {
        while self.engine.wants_thread() {
            let started = self.start_thread(py);
            if let Err(error) = started {
                self.engine.thread_ended();
                // Fewer threads than wanted still get through the work.
                return if lock(&self.threads).is_empty() {
                    Err(error)
                } else {
                    Ok(())
                };
            }
        }
        Ok(())
    }

    fn start_thread(self: &Arc<Executor>, py: Python<'_>) -> PyResult<()> {
        self.forget_rested_threads(py)?;
        let number = self.threads_started.fetch_add(1, Ordering::Relaxed);
        let keywords = PyDict::new(py);
        keywords.set_item(
            "target",
            Py::new(
                py,
                LaneThread {
                    executor: self.clone(),
                },
            )?,
        )?;
        keywords.set_item("name", format!("{}_{number}", self.thread_name))?;
        keywords.set_item("daemon", true)?;
        let class = ffi::import(py, c"threading")?.getattr("Thread")?;
        let thread = ffi::call(&class, &PyTuple::empty(py), Some(&keywords))?;
        ffi::call_method(&thread, "start", ())?;
        lock(&self.threads).push(thread.unbind());
        Ok(())
    }

    /// Drops the objects of threads that have ended while the executor goes on.
    fn forget_rested_threads(&self, py: Python<'_>) -> PyResult<()> {
        if self.threads_rested.swap(0, Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let known: Vec<_> = lock(&self.threads)
            .iter()
            .map(|thread| thread.clone_ref(py))
            .collect();
        let mut ended = Vec::new();
        for thread in known {
            if ffi::call_method(thread.bind(py), "is_alive", ())?.is_truthy()? {
                continue;
            }
            ended.push(thread);
        }
        let is_ended = |thread: &Py<PyAny>| ended.iter().any(|one| one.is(thread));
        let forgotten: Vec<_> = lock(&self.threads)
            .extract_if(.., |thread| is_ended(thread))
            .collect();
        // Outside the lock: what they refer to may run anything when it goes.
        drop(forgotten);
        Ok(())
    }

    pub(crate) fn add_feed(&self, feed: Arc<Feed>) {
        lock(&self.feeds).push(feed);
    }

    pub(crate) fn remove_feed(&self, feed: &Feed) {
        let removed = {
            let mut feeds = lock(&self.feeds);
            let at = feeds.iter().position(|known| std::ptr::eq(&**known, feed));
            at.map(|at| feeds.swap_remove(at))
        };
        drop(removed);
    }

    fn shut_down(self: &Arc<Executor>, cancel: bool, kill: bool) {
        if cancel || kill {
            let feeds = std::mem::take(&mut *lock(&self.feeds));
            for feed in &feeds {
                feed.cut_off();
            }
        } else {
            let feeds: Vec<_> = lock(&self.feeds).iter().cloned().collect();
            for feed in feeds {
                feed.end_with_executor();
            }
        }
        self.closed.store(true, Ordering::Relaxed);
        self.engine.shutdown(cancel, kill);
    }

    fn open_task_names(&self, py: Python<'_>) -> Vec<String> {
        let mut all = Vec::new();
        for (ticket, pid) in self.engine.open_calls() {
            let names = match &*ticket {
                Ticket::Stream(stream) => stream.names(py),
                Ticket::Map(map) | Ticket::MapItem(map, _) | Ticket::MapPart(map, _) => {
                    vec![format!("map of {}", map.name(py))]
                }
            };
            all.extend(names.into_iter().map(|name| match pid {
                Some(pid) => format!("{name} (worker {pid})"),
                None => name,
            }));
        }
        all
    }
}

fn how(exit: rightlane_runtime::Exit) -> String {
    match exit {
        rightlane_runtime::Exit::Code(code) => format!("exit code {code}"),
        rightlane_runtime::Exit::Signal(signal) => format!("signal {signal}"),
        rightlane_runtime::Exit::Unknown => "exit status unknown".to_owned(),
    }
}

/// The function inside `functools.partial` objects. Only of those: other objects may answer any attribute.
pub(crate) fn without_partials(mut function: Bound<'_, PyAny>) -> Bound<'_, PyAny> {
    static PARTIAL: Cached = Cached::new(c"functools", "partial");
    let py = function.py();
    for _ in 0..32 {
        let is_partial = PARTIAL
            .get(py)
            .and_then(|class| function.is_instance(class));
        if !is_partial.unwrap_or(false) {
            break;
        }
        let Ok(inner) = function.getattr(PyString::intern(py, "func")) else {
            break;
        };
        function = inner;
    }
    function
}

/// Refuses what no lane can run.
pub(crate) fn check_function(function: &Bound<'_, PyAny>) -> PyResult<()> {
    const CO_COROUTINE: u32 = 0x80;
    if !function.is_callable() {
        let kind = function.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "the first argument must be callable, not {kind}"
        )));
    }
    let innermost = without_partials(function.clone());
    let code = match innermost.getattr(PyString::intern(function.py(), "__code__")) {
        Ok(code) => code,
        Err(_) => return Ok(()),
    };
    let flags: u32 = code
        .getattr(PyString::intern(function.py(), "co_flags"))
        .and_then(|flags| flags.extract())
        .unwrap_or(0);
    if flags & CO_COROUTINE != 0 {
        let name = function_name(function);
        return Err(PyTypeError::new_err(format!(
            "{name} is a coroutine function (async def), which no lane runs yet; \
             submit a plain function, for example `lambda: asyncio.run({name}())`"
        )));
    }
    Ok(())
}

/// Whether an event loop runs in this thread: what runs here keeps it waiting.
fn runs_event_loop(py: Python<'_>) -> PyResult<bool> {
    // Not imported for the question: without it there is none.
    let modules = ffi::import(py, c"sys")?.getattr(PyString::intern(py, "modules"))?;
    match modules.get_item(PyString::intern(py, "asyncio")) {
        Ok(asyncio) => Ok(!ffi::call_method(&asyncio, "_get_running_loop", ())?.is_none()),
        Err(_) => Ok(false),
    }
}

pub(crate) fn call(
    function: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
) -> Result<Py<PyAny>, Py<PyAny>> {
    match ffi::call(function, args, kwargs) {
        Ok(value) => Ok(value.unbind()),
        Err(error) => Err(error.into_value(function.py()).into_any()),
    }
}

pub(crate) fn local_call(
    function: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
) -> Arc<Local> {
    Arc::new(Local::Call {
        function: function.clone().unbind(),
        args: args.clone().unbind(),
        kwargs: kwargs.map(|kwargs| kwargs.clone().unbind()),
        level: nesting().1,
    })
}

/// The record of a function: by reference first, by value where it must be.
pub(crate) fn record<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDefinition>> {
    static RECORD: Cached = Cached::new(c"rightlane._byvalue", "record");
    let definition = ffi::call1(RECORD.get(function.py())?, (function,))?;
    let definition = definition.cast_into::<PyDefinition>()?;
    definition.get().profile(function);
    known::remember(function, &definition)?;
    Ok(definition)
}

/// Where the large buffers of an item go.
pub(crate) enum Where<'a> {
    /// Into shared memory; of a map's item, in this sweep of its input.
    Arena {
        sweep: Option<&'a Arc<Sweep>>,
        /// Who may wait where memory is short.
        patient: Option<(&'a Arc<Executor>, WhenFull)>,
    },
    /// They stay where they are.
    Pickle,
}

/// Writes a value as one item of a block; what it refers to is noted there.
pub(crate) fn write_item(
    value: &Bound<'_, PyAny>,
    name: &str,
    buffers: Where<'_>,
    block: &mut Block,
) -> PyResult<()> {
    if block.try_push(|row| codec::encode_scalar(value, row)) {
        return Ok(());
    }
    let py = value.py();
    let placing = match buffers {
        Where::Arena { sweep, patient } => {
            let swept = sweep.filter(|sweep| sweep.turn_to(value));
            let patient = patient.map(|(executor, when)| Patient {
                executor: executor.clone(),
                when,
            });
            codec::Placing::arguments(swept.cloned(), patient)
        }
        Where::Pickle => None,
    };
    let placing = placing.as_ref();
    shortage::begin();
    if let Some(placing) = placing
        && codec::is_large_bytes(value)
        && codec::write_large_bytes(value, placing, block)?
    {
        return Ok(());
    }
    let byvalue = ffi::import(py, c"rightlane._byvalue")?;
    // A pickle that names what a worker can't import won't do.
    let suffices = |pickle: &Bound<'_, PyBytes>| {
        let asked = ffi::call_method(&byvalue, "plain_pickles_suffice", (pickle,));
        asked.and_then(|answer| answer.is_truthy())
    };
    let plain = match codec::pickle(value, placing) {
        Ok(pickled)
            if !codec::mentions_main(pickled.pickle.as_bytes()) && suffices(&pickled.pickle)? =>
        {
            Some(pickled)
        }
        Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => return Err(error),
        // A signal handler raised it.
        Err(error) if shortage::was_interrupted() => return Err(error),
        _ => None,
    };
    let pickled = match plain {
        Some(pickled) => pickled,
        None => {
            let dumped = ffi::call_method(&byvalue, "dumps", (value, name))?;
            let (pickle, needs): (Bound<'_, PyBytes>, Vec<Bound<'_, PyDefinition>>) =
                dumped.extract()?;
            for definition in needs {
                block.need(definition.get().inner.clone());
            }
            codec::Pickled::plain(pickle)
        }
    };
    codec::write_argument(pickled, placing, block)
}

thread_local! {
    /// Where the arguments of a call are written before the engine takes them over.
    static SCRATCH: RefCell<Block> = RefCell::default();
}

/// Writes the arguments of one call, and returns their shape.
fn write_call(
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
    buffers: Where<'_>,
    block: &mut Block,
) -> PyResult<u32> {
    match kwargs {
        None if args.len() == 1 && codec::is_large_bytes(&args.get_item(0)?) => {
            write_item(&args.get_item(0)?, "args[0]", buffers, block)?;
            Ok(shape::ONE)
        }
        None => {
            // Alone, so that a path in a message begins with the argument's number.
            write_item(args, "args", buffers, block)?;
            Ok(shape::SPREAD)
        }
        Some(_) => {
            write_item(&codec::call_payload(args, kwargs)?, "call", buffers, block)?;
            Ok(shape::CALL)
        }
    }
}

/// Whether the error says that something cannot travel.
pub(crate) fn is_unsendable(py: Python<'_>, error: &PyErr) -> bool {
    static CLASS: Cached = Cached::new(c"rightlane._byvalue", "Unsendable");
    CLASS
        .get(py)
        .is_ok_and(|class| error.matches(py, class).unwrap_or(false))
}

/// The `SerializationError` for what `_byvalue` could not pickle; other errors stay what they are.
pub(crate) fn as_serialization_error(
    py: Python<'_>,
    error: PyErr,
    name: &str,
) -> PyResult<Py<PyAny>> {
    if !is_unsendable(py, &error) {
        return Ok(error.into_value(py).into_any());
    }
    let value = error.value(py);
    let path: String = value.getattr("path")?.extract()?;
    let reason: String = value.getattr("reason")?.extract()?;
    let message = format!(
        "{path} of the call of {name} cannot be sent to a worker process: {reason}; \
         send something that can be pickled, or use lane=\"thread\""
    );
    let made = serialization_error(py, &message, &path)?;
    made.setattr(py, "__cause__", value.getattr("__cause__")?)?;
    Ok(made)
}

/// The `run` of a lane thread.
#[pyclass(frozen)]
#[derive(Debug)]
struct LaneThread {
    executor: Arc<Executor>,
}

#[pymethods]
impl LaneThread {
    fn __call__(&self, py: Python<'_>) {
        handover::lane_begins();
        self.run(py);
        handover::lane_ends();
    }
}

impl LaneThread {
    fn run(&self, py: Python<'_>) {
        let executor = &self.executor;
        let engine = &executor.engine;
        TASK_LEVEL.set(Some(executor.task_level));
        LANE_OF.set(Arc::as_ptr(executor) as usize);
        if let Some((initializer, args)) = &executor.thread_initializer
            && let Err(error) = ffi::call(initializer.bind(py), args.bind(py), None)
        {
            log_initializer(py, &error);
            *lock(&executor.thread_raised) = Some(error.into_value(py).into_any());
            engine.thread_initializer_raised();
            engine.thread_ended();
            return;
        }
        let process = std::process::id();
        let mut done = None;
        loop {
            match engine.thread_next(done.take()) {
                ThreadNext::Run(piece) => {
                    done = Some(run_piece(py, executor, piece));
                    if std::process::id() != process {
                        // The task forked and came back in the child, where this pool does not exist.
                        end_forked_task(py);
                    }
                }
                ThreadNext::Wait(seen) => {
                    let woken =
                        py.detach(|| handover::lane_waits(|| engine.wait_for_thread_work(seen)));
                    if !woken && engine.thread_may_end() {
                        executor.threads_rested.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                }
                ThreadNext::End => break,
            }
        }
        engine.thread_ended();
    }
}

/// Which of the shared executors a task in a thread may wait for. One that runs on a thread of these takes the next
/// one, or it would wait for its own slot; so does whatever it has other executors' threads run, and waits for.
pub(crate) type Level = u32;

thread_local! {
    /// In a lane thread, the level of the task that runs.
    static TASK_LEVEL: Cell<Option<Level>> = const { Cell::new(None) };

    /// In a lane thread, where its executor lies; else 0.
    static LANE_OF: Cell<usize> = const { Cell::new(0) };
}

/// Whether the caller runs in a task, and its level.
#[pyfunction]
pub(crate) fn nesting() -> (bool, Level) {
    let level = TASK_LEVEL.get();
    (
        level.is_some() || crate::worker::is_worker(),
        level.unwrap_or(0),
    )
}

/// Ends a forked child that a task left running: its answer is its parent's to give.
fn end_forked_task(py: Python<'_>) -> ! {
    for name in ["stdout", "stderr"] {
        let flushed = ffi::import(py, c"sys")
            .and_then(|sys| ffi::call_method(&sys.getattr(name)?, "flush", ()));
        drop(flushed);
    }
    rightlane_runtime::sys::process::exit_now(0)
}

fn log_initializer(py: Python<'_>, error: &PyErr) {
    let logged = (|| -> PyResult<()> {
        let logger = ffi::import(py, c"concurrent.futures._base")?.getattr("LOGGER")?;
        let details = PyDict::new(py);
        // A value by itself has no traceback before Python 3.12.
        details.set_item("exc_info", error.clone_ref(py).into_value(py))?;
        let message = ("Exception in initializer:",).into_pyobject(py)?;
        ffi::call(&logger.getattr("critical")?, &message, Some(&details))?;
        Ok(())
    })();
    drop(logged);
}

fn run_piece(py: Python<'_>, executor: &Executor, piece: ThreadPiece<Client>) -> ThreadDone {
    let of_caller = |level: Level| TASK_LEVEL.set(Some(executor.task_level.max(level)));
    let begun = Instant::now();
    let mut ran = 0;
    let mut rest = piece.items.end..piece.items.end;
    for item in piece.items.clone() {
        if piece.is_abandoned() {
            rest = item..piece.items.end;
            break;
        }
        ran += 1;
        let outcome = match &*piece.local {
            Local::Call {
                function,
                args,
                kwargs,
                level,
            } => {
                of_caller(*level);
                call(
                    function.bind(py),
                    args.bind(py),
                    kwargs.as_ref().map(|kwargs| kwargs.bind(py)),
                )
            }
            Local::Stream { calls } => {
                let begun = lock(calls).begin(py, item);
                match begun {
                    Some(LocalCall::Waiting {
                        function,
                        args,
                        kwargs,
                        level,
                        here,
                    }) => {
                        of_caller(level);
                        Here::run(here.as_ref(), py, || {
                            call(
                                function.bind(py),
                                args.bind(py),
                                kwargs.as_ref().map(|kwargs| kwargs.bind(py)),
                            )
                        })
                    }
                    _ => Err(crate::raw::bug("a call of a thread is gone")
                        .into_value(py)
                        .into_any()),
                }
            }
            Local::Map {
                function,
                spread,
                items,
                level,
                here,
            } => {
                of_caller(*level);
                let taken = lock(items).take(item);
                match taken {
                    Some(argument) => Here::run(here.as_ref(), py, || {
                        call_item(function.bind(py), argument.bind(py), *spread)
                    }),
                    None => Err(crate::raw::bug("an item of a map is gone")
                        .into_value(py)
                        .into_any()),
                }
            }
        };
        // Before anybody can see that it has ended.
        executor.engine.thread_item_ends();
        match &*piece.ticket {
            Ticket::Stream(stream) => {
                piece.local.forget(item);
                stream.settle_local(item, outcome);
            }
            Ticket::Map(map) => map.settle_local(py, item, outcome),
            Ticket::MapItem(map, at) => map.settle_local_at(py, *at, outcome),
            Ticket::MapPart(map, from) => map.settle_local_at(py, from + item, outcome),
        }
        executor.engine.nudge();
    }
    let busy_ns = begun.elapsed().as_nanos().min(u128::from(u64::MAX)) as u64;
    ThreadDone {
        call: piece.call,
        ran,
        rest,
        busy_ns,
    }
}

/// Calls a map's function with one item.
pub(crate) fn call_item(
    function: &Bound<'_, PyAny>,
    argument: &Bound<'_, PyAny>,
    spread: bool,
) -> Result<Py<PyAny>, Py<PyAny>> {
    let called = if spread {
        argument
            .cast::<PyTuple>()
            .map_err(PyErr::from)
            .and_then(|args| ffi::call(function, args, None))
    } else {
        ffi::call_one(function, argument)
    };
    match called {
        Ok(value) => Ok(value.unbind()),
        Err(error) => Err(error.into_value(function.py()).into_any()),
    }
}

/// The engine of one `rightlane.Executor`.
#[pyclass(name = "Engine", module = "rightlane._core", frozen)]
#[derive(Debug)]
pub(crate) struct PyEngine {
    executor: Arc<Executor>,
    /// Whether the executor ends when this goes.
    owner: bool,
}

#[pymethods]
impl PyEngine {
    /// `prepare` says whether worker processes are likely, so that the template is started at once.
    #[new]
    /// `idle_s`: after so many seconds an idle worker process or lane thread ends. `shared`: it is told of each change
    /// of the caller's world by `turn_world`, and its tasks must not wait for others of it. `max_pending`: 0 lifts
    /// every bound. `standard`: where a caller must not wait for room, its calls are accepted without. `guarding`: what
    /// is done about functions that change shared state, which nobody looks for if it is None. `capped`: the user has set the number of
    /// workers. `profiles`: what automatic choice knows comes from earlier runs as well, and is kept for later ones.
    #[pyo3(signature = (
        max_workers, prepare, initializer, initargs, thread_name, max_tasks_per_child=None, idle_s=None,
        shared=false, max_pending=None, standard=false, guarding=None, capped=true, profiles=true,
    ))]
    #[expect(clippy::too_many_arguments, reason = "the face checks and names them")]
    fn new(
        max_workers: u32,
        prepare: bool,
        initializer: Option<Bound<'_, PyAny>>,
        initargs: Bound<'_, PyTuple>,
        thread_name: String,
        max_tasks_per_child: Option<u64>,
        idle_s: Option<f64>,
        shared: bool,
        max_pending: Option<u64>,
        standard: bool,
        guarding: Option<Guarding>,
        capped: bool,
        profiles: bool,
    ) -> PyResult<PyEngine> {
        let guarding = guarding.unwrap_or(Guarding::Off);
        if max_workers == 0 || max_tasks_per_child == Some(0) {
            return Err(PyValueError::new_err("limits must be at least 1"));
        }
        let idle = idle_s.map(Duration::try_from_secs_f64).transpose();
        let limits = Limits {
            max_slots: max_workers,
            items_per_worker: max_tasks_per_child,
            idle: idle.map_err(|error| PyValueError::new_err(error.to_string()))?,
            max_pending: match max_pending {
                None => MaxPending::Default,
                Some(0) => MaxPending::Unbounded,
                Some(items) => MaxPending::Items(items),
            },
        };
        let remote = match (&initializer, prepare) {
            (Some(function), true) => Some(remote_initializer(function, &initargs)?),
            // Worker processes are possible through `options`, where it can be sent.
            (Some(function), false) => remote_initializer(function, &initargs).ok(),
            (None, _) => None,
        };
        let house = House {
            ground: Ground {
                slots: max_workers,
                threads: max_workers,
                capped,
                cores: rightlane_runtime::cores(),
            },
            setup: initializer.is_some() || max_tasks_per_child.is_some(),
            remembers: profiles,
        };
        let engine = Engine::new(
            Client {
                guard: guard::Told::new(guarding),
            },
            limits,
            remote,
        );
        if prepare {
            engine.prepare_processes()?;
            if profiles {
                // While the template starts on another core.
                remembered::memory(initargs.py());
            }
        }
        let executor = Arc::new(Executor {
            engine,
            thread_initializer: initializer.map(|function| (function.unbind(), initargs.unbind())),
            thread_name,
            threads: Mutex::default(),
            threads_started: AtomicU32::new(0),
            threads_rested: AtomicU32::new(0),
            shared,
            standard,
            max_pending: max_pending.filter(|items| *items > 0),
            guarding,
            house,
            task_level: nesting().1 + u32::from(shared),
            thread_raised: Mutex::default(),
            feeds: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        open_executors();
        lock(&EXECUTORS).push(executor.clone());
        Ok(PyEngine {
            executor,
            owner: true,
        })
    }

    /// Accepts one call and returns its future, of a class that inherits from `rightlane.Future`, or of that one.
    #[pyo3(signature = (lane, function, args, kwargs, future_class=None))]
    fn submit(
        &self,
        lane: Lane,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        future_class: Option<&Bound<'_, PyType>>,
    ) -> PyResult<Py<PyAny>> {
        let when = WhenFull::Ask;
        self.executor
            .submit(lane, function, args, kwargs, future_class, when)
    }

    /// The same, but raises `QueueFull` where that would wait.
    #[pyo3(signature = (lane, function, args, kwargs))]
    fn try_submit(
        &self,
        lane: Lane,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let when = WhenFull::Refuse;
        self.executor
            .submit(lane, function, args, kwargs, None, when)
    }

    /// How many tasks are accepted and have not ended, and how many bytes are kept for them.
    #[getter]
    fn pending(&self) -> (u64, u64) {
        let pending = self.executor.engine.pending();
        (pending.items, pending.bytes)
    }

    /// How many may be.
    #[getter]
    fn most_pending(&self) -> (u64, u64) {
        let most = self.executor.engine.most_pending();
        (most.items, most.bytes)
    }

    /// Takes this for the memory that is free when the bounds are first needed; for tests.
    fn assume_memory(&self, free_bytes: u64) {
        self.executor.engine.assume_memory(free_bytes);
    }

    /// Accepts a map of a pool. `iterable`: the input, which is read now; None if it comes through an inlet.
    /// `convert`: makes the errors to raise out of those that come.
    #[pyo3(signature = (lane, function, iterable, spread, unordered, chunksize, convert))]
    #[expect(clippy::too_many_arguments, reason = "the face checks and names them")]
    fn pool_map(
        &self,
        lane: Lane,
        function: &Bound<'_, PyAny>,
        iterable: Option<Bound<'_, PyAny>>,
        spread: bool,
        unordered: bool,
        chunksize: Option<u64>,
        convert: Option<Py<PyAny>>,
    ) -> PyResult<PoolMap> {
        let py = function.py();
        self.executor.check_open(py)?;
        check_function(function)?;
        let shape = Shape {
            fed: iterable.is_none(),
            unordered,
        };
        let iterable = iterable.unwrap_or_else(|| PyTuple::empty(py).into_any());
        let source = Source::new(&self.executor, lane, function, iterable, spread, chunksize)?;
        PoolMap::start(py, self.executor.clone(), function, source, &shape, convert)
    }

    /// Accepts a map and returns its iterator. `sized`: the whole input is read now. `window`: how many items may
    /// be read and not yet yielded.
    #[pyo3(signature = (lane, function, iterable, spread, sized, window, timeout, chunksize))]
    #[expect(clippy::too_many_arguments, reason = "the face checks and names them")]
    fn map(
        &self,
        lane: Lane,
        function: &Bound<'_, PyAny>,
        iterable: Bound<'_, PyAny>,
        spread: bool,
        sized: bool,
        window: Option<usize>,
        timeout: Option<f64>,
        chunksize: Option<u64>,
    ) -> PyResult<MapResults> {
        let py = function.py();
        self.executor.check_open(py)?;
        check_function(function)?;
        guard::tell(py)?;
        let lane = self.executor.guarding.lane(lane, function)?;
        let source = Source::new(&self.executor, lane, function, iterable, spread, chunksize)?;
        MapResults::start(
            py,
            self.executor.clone(),
            function,
            source,
            sized,
            window,
            timeout,
        )
    }

    /// Starts workers ahead of their work, until there are so many.
    fn start_workers(&self, py: Python<'_>, count: u32) -> PyResult<()> {
        self.executor.refresh_world(py)?;
        self.executor.engine.start_workers(count)?;
        Executor::attend_door(py);
        Ok(())
    }

    /// Takes no more work. Does not wait.
    fn close(&self, cancel: bool, kill: bool) {
        self.executor.shut_down(cancel, kill);
    }

    /// Reads every map's input to its end, as `shutdown(wait=True)` promises (rule 1).
    fn read_on(&self, py: Python<'_>) -> PyResult<()> {
        loop {
            let Some(feed) = lock(&self.executor.feeds)
                .iter()
                .find(|feed| feed.is_open_ended())
                .cloned()
            else {
                return Ok(());
            };
            feed.read_to_end(py)?;
        }
    }

    /// Waits until everything accepted is done and every worker is gone. False when `timeout` seconds are over.
    fn wait_drained(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let deadline = crate::future::deadline_after(timeout)?;
        let engine = &self.executor.engine;
        loop {
            let seen = engine.drained_bell().load(Ordering::SeqCst);
            let drained = engine.is_drained();
            let ending = engine.hub_ending();
            if drained && ending.is_none() {
                return Ok(true);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            let bell = engine.drained_bell();
            let nap = crate::future::until_signals(left);
            let waited = py.detach(|| match ending {
                Some(ending) => ending.wait(nap),
                None => futex::wait(bell, seen, nap, Scope::Private),
            });
            if waited != Waited::Woken {
                py.check_signals()?;
            }
        }
    }

    /// The lane threads, so that they can be joined.
    fn threads(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        lock(&self.executor.threads)
            .iter()
            .map(|thread| thread.clone_ref(py))
            .collect()
    }

    /// The pids of the workers that live and were not told to end, in the order of their start.
    fn worker_pids(&self) -> Vec<i32> {
        self.executor.engine.worker_pids()
    }

    /// Sends a signal to every worker process; what it does to a task there is the task's end.
    fn signal_workers(&self, signal: i32) -> PyResult<()> {
        if self.executor.engine.signal_workers(signal) {
            return Ok(());
        }
        let message = format!("{signal} is not the number of a signal; use one of signal.Signals");
        Err(PyValueError::new_err(message))
    }

    /// The caller's world has changed since it was captured last: what is accepted from now on runs on workers that
    /// are forked in this one, what was accepted before on workers of its own.
    fn turn_world(&self, world: &[u8]) {
        self.executor.engine.turn_world(world);
    }

    /// The workers that are not ending, as pid and a pidfd that is the caller's; whether more are being started.
    fn worker_handles(&self) -> PyResult<(Vec<(i32, i32)>, bool)> {
        let (handles, awaited) = self.executor.engine.worker_handles()?;
        let handles = handles.into_iter();
        let handles = handles.map(|(pid, pidfd)| (pid, pidfd.into_raw_fd()));
        Ok((handles.collect(), awaited))
    }

    /// The same engine, to look at: it does not end when this goes.
    fn view(&self) -> PyEngine {
        PyEngine {
            executor: self.executor.clone(),
            owner: false,
        }
    }

    /// Why the executor can run nothing any more, in words, if it can't.
    #[getter]
    fn breakage(&self, py: Python<'_>) -> Option<String> {
        match self.executor.engine.refusal() {
            Some(Refused::Broken(breakage)) => {
                let error = self.executor.breakage_error(py, breakage);
                Some(error.value(py).to_string())
            }
            _ => None,
        }
    }

    /// What is known of a function, and where auto would run its next call, as `rightlane._explain` reads it.
    fn explain<'py>(&self, function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        self.executor.engine.look();
        profile::explain(function, &self.executor.house)
    }

    /// What is accepted and has not ended, by name.
    fn open_tasks(&self, py: Python<'_>) -> Vec<String> {
        self.executor.open_task_names(py)
    }

    /// Whether it can run nothing any more.
    #[getter]
    fn broken(&self) -> bool {
        matches!(self.executor.engine.refusal(), Some(Refused::Broken(_)))
    }

    /// Whether everything is over.
    #[getter]
    fn drained(&self) -> bool {
        self.executor.engine.is_drained()
    }
}

impl Drop for PyEngine {
    fn drop(&mut self) {
        // A collected executor finishes what it has accepted, then retires (rule 2).
        if self.owner && !self.executor.closed.load(Ordering::Relaxed) {
            self.executor.shut_down(false, false);
        }
    }
}

fn remote_initializer(
    function: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
) -> PyResult<Initializer> {
    let py = function.py();
    // It is sent to every worker there will ever be, also of a forked child: nothing of it lies in shared memory.
    let outer = codec::keep_in_band(true);
    let made = (|| {
        let function = record(function)?;
        let mut items = Block::new();
        write_call(args, None, Where::Pickle, &mut items)?;
        let (arguments, needs) = items.into_only_item();
        Ok(Initializer {
            function: function.get().inner.clone(),
            arguments,
            needs,
        })
    })();
    codec::keep_in_band(outer);
    made.map_err(
        |error: PyErr| match as_serialization_error(py, error, "the initializer") {
            Ok(exception) => PyErr::from_value(exception.into_bound(py)),
            Err(error) => error,
        },
    )
}

/// The interpreter's exit has begun: nothing new is accepted from here on. Returns the engines that are not done.
#[pyfunction]
pub(crate) fn begin_exit(py: Python<'_>) -> PyResult<Vec<Py<PyEngine>>> {
    EXITING.store(true, Ordering::Relaxed);
    let engines = open_executors().into_iter();
    engines
        .map(|executor| {
            let owner = true;
            Py::new(py, PyEngine { executor, owner })
        })
        .collect()
}

/// Whether any executor is not done yet.
pub(crate) fn any_open() -> bool {
    let executors = lock(&EXECUTORS);
    executors
        .iter()
        .any(|executor| !executor.engine.is_drained())
}

/// Ends the completion thread, unless an executor still needs it: then it returns false.
#[pyfunction]
pub(crate) fn retire_completions(py: Python<'_>) -> PyResult<bool> {
    drop(open_executors());
    // Nothing between the question and the stop lets another thread run.
    if any_open() {
        return Ok(false);
    }
    crate::completion::stop_completions(py)?;
    Ok(true)
}

thread_local! {
    /// The hooks around a fork run in the thread that forks.
    static FORKING: RefCell<Option<rightlane_runtime::ForkGuard>> = const { RefCell::new(None) };
}

/// Before the user's process forks: nobody is in the middle of anything.
#[pyfunction]
pub(crate) fn before_fork(py: Python<'_>) {
    let guard = loop {
        if let Some(guard) = rightlane_runtime::try_before_fork() {
            break guard;
        }
        // Another thread is about to fork as well, and may need the interpreter to get there.
        py.detach(rightlane_runtime::wait_for_fork);
    };
    FORKING.set(Some(guard));
}

/// After it, in the parent.
#[pyfunction]
pub(crate) fn after_fork_in_parent() {
    drop(FORKING.take());
}

/// After it, in the child: a working, empty engine (invariant 6).
#[pyfunction]
pub(crate) fn after_fork_in_child(py: Python<'_>) {
    let Some(guard) = FORKING.take() else { return };
    rightlane_runtime::begin_in_child();
    let executors = lock(&EXECUTORS).clone();
    for executor in executors {
        let feeds = std::mem::take(&mut *lock(&executor.feeds));
        let threads = std::mem::take(&mut *lock(&executor.threads));
        for feed in &feeds {
            feed.forked_child(py);
        }
        drop((feeds, threads));
        executor.engine.reset_in_child();
    }
    crate::sent::forked_child();
    handover::forked_child();
    guard::forked_child();
    crate::completion::forked_child();
    rightlane_runtime::forked_child(guard);
}
