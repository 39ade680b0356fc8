"""The initializer: where it runs, how often, and what its failure means."""

from __future__ import annotations

import concurrent.futures as cf
import os
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Gate, eventually, lines


def test_once_per_worker_and_never_in_the_template(make: Callable[..., rl.Executor], gate: Gate) -> None:
    """rule 10: once in each worker process, not in the template."""
    log = gate.path + ".init"
    pool = make(2, lane="process", initializer=tasks.append_where, initargs=(log,))
    gate.occupy(pool, 2)
    gate.open()
    list(pool.map(tasks.double, range(200)))
    pids = [int(line.split()[0]) for line in lines(log)]
    assert len(pids) == len(set(pids)) and set(gate.started().values()) <= set(pids)
    template = pool.submit(os.getppid).result()
    assert template not in pids and os.getpid() not in pids and len(pids) == 2


def test_once_per_lane_thread(make: Callable[..., rl.Executor], gate: Gate) -> None:
    """rule 10: once in each lane thread, before its first task."""
    seen: list[int] = []
    local = threading.local()

    def init(value: str) -> None:
        local.value = value
        seen.append(threading.get_ident())

    ex = make(2, lane="thread", initializer=init, initargs=("set",))
    gate.occupy(ex, 2)
    gate.open()
    assert {ex.submit(lambda: local.value).result() for _ in range(50)} == {"set"}
    assert len(seen) == len(set(seen)) == 2 and threading.get_ident() not in seen


def test_auto_runs_it_in_both_kinds_of_worker(make: Callable[..., rl.Executor], gate: Gate) -> None:
    """rule 10: with auto in processes and in threads."""
    log = gate.path + ".init"
    lock = threading.Lock()
    ex = make(2, lane="auto", initializer=tasks.append_where, initargs=(log,))

    def in_a_thread() -> int:
        with lock:
            return os.getpid()

    assert ex.submit(tasks.here).result() != os.getpid()
    assert ex.submit(in_a_thread).result() == os.getpid()
    pids = [int(line.split()[0]) for line in lines(log)]
    assert os.getpid() in pids and any(pid != os.getpid() for pid in pids)
    assert len(lines(log)) == len(set(lines(log)))


def test_inline_never_runs_it(make: Callable[..., rl.Executor], tmp_path: Path) -> None:
    """rule 10: inline never."""
    ex = make(1, lane="inline", initializer=tasks.append_where, initargs=(str(tmp_path / "log"),))
    assert ex.submit(tasks.double, 1).result() == 2
    assert lines(tmp_path / "log") == []


def test_what_it_sets_the_tasks_see(make: Callable[..., rl.Executor]) -> None:
    """rule 10: the initializer and the tasks share the worker."""
    pool = make(1, lane="process", initializer=tasks.set_variable, initargs=("RIGHTLANE_TEST_INIT", "yes"))
    assert pool.submit(os.getenv, "RIGHTLANE_TEST_INIT").result() == "yes"


def broken_kinds(lane: str) -> tuple[type[BaseException], ...]:
    stdlib = {"process": (BrokenProcessPool,), "thread": (BrokenThreadPool,)}.get(lane, ())
    return (rl.BrokenExecutor, cf.BrokenExecutor, rl.RightlaneError, *stdlib)


def test_one_that_raises_breaks_the_executor(make: Callable[..., rl.Executor], busy_lane: str) -> None:
    """rule 10: as in the standard library, the work that waits and every later submit get BrokenExecutor."""
    ex = make(2, lane=busy_lane, initializer=tasks.fail, initargs=(ValueError, "no database"))
    future = ex.submit(tasks.double, 1)
    error = future.exception()
    assert error is not None and all(isinstance(error, kind) for kind in broken_kinds(busy_lane))

    def refused() -> bool:
        try:
            later = ex.submit(tasks.double, 1)
        except cf.BrokenExecutor:
            return True
        assert isinstance(later.exception(), cf.BrokenExecutor)
        return False

    eventually(refused, what="a submit that is refused")
    with pytest.raises(cf.BrokenExecutor):
        list(ex.map(tasks.double, [1]))
    ex.shutdown()


def test_the_cause_of_a_broken_executor_is_told(make: Callable[..., rl.Executor]) -> None:
    """rule 10: who sees BrokenExecutor learns what the initializer raised."""
    import traceback

    error = make(1, lane="process", initializer=tasks.fail, initargs=(ValueError, "no database")).submit(
        abs, 1
    )
    text = "".join(traceback.format_exception(error.exception()))
    assert "no database" in text and "initializer" in text


def test_one_that_dies_counts_as_one_that_raised(make: Callable[..., rl.Executor]) -> None:
    """rule 10"""
    pool = make(2, lane="process", initializer=os._exit, initargs=(3,))
    futures = [pool.submit(tasks.double, i) for i in range(5)]
    for future in futures:
        assert isinstance(future.exception(), rl.BrokenExecutor)
    pool.shutdown()


def test_a_broken_executor_does_not_break_its_neighbour(
    pool: rl.Executor, make: Callable[..., rl.Executor]
) -> None:
    broken = make(1, lane="process", initializer=tasks.fail, initargs=(ValueError,))
    assert isinstance(broken.submit(abs, 1).exception(), rl.BrokenExecutor)
    assert pool.submit(abs, -1).result() == 1


def test_waiting_maps_break_too(make: Callable[..., rl.Executor], busy_lane: str) -> None:
    ex = make(2, lane=busy_lane, initializer=tasks.fail, initargs=(ValueError,))
    with pytest.raises(cf.BrokenExecutor):
        list(ex.map(tasks.double, range(1000)))
