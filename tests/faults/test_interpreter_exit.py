"""The interpreter ends: accepted work is finished first, exit codes stay as they are, nothing crashes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from support import Gate, Start, eventually, lines

pytestmark = pytest.mark.stress

LANES = ["process", "thread", "auto"]


@pytest.mark.parametrize("lane", LANES)
def test_work_queued_and_running_is_finished(start: Start, tmp_path: Path, lane: str) -> None:
    """rule 2, rule 17: a normal exit waits; exit code 0, not 134, and silence on stderr."""
    log = tmp_path / "log"
    script = start(
        """
        import sys
        import rightlane as rl, tasks
        ex = rl.Executor(2, lane=sys.argv[2])
        futures = [ex.submit(tasks.append_slowly, sys.argv[1], i, 0.005) for i in range(100)]
        kept = ex.map(tasks.append_slowly, [sys.argv[1]] * 100, range(100, 200))
        """,
        log,
        lane,
    )
    script.succeeds()
    assert sorted(map(int, lines(log))) == list(range(200)) and script.err == ""


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("raise LookupError('mine')", 1)])
def test_exit_codes_are_the_users(start: Start, tmp_path: Path, lane: str, ending: str, code: int) -> None:
    """rule 17: whatever ends the main thread."""
    log = tmp_path / "log"
    script = start(
        f"""
        import sys
        import rightlane as rl, tasks
        ex = rl.Executor(2, lane=sys.argv[2])
        for i in range(20):
            ex.submit(tasks.append_slowly, sys.argv[1], i)
        {ending}
        """,
        log,
        lane,
    )
    assert script.wait() == code
    script.leaves_nothing()
    assert sorted(map(int, lines(log))) == list(range(20))
    assert script.err == "" if code == 3 else "LookupError: mine" in script.err


@pytest.mark.parametrize("lane", LANES)
def test_submit_at_exit_is_refused(start: Start, lane: str) -> None:
    """rule 17: RuntimeError as in the standard library, for old executors and new ones."""
    script = start(
        """
        import atexit, sys, threading
        import rightlane as rl, tasks
        ex = rl.Executor(1, lane=sys.argv[1])
        ex.submit(tasks.noop).result()

        def late():
            for call in (lambda: ex.submit(tasks.noop), lambda: ex.map(tasks.noop, [1])):
                try:
                    call()
                except RuntimeError as error:
                    print("refused", error)
            try:
                rl.Executor(1, lane=sys.argv[1]).submit(tasks.noop)
            except RuntimeError as error:
                print("refused", error)

        atexit.register(late)
        """,
        lane,
    )
    assert script.succeeds().count("refused") == 3, script.err
    assert "shutdown" in script.out and script.err == ""


@pytest.mark.lasting
def test_a_long_exit_names_what_it_waits_for(start: Start, gate: Gate) -> None:
    """rule 2: after 5 s the tasks that hold up the exit are named on stderr."""
    script = start(
        """
        import sys
        import rightlane as rl, tasks
        ex = rl.Executor(1, lane="process")
        ex.submit(tasks.hold, sys.argv[1], "slow")
        """,
        gate.path,
    )
    eventually(lambda: "hold" in script.err)
    gate.open()
    script.succeeds()


def test_daemon_threads_that_wait_do_not_crash_the_exit(start: Start) -> None:
    """rule 17: threads inside our waits, or inside Python code that we called, while the interpreter ends."""
    # Inline more often: there the moment is one in ten.
    for lane in [*LANES, *["inline"] * 12]:
        script = start(
            """
            import sys, threading
            import rightlane as rl, tasks
            ex = rl.Executor(1, lane=sys.argv[1])
            ready = threading.Barrier(5)

            def client():
                ready.wait()
                while True:
                    try:
                        ex.submit(tasks.noop).result()
                    except RuntimeError:
                        threading.Event().wait()

            for _ in range(4):
                threading.Thread(target=client, daemon=True).start()
            ready.wait()
            ex.submit(tasks.noop).result()
            """,
            lane,
        )
        script.succeeds()
        assert script.err == ""


def test_futures_and_callbacks_at_exit(start: Start) -> None:
    """Callbacks of the work that the exit waits for still run."""
    script = start("""
        import rightlane as rl, tasks
        ex = rl.Executor(1, lane="process")
        for i in range(5):
            ex.submit(tasks.double, i).add_done_callback(lambda f: print("called", f.result(), flush=True))
    """)
    assert sorted(script.succeeds().split("\n"))[1:] == [f"called {2 * i}" for i in range(5)]


def test_many_executors_left_open(start: Start) -> None:
    start("""
        import rightlane as rl, tasks
        kept = [rl.Executor(1, lane=lane) for lane in ("process", "thread", "auto", "inline") * 3]
        assert [ex.submit(tasks.double, 2).result() for ex in kept] == [4] * 12
    """).succeeds()


def test_no_thread_starts_at_import(start: Start) -> None:
    """rule 17: nor a process, whatever name is asked for."""
    start("""
        import os
        import rightlane as rl
        rl.Executor, rl.Future, rl.compare, rl.__version__
        rl.RightlaneError, rl.WorkerLost, rl.SerializationError, rl.BrokenExecutor
        assert len(os.listdir("/proc/self/task")) == 1
        from support import children
        assert children(os.getpid()) == []
    """).succeeds()


def test_lane_threads_are_real_threads(make) -> None:  # type: ignore[no-untyped-def]
    """rule 17: `threading.Thread`s, seen by `enumerate`, debuggers and coverage; ended by shutdown."""
    ex = make(2, lane="thread")
    thread = ex.submit(threading.current_thread).result()
    assert thread in threading.enumerate() and type(thread) is not threading._DummyThread
    assert isinstance(thread, threading.Thread) and thread is not threading.main_thread()
    ex.shutdown()
    assert not thread.is_alive()


def test_trace_functions_see_lane_threads(make) -> None:  # type: ignore[no-untyped-def]
    """rule 17: what `threading.setprofile` installs runs in them, as coverage needs it."""
    seen: list[str] = []

    def profile(frame, event, arg) -> None:  # type: ignore[no-untyped-def]
        if event == "call":
            seen.append(frame.f_code.co_name)

    def observed() -> int:
        return 1

    threading.setprofile(profile)
    try:
        assert make(1, lane="thread").submit(observed).result() == 1
    finally:
        threading.setprofile(None)
    assert "observed" in seen


def test_daemon_threads_that_learn_of_a_loss_at_exit(start: Start) -> None:
    """rule 17: what such a thread imports for its error, it imports while the interpreter ends."""
    for _ in range(3):
        script = start("""
            import threading, time
            import rightlane as rl, tasks
            ex = rl.Executor(2, lane="process")
            lost = ex.submit(time.sleep, 60)
            ex.submit(tasks.noop).result()
            threading.Thread(target=lost.result, daemon=True).start()
            time.sleep(0.1)
            ex.shutdown(kill=True)
        """)
        assert script.wait() == 0
