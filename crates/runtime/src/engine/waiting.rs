//! Waiting for workers: who reads their answers, and when they are to wake somebody for it.
//!
//! Answers lie in the rings until somebody reads them. Usually that is a thread that waits for a result: it
//! *attends*, which is doing the hub's work for one executor ([`Engine::attend`]), so that an answer passes
//! through one thread instead of two. At all other times it is the hub's thread, which sleeps through
//! whatever nobody needs to know yet: it wants to hear of a worker that runs dry while work waits, of one
//! that is idle while others have more to do than one task, of a ring that fills, and of single answers only while
//! somebody is to be told of them.
//!
//! Whoever waits does so in steps, each as cheap as it can be without making anybody late:
//!
//! 1. It polls, first without a pause, then yielding its core every few polls: the answer to a short call
//!    arrives within this step, and nobody is woken at all.
//! 2. It sleeps for at most [`DOZE_NS`], to be woken by an idle worker only. With a stream of short tasks this
//!    bounds the wakes to about one in that time, whatever the tasks' length.
//! 3. It sleeps for at most [`STEP_NS`], to be woken by any answer. After that time it looks again: an answer that
//!    was published in the very moment of the announcement may have missed it.
//! 4. It sleeps until an answer comes, and looks for signals once a second.
//!
//! What settled the times is told in `docs/design/waking.md`.

use super::{Engine, State};
use crate::client::Client;
use crate::hub::{GATE, lock};
use crate::sys::futex::Waited;
use rightlane_core::{Moment, Refused};
use rightlane_ring::{Listener, Peephole, Wants, sleep};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a thread polls where a core is free for it, and where not.
const SPIN_FREE_NS: u64 = 100_000;
pub(super) const SPIN_CROWDED_NS: u64 = 20_000;

/// Where no core is free, nobody polls for tasks that take at least this long.
const LONG_NS: u64 = 200_000;

/// Polls before the first yield (about a microsecond), and from one yield to the next.
const POLLS: u32 = 64;

/// A waiting thread reads what gathers in this time together. Each wake costs it some 40 µs.
const DOZE_NS: u64 = 3_000_000;

/// The hub is woken by single answers at most once in this time.
const STEP_NS: u64 = 2_000_000;

/// A thread that is kept busy by others' answers looks at least this often whether a signal has come.
const SIGNALS_NS: u64 = 30_000_000;

/// A signal that comes after its handlers had their chance, and before the system call in which this thread sleeps,
/// interrupts nothing: it is noticed at the end of this time.
pub const SLEEP_NS: u64 = 1_000_000_000;

/// The hub feeds workers that run through short work at most once in this time.
const FEED_NS: u64 = 200_000;

/// What workers signal. Eventfds, because they keep a signal that came too early.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(crate) keeper: OwnedFd,
    pub(crate) waiter: OwnedFd,
}

impl Signals {
    pub(crate) fn create() -> io::Result<Signals> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Ok(Signals {
            keeper: rustix::event::eventfd(0, flags)?,
            waiter: rustix::event::eventfd(0, flags)?,
        })
    }
}

/// Who looks after the workers' answers just now.
#[derive(Debug)]
pub(super) struct Care {
    pub(super) listener: Listener,
    /// What the workers were told to signal, or will be at the end of a nap; nothing while somebody looks.
    pub(super) told: Wants,
    /// What they were told last; differs during a nap.
    announced: Wants,
    /// When the hub last found something.
    found_ns: u64,
    /// The hub has slept on what it was told, has seen no signal, and looks once more.
    listened: bool,
}

impl Default for Care {
    fn default() -> Care {
        Care {
            listener: Listener::Keeper,
            told: Wants::FULL,
            announced: Wants::NOTHING,
            found_ns: 0,
            listened: false,
        }
    }
}

/// How the hub's thread may sleep, as far as one executor is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    /// Not at all: there is something to read.
    pub(crate) busy: bool,
    /// Until then.
    pub(crate) until: Option<Moment>,
}

/// How an [`Engine::attend`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Attended {
    /// What was waited for is there.
    Ready,
    /// The time is over.
    TimedOut,
    /// Signal handlers should have a chance to run; then go on.
    Interrupted,
    /// Another thread attends, or there is nothing to attend: sleep on something else.
    Taken,
}

/// To be given back to [`Engine::unwatch`].
#[derive(Debug)]
pub struct Watch {
    forks: u32,
}

/// How far a wait has come; a new one for each wait.
#[derive(Debug, Default)]
pub struct Patience {
    step: Step,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    #[default]
    Poll,
    Doze,
    Listen,
    Sleep,
}

impl<C: Client> State<C> {
    /// What the hub's thread has to hear of.
    fn needs(&self, watched: bool) -> Wants {
        let closing = self.scheduler.accepts() == Err(Refused::ShutDown);
        let backlog = self.scheduler.has_backlog();
        Wants::FULL
            .and_if(backlog, Wants::DRY)
            .and_if(
                watched || closing || self.scheduler.could_feed_idle(),
                Wants::IDLE,
            )
            .and_if(watched, Wants::MESSAGES)
    }

    /// Tells every worker what to signal to whom, and looks once more. True if there is something to read.
    fn announce(&mut self, wants: Wants, listener: Listener) -> bool {
        self.floor.care.told = wants;
        self.floor.care.announced = wants;
        self.floor.care.listener = listener;
        self.floor.care.listened = false;
        for link in self.floor.links.values_mut() {
            link.announce(wants, listener);
        }
        sleep::announced();
        self.is_busy()
    }

    /// Whether there is something to read.
    fn is_busy(&mut self) -> bool {
        let mut busy = false;
        for link in self.floor.links.values_mut() {
            busy |= link.is_busy();
        }
        busy
    }

    /// Has an attending thread look again.
    pub(super) fn signal_waiter(&self) {
        if self.floor.care.listener == Listener::Waiter
            && let Some(signals) = &self.floor.signals
        {
            let _ = rustix::io::write(&signals.waiter, &1_u64.to_ne_bytes());
        }
    }

    fn rouse(&mut self) {
        self.floor.care.told = Wants::NOTHING;
        self.floor.care.announced = Wants::NOTHING;
        for link in self.floor.links.values_mut() {
            link.awake();
        }
    }

    /// Reads everything that is there. True if there was anything.
    pub(super) fn read_all(&mut self, engine: &Engine<C>) -> bool {
        let talking: Vec<_> = self
            .floor
            .links
            .iter()
            .filter(|(_, link)| link.has_news())
            .map(|(id, _)| *id)
            .collect();
        // Room for what waits to be sent is no news to anybody but the worker.
        let mut any = false;
        for worker in talking {
            any |= self.read(engine, worker);
        }
        any
    }

    /// Leaves everything to the hub's thread.
    fn hand_back(&mut self, engine: &Engine<C>) {
        loop {
            self.act(engine);
            let wants = self.needs(engine.is_watched());
            if !self.announce(wants, Listener::Keeper) {
                break;
            }
            self.read_all(engine);
        }
    }

    /// After a change: sees to it that a sleeping hub hears of what matters now.
    pub(super) fn see_to_care(&mut self, engine: &Engine<C>) {
        let care = &self.floor.care;
        if care.listener == Listener::Waiter || care.told == Wants::NOTHING {
            // Whoever is awake looks again before it sleeps; whoever waits for a result is told of more.
            return;
        }
        let wants = self.needs(engine.is_watched());
        if !care.told.includes(wants) {
            self.hand_back(engine);
        }
    }
}

impl<C: Client> Engine<C> {
    /// Something has happened outside the engine that an attending thread may wait for.
    pub fn nudge(&self) {
        if self.attended.load(Ordering::SeqCst) {
            lock(&self.state).signal_waiter();
        }
    }

    /// Somebody is to be told of ends as they come: from now on the hub listens for single answers.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let watch = Watch {
            forks: self.forks.load(Ordering::SeqCst),
        };
        if self.watchers.fetch_add(1, Ordering::SeqCst) == 0 {
            self.with(|_, _| ());
        }
        watch
    }

    /// The opposite of [`Engine::watch`]. In a forked child nothing from before the fork counts.
    pub fn unwatch(&self, watch: Watch) {
        if watch.forks == self.forks.load(Ordering::SeqCst) {
            self.watchers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::SeqCst) > 0
    }

    /// Reads what workers have answered, if anything is there and nobody else does.
    pub fn look(&self) {
        let mut state = lock(&self.state);
        if state.read_all(self) {
            self.finish(state);
        }
    }

    /// What the hub's thread does when it is up: [`crate::hub::Member::pump`].
    /// `signalled`: something happened; else only time has passed.
    pub(super) fn keep(&self, signalled: bool) {
        let mut state = lock(&self.state);
        if state.floor.care.listener == Listener::Waiter {
            return;
        }
        if !signalled && !state.is_busy() {
            state.floor.care.listened = true;
            return;
        }
        state.rouse();
        if state.read_all(self) {
            state.floor.care.found_ns = crate::sys::now().0;
            self.finish(state);
        }
    }

    /// What the hub's thread does before it sleeps.
    pub(super) fn prepare_rest(&self, now: Moment) -> Rest {
        let mut state = lock(&self.state);
        if state.floor.care.listener == Listener::Waiter {
            return Rest {
                busy: false,
                until: None,
            };
        }
        let needs = state.needs(self.is_watched());
        let since = now.0.saturating_sub(state.floor.care.found_ns);
        // A nap: what comes meanwhile is read together. An idle worker ends it where somebody waits for it.
        let (wants, nap_ns) = if needs.includes(Wants::MESSAGES) && since < STEP_NS {
            let first = Wants::FULL.and(Wants::IDLE);
            (
                first.and_if(needs.includes(Wants::DRY), Wants::DRY),
                STEP_NS,
            )
        } else if !needs.includes(Wants::MESSAGES) && needs.includes(Wants::IDLE) && since < FEED_NS
        {
            (Wants::FULL, FEED_NS)
        } else {
            (needs, 0)
        };
        if nap_ns == 0 && state.floor.care.listened && state.floor.care.announced == needs {
            // What was announced stands, long enough for whoever missed it in that moment: see the last step.
            return Rest {
                busy: state.is_busy(),
                until: None,
            };
        }
        let busy = state.announce(wants, Listener::Keeper);
        if nap_ns == 0 {
            let listens = wants.includes(Wants::MESSAGES);
            return Rest {
                busy,
                until: listens.then(|| now.after_ns(STEP_NS)),
            };
        }
        // Whoever submits meanwhile need not announce what the end of the nap will.
        state.floor.care.told = needs;
        Rest {
            busy: busy && wants.includes(Wants::IDLE),
            until: Some(Moment(state.floor.care.found_ns).after_ns(nap_ns)),
        }
    }

    /// Waits until `ready`, doing the hub's work for this executor meanwhile. Only without locks, and not while
    /// something is held that the client's `settle` or a fork of the process needs.
    pub fn attend(
        &self,
        deadline: Option<Instant>,
        patience: &mut Patience,
        ready: impl Fn() -> bool,
    ) -> Attended {
        let Some((signals, budget_ns)) = self.begin_to_attend() else {
            return Attended::Taken;
        };
        // What `ready` looks at may have a lock, which must be free in the moment of a fork.
        let ready = || {
            let _gate = lock(&GATE);
            ready()
        };
        let attended = self.attend_led(&signals.waiter, budget_ns, deadline, patience, &ready);
        self.led(|state| {
            state.floor.care.listener = Listener::Keeper;
            self.attended.store(false, Ordering::SeqCst);
            state.read_all(self);
            state.hand_back(self);
        });
        attended
    }

    /// Runs `change` as the hub's thread would: a fork of the process waits for its end (invariant 6).
    fn led<R>(&self, change: impl FnOnce(&mut State<C>) -> R) -> R {
        let _gate = lock(&GATE);
        let mut state = lock(&self.state);
        let result = change(&mut state);
        // What this thread has settled it need not be told of.
        state.act(self);
        state.floor.settled = false;
        self.finish(state);
        result
    }

    fn begin_to_attend(&self) -> Option<(std::sync::Arc<Signals>, u64)> {
        self.led(|state| {
            if state.floor.care.listener == Listener::Waiter || state.floor.links.is_empty() {
                return None;
            }
            let signals = state.floor.signals.clone()?;
            state.rouse();
            state.floor.care.listener = Listener::Waiter;
            self.attended.store(true, Ordering::SeqCst);
            state.read_all(self);
            let crowded = state.scheduler.busy_workers() >= cores();
            let budget_ns = match (crowded, state.scheduler.runs_long(LONG_NS)) {
                (false, _) => SPIN_FREE_NS,
                (true, false) => SPIN_CROWDED_NS,
                (true, true) => 0,
            };
            Some((signals, budget_ns))
        })
    }

    fn attend_led(
        &self,
        signal: &OwnedFd,
        budget_ns: u64,
        deadline: Option<Instant>,
        patience: &mut Patience,
        ready: &impl Fn() -> bool,
    ) -> Attended {
        if patience.step == Step::Poll {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let left_ns = left.map_or(u128::MAX, |left| left.as_nanos());
            if self.poll(
                budget_ns.min(left_ns.min(u128::from(u64::MAX)) as u64),
                ready,
            ) {
                return Attended::Ready;
            }
            patience.step = Step::Doze;
        }
        // An earlier announcement of these steps does not stand any more.
        patience.step = patience.step.min(Step::Listen);
        let begun = Instant::now();
        loop {
            if ready() {
                return Attended::Ready;
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Attended::TimedOut;
            }
            let step = patience.step;
            let busy = self.led(|state| {
                // The last step sleeps on the announcement of the one before: whoever missed that one in the moment
                // in which it was made has published its answer long since.
                let busy = match step {
                    Step::Sleep => state.is_busy(),
                    Step::Poll | Step::Doze | Step::Listen => {
                        let first = Wants::FULL.and(Wants::IDLE);
                        let wants = first
                            .and_if(state.scheduler.has_backlog(), Wants::DRY)
                            .and_if(step == Step::Listen, Wants::MESSAGES);
                        state.announce(wants, Listener::Waiter)
                    }
                };
                busy && state.read_all(self)
            });
            if busy {
                patience.step = Step::Doze;
                continue;
            }
            let at_most = match step {
                Step::Poll | Step::Doze => Some(Duration::from_nanos(DOZE_NS)),
                Step::Listen => Some(Duration::from_nanos(STEP_NS)),
                Step::Sleep => Some(Duration::from_nanos(SLEEP_NS)),
            };
            let timeout = match (left, at_most) {
                (Some(left), Some(most)) => Some(left.min(most)),
                (left, most) => left.or(most),
            };
            let waited = wait_for(signal, timeout);
            if waited == Waited::TimedOut && step == Step::Listen {
                patience.step = Step::Sleep;
                continue;
            }
            let found = self.led(|state| {
                state.rouse();
                state.read_all(self)
            });
            patience.step = match (waited, step) {
                _ if ready() => return Attended::Ready,
                (Waited::Interrupted, _) => return Attended::Interrupted,
                _ if found => Step::Doze,
                (Waited::TimedOut, Step::Doze) => Step::Listen,
                // Woken for nothing: what woke us will not do so again.
                _ => step.min(Step::Listen),
            };
            // A signal that came between two system calls has interrupted neither.
            let soon = patience.step == Step::Listen && step == Step::Doze;
            if soon || begun.elapsed() >= Duration::from_nanos(SIGNALS_NS) {
                return Attended::Interrupted;
            }
        }
    }

    /// Looks again and again for so long. True if `ready`.
    fn poll(&self, budget_ns: u64, ready: &impl Fn() -> bool) -> bool {
        if ready() {
            return true;
        }
        if budget_ns == 0 {
            return false;
        }
        let begun = crate::sys::now().0;
        let mut changes = self.links_changed.load(Ordering::Acquire);
        let mut holes = self.peepholes();
        for round in 1_u32.. {
            let changed = self.links_changed.load(Ordering::Acquire) != changes;
            if changed || holes.iter().any(Peephole::has_answers) {
                if changed {
                    changes = self.links_changed.load(Ordering::Acquire);
                    holes = self.peepholes();
                }
                self.led(|state| state.read_all(self));
            }
            if ready() {
                return true;
            }
            if round % POLLS == 0 {
                // Never poll long without yielding: the worker may be waiting for this very core.
                rustix::thread::sched_yield();
                if crate::sys::now().0 - begun > budget_ns {
                    return false;
                }
            } else {
                std::hint::spin_loop();
            }
        }
        false
    }

    fn peepholes(&self) -> Vec<Peephole> {
        self.led(|state| {
            let links = state.floor.links.values();
            links.map(|link| link.peephole()).collect()
        })
    }
}

/// Looks again and again for so long. True if it came true.
pub fn poll_until(budget_ns: u64, ready: impl Fn() -> bool) -> bool {
    if ready() {
        return true;
    }
    let begun = crate::sys::now().0;
    for round in 1_u32.. {
        if ready() {
            return true;
        }
        if round % POLLS == 0 {
            // As in `Engine::poll`.
            rustix::thread::sched_yield();
            if crate::sys::now().0 - begun > budget_ns {
                return false;
            }
        } else {
            std::hint::spin_loop();
        }
    }
    false
}

/// Waits until the eventfd is signalled, and takes the signal.
fn wait_for(signal: &OwnedFd, timeout: Option<Duration>) -> Waited {
    let timeout = timeout.map(|t| rustix::event::Timespec {
        tv_sec: t.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    let mut fds = [rustix::event::PollFd::new(
        signal,
        rustix::event::PollFlags::IN,
    )];
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(0) => Waited::TimedOut,
        Ok(_) => {
            let mut taken = [0_u8; 8];
            let _ = rustix::io::read(signal, &mut taken);
            Waited::Woken
        }
        Err(rustix::io::Errno::INTR) => Waited::Interrupted,
        // The descriptor is ours and open; nothing else can go wrong.
        Err(_) => Waited::Woken,
    }
}

/// How many cores this process may use.
pub fn cores() -> u32 {
    static CORES: AtomicU32 = AtomicU32::new(0);
    let known = CORES.load(Ordering::Relaxed);
    if known > 0 {
        return known;
    }
    let counted = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    CORES.store(counted, Ordering::Relaxed);
    counted
}
