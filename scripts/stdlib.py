"""Runs CPython's own tests of executors against our drop-ins, put in the standard classes' place.

The test files are the interpreter's; none is copied here. For each Python the ids run with the standard
classes first, which says what passes on this machine, and then those that passed run with ours. The
difference has to stand in tests/stdlib/exemptions.txt, one line and one reason each; a line there whose test
passes is stale, and fails too, unless it says that the test passes "sometimes:".

Each id runs in a process of its own, with a time limit. The modules are imported once, by a process that then
forks for each id (`serve`). Between the two stands a keeper: a subreaper, to whom everything falls that the
test leaves behind, so that an orphan is a failure and is killed.

    driver ──▶ serve standard, serve ours ──fork──▶ keeper ──fork──▶ the test

The interpreter is the one behind a virtual environment, with nothing but rightlane and cloudpickle added to
its path. Standard library only, since it runs there.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import importlib
import json
import os
import pkgutil
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
EXEMPTIONS = ROOT / "tests" / "stdlib" / "exemptions.txt"

# Far above what any of these tests takes on a busy machine: a test that reaches it hangs.
TEST_LIMIT_S = 60
# What is left two seconds after the end of its program has broken our promise; the rest is for a loaded
# machine.
ORPHAN_GRACE_S = 8
SHOWN_OUTPUT = 6000


@dataclass(frozen=True)
class Suite:
    """A set of ids that is judged as one."""

    name: str
    # Where the tests are. A package stands for all modules in it.
    modules: tuple[str, ...]
    # What of them belongs to the suite; matched against the id.
    pattern: str
    # The share of what the standard classes pass that ours must.
    bar: float
    # The package of Debian's that has the modules, should the interpreter lack them.
    debian: str = "libpython{minor}-testsuite"


SUITES = [
    Suite("process pools", ("test.test_concurrent_futures",), r"\.(ProcessPool|FailingInitializerR)", 0.90),
    Suite("thread pools", ("test.test_concurrent_futures",), r"\.ThreadPool", 0.90),
    Suite(
        "futures",
        ("test.test_concurrent_futures",),
        r"\.(?!ProcessPool|ThreadPool|FailingInitializerR)[A-Z]\w*\.",
        1.0,
    ),
    Suite(
        "pools",
        ("test.test_multiprocessing_fork",),
        r"\.With(Processes|Threads|Manager)TestPool",
        0.95,
    ),
    Suite(
        "asyncio executors",
        (
            "test.test_asyncio.test_base_events",
            "test.test_asyncio.test_events",
            "test.test_asyncio.test_futures",
            "test.test_asyncio.test_threads",
            "test.test_asyncio.test_runners",
        ),
        r"executor|wrap_future|ToThread|test_threads\.",
        1.0,
    ),
]


# --- putting ours in place --------------------------------------------------------------------------


def put_in_place() -> None:
    """Replaces the standard classes wherever the standard library names them; before test modules are
    imported."""
    import concurrent.futures.process
    import concurrent.futures.thread

    import rightlane
    from rightlane import futures

    standard: Any = concurrent.futures
    for module in (standard, standard.process):
        module.ProcessPoolExecutor = futures.ProcessPoolExecutor
    for module in (standard, standard.thread):
        module.ThreadPoolExecutor = futures.ThreadPoolExecutor
    standard.process._RemoteTraceback = rightlane.RemoteTraceback

    import multiprocessing.pool

    pools: Any = multiprocessing.pool
    pools.Pool = rightlane.Pool
    pools.ThreadPool = rightlane.ThreadPool
    # Managers make pools, too, and take the class when they are imported.
    import multiprocessing.managers


def in_children(path: str) -> None:
    """Programs that tests start with `python -c` get ours too; they run isolated from the environment."""
    helper: Any = importlib.import_module("test.support.script_helper")
    start = helper.run_python_until_end
    scripts = str(Path(__file__).resolve().parent)
    prelude = f"import sys; sys.path[:0] = [{path!r}]; sys.path.append({scripts!r}); "
    prelude += "import stdlib; stdlib.put_in_place()\n"

    @functools.wraps(start)
    def run_python_until_end(*args: Any, **env_vars: Any) -> Any:
        prefixed = [prelude + part if at and args[at - 1] == "-c" else part for at, part in enumerate(args)]
        return start(*prefixed, **env_vars)

    helper.run_python_until_end = run_python_until_end


# --- the process that serves ids --------------------------------------------------------------------


def serve(variant: str, suite: Suite) -> int:
    """Answers requests on standard input, a line of JSON each, by lines of JSON on standard output."""
    words = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if variant == "ours":
        put_in_place()
        in_children(os.environ["PYTHONPATH"])
    try:
        ids = [test for test in all_ids(suite) if re.search(suite.pattern, test)]
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("test."):
            raise
        print(json.dumps({"missing": error.name}), file=words)
        return 0
    print(json.dumps({"ids": ids}), file=words)
    request = json.loads(sys.stdin.readline() or "null")
    if request is None:
        return 0
    queue = collections.deque(request["ids"])
    running: dict[int, tuple[str, Path]] = {}
    folder = Path(tempfile.mkdtemp(prefix="rightlane-stdlib-"))
    server = os.getpid()
    try:
        while queue or running:
            while queue and len(running) < request["jobs"]:
                test = queue.popleft()
                report = folder / str(len(queue))
                pid = os.fork()
                if not pid:
                    keep(test, report)
                running[pid] = test, report
            pid, _ = os.wait()
            test, report = running.pop(pid)
            found = json.loads(report.read_text()) if report.exists() else gone("its keeper died")
            print(json.dumps({"id": test, **found}), file=words)
    finally:
        if os.getpid() == server:  # and not in a test, which ends by way of here
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def gone(why: str) -> dict[str, Any]:
    return {"outcome": "failed", "text": why, "seconds": 0.0}


def all_ids(suite: Suite) -> list[str]:
    loader = unittest.TestLoader()
    ids: dict[str, None] = {}
    for name in suite.modules:
        module = importlib.import_module(name)
        names = [name]
        if hasattr(module, "__path__"):
            found = pkgutil.iter_modules(module.__path__, name + ".")
            names = [info.name for info in found if info.name.rpartition(".")[2].startswith("test_")]
        for name in names:
            module = importlib.import_module(name)
            classes = [found for found in vars(module).values() if isinstance(found, type)]
            for kind in classes:
                if issubclass(kind, unittest.TestCase) and kind.__module__ == name:
                    tests = loader.getTestCaseNames(kind)
                    ids.update((f"{name}.{kind.__qualname__}.{test}", None) for test in tests)
    return list(ids)


def keep(test: str, report: Path) -> None:
    """The keeper of one test; returns in the process of the test only, when that has to end."""
    os.setsid()
    become_subreaper()
    begun = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as verdict:
        pid = os.fork()
        if not pid:
            run_test(test, output.fileno(), verdict.fileno())
            sys.exit(0)
        found = watch(pid, verdict)
        orphans = bury()
        output.seek(0)
        text = output.read().decode(errors="replace")
    if orphans and found["outcome"] == "passed":
        found = gone("it left processes behind: " + "; ".join(orphans))
    found["text"] += "\n" + text
    found["seconds"] = time.monotonic() - begun
    part = report.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.rename(report)
    os._exit(0)


def run_test(test: str, output: int, verdict: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    import faulthandler

    faulthandler.enable(sys.stderr)
    result = unittest.TestResult()
    try:
        unittest.TestLoader().loadTestsFromName(test).run(result)
    except BaseException:
        result.errors.append((unittest.FunctionTestCase(lambda: None), traceback.format_exc()))
    bad = [text for _, text in [*result.errors, *result.failures]]
    bad += [f"unexpected success of {case}" for case in result.unexpectedSuccesses]
    skipped = [why for _, why in result.skipped]
    outcome = "failed" if bad or (not result.testsRun and not skipped) else "skipped" if skipped else "passed"
    os.write(verdict, json.dumps({"outcome": outcome, "text": "\n".join(bad or skipped)}).encode())


def watch(pid: int, verdict: Any) -> dict[str, Any]:
    """Waits for the test, as long as it may take, and says how it went. A test that passed must also exit."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    in_time = bool(poll.poll(TEST_LIMIT_S * 1000))
    if not in_time:
        signal.pidfd_send_signal(pidfd, signal.SIGABRT)  # faulthandler prints every stack
        if not poll.poll(5000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    verdict.seek(0)
    said = verdict.read()
    if not in_time:
        return gone(f"killed, it had not ended after {TEST_LIMIT_S} s")
    if not said:
        return gone(f"it ended without a verdict, status {os.waitstatus_to_exitcode(status)}")
    found: dict[str, Any] = json.loads(said)
    code = os.waitstatus_to_exitcode(status)
    if found["outcome"] == "passed" and code:
        return gone(f"it passed, and then left with status {code}")
    return found


def become_subreaper() -> None:
    import ctypes

    PR_SET_CHILD_SUBREAPER = 36
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def bury() -> list[str]:
    """Waits until nothing is left of the test; kills what does not end, and names it."""
    give_up = time.monotonic() + ORPHAN_GRACE_S
    orphans: list[str] = []
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return orphans
        if pid:
            continue
        if time.monotonic() > give_up:
            for child in children(os.getpid()):
                with contextlib.suppress(OSError):
                    orphans.append(f"{child} {command_line(child)}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def children(parent: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                state = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
                if int(state[1]) == parent and state[0] not in b"ZX":
                    yield int(entry)


def command_line(pid: int) -> str:
    return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]


# --- the driver -------------------------------------------------------------------------------------


@dataclass
class Python:
    """An interpreter, and what is put on its path."""

    minor: str
    program: str
    path: str


def say(text: str) -> None:
    print(f"== {text}", flush=True)


LOOK = """
import importlib.util, json, os, sys
import cloudpickle, rightlane
tests = importlib.util.find_spec("test")
print(json.dumps({
    "minor": "%d.%d" % sys.version_info[:2],
    "program": sys._base_executable,
    "tests": tests and os.path.dirname(tests.origin),
    "packages": [os.path.dirname(module.__file__) for module in (cloudpickle, rightlane)],
}))
"""


def look_at(command: str, folder: Path) -> Python:
    """The plain interpreter behind a virtual environment, and a folder with links to what it lends us from
    there."""
    looked = subprocess.run([command, "-P", "-c", LOOK], check=True, stdout=subprocess.PIPE, timeout=60)
    found = json.loads(looked.stdout)
    path = folder / found["minor"]
    path.mkdir()
    for package in found["packages"]:
        (path / os.path.basename(package)).symlink_to(package)
    if found["tests"]:
        lend_tests(found["minor"], Path(found["tests"]), path / "test")
    return Python(found["minor"], found["program"], str(path))


def lend_tests(minor: str, tests: Path, target: Path) -> None:
    """An interpreter that was installed without these tests is lent Debian's, of the same version."""
    lender = Path(f"/usr/lib/python{minor}/test")
    missing = [
        found for found in lender.glob("test_concurrent_futures*") if not (tests / found.name).exists()
    ]
    if missing:
        target.mkdir()
        for found in [*tests.iterdir(), *missing]:
            (target / found.name).symlink_to(found)


class ServerBroke(Exception):
    """Not every test that was asked for came to an end."""


def run_suite(
    python: Python, variant: str, suite: Suite, choose: Callable[[list[str]], list[str]], jobs: int
) -> dict[str, dict[str, Any]] | str:
    """Outcomes by id; or the name of the module that is missing."""
    command = [python.program, "-s", "-P", __file__, "--serve", variant, "--suite", suite.name]
    env = {**os.environ, "PYTHONPATH": python.path, "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("PYTHONSTARTUP", "PYTHONHOME", "VIRTUAL_ENV"):
        env.pop(name, None)
    outcomes: dict[str, dict[str, Any]] = {}
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        answer = json.loads(server.stdout.readline() or "{}")
        if "missing" in answer:
            return str(answer["missing"])
        chosen = choose(answer.get("ids", []))
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"ids": chosen, "jobs": jobs}), file=server.stdin, flush=True)
        for line in server.stdout:
            outcome = json.loads(line)
            outcomes[outcome.pop("id")] = outcome
        if not answer or set(outcomes) != set(chosen):
            raise ServerBroke(f"the process that serves the tests ended early, status {server.wait()}")
    finally:
        # Keepers have sessions of their own and end their tests by themselves.
        server.stdin.close()
        server.stdout.close()
        server.kill()
        server.wait()
    return outcomes


def short(test: str) -> str:
    """An id without the module that it lies in: that differs between versions of Python."""
    parts = test.split(".")
    return ".".join([parts[1], *parts[-2:]])


def exemptions() -> dict[str, str]:
    """Reasons by short id."""
    found: dict[str, str] = {}
    for number, line in enumerate(EXEMPTIONS.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        test, _, reason = line.partition(" ")
        if not reason.strip() or test in found:
            raise SystemExit(
                f"{EXEMPTIONS}:{number}: every line is an id and its reason, and no id comes twice"
            )
        found[test] = reason.strip()
    return found


@dataclass
class Sum:
    passed: int = 0
    failed: int = 0

    def judge(self, python: Python, suite: Suite, only: str, exempt: dict[str, str], jobs: int) -> None:
        name = f"{suite.name} on Python {python.minor}"

        def wanted(ids: list[str]) -> list[str]:
            return [test for test in ids if re.search(only, test)]

        begun = time.monotonic()
        try:
            standard = run_suite(python, "standard", suite, wanted, jobs)
            if isinstance(standard, str):
                package = suite.debian.format(minor=python.minor)
                say(f"{name}: skipped, {standard} is not there (apt-get install {package})")
                return
            there = [test for test, outcome in standard.items() if outcome["outcome"] == "passed"]
            between = time.monotonic()
            ours = run_suite(python, "ours", suite, lambda _: there, jobs)
            assert not isinstance(ours, str)
        except ServerBroke as error:
            say(f"{name}: {error}")
            self.failed += 1
            return
        passed = exempted = failed = 0
        for test in there:
            outcome = ours[test]
            reason = exempt.get(short(test))
            good = outcome["outcome"] == "passed"
            passed += good
            if good and (reason is None or reason.startswith("sometimes:")):
                continue
            if not good and reason is not None:
                exempted += 1
                continue
            failed += 1
            if good:
                say(f"{short(test)} passes: strike it from {EXEMPTIONS.relative_to(ROOT)}")
            else:
                text = outcome["text"].strip()
                say(f"{short(test)} {outcome['outcome']}:\n{text[-SHOWN_OUTPUT:]}")
        share = passed / len(there) if there else 0.0
        if share < suite.bar and not only:
            failed += 1
            say(f"{name}: {share:.1%} pass, and it should be {suite.bar:.0%}")
        self.passed += passed
        self.failed += failed
        took = (
            f"{between - begun:.0f} s with the standard classes, {time.monotonic() - between:.0f} s with ours"
        )
        ends = f"{passed} passed, {failed} failed, {exempted} exempt"
        say(f"{name}: {ends} ({share:.1%} of {len(there)}; {took})")

    def close(self) -> int:
        if not self.passed and not self.failed:
            say("no test ran")
        summary = f"{self.passed} passed, {self.failed} failed"
        BUILD.mkdir(exist_ok=True)
        (BUILD / "summary-stdlib").write_text(summary + "\n")
        print(summary, flush=True)
        return 1 if self.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="stdlib.py", description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="interpreters that have rightlane")
    parser.add_argument("--only", default="", metavar="REGEX", help="only ids that match; no bars then")
    parser.add_argument("--suite", choices=[suite.name for suite in SUITES], help="only this suite")
    parser.add_argument("--jobs", type=int, default=2 * len(os.sched_getaffinity(0)), help="tests at a time")
    parser.add_argument("--serve", choices=["standard", "ours"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    suites = [suite for suite in SUITES if given.suite in (None, suite.name)]
    if given.serve:
        return serve(given.serve, suites[0])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    total = Sum()
    exempt = exemptions()
    with tempfile.TemporaryDirectory(prefix="rightlane-stdlib-") as folder:
        for command in given.pythons:
            python = look_at(command, Path(folder))
            for suite in suites:
                total.judge(python, suite, given.only, exempt, given.jobs)
    return total.close()


if __name__ == "__main__":
    sys.exit(main())
