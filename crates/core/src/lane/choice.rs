//! What a call costs in each place, and which place that makes.
//!
//! Costs are in core nanoseconds per call of a long row of calls, as many at once as there are slots: the time that
//! the scarcest thing is taken for. Scarce are slots, cores, and the interpreter's lock of the caller's process, which
//! threads need for all that holds it and processes for no more than pickling.

use super::measured::{Doing, Measured, Nature};

/// What a call through a worker costs the caller: `submit`, and reading its answer.
const CALLER_NS: f64 = 1_500.0;

/// The same of an item of a map that travels with others; and of one that the caller runs.
const CALLER_ITEM_NS: f64 = 110.0;
const OWN_ITEM_NS: f64 = 60.0;

/// What a call costs the worker that runs it.
const WORKER_NS: f64 = 1_000.0;

/// What a call costs that a lane thread runs: the interpreter's lock changes hands.
const THREAD_NS: f64 = 12_000.0;

/// What waiting in a process costs beside its slot, as a share: where the engine chooses how many slots there are, a
/// slot for a thread is to be had for less. Where the user has, it is the share of workers that no core needs.
const WAITING_PRICE: f64 = 0.5;

/// A long call changes its lane for a tenth, a short one only for a clear gain: what is measured of it is as much the
/// machine's mood as its own.
const LONG_NS: f64 = 1_000_000.0;
const GAIN_OF_LONG: f64 = 1.15;
const GAIN_OF_SHORT: f64 = 1.5;

/// Only what has run so often, and never takes longer, may run in the caller.
pub const TINY_CALLS: u64 = 100;
const TINY_NS: f64 = 20_000.0;

/// Where a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Place {
    /// In a worker process.
    #[default]
    Process,
    /// In a lane thread.
    Thread,
    /// In the caller: items of a map only.
    Caller,
}

/// What the executor has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ground {
    /// Tasks at once.
    pub slots: u32,
    /// Threads at once.
    pub threads: u32,
    /// Whether the user set that number: it is a cap then for threads as well.
    pub capped: bool,
    /// Cores.
    pub cores: u32,
}

/// What is known of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// In workers.
    pub in_workers: Measured,
    /// In lane threads.
    pub in_threads: Measured,
    /// What pickling the arguments of a call takes the caller.
    pub pickle_ns: f64,
    /// How large they are.
    pub argument_bytes: f64,
    /// Whether two threads were seen to beat one; None while that was never seen.
    pub scales: Option<bool>,
    /// Where it runs now.
    pub now: Place,
}

/// Why a function may not leave its workers, whatever that would gain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// It has not come to its end in a worker, or but once, and nobody knows what of that was imports.
    Unfinished,
    /// A worker died in it.
    Deadly,
    /// It was seen to change what is shared.
    Changes,
    /// Nobody can tell whether it changes what is shared.
    NotProven,
    /// Its arguments can be changed, and nobody can tell whether it does.
    Arguments,
    /// The executor has an initializer, or gives each worker a number of tasks.
    Setup,
    /// It does something else in threads than it did in workers.
    Drifted,
}

/// What may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// What keeps it in its workers, if anything does.
    pub bar: Option<Bar>,
    /// Whether it is about an item of a map, in a thread where it may run at once.
    pub caller: bool,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is known.
    NotSeen,
    /// It waits most of its time.
    Waits,
    /// It waits for locks or other threads, of which more threads would only make more.
    WaitsForLocks,
    /// It waits for child processes, which burn.
    Children,
    /// It burns CPU, and holds the interpreter's lock.
    HoldsLock,
    /// It burns CPU, and lets go of the interpreter's lock.
    FreesLock,
    /// It burns CPU in threads of its own.
    OwnThreads,
    /// It burns and waits.
    Mixed,
    /// Moving its arguments and results costs more than running it.
    Moving,
    /// It is too short to be moved.
    Tiny,
}

/// Costs of a call in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// In a worker process.
    pub process_ns: f64,
    /// In a lane thread. Of code that lets go of the interpreter's lock this supposes that two threads beat one, unless
    /// they were seen not to.
    pub thread_ns: f64,
    /// In the caller.
    pub caller_ns: f64,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Where its next call is to run.
    pub place: Place,
    /// Where it would, if it might.
    pub wanted: Place,
    /// Why that.
    pub reason: Reason,
    /// What came between, if anything did.
    pub bar: Option<Bar>,
    /// Whether it runs there to be seen, because nobody knows yet whether two threads beat one.
    pub trial: bool,
    /// What was compared.
    pub costs: Option<Costs>,
    /// What a call is like.
    pub nature: Option<Nature>,
}

/// Decides.
pub fn choose(known: &Known, ground: &Ground, terms: &Terms) -> Choice {
    let Some(nature) = Nature::of(&known.in_workers) else {
        return Choice {
            place: Place::Process,
            wanted: Place::Process,
            reason: Reason::NotSeen,
            bar: None,
            trial: false,
            costs: None,
            nature: None,
        };
    };
    let costs = costs(known, &nature, ground, terms.caller);
    let mut wanted = cheapest(known, &nature, &costs, terms.caller);
    if wanted == Place::Thread && nature.mostly_waits_for(Doing::Lock) {
        wanted = Place::Process;
    }
    let bar = terms.bar.filter(|_| wanted != Place::Process);
    let place = if bar.is_some() {
        Place::Process
    } else {
        wanted
    };
    Choice {
        place,
        wanted,
        reason: reason(known, &nature, wanted, &costs),
        bar,
        trial: place == Place::Thread
            && known.scales.is_none()
            && nature.free_ns > nature.wall_ns / 4.0,
        costs: Some(costs),
        nature: Some(nature),
    }
}

fn costs(known: &Known, nature: &Nature, ground: &Ground, item: bool) -> Costs {
    let slots = f64::from(ground.slots.max(1));
    let cores = f64::from(ground.cores.max(1));
    let threads = f64::from(ground.threads.max(1));
    let burnt = nature.cpu_ns() + nature.others_ns + nature.child_ns;
    let most = |costs: &[f64]| costs.iter().copied().fold(0.0, f64::max);

    let there = if item { 0.0 } else { WORKER_NS } + nature.moving_ns;
    let caller = if item { CALLER_ITEM_NS } else { CALLER_NS };
    let price = if ground.capped {
        (1.0 - cores / slots).max(0.0)
    } else {
        WAITING_PRICE
    };
    let idle = (nature.wait_ns - nature.child_ns - nature.others_ns).max(0.0) * price;
    let process_ns = most(&[
        (nature.wall_ns + there + idle) / slots,
        (burnt + there) / cores.min(slots),
        caller + known.pickle_ns + nature.pack_ns,
    ]);

    let serial = match known.scales {
        Some(false) => nature.cpu_ns(),
        Some(true) | None => nature.held_ns,
    };
    // Whoever comes back from waiting finds the lock taken as often as others need it.
    let queueing = serial * (serial / nature.wall_ns.max(1.0)) * (threads - 1.0);
    let thread_ns = most(&[
        (nature.wall_ns + THREAD_NS + queueing) / threads,
        (burnt + THREAD_NS) / cores,
        serial + THREAD_NS,
    ]);
    Costs {
        process_ns,
        thread_ns,
        caller_ns: nature.wall_ns + OWN_ITEM_NS,
    }
}

fn cheapest(known: &Known, nature: &Nature, costs: &Costs, caller: bool) -> Place {
    let gain = if nature.wall_ns >= LONG_NS {
        GAIN_OF_LONG
    } else {
        GAIN_OF_SHORT
    };
    if caller
        && known.in_workers.done >= TINY_CALLS
        && nature.wall_ns <= TINY_NS
        && costs.caller_ns <= costs.process_ns
    {
        return Place::Caller;
    }
    let leaves = costs.thread_ns * gain <= costs.process_ns;
    let comes_back = costs.process_ns * gain <= costs.thread_ns;
    match known.now {
        Place::Thread if !comes_back => Place::Thread,
        Place::Process | Place::Caller if leaves => Place::Thread,
        _ => Place::Process,
    }
}

fn reason(known: &Known, nature: &Nature, wanted: Place, costs: &Costs) -> Reason {
    let moved = known.pickle_ns + nature.moving_ns + nature.pack_ns;
    if wanted == Place::Caller {
        return Reason::Tiny;
    }
    if wanted == Place::Thread && moved > nature.wall_ns && costs.process_ns > 2.0 * THREAD_NS {
        return Reason::Moving;
    }
    if nature.child_ns >= nature.wall_ns * 0.2 {
        return Reason::Children;
    }
    if nature.others_ns >= nature.wall_ns * 0.3
        && (nature.wait_share() >= 0.2 || nature.held_share() < 0.5)
    {
        return Reason::OwnThreads;
    }
    if nature.mostly_waits_for(Doing::Lock) {
        return Reason::WaitsForLocks;
    }
    match nature.wait_share() {
        share if share >= 0.8 => Reason::Waits,
        share if share >= 0.2 => Reason::Mixed,
        _ if nature.held_share() >= 0.5 => Reason::HoldsLock,
        _ => Reason::FreesLock,
    }
}
