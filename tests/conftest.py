"""What every test shares: lanes, executors that never survive their test, and gates to hold tasks at.

pytest puts this directory on `sys.path` (`pythonpath` in pyproject.toml), so that workers import `tasks` by
reference, as they would import a user's module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Nothing is known from earlier runs, and the user's own cache is left alone (rule 29).
os.environ["RIGHTLANE_PROFILES"] = "0"

import rightlane as rl
from rightlane import _core
from support import Gate, Start, Started

CONCURRENT_LANES = ("process", "thread", "auto")


@pytest.fixture(autouse=True)
def nothing_measured() -> None:
    """What auto does in a test does not depend on the tests before it."""
    _core.forget_measurements()


@pytest.fixture(params=(*CONCURRENT_LANES, "inline"))
def lane(request: pytest.FixtureRequest) -> str:
    """Every lane."""
    return str(request.param)


@pytest.fixture(params=CONCURRENT_LANES)
def busy_lane(request: pytest.FixtureRequest) -> str:
    """The lanes in which a task can be unfinished when `submit` returns."""
    return str(request.param)


@pytest.fixture
def make() -> Iterator[Callable[..., rl.Executor]]:
    """Make executors that are killed at the end of the test, whatever state it left them in."""
    made: list[rl.Executor] = []

    def factory(max_workers: int | None = 2, **options: object) -> rl.Executor:
        executor = rl.Executor(max_workers, **options)  # type: ignore[arg-type]
        made.append(executor)
        return executor

    yield factory
    for executor in made:
        executor.shutdown(wait=False, cancel_futures=True, kill=True)


@pytest.fixture
def ex(make: Callable[..., rl.Executor], lane: str) -> rl.Executor:
    return make(lane=lane)


@pytest.fixture
def busy(make: Callable[..., rl.Executor], busy_lane: str) -> rl.Executor:
    return make(lane=busy_lane)


@pytest.fixture
def pool(make: Callable[..., rl.Executor]) -> rl.Executor:
    """Two worker processes."""
    return make(lane="process")


@pytest.fixture
def shared() -> Iterator[None]:
    """The executors of `rl.submit` and `rl.map` are new ones for this test, and end with it."""
    from rightlane import _executor, _shared

    yield
    while _shared._levels:
        _, one = _shared._levels.popitem()
        one.engine.close(True, True)
        assert one.engine.wait_drained(60)
        _executor._join(one.engine)


@pytest.fixture
def gate(tmp_path: Path, make: object) -> Iterator[Gate]:
    """A gate that is opened before the executors are ended, so that no held thread outlives its test."""
    gate = Gate(tmp_path)
    yield gate
    gate.open()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start scripts in sessions of their own; all they started is killed at the end."""
    running: list[Started] = []

    def starter(source: str, *argv: object, **options: object) -> Started:
        script = Started(tmp_path, source, argv, **options)  # type: ignore[arg-type]
        running.append(script)
        return script

    yield starter
    for script in running:
        script.kill_all()
