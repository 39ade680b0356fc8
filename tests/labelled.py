"""Functions labelled by whether they change state that processes do not share: what the guard is tuned on.

Each is one way in which programs do it, or one that only looks like it. `CHANGE` and `KEEP` hold names,
functions and what makes the arguments.
"""

from __future__ import annotations

import array
import collections
import contextlib
import copy
import dataclasses
import difflib
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import random
import re
import threading
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import settings_of_tasks as settings

Arguments = Callable[[], tuple[Any, ...]]
CHANGE: list[tuple[Callable[..., Any], Arguments]] = []
KEEP: list[tuple[Callable[..., Any], Arguments]] = []


def change(*args: Any) -> Callable[[Any], Any]:
    """The function changes something when it is called with copies of these."""

    def enter(fn: Any) -> Any:
        CHANGE.append((fn, lambda: copy.deepcopy(args)))
        return fn

    return enter


def keep(*args: Any) -> Callable[[Any], Any]:
    """It changes nothing."""

    def enter(fn: Any) -> Any:
        KEEP.append((fn, lambda: copy.deepcopy(args)))
        return fn

    return enter


total = 0
seen: list[int] = []
cache: dict[int, int] = {}
names: set[str] = {"a"}
recent: collections.deque[int] = collections.deque(maxlen=8)
counts: collections.Counter[str] = collections.Counter()
groups: collections.defaultdict[str, list[int]] = collections.defaultdict(list)
raw = bytearray(16)
numbers = array.array("d", [1.0] * 8)
table = [[0] * 3 for _ in range(3)]
nested: dict[str, Any] = {"a": {"b": [1, 2]}}
current: str | None = None
big = {n: n * n for n in range(50_000)}
ids = itertools.count()
lock = threading.Lock()
log = logging.getLogger("labelled")
pattern = re.compile(r"\d+")
tests_run = 0
later: Any = None


class Tally:
    """Changes itself in several ways."""

    instances = 0
    registry: typing.ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self.total = 0
        self.items: list[int] = []
        self.inner = Point(0, 0)

    def add(self, value: int) -> int:
        self.total += value
        return self.total

    def append(self, value: int) -> None:
        self.items.append(value)

    def deep(self, value: int) -> None:
        self.inner.x = value

    def new_attribute(self, value: int) -> None:
        self.latest = value

    def count_class(self) -> None:
        type(self).instances += 1

    def through_helper(self, value: int) -> None:
        self.append(value)

    @classmethod
    def register(cls, value: int) -> None:
        cls.registry.append(value)

    def read(self, value: int) -> int:
        return self.total + value + len(self.items)

    def __call__(self, value: int) -> None:
        self.total = value + 1


@dataclasses.dataclass
class Point:
    x: int
    y: int

    @functools.cached_property
    def norm(self) -> float:
        return math.hypot(self.x, self.y)

    def moved(self, by: int) -> Point:
        return Point(self.x + by, self.y + by)


class Slotted:
    """Has its state in slots."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Hostile:
    """Must not be asked for anything."""

    def __init__(self) -> None:
        self.inside = [1]

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    def __hash__(self) -> int:
        raise AssertionError("hashed")

    def __repr__(self) -> str:
        raise AssertionError("shown")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError("asked for an attribute")


class Colour(__import__("enum").Flag):  # type: ignore[misc]
    """Makes members as they are combined."""

    RED = 1
    BLUE = 2
    GREEN = 4


tally = Tally()
state = Point(0, 0)


def _bump() -> None:
    global total
    total += 1


def _note(value: int) -> None:
    seen.append(value)


def _note_twice(value: int) -> None:
    _note(value)


def _double(value: int) -> int:
    return value * 2


def _twice(value: int) -> int:
    return _double(_double(value))


# What changes something ---------------------------------------------------------------------------


@change(1)
def rebinds_a_global(n: int) -> int:
    global total
    total += n
    return total


@change("x")
def sets_a_global(name: str) -> None:
    global current
    current = name


@change()
def deletes_a_global() -> None:
    global later
    del later


@change(1)
def by_globals(n: int) -> None:
    globals()["tests_run"] = n


@change(3)
def appends(n: int) -> None:
    seen.append(n)


@change(3)
def extends_in_place(n: int) -> None:
    for i in range(n):
        seen.extend([i, i])


@change(7)
def caches_in_a_dict(n: int) -> int:
    if n not in cache:
        cache[n] = n * n
    return cache[n]


@change("b")
def adds_to_a_set(name: str) -> None:
    names.add(name)


@change(5)
def pushes(n: int) -> None:
    recent.append(n)


@change("the words the")
def counts_words(text: str) -> None:
    counts.update(text.split())


@change("k", 1)
def groups_by(key: str, n: int) -> None:
    groups[key].append(n)


@change(3)
def writes_bytes(n: int) -> None:
    raw[n] = 255


@change(3)
def writes_numbers(n: int) -> None:
    numbers[n] = -1.0


@change(1, 2)
def writes_a_cell(i: int, j: int) -> None:
    table[i][j] += 1


@change(9)
def writes_deep(n: int) -> None:
    nested["a"]["b"].append(n)


@change([3, 1, 2])
def sorts_in_place(items: list[int]) -> None:
    items.sort()


@change({"a": 1})
def pops(options: dict[str, int]) -> int:
    return options.pop("a")


@change({"a": {"b": [1]}})
def changes_an_inner_list(tree: dict[str, Any]) -> None:
    tree["a"]["b"][0] = 2


@change(bytearray(b"abc"))
def overwrites_a_buffer(buffer: bytearray) -> None:
    buffer[0] = 0


@change(bytearray(b"abc"))
def overwrites_a_view(buffer: bytearray) -> None:
    def write(view: memoryview) -> None:
        view[1] = 0

    write(memoryview(buffer))


@change(Point(1, 2))
def sets_an_attribute(point: Point) -> None:
    point.x = 5


@change(Slotted())
def sets_a_slot(slotted: Slotted) -> None:
    slotted.value = 1


@change([Point(1, 2), Point(3, 4)])
def sets_an_attribute_of_each(points: list[Point]) -> None:
    for point in points:
        point.y = 0


@change([Hostile()])
def reaches_into_a_stranger(strangers: list[Hostile]) -> None:
    strangers[0].inside.append(2)


@change(1)
def remembers_in_a_default(n: int, memory: list[int] = []) -> int:  # noqa: B006
    memory.append(n)
    return len(memory)


@change(2)
def remembers_in_a_keyword(n: int, *, memory: dict[int, int] = {}) -> int:  # noqa: B006
    return memory.setdefault(n, n)


@change()
def by_a_helper() -> None:
    _bump()


@change(4)
def by_a_helpers_helper(n: int) -> None:
    _note_twice(n)


@change([1, 2])
def by_a_comprehension(values: list[int]) -> list[None]:
    return [seen.append(value) for value in values]  # type: ignore[func-returns-value]


@change([1, 2])
def by_an_inner_function(values: list[int]) -> list[int]:
    def note(value: int) -> int:
        cache[value + 100] = value
        return value

    return list(map(note, values))


@change(3)
def changes_a_global_object(n: int) -> None:
    state.x += n


@change(3)
def calls_a_method_of_a_global(n: int) -> None:
    tally.add(n)


@change()
def counts_on_a_class() -> None:
    Tally.instances += 1


@change()
def counts_on_itself() -> None:
    counts_on_itself.calls = getattr(counts_on_itself, "calls", 0) + 1  # type: ignore[attr-defined]


@change(True)
def sets_a_modules_attribute(value: bool) -> None:
    settings.debug = value


@change(2)
def changes_a_modules_dict(n: int) -> None:
    settings.options["depth"] += n


@change(2)
def by_another_modules_function(n: int) -> None:
    settings.remember(n)


@change("RIGHTLANE_LABELLED", "1")
def sets_an_environment_variable(name: str, value: str) -> None:
    os.environ[name] = value


@change()
def takes_a_number() -> int:
    return next(ids)


@change(1)
def changes_and_raises(n: int) -> None:
    seen.append(n)
    raise ValueError(n)


@change(1)
def under_a_lock(n: int) -> None:
    global total
    with lock:
        total += n


def _closures() -> None:
    count = 0
    gathered: list[int] = []

    def counts_in_a_closure() -> int:
        nonlocal count
        count += 1
        return count

    def gathers_in_a_closure(n: int) -> None:
        gathered.append(n)

    def deeper_in_a_closure(n: int) -> None:
        def inner() -> None:
            nonlocal count
            count += n

        inner()

    change()(counts_in_a_closure)
    change(1)(gathers_in_a_closure)
    change(1)(deeper_in_a_closure)


_closures()
for method in (tally.add, tally.append, tally.deep, tally.new_attribute, tally.through_helper):
    change(3)(method)
change()(tally.count_class)
change(3)(Tally.register)
change(3)(tally)
change([2, 1])(functools.partial(sorts_in_place))
change(4)(functools.partial(lambda items, n: items.append(n), [1, 2]))


# What changes nothing -----------------------------------------------------------------------------


@keep(3, 4)
def adds(a: int, b: int) -> int:
    return a + b


@keep([3, 1, 2])
def sorts_a_copy(items: list[int]) -> list[int]:
    return sorted(items)


@keep([3, 1, 2])
def copies_and_appends(items: list[int]) -> list[int]:
    mine = list(items)
    mine.append(9)
    mine.sort()
    return mine


@keep(20)
def fills_a_local_list(n: int) -> list[int]:
    out: list[int] = []
    for i in range(n):
        out.append(i)
    return out


@keep(20)
def fills_a_local_dict(n: int) -> dict[int, int]:
    cache: dict[int, int] = {}
    for i in range(n):
        cache[i] = i
    return cache


@keep(10)
def counts_in_its_own_closure(n: int) -> int:
    count = 0

    def one_more() -> None:
        nonlocal count
        count += 1

    for _ in range(n):
        one_more()
    return count


@keep(12)
def recurses(n: int) -> int:
    return n if n < 2 else recurses(n - 1) + recurses(n - 2)


@keep(5)
def uses_a_generator(n: int) -> int:
    def squares() -> Iterator[int]:
        for i in range(n):
            yield i * i

    return sum(squares())


@keep([1, 2, 3])
def uses_comprehensions(values: list[int]) -> dict[int, set[int]]:
    return {v: {w for w in values if w < v} for v in values}


@keep(3)
def reads_a_big_global(n: int) -> int:
    return big[n]


@keep(3)
def gets_with_a_default(n: int) -> int:
    return cache.get(n, 0) + len(seen) + total


@keep("a")
def looks_in_a_set(name: str) -> bool:
    return name in names


@keep("12 ab 34")
def matches(text: str) -> list[str]:
    return pattern.findall(text)


@keep(100)
def builds_a_string(n: int) -> str:
    text = ""
    for i in range(n):
        text += str(i)
    return text


@keep(3)
def raises(n: int) -> None:
    raise ValueError(n)


@keep({})
def catches(options: dict[str, int]) -> int:
    try:
        return options["missing"]
    except KeyError as error:
        return len(error.args)


@keep(4)
def makes_a_class(n: int) -> int:
    class Local:
        instances = 0

        def __init__(self) -> None:
            Local.instances += 1

    for _ in range(n):
        Local()
    return Local.instances


@keep(4)
def makes_objects(n: int) -> int:
    mine = Tally()
    for i in range(n):
        mine.add(i)
        mine.append(i)
    return mine.total


@keep(Point(1, 2))
def makes_another(point: Point) -> Point:
    return point.moved(3)


@keep(Point(3, 4))
def fills_a_cached_property(point: Point) -> float:
    return point.norm


@keep(Point(3, 4))
def replaces(point: Point) -> Point:
    return dataclasses.replace(point, x=0)


@keep({"a": [1, {"b": 2}]})
def copies_deeply(tree: dict[str, Any]) -> dict[str, Any]:
    mine = copy.deepcopy(tree)
    mine["a"][1]["b"] = 3
    return mine


@keep([Point(1, 2)])
def copies_objects(points: list[Point]) -> list[Point]:
    mine = copy.deepcopy(points)
    mine[0].x = 100
    return mine


@keep(iter([1, 2, 3]))
def takes_all(items: Iterator[int]) -> int:
    return sum(items)


@keep(io.StringIO("a\nb\n"))
def reads_lines(stream: io.StringIO) -> int:
    return len(stream.readlines())


@keep(5)
def draws(n: int) -> list[float]:
    return [random.random() for _ in range(n)]


@keep(5)
def logs(n: int) -> int:
    log.debug("seen %d", n)
    log.warning  # noqa: B018
    return n


@keep(5)
def waits_for_a_lock(n: int) -> int:
    with lock:
        return n


@keep('{"a": [1, 2]}')
def parses(text: str) -> Any:
    return json.loads(text)


@keep("3.25")
def imports_inside(text: str) -> Any:
    import decimal
    import fractions

    return decimal.Decimal(text) + decimal.Decimal(fractions.Fraction(1, 2).numerator)


@keep("3.25")
def imports_into_a_global(text: str) -> Any:
    global later
    import statistics as later

    return later.fmean([float(text), 1.0])


@functools.lru_cache(maxsize=8)
def _cached(n: int) -> int:
    return n * 3


@keep(9)
def calls_a_cached_function(n: int) -> int:
    return _cached(n)


@keep(9)
def by_pure_helpers(n: int) -> int:
    return _twice(n) + settings.depth()


@keep(b"abc")
def hashes(data: bytes) -> str:
    digest = hashlib.sha256()
    digest.update(data)
    return digest.hexdigest()


@keep(6)
def combines_flags(n: int) -> Any:
    return Colour(n) | Colour.RED


@keep("a.txt")
def handles_paths(name: str) -> str:
    return str(Path("/tmp") / name) + os.environ.get("HOME", "")


@keep(3, 4, 5)
def has_many_arguments(*args: int, **kwargs: int) -> int:
    kwargs["extra"] = sum(args)
    return kwargs["extra"]


@keep([Hostile()], {"k": Hostile()})
def leaves_strangers_alone(strangers: list[Hostile], more: dict[str, Hostile]) -> int:
    return len(strangers) + len(more)


@keep([[1, float("nan")], {2.5, 3.5}])
def reads_numbers(parts: list[Any]) -> float:
    return sum(parts[0][:1]) + len(parts[1])


@keep(2)
def prints_nothing(n: int) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print(n)
    return out.getvalue()


@keep([1, 2])
def swaps_and_swaps_back(items: list[int]) -> int:
    items[0], items[1] = items[1], items[0]
    items[0], items[1] = items[1], items[0]
    return items[0]


@keep(4)
def works_on_a_local_of_the_same_name(n: int) -> int:
    seen = [n]
    seen.append(n)
    total = sum(seen)
    return total


@functools.singledispatch
def shows(value: object) -> str:
    return str(value)


@shows.register
def _(value: int) -> str:
    return f"{value:+}"


keep(3)(shows)
keep("[a-c]+d", "-", "abcd")(re.sub)
keep(["a", "b"], "c")(difflib.get_close_matches)
keep(3)(tally.read)
keep(3)(functools.partial(adds, 4))
keep(3)(_cached)
keep([1, 2, 3])(len)
keep()(Tally)
