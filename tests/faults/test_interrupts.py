"""Ctrl-C: the first interrupts the main thread while `with` still waits, the second kills the workers."""

from __future__ import annotations

import os
import pty
import signal
import textwrap

import pytest

from support import Gate, Start, Started, alive, eventually, signal_pending

pytestmark = pytest.mark.stress

IN_THE_BODY = """
    import sys
    import rightlane as rl, tasks

    futures = []
    try:
        with rl.Executor(2, lane=sys.argv[2]) as ex:
            futures += [ex.submit(tasks.hold, sys.argv[1], i, i) for i in range(2)]
            futures += [ex.submit(tasks.double, i) for i in range(10)]
            try:
                print("ready", flush=True)
                futures[0].result()
            except KeyboardInterrupt:
                print("first", flush=True)
                raise
    except KeyboardInterrupt:
        print("out", all(f.done() for f in futures), flush=True)
        good = [not f.cancelled() and f.exception() is None for f in futures]
        print("results", [f.result() if ok else None for f, ok in zip(futures, good)], flush=True)
        if len(sys.argv) > 3:
            for future in futures[:2]:
                assert isinstance(future.exception(), (rl.WorkerLost, rl.BrokenExecutor)), future
"""

IN_THE_END_OF_WITH = """
    import sys
    import rightlane as rl, tasks

    try:
        with rl.Executor(2, lane=sys.argv[2]) as ex:
            futures = [ex.submit(tasks.hold, sys.argv[1], i, i) for i in range(2)]
    except KeyboardInterrupt:
        print("out", [f.result() for f in futures], flush=True)
"""


def held(start: Start, source: str, gate: Gate, *argv: object) -> Started:
    script = start(source, gate.path, *argv)
    eventually(lambda: len(gate.started()) == 2 or script.process.poll() is not None)
    assert script.process.poll() is None, script.err
    return script


def interrupt(script: Started) -> None:
    """Send SIGINT to the user's process only, and wait until it was delivered."""
    os.kill(script.pid, signal.SIGINT)
    eventually(lambda: script.process.poll() is not None or not signal_pending(script.pid, signal.SIGINT))


@pytest.mark.parametrize("lane", ["process", "thread", "auto"])
def test_the_first_interrupts_and_with_still_waits(start: Start, gate: Gate, lane: str) -> None:
    """rule 2, rule 18: KeyboardInterrupt comes out of `result()`; accepted work is finished all the same."""
    script = held(start, IN_THE_BODY, gate, lane)
    script.expect("ready")
    interrupt(script)
    script.expect("first")
    assert "out" not in script.out
    gate.open()
    out = script.succeeds()
    assert "out True" in out and f"results {[0, 1, *(2 * i for i in range(10))]}" in out


@pytest.mark.parametrize("lane", ["process", "auto"])
def test_the_second_kills_the_workers(start: Start, gate: Gate, lane: str) -> None:
    """rule 2: bounded is the time after the second Ctrl-C, though nobody opens the gate."""
    script = held(start, IN_THE_BODY, gate, lane, "killed")
    script.expect("ready")
    interrupt(script)
    script.expect("first")

    stuck_in_exit(script)
    interrupt(script)
    pids = gate.started().values()
    eventually(lambda: not any(alive(pid) for pid in pids), what="death of the workers")
    eventually(lambda: script.process.poll() is not None)
    script.leaves_nothing()
    assert "out True" in script.out, script.err


def test_the_first_at_the_end_of_with(start: Start, gate: Gate) -> None:
    """rule 2: who interrupts the wait itself gets KeyboardInterrupt once the work is done."""
    script = held(start, IN_THE_END_OF_WITH, gate, "process")
    stuck_in_exit(script)
    interrupt(script)
    gate.open()
    assert "out [0, 1]" in script.succeeds()


def stuck_in_exit(script: Started) -> None:
    """The body of `with` is over and the main thread sleeps: it waits in `__exit__`."""

    def asleep() -> bool:
        with open(f"/proc/{script.pid}/task/{script.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"

    eventually(asleep)


@pytest.mark.parametrize("what", ["wait", "map", "shutdown", "as_completed", "timed"])
def test_every_wait_can_be_interrupted(start: Start, gate: Gate, what: str) -> None:
    """rule 18: signal handlers run during each kind of wait and may end it by raising."""
    start(
        """
        import concurrent.futures as cf, os, signal, sys, threading
        import rightlane as rl, tasks

        class Enough(Exception): pass

        calls = []
        def handler(number, frame):
            calls.append(threading.current_thread() is threading.main_thread())
            if len(calls) == 3:
                raise Enough
            signal.setitimer(signal.ITIMER_REAL, 0.02)

        signal.signal(signal.SIGALRM, handler)
        ex = rl.Executor(2, lane="process")
        future = ex.submit(tasks.hold, sys.argv[1], "a", 5)
        mapped = ex.map(tasks.hold, [sys.argv[1]], ["b"])
        waits = {
            "wait": lambda: cf.wait([future]),
            "map": lambda: next(mapped),
            "shutdown": lambda: ex.shutdown(wait=True),
            "as_completed": lambda: list(cf.as_completed([future])),
            "timed": lambda: future.result(1000),
        }
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        try:
            waits[sys.argv[2]]()
        except Enough:
            assert calls == [True] * 3, calls
        else:
            raise AssertionError("nobody interrupted")
        open(sys.argv[1], "w").close()
        assert future.result() == 5
        ex.shutdown()
        """,
        gate.path,
        what,
    ).succeeds()


def test_a_handler_can_unblock_what_it_interrupts(start: Start, gate: Gate) -> None:
    """rule 18: `result()` goes on after a handler that returns."""
    start(
        """
        import signal, sys
        import rightlane as rl, tasks
        signal.signal(signal.SIGALRM, lambda *_: open(sys.argv[1], "w").close())
        with rl.Executor(1, lane="thread") as threads, rl.Executor(1, lane="process") as processes:
            futures = [ex.submit(tasks.hold, sys.argv[1], i, i) for i, ex in enumerate((threads, processes))]
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert [f.result() for f in futures] == [0, 1]
        """,
        gate.path,
    ).succeeds()


def test_we_install_no_signal_handlers(start: Start) -> None:
    """rule 2: the user's handlers, and their absence, are left alone."""
    start("""
        import signal
        before = {n: signal.getsignal(n) for n in signal.valid_signals()}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        import rightlane as rl, tasks
        with rl.Executor(2) as ex:
            assert list(ex.map(tasks.double, range(10))) == list(range(0, 20, 2))
            assert {n: signal.getsignal(n) for n in signal.valid_signals()} == before
        assert {n: signal.getsignal(n) for n in signal.valid_signals()} == before
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    """).succeeds()


def test_control_c_at_a_terminal_reaches_the_user_only(start: Start, gate: Gate) -> None:
    """rule 14: workers are in another session, so the terminal's SIGINT does not touch their tasks."""
    leader, follower = pty.openpty()
    try:
        script = start(
            "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + textwrap.dedent(IN_THE_BODY),
            gate.path,
            "process",
            stdin=follower,
        )
        eventually(lambda: len(gate.started()) == 2 or script.process.poll() is not None)
        script.expect("ready")
        os.write(leader, b"\x03")
        script.expect("first")
        gate.open()
        assert f"results {[0, 1, *(2 * i for i in range(10))]}" in script.succeeds()
    finally:
        os.close(leader)
        os.close(follower)
