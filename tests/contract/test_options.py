"""`options(lane=…)`, the lanes' choice, and the cap over all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import rightlane as rl
import tasks
from support import Gate, Lane, lines


def peak_of(log: str) -> int:
    """How many tasks were inside at once, from the order of their `+` and `-` lines."""
    inside = peak = 0
    for line in lines(log):
        inside += 1 if line == "+" else -1
        peak = max(peak, inside)
    assert inside == 0
    return peak


@pytest.mark.parametrize("view_lane", ["process", "thread", "inline", "auto"])
def test_a_view_chooses_the_lane_and_shares_the_pool(ex: rl.Executor, view_lane: Lane) -> None:
    """rule 11: `options` takes what exists, and what it returns submits and maps."""
    view = ex.options(lane=view_lane)
    pid, tid = view.submit(tasks.where).result()
    assert (pid == os.getpid()) == (view_lane in ("thread", "inline"))
    if pid == os.getpid():
        assert (tid == threading.get_native_id()) == (view_lane == "inline")
    assert list(view.map(tasks.double, range(10))) == [2 * i for i in range(10)]


def test_options_of_options_and_none(ex: rl.Executor, lane: Lane) -> None:
    """No option changes nothing."""
    pid = ex.options().submit(tasks.here).result()
    assert (pid == os.getpid()) == (lane in ("thread", "inline"))


@pytest.mark.parametrize(
    "lanes", [("process",), ("thread",), ("auto",), ("process", "thread", "auto")], ids="+".join
)
def test_max_workers_is_a_hard_cap_over_all_lanes(
    make: Callable[..., rl.Executor], tmp_path: Path, lanes: tuple[Lane, ...]
) -> None:
    """rule 4: people protect a server with it; never more started, unfinished tasks than asked for."""
    log = str(tmp_path / "log")
    ex = make(3, lane="auto")
    views = [ex.options(lane=lane) for lane in lanes]
    futures = [views[i % len(views)].submit(tasks.enter_and_leave, log) for i in range(150)]
    maps = [view.map(tasks.enter_and_leave, [log] * 30) for view in views]
    for future in futures:
        future.result()
    for results in maps:
        assert list(results) == [None] * 30
    assert 1 <= peak_of(log) <= 3


def test_all_workers_are_used(busy: rl.Executor, gate: Gate) -> None:
    """rule 4: and as many as asked for run at once."""
    gate.occupy(busy, 2)


@pytest.mark.parametrize("sized_lane", ["process", "thread", "auto"])
def test_the_default_size(tmp_path: Path, sized_lane: Lane) -> None:
    """rule 4: ceil(min(affinity, quota)), at least 1, for process and auto; min(32, that + 4) for thread."""
    log = str(tmp_path / "log")
    cores = len(os.sched_getaffinity(0))
    with rl.Executor(lane=sized_lane) as ex:
        list(ex.map(tasks.enter_and_leave, [log] * 300, chunksize=1))
    assert 1 <= peak_of(log) <= (min(32, cores + 4) if sized_lane == "thread" else cores)


def test_the_default_size_of_threads_exceeds_the_cores(gate: Gate) -> None:
    """rule 4: at least one core, so at least five threads."""
    with rl.Executor(lane="thread") as ex:
        gate.occupy(ex, 5)
        gate.open()


def test_auto_keeps_what_cannot_be_pickled_in_threads(make: Callable[..., rl.Executor]) -> None:
    """A function or an argument that cannot be sent goes to a thread; what can, to a process."""
    ex = make(2, lane="auto")
    lock = threading.Lock()

    def closes_over_a_lock() -> int:
        with lock:
            return os.getpid()

    assert ex.submit(closes_over_a_lock).result() == os.getpid()
    assert ex.submit(lambda x: (os.getpid(), x), lock).result() == (os.getpid(), lock)
    assert ex.submit(tasks.here, object()).result() != os.getpid()
    thread = ex.submit(lambda _: threading.get_ident(), lock).result()
    assert thread != threading.get_ident()


def test_auto_maps_what_cannot_be_pickled_in_threads(make: Callable[..., rl.Executor]) -> None:
    """Also item by item."""
    ex = make(2, lane="auto")
    lock = threading.Lock()
    assert list(ex.map(lambda x: x is lock, [1, lock, 2, lock])) == [False, True, False, True]
    assert list(ex.map(lambda x: (x, lock.locked()), range(5))) == [(i, False) for i in range(5)]


def test_auto_never_runs_a_task_again_because_its_result_cannot_be_sent(
    make: Callable[..., rl.Executor], tmp_path: Path
) -> None:
    """The result is a SerializationError; the function ran once."""
    ex = make(2, lane="auto")
    error = ex.submit(tasks.lock_holder, str(tmp_path / "log")).exception()
    assert isinstance(error, rl.SerializationError) and lines(tmp_path / "log") == ["ran"]


def test_local_lanes_move_the_very_object(make: Callable[..., rl.Executor]) -> None:
    """Threads share memory: no copy, nothing pickled."""
    for lane in ("thread", "inline"):
        ex = make(1, lane=lane)
        thing = object()
        assert ex.submit(tasks.echo, thing).result() is thing
        assert next(iter(ex.map(tasks.echo, [thing]))) is thing
        error = LookupError()
        assert ex.submit(tasks.fail, cast(Any, lambda e=error: e)).exception() is error


def test_thread_names_carry_the_prefix(make: Callable[..., rl.Executor]) -> None:
    ex = make(2, lane="thread", thread_name_prefix="crawler")
    assert ex.submit(lambda: threading.current_thread().name).result().startswith("crawler")
