//! Maps: reading the input, keeping the ends, yielding them in order.
//!
//! Three objects share a map. [`MapState`] keeps what has ended and is not yielded (in `kept`); the engine writes
//! to it.
//! [`Feed`] reads the user's input, always in a thread of the user's, never in one of ours. [`MapResults`] is
//! the iterator that the user holds.
//!
//! The input is read at the call: all of it where its length is known, else as far as the window lets it; the
//! rest as results are yielded, and by `shutdown(wait=True)` (rule 1). Items are serialised as they are read, and
//! handed to the engine in growing blocks, so that workers begin while the reading goes on.
//!
//! Where the engine has no room for a block, whoever reads all of an input waits. Whoever reads ahead leaves the
//! block with the source, stops, and looks again when a result is taken: waiting would be of no use, because results
//! that nobody takes count as well.

use crate::codec;
use crate::executor::{
    Client, Executor, Lane, Local, LocalItems, ONE, Ticket, WhenFull, Where,
    as_serialization_error, call_item, is_unsendable, local_call, lock, nesting, record, shape,
    write_item,
};
use crate::ffi;
use crate::future::{Slot, deadline_after, function_name};
use crate::guard;
use crate::kept::{Entry, Kept, Part};
use crate::moved::{Account, Load};
use crate::profile::{self, Here, Profile, is_constant};
use crate::raw::{Raw, cancelled_error};
use crate::sent::Sweep;
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyStopIteration, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::{PyRange, PySlice, PyString, PyTuple};
use rightlane_runtime::bounds::LEAST_BYTES;
use rightlane_runtime::lane::Place;
use rightlane_runtime::sys::clock::coarse_ns;
use rightlane_runtime::sys::clocks::own_delay_ns;
use rightlane_runtime::sys::futex::{self, Scope, Waited};
use rightlane_runtime::{
    Amount, Attended, Block, CallId, Definition, End, Engine, Patience, Plan, Remote, Room, Run,
};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How far an input of unknown length is read ahead of the iteration (rule 1).
pub(crate) const READ_AHEAD_ITEMS: usize = 10_000;

/// And how many bytes of arguments and results, unless there would be fewer items than keep all workers busy.
const READ_AHEAD_BYTES: u64 = 256 * 1024 * 1024;

/// Blocks grow from the first to the last of these sizes.
const FIRST_BLOCK_ITEMS: usize = 16;
/// So many items run in the caller before it looks for results.
const OWN_ITEMS: usize = 256;
const MOST_BLOCK_ITEMS: usize = 16 * 1024;

/// Where the user bounds what is pending, a block is never more than this part of it.
const BLOCK_SHARE: u64 = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct MapState {
    kept: Mutex<Kept>,
    bell: AtomicU32,
    waiting: AtomicU32,
    /// Changes when somebody who reads ahead should look whether there is room again, if somebody does.
    room_bell: AtomicU32,
    room_wanted: AtomicBool,
    /// How much memory is kept by ends that are not taken; how much may be for whoever waits to read on.
    held_bytes: AtomicU64,
    room_bytes: AtomicU64,
    /// Items that were taken together with others, and not yielded yet.
    in_hand: AtomicUsize,
    /// The number of what workers call, if they do, and where it is noted what moving takes.
    definition: AtomicU64,
    profile: OnceLock<Arc<Profile>>,
    function: Py<PyAny>,
}

impl MapState {
    pub(crate) fn new(function: Py<PyAny>, unordered: bool) -> MapState {
        MapState {
            kept: Mutex::new(Kept::new(unordered)),
            bell: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            room_bell: AtomicU32::new(0),
            room_wanted: AtomicBool::new(false),
            held_bytes: AtomicU64::new(0),
            room_bytes: AtomicU64::new(0),
            in_hand: AtomicUsize::new(0),
            definition: AtomicU64::new(0),
            profile: OnceLock::new(),
            function,
        }
    }

    pub(crate) fn name(&self, py: Python<'_>) -> String {
        function_name(self.function.bind(py))
    }

    pub(crate) fn definition(&self) -> u64 {
        self.definition.load(Ordering::Relaxed)
    }

    fn set_definition(&self, id: u64) {
        self.definition.store(id, Ordering::Relaxed);
        if self.profile.get().is_none()
            && let Some(profile) = profile::by_definition(id)
        {
            let _ = self.profile.set(profile);
        }
    }

    /// Where it is noted what moving takes.
    pub(crate) fn account(&self) -> Option<&Account> {
        self.profile.get().map(|profile| &profile.moved)
    }

    fn sent(&self, load: &Load) {
        if let Some(account) = self.account() {
            account.sent(load);
        }
    }

    /// The engine reports the end of an item that went the way of most; it counts those only.
    pub(crate) fn settle_remote(&self, item: u64, end: End<'_>) {
        self.put(Entry::Raw(Raw::new(end)), |kept| kept.place(item));
    }

    /// The same of consecutive items that were answered.
    pub(crate) fn settle_run(&self, first: u64, run: &Run) {
        self.change(|kept| (kept.put_run(first, run), ()));
    }

    /// The same of consecutive items that ended alike, without an answer.
    pub(crate) fn settle_all(&self, items: Range<u64>, end: &End<'static>) {
        self.change(|kept| (kept.put_all(items, &Raw::new(end.clone())), ()));
    }

    /// The engine reports the end of this item.
    pub(crate) fn settle(&self, at: u64, end: End<'_>) {
        self.put(Entry::Raw(Raw::new(end)), |_| at);
    }

    /// A lane thread reports the end of an item that went the way of most.
    pub(crate) fn settle_local(
        &self,
        py: Python<'_>,
        item: u64,
        outcome: Result<Py<PyAny>, Py<PyAny>>,
    ) {
        self.put(local_entry(py, outcome), |kept| kept.place(item));
    }

    /// A lane thread reports the end of this item.
    pub(crate) fn settle_local_at(
        &self,
        py: Python<'_>,
        at: u64,
        outcome: Result<Py<PyAny>, Py<PyAny>>,
    ) {
        self.put(local_entry(py, outcome), |_| at);
    }

    /// The last items read have ended in the caller.
    fn settle_own(&self, entries: VecDeque<Entry>) {
        let dropped = self.change(|kept| kept.put_own(entries));
        drop(dropped);
    }

    fn put(&self, entry: Entry, place: impl FnOnce(&Kept) -> u64) {
        let dropped = self.change(|kept| {
            let at = place(kept);
            kept.put(at, entry)
        });
        drop(dropped);
    }

    /// Changes what is kept; `change` also says whether somebody waits for just that. Tells whoever it concerns.
    fn change<R>(&self, change: impl FnOnce(&mut Kept) -> (bool, R)) -> R {
        let (wanted, changed, whole, room) = {
            let mut kept = lock(&self.kept);
            let (wanted, changed) = change(&mut kept);
            self.held_bytes.store(kept.bytes, Ordering::SeqCst);
            let room = self.room_wanted.load(Ordering::SeqCst) && self.has_room(&kept);
            (wanted, changed, kept.take_whole(), room)
        };
        // Most ends are nobody's next: no wake for them.
        if wanted {
            self.ring();
        }
        if room {
            self.ring_room();
        }
        if let Some(whole) = whole {
            whole.settle_whole();
        }
        changed
    }

    pub(crate) fn ring_room(&self) {
        self.room_bell.fetch_add(1, Ordering::SeqCst);
        if self.room_wanted.load(Ordering::SeqCst) {
            futex::wake(&self.room_bell, u32::MAX, Scope::Private);
        }
    }

    /// Takes what is next, if it is there: all that lies together, or one.
    fn take_front(&self, all: bool) -> Option<Part> {
        self.change(|kept| (false, kept.take_front(all)))
    }

    /// Takes what is next, if it is there; what it holds is in hand until it is yielded.
    pub(crate) fn take_next(&self) -> Option<Part> {
        self.change(|kept| {
            let part = kept.take_front(true);
            let count = part.as_ref().map_or(0, Part::len);
            self.in_hand.fetch_add(count, Ordering::SeqCst);
            (false, part)
        })
    }

    /// So many of what was in hand are yielded.
    pub(crate) fn yielded(&self, count: usize) {
        self.in_hand.fetch_sub(count, Ordering::SeqCst);
        if self.room_wanted.load(Ordering::SeqCst) {
            self.change(|_| (false, ()));
        }
    }

    /// Items that count against how far the input is read ahead.
    fn held_by(&self, kept: &Kept) -> u64 {
        if kept.is_lifted() {
            kept.read - kept.ended
        } else {
            kept.read - kept.first + self.in_hand.load(Ordering::SeqCst) as u64
        }
    }

    /// Whether reading ahead goes on: in steps, so that not each item taken wakes the reader.
    fn has_room(&self, kept: &Kept) -> bool {
        let memory = kept.is_lifted() || kept.bytes <= self.room_bytes.load(Ordering::SeqCst);
        memory && self.held_by(kept) <= READ_AHEAD_ITEMS as u64 / 2
    }

    /// How many items have been read, how many taken, and how much memory the ends keep that have not.
    fn progress(&self) -> (u64, u64, u64) {
        let kept = lock(&self.kept);
        (kept.read, kept.first, kept.bytes)
    }

    /// Whether ends that are not taken keep more memory than may be pending.
    pub(crate) fn holds_too_much(&self, engine: &Engine<Client>) -> bool {
        let held_bytes = self.held_bytes.load(Ordering::SeqCst);
        // What may be pending is read once it matters.
        held_bytes > LEAST_BYTES && held_bytes > engine.most_pending().bytes
    }

    /// Whether everything is read and has ended; and whether all of it was taken.
    pub(crate) fn is_over(&self) -> (bool, bool) {
        let kept = lock(&self.kept);
        let ended = kept.closed && kept.ended == kept.read;
        (ended, ended && kept.first == kept.read)
    }

    /// Settles this slot once every item has ended.
    pub(crate) fn tell_whole(&self, slot: Arc<Slot>) {
        self.change(|kept| (false, kept.whole = Some(slot)));
    }

    /// From now on reading ahead is bounded by what has not ended, whether or not anybody takes it.
    pub(crate) fn lift(&self) {
        lock(&self.kept).lifted = true;
        self.ring_room();
    }

    /// Nothing more will be read.
    fn close(&self) {
        self.change(|kept| (false, kept.closed = true));
        self.ring_room();
        self.ring();
    }

    pub(crate) fn held(&self) -> usize {
        self.held_by(&lock(&self.kept)) as usize
    }

    /// Sleeps until there is room to read on; `over` says that nobody needs it any more.
    pub(crate) fn wait_for_room(
        &self,
        py: Python<'_>,
        engine: &Engine<Client>,
        over: impl Fn() -> bool,
    ) {
        let room_bytes = engine.most_pending().bytes / 2;
        self.room_bytes.store(room_bytes, Ordering::SeqCst);
        self.room_wanted.store(true, Ordering::SeqCst);
        loop {
            let seen = self.room_bell.load(Ordering::SeqCst);
            let (room, lifted) = {
                let kept = lock(&self.kept);
                (self.has_room(&kept), kept.is_lifted())
            };
            if room || over() {
                break;
            }
            py.detach(|| {
                // Of ends that nobody takes the engine tells only where it is asked to.
                let watch = lifted.then(|| engine.watch());
                let _ = futex::wait(&self.room_bell, seen, None, Scope::Private);
                if let Some(watch) = watch {
                    engine.unwatch(watch);
                }
            });
        }
        self.room_wanted.store(false, Ordering::SeqCst);
    }

    fn ring(&self) {
        self.bell.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            futex::wake(&self.bell, u32::MAX, Scope::Private);
        }
    }

    /// In a forked child: what has not ended is cancelled.
    pub(crate) fn cancel_in_child(&self) {
        let whole = {
            let mut kept = lock(&self.kept);
            kept.cancel_rest();
            kept.whole.take()
        };
        if let Some(whole) = whole {
            whole.cancel_in_child();
        }
    }

    /// So many items are on their way; returns the number of the next one.
    fn add_pending(&self, count: u64) -> u64 {
        let mut kept = lock(&self.kept);
        kept.read += count;
        kept.read
    }

    /// The last so many items were not accepted.
    fn cancel_last(&self, count: u64) {
        self.change(|kept| (true, kept.cancel_last(count)));
    }

    /// One more item is on its way; returns its number.
    fn add_one_pending(&self) -> u64 {
        let mut kept = lock(&self.kept);
        kept.read += 1;
        kept.read - 1
    }

    /// One more item, which has ended already; returns its number.
    fn add(&self, entry: Entry) -> u64 {
        let at = self.add_one_pending();
        self.put(entry, |_| at);
        at
    }

    /// The last item read does not go the way of most.
    fn set_aside(&self) {
        lock(&self.kept).set_aside(1);
    }

    pub(crate) fn unended(&self) -> u64 {
        let kept = lock(&self.kept);
        kept.read - kept.ended
    }

    fn read(&self) -> u64 {
        lock(&self.kept).read
    }

    fn unyielded(&self) -> u64 {
        let kept = lock(&self.kept);
        kept.read - kept.first
    }

    pub(crate) fn discard(&self) {
        let dropped = self.change(|kept| (false, kept.discard()));
        drop(dropped);
    }

    /// Waits, doing the engine's work meanwhile where nobody else does. False when the time is over.
    pub(crate) fn wait(
        &self,
        py: Python<'_>,
        engine: &Engine<Client>,
        deadline: Option<Instant>,
        any: bool,
        ready: impl Fn(&Kept) -> bool + Sync,
    ) -> PyResult<bool> {
        let mut patience = Patience::default();
        loop {
            let now = || ready(&lock(&self.kept));
            match py.detach(|| engine.attend(deadline, &mut patience, now)) {
                Attended::Ready => return Ok(true),
                Attended::TimedOut => return Ok(false),
                Attended::Interrupted => py.check_signals()?,
                Attended::Taken => {
                    let watch = engine.watch();
                    let waited = self.wait_to_be_told(py, deadline, any, ready);
                    engine.unwatch(watch);
                    return waited;
                }
            }
        }
    }

    fn wait_to_be_told(
        &self,
        py: Python<'_>,
        deadline: Option<Instant>,
        any: bool,
        ready: impl Fn(&Kept) -> bool,
    ) -> PyResult<bool> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waited = loop {
            let seen = self.bell.load(Ordering::SeqCst);
            {
                let mut kept = lock(&self.kept);
                kept.wanted = Some(kept.first);
                kept.any_wanted |= any;
                if ready(&kept) {
                    kept.any_wanted = false;
                    break Ok(true);
                }
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break Ok(false);
            }
            let nap = crate::future::until_signals(left);
            let waited = py.detach(|| futex::wait(&self.bell, seen, nap, Scope::Private));
            if waited != Waited::Woken
                && let Err(error) = py.check_signals()
            {
                break Err(error);
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        waited
    }
}

/// The numbers of a `range`, all within 64 bits: workers make them themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    start: i64,
    step: i64,
    count: u64,
}

impl Numbers {
    /// Of a `range` object, if it is one and its numbers are small enough.
    fn of(range: &Bound<'_, PyAny>) -> Option<Numbers> {
        let py = range.py();
        let range = range.cast_exact::<PyRange>().ok()?;
        let part = |name| range.getattr(name)?.extract::<i64>();
        let parts = (
            part(PyString::intern(py, "start")),
            part(PyString::intern(py, "stop")),
            part(PyString::intern(py, "step")),
            range.len(),
        );
        // What fails does so because a number is too large.
        match parts {
            (Ok(start), Ok(_), Ok(step), Ok(count)) => Some(Numbers {
                start,
                step,
                count: count as u64,
            }),
            _ => None,
        }
    }

    /// The first so many, and the rest.
    fn split(self, count: u64) -> (Numbers, Numbers) {
        let first = count.min(self.count);
        let rest = Numbers {
            // The one after the last need not fit.
            start: self
                .start
                .wrapping_add(self.step.wrapping_mul(first as i64)),
            count: self.count - first,
            ..self
        };
        (
            Numbers {
                count: first,
                ..self
            },
            rest,
        )
    }

    fn to_block(self) -> Block {
        Block::generated(self.count, self.to_rule())
    }

    /// As workers read it.
    fn to_rule(self) -> Box<[u8]> {
        [self.start.to_le_bytes(), self.step.to_le_bytes()]
            .concat()
            .into()
    }

    /// The rule's numbers from the first one of a piece on.
    pub(crate) fn from_rule(first: u64, rule: &[u8]) -> Option<impl Iterator<Item = i64> + use<>> {
        let (start, rest) = rule.split_first_chunk()?;
        let (step, _) = rest.split_first_chunk()?;
        let (start, step) = (i64::from_le_bytes(*start), i64::from_le_bytes(*step));
        // All lie between the range's ends, but the one after the last need not fit.
        let nth = move |n: u64| start.wrapping_add(step.wrapping_mul(n as i64));
        Some((first..).map(nth))
    }
}

/// How a map's items run.
#[derive(Debug)]
enum Way {
    Inline,
    /// Auto has them run in the caller, because that takes less than moving them.
    Own {
        definition: Arc<Definition>,
        /// The engine's, if workers ran the items before these.
        call: Option<CallId>,
        entries: VecDeque<Entry>,
        pace: OwnPace,
        /// The function was seen to leave its arguments alone; else each is looked at.
        trusted: bool,
    },
    Remote {
        definition: Arc<Definition>,
        fall_back: bool,
        call: Option<CallId>,
        block: Block,
        /// Who wants to know how long pickling an item takes.
        timed: Option<Arc<Profile>>,
    },
    Local {
        local: Arc<Local>,
        call: Option<CallId>,
        count: u64,
        /// What an item that could be changed goes to a worker for: auto keeps only others.
        changeable: Option<Arc<Definition>>,
    },
    /// The function can't be sent: every item ends with this.
    Refused(Py<PyAny>),
}

impl Way {
    /// For items that auto would have kept here.
    fn remote(definition: Arc<Definition>, call: Option<CallId>) -> Way {
        Way::Remote {
            definition,
            fall_back: true,
            call,
            block: Block::new(),
            timed: None,
        }
    }

    fn own(definition: Arc<Definition>, call: Option<CallId>, trusted: bool) -> Way {
        Way::Own {
            definition,
            call,
            entries: VecDeque::new(),
            pace: OwnPace::new(),
            trusted,
        }
    }
}

/// Watches over items that run in the caller: they were chosen for being tiny.
#[derive(Debug)]
struct OwnPace {
    /// Where the clock stood, and how long the thread had waited for a core, when it was last asked.
    began_ns: u64,
    delay_ns: u64,
    /// When the last item ended.
    ended_ns: u64,
    items: u32,
}

impl OwnPace {
    const LOOK_EACH: u32 = 256;
    const MOST_NS: u64 = 50_000;
    /// More than two steps of the coarse clock, wherever it stands.
    const LONG_NS: u64 = 10_000_000;

    fn new() -> OwnPace {
        let now_ns = coarse_ns();
        OwnPace {
            began_ns: now_ns,
            delay_ns: own_delay_ns(),
            ended_ns: now_ns,
            items: 0,
        }
    }

    /// The next item begins some time after the last one.
    fn resume(&mut self) {
        let now_ns = coarse_ns();
        self.began_ns += now_ns - self.ended_ns;
        self.ended_ns = now_ns;
    }

    /// One more has ended: whether they still are.
    fn is_kept(&mut self) -> bool {
        self.items += 1;
        let now_ns = coarse_ns();
        let last_ns = now_ns - std::mem::replace(&mut self.ended_ns, now_ns);
        if last_ns < OwnPace::LONG_NS && self.items < OwnPace::LOOK_EACH {
            return true;
        }
        let took_ns = now_ns - self.began_ns;
        let most_ns = OwnPace::MOST_NS * u64::from(self.items);
        if last_ns >= OwnPace::LONG_NS || took_ns > most_ns {
            // Others may have had the core.
            let delay_ns = own_delay_ns();
            let lost_ns = delay_ns - std::mem::replace(&mut self.delay_ns, delay_ns);
            if last_ns.saturating_sub(lost_ns) >= OwnPace::LONG_NS
                || took_ns.saturating_sub(lost_ns) > most_ns
            {
                return false;
            }
        }
        (self.began_ns, self.items) = (now_ns, 0);
        true
    }
}

/// Of an input of known length workers get so many items; then it is asked again where the others are to run, if
/// nobody knew before.
const STAGE_ITEMS: u64 = 128 * 1024;

/// The first items of a map as they were given, none of which anybody can change.
#[derive(Debug)]
enum Given {
    Numbers(Numbers),
    Items(Vec<Py<PyAny>>),
}

impl Given {
    /// One more; false if this one could be changed, or is not kept.
    fn push(&mut self, item: &Bound<'_, PyAny>) -> bool {
        match self {
            Given::Items(items) if is_constant(item) => {
                items.push(item.clone().unbind());
                true
            }
            Given::Items(_) | Given::Numbers(_) => false,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Given::Numbers(numbers) => numbers.count,
            Given::Items(items) => items.len() as u64,
        }
    }

    /// So many of them at most, from this one on.
    fn get(&self, py: Python<'_>, from: u64, most: u64) -> PyResult<VecDeque<Option<Py<PyAny>>>> {
        let end = self.len().min(from.saturating_add(most));
        match self {
            Given::Numbers(numbers) => (from..end)
                .map(|at| {
                    let number = numbers
                        .start
                        .wrapping_add(numbers.step.wrapping_mul(at as i64));
                    Ok(Some(number.into_pyobject(py)?.into_any().unbind()))
                })
                .collect(),
            Given::Items(items) => {
                let some = items.get(from as usize..end as usize).unwrap_or_default();
                Ok(some.iter().map(|item| Some(item.clone_ref(py))).collect())
            }
        }
    }
}

/// What went to workers before its function was known, and would run in threads had it been.
#[derive(Debug)]
struct Movable {
    profile: Arc<Profile>,
    definition: Arc<Definition>,
    function: Py<PyAny>,
    spread: bool,
    /// The first of the engine's items.
    given: Given,
    /// It is asked again when so many have ended.
    look_at: u64,
    /// Some run in threads to be seen.
    tried: bool,
}

/// So many items for each thread show whether two threads beat one.
const TRIAL_ITEMS: u64 = 6;

/// A map that goes to workers because its function is not known yet.
#[derive(Debug)]
struct Undecided {
    profile: Arc<Profile>,
    /// What was not read of a range.
    rest: Option<Numbers>,
}

/// A map's input, and where it goes.
#[derive(Debug)]
pub(crate) struct Source {
    iterator: Py<PyAny>,
    function: Py<PyAny>,
    spread: bool,
    chunk_items: Option<u64>,
    way: Way,
    block_items: usize,
    most_block_items: usize,
    /// What was read last is to go to the engine before more is read, and there was no room for it.
    stuck: bool,
    /// How the input ended, if it has, and the engine does not have all of it yet.
    over: Option<Option<Py<PyAny>>>,
    /// Items read that have no place among the results yet.
    unadded: u64,
    /// How much memory was taken for what was read: what was serialised, or lies behind the arrays for threads.
    pub(crate) bytes: u64,
    /// If it is read without running any code of the user's.
    sweep: Option<Arc<Sweep>>,
    /// Where auto may still decide.
    undecided: Option<Undecided>,
    /// Its function, if that is not known yet, and the numbers that it began with.
    unknown: Option<Arc<Profile>>,
    numbers: Option<Numbers>,
    /// What of its items could go to threads still, once its function is known, if any.
    given: Option<Given>,
    /// What that was at the end of each block, by the number of the item that follows; of those of which something
    /// is not yielded, and the last one of which all is.
    read: VecDeque<(u64, u64)>,
}

impl Source {
    pub(crate) fn new(
        executor: &Executor,
        lane: Lane,
        function: &Bound<'_, PyAny>,
        iterable: Bound<'_, PyAny>,
        spread: bool,
        chunk_items: Option<u64>,
    ) -> PyResult<Source> {
        let py = function.py();
        let mut undecided = None;
        let local = |here, changeable| {
            let items = Mutex::new(LocalItems::default());
            let local = Arc::new(Local::Map {
                function: function.clone().unbind(),
                spread,
                items,
                level: nesting().1,
                here,
            });
            Way::Local {
                local,
                call: None,
                count: 0,
                changeable,
            }
        };
        let way = match lane {
            Lane::Inline => Way::Inline,
            Lane::Thread => local(None, None),
            Lane::Process | Lane::Auto => match record(function) {
                Ok(definition) => {
                    let profile = definition.get().profile(function);
                    let definition = &definition.get().inner;
                    let (place, trusted) = match lane {
                        Lane::Auto => executor.place_map(function, definition.id(), profile)?,
                        _ => (Place::Process, false),
                    };
                    if lane == Lane::Auto && place == Place::Process && !profile.is_weighed() {
                        undecided = Some(Undecided {
                            profile: profile.clone(),
                            rest: None,
                        });
                    }
                    match place {
                        Place::Process => Way::Remote {
                            definition: definition.clone(),
                            fall_back: lane == Lane::Auto,
                            call: None,
                            block: Block::new(),
                            timed: profile.times_pickles().then(|| profile.clone()),
                        },
                        Place::Thread => {
                            let changeable = (!trusted).then(|| definition.clone());
                            local(Some(Here::new(profile.clone(), trusted)), changeable)
                        }
                        Place::Caller => Way::own(definition.clone(), None, trusted),
                    }
                }
                Err(error) if is_unsendable(py, &error) && lane == Lane::Auto => {
                    let profile = profile::of(function);
                    profile.unpicklable();
                    local(Some(Here::new(profile, false)), None)
                }
                Err(error) if is_unsendable(py, &error) => {
                    Way::Refused(as_serialization_error(py, error, &function_name(function))?)
                }
                Err(error) => return Err(error),
            },
        };
        let (mut way, mut unadded, mut generated) = (way, 0, None);
        let unknown = undecided
            .as_ref()
            .map(|one: &Undecided| one.profile.clone());
        let mut iterable = iterable;
        if let Way::Remote { block, .. } = &mut way
            && executor.max_pending.is_none()
            && let Some(numbers) = Numbers::of(&iterable)
        {
            // All of it is read, so to speak; and nothing waits, unless the user wants each number to count.
            let (first, rest) = match &mut undecided {
                Some(undecided) => {
                    let (first, rest) = numbers.split(STAGE_ITEMS);
                    undecided.rest = Some(rest);
                    (first, rest)
                }
                None => (numbers, numbers.split(numbers.count).1),
            };
            *block = first.to_block();
            unadded = first.count;
            generated = Some(first);
            iterable = if rest.count > 0 {
                let after = PySlice::new(py, first.count as isize, isize::MAX, 1);
                iterable.get_item(after)?
            } else {
                undecided = None;
                PyTuple::empty(py).into_any()
            };
        }
        let iterator = iterable.try_iter()?;
        let sweep = match &way {
            Way::Remote { .. } => Sweep::of(&iterator),
            _ => None,
        };
        let most_block_items = executor.max_pending.map_or(MOST_BLOCK_ITEMS, |items| {
            (items / BLOCK_SHARE).clamp(1, MOST_BLOCK_ITEMS as u64) as usize
        });
        Ok(Source {
            iterator: iterator.into_any().unbind(),
            function: function.clone().unbind(),
            spread,
            chunk_items,
            way,
            block_items: FIRST_BLOCK_ITEMS.min(most_block_items),
            most_block_items,
            stuck: false,
            over: None,
            unadded,
            bytes: 0,
            sweep,
            undecided,
            unknown,
            numbers: generated,
            given: None,
            read: VecDeque::from([(0, 0)]),
        })
    }

    /// Notes its items from now on as they are given, if its function is not known yet.
    fn keep_given(&mut self) {
        if let (Some(_), Way::Remote { .. }) = (&self.unknown, &self.way) {
            self.given = Some(match self.numbers {
                Some(numbers) => Given::Numbers(numbers),
                None => Given::Items(Vec::new()),
            });
        }
    }

    /// How much of an input of known length is read at once.
    fn first_read(&self) -> usize {
        match (&self.way, &self.undecided) {
            (Way::Own { .. }, _) => OWN_ITEMS,
            // The first part of a range counts as read.
            (_, Some(Undecided { rest: Some(_), .. })) => 0,
            (_, Some(_)) => STAGE_ITEMS as usize,
            _ => usize::MAX,
        }
    }

    /// Asks again where the rest is to run, as soon as its function is known, or workers run out of work. Returns
    /// whether it is to be read at once.
    fn decide(&mut self, feed: &Feed, py: Python<'_>, sized: bool) -> PyResult<bool> {
        let Some(Undecided { profile, .. }) = &self.undecided else {
            return Ok(false);
        };
        let weighed = profile.is_weighed();
        let state = &feed.state;
        let running_out = sized && state.read() > 0 && state.unended() < STAGE_ITEMS / 4;
        let Way::Remote { definition, .. } = &self.way else {
            return Ok(false);
        };
        if !weighed && !running_out {
            return Ok(false);
        }
        let function = self.function.bind(py);
        let (place, trusted) = feed
            .executor
            .place_map(function, definition.id(), profile)?;
        if place == Place::Caller {
            self.undecided = None;
            self.flush(feed, py, None)?;
            if let Way::Remote {
                definition, call, ..
            } = &self.way
                && !self.stuck
            {
                self.way = Way::own(definition.clone(), *call, trusted);
                self.sweep = None;
                return Ok(false);
            }
        }
        let rest = self.undecided.take().and_then(|undecided| undecided.rest);
        if let (Some(rest), Way::Remote { block, .. }) = (rest, &mut self.way)
            && block.is_empty()
        {
            *block = rest.to_block();
            self.unadded += rest.count;
            self.iterator = PyTuple::empty(py).try_iter()?.into_any().unbind();
        }
        Ok(sized)
    }

    /// Takes in one item. `when`: what becomes of what there is no room for; None leaves it here.
    pub(crate) fn push(
        &mut self,
        feed: &Feed,
        item: &Bound<'_, PyAny>,
        when: Option<WhenFull>,
    ) -> PyResult<()> {
        let py = item.py();
        if self.spread && !item.is_exact_instance_of::<PyTuple>() {
            // Whatever holds the arguments of a call; looking into it may run anything.
            let arguments = ffi::call_one(py.get_type::<PyTuple>().as_any(), item)?;
            self.sweep = None;
            return self.push_one(feed, &arguments, when);
        }
        self.push_one(feed, item, when)
    }

    fn push_one(
        &mut self,
        feed: &Feed,
        item: &Bound<'_, PyAny>,
        when: Option<WhenFull>,
    ) -> PyResult<()> {
        let py = item.py();
        let state = &feed.state;
        match &mut self.way {
            Way::Inline => {
                let outcome = call_item(self.function.bind(py), item, self.spread);
                state.add(local_entry(py, outcome));
            }
            Way::Refused(exception) => {
                state.add(Entry::Exception(exception.clone_ref(py)));
                feed.executor.engine.nudge();
            }
            Way::Own {
                entries,
                pace,
                trusted,
                ..
            } => {
                if !*trusted && !is_constant(item) {
                    self.send_the_rest(feed, py, when)?;
                    return self.push_one(feed, item, when);
                }
                let mut outcome = call_item(self.function.bind(py), item, self.spread);
                if *trusted {
                    outcome = profile::apart(py, outcome);
                }
                if let Err(exception) = &outcome
                    && exception.bind(py).is_instance_of::<PyKeyboardInterrupt>()
                {
                    // It came to the caller, who is at work here.
                    return Err(PyErr::from_value(exception.clone_ref(py).into_bound(py)));
                }
                entries.push_back(local_entry(py, outcome));
                self.unadded += 1;
                if !pace.is_kept() {
                    self.send_the_rest(feed, py, when)?;
                } else if entries.len() >= self.block_items {
                    self.flush(feed, py, when)?;
                }
            }
            Way::Local {
                changeable: Some(definition),
                ..
            } if !is_constant(item) => {
                let definition = definition.clone();
                if state.read() + self.unadded == 0 {
                    // Others will be like the first.
                    self.way = Way::remote(definition, None);
                    return self.push_one(feed, item, when);
                }
                let when = Some(when.unwrap_or(WhenFull::Wait));
                // Those before it come first.
                self.flush(feed, py, when)?;
                self.bytes += ffi::buffer_bytes(item);
                feed.make_room(py, ONE, when)?;
                let at = state.add_one_pending();
                state.set_aside();
                self.send_alone(feed, definition, at, item)?;
            }
            Way::Local { local, count, .. } => {
                let Local::Map { items, .. } = &**local else {
                    return Err(crate::raw::bug("a map without items"));
                };
                lock(items).push(item.clone().unbind());
                self.bytes += ffi::buffer_bytes(item);
                self.unadded += 1;
                *count += 1;
                if *count as usize >= self.block_items {
                    self.flush(feed, py, when)?;
                }
            }
            Way::Remote {
                block,
                fall_back,
                timed,
                ..
            } => {
                let before = block.amount().bytes;
                let buffers = Where::Arena {
                    sweep: self.sweep.as_ref(),
                    // Arguments are free again whether or not anybody takes the results.
                    patient: Some((&feed.executor, when.unwrap_or(WhenFull::Ask))),
                };
                match write_timed(item, buffers, block, timed) {
                    Ok(()) => {
                        if let Some(given) = &mut self.given
                            && !given.push(item)
                        {
                            self.given = None;
                        }
                        self.unadded += 1;
                        self.bytes += block.amount().bytes - before;
                        if block.len() >= self.block_items || !block.has_room() {
                            self.flush(feed, py, when)?;
                        }
                    }
                    Err(error) if is_unsendable(py, &error) => {
                        // This item alone goes its own way; those before it come first.
                        let fall_back = *fall_back;
                        let when = Some(when.unwrap_or(WhenFull::Wait));
                        self.flush(feed, py, when)?;
                        if fall_back {
                            feed.make_room(py, ONE, when)?;
                            let at = state.add_one_pending();
                            state.set_aside();
                            let function = self.function.bind(py);
                            let local = local_item(function, item, self.spread)?;
                            let ticket = Ticket::MapItem(state.clone(), at);
                            let submitted =
                                feed.executor
                                    .submit_local(py, local, 1, ticket, Plan::default());
                            submitted.inspect_err(|_| state.settle(at, End::Cancelled))?;
                        } else {
                            let exception = as_serialization_error(py, error, &state.name(py))?;
                            state.add(Entry::Exception(exception));
                            state.set_aside();
                            feed.executor.engine.nudge();
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Items that run in the caller are not tiny any more, or could be changed: from here on workers run them.
    fn send_the_rest(
        &mut self,
        feed: &Feed,
        py: Python<'_>,
        when: Option<WhenFull>,
    ) -> PyResult<()> {
        self.flush(feed, py, when)?;
        if let Way::Own {
            definition, call, ..
        } = &self.way
        {
            self.way = Way::remote(definition.clone(), *call);
        }
        Ok(())
    }

    /// An item that could be changed does not run in a thread, unless it cannot be sent.
    fn send_alone(
        &mut self,
        feed: &Feed,
        definition: Arc<Definition>,
        at: u64,
        item: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = item.py();
        let (executor, state) = (&feed.executor, &feed.state);
        let ticket = Ticket::MapItem(state.clone(), at);
        let mut block = Block::new();
        let buffers = Where::Arena {
            sweep: None,
            patient: Some((executor, WhenFull::Ask)),
        };
        let submitted = match write_item(item, "item", buffers, &mut block) {
            Ok(()) => {
                state.set_definition(definition.id());
                state.sent(&Load::of(&block));
                executor.refresh_world(py)?;
                let remote = Remote {
                    function: definition,
                    shape: shape_of(self.spread),
                    items: block,
                };
                let submitted = executor.submit_remote(py, remote, ticket, Plan::default());
                Executor::attend_door(py);
                submitted
            }
            Err(error) if is_unsendable(py, &error) => {
                let function = self.function.bind(py);
                let local = local_item(function, item, self.spread)?;
                executor.submit_local(py, local, 1, ticket, Plan::default())
            }
            Err(error) => Err(error),
        };
        submitted
            .map(drop)
            .inspect_err(|_| state.settle(at, End::Cancelled))
    }

    /// Hands what has been read to the engine, as soon as there is room; or leaves it here.
    pub(crate) fn flush(
        &mut self,
        feed: &Feed,
        py: Python<'_>,
        when: Option<WhenFull>,
    ) -> PyResult<()> {
        let more = self.unflushed();
        if !feed.make_room(py, more, None)? {
            // Others run before the next item is read, and may change what was sent.
            self.forget_sweep();
        }
        self.stuck = !feed.make_room(py, more, when)?;
        if self.stuck || self.has_unflushed() == 0 {
            return Ok(());
        }
        self.block_items = (self.block_items * 2).min(self.most_block_items);
        let next = feed.state.add_pending(std::mem::take(&mut self.unadded));
        self.read.push_back((next, self.bytes));
        let plan = Plan {
            chunk_items: self.chunk_items,
            open: true,
        };
        match &mut self.way {
            Way::Inline | Way::Refused(_) => {}
            Way::Own { entries, .. } => {
                feed.state.settle_own(std::mem::take(entries));
                feed.executor.engine.nudge();
            }
            Way::Local {
                local, call, count, ..
            } => {
                let count = std::mem::take(count);
                match *call {
                    Some(call) if feed.executor.extend_local(py, call, count)? => {}
                    Some(_) => feed.refused(count),
                    None => {
                        let ticket = Ticket::Map(feed.state.clone());
                        let submitted =
                            feed.executor
                                .submit_local(py, local.clone(), count, ticket, plan);
                        let made = submitted.inspect_err(|_| feed.cancel_last(count))?;
                        *call = Some(made);
                        feed.set_call(made);
                    }
                }
            }
            Way::Remote {
                definition,
                call,
                block,
                ..
            } => {
                let items = std::mem::take(block);
                let load = Load::of(&items);
                let count = items.len() as u64;
                match *call {
                    Some(call) => {
                        feed.state.sent(&load);
                        if !feed.executor.engine.extend_remote(call, items) {
                            // Cancelled or broken meanwhile, and forgotten.
                            feed.refused(count);
                        }
                    }
                    None => {
                        feed.executor.refresh_world(py)?;
                        let shape = shape_of(self.spread);
                        let remote = Remote {
                            function: definition.clone(),
                            shape: shape | feed.executor.guarding.flags(),
                            items,
                        };
                        feed.state.set_definition(definition.id());
                        feed.state.sent(&load);
                        let ticket = Ticket::Map(feed.state.clone());
                        let submitted = feed.executor.submit_remote(py, remote, ticket, plan);
                        let made = submitted.inspect_err(|_| feed.cancel_last(count))?;
                        Executor::attend_door(py);
                        *call = Some(made);
                        feed.set_call(made);
                    }
                }
            }
        }
        Ok(())
    }

    /// What the engine is to have next.
    fn unflushed(&self) -> Amount {
        match &self.way {
            Way::Inline | Way::Own { .. } | Way::Refused(_) => Amount::default(),
            Way::Local { count, .. } => Amount {
                items: *count,
                ..ONE
            },
            Way::Remote { block, .. } => block.amount(),
        }
    }

    /// Whether more may be read ahead of the iteration: what was read and not yielded, and its results that are there,
    /// are bounded.
    fn may_read_on(&mut self, feed: &Feed, py: Python<'_>) -> PyResult<bool> {
        if self.stuck {
            self.flush(feed, py, None)?;
        }
        let (read, taken, results) = feed.state.progress();
        while self.read.get(1).is_some_and(|(next, _)| *next <= taken) {
            self.read.pop_front();
        }
        let before = self.read.front().map_or(0, |(_, bytes)| *bytes);
        let bytes = self.bytes - before + results;
        let engine = &feed.executor.engine;
        let items = read - taken + self.unadded;
        let enough = bytes >= READ_AHEAD_BYTES && items >= 2 * u64::from(engine.max_slots());
        let too_much = bytes >= LEAST_BYTES && bytes >= engine.most_pending().bytes;
        Ok(!self.stuck && !enough && !too_much)
    }

    fn forget_sweep(&self) {
        if let Some(sweep) = &self.sweep {
            sweep.forget();
        }
    }

    pub(crate) fn has_unflushed(&self) -> usize {
        match &self.way {
            Way::Inline | Way::Refused(_) => 0,
            Way::Own { entries, .. } => entries.len(),
            Way::Local { count, .. } => *count as usize,
            Way::Remote { block, .. } => block.len(),
        }
    }
}

fn shape_of(spread: bool) -> u32 {
    if spread { shape::SPREAD } else { shape::ONE }
}

/// One item of a map, for a lane thread.
fn local_item(
    function: &Bound<'_, PyAny>,
    item: &Bound<'_, PyAny>,
    spread: bool,
) -> PyResult<Arc<Local>> {
    Ok(if spread {
        local_call(function, item.cast::<PyTuple>()?, None)
    } else {
        local_call(function, &PyTuple::new(item.py(), [item])?, None)
    })
}

/// Writes an item, and has noted how long that takes, as often as somebody wants to know.
fn write_timed(
    item: &Bound<'_, PyAny>,
    buffers: Where,
    block: &mut Block,
    timed: &mut Option<Arc<Profile>>,
) -> PyResult<()> {
    let Some(profile) = timed else {
        return write_item(item, "item", buffers, block);
    };
    let (begun, before, moved) = (Instant::now(), block.size(), block.moved());
    let written = write_item(item, "item", buffers, block);
    let placed = block.moved() != moved;
    profile.pickled(begun, block.size() - before, placed);
    if !profile.times_pickles() {
        *timed = None;
    }
    written
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) state: Arc<MapState>,
    pub(crate) executor: Arc<Executor>,
    /// Taken out by whoever reads: the user's iterator may run anything, and no lock is held meanwhile.
    source: Mutex<Option<Source>>,
    call: Mutex<Option<CallId>>,
    /// Items read that have no place among the results yet; the source counts them, and may be taken out.
    unadded: AtomicUsize,
    /// How the reading ended, if it did: with the input's own exception, or well.
    ended: Mutex<Option<Option<Py<PyAny>>>>,
    exhausted: AtomicBool,
    /// The engine has forgotten the call: reading on is of no use.
    pub(crate) in_vain: AtomicBool,
    /// How many threads that have taken the source wait for room: at most one.
    waits_for_room: AtomicU32,
    /// Its input has a length: what is not known to be tiny is read at once.
    sized: AtomicBool,
    /// Its next items run in the caller.
    runs_here: AtomicBool,
    /// What may still move to threads, if anything may; and the calls of what has.
    movable: Mutex<Option<Movable>>,
    may_move: AtomicBool,
    moved: Mutex<Vec<CallId>>,
    reader: Reader,
}

/// Who reads a map's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Whoever iterates, and `shutdown(wait=True)`.
    OpenEnded,
    /// Whoever iterates: the user set a window.
    Windowed,
    /// A thread of the pool's, which pushes what it has read.
    Feeder,
}

impl Feed {
    /// The feed of a new map, known to its executor.
    pub(crate) fn new(
        executor: Arc<Executor>,
        state: MapState,
        source: Source,
        reader: Reader,
    ) -> Arc<Feed> {
        let feed = Arc::new(Feed {
            state: Arc::new(state),
            executor,
            source: Mutex::new(Some(source)),
            call: Mutex::new(None),
            unadded: AtomicUsize::new(0),
            ended: Mutex::new(None),
            exhausted: AtomicBool::new(false),
            in_vain: AtomicBool::new(false),
            waits_for_room: AtomicU32::new(0),
            sized: AtomicBool::new(false),
            runs_here: AtomicBool::new(false),
            movable: Mutex::new(None),
            may_move: AtomicBool::new(false),
            moved: Mutex::new(Vec::new()),
            reader,
        });
        feed.executor.add_feed(feed.clone());
        feed
    }

    pub(crate) fn call(&self) -> Option<CallId> {
        *lock(&self.call)
    }

    /// What the input raised, if anybody is still to be told.
    pub(crate) fn take_error(&self) -> Option<Py<PyAny>> {
        lock(&self.ended).take().flatten()
    }

    /// Items read and not yielded, as far as they count against how far the input is read ahead.
    pub(crate) fn read_ahead(&self) -> usize {
        self.state.held() + self.unadded.load(Ordering::SeqCst)
    }

    /// Takes the source out, if nobody has; to be put back.
    pub(crate) fn take_source(&self) -> Option<Source> {
        lock(&self.source).take()
    }

    fn first_read(&self) -> usize {
        lock(&self.source).as_ref().map_or(0, Source::first_read)
    }

    fn refused(&self, count: u64) {
        self.in_vain.store(true, Ordering::SeqCst);
        self.cancel_last(count);
    }

    fn set_call(&self, call: CallId) {
        *lock(&self.call) = Some(call);
    }

    /// Whether `shutdown(wait=True)` is to read it to its end.
    pub(crate) fn is_open_ended(&self) -> bool {
        self.reader == Reader::OpenEnded && !self.is_exhausted()
    }

    /// How many items are read ahead at most.
    fn most_ahead(&self) -> usize {
        let most = self.executor.max_pending.unwrap_or(u64::MAX);
        usize::try_from(most).map_or(READ_AHEAD_ITEMS, |most| most.min(READ_AHEAD_ITEMS))
    }

    /// Items read and not taken for yielding.
    fn held(&self) -> usize {
        self.state.unyielded() as usize + self.unadded.load(Ordering::SeqCst)
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::SeqCst)
    }

    /// Waits until the engine has room for so much, as `when` says; with None it only says whether it has.
    fn make_room(&self, py: Python<'_>, more: Amount, when: Option<WhenFull>) -> PyResult<bool> {
        let engine = &self.executor.engine;
        let Some(when) = when else {
            return Ok(more == Amount::default() || engine.has_room(more));
        };
        let over = || self.is_exhausted();
        while more != Amount::default() && !over() && !engine.has_room(more) {
            self.waits_for_room.store(1, Ordering::SeqCst);
            let made = self.executor.make_room(py, more, when, over);
            self.waits_for_room.store(0, Ordering::SeqCst);
            futex::wake(&self.waits_for_room, u32::MAX, Scope::Private);
            if made? == Room::Beyond {
                break;
            }
        }
        Ok(true)
    }

    /// Whether whoever has taken the source waits for room.
    pub(crate) fn waits_for_room(&self) -> bool {
        self.waits_for_room.load(Ordering::SeqCst) > 0
    }

    /// Another thread has taken the source: sleeps while that one waits for room, else gives it a moment.
    pub(crate) fn let_others_hand_over(&self) {
        if self.waits_for_room() {
            let _ = futex::wait(&self.waits_for_room, 1, None, Scope::Private);
        } else {
            std::thread::yield_now();
        }
    }

    /// What to do with what was read before waiting for a result: if the engine has nothing of the map, it must have it.
    pub(crate) fn when_waiting(&self) -> Option<WhenFull> {
        (self.state.unyielded() == 0).then_some(WhenFull::Wait)
    }

    /// If what was read last waits for room: what there must be room for.
    fn stuck(&self) -> Option<Amount> {
        let source = lock(&self.source);
        source
            .as_ref()
            .filter(|source| source.stuck)
            .map(Source::unflushed)
    }

    /// Reads at most `most` items; with None for `when`, as far as there is room.
    pub(crate) fn read(&self, py: Python<'_>, most: usize, when: Option<WhenFull>) -> PyResult<()> {
        if self.is_exhausted() {
            return Ok(());
        }
        // Somebody else is reading: what they read serves us as well.
        let Some(mut source) = lock(&self.source).take() else {
            return Ok(());
        };
        let mut most = most;
        match source.decide(self, py, self.sized.load(Ordering::Relaxed)) {
            Ok(true) => most = usize::MAX,
            Ok(false) => {}
            Err(error) => {
                self.end(None);
                return Err(error);
            }
        }
        match &mut source.way {
            Way::Own { pace, .. } => {
                most = most.min(OWN_ITEMS);
                pace.resume();
            }
            // What there is of it is read, and keeps workers busy.
            Way::Remote { .. }
                if source.undecided.is_some()
                    && most < STAGE_ITEMS as usize
                    && self.sized.load(Ordering::Relaxed) =>
            {
                most = 0;
            }
            _ => {}
        }
        if most == 0 {
            self.put_back(source);
            return Ok(());
        }
        let iterator = source.iterator.clone_ref(py).into_bound(py);
        let outcome = (|| {
            if let Some(end) = source.over.take() {
                return Ok(Some(end));
            }
            for _ in 0..most {
                if when.is_none() && !source.may_read_on(self, py)? {
                    return Ok(None);
                }
                match ffi::next(&iterator) {
                    Ok(Some(item)) => source.push(self, &item, when)?,
                    Ok(None) => return Ok(Some(None)),
                    // Ctrl-C is nobody's data: it is raised here and now.
                    Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => {
                        return Err(error);
                    }
                    Err(error) => return Ok(Some(Some(error.into_value(py).into_any()))),
                }
                if self.is_exhausted() {
                    return Ok(None);
                }
            }
            Ok(None)
        })();
        // What happens until the next read may change anything.
        source.forget_sweep();
        self.keep_movable(&mut source, py);
        // Hand over what is read, unless the engine has plenty to do still: then in larger blocks.
        let unflushed = source.has_unflushed();
        let at_end = !matches!(outcome, Ok(None));
        // Who was interrupted waits no longer.
        let when = when.filter(|_| outcome.is_ok());
        if unflushed > 0
            && (at_end || unflushed * 8 >= self.state.unended() as usize)
            && let Err(error) = source.flush(self, py, when)
        {
            self.end(None);
            return Err(error);
        }
        match outcome {
            Ok(Some(end)) if source.has_unflushed() > 0 => {
                source.over = Some(end);
                self.put_back(source);
                Ok(())
            }
            Ok(None) => {
                self.put_back(source);
                Ok(())
            }
            Ok(Some(end)) => {
                self.end(end);
                Ok(())
            }
            Err(error) => {
                self.end(None);
                Err(error)
            }
        }
    }

    pub(crate) fn put_back(&self, source: Source) {
        let runs_here = matches!(source.way, Way::Own { .. });
        self.runs_here.store(runs_here, Ordering::Relaxed);
        self.unadded
            .store(source.unadded as usize, Ordering::SeqCst);
        *lock(&self.source) = Some(source);
    }

    /// Hands everything read to the engine, because somebody is about to wait for it.
    pub(crate) fn flush(&self, py: Python<'_>, when: Option<WhenFull>) -> PyResult<()> {
        let Some(mut source) = lock(&self.source).take() else {
            return Ok(());
        };
        let flushed = source.flush(self, py, when);
        self.put_back(source);
        flushed
    }

    /// Nothing more will be read.
    pub(crate) fn end(&self, with: Option<Py<PyAny>>) {
        self.unadded.store(0, Ordering::SeqCst);
        let spare = {
            let mut ended = lock(&self.ended);
            if ended.is_none() {
                *ended = Some(with);
                None
            } else {
                with
            }
        };
        drop(spare);
        self.exhausted.store(true, Ordering::SeqCst);
        // Copied out first: ending a call may run finalizers of the user's.
        let call = *lock(&self.call);
        if let Some(call) = call {
            self.executor.engine.close_call(call);
        }
        self.executor.remove_feed(self);
        self.state.close();
        self.executor.engine.nudge();
    }

    fn cancel_last(&self, count: u64) {
        self.state.cancel_last(count);
        self.executor.engine.nudge();
    }

    /// The executor ends what is not begun.
    pub(crate) fn cut_off(&self) {
        let cut_short = self.reader == Reader::Feeder && !self.is_exhausted();
        // Whoever iterates must not take it for the end of the input.
        self.end(
            cut_short.then(|| Python::attach(|py| cancelled_error(py).into_value(py).into_any())),
        );
        self.drop_source();
    }

    /// Nobody reads on: what was read and not handed to the engine ends as cancelled.
    pub(crate) fn drop_source(&self) {
        let Some(source) = lock(&self.source).take() else {
            return;
        };
        // Those not counted yet have no place among the results, and need none.
        let counted =
            source.has_unflushed() as u64 - source.unadded.min(source.has_unflushed() as u64);
        drop(source);
        if counted > 0 {
            self.cancel_last(counted);
        }
    }

    /// In a forked child: the thread that read the input is not there.
    pub(crate) fn forked_child(&self, py: Python<'_>) {
        if self.reader == Reader::Feeder && !self.exhausted.swap(true, Ordering::SeqCst) {
            *lock(&self.ended) = Some(Some(cancelled_error(py).into_value(py).into_any()));
            let mut kept = lock(&self.state.kept);
            kept.cancel_rest();
            kept.closed = true;
        }
    }

    /// The executor takes no more: a map with a window of its own ends where it is, with an error.
    pub(crate) fn end_with_executor(self: &Arc<Feed>) {
        // Of an open-ended one, the iterator goes on reading, if somebody still holds it.
        let abandoned = Arc::strong_count(self) <= 2;
        if self.reader != Reader::OpenEnded || abandoned {
            let error = Python::attach(|py| {
                let text =
                    "the executor was shut down before the input of this map was read to its end";
                PyRuntimeError::new_err(text).into_value(py).into_any()
            });
            self.end(Some(error));
        }
    }

    /// Reads to the end of the input, never more than the read-ahead beyond what has ended.
    pub(crate) fn read_to_end(&self, py: Python<'_>) -> PyResult<()> {
        while !self.is_exhausted() {
            let room = READ_AHEAD_ITEMS.saturating_sub(self.state.unended() as usize);
            let elsewhere = lock(&self.source).is_none();
            if room == 0 || elsewhere {
                self.flush(py, Some(WhenFull::Wait))?;
                // Somebody else is in the middle of reading: only time, or the end, changes that.
                let most = (READ_AHEAD_ITEMS / 2) as u64;
                let soon = Some(Instant::now() + Duration::from_millis(100));
                let ready = |kept: &Kept| {
                    self.is_exhausted() || (!elsewhere && kept.read - kept.ended <= most)
                };
                self.state
                    .wait(py, &self.executor.engine, soon, true, ready)?;
                py.check_signals()?;
                continue;
            }
            self.read(py, room, Some(WhenFull::Wait))?;
        }
        Ok(())
    }

    /// Cancels what is not begun.
    pub(crate) fn cancel(&self) {
        self.end(None);
        // First, so that nobody keeps the ends of what is abandoned now.
        self.state.discard();
        let call = *lock(&self.call);
        let moved = std::mem::take(&mut *lock(&self.moved));
        for call in call.into_iter().chain(moved) {
            self.executor.engine.abandon(call);
        }
        let source = lock(&self.source).take();
        drop(source);
        let movable = lock(&self.movable).take();
        drop(movable);
    }

    /// Its function may still come to run in threads, and these of its items with it.
    fn keep_movable(&self, source: &mut Source, py: Python<'_>) {
        if let (Some(given), Some(profile), Way::Remote { definition, .. }) =
            (source.given.take(), &source.unknown, &source.way)
        {
            *lock(&self.movable) = Some(Movable {
                profile: profile.clone(),
                definition: definition.clone(),
                function: source.function.clone_ref(py),
                spread: source.spread,
                given,
                look_at: 1,
                tried: false,
            });
            self.may_move.store(true, Ordering::Relaxed);
        }
    }

    /// Has threads run what no worker was sent yet, if its function belongs there by now. For whoever takes results.
    fn reconsider(&self, py: Python<'_>) -> PyResult<()> {
        // Looking at a function may run anything: no lock is held meanwhile.
        let Some(mut movable) = lock(&self.movable).take() else {
            return Ok(());
        };
        let ended = lock(&self.state.kept).ended;
        if ended >= movable.look_at {
            movable.look_at = ended + 1 + ended / 8;
            if !self.move_some(py, &mut movable)? {
                self.may_move.store(false, Ordering::Relaxed);
                return Ok(());
            }
        }
        *lock(&self.movable) = Some(movable);
        Ok(())
    }

    /// False if there is nothing left to move.
    fn move_some(&self, py: Python<'_>, movable: &mut Movable) -> PyResult<bool> {
        let Some(call) = self.call() else {
            return Ok(false);
        };
        let (engine, house) = (&self.executor.engine, &self.executor.house);
        let fresh = engine.fresh(call);
        if fresh.start >= movable.given.len().min(fresh.end) {
            return Ok(false);
        }
        let (profile, function) = (&movable.profile, movable.function.bind(py));
        let id = movable.definition.id();
        let (place, trusted) = self.executor.place_map(function, id, profile)?;
        let trial = profile.is_on_trial(house);
        if place != Place::Thread || trial && movable.tried {
            return Ok(true);
        }
        movable.tried = true;
        let most = if trial {
            TRIAL_ITEMS * u64::from(house.ground.threads)
        } else {
            u64::MAX
        };
        let mut items = movable.given.get(py, fresh.start, most)?;
        let (function, spread) = (movable.function.clone_ref(py), movable.spread);
        let here = Some(Here::new(profile.clone(), trusted));
        let mut gone = Vec::new();
        let moved = engine.move_to_threads(call, |still| {
            // Workers may have been sent some meanwhile.
            let sent = still.start.saturating_sub(fresh.start) as usize;
            gone.extend(items.drain(..sent.min(items.len())));
            let (at, in_row) = lock(&self.state.kept).row(still.start);
            let count = in_row.min(still.end - still.start).min(items.len() as u64);
            gone.extend(items.drain(count as usize..));
            let local = Arc::new(Local::Map {
                function,
                spread,
                items: Mutex::new(std::mem::take(&mut items).into()),
                level: nesting().1,
                here,
            });
            (count > 0).then(|| (count, Ticket::MapPart(self.state.clone(), at), local))
        });
        drop(gone);
        if let Some(moved) = moved {
            lock(&self.moved).push(moved);
            self.executor
                .start_threads(py)
                .inspect_err(|_| engine.abandon(moved))?;
        }
        Ok(true)
    }
}

/// The end of an item that ran in this process.
fn local_entry(py: Python<'_>, outcome: Result<Py<PyAny>, Py<PyAny>>) -> Entry {
    match outcome {
        Ok(value) => {
            let bytes = ffi::buffer_bytes(value.bind(py));
            Entry::Value(value, bytes)
        }
        Err(exception) => Entry::Exception(exception),
    }
}

impl Executor {
    fn extend_local(
        self: &Arc<Executor>,
        py: Python<'_>,
        call: CallId,
        count: u64,
    ) -> PyResult<bool> {
        let taken = self.engine.extend_local(call, count);
        self.start_threads(py)?;
        Ok(taken)
    }

    fn submit_remote(
        self: &Arc<Executor>,
        py: Python<'_>,
        remote: Remote,
        ticket: Ticket,
        plan: Plan,
    ) -> PyResult<CallId> {
        self.engine
            .submit_remote(remote, ticket, plan)
            .map_err(|error| self.submit_error(py, error))
    }
}

/// What `Executor.map` returns: yields results in the order of the input.
#[pyclass(module = "rightlane._core")]
#[derive(Debug)]
pub(crate) struct MapResults {
    feed: Arc<Feed>,
    /// The ends that are next, taken together.
    ready: Option<Part>,
    window: usize,
    deadline: Option<Instant>,
    started: bool,
    finished: bool,
}

impl MapResults {
    pub(crate) fn start(
        py: Python<'_>,
        executor: Arc<Executor>,
        function: &Bound<'_, PyAny>,
        source: Source,
        sized: bool,
        window: Option<usize>,
        timeout: Option<f64>,
    ) -> PyResult<MapResults> {
        let deadline = deadline_after(timeout)?;
        let state = MapState::new(function.clone().unbind(), false);
        let reader = match window {
            Some(_) => Reader::Windowed,
            None => Reader::OpenEnded,
        };
        let mut source = source;
        if sized && window.is_none() {
            source.keep_given();
        }
        let feed = Feed::new(executor, state, source, reader);
        feed.sized
            .store(sized && window.is_none(), Ordering::Relaxed);
        let state = &feed.state;
        let ahead = feed.most_ahead();
        let (first, when) = match window {
            Some(window) => (window.min(ahead), None),
            None if sized => (feed.first_read(), Some(WhenFull::Ask)),
            None => (ahead, None),
        };
        let read = feed.read(py, first, when).and_then(|()| {
            // What comes first is accepted here, as a call of `submit` would be.
            let when = (state.unyielded() == 0).then_some(WhenFull::Ask);
            feed.flush(py, when)
        });
        // An input that raises at once raises here, as it would in the standard library.
        let raised = match &*lock(&feed.ended) {
            Some(Some(exception)) => Some(exception.clone_ref(py)),
            _ => None,
        };
        let error = read
            .err()
            .or_else(|| raised.map(|exception| PyErr::from_value(exception.into_bound(py))));
        if let Some(error) = error {
            feed.cancel();
            return Err(error);
        }
        let window = window.unwrap_or(usize::MAX).min(ahead);
        Ok(MapResults {
            feed,
            ready: None,
            window,
            deadline,
            started: false,
            finished: false,
        })
    }

    fn stop(&mut self) {
        self.finished = true;
        self.feed.cancel();
        let ready = self.ready.take();
        drop(ready);
    }

    fn next(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        // The usual case first: everything is read, and the next result is here, and a plain one.
        if let Some(Part::Run(run)) = &mut self.ready
            && self.feed.is_exhausted()
            && let Some(answer) = run.next_plain()
        {
            return Ok(Some(codec::decode(py, answer)?.unbind()));
        }
        let feed = self.feed.clone();
        let state = &feed.state;
        loop {
            if let Some(entry) = self.ready.as_mut().and_then(Part::next) {
                // What runs in the caller is run when there is nothing left to yield.
                if !feed.is_exhausted() && !feed.runs_here.load(Ordering::Relaxed) {
                    // The one in hand is not yielded yet.
                    let held = feed.held() + self.ready.as_ref().map_or(0, Part::len) + 1;
                    feed.read(py, self.window.saturating_sub(held).min(64), None)?;
                }
                return feed.open(py, entry).map(Some);
            }
            if feed.may_move.load(Ordering::Relaxed) {
                feed.reconsider(py)?;
            }
            // With a window of its own a map holds no more than that, taken or not.
            let all = feed.reader == Reader::OpenEnded || feed.is_exhausted();
            self.ready = state.take_front(all);
            if self.ready.is_some() {
                continue;
            }
            if feed.is_exhausted() && state.unyielded() == 0 {
                self.finished = true;
                let ended = lock(&feed.ended).take();
                return match ended {
                    Some(Some(exception)) => Err(PyErr::from_value(exception.into_bound(py))),
                    _ => Ok(None),
                };
            }
            let held = feed.held();
            let room = self.window.saturating_sub(held);
            if !feed.is_exhausted() && room > 0 {
                feed.read(py, room, None)?;
                feed.flush(py, None)?;
                if feed.is_exhausted() || feed.held() > held {
                    continue;
                }
            }
            feed.flush(py, feed.when_waiting())?;
            // Room may come before the result, and then others need not wait for that.
            let word = feed
                .stuck()
                .and_then(|more| feed.executor.engine.wait_for_room(more));
            let ready = |kept: &Kept| {
                kept.is_front_ready()
                    || kept.first == kept.read && feed.is_exhausted()
                    || word.is_some_and(|(bell, seen)| bell.load(Ordering::SeqCst) != seen)
            };
            if !state.wait(py, &feed.executor.engine, self.deadline, false, ready)? {
                return Err(PyTimeoutError::new_err(()));
            }
        }
    }
}

impl Feed {
    /// The value, or what is to be raised.
    pub(crate) fn open(&self, py: Python<'_>, entry: Entry) -> PyResult<Py<PyAny>> {
        let raised = match entry {
            Entry::Value(value, _) => return Ok(value),
            Entry::Exception(exception) => exception,
            Entry::Raw(Raw::Cancelled) => return Err(cancelled_error(py)),
            Entry::Raw(raw) => {
                let why = |why| self.executor.breakage_error(py, why);
                let begun = raw.is_large().then(Instant::now);
                let opened = raw.open(py, &self.state.name(py), why);
                if let (Some(begun), Some(account)) = (begun, self.state.account()) {
                    account.opened(begun);
                }
                match opened {
                    Ok(value) => return Ok(value),
                    Err(exception) => exception,
                }
            }
        };
        Err(PyErr::from_value(raised.into_bound(py)))
    }
}

#[pymethods]
impl MapResults {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        if self.finished {
            return Ok(None);
        }
        self.started = true;
        let next = self
            .next(py)
            .and_then(|next| guard::tell(py).map(|()| next));
        if next.is_err() {
            self.stop();
        }
        // A generator, such as the standard `map`, is not ended by what a task raised either.
        next.map_err(|error| match error.is_instance_of::<PyStopIteration>(py) {
            true => {
                let raised = PyRuntimeError::new_err("generator raised StopIteration");
                raised.set_cause(py, Some(error));
                raised
            }
            false => error,
        })
    }

    /// Cancels what has not begun and ends the iteration.
    fn close(&mut self) {
        if !self.finished {
            self.stop();
        }
    }
}

impl Drop for MapResults {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if self.started {
            // Dropping a partly iterated map cancels the rest (rule 1).
            self.feed.cancel();
        } else {
            self.feed.state.discard();
            if self.feed.executor.is_closed() {
                // Nobody is left to read on.
                self.feed.end(None);
            }
        }
    }
}
