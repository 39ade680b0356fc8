"""Arrays and other buffers, small and big, as arguments and as results.

However they travel between processes, they look as if they had been copied when the task was submitted and
when it answered: who has one may write into it and keep it, and nobody else ever notices.
"""

from __future__ import annotations

import functools
import gc
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import rightlane as rl
import tasks
from buffers import DTYPES, KIB, LAYOUTS, MIB, RECIPES, Array, Recipe, build, equal
from support import Gate, Start, available_memory_bytes

SIZES = (100, 4 * KIB, 5 * KIB, 64 * KIB + 8, 100 * KIB, MIB, 2 * MIB + 8)


def numbers(first: int, nbytes: int) -> Array:
    """What `tasks.numbers` answers."""
    return np.arange(first, first + nbytes // 8)


def test_anything_made_of_buffers_comes_back_equal(busy: rl.Executor) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(RECIPES)
    def comes_back(recipe: Any) -> None:
        value = build(recipe)
        back = busy.submit(tasks.echo, value).result()
        assert equal(value, back)
        several = [value, 1, value, [value]]
        assert equal(several, list(busy.map(tasks.echo, several)))

    comes_back()


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_kind(pool: rl.Executor, dtype: str) -> None:
    """In each layout, on both sides of every size at which something else may be done."""
    sizes = (100, 4 * KIB, 65 * KIB, MIB + 100)
    sent = [Recipe(dtype, nbytes, layout=layout).make() for layout in LAYOUTS for nbytes in sizes]
    for array, back in zip(sent, pool.map(tasks.echo, sent), strict=True):
        assert equal(array, back)
        assert back.flags.writeable or not array.flags.writeable
        assert back.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc


def test_a_thousand_small_arrays_in_containers(busy: rl.Executor) -> None:
    value = {n: [numbers(n, 8 * (n % 50)), (bytearray(b"x") * n, numbers(n, 80))] for n in range(1000)}
    assert equal(value, busy.submit(tasks.echo, value).result())
    assert equal([value, value], list(busy.map(tasks.echo, [value, value])))


def test_one_of_300_mib_there_and_back(pool: rl.Executor) -> None:
    if available_memory_bytes() < 3 << 30:
        pytest.skip("needs 3 GiB of free memory")
    array = np.arange(300 * MIB // 8)
    back = pool.submit(tasks.echo, array).result()
    assert back.dtype == array.dtype and np.array_equal(back, array)


class Holder:
    def __init__(self, array: Array) -> None:
        self.array = array

    def method(self) -> Array:
        return self.array


@pytest.mark.parametrize("nbytes", [8 * KIB, 2 * MIB])
def test_wherever_a_call_may_carry_one(busy: rl.Executor, nbytes: int) -> None:
    """Keywords, defaults, closures, partials, `self`; a result that holds one; an exception that does."""
    array = numbers(7, nbytes)
    args, kwargs = busy.submit(tasks.everything, array, b=array, c={"d": array}).result()
    assert equal((array,), args) and equal({"b": array, "c": {"d": array}}, kwargs)
    calls: list[Callable[[], Any]] = [
        lambda kept=array: kept,  # type: ignore[misc]
        lambda: array,
        Holder(array).method,
        functools.partial(tasks.echo, array),
        functools.partial(tasks.echo, x=array),
    ]
    for call in calls:
        assert equal(array, busy.submit(call).result())
    mapped = busy.map(functools.partial(operator.add, array), [array, 1])
    assert equal([array + array, array + 1], list(mapped))
    assert equal(array, busy.submit(tasks.echo, Holder(array)).result().array)
    error = busy.submit(tasks.raise_with, array).exception()
    assert isinstance(error, ValueError)
    assert equal(("a message", array), error.args) and equal(array[::-1], error.rest)  # type: ignore[attr-defined]


# --- arguments ---


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
@pytest.mark.parametrize("step", [1, 9000])
def test_a_task_may_write_into_its_argument(make: Callable[..., rl.Executor], step: int) -> None:
    """Neither the caller nor the next task in that worker sees it: the same array or another as large."""
    ex = make(1, lane="process")
    for number in range(16):
        for nbytes in SIZES:
            for sent in (numbers(number, nbytes), bytearray(numbers(-number, nbytes))):
                before = bytes(sent)
                expected = tasks.checksum(before)
                assert ex.submit(tasks.overwrite, sent, step).result() == expected
                assert bytes(sent) == before
                if number % 4 == 0:
                    assert ex.submit(tasks.overwrite, sent, step).result() == expected


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
def test_a_task_may_write_into_the_item_of_a_map(pool: rl.Executor) -> None:
    """rule 8: also where the same array is several items of a chunk."""
    arrays = [array for n in range(4) for nbytes in SIZES for array in [numbers(n, nbytes)] * 3]
    expected = [tasks.checksum(array) for array in arrays]
    for chunksize in (None, 1, 9):
        assert list(pool.map(tasks.overwrite, arrays, chunksize=chunksize)) == expected
    assert [tasks.checksum(array) for array in arrays] == expected


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
def test_a_task_may_keep_its_argument(make: Callable[..., rl.Executor]) -> None:
    """Whatever the worker is sent later, and whatever the caller does with its own."""
    ex = make(1, lane="process")
    expected = {}
    for nbytes in SIZES:
        array = numbers(nbytes, nbytes)
        expected[str(nbytes)] = tasks.checksum(array)
        ex.submit(tasks.keep, str(nbytes), array).result()
        array[:] = -1
    for number in range(20):
        for nbytes in SIZES:
            ex.submit(tasks.overwrite, numbers(number, nbytes)).result()
    for name, checksum in expected.items():
        assert ex.submit(tasks.overwrite_kept, name).result() == checksum
    again = [tasks.checksum(ex.submit(tasks.kept, name).result()) for name in expected]
    assert again == [tasks.checksum(b"\xa5" * len(numbers(0, nbytes)) * 8) for nbytes in SIZES]


@pytest.mark.parametrize("lane", ["process", "auto"])
@pytest.mark.parametrize("kind", [np.array, bytearray])
def test_a_task_sees_its_argument_as_it_was_submitted(
    make: Callable[..., rl.Executor], gate: Gate, lane: str, kind: Callable[[Array], Any]
) -> None:
    """Also one that waits for a worker while its caller writes."""
    ex = make(2, lane=lane)
    held = gate.occupy(ex, 2)
    sent = [kind(numbers(3, nbytes)) for nbytes in SIZES]
    expected = [tasks.checksum(one) for one in sent]
    futures = [ex.submit(tasks.checksum, one) for one in sent]
    for one in sent:
        memoryview(one).cast("B")[:] = bytes(memoryview(one).nbytes)
    gate.open()
    assert [future.result() for future in futures] == expected
    assert all(future.result() for future in held)


# --- results ---


def test_a_task_may_answer_with_views_of_its_argument(pool: rl.Executor) -> None:
    """One object stays one object; views that overlap come back apart, as pickle has it."""
    for nbytes in (800, 8 * KIB, 100 * KIB, 2 * MIB):
        array = numbers(nbytes, nbytes)
        expected = tasks.parts(array.copy())
        for number, back in enumerate(pool.map(tasks.parts, [array] * 6)):
            assert equal(expected, back)
            assert back[0] is back[5]
            for view in back[1:5]:
                view[:] = number
            assert equal(expected[0], back[0])
        assert equal(numbers(nbytes, nbytes), array)


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
def test_a_result_is_a_snapshot(make: Callable[..., rl.Executor]) -> None:
    """What the worker keeps and what the caller got go separate ways, and so do two answers of one array."""
    ex = make(1, lane="process")
    for nbytes in SIZES:
        expected = numbers(5, nbytes)
        first = ex.submit(tasks.keep, "x", expected).result()
        second = ex.submit(tasks.kept, "x").result()
        second[:] = 0
        ex.submit(tasks.overwrite_kept, "x").result()
        assert equal(expected, first) and not second.any()
        first[:] = 1
        assert ex.submit(tasks.overwrite_kept, "x").result() == tasks.checksum(b"\xa5" * expected.nbytes)


@pytest.mark.parametrize("by", ["submit", "map"])
def test_results_last_as_long_as_they_are_kept(by: str) -> None:
    """A thousand of them, written to, past later tasks, the executor's end and the end of all else."""
    firsts, count = range(1000), 100 * KIB // 8

    def results(ex: rl.Executor) -> Iterator[Array]:
        if by == "map":
            return ex.map(tasks.numbers, firsts, [count] * 1000)
        futures = [ex.submit(tasks.numbers, first, count) for first in firsts]
        return (future.result() for future in futures)

    with rl.Executor(2, lane="process") as ex:
        kept = list(results(ex))
        for array in kept[::2]:
            array += 1_000_000
        # Every third goes, and others take its place.
        kept = [array for number, array in enumerate(kept) if number % 3]
        for number, array in zip(firsts, results(ex), strict=True):
            assert array[0] == number and array[-1] == number + count - 1
    del ex, array
    gc.collect()
    wanted = [number for number in firsts if number % 3]
    for number, array in zip(wanted, kept, strict=True):
        first = number if number % 2 else number + 1_000_000
        assert np.array_equal(array, np.arange(first, first + count))
        array[:] = number
    assert [int(array.sum()) for array in kept] == [number * count for number in wanted]


# --- deaths and forks ---


@pytest.mark.stress
def test_a_worker_that_dies_takes_nothing_with_it(pool: rl.Executor) -> None:
    """rule 12: only its own task is lost; results that it gave before stay, later ones are right."""
    for number in range(3):
        before = [pool.submit(tasks.numbers, number, nbytes // 8) for nbytes in SIZES * 2]
        kept = [future.result() for future in before]
        sent = [numbers(number, nbytes) for nbytes in SIZES]
        beside = [pool.submit(tasks.echo, array) for array in sent]
        deadly = [pool.submit(tasks.overwrite_then_die, array) for array in sent[2::2]]
        after = [pool.submit(tasks.echo, array) for array in sent]
        assert all(isinstance(future.exception(), rl.WorkerLost) for future in deadly)
        expected = [numbers(number, nbytes) for nbytes in SIZES]
        assert equal(expected * 2, kept) and equal(expected, sent)
        assert equal(expected * 2, [future.result() for future in beside + after])


@pytest.mark.stress
def test_a_fork_of_the_caller_has_its_own_results(start: Start) -> None:
    """rule 24: neither side sees what the other writes, and the child keeps what the parent has dropped."""
    start(
        """
        import gc, os, sys, traceback
        import numpy as np
        import rightlane as rl, tasks

        right = lambda array, first: np.array_equal(array, np.arange(first, first + len(array)))
        counts = (100, 1000, 20_000, 300_000)
        ex = rl.Executor(2, lane="process")
        kept = [ex.submit(tasks.numbers, n, count).result() for n in range(10) for count in counts]
        firsts = [n for n in range(10) for _ in counts]
        kept[-1][:] = 5
        to_parent, to_child = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert all(map(right, kept[:-4], firsts)) and (kept[-1] == 5).all()
                for array in kept[:4]:
                    array[:] = -1
                os.write(to_parent[1], b"x")
                assert os.read(to_child[0], 1) == b"x"
                assert all(map(right, kept[8:-4], firsts[8:])) and (kept[-1] == 5).all()
                assert all((array == -1).all() for array in kept[:4])
                assert all(map(right, kept[4:8], firsts[4:8])), "the parent's writes came here"
                assert right(ex.submit(tasks.numbers, 3, 20_000).result(), 3)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        os.close(to_parent[1])
        os.close(to_child[0])
        assert os.read(to_parent[0], 1) == b"x", "the child failed"
        assert all(map(right, kept[:-4], firsts)), "the child's writes came here"
        for array in kept[4:8]:
            array[:] = -2
        del kept, array
        gc.collect()
        for n in range(20):
            assert all(right(ex.submit(tasks.numbers, 90, count).result(), 90) for count in counts)
        os.write(to_child[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """,
        flags=["-W", "ignore::DeprecationWarning"],
    ).succeeds()
