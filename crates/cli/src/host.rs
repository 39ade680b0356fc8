//! What the commands need from the outside: someone who can run the user's function and look at the
//! machine. The binding's host is Python; the tests' host makes its measurements up.

use std::fmt;

/// The job of a comparison, once the host has loaded it.
#[derive(Debug, Clone)]
pub struct Job {
    /// What the user calls the function.
    pub name: String,
    /// How many items it is to be called with; at least one.
    pub items: usize,
    /// The core budget: what an executor takes as its default size.
    pub cores: usize,
}

/// Where functions of a pool run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Process,
    Thread,
}

impl Lane {
    /// Every lane that takes part in a comparison. Threads come last because the order is also the
    /// order of the table.
    pub const ALL: [Lane; 2] = [Lane::Process, Lane::Thread];

    pub fn name(self) -> &'static str {
        match self {
            Lane::Process => "process",
            Lane::Thread => "thread",
        }
    }
}

/// One way to run the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A plain loop in the calling thread.
    Serial,
    /// A pool of `size` workers, made for the measurement and ended in it.
    Pool { lane: Lane, size: usize },
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Engine::Serial => f.write_str("serial"),
            Engine::Pool { lane, size } => write!(f, "{} × {size}", lane.name()),
        }
    }
}

/// Which of the items a measurement runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Portion {
    /// The first `items` of a fixed order that spreads over the whole list.
    Sample { items: usize },
    /// Every `of`-th item, from item `index` on; `0 of 1` is all of them, in their own order.
    Block { index: usize, of: usize },
}

impl Portion {
    pub const ALL: Portion = Portion::Block { index: 0, of: 1 };
}

/// What one run took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// How many items it ran.
    pub items: usize,
    /// Wall-clock time, making and ending the pool included.
    pub wall_s: f64,
    /// CPU time of the caller and of every process the engine used meanwhile.
    pub cpu_s: f64,
    /// How long the caller's thread could have run and had to wait for a core. Only serial runs know
    /// it; 0 where the kernel does not say.
    pub delayed_s: f64,
    /// How many items raised an exception. That is a result like another.
    pub raised: usize,
    /// The first item (its place in the list) whose result is not what the serial loop gave for it.
    pub differing: Option<usize>,
}

/// Why the host refuses to go on with the command.
#[derive(Debug)]
pub enum Refusal {
    /// The user asked for something that cannot be; one line says what.
    Usage(String),
    /// The user interrupted, or something that should not happen did. The host knows which.
    Stopped,
}

/// Why one lane has no measurement. The other lanes go on unless it is [`LaneError::Stopped`].
#[derive(Debug)]
pub enum LaneError {
    /// The function, an argument or a result cannot travel there. That is a finding, not a failure.
    CannotSend(String),
    /// The lane broke.
    Failed(String),
    /// See [`Refusal::Stopped`].
    Stopped,
}

/// How well something works here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A fact, neither good nor bad.
    Fact,
    Works,
    /// Missing, and the engine gets by.
    Limited,
    Missing,
}

/// One line of `rightlane doctor`.
#[derive(Debug, Clone)]
pub struct Finding {
    pub section: String,
    pub name: String,
    pub state: State,
    pub text: String,
}

/// The outside world of the commands.
pub trait Host {
    /// Finds the function named by `spec` and evaluates `items`, an expression, once.
    fn load(&mut self, spec: &str, items: &str) -> Result<Job, Refusal>;

    /// Runs items of the spread order serially, one after the other, until `budget_s` is used up; at
    /// least one. The answer says how many; those are the sample.
    fn calibrate(&mut self, budget_s: f64) -> Result<Measurement, Refusal>;

    /// Runs one portion of the job. Serial runs of a block come before those of pools: their results
    /// are what the others are compared with.
    fn measure(&mut self, engine: Engine, portion: Portion) -> Result<Measurement, LaneError>;

    /// Tells a waiting user what comes next.
    fn progress(&mut self, line: &str);

    /// Looks at the machine, for `rightlane doctor`.
    fn findings(&mut self) -> Result<Vec<Finding>, Refusal>;
}
