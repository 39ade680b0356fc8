"""The worker's world is the caller's (rule 20)."""

from __future__ import annotations

import textwrap
from pathlib import Path

from unit.main_script import run

START = """
import os, sys, warnings
import pair
from pair import Worker, _world
"""


def main(body: str, directory: Path, *flags: str) -> None:
    run(START + textwrap.dedent(body), directory, *flags)


def test_paths_arguments_directory_environment_and_umask(tmp_path: Path) -> None:
    """rule 20"""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "own.py").write_text("x = 4\n")
    main(
        """
        sys.path.insert(0, "lib")
        sys.argv = ["prog", "-x"]
        sys.setrecursionlimit(1234)
        os.environ["ADDED"] = "1"; os.environ.pop("HOME", None)
        os.environb[b"RAW"] = b"\\xff"
        os.umask(0o027)
        os.mkdir("deep")
        warnings.filterwarnings("error", message="x.*y", category=UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="m$")
        def look():
            import own
            return (own.x, sys.path[0], sys.argv, sys.getrecursionlimit(), os.getcwd(), os.environ["ADDED"],
                    "HOME" in os.environ, os.environb[b"RAW"], _umask(),
                    sys.prefix, sys.base_prefix, sys.executable,
                    sys.modules["__main__"].__file__, __file__)
        def _umask():
            m = os.umask(0); os.umask(m); return m
        with Worker() as w:
            os.chdir("deep")
            here = os.getcwd()
            back = w(look)
            assert back == (4, os.path.dirname(here) + "/lib", ["prog", "-x"], 1234, os.path.dirname(here),
                            "1", False,
                            b"\\xff", 0o27, sys.prefix, sys.base_prefix, sys.executable,
                            os.path.abspath(__file__), os.path.abspath(__file__)), back
            def warn():
                warnings.warn("x and y")
            try: w(warn)
            except UserWarning: pass
            else: assert False
            assert w(lambda: [str(f) for f in warnings.filters][:2]) == [str(f) for f in warnings.filters][:2]
            w.ask("world", _world.capture())
            assert w(os.getcwd) == here
            gone = here + "/gone"; os.mkdir(gone); os.chdir(gone); os.rmdir(gone)
            w.ask("world", _world.capture())
            assert w(lambda: 1) == 1
        assert _world.capture()
        """,
        tmp_path,
    )


def test_flags_are_the_callers(tmp_path: Path) -> None:
    """rule 20: children of tasks do not inherit -P -s -S."""
    main(
        """
        import subprocess, multiprocessing
        def flags():
            import subprocess
            return (subprocess._args_from_interpreter_flags(), tuple(sys.flags), sys.flags.no_site,
                    sys.flags.safe_path,
                    sys.flags.optimize, sys.orig_argv, sys.warnoptions, dict(sys._xoptions), repr(sys.flags))
        def child():
            import subprocess
            args = subprocess._args_from_interpreter_flags()
            argv = [sys.executable, *args, "-c", "import sys; print(*sys.flags)"]
            return subprocess.run(argv, capture_output=True, text=True).stdout.split()
        def work(q): q.put((tuple(sys.flags), "site" in sys.modules))
        def spawn():
            import multiprocessing
            context = multiprocessing.get_context("spawn")
            q = context.SimpleQueue()
            p = context.Process(target=print, args=("",))
            p.start(); p.join()
            return p.exitcode
        with Worker() as w:
            assert w(flags) == flags(), (w(flags), flags())
            assert w(child) == child()
            assert w(spawn) == 0
            assert w(lambda: getattr(sys.flags, "gil", 1)) == getattr(sys.flags, "gil", 1)
            def unknown(): return sys.flags.nonsense
            try: w(unknown)
            except AttributeError: pass
            else: assert False
        """.replace("q = context.SimpleQueue()\n", "pass\n"),
        tmp_path,
        "-O",
        "-X",
        "utf8",
        "-W",
        "ignore::UserWarning",
        "-B",
    )


def test_command_line(tmp_path: Path) -> None:
    main(
        """
        argv, environment = _world.template_command()
        assert argv[:4] == [sys.executable, "-P", "-s", "-S"] and "-I" not in argv, argv
        assert "-OO" in argv and "-b" in argv, argv
        assert "-Werror::UserWarning" in argv and argv[argv.index("-X") + 1] == "dev", argv
        assert argv.count("-Wdefault") == 0 and "-E" not in argv
        assert environment == dict(os.environ)
        """,
        tmp_path,
        "-OO",
        "-b",
        "-X",
        "dev",
        "-W",
        "error::UserWarning",
    )
    main(
        """
        assert "-E" in _world.template_command()[0]
        for bad in ("", "/no/such/python"):
            sys.executable = bad
            try: _world.template_command()
            except RuntimeError as e: assert "embedded" in str(e)
            else: assert False
        sys.frozen = True
        try: _world.template_command("/bin/sh")
        except RuntimeError as e: assert "frozen" in str(e)
        else: assert False
        """,
        tmp_path,
        "-E",
    )


def test_hash_seed_is_shared(tmp_path: Path) -> None:
    main(
        """
        if os.environ.get("PYTHONHASHSEED") != "7":
            os.environ["PYTHONHASHSEED"] = "7"
            os.execv(sys.executable, [sys.executable, *sys.argv])
        with Worker() as w:
            assert w(hash, "text") == hash("text")
        """,
        tmp_path,
    )


def test_editable_installs_need_site(tmp_path: Path) -> None:
    main(
        """
        assert _world.needs_site() is False, sys.meta_path
        class Finder:
            @classmethod
            def find_spec(cls, *a): return None
        sys.meta_path.append(Finder)
        assert _world.needs_site() is True
        sys.meta_path[-1] = Finder()
        assert _world.needs_site() is True
        """,
        tmp_path,
    )


def test_capture_and_apply_are_repeatable(tmp_path: Path) -> None:
    main(
        """
        a = _world.capture()
        _world.apply(a)
        assert _world.capture() == a
        assert _world.main_module(a)[0] == os.path.abspath(__file__)
        flags = sys.flags
        _world.apply(a)
        assert sys.flags is flags
        """,
        tmp_path,
    )
