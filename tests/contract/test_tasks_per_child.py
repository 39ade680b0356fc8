"""`max_tasks_per_child`: a worker process runs so many tasks, ends in good order, and another follows."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rightlane as rl
import tasks
from support import Gate, Start, alive, eventually, lines, repeated

Make = Callable[..., rl.Executor]


@pytest.mark.parametrize("value", [0, -1])
def test_too_few(value: int) -> None:
    with pytest.raises(ValueError, match="max_tasks_per_child must be at least 1"):
        rl.Executor(1, lane="process", max_tasks_per_child=value)


@pytest.mark.parametrize("value", ["3", 1.5, True])
def test_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match="max_tasks_per_child must be an integer"):
        rl.Executor(1, lane="process", max_tasks_per_child=value)


def test_more_than_anybody_counts(make: Make) -> None:
    assert make(1, lane="process", max_tasks_per_child=10**30).submit(abs, -1).result() == 1


@pytest.mark.parametrize("lane", ["process", "auto"])
def test_one_worker_after_another(make: Make, lane: str) -> None:
    """rule 10: each one runs exactly its share."""
    pool = make(1, lane=lane, max_tasks_per_child=3)
    pids = [pool.submit(os.getpid).result() for _ in range(8)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 2]
    assert pool._engine.worker_pids() == pids[-1:]
    eventually(lambda: not alive(pids[0]) and not alive(pids[3]), what="the end of those that are done")


@pytest.mark.parametrize("most", [1, 7])
@pytest.mark.stress
def test_items_count_one_by_one(start: Start, tmp_path: Path, most: int) -> None:
    """rule 10: a map of 1,000 items in workers of one item, and of seven: each item runs once."""
    start(
        """
        import os, sys
        from collections import Counter
        import rightlane as rl

        def note(item):
            log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(log, f"{item} {os.getpid()}\\n".encode())
            os.close(log)
            return item

        most = int(sys.argv[2])
        with rl.Executor(2, lane="process", max_tasks_per_child=most) as ex:
            assert list(ex.map(note, range(1000))) == list(range(1000))
        with open(sys.argv[1]) as log:
            ran = [line.split() for line in log]
        assert sorted(int(item) for item, _ in ran) == list(range(1000))
        per_worker = Counter(pid for _, pid in ran)
        assert max(per_worker.values()) <= most, per_worker
        # Only at the end of the map, where items are taken back for idle workers, is one retired early.
        assert len(per_worker) <= 1000 // most + 6, len(per_worker)
        """,
        tmp_path / "log",
        most,
    ).succeeds()


@pytest.mark.parametrize("chunksize", [1, 100])
def test_items_of_chunks_count_one_by_one(make: Make, tmp_path: Path, chunksize: int) -> None:
    """rule 10: a chunk larger than its worker may run goes to several."""
    log = str(tmp_path / "log")
    pool = make(2, lane="process", max_tasks_per_child=7)
    items = range(200)
    results = pool.map(tasks.append_pid_slowly, [log] * 200, items, [0] * 200, chunksize=chunksize)
    assert list(results) == list(items)
    ran = [line.split() for line in lines(log)]
    assert sorted(int(item) for item, _ in ran) == list(items)
    assert max(Counter(pid for _, pid in ran).values()) <= 7


def test_streams_of_submits(make: Make) -> None:
    """rule 10: submits that travel together count one by one as well."""
    pool = make(2, lane="process", max_tasks_per_child=7)
    futures = [pool.submit(tasks.here, i) for i in range(200)]
    per_worker = Counter(future.result() for future in futures)
    assert max(per_worker.values()) <= 7


def test_the_initializer_runs_once_in_each_worker(make: Make, tmp_path: Path) -> None:
    """rule 10: and in no worker that runs nothing but one that was ready ahead of its work."""
    log = tmp_path / "init"
    pool = make(
        2, lane="process", max_tasks_per_child=1, initializer=tasks.append_where, initargs=(str(log),)
    )
    pids = list(pool.map(tasks.here, range(30)))
    pool.shutdown()
    initialized = [int(line.split()[0]) for line in lines(log)]
    assert not repeated(pids) and not repeated(initialized)
    assert set(pids) <= set(initialized) and len(initialized) <= len(pids) + 2


def test_a_retired_worker_says_goodbye(make: Make, tmp_path: Path) -> None:
    """rule 22: exit handlers run and threads are joined, while the executor goes on."""
    log = str(tmp_path / "log")
    pool = make(1, lane="process", max_tasks_per_child=2)
    first = pool.submit(leave_word_at_exit, log).result()
    assert pool.submit(os.getpid).result() == first
    eventually(lambda: lines(log) == ["from a thread", f"goodbye {first}"], what="the goodbye")
    assert pool.submit(os.getpid).result() != first
    eventually(lambda: not alive(first))


def leave_word_at_exit(log: str) -> int:
    import atexit

    atexit.register(tasks.append, log, f"goodbye {os.getpid()}")
    threading.Thread(target=tasks.append_slowly, args=(log, "from a thread", 0.05)).start()
    return os.getpid()


def test_what_stands_behind_a_long_task_goes_elsewhere(make: Make, gate: Gate) -> None:
    """rule 10: taking back and splitting respect the limit of the taker, too."""
    pool = make(2, lane="process", max_tasks_per_child=5)
    held = gate.occupy(pool, 1)[0]
    pids = list(pool.map(tasks.here, range(40), chunksize=5))
    assert not held.done()
    assert max(Counter(pids).values()) <= 5
    assert gate.started()["busy0"] not in pids or pids.count(gate.started()["busy0"]) <= 4
    gate.open()
    assert held.result() == "busy0"


def test_a_long_piece_is_split(make: Make, gate: Gate) -> None:
    """rule 10: the items behind one that takes long run elsewhere, and nobody runs more than his share."""
    pool = make(2, lane="process", max_tasks_per_child=20)
    results = pool.map(hold_first, [gate.path] * 16, range(16), chunksize=16)
    elsewhere = gate.path + ".ran"
    eventually(lambda: len(lines(elsewhere)) == 15, what="the other items")
    gate.open()
    pids = list(results)
    assert len(set(pids)) >= 2 and not repeated(lines(elsewhere))


def hold_first(gate: str, item: int) -> int:
    if item == 0:
        tasks.hold(gate)
    else:
        tasks.append(gate + ".ran", item)
    return os.getpid()


@pytest.mark.parametrize("lane", ["thread", "inline"])
def test_threads_and_inline_tasks_know_no_limit(make: Make, lane: str) -> None:
    ex = make(1, lane=lane, max_tasks_per_child=2)
    assert len({ex.submit(tasks.where).result() for _ in range(9)}) == 1
    in_processes = ex.options(lane="process")
    assert [in_processes.submit(abs, -1).result() for _ in range(3)] == [1, 1, 1]
    assert len({in_processes.submit(os.getpid).result() for _ in range(5)}) == 3


def test_the_hard_cap_holds_across_retirements(make: Make, tmp_path: Path) -> None:
    """rule 4: however many workers come and go, no more tasks than `max_workers` run at once."""
    log = tmp_path / "log"
    pool = make(2, lane="process", max_tasks_per_child=2)
    list(pool.map(tasks.enter_and_leave, [str(log)] * 120))
    running = most = 0
    for line in lines(log):
        running += 1 if line == "+" else -1
        most = max(most, running)
    assert running == 0 and most <= 2
