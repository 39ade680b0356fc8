"""What cannot be sent fails alone, and says where; the worker lives."""

from __future__ import annotations

import functools
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rightlane as rl
import tasks
from support import available_memory_bytes, lines

GIB = 1 << 30


@pytest.fixture
def one(make: Callable[..., rl.Executor]) -> rl.Executor:
    return make(1, lane="process")


@pytest.fixture
def same_worker(one: rl.Executor) -> Any:
    """After the test the worker is the one from before it."""
    pid = one.submit(os.getpid).result()
    yield
    assert one.submit(os.getpid).result() == pid


def failure(future: rl.Future[Any], *names: str) -> rl.SerializationError:
    """The SerializationError that `result()` raises, once found the future's exception for good.

    `result()` is asked first: whether a success can be opened is not known before somebody wants to (rule 9).
    """
    with pytest.raises(rl.SerializationError) as caught:
        future.result()
    error = caught.value
    assert future.exception() is error
    assert isinstance(error, rl.SerializationError) and isinstance(error, pickle.PicklingError), repr(error)
    assert not isinstance(error, rl.WorkerLost)
    for name in names:
        assert name in error.path and name in str(error), (name, error.path, str(error))
    return error


@pytest.mark.usefixtures("same_worker")
class TestWhatCannotBePickled:
    def test_arguments(self, one: rl.Executor) -> None:
        """The path leads to the culprit inside the argument."""
        failure(one.submit(tasks.echo, threading.Lock()), "args[0]")
        failure(one.submit(tasks.echo, tasks.lock_holder()), "args[0]", "config", "lock")
        failure(one.submit(tasks.everything, 1, [2, (3, threading.Lock())]), "args[1]")
        failure(one.submit(tasks.everything, a={"deep": [tasks.Locked()]}), "a", "deep", "lock")

    def test_functions(self, one: rl.Executor) -> None:
        connection = threading.Lock()

        def uses_connection() -> bool:
            return connection.locked()

        failure(one.submit(uses_connection), "connection")
        failure(one.submit(functools.partial(tasks.echo, tasks.Locked())), "lock")
        failure(one.submit(connection.locked))

    def test_results_and_the_task_ran_once(self, one: rl.Executor, tmp_path: Path) -> None:
        """A task is never run again because its result cannot be sent."""
        log = str(tmp_path / "log")
        failure(one.submit(tasks.lock_holder, log), "result", "config", "lock")
        assert lines(log) == ["ran"]

    def test_exceptions_still_tell_what_happened(self, one: rl.Executor) -> None:
        """The cause is the original as far as possible, with the remote traceback."""
        import traceback

        error = failure(one.submit(tasks.fail_with_lock), "lock")
        text = "".join(traceback.format_exception(error))
        assert "holds a lock" in text and "fail_with_lock" in text

    def test_hostile_exceptions(self, one: rl.Executor) -> None:
        """Whatever an exception does in its methods, the future ends and the worker lives."""
        error = one.submit(tasks.fail_hostile).exception()
        assert isinstance(error, (rl.SerializationError, tasks.Hostile))

    def test_items_of_a_map(self, one: rl.Executor) -> None:
        """That item alone fails."""
        results = one.map(tasks.echo, [1, 2, threading.Lock(), 4])
        assert [next(results), next(results)] == [1, 2]
        with pytest.raises(rl.SerializationError):
            next(results)

    def test_results_of_a_map(self, one: rl.Executor) -> None:
        results = one.map(lambda i: threading.Lock() if i == 30 else i, range(60), chunksize=20)
        seen = []
        with pytest.raises(rl.SerializationError):
            for value in results:
                seen.append(value)
        assert seen == list(range(30))

    def test_generators_frames_and_modules_of_c(self, one: rl.Executor) -> None:
        failure(one.submit(tasks.echo, (i for i in range(3))))
        failure(one.submit(eval, "(i for i in range(3))"))

    def test_objects_too_deep_to_pickle(self, one: rl.Executor) -> None:
        """A RecursionError of the pickler is a SerializationError on both sides, within bounded time."""
        deep = tasks.nest(100_000)
        failure(one.submit(len, deep))
        failure(one.submit(tasks.nest, 100_000))
        while deep:
            deep = deep.pop()


@pytest.mark.usefixtures("same_worker")
class TestWhatCannotBeOpened:
    @pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, RecursionError])
    def test_arguments_in_the_worker(self, one: rl.Executor, kind: type[BaseException]) -> None:
        error = failure(one.submit(tasks.echo, tasks.Slippery(tasks.fail, kind, "cannot be opened")))
        import traceback

        assert "cannot be opened" in "".join(traceback.format_exception(error))

    def test_functions_in_the_worker(self, one: rl.Executor) -> None:
        """Each task that needs the function fails, and says why."""
        for _ in range(3):
            failure(one.submit(tasks.Slippery(tasks.fail, ValueError, "cannot be opened")))
        with pytest.raises(rl.SerializationError):
            list(one.map(tasks.Slippery(tasks.fail, ValueError), range(100)))

    def test_results_in_the_caller(self, one: rl.Executor) -> None:
        """The failure is the future's own; it is found once, by whoever asks first."""
        future = one.submit(tasks.result_that_opens_only_here)
        error = failure(future)
        with pytest.raises(rl.SerializationError) as again:
            future.result()
        assert again.value is error

    def test_results_that_exit_in_the_caller(self, one: rl.Executor) -> None:
        """Not even SystemExit from an unpickler gets out of `result()` as such."""
        failure(one.submit(tasks.slippery, tasks.fail, SystemExit, 3))

    def test_results_in_a_callback(self, one: rl.Executor) -> None:
        """The completion thread survives it."""
        seen: list[str] = []
        done = threading.Event()

        def opens(future: Any) -> None:
            try:
                future.result()
            except rl.SerializationError:
                seen.append("refused")

        one.submit(tasks.result_that_opens_only_here).add_done_callback(opens)
        one.submit(tasks.noop).add_done_callback(lambda f: done.set())
        assert done.wait(60)
        assert seen == ["refused"]

    def test_one_result_of_a_map(self, one: rl.Executor) -> None:
        results = one.map(
            lambda i: tasks.result_that_opens_only_here() if i == 2 else i, range(4), chunksize=4
        )
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(rl.SerializationError):
            next(results)


@pytest.mark.usefixtures("same_worker")
class TestExceptionsOnTheWay:
    def test_an_init_that_cannot_be_replayed(self, one: rl.Executor) -> None:
        """It arrives as what it is: class, args and attributes, with the remote traceback."""
        error = one.submit(tasks.fail_with_two_arguments).exception()
        assert type(error) is tasks.TwoArguments
        assert (str(error), error.code, error.reason) == ("no space (42)", 42, "no space")
        assert "fail_with_two_arguments" in str(error.__cause__)

    def test_classes_the_parent_does_not_have(self, one: rl.Executor) -> None:
        """A class made in the worker, raised there."""

        def raises_a_local_class() -> None:
            class Local(ValueError):
                pass

            raise Local("from far away")

        error = one.submit(raises_a_local_class).exception()
        assert (
            isinstance(error, ValueError)
            and type(error).__name__ == "Local"
            and error.args == ("from far away",)
        )

    def test_the_class_is_the_parents_own(self, one: rl.Executor) -> None:
        """rule 7: `except` in the caller catches it."""

        class Mine(Exception):
            pass

        def raises_mine() -> None:
            raise Mine("x")

        with pytest.raises(Mine):
            one.submit(raises_mine).result()

    def test_real_library_exceptions(self, one: rl.Executor) -> None:
        """Those known for signatures that do not replay."""
        import json
        import subprocess
        import urllib.error

        error = one.submit(json.loads, "{").exception()
        assert type(error) is json.JSONDecodeError and error.pos == 1
        error = one.submit(tasks.fail, urllib.error.HTTPError, "http://x", 404, "no", {}, None).exception()
        assert isinstance(error, urllib.error.HTTPError) and error.code == 404
        error = one.submit(subprocess.run, ["false"], check=True).exception()
        assert (
            type(error) is subprocess.CalledProcessError and error.returncode == 1 and error.cmd == ["false"]
        )

    def test_a_system_exit_keeps_the_worker(self, one: rl.Executor) -> None:
        """`sys.exit` in a task is the task's end, not the worker's."""
        for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError):
            assert type(one.submit(tasks.fail, kind).exception()) is kind


needs_memory = pytest.mark.skipif(available_memory_bytes() < 8 * GIB, reason="needs 8 GiB of free memory")


@pytest.mark.once
@needs_memory
def test_an_argument_and_a_result_of_one_gib(one: rl.Executor) -> None:
    """Far larger than any ring, both ways."""
    data = tasks.big(GIB)
    assert one.submit(tasks.ends, data).result() == (GIB, b"a", b"z")
    del data
    assert tasks.ends(one.submit(tasks.big, GIB).result()) == (GIB, b"a", b"z")
