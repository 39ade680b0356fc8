"""Single calls of one function travel together, and ranges as rules, and nobody can tell."""

from __future__ import annotations

import gc
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, as_completed

import pytest

import rightlane as rl
import tasks
from support import Gate


def test_each_call_keeps_its_own_end(busy: rl.Executor) -> None:
    """rule 8: the ends of calls that travel together stay apart, and in their places."""
    futures = [busy.submit(tasks.fail_at, i, i - i % 7) for i in range(3000)]
    for i, future in enumerate(futures):
        if i % 7:
            assert future.result(60) == i
        else:
            assert isinstance(future.exception(60), ValueError)


def test_cancelling_single_calls_of_many(busy: rl.Executor, gate: Gate) -> None:
    """rule 11: a call is cancelled alone, wherever it waits; the others run, each once."""
    held = gate.occupy(busy, 2)
    futures = [busy.submit(tasks.double, i) for i in range(4000)]
    chosen = random.Random(7).sample(range(4000), 1500)
    cancelled = {i for i in chosen if futures[i].cancel()}
    # Two at most may be with a worker, and none has been claimed.
    assert len(cancelled) >= 1490
    assert all(futures[i].cancelled() for i in cancelled)
    gate.open()
    for i, future in enumerate(futures):
        if i in cancelled:
            with pytest.raises(CancelledError):
                future.result(60)
        else:
            assert future.result(60) == 2 * i
    for future in held:
        future.result(60)


def test_functions_by_turns(busy: rl.Executor) -> None:
    """More functions than have a stream at a time, by turns, and all in order for one worker."""
    functions = [tasks.double, tasks.echo, tasks.here, tasks.noop, abs, len, tasks.divide]
    arguments = [3, "x", None, None, -4, "abc", 5]
    wanted = [6, "x", None, None, 4, 3, 2.0]
    futures = [busy.submit(f, a) for _ in range(200) for f, a in zip(functions, arguments, strict=True)]
    for future, want in zip(futures, itertools.cycle(wanted)):
        assert want is None or future.result(60) == want
        future.result(60)


def test_one_worker_runs_calls_in_the_order_of_submission(make: Callable[..., rl.Executor]) -> None:
    """First come, first served, whether calls travel together or not."""
    executor = make(1, lane="process")
    futures = [executor.submit(time.monotonic_ns) for _ in range(300)]
    mixed = [executor.submit(time.monotonic_ns if i % 3 else time.perf_counter_ns) for i in range(300)]
    times = [future.result(60) for future in futures]
    later = [future.result(60) for i, future in enumerate(mixed) if i % 3]
    assert times == sorted(times) and later == sorted(later) and times[-1] < later[0]


def test_calls_behind_a_long_one_go_elsewhere(make: Callable[..., rl.Executor], gate: Gate) -> None:
    """rule 16: what travels behind a call that turns out to be long is taken back for an idle worker."""
    executor = make(2, lane="process")
    for future in [executor.submit(tasks.hold_if, gate.path, False) for _ in range(2000)]:
        future.result(60)
    held = executor.submit(tasks.hold_if, gate.path, True)
    others = [executor.submit(tasks.hold_if, gate.path, False) for _ in range(2000)]
    for future in others:
        future.result(60)
    assert not held.done()
    gate.open()
    held.result(60)


K = 1


def uses_k() -> int:
    return K


def test_a_definition_that_is_found_quickly_is_never_stale(pool: rl.Executor) -> None:
    """rule 5: a global, a default or the code changes after many calls, and the next call has it."""
    global K
    function = eval("lambda x=1: (x, k)", {"k": 1})
    for _ in range(50):
        assert pool.submit(function).result(60) == (1, 1)
    function.__globals__["k"] = 2
    assert pool.submit(function).result(60) == (1, 2)
    function.__defaults__ = (5,)
    assert pool.submit(function).result(60) == (5, 2)
    function.__globals__["k"] = [3]
    assert pool.submit(function).result(60) == (5, [3])
    function.__globals__["k"].append(4)
    assert pool.submit(function).result(60) == (5, [3, 4])
    function.__code__ = (lambda x=1: x).__code__
    assert pool.submit(function).result(60) == 5
    shadowed = eval("lambda: abs(-1)", {})
    for _ in range(50):
        assert pool.submit(shadowed).result(60) == 1
    shadowed.__globals__["abs"] = int
    assert pool.submit(shadowed).result(60) == -1


@pytest.mark.parametrize(
    "numbers",
    [
        range(0),
        range(1),
        range(10_000),
        range(9, -5_000, -3),
        range(2**63 - 5, 2**63 - 1),
        range(2**63 - 5, 2**63 + 5),
        range(-(2**63), -(2**63) + 4),
        range(2**80, 2**80 + 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("chunksize", [None, 7])
def test_ranges(ex: rl.Executor, numbers: range, chunksize: int | None) -> None:
    results = list(ex.map(tasks.echo, numbers, chunksize=chunksize))
    assert results == list(numbers) and all(type(result) is int for result in results)


def test_a_range_without_an_end_to_speak_of(make: Callable[..., rl.Executor]) -> None:
    """It takes no memory to begin with, and dropping it cancels the rest (rule 1)."""
    executor = make(lane="process")
    results = executor.map(tasks.double, range(10**15))
    assert [next(results) for _ in range(5000)] == [2 * i for i in range(5000)]
    del results
    executor.shutdown()


@pytest.mark.parametrize("how", ["close", "cancel_futures"])
def test_ending_a_range_without_an_end(make: Callable[..., rl.Executor], how: str) -> None:
    """Nothing is done, or kept, for each number that will never run."""
    executor = make(lane="process")
    results = executor.map(tasks.double, range(10**15))
    assert next(results) == 0
    if how == "close":
        results.close()  # type: ignore[attr-defined]
    executor.shutdown(cancel_futures=True)
    if how == "cancel_futures":
        with pytest.raises(CancelledError):
            for _ in results:
                pass


def test_a_finalizer_that_submits_while_a_submit_looks_for_its_function(pool: rl.Executor) -> None:
    """No lock is held while anything of the user's may run."""

    class Last:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            futures.append(pool.submit(abs, -1))

    futures: list[rl.Future[int]] = []
    for _ in range(3000):
        Last()
        futures.append(pool.submit((lambda: lambda x: x)(), 1))
    gc.collect()
    assert {future.result(60) for future in futures} == {1}


def test_a_range_that_kills_a_worker(make: Callable[..., rl.Executor]) -> None:
    """rule 8: one number is lost, and the others come."""
    executor = make(lane="process")
    results = executor.map(tasks.die_at_13, range(200))
    got = []
    with pytest.raises(rl.WorkerLost):
        for result in results:
            got.append(result)
    assert got == list(range(13))


def test_a_future_in_a_cycle_is_collected(pool: rl.Executor) -> None:
    """Futures are kept out of the collector's lists only while they can be in no cycle."""

    class Holder:
        future: object

    by_attribute, by_callback, by_result = Holder(), Holder(), Holder()
    first = pool.submit(tasks.noop)
    by_attribute.future = first
    first.holder = by_attribute  # type: ignore[attr-defined]
    second = pool.submit(time.sleep, 0.05)
    by_callback.future = second
    second.add_done_callback(lambda future, holder=by_callback: None)
    third = pool.submit(tasks.echo, [1])
    by_result.future = third
    third.result(60).append(by_result)
    first.result(60), second.result(60)
    gone = [weakref.ref(holder) for holder in (by_attribute, by_callback, by_result)]
    del first, second, third, by_attribute, by_callback, by_result
    deadline = time.monotonic() + 30
    while any(ref() is not None for ref in gone) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert [ref() for ref in gone] == [None] * 3


@pytest.mark.stress
def test_many_threads_wait_cancel_and_look_on(make: Callable[..., rl.Executor]) -> None:
    """rule 9: whoever waits reads for all; nobody's end is lost, whoever leaves first."""
    executor = make(2, lane="process")
    threads = executor.options(lane="thread")
    failed: list[BaseException] = []

    def client(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(60):
                lane = choose.choice([executor, executor, threads])
                futures = [lane.submit(tasks.double, i) for i in range(choose.randrange(1, 30))]
                what = choose.randrange(5)
                if what == 0:
                    assert {f.result(60) for f in futures} == {2 * i for i in range(len(futures))}
                elif what == 1:
                    assert sorted(f.result() for f in as_completed(futures, 60)) == [
                        2 * i for i in range(len(futures))
                    ]
                elif what == 2:
                    for future in futures:
                        if not future.cancel():
                            future.result(60)
                elif what == 3:
                    while not all(future.done() for future in futures):
                        time.sleep(0.0005)
                else:
                    assert list(lane.map(tasks.double, range(50))) == [2 * i for i in range(50)]
        except BaseException as error:
            failed.append(error)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(5)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(120)
    assert not failed and not any(thread.is_alive() for thread in clients)
