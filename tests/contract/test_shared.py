"""`rightlane.submit` and `rightlane.map`: one warm executor for all, in the caller's present world."""

from __future__ import annotations

import concurrent.futures as cf
import inspect
import os
import threading
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Start, eventually, lines

pytestmark = pytest.mark.usefixtures("shared")


def test_results_and_errors() -> None:
    future = rl.submit(tasks.everything, 1, fn=2, lane="x", timeout=3)
    assert isinstance(future, cf.Future)
    assert future.result() == ((1,), {"fn": 2, "lane": "x", "timeout": 3})
    with pytest.raises(ZeroDivisionError):
        rl.submit(tasks.divide, 0).result()
    assert list(rl.map(tasks.add, [1, 2, 3], [10, 20, 30])) == [11, 22, 33]
    lazy = rl.map(tasks.double, iter(range(5)), buffersize=2, chunksize=1, timeout=60)
    assert list(lazy) == [0, 2, 4, 6, 8]


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="must be callable"):
        rl.submit(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coroutine function"):
        rl.submit(tasks.coroutine_function)
    with pytest.raises(TypeError, match="at least one iterable"):
        rl.map(abs)
    with pytest.raises(ValueError, match="chunksize must be at least 1"):
        rl.map(abs, [1], chunksize=0)


def test_the_signatures_are_those_of_an_executor() -> None:
    ours, theirs = inspect.signature(rl.map), inspect.signature(rl.Executor.map)
    assert list(ours.parameters) == list(theirs.parameters)[1:]


def test_import_star_leaves_the_built_in_map_alone() -> None:
    names: dict[str, object] = {}
    exec("from rightlane import *", names)
    assert "map" not in names and "submit" in names and "map" in dir(rl)


def test_workers_stay_warm_between_calls() -> None:
    """No more than the budget's worth of processes, however many calls."""
    budget = rl.Executor(lane="thread")._max_workers
    pids = {rl.submit(tasks.here).result() for _ in range(20)} | set(rl.map(tasks.here, range(50)))
    assert os.getpid() not in pids and len(pids) <= budget


def test_from_many_threads_at_once() -> None:
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        results[number] = list(rl.map(tasks.double, range(number, number + 30)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [2 * i for i in range(n, n + 30)] for n in range(6)}


def test_the_first_calls_of_many_threads_share_one_executor(start: Start) -> None:
    start(
        """
        import threading
        import rightlane as rl
        from rightlane import _shared
        made = []
        begin = threading.Barrier(8)
        def first():
            begin.wait()
            made.append(_shared._here()._engine)
        threads = [threading.Thread(target=first) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert len(made) == 8 and len(set(map(id, made))) == 1
        """
    ).succeeds()


def test_each_call_sees_the_present_world(start: Start, tmp_path: Path) -> None:
    """rule 20: directory, environment, umask, warnings filters and path, looked at again at each call."""
    (tmp_path / "found_later.py").write_text("def answer():\n    return 42\n")
    start(
        """
        import os, sys, warnings
        import rightlane as rl

        def world(_=None):
            umask = os.umask(0)
            os.umask(umask)
            filters = [(f[0], f[2].__name__) for f in warnings.filters[:1]]
            return os.getcwd(), os.environ.get("RIGHTLANE_TEST_X"), umask, filters

        def there():
            one, several = rl.submit(world).result(), set(map(str, rl.map(world, range(8))))
            assert several == {str(one)}, (one, several)
            return one

        assert there() == world()
        for change in (
            lambda: os.chdir(sys.argv[1]),
            lambda: os.environ.update(RIGHTLANE_TEST_X="1"),
            lambda: os.environ.update(RIGHTLANE_TEST_X="2"),
            lambda: os.environ.pop("RIGHTLANE_TEST_X"),
            lambda: os.umask(0o027),
            lambda: os.umask(0o022),
            lambda: warnings.simplefilter("error", ResourceWarning),
            lambda: os.chdir("/"),
        ):
            before = world()
            change()
            assert world() != before
            assert there() == world(), (there(), world())

        sys.path.append(sys.argv[1])
        import found_later
        assert rl.submit(found_later.answer).result() == 42
        """,
        tmp_path,
        env={"RIGHTLANE_TEST_Y": "é"},
    ).succeeds()


def test_a_worker_that_lives_is_not_replaced_where_nothing_changed(start: Start) -> None:
    """rule 20: the same world again finds the same workers, though another came between."""
    start(
        """
        import os
        import rightlane as rl
        os.chdir("/")
        at_root = {rl.submit(os.getpid).result() for _ in range(5)}
        assert len(at_root) == 1
        assert {rl.submit(os.getpid).result() for _ in range(5)} == at_root
        os.environ["RIGHTLANE_TEST_X"] = os.environ.get("RIGHTLANE_TEST_X", "")
        os.chdir("/tmp")
        elsewhere = rl.submit(os.getpid).result()
        assert elsewhere not in at_root
        assert rl.submit(os.getpid).result() == elsewhere
        """
    ).succeeds()


def test_tasks_of_before_keep_the_world_of_before(start: Start, tmp_path: Path) -> None:
    """rule 20: what was submitted before a change runs in the old world, though it begins after it."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    start(
        """
        import os, sys
        from pathlib import Path
        import rightlane as rl, tasks
        from support import Gate

        os.chdir("old")
        gate = Gate(Path(sys.argv[1]))
        budget = rl.Executor(lane="process")._max_workers
        held = gate.occupy(rl, budget)
        before = [rl.submit(os.getcwd) for _ in range(20)]
        mapped = rl.map(lambda _: os.getcwd(), range(20))
        os.chdir("../new")
        after = [rl.submit(os.getcwd) for _ in range(20)]
        new = os.getcwd()
        old = str(Path(new).parent / "old")
        assert not any(future.done() for future in before + after)
        gate.open()
        assert {future.result() for future in before} == {old} == set(mapped)
        assert {future.result() for future in after} == {new}
        assert all(future.result() for future in held)
        """,
        tmp_path,
        cwd=str(tmp_path),
    ).succeeds()


def test_a_directory_that_is_gone(start: Start, tmp_path: Path) -> None:
    """rule 20: nothing fails; workers are in the root directory."""
    (tmp_path / "gone").mkdir()
    start(
        """
        import os
        import rightlane as rl
        assert rl.submit(abs, -1).result() == 1
        os.chdir("gone")
        os.rmdir("../gone")
        assert rl.submit(os.getcwd).result() == "/"
        assert list(rl.map(abs, [-2])) == [2]
        """,
        cwd=str(tmp_path),
    ).succeeds()


def test_the_exit_finishes_what_was_accepted(start: Start, tmp_path: Path) -> None:
    """rule 2: as with every executor; nothing is left, and then nothing is taken any more."""
    log = tmp_path / "log"
    start(
        """
        import atexit, sys
        import rightlane as rl, tasks
        def too_late():
            try:
                rl.submit(abs, -1)
            except RuntimeError as error:
                tasks.append(sys.argv[1], error)
        atexit.register(too_late)
        for i in range(40):
            rl.submit(tasks.append_slowly, sys.argv[1], i)
        rl.map(tasks.append_slowly, [sys.argv[1]] * 40, range(40, 80))
        """,
        log,
    ).succeeds()
    *items, refusal = lines(log)
    assert sorted(map(int, items)) == list(range(80))
    assert "after interpreter shutdown" in refusal


def test_a_forked_child_has_its_own(start: Start) -> None:
    """Invariant 6: empty and working, also where another thread was in the middle of a call."""
    start(
        """
        import os, threading
        import rightlane as rl
        assert rl.submit(abs, -1).result() == 1
        stop = threading.Event()
        def submit():
            while not stop.is_set():
                rl.submit(abs, -2).result()
                os.environ["RIGHTLANE_TEST_X"] = str(len(os.environ["RIGHTLANE_TEST_X"]) % 2)
        os.environ["RIGHTLANE_TEST_X"] = ""
        thread = threading.Thread(target=submit)
        thread.start()
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                assert rl.submit(os.getppid).result() != os.getppid()
                assert list(rl.map(abs, range(-3, 0))) == [3, 2, 1]
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        stop.set()
        thread.join()
        """,
        flags=["-W", "ignore::DeprecationWarning"],
    ).succeeds()


def test_one_that_broke_is_replaced(start: Start) -> None:
    """rule 10: workers that cannot be started break an executor; the shared one is made anew."""
    start(
        """
        import rightlane as rl
        from rightlane import _executor, _native
        _executor._prepare_template()
        _native.set_template_program(b"/bin/false", [b"false"], [])
        assert isinstance(rl.submit(abs, -1).exception(), rl.BrokenExecutor)
        _executor._prepared = False
        assert rl.submit(abs, -1).result() == 1
        assert list(rl.map(abs, [-1])) == [1]
        """
    ).succeeds()


def test_idle_workers_are_retired_after_a_while() -> None:
    """The engine ends idle workers (`test_idle`), and the shared executor asks for it."""
    from rightlane import _shared

    assert _shared._IDLE_S == 60.0
    assert rl.submit(tasks.here).result() in eventually(lambda: _shared._here()._engine.worker_pids())
