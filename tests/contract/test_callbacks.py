"""Callbacks: their order, their thread, and what happens when they raise."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

import rightlane as rl
import tasks
from support import Gate, eventually


def test_callbacks_run_in_order_and_get_the_future(busy: rl.Executor, gate: Gate) -> None:
    (future,) = gate.occupy(busy, 1)
    calls: list[tuple[int, object]] = []
    for i in range(5):
        future.add_done_callback(lambda f, i=i: calls.append((i, f)))  # type: ignore[misc]
    assert calls == []
    gate.open()
    eventually(lambda: len(calls) == 5)
    assert calls == [(i, future) for i in range(5)]


def test_a_callback_on_a_done_future_runs_in_the_caller_at_once(ex: rl.Executor) -> None:
    """rule 9: in the caller when the future is already done."""
    future = ex.submit(tasks.double, 1)
    future.result()
    threads: list[int] = []
    future.add_done_callback(lambda f: threads.append(threading.get_ident()))
    assert threads == [threading.get_ident()]


def test_a_waiter_never_runs_another_futures_callbacks(busy: rl.Executor, gate: Gate) -> None:
    """rule 9: who waits may hold a lock that a callback wants."""
    lock = threading.Lock()
    ran_in: list[int] = []

    def wants_the_lock(_: object) -> None:
        with lock:
            ran_in.append(threading.get_ident())

    with lock:
        first, second = gate.occupy(busy, 2)
        first.add_done_callback(wants_the_lock)
        second.add_done_callback(wants_the_lock)
        gate.open()
        assert first.result() == "busy0"
        assert second.result() == "busy1"
        assert [busy.submit(tasks.double, i).result() for i in range(100)] == [2 * i for i in range(100)]
        assert list(busy.map(tasks.double, range(100))) == [2 * i for i in range(100)]
        assert ran_in == []
    eventually(lambda: len(ran_in) == 2)
    assert threading.get_ident() not in ran_in


def test_an_exception_in_a_callback_is_logged_and_stops_nothing(
    busy: rl.Executor, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the standard library: logged to `concurrent.futures`; the callbacks after it still run."""
    (future,) = gate.occupy(busy, 1)
    calls: list[str] = []

    def broken(_: object) -> None:
        calls.append("broken")
        raise ZeroDivisionError("in a callback")

    with caplog.at_level(logging.ERROR):
        future.add_done_callback(broken)
        future.add_done_callback(lambda f: calls.append("after"))
        gate.open()
        eventually(lambda: calls == ["broken", "after"])
        assert busy.submit(tasks.double, 4).result() == 8
        future.add_done_callback(broken)
        assert calls == ["broken", "after", "broken"]
    errors = [r for r in caplog.records if r.exc_info and r.exc_info[0] is ZeroDivisionError]
    assert len(errors) == 2 and {r.name for r in errors} == {"concurrent.futures"}


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_callback_cannot_end_the_completion_thread(
    busy: rl.Executor, gate: Gate, kind: type[BaseException]
) -> None:
    """Callbacks of later futures run whatever an earlier one raised."""
    first, second = gate.occupy(busy, 2)
    calls: list[str] = []

    def broken(_: object) -> None:
        calls.append("broken")
        raise kind

    first.add_done_callback(broken)
    second.add_done_callback(lambda f: calls.append("second"))
    gate.open()
    eventually(lambda: sorted(calls) == ["broken", "second"])
    third = busy.submit(tasks.double, 1)
    third.add_done_callback(lambda f: calls.append("third"))
    eventually(lambda: "third" in calls)


def test_callbacks_of_a_cancelled_future(busy: rl.Executor, gate: Gate) -> None:
    gate.occupy(busy, 2)
    future = [busy.submit(tasks.double, 1) for _ in range(3)][-1]
    calls: list[bool] = []
    future.add_done_callback(lambda f: calls.append(f.cancelled()))
    assert future.cancel()
    assert future.cancel()
    eventually(lambda: calls)
    gate.open()
    busy.shutdown()
    assert calls == [True]


def test_a_callback_may_submit(busy: rl.Executor) -> None:
    """Callbacks may use the executor they came from."""
    done = threading.Event()
    results: list[int] = []

    def again(future: rl.Future[int]) -> None:
        results.append(future.result())
        if len(results) < 50:
            busy.submit(tasks.double, len(results)).add_done_callback(again)  # type: ignore[arg-type]
        else:
            done.set()

    busy.submit(tasks.double, 0).add_done_callback(again)  # type: ignore[arg-type]
    assert done.wait(60)
    assert results == [2 * i for i in range(50)]


def test_each_callback_runs_once_under_a_race(busy: rl.Executor) -> None:
    """Added while the answer comes in: run once, by whichever side saw it last."""
    counts = [0] * 1000
    lock = threading.Lock()

    def count(i: int) -> Callable[[object], None]:
        def callback(_: object) -> None:
            with lock:
                counts[i] += 1

        return callback

    for i in range(1000):
        busy.submit(tasks.noop).add_done_callback(count(i))
    busy.shutdown()
    eventually(lambda: sum(counts) >= 1000)
    assert counts == [1] * 1000
