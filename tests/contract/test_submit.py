"""`submit` in every lane: what goes in, what comes out, and what a task may raise."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import threading
import traceback
from collections.abc import Callable

import pytest

import rightlane as rl
import tasks
from support import Lane


def test_it_is_a_real_executor_and_makes_real_futures(ex: rl.Executor) -> None:
    """Whoever checks for the standard library's types finds them."""
    assert isinstance(ex, concurrent.futures.Executor)
    future = ex.submit(tasks.double, 21)
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future, rl.Future)
    assert future.result() == 42
    assert future.exception() is None
    assert future.done() and not future.running() and not future.cancelled()


def test_arguments_arrive_as_given(ex: rl.Executor) -> None:
    """No keyword is taken from the function: `fn`, `self` and `lane` are its own."""
    args, kwargs = ex.submit(tasks.everything, 1, (2, "x"), None, fn=3, self=b"4", lane=[5]).result()
    assert args == (1, (2, "x"), None)
    assert kwargs == {"fn": 3, "self": b"4", "lane": [5]}


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**63,
        -(2**200),
        1.5,
        float("inf"),
        "",
        "é\ud800",
        b"\0\xff",
        (),
        (1, (2.0, "x")),
        [1, [2]],
        {"a": {1, 2}},
        frozenset("ab"),
        range(5),
        3 + 4j,
        Ellipsis,
        int,
        bytearray(b"x"),
        (True, 1, 1.0),
    ],
    ids=repr,
)
def test_values_come_back_equal_and_of_the_same_type(ex: rl.Executor, value: object) -> None:
    """The scalar codec and pickle agree on what a value is."""
    back = ex.submit(tasks.echo, value).result()
    assert back == value and type(back) is type(value)
    if isinstance(value, tuple):
        assert isinstance(back, tuple) and [type(x) for x in value] == [type(x) for x in back]


def test_any_callable_can_be_sent(ex: rl.Executor) -> None:
    """Builtins, classes, partials, bound methods, instances, lambdas, closures and local functions."""
    offset = 10

    def local(x: int) -> int:
        return x + offset

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def __call__(self, x: int) -> int:
            return x + self.n

        def method(self, x: int) -> int:
            return x + self.n

    callables: list[Callable[[int], int]] = [
        abs,
        int,
        functools.partial(tasks.add, 10),
        lambda x: x + offset,
        local,
        Adder(10),
        Adder(10).method,
    ]
    assert [ex.submit(fn, 5).result() for fn in callables] == [5, 5, 15, 15, 15, 15, 15]


def test_many_tasks_each_get_their_own_answer(ex: rl.Executor) -> None:
    futures = [ex.submit(tasks.double, i) for i in range(2000)]
    assert [f.result() for f in futures] == [2 * i for i in range(2000)]


def test_submit_from_many_threads(ex: rl.Executor) -> None:
    """The executor may be shared by threads."""
    sums: list[int] = []

    def client(base: int) -> None:
        sums.append(sum(ex.submit(tasks.double, base + i).result() for i in range(100)))

    threads = [threading.Thread(target=client, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == [2 * sum(range(1000 * n, 1000 * n + 100)) for n in range(8)]


def test_messages_larger_than_a_ring_both_ways_at_once(ex: rl.Executor) -> None:
    """Large arguments and large results cross in chunks without waiting for each other for ever."""
    blobs = [bytes([i]) * 700_000 for i in range(40)]
    futures = [ex.submit(tasks.echo, blob) for blob in blobs]
    huge = ex.submit(tasks.echo, b"x" * 30_000_000)
    assert all(f.result() == blob for f, blob in zip(futures, blobs, strict=True))
    assert len(huge.result()) == 30_000_000


def test_where_tasks_run(ex: rl.Executor, lane: str) -> None:
    """Process and auto run in another process, thread in another thread, inline in the caller."""
    pid, tid = ex.submit(tasks.where).result()
    if lane in ("process", "auto"):
        assert pid != os.getpid()
    else:
        assert pid == os.getpid()
        assert (tid == threading.get_native_id()) == (lane == "inline")


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (ValueError, ("bad", 3)),
        (KeyError, ("k",)),
        (FileNotFoundError, (2, "gone", "/f")),
        (StopIteration, (1,)),
        (SystemExit, (3,)),
        (KeyboardInterrupt, ()),
        (GeneratorExit, ()),
        (MemoryError, ()),
        (RecursionError, ("deep",)),
        (concurrent.futures.CancelledError, ()),
        (TimeoutError, ("late",)),
        (UnicodeDecodeError, ("utf-8", b"\xff", 0, 1, "bad")),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_whatever_a_task_raises_reaches_its_future(
    ex: rl.Executor, kind: type[BaseException], args: tuple[object, ...]
) -> None:
    """Also what would end a thread or a process: SystemExit and KeyboardInterrupt are the future's."""
    future = ex.submit(tasks.fail, kind, *args)
    error = future.exception()
    assert type(error) is kind and error.args == kind(*args).args
    with pytest.raises(kind) as caught:
        future.result()
    assert caught.value is error, "each answer is unpickled once and kept"
    assert not future.cancelled()
    assert ex.submit(tasks.double, 1).result() == 2


def test_the_traceback_tells_where_it_was_raised(ex: rl.Executor) -> None:
    """Locally through the frames, from a worker through `__cause__`."""
    error = ex.submit(tasks.fail, ValueError, "here").exception()
    assert error is not None
    text = "".join(traceback.format_exception(error))
    assert "in fail" in text and "raise kind(*args)" in text and "tasks.py" in text


def test_cause_and_notes_are_kept(ex: rl.Executor) -> None:
    error = ex.submit(tasks.fail_in_a_chain).exception()
    assert type(error) is ValueError and error.__notes__ == ["a note from the worker"]
    assert type(error.__cause__) is KeyError and error.__cause__.args == ("the root",)
    text = "".join(traceback.format_exception(error))
    assert "in fail_in_a_chain" in text and "the root" in text and "a note from the worker" in text


def test_exception_groups_arrive_whole(ex: rl.Executor) -> None:
    error = ex.submit(tasks.fail_in_a_group).exception()
    assert isinstance(error, ExceptionGroup)
    assert [(type(e), e.args) for e in error.exceptions] == [(ValueError, ("a",)), (TypeError, ("b",))]


def test_bottomless_recursion_is_an_exception(busy: rl.Executor) -> None:
    assert type(busy.submit(tasks.sink_for_ever).exception()) is RecursionError
    assert busy.submit(tasks.double, 2).result() == 4


@pytest.mark.parametrize("inner", ["process", "thread"])
def test_a_task_may_have_an_executor_of_its_own(busy: rl.Executor, inner: Lane) -> None:
    assert busy.submit(tasks.nested, inner).result() == [0, 2, 4, 6, 8]
