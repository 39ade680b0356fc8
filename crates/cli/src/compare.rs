//! Carries out the plan of a comparison on a host, and judges.
//!
//! The sequence: a serial sample; each lane in each size on it; then serial, the best of each lane, and
//! (where many at once won) one per core, on all items in turn. A lane that cannot run the function is
//! a row with a reason, never the end of the comparison.

use crate::host::{Engine, Host, Job, Lane, LaneError, Measurement, Portion, Refusal};
use crate::plan::{self, SAMPLE_S, Schedule, TIE, WAITING_CORES};
use crate::table;
use std::fmt;

/// What one engine achieved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub items: usize,
    pub time_s: f64,
    /// Against the serial loop.
    pub speed_up: f64,
    /// CPU time over wall-clock time.
    pub cores_used: f64,
    pub tasks_per_s: f64,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub engine: Engine,
    /// None where the lane could not run the function; `note` says why.
    pub figures: Option<Figures>,
    pub note: String,
}

/// How the results of the lanes relate to the serial ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Results {
    /// The same for every item; so many of them were exceptions.
    Equal { raised: usize },
    /// The first difference found.
    Differ { engine: Engine, item: usize },
}

/// A comparison that was made. Its `Display` is what the command prints.
#[derive(Debug, Clone)]
pub struct Comparison {
    pub name: String,
    pub items: usize,
    pub cores: usize,
    pub schedule: Schedule,
    /// Every engine that was measured on all items, serial first, and every lane that was not.
    pub rows: Vec<Row>,
    /// The sizes that were tried on a sample.
    pub sweep: Vec<Row>,
    pub results: Results,
    /// The part of the serial loop's time in which other programs kept it off the cores.
    pub delayed: f64,
    /// Which of `rows` to use.
    pub best: usize,
    /// One sentence.
    pub verdict: String,
    broken: bool,
}

impl Comparison {
    /// True when no lane broke and all results are equal.
    pub fn is_sound(&self) -> bool {
        !self.broken && matches!(self.results, Results::Equal { .. })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        table::render(self, f)
    }
}

/// Compares the engines on a job that the host has loaded.
pub fn compare(
    job: &Job,
    max_workers: Option<usize>,
    host: &mut dyn Host,
) -> Result<Comparison, Refusal> {
    host.progress(&format!("{}: a serial sample", job.name));
    let serial = Rate::of(&host.calibrate(SAMPLE_S)?);
    let sample_items = serial.items;

    let mut sweep = Vec::new();
    let mut unmeasured = Vec::new();
    let mut contestants = Vec::new();
    let mut broken = false;
    for lane in Lane::ALL {
        let swept = sweep_lane(
            lane,
            job,
            max_workers,
            sample_items,
            &serial,
            host,
            &mut sweep,
        )?;
        match swept {
            Ok(contestant) => contestants.push(contestant),
            Err((row, failed)) => {
                broken |= failed;
                unmeasured.push(row);
            }
        }
    }
    let engines = finalists(&contestants);
    let pass_s = engines
        .iter()
        .fold(job.items as f64 / serial.per_s, |sum, finalist| {
            sum + job.items as f64 / finalist.per_s
        });
    let largest = contestants.iter().map(|lane| lane.size).max().unwrap_or(1);
    let schedule = Schedule::choose(pass_s, job.items, largest);
    let (mut rows, results, delayed) = run_finals(job, schedule, &engines, host, &mut broken)?;
    rows.extend(unmeasured);
    let (best, verdict) = judge(&rows, delayed);
    Ok(Comparison {
        name: job.name.clone(),
        items: job.items,
        cores: job.cores,
        schedule,
        rows,
        sweep,
        results,
        delayed,
        best,
        verdict,
        broken,
    })
}

/// A measurement as figures per second.
struct Rate {
    items: usize,
    per_s: f64,
    cores_used: f64,
    /// The part of the time in which the caller had to wait for a core.
    delayed: f64,
}

impl Rate {
    fn of(measured: &Measurement) -> Rate {
        // A clock may stand still during a run that does next to nothing.
        let wall_s = measured.wall_s.max(1e-9);
        Rate {
            items: measured.items,
            per_s: measured.items as f64 / wall_s,
            cores_used: measured.cpu_s / wall_s,
            delayed: measured.delayed_s / wall_s,
        }
    }

    fn figures(&self, serial_per_s: f64) -> Figures {
        Figures {
            items: self.items,
            time_s: self.items as f64 / self.per_s,
            speed_up: self.per_s / serial_per_s,
            cores_used: self.cores_used,
            tasks_per_s: self.per_s,
        }
    }
}

/// A lane in its best size, as the sweep saw it.
struct Contestant {
    lane: Lane,
    size: usize,
    per_s: f64,
    /// The smallest size tried, one worker per core, and how that did.
    smallest: usize,
    smallest_per_s: f64,
}

struct Finalist {
    engine: Engine,
    per_s: f64,
}

/// Tries every size of a lane. The inner error is the row of a lane that cannot run the function, and
/// whether that is a failure.
fn sweep_lane(
    lane: Lane,
    job: &Job,
    max_workers: Option<usize>,
    sampled: usize,
    serial: &Rate,
    host: &mut dyn Host,
    sweep: &mut Vec<Row>,
) -> Result<Result<Contestant, (Row, bool)>, Refusal> {
    let mut rates = Vec::new();
    for size in plan::sizes(lane, job.cores, job.items, max_workers) {
        let engine = Engine::Pool { lane, size };
        // A loop that other programs keep off the cores does not wait for anything that overlaps.
        let wanted_cores = serial.cores_used + serial.delayed;
        let items = plan::sample_items(size, sampled, wanted_cores, job.items);
        host.progress(&format!("{}: {engine} on a sample of {items}", job.name));
        match host.measure(engine, Portion::Sample { items }) {
            Ok(measured) => {
                let rate = Rate::of(&measured);
                rates.push((size, rate.per_s));
                sweep.push(Row {
                    engine,
                    figures: Some(rate.figures(serial.per_s)),
                    note: String::new(),
                });
            }
            Err(LaneError::Stopped) => return Err(Refusal::Stopped),
            // What one size cannot send, no size can; and a lane that broke once is not to be trusted.
            Err(error) => return Ok(Err(unmeasured_row(engine, error))),
        }
    }
    let size = plan::best_size(&rates).expect("every lane has a size to try");
    let rate_of = |wanted: usize| {
        rates
            .iter()
            .find(|(size, _)| *size == wanted)
            .map_or(f64::NAN, |(_, rate)| *rate)
    };
    Ok(Ok(Contestant {
        lane,
        size,
        per_s: rate_of(size),
        smallest: rates[0].0,
        smallest_per_s: rates[0].1,
    }))
}

fn unmeasured_row(engine: Engine, error: LaneError) -> (Row, bool) {
    let (note, broken) = match error {
        LaneError::CannotSend(reason) => (format!("not run: {reason}"), false),
        LaneError::Failed(reason) => (format!("failed: {reason}"), true),
        LaneError::Stopped => (String::new(), true),
    };
    let row = Row {
        engine,
        figures: None,
        note,
    };
    (row, broken)
}

/// The pools that run on all items: the best of each lane, and one per core of the fastest lane if that
/// is another size, for that is what many people would have taken.
fn finalists(contestants: &[Contestant]) -> Vec<Finalist> {
    let fastest = contestants.iter().map(|c| c.per_s).fold(0.0, f64::max);
    let mut finalists = Vec::new();
    for contestant in contestants {
        let lane = contestant.lane;
        let is_fastest = contestant.per_s >= fastest;
        if is_fastest && contestant.smallest != contestant.size {
            finalists.push(Finalist {
                engine: Engine::Pool {
                    lane,
                    size: contestant.smallest,
                },
                per_s: contestant.smallest_per_s,
            });
        }
        finalists.push(Finalist {
            engine: Engine::Pool {
                lane,
                size: contestant.size,
            },
            per_s: contestant.per_s,
        });
    }
    finalists
}

fn run_finals(
    job: &Job,
    schedule: Schedule,
    finalists: &[Finalist],
    host: &mut dyn Host,
    broken: &mut bool,
) -> Result<(Vec<Row>, Results, f64), Refusal> {
    let engines: Vec<Engine> = std::iter::once(Engine::Serial)
        .chain(finalists.iter().map(|finalist| finalist.engine))
        .collect();
    let mut runs: Vec<Result<Vec<Measurement>, LaneError>> =
        engines.iter().map(|_| Ok(Vec::new())).collect();
    let mut differing = None;
    let portions = schedule.portions();
    for (round, &portion) in portions.iter().enumerate() {
        // Serial comes first, for the others are checked against it; these change places every round,
        // so that none always follows the same one.
        let mut order: Vec<usize> = (0..engines.len()).collect();
        if round % 2 == 1 {
            order[1..].reverse();
        }
        for index in order {
            let engine = engines[index];
            let Ok(measured) = &mut runs[index] else {
                continue;
            };
            let (name, round, rounds) = (&job.name, round + 1, portions.len());
            host.progress(&format!("{name}: {engine}, round {round} of {rounds}"));
            match host.measure(engine, portion) {
                Ok(measurement) => {
                    if let (None, Some(item)) = (&differing, measurement.differing) {
                        differing = Some(Results::Differ { engine, item });
                    }
                    measured.push(measurement);
                }
                Err(LaneError::Stopped) => return Err(Refusal::Stopped),
                Err(error) => runs[index] = Err(error),
            }
        }
    }
    let mut rows = Vec::new();
    let mut raised = 0;
    let mut serial_per_s = f64::NAN;
    let mut delayed = 0.0;
    for (&engine, run) in engines.iter().zip(runs) {
        rows.push(match run {
            Ok(measured) => {
                let rate = total(schedule, job.items, &measured);
                if engine == Engine::Serial {
                    serial_per_s = rate.per_s;
                    delayed = rate.delayed;
                    raised = raised_in(schedule, &measured);
                }
                Row {
                    engine,
                    figures: Some(rate.figures(serial_per_s)),
                    note: String::new(),
                }
            }
            Err(error) => {
                let (row, failed) = unmeasured_row(engine, error);
                *broken |= failed;
                row
            }
        });
    }
    Ok((
        rows,
        differing.unwrap_or(Results::Equal { raised }),
        delayed,
    ))
}

fn total(schedule: Schedule, items: usize, measured: &[Measurement]) -> Rate {
    let walls_s: Vec<f64> = measured.iter().map(|m| m.wall_s).collect();
    let all_wall_s: f64 = walls_s.iter().sum();
    let all_cpu_s: f64 = measured.iter().map(|m| m.cpu_s).sum();
    let all_delayed_s: f64 = measured.iter().map(|m| m.delayed_s).sum();
    Rate {
        items,
        delayed: all_delayed_s / all_wall_s.max(1e-9),
        per_s: items as f64 / schedule.total_s(&walls_s).max(1e-9),
        cores_used: all_cpu_s / all_wall_s.max(1e-9),
    }
}

fn raised_in(schedule: Schedule, measured: &[Measurement]) -> usize {
    match schedule {
        Schedule::Passes(_) => measured.last().map_or(0, |m| m.raised),
        Schedule::Blocks(_) => measured.iter().map(|m| m.raised).sum(),
    }
}

/// How simple an engine is to live with: what a tie is decided by.
fn simplicity(engine: Engine) -> (u8, usize) {
    match engine {
        Engine::Serial => (0, 0),
        Engine::Pool {
            lane: Lane::Thread,
            size,
        } => (1, size),
        Engine::Pool {
            lane: Lane::Process,
            size,
        } => (2, size),
    }
}

/// Names the best row, and says in one sentence why.
fn judge(rows: &[Row], delayed: f64) -> (usize, String) {
    let timed: Vec<(usize, Engine, Figures)> = rows
        .iter()
        .enumerate()
        .filter_map(|(index, row)| row.figures.map(|figures| (index, row.engine, figures)))
        .collect();
    let Some(&fastest) = timed
        .iter()
        .min_by(|a, b| a.2.time_s.total_cmp(&b.2.time_s))
    else {
        return (0, "nothing could be measured.".into());
    };
    let mut tied: Vec<_> = timed
        .iter()
        .filter(|entry| entry.2.time_s <= fastest.2.time_s * TIE)
        .collect();
    tied.sort_by_key(|entry| simplicity(entry.1));
    let &&(best, engine, figures) = tied.first().expect("the fastest ties with itself");
    let reason = reason(&timed, engine, delayed);
    let verdict = if let [_, others @ ..] = &tied[..]
        && !others.is_empty()
    {
        let names: Vec<String> = tied.iter().map(|entry| entry.1.to_string()).collect();
        let (last, first) = names.split_last().expect("two at least");
        format!(
            "tie: {} and {last} are within 10 %, so {engine} will do ({}): {reason}.",
            first.join(", "),
            against_others(&timed, engine, figures),
        )
    } else {
        format!(
            "{engine} wins, {}: {reason}.",
            against_others(&timed, engine, figures)
        )
    };
    (best, verdict)
}

fn against_others(timed: &[(usize, Engine, Figures)], best: Engine, figures: Figures) -> String {
    let Engine::Pool { lane, .. } = best else {
        return "the plain loop".into();
    };
    let mut text = format!("{} as fast as serial", table::factor(figures.speed_up));
    // The same lane with one worker per core is there only where the sweep preferred many at once.
    let one_per_core = timed
        .iter()
        .find(|entry| matches!(entry.1, Engine::Pool { lane: other, .. } if other == lane))
        .filter(|entry| entry.1 != best);
    if let Some((_, engine, theirs)) = one_per_core {
        let factor = table::factor(theirs.time_s / figures.time_s);
        text += &format!(" and {factor} as fast as {engine}");
    }
    text
}

/// What the figures say about the work. Only what was measured: who holds the interpreter lock is
/// inferred from how many cores the threads got.
fn reason(timed: &[(usize, Engine, Figures)], best: Engine, delayed: f64) -> String {
    let serial_cores = timed[0].2.cores_used;
    let threads = timed
        .iter()
        .filter(|entry| {
            matches!(
                entry.1,
                Engine::Pool {
                    lane: Lane::Thread,
                    ..
                }
            )
        })
        .max_by(|a, b| a.2.speed_up.total_cmp(&b.2.speed_up))
        .map(|entry| entry.2);
    let waits = serial_cores + delayed < WAITING_CORES;
    let threads_gain = threads.is_some_and(|figures| figures.speed_up > 1.0 / 0.75);
    match best {
        Engine::Serial => "no pool gains enough to be worth its cost".into(),
        _ if waits => format!(
            "the serial loop waits most of the time ({serial_cores:.2} cores used), and waiting overlaps"
        ),
        _ if threads_gain => "it burns CPU, and lets other threads run meanwhile".into(),
        Engine::Pool {
            lane: Lane::Thread, ..
        } => "it burns CPU, and no pool gains much".into(),
        _ => match threads {
            Some(figures) => format!(
                "it burns CPU, and threads of one interpreter gain nothing from more cores ({})",
                table::factor(figures.speed_up)
            ),
            None => "it burns CPU".into(),
        },
    }
}
