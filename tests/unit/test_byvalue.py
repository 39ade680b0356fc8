"""Functions and classes by value: rules 5, 6 and 7."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from unit.main_script import run

START = """
import _pickle, functools, sys, threading
import pair
from pair import Worker, _byvalue
from rightlane._byvalue import dumps, record, Unsendable
w = Worker()
"""


def main(body: str, directory: Path, *flags: str) -> str:
    return run(START + textwrap.dedent(body), directory, *flags)


def test_a_plain_main_function_needs_no_cloudpickle(tmp_path: Path) -> None:
    main(
        """
        base = 10
        def helper(x): return x + base
        def fn(x, *, y=1): return helper(x) * y
        assert w(fn, 1, y=2) == 22
        for module in ("cloudpickle", "pickle", "inspect", "dis", "traceback", "concurrent.futures"):
            assert module not in w.modules(), module
        assert "cloudpickle" not in sys.modules
        """,
        tmp_path,
    )


def test_plain_functions_and_globals_need_no_pickler(tmp_path: Path) -> None:
    """rules 5 and 6: nor does anything about them differ from those that do."""
    main(
        """
        import inspect, math
        PROTO = b"\\x80"
        def data(fn):
            record(fn)
            return _byvalue._node_of(fn).body.unit.data[:1]
        def blobs(fn): return [value.data[:1] for _, _, kind, value in _byvalue._node_of(fn).body.entries
                               if kind == _byvalue._BLOB]
        number, flag, text, nan = 1, True, "é\\ud800", math.nan
        pair_, big, listed = (1, "a"), tuple(range(17)), [1]
        def plain(a: int, b: "str" = "b", *c: None, d: float = 1.5, **e) -> bool:
            "A text."
            return a, b, c, d, e, number, flag, text, nan != nan, pair_, len(big), listed
        assert data(plain) == b"F" and sorted(blobs(plain)) == 5 * [b"V"] + 2 * [PROTO]
        expected = 1, "x", (3,), 2.5, {"k": 4}, 1, True, text, True, (1, "a"), 17, [1]
        assert w(plain, 1, "x", 3, d=2.5, k=4) == expected
        assert [type(part) for part in w(plain, 1)[5:7]] == [int, bool]
        def look(): return (plain.__doc__, plain.__defaults__, plain.__kwdefaults__, plain.__annotations__,
                            plain.__module__, plain.__qualname__, str(inspect.signature(plain)))
        assert w(look) == look()
        number = True
        assert w(plain, 1)[5] is True
        number = 1
        assert w(plain, 1)[5] == 1 and w(plain, 1)[5] is not True

        def closure(k, empty=False):
            if empty: late = 1
            def inner(): return k
            def hole(): return late
            return inner, hole
        inner, hole = closure((1, None, b"x"))
        assert data(inner) == data(hole) == b"F" and w(inner) == (1, None, b"x")
        try: w(hole)
        except NameError: pass
        else: raise AssertionError
        assert w(inner) is not w(closure(2)[0])
        class Int(int): pass
        for value in (Int(3), [1], big, ((1,),), range(3), bytearray(b"x"), {1}):
            assert data(closure(value)[0]) == PROTO, value
        def wrapped(): return 1
        wrapped.note = 1
        def annotated(x: list[int]): return x
        assert data(wrapped) == data(annotated) == PROTO and w(annotated, 2) == 2
        class Name(str): pass
        def renamed(): return number
        renamed.__name__ = Name("other")
        assert data(renamed) == PROTO and w(renamed) == 1
        def same(): return fib
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        assert data(fib) == b"F" and w(fib, 10) == 55
        """,
        tmp_path,
    )


def test_importable_callables_go_by_reference(tmp_path: Path) -> None:
    main(
        """
        import math, operator, json
        some = operator.itemgetter(0), [].append, "a".join, functools.partial(pow, 2)
        for fn in (math.sqrt, json.dumps, dict, *some):
            d = record(fn)
            kind = b"P" if fn in some else b"C" if fn is json.dumps else b"N"  # C: with a hash of its code
            assert d.blob[:1] == kind and not d.deps
        assert record(math.sqrt) is record(math.sqrt) and record(json.dumps) is record(json.dumps)
        assert record(dict) is record(dict)
        p = functools.partial(pow, 2)
        assert record(p) is record(p)
        assert w(math.sqrt, 4) == 2 and w(p, 3) == 8 and w("-".join, ["a", "b"]) == "a-b"
        class Bag(list): pass
        """,
        tmp_path,
    )


def test_lambdas_closures_recursion_and_decorators(tmp_path: Path) -> None:
    main(
        """
        k = 3
        def outer(a):
            def inner(b): return a + b + k
            return inner
        def make_fib():
            def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
            return fib
        fact = lambda n: 1 if n < 2 else n * fact(n - 1)
        def deco(f):
            @functools.wraps(f)
            def wrapper(*a): return f(*a) + 1
            return wrapper
        @deco
        def decorated(x): return x * 2
        def even(n): return True if n == 0 else odd(n - 1)
        def odd(n): return False if n == 0 else even(n - 1)
        @functools.lru_cache(maxsize=None)
        def cached(n): return n if n < 2 else cached(n - 1) + cached(n - 2)
        def empty_cell():
            def f(): return later
            if k < 0: later = 1
            return f
        HANDLERS = [lambda: len(HANDLERS)]
        def dispatch(): return HANDLERS[0]()
        assert w(lambda x: x + k, 1) == 4
        assert w(outer(1), 2) == 6
        assert w(make_fib(), 10) == 55
        assert w(fact, 5) == 120
        assert w(decorated, 5) == 11
        assert w(even, 10) is True and w(odd, 10) is False
        assert w(cached, 30) == 832040
        assert w(dispatch) == 1
        assert w(lambda f, x: f(x), fact, 5) == 120
        assert w(lambda f, x: f(x), outer(10), 5) == 18
        assert w(map, None, ()) is None if False else True
        try: w(empty_cell())
        except NameError as e: assert "later" in str(e)
        else: assert False
        assert "cloudpickle" not in w.modules()
        """,
        tmp_path,
    )


def test_shared_cells_stay_shared(tmp_path: Path) -> None:
    main(
        """
        def pair_():
            n = 0
            def inc():
                nonlocal n
                n += 1
            def get(): return n
            return inc, get
        inc, get = pair_()
        def use(fs):
            fs[0](); fs[0]()
            return fs[1]()
        assert w(use, (inc, get)) == 2
        """,
        tmp_path,
    )


def test_classes(tmp_path: Path) -> None:
    main(
        """
        import abc, dataclasses, enum, typing, collections
        class Base:
            count = 0
            def __init__(self, x): self.x = x
            def double(self): return helper(self)
            @staticmethod
            def s(a): return a + 1
            @classmethod
            def c(cls): return cls.__name__
            @property
            def p(self): return self.x
            class Inner: v = 5
        class Child(Base):
            __slots__ = ("slot",)
            def double(self): return super().double() + 1
        def helper(obj):
            assert isinstance(obj, Base)
            return obj.x * 2
        @dataclasses.dataclass
        class Point:
            x: int
            y: int = 2
            def dist(self): return self.x + self.y
        class Color(enum.Enum):
            RED = 1
            BLUE = 2
        NT = collections.namedtuple("NT", "a b")
        class Abstract(abc.ABC):
            @abc.abstractmethod
            def f(self): ...
        class Concrete(Abstract):
            def f(self): return 9
        T = typing.TypeVar("T")
        class Box(typing.Generic[T]):
            def __init__(self, v: T): self.v = v
        class Err(ValueError):
            def __init__(self, a, b): super().__init__(f"{a}{b}"); self.a = a
        def use(o): return o.double(), o.p, o.s(1), o.c(), o.Inner.v
        assert w(use, Child(4)) == (9, 4, 2, "Child", 5)
        back = w(lambda o: o, Child(4))
        assert type(back) is Child and back.x == 4
        assert w(Child, 3).x == 3
        assert w(lambda: Child) is Child
        assert w(lambda c: c, Base.Inner) is Base.Inner
        p = w(lambda q: Point(q.x, q.dist()), Point(1))
        assert p == Point(1, 3)
        assert w(lambda c: (c, c is Color.RED, Color.BLUE), Color.RED) == (Color.RED, True, Color.BLUE)
        assert w(lambda n: n._replace(a=5), NT(1, 2)) == NT(5, 2)
        assert w(lambda: Concrete().f()) == 9
        assert w(lambda b: b.v, Box(7)) == 7
        assert type(w(lambda b: Box(b), 7)) is Box
        try: w(lambda: (_ for _ in ()).throw(Err(1, 2)))
        except Err as e: assert e.a == 1 and e.args == ("12",), e.args
        else: assert False
        bound = Base(21)
        assert w(bound.double) == 42
        bound.x = 1
        assert w(bound.double) == 2
        assert record(bound.double) is record(bound.double)
        """,
        tmp_path,
    )


def test_a_result_never_changes_a_class_in_the_parent(tmp_path: Path) -> None:
    """rule 7"""
    main(
        """
        class C:
            seen = 0
            def m(self): return self.seen
        def local():
            class L:
                tag = "old"
            return L
        L = local()
        def f(o):
            C.seen = 5
            return o, C, L()
        a, b, c = w(f, C())
        assert C.seen == 0 and b is C and type(a) is C and type(c) is L
        C.seen = 7
        L.tag = "new"
        a, b, c = w(f, C())
        assert C.seen == 7 and b is C and c.tag == "new"
        assert w(lambda: f) is f
        """,
        tmp_path,
    )


def test_what_the_worker_makes_comes_back_by_value(tmp_path: Path) -> None:
    main(
        """
        k = 4
        class P: pass
        def make(n): return lambda x: x + n + k
        def make_class():
            class Q(P):
                v = 3
                def m(self): return k
            return Q
        assert w(make, 1)(1) == 6
        Q = w(make_class)
        assert Q.v == 3 and Q().m() == 4 and issubclass(Q, P)
        q = w(lambda: make_class()())
        assert q.m() == 4
        assert w(lambda c: c.v, Q) == 3
        """,
        tmp_path,
    )


def test_a_by_value_function_is_never_stale(tmp_path: Path) -> None:
    """rule 5"""
    main(
        """
        k = 5
        conf = {"a": 1}
        def helper(): return k
        def f(): return k
        def g(): return helper()
        def h(x=1, *, y=2): return x + y
        def m(): return conf["a"]
        class C:
            v = 1
            def get(self): return self.v + k
        def c(): return C().get()
        def cell(n):
            def inner(): return n
            def put(x):
                nonlocal n
                n = x
            return inner, put
        inner, put = cell(1)
        d = record(f)
        assert record(f) is d and record(g) is record(g) and record(h) is record(h) and record(m) is record(m)
        assert record(c) is record(c) and record(inner) is record(inner)
        assert w(f) == 5 and w(g) == 5 and w(h) == 3 and w(m) == 1 and w(c) == 6 and w(inner) == 1
        k = 10; conf["a"] = 2; C.v = 2; put(8)
        h.__defaults__ = (5,); h.__kwdefaults__["y"] = 6
        assert w(g) == 10 and w(f) == 10 and w(h) == 11 and w(m) == 2 and w(c) == 12 and w(inner) == 8
        assert record(f) is not d
        k = 5
        assert w(g) == 5     # announces 5 again
        assert w(f) == 5
        k = 10; assert w(g) == 10
        k = 5
        assert w(f) == 5 and w(g) == 5 and w(c) == 7
        def helper(): return "new"
        assert w(g) == "new"
        f.__code__ = (lambda: k * 100).__code__
        assert w(f) == 500
        conf = {"a": 7}
        assert w(m) == 7
        del k
        try: w(f)
        except NameError: pass
        else: assert False
        """,
        tmp_path,
    )


def test_a_value_that_returns_after_another_function_announced_one(tmp_path: Path) -> None:
    """rule 5: the record of f is good for k = 5 again, but g has put 10 into the worker in between."""
    main(
        """
        k = 5
        def f(): return k
        def g(): return k
        assert w(f) == 5
        k = 10
        assert w(g) == 10
        k = 5
        assert w(f) == 5
        assert w(g) == 5
        """,
        tmp_path,
    )


def test_worker_state_survives_later_definitions(tmp_path: Path) -> None:
    """rule 6"""
    main(
        """
        conn = None
        cache = {}
        total = 0
        def init():
            global conn, extra
            conn = "open"; extra = 1
        def use(): return conn, extra
        def put(k): cache[k] = 1; return sorted(cache)
        def other(): return sorted(cache), conn
        def add():
            global total
            total += 1
            return total
        class K:
            def get(self): return conn, sorted(cache)
        assert w(init) is None
        assert w(use) == ("open", 1)
        assert w(put, "a") == ["a"] and w(put, "b") == ["a", "b"]
        assert w(other) == (["a", "b"], "open")
        assert w(lambda: (conn, sorted(cache))) == ("open", ["a", "b"])
        assert w(lambda k: k.get(), K()) == ("open", ["a", "b"])
        assert w(add) == 1 and w(add) == 2
        assert w(lambda: total) == 2
        assert w(lambda f: f(), lambda: (conn, sorted(cache))) == ("open", ["a", "b"])
        """,
        tmp_path,
    )


def test_equal_functions_share_a_definition_unless_they_hold_state(tmp_path: Path) -> None:
    main(
        """
        def acc():
            seen = []
            return lambda x: (seen.append(x), len(seen))[1]
        ids = {record(eval("lambda: 1")).id for _ in range(10)}
        assert len(ids) == 1
        a, b = acc(), acc()
        assert record(a) is not record(b)
        assert w(a, 1) == 1 and w(a, 1) == 2 and w(b, 1) == 1 and w(a, 1) == 3
        """,
        tmp_path,
    )


def test_caches_do_not_keep_functions_and_classes_alive(tmp_path: Path) -> None:
    main(
        """
        import gc, weakref
        def make():
            def rec(n): return n and rec(n - 1)
            def mut(x=[]): return rec, mut
            return rec, mut, lambda: rec
        def table_sizes(): return len(_byvalue._nodes), len(_byvalue._references)
        for f in make(): record(f)
        record(functools.partial(make))
        del f
        gc.collect()
        before = table_sizes()
        refs = []
        for _ in range(50):
            for f in make():
                record(f)
                refs.append(weakref.ref(f))
            p = functools.partial(make)
            record(p)
        del f, p
        gc.collect()
        assert not any(r() for r in refs)
        assert table_sizes() == before, (before, table_sizes())
        """,
        tmp_path,
    )


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("dumps(([{'config': Holder()}], {}))", "args[0][0]['config'].lock"),
        ("record(uses_global)", "fn.__globals__['lock']"),
        ("record(closure(threading.Lock()))", "fn.<cell x>"),
        ("record(lambda x=threading.Lock(): x)", "fn.__defaults__[0]"),
        ("record(Holder().method)", "fn.__self__.lock"),
        ("record(functools.partial(print, threading.Lock()))", "fn.args[0]"),
        ("dumps(Slots(threading.Lock()))", "args.value"),
        ("dumps(Bad())", "args"),
        ("dumps({1: nested_list()})", "args"),
        ("dumps([closure(threading.Lock())])", "args[0].<cell x>"),
        ("dumps([uses_global])", "args[0].__globals__['lock']"),
        ("dumps([lambda: lock])", "args[0].__globals__['lock']"),
    ],
)
def test_the_path_of_what_cannot_be_sent(tmp_path: Path, expression: str, path: str) -> None:
    main(
        f"""
        lock = threading.Lock()
        class Holder:
            def __init__(self): self.ok = 1; self.lock = threading.Lock()
            def method(self): pass
        class Slots:
            __slots__ = ("value",)
            def __init__(self, value): self.value = value
        class Bad:
            def __reduce__(self): raise ValueError("not me")
        def uses_global(): return lock
        def closure(x): return lambda: x
        def nested_list():
            l = []
            for _ in range(100_000): l = [l]
            return l
        try:
            {expression}
        except Unsendable as e:
            assert e.path.startswith({path!r}) if {path!r} == "args" else e.path == {path!r}, e
            assert e.reason
            print(e)
        else:
            assert False, "was sendable"
        """,
        tmp_path,
    )


def test_an_unsendable_result_names_its_path(tmp_path: Path) -> None:
    main(
        """
        class R: pass
        def f():
            r = R(); r.a = [1, threading.Lock()]
            return r
        try: w(f)
        except Exception as e: assert "result.a[1]" in str(e), e
        else: assert False
        assert w(lambda: 1) == 1
        """,
        tmp_path,
    )


def test_notebook_cells(tmp_path: Path) -> None:
    """rules 5, 6: functions and classes are defined again under their name."""
    main(
        """
        import __main__
        ns = vars(__main__)
        def cell(text): exec(compile(text, "<cell>", "exec"), ns)
        cell("k = 5\\ndef f(x): return x * k\\nclass C:\\n  def v(self): return 1\\ndef make(): return C()")
        assert w(f, 2) == 10 and w(make).v() == 1
        old = C
        cell("k = 10")
        assert w(f, 2) == 20
        cell("def f(x): return helper(x) + k\\ndef helper(x): return -x")
        assert w(f, 2) == 8
        cell("class C:\\n  def v(self): return 2")
        assert type(w(make)) is C and w(lambda c: c.v(), C()) == 2
        assert type(w(lambda: C())) is C and C is not old
        assert w(lambda o: o.v(), old()) == 1
        cell("x = [f(1) for f in [lambda v: v + k]]")
        cell("import os.path, xml.dom\\ndef g(): return os.path.join('a', xml.dom.__name__)")
        assert w(g) == "a/xml.dom"
        cell("import json as j\\ndef g(): return j.dumps([1])")
        assert w(g) == "[1]"
        """,
        tmp_path,
    )


def test_modules_that_a_worker_cannot_import(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "hidden.py").write_text("k = 3\ndef f(): return k\nclass H: pass\n")
    (tmp_path / "plain.py").write_text(
        "k = 4\ndef f(): return k\ndef make(n):\n  def inner(): return n + k\n  return inner\n"
    )
    main(
        """
        import types, importlib.util, cloudpickle, plain
        dyn = types.ModuleType("dyn"); sys.modules["dyn"] = dyn
        exec("k = 2\\ndef f(): return k\\nclass D: pass", vars(dyn))
        spec = importlib.util.spec_from_file_location("hidden", "elsewhere/hidden.py")
        hidden = importlib.util.module_from_spec(spec); sys.modules["hidden"] = hidden
        spec.loader.exec_module(hidden)
        assert w(dyn.f) == 2 and type(w(lambda: dyn.D())) is dyn.D
        assert w(hidden.f) == 3
        assert w(lambda: hidden.H) is hidden.H
        k = 9
        assert w(lambda: (dyn.f(), hidden.f(), k, dyn.k)) == (2, 3, 9, 2)
        scope = {}
        exec("k = 1\\ndef f(): return k", scope)
        assert w(scope["f"]) == 1
        assert w(plain.make(1)) == 5 and b"co_" not in record(plain.f).blob[:1]
        assert record(plain.f).blob[:1] == b"C"
        cloudpickle.register_pickle_by_value(plain)
        plain.k = 40
        assert record(plain.f).blob[:1] == b"G" and w(plain.f) == 40 and w(plain.make(1)) == 41
        cloudpickle.unregister_pickle_by_value(plain)
        assert record(plain.f).blob[:1] == b"C"
        """,
        tmp_path,
    )


def test_named_tuples(tmp_path: Path) -> None:
    """`typing.NamedTuple` refuses the slots that other by-value classes must be made with."""
    main(
        """
        import collections, typing
        T = typing.TypeVar("T")
        Plain = collections.namedtuple("Plain", "a b", defaults=[2])
        class Typed(typing.NamedTuple):
            a: int
            b: str = "b"
            def both(self): return self.a, self.b
        class Generic(typing.NamedTuple, typing.Generic[T]):
            a: T
        class Sub(Typed):
            __slots__ = ()
            def twice(self): return self._replace(a=2 * self.a)
        class Movie(typing.TypedDict):
            name: str
        for value in (Plain(1), Typed(1), Generic(1), Sub(1)):
            back = w(lambda x: x, value)
            assert type(back) is type(value) and back == value
        assert w(lambda x: (x.both(), x._replace(b="c")), Typed(3)) == ((3, "b"), (3, "c"))
        assert w(lambda: Typed(4)) == Typed(4) and w(Sub.twice, Sub(2)) == Sub(4)
        assert not w(lambda: [kind for kind in (Plain, Typed, Generic, Sub) if hasattr(kind(1), "__dict__")])
        assert w(lambda: Movie(name="M")) == {"name": "M"} and w(lambda: Typed._fields) == ("a", "b")
        """,
        tmp_path,
    )


def test_arguments_from_modules_that_a_worker_cannot_import(tmp_path: Path) -> None:
    """Plain pickles would name them by a module that only this process has."""
    folder = tmp_path / "elsewhere" / "suite" / "inner"
    folder.mkdir(parents=True)
    source = "class H:\n  def __eq__(self, other): return type(other) is H\ndef f(x): return x\n"
    (folder / "test_it.py").write_text(source)
    (tmp_path / "plain.py").write_text("class P: pass\n")
    main(
        """
        import functools, importlib.machinery, importlib.util, plain
        # What pytest does with --import-mode=importlib: the packages are namespaces that no path leads to.
        for name in ("suite", "suite.inner"):
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = ["elsewhere/" + name.replace(".", "/")]
            sys.modules[name] = importlib.util.module_from_spec(spec)
        name = "suite.inner.test_it"
        spec = importlib.util.spec_from_file_location(name, "elsewhere/suite/inner/test_it.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert not any(map(_byvalue._importable, ("suite", "suite.inner", "suite.inner.test_it")))
        hidden = _pickle.dumps(module.H(), 5)
        assert b"__main__" not in hidden and not _byvalue.plain_pickles_suffice(hidden)
        assert _byvalue.plain_pickles_suffice(_pickle.dumps((plain.P(), "test_it"), 5))
        assert w(lambda x: x, module.H()) == module.H()
        assert w(functools.partial(module.f, 3)) == 3
        assert w(functools.partial(abs, -3)) == 3
        """,
        tmp_path,
    )


def test_a_definition_that_fails_to_load_can_be_tried_again(tmp_path: Path) -> None:
    main(
        """
        import os
        class Moody:
            def __setstate__(self, state):
                if not os.path.exists("calm"): raise OSError("not yet")
            def __getstate__(self): return {"a": 1}
        mood = Moody()
        def f(): return type(mood).__name__
        def g(): return f()
        for _ in range(2):
            try: w(g)
            except OSError: pass
            else: assert False
        open("calm", "w").close()
        assert w(g) == "Moody" and w(f) == "Moody"
        """,
        tmp_path,
    )


def test_a_forgotten_definition_is_gone(tmp_path: Path) -> None:
    main(
        """
        class C: pass
        def f(): return C()
        assert type(w(f)) is C
        d = record(f)
        w.ask("forget", d.id)
        assert w.ask("call", d.id, _pickle.dumps(((), {})))[0] is False
        """,
        tmp_path,
    )


def test_records_from_many_threads(tmp_path: Path) -> None:
    main(
        """
        k = 1
        class A:
            def m(self): return f, B
        class B(A): pass
        def f(): return g(), A, k
        def g(): return B, f
        found = []
        def work():
            for _ in range(50): found.append((record(f).id, record(g).id, record(B).id))
        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert len(set(found)) == 1 and len(found) == 200, set(found)
        assert w(lambda: (f, g, A, B)) == (f, g, A, B)
        assert w(lambda: A().m()) == (f, B)
        """,
        tmp_path,
    )


def test_records_of_data_classes_enums_and_small_containers_hold_until_they_change(tmp_path: Path) -> None:
    """rule 5"""
    main(
        """
        import dataclasses, enum, typing, abc
        @dataclasses.dataclass
        class P:
            x: int
            y: list[int] = dataclasses.field(default_factory=list)
            z: typing.Optional[str] = None
        class Color(enum.Enum):
            RED = 1
            BLUE = (2, "b")
            def hot(self): return self is Color.RED
        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...
        conf = {"a": [1, 2], "b": {"c": (3,)}}
        loop = []; loop.append(loop)
        def use(): return P(1), Color.RED.hot(), Shape, conf["a"][-1], P.__dataclass_fields__["z"].default
        def body(fn): return _byvalue._node_of(fn).body
        def cached(fn):
            record(fn)
            before = [node.body for node in _byvalue._node_of(fn).closure], _byvalue._node_of(fn).checked
            assert all(node.fresh() for node in _byvalue._node_of(fn).closure), [
                n.ref() for n in _byvalue._node_of(fn).closure if not n.fresh()]
        cached(use)
        assert w(use) == (P(1), True, Shape, 2, None)
        d = record(use)
        conf["a"].append(9)
        assert record(use) is not d and w(use)[3] == 9
        cached(use); d = record(use)
        P.__dataclass_fields__["z"].default = 5
        assert record(use) is not d and w(use)[4] == 5
        cached(use); d = record(use)
        P.added = 3
        assert record(use) is not d and w(lambda: P.added) == 3
        cached(use); d = record(use)
        @Shape.register
        class Square: pass
        assert w(lambda: issubclass(Square, Shape)) is True
        def uses_loop(): return loop[0] is loop
        assert w(uses_loop) is True
        """,
        tmp_path,
    )


def test_a_forgotten_class_still_comes_back_as_itself(tmp_path: Path) -> None:
    """rule 7"""
    main(
        """
        class C: seen = 0
        keep = []
        def make(): keep.append(C()); return keep[-1]
        def again(): return keep[-1]
        w(make)
        w.ask("forget", next(d.id for d in [*record(make).deps] if _byvalue.resolve_parent(d.id) is C))
        C.seen = 4
        def last(): return keep[-1]
        back = w(last)
        assert type(back) is C and C.seen == 4
        """,
        tmp_path,
    )


def test_a_global_that_changes_at_every_call_leaves_no_trail(tmp_path: Path) -> None:
    main(
        """
        k = 0
        def f(): return k
        for k in range(3000): d = record(f)
        assert len(_byvalue._originals) <= 1100 and len(_byvalue._announced) < 10
        assert w(f) == 2999 and _byvalue.resolve_parent(d.id) is f
        """,
        tmp_path,
    )


def test_run_as_a_module_of_a_package(tmp_path: Path) -> None:
    """rule 20: relative imports inside functions find the package."""
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sibling.py").write_text("v = 6\n")
    (package / "tool.py").write_text(
        textwrap.dedent(
            """
            from pair import Worker
            from . import sibling
            def f():
                from . import sibling as late
                return sibling.v, late.v, __name__, __spec__.name
            with Worker() as w:
                assert w(f) == (6, 6, "__main__", "pkg.tool"), w(f)
            """
        )
    )
    start = "import runpy\nrunpy.run_module('pkg.tool', run_name='__main__', alter_sys=True)\n"
    run(start, tmp_path)


def test_a_repl(tmp_path: Path) -> None:
    """rules 5, 6: what is typed at a prompt has no file."""
    lines = """
        import sys
        sys.path.insert(0, HERE)
        from pair import Worker
        w = Worker()
        k = 5
        def f(x): return x * k

        class C:
            def v(self): return k

        print(w(f, 2), w(lambda: C().v()), type(w(C)) is C)
        k = 6
        print(w(f, 2), w(lambda: C().v()))
        w.close()
    """
    text = textwrap.dedent(lines).replace("HERE", repr(str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=text, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.stdout.split() == ["10", "5", "True", "12", "6"], done.stdout + done.stderr


def test_a_long_chain_of_functions(tmp_path: Path) -> None:
    main(
        """
        exec("\\n".join(f"def h{i}(): return h{i + 1}" for i in range(700)) + "\\ndef h700(): return 7")
        assert w(h0) is h1
        """,
        tmp_path,
    )


def test_class_machinery(tmp_path: Path) -> None:
    main(
        """
        registry = []
        limit = 3
        class Meta(type):
            def __new__(m, name, bases, ns, **kw):
                ns["made_by"] = limit
                return super().__new__(m, name, bases, ns)
            def __call__(cls, *a): return super().__call__(*a)
            def size(cls): return limit
        class A(metaclass=Meta):
            def __init_subclass__(cls, **kw): super().__init_subclass__(**kw)
            def __class_getitem__(cls, item): return item
            def other(self): return B
        class B(A):
            x: "int" = 1
            def back(self): return A, helper(self)
        def helper(o): return type(o) is B and isinstance(o, A)
        class D:
            def __get__(self, o, t): return 5
            def __set_name__(self, o, n): self.name = n
        class Uses:
            d = D()
            def __reduce__(self): return rebuild, (1,)
        def rebuild(x): return Uses()
        class Str(str): pass
        class Exc(KeyError): pass
        made = w(lambda: (A.size(), B.made_by, A["q"], B().other() is B, B().back()))
        assert made == (3, 3, "q", True, (A, True))
        assert type(w(B)) is B and type(w(A)) is A
        assert w(lambda u: (u.d, type(u).__dict__["d"].name), Uses()) == (5, "d")
        assert type(w(Uses)) is Uses
        assert w(lambda s: s + "b", Str("a")) == "ab" and type(w(Str, "z")) is Str
        def nested():
            class Outer:
                class In:
                    def up(self): return Outer, type(self)
                def mk(self): return Outer.In()
            return Outer
        O = nested()
        assert w(lambda o: o.mk().up(), O()) == (O, O.In)
        try: w(lambda: {}[Exc()])
        except KeyError as e: assert type(e.args[0]) is Exc
        def gen(): yield 1
        async def co(): return 1
        assert w(lambda: list(gen())) == [1]
        """,
        tmp_path,
    )
