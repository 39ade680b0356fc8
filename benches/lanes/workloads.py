"""The labelled workloads: a function, what it is given, and where an expert would run it.

The engine is judged on others as well: a workload belongs here because it is of a kind, not because it is
hard or easy. To add one, add its function to a module beside this one and a line to `WORKLOADS`.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Label = Literal["process", "thread", "either", "caller", "mixed"]


@dataclass(frozen=True)
class Place:
    """What the workloads need of the world."""

    directory: Path
    port: int


Items = Callable[[int, Place], Sequence[Any]]


@dataclass(frozen=True)
class Workload:
    """`count` items for two cores, so that the best fixed choice takes about a second or more."""

    name: str
    module: str
    function: str
    label: Label
    """Where it belongs on two cores; "either" where both serve, "mixed" where it is one and then another."""
    count: int
    items: Items
    sample: float = 0.15
    """What share of the items is enough to choose sizes by."""
    waits: bool = False
    """Judged by the lane alone: against the best fixed lane at the size that auto used."""
    submit: bool = False
    """By `submit` of each item instead of one `map`."""
    short: bool = False
    """One of those that take 0.25 to 0.5 s serially."""


def sampled(items: Sequence[Any], share: float) -> Sequence[Any]:
    """Evenly over all of them: what comes late counts as well."""
    count = max(1, round(len(items) * share))
    if isinstance(items, range):
        return items[:count]
    return [items[number * len(items) // count] for number in range(count)]


def _numbers(count: int, place: Place) -> range:
    return range(count)


def _same(value: Any) -> Items:
    return lambda count, place: [value] * count


def _text(seed: int, words: int) -> str:
    chosen = random.Random(seed)
    stock = ["".join(chosen.choices("aeiinggrst", k=length)) for length in range(3, 9) for _ in range(40)]
    return " ".join(chosen.choices(stock, k=words))


def _texts(words: int) -> Items:
    return lambda count, place: _cycle([_text(seed, words) for seed in range(8)], count)


def _cycle(some: Sequence[Any], count: int) -> list[Any]:
    return list(itertools.islice(itertools.cycle(some), count))


def _json(count: int, place: Place) -> list[str]:
    import json

    def record(n: int) -> dict[str, Any]:
        return {"id": n, "name": f"name {n}", "tags": ["a", "b", str(n)], "at": [n / 3, n / 7]}

    return _cycle([json.dumps([record(n + k) for n in range(600)]) for k in range(4)], count)


def _random_bytes(size: int, kinds: int) -> Items:
    return lambda count, place: _cycle([random.Random(k).randbytes(size) for k in range(kinds)], count)


def _bytes_of_text(count: int, place: Place) -> list[bytes]:
    return _cycle([_text(seed, 40_000).encode() for seed in range(4)], count)


def _compressed(count: int, place: Place) -> list[bytes]:
    return _cycle([zlib.compress(_text(seed, 30_000).encode() * 40, 1) for seed in range(2)], count)


def _arrays(mib: int) -> Items:
    def made(count: int, place: Place) -> list[Any]:
        import numpy as np

        return _cycle([np.full(mib * 2**17, float(k)) for k in range(16)], count)

    return made


def _rising(count: int, place: Place) -> list[int]:
    return [40 + number * 1600 // count for number in range(count)]


def _with_giant(count: int, place: Place) -> list[int]:
    """One that takes as long as a quarter of the rest, two thirds on."""
    items = [5_000] * count
    items[count * 2 // 3] = 5_000 * count // 4
    return items


def _copies(count: int, place: Place) -> list[tuple[str, str]]:
    source = place.directory / "blob"
    source.write_bytes(bytes(range(256)) * 8192)
    return [(str(source), str(place.directory / f"copy{number}")) for number in range(count)]


def _number_files(count: int, place: Place) -> list[str]:
    names = []
    for number in range(16):
        path = place.directory / f"numbers{number}"
        path.write_text("".join(f"{n * number}\n" for n in range(20_000)), encoding="ascii")
        names.append(str(path))
    return _cycle(names, count)


def _ranges(count: int, place: Place) -> list[tuple[str, int, int]]:
    path = place.directory / "samples.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table samples (id integer primary key, value real)")
        rows = ((n, n / 3) for n in range(200_000))
        connection.executemany("insert into samples values (?, ?)", rows)
    connection.close()
    return [(str(path), n * 97 % 100_000, n * 97 % 100_000 + 60_000) for n in range(count)]


def _urls(path: str) -> Items:
    return lambda count, place: [(place.port, path)] * count


def _phases(*kinds: tuple[str, float]) -> Items:
    return lambda count, place: [kinds[number * len(kinds) // count] for number in range(count)]


WORKLOADS = [
    # Pure Python.
    Workload("python loop", "plain", "sum_squares", "process", 500, _same(100_000)),
    Workload("python recursion", "plain", "fibonacci", "process", 2400, _same(20)),
    Workload("python dict", "plain", "count_words", "process", 550, _texts(30_000)),
    Workload("python objects", "plain", "walk", "process", 240, _same(40_000)),
    Workload("python uneven", "plain", "longest_collatz", "process", 700, _rising, 0.5),
    Workload("python 1 ms, submit", "plain", "sum_squares", "process", 3200, _same(15_000), submit=True),
    Workload(
        "python four long, submit", "plain", "sum_squares", "process", 4, _same(12_000_000), 1.0, submit=True
    ),
    Workload("one giant", "plain", "sum_squares", "process", 8000, _with_giant, 1.0),
    # C code.
    Workload("regex", "native", "find_names", "process", 800, _texts(20_000)),
    Workload("json", "native", "rewrite_json", "process", 1200, _json),
    Workload("zlib", "native", "compress", "either", 110, _bytes_of_text),
    Workload("pbkdf2", "native", "derive_key", "either", 450, _random_bytes(16, 8)),
    Workload("short hashes", "native", "hash_blocks", "process", 900, _same(1000)),
    Workload("sqlite", "native", "query", "either", 380, _ranges),
    # NumPy.
    Workload("numpy whole", "arrays", "transcend", "either", 320, _numbers),
    Workload("numpy small", "arrays", "rotate", "process", 400, _same(6_000)),
    Workload("blas", "arrays", "multiply", "either", 450, _numbers),
    Workload("images", "arrays", "thumbnail", "either", 120, _numbers),
    # Moving.
    Workload("big arguments", "native", "hash_all", "thread", 900, _random_bytes(2**22, 8)),
    Workload("big arrays", "arrays", "sum_logarithms", "thread", 2800, _arrays(4), 0.1),
    Workload("big results", "native", "decompress", "thread", 100, _compressed),
    Workload("big result arrays", "arrays", "noise", "thread", 1500, _numbers),
    Workload("tiny", "plain", "tiny", "caller", 14_000_000, _numbers, 0.05),
    Workload("tiny, submit", "plain", "tiny", "either", 900_000, _numbers, 0.1, submit=True),
    # Waiting.
    Workload("sleep", "outside", "nap", "thread", 120, _same(0.02), 0.5, waits=True),
    Workload("sleep, submit", "outside", "nap", "thread", 600, _same(0.004), 0.5, waits=True, submit=True),
    Workload("http", "outside", "fetch", "thread", 120, _urls("/after/20"), 0.5, waits=True),
    Workload("http, limited", "outside", "fetch", "thread", 60, _urls("/paced/20"), 0.5, waits=True),
    Workload("child waits", "outside", "run_sleep", "thread", 60, _same("0.04"), 0.5, waits=True),
    Workload("child burns", "outside", "run_awk", "either", 80, _same("600000")),
    Workload(
        "burn and wait", "outside", "burn_and_nap", "process", 220, _same((90_000, 0.006)), 1.0, waits=True
    ),
    Workload(
        "wait, burn little", "outside", "burn_and_nap", "thread", 220, _same((12_000, 0.01)), 1.0, waits=True
    ),
    Workload("files copied", "outside", "copy_file", "either", 3600, _copies),
    Workload("files parsed", "outside", "read_numbers", "process", 750, _number_files),
    # One and then another.
    Workload(
        "sleep, then burn",
        "phases",
        "work",
        "mixed",
        300,
        _phases(("nap", 0.008), ("burn", 130_000)),
        1.0,
        waits=True,
    ),
    Workload(
        "C, then Python", "phases", "work", "mixed", 400, _phases(("hash", 20_000), ("burn", 130_000)), 1.0
    ),
    Workload(
        "burn, then sleep, submit",
        "phases",
        "work",
        "mixed",
        300,
        _phases(("burn", 130_000), ("nap", 0.008)),
        1.0,
        waits=True,
        submit=True,
    ),
    # Short.
    Workload("short python", "plain", "sum_squares", "process", 60, _same(100_000), 1.0, short=True),
    Workload(
        "short regex, submit",
        "native",
        "find_names",
        "process",
        110,
        _texts(20_000),
        1.0,
        short=True,
        submit=True,
    ),
    Workload("short zlib", "native", "compress", "either", 20, _bytes_of_text, 1.0, short=True),
    Workload("short numpy", "arrays", "transcend", "either", 50, _numbers, 1.0, short=True),
    Workload("short tiny", "plain", "tiny", "caller", 3_000_000, _numbers, 0.2, short=True),
    Workload("short sleep", "outside", "nap", "thread", 18, _same(0.02), 1.0, waits=True, short=True),
]
