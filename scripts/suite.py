"""Runs the checks and the tests, and adds up what passed and what failed.

The Makefile builds and installs; this script only runs what is there, from the virtual environments
under .venv/. It never stops at the first failure: whoever waits for CI gets all of the bad news at
once. Every command gets a session of its own and a deadline, and is killed as a group, because a
hang is one of the failures that the tests look for.

Standard library only. Not a test runner: cargo and pytest are; their closing lines are read here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")

# Far above what a healthy run takes; they only keep a hang from holding a machine for ever.
COMMAND_DEADLINE_S = 15 * 60
CAMPAIGN_DEADLINE_S = 3 * 3600

# After the end of a test run its output must close. Who holds it open is a process that a test left
# behind; two seconds is what the engine promises, the rest is for a loaded machine.
OUTPUT_GRACE_S = 10

# Depth of the loom models: how often the scheduler may take a thread off its core where it did not ask
# to be. Few bugs need more than two; each further one makes a run some four times as long.
LOOM_SHALLOW = "3"
LOOM_DEEP = "6"


@dataclass
class Outcome:
    """How one command ended."""

    status: int
    output: str
    # What went wrong apart from the exit status, in words; empty when nothing did.
    trouble: str = ""


@dataclass
class Tally:
    """What passed and failed so far, and the names of what failed."""

    passed: int = 0
    failed: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, name: str, passed: int, failed: int, outcome: Outcome) -> None:
        """Adds one run. One that failed without a failed test, in a build say, counts as one failed."""
        if outcome.status != 0 or outcome.trouble:
            failed = max(failed, 1)
        self.passed += passed
        self.failed += failed
        if failed:
            self.bad.append(name)
        trouble = f" ({outcome.trouble})" if outcome.trouble else ""
        say(f"{name}: {passed} passed, {failed} failed{trouble}")

    def close(self) -> int:
        """Prints the summary as the last line and gives the exit status."""
        if self.bad:
            say("failed: " + "; ".join(self.bad))
        if not self.passed and not self.failed:
            self.failed = 1
            say("failed: no test ran")
        summary = f"{self.passed} passed, {self.failed} failed"
        BUILD.mkdir(exist_ok=True)
        (BUILD / "summary").write_text(summary + "\n")
        print(summary, flush=True)
        return 1 if self.failed else 0


def say(text: str) -> None:
    """Prints one line in between the output of commands."""
    print(f"== {text}", flush=True)


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    deadline_s: float = COMMAND_DEADLINE_S,
    quiet: bool = False,
) -> Outcome:
    """Runs a command in a session of its own; passes its output on, unless quiet, and keeps it.

    The end of the process decides, not the end of its output: a leaked grandchild would hold that
    open and this script with it.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    source = process.stdout.fileno()
    output = bytearray()
    trouble = ""
    give_up = time.monotonic() + deadline_s
    ended = False
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            while True:
                if selector.select(timeout=0.2):
                    chunk = os.read(source, 1 << 16)
                    if not chunk:
                        break
                    output += chunk
                    if not quiet:
                        sys.stdout.buffer.write(chunk)
                        sys.stdout.buffer.flush()
                if not ended and has_ended(process):
                    ended = True
                    give_up = time.monotonic() + OUTPUT_GRACE_S
                if time.monotonic() > give_up:
                    trouble = (
                        "it ended, but a process that it left behind holds its output open"
                        if ended
                        else f"killed, it had not ended after {deadline_s:.0f} s"
                    )
                    break
            # A process that closed its output may still hang on its way out.
            while not trouble and not has_ended(process):
                if time.monotonic() > give_up:
                    trouble = f"killed, it had not ended after {deadline_s:.0f} s"
                time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return Outcome(process.returncode, output.decode(errors="replace"), trouble)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it is over; leaves it unreaped, so that the number of its group cannot be given away."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


# --- the checks ------------------------------------------------------------------------------------


def has_component(name: str) -> bool:
    """Whether cargo has this subcommand; rustfmt and clippy are parts that a toolchain may lack."""
    return run(["cargo", name, "--version"], quiet=True).status == 0


def checks() -> list[str]:
    """Runs every check; prints the output of those that fail, and gives their names."""
    # The binding is checked against the interpreter that it is built for.
    pyo3 = {"PYO3_PYTHON": sys.executable}
    steps: list[tuple[str, str, list[str]]] = [
        ("fmt", "fmt", ["cargo", "fmt", "--all", "--check"]),
        # Outside the workspace; clippy would have to build what it measures with.
        (
            "fmt of benches",
            "fmt",
            ["rustfmt", "--edition", "2024", "--check", "benches/instructions/paths.rs"],
        ),
        (
            "clippy",
            "clippy",
            ["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
        ),
        ("ruff", "", [tool("ruff"), "check", "--quiet", "."]),
        ("ruff format", "", [tool("ruff"), "format", "--check", "--quiet", "."]),
        ("mypy", "", [tool("mypy")]),
        # The installed module against the installed stub: what a user's type checker sees.
        ("stubtest", "", [tool("stubtest"), "rightlane._core"]),
        ("rules", "", [sys.executable, "scripts/rules_tested.py"]),
    ]
    bad = []
    for name, component, command in steps:
        if component and not has_component(component):
            package = {"fmt": "rustfmt"}.get(component, component)
            say(f"check {name}: skipped, {package} is not installed (rustup component add {package})")
            continue
        outcome = run(command, env=pyo3, quiet=True)
        if outcome.status or outcome.trouble:
            bad.append(f"check {name}")
            sys.stdout.write(outcome.output)
            say(f"check {name}: failed {outcome.trouble}".rstrip())
        else:
            say(f"check {name}: ok")
    return bad


def tool(name: str) -> str:
    """A command of the virtual environment that runs this script."""
    return str(Path(sys.executable).parent / name)


# --- the tests -------------------------------------------------------------------------------------


def cargo_tests(tally: Tally, *, deep: bool = False) -> None:
    """The tests of the default members; a campaign has more cases and the tests marked ignored."""
    command = ["cargo", "test", "--no-fail-fast"]
    env = {}
    if deep:
        command += ["--release", "--", "--include-ignored"]
        env["PROPTEST_CASES"] = os.environ.get("PROPTEST_CASES", "10000")
    add_cargo(tally, "cargo test", command, env, deep)


def loom_tests(tally: Tally, *, deep: bool = False) -> None:
    """The models of each crate that has them: tests/loom*.rs, built with --cfg loom.

    In a target directory of their own: the flag would have everything else built anew each time.
    """
    env = {
        "RUSTFLAGS": (os.environ.get("RUSTFLAGS", "") + " --cfg loom").strip(),
        "LOOM_MAX_PREEMPTIONS": os.environ.get("LOOM_MAX_PREEMPTIONS", LOOM_DEEP if deep else LOOM_SHALLOW),
    }
    for model in sorted(ROOT.glob("crates/*/tests/loom*.rs")):
        package = f"rightlane-{model.parent.parent.name}"
        command = ["cargo", "test", "--no-fail-fast", "--release", "--package", package]
        command += ["--test", model.stem, "--target-dir", str(TARGET / "loom")]
        add_cargo(tally, f"loom {package} {model.stem}", command, env, deep)


def instruction_counts(tally: Tally) -> None:
    """What the hot paths cost, where the counts of this machine are known and can be taken."""
    name = "instruction counts"
    say(name)
    outcome = run([sys.executable, "scripts/instructions.py"])
    if re.search(r"^skipped, ", outcome.output, re.MULTILINE):
        return
    ends = re.findall(r"^(\d+) passed, (\d+) failed$", outcome.output, re.MULTILINE)
    passed, failed = (int(end) for end in ends[-1]) if ends else (0, 0)
    tally.add(name, passed, failed, outcome)


def add_cargo(tally: Tally, name: str, command: list[str], env: Mapping[str, str], deep: bool) -> None:
    say(name)
    outcome = run(command, env=env, deadline_s=CAMPAIGN_DEADLINE_S if deep else COMMAND_DEADLINE_S)
    ends = re.findall(r"^test result: \S+ (\d+) passed; (\d+) failed;", outcome.output, re.MULTILINE)
    passed = sum(int(end[0]) for end in ends)
    failed = sum(int(end[1]) for end in ends)
    tally.add(name, passed, failed, outcome)


def pytest(tally: Tally, minor: str, name: str, *options: str, deep: bool = False) -> Outcome:
    """pytest on one Python, against the package installed there."""
    say(name)
    # pytest's own script and not `python -m pytest`, which would put the working directory first on
    # sys.path; the source tree in python/ has no compiled module and must not stand in for the wheel.
    command = [str(ROOT / ".venv" / minor / "bin" / "pytest"), *options]
    outcome = run(command, deadline_s=CAMPAIGN_DEADLINE_S if deep else COMMAND_DEADLINE_S)
    # The closing line, "2 failed, 40 passed, 1 skipped, 1 error in 3.21s"; absent when a test took the
    # interpreter down with it, which the exit status then tells.
    closing = re.findall(r"^(?:=+ )?((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s", outcome.output, re.MULTILINE)
    words = re.findall(r"(\d+) ([a-z]+)", closing[-1] if closing else "")
    counts = {word: int(count) for count, word in words}
    passed = counts.get("passed", 0) + counts.get("xfailed", 0)
    failed = sum(counts.get(word, 0) for word in ("failed", "error", "errors", "xpassed"))
    tally.add(name, passed, failed, outcome)
    return outcome


# --- load ------------------------------------------------------------------------------------------

# Ends by itself when its parent is gone, however that ended. The parent's number comes from the parent:
# asked for here it could already be somebody else's.
BUSY_LOOP = """
import os, sys
parent = int(sys.argv[1])
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy_cores(wanted: bool) -> Iterator[None]:
    """Keeps every core that we may use busy with a plain loop, while the block runs."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(len(os.sched_getaffinity(0)) if wanted else 0):
            loops.append(subprocess.Popen([sys.executable, "-c", BUSY_LOOP, str(os.getpid())]))
        yield
        ended_early = [loop.pid for loop in loops if loop.poll() is not None]
        if ended_early:
            raise SystemExit(f"the load was not there throughout: busy loops {ended_early} ended early")
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


# --- the commands ----------------------------------------------------------------------------------


def check() -> int:
    bad = checks()
    if bad:
        say("failed: " + "; ".join(bad))
    return 1 if bad else 0


def test(minors: Sequence[str]) -> int:
    tally = Tally()
    # Each failed check counts as one failed; those that hold do not pass for tests.
    bad = checks()
    tally.failed += len(bad)
    tally.bad += bad
    cargo_tests(tally)
    loom_tests(tally)
    instruction_counts(tally)
    for at, minor in enumerate(minors):
        # What no Python makes a difference to takes its time once.
        options = ["-m", "not soak and not once and not lasting"] if at else []
        pytest(tally, minor, f"pytest on Python {minor}", *options)
    return tally.close()


def stress(minor: str, rounds: int, loaded: bool) -> int:
    tally = Tally()
    with busy_cores(loaded):
        for number in range(1, rounds + 1):
            name = f"round {number} of {rounds}, {'loaded' if loaded else 'idle'}, Python {minor}"
            # "In a row" is the point: the first round with a failure has answered the question.
            pytest(tally, minor, name, "-m", "stress and not lasting")
            if tally.failed:
                break
    return tally.close()


def soak(minor: str) -> int:
    tally = Tally()
    cargo_tests(tally, deep=True)
    loom_tests(tally, deep=True)
    # Both guards against hanging tests are for short ones.
    options = ["-m", "soak", "--timeout=3600", "-o", "faulthandler_timeout=3700"]
    pytest(tally, minor, f"soak on Python {minor}", *options, deep=True)
    return tally.close()


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="suite.py", description="run the checks and the tests")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    commands.add_parser("test").add_argument("minors", nargs="+", metavar="MINOR")
    stressed = commands.add_parser("stress")
    stressed.add_argument("minor", metavar="MINOR")
    stressed.add_argument("--rounds", type=at_least_one, required=True)
    stressed.add_argument("--load", choices=["0", "1"], required=True)
    commands.add_parser("soak").add_argument("minor", metavar="MINOR")
    given = parser.parse_args()

    # Whoever started this in the background has it ignore Ctrl-C, and so would every process of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Both end through the finally clauses above, so that no group and no busy loop is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if given.command == "check":
            return check()
        if given.command == "test":
            return test(given.minors)
        if given.command == "stress":
            return stress(given.minor, given.rounds, given.load == "1")
        return soak(given.minor)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
