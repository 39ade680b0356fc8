//! Whole comparisons on made-up machines: the host's measurements follow a formula, so the choice, the
//! verdict and the text are known in advance.

use rightlane_cli::{
    Engine, Finding, Host, Job, Lane, LaneError, Measurement, Portion, Refusal, State, compare,
    exit, run,
};
use std::ffi::OsString;

/// A machine with two cores on which every item takes the same time.
struct Machine {
    items: usize,
    item_s: f64,
    /// The part of an item's time that burns CPU.
    burns: f64,
    releases_gil: bool,
    /// What a pool costs per worker.
    worker_s: f64,
    process: fn() -> Result<(), LaneError>,
    differing: Option<usize>,
    raised: usize,
    /// The part of the serial loop's running that other programs take.
    delayed: f64,
    runs: Vec<(Engine, Portion)>,
    usage: Option<&'static str>,
}

impl Machine {
    fn new(items: usize, item_s: f64, burns: f64) -> Machine {
        Machine {
            items,
            item_s,
            burns,
            releases_gil: false,
            worker_s: 1e-4,
            process: || Ok(()),
            differing: None,
            raised: 0,
            delayed: 0.0,
            runs: Vec::new(),
            usage: None,
        }
    }

    fn job(&self) -> Job {
        Job {
            name: "count".into(),
            items: self.items,
            cores: 2,
        }
    }

    fn measurement(&self, engine: Engine, items: usize) -> Measurement {
        let work_s = items as f64 * self.item_s;
        let cpu_s = work_s * self.burns;
        let wall_s = match engine {
            Engine::Serial => work_s,
            Engine::Pool { lane, size } => {
                let cores = if lane == Lane::Process || self.releases_gil {
                    size.min(2)
                } else {
                    1
                };
                let rounds = items.div_ceil(size) as f64;
                (rounds * self.item_s).max(cpu_s / cores as f64) + size as f64 * self.worker_s
            }
        };
        Measurement {
            items,
            wall_s,
            cpu_s: if engine == Engine::Serial {
                cpu_s * (1.0 - self.delayed)
            } else {
                cpu_s
            },
            delayed_s: if engine == Engine::Serial {
                cpu_s * self.delayed
            } else {
                0.0
            },
            raised: self.raised,
            differing: self.differing.filter(|_| engine != Engine::Serial),
        }
    }
}

impl Host for Machine {
    fn load(&mut self, _spec: &str, _items: &str) -> Result<Job, Refusal> {
        match self.usage {
            Some(message) => Err(Refusal::Usage(message.into())),
            None => Ok(self.job()),
        }
    }

    fn calibrate(&mut self, budget_s: f64) -> Result<Measurement, Refusal> {
        let items = ((budget_s / self.item_s).ceil() as usize).clamp(1, self.items);
        Ok(self.measurement(Engine::Serial, items))
    }

    fn measure(&mut self, engine: Engine, portion: Portion) -> Result<Measurement, LaneError> {
        self.runs.push((engine, portion));
        if let Engine::Pool {
            lane: Lane::Process,
            ..
        } = engine
        {
            (self.process)()?;
        }
        let items = match portion {
            Portion::Sample { items } => items,
            Portion::Block { index, of } => (self.items - index).div_ceil(of),
        };
        Ok(self.measurement(engine, items))
    }

    fn progress(&mut self, _line: &str) {}

    fn findings(&mut self) -> Result<Vec<Finding>, Refusal> {
        Ok(vec![Finding {
            section: "machine".into(),
            name: "kernel".into(),
            state: State::Fact,
            text: "made up".into(),
        }])
    }
}

fn finals(machine: &Machine) -> Vec<(Engine, Portion)> {
    let is_final = |run: &&(Engine, Portion)| matches!(run.1, Portion::Block { .. });
    machine.runs.iter().filter(is_final).copied().collect()
}

fn pool(lane: Lane, size: usize) -> Engine {
    Engine::Pool { lane, size }
}

fn command(machine: &mut Machine, words: &[&str]) -> (u8, String, String) {
    let args: Vec<OsString> = words.iter().map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(&args, machine, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (code, text(out), text(err))
}

#[test]
fn cpu_work_is_won_by_one_process_per_core() {
    let mut machine = Machine::new(300, 0.010, 1.0);
    let comparison = compare(&machine.job(), None, &mut machine).expect("a comparison");
    assert_eq!(
        comparison.rows[comparison.best].engine,
        pool(Lane::Process, 2)
    );
    assert!(comparison.is_sound());
    assert_eq!(
        comparison.to_string(),
        "count: 300 items, 2 cores, one pass in 3 interleaved blocks\n\
         \n\
         \x20 lane     size    time  speed-up  cores used  tasks/s\n\
         \x20 serial      –  3.00 s     1.00×        1.00      100\n\
         \x20 process     2  1.50 s     2.00×        2.00      200\n\
         \x20 thread      2  3.00 s     1.00×        1.00      100\n\
         \n\
         tasks/s on a sample: process 200 by 2, 199 by 8, 197 by 32\n\
         \x20                    thread 100 by 2, 100 by 8, 99 by 32, 98 by 128\n\
         results: equal in every lane\n\
         verdict: process × 2 wins, 2.00× as fast as serial: it burns CPU, and threads of one interpreter \
         gain nothing from more cores (1.00×)."
    );
}

#[test]
fn the_finals_interleave_the_engines_and_start_with_serial() {
    // rule 29
    let mut machine = Machine::new(300, 0.010, 1.0);
    compare(&machine.job(), None, &mut machine).expect("a comparison");
    let (serial, process, thread) = (
        Engine::Serial,
        pool(Lane::Process, 2),
        pool(Lane::Thread, 2),
    );
    let block = |index| Portion::Block { index, of: 3 };
    assert_eq!(
        finals(&machine),
        [
            (serial, block(0)),
            (process, block(0)),
            (thread, block(0)),
            (serial, block(1)),
            (thread, block(1)),
            (process, block(1)),
            (serial, block(2)),
            (process, block(2)),
            (thread, block(2)),
        ]
    );
}

#[test]
fn waiting_work_is_won_by_many_at_once_and_measured_against_one_per_core() {
    let mut machine = Machine::new(300, 0.020, 0.01);
    machine.process = || Err(LaneError::CannotSend("it is a lambda's friend".into()));
    let comparison = compare(&machine.job(), None, &mut machine).expect("a comparison");
    let best = &comparison.rows[comparison.best];
    assert_eq!(best.engine, pool(Lane::Thread, 128));
    let one_per_core = comparison
        .rows
        .iter()
        .find(|row| row.engine == pool(Lane::Thread, 2));
    let (best, one_per_core) = (best.figures, one_per_core.and_then(|row| row.figures));
    assert!(
        best.expect("measured").tasks_per_s > 5.0 * one_per_core.expect("measured").tasks_per_s
    );
    assert!(
        comparison.verdict.contains("waiting overlaps"),
        "{}",
        comparison.verdict
    );
}

#[test]
fn a_lane_that_cannot_run_the_function_is_a_row_and_no_failure() {
    let mut machine = Machine::new(20, 0.010, 1.0);
    machine.process = || Err(LaneError::CannotSend("cannot pickle a lock".into()));
    let (code, out, err) = command(
        &mut machine,
        &["rightlane", "compare", "m:f", "--items", "x"],
    );
    assert_eq!((code, err.as_str()), (exit::OK, ""));
    assert!(
        out.contains("\n  process") && out.contains("not run: cannot pickle a lock\n"),
        "{out}"
    );
    assert!(
        out.contains("tie: serial and thread × 2 are within 10 %, so serial will do"),
        "{out}"
    );
}

#[test]
fn a_lane_that_breaks_fails_the_command() {
    let mut machine = Machine::new(20, 0.010, 1.0);
    machine.process = || Err(LaneError::Failed("WorkerLost: signal 9".into()));
    let (code, out, _) = command(
        &mut machine,
        &["rightlane", "compare", "m:f", "--items", "x"],
    );
    assert_eq!(code, exit::FAILED);
    assert!(out.contains("failed: WorkerLost: signal 9\n"), "{out}");
}

#[test]
fn results_that_differ_fail_the_command() {
    let mut machine = Machine::new(20, 0.010, 1.0);
    machine.differing = Some(7);
    let (code, out, _) = command(
        &mut machine,
        &["rightlane", "compare", "m:f", "--items", "x"],
    );
    assert_eq!(code, exit::FAILED);
    assert!(
        out.contains("results: DIFFER: process × 2 gave something else than serial for item 7\n"),
        "{out}"
    );
}

#[test]
fn calls_that_raise_are_counted() {
    let mut machine = Machine::new(20, 0.010, 1.0);
    machine.raised = 9;
    let comparison = compare(&machine.job(), None, &mut machine).expect("a comparison");
    let text = comparison.to_string();
    assert!(
        text.contains("results: equal in every lane (9 of 20 calls raised)"),
        "{text}"
    );
    assert!(text.contains("medians of 3 interleaved passes"), "{text}");
}

#[test]
fn tiny_work_is_best_left_in_the_loop() {
    let mut machine = Machine::new(1, 1e-6, 1.0);
    let comparison = compare(&machine.job(), None, &mut machine).expect("a comparison");
    assert_eq!(comparison.rows[comparison.best].engine, Engine::Serial);
    assert_eq!(
        comparison.verdict,
        "serial wins, the plain loop: no pool gains enough to be worth its cost."
    );
}

#[test]
fn threads_that_gain_are_said_to_let_others_run() {
    let mut machine = Machine::new(300, 0.010, 1.0);
    machine.releases_gil = true;
    let comparison = compare(&machine.job(), None, &mut machine).expect("a comparison");
    assert_eq!(
        comparison.rows[comparison.best].engine,
        pool(Lane::Thread, 2)
    );
    assert!(
        comparison
            .verdict
            .starts_with("tie: thread × 2 and process × 2 are within 10 %, so thread × 2 will do"),
        "{}",
        comparison.verdict
    );
}

#[test]
fn waiting_for_a_core_is_said_and_not_taken_for_waiting() {
    let mut machine = Machine::new(300, 0.010, 1.0);
    machine.delayed = 0.6;
    let comparison = compare(&machine.job(), None, &mut machine).expect("a comparison");
    assert!(
        comparison.verdict.contains("it burns CPU"),
        "{}",
        comparison.verdict
    );
    let text = comparison.to_string();
    assert!(
        text.contains(
            "\nnote: other programs kept the serial loop off the cores for 60 % of its time"
        ),
        "{text}"
    );
}

#[test]
fn max_workers_caps_every_pool() {
    let mut machine = Machine::new(300, 0.001, 0.0);
    let words = [
        "rightlane",
        "compare",
        "m:f",
        "--items",
        "x",
        "--max-workers",
        "5",
    ];
    assert_eq!(command(&mut machine, &words).0, exit::OK);
    let sizes = machine.runs.iter().filter_map(|run| match run.0 {
        Engine::Pool { size, .. } => Some(size),
        Engine::Serial => None,
    });
    assert_eq!(sizes.max(), Some(5));
}

#[test]
fn wrong_usage_is_one_line_and_exit_code_2() {
    let mut machine = Machine::new(1, 1.0, 1.0);
    machine.usage = Some("no module named 'nope'\nat all");
    let (code, out, err) = command(
        &mut machine,
        &["rightlane", "compare", "nope:f", "--items", "x"],
    );
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (
            exit::USAGE,
            "",
            "rightlane: no module named 'nope' at all\n"
        )
    );
}

#[test]
fn doctor_prints_the_findings() {
    let mut machine = Machine::new(1, 1.0, 1.0);
    let (code, out, err) = command(&mut machine, &["rightlane", "doctor"]);
    assert_eq!((code, err.as_str()), (exit::OK, ""));
    assert_eq!(out, "machine\n       kernel  made up\n");
}
