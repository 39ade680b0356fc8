//! Decisions on recorded measurements: what samplers saw of single calls, alone, on two cores.

use super::*;

const MS: u64 = 1_000_000;

/// One call that takes so long, and so much CPU, seen doing so.
fn call(wall_ns: u64, cpu_ns: u64, seen: &[(Doing, u64)]) -> Measured {
    let mut one = Measured {
        begun: 1,
        done: 1,
        wall_ns,
        cpu_ns,
        ..Measured::default()
    };
    for (doing, ns) in seen {
        one.see(*doing, *ns);
    }
    one
}

fn many(one: &Measured, calls: u64) -> Measured {
    let words = one.to_words();
    Measured::from_words(&std::array::from_fn(|at| words[at] * calls))
}

fn known(one: Measured) -> Known {
    Known {
        in_workers: many(&one, 200),
        pickle_ns: 800.0,
        argument_bytes: 20.0,
        ..Known::default()
    }
}

const TWO: Ground = Ground {
    slots: 2,
    threads: 2,
    capped: false,
    cores: 2,
};
const FREE: Terms = Terms {
    bar: None,
    caller: false,
};

fn python_loop() -> Measured {
    call(2 * MS, 2 * MS, &[(Doing::Holding, 2 * MS)])
}

fn sleep() -> Measured {
    call(20 * MS, 40_000, &[(Doing::Sleep, 20 * MS)])
}

fn sha256_of_8_mib() -> Measured {
    let mut one = call(5 * MS, 5 * MS, &[(Doing::Free, 5 * MS)]);
    one.unpack_ns = 1_200_000;
    one
}

/// The loads on which the rules were found, what they cost, and where each belongs.
#[test]
fn recorded_loads_get_their_lane() {
    use Doing::{Child, Disk, Free, Gil, Holding, Lock, Network, Pool, Sleep};
    let subprocess = |child_cpu_ns| Measured {
        child_cpu_ns,
        ..call(30 * MS, 2 * MS, &[(Child, 28 * MS), (Holding, MS)])
    };
    let matmul = Measured {
        others_cpu_ns: 9 * MS,
        ..call(10 * MS, 9 * MS, &[(Free, 8 * MS), (Pool, MS)])
    };
    let loads = [
        (
            "python loop",
            python_loop(),
            Place::Process,
            Reason::HoldsLock,
        ),
        (
            "json of 1 MiB",
            call(12 * MS, 12 * MS, &[(Holding, 12 * MS)]),
            Place::Process,
            Reason::HoldsLock,
        ),
        (
            "numpy, small",
            call(3 * MS, 3 * MS, &[(Holding, 29 * MS), (Free, MS)]),
            Place::Process,
            Reason::HoldsLock,
        ),
        ("sleep", sleep(), Place::Thread, Reason::Waits),
        (
            "http, 20 ms",
            call(21 * MS, 800_000, &[(Network, 20 * MS), (Holding, MS)]),
            Place::Thread,
            Reason::Waits,
        ),
        (
            "files, cold",
            call(9 * MS, MS, &[(Disk, 8 * MS), (Holding, MS)]),
            Place::Thread,
            Reason::Waits,
        ),
        (
            "subprocess that waits",
            subprocess(MS),
            Place::Thread,
            Reason::Waits,
        ),
        (
            "subprocess that burns",
            subprocess(27 * MS),
            Place::Process,
            Reason::Children,
        ),
        (
            "burn and wait",
            call(10 * MS, 5 * MS, &[(Holding, 5 * MS), (Sleep, 5 * MS)]),
            Place::Process,
            Reason::Mixed,
        ),
        (
            "a lock",
            call(10 * MS, 50_000, &[(Lock, 10 * MS)]),
            Place::Process,
            Reason::WaitsForLocks,
        ),
        (
            "threads of its own, in Python",
            call(10 * MS, 5 * MS, &[(Holding, 5 * MS), (Gil, 5 * MS)]),
            Place::Process,
            Reason::HoldsLock,
        ),
        (
            "matmul with a pool",
            matmul,
            Place::Process,
            Reason::OwnThreads,
        ),
        (
            "zlib of 900 bytes",
            call(30_000, 30_000, &[(Free, 25_000), (Holding, 5_000)]),
            Place::Process,
            Reason::FreesLock,
        ),
        (
            "a microsecond",
            call(1_000, 1_000, &[(Holding, 1_000)]),
            Place::Process,
            Reason::HoldsLock,
        ),
    ];
    for (name, one, place, reason) in loads {
        let choice = choose(&known(one), &TWO, &FREE);
        assert_eq!(
            (choice.place, choice.reason),
            (place, reason),
            "{name}: {choice:?}"
        );
    }
}

/// On a crowded machine a call takes longer than it burns, and does not wait.
#[test]
fn whoever_has_no_core_does_not_wait() {
    let crowded = call(9 * MS, 3 * MS, &[(Doing::Holding, 9 * MS)]);
    let nature = Nature::of(&many(&crowded, 10)).expect("measured");
    assert!(nature.wait_share() < 0.01, "{nature:?}");
    assert_eq!(choose(&known(crowded), &TWO, &FREE).place, Place::Process);
}

#[test]
fn nothing_is_known_of_what_was_not_seen() {
    let choice = choose(&Known::default(), &TWO, &FREE);
    assert_eq!(
        (choice.place, choice.reason),
        (Place::Process, Reason::NotSeen)
    );
}

/// rule 4: a number that the user has set is the same for both lanes; then waiting in a thread gains nothing, until
/// the number is beyond the cores.
#[test]
fn a_cap_is_a_cap_in_both_lanes() {
    let capped = |slots| Ground {
        slots,
        threads: slots,
        capped: true,
        cores: 2,
    };
    let place = |slots| choose(&known(sleep()), &capped(slots), &FREE).place;
    assert_eq!(
        [1, 2, 3, 16, 64].map(place),
        [
            Place::Process,
            Place::Process,
            Place::Thread,
            Place::Thread,
            Place::Thread
        ]
    );
}

#[test]
fn a_bar_keeps_it_where_it_is_and_says_where_it_would_be() {
    for bar in [
        Bar::Deadly,
        Bar::Changes,
        Bar::NotProven,
        Bar::Arguments,
        Bar::Unfinished,
    ] {
        let terms = Terms {
            bar: Some(bar),
            caller: false,
        };
        let choice = choose(&known(sleep()), &TWO, &terms);
        assert_eq!(
            (choice.place, choice.wanted, choice.bar),
            (Place::Process, Place::Thread, Some(bar))
        );
        // What stays anyway is not kept by anything.
        assert_eq!(choose(&known(python_loop()), &TWO, &terms).bar, None);
    }
}

/// Code that lets go of the interpreter's lock gains from threads what moving its arguments costs, and only if two
/// threads were seen to beat one.
#[test]
fn large_arguments_come_home_if_two_threads_beat_one() {
    let mut hash = Known {
        pickle_ns: 2.5e6,
        argument_bytes: 8e6,
        ..known(sha256_of_8_mib())
    };
    let first = choose(&hash, &TWO, &FREE);
    assert_eq!((first.place, first.trial), (Place::Thread, true));
    hash.scales = Some(true);
    let then = choose(&hash, &TWO, &FREE);
    assert_eq!(
        (then.place, then.trial, then.reason),
        (Place::Thread, false, Reason::FreesLock)
    );
    hash.scales = Some(false);
    assert_eq!(choose(&hash, &TWO, &FREE).place, Place::Process);
    // Without anything to move it would gain nothing.
    assert_eq!(
        choose(
            &known(call(5 * MS, 5 * MS, &[(Doing::Free, 5 * MS)])),
            &TWO,
            &FREE
        )
        .place,
        Place::Process
    );
}

#[test]
fn what_takes_longer_to_move_than_to_run_is_not_moved() {
    let mut one = call(3_000, 3_000, &[(Doing::Holding, 3_000)]);
    one.unpack_ns = 900_000;
    let length = Known {
        pickle_ns: 1.1e6,
        argument_bytes: 4e6,
        ..known(one)
    };
    let choice = choose(&length, &TWO, &FREE);
    assert_eq!(
        (choice.place, choice.reason),
        (Place::Thread, Reason::Moving)
    );
}

#[test]
fn tiny_items_run_in_the_caller_once_they_are_known_to_be() {
    let item = Terms {
        bar: None,
        caller: true,
    };
    let tiny = |ns, pickle_ns| Known {
        pickle_ns,
        ..known(call(ns, ns, &[(Doing::Holding, ns)]))
    };
    assert_eq!(choose(&tiny(30, 20.0), &TWO, &item).place, Place::Caller);
    assert_eq!(choose(&tiny(30, 20.0), &TWO, &item).reason, Reason::Tiny);
    assert_eq!(choose(&tiny(500, 900.0), &TWO, &item).place, Place::Caller);
    assert_eq!(
        choose(&tiny(5_000, 20.0), &TWO, &item).place,
        Place::Process
    );
    // Not by `submit`, whose caller goes on at once; nor before it has run often.
    assert_eq!(choose(&tiny(30, 20.0), &TWO, &FREE).place, Place::Process);
    let mut seldom = tiny(30, 20.0);
    seldom.in_workers = many(&call(60, 60, &[]), 3);
    assert_eq!(choose(&seldom, &TWO, &item).place, Place::Process);
    let barred = Terms {
        bar: Some(Bar::NotProven),
        caller: true,
    };
    assert_eq!(choose(&tiny(30, 20.0), &TWO, &barred).place, Place::Process);
}

/// Between the two thresholds a function stays where it is.
#[test]
fn it_takes_a_gain_to_change_the_lane() {
    let mixed = |cpu| {
        call(
            10 * MS,
            cpu,
            &[(Doing::Holding, cpu), (Doing::Sleep, 10 * MS - cpu)],
        )
    };
    let from = |now, cpu| {
        let known = Known {
            now,
            ..known(mixed(cpu))
        };
        choose(&known, &TWO, &FREE).place
    };
    let both = |cpu| (from(Place::Process, cpu), from(Place::Thread, cpu));
    assert_eq!(both(MS), (Place::Thread, Place::Thread));
    assert_eq!(both(4_200_000), (Place::Process, Place::Thread));
    assert_eq!(both(9 * MS), (Place::Process, Place::Process));
}

#[test]
fn sums_grow_and_what_has_come_since_is_their_difference() {
    let (burns, waits) = (many(&python_loop(), 80), many(&sleep(), 10));
    assert_eq!(burns.plus(&waits).since(&burns), waits);
    assert_eq!(burns.since(&burns.plus(&waits)), Measured::default());
}

#[test]
fn words_come_back_and_wild_ones_are_bounded() {
    let one = many(&sha256_of_8_mib(), 7);
    assert_eq!(Measured::from_words(&one.to_words()), one);
    let wild = Measured::from_words(&[u64::MAX; WORDS]);
    assert!(wild.plus(&wild).wall_ns <= 1 << 53);
    assert!(Nature::of(&wild).is_some_and(|nature| nature.wall_ns.is_finite()));
    assert_eq!(
        choose(&known(Measured::default()), &TWO, &FREE).reason,
        Reason::NotSeen
    );
}
