"""Locks, queues, pipes and shared values reach workers, though these started before they were passed."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.sharedctypes import RawArray
from typing import Any

import pytest

import rightlane as rl
import tasks
from support import Gate

SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("fork")

_kept: dict[str, Any] = {}


def keep(**things: Any) -> None:
    _kept.update(things)


def put_pid() -> None:
    with _kept["lock"]:
        _kept["queue"].put(os.getpid())


def count_up(counter: Any, times: int) -> None:
    for _ in range(times):
        with counter.get_lock():
            counter.value += 1


def fill(array: Any, at: int) -> None:
    array[at] = at


def send(connection: Any, value: object) -> None:
    connection.send(value)


def answer(connection: Any) -> None:
    connection.send(connection.recv() * 2)


def meet(event: Any, condition: Any) -> bool:
    with condition:
        condition.notify_all()
    return bool(event.wait(60))


def test_a_queue_and_a_lock_for_every_worker(make: Callable[..., rl.Executor], gate: Gate) -> None:
    """As arguments of the initializer, which is how a standard pool hands them on."""
    queue, lock = SPAWN.Queue(), SPAWN.Lock()
    pool = make(2, lane="process", initializer=_keep_both, initargs=(queue, lock))
    gate.occupy(pool, 2)
    gate.open()
    lock.acquire()
    put = [pool.submit(put_pid) for _ in range(10)]
    assert queue.empty()
    lock.release()
    for future in put:
        future.result()
    assert {queue.get(timeout=60) for _ in put} <= set(gate.started().values())
    queue.close()
    queue.join_thread()


def _keep_both(queue: Any, lock: Any) -> None:
    keep(queue=queue, lock=lock)


def test_a_simple_queue(pool: rl.Executor) -> None:
    queue = SPAWN.SimpleQueue()
    pool.submit(tasks.call_method, queue, "put", "x").result()
    assert queue.get() == "x"


def test_a_shared_counter(pool: rl.Executor) -> None:
    counter = SPAWN.Value("i", 0)
    for future in [pool.submit(count_up, counter, 50) for _ in range(8)]:
        future.result()
    assert counter.value == 400


def test_a_shared_array(pool: rl.Executor) -> None:
    array = RawArray("i", 10)
    list(pool.map(fill, [array] * 10, range(10)))
    assert list(array) == list(range(10))


def test_a_semaphores_method(pool: rl.Executor) -> None:
    """What the standard pool refuses: a bound method of the semaphore."""
    semaphore = SPAWN.Semaphore(0)
    acquired = [pool.submit(semaphore.acquire) for _ in range(5)]
    for _ in acquired:
        semaphore.release()
    assert [future.result() for future in acquired] == [True] * 5


def test_events_and_conditions(pool: rl.Executor) -> None:
    event, condition = SPAWN.Event(), SPAWN.Condition()
    with condition:
        met = pool.submit(meet, event, condition)
        assert condition.wait(60)
    event.set()
    assert met.result() is True


def test_one_end_of_a_pipe(pool: rl.Executor) -> None:
    reader, writer = SPAWN.Pipe(duplex=False)
    pool.submit(send, writer, ["x"]).result()
    assert reader.recv() == ["x"]


def test_a_lock_that_only_a_fork_would_have(pool: rl.Executor) -> None:
    """The message says what to do (invariant 6: this process is never forked by us)."""
    for thing in (FORK.Lock(), FORK.Queue(), FORK.Semaphore().acquire):
        with pytest.raises(rl.SerializationError, match=r'get_context\("spawn"\)'):
            pool.submit(tasks.echo, thing).result()
    assert pool.submit(tasks.double, 1).result() == 2


def test_a_queue_that_was_closed_meanwhile(pool: rl.Executor, gate: Gate) -> None:
    """The number of its descriptor may mean another file by then, and must not be taken for it."""
    gate.occupy(pool, 2)
    reader, writer = SPAWN.Pipe(duplex=False)
    fd = writer.fileno()
    task = pool.submit(send, writer, "x")
    writer.close()
    other = os.open(os.devnull, os.O_WRONLY)
    if other != fd:
        os.dup2(other, fd)
        os.close(other)
    gate.open()
    with pytest.raises(rl.DeserializationError, match="closed it"):
        task.result()
    os.close(fd)
    reader.close()
