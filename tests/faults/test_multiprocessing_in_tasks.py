"""`multiprocessing` inside tasks: names, keys, shared memory, managers, pools and processes of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import Start, eventually

METHODS = ("fork", "spawn", "forkserver")


def test_a_worker_knows_who_it_is_and_whose(start: Start) -> None:
    """rule 21: `current_process()` and `parent_process()`, with the key and start method of the user's
    process.
    """
    start("""
        import multiprocessing, os
        import rightlane as rl

        def look():
            import multiprocessing as mp
            me, parent = mp.current_process(), mp.parent_process()
            assert me.pid == me.ident == os.getpid() and me.is_alive() and me.exitcode is None
            assert not me.daemon, "a daemonic process may have no children"
            assert parent.is_alive() and mp.active_children() == []
            return me.name, me._identity, parent.pid, parent.name, bytes(me.authkey), mp.get_start_method()

        if __name__ == "__main__":
            multiprocessing.current_process().name = "the boss"
            multiprocessing.current_process().authkey = b"secret"
            multiprocessing.set_start_method("forkserver")
            with rl.Executor(1, lane="process") as ex:
                first = ex.submit(look).result()
                assert ex.submit(os._exit, 3).exception() is not None
                second = ex.submit(look).result()
                assert ex.submit(look).result() == second
            shared = (os.getpid(), "the boss", b"secret", "forkserver")
            assert first == ("RightlaneWorker-1", (1,), *shared), first
            assert second == ("RightlaneWorker-2", (2,), *shared), second
    """).succeeds()


def test_nothing_is_started_before_a_task_needs_it(start: Start) -> None:
    """rule 21: no tracker, and no import of `multiprocessing` in a worker."""
    start("""
        import os, sys
        import rightlane as rl
        from support import children

        def loaded(): return [name for name in sys.modules if name.startswith("multiprocessing.")]

        if __name__ == "__main__":
            with rl.Executor(2, lane="process") as ex:
                assert ex.submit(loaded).result() == []
                assert list(ex.map(abs, range(-50, 0))) == list(range(50, 0, -1))
                assert len(children(os.getpid())) == 1, "the template alone"
                trackers = sys.modules.get("multiprocessing.resource_tracker")
                assert trackers is None or trackers._resource_tracker._fd is None
    """).succeeds()


def test_shared_memory_outlives_the_workers_that_used_it(start: Start) -> None:
    """rule 21: made here and opened there, made there and opened here; a worker's end unlinks nothing,
    whether it retires or is killed, and no leak is reported where there is none.
    """
    script = start("""
        import os, signal, sys
        from multiprocessing import shared_memory
        import rightlane as rl

        def fill(name, value):
            from multiprocessing import shared_memory
            segment = shared_memory.SharedMemory(name)
            segment.buf[:4] = value
            segment.close()

        def make(value):
            from multiprocessing import shared_memory
            segment = shared_memory.SharedMemory(create=True, size=64)
            segment.buf[:4] = value
            segment.close()
            return segment.name

        def fill_and_die(name, value):
            fill(name, value)
            os.kill(os.getpid(), signal.SIGKILL)

        def fill_untracked(name, value):
            from multiprocessing import resource_tracker, shared_memory
            segment = shared_memory.SharedMemory(name, track=False)
            segment.buf[:4] = value
            segment.close()
            return resource_tracker._resource_tracker._fd

        def take(name):
            segment = shared_memory.SharedMemory(name)
            value = bytes(segment.buf[:4])
            segment.close()
            segment.unlink()
            return value

        if __name__ == "__main__":
            # Made in a task, by a worker that asks for a tracker which nobody has started yet.
            with rl.Executor(1, lane="process") as ex:
                theirs = ex.submit(make, b"them").result()
            assert take(theirs) == b"them"

            with rl.Executor(1, lane="process") as ex:
                ours = shared_memory.SharedMemory(create=True, size=64)
                if sys.version_info >= (3, 13):
                    descriptor = ex.submit(fill_untracked, ours.name, b"free").result()
                    assert descriptor is None, "it needs no tracker"
                    assert bytes(ours.buf[:4]) == b"free"
                ex.submit(fill, ours.name, b"once").result()
                assert bytes(ours.buf[:4]) == b"once"
                theirs = ex.submit(make, b"them").result()
                assert isinstance(ex.submit(fill_and_die, ours.name, b"last").exception(), rl.WorkerLost)
            # No worker is left; both segments are.
            assert bytes(ours.buf[:4]) == b"last"
            assert take(ours.name) == b"last"
            ours.close()
            assert take(theirs) == b"them"
    """)
    script.succeeds()
    assert script.err == "", script.err


def test_what_a_killed_worker_left_is_cleared_by_the_users_process(start: Start) -> None:
    """rule 21: the tracker is the user's, so a segment that nobody unlinked goes at its end, not before."""
    script = start("""
        import os, signal
        from multiprocessing import shared_memory
        import rightlane as rl

        def make_and_die(path):
            from multiprocessing import shared_memory
            segment = shared_memory.SharedMemory(create=True, size=64)
            with open(path, "w") as file:
                file.write(segment.name)
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            import sys
            with rl.Executor(1, lane="process") as ex:
                assert isinstance(ex.submit(make_and_die, sys.argv[0] + ".name").exception(), rl.WorkerLost)
                assert ex.submit(abs, -1).result() == 1
            name = open(sys.argv[0] + ".name").read()
            assert os.path.exists("/dev/shm/" + name.lstrip("/"))
            print(name)
    """)
    name = script.succeeds().strip()
    assert "leaked shared_memory" in script.err  # that one is true
    eventually(lambda: not Path("/dev/shm", name.lstrip("/")).exists(), what="the end of the segment")


@pytest.mark.parametrize("method", METHODS)
def test_pools_processes_queues_and_locks_of_a_task(start: Start, method: str) -> None:
    """rule 21: with each start method; functions of the user's main module are found in the children, and its
    lines under the guard are not run again.
    """
    script = start(
        """
        import multiprocessing, os, sys
        import rightlane as rl

        def square(x): return x * x
        def put(queue, lock, value):
            with lock:
                queue.put((os.getpid(), value))

        def work(method):
            context = multiprocessing.get_context(method)
            with context.Pool(2) as pool:
                squares = pool.map(square, range(5))
            queue, lock = context.Queue(), context.Lock()
            process = context.Process(target=put, args=(queue, lock, "put"))
            with lock:
                process.start()
            pid, value = queue.get()
            process.join()
            assert pid == process.pid and process.exitcode == 0
            return squares, value

        if __name__ == "__main__":
            print("main")
            with rl.Executor(1, lane="process") as ex:
                assert ex.submit(work, sys.argv[1]).result() == ([0, 1, 4, 9, 16], "put")
        """,
        method,
    )
    assert script.succeeds() == "main\n"
    assert script.err == "", script.err


def test_a_script_without_a_guard_is_told_what_to_do(start: Start) -> None:
    """rule 21: a child started by spawn imports the main module; that must not end in a chain of children."""
    script = start("""
        import multiprocessing
        import rightlane as rl

        def nothing(): pass
        def work():
            process = multiprocessing.get_context("spawn").Process(target=nothing)
            process.start()
            process.join()
            return process.exitcode

        with rl.Executor(1, lane="process") as ex:
            print("exit code", ex.submit(work).result())
    """)
    assert script.succeeds() == "exit code 1\n"
    assert 'put the script\'s own work under if __name__ == "__main__":' in script.err


def test_subprocesses_of_a_task(start: Start) -> None:
    """rules 13 and 21: they run, and what one that is killed left running goes with it."""
    start("""
        import os, signal, subprocess, sys
        import rightlane as rl
        from support import alive, eventually

        def run(code):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            return done.stdout.strip()

        def leave():
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as ex:
                assert ex.submit(run, "print(6 * 7)").result() == "42"
                left = ex.submit(leave).result()
                assert alive(left)
                os.kill(ex.submit(os.getpid).result(), signal.SIGKILL)
                eventually(lambda: not alive(left))
    """).succeeds()


def test_managers_of_the_user_and_of_tasks(start: Start) -> None:
    """rule 21: proxies as arguments know the key; a manager that a task starts serves it and its children."""
    script = start("""
        import multiprocessing, os
        import rightlane as rl

        def count(numbers, lock, key):
            with lock:
                numbers[key] = numbers.get(key, 0) + 1

        def own(rounds):
            with multiprocessing.Manager() as manager:
                numbers, lock = manager.dict(), manager.Lock()
                args = numbers, lock, 0
                processes = [multiprocessing.Process(target=count, args=args) for _ in range(rounds)]
                for process in processes: process.start()
                for process in processes: process.join()
                return dict(numbers)

        if __name__ == "__main__":
            with rl.Executor(2, lane="process") as ex:
                with multiprocessing.Manager() as manager:
                    numbers, lock = manager.dict(), manager.Lock()
                    for future in [ex.submit(count, numbers, lock, i % 2) for i in range(10)]:
                        future.result()
                    assert dict(numbers) == {0: 5, 1: 5}
                assert ex.submit(own, 3).result() == {0: 3}
    """)
    script.succeeds()
    assert script.err == "", script.err


@pytest.mark.parametrize("end", ["retires", "is killed"])
def test_nothing_of_a_tasks_children_outlives_the_worker(start: Start, tmp_path: Path, end: str) -> None:
    """rules 13 and 21: managers, forkservers and daemonic children that a task left, and the manager's
    socket.
    """
    script = start(
        """
        import multiprocessing, os, signal, sys, time
        import rightlane as rl

        kept = []
        def sleep(): time.sleep(1000)
        def leave():
            kept.append(multiprocessing.Manager())
            for method in ("fork", "forkserver"):
                kept.append(multiprocessing.get_context(method).Process(target=sleep, daemon=True))
                kept[-1].start()
            return os.getpid()

        if __name__ == "__main__":
            from support import alive, children, eventually
            with rl.Executor(1, lane="process") as ex:
                pid = ex.submit(leave).result()
                left = children(pid)
                assert len(left) == 3, left  # the forkserver's own child is the forkserver's
                left += [child for parent in left for child in children(parent)]
                assert len(left) >= 4, left
                if sys.argv[1] == "is killed":
                    os.kill(pid, signal.SIGKILL)
            eventually(lambda: not any(map(alive, left)))
        """,
        end,
        env={"TMPDIR": str(tmp_path)},
    )
    script.succeeds()
    eventually(lambda: not list(tmp_path.glob("pymp-*")), what="the end of the temporary directories")


def test_a_callback_that_waits_does_not_keep_tasks_from_the_tracker(start: Start) -> None:
    """rule 21: whatever threads of the user's process do, somebody answers the worker that asks."""
    start("""
        import threading
        import rightlane as rl

        def make():
            from multiprocessing import shared_memory
            segment = shared_memory.SharedMemory(create=True, size=64)
            segment.close()
            segment.unlink()
            return True

        if __name__ == "__main__":
            seen, done = [], threading.Event()
            def wait(_):
                seen.append(ex.submit(make).result())
                done.set()
            with rl.Executor(1, lane="process") as ex:
                ex.submit(abs, -1).add_done_callback(wait)
                assert done.wait(60)
            assert seen == [True]
    """).succeeds()


def test_a_fork_of_the_users_process_has_a_door_of_its_own(start: Start) -> None:
    """rule 21: the child's workers ask the child."""
    start("""
        import multiprocessing, os, threading
        import rightlane as rl

        def look():
            return multiprocessing.parent_process().pid, bytes(multiprocessing.current_process().authkey)

        def threads(): return sorted(thread.name for thread in threading.enumerate())

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as ex:
                key = bytes(multiprocessing.current_process().authkey)
                assert ex.submit(look).result() == (os.getpid(), key)
                assert "rightlane-door" in threads()
                child = os.fork()
                if not child:
                    multiprocessing.current_process().authkey = b"child"
                    assert ex.submit(look).result() == (os.getpid(), b"child")
                    ex.shutdown()
                    assert threads() == ["MainThread"], threads()
                    os._exit(7)
                assert os.waitpid(child, 0)[1] == 7 << 8
                assert ex.submit(look).result() == (os.getpid(), key)
            assert threads() == ["MainThread"], threads()
    """).succeeds()


def test_an_executor_in_a_task_shares_the_users_tracker(start: Start) -> None:
    """rule 21: the worker of a worker asks that, and it asks the user's process."""
    script = start("""
        from multiprocessing import shared_memory
        import rightlane as rl

        def make():
            from multiprocessing import shared_memory
            segment = shared_memory.SharedMemory(create=True, size=64)
            segment.buf[0] = 42
            segment.close()
            return segment.name

        def nested():
            with rl.Executor(1, lane="process") as inner:
                return inner.submit(make).result()

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as ex:
                name = ex.submit(nested).result()
            segment = shared_memory.SharedMemory(name)
            assert segment.buf[0] == 42
            segment.close()
            segment.unlink()
    """)
    script.succeeds()
    assert script.err == "", script.err
