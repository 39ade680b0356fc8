"""`shutdown` in every form, and `with`."""

from __future__ import annotations

import concurrent.futures as cf
import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Gate, Lane, alive, children, eventually, lines


def test_with_finishes_accepted_work(lane: Lane, tmp_path: Path) -> None:
    """rule 2: the end of `with` waits for what was accepted."""
    log = str(tmp_path / "log")
    with rl.Executor(2, lane=lane) as ex:
        futures = [ex.submit(tasks.append_slowly, log, i) for i in range(100)]
    assert all(f.done() for f in futures) and sorted(map(int, lines(log))) == list(range(100))


def test_with_finishes_accepted_work_when_its_body_raises(lane: Lane, tmp_path: Path) -> None:
    """rule 2: an exception in the body changes nothing about that."""
    log = str(tmp_path / "log")
    with pytest.raises(LookupError), rl.Executor(2, lane=lane) as ex:
        for i in range(50):
            ex.submit(tasks.append_slowly, log, i)
        raise LookupError
    assert sorted(map(int, lines(log))) == list(range(50))


def test_after_shutdown_nothing_is_accepted(ex: rl.Executor) -> None:
    """RuntimeError, whatever the state of the work; shutting down twice is harmless."""
    view = ex.options(lane="inline")
    ex.submit(tasks.noop)
    ex.shutdown()
    ex.shutdown(wait=False)
    ex.shutdown(cancel_futures=True)
    for call in (
        lambda: ex.submit(tasks.noop),
        lambda: ex.map(tasks.noop, [1]),
        lambda: view.submit(tasks.noop),
        lambda: view.map(tasks.noop, [1]),
    ):
        with pytest.raises(RuntimeError, match="shutdown"):
            call()


def test_shutdown_of_an_unused_executor(ex: rl.Executor) -> None:
    ex.shutdown()


def test_shutdown_without_wait_returns_while_tasks_run(busy: rl.Executor, gate: Gate) -> None:
    """rule 2: they are finished all the same, the queued ones too."""
    held = gate.occupy(busy, 2)
    queued = [busy.submit(tasks.double, i) for i in range(20)]
    busy.shutdown(wait=False)
    assert not any(f.done() for f in held)
    with pytest.raises(RuntimeError):
        busy.submit(tasks.noop)
    gate.open()
    assert [f.result() for f in (*held, *queued)] == ["busy0", "busy1", *(2 * i for i in range(20))]
    busy.shutdown(wait=True)


def test_shutdown_that_cancels(busy: rl.Executor, gate: Gate, tmp_path: Path) -> None:
    """What runs is finished, what waits is cancelled and never starts."""
    log = str(tmp_path / "log")
    held = gate.occupy(busy, 2)
    queued = [busy.submit(tasks.append, log, i) for i in range(50)]
    mapped = busy.map(tasks.append, [log] * 20, range(100, 120))
    busy.shutdown(wait=False, cancel_futures=True)
    assert all(f.cancelled() for f in queued)
    gate.open()
    busy.shutdown(wait=True)
    assert [f.result() for f in held] == ["busy0", "busy1"] and lines(log) == []
    with pytest.raises(cf.CancelledError):
        list(mapped)


def test_waiters_learn_of_the_cancellation(busy: rl.Executor, gate: Gate) -> None:
    gate.occupy(busy, 2)
    queued = [busy.submit(tasks.double, i) for i in range(5)]
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(len(cf.wait(queued).done)))
    thread.start()
    busy.shutdown(wait=False, cancel_futures=True)
    thread.join(60)
    assert seen == [5]


def test_a_second_shutdown_may_cancel_what_the_first_let_run(busy: rl.Executor, gate: Gate) -> None:
    gate.occupy(busy, 2)
    queued = [busy.submit(tasks.double, i) for i in range(5)]
    busy.shutdown(wait=False)
    busy.shutdown(wait=False, cancel_futures=True)
    assert all(f.cancelled() for f in queued)


def test_kill_ends_running_tasks(pool: rl.Executor, gate: Gate) -> None:
    """rule 2: the time is bounded after the user says stop; every future is terminal, and nothing runs on."""
    held = gate.occupy(pool, 2)
    pids = list(gate.started().values())
    queued = [pool.submit(tasks.double, i) for i in range(20)]
    pool.shutdown(wait=True, kill=True)
    assert not any(alive(pid) for pid in pids)
    for future in (*held, *queued):
        assert future.done()
        assert future.cancelled() or isinstance(future.exception(), (rl.WorkerLost, rl.BrokenExecutor))
    assert all(not f.cancelled() for f in held), "a claimed task is not cancelled but lost"


def test_kill_in_the_thread_lane_drops_what_waits(make: Callable[..., rl.Executor], gate: Gate) -> None:
    """A thread cannot be killed: what runs there is left to end, what waits never starts."""
    ex = make(lane="thread")
    held = gate.occupy(ex, 2)
    queued = [ex.submit(tasks.hold, gate.path, f"queued{i}") for i in range(5)]
    ex.shutdown(wait=False, kill=True)
    eventually(lambda: all(f.done() for f in queued))
    gate.open()
    cf.wait(held)
    ex.shutdown()
    assert not any(name.startswith("queued") for name in gate.started())


def test_shutdown_from_several_threads(busy: rl.Executor, gate: Gate) -> None:
    """All of them return once the work is done."""
    held = gate.occupy(busy, 2)
    threads = [threading.Thread(target=busy.shutdown) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(60)
    assert not any(t.is_alive() for t in threads) and all(f.done() for f in held)


def test_a_collected_executor_finishes_and_retires(busy_lane: Lane, gate: Gate) -> None:
    """rule 2: accepted work is finished though nobody holds the executor; then its workers retire."""
    ex = rl.Executor(2, lane=busy_lane)
    held = gate.occupy(ex, 2)
    threads = set(threading.enumerate())
    queued = [ex.submit(tasks.here) for i in range(30)]
    del ex
    gc.collect()
    gate.open()
    assert [f.result() for f in held] == ["busy0", "busy1"]
    pids = {f.result() for f in queued} | set(gate.started().values())
    if busy_lane == "thread":
        eventually(
            lambda: not {t for t in threads if t.is_alive() and "ightlane" in t.name}, what="end of threads"
        )
    else:
        eventually(lambda: not any(alive(pid) for pid in pids), what=f"end of {pids}")


def test_a_dropped_idle_executor_retires(busy_lane: Lane) -> None:
    """rule 2: the same when there is nothing left to finish."""
    import os

    before = set(children(os.getpid()))
    ex = rl.Executor(2, lane=busy_lane)
    pid = ex.submit(os.getpid).result()
    del ex
    gc.collect()
    if busy_lane != "thread":
        eventually(lambda: not alive(pid))
        eventually(lambda: set(children(os.getpid())) <= before, what="end of the template")


def test_work_may_follow_work_after_a_new_executor(lane: Lane) -> None:
    """Executors are independent: ending one leaves the others alone."""
    with rl.Executor(1, lane=lane) as outer:
        for i in range(10):
            with rl.Executor(1, lane=lane) as inner:
                assert inner.submit(tasks.double, i).result() == 2 * i
            assert outer.submit(tasks.double, i).result() == 2 * i
