"""Rightlane against the standard library's pools: `make bench`, or `python benches/bench.py --quick`.

Every run is a process of its own, whose process group is killed when it has answered; the engines take
turns, in a rotating order, so that a machine that gets slower gets slower for all of them. Medians count.
A whole run is written to `RESULTS.md`; `--quick` and `--case` only print.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tasks
from engine import ENGINES

HERE = Path(__file__).resolve().parent
ROUNDS = 5
WORKERS = 2
RUN_TIMEOUT_S = 120.0
PEERS = ("ProcessPoolExecutor", "multiprocessing.Pool", "ThreadPoolExecutor")
"""Each has a column of ratios: how many times as long the peer takes."""

RIVALS = {
    "rightlane process": ("ProcessPoolExecutor", "multiprocessing.Pool"),
    "rightlane thread": ("ThreadPoolExecutor",),
}

Parameters = dict[str, int | float]
Samples = dict[str, dict[str, list[float]]]
"""Engine, value, one entry per round."""


@dataclass(frozen=True)
class Case:
    """What is measured, in what size, and for whom it means nothing."""

    name: str
    title: str
    values: Mapping[str, str]
    """What a run answers: the key, and how the table names it."""
    parameters: Callable[[bool], Parameters]
    """Of `--quick` or not."""
    rounds: int = ROUNDS
    meaningless: Mapping[str, str] = field(default_factory=dict)
    other_parameters: Mapping[str, Parameters] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def burn_steps(seconds: float = 0.010) -> int:
    """How many steps of `tasks.burn` take so long on this machine now, by the best of ten."""
    steps = 20_000
    best_s = min(_time_of(tasks.burn, steps) for _ in range(10))
    return max(1, round(steps * seconds / best_s))


def _time_of(fn: Callable[[int], object], arg: int) -> float:
    start = time.perf_counter()
    fn(arg)
    return time.perf_counter() - start


_NO_PROCESSES = "– (threads only)"

CASES = [
    Case(
        "cold",
        "First result from cold: from before the pool is made to the result of a plain `__main__` function",
        {"first_s": "first result"},
        lambda quick: {"workers": WORKERS},
        rounds=9,
        notes=("The library is imported before the clock starts.",),
    ),
    Case(
        "latency",
        "One `submit` and its result, back to back",
        {"p50_s": "p50", "p99_s": "p99"},
        lambda quick: {"workers": WORKERS, "count": 200 if quick else 2000},
    ),
    Case(
        "submits",
        "100,000 × `submit` of a no-op, one by one, then all results",
        {"per_task_s": "per task"},
        lambda quick: {"workers": WORKERS, "count": 5_000 if quick else 100_000},
    ),
    Case(
        "map",
        "`map` of a no-op over `range(1_000_000)`",
        {"per_item_s": "per item"},
        lambda quick: {"workers": WORKERS, "count": 50_000 if quick else 1_000_000},
        other_parameters={"ThreadPoolExecutor": {"count": 100_000}},
        notes=(
            "`ProcessPoolExecutor` gets the chunk size that `Pool.map` chooses for itself; its own default "
            "of 1 takes about as long as the case above, for each item.",
            "`ThreadPoolExecutor` runs 100,000 items: it makes a future of more than 1 KB for each.",
        ),
    ),
    Case(
        "cpu",
        "200 × 10 ms of pure Python",
        {"total_s": "total"},
        lambda quick: {"workers": WORKERS, "count": 20 if quick else 200, "steps": burn_steps()},
        notes=("On two cores the ideal is 1 s, in threads of one interpreter 2 s.",),
    ),
    Case(
        "sleep",
        "200 × 20 ms of sleep in 20 threads",
        {"total_s": "total"},
        lambda quick: {"workers": 20, "count": 40 if quick else 200, "seconds": 0.020},
        meaningless={
            "rightlane process": _NO_PROCESSES,
            "ProcessPoolExecutor": _NO_PROCESSES,
            "multiprocessing.Pool": _NO_PROCESSES,
        },
        notes=("The ideal is 200 ms.",),
    ),
]


def run_one(engine: str, case: Case, parameters: Parameters) -> dict[str, float] | str:
    """One run; a string says why there is none."""
    command = [sys.executable, str(HERE / "engine.py"), engine, case.name, json.dumps(parameters)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"no answer within {RUN_TIMEOUT_S:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        return f"failed: {last or f'exit code {process.returncode}'}"
    values: dict[str, float] = json.loads(out)
    return values


def run_case(case: Case, rounds: int, quick: bool) -> tuple[Samples, dict[str, str]]:
    """All rounds of a case: the samples, and why some engine has none."""
    missing = dict(case.meaningless)
    engines = [engine for engine in ENGINES if engine not in missing]
    samples: Samples = {engine: {key: [] for key in case.values} for engine in engines}
    shared = case.parameters(quick)
    for turn in range(rounds):
        first = turn % len(engines)
        for engine in engines[first:] + engines[:first]:
            if engine in missing:
                continue
            own = {} if quick else case.other_parameters.get(engine, {})
            answer = run_one(engine, case, {**shared, **own})
            if isinstance(answer, str):
                missing[engine] = answer
                continue
            for key, value in answer.items():
                samples[engine][key].append(value)
        print(f"  {case.name}: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return samples, missing


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
    columns = ["engine"]
    for title in case.values.values():
        columns += [title, "min–max"]
    columns += [f"vs {peer}" for peer in PEERS]
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    judged = next(iter(case.values))
    for engine in ENGINES:
        if engine in missing:
            yield f"| {engine} | {missing[engine]}" + " |" * (len(columns) - 1)
            continue
        cells = [engine]
        for key in case.values:
            values = samples[engine][key]
            cells += [duration(statistics.median(values)), f"{duration(min(values))}–{duration(max(values))}"]
        cells += [_ratio(samples, missing, engine, peer, judged) for peer in PEERS]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _ratio(samples: Samples, missing: Mapping[str, str], engine: str, peer: str, key: str) -> str:
    """How many times as long the peer takes."""
    if peer == engine or peer in missing:
        return "–"
    return f"{statistics.median(samples[peer][key]) / statistics.median(samples[engine][key]):.3g}×"


def shortfalls(case: Case, samples: Samples, missing: Mapping[str, str]) -> Iterator[str]:
    """What Rightlane takes longer for than the peer of the same kind, one line each."""
    for engine, peers in RIVALS.items():
        for peer in peers:
            if engine in missing or peer in missing:
                continue
            for key, title in case.values.items():
                own, other = (statistics.median(samples[name][key]) for name in (engine, peer))
                if own > other:
                    yield f"- {case.name}, {title}: {engine} takes {own / other:.3g}× as long as {peer}"


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
the greatest. The columns “vs” say how many times as long the peer takes: more than 1 means that the engine of
the row is faster. Pools have two workers where nothing else is said; processes of the peers are forked.
Workers are started before the clock, except in the first case. What the tasks are is in `tasks.py`, how they
are run in `engine.py`."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of small sizes; only printed")
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="only these")
    parser.add_argument("--rounds", type=int, help=f"rounds per case (default {ROUNDS}, more where cheap)")
    parser.add_argument("--out", type=Path, help="where to write (default RESULTS.md, for a whole run)")
    options = parser.parse_args(argv)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    chosen = [case for case in CASES if not options.case or case.name in options.case]
    out: Path | None = options.out
    whole = not options.quick and not options.case and (options.rounds or ROUNDS) >= ROUNDS
    if out is None and whole:
        out = HERE / "RESULTS.md"

    lines = ["# Rightlane against the standard library", "", "Reproduce with `make bench`.", ""]
    lines += [*machine(), "", METHOD, ""]
    if options.quick:
        print("quick: one round, with a fraction of the sizes that the titles name\n")
    failed = False
    slower: list[str] = []
    start = time.monotonic()
    for case in chosen:
        rounds = options.rounds or (1 if options.quick else case.rounds)
        samples, missing = run_case(case, rounds, options.quick)
        failed |= missing.keys() != case.meaningless.keys()
        shown = list(table(case, samples, missing))
        print("\n".join(shown), flush=True)
        lines += shown
        slower += shortfalls(case, samples, missing)
    closing = ["## Where Rightlane is slower", "", *(slower or ["Nowhere in these cases."])]
    print("\n".join(closing), flush=True)
    lines += closing
    print(f"took {time.monotonic() - start:.0f} s", file=sys.stderr)
    if out is not None:
        out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        print(f"written to {out}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
