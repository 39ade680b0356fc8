"""Functions of modules that were reloaded, edited or patched: the task does what a call here would do (rule
5).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support import Start

# Each version of a module is of another length: where it is compiled within a second, the cache of its
# bytecode goes by that.
PREAMBLE = """
import importlib, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
folder = Path(sys.argv[1])

def write(name, source):
    (folder / f"{name}.py").write_text(source)
    importlib.invalidate_caches()

"""


@pytest.fixture
def run(start: Start, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a script beside a folder for its modules."""
    folder = tmp_path / "modules"
    folder.mkdir()

    def runner(source: str, **options: object) -> str:
        import textwrap

        return start(PREAMBLE + textwrap.dedent(source), folder, **options).succeeds()

    return runner


@pytest.mark.parametrize("flags", [[], ["-B"], ["-O"]], ids=["cached", "compiled anew", "optimised"])
def test_a_reloaded_module_is_what_tasks_run(run, flags: list[str]) -> None:  # type: ignore[no-untyped-def]
    """rule 5: workers that have imported the older one end, in good order, and others take their places."""
    run(
        """
        write("work", "def value(x):\\n    'Doc.'\\n    assert x >= 0\\n    return x + 1\\n")
        import work
        import rightlane as rl

        def leave(path):
            import atexit
            atexit.register(lambda: open(path, "w").close())
            return os.getpid()

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as ex:
                assert ex.submit(work.value, 1).result() == 2
                pid = ex.submit(leave, sys.argv[1] + "/left").result()
                assert ex.submit(work.value, 2).result() == 3 and ex.submit(os.getpid).result() == pid

                write("work", "def value(x):\\n    return x + 1000\\ndef new(x):\\n    return -x\\n\\n")
                importlib.reload(work)
                assert ex.submit(work.value, 1).result() == 1001
                assert (folder / "left").exists(), "the worker said no goodbye"
                assert ex.submit(work.new, 1).result() == -1
                assert list(ex.map(work.value, range(500))) == list(range(1000, 1500))
                younger = ex.submit(os.getpid).result()
                assert younger != pid

                # What is out of date ends once; what is not, stays.
                assert ex.submit(work.value, 5).result() == 1005 and ex.submit(os.getpid).result() == younger
        """,
        flags=flags,
    )


def test_no_item_of_a_map_is_lost_or_run_twice_when_workers_refuse(run) -> None:  # type: ignore[no-untyped-def]
    """rule 5: a worker refuses before it has run anything of what it holds, prefetched batches included."""
    run("""
        log = sys.argv[1] + "/log"
        source = (
            "import os\\n"
            "def note(x):\\n"
            "    with open({log!r}, 'a') as file: file.write(f'{{x}}\\\\n')\\n"
            "    return x * {factor}\\n"
        )
        write("work", source.format(log=log, factor=1))
        import work
        import rightlane as rl

        if __name__ == "__main__":
            with rl.Executor(3, lane="process") as ex:
                assert list(ex.map(work.note, range(300), chunksize=5)) == list(range(300))
                for factor in (10, 100, 1000):
                    os.unlink(log)
                    write("work", source.format(log=log, factor=factor))
                    importlib.reload(work)
                    singles = [ex.submit(work.note, x) for x in range(300, 320)]
                    items = ex.map(work.note, range(300), chunksize=5)
                    assert list(items) == [x * factor for x in range(300)]
                    assert [f.result() for f in singles] == [x * factor for x in range(300, 320)]
                    assert sorted(map(int, open(log))) == list(range(320))
    """)


def test_what_a_function_names_counts_too(run) -> None:  # type: ignore[no-untyped-def]
    """rule 5: helpers of its module and of others, classes, methods, partials, and functions of the main
    module.
    """
    run("""
        from functools import partial
        write("below", "def add(x):\\n    return x + 1\\n")
        source = (
            "import below\\n"
            "from functools import lru_cache, wraps\\n"
            "def loud(fn):\\n"
            "    @wraps(fn)\\n"
            "    def inner(x):\\n"
            "        return fn(x)\\n"
            "    return inner\\n"
            "def own(x):\\n    return x * {0}\\n"
            "def near(x):\\n    return own(x)\\n"
            "def far(x):\\n    return below.add(x)\\n"
            "@loud\\n"
            "def wrapped(x):\\n    return x + {0}\\n"
            "@lru_cache\\n"
            "def cached(x):\\n    return x - {0}\\n"
            "class Thing:\\n"
            "    def __init__(self, x):\\n        self.x = x\\n"
            "    def __call__(self, y):\\n        return self.x + y + {0}\\n"
            "    def method(self, y):\\n        return self.x * y * {0}\\n"
            "    @classmethod\\n"
            "    def made(cls, x):\\n        return cls(x + {0}).x\\n"
            "    @staticmethod\\n"
            "    def still(x):\\n        return [x, {0}]\\n"
            "def thing(x):\\n    return Thing(x)(0)\\n"
        )
        write("work", source.format(2))
        import below, work
        import rightlane as rl

        def mine(x): return work.own(x)
        def mine_too(x): return mine(x)
        def late(x):
            import work
            return work.own(x)

        def check(ex, n, m, current=True):
            importing = [(late, 10 * n)] if current else []
            for fn, wanted in (
                *importing, (work.near, 10 * n), (work.far, 10 + m),
                (work.wrapped, 10 + n), (work.cached, 10 - n),
                (partial(work.own), 10 * n), (work.Thing(1), 11 + n), (work.Thing(1).method, 10 * n),
                (work.Thing.made, 10 + n), (work.Thing.still, [10, n]), (work.thing, 10 + n),
                (mine, 10 * n), (mine_too, 10 * n), (lambda x: work.near(x), 10 * n),
            ):
                for _ in range(2):
                    got = ex.submit(fn, 10).result()
                    assert got == wanted, (fn, got, wanted)
                assert list(ex.map(fn, [10] * 3)) == [wanted] * 3

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as ex:
                check(ex, 2, 1)
                write("work", source.format(30)); importlib.reload(work)
                check(ex, 30, 1)
                write("below", "def add(x):\\n    return x + 400\\n"); importlib.reload(below)
                check(ex, 30, 400)
                # Edited while this process runs on with what it has: a worker cannot import that any more.
                write("work", source.format(5000))
                assert ex.submit(os._exit, 1).exception() is not None
                check(ex, 30, 400, current=False)
                importlib.reload(work)
                check(ex, 5000, 400)
    """)


def test_code_changed_in_place_is_what_tasks_run(run) -> None:  # type: ignore[no-untyped-def]
    """rule 5: as IPython's autoreload does it, and as a patch in memory does."""
    run("""
        write("work", "def low(x):\\n    return x + 1\\ndef high(x):\\n    return low(x)\\n")
        import work
        import rightlane as rl

        def check(ex, n):
            for fn in (work.low, work.high, lambda x: work.high(x)):
                for _ in range(3):
                    assert ex.submit(fn, 10).result() == 10 + n

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as ex:
                check(ex, 1)
                old = work.low
                write("work", "def low(x):\\n    return x + 20\\ndef high(x):\\n    return low(x)\\n")
                importlib.reload(work)
                old.__code__ = work.low.__code__
                work.low = old
                check(ex, 20)
                def patched(x): return x + 300
                work.low.__code__ = patched.__code__  # in no file at all
                check(ex, 300)
    """)


def test_every_worker_is_told_by_value_what_no_import_gives(run) -> None:  # type: ignore[no-untyped-def]
    """rule 5: each asks by itself, also with what was on its way when the first one asked; one module that is
    out of date brings in another.
    """
    run("""
        write("below", "def add(x):\\n    return x + 1\\n")
        write("work", "def value(x):\\n    import below\\n    return below.add(x) * 2\\n")
        import below, work
        write("below", "def add(x):\\n    return x + 5000\\n")
        write("work", "def value(x):\\n    return None\\n")
        import rightlane as rl

        def mine(x): return work.value(x), below.add(x)

        if __name__ == "__main__":
            with rl.Executor(3, lane="process") as ex:
                items = ex.map(work.value, range(100), chunksize=1)
                futures = [ex.submit(mine, x) for x in range(100)]
                more = ex.map(below.add, range(100), chunksize=1)
                assert [f.result()[1] for f in futures] == list(range(1, 101))
                assert list(more) == list(range(1, 101))
                assert list(items) == [f.result()[0] for f in futures]
                assert None not in [f.result()[0] for f in futures]
    """)


def test_data_of_a_reloaded_module_is_new_too(run) -> None:  # type: ignore[no-untyped-def]
    """rule 5: also where no line of code differs, for functions of the module and of the main module."""
    run("""
        source = "TABLE = {{'a': {0}}}\\ndef look(key):\\n    return TABLE[key]\\n"
        write("work", source.format(1))
        import work
        import rightlane as rl

        def mine(key): return work.TABLE[key]

        if __name__ == "__main__":
            with rl.Executor(2, lane="process") as ex:
                assert ex.submit(work.look, "a").result() == 1
                for value in (20, 300, 4000):
                    write("work", source.format(value))
                    importlib.reload(work)
                    for fn in (work.look, mine, lambda key: work.TABLE[key], lambda key: mine(key)):
                        assert ex.submit(fn, "a").result() == value, fn
                        assert list(ex.map(fn, ["a"] * 20)) == [value] * 20
                pids = ex._engine.worker_pids()
                importlib.reload(work)  # from the same file
                assert ex.submit(work.look, "a").result() == 4000
                assert set(ex._engine.worker_pids()) <= set(pids), "a worker ended in vain"
    """)


def test_what_cannot_be_had_is_one_clear_error(run) -> None:  # type: ignore[no-untyped-def]
    """rule 5: neither by import nor by value; the executor goes on, and automatic choice takes a thread."""
    run("""
        source = (
            "import threading\\n"
            "lock = threading.Lock()\\n"
            "def value(x):\\n    with lock:\\n        return x + {}\\n"
        )
        write("work", source.format(1))
        import work
        write("work", source.format(1000))
        import rightlane as rl

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as ex:
                for _ in range(2):
                    error = ex.submit(work.value, 1).exception()
                    assert isinstance(error, rl.SerializationError), error
                assert "lock" in str(error), error
                assert ex.submit(abs, -1).result() == 1
                importlib.reload(work)
                assert ex.submit(work.value, 1).result() == 1001
            write("work", source.format(20))
            with rl.Executor(1, lane="process") as ex:
                error = ex.submit(work.value, 1).exception()
                assert isinstance(error, rl.SerializationError), error
                assert "importlib.reload()" in str(error) and "work.value" in str(error), error
            with rl.Executor(1) as ex:
                assert ex.submit(work.value, 1).result() == 1001
    """)


def test_a_module_changed_over_and_over_is_followed(run) -> None:  # type: ignore[no-untyped-def]
    """rule 5: a worker refuses for what it has imported, never for what is in the file: so this comes to an
    end.
    """
    run("""
        source = (
            "import os\\n"
            "if os.getpid() == {}:\\n    def value(): return 'parent'\\n"
            "else:\\n    def value(): return 1\\n"
        )
        write("work", source.format(os.getpid()))
        import work
        import rightlane as rl

        def imports():
            import work

        if __name__ == "__main__":
            # The initializer has imported it before any check; the file has both versions.
            with rl.Executor(1, lane="process", initializer=imports) as ex:
                pid = ex.submit(os.getpid).result()
                assert ex.submit(work.value).result() == "parent"
                assert ex.submit(os.getpid).result() == pid, "a worker ended in vain"
                write("work", source.format(os.getpid()) + "\\n" * 50)
                importlib.reload(work)
                assert ex.submit(work.value).result() == "parent"
                assert ex.submit(work.value).result() == "parent"
    """)


def test_an_initializer_of_a_changed_module_runs(run) -> None:  # type: ignore[no-untyped-def]
    """rule 5: a worker that starts has nothing out of date; what it cannot import comes by value."""
    run("""
        source = (
            "STATE = []\\n"
            "def begin(x):\\n    STATE.append(x + {})\\n"
            "def look():\\n    return list(STATE)\\n"
        )
        write("work", source.format(1))
        import work
        import rightlane as rl

        if __name__ == "__main__":
            write("work", source.format(2000))
            with rl.Executor(1, lane="process", initializer=work.begin, initargs=(5,)) as ex:
                assert ex.submit(work.look).result() == [6]
            importlib.reload(work)
            with rl.Executor(1, lane="process", initializer=work.begin, initargs=(5,)) as ex:
                assert ex.submit(work.look).result() == [2005]
    """)


def test_a_template_that_knows_the_older_module_is_replaced(start: Start, tmp_path: Path) -> None:
    """rules 5 and 19: an installed package that was upgraded while the program runs."""
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "slow_package.py").write_text("import time; time.sleep(0.02)\ndef value(x):\n    return x + 1\n")
    start(
        """
        import importlib, os, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import slow_package
        import rightlane as rl
        from support import eventually

        def learned():
            return "slow_package" in getattr(sys.modules.get("rightlane._preload"), "_aside", ())

        def is_learned():
            with rl.Executor(1, lane="process") as ex:
                return ex.submit(learned).result()

        if __name__ == "__main__":
            with rl.Executor(1, lane="process") as keep:
                assert keep.submit(slow_package.value, 1).result() == 2
                eventually(is_learned)
                path = Path(sys.argv[1], "slow_package.py")
                path.write_text("import time; time.sleep(0.02)\\ndef value(x):\\n    return x + 1000\\n")
                importlib.reload(slow_package)
                with rl.Executor(2, lane="process") as ex:
                    assert ex.submit(slow_package.value, 1).result() == 1001
                    assert list(ex.map(slow_package.value, range(9))) == list(range(1000, 1009))
                assert keep.submit(slow_package.value, 1).result() == 1001
                with rl.Executor(1, lane="process") as ex:
                    assert ex.submit(slow_package.value, 2).result() == 1002
        """,
        site,
    ).succeeds()


def test_many_workers_that_refuse_cost_one_template(start: Start, tmp_path: Path) -> None:
    """rules 5 and 19: each says that its template is out of date; the next template is not."""
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "slow_package.py").write_text("import time; time.sleep(0.02)\ndef value(x):\n    return x + 1\n")
    start(
        """
        import importlib, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        import slow_package
        import rightlane as rl
        from support import eventually

        def learned():
            return "slow_package" in getattr(sys.modules.get("rightlane._preload"), "_aside", ())

        def is_learned():
            with rl.Executor(1, lane="process") as ex:
                return ex.submit(learned).result()

        with rl.Executor(1, lane="process") as keep:
            assert keep.submit(slow_package.value, 1).result() == 2
            eventually(is_learned)
            path = Path(sys.argv[1], "slow_package.py")
            path.write_text("import time; time.sleep(0.02)\\ndef value(x):\\n    return x + 1000\\n")
            importlib.reload(slow_package)
            with rl.Executor(8, lane="process") as ex:
                futures = [ex.submit(slow_package.value, i) for i in range(24)]
                assert [f.result() for f in futures] == list(range(1000, 1024))
        """,
        site,
    ).succeeds()
