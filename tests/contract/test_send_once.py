"""What goes to many tasks is sent once, and never stale; `share`, `empty` and `asarray`."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightlane as rl
import tasks
from buffers import MIB, Array
from support import Gate, Start, eventually

# Tasks that write into what they are given, or keep it, are the point here.
pytestmark = pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")

Make = Callable[..., rl.Executor]

COUNT = MIB // 8


def numbers(first: int = 0, count: int = COUNT) -> Array:
    return np.arange(first, first + count)


def arena_mib(collect: bool = True) -> float:
    """How much memory this process's shared memory holds."""
    if collect:
        gc.collect()
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if "rightlane-arena" in os.readlink(entry):
                found += entry.stat().st_blocks * 512
        except FileNotFoundError:
            pass
    return found / MIB


@pytest.fixture
def nothing_there() -> None:
    """Executors of earlier tests have been killed, which nobody waited for."""
    eventually(lambda: arena_mib() == 0, what="the end of all that was there before")


# --- the same object in many calls ---


def test_what_does_not_change_lies_there_once(make: Make, gate: Gate, nothing_there: None) -> None:
    ex = make(2, lane="process")
    held = gate.occupy(ex, 2)
    array = numbers()
    calls = [ex.submit(tasks.checksum, array) for _ in range(20)]
    calls += [ex.submit(lambda: tasks.checksum(array)) for _ in range(20)]
    calls += [ex.submit(functools.partial(tasks.checksum, array)) for _ in range(20)]
    maps = [ex.map(tasks.checksum, [array] * 20), ex.map(tasks.checksum, itertools.repeat(array, 20))]
    assert arena_mib() < 3
    gate.open()
    assert {future.result() for future in calls} == {tasks.checksum(array)}
    assert {checksum for results in maps for checksum in results} == {tasks.checksum(array)}
    assert all(future.result() for future in held)


@pytest.mark.parametrize("lane", ["process", "auto"])
def test_what_changes_is_never_stale(make: Make, gate: Gate, lane: str) -> None:
    """Whichever byte changes; in arguments, closures, partials, bound methods and globals."""
    ex = make(2, lane=lane)
    held = gate.occupy(ex, 2)
    array, expected, futures = numbers(), [], []
    for number, at in enumerate([0, 1, COUNT // 2, -2, -1, -1]):
        array[at] += number
        expected += [tasks.checksum(array)] * 4
        futures.append(ex.submit(tasks.checksum, array))
        futures.append(ex.submit(lambda: tasks.checksum(array)))
        futures.append(ex.submit(functools.partial(tasks.checksum, array)))
        futures.append(ex.submit(Holder(array).checksum))
    gate.open()
    assert [future.result() for future in futures] == expected
    assert all(future.result() for future in held)


class Holder:
    def __init__(self, array: Array) -> None:
        self.array = array

    def checksum(self) -> int:
        return tasks.checksum(self.array)


def test_changes_between_calls_arrive(pool: rl.Executor) -> None:
    array = numbers()

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(st.integers(0, COUNT - 1), st.integers(0, 3)), max_size=3), st.booleans())
    def arrives(changes: list[tuple[int, int]], by_map: bool) -> None:
        for at, value in changes:
            array[at] = value
        wanted = tasks.checksum(array)
        if by_map:
            assert list(pool.map(tasks.overwrite, [array] * 3)) == [wanted] * 3
        else:
            assert pool.submit(tasks.overwrite, array).result() == wanted

    arrives()


def test_a_generator_may_use_one_buffer_again_and_again(pool: rl.Executor) -> None:
    array = numbers()
    first = array.copy()

    def rows() -> Iterator[Array]:
        for number in range(20):
            array[-1] = number
            yield array

    expected = []
    for number in range(20):
        first[-1] = number
        expected.append(tasks.checksum(first))
    assert list(pool.map(tasks.checksum, rows())) == expected
    beside = pool.map(both, rows(), itertools.repeat(array))
    assert list(beside) == [(checksum, checksum) for checksum in expected]


def both(one: Array, other: Array) -> tuple[int, int]:
    return tasks.checksum(one), tasks.checksum(other)


class Fresh:
    """Arguments of a call that are made as they are read, in memory that the last ones had."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[Array]:
        yield numbers(self.number)


def test_reading_arguments_may_make_them() -> None:
    with rl.Pool(2) as pool:
        assert pool.starmap(tasks.checksum, [Fresh(number) for number in range(12)]) == [
            tasks.checksum(numbers(number)) for number in range(12)
        ]


def test_arrays_may_be_pickled_in_another_way(pool: rl.Executor) -> None:
    import copyreg

    copyreg.pickle(np.ndarray, lambda array: (tasks.echo, (pickle.PickleBuffer(array * 2),)))  # type: ignore[arg-type]
    try:
        back = list(pool.map(first_number, [numbers(number) for number in range(1, 20)]))
    finally:
        del copyreg.dispatch_table[np.ndarray]
    assert back == [2 * number for number in range(1, 20)]


def first_number(buffer: Any) -> int:
    return int(np.frombuffer(buffer, "i8")[0])


SCRATCH = numbers()


class Scratching:
    """Pickles as an array that all of its kind share."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        SCRATCH[7] = self.number
        return tasks.echo, (SCRATCH,)


def eighth(array: Array, *_: Any) -> int:
    return int(array[7])


def test_pickling_may_change_what_it_pickles(pool: rl.Executor) -> None:
    """Also in a list, whose reading runs no code of anybody's."""
    items = [Scratching(number) for number in range(20)]
    assert list(pool.map(eighth, items)) == list(range(20))
    pairs = pool.map(eighth, items, [SCRATCH] * 20)
    assert list(pairs) == list(range(20))
    mixed = [part for item in items for part in (item, SCRATCH)]
    assert list(pool.map(eighth, mixed)) == [number for number in range(20) for _ in (0, 1)]


def test_another_array_in_the_same_place(pool: rl.Executor) -> None:
    for number in range(30):
        assert pool.submit(tasks.checksum, numbers(number)).result() == tasks.checksum(numbers(number))
    fresh = (numbers(number) for number in range(30))
    assert list(pool.map(tasks.overwrite, fresh)) == [tasks.checksum(numbers(number)) for number in range(30)]


def test_whoever_writes_into_it_the_others_see_what_was_sent(make: Make) -> None:
    """Also where an earlier task has kept it, and written there."""
    ex, array = make(1, lane="process"), numbers()
    wanted = tasks.checksum(array)
    for name in "abc":
        futures = [ex.submit(tasks.overwrite, array), ex.submit(tasks.keep, name, array)]
        futures += [ex.submit(tasks.overwrite_kept, name), ex.submit(tasks.overwrite, array)]
        assert [future.result() for future in futures[::2]] == [wanted, wanted]
        assert futures[3].result() == wanted
    assert list(ex.map(tasks.overwrite, [array] * 8)) == [wanted] * 8
    twice = ex.submit(both, array, array.view()).result()
    assert twice == (wanted, wanted)
    assert tasks.checksum(array) == wanted


def test_a_partial_is_new_for_each_call(make: Make) -> None:
    ex, array = make(1, lane="process"), numbers()
    call = functools.partial(tasks.overwrite, array)
    assert [ex.submit(call).result() for _ in range(3)] == [tasks.checksum(array)] * 3


def test_functions_give_their_memory_back(make: Make, nothing_there: None) -> None:
    ex = make(1, lane="process")
    gc.disable()
    try:
        for number in range(300):
            array = numbers(number)
            assert ex.submit(lambda array=array: int(array[0])).result() == number
        del array
        # A worker is told now and then what it can forget, with its next task.
        assert arena_mib(collect=False) <= 80
    finally:
        gc.enable()
    ex.shutdown()
    eventually(lambda: arena_mib() == 0)


@pytest.mark.stress
def test_an_initializer_may_hold_a_large_array(make: Make) -> None:
    array = numbers()
    ex = make(2, lane="process", initializer=functools.partial(tasks.keep, "x", array))
    for _ in range(5):
        assert ex.submit(tasks.overwrite_kept, "x").result() is not None
        assert ex.submit(tasks.checksum, array).result() == tasks.checksum(array)


# --- share ---


def total(handle: rl.Shared[Array]) -> int:
    return int(handle.get().sum())


def test_a_shared_object_in_every_lane(ex: rl.Executor) -> None:
    array = numbers()
    handle = rl.share(array)
    wanted = int(array.sum())
    array[:] = 0
    assert int(handle.get().sum()) == wanted
    assert ex.submit(total, handle).result() == wanted
    assert list(ex.map(total, [handle] * 5)) == [wanted] * 5
    assert ex.submit(lambda: total(handle)).result() == wanted
    assert ex.submit(functools.partial(total, handle)).result() == wanted
    assert ex.submit(lambda nested: total(nested["a"][0]), {"a": [handle]}).result() == wanted
    assert total(ex.submit(tasks.echo, handle).result()) == wanted


THINGS = {
    "int": 1,
    "str": "x" * 200_000,
    "bytes": b"y" * 200_000,
    "dict": {"a": [1, 2]},
    "array": numbers(5),
    "backwards": numbers(5)[::-2],
    "Fortran": np.asfortranarray(np.ones((300, 300))),
}


@pytest.mark.parametrize("what", THINGS)
def test_anything_can_be_shared(pool: rl.Executor, what: str) -> None:
    value = THINGS[what]
    handle = rl.share(value)
    for back in (handle.get(), pool.submit(lambda: handle.get()).result(), tasks.echo(handle).get()):
        assert type(back) is type(value)
        assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value
    assert "Shared" in repr(handle)


def overwrite_shared(handle: rl.Shared[Array]) -> str:
    try:
        handle.get()[0] = 1
    except ValueError as error:
        return str(error)
    return "written"


def test_shared_arrays_are_read_only(ex: rl.Executor) -> None:
    assert "read-only" in ex.submit(overwrite_shared, rl.share(numbers())).result()


def test_what_cannot_be_pickled_cannot_be_shared() -> None:
    import threading

    with pytest.raises(rl.SerializationError, match=r"obj\['a'\]"):
        rl.share({"a": threading.Lock()})


def test_a_handle_is_pickled_by_anybody() -> None:
    handle = rl.share({"a": numbers(3)})
    for protocol in range(2, 6):
        back = pickle.loads(pickle.dumps(handle, protocol))
        assert np.array_equal(back.get()["a"], numbers(3))


def keep_handle(handle: rl.Shared[Array]) -> None:
    tasks.KEPT["handle"] = handle


def test_shared_memory_is_free_when_the_last_handle_is_gone(make: Make, nothing_there: None) -> None:
    ex = make(1, lane="process")
    handle = rl.share(numbers())
    assert list(ex.map(total, [handle] * 50)) == [int(numbers().sum())] * 50
    ex.submit(keep_handle, handle).result()
    view = handle.get()
    assert 1 <= arena_mib() < 2
    del handle
    assert (view == numbers()).all()
    assert int(ex.submit(lambda: tasks.kept("handle").get().sum()).result()) == int(numbers().sum())
    ex.shutdown()
    assert (view == numbers()).all()
    del view
    eventually(lambda: arena_mib() == 0)


def test_classes_of_the_main_module_can_be_shared(start: Start) -> None:
    script = start(
        """
        import gc
        import numpy as np
        import rightlane as rl

        class Table:
            def __init__(self, array):
                self.array = array
            def sum(self):
                return float(self.array.sum())

        handle = rl.share([Table(np.ones(100_000))])
        with rl.Executor(2, lane="process") as ex:
            print(ex.submit(lambda h: h.get()[0].sum(), handle).result())
            print(list(ex.map(lambda n: handle.get()[0].sum() + n, range(3))))
            print(ex.submit(lambda h: h, handle).result().get()[0].sum())
            print(ex.submit(lambda: rl.share([Table(np.ones(100_000))])).result().get()[0].sum())
            print(ex.submit(lambda: rl.submit(lambda: handle.get()[0].sum()).result()).result())
            print(ex.submit(lambda h: type(h.get()[0]).__name__, handle).result())
        print(type(handle.get()[0]) is Table, handle.get()[0].sum())
        """
    )
    out = script.succeeds().splitlines()
    mapped = "[100000.0, 100001.0, 100002.0]"
    assert out == ["100000.0", mapped, *["100000.0"] * 3, "Table", "True 100000.0"]


# --- empty, asarray ---


def test_an_array_of_ones_own_is_sent_without_a_copy(make: Make, gate: Gate, nothing_there: None) -> None:
    ex = make(2, lane="process")
    array = rl.asarray(numbers())
    held = gate.occupy(ex, 2)
    futures = [ex.submit(tasks.checksum, array) for _ in range(10)]
    futures += [ex.submit(lambda: tasks.checksum(array))]
    mapped = ex.map(tasks.checksum, array.reshape(2, -1))
    assert arena_mib() < 2
    gate.open()
    assert {future.result() for future in futures} == {tasks.checksum(array)}
    assert list(mapped) == [tasks.checksum(half) for half in array.reshape(2, -1).copy()]
    assert all(future.result() for future in held)


@pytest.mark.parametrize("lane", ["process", "auto"])
def test_it_may_be_changed_at_any_time(make: Make, gate: Gate, lane: str) -> None:
    ex = make(2, lane=lane)
    held = gate.occupy(ex, 2)
    array, expected, futures = rl.empty(COUNT, "i8"), [], []
    for number in range(5):
        array[:] = number
        expected.append(tasks.checksum(array))
        futures.append(ex.submit(tasks.overwrite, array))
        array[number] = -1
        expected.append(tasks.checksum(array))
        futures.append(ex.submit(tasks.overwrite, array))
    array[:] = -7
    gate.open()
    assert [future.result() for future in futures] == expected
    assert (array == -7).all() and all(future.result() for future in held)


@pytest.mark.parametrize("rows", [7, 1024, 4096 * 3])
def test_parts_of_it(make: Make, rows: int) -> None:
    """Whatever pages they share; also several in one call, and written to."""
    ex = make(1, lane="process")
    table = rl.empty((9, 8192 + rows))
    table[:] = np.arange(table.size).reshape(table.shape)
    wanted = [tasks.checksum(row.copy()) for row in table]
    assert list(ex.map(tasks.overwrite, table)) == wanted
    assert list(ex.map(both, table, table[::-1])) == list(zip(wanted, wanted[::-1], strict=True))
    assert ex.submit(overwrite_all, list(table)).result() == wanted
    assert ex.submit(overwrite_all, [table[0, 5:], table[0], table[:2].T]).result() == [
        tasks.checksum(part.tobytes("A")) for part in (table[0, 5:], table[0], table[:2].T)
    ]


def overwrite_all(arrays: list[Array]) -> list[int]:
    return [tasks.overwrite(array if array.flags.c_contiguous else array.T) for array in arrays]


def test_it_is_what_numpy_makes() -> None:
    for shape in (5, (3, 4), (400, 500), (0, 7), ()):
        for dtype in ("f8", "i4,2f8", "M8[ns]", bool):
            for order in ("C", "F"):
                made, like = rl.empty(shape, dtype, order), np.empty(shape, dtype, order)  # type: ignore[arg-type]
                assert made.shape == like.shape and made.dtype == like.dtype
                assert made.strides == like.strides and made.flags.writeable
    assert rl.empty(10).dtype == float
    for wrong in (-1, (2, -3), "x"):
        with pytest.raises((TypeError, ValueError)):
            rl.empty(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Python objects"):
        rl.empty(10_000, object)
    with pytest.raises(TypeError, match="Python objects"):
        rl.asarray(np.full(100_000, "x", object))


def test_asarray_copies_once() -> None:
    array = rl.asarray(np.asfortranarray(numbers().reshape(4, -1)))
    assert array.flags.f_contiguous and (array.T.ravel() == numbers().reshape(4, -1).T.ravel()).all()
    assert rl.asarray(array) is array
    assert rl.asarray(array, "f4").dtype == "f4"
    assert rl.asarray([1, 2]).tolist() == [1, 2]


def made_here(first: int) -> Array:
    array = rl.empty(COUNT, "i8")
    array[:] = np.arange(first, first + COUNT)
    return array


def twice(first: int) -> tuple[Array, Array]:
    array = made_here(first)
    return array, array[:]


def keep_and_answer(value: int) -> Array:
    array = tasks.KEPT.setdefault("own", rl.empty(COUNT, "i8"))
    array[:] = value
    return array  # type: ignore[no-any-return]


def test_a_task_may_answer_with_one(make: Make, nothing_there: None) -> None:
    ex = make(1, lane="process")
    kept = [ex.submit(made_here, first).result() for first in range(5)]
    for first, array in enumerate(kept):
        assert (array == numbers(first)).all()
        array[:] = 0
    assert ex.submit(made_here, 9).result()[0] == 9
    kept += ex.map(keep_and_answer, range(5))
    for value, array in enumerate(kept[5:]):
        assert (array == value).all(), "a result is a snapshot"
        array += 10
    assert ex.submit(lambda: int(tasks.KEPT["own"][0])).result() == 4
    one, other = ex.submit(twice, 6).result()
    one[0] = -1
    assert other[0] == 6
    part = ex.submit(lambda: made_here(3)[10:]).result()
    assert (part == numbers(13, COUNT - 10)).all()


def test_a_fork_has_its_own(start: Start) -> None:
    """rule 24: of what was not sent yet, of what was, and of shared objects."""
    script = start(
        """
        import gc, os
        import numpy as np
        import rightlane as rl, tasks

        class Table:
            def __init__(self, array):
                self.array = array

        large = np.arange(100_000)
        ex = rl.Executor(2, lane="process", initializer=lambda: tasks.keep("x", large))
        table = rl.share(Table(large))
        assert ex.submit(lambda h: int(h.get().array[3]), table).result() == 3
        fresh, sent = rl.asarray(np.arange(100_000)), rl.asarray(np.arange(100_000))
        handle = rl.share(np.arange(100_000))
        view = handle.get()
        wanted = tasks.checksum(sent)
        assert ex.submit(tasks.checksum, sent).result() == wanted
        to_child = os.pipe()
        if (pid := os.fork()) == 0:
            code = 1
            try:
                fresh[0], sent[1] = -1, -1
                os.read(to_child[0], 1)
                assert fresh[0] == -1 and sent[1] == -1 and fresh[2] == 2 and sent[2] == 2
                assert (view == np.arange(100_000)).all() and (handle.get() == view).all()
                assert ex.submit(tasks.checksum, fresh).result() == tasks.checksum(fresh)
                assert ex.submit(lambda h: int(h.get()[5]), handle).result() == 5
                for n in range(5):
                    assert ex.submit(tasks.checksum, large + n).result() == tasks.checksum(large + n)
                    assert ex.submit(lambda h: int(h.get().array[3]), table).result() == 3
                    assert int(ex.submit(tasks.kept, "x").result()[7]) == 7
                code = 0
            finally:
                os._exit(code)
        assert fresh[0] == 0 and sent[1] == 1, "the child's writes came here"
        fresh[2], sent[2] = -2, -2
        for array in (fresh, sent):
            assert ex.submit(tasks.overwrite, array).result() == tasks.checksum(array)
        assert ex.submit(lambda h: int(h.get()[5]), handle).result() == 5
        del fresh, sent, handle, view, array
        gc.collect()
        others = [rl.asarray(np.full(100_000, 7)) for _ in range(10)]
        assert all(ex.map(lambda a: (a == 7).all(), others))
        os.write(to_child[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """,
        flags=["-W", "ignore::DeprecationWarning"],
    )
    script.succeeds()


def test_a_fork_has_its_own_where_there_is_no_executor(start: Start) -> None:
    script = start(
        """
        import os
        import rightlane as rl

        array = rl.empty(100_000)
        array[:] = 1
        if os.fork() == 0:
            array[:] = 2
            os._exit(0)
        os.wait()
        print(array[0], array[-1])
        """
    )
    assert script.succeeds().split() == ["1.0", "1.0"]


def fork_and_go_on(log: str, go_on: str) -> None:
    array = rl.empty(COUNT)
    array[:] = 1
    if os.fork() == 0:
        while not os.path.exists(go_on):
            time.sleep(0.01)  # others are given the memory meanwhile
        Path(log + ".part").write_text(str(array[:: COUNT - 1].tolist()))
        os.rename(log + ".part", log)
        os._exit(0)


def test_a_fork_of_a_task_has_its_own(make: Make, tmp_path: Path) -> None:
    log, go_on = tmp_path / "log", tmp_path / "go on"
    ex = make(1, lane="process")
    ex.submit(fork_and_go_on, str(log), str(go_on)).result()
    assert [int(ex.submit(made_here, first).result()[0]) for first in range(4)] == [0, 1, 2, 3]
    go_on.touch()
    eventually(log.exists)
    assert log.read_text() == "[1.0, 1.0]"


def test_an_edited_module_may_hold_large_arrays(start: Start, tmp_path: Path) -> None:
    """rule 5: what then travels by value does so with its buffers, and costs no worker."""
    script = start(
        """
        import importlib, os, sys, time
        from pathlib import Path
        import numpy as np
        import rightlane as rl

        home = Path(sys.argv[1])
        sys.path.insert(0, str(home))
        source = "import os, numpy\\ndef fn(a=numpy.full(100_000, 3)): return int(a[5]) + {}, os.getpid()\\n"
        (home / "edited_one.py").write_text(source.format(1))
        import edited_one
        (home / "edited_one.py").write_text(source.format(20) + "# longer\\n")
        with rl.Executor(1, lane="process") as ex:
            for n in range(5):
                seen = [ex.submit(edited_one.fn).result() for _ in range(4)]
                assert {value for value, _ in seen} == {4}, seen
            assert len({pid for _, pid in seen}) == 1, seen
        print("right")
        """,
        str(tmp_path),
    )
    assert script.succeeds().split() == ["right"]


@pytest.mark.stress
def test_a_storm_of_all_of_it(start: Start) -> None:
    """invariants 1 and 3: arrays that many tasks share, written to, kept, and killed with their workers."""
    start(
        """
        import gc, os, random, signal, time
        import numpy as np
        import rightlane as rl, tasks
        from support import eventually, holdings

        def nothing_is_left():
            gc.collect()
            return holdings() == before

        rl.Executor, rl.Future, rl.WorkerLost, rl.share
        before, dice = holdings(), random.Random(5)
        with rl.Executor(3, lane="process") as ex:
            for round_ in range(15):
                pids = sorted(set(ex.map(tasks.here, range(6))))
                array = np.full(30_000, round_)
                own = rl.asarray(array + 1)
                handle = rl.share(array + 2)
                wanted = [tasks.checksum(np.full(30_000, round_ + n)) for n in range(3)]
                futures = []
                for _ in range(8):
                    futures.append((0, ex.submit(tasks.overwrite, array)))
                    futures.append((1, ex.submit(tasks.overwrite, own)))
                    futures.append((2, ex.submit(lambda: tasks.checksum(handle.get()))))
                    futures.append((0, ex.submit(lambda: tasks.overwrite(tasks.keep("x", array.copy())))))
                time.sleep(dice.random() * 0.005)
                try:
                    os.kill(dice.choice(pids), signal.SIGKILL)
                except ProcessLookupError:
                    pass
                array[:] = -1
                own[:] = -1
                lost = 0
                for n, future in futures:
                    try:
                        assert future.result(60) == wanted[n]
                    except rl.WorkerLost:
                        lost += 1
                assert lost <= 1, lost
        del ex, array, own, handle, futures, future
        eventually(nothing_is_left, what=f"{before} again; now {holdings()}")
        """
    ).succeeds()


# --- bytes ---


def first_and_last(data: bytes) -> tuple[type, int, int, int]:
    return type(data), len(data), data[0], data[-1]


def first_of(data: bytes) -> int:
    return data[0]


@pytest.mark.parametrize("size", [64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 5 * MIB + 3])
def test_bytes_there_and_back(pool: rl.Executor, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert pool.submit(first_and_last, data).result() == (bytes, size, data[0], data[-1])
    assert pool.submit(tasks.echo, data).result() == data
    assert pool.submit(tasks.echo, x=data).result() == data
    assert list(pool.map(tasks.echo, [data, data, b"", data])) == [data, data, b"", data]
    assert pool.submit(tasks.echo, bytearray(data)).result() == bytearray(data)


def test_the_same_bytes_are_copied_once(make: Make) -> None:
    data = random.Random(1).randbytes(MIB)
    other = random.Random(2).randbytes(MIB)
    with make(2, lane="process") as ex:
        firsts = list(ex.map(first_of, [data, other] * 20))
        moved = ex.explain(first_of).as_dict()["moved"]
    assert firsts == [data[0], other[0]] * 20
    assert moved["copies"] == 2
    assert moved["saved_bytes"] == 38 * MIB


def test_bytes_in_the_place_of_others_are_not_taken_for_them(pool: rl.Executor) -> None:
    """Memory is used again as soon as an object is gone."""

    def some() -> Iterator[bytes]:
        for number in range(40):
            yield bytes([number]) * MIB

    assert [at for _, _, at, _ in pool.map(first_and_last, some())] == list(range(40))
    firsts = [pool.submit(first_and_last, bytes([n]) * MIB) for n in range(40)]
    assert [future.result()[2] for future in firsts] == list(range(40))


def test_subclasses_of_bytes_stay_what_they_are(pool: rl.Executor) -> None:
    value = Tagged(bytes(MIB))
    assert type(pool.submit(tasks.echo, value).result()) is Tagged


class Tagged(bytes):
    """Not exactly bytes."""
