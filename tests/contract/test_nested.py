"""Executors, and calls of the shared one, inside of tasks: they work, with one worker each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Start, alive, eventually, lines

pytestmark = pytest.mark.usefixtures("shared")

Make = Callable[..., rl.Executor]


def with_an_executor(lane: str) -> tuple[int, list[int], int]:
    """Workers, results, and where one of its tasks ran."""
    import rightlane as rl

    with rl.Executor(lane=lane) as ex:  # type: ignore[arg-type]
        return ex._max_workers, list(ex.map(tasks.double, range(20))), ex.submit(tasks.here).result()


@pytest.mark.parametrize("inner", ["process", "thread", "auto", "inline"])
def test_an_executor_in_a_task(make: Make, busy_lane: str, inner: str) -> None:
    ex = make(2, lane=busy_lane)
    futures = [ex.submit(with_an_executor, inner) for _ in range(3)]
    for future in futures:
        workers, doubled, pid = future.result()
        assert workers == 1 and doubled == [2 * i for i in range(20)]
        assert (pid != os.getpid()) or busy_lane == "thread"


def test_an_explicit_number_is_taken_at_its_word(make: Make) -> None:
    def workers() -> int:
        import rightlane as rl

        with rl.Executor(3, lane="process") as ex:
            return ex._max_workers

    assert make(1, lane="process").submit(workers).result() == 3


def test_inline_tasks_are_no_nesting(make: Make) -> None:
    assert make(1, lane="inline").submit(with_an_executor, "thread").result()[0] > 1


def sum_of_shared(depth: int) -> int:
    import rightlane as rl

    if depth == 0:
        return 1
    return sum(rl.map(sum_of_shared, [depth - 1] * 2)) + rl.submit(abs, -1).result()


def test_the_shared_executor_in_tasks_of_itself() -> None:
    """Each process has its own, with one worker: calls of calls come to an end."""
    assert list(rl.map(sum_of_shared, [1, 1, 1, 1])) == [3] * 4
    assert rl.submit(sum_of_shared, 2).result() == 7


def test_more_tasks_than_slots_wait_for_calls_of_their_own_in_threads() -> None:
    """A task in a thread of the shared executor holds a slot of it: its calls must not wait for one."""
    lock = threading.Lock()  # cannot be pickled, so that auto chooses threads

    def task(depth: int) -> int:
        with lock:
            pass
        if depth == 0:
            return 1
        inner = [rl.submit(task, depth - 1) for _ in range(2)]
        return sum(future.result(60) for future in inner) + sum(rl.map(abs, [-1], timeout=60))

    futures = [rl.submit(task, 2) for _ in range(12)]
    assert [future.result(100) for future in futures] == [7] * 12


def test_threads_of_other_executors_share_the_outer_one(make: Make) -> None:
    """They hold none of its slots; one worker for all of them would be a bottleneck."""
    from rightlane import _native, _shared

    def executor() -> tuple[tuple[bool, int], int]:
        return _native.nesting(), id(_shared._here()._engine)

    assert executor()[0] == (False, 0)
    there = make(2, lane="thread").submit(executor).result()
    assert there == ((True, 0), executor()[1])


def test_a_worker_that_ends_finishes_its_own_executors(make: Make, tmp_path: Path) -> None:
    """rule 2, rule 22: an orderly end waits for what was accepted in the worker."""
    log = str(tmp_path / "log")

    def leave_work() -> int:
        import rightlane as rl

        for i in range(10):
            rl.submit(tasks.append_slowly, log, i)
        return os.getpid()

    pool = make(1, lane="process", max_tasks_per_child=1)
    worker = pool.submit(leave_work).result()
    eventually(lambda: len(lines(log)) == 10, what="the work that was left")
    assert sorted(map(int, lines(log))) == list(range(10))
    eventually(lambda: not alive(worker))


@pytest.mark.parametrize("how", ["kill worker", "kill user"])
def test_nothing_outlives_a_nested_executor(start: Start, tmp_path: Path, how: str) -> None:
    """rule 13: the death of a worker, or of everybody, ends what its executors had started."""
    script = start(
        """
        import os, signal, sys
        from pathlib import Path
        import rightlane as rl, tasks
        from support import Gate

        def outer(gate):
            import rightlane as rl
            return rl.submit(tasks.hold, gate, "inner").result()

        gate = Gate(Path(sys.argv[1]))
        ex = rl.Executor(1, lane="process")
        worker = ex.submit(os.getpid).result()
        future = ex.submit(outer, gate.path)
        while "inner" not in gate.started():
            assert not future.done(), future.exception()
        print("up", flush=True)
        if sys.argv[2] == "kill user":
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        assert isinstance(future.exception(), rl.WorkerLost)
        assert ex.submit(abs, -1).result() == 1
        ex.shutdown()
        """,
        tmp_path,
        how,
    )
    script.expect("up")
    assert script.wait() in (0, -9)
    script.leaves_nothing()


@pytest.mark.parametrize("by_map", [False, True])
def test_the_shared_executor_behind_ones_own(make: Make, by_map: bool) -> None:
    """A task in a shared thread waits for one in a thread of one's own, which waits for a shared one, but not
    for the slot of the first.
    """
    own = make(8, lane="thread")
    unpicklable = threading.Lock()

    def leaf(lock: object) -> int:
        return 1

    def middle(lock: object) -> int:
        return rl.submit(leaf, lock).result()

    def top(lock: object) -> int:
        if by_map:
            return sum(own.map(middle, [lock]))
        return own.submit(middle, lock).result()

    futures = [rl.submit(top, unpicklable) for _ in range((os.cpu_count() or 1) + 2)]
    assert [future.result(timeout=60) for future in futures] == [1] * len(futures)
