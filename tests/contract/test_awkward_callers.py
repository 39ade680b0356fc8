"""Callers that do what few do: each of these once hung, lost work or kept something for ever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from unittest.mock import Mock

import pytest

import rightlane as rl
from support import Start, alive, eventually


def test_a_callable_that_has_every_attribute(make: Callable[..., rl.Executor]) -> None:
    """Objects that answer any attribute, as mocks and proxies do, are not taken for partials."""
    executor = make(lane="thread")
    assert executor.submit(Mock(return_value=3)).result(60) == 3


@pytest.mark.stress
def test_shutdown_while_another_thread_reads_the_map(make: Callable[..., rl.Executor]) -> None:
    """rule 1: whoever is in the middle of the user's iterator can go on; nobody keeps the interpreter."""
    executor = make(lane="process")
    inside, go_on = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        for i in range(10_200):
            if i == 10_050:
                inside.set()
                go_on.wait(60)
            yield i

    results = executor.map(abs, items())
    sums: list[int] = []
    reader = threading.Thread(target=lambda: sums.append(sum(results)))
    reader.start()
    assert inside.wait(60)
    ending = threading.Thread(target=executor.shutdown)
    ending.start()
    go_on.set()
    reader.join(60)
    ending.join(60)
    assert sums == [sum(range(10_200))]


@pytest.mark.stress
def test_threads_for_work_whose_slots_processes_held(make: Callable[..., rl.Executor]) -> None:
    """rule 4: two slots that processes give back serve two thread tasks at once."""
    executor = make(lane="process")
    barrier = threading.Barrier(2)
    held = [executor.submit(time.sleep, 0.3) for _ in range(2)]
    threads = executor.options(lane="thread")
    meeting = [threads.submit(barrier.wait, 60) for _ in range(2)]
    assert sorted(future.result(60) for future in meeting) == [0, 1]
    assert [future.result(60) for future in held] == [None, None]


def test_a_map_dropped_after_a_shutdown_that_did_not_wait(make: Callable[..., rl.Executor]) -> None:
    """rule 2: what was read is finished, and nothing waits for the rest of an input that nobody reads."""
    executor = make(lane="process")
    results = executor.map(abs, iter(range(20_000)))
    executor.shutdown(wait=False)
    del results
    executor.shutdown()


@pytest.mark.stress
def test_two_threads_fork_at_once(start: Start) -> None:
    """rule 17: the hook before a fork never waits while it holds the interpreter."""
    start(
        """
        import os, threading
        import rightlane as rl
        rl.Executor
        ballast = bytearray(b"x") * (200 << 20)
        def loop():
            for _ in range(40):
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)
        threads = [threading.Thread(target=loop) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        """,
        flags=["-W", "ignore::DeprecationWarning"],
    ).succeeds()


def test_a_retirement_that_a_thread_began_is_bounded(make: Callable[..., rl.Executor]) -> None:
    """rule 22: the deadline holds whoever ended the last call; a stuck thread does not keep it."""
    executor = make(lane="process")
    worker = executor.submit(leave_a_thread_behind).result(60)
    last = executor.options(lane="thread").submit(time.sleep, 0.2)
    executor.shutdown(wait=False)
    last.result(60)
    eventually(lambda: not alive(worker), timeout=30)


def leave_a_thread_behind() -> int:
    threading.Thread(target=time.sleep, args=(600,)).start()
    return os.getpid()
