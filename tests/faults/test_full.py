"""invariant 8 in bad company: signals, forks and exits while somebody waits for room, and little memory."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import Gate, Start, Started, eventually, signal_pending

pytestmark = [pytest.mark.stress, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

INTERRUPTED = """
    import sys
    import rightlane as rl, tasks

    gate, lane, kind = sys.argv[1:4]
    ex = rl.Executor(2, lane=lane, max_pending=2)
    held = [ex.submit(tasks.hold, gate, i, i) for i in range(2)]
    try:
        print("full", flush=True)
        if kind == "submit":
            ex.submit(tasks.double, 1)
        else:
            ex.map(tasks.double, [1, 2])
    except KeyboardInterrupt:
        print("interrupted", ex._engine.pending[0], flush=True)
    assert [future.result() for future in held] == [0, 1]
    assert ex.submit(tasks.double, 1).result() == 2
    ex.shutdown()
    print("pending", ex._engine.pending, flush=True)
"""


def asleep(script: Started) -> bool:
    with open(f"/proc/{script.pid}/task/{script.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("lane", ["process", "thread", "auto"])
@pytest.mark.parametrize("kind", ["submit", "map"])
def test_ctrl_c_ends_the_waiting(start: Start, gate: Gate, lane: str, kind: str) -> None:
    """rule 18: and what was not accepted leaves nothing."""
    script = start(INTERRUPTED, gate.path, lane, kind)
    script.expect("full")
    eventually(lambda: len(gate.started()) == 2 and asleep(script))
    os.kill(script.pid, signal.SIGINT)
    eventually(lambda: not signal_pending(script.pid, signal.SIGINT))
    assert "interrupted 2" in script.expect("interrupted")
    gate.open()
    assert "pending (0, 0)" in script.succeeds()


FORK = """
    import os, sys, threading, traceback
    import rightlane as rl, tasks
    from support import eventually

    gate, lane = sys.argv[1:3]
    ex = rl.Executor(2, lane=lane, max_pending=3)
    held = [ex.submit(tasks.hold, gate, i, i) for i in range(2)]
    ex.submit(tasks.echo, b"x" * 100_000)
    late = []
    waiting = threading.Thread(target=lambda: late.append(ex.submit(tasks.double, 4)))
    waiting.start()
    pid = os.fork()
    if pid == 0:
        try:
            assert ex._engine.pending == (0, 0), ex._engine.pending
            futures = [ex.submit(tasks.double, i) for i in range(50)]
            assert [f.result(60) for f in futures] == [2 * i for i in range(50)]
            assert list(ex.map(tasks.double, iter(range(50)))) == [2 * i for i in range(50)]
            eventually(lambda: ex._engine.pending == (0, 0))
            ex.shutdown()
            print("child", flush=True)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    pending = ex._engine.pending
    was_late = not late
    open(gate, "w").close()
    assert (code, pending[0], was_late) == (0, 3, True)
    waiting.join()
    assert late[0].result() == 8
    eventually(lambda: ex._engine.pending == (0, 0))
    ex.shutdown()
"""


@pytest.mark.parametrize("lane", ["process", "thread"])
def test_a_fork_while_it_is_full(start: Start, gate: Gate, lane: str) -> None:
    """invariant 6: the child's executor is empty; in the parent who waited goes on waiting, and gets room."""
    assert "child" in start(FORK, gate.path, lane).succeeds()


EXIT = """
    import sys, threading
    import rightlane as rl, tasks

    gate, lane = sys.argv[1:3]
    ex = rl.Executor(2, lane=lane, max_pending=2)
    for i in range(2):
        ex.submit(tasks.hold, gate, i)

    def submit():
        try:
            while True:
                ex.submit(tasks.double, 1)
        except RuntimeError as error:
            print("told:", error, flush=True)

    threading.Thread(target=submit).start()
    print("main ends", flush=True)
"""


@pytest.mark.parametrize("lane", ["process", "thread"])
def test_an_exit_tells_who_waits(start: Start, gate: Gate, lane: str) -> None:
    """rule 17: the interpreter's exit waits for what is accepted, and for nobody who waits for room."""
    script = start(EXIT, gate.path, lane)
    script.expect("main ends")
    eventually(lambda: len(gate.started()) == 2)
    script.expect("told:")
    gate.open()
    assert "shutdown" in script.succeeds()


ENDLESS = """
    import itertools, os, sys
    from pathlib import Path
    group, lane, kind = sys.argv[1:4]
    if group:
        Path(group, "cgroup.procs" if Path(group, "cgroup.procs").exists() else "tasks").write_text("0")
    import numpy as np
    import rightlane as rl

    MIB = 1 << 20

    def total(array):
        return int(array[::512].sum())

    def used():
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) // 1024

    with rl.Executor(2, lane=lane) as ex:
        if not group:
            ex._engine.assume_memory(400 * MIB)
        bound = ex._engine.most_pending[1]
        assert bound < 150 * MIB, bound
        before, most = used(), 0
        arrays = (np.full(MIB, i, dtype=np.int64) for i in itertools.count())
        results = ex.map(total if kind == "arguments" else np.copy, arrays)
        for i in range(200):
            result = next(results)
            assert result == 2048 * i if kind == "arguments" else (result[0], result[-1]) == (i, i)
            del result
            most = max(most, used() - before)
        results.close()
        print("most", most, "MiB, bound", bound // MIB, flush=True)
        assert most < 2 * bound // MIB + 64
"""


@pytest.fixture
def small_group() -> Iterator[str]:
    """A control group of 512 MiB, or the empty string where none can be made."""
    for root in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        group = Path(root, f"rightlane-{uuid.uuid4().hex[:8]}")
        limits = [("memory.max", "memory.swap.max"), ("memory.limit_in_bytes", "memory.swappiness")]
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for limit, swap in limits:
                if (group / limit).exists():
                    (group / limit).write_text(str(512 << 20))
                    with contextlib.suppress(OSError):
                        (group / swap).write_text("0")
                    yield str(group)
                    return
        finally:
            eventually(lambda group=group: rmdir(group))
    yield ""


def rmdir(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


@pytest.mark.parametrize("lane", ["process", "thread", "auto"])
@pytest.mark.parametrize("kind", ["arguments", "results"])
def test_endless_arrays_in_little_memory(start: Start, small_group: str, lane: str, kind: str) -> None:
    """`map` over an endless generator of 8 MiB arrays runs in constant memory, in a group of 512 MiB."""
    assert "most" in start(ENDLESS, small_group, lane, kind).succeeds(120)


SHORT = """
    import os, sys, warnings
    from pathlib import Path
    group, gate = sys.argv[1:3]
    if group:
        Path(group, "cgroup.procs" if Path(group, "cgroup.procs").exists() else "tasks").write_text("0")
    else:
        os.environ["_RIGHTLANE_ARENA_BYTES"] = str(300 << 20)
    import math
    import numpy as np
    import rightlane as rl, tasks

    def held(values, i):
        tasks.hold(gate, i)
        return int(values[0]), int(values[-1])

    told = []
    warnings.showwarning = lambda message, category, *where: told.append((category, str(message)))
    with rl.Executor(2, lane="process", max_pending=math.inf) as ex:
        futures = []
        while not told:
            assert len(futures) < 64, "more than there is"
            futures.append(ex.submit(held, np.full(1 << 20, len(futures)), len(futures)))
        print("short after", len(futures), flush=True)
        open(gate, "w").close()
        assert [future.result() for future in futures] == [(i, i) for i in range(len(futures))]
    [(category, message)] = told
    assert category is rl.MemoryWarning and "for an argument of 8.0 MiB" in message
    if group:
        assert "MiB may be taken" in message, message
"""


def test_a_full_group_is_told_of_and_kills_nobody(start: Start, small_group: str, gate: Gate) -> None:
    """rule 27: in a group of 512 MiB whatever finds no memory travels with its message."""
    assert "short after" in start(SHORT, small_group, gate.path).succeeds(120)
