"""`rl.compare`: what it measures is checked by its order and its sums, never by how long it took."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

import rightlane as rl
from rightlane import _compare


class Point:
    """Defines no equality, so that two copies are equal to nobody."""

    def __init__(self, *values: object) -> None:
        self.values = values


def square(value: int) -> int:
    return value * value


def point(value: int) -> Point:
    return Point(value, [value, math.nan])


def fail(value: int) -> int:
    raise LookupError("no such thing", value)


def fail_by_process(value: int) -> int:
    raise LookupError(os.getpid())


def leave(value: int) -> int:
    sys.exit(value)


def by_process(value: int) -> int:
    return os.getpid()


class Marked(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        assert not self.open, "what was opened is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def row(lane: Any, size: int | None, time_s: float | None, note: str = "") -> rl.Row:
    rate = None if time_s is None else 10 / time_s
    return rl.Row(lane, size, 10, time_s, None if time_s is None else 1 / time_s, 1.0, rate, note)


def test_a_picture_of_it_loads_nothing() -> None:
    rows = (
        row("serial", None, 1.0),
        row("thread", 4, 0.25),
        row("process", 2, None, 'not run: <lock> & "key"'),
    )
    sweep = (row("thread", 2, 0.5), row("thread", 4, 0.25))
    comparison = rl.Comparison(rows, sweep, rows[1], "thread × 4 wins, <4×>.", False, "the text & more")
    for drawn in (comparison.to_html(), comparison._repr_html_()):
        page = Marked(drawn)
        text = "".join(page.text)
        assert page.tags.count("svg") == 2
        assert page.tags.count("rect") == 4, "a bar for each that was measured"
        for wanted in (
            "thread × 4 wins, <4×>.",
            "process × 2",
            '<lock> & "key"',
            "A lane broke",
            "the text & more",
        ):
            assert wanted in text
        assert not {"script", "link", "img", "iframe"} & set(page.tags)
        loaded = [value for name, value in page.attributes if name in ("src", "href")]
        assert loaded == []
        assert "url(" not in drawn and "@import" not in drawn
    widths = [float(value) for name, value in page.attributes if name == "width"][1:3]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01), "as long as it took"
    assert page.attributes.count(("class", "best")) == 2


def test_the_object_holds_what_its_text_says() -> None:
    comparison = rl.compare(square, range(200))
    assert comparison.ok
    assert comparison.rows[0].lane == "serial"
    assert {row.lane for row in comparison.rows} == {"serial", "process", "thread"}
    assert comparison.best in comparison.rows
    assert str(comparison) == comparison.text
    assert comparison.text.endswith(f"verdict: {comparison.verdict}")
    for row in comparison.rows:
        assert row.items == 200 and row.time_s and row.tasks_per_s
        assert math.isclose(row.tasks_per_s, row.items / row.time_s)
    serial = comparison.rows[0]
    assert (serial.size, serial.speed_up) == (None, 1.0)


def test_sizes_are_multiples_of_the_cores() -> None:
    cores = _compare.core_count()
    comparison = rl.compare(square, range(64 * cores))
    sizes = {
        lane: [row.size for row in comparison.sweep if row.lane == lane] for lane in ("process", "thread")
    }
    assert sizes == {
        "process": [cores, 4 * cores, 16 * cores],
        "thread": [cores, 4 * cores, 16 * cores, 64 * cores],
    }


def test_the_best_of_each_lane_takes_turns_on_all_items() -> None:
    """rule 29"""
    lines: list[str] = []
    rl.compare(square, range(50), max_workers=1, progress=lines.append)
    rounds = [line for line in lines if ", round " in line]
    expected = []
    for number, lanes in enumerate((["process", "thread"], ["thread", "process"], ["process", "thread"]), 1):
        expected += [
            f"square: {engine}, round {number} of 3" for engine in ("serial", *(f"{n} × 1" for n in lanes))
        ]
    assert rounds == expected


def test_a_generator_is_read_once() -> None:
    read = []

    def items() -> Iterator[int]:
        for value in range(30):
            read.append(value)
            yield value

    assert rl.compare(square, items(), max_workers=2).ok
    assert read == list(range(30))


@pytest.mark.parametrize("fn", [fail, leave])
def test_errors_are_results(fn: Callable[[int], int]) -> None:
    comparison = rl.compare(fn, range(20), max_workers=2)
    assert comparison.ok
    assert "(20 of 20 calls raised)" in comparison.text


@pytest.mark.parametrize("fn", [by_process, fail_by_process])
def test_results_that_differ_are_found(fn: Callable[[int], int]) -> None:
    comparison = rl.compare(fn, range(20), max_workers=2)
    assert not comparison.ok
    assert "DIFFER: process × 2 gave something else than serial for item 0" in comparison.text


def test_copies_of_a_result_are_equal() -> None:
    assert rl.compare(point, range(20), max_workers=2).ok


def test_what_cannot_be_sent_is_a_row() -> None:
    lock = threading.Lock()
    comparison = rl.compare(lambda value: lock.locked(), range(20), max_workers=2)
    (process,) = (row for row in comparison.rows if row.lane == "process")
    assert comparison.ok
    assert (process.time_s, process.speed_up) == (None, None)
    assert process.note.startswith("not run: ")
    assert comparison.best.lane != "process"


async def coroutine(value: int) -> int:
    return value


@pytest.mark.parametrize(
    ("fn", "items", "max_workers", "error"),
    [
        (3, [1], None, TypeError),
        (coroutine, [1], None, TypeError),
        (square, 3, None, TypeError),
        (square, [], None, ValueError),
        (square, [1], 0, ValueError),
        (square, [1], "2", TypeError),
    ],
)
def test_bad_input(fn: Any, items: Any, max_workers: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        rl.compare(fn, items, max_workers=max_workers)


def test_an_interrupt_ends_it() -> None:
    def interrupt(value: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rl.compare(interrupt, range(20))


def test_what_progress_raises_arrives() -> None:
    def stop(line: str) -> None:
        raise ZeroDivisionError(line)

    with pytest.raises(ZeroDivisionError):
        rl.compare(square, range(20), progress=stop)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (1, 1, True),
        (1, 1.0, False),
        (math.nan, float("nan"), True),
        ([1, math.nan], [1, float("nan")], True),
        ((1, 2), [1, 2], False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": [1]}, {"a": [2]}, False),
        ({"a": 1}, {"b": 1}, False),
        ({1, 2}, {2, 1}, True),
        (Point(1, [2]), Point(1, [2]), True),
        (Point(1, [2]), Point(1, [3]), False),
        (object(), object(), True),
        (memoryview(b"ab"), memoryview(b"ab"), True),
        (memoryview(b"ab"), memoryview(b"ac"), False),
        (random.Random(1), random.Random(1), True),
        (random.Random(1), random.Random(2), False),
    ],
)
def test_same(one: object, other: object, expected: bool) -> None:
    assert _compare.same(one, other) is expected


def ring(*values: object) -> Point:
    """Points that know each other, in both directions."""
    points = [Point(value) for value in values]
    for left, right in zip(points, points[1:] + points[:1], strict=True):
        left.values += (right,)
        right.values += (left,)
    return points[0]


def test_same_ends_where_objects_refer_to_each_other() -> None:
    assert _compare.same(ring(*range(100)), ring(*range(100)))
    assert not _compare.same(ring(*range(100)), ring(*range(99), 0))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100, 1790])
def test_the_spread_order_visits_every_item_once(count: int) -> None:
    assert sorted(_compare._spread_order(count)) == list(range(count))


BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
BURN_BELOW = (
    f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\nprint(1, flush=True)\ninput()"
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_time_of_the_whole_tree_counts() -> None:
    clock = _compare._CpuClock()
    before_s = clock.others_s()
    with subprocess.Popen(
        [sys.executable, "-c", BURN_BELOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        below_s = clock.others_s() - before_s  # burnt by a grandchild that its parent has reaped
    ended_s = clock.others_s() - before_s
    assert below_s >= 0.28
    assert ended_s >= 0.28


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cpu_time_of_strangers_does_not_count() -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        clock = _compare._CpuClock()
        before_s = clock.others_s()
        pid_clock = (~stranger.pid << 3) | 2
        start_s = time.clock_gettime(pid_clock)
        while time.clock_gettime(pid_clock) - start_s < 0.1:
            pass
        assert clock.others_s() == before_s
    finally:
        stranger.kill()
        stranger.wait()
