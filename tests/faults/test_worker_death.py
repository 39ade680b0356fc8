"""A worker's death costs the task it was running, and nothing else."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import rightlane as rl
import tasks
from support import Gate, alive, eventually, lines

pytestmark = pytest.mark.stress

DEATHS: list[Any] = [
    pytest.param(os._exit, (7,), None, 7, id="os._exit"),
    pytest.param(os._exit, (0,), None, 0, id="os._exit-0"),
    pytest.param(os.abort, (), signal.SIGABRT, None, id="abort"),
    pytest.param(tasks.segfault, (), signal.SIGSEGV, None, id="segfault"),
    pytest.param(tasks.die_by_signal, (signal.SIGKILL,), signal.SIGKILL, None, id="SIGKILL"),
    pytest.param(tasks.die_by_signal, (signal.SIGTERM,), signal.SIGTERM, None, id="SIGTERM"),
]


@pytest.fixture(params=["process", "auto"])
def workers(request: pytest.FixtureRequest, make: Callable[..., rl.Executor]) -> rl.Executor:
    return make(2, lane=request.param)


@pytest.mark.parametrize(("fn", "args", "number", "code"), DEATHS)
def test_the_future_says_how_the_worker_ended(
    workers: rl.Executor,
    fn: Callable[..., object],
    args: tuple[object, ...],
    number: int | None,
    code: int | None,
) -> None:
    """rule 12: WorkerLost with pid, signal or exit code, task and attempt; the next tasks run."""
    error = workers.submit(fn, *args).exception()
    assert isinstance(error, rl.WorkerLost) and isinstance(error, BrokenProcessPool)
    assert (error.signal, error.exit_code) == (number, code)
    assert isinstance(error.pid, int) and error.pid > 1 and not alive(error.pid)
    assert fn.__name__ in error.task and error.attempt >= 1
    text = str(error)
    assert str(error.pid) in text and fn.__name__ in text
    assert (signal.Signals(number).name in text) if number is not None else str(code) in text
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.pid, copy.signal, copy.exit_code, copy.task, copy.attempt) == (
        error.pid,
        error.signal,
        error.exit_code,
        error.task,
        error.attempt,
    )
    assert [workers.submit(tasks.double, i).result() for i in range(50)] == [2 * i for i in range(50)]


def test_a_kill_costs_the_running_task_only(pool: rl.Executor, gate: Gate) -> None:
    """rule 8: what was prefetched to the dead worker, or queued, runs elsewhere."""
    first, second = gate.occupy(pool, 2)
    queued = [pool.submit(tasks.double, i) for i in range(100)]
    victim = gate.started()["busy0"]
    os.kill(victim, signal.SIGKILL)
    error = first.exception()
    assert isinstance(error, rl.WorkerLost) and error.pid == victim and error.signal == signal.SIGKILL
    assert error.exit_code is None and not second.done()
    gate.open()
    assert second.result() == "busy1" and [f.result() for f in queued] == [2 * i for i in range(100)]


def test_a_dead_worker_is_replaced(pool: rl.Executor, tmp_path: Path) -> None:
    """rule 10: no number of deaths breaks a pool; afterwards two tasks run at once again."""
    for _ in range(30):
        assert isinstance(pool.submit(os._exit, 1).exception(), rl.WorkerLost)
    gate = Gate(tmp_path, "after")
    held = gate.occupy(pool, 2)
    gate.open()
    assert [f.result() for f in held] == ["busy0", "busy1"]
    assert len(set(gate.started().values())) == 2


def test_an_idle_worker_that_dies_costs_nothing(pool: rl.Executor, gate: Gate) -> None:
    """Nobody's task was at stake, so nobody hears of it."""
    gate.occupy(pool, 2)
    gate.open()
    pids = set(gate.started().values())
    eventually(lambda: all(pool.submit(tasks.noop).result() is None for _ in range(3)))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [pool.submit(tasks.double, i).result() for i in range(50)] == [2 * i for i in range(50)]


def test_all_workers_die_at_once(pool: rl.Executor, gate: Gate) -> None:
    held = gate.occupy(pool, 2)
    queued = [pool.submit(tasks.double, i) for i in range(20)]
    for pid in gate.started().values():
        os.kill(pid, signal.SIGKILL)
    assert all(isinstance(f.exception(), rl.WorkerLost) for f in held)
    assert [f.result() for f in queued] == [2 * i for i in range(20)]


def test_a_stopped_worker_can_still_be_killed(pool: rl.Executor, gate: Gate) -> None:
    """A worker that hangs in SIGSTOP holds up its own task only, and `kill=True` ends it."""
    held, _ = gate.occupy(pool, 2)
    victim = gate.started()["busy0"]
    os.kill(victim, signal.SIGSTOP)
    gate.open()
    assert [pool.submit(tasks.double, i).result() for i in range(1)] == [0]
    pool.shutdown(kill=True)
    assert held.done() and not alive(victim)


@pytest.mark.parametrize("death", [os._exit, tasks.die_by_signal], ids=["exit", "kill"])
def test_an_argument_that_kills_when_opened_costs_its_own_task(pool: rl.Executor, death: Any) -> None:
    """rule 8: the item is claimed before it is unpickled."""
    before = [pool.submit(tasks.double, i) for i in range(20)]
    deadly = pool.submit(tasks.echo, tasks.Slippery(death, 9))
    after = [pool.submit(tasks.double, i) for i in range(20)]
    assert isinstance(deadly.exception(), rl.WorkerLost)
    assert [f.result() for f in before + after] == [2 * i for i in range(20)] * 2


def test_a_function_that_kills_when_opened_costs_the_task_that_needed_it(pool: rl.Executor) -> None:
    """rule 8: a definition is unpickled under the claim of the task that needs it."""
    before = [pool.submit(tasks.double, i) for i in range(20)]
    deadly = [pool.submit(tasks.Slippery(os._exit, 5)) for _ in range(3)]
    after = [pool.submit(tasks.double, i) for i in range(20)]
    assert all(isinstance(f.exception(), rl.WorkerLost) for f in deadly)
    assert [f.result() for f in before + after] == [2 * i for i in range(20)] * 2


@pytest.mark.parametrize("chunksize", [10_000, None], ids=["chunk-10000", "measured"])
def test_deaths_inside_a_chunk_cost_one_item_each(
    pool: rl.Executor, tmp_path: Path, chunksize: int | None
) -> None:
    """rule 8: published is done, claimed is lost, the rest runs elsewhere; nothing runs twice."""
    log = str(tmp_path / "log")
    size = 30_000
    deadly = frozenset({0, 1234, 1235, 9_999, 10_000, 15_000, 29_999})
    with pool:
        results = pool.map(
            tasks.append_then_die_at,
            itertools.repeat(log),
            range(size),
            itertools.repeat(deadly),
            chunksize=chunksize,
        )
    ran = [int(line) for line in lines(log)]
    assert len(ran) == len(set(ran)) == size
    with pytest.raises(rl.WorkerLost):
        next(results)


def test_results_before_the_death_are_kept(pool: rl.Executor, tmp_path: Path) -> None:
    """rule 8: each item's result is stored as it ends, not with its chunk."""
    log = str(tmp_path / "log")
    with pool:
        results = pool.map(
            tasks.append_then_die_at,
            itertools.repeat(log),
            range(10_000),
            itertools.repeat(frozenset({4567})),
            chunksize=10_000,
        )
    seen = []
    with pytest.raises(rl.WorkerLost) as caught:
        for value in results:
            seen.append(value)
    assert seen == list(range(4567)) and caught.value.signal == signal.SIGKILL
    assert sorted(map(int, lines(log))) == list(range(10_000))


def test_large_messages_to_a_worker_that_dies(pool: rl.Executor) -> None:
    """A message half way through a ring is not waited for, and is sent again to another worker."""
    blob = b"x" * 20_000_000
    futures = []
    for i in range(6):
        futures.append(pool.submit(len, blob) if i % 2 else pool.submit(os._exit, 1))
    assert [f.result() for f in futures[1::2]] == [len(blob)] * 3
    assert all(isinstance(f.exception(), rl.WorkerLost) for f in futures[::2])


def test_a_worker_killed_while_it_answers_at_length(pool: rl.Executor, gate: Gate) -> None:
    """A torn answer is a lost task, never a wrong result."""
    for _ in range(5):
        pid = pool.submit(tasks.here).result()
        future = pool.submit(tasks.big, 50_000_000)
        eventually(lambda f=future: f.running() or f.done())  # type: ignore[misc]
        os.kill(pid, signal.SIGKILL)
        error = future.exception()
        assert isinstance(error, rl.WorkerLost) or tasks.ends(future.result()) == (50_000_000, b"a", b"z")
