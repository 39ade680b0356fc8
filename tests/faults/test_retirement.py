"""Workers that end while their executor goes on: deaths, shutdowns and a dying template in that moment."""

from __future__ import annotations

import atexit
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Gate, Start, alive, eventually, lines, repeated, template_of

pytestmark = pytest.mark.stress

Make = Callable[..., rl.Executor]


def hold_at_exit(gate: str) -> int:
    """Its worker does not end before the gate is open."""
    atexit.register(tasks.hold, gate, f"exit{os.getpid()}")
    return os.getpid()


def retiring(pool: rl.Executor, gate: Gate) -> int:
    """A worker of `pool`, of one task each, that runs its exit handlers now."""
    pid = pool.submit(hold_at_exit, gate.path).result()
    eventually(lambda: f"exit{pid}" in gate.started(), what="the exit handler")
    return pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_of_one_that_retires_costs_nothing(make: Make, gate: Gate, number: int) -> None:
    """rule 22: it had run its share; what comes later runs elsewhere."""
    pool = make(1, lane="process", max_tasks_per_child=1)
    victim = retiring(pool, gate)
    running = pool.submit(tasks.hold, gate.path, "next", 5)
    eventually(lambda: "next" in gate.started(), what="the next task, though the last worker has not ended")
    os.kill(victim, number)
    eventually(lambda: not alive(victim))
    gate.open()
    assert running.result() == 5
    assert [pool.submit(tasks.double, i).result() for i in range(5)] == [0, 2, 4, 6, 8]


def test_slow_endings_do_not_pile_up(make: Make, gate: Gate) -> None:
    """Exit handlers that take long slow an executor down before they fill the machine."""
    pool = make(2, lane="process", max_tasks_per_child=1)
    futures = [pool.submit(hold_at_exit, gate.path) for _ in range(12)]
    template = template_of_first(futures)
    eventually(lambda: len(gate.started()) >= 2, what="workers at their exit")
    living = [pid for pid in descendants(template) if alive(pid)]
    assert len(living) <= 3 * 2 + 1
    gate.open()
    assert len({future.result() for future in futures}) == 12


def template_of_first(futures: list[rl.Future[int]]) -> int:
    pid = futures[0].result()
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def descendants(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("how", ["wait", "kill", "forget"])
def test_a_shutdown_meets_one_that_retires(make: Make, gate: Gate, how: str) -> None:
    """rule 2, rule 22: the executor ends with it, or without, and nobody is asked twice."""
    pool = make(2, lane="process", max_tasks_per_child=1)
    victim = retiring(pool, gate)
    last = pool.submit(tasks.double, 4)
    if how == "kill":
        last.result()
        pool.shutdown(kill=True)
        assert not alive(victim) and last.result() == 8
        return
    pool.shutdown(wait=False)
    assert last.result() == 8 and alive(victim)
    gate.open()
    if how == "wait":
        pool.shutdown()
        assert not alive(victim)
    eventually(lambda: not alive(victim))


def test_an_end_that_hangs_is_ended(start: Start) -> None:
    """rule 22: by SIGTERM after five seconds, while the executor goes on, and it is said so."""
    script = start(
        """
        import os, threading, time
        import rightlane as rl
        from support import alive, eventually

        def stay():
            threading.Thread(target=time.sleep, args=(600,)).start()
            return os.getpid()

        with rl.Executor(1, lane="process", max_tasks_per_child=1) as ex:
            pid = ex.submit(stay).result()
            assert ex.submit(abs, -1).result() == 1
            eventually(lambda: not alive(pid))
            assert ex.submit(abs, -2).result() == 2
        print(pid)
        """
    )
    pid = script.succeeds().strip()
    assert f"worker {pid} has not ended 5 s after it was asked to" in script.err


def test_tasks_that_kill_among_workers_that_come_and_go(make: Make, tmp_path: Path) -> None:
    """rule 8, rule 10: a death costs the task that ran, whatever share of its work its worker had done."""
    log = str(tmp_path / "log")
    pool = make(2, lane="process", max_tasks_per_child=3)
    deadly = frozenset(range(5, 200, 17))
    futures = [pool.submit(tasks.append_then_die_at, log, item, deadly) for item in range(200)]
    for item, future in enumerate(futures):
        if item in deadly:
            assert isinstance(future.exception(), rl.WorkerLost)
        else:
            assert future.result() == item
    assert sorted(map(int, lines(log))) == list(range(200))


def test_workers_are_killed_at_any_time(make: Make, tmp_path: Path) -> None:
    """rule 8: no item is run twice, none is forgotten, though workers die while they begin, run or end."""
    log = str(tmp_path / "log")
    pool = make(2, lane="process", max_tasks_per_child=4)
    futures = [pool.submit(tasks.append_pid_slowly, log, item) for item in range(300)]
    killed = 0
    while killed < 15 and not all(future.done() for future in futures):
        for pid in pool._engine.worker_pids()[:1]:
            done = len(lines(log))
            os.kill(pid, signal.SIGKILL)
            killed += 1
            # Three in a row that never ran anything would be boots that fail (rule 10).
            eventually(lambda done=done: len(lines(log)) > done + 4 or all(f.done() for f in futures))
    lost = [item for item, future in enumerate(futures) if isinstance(future.exception(), rl.WorkerLost)]
    assert len(lost) <= killed
    ran = [line.split() for line in lines(log)]
    assert not repeated(int(item) for item, _ in ran)
    assert set(range(300)) - {int(item) for item, _ in ran} <= set(lost)
    assert all(future.result() == item for item, future in enumerate(futures) if item not in lost)
    assert max(Counter(pid for _, pid in ran).values()) <= 4


def test_the_template_dies_among_retirements(make: Make, tmp_path: Path) -> None:
    """rule 13: workers are replaced from a new one; every item runs once."""
    log = str(tmp_path / "log")
    pool = make(2, lane="process", max_tasks_per_child=2)
    template = template_of(pool)
    results = pool.map(tasks.append_slowly, [log] * 60, range(60))
    eventually(lambda: len(lines(log)) >= 10)
    os.kill(template, signal.SIGKILL)
    assert list(results) == list(range(60))
    assert sorted(map(int, lines(log))) == list(range(60))


def test_a_fork_among_retirements(start: Start) -> None:
    """Invariant 6: parent and child each go on with workers of their own, within the same limit."""
    start(
        """
        import os
        import rightlane as rl
        from collections import Counter

        ex = rl.Executor(2, lane="process", max_tasks_per_child=2)
        results = ex.map(lambda i: os.getpid(), range(60))
        first = next(results)
        child = os.fork()
        pids = list(ex.map(lambda i: os.getpid(), range(20)))
        assert max(Counter(pids).values()) <= 2, pids
        ex.shutdown()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        flags=["-W", "ignore::DeprecationWarning"],
    ).succeeds()


def test_nothing_is_left_of_those_that_went(start: Start) -> None:
    """rule 13: descriptors, segments, children of a hundred workers, while the executor lives and after."""
    start(
        """
        import os
        import rightlane as rl
        from support import eventually, holdings

        rl.Executor, rl.Future
        before = holdings()
        with rl.Executor(2, lane="process", max_tasks_per_child=1) as ex:
            assert len(set(ex.map(lambda i: os.getpid(), range(10)))) == 10
            eventually(lambda: not ex._engine.worker_pids())
            eventually(lambda: holdings().segments == [])
            few = len(holdings().descriptors)
            assert len(set(ex.map(lambda i: os.getpid(), range(100)))) == 100
            eventually(lambda: holdings().segments == [] and len(holdings().descriptors) <= few)
        eventually(lambda: holdings() == before, timeout=20)
        """
    ).succeeds()


def test_signals_for_all_workers(make: Make, gate: Gate) -> None:
    """Each worker gets it; what it ends is lost as with any death, the executor goes on."""
    pool = make(2, lane="process")
    held = gate.occupy(pool, 2)
    workers = pool._engine.worker_pids()
    assert sorted(workers) == sorted(gate.started().values())
    pool._engine.signal_workers(signal.SIGTERM)
    for future in held:
        error = future.exception()
        assert isinstance(error, rl.WorkerLost) and error.signal == signal.SIGTERM and error.pid in workers
    assert pool.submit(tasks.double, 2).result() == 4
    for number in (0, -1, 4096):
        with pytest.raises(ValueError, match="is not the number of a signal"):
            pool._engine.signal_workers(number)
