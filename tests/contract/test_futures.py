"""A future's life: pending, running, done or cancelled; and who may wait for it how long."""

from __future__ import annotations

import concurrent.futures
import gc
import threading
import weakref
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Gate, eventually, lines


def test_running_is_true_from_the_claim(busy: rl.Executor, gate: Gate) -> None:
    """rule 11: a claimed task is running, cannot be cancelled, and is not done."""
    (future,) = gate.occupy(busy, 1)
    assert future.running() and not future.done() and not future.cancelled()
    assert future.cancel() is False
    gate.open()
    assert future.result() == "busy0"
    assert future.done() and not future.running() and future.cancel() is False


def test_what_has_not_started_can_be_cancelled_and_never_runs(
    busy: rl.Executor, gate: Gate, tmp_path: Path
) -> None:
    """rule 11: `cancel` succeeds until the task is claimed, however near to a worker it already waits."""
    log = str(tmp_path / "log")
    held = gate.occupy(busy, 2)
    queued = [busy.submit(tasks.append, log, i) for i in range(20)]
    assert not any(f.running() or f.done() for f in queued)
    assert all(f.cancel() for f in queued[::2])
    for future in queued[::2]:
        assert future.cancelled() and future.done() and not future.running()
        assert future.cancel() is True, "cancelling twice is still a success"
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
        with pytest.raises(concurrent.futures.CancelledError):
            future.exception()
    gate.open()
    assert [f.result() for f in queued[1::2]] == list(range(1, 20, 2))
    assert [f.result() for f in held] == ["busy0", "busy1"]
    busy.shutdown()
    assert sorted(map(int, lines(log))) == list(range(1, 20, 2))


def test_cancel_races_with_the_claim(busy: rl.Executor, tmp_path: Path) -> None:
    """rule 11: a future says cancelled exactly when its task did not run."""
    log = str(tmp_path / "log")
    futures = [busy.submit(tasks.append, log, i) for i in range(400)]
    for future in reversed(futures):
        future.cancel()
    busy.shutdown()
    assert all(f.done() for f in futures)
    assert sorted(map(int, lines(log))) == [i for i, f in enumerate(futures) if not f.cancelled()]


def test_cancelled_error_is_the_standard_one() -> None:
    """rule 11"""
    with rl.Executor(1, lane="inline") as ex:
        future = ex.submit(tasks.fail, concurrent.futures.CancelledError)
    assert type(future.exception()) is concurrent.futures.CancelledError and not future.cancelled()


def test_inline_is_done_when_submit_returns(make) -> None:  # type: ignore[no-untyped-def]
    future = make(lane="inline").submit(tasks.double, 2)
    assert future.done() and future.cancel() is False and future.result(timeout=0) == 4


def test_timeouts(busy: rl.Executor, gate: Gate) -> None:
    """A timeout costs the waiter's patience, not the task."""
    (future,) = gate.occupy(busy, 1)
    for timeout in (0, 0.01, -1):
        with pytest.raises(TimeoutError):
            future.result(timeout)
        with pytest.raises(concurrent.futures.TimeoutError):
            future.exception(timeout=timeout)
    assert future.running()
    gate.open()
    assert future.result(timeout=60) == "busy0" and future.exception(timeout=0) is None


def test_many_threads_wait_for_one_future(busy: rl.Executor, gate: Gate) -> None:
    (future,) = gate.occupy(busy, 1)
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(future.result())) for _ in range(10)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(60)
    assert seen == ["busy0"] * 10


def test_waiting_with_a_timeout_in_threads_while_the_answer_comes(busy: rl.Executor, gate: Gate) -> None:
    """Waiters that gave up do not disturb those that stay."""
    (future,) = gate.occupy(busy, 1)
    outcomes: list[object] = []

    def impatient() -> None:
        try:
            outcomes.append(future.result(0.001))
        except TimeoutError:
            outcomes.append("late")

    threads = [threading.Thread(target=impatient) for _ in range(10)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(outcomes) == 10)
    assert outcomes == ["late"] * 10
    gate.open()
    assert future.result() == "busy0"


def test_a_result_is_one_object(ex: rl.Executor) -> None:
    """rule 9: each answer is unpickled once and kept."""
    future = ex.submit(tasks.echo, [1, 2])
    assert future.result() is future.result()


def test_futures_are_hashable_printable_and_collectable(ex: rl.Executor) -> None:
    """A done future that nobody holds is freed; its repr names its state."""
    future = ex.submit(tasks.double, 1)
    assert future.result() == 2
    assert {future: 1}[future] == 1 and "finished" in repr(future)
    ref = weakref.ref(future)
    del future
    eventually(lambda: gc.collect() >= 0 and ref() is None, what="end of the future")


def test_dropped_futures_run_all_the_same(ex: rl.Executor, tmp_path: Path) -> None:
    """rule 2: accepted work is finished though nobody asks for the answer."""
    log = str(tmp_path / "log")
    for i in range(50):
        ex.submit(tasks.append, log, i)
    gc.collect()
    ex.shutdown()
    assert sorted(map(int, lines(log))) == list(range(50))
