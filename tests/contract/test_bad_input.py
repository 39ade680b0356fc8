"""What is refused, with which error, and that the message says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

import rightlane as rl
import tasks
from support import Gate, Lane


@pytest.mark.parametrize("value", [0, -1, -100])
def test_too_few_workers(lane: Lane, value: int) -> None:
    with pytest.raises(ValueError, match=r"max_workers.*(greater than|at least|positive|1)"):
        rl.Executor(value, lane=lane)


@pytest.mark.parametrize("value", ["2", 2.0, [1]], ids=repr)
def test_workers_that_are_no_integer(lane: Lane, value: Any) -> None:
    with pytest.raises(TypeError, match="max_workers"):
        rl.Executor(value, lane=lane)


def test_an_integer_like_object_is_an_integer() -> None:
    class Two:
        def __index__(self) -> int:
            return 2

    with rl.Executor(Two(), lane="inline") as ex:  # type: ignore[arg-type]
        assert ex.submit(abs, -1).result() == 1


def test_an_unknown_lane(lane: Lane) -> None:
    """rule 11: ValueError, and the message names the lanes there are."""
    calls: list[Callable[[], object]] = [
        lambda: rl.Executor(1, lane="fast"),  # type: ignore[arg-type]
        lambda: rl.Executor(1, lane=lane).options(lane="fast"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(ValueError, match="fast") as caught:
            call()
        assert all(name in str(caught.value) for name in ("auto", "process", "thread", "inline"))


def test_a_lane_that_is_no_string() -> None:
    with pytest.raises((TypeError, ValueError)):
        rl.Executor(1, lane=3)  # type: ignore[arg-type]


def test_unknown_options(ex: rl.Executor) -> None:
    """rule 11: `options` and the constructor take only what exists."""
    with pytest.raises(TypeError, match="speed"):
        ex.options(speed=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="speed"):
        rl.Executor(1, speed=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        rl.Executor(1, "process")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ex.shutdown(now=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ex.map(tasks.double, [1], chunk=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("thing", [None, 3, "print", [abs]], ids=repr)
def test_what_cannot_be_called(ex: rl.Executor, thing: Any) -> None:
    with pytest.raises(TypeError, match="callable"):
        ex.submit(thing)
    with pytest.raises(TypeError, match="callable"):
        ex.map(thing, [1])
    with pytest.raises(TypeError, match="initializer"):
        rl.Executor(1, initializer=thing or cast(Any, 0))


def test_a_common_slip_is_recognised(ex: rl.Executor) -> None:
    """`submit(f())` instead of `submit(f)`: the TypeError tells what was given."""
    with pytest.raises(TypeError, match="int"):
        ex.submit(tasks.double(2))


def test_no_function_at_all(ex: rl.Executor) -> None:
    with pytest.raises(TypeError):
        ex.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ex.map()  # type: ignore[call-arg]


def test_coroutine_functions_are_refused_clearly(ex: rl.Executor) -> None:
    """Until there is a loop lane: TypeError at the call, not a coroutine nobody awaits."""
    with pytest.raises(TypeError, match="async"):
        ex.submit(tasks.coroutine_function)
    with pytest.raises(TypeError, match="async"):
        ex.map(tasks.coroutine_function, [])


def test_inputs_that_cannot_be_iterated(ex: rl.Executor) -> None:
    with pytest.raises(TypeError, match="iterable"):
        ex.map(tasks.double, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
def test_bad_sizes(ex: rl.Executor, name: str) -> None:
    value: Any
    for value in (0, -1):
        with pytest.raises(ValueError, match=name):
            ex.map(tasks.double, [1], **{name: value})
    for value in ("3", 1.5):
        with pytest.raises(TypeError, match=name):
            ex.map(tasks.double, [1], **{name: value})


def test_wrong_arguments_of_the_function_are_the_tasks_error(ex: rl.Executor) -> None:
    """What only the call can tell reaches the future."""
    double: Any = tasks.double
    assert isinstance(ex.submit(double).exception(), TypeError)
    assert isinstance(ex.submit(double, 1, nothing=2).exception(), TypeError)


def test_refused_calls_cost_nothing(make: Callable[..., rl.Executor], busy_lane: Lane, gate: Gate) -> None:
    """After each of them the executor works, and ends."""
    ex = make(1, lane=busy_lane)
    for _ in range(50):
        with pytest.raises(TypeError):
            ex.submit(None)  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            ex.map(tasks.double, [1], chunksize=0)
    assert ex.submit(tasks.double, 1).result() == 2
    ex.shutdown()


def test_errors_are_one_tree() -> None:
    """Each is also what code in the wild expects."""
    import concurrent.futures as cf
    import pickle
    from concurrent.futures.process import BrokenProcessPool
    from concurrent.futures.thread import BrokenThreadPool

    assert issubclass(rl.WorkerLost, (rl.RightlaneError, BrokenProcessPool))
    assert issubclass(rl.WorkerLost, BrokenProcessPool) and issubclass(rl.WorkerLost, rl.RightlaneError)
    assert issubclass(rl.SerializationError, pickle.PicklingError)
    assert issubclass(rl.SerializationError, rl.RightlaneError)
    assert issubclass(rl.BrokenExecutor, cf.BrokenExecutor) and issubclass(
        rl.BrokenExecutor, rl.RightlaneError
    )
    assert issubclass(rl.BrokenExecutor, BrokenProcessPool) and issubclass(
        rl.BrokenExecutor, BrokenThreadPool
    )
