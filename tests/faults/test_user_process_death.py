"""The user's process is killed: nothing it started stays, whatever session it moved to."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support import Gate, Start, Started, eventually, marked

pytestmark = pytest.mark.stress

BUSY = """
    import os, subprocess, sys, time
    import rightlane as rl, tasks

    def family(gate, name):
        "a child, a child in a session of its own, and an orphan of a child"
        subprocess.Popen(["sleep", "600"])
        subprocess.Popen(["sleep", "601"], start_new_session=True)
        subprocess.run(["sh", "-c", "sleep 602 & exit 0"])
        subprocess.run(["sh", "-c", "setsid sleep 603 & exit 0"])
        tasks.hold(gate, name)

    ex = rl.Executor(2, lane=sys.argv[2])
    futures = [ex.submit(family, sys.argv[1], i) for i in range(2)]
    queued = [ex.submit(time.sleep, 600) for _ in range(100)]
    if len(sys.argv) > 3:
        import signal
        from support import alive, eventually
        eventually(lambda: all(os.path.exists(f"{sys.argv[1]}.started.{i}") for i in range(2)))
        with rl.Executor(1, lane="process") as other:
            template = other.submit(os.getppid).result()
        os.kill(template, signal.SIGKILL)
        eventually(lambda: not alive(template))
        other = rl.Executor(1, lane="process")
        assert other.submit(os.getppid).result() != template
        print("template replaced", flush=True)
    futures[0].result()
"""


def busy_script(start: Start, gate: Gate, lane: str, *more: object, family: int = 8) -> Started:
    script = start(BUSY, gate.path, lane, *more)
    eventually(lambda: len(gate.started()) == 2 or script.process.poll() is not None)
    eventually(
        lambda: sum("sleep 60" in c for c in marked(script.mark).values()) >= family or script.process.poll()
    )
    assert script.process.poll() is None, script.err
    return script


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("lane", ["process", "auto"])
def test_nothing_stays(start: Start, gate: Gate, lane: str, number: signal.Signals) -> None:
    """rule 13, rule 2: no worker, template or grandchild, `setsid` or not; nor after SIGTERM."""
    script = busy_script(start, gate, lane)
    os.kill(script.pid, number)
    assert script.wait() == -number
    script.leaves_nothing()


def test_nothing_stays_after_the_template_was_replaced(start: Start, gate: Gate) -> None:
    """rule 13: a new template gets the pidfds of living workers.

    Orphans in sessions of their own are out of reach (the rule says so), workers and their groups are not.
    """
    script = busy_script(start, gate, "process", "replace")
    script.expect("template replaced")
    os.kill(script.pid, signal.SIGKILL)
    script.wait()
    eventually(lambda: not [c for c in marked(script.mark).values() if "sleep 60" not in c], timeout=20)
    eventually(lambda: not [c for c in marked(script.mark).values() if "sleep 600" in c], timeout=20)


def test_nothing_stays_of_a_stopped_worker(start: Start, gate: Gate) -> None:
    """rule 13: a worker that cannot watch is killed by the template."""
    script = busy_script(start, gate, "process")
    for pid in gate.started().values():
        os.kill(pid, signal.SIGSTOP)
    os.kill(script.pid, signal.SIGKILL)
    script.wait()
    script.leaves_nothing()


def test_nothing_stays_when_template_and_user_die_together(start: Start, gate: Gate) -> None:
    """rule 13: then each worker's own watcher ends its group."""
    script = busy_script(start, gate, "process")
    worker = next(iter(gate.started().values()))
    template = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    assert template != script.pid
    os.kill(template, signal.SIGKILL)
    os.kill(script.pid, signal.SIGKILL)
    script.wait()
    eventually(lambda: not [c for c in marked(script.mark).values() if "sleep 60" not in c], timeout=20)
    eventually(lambda: not [c for c in marked(script.mark).values() if "sleep 600" in c], timeout=20)


def test_a_fork_of_the_user_does_not_hold_the_engine_alive(start: Start, gate: Gate) -> None:
    """rule 13: the template watches a pidfd of the engine, not a socket that a fork may hold open."""
    script = start(
        """
        import os, sys, time
        import rightlane as rl, tasks
        ex = rl.Executor(2, lane="process")
        futures = [ex.submit(tasks.hold, sys.argv[1], i) for i in range(2)]
        from support import eventually
        eventually(lambda: all(os.path.exists(f"{sys.argv[1]}.started.{i}") for i in range(2)))
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        print("forked", pid, flush=True)
        futures[0].result()
        """,
        gate.path,
    )
    heir = int(script.expect("forked ").split()[1])
    os.kill(script.pid, signal.SIGKILL)
    script.wait()
    workers = list(gate.started().values())
    eventually(lambda: not set(marked(script.mark)) - {heir}, timeout=20, what=f"end of {workers}")
    os.kill(heir, signal.SIGKILL)
