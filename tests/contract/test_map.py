"""`map`: it starts at the call, keeps order, and batching stays invisible."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Gate, eventually, lines

TASK_BOUND = 10_000


class Counting:
    """An endless input without a length that counts what is read from it."""

    def __init__(self, end: int | None = None) -> None:
        self.read = 0
        self.end = end
        self.readers: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.read == self.end:
            raise StopIteration
        self.readers.add(threading.get_ident())
        self.read += 1
        return self.read - 1


@pytest.mark.parametrize("chunksize", [None, 1, 7, 5000])
def test_results_are_ordered(ex: rl.Executor, chunksize: int | None) -> None:
    """rule 8: the chunk size changes nothing that can be seen."""
    assert list(ex.map(tasks.double, range(3000), chunksize=chunksize)) == [2 * i for i in range(3000)]


def test_inputs_of_every_kind(ex: rl.Executor) -> None:
    assert list(ex.map(tasks.double, [])) == []
    assert list(ex.map(tasks.double, "abc")) == ["aa", "bb", "cc"]
    assert list(ex.map(tasks.double, (i for i in range(50)))) == [2 * i for i in range(50)]
    assert list(ex.map(tasks.add, range(100), itertools.count(1))) == [2 * i + 1 for i in range(100)]
    assert list(ex.map(tasks.add, "abc", ("x", "y"))) == ["ax", "by"]
    assert list(ex.map(lambda a, b, c: (a, b, c), [1], [2], [3])) == [(1, 2, 3)]
    assert list(ex.map(tasks.echo, [(1, 2), [3], {"k": 4}, None])) == [(1, 2), [3], {"k": 4}, None]


def test_the_result_is_an_iterator(ex: rl.Executor) -> None:
    results = ex.map(tasks.double, range(3))
    assert iter(results) is results
    assert next(results) == 0 and list(results) == [2, 4]
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("sized", [True, False], ids=["list", "generator"])
def test_a_map_never_iterated_still_runs(ex: rl.Executor, tmp_path: Path, sized: bool) -> None:
    """rule 1: `map` starts at the call; the end of `with` waits for every item."""
    log = str(tmp_path / "log")
    items = list(range(300))
    with ex:
        kept = ex.map(tasks.append, itertools.repeat(log), items if sized else iter(items))
    assert sorted(map(int, lines(log))) == items
    assert list(kept) == items, "and its results can be read after the end"


def test_shutdown_reads_a_long_input_on_in_the_caller(ex: rl.Executor, tmp_path: Path) -> None:
    """rule 1: `shutdown(wait=True)` reads an input longer than the read-ahead to its end, in the caller."""
    log = str(tmp_path / "log")
    source = Counting(end=TASK_BOUND + 500)
    kept = ex.map(tasks.append, itertools.repeat(log), source)
    assert source.read <= TASK_BOUND + 1
    ex.shutdown(wait=True)
    assert source.read == TASK_BOUND + 500 and source.readers == {threading.get_ident()}
    assert sorted(map(int, lines(log))) == list(range(TASK_BOUND + 500))
    del kept


def test_an_endless_input_can_be_iterated(ex: rl.Executor) -> None:
    """rule 1: read ahead at most up to the task bound; dropping the map ends it."""
    source = Counting()
    results = ex.map(tasks.double, source)
    assert source.read <= TASK_BOUND + 1
    for i in range(TASK_BOUND + 2000):
        assert next(results) == 2 * i
    assert source.read <= 2 * TASK_BOUND + 2001
    del results
    gc.collect()
    ex.shutdown()
    assert source.read <= 2 * TASK_BOUND + 2001


@pytest.mark.parametrize("buffersize", [1, 4, 100])
def test_buffersize_bounds_what_is_read(ex: rl.Executor, buffersize: int) -> None:
    """rule 1: with `buffersize` no more items are read beyond what was yielded, of any input."""
    source = Counting()
    results = ex.map(tasks.double, source, buffersize=buffersize)
    assert source.read <= buffersize
    for i in range(300):
        assert next(results) == 2 * i
        assert source.read <= buffersize + i + 1
    del results


def test_buffersize_still_yields_everything(ex: rl.Executor) -> None:
    assert list(ex.map(tasks.double, range(50), buffersize=3)) == [2 * i for i in range(50)]
    assert list(ex.map(tasks.double, range(50), buffersize=500, chunksize=8)) == [2 * i for i in range(50)]
    assert list(ex.map(tasks.double, (), buffersize=1)) == []


@pytest.mark.parametrize("how", ["del", "close"])
def test_dropping_a_partly_iterated_map_cancels_the_rest(
    make: Callable[..., rl.Executor], busy_lane: str, gate: Gate, how: str
) -> None:
    """rule 1: what was claimed ends, what was not never starts."""
    ex = make(1, lane=busy_lane)
    open_gate = Gate(Path(gate.path).parent, "open")
    open_gate.open()
    gates = [open_gate.path, *[gate.path] * 200]
    results = ex.map(tasks.hold, gates, range(201), chunksize=1)
    next(results)
    eventually(lambda: "1" in gate.started())
    if how == "close":
        results.close()  # type: ignore[attr-defined]
    del results
    gc.collect()
    gate.open()
    ex.shutdown()
    assert set(gate.started()) == {"1"}


def test_errors_come_at_their_place(ex: rl.Executor) -> None:
    """One error does not cost the results before it."""
    results = ex.map(tasks.divide, [1, 2, 0, 4])
    assert [next(results), next(results)] == [10, 5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_one_bad_item_in_a_chunk_costs_no_other(ex: rl.Executor) -> None:
    """rule 8: errors stay per item however items were batched."""
    results = ex.map(tasks.fail_at, range(1000), itertools.repeat(457), chunksize=500)
    seen = []
    with pytest.raises(ValueError, match="item 457"):
        for value in results:
            seen.append(value)
    assert seen == list(range(457))


def test_all_items_run_though_one_raises(ex: rl.Executor, tmp_path: Path) -> None:
    """rule 1: nobody iterates, so nobody stops the rest."""
    log = str(tmp_path / "log")

    def run(path: str, i: int) -> None:
        tasks.append(path, i)
        if i % 10 == 3:
            raise ValueError(i)

    with ex:
        kept = ex.map(run, itertools.repeat(log), range(200), chunksize=50)
    assert sorted(map(int, lines(log))) == list(range(200))
    with pytest.raises(ValueError, match="3"):
        list(kept)


def test_an_input_that_raises_raises_in_the_caller(ex: rl.Executor) -> None:
    """The items before it are good, the exception is the input's own, and the executor goes on."""

    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("the input broke")

    with pytest.raises(LookupError, match="the input broke"):
        list(ex.map(tasks.double, source()))
    with pytest.raises(LookupError, match="the input broke"):
        list(ex.map(tasks.double, source(), buffersize=1))
    assert list(ex.map(tasks.double, [1])) == [2]


def test_a_late_item_is_a_timeout(busy: rl.Executor, gate: Gate) -> None:
    """The timeout counts from the call of `map`; it ends the iteration."""
    results = busy.map(tasks.hold, [gate.path] * 2, range(2), timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()
    assert busy.submit(tasks.double, 1).result() == 2


def test_a_timeout_that_suffices(ex: rl.Executor) -> None:
    assert list(ex.map(tasks.double, range(20), timeout=300)) == [2 * i for i in range(20)]


def test_maps_run_side_by_side(ex: rl.Executor) -> None:
    """Several maps of one executor, read alternately, and submits between them."""
    first = ex.map(tasks.double, range(500))
    second = ex.map(tasks.add, range(500), range(500))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert a == b == 2 * i
        if i % 100 == 0:
            assert ex.submit(tasks.double, i).result() == 2 * i


def test_a_long_chunk_does_not_hold_up_idle_workers(make: Callable[..., rl.Executor], gate: Gate) -> None:
    """Two slow items run at the same time: batching must not put both behind one another."""
    pool = make(lane="process")
    results = pool.map(tasks.hold, [gate.path] * 2, range(2))
    eventually(lambda: len(gate.started()) == 2)
    gate.open()
    assert list(results) == [None, None]


def test_large_items(ex: rl.Executor) -> None:
    blobs = [bytes([i]) * 300_000 for i in range(60)]
    assert list(ex.map(tasks.echo, blobs)) == blobs


def test_a_task_that_raises_stop_iteration_does_not_end_the_map(ex: rl.Executor) -> None:
    """As with the standard `map`, which is a generator: it must not look like the end of the input."""

    def third_is_empty(n: int) -> int:
        return n if n != 2 else next(iter(()))

    results = ex.map(third_is_empty, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(RuntimeError, match="generator raised StopIteration") as raised:
        next(results)
    assert isinstance(raised.value.__cause__, StopIteration)
