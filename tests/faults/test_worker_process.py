"""A worker as a process: its terminal, group, signals, descriptors and rings, and how it retires."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Gate, Start, eventually, lines, template_of

pytestmark = pytest.mark.stress


def test_standard_input_is_the_null_device(pool: rl.Executor) -> None:
    """rule 14: a worker that reads the terminal would be stopped for ever."""
    assert pool.submit(os.readlink, "/proc/self/fd/0").result() == "/dev/null"
    assert pool.submit(lambda: sys.stdin.read()).result() == ""
    assert isinstance(pool.submit(input).exception(), EOFError)


def test_what_a_task_prints_is_there_before_the_worker_ends(start: Start) -> None:
    """rule 14: stdout and stderr are inherited and flushed after each task, though stdout is a file here."""
    script = start("""
        import logging, sys
        import rightlane as rl

        def speak(i):
            print(f"printed {i}")
            sys.stderr.write(f"written {i}")
            logging.warning("logged %d", i)

        ex = rl.Executor(1, lane="process")
        ex.submit(speak, 1).result()
        list(ex.map(speak, [2, 3]))
        sys.stdin.read()
        ex.shutdown()
    """)
    for i in (1, 2, 3):
        script.expect(f"printed {i}")
        eventually(lambda i=i: f"written {i}" in script.err and f"logged {i}" in script.err)  # type: ignore[misc]
    script.close_stdin()
    assert script.succeeds().count("printed") == 3


def test_buffered_text_is_not_printed_twice(start: Start) -> None:
    """rule 14: flushed before each fork; what the parent has in its own buffer stays the parent's."""
    script = start("""
        import sys
        import rightlane as rl, tasks
        sys.stdout.write("only once\\n")
        with rl.Executor(2, lane="process") as ex:
            list(ex.map(tasks.double, range(10)))
            for _ in range(3):
                ex.submit(tasks.die_by_signal, 9).exception()
            list(ex.map(tasks.double, range(10)))
    """)
    assert script.succeeds() == "only once\n"


def test_a_closed_stdout_is_no_reason_to_fail(start: Start) -> None:
    """rule 14: a daemon's tasks run without any standard streams."""
    start("""
        import os, sys
        import rightlane as rl, tasks
        for fd in (0, 1, 2):
            os.close(fd)
        sys.stdin = sys.stdout = sys.stderr = None
        with rl.Executor(2, lane="process") as ex:
            ok = list(ex.map(tasks.double, range(100))) == [2 * i for i in range(100)]
            ex.submit(print, "into the void").result()
        os._exit(0 if ok else 1)
    """).succeeds()


def test_each_worker_leads_a_group_in_the_templates_session(pool: rl.Executor) -> None:
    """rule 14: killing the group reaches the task's children, the terminal reaches none of them."""
    template = template_of(pool)
    pid, group, session = pool.submit(lambda: (os.getpid(), os.getpgid(0), os.getsid(0))).result()
    assert group == pid and session == template


def test_children_of_a_killed_worker_die_with_its_group(pool: rl.Executor, tmp_path: Path) -> None:
    """rule 14, rule 13: `kill=True` leaves no child of a task."""
    note = tmp_path / "child"

    def spawns(path: str) -> None:
        import subprocess

        child = subprocess.Popen(["sleep", "600"])
        tasks.append(path, child.pid)
        child.wait()

    future = pool.submit(spawns, str(note))
    child = int(eventually(lambda: lines(note))[0])
    pool.shutdown(kill=True)
    assert future.done()
    eventually(
        lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text()
    )


def test_signals_and_descriptors_are_a_clean_slate(start: Start, tmp_path: Path) -> None:
    """rule 15: empty mask, SIGINT and SIGCHLD as they come, no descriptor of the user's."""
    start(
        """
        import os, signal, sys, threading
        import rightlane as rl, tasks

        def state():
            from support import status
            names = []
            for fd in os.listdir("/proc/self/fd"):
                try:
                    names.append(os.readlink(f"/proc/self/fd/{fd}"))
                except OSError:
                    pass
            return (int(status("self", "SigBlk"), 16), int(status("self", "SigIgn"), 16), names,
                    signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGINT))

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
        stray = open(sys.argv[1], "w")
        os.set_inheritable(stray.fileno(), True)
        high = os.dup2(stray.fileno(), 777, inheritable=True)
        with rl.Executor(2, lane="process") as ex:
            for _ in range(2):
                blocked, ignored, names, on_child, on_interrupt = ex.submit(state).result()
                assert blocked == 0, hex(blocked)
                assert not ignored & (1 << signal.SIGINT - 1 | 1 << signal.SIGCHLD - 1), hex(ignored)
                assert on_child == signal.SIG_DFL
                assert on_interrupt in (signal.SIG_DFL, signal.default_int_handler)
                assert not [name for name in names if sys.argv[1] in name], names
                assert isinstance(ex.submit(os._exit, 7).exception(), rl.WorkerLost)
            error = ex.submit(os._exit, 7).exception()
            assert (error.exit_code, error.signal) == (7, None), "though the user ignores SIGCHLD"
        """,
        tmp_path / "stray",
    ).succeeds()


def test_a_worker_cannot_write_its_task_ring(pool: rl.Executor) -> None:
    """rule 16: two memfds per worker; the mapping of the tasks is shared, read-only, and sealed so."""
    found = pool.submit(tasks.rings).result()
    read_only = [ring for ring in found if ring[2] == "r--s"]
    writable = [ring for ring in found if ring[2] == "rw-s"]
    assert read_only and writable and len(read_only) + len(writable) == len(found), found
    for start, size, _ in read_only:
        assert pool.submit(tasks.try_to_make_writable, start, size).result() == 13, (
            "EACCES: the seal forbids it"
        )


def test_workers_share_no_segment(pool: rl.Executor, gate: Gate) -> None:
    """rule 16: private channels: what one worker maps no other does."""

    def inodes(path: str, name: str) -> set[str]:
        tasks.hold(path, name)
        text = Path("/proc/self/maps").read_text()
        return {f[4] for f in map(str.split, text.splitlines()) if len(f) > 5 and f[5].startswith("/memfd:")}

    futures = [pool.submit(inodes, gate.path, str(i)) for i in range(2)]
    eventually(lambda: len(gate.started()) == 2)
    gate.open()
    first, second = (f.result() for f in futures)
    assert len(first) >= 2 and len(second) >= 2 and not first & second


def test_a_worker_that_scribbles_over_its_answers_harms_itself_only(start: Start) -> None:
    """What another process wrote is input: the parent lives, tasks end, later ones run."""
    start("""
        import ctypes, os, random
        import rightlane as rl, tasks
        from pathlib import Path

        def scribble(seed):
            for line in Path("/proc/self/maps").read_text().splitlines():
                if "memfd:" in line and " rw-s " in line:
                    start, end = (int(x, 16) for x in line.split()[0].split("-"))
                    noise = random.Random(seed).randbytes(min(end - start, 1 << 16))
                    ctypes.memmove(start, noise, len(noise))
            os._exit(1)

        with rl.Executor(2, lane="process") as ex:
            for seed in range(10):
                futures = [ex.submit(tasks.double, i) for i in range(20)]
                bad = ex.submit(scribble, seed)
                futures += [ex.submit(tasks.double, i) for i in range(20)]
                assert bad.exception() is not None
                # The scribbler's neighbours in the ring may be lost to it, but each of them ends.
                for i, future in enumerate(futures):
                    assert future.exception() is not None or future.result() == 2 * (i % 20)
                assert list(ex.map(tasks.double, range(100))) == [2 * i for i in range(100)]
    """).succeeds()


def test_a_retiring_worker_ends_like_a_program(start: Start, tmp_path: Path) -> None:
    """rule 22: `atexit` runs, non-daemon threads are joined, output is flushed."""
    log = tmp_path / "log"
    script = start(
        """
        import atexit, sys, threading, time
        import rightlane as rl, tasks

        def last_words(log):
            def thread():
                time.sleep(0.05)
                tasks.append(log, "thread")
            def goodbye():
                tasks.append(log, "atexit")
                print("printed at the end")
            atexit.register(goodbye)
            threading.Thread(target=thread).start()

        with rl.Executor(1, lane="process") as ex:
            ex.submit(last_words, sys.argv[1]).result()
        """,
        log,
    )
    assert "printed at the end" in script.succeeds()
    assert sorted(lines(log)) == ["atexit", "thread"]


@pytest.mark.lasting
def test_a_retiring_worker_does_not_wait_for_ever(start: Start) -> None:
    """rule 22: the join is bounded, and a worker that hangs is killed."""
    start("""
        import threading, time
        import rightlane as rl
        def lingers():
            threading.Thread(target=time.sleep, args=(600,)).start()
        ex = rl.Executor(1, lane="process")
        ex.submit(lingers).result()
        ex.shutdown()
    """).succeeds()


def test_a_killed_worker_runs_no_atexit(pool: rl.Executor, tmp_path: Path, gate: Gate) -> None:
    """rule 22: a killed one says it did not."""
    import atexit

    log = str(tmp_path / "log")
    for _ in range(8):
        pool.submit(lambda p: str(atexit.register(tasks.append, p, "atexit")), log).result()
    gate.occupy(pool, 2)
    pool.shutdown(kill=True)
    assert lines(log) == []


def test_threads_a_task_leaves_running_do_not_disturb(pool: rl.Executor) -> None:
    """A task may start threads in its worker; they end with it."""

    def starts_a_thread(_: int) -> int:
        import threading

        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return threading.active_count()

    assert all(n >= 2 for n in pool.map(starts_a_thread, range(20)))


def test_the_process_list_is_readable(pool: rl.Executor) -> None:
    """The command lines say whose processes these are."""
    template = template_of(pool)
    assert re.search("rightlane", Path(f"/proc/{template}/cmdline").read_bytes().decode())


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
def test_a_task_may_change_signal_handlers_and_directory(pool: rl.Executor) -> None:
    """What a task does to its own process is its own affair."""

    def rude() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.chdir("/")
        sys.stdout = None
        os.environ.clear()
        os.closerange(0, 1)

    for _ in range(4):
        pool.submit(rude).result()
    assert list(pool.map(tasks.double, range(50))) == [2 * i for i in range(50)]
