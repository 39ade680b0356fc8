"""Rightlane against other pools: `make bench`, or `python benches/bench.py --quick`.

Every run is a process of its own, whose process group is killed when it has answered; the engines take
turns, in a rotating order, so that a machine that gets slower gets slower for all of them. Medians count.
A whole run is written to `RESULTS.md`; one with `--quick`, `--case`, `--bars` or `--beside-load` only prints.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tasks
from bars import BARS
from engine import ENGINES

HERE = Path(__file__).resolve().parent
ROUNDS = 5
WORKERS = 2
RUN_TIMEOUT_S = 180.0

RIVALS = {
    "rightlane process": ("ProcessPoolExecutor", "multiprocessing.Pool", "loky", "joblib", "ray"),
    "rightlane thread": ("ThreadPoolExecutor",),
}
OWN = tuple(RIVALS)
GUESTS = ("ray",)
"""Peers that only some cases invite: they take seconds to start, and are there for what they do well."""
PACKAGES = {"loky": "loky", "joblib": "joblib", "ray": "ray"}
"""What peers need that Python does not bring; `requirements-bench.txt` has the versions."""

Parameters = dict[str, int | float | str]
Samples = dict[str, dict[str, list[float]]]
"""Engine, value, one entry per round."""


@dataclass(frozen=True)
class Case:
    """What is measured, in what size, and for whom it means nothing."""

    name: str
    title: str
    values: Mapping[str, str]
    """What a run answers: the key, whose end is the unit, and how the table names it."""
    parameters: Callable[[bool], Parameters]
    """Of `--quick` or not."""
    rounds: int = ROUNDS
    compared: Sequence[str] = ()
    """The values that have ratios; the first one if none is named."""
    more_is_better: bool = False
    meaningless: Mapping[str, str] = field(default_factory=dict)
    other_parameters: Mapping[str, Parameters] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    script: str = "engine.py"
    guests: Sequence[str] = ()

    def compares(self) -> Sequence[str]:
        return self.compared or [next(iter(self.values))]


@functools.cache
def burn_steps(seconds: float) -> int:
    """How many steps of `tasks.burn` take so long on this machine, by the best of some; asked for once, so
    that every engine gets the same."""
    steps = max(100, round(seconds * 2e6))
    best_s = min(_time_of(tasks.burn, steps) for _ in range(max(20, round(0.2 / seconds))))
    return max(1, round(steps * seconds / best_s))


def _time_of(fn: Callable[[int], object], arg: int) -> float:
    start = time.perf_counter()
    fn(arg)
    return time.perf_counter() - start


def _none(why: str, *engines: str) -> dict[str, str]:
    return dict.fromkeys(engines, f"– ({why})")


_THREADS = ("rightlane thread", "ThreadPoolExecutor")
_PROCESSES = ("rightlane process", "ProcessPoolExecutor", "multiprocessing.Pool", "loky", "joblib")
_NO_LOOP = _none("no pool", "no pool")
_NO_BATCH = _none("all at once only", "joblib")
_NO_THREADS = _none("one interpreter lock", *_THREADS)
_NO_PROCESSES = {**_none("threads only", *_PROCESSES), **_NO_LOOP}
_NO_TRAVEL = {**_none("nothing travels", *_THREADS), **_NO_LOOP}
_BREAKS = _none("breaks with its worker", "ProcessPoolExecutor", "loky")

_BARE = "“no pool” are two bare processes, each with a loop over its half: what the machine had to give."
_ONE_BY_ONE = '`joblib` has `batch_size=1` and `pre_dispatch="all"`, so that each task travels alone.'
_WITH_NUMPY = "Arrays are of float64. Workers have imported NumPy before the clock starts."
_CHUNKS = (
    "`ProcessPoolExecutor` and `loky` get the chunk size that `Pool.map` chooses for itself; with their own "
    "default of 1 an item takes about as long as in the case “submits”. `joblib` sizes its batches by itself."
)


def _burning(count: int, task_s: float) -> Callable[[bool], Parameters]:
    return lambda quick: {
        "workers": WORKERS,
        "count": count // 10 if quick else count,
        "steps": burn_steps(task_s),
        "task_s": task_s,
    }


def _pending(argument: str) -> Callable[[bool], Parameters]:
    return lambda quick: {
        "workers": WORKERS,
        "count": 20_000 if quick else 1_000_000,
        "argument": argument,
    }


def _arrays(mib: int, **more: int) -> Callable[[bool], Parameters]:
    return lambda quick: {
        "workers": WORKERS,
        "mib": mib // 8 if quick else mib,
        **{key: max(2, value // 5) if quick else value for key, value in more.items()},
    }


def _kills(busy: bool) -> Callable[[bool], Parameters]:
    return lambda quick: {"workers": 1, "kills": 5 if quick else 20, "busy": int(busy)}


CASES = [
    Case(
        "cold",
        "First result from cold: from before the pool is made to the result of a plain `__main__` function",
        {"first_s": "first result"},
        lambda quick: {"workers": WORKERS},
        rounds=9,
        meaningless=_NO_LOOP,
        notes=("The library is imported before the clock starts.",),
    ),
    Case(
        "cold-import",
        "First result in a fresh interpreter: the same from before the library's import",
        {"first_s": "first result"},
        lambda quick: {"workers": WORKERS},
        rounds=9,
        meaningless=_NO_LOOP,
        script="first.py",
    ),
    Case(
        "cold-30ms",
        "First result of a pool that was made 30 ms ago: `submit` and its result",
        {"first_s": "first result"},
        lambda quick: {"workers": WORKERS, "rest_s": 0.030},
        rounds=9,
        meaningless=_NO_LOOP,
    ),
    Case(
        "latency",
        "One `submit` and its result, back to back, on whatever cores the system chooses",
        {"p50_s": "p50", "p99_s": "p99"},
        lambda quick: {"workers": WORKERS, "count": 200 if quick else 3000},
        compared=("p50_s", "p99_s"),
        meaningless={**_NO_LOOP, **_NO_BATCH},
    ),
    Case(
        "latency-one-core",
        "One `submit` and its result, back to back, everything pinned to one core",
        {"p50_s": "p50", "p99_s": "p99"},
        lambda quick: {"workers": WORKERS, "count": 200 if quick else 3000, "cores": 1},
        compared=("p50_s", "p99_s"),
        meaningless={**_NO_LOOP, **_NO_BATCH},
    ),
    Case(
        "latency-after-rest",
        "One `submit` and its result after 10 ms of rest",
        {"p50_s": "p50", "p99_s": "p99"},
        lambda quick: {"workers": WORKERS, "count": 50 if quick else 400, "rest_s": 0.010},
        compared=("p50_s", "p99_s"),
        meaningless={**_NO_LOOP, **_NO_BATCH},
    ),
    Case(
        "submits",
        "100,000 × `submit` of a no-op, one by one, then all results",
        {"per_task_s": "per task"},
        lambda quick: {"workers": WORKERS, "count": 5_000 if quick else 100_000},
        meaningless=_NO_LOOP,
        other_parameters={"loky": {"count": 20_000}, "joblib": {"count": 20_000}},
        notes=(_ONE_BY_ONE + " It and `loky` run 20,000.",),
    ),
    Case(
        "map",
        "`map` of a no-op over `range(1_000_000)`",
        {"per_item_s": "per item"},
        lambda quick: {"workers": WORKERS, "count": 50_000 if quick else 1_000_000},
        other_parameters={"ThreadPoolExecutor": {"count": 100_000}},
        notes=(
            _CHUNKS,
            "`ThreadPoolExecutor` runs 100,000 items: it makes a future of more than 1 KB for each. “no "
            "pool” is `list(map(noop, items))`.",
        ),
    ),
    Case(
        "map-tuples",
        "`map` of a no-op over a list of 100,000 small tuples, which come back",
        {"per_item_s": "per item"},
        lambda quick: {"workers": WORKERS, "count": 5_000 if quick else 100_000},
        notes=(_CHUNKS,),
    ),
    Case(
        "share-0.1ms",
        "The share of two cores that 5,000 tasks of 0.1 ms get",
        {"share_percent": "share"},
        _burning(5000, 0.0001),
        more_is_better=True,
        meaningless=_NO_THREADS,
        notes=(_BARE + " " + _ONE_BY_ONE,),
    ),
    Case(
        "share-1ms",
        "The share of two cores that 2,000 tasks of 1 ms get",
        {"share_percent": "share"},
        _burning(2000, 0.001),
        more_is_better=True,
        meaningless=_NO_THREADS,
        notes=(_BARE + " " + _ONE_BY_ONE,),
    ),
    Case(
        "cpu-1ms",
        "600 × 1 ms of pure Python",
        {"total_s": "total", "ideal_ratio": "of the ideal"},
        _burning(600, 0.001),
        notes=("On two cores the ideal is 300 ms.", _BARE),
    ),
    Case(
        "cpu",
        "200 × 10 ms of pure Python",
        {"total_s": "total", "ideal_ratio": "of the ideal"},
        _burning(200, 0.010),
        notes=("On two cores the ideal is 1 s, in threads of one interpreter 2 s.", _BARE),
    ),
    Case(
        "parent-cpu",
        "What a process that waits for 2,000 tasks of 1 ms uses itself, of one core",
        {"core_percent": "of one core"},
        lambda quick: {"workers": WORKERS, "count": 200 if quick else 2000, "steps": burn_steps(0.001)},
        meaningless={**_none("tasks run in it", *_THREADS), **_NO_LOOP, **_NO_BATCH},
        notes=("All its threads, from the first wait to the last result; everything is submitted before.",),
    ),
    Case(
        "sleep",
        "200 × 20 ms of sleep in 20 threads",
        {"total_s": "total"},
        lambda quick: {"workers": 20, "count": 40 if quick else 200, "seconds": 0.020},
        meaningless=_NO_PROCESSES,
        notes=("The ideal is 200 ms.",),
    ),
    *(
        Case(
            f"pending-bytes-{kind}",
            f"Memory per pending task with {what}, at 1,000,000 pending",
            {"per_task_bytes": "per task"},
            _pending(kind),
            meaningless={**_NO_LOOP, **_NO_BATCH},
            other_parameters={
                name: {"count": 100_000}
                for name in ("ProcessPoolExecutor", "ThreadPoolExecutor", "multiprocessing.Pool", "loky")
            },
            notes=(
                "By how much the resident memory of the submitting process grows while tasks that do not end "
                "hold the workers; the futures are kept, their list is not counted. The peers hold 100,000.",
            ),
        )
        for kind, what in (("int", "an int as its argument"), ("dict", "a dict of one item as its argument"))
    ),
    Case(
        "depth",
        "The cost of a task at 1,000 pending and at 1,000,000: no-ops, all submitted, then all results",
        {"growth_ratio": "growth", "few_s": "per task at 1,000", "many_s": "per task at 1,000,000"},
        lambda quick: {
            "workers": WORKERS,
            "few": 1000,
            "times": 3 if quick else 30,
            "many": 20_000 if quick else 1_000_000,
        },
        meaningless={**_NO_LOOP, **_NO_BATCH},
        other_parameters={
            "ProcessPoolExecutor": {"many": 100_000},
            "ThreadPoolExecutor": {"many": 100_000},
            "multiprocessing.Pool": {"many": 100_000},
            "loky": {"many": 50_000, "times": 5},
        },
        notes=("The peers go up to 100,000, `loky` to 50,000.",),
    ),
    Case(
        "width",
        "The cost of a task with 2 workers and with 64 on two cores: 100,000 × `submit`, then all results",
        {"growth_ratio": "growth", "few_s": "per task with 2", "many_s": "per task with 64"},
        lambda quick: {"workers": WORKERS, "more_workers": 64, "count": 5_000 if quick else 100_000},
        meaningless={**_NO_LOOP, **_NO_BATCH},
        other_parameters={
            "ProcessPoolExecutor": {"count": 20_000},
            "multiprocessing.Pool": {"count": 20_000},
            "loky": {"count": 10_000},
        },
        notes=(
            "All workers have run something before the clock starts. Peers with processes run fewer tasks.",
        ),
    ),
    Case(
        "drop-ins",
        "What `rl.futures.ProcessPoolExecutor` and `rl.Pool` take of the executor's time for the same work",
        {
            "futures_submits_ratio": "futures, submits",
            "futures_map_ratio": "futures, map",
            "pool_submits_ratio": "Pool, apply_async",
            "pool_map_ratio": "Pool, map",
        },
        lambda quick: {"workers": WORKERS, "count": 2_000 if quick else 50_000, "turns": 3 if quick else 11},
        meaningless=_none(
            "not ours",
            "rightlane thread",
            "ProcessPoolExecutor",
            "ThreadPoolExecutor",
            "multiprocessing.Pool",
            "loky",
            "joblib",
            "no pool",
        ),
        notes=("No-ops over a range of 50,000; in turns, in one process.",),
    ),
    *(
        Case(
            f"killed-{state}",
            f"A killed worker is replaced: from the kill of the only one, {how}, to a result of the new one",
            {"p50_s": "p50", "max_s": "worst of 20"},
            _kills(state == "busy"),
            meaningless={**_none("no processes", *_THREADS), **_NO_LOOP, **_NO_BATCH, **_BREAKS, **hangs},
            notes=notes,
        )
        for state, how, hangs, notes in (
            ("idle", "idle", _none("hangs: a worker waits with a lock held", "multiprocessing.Pool"), ()),
            ("busy", "while it runs a task", {}, ("`multiprocessing.Pool` loses that task without a word.",)),
        )
    ),
    Case(
        "array-in",
        "A call with a new array of 128 MiB: until the result of a task that reads its ends, or sums it up",
        {"per_call_s": "ends", "summed_s": "sum"},
        _arrays(128, count=5),
        compared=("per_call_s", "summed_s"),
        meaningless=_NO_TRAVEL,
        guests=GUESTS,
        notes=(_WITH_NUMPY,),
    ),
    Case(
        "array-out",
        "A call with a result of 128 MiB: until it has come and is dropped",
        {"per_call_s": "per call"},
        _arrays(128, count=10),
        meaningless=_NO_TRAVEL,
        guests=GUESTS,
        notes=(_WITH_NUMPY + " The worker has the array already; only its ends are new.",),
    ),
    Case(
        "array-again",
        "The same array of 32 MiB as the argument of 50 tasks: by `submit`, by `map`, and stored before",
        {"per_task_s": "per submit", "per_item_s": "per item", "per_shared_s": "stored"},
        _arrays(32, count=50),
        compared=("per_task_s", "per_item_s", "per_shared_s"),
        meaningless=_NO_TRAVEL,
        guests=GUESTS,
        notes=(
            _WITH_NUMPY,
            _CHUNKS,
            "In each of their chunks the array is once. `ray` has no `map`.",
            "Stored by `rl.share` and `ray.put` before the clock starts; others can only send.",
        ),
    ),
    Case(
        "array-written",
        "A call with a new array of 128 MiB that the task overwrites in place, and one that copies it first",
        {"growth_ratio": "in place, of copied", "per_call_s": "in place", "copied_s": "copied"},
        _arrays(128, count=7),
        compared=("per_call_s",),
        meaningless={**_NO_TRAVEL, **_none("gives read-only arrays", "joblib")},
        notes=(_WITH_NUMPY,),
    ),
    Case(
        "array-sizes",
        "Arrays there and back, one at a time",
        {f"kib_{kib}_s": f"{kib} KiB" for kib in (4, 16, 64, 256)},
        lambda quick: {"workers": WORKERS, "count": 40 if quick else 500},
        compared=[f"kib_{kib}_s" for kib in (4, 16, 64, 256)],
        meaningless={**_NO_TRAVEL, **_NO_BATCH},
        guests=GUESTS,
        notes=(_WITH_NUMPY,),
    ),
    Case(
        "array-first",
        "The first large object of a pool at work: a call with an array of 32 MiB",
        {"first_s": "first call"},
        _arrays(32),
        rounds=9,
        meaningless=_NO_TRAVEL,
        guests=GUESTS,
        notes=(_WITH_NUMPY,),
    ),
]


def missing_packages() -> dict[str, str]:
    """Peers that are not installed where this runs: `make bench` has an environment with all of them."""
    missing = {}
    for engine, package in PACKAGES.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing[engine] = "– (not installed)"
    return missing


def run_one(engine: str, case: Case, parameters: Parameters) -> dict[str, float] | str:
    """One run; a string says why there is none."""
    command = [sys.executable, str(HERE / case.script), engine, case.name, json.dumps(parameters)]
    # Files, because a pipe would stay open for as long as a worker is left that inherited it.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            process.wait(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"no answer within {RUN_TIMEOUT_S:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            last = err.read().decode(errors="replace").strip().rpartition("\n")[2]
            return f"failed: {last or f'exit code {process.returncode}'}"
        values: dict[str, float] = json.loads(out.readline())
    return values


def run_case(
    case: Case, wanted: Sequence[str], rounds: int, quick: bool
) -> tuple[Samples, dict[str, str], bool]:
    """All rounds of a case: the samples, why some engine has none, and whether one failed."""
    absent = {engine: why for engine, why in missing_packages().items() if engine in wanted}
    missing = {**absent, **case.meaningless}
    engines = [engine for engine in wanted if engine not in missing]
    samples: Samples = {engine: {key: [] for key in case.values} for engine in engines}
    shared = case.parameters(quick)
    failed = False
    for turn in range(rounds):
        first = turn % len(engines)
        for engine in engines[first:] + engines[:first]:
            if engine in missing:
                continue
            own = {} if quick else case.other_parameters.get(engine, {})
            answer = run_one(engine, case, {**shared, **own})
            if isinstance(answer, str):
                missing[engine] = answer
                failed = True
                continue
            for key, value in answer.items():
                samples[engine][key].append(value)
        print(f"  {case.name}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return samples, missing, failed


# --- the report ------------------------------------------------------------------------------------


def shown(key: str, value: float) -> str:
    """A value in the unit that its key ends with."""
    match key.rpartition("_")[2]:
        case "s":
            return duration(value)
        case "percent":
            return f"{value:.3g} %"
        case "bytes":
            return f"{value:,.0f} B"
        case "ratio":
            return f"{value:.3g}×"
    raise ValueError(f"{key} has no unit")


def duration(seconds: float) -> str:
    for unit, scaled in (("s", seconds), ("ms", seconds * 1e3), ("µs", seconds * 1e6)):
        if scaled >= 1:
            return f"{scaled:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def table(case: Case, samples: Samples, missing: Mapping[str, str]) -> Iterator[str]:
    """The case as Markdown."""
    yield f"## {case.name}: {case.title}"
    yield ""
    yield from (f"{note}\n" for note in case.notes)
    measured = [engine for engine in samples if engine not in missing]
    peers = [engine for engine in measured if engine not in OWN]
    columns = ["engine"]
    for title in case.values.values():
        columns += [title, "min–max"]
    columns += [f"vs {peer}" for peer in peers]
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for engine in ENGINES:
        if engine in measured:
            cells = [engine]
            for key in case.values:
                values = samples[engine][key]
                cells += [
                    shown(key, statistics.median(values)),
                    f"{shown(key, min(values))}–{shown(key, max(values))}",
                ]
            cells += [_ratios(case, samples, engine, peer) for peer in peers]
            yield "| " + " | ".join(cells) + " |"
    for engine, why in missing.items():
        yield f"| {engine} | {why} |" + " |" * (len(columns) - 2)
    yield ""


def _ratios(case: Case, samples: Samples, engine: str, peer: str) -> str:
    """How many times as well the engine does, in each value that is compared."""
    if peer == engine:
        return "–"
    return " / ".join(f"{times_better(case, samples, engine, peer, key):.3g}×" for key in case.compares())


def times_better(case: Case, samples: Samples, engine: str, peer: str, key: str) -> float:
    own, other = (statistics.median(samples[name][key]) for name in (engine, peer))
    return own / other if case.more_is_better else other / own


def shortfalls(case: Case, samples: Samples, missing: Mapping[str, str]) -> Iterator[str]:
    """Where Rightlane does worse than the peer of the same kind, one line each."""
    for engine, peers in RIVALS.items():
        for peer in peers:
            if any(name in missing or name not in samples for name in (engine, peer)):
                continue
            for key in case.compares():
                better = times_better(case, samples, engine, peer, key)
                if better < 1:
                    value = f"{case.name}, {case.values[key]}"
                    yield f"- {value}: {peer} is {1 / better:.3g}× as good as {engine}"


def bars_table(medians: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[str]:
    """Each bar with what this run measured."""
    yield "## Bars"
    yield ""
    yield "What this run says of the bars that Rightlane sets itself; ratios are of the medians above."
    yield ""
    yield "| bar | wanted | measured | |"
    yield "|---|---|---|---|"
    for bar in BARS:
        value = bar.measured(medians)
        wanted = f"{'≥' if bar.at_least else '≤'} {bar.shown(bar.limit)}"
        if value is None:
            yield f"| {bar.title} | {wanted} | – | not measured |"
        else:
            met = "met" if bar.met(value) else "not met"
            yield f"| {bar.title} | {wanted} | {bar.shown(value)}{bar.told_beside(medians)} | {met} |"
    yield ""


def machine() -> Iterator[str]:
    import rightlane

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in info if line.startswith("model name")), model
        )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    yield f"- {model}, {cores} cores, {memory_gib:.0f} GiB"
    yield f"- {platform.system()} {platform.release()}, {python}, rightlane {rightlane.__version__}"
    yield f"- {datetime.date.today().isoformat()}; load average at the start: {load}"


METHOD = """\
Each run of a case on an engine is a process of its own, whose group is killed at its end. The engines take
turns within every round, in a rotating order. A figure is the median over the rounds, beside it the least and
the greatest. The columns “vs” say how many times as well the engine of the row does as the peer (a shorter
time, less memory, a greater share): more than 1 means that it is ahead. Pools have two workers where nothing
else is said; processes of the standard pools are forked. Workers have run something before the clock starts,
except in the cases of the first result. Tasks of a given length are loops whose count of steps was measured
once, before the first run. What the tasks are is in `tasks.py`, how they are run in `engine.py`."""

# Ends by itself when its parent is gone, however that ended.
BUSY_LOOP = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy_loop(wanted: bool) -> Iterator[None]:
    """Keeps one core busy, whichever the system chooses, while the block runs."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", BUSY_LOOP, str(os.getpid())]) as process:
        try:
            yield
            if process.poll() is not None:
                raise SystemExit("the busy loop was not there throughout")
        finally:
            process.kill()


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [case.name for case in CASES]
    parser.add_argument("--quick", action="store_true", help="one round of small sizes; only printed")
    parser.add_argument(
        "--case", choices=names, action="append", metavar="NAME", help="only these: %(choices)s"
    )
    parser.add_argument("--bars", action="store_true", help="only what the bars need, and only their table")
    parser.add_argument("--beside-load", action="store_true", help="beside one busy loop on any core")
    parser.add_argument(
        "--rounds", type=at_least_one, help=f"rounds per case (default {ROUNDS}, more where cheap)"
    )
    parser.add_argument("--out", type=Path, help="where to write (default RESULTS.md, for a whole run)")
    options = parser.parse_args(argv)
    chosen = [case for case in CASES if not options.case or case.name in options.case]
    wanted = {case.name: [e for e in ENGINES if e not in GUESTS or e in case.guests] for case in chosen}
    if options.bars:
        wanted = {name: [e for e in ENGINES if (name, e) in _behind_bars()] for name in wanted}
        chosen = [case for case in chosen if wanted[case.name]]
    out: Path | None = options.out
    partial = options.quick or options.case or options.bars or options.beside_load
    if out is None and not partial and (options.rounds or ROUNDS) >= ROUNDS:
        out = HERE / "RESULTS.md"

    lines = ["# Rightlane against other pools", "", "Reproduce with `make bench`.", ""]
    lines += machine()
    if options.beside_load:
        lines.append("- beside one busy loop that may run on any core")
    if options.quick:
        lines.append("- quick: one round, with a fraction of the sizes that the titles name")
    lines += ["", METHOD, ""]
    print("\n".join(lines))
    failed = False
    slower: list[str] = []
    medians: dict[str, dict[str, dict[str, float]]] = {}
    start = time.monotonic()
    with busy_loop(options.beside_load):
        for case in chosen:
            rounds = options.rounds or (1 if options.quick else case.rounds)
            samples, missing, case_failed = run_case(case, wanted[case.name], rounds, options.quick)
            failed |= case_failed
            medians[case.name] = {
                engine: {key: statistics.median(values) for key, values in samples[engine].items()}
                for engine in samples
                if engine not in missing
            }
            if case_failed or not options.bars:
                lines += (about := list(table(case, samples, missing)))
                print("\n".join(about), flush=True)
            slower += shortfalls(case, samples, missing)
    closing = []
    if not options.bars:
        closing += ["## Where a peer is ahead", "", *(slower or ["Nowhere in these cases."]), ""]
    if not options.case or options.bars:
        closing += bars_table(medians)
    print("\n".join(closing), flush=True)
    lines += closing
    print(f"took {time.monotonic() - start:.0f} s", file=sys.stderr)
    if out is not None:
        out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        print(f"written to {out}", file=sys.stderr)
    return 1 if failed else 0


def _behind_bars() -> set[tuple[str, str]]:
    """The cases and engines from which the bars are computed."""
    return {(bar.case, engine) for bar in BARS for engine in (bar.engine, bar.peer, bar.beside) if engine}


if __name__ == "__main__":
    sys.exit(main())
