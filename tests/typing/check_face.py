"""What a user's type checker sees. Read by mypy, never run; each ignored error must really be one."""

import asyncio
import concurrent.futures
from collections.abc import Iterator
from typing import assert_type

import rightlane as rl
from rightlane import futures


def length(text: str, *, base: int = 10) -> int:
    return len(text) + base


def area(width: float, height: float) -> float:
    return width * height


def submit() -> None:
    with rl.Executor() as ex:
        assert_type(ex, rl.Executor)
        future = ex.submit(length, "x", base=2)
        assert_type(future, rl.Future[int])
        assert_type(future.result(), int)
        assert_type(future.result(timeout=1.5), int)
        assert_type(future.exception(), BaseException | None)
        assert_type(future.cancel(), bool)
        assert_type(ex.submit(lambda: "x"), rl.Future[str])
        ex.submit(length, 3)  # type: ignore[arg-type]
        ex.submit(length, "x", speed=3)  # type: ignore[call-arg]
        ex.submit(3)  # type: ignore[arg-type]


def maps(ex: rl.Executor) -> None:
    assert_type(ex.map(length, ["a"]), Iterator[int])
    assert_type(ex.map(area, [1.0], (2.0,), timeout=3, chunksize=10, buffersize=5), Iterator[float])
    assert_type(list(ex.map(str, range(3), timeout=None, chunksize=None, buffersize=None)), list[str])
    ex.map(length, ["a"], chunk=3)  # type: ignore[call-arg]


def shared() -> None:
    assert_type(rl.submit(length, "x", base=2), rl.Future[int])
    assert_type(rl.map(area, [1.0], (2.0,), timeout=3, chunksize=10, buffersize=5), Iterator[float])
    rl.submit(length, 3)  # type: ignore[arg-type]
    rl.map(length, ["a"], chunk=3)  # type: ignore[call-arg]


def views(ex: rl.Executor) -> None:
    view = ex.options(lane="thread")
    assert_type(view.submit(area, 1, 2), rl.Future[float])
    assert_type(view.map(length, ["a"]), Iterator[int])
    ex.options(lane="fast")  # type: ignore[arg-type]
    ex.options(speed=3)  # type: ignore[call-arg]


def construct() -> None:
    rl.Executor(4, lane="process", initializer=print, initargs=("x",), thread_name_prefix="t")
    rl.Executor(4, lane="process", max_tasks_per_child=10)
    rl.Executor(4, lane="process", max_tasks_per_child="10")  # type: ignore[arg-type]
    rl.Executor(None, lane="inline").shutdown(wait=False, cancel_futures=True, kill=True)
    rl.Executor("4")  # type: ignore[arg-type]
    rl.Executor(lane="fast")  # type: ignore[arg-type]


def standard(ex: rl.Executor) -> None:
    executor: concurrent.futures.Executor = ex
    future: concurrent.futures.Future[int] = ex.submit(length, "x")
    done, not_done = concurrent.futures.wait([ex.submit(length, "x")])
    for completed in concurrent.futures.as_completed([ex.submit(length, "x")]):
        assert_type(completed.result(), int)
    del executor, future, done, not_done


async def loops(ex: rl.Executor) -> None:
    assert_type(await ex.submit(length, "x"), int)
    assert_type(await asyncio.wrap_future(ex.submit(length, "x")), int)
    assert_type(await asyncio.get_running_loop().run_in_executor(ex, length, "x"), int)


def errors(lost: rl.WorkerLost, unsent: rl.SerializationError) -> None:
    assert_type(lost.pid, int)
    assert_type(lost.signal, int | None)
    assert_type(lost.exit_code, int | None)
    assert_type(lost.task, str)
    assert_type(lost.attempt, int)
    assert_type(unsent.path, str)
    base: rl.RightlaneError = lost
    base = unsent
    del base
    assert_type(rl.__version__, str)


def drop_ins() -> None:
    with futures.ProcessPoolExecutor(2, max_tasks_per_child=10) as processes:
        standard: concurrent.futures.ProcessPoolExecutor = processes
        assert_type(processes.submit(length, "x"), rl.Future[int])
        assert_type(processes.map(area, [1.0], [2.0], chunksize=2, buffersize=3), Iterator[float])
        processes.terminate_workers()
        del standard
    threads = futures.ThreadPoolExecutor(thread_name_prefix="reader", initializer=print, initargs=("x",))
    asyncio.get_event_loop().set_default_executor(threads)
    done, _ = futures.wait([threads.submit(length, "x")])
    assert_type(done.pop().result(), int)
    futures.ThreadPoolExecutor(mp_context=None)  # type: ignore[call-arg]
