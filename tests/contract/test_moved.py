"""What is moved for a function: bytes, what need not be moved, copies, and time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rightlane as rl
from buffers import MIB, Array
from support import Gate, eventually

Make = Callable[..., rl.Executor]

pytestmark = pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")

SMALL = 1000  # more than all that goes along with an array


@pytest.fixture
def ex(make: Make) -> rl.Executor:
    return make(1, lane="process")


def moved(ex: rl.Executor, fn: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = ex.explain(fn).as_dict()["moved"]
    assert set(found) == {"argument_bytes", "result_bytes", "saved_bytes", "copies", "seconds"}
    return found


def array(first: int) -> Array:
    return np.arange(first, first + MIB // 8)


def about(size: int, expected: int) -> bool:
    return expected <= size < expected + SMALL


def test_new_arrays_are_copied_each_time(ex: rl.Executor) -> None:
    def back(values: Array) -> Array:
        return values + 1

    nothing = moved(ex, back)
    assert nothing == dict.fromkeys(nothing, 0)
    for i in range(4):
        ex.submit(back, array(i)).result()
    found = moved(ex, back)
    assert about(found["argument_bytes"], 4 * MIB) and about(found["result_bytes"], 4 * MIB), found
    assert (found["copies"], found["saved_bytes"]) == (8, 0)
    assert 0 < found["seconds"] < 60


def test_what_is_sent_again_is_saved(ex: rl.Executor, gate: Gate) -> None:
    def last(values: Array) -> int:
        return int(values[-1])

    values = array(0)
    gate.occupy(ex, 1)
    sent = [ex.submit(last, values) for _ in range(5)]
    gate.open()
    assert {future.result() for future in sent} == {MIB // 8 - 1}
    found = moved(ex, last)
    assert (found["copies"], found["saved_bytes"]) == (1, 4 * MIB), found
    assert about(found["argument_bytes"], MIB), found


def test_so_it_is_within_a_map(ex: rl.Executor) -> None:
    def at(values: Array, n: int) -> int:
        return int(values[n])

    assert list(ex.map(at, [array(0)] * 20, range(20))) == list(range(20))
    found = moved(ex, at)
    assert found["copies"] * MIB + found["saved_bytes"] == 20 * MIB
    # Of the first blocks all may have ended before the next one is read.
    assert found["copies"] < 20


def test_what_lives_there_is_never_copied(ex: rl.Executor) -> None:
    def first(values: Array) -> int:
        return int(values[0])

    def build(count: int) -> Array:
        made: Array = rl.empty(count)
        made[:] = 7
        return made

    def shared(handle: rl.Shared[Array]) -> int:
        return int(handle.get()[0])

    own = rl.asarray(array(3))
    assert [ex.submit(first, own).result() for _ in range(3)] == [3] * 3
    found = moved(ex, first)
    assert (found["copies"], found["saved_bytes"]) == (0, 3 * MIB), found
    assert found["argument_bytes"] < SMALL, found

    for _ in range(3):
        assert ex.submit(build, MIB // 8).result()[-1] == 7
    found = moved(ex, build)
    assert (found["copies"], found["saved_bytes"]) == (0, 3 * MIB), found
    assert found["result_bytes"] < SMALL, found

    handle = rl.share(array(5))
    assert list(ex.map(shared, [handle] * 4)) == [5] * 4
    found = moved(ex, shared)
    assert (found["copies"], found["saved_bytes"]) == (0, 4 * MIB), found
    assert found["argument_bytes"] < 2 * SMALL, found


def test_a_large_pickle_is_one_copy(ex: rl.Executor) -> None:
    def double(text: str) -> str:
        return text * 2

    assert ex.submit(double, "x" * MIB).result() == "x" * 2 * MIB
    found = moved(ex, double)
    assert about(found["argument_bytes"], MIB) and about(found["result_bytes"], 2 * MIB), found
    assert (found["copies"], found["saved_bytes"]) == (2, 0)


def test_small_things_count_and_so_does_their_time(ex: rl.Executor) -> None:
    def length(things: list[str]) -> list[int]:
        return [len(text) for text in things]

    for i in range(50):
        assert ex.submit(length, [str(i)] * 50).result()
    first = moved(ex, length)
    assert 50 * 100 < first["argument_bytes"] and 50 * 100 < first["result_bytes"], first
    assert (first["copies"], first["saved_bytes"]) == (0, 0)
    assert first["seconds"] > 0
    assert len(list(ex.map(length, [["y"] * 50] * 200))) == 200
    then = moved(ex, length)
    assert then["argument_bytes"] > 3 * first["argument_bytes"], (first, then)
    assert then["result_bytes"] > 3 * first["result_bytes"], (first, then)
    assert then["seconds"] > first["seconds"]


def test_auto_counts_what_it_sends(make: Make) -> None:
    def first(values: Array) -> int:
        return int(values[0])

    ex = make(1, lane="auto")
    assert ex.submit(first, array(4)).result() == 4
    found = moved(ex, first)
    assert about(found["argument_bytes"], MIB) and found["copies"] == 1, found


def test_numbers_of_a_range_are_not_sent(ex: rl.Executor) -> None:
    def negative(n: int) -> int:
        return -n

    assert sum(ex.map(negative, range(1000))) == -499_500
    found = moved(ex, negative)
    assert found["argument_bytes"] == 0
    assert found["result_bytes"] == 5 * 1000


def test_exceptions_count_as_results(ex: rl.Executor) -> None:
    def refuse(n: int) -> None:
        raise ValueError("no" * n)

    assert ex.submit(refuse, 1000).exception() is not None
    assert moved(ex, refuse)["result_bytes"] > 2000


def test_threads_move_nothing(make: Make) -> None:
    def first(values: Array) -> int:
        return int(values[0])

    ex = make(1, lane="thread")
    assert ex.submit(first, array(9)).result() == 9
    found = moved(ex, first)
    assert found == dict.fromkeys(found, 0)


def test_what_is_told_of_it(ex: rl.Executor) -> None:
    def back(values: Array) -> Array:
        return values

    ex.submit(back, array(1)).result()
    eventually(lambda: ex.explain(back).reason != "not_seen")
    found = ex.explain(back)
    assert json.loads(found.to_json())["moved"] == found.as_dict()["moved"]
    html = found._repr_html_()
    assert "1 MiB of arguments, 1 MiB of results" in html and "copies of large buffers" in html
