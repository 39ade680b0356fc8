"""Functions, classes, lambdas and closures of a plain script run in workers, and are never stale."""

from __future__ import annotations

import pytest

from support import Start


def test_a_script_without_a_guard(start: Start) -> None:
    """Functions, classes, lambdas and closures of `__main__`, as functions, arguments and results."""
    start("""
        import dataclasses, enum, functools, typing
        import rightlane as rl

        FACTOR = 3

        def scaled(x):
            return helper(x) * FACTOR

        def helper(x):
            return x + 1

        def factorial(n):
            return 1 if n < 2 else n * factorial(n - 1)

        def is_even(n): return n == 0 or is_odd(n - 1)
        def is_odd(n): return n != 0 and is_even(n - 1)

        class Point:
            count = 0
            def __init__(self, x): self.x = x
            def __eq__(self, other): return type(other) is Point and other.x == self.x
            def __hash__(self): return hash(self.x)
            def moved(self, by): return type(self)(self.x + by)
            @classmethod
            def origin(cls): return cls(0)
            @staticmethod
            def twice(x): return 2 * x
            @property
            def doubled(self): return self.x * 2

        class Point3(Point):
            def __init__(self, x, z=0):
                super().__init__(x)
                self.z = z

        @dataclasses.dataclass(frozen=True)
        class Pair:
            a: int
            b: "Point | None" = None

        class Colour(enum.Enum):
            RED = 1
            GREEN = 2

        class Named(typing.NamedTuple):
            name: str

        class MyError(Exception):
            pass

        def raises(): raise MyError("mine")

        def counter(start):
            def step(by):
                nonlocal start
                start += by
                return start
            return step

        @functools.wraps(helper)
        def wrapped(*args, **kw): return helper(*args, **kw)

        with rl.Executor(2) as ex:
            run = lambda fn, *args: ex.submit(fn, *args).result()
            assert run(scaled, 1) == 6 and run(factorial, 20) == factorial(20)
            assert run(is_even, 100) is True
            assert run(lambda x: x * FACTOR, 2) == 6
            assert run(counter(10), 5) == 15
            assert run(wrapped, 1) == 2 and run(functools.partial(scaled), 1) == 6
            p = run(Point, 3)
            assert type(p) is Point and p == Point(3)
            assert run(Point.moved, p, 2) == Point(5) and run(p.moved, 2) == Point(5)
            assert run(Point.origin) == Point(0) and run(Point.twice, 4) == 8
            q = run(Point3, 1, 2)
            assert type(q) is Point3 and (q.x, q.z) == (1, 2)
            assert run(lambda p: p.doubled, Point(4)) == 8
            assert run(lambda: Pair(1, Point(2))) == Pair(1, Point(2))
            red = Colour.RED
            assert run(lambda c: (c, Colour.GREEN, c is Colour.RED), red) == (red, Colour.GREEN, True)
            assert run(lambda n: n, Named("x")) == Named("x")
            assert run(lambda c: c is Point, Point) is True, "one class per worker"
            assert run(lambda: Point) is Point and run(lambda: helper) is helper
            assert run(lambda p: isinstance(p, Point), Point3(1)) is True
            made = run(lambda k: lambda x: x + k, 7)
            assert made(1) == 8
            try:
                run(raises)
            except MyError as error:
                assert error.args == ("mine",)
            points = [Point(i) for i in range(51)]
            assert list(ex.map(lambda p: p.moved(1), points[:-1])) == points[1:]
            assert list(ex.map(Point3, range(3), range(3)))[2].z == 2
    """).succeeds()


@pytest.mark.parametrize("how", ["submit", "map"])
def test_changes_after_the_first_call_arrive(start: Start, how: str) -> None:
    """rule 5: a by-value function is never stale: globals, cells, defaults, code, at any depth."""
    start(
        """
        import sys
        import rightlane as rl

        k = 5
        table = {"a": 1}
        def uses_k(x): return x + k
        def deeper(x): return uses_k(x)
        def defaulted(x, y=[1]): return x + y[0]
        def looks_up(x): return table.get(x)
        class Config:
            level = 1
        def uses_class(_): return Config.level
        def make():
            cell = [0]
            def inner(_): return cell[0]
            return cell, inner
        cell, inner = make()

        with rl.Executor(1, lane="process") as ex:
            if sys.argv[1] == "map":
                run = lambda fn, x: list(ex.map(fn, [x]))[0]
            else:
                run = lambda fn, x: ex.submit(fn, x).result()
            assert run(uses_k, 1) == 6 and run(deeper, 1) == 6
            k = 10
            assert run(uses_k, 1) == 11 and run(deeper, 1) == 11
            assert run(defaulted, 1) == 2
            defaulted.__defaults__ = ([5],)
            assert run(defaulted, 1) == 6
            defaulted.__defaults__[0][0] = 8
            assert run(defaulted, 1) == 9
            assert run(looks_up, "b") is None
            table["b"] = 2
            assert run(looks_up, "b") == 2
            assert run(uses_class, 0) == 1
            Config.level = 2
            assert run(uses_class, 0) == 2
            assert run(inner, 0) == 0
            cell[0] = 3
            assert run(inner, 0) == 3
            def uses_k(x): return -k
            assert run(deeper, 1) == -10, "a redefined helper arrives too"
            uses_k.__code__ = (lambda x: k * 100).__code__
            assert run(uses_k, 1) == 1000 and run(deeper, 1) == 1000
            import math as k
            assert run(lambda x: k.floor(x), 2.5) == 2
        """,
        how,
    ).succeeds()


@pytest.mark.parametrize("lane", ["process", "auto"])
def test_what_the_initializer_sets_the_tasks_read(start: Start, lane: str) -> None:
    """rule 6: one namespace per module and worker, however the function was sent."""
    start(
        """
        import sys, threading
        import rightlane as rl

        connection = None
        cache = {}
        def init(name):
            global connection
            connection = {"name": name}
        def reads(): return connection
        def reads_through_a_helper(): return (lambda: reads())()
        class Client:
            def name(self): return connection["name"]
        def remembers(key):
            cache[key] = len(cache)
            return dict(cache)
        def looks(): return dict(cache)

        with rl.Executor(1, lane=sys.argv[1], initializer=init, initargs=("db",)) as ex:
            run = lambda fn, *args: ex.submit(fn, *args).result()
            assert run(reads) == {"name": "db"}, run(reads)
            assert run(reads_through_a_helper) == {"name": "db"}
            assert run(lambda: connection["name"]) == "db"
            assert run(Client().name) == "db" and run(lambda c: c.name(), Client()) == "db"
            assert run(remembers, "a") == {"a": 0}
            assert run(remembers, "b") == {"a": 0, "b": 1}
            assert run(looks) == {"a": 0, "b": 1}, "what the worker wrote is not wiped by another function"
            def later(): return connection
            assert run(later) == {"name": "db"}, "nor by a later definition"
            assert connection is None and cache == {}, "and the parent's own are its own"
        """,
        lane,
    ).succeeds()


def test_globals_a_task_sets_stay_in_its_worker(start: Start) -> None:
    """rule 6: `global` in one task is seen by the next one in that worker."""
    start("""
        import rightlane as rl
        total = 0
        def add(n):
            global total
            total += n
            return total
        def look(): return total
        with rl.Executor(1, lane="process") as ex:
            assert [ex.submit(add, 1).result() for _ in range(5)] == [1, 2, 3, 4, 5]
            assert ex.submit(look).result() == 5 and total == 0
    """).succeeds()


def test_a_result_never_changes_a_class_of_the_parent(start: Start) -> None:
    """rule 7: classes that came from the parent go back as ids."""
    start("""
        import rightlane as rl
        class Settings:
            level = 1
            names = []
            def get(self): return self.level
        class MyError(Exception):
            hits = 0
        def works(s):
            Settings.level = 99
            Settings.extra = "worker"
            return s, Settings, [Settings()]
        def raises():
            MyError.hits = 50
            raise MyError(Settings())
        with rl.Executor(1, lane="process") as ex:
            future = ex.submit(works, Settings())
            Settings.level = 2
            Settings.names.append("parent")
            method = Settings.get
            back, cls, (other,) = future.result()
            assert cls is Settings and type(back) is Settings and type(other) is Settings
            assert Settings.level == 2 and Settings.names == ["parent"] and not hasattr(Settings, "extra")
            assert Settings.get is method
            MyError.hits = 1
            error = ex.submit(raises).exception()
            assert type(error) is MyError and MyError.hits == 1 and type(error.args[0]) is Settings
    """).succeeds()


def test_definitions_that_refer_to_one_another(start: Start) -> None:
    """Cycles between classes and functions, and an instance among the globals."""
    start("""
        import rightlane as rl
        class Node:
            children = []
            def grow(self): return build(self)
            def copy(self): return Node()
        def build(node): return isinstance(node, Node) and registry.default is Node
        class Registry:
            default = Node
            def lookup(self): return registry is self
        registry = Registry()
        Node.home = Registry
        with rl.Executor(1, lane="process") as ex:
            assert ex.submit(Node().grow).result() is True
            assert ex.submit(lambda: registry.lookup()).result() is True
            assert type(ex.submit(Node.copy, Node()).result()) is Node
    """).succeeds()


def test_arguments_of_a_module_loaded_by_hand(start: Start) -> None:
    """Their plain pickles name a module that no worker finds; `pytest --import-mode=importlib` makes such."""
    start("""
        import functools, importlib.util, os, pathlib, tempfile
        import rightlane as rl
        path = pathlib.Path(tempfile.mkdtemp(), "plugin.py")
        path.write_text("class Job:\\n  size = 3\\ndef double(x): return 2 * x\\n")
        spec = importlib.util.spec_from_file_location("plugin", path)
        import sys
        plugin = sys.modules["plugin"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(plugin)
        with rl.Executor(1, lane="process") as ex:
            assert ex.submit(plugin.double, 2).result() == 4
            assert ex.submit(functools.partial(plugin.double, 3)).result() == 6
            job = plugin.Job()
            job.size = 7
            assert ex.submit(getattr, job, "size").result() == 7
            (back,) = ex.map(lambda job: job, [job])
            assert type(back) is plugin.Job and back.size == 7
    """).succeeds()


def test_python_m_and_dash_c(start: Start) -> None:
    """`__main__` of `python -m` and `python -c`."""
    start("""
        import subprocess, sys
        code = '''
        import rightlane as rl
        k = 4
        def f(x): return x * k
        class C:
            def __eq__(self, other): return type(other) is C
        with rl.Executor(2) as ex:
            assert list(ex.map(f, range(10))) == [4 * i for i in range(10)]
            assert ex.submit(C).result() == C()
        print("fine")
        '''.replace("\\n        ", "\\n")
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.stdout == "fine\\n", run.stderr
        import os, tempfile
        with tempfile.TemporaryDirectory() as directory:
            open(os.path.join(directory, "job.py"), "w").write(code)
            run = subprocess.run([sys.executable, "-m", "job"], cwd=directory, capture_output=True, text=True)
            assert run.stdout == "fine\\n", run.stderr
    """).succeeds()


def test_a_plain_function_needs_no_cloudpickle(start: Start) -> None:
    """Importing it costs more than the rest of the start; neither side does for the plain case."""
    start("""
        import sys
        import rightlane as rl, tasks
        def plain(x): return x + 1
        with rl.Executor(1, lane="process") as ex:
            assert ex.submit(plain, 1).result() == 2
            assert "cloudpickle" not in sys.modules
            assert ex.submit(tasks.modules, "cloudpickle").result() == []
    """).succeeds()


def test_the_module_of_a_nested_function_keeps_its_state(start: Start) -> None:
    """By-value functions of importable modules use that module's own namespace in the worker."""
    start("""
        import rightlane as rl, tasks, os, sys
        sys.path.insert(0, os.getcwd())
        import tempfile
        directory = tempfile.mkdtemp()
        sys.path.insert(0, directory)
        open(os.path.join(directory, "stateful.py"), "w").write(
            "seen = []\\n"
            "def note(x): seen.append(x); return list(seen)\\n"
            "def make(): return lambda x: note(x)\\n"
        )
        import stateful
        stateful.seen.append("parent")
        with rl.Executor(1, lane="process") as ex:
            assert ex.submit(stateful.make(), 1).result() == [1]
            assert ex.submit(stateful.note, 2).result() == [1, 2]
    """).succeeds()
