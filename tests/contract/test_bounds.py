"""invariant 8: what is pending is bounded, in tasks and in bytes; who submits more waits, or is told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import queue
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import rightlane as rl
import tasks
from buffers import MIB, Array
from support import Gate, available_memory_bytes, eventually

Make = Callable[..., rl.Executor]

# So little memory that the least bound in bytes is the bound.
NO_MEMORY = 0
LEAST_BYTES = 16 * MIB


def pending(executor: Any) -> tuple[int, int]:
    count, size = executor._engine.pending
    return int(count), int(size)


def nothing_pending(executor: Any) -> None:
    """An end is seen a moment before what was kept for it is given back."""
    eventually(lambda: pending(executor) == (0, 0), what=f"an end of what is pending, {pending(executor)},")


class Submitter(threading.Thread):
    """Submits in a thread of its own, as it waits; says what became of it, and if the gate was open then."""

    def __init__(self, executor: Any, gate: Gate) -> None:
        super().__init__(daemon=True)
        self.executor = executor
        self.gate = gate
        self.future: rl.Future[Any] | None = None
        self.error: BaseException | None = None
        self.was_open = False
        self.start()
        eventually(lambda: sleeps(self) or not self.is_alive())

    def run(self) -> None:
        try:
            self.future = self.executor.submit(tasks.double, 21)
        except BaseException as error:
            self.error = error
        self.was_open = os.path.exists(self.gate.path)


def sleeps(thread: threading.Thread) -> bool:
    with open(f"/proc/self/task/{thread.native_id}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def fill(executor: rl.Executor, gate: Gate, queued: int) -> list[rl.Future[Any]]:
    """Two tasks that run, and so many behind them: all there may be."""
    futures = gate.occupy(executor, 2)
    futures += [executor.submit(tasks.double, i) for i in range(queued)]
    assert pending(executor)[0] == queued + 2
    return futures


@pytest.mark.parametrize("queued", [0, 1, 30])
def test_submit_waits_for_room(make: Make, busy_lane: str, gate: Gate, queued: int) -> None:
    ex = make(2, lane=busy_lane, max_pending=queued + 2)
    fill(ex, gate, queued)
    threads = [Submitter(ex, gate) for _ in range(3)]
    assert pending(ex)[0] == queued + 2 and all(thread.is_alive() for thread in threads)
    gate.open()
    for thread in threads:
        thread.join(60)
        assert thread.was_open and thread.future and thread.future.result(60) == 42
    nothing_pending(ex)


def test_try_submit_does_not(make: Make, busy_lane: str, gate: Gate) -> None:
    ex = make(2, lane=busy_lane, max_pending=3)
    futures = fill(ex, gate, 1)
    for view in (ex, ex.options(lane="thread"), ex.options(lane="process")):
        with pytest.raises(rl.QueueFull, match=r"3 tasks .* at most 3") as caught:
            view.try_submit(tasks.double, 1)
        assert isinstance(caught.value, queue.Full) and isinstance(caught.value, rl.RightlaneError)
    assert pending(ex)[0] == 3 and ex.options(lane="inline").try_submit(tasks.double, 4).result() == 8
    gate.open()
    for future in futures:
        future.result(60)
    assert ex.try_submit(tasks.double, x=1).result(60) == 2, "whoever has seen an end finds room"
    assert [ex.try_submit(divmod, 7, i).result(60) for i in (1, 2)] == [(7, 0), (3, 1)]


def test_there_is_room_as_soon_as_an_end_is_seen(make: Make, busy_lane: str) -> None:
    ex = make(1, lane=busy_lane, max_pending=1)
    for i in range(300):
        assert ex.try_submit(tasks.double, i).result(60) == 2 * i


def test_many_threads_never_exceed_the_bound(make: Make, busy_lane: str) -> None:
    ex = make(2, lane=busy_lane, max_pending=7)
    most: list[int] = []

    def submit(first: int) -> None:
        futures = []
        for i in range(first, first + 200):
            futures.append(ex.submit(tasks.double, i))
            most.append(pending(ex)[0])
        assert [future.result(60) for future in futures] == [2 * i for i in range(first, first + 200)]

    threads = [threading.Thread(target=submit, args=(200 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(most) == 800 and max(most) <= 7
    nothing_pending(ex)


def test_inline_is_never_full(make: Make) -> None:
    ex = make(1, lane="inline", max_pending=1)
    assert [ex.try_submit(tasks.double, i).result() for i in range(3)] == [0, 2, 4]
    assert list(ex.map(tasks.double, range(3))) == [0, 2, 4] and pending(ex) == (0, 0)


def test_cancelling_makes_room(make: Make, busy_lane: str, gate: Gate) -> None:
    ex = make(2, lane=busy_lane, max_pending=3)
    queued = fill(ex, gate, 1)[-1]
    waiting = Submitter(ex, gate)
    assert queued.cancel()
    waiting.join(60)
    assert waiting.future and not waiting.was_open and pending(ex)[0] == 3


@pytest.mark.parametrize("how", [{"wait": False}, {"wait": False, "kill": True}], ids=["plain", "kill"])
def test_shutdown_tells_who_waits(make: Make, busy_lane: str, gate: Gate, how: dict[str, bool]) -> None:
    ex = make(2, lane=busy_lane, max_pending=2)
    fill(ex, gate, 0)
    threads = [Submitter(ex, gate) for _ in range(2)]
    ex.shutdown(**how)
    for thread in threads:
        thread.join(60)
        assert isinstance(thread.error, RuntimeError) and "after shutdown" in str(thread.error)
    gate.open()


def test_a_broken_executor_tells_who_waits(make: Make, gate: Gate) -> None:
    ex = make(2, lane="thread", initializer=tasks.fail, initargs=(ValueError,), max_pending=1)
    futures = []
    with pytest.raises(rl.BrokenExecutor):
        for i in range(10):
            futures.append(ex.submit(tasks.double, i))
    for future in futures:
        assert isinstance(future.exception(60), rl.BrokenExecutor)
    nothing_pending(ex)


def kill_one(executor: Any) -> None:
    for pid in executor._engine.worker_pids()[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.stress
def test_deaths_make_room(make: Make, gate: Gate) -> None:
    """Every future ends, whatever is killed while submitters wait, and nothing stays counted."""
    ex = make(2, lane="process", max_pending=4)
    futures: list[rl.Future[Any]] = []

    def submit() -> None:
        for i in range(150):
            futures.append(ex.submit(tasks.append_slowly, os.devnull, i))

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        done = len(futures)
        eventually(lambda done=done: len(futures) > done + 5 or len(futures) == 300)
        kill_one(ex)
    for thread in threads:
        thread.join(120)
    errors = [future.exception(60) for future in futures]
    assert len(errors) == 300 and all(error is None or isinstance(error, rl.WorkerLost) for error in errors)
    nothing_pending(ex)


@pytest.mark.parametrize("kind", ["callback", "loop", "lane"])
def test_who_must_not_wait_is_told(make: Make, busy_lane: str, gate: Gate, kind: str) -> None:
    """On the completion thread, where an event loop runs, and in a task of the executor's own threads."""
    ex = make(2, lane=busy_lane, max_pending=3)
    told: list[BaseException] = []

    def attempt(*_: object) -> None:
        while pending(ex)[0] < 3:
            ex.try_submit(tasks.hold, gate.path, "more")
        for call in (
            lambda: ex.submit(tasks.double, 1),
            lambda: ex.map(tasks.double, [1, 2]),
            lambda: ex.map(tasks.double, iter([1, 2])),
        ):
            try:
                call()  # type: ignore[no-untyped-call]
            except rl.QueueFull as error:
                told.append(error)

    if kind == "callback":
        ex.submit(tasks.hold, gate.path + "first").add_done_callback(attempt)
        with open(gate.path + "first", "w"):
            pass
    elif kind == "loop":

        async def main() -> None:
            attempt()

        asyncio.run(main())
    else:
        ex.options(lane="thread").submit(attempt)
    eventually(lambda: len(told) == 3)
    wanted = {"callback": "a callback", "loop": "an event loop", "lane": "a task"}[kind]
    assert all(str(error).startswith(f"{wanted} must not wait") for error in told)
    gate.open()
    eventually(lambda: pending(ex) == (0, 0))
    assert ex.submit(tasks.double, 3).result(60) == 6


def test_a_task_may_wait_for_another_executor(make: Make, gate: Gate) -> None:
    ex, other = make(1, lane="thread"), make(2, lane="process", max_pending=2)
    fill(other, gate, 0)
    future = ex.submit(other.submit, tasks.double, 4)
    assert not future.done()
    gate.open()
    assert future.result(60).result(60) == 8


@pytest.mark.parametrize("kind", ["callback", "loop"])
def test_the_standard_pools_never_refuse(gate: Gate, kind: str) -> None:
    """Where their caller must not wait, calls are accepted beyond the bound."""
    large = b"x" * LEAST_BYTES

    def fill_up(pool: Any) -> list[Any]:
        return [pool.submit(tasks.hold, gate.path, i, large) for i in range(4)]

    with rl.futures.ProcessPoolExecutor(2) as pool:
        pool._engine.assume_memory(NO_MEMORY)
        futures: list[Any] = []
        if kind == "loop":

            async def main() -> None:
                futures.extend(fill_up(pool))

            asyncio.run(main())
        else:
            pool.submit(tasks.hold, gate.path + "first").add_done_callback(
                lambda _: futures.extend(fill_up(pool))
            )
            with open(gate.path + "first", "w"):
                pass
        eventually(lambda: len(futures) == 4)
        assert pending(pool)[1] > 4 * LEAST_BYTES
        gate.open()
        assert all(future.result(60) == large for future in futures)
        nothing_pending(pool)


# --- bytes ---


def test_bytes_are_bounded_and_one_alone_is_always_taken(make: Make, gate: Gate) -> None:
    ex = make(2, lane="process")
    ex._engine.assume_memory(NO_MEMORY)
    assert ex._engine.most_pending == (1_000_000, LEAST_BYTES)
    huge = bytes(range(256)) * (LEAST_BYTES // 128)
    assert ex.submit(tasks.ends, huge).result(60)[0] == 2 * LEAST_BYTES
    nothing_pending(ex)
    held = ex.submit(tasks.hold, gate.path, "huge", huge)
    count, size = pending(ex)
    assert count == 1 and 2 * LEAST_BYTES < size < 2 * LEAST_BYTES + 1000
    with pytest.raises(rl.QueueFull, match=r"32\.0 MiB"):
        ex.try_submit(tasks.double, 1)
    waiting = Submitter(ex, gate)
    assert waiting.is_alive()
    gate.open()
    waiting.join(60)
    assert waiting.was_open and held.result(60) == huge
    assert waiting.future is not None and waiting.future.result(60) == 42
    nothing_pending(ex)


def test_threads_share_what_they_are_given(make: Make, gate: Gate) -> None:
    ex = make(2, lane="thread")
    ex._engine.assume_memory(NO_MEMORY)
    large = b"x" * LEAST_BYTES
    futures = [ex.try_submit(tasks.hold, gate.path, i, large) for i in range(4)]
    assert pending(ex) == (4, 0)
    gate.open()
    assert all(future.result(60) is large for future in futures)


def test_refused_and_broken_arguments_leave_nothing(make: Make) -> None:
    ex = make(2, lane="process")
    for _ in range(5):
        with pytest.raises(rl.SerializationError):
            ex.submit(tasks.echo, [b"x" * MIB, threading.Lock()]).result(60)
        with pytest.raises(rl.SerializationError):
            list(ex.map(tasks.echo, [b"x" * MIB, threading.Lock()]))
    nothing_pending(ex)


def test_the_default_follows_from_the_memory(make: Make) -> None:
    """README and docstring: a quarter of what is free in bytes, and a million tasks at least."""
    available = available_memory_bytes()
    count, size = make(lane="process")._engine.most_pending
    assert count >= 1_000_000
    assert available / 8 < size < available / 3
    assert make(lane="process", max_pending=5)._engine.most_pending[0] == 5
    assert make(lane="process", max_pending=math.inf)._engine.most_pending == (2**64 - 1, 2**64 - 1)


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "3", math.nan, -math.inf])
def test_what_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="max_pending"):
        rl.Executor(1, lane="inline", max_pending=wrong)


# --- maps ---


class Watched:
    """An input of known length that sees how much is pending whenever more is read."""

    def __init__(self, executor: Any, count: int) -> None:
        self.executor = executor
        self.count = count
        self.most = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        for i in range(self.count):
            yield i
            self.most = max(self.most, pending(self.executor)[0])


@pytest.mark.parametrize("bound", [1, 5, 100])
def test_an_input_of_known_length_is_read_as_room_comes(make: Make, busy_lane: str, bound: int) -> None:
    ex = make(2, lane=busy_lane, max_pending=bound)
    watched = Watched(ex, 500)
    results = ex.map(tasks.double, watched)
    assert 1 <= watched.most <= bound
    assert list(results) == [2 * i for i in range(500)]
    assert list(ex.map(tasks.double, range(500))) == [2 * i for i in range(500)]
    nothing_pending(ex)


def test_a_range_counts_only_where_the_user_counts(make: Make, gate: Gate) -> None:
    ex = make(2, lane="process")
    gate.occupy(ex, 2)
    results = ex.map(tasks.double, range(2_000_000))
    assert pending(ex)[0] == 2
    del results
    gate.open()
    ex.shutdown(wait=False, cancel_futures=True)


def test_max_pending_bounds_reading_ahead(make: Make, busy_lane: str, gate: Gate) -> None:
    ex = make(2, lane=busy_lane, max_pending=20)
    read: list[int] = []
    results = ex.map(tasks.double, (read.append(i) or i for i in itertools.count()))  # type: ignore[func-returns-value]
    assert 1 <= len(read) <= 20
    for i in range(200):
        assert next(results) == 2 * i and len(read) <= i + 21
    results.close()  # type: ignore[attr-defined]
    nothing_pending(ex)


def test_a_map_goes_on_beside_others_that_fill_the_executor(make: Make, busy_lane: str, gate: Gate) -> None:
    ex = make(2, lane=busy_lane, max_pending=3)
    (held,) = gate.occupy(ex, 1)
    maps = [ex.map(tasks.double, iter(range(50))) for _ in range(2)]
    assert [list(results) for results in maps] == [[2 * i for i in range(50)]] * 2
    assert not held.done()


@pytest.mark.parametrize("bound", [2, 64])
def test_a_map_that_nobody_iterates_is_finished(make: Make, busy_lane: str, bound: int) -> None:
    """rule 1, where there is never room for all of it."""
    log: list[int] = []
    with rl.Executor(2, lane=busy_lane, max_pending=bound) as ex:  # type: ignore[arg-type]
        kept = ex.map(tasks.double, (log.append(i) or i for i in range(300)))  # type: ignore[func-returns-value]
        ex.map(tasks.double, iter(range(300)))
    assert log == list(range(300))
    assert list(kept) == [2 * i for i in range(300)]


def test_an_input_that_raises_behind_what_waits(make: Make, busy_lane: str, gate: Gate) -> None:
    """What was read before it is yielded first, though there was no room for it when it was read."""
    ex = make(2, lane=busy_lane, max_pending=16)

    def failing() -> Iterator[int]:
        yield from range(30)
        raise LookupError("here")

    results = ex.map(tasks.double, failing())
    assert [next(results) for _ in range(30)] == [2 * i for i in range(30)]
    with pytest.raises(LookupError, match="here"):
        next(results)
    assert next(results, None) is None


def test_what_cannot_be_sent_goes_its_own_way_within_the_bound(make: Make) -> None:
    ex = make(2, lane="auto", max_pending=4)
    lock = threading.Lock()
    items: list[Any] = [lock if i % 5 == 3 else i for i in range(60)]
    for given in (items, iter(items)):
        got = list(ex.map(tasks.echo, given))
        assert got == items
    nothing_pending(ex)


def full(size: int, value: int) -> Array:
    return np.full(size // 8, value, dtype=np.int64)


def total(array: Array) -> int:
    return int(array.sum())


@pytest.mark.parametrize("function", [total, np.copy], ids=["small-results", "large-results"])
def test_endless_arrays_are_read_within_the_bound(
    make: Make, busy_lane: str, function: Callable[[Array], Any]
) -> None:
    """No more of them lie anywhere, read ahead or as results, than the bound in bytes allows."""
    ex = make(2, lane=busy_lane)
    ex._engine.assume_memory(NO_MEMORY)
    read = 0
    ahead: list[int] = []

    def arrays() -> Iterator[Array]:
        nonlocal read
        while True:
            read += 1
            yield full(2 * MIB, read - 1)

    results = ex.map(function, arrays())
    for i in range(60):
        ahead.append(read - i)
        assert pending(ex)[1] <= LEAST_BYTES
        value = next(results)
        assert int(np.asarray(value).sum()) == (i * 2 * MIB // 8)
    results.close()  # type: ignore[attr-defined]
    assert 2 <= max(ahead) <= LEAST_BYTES // (2 * MIB) + 2
    nothing_pending(ex)


def test_pools_read_within_the_bound(gate: Gate) -> None:
    """An endless input is read as room comes, and what `imap` reads at the call waits for it."""
    with rl.Pool(2) as pool:
        pool._engine.assume_memory(NO_MEMORY)
        results = pool.imap(total, (full(4 * MIB, i) for i in itertools.count()))
        for i in range(30):
            assert pending(pool)[1] <= LEAST_BYTES
            assert next(results) == i * 4 * MIB // 8
        arrays = [full(4 * MIB, i) for i in range(12)]
        wanted = [total(array) for array in arrays]
    with rl.Pool(2) as pool:
        pool._engine.assume_memory(NO_MEMORY)
        assert list(pool.imap(total, arrays)) == wanted
        assert pool.map(total, arrays) == wanted
        assert pool.map_async(total, arrays).get(60) == wanted
        nothing_pending(pool)


# --- all together ---


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_nothing_stays_counted(make: Make, busy_lane: str, seed: int) -> None:
    dice = random.Random(seed)
    ex = make(2, lane=busy_lane, max_pending=dice.choice((1, 3, 17, 200)))
    ex._engine.assume_memory(NO_MEMORY)
    most = ex._engine.most_pending[0]
    futures: list[rl.Future[Any]] = []
    maps: list[Iterator[Any]] = []
    for _ in range(150):
        kind = dice.randrange(9)
        if kind < 3:
            futures.append(ex.submit(tasks.echo, b"x" * dice.choice((1, 100, 100_000, MIB))))
        elif kind == 3:
            with contextlib.suppress(rl.QueueFull):
                futures.append(ex.options(lane="thread").try_submit(tasks.double, 1))
        elif kind == 4 and futures:
            dice.choice(futures).cancel()
        elif kind == 5:
            maps.append(ex.map(tasks.echo, [b"y" * dice.choice((1, 100_000)) for _ in range(50)]))
        elif kind == 6:
            maps.append(ex.map(tasks.echo, (b"z" * 1000 for _ in range(dice.randrange(300)))))
        elif kind == 7 and maps:
            one = dice.choice(maps)
            with contextlib.suppress(rl.WorkerLost):
                list(itertools.islice(one, dice.randrange(40)))
            if dice.random() < 0.5:
                maps.remove(one)
            del one
        elif busy_lane != "thread" and dice.random() < 0.3:
            kill_one(ex)
        assert pending(ex)[0] <= most
    for one in maps:
        with contextlib.suppress(rl.WorkerLost):
            list(one)
    del one, maps[:]
    for future in futures:
        assert future.cancelled() or isinstance(future.exception(60), rl.WorkerLost | None)
    nothing_pending(ex)
