"""An engine with `idle_s`: workers and lane threads with nothing to do end, and come back with work."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from rightlane import _executor, _native
from support import Gate, alive, context_switches, eventually, lines

pytestmark = pytest.mark.stress

Idle = Callable[..., rl.ExecutorView]


@pytest.fixture
def idle() -> Iterator[Idle]:
    made: list[rl.ExecutorView] = []

    def factory(lane: str, workers: int = 2, idle_s: float = 0.1) -> rl.ExecutorView:
        _executor._prepare_template()
        engine = _native.Engine(workers, lane == "process", None, (), "idle", None, idle_s)
        made.append(rl.ExecutorView(engine, lane))  # type: ignore[arg-type]
        return made[-1]

    yield factory
    for view in made:
        view.shutdown(wait=False, cancel_futures=True, kill=True)


def test_idle_workers_end_and_work_brings_others(idle: Idle, tmp_path: Path) -> None:
    """rule 22: in good order, with their exit handlers."""
    view = idle("process")
    log = str(tmp_path / "log")
    seen: list[int] = []
    for _ in range(3):
        pid = view.submit(leave_word, log).result()
        assert pid not in seen
        seen.append(pid)
        eventually(lambda: not view._engine.worker_pids())
        eventually(lambda pid=pid: not alive(pid))
    assert list(map(int, lines(log))) == seen
    assert list(view.map(tasks.double, range(50))) == [2 * i for i in range(50)]


def leave_word(log: str) -> int:
    atexit.register(tasks.append, log, os.getpid())
    return os.getpid()


def test_a_busy_worker_is_not_idle(idle: Idle, gate: Gate) -> None:
    view = idle("process")
    held = gate.occupy(view, 2)
    one, other = gate.started()["busy0"], gate.started()["busy1"]
    assert {one, other} == set(view._engine.worker_pids())
    time.sleep(0.4)  # longer than idle workers are kept: an observation, not a synchronisation
    assert alive(one) and alive(other) and not any(future.done() for future in held)
    gate.open()
    assert [future.result() for future in held] == ["busy0", "busy1"]
    eventually(lambda: not alive(one) and not alive(other))


def test_idle_threads_end_and_work_brings_others(idle: Idle, gate: Gate) -> None:
    view = idle("thread", workers=4)
    for round in range(3):
        started = Gate(Path(gate.path).parent, f"gate{round}")
        held = started.occupy(view, 4)
        assert len(view._engine.threads()) <= 5
        started.open()
        assert [future.result() for future in held] == [f"busy{i}" for i in range(4)]
        eventually(lambda: not any(thread.is_alive() for thread in view._engine.threads()))
    assert view.submit(tasks.double, 1).result() == 2
    view.shutdown()
    assert not any(thread.is_alive() for thread in view._engine.threads())


def test_tasks_meet_threads_that_are_about_to_end(idle: Idle) -> None:
    """None is accepted by a thread that is not there any more: pauses as long as one rests."""
    view = idle("thread", workers=1, idle_s=0.001)
    for i in range(300):
        assert view.submit(tasks.double, i).result(60) == 2 * i
        time.sleep(0.0005 * (i % 5))
    assert len(view._engine.threads()) <= 2


def test_tasks_meet_workers_that_are_about_to_end(idle: Idle) -> None:
    view = idle("process", workers=1, idle_s=0.005)
    for i in range(100):
        assert view.submit(tasks.double, i).result(60) == 2 * i
        time.sleep(0.002 * (i % 6))


def test_at_rest_nobody_wakes_up(idle: Idle) -> None:
    """Once the idle ones have ended, no thread of the engine runs again, and no worker is left that could."""
    view = idle("process", idle_s=0.2)
    template = view.submit(os.getppid).result()
    eventually(lambda: not view._engine.worker_pids())

    def rests() -> bool:
        before = context_switches([os.getpid(), template])
        time.sleep(0.7)  # long enough for three more looks
        after = context_switches([os.getpid(), template])
        me = (os.getpid(), os.getpid())
        return {k: v for k, v in before.items() if k != me} == {k: v for k, v in after.items() if k != me}

    eventually(rests, what="rest")


@pytest.mark.parametrize("idle_s", [-1.0, float("nan")])
def test_a_time_that_makes_no_sense(idle_s: float) -> None:
    with pytest.raises(ValueError):
        _native.Engine(1, False, None, (), "idle", None, idle_s)
