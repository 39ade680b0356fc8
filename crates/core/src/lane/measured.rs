//! What is known of a function's calls: sums, and what they say of one call.

/// What a task's thread was doing when somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// On a core, with the interpreter's lock held.
    Holding,
    /// On a core, with the interpreter's lock free.
    Free,
    /// Asleep until a time.
    Sleep,
    /// Waiting for a socket or a pipe.
    Network,
    /// In another system call, which as a rule is one on files.
    Disk,
    /// Waiting for a child process.
    Child,
    /// Waiting for a lock, or for another thread.
    Lock,
    /// Waiting for threads of native code, which burn CPU meanwhile.
    Pool,
    /// Waiting for the interpreter's lock.
    Gil,
    /// Off the core; nobody could say in what.
    Unclear,
}

impl Doing {
    /// All of them, in the order in which [`Measured`] counts them.
    pub const ALL: [Doing; 10] = [
        Doing::Holding,
        Doing::Free,
        Doing::Sleep,
        Doing::Network,
        Doing::Disk,
        Doing::Child,
        Doing::Lock,
        Doing::Pool,
        Doing::Gil,
        Doing::Unclear,
    ];

    fn is_wait(self) -> bool {
        !matches!(self, Doing::Holding | Doing::Free)
    }
}

/// How many words a [`Measured`] is.
pub const WORDS: usize = 9 + Doing::ALL.len();

/// A first call that takes so long says enough, whatever it imported.
pub const LONG_FIRST_NS: u64 = 100_000_000;

/// Sums over calls of one function. Times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Calls that have begun.
    pub begun: u64,
    /// Those of them that have ended.
    pub done: u64,
    /// How long the function ran.
    pub wall_ns: u64,
    /// CPU time of the thread that ran it.
    pub cpu_ns: u64,
    /// CPU time of other threads of its process meanwhile.
    pub others_cpu_ns: u64,
    /// CPU time of child processes meanwhile.
    pub child_cpu_ns: u64,
    /// What unpickling the arguments took.
    pub unpack_ns: u64,
    /// What pickling the results took.
    pub pack_ns: u64,
    /// How large these were.
    pub result_bytes: u64,
    /// What the thread was seen doing, each time for as long as since the look before.
    pub seen_ns: [u64; Doing::ALL.len()],
}

impl Measured {
    /// As words.
    pub fn to_words(self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[..9].copy_from_slice(&[
            self.begun,
            self.done,
            self.wall_ns,
            self.cpu_ns,
            self.others_cpu_ns,
            self.child_cpu_ns,
            self.unpack_ns,
            self.pack_ns,
            self.result_bytes,
        ]);
        words[9..].copy_from_slice(&self.seen_ns);
        words
    }

    /// From words that anybody may have written: each is bounded, so that sums of them never overflow.
    pub fn from_words(words: &[u64; WORDS]) -> Measured {
        let word = |at: usize| words[at].min(1 << 52);
        Measured {
            begun: word(0),
            done: word(1),
            wall_ns: word(2),
            cpu_ns: word(3),
            others_cpu_ns: word(4),
            child_cpu_ns: word(5),
            unpack_ns: word(6),
            pack_ns: word(7),
            result_bytes: word(8),
            seen_ns: std::array::from_fn(|at| word(9 + at)),
        }
    }

    fn combine(&self, other: &Measured, join: impl Fn(u64, u64) -> u64) -> Measured {
        let (ours, theirs) = (self.to_words(), other.to_words());
        Measured::from_words(&std::array::from_fn(|at| join(ours[at], theirs[at])))
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Measured) -> Measured {
        self.combine(other, u64::saturating_add)
    }

    /// What has come since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Measured) -> Measured {
        self.combine(earlier, u64::saturating_sub)
    }

    /// Counts what was seen, for so long.
    pub fn see(&mut self, doing: Doing, ns: u64) {
        self.seen_ns[doing as usize] += ns;
    }

    /// For how long it was watched.
    pub fn watched_ns(&self) -> u64 {
        self.seen_ns.iter().sum()
    }

    fn seen(&self, doing: Doing) -> f64 {
        self.seen_ns[doing as usize] as f64
    }
}

/// Who was watched for so long was seen doing what it does.
const WATCHED_NS: f64 = 8_000_000.0;
const HARDLY: f64 = 0.1;

/// What one call of a function is like. Times in nanoseconds, averages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Nature {
    /// How long it runs.
    pub wall_ns: f64,
    /// CPU time with the interpreter's lock held.
    pub held_ns: f64,
    /// CPU time with the interpreter's lock free, in the thread that runs it.
    pub free_ns: f64,
    /// CPU time of other threads.
    pub others_ns: f64,
    /// CPU time of child processes.
    pub child_ns: f64,
    /// Time off the core.
    pub wait_ns: f64,
    /// What it waits for most, and in what share of the waiting.
    pub waits_for: Option<(Doing, f64)>,
    /// What unpickling its arguments and pickling its result take.
    pub moving_ns: f64,
    /// What pickling its result takes: unpickling it takes the caller as long.
    pub pack_ns: f64,
    /// How large that is.
    pub result_bytes: f64,
}

impl Nature {
    /// None while no call is known.
    pub fn of(measured: &Measured) -> Option<Nature> {
        if measured.begun == 0 || measured.wall_ns == 0 {
            return None;
        }
        let each = |sum: u64| sum as f64 / measured.begun as f64;
        let (holding, free) = (measured.seen(Doing::Holding), measured.seen(Doing::Free));
        // Nobody looked while it ran: then it is taken to hold the lock, which costs no more than a chance.
        let holding_share = if holding + free > 0.0 {
            holding / (holding + free)
        } else {
            1.0
        };
        let waits = Doing::ALL.into_iter().filter(|doing| doing.is_wait());
        let waited: f64 = waits.clone().map(|doing| measured.seen(doing)).sum();
        let most = waits.max_by(|a, b| measured.seen(*a).total_cmp(&measured.seen(*b)));
        let waits_for = most
            .filter(|_| waited > 0.0)
            .map(|doing| (doing, measured.seen(doing) / waited));
        let wall_ns = each(measured.wall_ns);
        let cpu_ns = each(measured.cpu_ns).min(wall_ns);
        // Whoever waits for the interpreter's lock would burn under it.
        let gil_share = if waited > 0.0 {
            measured.seen(Doing::Gil) / waited
        } else {
            0.0
        };
        // Off the core it is also where others take the core away. Who was watched and hardly ever seen waiting does not
        // wait.
        let watched = measured.watched_ns() as f64;
        let share = waited / watched.max(1.0);
        let seen_off = if watched >= WATCHED_NS && share < HARDLY {
            wall_ns * share
        } else {
            f64::INFINITY
        };
        let off_ns = (wall_ns - cpu_ns).min(seen_off);
        let wall_ns = cpu_ns + off_ns;
        Some(Nature {
            wall_ns,
            held_ns: cpu_ns * holding_share + off_ns * gil_share,
            free_ns: cpu_ns * (1.0 - holding_share),
            others_ns: each(measured.others_cpu_ns),
            child_ns: each(measured.child_cpu_ns),
            wait_ns: off_ns * (1.0 - gil_share),
            waits_for,
            moving_ns: each(measured.unpack_ns) + each(measured.pack_ns),
            pack_ns: each(measured.pack_ns),
            result_bytes: each(measured.result_bytes),
        })
    }

    /// CPU time of its own thread.
    pub fn cpu_ns(&self) -> f64 {
        self.held_ns + self.free_ns
    }

    /// In what share of its time it is off the core.
    pub fn wait_share(&self) -> f64 {
        self.wait_ns / self.wall_ns.max(1.0)
    }

    /// What share of its CPU time the interpreter's lock is held for.
    pub fn held_share(&self) -> f64 {
        if self.cpu_ns() > 0.0 {
            self.held_ns / self.cpu_ns()
        } else {
            0.0
        }
    }

    pub(crate) fn mostly_waits_for(&self, doing: Doing) -> bool {
        self.wait_share() >= 0.5
            && self
                .waits_for
                .is_some_and(|(most, share)| most == doing && share >= 0.5)
    }
}
