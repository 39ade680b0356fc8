"""What code says about sharing: whoever is called plain could run anywhere; a doubt may be wrong."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from rightlane import _guard, _proof


@pytest.fixture(autouse=True)
def nothing_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guard, "verdict", lambda fn: "not seen yet")


NUMBERS = (1, 2, 3)
NAMES = ["a"]
LIMIT: Any = None


def plain_loop(n: int) -> int:
    return sum(i * i for i in range(n) if i in NUMBERS)


def calls_another(n: int) -> int:
    return plain_loop(n) + math.isqrt(n)


def sleeps(seconds: float) -> None:
    time.sleep(seconds)


def fetches(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return bytes(answer.read())


def runs_a_child() -> int:
    return subprocess.run([sys.executable, "-c", ""], check=True).returncode


def reads_a_file(path: str) -> str:
    with open(path) as file:
        return file.read()


def raises(kind: str) -> None:
    raise ValueError(kind)


def own_lists(n: int) -> list[int]:
    found = []
    for i in range(n):
        found.append(i)
    found[0] = 3
    return sorted(found, key=lambda i: -i)


def imports_within(n: int) -> str:
    import json

    return json.dumps(n)


def names_a_list() -> int:
    return len(NAMES)


def appends(x: str) -> None:
    NAMES.append(x)


def sets_a_global() -> None:
    global LIMIT
    LIMIT = 3


def calls_one_that_sets() -> None:
    sets_a_global()


def in_a_comprehension() -> list[int]:
    return [len(NAMES) for _ in range(3)]


def sets_the_environment() -> None:
    os.environ["A"] = "b"


def changes_directory() -> None:
    os.chdir("/")


def draws() -> float:
    return random.random()


def sets_an_attribute(x: Any) -> None:
    x.seen = True


def evaluates(text: str) -> Any:
    return eval(text)


def has_a_list(found: list[int] = []) -> int:  # noqa: B006
    return len(found)


def imports_a_state(n: int) -> None:
    from random import seed

    seed(n)


def names_nothing() -> Any:
    return not_there_yet  # type: ignore[name-defined]  # noqa: F821


class Own:
    def method(self) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...


def makes_one() -> Own:
    return Own()


def counter() -> Callable[[], int]:
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return count

    return step


def adder(n: Any) -> Callable[[int], Any]:
    return lambda x: (x, n)


PLAIN = [plain_loop, calls_another, sleeps, fetches, runs_a_child, reads_a_file, raises, own_lists]
PLAIN += [imports_within, adder(3), adder("x"), adder(plain_loop), functools.partial(plain_loop, 3)]
PLAIN += [time.sleep, math.sqrt, len, os.getpid, hashlib.sha256, "abc".upper, int, Own.of_class]


@pytest.mark.parametrize("fn", PLAIN, ids=lambda fn: getattr(fn, "__qualname__", str(fn)))
def test_what_names_nothing_changeable_is_plain(fn: Any) -> None:
    assert _proof.prove(fn) == ("plain", "")


DOUBTS = [
    (names_a_list, "the global `NAMES`, a list"),
    (appends, "the global `NAMES`, a list"),
    (in_a_comprehension, "the global `NAMES`, a list"),
    (sets_a_global, "sets the global `LIMIT`"),
    (calls_one_that_sets, "sets the global `LIMIT`"),
    (sets_the_environment, "`os.environ`"),
    (changes_directory, "`chdir`"),
    (draws, "Random"),
    (sets_an_attribute, "sets the attribute `seen`"),
    (evaluates, "`eval`"),
    (has_a_list, "a list as a default"),
    (imports_a_state, "Random"),
    (names_nothing, "`not_there_yet`"),
    (makes_one, "makes a Own"),
    (Own, "makes a Own"),
    (counter(), "sets `count`"),
    (adder([1]), "`n` of the function around it, a list"),
    (functools.partial(plain_loop, []), "holds arguments"),  # type: ignore[arg-type]
    (os.chdir, "`chdir`"),
    (exec, "`exec`"),
]


@pytest.mark.parametrize(("fn", "text"), DOUBTS, ids=lambda x: getattr(x, "__qualname__", None) or "")
def test_what_leads_to_something_changeable_is_a_doubt(fn: Any, text: str) -> None:
    said, why = _proof.prove(fn)
    assert said == "doubt"
    assert text in why


@pytest.mark.parametrize(
    "fn", [Own().method, [].append, random.random, functools.partial(Own().method)], ids=str
)
def test_methods_of_what_can_be_changed_are_never_shared(fn: Any) -> None:
    said, why = _proof.prove(fn)
    assert said == "changes"
    assert "has a state" in why


@pytest.mark.parametrize(
    ("verdict", "fn", "said"),
    [
        ("unchanged", names_a_list, "unchanged"),
        ("changes global `NAMES`", plain_loop, "changes"),
        ("not checked", plain_loop, "plain"),
        ("not seen yet", names_a_list, "doubt"),
        ("unchanged", Own().method, "changes"),
    ],
)
def test_who_has_watched_it_knows_better(
    monkeypatch: pytest.MonkeyPatch, verdict: str, fn: Any, said: str
) -> None:
    monkeypatch.setattr(_guard, "verdict", lambda fn: verdict)
    assert _proof.prove(fn)[0] == said
