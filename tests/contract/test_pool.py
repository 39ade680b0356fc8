"""`Pool` and `ThreadPool`: the interface of `multiprocessing.pool`, and where it is better by design."""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import multiprocessing.pool
import operator
import os
import pickle
import queue
import signal
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest

import rightlane as rl
import tasks
from support import Gate, Start, eventually, holdings, lines

READ_AHEAD = 10_000
MakePool = Callable[..., rl.Pool]


@pytest.fixture(params=[rl.Pool, rl.ThreadPool], ids=["processes", "threads"])
def kind(request: pytest.FixtureRequest) -> type[rl.Pool]:
    """Both classes."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def make_pool(kind: type[rl.Pool]) -> Iterator[MakePool]:
    """Make pools that are terminated at the end of the test, whatever state it left them in."""
    yield from _makes(kind)


@pytest.fixture
def make_process_pool() -> Iterator[MakePool]:
    yield from _makes(rl.Pool)


def _makes(kind: type[rl.Pool]) -> Iterator[MakePool]:
    made: list[rl.Pool] = []

    def factory(processes: int | None = 2, **options: Any) -> rl.Pool:
        made.append(kind(processes, **options))
        return made[-1]

    yield factory
    for pool in made:
        pool.terminate()
        pool.join()


@pytest.fixture
def pool(make_pool: MakePool) -> rl.Pool:
    return make_pool()


@pytest.fixture
def processes(make_process_pool: MakePool) -> rl.Pool:
    return make_process_pool()


@pytest.fixture
def gate(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Gate]:
    """A gate that is opened before the pools are ended: see the order of fixtures."""
    for name in ("make_pool", "make_process_pool"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    gate = Gate(tmp_path)
    yield gate
    gate.open()


def occupy(pool: rl.Pool, gate: Gate, count: int) -> list[Any]:
    """Hold so many tasks at the gate; returns once all of them have started."""
    results = [pool.apply_async(tasks.hold, (gate.path, str(i), i)) for i in range(count)]
    eventually(lambda: {str(i) for i in range(count)} <= set(gate.started()))
    return results


class Unsendable:
    """Cannot be pickled; says so in a way of its own."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


# Single calls ---------------------------------------------------------------------------------------


def test_apply(pool: rl.Pool) -> None:
    assert pool.apply(tasks.double, (2,)) == 4
    assert pool.apply(tasks.everything, [1, 2], {"k": 3}) == ((1, 2), {"k": 3})
    assert pool.apply(tasks.everything) == ((), {})
    with pytest.raises(ZeroDivisionError):
        pool.apply(tasks.divide, (0,))


def test_apply_async(pool: rl.Pool) -> None:
    results = [pool.apply_async(tasks.add, (i,), {"b": i}) for i in range(500)]
    assert [result.get() for result in results] == [2 * i for i in range(500)]
    assert [result.get(timeout=60) for result in results] == [2 * i for i in range(500)], (
        "it can be asked again"
    )
    assert all(result.ready() and result.successful() for result in results)


def test_functions_without_a_name(pool: rl.Pool) -> None:
    base = 10
    assert pool.apply(lambda x: x + base, (1,)) == 11
    assert pool.map(lambda x: x + base, range(3)) == [10, 11, 12]


def test_a_result_that_is_not_ready(pool: rl.Pool, gate: Gate) -> None:
    (result,) = occupy(pool, gate, 1)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(0.01)
    assert not result.ready()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=-1)
    gate.open()
    result.wait()
    assert result.ready() and result.successful() and result.get() == 0


def test_a_timeout_of_the_tasks_own_is_no_timeout_of_the_wait(pool: rl.Pool) -> None:
    result = pool.apply_async(tasks.fail, (TimeoutError, "its own"))
    for timeout in (None, 60):
        with pytest.raises(TimeoutError, match="its own"):
            result.get(timeout)
    assert not result.successful()


def test_results_are_futures(pool: rl.Pool) -> None:
    one, many = pool.apply_async(tasks.double, (4,)), pool.map_async(tasks.double, range(3))
    assert isinstance(one, rl.Future) and isinstance(many, rl.Future)
    assert wait([one, many], timeout=60).not_done == set()
    assert one.result() == 8 and many.result() == [0, 2, 4]
    assert one.exception() is None and many.exception() is None
    failed = pool.map_async(tasks.divide, [1, 0])
    assert isinstance(failed.exception(60), ZeroDivisionError)


# Maps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 7, 5000])
def test_map_keeps_order(pool: rl.Pool, chunksize: int | None) -> None:
    items = range(3000)
    doubled = [2 * i for i in items]
    assert pool.map(tasks.double, items, chunksize) == doubled
    assert pool.map(tasks.double, list(items), chunksize=chunksize) == doubled
    assert pool.map(tasks.double, iter(items), chunksize) == doubled
    assert pool.map_async(tasks.double, items, chunksize).get() == doubled
    assert pool.starmap(tasks.add, zip(items, items, strict=True), chunksize) == doubled
    assert pool.starmap_async(tasks.add, [[i, i] for i in items], chunksize).get() == doubled
    assert list(pool.imap(tasks.double, items, chunksize or 1)) == doubled
    assert list(pool.imap(tasks.double, iter(items), chunksize or 1)) == doubled
    assert sorted(pool.imap_unordered(tasks.double, iter(items), chunksize or 1)) == doubled
    assert sorted(pool.imap_unordered(tasks.double, set(items), chunksize or 1)) == doubled


def test_maps_of_nothing(pool: rl.Pool) -> None:
    assert pool.map(tasks.double, []) == []
    assert pool.map(tasks.double, iter(())) == []
    assert pool.starmap(tasks.add, []) == []
    assert pool.map_async(tasks.double, [], chunksize=1).get(60) == []
    assert list(pool.imap(tasks.double, ())) == list(pool.imap(tasks.double, iter(()))) == []
    assert list(pool.imap_unordered(tasks.double, iter(()), 5)) == []


def test_starmap_takes_whatever_holds_arguments(pool: rl.Pool) -> None:
    assert pool.starmap(tasks.everything, [(1,), [2, 3], "ab", iter([4])]) == [
        ((1,), {}),
        ((2, 3), {}),
        (("a", "b"), {}),
        ((4,), {}),
    ]


def test_large_values(pool: rl.Pool) -> None:
    blobs = [bytes([i]) * 300_000 for i in range(40)]
    assert pool.map(tasks.echo, blobs) == blobs
    assert list(pool.imap(tasks.echo, iter(blobs))) == blobs
    assert pool.apply(tasks.echo, (blobs,)) == blobs


def test_a_map_raises_its_first_error_when_all_have_ended(pool: rl.Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def run(i: int) -> None:
        if i in (3, 40):
            raise KeyError(i)
        tasks.append(log, i)

    result = pool.map_async(run, range(100), chunksize=25)
    for _ in range(2):
        with pytest.raises(KeyError, match="3"):
            result.get()
    assert result.ready() and not result.successful()
    assert sorted(map(int, lines(log))) == [i for i in range(100) if i not in (3, 40)]
    with pytest.raises(KeyError, match="3"):
        pool.map(run, range(100))


def test_a_map_can_be_waited_for_in_parts(pool: rl.Pool, gate: Gate) -> None:
    result = pool.map_async(tasks.hold, [gate.path], chunksize=1)
    eventually(gate.started)
    for _ in range(3):
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(0.01)
        result.wait(0.01)
        assert not result.ready()
    with pytest.raises(TimeoutError):
        result.result(0.01)
    assert not result.cancel() and not result.cancelled()
    gate.open()
    assert result.get() == [None]


def test_several_threads_may_wait_for_one_map(pool: rl.Pool, gate: Gate) -> None:
    result = pool.starmap_async(tasks.hold, [(gate.path, i, i) for i in range(50)])
    got: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    threads = [threading.Thread(target=lambda: got.put(result.get(60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join()
    assert [got.get_nowait() for _ in threads] == [list(range(50))] * 4


def test_nothing_runs_if_the_input_of_a_map_raises(pool: rl.Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def source() -> Iterator[tuple[str, int]]:
        yield from [(log, i) for i in range(1000)]
        raise LookupError("the input broke")

    for start in (pool.starmap, pool.starmap_async):
        with pytest.raises(LookupError, match="the input broke") as raised:
            start(tasks.append, source())
        assert raised.value.__cause__ is None
    assert pool.map(tasks.double, [1]) == [2]
    assert lines(log) == []


# imap -----------------------------------------------------------------------------------------------


def test_a_result_can_be_had_before_the_input_ends(pool: rl.Pool) -> None:
    """The input answers to the results: neither can wait for the other's end."""
    asked: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for start in (pool.imap, pool.imap_unordered):
        asked.put(1)
        results = start(tasks.double, iter(asked.get, None))
        value = 0
        for _ in range(200):
            value = next(results)
            asked.put(value % 1000 + 1)
        asked.put(None)
        assert len(list(results)) == 1


def test_endless_inputs_are_read_ahead_with_a_bound(pool: rl.Pool) -> None:
    read = itertools.count()
    source = (next(read) for _ in itertools.count())
    results = pool.imap(tasks.double, source)
    assert [next(results) for _ in range(3 * READ_AHEAD)] == [2 * i for i in range(3 * READ_AHEAD)]
    assert operator.index(next(read)) <= 4 * READ_AHEAD + 1


def test_nobody_has_to_iterate(pool: rl.Pool, tmp_path: Path) -> None:
    """What was given to a pool runs, whether or not anybody takes or keeps the results; `join` reads on."""
    log = str(tmp_path / "log")
    count = READ_AHEAD + 2000
    append = "append"

    def work(i: int) -> None:
        if i % 100 == 0:
            getattr(tasks, append)(log, i)

    kept = pool.imap(work, iter(range(count)))
    pool.imap_unordered(work, iter(range(count, 2 * count)))
    partly = pool.imap(work, iter(range(2 * count, 3 * count)))
    next(partly)
    del partly
    pool.close()
    pool.join()
    assert sorted(map(int, lines(log))) == list(range(0, 3 * count, 100))
    assert list(kept) == [None] * count


def test_unordered_results_come_as_they_are_ready(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    held = [(gate.path if i == 0 else "", i) for i in range(20)]

    def pass_or_hold(pair: tuple[str, int]) -> int:
        if pair[0]:
            tasks.hold(pair[0])
        return pair[1]

    results = pool.imap_unordered(pass_or_hold, held)
    assert sorted(next(results) for _ in range(19)) == list(range(1, 20))
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(0.01)
    gate.open()
    assert results.next(timeout=60) == 0
    with pytest.raises(StopIteration):
        results.next()


def test_next_can_be_asked_again_after_a_timeout(pool: rl.Pool, gate: Gate) -> None:
    results = pool.imap(lambda i: tasks.hold(gate.path, i, i), iter(range(2)))
    for _ in range(3):
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout=0.01)
    gate.open()
    assert [results.next(60), results.next(60)] == [0, 1]
    for _ in range(2):
        with pytest.raises(StopIteration):
            results.next(0)
        assert list(results) == []


@pytest.mark.parametrize("lazy", [False, True], ids=["list", "generator"])
def test_iteration_goes_on_after_an_error(pool: rl.Pool, lazy: bool) -> None:
    """Errors stay per item, whatever the chunk size (rule 8)."""
    items = [1, 0, 2, 0, 5]
    for chunksize in (1, 3):
        results = pool.imap(tasks.divide, iter(items) if lazy else items, chunksize)
        seen: list[object] = []
        for _ in items:
            try:
                seen.append(next(results))
            except ZeroDivisionError:
                seen.append("error")
        assert seen == [10, "error", 5, "error", 2]
        assert list(results) == []


def test_the_error_of_an_input_comes_in_its_place(pool: rl.Pool) -> None:
    def source() -> Iterator[int]:
        yield from range(7)
        raise LookupError("the input broke")

    for chunksize, good in ((1, 7), (2, 6), (4, 4), (100, 0)):
        results = pool.imap(tasks.double, source(), chunksize)
        assert [next(results) for _ in range(good)] == [2 * i for i in range(good)]
        with pytest.raises(LookupError, match="the input broke") as raised:
            next(results)
        assert raised.value.__cause__ is None
        assert list(results) == []
    unordered = pool.imap_unordered(tasks.double, source())
    assert sorted(next(unordered) for _ in range(7)) == [2 * i for i in range(7)]
    with pytest.raises(LookupError):
        next(unordered)


def test_several_threads_may_share_an_iterator(pool: rl.Pool) -> None:
    for items in (range(5000), iter(range(5000))):
        results = pool.imap(tasks.double, items)
        got: list[list[int]] = [[] for _ in range(4)]
        threads = [threading.Thread(target=mine.extend, args=(results,)) for mine in got]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(mine == sorted(mine) for mine in got), "each thread sees the order"
        assert sorted(itertools.chain(*got)) == [2 * i for i in range(5000)]


def test_inputs_are_closed_when_they_are_read(pool: rl.Pool) -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            closed.set()

    assert list(pool.imap(tasks.double, source())) == [0, 2, 4]
    assert closed.wait(60)


# Callbacks ------------------------------------------------------------------------------------------


def test_callbacks_get_values_and_errors(pool: rl.Pool) -> None:
    """A result is ready when its callback has returned, so that what it leaves behind is there."""
    got: list[Any] = []
    both: dict[str, Any] = {"callback": got.append, "error_callback": lambda error: got.append(type(error))}
    assert pool.apply_async(tasks.double, (2,), **both).get() == 4
    assert got.pop() == 4
    pool.map_async(tasks.double, range(3), **both).wait()
    assert got.pop() == [0, 2, 4]
    assert pool.starmap_async(tasks.add, [(1, 2)], **both).get(60) == [3]
    assert got.pop() == [3]
    for result in (
        pool.apply_async(tasks.divide, (0,), **both),
        pool.map_async(tasks.divide, [1, 0], **both),
    ):
        with pytest.raises(ZeroDivisionError):
            result.get()
        assert got.pop() is ZeroDivisionError
    assert pool.apply_async(tasks.double, (2,), error_callback=got.append).get() == 4
    with pytest.raises(ZeroDivisionError):
        pool.apply_async(tasks.divide, (0,), callback=got.append).get()
    assert got == []


def test_callbacks_never_run_in_the_caller(pool: rl.Pool) -> None:
    """Neither in who waits nor in who calls, though the call fails at once: they may hold a lock (rule 9)."""
    lock = threading.Lock()
    ran_in: list[int] = []

    def wants_the_lock(_: object) -> None:
        with lock:
            ran_in.append(threading.get_ident())

    both = {"callback": wants_the_lock, "error_callback": wants_the_lock}
    with lock:
        results: list[Any] = [pool.apply_async(tasks.double, (1,), **both)]
        results.append(pool.apply_async(tasks.double, (Unsendable(RuntimeError("no")),), **both))
        results.append(pool.map_async(tasks.double, [], **both))
        results.append(pool.map_async(tasks.double, range(10), **both))
        assert pool.map(tasks.double, range(100)) == [2 * i for i in range(100)]
        assert not any(result.ready() for result in results)
    for result in results:
        result.wait()
    assert len(ran_in) == 4 and threading.get_ident() not in ran_in


def test_a_callback_that_raises_is_logged_and_stops_nothing(
    pool: rl.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """The standard pool's thread dies of it, and everything hangs."""
    caplog.set_level(logging.ERROR)
    got: list[int] = []

    def breaks(_: object) -> None:
        raise LookupError("the callback broke")

    assert pool.apply_async(tasks.double, (1,), callback=breaks).get() == 2
    assert pool.apply_async(tasks.double, (2,), callback=got.append).get() == 4
    assert got == [4]
    assert "the callback broke" in caplog.text


def test_a_callback_may_ask_for_its_own_result_and_submit(pool: rl.Pool) -> None:
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def again(_: object) -> None:
        results.put(first.get())
        results.put(pool.apply_async(tasks.double, (10,)))

    allowed = threading.Event()
    first = pool.apply_async(tasks.double, (1,), callback=lambda value: (allowed.wait(60), again(value)))
    allowed.set()
    first.wait()
    assert results.get_nowait() == 2 and results.get_nowait().get() == 20


def test_join_waits_for_callbacks(pool: rl.Pool) -> None:
    allowed, got = threading.Event(), []

    def slow(value: int) -> None:
        assert allowed.wait(60)
        got.append(value)

    for i in range(20):
        pool.apply_async(tasks.double, (i,), callback=slow)
    threading.Timer(0.05, allowed.set).start()
    pool.close()
    pool.join()
    assert sorted(got) == [2 * i for i in range(20)]


# Endings --------------------------------------------------------------------------------------------


def test_a_closed_pool_takes_nothing_and_finishes_what_it_has(pool: rl.Pool, gate: Gate) -> None:
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    results = occupy(pool, gate, 2)
    results.append(pool.apply_async(tasks.double, (2,)))
    lazy = pool.imap(tasks.double, (i for i in range(100)))
    pool.close()
    pool.close()
    for refused in (
        lambda: pool.apply(tasks.noop),
        lambda: pool.apply_async(tasks.noop),
        lambda: pool.map(tasks.noop, [1]),
        lambda: pool.map_async(tasks.noop, [1]),
        lambda: pool.starmap(tasks.noop, [(1,)]),
        lambda: pool.starmap_async(tasks.noop, [(1,)]),
        lambda: pool.imap(tasks.noop, [1]),
        lambda: pool.imap_unordered(tasks.noop, [1]),
        lambda: pool.__enter__(),
    ):
        with pytest.raises(ValueError, match="Pool not running"):
            refused()  # type: ignore[no-untyped-call]
    gate.open()
    pool.join()
    pool.join()
    assert [result.get() for result in results] == [0, 1, 4]
    assert list(lazy) == [2 * i for i in range(100)]


def test_terminate_ends_everything_with_an_error(make_process_pool: MakePool, gate: Gate) -> None:
    """The standard pool leaves the results hanging. Here each comes to its end (invariant 1)."""
    pool = make_process_pool(2)
    running = occupy(pool, gate, 2)
    told: list[BaseException] = []
    waiting = [pool.apply_async(tasks.noop, error_callback=told.append) for _ in range(20)]
    whole = pool.map_async(tasks.noop, range(1000))
    iterated = pool.imap(tasks.noop, range(100))
    lazy = pool.imap_unordered(tasks.noop, itertools.count())
    pids = pool._engine.worker_pids()
    pool.terminate()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids), "they are gone when it returns"
    pool.join()
    for result in running:
        with pytest.raises(rl.WorkerLost):
            result.get(60)
    for result in waiting:
        with pytest.raises(CancelledError):
            result.get(60)
    assert [type(error) for error in told] == [CancelledError] * 20
    with pytest.raises(CancelledError):
        whole.get(60)
    for _ in range(100):
        with pytest.raises(CancelledError):
            iterated.next(60)
    assert list(iterated) == []
    with pytest.raises(CancelledError):
        list(lazy)
    pool.terminate()


def test_terminate_cannot_end_a_thread(gate: Gate) -> None:
    pool = rl.ThreadPool(1)
    (running,) = occupy(pool, gate, 1)
    waiting = pool.map_async(tasks.noop, range(10))
    pool.terminate()
    with pytest.raises(CancelledError):
        waiting.get(60)
    assert not running.ready()
    gate.open()
    pool.join()
    assert running.get() == 0


def test_with_terminates(pool: rl.Pool) -> None:
    with pool as entered:
        assert entered is pool
        assert pool.map(tasks.double, [1]) == [2]
    pool.join()
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass


def test_nothing_is_left(kind: type[rl.Pool]) -> None:
    before = holdings()
    for _ in range(3):
        pool = kind(2)
        pool.map(tasks.double, range(100))
        list(pool.imap(tasks.double, iter(range(100))))
        pool.apply_async(tasks.double, (1,), callback=tasks.noop).get()
        pool.close()
        pool.join()

    def back_to_before() -> bool:
        now = holdings()
        more = Counter(now.descriptors) - Counter(before.descriptors)
        # What earlier tests left may have ended meanwhile.
        return not more and now.threads <= before.threads and set(now.children) <= set(before.children)

    eventually(back_to_before, what=f"the holdings of before, {before}")


def test_a_pool_that_nobody_holds_finishes(kind: type[rl.Pool], gate: Gate) -> None:
    pool = kind(1)
    (running,) = occupy(pool, gate, 1)
    waiting = pool.apply_async(tasks.double, (3,))
    lazy = pool.imap(tasks.double, (i for i in range(5)))
    watched = weakref.ref(pool)
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool
        gc.collect()
    assert watched() is None
    gate.open()
    assert running.get() == 0 and waiting.get() == 6 and list(lazy) == [0, 2, 4, 6, 8]


def test_no_warning_about_a_pool_that_was_closed(kind: type[rl.Pool]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for end in (kind.close, kind.terminate):
            pool = kind(1)
            end(pool)
            pool.join()
            del pool
            gc.collect()


@pytest.mark.parametrize("closed", [False, True], ids=["running", "closed"])
def test_exit_of_the_interpreter(start: Start, kind: type[rl.Pool], tmp_path: Path, closed: bool) -> None:
    """A running pool is terminated, as the standard one is; a closed one finishes what it was given."""
    script = start(
        """
        import itertools, sys, threading, time
        import rightlane as rl, tasks

        log, kind, closed = sys.argv[1], getattr(rl, sys.argv[2]), sys.argv[3] == "True"
        pool = kind(2)
        blocked = threading.Event()

        def blocks():
            yield 1
            blocked.wait()

        assert next(pool.imap(tasks.double, blocks())) == 2
        unread = pool.imap(tasks.double, itertools.count())
        assert next(unread) == 0
        slow = pool.starmap_async(tasks.append_slowly, [(log, i) for i in range(300)], 1)
        if closed:
            pool.close()
        print("end")
        """,
        tmp_path / "log",
        kind.__name__,
        closed,
    )
    assert script.succeeds() == "end\n"
    assert "Traceback" not in script.err
    written = len(lines(tmp_path / "log"))
    assert written == 300 if closed else written < 300


# Faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["exit", "signal"])
def test_a_dead_worker_costs_its_task(processes: rl.Pool, end: str) -> None:
    """The standard pool hangs. It is also the error that the standard executor raises."""
    die = (os._exit, (3,)) if end == "exit" else (tasks.die_by_signal, (signal.SIGKILL,))
    lost = processes.apply_async(*die)
    good = [processes.apply_async(tasks.double, (i,)) for i in range(50)]
    with pytest.raises(rl.WorkerLost) as raised:
        lost.get(60)
    assert (raised.value.exit_code, raised.value.signal) == ((3, None) if end == "exit" else (None, 9))
    assert [result.get() for result in good] == [2 * i for i in range(50)]
    with pytest.raises(rl.WorkerLost):
        processes.map(tasks.die_at_13, range(100), chunksize=50)
    results = processes.imap(tasks.die_at_13, range(100))
    assert [next(results) for _ in range(13)] == list(range(13))
    with pytest.raises(rl.WorkerLost):
        next(results)
    assert list(results) == list(range(14, 100))


def test_a_result_that_cannot_be_pickled(processes: rl.Pool) -> None:
    told: list[BaseException] = []
    for result in (
        processes.apply_async(tasks.lock_holder, error_callback=told.append),
        processes.map_async(tasks.lock_holder, [None], error_callback=told.append),
    ):
        with pytest.raises(multiprocessing.pool.MaybeEncodingError) as raised:
            result.get()
        error = raised.value
        assert isinstance(error, rl.SerializationError)
        assert error.path.startswith("result") and error.path == error.value and "lock" in error.exc
        assert isinstance(told.pop(), multiprocessing.pool.MaybeEncodingError)
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.value) == (type(error), str(error), error.value)
    assert processes.apply(tasks.double, (1,)) == 2


class _OwnError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), TypeError("no"), AttributeError("no"), _OwnError(1, 2)], ids=repr
)
def test_an_argument_that_cannot_be_pickled(processes: rl.Pool, error: Exception) -> None:
    """What the pickler raised, as in the standard pool, and a SerializationError too."""
    bad = Unsendable(error)
    for start in (
        lambda: processes.apply(tasks.double, (bad,)),
        lambda: processes.map(tasks.double, [1, bad]),
        lambda: list(processes.imap(tasks.double, iter([1, bad]))),
    ):
        with pytest.raises(type(error)) as raised:
            start()
        assert isinstance(raised.value, rl.SerializationError)
        assert raised.value.path and raised.value.__cause__ is error
        assert "ThreadPool" in str(raised.value)
        copy = pickle.loads(pickle.dumps(raised.value))
        assert type(copy) is type(raised.value) and str(copy) == str(raised.value)
    assert processes.apply(tasks.double, (1,)) == 2


def test_errors_carry_the_remote_traceback(processes: rl.Pool) -> None:
    for start in (
        lambda: processes.apply(tasks.divide, (0,)),
        lambda: processes.map(tasks.divide, [0]),
        lambda: next(processes.imap(tasks.divide, [0])),
    ):
        with pytest.raises(ZeroDivisionError) as raised:
            start()
        cause = raised.value.__cause__
        assert type(cause) is multiprocessing.pool.RemoteTraceback
        assert "in divide" in cause.tb  # type: ignore[attr-defined]


def test_errors_of_threads_are_the_objects_raised() -> None:
    error = ValueError("this one")

    def fail(_: object = None) -> None:
        raise error

    with rl.ThreadPool(1) as pool:
        for start in (
            lambda: pool.apply(fail),
            lambda: pool.map(fail, [0]),
            lambda: next(pool.imap(fail, [0])),
        ):
            with pytest.raises(ValueError) as raised:
                start()
            assert raised.value is error and error.__cause__ is None


def test_an_initializer_that_raises_breaks_the_pool(make_pool: MakePool) -> None:
    """The standard pool starts workers for ever."""
    pool = make_pool(1, initializer=tasks.fail, initargs=(LookupError, "the initializer broke"))
    with pytest.raises(rl.BrokenExecutor) as raised:
        pool.apply_async(tasks.noop).get(60)
    assert isinstance(raised.value.__cause__, LookupError)


def test_initializer(make_pool: MakePool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    pool = make_pool(2, initializer=tasks.append, initargs=[log, "begun"])
    assert pool.map(tasks.double, range(100)) == [2 * i for i in range(100)]
    assert set(lines(log)) == {"begun"} and len(lines(log)) <= 2


@pytest.mark.parametrize("limit", [1, 3])
def test_maxtasksperchild(make_process_pool: MakePool, limit: int) -> None:
    """No worker runs more items than that, however they were batched."""
    pool = make_process_pool(2, maxtasksperchild=limit)
    pids = pool.map(tasks.here, range(20), chunksize=10)
    pids += [result.get() for result in [pool.apply_async(tasks.here) for _ in range(10)]]
    pids += pool.imap(tasks.here, iter(range(10)))
    assert len(pids) == 40 and max(map(pids.count, pids)) <= limit
    pool.close()
    pool.join()


# Arguments ------------------------------------------------------------------------------------------


def test_bad_arguments_of_pools(kind: type[rl.Pool]) -> None:
    for number in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            kind(number)
    with pytest.raises(TypeError):
        kind(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initializer must be a callable"):
        kind(1, 3)  # type: ignore[arg-type]
    for limit in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="maxtasksperchild must be a positive int or None"):
            rl.Pool(1, maxtasksperchild=limit)  # type: ignore[arg-type]
    context = multiprocessing.get_context("spawn")
    pool = rl.Pool(1, context=context)
    assert pool._ctx is context
    pool.terminate()


def test_bad_arguments_of_calls(pool: rl.Pool) -> None:
    for call in (
        lambda: pool.apply(3),  # type: ignore[arg-type]
        lambda: pool.apply_async(tasks.coroutine_function),
        lambda: pool.apply_async(tasks.noop, 3),  # type: ignore[arg-type]
        lambda: pool.map(None, [1]),  # type: ignore[arg-type]
        lambda: pool.map(tasks.noop, 3),  # type: ignore[arg-type]
        lambda: pool.starmap(tasks.noop, [3]),  # type: ignore[list-item]
        lambda: pool.imap(tasks.noop, 3),  # type: ignore[arg-type]
        lambda: pool.imap(None, iter([1])),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            call()
    for chunksize in (0, -3):
        with pytest.raises(ValueError, match=r"Chunksize must be 1\+"):
            pool.imap(tasks.noop, [1], chunksize)
        with pytest.raises(ValueError, match=r"Chunksize must be 1\+"):
            pool.imap_unordered(tasks.noop, iter([1]), chunksize)
    assert pool.apply(tasks.double, (1,)) == 2


def test_pools_and_results_are_not_pickled(pool: rl.Pool) -> None:
    with pytest.raises(
        NotImplementedError, match="pool objects cannot be passed between processes or pickled"
    ):
        pickle.dumps(pool)


def test_a_pool_shows_its_state_and_its_workers(pool: rl.Pool, kind: type[rl.Pool]) -> None:
    assert repr(pool) == f"<rightlane._pool.{kind.__name__} state=RUN pool_size=2>"
    assert isinstance(pool, getattr(multiprocessing.pool, kind.__name__))
    workers = pool._pool
    assert len(workers) == 2
    pool.close()
    assert "state=CLOSE" in repr(pool)


def test_workers_can_be_watched_and_killed(processes: rl.Pool) -> None:
    first, second = processes._pool
    assert first.is_alive() and second.is_alive() and first.pid != second.pid
    assert {first.pid, second.pid} == set(processes._engine.worker_pids())
    first.kill()
    second.terminate()
    eventually(lambda: not first.is_alive() and not second.is_alive())
    first.kill()
    assert processes.apply(tasks.double, (1,)) == 2


# Forks and managers ---------------------------------------------------------------------------------


def test_a_forked_child_has_an_empty_pool(start: Start, kind: type[rl.Pool], tmp_path: Path) -> None:
    script = start(
        """
        import concurrent.futures, os, sys, threading
        import rightlane as rl, tasks

        pool = getattr(rl, sys.argv[1])(2)
        gate = sys.argv[2]
        pending = pool.apply_async(tasks.hold, (gate, "0", 1), callback=tasks.noop)
        whole = pool.map_async(tasks.hold, [gate] * 3)
        lazy = pool.imap(tasks.double, iter(threading.Event().wait, None))
        child = os.fork()
        if not child:
            for ask in (pending.result, whole.result, lazy.next):
                try:
                    ask(60)
                except concurrent.futures.CancelledError:
                    pass
                else:
                    os._exit(1)
            if pool.map(tasks.double, range(10)) != [2 * i for i in range(10)]:
                os._exit(2)
            pool.close()
            pool.join()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        open(gate, "w").close()
        print(pending.get(), whole.get())
        pool.terminate()
        """,
        kind.__name__,
        tmp_path / "gate",
    )
    assert script.succeeds() == "1 [None, None, None]\n"


def test_what_was_read_and_never_sent_ends_with_terminate() -> None:
    """invariant 1: an item that cannot be pickled counts those before it as read, though none was sent."""
    pool, read, go_on = rl.Pool(1), threading.Event(), threading.Event()

    def items() -> Iterator[object]:
        for _ in range(100):
            yield 0.05
        yield 0.0
        yield threading.Lock()
        read.set()
        go_on.wait(60)

    results = pool.imap(time.sleep, items())
    assert read.wait(60)
    pool.terminate()
    ends = []
    while True:
        try:
            ends.append(results.next(timeout=60))
        except StopIteration:
            break
        except multiprocessing.TimeoutError:
            raise AssertionError("the results do not end") from None
        except (CancelledError, rl.WorkerLost, rl.SerializationError) as error:
            ends.append(error)
    go_on.set()
    assert len(ends) == 103, "102 items, and the input that was cut short"
    pool.join()


def raise_what_cannot_be_sent() -> None:
    error = ValueError("x")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def test_an_exception_that_cannot_be_sent() -> None:
    with rl.Pool(1) as pool:
        with pytest.raises(multiprocessing.pool.MaybeEncodingError) as raised:
            pool.apply(raise_what_cannot_be_sent)
        assert isinstance(raised.value, rl.SerializationError)
        assert isinstance(raised.value.__cause__, ValueError)


def test_initializers_are_answered_before_the_first_task(start: Start) -> None:
    """rule 21: they may ask for the resource tracker of the user's process."""
    script = start("""
        import rightlane as rl
        from multiprocessing.shared_memory import SharedMemory
        from support import eventually

        def touch(name, started):
            memory = SharedMemory(name=name)
            memory.close()
            open(started, "a").write("+")

        import os, sys, tempfile
        memory = SharedMemory(create=True, size=10)
        started = os.path.join(tempfile.mkdtemp(), "started")
        pool = rl.Pool(2, touch, (memory.name, started))
        assert len(pool._pool) == 2
        eventually(lambda: os.path.exists(started) and open(started).read() == "++")
        pool.close()
        pool.join()
        memory.close()
        memory.unlink()
    """)
    script.succeeds()
