"""Exceptions over the wire."""

from __future__ import annotations

import textwrap
from pathlib import Path

from unit.main_script import run

START = """
import sys, threading
import pair
from pair import Worker, _remote
from rightlane._errors import DeserializationError, RemoteTraceback, SerializationError
w = Worker()
def caught(fn, *args):
    try: w(fn, *args)
    except BaseException as error: return error
    raise AssertionError("it did not raise")
def chain(error):
    found = []
    while error is not None:
        found.append(error); error = error.__cause__
    return found
"""


def main(body: str, directory: Path) -> None:
    run(START + textwrap.dedent(body), directory)


def test_plain_exceptions_keep_class_arguments_and_notes(tmp_path: Path) -> None:
    main(
        """
        def f():
            e = ValueError("bad", 7)
            e.extra = [1]
            e.add_note("look here")
            raise e
        e = caught(f)
        assert type(e) is ValueError and e.args == ("bad", 7)
        assert e.extra == [1] and e.__notes__ == ["look here"]
        remote = e.__cause__
        assert type(remote) is RemoteTraceback and e.__context__ is None
        text = str(remote)
        assert "raise e" in text and "in f" in text and "look here" in text and "_byvalue" not in text
        odd = KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, RecursionError, StopIteration
        for kind in odd:
            def g(kind=kind): raise kind(3)
            e = caught(g)
            assert type(e) is kind and e.args == (3,) and type(e.__cause__) is RemoteTraceback
        assert caught(lambda: sys.exit(4)).code == 4
        def deep(): return deep()
        assert type(caught(deep)) is RecursionError
        e = caught(open, "/no/such/file")
        assert type(e) is FileNotFoundError and e.errno == 2 and e.filename == "/no/such/file"
        e = caught(lambda: b"\\xff".decode())
        assert type(e) is UnicodeDecodeError and e.object == b"\\xff"
        e = caught(lambda: __import__("no_such_module"))
        assert type(e) is ModuleNotFoundError and e.name == "no_such_module"
        e = caught(lambda: compile("a b", "x", "exec"))
        assert type(e) is SyntaxError and e.lineno == 1
        """,
        tmp_path,
    )


def test_causes_and_contexts_are_kept(tmp_path: Path) -> None:
    main(
        """
        def f():
            try:
                try: 1 / 0
                except ZeroDivisionError as e: raise KeyError("k") from e
            except KeyError as e:
                raise ValueError("v") from e
        def g():
            try: 1 / 0
            except ZeroDivisionError: raise KeyError("k")
        def h():
            try: 1 / 0
            except ZeroDivisionError: raise KeyError("k") from None
        kinds = [type(e) for e in chain(caught(f))]
        assert kinds == [ValueError, KeyError, ZeroDivisionError, RemoteTraceback]
        e = caught(g)
        assert type(e.__context__) is ZeroDivisionError and type(e.__cause__) is RemoteTraceback
        assert e.__suppress_context__ is False
        e = caught(h)
        assert e.__suppress_context__ is True and type(e.__context__) is ZeroDivisionError
        def loop():
            a, b = ValueError("a"), ValueError("b")
            a.__cause__ = b; b.__cause__ = a
            raise a
        found = chain(caught(loop))
        assert type(found[-1]) is RemoteTraceback and len(found) == 3
        """,
        tmp_path,
    )


def test_an_init_that_cannot_be_replayed(tmp_path: Path) -> None:
    main(
        """
        import urllib.error, subprocess, json
        class Two(Exception):
            def __init__(self, a, b): super().__init__(f"{a} and {b}"); self.a, self.b = a, b
        class Again(Exception):
            def __init__(self, code): super().__init__(f"failed: {code}"); self.code = code
        class Keyword(OSError):
            def __init__(self, *, path): super().__init__(2, "gone", path); self.path = path
        class Slotted(Exception):
            __slots__ = ("value",)
            def __init__(self, value): super().__init__(); self.value = value
        class NewToo(Exception):
            def __new__(cls, a, b): return super().__new__(cls, a)
            def __init__(self, a, b): self.b = b
        class Exiting(SystemExit):
            def __init__(self, a, b): super().__init__(5)
        def fail(kind, *args, **kw): raise kind(*args, **kw)
        e = caught(fail, Two, 1, 2)
        assert type(e) is Two and e.args == ("1 and 2",) and (e.a, e.b) == (1, 2) and str(e) == "1 and 2"
        e = caught(fail, Again, 7)
        assert type(e) is Again and str(e) == "failed: 7" and e.code == 7
        e = caught(lambda: fail(Keyword, path="p"))
        assert type(e) is Keyword and e.errno == 2 and e.filename == "p" and e.path == "p"
        assert str(e).startswith("[Errno 2]")
        e = caught(fail, Slotted, 9)
        assert type(e) is Slotted and e.value == 9
        e = caught(fail, NewToo, 1, 2)
        assert type(e) is NewToo and e.b == 2
        e = caught(fail, Exiting, 1, 2)
        assert type(e) is Exiting and e.code == 5
        e = caught(fail, subprocess.CalledProcessError, 3, ["x"])
        assert e.returncode == 3 and e.cmd == ["x"]
        e = caught(json.loads, "{")
        assert type(e) is json.JSONDecodeError and e.pos == 1
        assert all(type(chain(x)[-1]) is RemoteTraceback for x in [e])
        """,
        tmp_path,
    )


def test_what_cannot_travel_is_named(tmp_path: Path) -> None:
    main(
        """
        class Held(ValueError):
            def __init__(self, m): super().__init__(m); self.lock = threading.Lock(); self.fine = 1
        e = caught(lambda: (_ for _ in ()).throw(Held("m")))
        assert type(e) is SerializationError and e.path == "exception.lock", (e, e.path)
        original, remote = chain(e)[1:]
        assert type(original) is Held and original.args == ("m",)
        assert original.fine == 1 and "lock" in original.lock
        assert type(remote) is RemoteTraceback and "Held" in str(remote)
        def with_arg(): raise KeyError("k", threading.Lock())
        e = caught(with_arg)
        assert type(e) is SerializationError and e.path == "exception.args[1]", e.path
        assert type(e.__cause__) is KeyError and e.__cause__.args[0] == "k"
        def foreign_class():
            lock = threading.Lock()
            class Odd(LookupError):
                guard = lock
            raise Odd("x")
        e = caught(foreign_class)
        assert type(e) is SerializationError
        assert type(e.__cause__) is LookupError and e.__cause__.args == ("x",)
        assert "Odd" in str(e)
        def link():
            try: raise Held("inner")
            except Held as h: raise ValueError("outer") from h
        found = chain(caught(link))
        assert [type(x) for x in found] == [ValueError, Held, RemoteTraceback]
        def caused():
            try: 1 / 0
            except ZeroDivisionError as z: raise Held("outer") from z
        found = chain(caught(caused))
        assert [type(x) for x in found] == [SerializationError, Held, ZeroDivisionError, RemoteTraceback]
        assert w(lambda: 1) == 1
        """,
        tmp_path,
    )


def test_groups(tmp_path: Path) -> None:
    main(
        """
        class Mine(ExceptionGroup):
            def derive(self, excs): return Mine(self.message, excs)
        class Two(Exception):
            def __init__(self, a, b): super().__init__(a); self.b = b
        def f(kind):
            try: 1 / 0
            except ZeroDivisionError as e: cause = e
            inner = KeyError("k"); inner.__cause__ = cause
            nested = ExceptionGroup("n", [Two(1, 2), inner])
            nested.add_note("note")
            raise kind("g", [ValueError(1), nested])
        for kind in (ExceptionGroup, BaseExceptionGroup, Mine):
            e = caught(f, kind)
            assert type(e) is (ExceptionGroup if kind is BaseExceptionGroup else kind) and e.message == "g"
            value, nested = e.exceptions
            assert type(value) is ValueError and nested.__notes__ == ["note"]
            two, key = nested.exceptions
            assert two.b == 2 and type(key.__cause__) is ZeroDivisionError
            assert type(e.__cause__) is RemoteTraceback
            assert e.split(Two)[0] is not None
        def base(): raise BaseExceptionGroup("b", [KeyboardInterrupt()])
        assert type(caught(base)) is BaseExceptionGroup
        def locked(): raise ExceptionGroup("b", [ValueError(threading.Lock()), KeyError(1)])
        e = caught(locked)
        assert type(e) is ExceptionGroup and [type(x) for x in e.exceptions] == [ValueError, KeyError]
        """,
        tmp_path,
    )


def test_hostile_exceptions_never_break_the_wire(tmp_path: Path) -> None:
    (tmp_path / "lies.py").write_text("class Lies(Exception):\n    __class__ = property(lambda self: int)\n")
    main(
        """
        from lies import Lies
        def boom(*a, **k): raise RuntimeError("boom")
        class Reduce(Exception): __reduce_ex__ = boom
        class Str(Exception): __str__ = __repr__ = boom
        class Attr(Exception): __getattribute__ = boom
        class New(Exception):
            made = False
            def __new__(cls, *a):
                if cls.made: raise RuntimeError("only once")
                cls.made = True
                return super().__new__(cls, *a)
        class Init(Exception):
            def __init__(self, *a):
                if a == ("again",): raise SystemExit(1)
                super().__init__("again")
        class ExitReduce(Exception):
            def __reduce_ex__(self, p): raise SystemExit(3)
        class NotIt(Exception):
            def __reduce__(self): return dict, ()
        class Notes(Exception):
            def __init__(self): self.__notes__ = 5
        class BadState(Exception):
            def __setstate__(self, state): raise RuntimeError("no state")
        class BadEq:
            def __eq__(self, other): raise RuntimeError("no")
        class Lock(Exception):
            def __init__(self): self.lock = threading.Lock()
            __str__ = __repr__ = boom
        def fail(kind, *args): raise kind(*args)
        def attribute(e, name): return BaseException.__dict__[name].__get__(e)
        for kind in (Reduce, Str, Attr, New, Init, Lies, ExitReduce, NotIt, Notes, BadState, Lock):
            e = caught(lambda: fail(kind))
            wanted = SerializationError if kind is Lock else kind
            assert type(e) is wanted, (kind, type(e))
            while attribute(e, "__cause__") is not None: e = attribute(e, "__cause__")
            assert type(e) is RemoteTraceback and kind.__name__ in str(e), (kind, e)
        assert type(caught(lambda: fail(ValueError, BadEq()))) is ValueError
        def big(): raise ValueError("x" * 1_000_000)
        e = caught(big)
        text = str(e.__cause__)
        assert len(e.args[0]) == 1_000_000 and len(text) <= 65536 and "left out" in text
        def long_chain():
            e = None
            for i in range(1000):
                n = ValueError(i); n.__cause__ = e; e = n
            raise e
        assert caught(long_chain).args == (999,)
        def on_a_lock(): threading.Lock().nonsense
        e = caught(on_a_lock)
        assert type(e) is AttributeError and "nonsense" in str(e)
        assert w(lambda: 1) == 1
        """,
        tmp_path,
    )


def test_failures_in_the_parent_become_deserialization_errors(tmp_path: Path) -> None:
    main(
        """
        import os
        class Picky(Exception):
            def __init__(self, *a):
                super().__init__(*a)
                if os.getpid() == PARENT: raise RuntimeError("not here")
        PARENT = os.getpid()
        def f(): raise Picky("a")
        e = caught(f)
        assert type(e) is DeserializationError and "Picky" in str(e) and type(e.__cause__) is RemoteTraceback
        e = _remote.unpack(b"rubbish")
        assert type(e) is DeserializationError
        """,
        tmp_path,
    )


def test_errors_survive_pickle_and_copy(tmp_path: Path) -> None:
    main(
        """
        import copy, pickle, concurrent.futures.process as process
        from rightlane import _errors
        lost = _errors.WorkerLost(7, 9, None, "fn", 2)
        lost.add_note("n")
        for e in (lost, _errors.SerializationError("m", "args[0]"), _errors.RemoteTraceback("t"),
                  _errors.BrokenExecutor("b"), _errors.RightlaneError("r")):
            for twin in (copy.copy(e), pickle.loads(pickle.dumps(e)), copy.deepcopy(e)):
                assert type(twin) is type(e) and str(twin) == str(e) and vars(twin) == vars(e)
        assert "SIGKILL" in str(lost) and isinstance(lost, process.BrokenProcessPool)
        assert "exit code 3" in str(_errors.WorkerLost(7, None, 3, "fn"))
        assert "unknown" in str(_errors.WorkerLost(7, None, None, "fn"))
        assert isinstance(_errors.SerializationError("m"), pickle.PicklingError)
        """,
        tmp_path,
    )
