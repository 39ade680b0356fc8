"""The user's process forks while the pool is busy: the child works afresh, the parent notices nothing."""

from __future__ import annotations

import pytest

from support import Gate, Start

pytestmark = [pytest.mark.stress, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

FORK = """
    import concurrent.futures as cf, os, sys, threading, traceback
    import rightlane as rl, tasks
    from support import eventually

    gate, lane, ending = sys.argv[1:4]
    ex = rl.Executor(2, lane=lane)
    held = [ex.submit(tasks.hold, gate, i, i) for i in range(2)]
    queued = [ex.submit(tasks.double, i) for i in range(50)]
    mapped = ex.map(tasks.double, range(50))
    done = rl.Executor(1, lane="inline").submit(tasks.double, 4)
    eventually(lambda: all(os.path.exists(f"{gate}.started.{i}") for i in range(2)))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert all(f.cancelled() for f in (*held, *queued)), "inherited unfinished futures are cancelled"
            try:
                held[0].result(10)
                raise AssertionError("a result from nowhere")
            except cf.CancelledError:
                pass
            assert done.result() == 8
            assert [ex.submit(tasks.double, i).result(60) for i in range(20)] == [2 * i for i in range(20)]
            if lane != "thread":
                template = ex.submit(os.getppid).result(60)
                from support import children
                assert template in children(os.getpid()), "a template of its own"
            with rl.Executor(2, lane=lane) as fresh:
                assert list(fresh.map(tasks.double, range(100))) == [2 * i for i in range(100)]
            calls = []
            ex.submit(tasks.double, 1).add_done_callback(calls.append)
            eventually(lambda: calls)
            ex.shutdown()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
        if ending == "os._exit" or code:
            os._exit(code)
        sys.exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not any(f.done() for f in held), "the parent's tasks run on"
    open(gate, "w").close()
    assert [f.result() for f in held] == [0, 1]
    assert [f.result() for f in queued] == list(mapped) == [2 * i for i in range(50)]
    assert ex.submit(tasks.double, 5).result() == 10
    ex.shutdown()
"""


@pytest.mark.parametrize("ending", ["os._exit", "sys.exit"])
@pytest.mark.parametrize("lane", ["process", "thread", "auto"])
def test_child_and_parent_both_work(start: Start, gate: Gate, lane: str, ending: str) -> None:
    """rule 11: inherited unfinished futures are cancelled in the child; its engine is empty and works."""
    start(FORK, gate.path, lane, ending, flags=["-W", "ignore::DeprecationWarning"]).succeeds()


def test_a_child_that_never_uses_the_engine_ends_cleanly(start: Start, gate: Gate) -> None:
    """Its exit does not wait for the parent's tasks, and does not end the parent's workers."""
    start(
        """
        import os, sys
        import rightlane as rl, tasks
        ex = rl.Executor(2, lane="process")
        held = ex.submit(tasks.hold, sys.argv[1], "x", 7)
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                sys.exit(5)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        open(sys.argv[1], "w").close()
        assert held.result() == 7 and ex.submit(tasks.double, 2).result() == 4
        """,
        gate.path,
        flags=["-W", "ignore::DeprecationWarning"],
    ).succeeds()


def test_forks_while_threads_submit(start: Start) -> None:
    """A fork in the midst of submits and answers: no lock of the engine stays taken in the child."""
    start(
        """
        import os, sys, threading, traceback
        import rightlane as rl, tasks
        ex = rl.Executor(2, lane="process")
        stop = threading.Event()
        def client():
            while not stop.is_set():
                assert ex.submit(tasks.double, 3).result() == 6
        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads: thread.start()
        for _ in range(15):
            pid = os.fork()
            if pid == 0:
                try:
                    assert ex.submit(tasks.double, 4).result(60) == 8
                    ex.shutdown()
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        stop.set()
        for thread in threads: thread.join()
        ex.shutdown()
        """,
        flags=["-W", "ignore::DeprecationWarning"],
    ).succeeds()


def test_multiprocessing_with_fork_beside_us(start: Start) -> None:
    """A `multiprocessing` pool of the fork kind, started while our pool is busy, works on both sides."""
    start(
        """
        import multiprocessing
        import rightlane as rl, tasks
        with rl.Executor(2, lane="process") as ex:
            busy = ex.map(tasks.double, range(5000))
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(tasks.double, range(100)) == [2 * i for i in range(100)]
            assert list(busy) == [2 * i for i in range(5000)]
        """,
        flags=["-W", "ignore::DeprecationWarning"],
    ).succeeds()


def test_a_task_may_fork(start: Start) -> None:
    """A worker's child ends without disturbing the worker."""
    start(
        """
        import os
        import rightlane as rl
        def forks():
            pid = os.fork()
            if pid == 0:
                os._exit(4)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), os.getpid()
        with rl.Executor(1, lane="process") as ex:
            answers = [ex.submit(forks).result() for _ in range(5)]
            assert {code for code, _ in answers} == {4} and len({pid for _, pid in answers}) == 1
        """,
    ).succeeds()


def test_a_forked_child_goes_on_with_a_map(start: Start) -> None:
    """A map that was being read when the process forked comes to its end in the child: cancelled."""
    start(
        """
        import itertools, os, signal
        from concurrent.futures import CancelledError
        import rightlane as rl, tasks
        for lane in ("process", "thread"):
            ex = rl.Executor(1, lane=lane)
            results = ex.map(tasks.nap_from_3, itertools.count(), buffersize=20)
            assert next(results) == 0
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                try:
                    for _ in results: pass
                except CancelledError:
                    os._exit(0)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            ex.shutdown(cancel_futures=True)
        """,
        flags=["-W", "ignore::DeprecationWarning"],
    ).succeeds()
