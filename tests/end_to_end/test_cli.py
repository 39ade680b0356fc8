"""The `rightlane` command as its users have it: the installed script, in a directory of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

import rightlane as rl

SCRIPT = Path(sysconfig.get_path("scripts")) / "rightlane"

MODULE = """\
import os
import signal
import threading

LOCK = threading.Lock()

def made():
    with open("made.log", "a") as log:
        log.write("made\\n")
    yield from range(20)

def square(value):
    return value * value

def odd(value):
    if value % 2:
        raise ValueError(value)
    return value

def where(value):
    return os.getpid()

def locked(value):
    return LOCK

def pause(value):
    open("waiting", "w").close()
    signal.pause()

async def later(value):
    return value

class Box:
    @staticmethod
    def double(value):
        return 2 * value

NUMBER = 3
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    return tmp_path


def rightlane(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *args], cwd=home, capture_output=True, text=True, timeout=100)


def test_compare_prints_table_and_verdict(home: Path) -> None:
    done = rightlane(home, "compare", "jobs:square", "--items", "range(100)")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("square: 100 items, ")
    for word in ("lane", "size", "time", "speed-up", "cores used", "tasks/s", "serial", "process", "thread"):
        assert word in done.stdout
    assert "\nresults: equal in every lane\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("verdict: ")


def test_items_are_evaluated_once_in_the_namespace_of_the_module(home: Path) -> None:
    done = rightlane(home, "compare", "jobs:square", "--items", "(NUMBER * value for value in made())")
    assert done.returncode == 0, done.stderr
    assert (home / "made.log").read_text().splitlines() == ["made"]


def test_a_function_may_be_below_a_class(home: Path) -> None:
    done = rightlane(home, "compare", "jobs:Box.double", "--items", "range(20)")
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_are_results(home: Path) -> None:
    done = rightlane(home, "compare", "jobs:odd", "--items", "range(20)")
    assert (done.returncode, done.stderr) == (0, "")
    assert "results: equal in every lane (10 of 20 calls raised)" in done.stdout


def test_results_that_differ_are_exit_code_1(home: Path) -> None:
    done = rightlane(home, "compare", "jobs:where", "--items", "range(20)")
    assert (done.returncode, done.stderr) == (1, "")
    assert "results: DIFFER: process × " in done.stdout


def test_what_cannot_be_sent_is_a_row(home: Path) -> None:
    done = rightlane(home, "compare", "jobs:locked", "--items", "range(20)")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  process  not run: " in done.stdout
    assert "\n  thread" in done.stdout


def test_max_workers_caps_every_pool(home: Path) -> None:
    done = rightlane(home, "compare", "jobs:square", "--items", "range(20)", "--max-workers", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert " by 1" in done.stdout and " by 4" not in done.stdout


@pytest.mark.parametrize(
    ("spec", "items", "said"),
    [
        ("jobs", "[1]", "'jobs' is not of the form package.module:function"),
        (":square", "[1]", "not of the form"),
        ("nowhere.at_all:square", "[1]", "there is no module 'nowhere'"),
        ("jobs.below:square", "[1]", "there is no module 'jobs.below'"),
        ("broken:square", "[1]", "importing 'broken' failed: ZeroDivisionError: division by zero"),
        ("jobs:cube", "[1]", "module 'jobs' has no 'cube'"),
        ("jobs:NUMBER", "[1]", "3 cannot be called"),
        ("jobs:later", "[1]", "later is a coroutine function"),
        ("jobs:square", "range(", "evaluating --items 'range(' failed: SyntaxError"),
        ("jobs:square", "UNKNOWN", "evaluating --items 'UNKNOWN' failed: NameError"),
        ("jobs:square", "NUMBER", "the items cannot be made a list: 'int' object is not iterable"),
        ("jobs:square", "(1 / 0 for _ in range(3))", "failed: ZeroDivisionError"),
        ("jobs:square", "[]", "there are no items"),
        ("jobs:square", "__import__('sys').exit(0)", "failed: SystemExit: 0"),
    ],
)
def test_a_wrong_spec_is_one_line_and_exit_code_2(home: Path, spec: str, items: str, said: str) -> None:
    done = rightlane(home, "compare", spec, "--items", items)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rightlane: ") and said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("race",),
        ("compare", "jobs:square"),
        ("compare", "jobs:square", "--items", "[1]", "--max-workers", "0"),
        ("doctor", "--fast"),
    ],
)
def test_wrong_usage_is_exit_code_2(home: Path, args: tuple[str, ...]) -> None:
    done = rightlane(home, *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_version(home: Path) -> None:
    done = rightlane(home, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"rightlane {rl.__version__}\n", "")


def test_doctor_says_what_the_machine_allows(home: Path) -> None:
    done = rightlane(home, "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("kernel", "Python", "GIL", "core budget", "memory", "descriptors", "process lane", "pidfd"):
        assert f"  {name} " in done.stdout or f"  {name}\n" in done.stdout, name


def test_a_reader_that_goes_away_is_no_traceback(home: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [SCRIPT, "doctor"], cwd=home, stdout=write, stderr=subprocess.PIPE, text=True, timeout=100
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_ctrl_c_ends_it_without_a_traceback(home: Path) -> None:
    command = [str(SCRIPT), "compare", "jobs:pause", "--items", "range(3)"]
    with subprocess.Popen(
        command, cwd=home, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            while not (home / "waiting").exists():
                assert process.poll() is None, "it ended before the function was called"
                signal.sigtimedwait([], 0.01)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=100)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "")
