"""The template: one per interpreter, replaceable while tasks run, and no secret to the user."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

import rightlane as rl
import tasks
from support import Gate, Start, alive, children, eventually, template_of

pytestmark = pytest.mark.stress


def test_its_death_loses_no_running_task(pool: rl.Executor, gate: Gate) -> None:
    """rule 13: workers have no parent-death signal; a new template is started for the next ones."""
    template = template_of(pool)
    held = gate.occupy(pool, 2)
    workers = set(gate.started().values())
    queued = [pool.submit(tasks.double, i) for i in range(20)]
    os.kill(template, signal.SIGKILL)
    eventually(lambda: not alive(template))
    assert all(alive(pid) for pid in workers)
    gate.open()
    assert [f.result() for f in held] == ["busy0", "busy1"]
    assert [f.result() for f in queued] == [2 * i for i in range(20)]


def test_later_workers_come_from_a_new_one(make: Callable[..., rl.Executor]) -> None:
    """rule 12, rule 13: also for executors made afterwards."""
    first = make(1, lane="process")
    old = template_of(first)
    os.kill(old, signal.SIGKILL)
    eventually(lambda: not alive(old))
    new = template_of(make(1, lane="process"))
    assert new != old
    assert isinstance(first.submit(os._exit, 1).exception(), rl.WorkerLost)
    assert template_of(first) == new


def test_exit_status_unknown(pool: rl.Executor, gate: Gate) -> None:
    """rule 12: who could have reaped the worker is dead, and WorkerLost says so."""
    template = template_of(pool)
    held = gate.occupy(pool, 1)[0]
    worker = gate.started()["busy0"]
    os.kill(template, signal.SIGKILL)
    eventually(lambda: not alive(template))
    os.kill(worker, signal.SIGKILL)
    error = held.exception()
    assert isinstance(error, rl.WorkerLost) and error.pid == worker
    assert error.signal is None and error.exit_code is None and "exit status unknown" in str(error)
    assert pool.submit(tasks.double, 1).result() == 2


def test_it_dies_together_with_its_workers(pool: rl.Executor, gate: Gate) -> None:
    """rule 12: all at once is still one loss per running task."""
    template = template_of(pool)
    held = gate.occupy(pool, 2)
    queued = [pool.submit(tasks.double, i) for i in range(10)]
    for pid in (template, *gate.started().values()):
        os.kill(pid, signal.SIGKILL)
    assert all(isinstance(f.exception(), rl.WorkerLost) for f in held)
    assert [f.result() for f in queued] == [2 * i for i in range(10)]


def test_it_dies_again_and_again(pool: rl.Executor) -> None:
    for i in range(5):
        template = template_of(pool)
        os.kill(template, signal.SIGKILL)
        eventually(lambda t=template: not alive(t))  # type: ignore[misc]
        assert isinstance(pool.submit(os._exit, 1).exception(), rl.WorkerLost)
        assert pool.submit(tasks.double, i).result() == 2 * i


def test_shutdown_after_its_death(pool: rl.Executor, gate: Gate) -> None:
    template = template_of(pool)
    held = gate.occupy(pool, 2)
    os.kill(template, signal.SIGKILL)
    gate.open()
    pool.shutdown()
    assert [f.result() for f in held] == ["busy0", "busy1"]
    eventually(lambda: not any(alive(pid) for pid in gate.started().values()))


def test_one_template_serves_all_executors(make: Callable[..., rl.Executor]) -> None:
    """rule 32: shared by the interpreter's executors."""
    assert template_of(make(1, lane="process")) == template_of(make(1, lane="process"))
    auto = make(1, lane="auto")
    assert template_of(auto) == template_of(make(1, lane="process"))


def test_none_for_threads_and_inline(start: Start) -> None:
    """rule 32: who needs no processes starts none; auto and process start it when they are made."""
    start("""
        import os
        import rightlane as rl, tasks
        from support import children, eventually
        for lane in ("thread", "inline"):
            with rl.Executor(2, lane=lane) as ex:
                assert list(ex.map(tasks.double, range(50))) == [2 * i for i in range(50)]
                assert children(os.getpid()) == []
        for lane in ("process", "auto"):
            ex = rl.Executor(2, lane=lane)
            eventually(lambda: len(children(os.getpid())) == 1)
            assert ex.submit(os.getppid).result() == children(os.getpid())[0]
            ex.shutdown()
            eventually(lambda: children(os.getpid()) == [])
    """).succeeds()


def test_loops_that_reap_any_child_are_tolerated(start: Start) -> None:
    """rule 23: `waitpid(-1)` in user code sees the template as a child, and may reap it when it died."""
    start("""
        import contextlib, os, signal
        import rightlane as rl, tasks
        with rl.Executor(2, lane="process") as ex:
            template = ex.submit(os.getppid).result()
            assert os.waitpid(-1, os.WNOHANG) == (0, 0)
            os.kill(template, signal.SIGKILL)
            # Whoever is first reaps it: this loop, or the engine, which starts another template at once.
            while os.path.exists(f"/proc/{template}"):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-1, os.WNOHANG)
            assert list(ex.map(tasks.double, range(100))) == [2 * i for i in range(100)]
            assert isinstance(ex.submit(os._exit, 1).exception(), rl.WorkerLost)
            assert ex.submit(os.getppid).result() != template
    """).succeeds()


def test_it_leads_a_session_of_single_threaded_processes(pool: rl.Executor, gate: Gate) -> None:
    """rule 14, rule 15: `setsid` once; forked from a process that has one thread."""
    template = template_of(pool)
    assert os.getsid(template) == template != os.getsid(0)
    assert len(os.listdir(f"/proc/{template}/task")) == 1
    gate.occupy(pool, 2)
    assert set(gate.started().values()) <= set(children(template))
