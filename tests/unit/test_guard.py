"""What the guard reads off code and objects, without an executor."""

from __future__ import annotations

import functools
import gc
import itertools
import opcode
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from rightlane import _guard

numpy = pytest.importorskip("numpy")

shelf: list[Any] = []


def watched(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The verdict on one call, of a function of which nothing is known."""
    target = _guard._Target(fn)
    record = _guard._Record(target.key())
    watch = _guard.Watch(target, record, False)
    assert watch.before(args, kwargs) is None
    fn(*args, **kwargs)
    watch.after()
    return record.verdict


def stores(source: str, name: str = "f") -> list[str]:
    space: dict[str, Any] = {"__name__": "somewhere"}
    exec(source, space)
    return list(_guard.Plan(space[name], ()).stored)


def test_opcodes_are_those_of_this_interpreter() -> None:
    """They are read off compiled code, because `opcode` is slow to import."""
    for name in (
        "STORE_GLOBAL",
        "DELETE_GLOBAL",
        "STORE_DEREF",
        "DELETE_DEREF",
        "LOAD_GLOBAL",
        "IMPORT_NAME",
        "IMPORT_FROM",
    ):
        assert getattr(_guard, f"_{name}") == opcode.opmap[name], name


def test_stores_are_read_off_code() -> None:
    assert stores("def f():\n global a\n a = 1") == ["global `a`"]
    assert stores("def f():\n global a\n del a") == ["global `a`"]
    assert stores("def f():\n def g():\n  global a\n  a = 1") == ["global `a`"]
    assert stores("def f():\n class C:\n  global a\n  a = 1") == ["global `a`"]
    assert stores("def f():\n g()\ndef g():\n h()\ndef h():\n global a\n a = 1") == ["global `a`"]
    assert stores("def o():\n n = 0\n def f():\n  nonlocal n\n  n = 1\n return f\nf = o()") == [
        "closure variable `n`"
    ]
    assert stores("def o():\n n = 0\n def f():\n  def g():\n   nonlocal n\n   n = 1\n return f\nf = o()") == [
        "closure variable `n`"
    ]


def test_what_only_looks_like_a_store_is_none() -> None:
    assert stores("def f():\n n = 0\n def g():\n  nonlocal n\n  n = 1\n g()") == []
    assert stores("def f():\n a = 1") == []
    assert stores("def f():\n global a\n import math as a") == []
    assert stores("def f():\n global a\n from math import pi as a") == []
    # A variable of its own that has the name of one outside.
    shadow = (
        "def o():\n n = 0\n def f():\n  n\n  def g():\n   n = 1\n   def h():\n    nonlocal n\n    n = 2\n"
    )
    assert stores(shadow + " return f\nf = o()") == []
    # Three levels down is too deep.
    deep = "def f():\n g()\ndef g():\n h()\ndef h():\n i()\ndef i():\n global a\n a = 1"
    assert stores(deep) == []


def test_names_beyond_the_first_byte_are_read() -> None:
    """Instructions with large numbers are preceded by their upper bytes."""
    many = "\n ".join(f"v{n}" for n in range(300))
    assert stores(f"def f():\n global last, v299\n {many}\n last = 1\n v299 = 1") == [
        "global `last`",
        "global `v299`",
    ]


def test_code_that_calls_too_much_is_not_checked() -> None:
    """What was read of it counts all the same."""
    space: dict[str, Any] = {"__name__": "somewhere", "shelf": []}
    calls = "".join(f" g{n}()\n" for n in range(100))
    source = "".join(f"def g{n}(): pass\n" for n in range(100))
    exec(source + f"def f():\n{calls}def h():\n shelf.append(1)\n{calls}", space)
    assert watched(space["f"]) == "not checked"
    assert watched(space["h"]) == "changes global `shelf`"


def test_what_lies_outermost_is_seen_however_slow_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time at all is left, as after a long list of names."""
    for limit in ("_PLAN_NS", "_BEFORE_NS", "_AFTER_NS"):
        monkeypatch.setattr(_guard, limit, -1)
    assert watched(lambda: shelf.append(1)) == "changes global `shelf`"
    assert watched(lambda items: items.append(1), [2]) == "changes its argument `items`"
    assert watched(lambda items: len(items), [[n] for n in range(200)]) == "not checked"


def test_nothing_is_held_while_the_function_runs() -> None:
    """What a task drops is gone when it would be gone otherwise."""

    class Thing:
        pass

    gone: list[bool] = []

    def drop(things: list[Thing]) -> None:
        ref = weakref.ref(things[0])
        things.clear()
        gone.append(ref() is None)

    gc.disable()
    try:
        assert watched(drop, [Thing()]) == "changes its argument `things` and closure variable `gone`"
    finally:
        gc.enable()
    assert gone == [True]


def test_cycles_and_depth_end() -> None:
    ring: list[Any] = []
    ring += [ring, {"ring": ring}, (ring,)]
    assert watched(lambda value: None, ring) == "unchanged"
    assert watched(lambda value: value[1].update(more=1), ring) == "changes its argument `value`"
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    assert watched(lambda value: None, deep) in ("unchanged", "not checked")


def test_iterators_are_left_alone() -> None:
    taken: list[int] = []
    source = iter([1, 2, 3])
    generator = (taken.append(n) for n in range(3))
    for each in (source, generator, itertools.count(), map(taken.append, [1])):
        assert watched(lambda value: None, each) == "unchanged"
    assert list(source) == [1, 2, 3] and not taken


@pytest.mark.parametrize("kind", ["f8", "i1", "S3", "M8[D]", "O", "f8,i4"])
def test_arrays(kind: str) -> None:
    array = numpy.zeros(50, dtype=kind)
    assert watched(lambda a: a.copy(), array) == "unchanged"

    def write(a: Any) -> None:
        a[7] = a[7] if kind == "f8,i4" else 1
        if kind == "f8,i4":
            a[7] = (1.0, 2)

    assert watched(write, array) == "changes its argument `a`"


def test_arrays_that_are_too_large() -> None:
    large = numpy.ones((1000, 1000))
    assert watched(lambda a: a * 2, large) == "not checked"
    assert watched(lambda a: a.fill(2.0), large) == "changes its argument `a`"
    assert watched(lambda a: a * 2, large[:, ::2]) == "not checked"
    assert watched(lambda a: a * 2, large[:100, ::2]) == "unchanged"


def test_views_of_buffers() -> None:
    buffer = bytearray(100)
    assert watched(lambda view: bytes(view), memoryview(buffer)) == "unchanged"
    assert watched(lambda view: buffer.__setitem__(3, 1), memoryview(buffer)[:10]).startswith("changes ")


@pytest.mark.parametrize("fn", [numpy.linalg.norm, numpy.mean, numpy.sort, numpy.fft.fft, numpy.add])
def test_functions_of_libraries(fn: Callable[..., Any]) -> None:
    assert watched(fn, *[numpy.arange(8.0)] * (2 if fn is numpy.add else 1)) == "unchanged"


def test_what_cannot_be_looked_into_is_not_checked() -> None:
    """A generator of NumPy's has a state that nothing shows."""
    assert watched(lambda rng: rng.random(), numpy.random.default_rng(1)) == "not checked"
    assert watched(lambda x: x + 1, numpy.float64(1.0)) == "unchanged"


def test_a_wrong_turn_is_not_the_tasks() -> None:
    class Broken:
        @property
        def __dict__(self) -> Any:
            raise AssertionError("asked")

    assert watched(lambda value: None, Broken()) in ("unchanged", "not checked")


def test_labels_of_arguments() -> None:
    def write(a: list[int], /, b: list[int], *rest: Any, c: Any = None, **more: Any) -> None:
        for each in (a, b, *rest, c, *more.values()):
            if each is not None and each[0] == 1:
                each[0] = 2

    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("a", ([1], [0]), {}),
        ("b", ([0], [1]), {}),
        ("rest", ([0], [0], [1]), {}),
        ("c", ([0], [0]), {"c": [1]}),
        ("d", ([0], [0]), {"d": [1]}),
    ]
    for name, args, kwargs in cases:
        assert watched(write, *args, **kwargs) == f"changes its argument `{name}`"
    assert watched(functools.partial(write, [1]), [0]) == "changes its argument `a`"


def test_keys_tell_functions_apart_and_know_them_again() -> None:
    def make(n: int) -> Callable[[], int]:
        return lambda: n

    key = _guard._Target(make(1)).key()
    assert key == _guard._Target(make(2)).key()
    assert key != _guard._Target(lambda: 2).key()
    assert _guard._Target(len).key() != _guard._Target(abs).key()
    assert _guard._Target([].append).key() == _guard._Target([1].append).key()
