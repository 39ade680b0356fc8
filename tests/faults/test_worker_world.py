"""The worker's world is the caller's: directory, environment, path, flags and settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rightlane as rl
from support import Start


def test_settings_of_the_caller_hold_in_workers(start: Start, tmp_path: Path) -> None:
    """rule 20: as of the worker's fork."""
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "only_here.py").write_text("value = 5\n")
    start(
        """
        import os, sys, warnings
        import rightlane as rl

        def world():
            umask = os.umask(0)
            os.umask(umask)
            import only_here
            return dict(
                cwd=os.getcwd(), env=dict(os.environ), umask=umask, argv=sys.argv,
                limit=sys.getrecursionlimit(),
                prefix=(sys.prefix, sys.base_prefix, sys.exec_prefix), value=only_here.value,
                executable=sys.executable,
                filters=[(f[0], f[2].__name__) for f in warnings.filters[:2]],
                path=[p for p in sys.path if os.path.isdir(p)], flags=sys.flags[:4], hash=hash("rightlane"),
                encoding=(sys.getfilesystemencoding(), sys.stdout.encoding), xoptions=sys._xoptions,
            )

        os.chdir(sys.argv[1])
        os.environ["RIGHTLANE_TEST_SET"] = "é"
        os.environb[b"RIGHTLANE_TEST_BYTES"] = b"\\xff\\xfe"
        os.environ.pop("HOME", None)
        os.umask(0o027)
        sys.path.insert(0, "extra")
        sys.setrecursionlimit(4321)
        warnings.simplefilter("error", ResourceWarning)
        here = world()
        here["path"] = [os.path.abspath(p) for p in here["path"]]
        with rl.Executor(2, lane="process") as ex:
            there = ex.submit(world).result()
            for key, value in here.items():
                assert there[key] == value, (key, value, there[key])
        """,
        tmp_path,
        flags=["-X", "utf8"],
        env={"PYTHONHASHSEED": "77", "RIGHTLANE_TEST_UNSET": "1"},
    ).succeeds()


def test_the_world_is_that_of_the_workers_fork(start: Start, tmp_path: Path) -> None:
    """rule 20: a later worker of the same template sees the later directory and environment."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    start(
        """
        import os, sys
        import rightlane as rl
        for name in ("a", "b"):
            os.chdir(os.path.join(sys.argv[1], name))
            os.environ["RIGHTLANE_TEST_NAME"] = name
            if name == "b":
                del os.environ["RIGHTLANE_TEST_GONE"]
            ex = rl.Executor(1, lane="process")
            assert ex.submit(os.getcwd).result() == os.getcwd()
            assert ex.submit(os.getenv, "RIGHTLANE_TEST_NAME").result() == name
            assert ex.submit(os.getenv, "RIGHTLANE_TEST_GONE").result() == ("1" if name == "a" else None)
            if name == "a":
                keep = ex
        assert ex.submit(os.getppid).result() == keep.submit(os.getppid).result()
        os.environ["RIGHTLANE_TEST_NAME"] = "c"
        assert ex.submit(os._exit, 1).exception() is not None
        assert ex.submit(os.getenv, "RIGHTLANE_TEST_NAME").result() == "c", "a replacement is forked later"
        ex.shutdown(); keep.shutdown()
        """,
        tmp_path,
        env={"RIGHTLANE_TEST_GONE": "1"},
    ).succeeds()


def test_a_deleted_directory_is_no_reason_to_fail(start: Start, tmp_path: Path) -> None:
    """rule 20: as far as possible."""
    (tmp_path / "gone").mkdir()
    start(
        """
        import os, sys
        import rightlane as rl
        os.chdir(sys.argv[1])
        os.rmdir(sys.argv[1])
        with rl.Executor(1, lane="process") as ex:
            assert ex.submit(abs, -1).result() == 1
        """,
        tmp_path / "gone",
    ).succeeds()


@pytest.mark.parametrize(
    "flags",
    [["-O"], ["-OO"], ["-B", "-u"], ["-X", "dev"], ["-W", "error::UserWarning"], ["-E"], ["-b"]],
    ids=" ".join,
)
def test_the_callers_own_flags_are_passed(start: Start, flags: list[str]) -> None:
    """rule 20: plus the caller's own flags."""
    start(
        """
        import sys
        sys.path[:0] = sys.argv[1:]
        import rightlane as rl

        def flags():
            import subprocess
            f = sys.flags
            return (f.optimize, f.dont_write_bytecode, f.dev_mode, f.ignore_environment, f.bytes_warning,
                    f.no_user_site, f.no_site, f.safe_path, f.isolated, f.hash_randomization,
                    sorted(sys.warnoptions), dict(sys._xoptions), subprocess._args_from_interpreter_flags())

        with rl.Executor(1, lane="process") as ex:
            assert ex.submit(flags).result() == flags(), (ex.submit(flags).result(), flags())
        """,
        str(Path(__file__).parent.parent),
        flags=flags,
    ).succeeds()


def test_children_of_tasks_do_not_inherit_the_templates_flags(start: Start) -> None:
    """rule 20: neither `subprocess` nor `multiprocessing` children are started without `site`."""
    start("""
        import multiprocessing, subprocess, sys
        import rightlane as rl

        CODE = "import sys; print(tuple(sys.flags), 'site' in sys.modules)"

        def with_subprocess():
            arguments = subprocess._args_from_interpreter_flags()
            command = [sys.executable, *arguments, "-c", CODE]
            return subprocess.run(command, capture_output=True, text=True).stdout

        def with_multiprocessing():
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                expression = "tuple(__import__('sys').flags), 'site' in __import__('sys').modules"
                return pool.apply(eval, (expression,))

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as ex:
                for fn in (with_subprocess, with_multiprocessing):
                    assert ex.submit(fn).result() == fn(), (ex.submit(fn).result(), fn())
    """).succeeds()


def test_import_hooks_of_the_site_are_there(start: Start, tmp_path: Path) -> None:
    """rule 20: where `sys.meta_path` has unknown finders (editable installs), `site` runs in the template."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, importlib.machinery, sys\n"
        "class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'only_by_finder':\n"
        "            return importlib.machinery.ModuleSpec(name, self)\n"
        "    def create_module(self, spec): return None\n"
        "    def exec_module(self, module): module.answer = lambda x: x + 42\n"
        "sys.meta_path.append(Finder())\n"
    )
    tests = str(Path(__file__).parent.parent)
    start(
        """
        import only_by_finder
        import rightlane as rl
        def imports_late(x):
            import only_by_finder
            return only_by_finder.answer(x)
        with rl.Executor(1, lane="process") as ex:
            assert ex.submit(imports_late, 0).result() == 42
            assert list(ex.map(imports_late, range(3))) == [42, 43, 44]
        """,
        env={"PYTHONPATH": f"{tmp_path}:{tests}"},
    ).succeeds()


def test_a_module_that_does_not_exist_is_the_tasks_error(start: Start) -> None:
    """rule 20: after all that, an ImportError is an ImportError; the worker goes on."""
    start("""
        import rightlane as rl
        def imports():
            import no_such_module_anywhere
        with rl.Executor(1, lane="process") as ex:
            for _ in range(3):
                error = ex.submit(imports).exception()
                assert type(error) is ModuleNotFoundError and error.name == "no_such_module_anywhere"
            assert ex.submit(abs, -1).result() == 1
    """).succeeds()


def test_packages_of_a_virtual_environment_are_found(start: Start) -> None:
    """rule 20: prefix and path of the environment hold though `site` did not run."""
    start("""
        import rightlane as rl
        def finds():
            import cloudpickle, importlib.metadata
            return cloudpickle.__version__, importlib.metadata.version("cloudpickle")
        with rl.Executor(1, lane="process") as ex:
            assert ex.submit(finds).result() == finds()
    """).succeeds()


def test_an_interpreter_without_executable_gets_one_clear_error(start: Start) -> None:
    """rule 20: frozen and embedded interpreters; threads still work there."""
    start("""
        import sys
        sys.executable = ""
        import rightlane as rl
        try:
            with rl.Executor(1, lane="process") as ex:
                ex.submit(abs, -1).result(60)
        except RuntimeError as error:
            assert "executable" in str(error), error
        else:
            raise AssertionError("no error")
        with rl.Executor(1, lane="thread") as ex:
            assert ex.submit(abs, -1).result() == 1
    """).succeeds()


def test_the_users_main_is_never_run_again(start: Start, tmp_path: Path) -> None:
    """No `__main__` guard: the script's own lines run once."""
    script = start("""
        import rightlane as rl
        print("main runs", flush=True)
        def f(x):
            return x + 1
        with rl.Executor(2, lane="process") as ex:
            assert list(ex.map(f, range(100))) == list(range(1, 101))
    """)
    assert script.succeeds().count("main runs") == 1


def test_a_template_is_ready_with_next_to_nothing_imported() -> None:
    """What it imports is part of the first result's time."""
    home = str(Path(rl.__file__).parents[1])
    code = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]);"
        "from rightlane import _template; print(*sorted(set(sys.modules) - before - {'__future__'}))"
    )
    command = [sys.executable, "-P", "-s", "-S", "-c", code, home]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    own = ("_core", "_definitions", "_native", "_template", "_worker", "_world")
    assert run.stdout.split() == ["rightlane", *(f"rightlane.{name}" for name in own)]


def test_an_idle_template_imports_what_later_tasks_need(start: Start) -> None:
    """rule 19: without a thread; nothing of it is missing in a worker that was forked before."""
    start("""
        import os, sys, time
        import rightlane as rl
        class Made: pass
        def look():
            return {"os", "_pickle", "rightlane._byvalue"} <= set(sys.modules)
        def give():
            return Made(), len(os.listdir("/proc/self/task"))
        end = time.monotonic() + 60
        with rl.Executor(1, lane="process") as first:
            assert type(first.submit(give).result()[0]) is Made
            warm = False
            while not warm:
                assert time.monotonic() < end
                with rl.Executor(1, lane="process") as ex:
                    warm = ex.submit(look).result()
                    threads = ex.submit(give).result()[1]
            # As many as without: one runs tasks, one watches the engine, one looks at tasks.
            assert threads == 3, threads
    """).succeeds()


def test_random_numbers_differ_between_workers(start: Start) -> None:
    """rule 19: forked from one template, yet no two workers draw the same numbers."""
    start("""
        import os, random, sys, threading
        import rightlane as rl
        def draw():
            return os.getpid(), random.random()
        seen = {}
        for _ in range(4):
            with rl.Executor(1, lane="process") as ex:
                pid, number = ex.submit(draw).result()
                seen[pid] = number
        assert len(set(seen.values())) == len(seen) >= 2
    """).succeeds()


def test_a_worker_that_is_forked_later_than_its_task_was_submitted(start: Start) -> None:
    """rule 20: behind a thread that holds the slot, and behind a worker that leaves."""
    start("""
        import os, sys, threading
        import rightlane as rl

        def look():
            import multiprocessing.process
            name = multiprocessing.process.current_process().name
            return os.environ["RIGHTLANE_TEST"], os.getcwd(), sys.argv[1:], name != "MainProcess"

        lock, go_on = threading.Lock(), threading.Event()
        os.chdir("/")
        with rl.Executor(1) as ex:
            holds = ex.submit(lambda: (lock, go_on.wait(60)))  # cannot be pickled: runs in a thread
            os.environ["RIGHTLANE_TEST"] = "behind a thread"
            seen = ex.submit(look)
            go_on.set()
            assert seen.result() == ("behind a thread", "/", sys.argv[1:], True), seen.result()
        with rl.Executor(1, lane="process", max_tasks_per_child=1) as ex:
            for name in ("first", "second", "third"):
                os.environ["RIGHTLANE_TEST"] = name
                seen = ex.submit(look)
                again = ex.submit(look)
                assert seen.result()[0] == name
                assert again.result()[0] == name
    """).succeeds()
