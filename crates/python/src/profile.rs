//! What is known of each function that auto has run, and where it runs because of that.
//!
//! One [`Profile`] for each function, for all executors: found by its name and code, which are the same however often a
//! closure or lambda is made anew. Workers' measurements come in by the number of the definition ([`measured`]), those of lane threads from
//! the threads themselves. The decision is `core`'s; here stands what may not leave its worker, whatever that would
//! gain (rule 3).

use crate::cached::Cached;
use crate::executor::{lock, without_partials};
use crate::ffi;
use crate::future::function_name;
use crate::guard;
use crate::moved::Account;
use crate::remembered;
use crate::sent;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyBytes, PyComplex, PyDict, PyFloat, PyFrozenSet, PyInt, PyRange, PyString, PyTuple,
};
use rightlane_runtime::lane::past::{Key as PastKey, Past};
use rightlane_runtime::lane::{
    Bar, Ground, Known, LONG_FIRST_NS, Measured, Nature, Place, Reason, TINY_CALLS, Terms, choose,
};
use rightlane_runtime::sys::clocks;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

/// How many functions are remembered.
const MOST: usize = 512;

/// How many calls in threads, two or more at once, show whether two beat one; and after how many without company
/// nobody waits for that any longer.
const PAIRS: u64 = 6;
const LONELY: u64 = 32;

/// So many at once, on average, are company.
const IN_COMPANY: f64 = 1.5;

/// So many calls in a row that do something else in a thread than in a worker send a function back.
const ODD_CALLS: u32 = 3;

/// For so many kinds of executors it is remembered where a function runs.
const MOST_GROUNDS: usize = 8;

/// A function is looked at again after so many calls: what its code names may be something else by then.
const PROVEN_CALLS: u32 = 64;

/// Not tiny, whatever of it was imports.
const NEVER_TINY_NS: u64 = 10_000_000;

/// The pickling of so many calls is timed.
const TIMED_PICKLES: u32 = 16;

/// What `rightlane._proof` says of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Proof {
    /// It was watched, and changes neither what is shared nor its arguments.
    Unchanged,
    /// Its code names nothing that could be changed.
    Plain,
    /// It may change what is shared, and why.
    Doubt(String),
    /// It does, or has a state of its own.
    Changes(String),
}

impl Proof {
    fn bar(&self) -> Option<Bar> {
        match self {
            Proof::Unchanged | Proof::Plain => None,
            Proof::Doubt(_) => Some(Bar::NotProven),
            Proof::Changes(_) => Some(Bar::Changes),
        }
    }

    fn into_text(self) -> Option<String> {
        match self {
            Proof::Unchanged | Proof::Plain => None,
            Proof::Doubt(text) | Proof::Changes(text) => Some(text),
        }
    }
}

/// How many of a function's calls run in threads, over time.
#[derive(Debug, Default)]
struct Company {
    now: u32,
    /// Since when there have been so many, and the run time of all until then.
    since: Option<Instant>,
    together_ns: f64,
}

impl Company {
    /// The run time of all calls so far; from here on there are so many.
    fn change(&mut self, change: impl FnOnce(u32) -> u32) -> f64 {
        let now = Instant::now();
        if let Some(since) = self.since.replace(now) {
            let passed_ns = now.duration_since(since).as_nanos() as f64;
            self.together_ns += passed_ns * f64::from(self.now);
        }
        self.now = change(self.now);
        self.together_ns
    }
}

#[derive(Debug, Default)]
struct State {
    known: Known,
    /// The first calls in each worker, which also pay for imports.
    first: Measured,
    /// Where it runs, by what executors have.
    places: Vec<(Ground, Place)>,
    /// What is said of the function, of which definition, and how often that was enough.
    proof: Option<(u64, Proof, u32)>,
    deadly: bool,
    drifted: bool,
    unpicklable: bool,
    odd: u32,
    pairs: u64,
    /// Run time of those, divided by how many were at once.
    pairs_ns: f64,
    /// And what they burnt.
    pairs_cpu_ns: f64,
    lonely: u64,
    company: Company,
    /// What kept its last call in a worker, for whoever asks.
    last: Option<Option<Bar>>,
    /// What earlier runs knew of it, until enough is known here.
    past: Option<Past>,
    /// Whether it may run in this process before it has come to its end in a worker; None: nobody has asked.
    trusted: Option<bool>,
    /// Its name in the book, if what is known of it is to be remembered; how many calls were known when that was written.
    page: Option<PastKey>,
    qualname: String,
    written: u64,
    /// The book does not say what it should of it.
    outdated: bool,
    /// What pickling the arguments of a call takes that have no large buffers.
    small_pickle_ns: Option<f64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Profile {
    state: Mutex<State>,
    /// Whether a thread would be cheaper on some executor; and whether the caller would. Looked at without the lock.
    may_leave: AtomicBool,
    may_stay: AtomicBool,
    /// How often pickling its arguments was timed.
    pickles: AtomicU32,
    /// Whether earlier runs were asked about it.
    recalled: AtomicBool,
    /// What was moved for it.
    pub(crate) moved: Account,
}

/// Module and name of a function, and the hash of its code: a function that is made anew with the same code is the
/// same one. Profiles keep nothing of Python's alive.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
struct Key {
    name: String,
    code: isize,
}

#[derive(Debug, Default)]
struct Registry {
    profiles: HashMap<Key, Arc<Profile>>,
    order: VecDeque<Key>,
}

/// Held by attached threads only, while no Python code runs.
static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

/// Held for a few instructions, also by threads that are not attached.
static BY_DEFINITION: Mutex<Option<HashMap<u64, Weak<Profile>>>> = Mutex::new(None);

fn key_of(function: &Bound<'_, PyAny>) -> Key {
    static CODE: Cached = Cached::new(c"types", "CodeType");
    let py = function.py();
    let mut innermost = without_partials(function.clone());
    if let Ok(behind) = innermost.getattr(PyString::intern(py, "__func__")) {
        innermost = behind;
    }
    let code = innermost.getattr(PyString::intern(py, "__code__")).ok();
    let code = code.filter(|code| CODE.get(py).is_ok_and(|kind| code.get_type().is(kind)));
    let named = |object: &Bound<'_, PyAny>| -> PyResult<String> {
        let module = object.getattr(PyString::intern(py, "__module__"))?;
        let name = object.getattr(PyString::intern(py, "__qualname__"))?;
        Ok(format!("{module}.{name}"))
    };
    let name = named(&innermost).or_else(|_| named(innermost.get_type().as_any()));
    Key {
        name: name.unwrap_or_default(),
        code: code.and_then(|code| code.hash().ok()).unwrap_or(0),
    }
}

/// For tests: nothing is known of any function any more.
#[pyfunction]
pub(crate) fn forget_measurements() {
    let profiles: Vec<Arc<Profile>> = match &*lock(&REGISTRY) {
        Some(registry) => registry.profiles.values().cloned().collect(),
        None => Vec::new(),
    };
    for profile in profiles {
        *lock(&profile.state) = State::default();
        profile.may_leave.store(false, Ordering::Relaxed);
        profile.may_stay.store(false, Ordering::Relaxed);
        profile.pickles.store(0, Ordering::Relaxed);
    }
}

/// The profile of a function, if there is one.
fn find(function: &Bound<'_, PyAny>) -> Option<Arc<Profile>> {
    let key = key_of(function);
    lock(&REGISTRY).as_ref()?.profiles.get(&key).cloned()
}

/// The profile of a function; a new one takes the place of the oldest.
pub(crate) fn of(function: &Bound<'_, PyAny>) -> Arc<Profile> {
    let key = key_of(function);
    let mut registry = lock(&REGISTRY);
    let registry = registry.get_or_insert_default();
    if let Some(profile) = registry.profiles.get(&key) {
        return profile.clone();
    }
    if registry.order.len() == MOST
        && let Some(oldest) = registry.order.pop_front()
    {
        registry.profiles.remove(&oldest);
    }
    let profile = Arc::new(Profile::default());
    registry.order.push_back(key.clone());
    registry.profiles.insert(key, profile.clone());
    profile
}

/// The same where this process or an earlier one knows the function; no new one otherwise.
fn find_or_recall(function: &Bound<'_, PyAny>, house: &House) -> PyResult<Option<Arc<Profile>>> {
    let mut found = find(function);
    if found.is_none()
        && house.remembers
        && let Some(memory) = remembered::memory(function.py())
        && let Some(page) = remembered::key_of(function)?
        && memory.find(&page).is_some()
    {
        found = Some(of(function));
    }
    if let Some(profile) = &found {
        profile.recall(function, house)?;
    }
    Ok(found)
}

/// Writes down what later runs are to know, if there is news.
#[pyfunction]
pub(crate) fn save_profiles(py: Python<'_>) {
    let profiles: Vec<Arc<Profile>> = match &*lock(&REGISTRY) {
        Some(registry) => registry.profiles.values().cloned().collect(),
        None => return,
    };
    let news: Vec<_> = profiles.iter().filter_map(|each| each.news()).collect();
    if !news.is_empty()
        && let Some(memory) = remembered::memory(py)
    {
        memory.write(py, &news);
    }
}

/// From now on what workers measure of this definition is the profile's.
pub(crate) fn name_definition(id: u64, profile: &Arc<Profile>) {
    let mut all = lock(&BY_DEFINITION);
    let all = all.get_or_insert_default();
    all.insert(id, Arc::downgrade(profile));
}

/// A definition is gone.
pub(crate) fn forget_definition(id: u64) {
    if let Some(all) = &mut *lock(&BY_DEFINITION) {
        all.remove(&id);
    }
}

/// A worker has measured this of a definition, of which it had told that before.
pub(crate) fn measured(id: u64, epoch: u64, before: &Measured, now: &Measured) {
    if let Some(profile) = by_definition(id) {
        profile.absorb(epoch, before, now);
    }
}

/// A worker has died while it ran the function of this definition.
pub(crate) fn died(id: u64) {
    if let Some(profile) = by_definition(id) {
        let mut state = lock(&profile.state);
        state.deadly = true;
        state.outdated = true;
    }
}

pub(crate) fn by_definition(id: u64) -> Option<Arc<Profile>> {
    lock(&BY_DEFINITION).as_ref()?.get(&id)?.upgrade()
}

/// What an executor allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct House {
    pub(crate) ground: Ground,
    /// It has an initializer, or recycles workers.
    pub(crate) setup: bool,
    /// It counts what earlier runs have measured, and tells later ones.
    pub(crate) remembers: bool,
}

impl Profile {
    fn absorb(&self, epoch: u64, before: &Measured, now: &Measured) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        if epoch == 0 {
            state.first = state.first.plus(now).since(before);
        } else {
            if (epoch > 1 || state.drifted) && state.is_news(&now.since(before)) {
                // It has become another one: what was known of the one before is not known of this one.
                state.known.in_workers = Measured::default();
                state.known.scales = None;
                (state.pairs, state.lonely) = (0, 0);
                (state.pairs_ns, state.pairs_cpu_ns) = (0.0, 0.0);
                state.drifted = false;
                state.forget();
            }
            state.known.in_workers = state.known.in_workers.plus(now).since(before);
        }
        let measured = state.measured_here();
        // Short first calls are imports, as a rule.
        let telling = epoch > 0 || measured.wall_ns >= LONG_FIRST_NS * measured.begun;
        if telling && state.past.is_some_and(|past| past.is_over(&measured)) {
            state.forget();
        }
        self.weigh(state);
    }

    /// Sees whether it may be worth asking where it should run.
    fn weigh(&self, state: &State) {
        let grounds = [2, 4096].map(|slots| Ground {
            slots,
            threads: slots,
            capped: slots > 2,
            cores: 2,
        });
        let wants = |place: Place, caller: bool| {
            let terms = Terms { bar: None, caller };
            grounds
                .iter()
                .any(|ground| choose(&state.settled(ground, true), ground, &terms).wanted == place)
        };
        self.may_leave
            .store(wants(Place::Thread, false), Ordering::Relaxed);
        self.may_stay
            .store(wants(Place::Caller, true), Ordering::Relaxed);
    }

    /// It could not be sent, or its arguments.
    pub(crate) fn unpicklable(&self) {
        lock(&self.state).unpicklable = true;
    }

    /// Whether to time the pickling of the next arguments.
    pub(crate) fn times_pickles(&self) -> bool {
        self.pickles.load(Ordering::Relaxed) < TIMED_PICKLES
    }

    /// Pickling the arguments of a call, which are so large, was begun then and is done. `placed`: large buffers among
    /// them were placed.
    pub(crate) fn pickled(&self, begun: Instant, bytes: u64, placed: bool) {
        let ns = begun.elapsed().as_nanos() as f64;
        let state = &mut *lock(&self.state);
        if !placed {
            let mean = state.small_pickle_ns.get_or_insert(ns);
            *mean += (ns.min(*mean * 2.0 + 1_000.0) - *mean) * 0.25;
        }
        let known = &mut state.known;
        // The first one pays for imports. Of others, one that took long by itself lost its core as a rule.
        let earlier = self.pickles.fetch_add(1, Ordering::Relaxed);
        let (ns, weight) = match earlier {
            0 | 1 => (ns, 1.0),
            _ => (ns.min(known.pickle_ns * 2.0 + 1_000.0), 0.25),
        };
        known.pickle_ns += (ns - known.pickle_ns) * weight;
        known.argument_bytes += (bytes as f64 - known.argument_bytes) * weight;
    }

    /// Whether a call by `submit` may be worth a thread.
    pub(crate) fn may_leave(&self) -> bool {
        self.may_leave.load(Ordering::Relaxed)
    }

    /// Whether items of a map may be worth the caller's own time.
    pub(crate) fn may_stay(&self) -> bool {
        self.may_stay.load(Ordering::Relaxed)
    }

    /// Whether it is known of items of a map if they are tiny.
    pub(crate) fn is_weighed(&self) -> bool {
        if self.may_stay() {
            return true;
        }
        let state = lock(&self.state);
        let all = state.measured_here();
        let each_ns = all.wall_ns.checked_div(all.done);
        all.done >= TINY_CALLS || each_ns.is_some_and(|ns| ns >= NEVER_TINY_NS)
    }

    /// Whether a thread would run it to be seen, because nobody knows yet whether two threads beat one.
    pub(crate) fn is_on_trial(&self, house: &House) -> bool {
        let state = lock(&self.state);
        let known = state.settled(&house.ground, house.remembers);
        let terms = Terms::default();
        choose(&known, &house.ground, &terms).trial
    }

    /// Where the next call is to run, and whether it may whatever its arguments are. `arguments`: whether nobody can
    /// change them.
    pub(crate) fn place(
        &self,
        function: &Bound<'_, PyAny>,
        definition: u64,
        house: &House,
        caller: bool,
        arguments: impl FnOnce() -> bool,
    ) -> PyResult<(Place, bool)> {
        let proof = self.proof(function, definition)?;
        let state = lock(&self.state);
        let terms = Terms {
            bar: state.bar(house, &proof),
            caller,
        };
        let known = state.settled(&house.ground, house.remembers);
        let mut choice = choose(&known, &house.ground, &terms);
        drop(state);
        let trusted = proof == Proof::Unchanged;
        if choice.place != Place::Process && !trusted && !arguments() {
            choice.bar = Some(Bar::Arguments);
            choice.place = Place::Process;
        }
        if choice.place != Place::Process && !self.may_run_here(function.py()) {
            choice.bar = Some(Bar::Unfinished);
            choice.place = Place::Process;
        }
        let mut state = lock(&self.state);
        if choice.place != Place::Caller {
            state.move_to(&house.ground, choice.place);
        }
        state.last = Some(choice.bar);
        Ok((choice.place, trusted))
    }

    fn proof(&self, function: &Bound<'_, PyAny>, definition: u64) -> PyResult<Proof> {
        {
            let mut state = lock(&self.state);
            if let Some((of, proof, uses)) = &mut state.proof
                && *of == definition
                && *uses < PROVEN_CALLS
            {
                *uses += 1;
                return Ok(proof.clone());
            }
        }
        let proof = prove(function)?;
        lock(&self.state).proof = Some((definition, proof.clone(), 0));
        Ok(proof)
    }

    /// Asks earlier runs about it, once, where the executor does that.
    pub(crate) fn recall(&self, function: &Bound<'_, PyAny>, house: &House) -> PyResult<()> {
        if !house.remembers || self.recalled.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(memory) = remembered::memory(function.py()) else {
            self.recalled.store(true, Ordering::Relaxed);
            return Ok(());
        };
        let page = remembered::key_of(function)?;
        let qualname = function_name(function);
        let past = page.and_then(|page| memory.find(&page));
        if self.recalled.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = lock(&self.state);
        state.page = page;
        state.qualname = qualname;
        // Not if as much is known already.
        state.past = past.filter(|past| !past.is_over(&state.known.in_workers));
        self.weigh(&state);
        Ok(())
    }

    /// Whether it may run in the user's process. Before a function does that only because it came to its end in an
    /// earlier run, it is taken out of the book, and put back when nothing has happened: if it takes the process down
    /// it is not trusted again.
    fn may_run_here(&self, py: Python<'_>) -> bool {
        let page = {
            let state = lock(&self.state);
            if state.has_ended() {
                return true;
            }
            if let Some(trusted) = state.trusted {
                return trusted;
            }
            state.page
        };
        let memory = remembered::memory(py);
        let trusted = memory
            .zip(page)
            .is_some_and(|(memory, page)| memory.forget(py, &page));
        let mut state = lock(&self.state);
        state.outdated |= trusted;
        *state.trusted.get_or_insert(trusted)
    }

    /// What later runs are to be told, if that is something else than they were.
    fn news(&self) -> Option<(PastKey, Option<Past>)> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let page = state.page?;
        let mut known = state.known;
        known.in_workers = state.in_workers(true);
        known.scales = state.scales(true);
        let calls = state.measured_here().begun;
        // Who was seen to change what is shared is watched again, and begins as one that nobody knows.
        let harmful = state.deadly || state.drifted || guard::has_changed(&state.qualname);
        let past = Past::of(&known).or(state.past).filter(|_| !harmful);
        // Of what goes on as it did there is news when twice as much is known.
        let more = past.is_some() && calls > 0 && calls >= state.written.saturating_mul(2);
        if !more && !state.outdated {
            return None;
        }
        state.outdated = false;
        state.written = calls.max(1);
        Some((page, past))
    }

    /// A call begins in a lane thread.
    pub(crate) fn begin(&self) -> Visit<'_> {
        let (together_ns, probing) = {
            let mut state = lock(&self.state);
            let together_ns = state.company.change(|calls| calls + 1);
            (together_ns, state.scales(true).is_none())
        };
        Visit {
            profile: self,
            together_ns,
            began: Instant::now(),
            cpu_ns: clocks::thread_cpu_ns(),
            delay_ns: probing.then(clocks::own_delay_ns),
        }
    }
}

/// What auto has run in a thread.
#[derive(Debug, Clone)]
pub(crate) struct Here {
    profile: Arc<Profile>,
    /// What it returns may be part of what others see as well: it was seen to change nothing, which is not to say that
    /// it names nothing.
    apart: bool,
}

impl Here {
    pub(crate) fn new(profile: Arc<Profile>, apart: bool) -> Here {
        Here { profile, apart }
    }

    /// Runs a call, which auto has chosen a thread for if there is a `here`.
    pub(crate) fn run(here: Option<&Here>, py: Python<'_>, call: impl FnOnce() -> Ended) -> Ended {
        let Some(here) = here else {
            return call();
        };
        let visit = here.profile.begin();
        let outcome = call();
        visit.end();
        if here.apart {
            apart(py, outcome)
        } else {
            outcome
        }
    }
}

type Ended = Result<Py<PyAny>, Py<PyAny>>;

/// Whether it is an array with memory of its own that nobody else holds.
fn is_sole_array(py: Python<'_>, value: &Py<PyAny>) -> bool {
    ffi::is_held_once(value.bind(py)) && sent::is_array_of_its_own(value.bind(py)).unwrap_or(false)
}

/// A result that is nobody else's, as one from a worker is: the function may have returned its argument.
pub(crate) fn apart(py: Python<'_>, outcome: Ended) -> Ended {
    static APART: Cached = Cached::new(c"rightlane._proof", "apart");
    match outcome {
        Ok(value) if !is_constant(value.bind(py)) && !is_sole_array(py, &value) => APART
            .get(py)
            .and_then(|apart| ffi::call1(apart, (&value,)))
            .map(Bound::unbind)
            .map_err(|error| error.into_value(py).into_any()),
        outcome => outcome,
    }
}

/// A call that runs in a lane thread.
pub(crate) struct Visit<'a> {
    profile: &'a Profile,
    /// How long all calls of the function in threads had run together when it began.
    together_ns: f64,
    began: Instant,
    cpu_ns: u64,
    delay_ns: Option<u64>,
}

impl Visit<'_> {
    /// It has ended.
    pub(crate) fn end(self) {
        let wall_ns = self.began.elapsed().as_nanos().min(u128::from(u64::MAX)) as u64;
        let cpu_ns = clocks::thread_cpu_ns() - self.cpu_ns;
        let mut state = lock(&self.profile.state);
        let together_ns = state.company.change(|calls| calls.saturating_sub(1)) - self.together_ns;
        state.known.in_threads = state.known.in_threads.plus(&Measured {
            begun: 1,
            done: 1,
            wall_ns,
            cpu_ns,
            ..Measured::default()
        });
        let Some(nature) = Nature::of(&state.in_workers(true)) else {
            return;
        };
        if let Some(before_ns) = self.delay_ns {
            let delay_ns = clocks::own_delay_ns() - before_ns;
            state.pair(
                together_ns / (wall_ns.max(1) as f64),
                wall_ns.saturating_sub(delay_ns),
                cpu_ns,
                &nature,
            );
        }
        // It burns here what it did not burn there: as a rule under the interpreter's lock.
        let odd = cpu_ns as f64 > nature.cpu_ns() * 3.0 + 1e6;
        state.odd = if odd { state.odd + 1 } else { 0 };
        if state.odd >= ODD_CALLS {
            state.odd = 0;
            // Of what earlier runs have measured it is only known that it is so no more.
            state.drifted = state.measured_here().begun > 0;
            state.past = None;
            state.outdated = true;
            state.places.clear();
        }
    }
}

impl State {
    /// What decides. `remembers`: what earlier runs knew counts as well.
    fn settled(&self, ground: &Ground, remembers: bool) -> Known {
        let mut known = self.known;
        known.in_workers = self.in_workers(remembers);
        known.scales = self.scales(remembers);
        if let Some(past) = self.past.filter(|_| remembers && known.pickle_ns == 0.0) {
            let past = past.known();
            (known.pickle_ns, known.argument_bytes) = (past.pickle_ns, past.argument_bytes);
        }
        let place = self.places.iter().find(|(known, _)| known == ground);
        known.now = place.map_or(Place::Process, |(_, place)| *place);
        known
    }

    fn scales(&self, remembers: bool) -> Option<bool> {
        let past = self.past.filter(|_| remembers);
        let then = past.and_then(|past| past.known().scales);
        self.known.scales.or(then)
    }

    fn in_workers(&self, remembers: bool) -> Measured {
        match self.past.filter(|_| remembers) {
            Some(past) => past.measured().plus(&self.known.in_workers),
            None => self.measured_here(),
        }
    }

    /// What earlier runs knew is over.
    fn forget(&mut self) {
        self.outdated |= self.past.take().is_some();
    }

    /// Whether it has come to its end in a worker of this process's. Of a short first call it is not known how much of
    /// it was imports.
    fn has_ended(&self) -> bool {
        let first = &self.first;
        self.known.in_workers.done > 0
            || first.done > 0 && first.wall_ns / first.done >= LONG_FIRST_NS
    }

    /// The first calls only as long as there are no others.
    fn measured_here(&self) -> Measured {
        if self.known.in_workers.begun == 0 {
            self.first
        } else {
            self.known.in_workers
        }
    }

    fn move_to(&mut self, ground: &Ground, place: Place) {
        self.places.retain(|(known, _)| known != ground);
        if place != Place::Process {
            // Whoever makes executors of ever new sizes decides anew.
            self.places.truncate(MOST_GROUNDS - 1);
            self.places.insert(0, (*ground, place));
        }
    }

    fn is_news(&self, more: &Measured) -> bool {
        let (Some(then), Some(now)) = (Nature::of(&self.known.in_workers), Nature::of(more)) else {
            return false;
        };
        let far = |a: f64, b: f64| a > b * 2.0 || b > a * 2.0;
        // Of a call that goes on it is only known what it does.
        let other = (then.wait_share() - now.wait_share()).abs() > 0.4;
        let longer = far(then.cpu_ns(), now.cpu_ns()) || far(then.wall_ns, now.wall_ns);
        self.drifted || other || more.done > 0 && longer
    }

    fn bar(&self, house: &House, proof: &Proof) -> Option<Bar> {
        let remembered = house.remembers && self.past.is_some() && self.trusted != Some(false);
        if self.deadly {
            Some(Bar::Deadly)
        } else if !self.has_ended() && !remembered {
            Some(Bar::Unfinished)
        } else if house.setup {
            Some(Bar::Setup)
        } else if self.drifted {
            Some(Bar::Drifted)
        } else {
            proof.bar()
        }
    }

    /// A call took so long, with what others took of the cores left out. `company`: how many ran meanwhile, it included,
    /// on average.
    fn pair(&mut self, company: f64, wall_ns: u64, cpu_ns: u64, alone: &Nature) {
        if company < IN_COMPANY {
            self.lonely += 1;
            if self.lonely >= LONELY {
                self.known.scales = Some(false);
            }
            return;
        }
        self.pairs += 1;
        self.pairs_ns += wall_ns as f64 / company;
        self.pairs_cpu_ns += cpu_ns as f64;
        if self.pairs >= PAIRS {
            let pairs = self.pairs as f64;
            // Beside others it burns more for the same: that is not what one thread takes from the other.
            let dearer_ns = self.pairs_cpu_ns / pairs - alone.cpu_ns();
            let alone_ns = alone.wall_ns + dearer_ns.clamp(0.0, alone.wall_ns / 2.0);
            self.known.scales = Some(self.pairs_ns / pairs < alone_ns * 0.75);
        }
    }
}

fn prove(function: &Bound<'_, PyAny>) -> PyResult<Proof> {
    static PROVE: Cached = Cached::new(c"rightlane._proof", "prove");
    let py = function.py();
    let said =
        ffi::call1(PROVE.get(py)?, (function,)).and_then(|said| said.extract::<(String, String)>());
    Ok(match said {
        Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => return Err(error),
        Err(_) => Proof::Doubt("cannot be looked into".to_owned()),
        Ok((said, text)) => match said.as_str() {
            "unchanged" => Proof::Unchanged,
            "plain" => Proof::Plain,
            "changes" => Proof::Changes(text),
            _ => Proof::Doubt(text),
        },
    })
}

/// Whether nobody can change this value, however many see it. Only what is certain: others count as changeable.
pub(crate) fn is_constant(value: &Bound<'_, PyAny>) -> bool {
    fn looked_at(value: &Bound<'_, PyAny>, left: &mut u32) -> bool {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        let atom = value.is_none()
            || value.is_exact_instance_of::<PyInt>()
            || value.is_exact_instance_of::<PyFloat>()
            || value.is_exact_instance_of::<PyString>()
            || value.is_exact_instance_of::<PyBytes>()
            || value.is_exact_instance_of::<PyBool>()
            || value.is_exact_instance_of::<PyComplex>()
            || value.is_exact_instance_of::<PyRange>();
        if atom {
            return true;
        }
        if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            return tuple.iter().all(|item| looked_at(&item, left));
        }
        match value.cast_exact::<PyFrozenSet>() {
            Ok(set) => set.iter().all(|item| looked_at(&item, left)),
            Err(_) => false,
        }
    }
    looked_at(value, &mut 256)
}

/// Whether this holds of all arguments of a call.
pub(crate) fn are_constant(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> bool {
    args.iter().all(|value| is_constant(&value))
        && kwargs.is_none_or(|kwargs| kwargs.values().iter().all(|value| is_constant(&value)))
}

fn place_name(place: Place) -> &'static str {
    match place {
        Place::Process => "process",
        Place::Thread => "thread",
        Place::Caller => "caller",
    }
}

/// Everything that `rightlane._explain` puts into words.
pub(crate) fn explain<'py>(
    function: &Bound<'py, PyAny>,
    house: &House,
) -> PyResult<Bound<'py, PyDict>> {
    let py = function.py();
    let told = PyDict::new(py);
    told.set_item("name", function_name(function))?;
    told.set_item("slots", house.ground.slots)?;
    told.set_item("threads", house.ground.threads)?;
    told.set_item("capped", house.ground.capped)?;
    told.set_item("cores", house.ground.cores)?;
    let Some(profile) = find_or_recall(function, house)? else {
        let nothing = Account::default().to_dict(py, 0.0, &Measured::default())?;
        told.set_item("moved", nothing)?;
        told.set_item("reason", "not_seen")?;
        return Ok(told);
    };
    let tiny = profile.may_stay();
    let proof = prove(function)?;
    let state = lock(&profile.state);
    let known = state.settled(&house.ground, house.remembers);
    let remembered = house.remembers && state.past.is_some();
    let terms = Terms {
        bar: state.bar(house, &proof),
        caller: tiny,
    };
    let choice = choose(&known, &house.ground, &terms);
    let (in_workers, in_threads) = (known.in_workers, known.in_threads);
    let seen = (
        state.first.done + state.known.in_workers.done,
        in_threads.done,
        state.unpicklable,
        state.drifted,
    );
    let last = state.last;
    let pickle_ns = state.small_pickle_ns.unwrap_or(0.0);
    drop(state);
    let moved = profile.moved.to_dict(py, pickle_ns, &in_workers)?;
    told.set_item("moved", moved)?;
    let reason = match choice.reason {
        Reason::NotSeen => "not_seen",
        Reason::Waits => "waits",
        Reason::WaitsForLocks => "waits_for_locks",
        Reason::Children => "children",
        Reason::HoldsLock => "holds_lock",
        Reason::FreesLock => "frees_lock",
        Reason::OwnThreads => "own_threads",
        Reason::Mixed => "mixed",
        Reason::Moving => "moving",
        Reason::Tiny => "tiny",
    };
    // What its last call's arguments have decided holds for that call; it is told all the same.
    let arguments = last == Some(Some(Bar::Arguments));
    let bar = choice
        .bar
        .or((choice.place != Place::Process && arguments).then_some(Bar::Arguments));
    let place = if bar.is_some() {
        Place::Process
    } else {
        choice.place
    };
    told.set_item("reason", reason)?;
    told.set_item("place", place_name(place))?;
    told.set_item("wanted", place_name(choice.wanted))?;
    told.set_item("trial", choice.trial && bar.is_none())?;
    told.set_item(
        "bar",
        bar.map(|bar| match bar {
            Bar::Unfinished => "unfinished",
            Bar::Deadly => "deadly",
            Bar::Changes => "changes",
            Bar::NotProven => "not_proven",
            Bar::Arguments => "arguments",
            Bar::Setup => "setup",
            Bar::Drifted => "drifted",
        }),
    )?;
    told.set_item("doubt", proof.into_text())?;
    told.set_item("calls_in_workers", seen.0)?;
    told.set_item("calls_in_threads", seen.1)?;
    told.set_item("unpicklable", seen.2)?;
    told.set_item("drifted", seen.3)?;
    told.set_item("remembered", remembered)?;
    told.set_item("scales", known.scales)?;
    told.set_item("pickle_ns", known.pickle_ns)?;
    told.set_item("argument_bytes", known.argument_bytes)?;
    if let Some(costs) = choice.costs {
        let all = PyDict::new(py);
        all.set_item("process", costs.process_ns)?;
        all.set_item("thread", costs.thread_ns)?;
        all.set_item("caller", costs.caller_ns)?;
        told.set_item("costs_ns", all)?;
    }
    if let Some(nature) = choice.nature {
        told.set_item("wall_ns", nature.wall_ns)?;
        told.set_item("cpu_ns", nature.cpu_ns())?;
        told.set_item("held_ns", nature.held_ns)?;
        told.set_item("free_ns", nature.free_ns)?;
        told.set_item("wait_ns", nature.wait_ns)?;
        told.set_item("others_cpu_ns", nature.others_ns)?;
        told.set_item("child_cpu_ns", nature.child_ns)?;
        told.set_item("moving_ns", nature.moving_ns)?;
        told.set_item("result_bytes", nature.result_bytes)?;
        let waits = PyDict::new(py);
        let watched = in_workers.watched_ns().max(1) as f64;
        for (doing, ns) in rightlane_runtime::lane::Doing::ALL
            .iter()
            .zip(in_workers.seen_ns)
        {
            let name = format!("{doing:?}").to_lowercase();
            waits.set_item(name, ns as f64 / watched)?;
        }
        told.set_item("seen", waits)?;
    }
    if let Some(nature) = Nature::of(&in_threads) {
        told.set_item("thread_wall_ns", nature.wall_ns)?;
        told.set_item("thread_cpu_ns", nature.cpu_ns())?;
    }
    Ok(told)
}
