"""Is auto as good as what an expert would have chosen? `make bench-lanes`, or `python lanes.py --quick`.

Every run is a process of its own with an empty cache directory, in which nothing is known of the function,
timed from the executor's constructor to the end of its `with`. First each lane is swept over sizes with a
sample of the items. Its best size is then measured again, with all items, and takes turns with the serial
loop, the standard library's pools as they come, and auto (rule 29); what the sample showed to be far behind
is not run again, but extrapolated, and marked with a `~`.

A workload that waits is judged by the lane alone: auto against the best fixed lane at the size that auto
used. Which size would have been best is shown beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workloads import WORKLOADS, Workload

HERE = Path(__file__).resolve().parent
ROUNDS = 3
RUN_TIMEOUT_S = 120.0
SERIAL_LIMIT_S = 20.0
"""A serial loop that would take longer is extrapolated from the sample."""
FAR = 1.7
"""Whoever takes longer in the sweep is not measured again; much longer, as starts weigh more in samples."""
HOPELESS = 5.0
MANY = 100_000
"""Of so many items a pool so much slower than the serial loop is given a tenth of the sample only."""
SIZES = (1, 2, 4, 8)
SIZES_OF_WAITERS = (1, 2, 4, 8, 16, 32)
BETTER = 0.97
"""A sweep goes on to larger sizes as long as they gain so much."""

NEAR, BOUND, SERIAL_BOUND, SERIAL_FROM_S = 1.1, 1.5, 1.3, 0.25
NEAR_SHARE = 0.9

Engine = tuple[str, int | None]
"""A lane and its size, or a name that `once.py` knows."""
SERIAL: Engine = ("serial", None)
INLINE: Engine = ("inline", None)
AUTO: Engine = ("auto", None)
POOLS: tuple[Engine, ...] = (("ProcessPoolExecutor", None), ("ThreadPoolExecutor", None))


def shown(engine: Engine) -> str:
    name, size = engine
    return name if size is None else f"{name} × {size}"


@dataclass
class Outcome:
    """What was measured of a workload; times in seconds."""

    workload: Workload
    swept: dict[Engine, float] = field(default_factory=dict)
    """Extrapolated from the sample."""
    measured: dict[Engine, list[float]] = field(default_factory=dict)
    known: list[float] = field(default_factory=list)
    """Auto with the profile of an earlier run, where that was asked for."""
    explained: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[Engine, str] = field(default_factory=dict)
    size: int = 0
    """How many at once auto has."""
    cores: list[float] = field(default_factory=list)
    """What was free, before and after."""

    def time_s(self, engine: Engine) -> float | None:
        if self.measured.get(engine):
            return statistics.median(self.measured[engine])
        return self.swept.get(engine)

    def told(self, engine: Engine) -> str:
        time_s = self.time_s(engine)
        if time_s is None:
            return "–"
        return f"{'' if engine in self.measured else '~'}{time_s:.2f}"

    def best(self) -> Engine | None:
        """The best fixed choice among those that were measured again."""
        fixed = [e for e in self.measured if e not in (SERIAL, AUTO) and self.measured[e]]
        if self.workload.waits:
            fixed = [e for e in fixed if e[1] == self.size]
        return min(fixed, key=lambda e: statistics.median(self.measured[e])) if fixed else None

    def best_at_any_size(self) -> Engine | None:
        """Of the sweep: of a waiting workload, that is what its size would have to be."""
        return min(self.swept, key=lambda e: self.swept[e], default=None)

    def ratio(self) -> float | None:
        best, auto_s = self.best(), self.time_s(AUTO)
        best_s = None if best is None else self.time_s(best)
        return auto_s / best_s if auto_s is not None and best_s else None

    def of_serial(self) -> float | None:
        auto_s, serial_s = self.time_s(AUTO), self.time_s(SERIAL)
        return auto_s / serial_s if auto_s is not None and serial_s else None

    def lane(self) -> str:
        """As `explain` says, and how many calls ran where."""
        if not self.explained:
            return "–"
        told = self.explained[-1]
        where = f"{told.get('calls_in_workers', 0)} p"
        if told.get("calls_in_threads"):
            where += f", {told['calls_in_threads']} t"
        return f"{told['lane'] or 'not seen'} ({where})"


class Runner:
    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port

    def run(
        self, workload: Workload, engine: Engine, share: float, cache: Path | None = None
    ) -> dict[str, Any]:
        """What a process of its own says; OSError with its last words if it fails."""
        name, size = engine
        with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
            told = {
                "engine": name,
                "size": size,
                "name": workload.name,
                "share": share,
                "directory": scratch,
                "port": self.port,
            }
            # Also where whoever started this has profiles switched off: the directory is empty, or meant.
            profiles = {"RIGHTLANE_PROFILES": "1", "XDG_CACHE_HOME": str(cache or scratch)}
            process = subprocess.Popen(
                [sys.executable, str(HERE / "once.py"), json.dumps(told)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **profiles},
                start_new_session=True,
            )
            try:
                out, errors = process.communicate(timeout=RUN_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                out, errors = "", f"no answer within {RUN_TIMEOUT_S:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
            if process.returncode != 0 or not out:
                raise OSError(errors.strip().rsplit("\n", 1)[-1] or f"exit status {process.returncode}")
        answer: dict[str, Any] = json.loads(out)
        return answer

    def sweep(self, outcome: Outcome, scale: float) -> None:
        workload = outcome.workload
        share = workload.sample

        def sample(engine: Engine, part: float = 1.0) -> float | None:
            try:
                answer = self.run(workload, engine, share * scale * part)
            except OSError as error:
                outcome.missing[engine] = str(error)
                return None
            time_s: float = answer["time_s"] / (share * part)
            outcome.swept[engine] = time_s
            return time_s

        serial_s = sample(SERIAL) or 0.0
        sample(INLINE)
        for engine in POOLS:
            in_brief_s = sample(engine, 0.1) if workload.count >= MANY else 0.0
            if in_brief_s is not None and in_brief_s <= serial_s * HOPELESS:
                sample(engine)
        for lane in ("process", "thread"):
            best_s = float("inf")
            for size in SIZES_OF_WAITERS if workload.waits else SIZES:
                time_s = sample((lane, size))
                if time_s is None:
                    break
                if size > 2 and time_s > best_s * BETTER:
                    break
                best_s = min(best_s, time_s)

    def chosen(self, outcome: Outcome, size: int) -> list[Engine]:
        """What is worth measuring with all items: the best of each lane, unless it is far behind."""
        swept, workload = outcome.swept, outcome.workload
        chosen: list[Engine] = []
        if workload.waits:
            chosen += [("process", size), ("thread", size)]
        else:
            fixed = [e for e in swept if e != SERIAL]
            nearest_s = min((swept[e] for e in fixed), default=0.0)
            for lane in ("process", "thread"):
                sizes = [e for e in fixed if e[0] == lane]
                chosen += [min(sizes, key=lambda e: swept[e])] if sizes else []
            chosen += [e for e in fixed if e in POOLS or e == INLINE]
            chosen = [e for e in chosen if swept[e] <= nearest_s * FAR]
        if swept.get(SERIAL, 0.0) <= SERIAL_LIMIT_S:
            chosen.append(SERIAL)
        return [*chosen, AUTO]

    def measure(self, outcome: Outcome, rounds: int, scale: float, profiles: bool) -> None:
        outcome.size = _auto_size()
        engines = self.chosen(outcome, outcome.size)
        for number in range(rounds):
            first = number % len(engines)
            for engine in engines[first:] + engines[:first]:
                with tempfile.TemporaryDirectory(dir=self.directory) as cache:
                    try:
                        answer = self.run(outcome.workload, engine, scale, Path(cache))
                        if engine == AUTO and profiles:
                            again = self.run(outcome.workload, engine, scale, Path(cache))
                            outcome.known.append(again["time_s"])
                    except OSError as error:
                        outcome.missing[engine] = str(error)
                        continue
                outcome.measured.setdefault(engine, []).append(answer["time_s"])
                if engine == AUTO:
                    outcome.explained.append(answer["explained"])


LOOP = """
import time
start = time.perf_counter()
sum(n * n for n in range(2_000_000))
print(time.process_time() / (time.perf_counter() - start))
"""


def free_cores() -> float:
    """How many cores as many bare loops as there are cores get."""
    loops = [
        subprocess.Popen([sys.executable, "-S", "-c", LOOP], stdout=subprocess.PIPE, text=True)
        for _ in os.sched_getaffinity(0)
    ]
    return sum(min(1.0, float(loop.communicate()[0])) for loop in loops)


def _auto_size() -> int:
    """How many at once auto has where nobody has set it, in an interpreter of its own: that starts things."""
    code = "import rightlane as rl; print(rl.Executor().explain(len).as_dict()['slots'])"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(answer.stdout)


@contextlib.contextmanager
def server() -> Iterator[int]:
    """Its port."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


# --- what is printed -------------------------------------------------------------------------------


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


HEAD = (
    "| workload | belongs | serial | PPE | TPE | best fixed | auto | of it | of serial | ran in | explain |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(outcome: Outcome) -> str:
    workload, best = outcome.workload, outcome.best()
    best_told = "–" if best is None else f"{outcome.told(best)} ({shown(best)})"
    if workload.waits and (other := outcome.best_at_any_size()):
        best_told += f", {shown(other)}: {outcome.swept[other]:.2f}"
    line = outcome.explained[-1]["text"] if outcome.explained else outcome.missing.get(AUTO, "–")
    auto = outcome.told(AUTO)
    if outcome.known:
        auto += f", known: {statistics.median(outcome.known):.2f}"
    cells = [
        workload.name,
        workload.label + (", waits" if workload.waits else ""),
        outcome.told(SERIAL),
        *map(outcome.told, POOLS),
        best_told,
        auto,
        times(outcome.ratio()),
        times(outcome.of_serial()),
        outcome.lane(),
        line,
    ]
    return "| " + " | ".join(cells) + " |"


def summary(outcomes: Sequence[Outcome]) -> Iterator[str]:
    def bar(title: str, met: bool, text: str) -> str:
        return f"| {title} | {text} | {'met' if met else 'not met'} |"

    def named(some: Sequence[tuple[Outcome, float]]) -> str:
        return ", ".join(f"{o.workload.name} {ratio:.2f}×" for o, ratio in sorted(some, key=lambda s: -s[1]))

    yield from ("| bar | measured | |", "|---|---|---|")
    ratios = [(o, ratio) for o in outcomes if (ratio := o.ratio()) is not None]
    for kind, some in (
        ("all", ratios),
        ("those of a second and more", [(o, r) for o, r in ratios if not o.workload.short]),
    ):
        if not some:
            continue
        far = [one for one in some if one[1] > NEAR]
        share = 1 - len(far) / len(some)
        text = f"{len(some) - len(far)} of {len(some)}, {share:.0%}" + (f"; not {named(far)}" if far else "")
        title = f"auto within {NEAR - 1:.0%} of the best fixed choice in {NEAR_SHARE:.0%} of {kind}"
        yield bar(title, share >= NEAR_SHARE, text)
    beyond = [one for one in ratios if one[1] > BOUND]
    yield bar(f"within {BOUND}× in all", not beyond, named(beyond) or "all")
    slow = [
        (o, ratio)
        for o in outcomes
        if (ratio := o.of_serial()) is not None
        and (o.time_s(SERIAL) or 0) >= SERIAL_FROM_S
        and ratio > SERIAL_BOUND
    ]
    title = f"never slower than {SERIAL_BOUND}× serial, where that takes {SERIAL_FROM_S * 1000:.0f} ms"
    yield bar(title, not slow, named(slow) or "never")
    known = [
        (o, statistics.median(o.known) / best_s)
        for o in outcomes
        if o.known and (best := o.best()) and (best_s := o.time_s(best))
    ]
    if known:
        far = [one for one in known if one[1] > NEAR]
        share = 1 - len(far) / len(known)
        yield bar(
            f"with profiles within {NEAR - 1:.0%} in 95%", share >= 0.95, f"{share:.0%}; not {named(far)}"
        )
    broken = [f"{o.workload.name} on {shown(e)}: {why}" for o in outcomes for e, why in o.missing.items()]
    if broken:
        yield ""
        yield from (f"- {line}" for line in broken)
    cores = len(os.sched_getaffinity(0))
    crowded = [f"{o.workload.name} {min(o.cores):.1f}" for o in outcomes if min(o.cores) < 0.8 * cores]
    if crowded:
        yield ""
        yield f"Less than {0.8 * cores:.1f} cores were free before or after: {', '.join(crowded)}."
    brief = [
        f"{o.workload.name} {best_s:.2f} s"
        for o in outcomes
        if not o.workload.short and (best := o.best()) and (best_s := o.time_s(best)) and best_s < 1
    ]
    if brief:
        yield from ("", f"Less than a second on the best fixed choice: {', '.join(brief)}.")


def as_json(outcome: Outcome) -> dict[str, Any]:
    best = outcome.best()
    workload = {key: value for key, value in asdict(outcome.workload).items() if key != "items"}
    return {
        "workload": workload,
        "swept_s": {shown(engine): time_s for engine, time_s in outcome.swept.items()},
        "measured_s": {shown(engine): some for engine, some in outcome.measured.items()},
        "known_s": outcome.known,
        "free_cores": outcome.cores,
        "best": None if best is None else shown(best),
        "ratio": outcome.ratio(),
        "of_serial": outcome.of_serial(),
        "explained": outcome.explained,
        "missing": {shown(engine): why for engine, why in outcome.missing.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument(
        "--only", choices=names, action="append", metavar="NAME", help="only these: %(choices)s"
    )
    parser.add_argument("--quick", action="store_true", help="one round with a quarter of the items")
    parser.add_argument("--rounds", type=int, help=f"how often each is measured again (default {ROUNDS})")
    parser.add_argument(
        "--profiles", action="store_true", help="auto once more, with the cache of its first run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured there")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args(argv)
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    scale = 0.25 if options.quick else 1.0
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    lines = [
        "# Auto against the best fixed choice",
        "",
        f"{platform.system()} {platform.release()}, CPython {platform.python_version()}, "
        f"{len(os.sched_getaffinity(0))} cores, load average {load}; times in seconds, "
        f"medians of {rounds}.",
        "",
        *HEAD.split("\n"),
    ]
    print("\n".join(lines), flush=True)
    outcomes = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rightlane-lanes-") as directory, server() as port:
        runner = Runner(Path(directory), port)
        for workload in WORKLOADS:
            if options.only and workload.name not in options.only:
                continue
            outcome = Outcome(workload, cores=[free_cores()])
            runner.sweep(outcome, scale)
            runner.measure(outcome, rounds, scale, options.profiles)
            outcome.cores.append(free_cores())
            outcomes.append(outcome)
            lines.append(row(outcome))
            print(lines[-1], flush=True)
            if options.json:
                options.json.write_text(
                    json.dumps([as_json(one) for one in outcomes], indent=1), encoding="utf-8"
                )
    closing = ["", *summary(outcomes)]
    print("\n".join(closing), flush=True)
    print(f"took {time.monotonic() - start:.0f} s", file=sys.stderr)
    if options.out:
        options.out.write_text("\n".join(lines + closing) + "\n", encoding="utf-8")
    return 1 if any(outcome.missing for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
