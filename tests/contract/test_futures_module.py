"""`rightlane.futures`: the standard names, arguments and errors, and what existing code reads of pools."""

from __future__ import annotations

import concurrent.futures
import gc
import inspect
import itertools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from multiprocessing.connection import wait as wait_for_sentinels
from typing import Any

import pytest

import rightlane as rl
import tasks
from rightlane import futures
from rightlane.futures import ProcessPoolExecutor, ThreadPoolExecutor
from support import Gate, Start, alive, eventually

Pool = ProcessPoolExecutor | ThreadPoolExecutor


@pytest.fixture
def made() -> Iterator[Callable[..., Any]]:
    """Make drop-in executors that are killed at the end of the test."""
    pools: list[Any] = []

    def factory(kind: Any, *args: Any, **kwargs: Any) -> Any:
        pools.append(kind(*args, **kwargs))
        return pools[-1]

    yield factory
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True, kill=True)


@pytest.fixture(params=[ProcessPoolExecutor, ThreadPoolExecutor], ids=["process", "thread"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def drop_in(made: Callable[..., Any], kind: Any) -> Any:
    return made(kind, 2)


@pytest.fixture
def processes(made: Callable[..., Any]) -> Any:
    return made(ProcessPoolExecutor, 2)


# --- the module ---


def test_every_public_name_of_the_standard_module() -> None:
    """What is not an executor is the standard object itself, so isinstance and `except` go on working."""
    for name in concurrent.futures.__all__:
        if name.endswith("PoolExecutor") and name not in ("ProcessPoolExecutor", "ThreadPoolExecutor"):
            continue  # newer kinds, which we have no counterpart of
        ours, theirs = getattr(futures, name), getattr(concurrent.futures, name)
        assert name in futures.__all__
        if name in ("ProcessPoolExecutor", "ThreadPoolExecutor"):
            assert issubclass(ours, theirs) and ours is not theirs
        else:
            assert ours is theirs
    assert futures.process.BrokenProcessPool is BrokenProcessPool is futures.BrokenProcessPool
    assert futures.thread.BrokenThreadPool is BrokenThreadPool is futures.BrokenThreadPool
    assert rl.futures is futures


def test_arguments_are_those_of_python_3_14() -> None:
    def arguments(function: Any) -> list[str]:
        return [str(p.replace(annotation=p.empty)) for p in inspect.signature(function).parameters.values()]

    assert arguments(ProcessPoolExecutor) == [
        "max_workers=None",
        "mp_context=None",
        "initializer=None",
        "initargs=()",
        "max_tasks_per_child=None",
    ]
    assert arguments(ThreadPoolExecutor) == [
        "max_workers=None",
        "thread_name_prefix=''",
        "initializer=None",
        "initargs=()",
    ]
    assert arguments(ProcessPoolExecutor.map) == [
        "self",
        "fn",
        "*iterables",
        "timeout=None",
        "chunksize=1",
        "buffersize=None",
    ]
    assert arguments(ProcessPoolExecutor.terminate_workers) == ["self"]
    assert arguments(ProcessPoolExecutor.kill_workers) == ["self"]


def test_submit_is_the_executors_own(kind: Any) -> None:
    """So it costs what it costs there."""
    assert kind.submit is rl.Executor.submit


def test_default_sizes(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = getattr(os, "process_cpu_count", lambda: len(os.sched_getaffinity(0)))()
    assert made(ProcessPoolExecutor)._max_workers == cpus
    assert made(ThreadPoolExecutor)._max_workers == min(32, cpus + 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": "2"}, TypeError, "max_workers must be an integer"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
def test_bad_arguments(kind: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_tasks_per_child": "2"}, TypeError, "max_tasks_per_child must be an integer"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1"),
        (
            {"max_tasks_per_child": 2, "mp_context": multiprocessing.get_context("fork")},
            ValueError,
            "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method",
        ),
        ({"mp_context": "spawn"}, TypeError, "multiprocessing.get_context"),
    ],
)
def test_bad_arguments_of_processes(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ProcessPoolExecutor(1, **options)


def test_the_context_is_recorded(made: Callable[..., Any]) -> None:
    context = multiprocessing.get_context("forkserver")
    assert made(ProcessPoolExecutor, 1, context)._mp_context is context
    assert made(ProcessPoolExecutor, 1)._mp_context is multiprocessing.get_context()
    recycled = made(ProcessPoolExecutor, 1, max_tasks_per_child=2)
    assert recycled._mp_context.get_start_method() == "spawn"
    pids = [recycled.submit(os.getpid).result() for _ in range(6)]
    assert [len(set(pids[i : i + 2])) for i in (0, 2, 4)] == [1, 1, 1] and len(set(pids)) == 3


# --- map ---


def test_map_without_iterables_is_empty(drop_in: Any) -> None:
    assert list(drop_in.map(tasks.noop)) == []


def test_map_reads_its_input_at_the_call(drop_in: Any) -> None:
    """To its end, as the standard class does, also where `rightlane.Executor` would read ahead in part."""
    read = []
    results = drop_in.map(tasks.double, (read.append(i) or i for i in range(12_000)))
    assert len(read) == 12_000
    assert list(results) == [2 * i for i in range(12_000)]


def test_map_raises_what_its_input_raises(drop_in: Any) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("input")

    with pytest.raises(KeyError, match="input"):
        drop_in.map(tasks.double, broken())


@pytest.mark.parametrize("endless", [False, True], ids=["sized", "endless"])
def test_buffersize_bounds_what_is_read(drop_in: Any, endless: bool) -> None:
    read: list[int] = []
    source = itertools.count() if endless else iter(range(100))
    results = drop_in.map(tasks.double, (read.append(i) or i for i in source), buffersize=3)
    assert len(read) <= 3
    for i in range(20):
        assert next(results) == 2 * i
        assert len(read) <= i + 1 + 3
    results.close()


def test_bad_arguments_of_map(drop_in: Any) -> None:
    for size in (0, -1):
        with pytest.raises(ValueError, match="buffersize must be None or > 0"):
            drop_in.map(tasks.double, [1], buffersize=size)
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        drop_in.map(tasks.double, [1], buffersize="3")


def test_chunksize(made: Callable[..., Any]) -> None:
    pool = made(ProcessPoolExecutor, 2)
    for chunksize in (1, 2, 7, 1000):
        assert list(pool.map(tasks.double, range(100), chunksize=chunksize)) == [2 * i for i in range(100)]
    with pytest.raises(ValueError, match=r"chunksize must be >= 1\."):
        pool.map(tasks.double, [1], chunksize=0)
    # Means nothing to threads, as in the standard library.
    assert list(made(ThreadPoolExecutor, 1).map(tasks.double, [1], chunksize=0)) == [2]


def test_a_map_that_timed_out_cancels_the_rest(drop_in: Any, gate: Gate) -> None:
    held = gate.occupy(drop_in, 2)
    results = drop_in.map(tasks.double, range(5), timeout=0)
    with pytest.raises(futures.TimeoutError):
        next(results)
    gate.open()
    assert futures.wait(held).done == set(held)


# --- errors ---


def test_submit_after_shutdown(drop_in: Any) -> None:
    drop_in.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        drop_in.submit(tasks.noop)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        drop_in.map(tasks.noop, [1])


def test_an_initializer_that_raises_breaks_the_pool(made: Callable[..., Any], kind: Any) -> None:
    pool = made(kind, 1, initializer=tasks.fail, initargs=(KeyError, "no"))
    broken = BrokenProcessPool if kind is ProcessPoolExecutor else BrokenThreadPool
    assert pool._broken is False
    with pytest.raises(broken):
        pool.submit(tasks.noop).result()
    eventually(lambda: pool._broken)
    assert "initializer" in pool._broken
    with pytest.raises(broken):
        pool.submit(tasks.noop)


def test_a_worker_logs_what_its_initializer_raised(start: Start) -> None:
    """With the standard message, on the standard logger, in the worker process."""
    script = start("""
        import logging, os
        from rightlane.futures import BrokenExecutor, ProcessPoolExecutor

        def init(caller):
            assert os.getpid() != caller
            logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
            raise ValueError("error in initializer")

        with ProcessPoolExecutor(1, initializer=init, initargs=(os.getpid(),)) as pool:
            try:
                pool.submit(abs, 1).result()
            except BrokenExecutor:
                print("broken")
    """)
    assert script.succeeds() == "broken\n"
    assert "concurrent.futures CRITICAL Exception in initializer:\nTraceback" in script.err
    assert "ValueError: error in initializer" in script.err


class Unreadable:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return tasks.fail, (ValueError, "unreadable")


class Leaves:
    """Leaves when it is pickled."""

    def __reduce__(self) -> Any:
        raise SystemExit(3)


def unreadable() -> Unreadable:
    return Unreadable()


def leaves() -> Leaves:
    return Leaves()


@pytest.mark.parametrize("direction", ["argument", "result"])
def test_what_cannot_be_unpickled(processes: Any, direction: str) -> None:
    """A standard pool breaks of it, so the error is also a BrokenProcessPool; ours goes on."""
    task = (tasks.echo, Unreadable()) if direction == "argument" else (unreadable,)
    future = processes.submit(*task)
    with pytest.raises(rl.DeserializationError, match="unreadable") as caught:
        future.result()
    assert isinstance(caught.value, BrokenProcessPool)
    assert isinstance(caught.value, rl.SerializationError)
    assert isinstance(caught.value, pickle.PicklingError) and isinstance(caught.value, pickle.UnpicklingError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is rl.DeserializationError and copy.path == caught.value.path
    assert processes.submit(tasks.double, 2).result() == 4


def test_what_cannot_be_pickled_breaks_nothing(processes: Any) -> None:
    with pytest.raises(pickle.PicklingError) as caught:
        processes.submit(tasks.echo, threading.Lock()).result()
    assert not isinstance(caught.value, BrokenProcessPool)


def test_an_exit_while_a_result_is_pickled_is_the_tasks_end(processes: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        processes.submit(leaves).result()
    assert caught.value.code == 3
    assert processes.submit(tasks.double, 2).result() == 4


def test_the_remote_traceback_reads_as_the_standard_one(processes: Any) -> None:
    error = processes.submit(tasks.fail, ValueError, "here").exception()
    assert "ValueError: here" in error.__cause__.tb


# --- ending workers ---


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_ending_the_workers(processes: Any, gate: Gate, method: str) -> None:
    """What they run is lost, what nobody has begun is cancelled, and the pool is over."""
    held = gate.occupy(processes, 2)
    workers = processes._processes
    waiting = processes.submit(tasks.noop)
    getattr(processes, method)()
    for future in held:
        with pytest.raises(BrokenProcessPool):
            future.result()
    assert waiting.cancelled()
    for worker in workers.values():
        worker.join()
    with pytest.raises(RuntimeError, match="after shutdown"):
        processes.submit(tasks.noop)
    getattr(processes, method)()
    processes.shutdown()


# --- what existing code reads of the insides ---


def test_worker_processes(processes: Any, gate: Gate) -> None:
    held = gate.occupy(processes, 2)
    workers = processes._processes
    assert sorted(workers) == sorted(gate.started().values())
    for pid, worker in workers.items():
        assert (worker.pid, worker.ident) == (pid, pid)
        assert worker.is_alive() and worker.exitcode is None and str(pid) in repr(worker)
    victim, other = workers.values()
    victim.join(0)
    assert wait_for_sentinels([victim.sentinel, other.sentinel], 0) == []
    victim.terminate()
    victim.join()
    assert wait_for_sentinels([victim.sentinel, other.sentinel]) == [victim.sentinel]
    assert not victim.is_alive() and other.is_alive()
    victim.terminate()
    victim.kill()
    gate.open()
    lost = [future for future in held if isinstance(future.exception(), rl.WorkerLost)]
    assert [future.exception().pid for future in lost] == [victim.pid]
    # The standard pool would be broken now.
    assert processes.submit(tasks.double, 2).result() == 4
    assert victim.pid not in processes._processes
    processes.shutdown()
    assert processes._processes is None


def test_a_worker_that_is_being_forked_is_waited_for(made: Callable[..., Any], gate: Gate) -> None:
    pool = made(ProcessPoolExecutor, 1)
    held = pool.submit(tasks.hold, gate.path, "x", "x")
    (worker,) = pool._processes.values()
    assert alive(worker.pid)
    gate.open()
    assert held.result() == "x"


def test_threads(made: Callable[..., Any], gate: Gate) -> None:
    pool = made(ThreadPoolExecutor, 3, "mine")
    assert pool._threads == set()
    held = gate.occupy(pool, 2)
    assert {thread.name for thread in pool._threads} == {"mine_0", "mine_1"}
    assert pool._thread_name_prefix == "mine" and pool._shutdown is False
    assert pool._work_queue.qsize() == 2 and not pool._work_queue.empty()
    gate.open()
    futures.wait(held)
    eventually(pool._work_queue.empty)
    pool.shutdown()
    assert pool._shutdown is True
    assert made(ThreadPoolExecutor, 1)._thread_name_prefix.startswith("ThreadPoolExecutor-")


def test_looking_at_a_pool_does_not_keep_it(gate: Gate) -> None:
    """A pool that nobody holds ends, whatever was read of it."""
    pool = ProcessPoolExecutor(1)
    gate.occupy(pool, 1)
    supervision, backlog, workers = pool._executor_manager_thread, pool._call_queue, pool._processes
    assert supervision is not None and supervision.is_alive()
    assert backlog is not None and backlog.qsize() == 1
    backlog.join_thread()
    del pool
    gc.collect()
    supervision.join(0)
    assert supervision.is_alive()
    gate.open()
    supervision.join()
    assert not supervision.is_alive() and backlog.empty()
    assert workers is not None
    for worker in workers.values():
        worker.join()


def test_arguments_can_be_read_back(made: Callable[..., Any], kind: Any) -> None:
    pool = made(kind, 3, initializer=tasks.noop, initargs=(1, 2))
    assert (pool._max_workers, pool._initializer, pool._initargs) == (3, tasks.noop, (1, 2))
