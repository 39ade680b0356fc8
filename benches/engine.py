"""One case on one engine, in a process of its own: what `bench.py` starts.

`python engine.py ENGINE CASE PARAMETERS` prints the measured values as JSON. An engine that has run before,
a heap that has grown and a clock that has warmed up are thereby nobody's advantage.

To add a peer, add a class to `ENGINES`; to add a case, a function to `CASES` and its description to
`bench.py`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import tasks

Values = dict[str, float]


class Engine(Protocol):
    """A pool behind the same face. Importing the library is done when the object is made, making the
    pool in `open`."""

    def open(self, workers: int) -> None: ...
    def submit(self, fn: Callable[[Any], Any], arg: object) -> Callable[[], Any]:
        """Start a call; the answer gives its result."""

    def map(self, fn: Callable[[Any], Any], items: range, workers: int) -> Iterable[Any]: ...
    def close(self) -> None: ...


class Rightlane:
    def __init__(self, lane: Literal["process", "thread"]) -> None:
        from rightlane import Executor

        self.make = Executor
        self.lane: Literal["process", "thread"] = lane

    def open(self, workers: int) -> None:
        self.pool = self.make(workers, lane=self.lane)

    def submit(self, fn: Callable[[Any], Any], arg: object) -> Callable[[], Any]:
        return self.pool.submit(fn, arg).result

    def map(self, fn: Callable[[Any], Any], items: range, workers: int) -> Iterable[Any]:
        return self.pool.map(fn, items)

    def close(self) -> None:
        self.pool.shutdown()


class ProcessPool:
    def __init__(self) -> None:
        import multiprocessing
        from concurrent.futures.process import ProcessPoolExecutor

        self.make = ProcessPoolExecutor
        self.context = multiprocessing.get_context("fork")

    def open(self, workers: int) -> None:
        self.pool = self.make(workers, mp_context=self.context)

    def submit(self, fn: Callable[[Any], Any], arg: object) -> Callable[[], Any]:
        return self.pool.submit(fn, arg).result

    def map(self, fn: Callable[[Any], Any], items: range, workers: int) -> Iterable[Any]:
        # Its default chunk of one item takes minutes; this is the size `multiprocessing.Pool` takes.
        return self.pool.map(fn, items, chunksize=-(-len(items) // (4 * workers)))

    def close(self) -> None:
        self.pool.shutdown()


class ThreadPool:
    def __init__(self) -> None:
        from concurrent.futures.thread import ThreadPoolExecutor

        self.make = ThreadPoolExecutor

    def open(self, workers: int) -> None:
        self.pool = self.make(workers)

    def submit(self, fn: Callable[[Any], Any], arg: object) -> Callable[[], Any]:
        return self.pool.submit(fn, arg).result

    def map(self, fn: Callable[[Any], Any], items: range, workers: int) -> Iterable[Any]:
        return self.pool.map(fn, items)

    def close(self) -> None:
        self.pool.shutdown()


class MultiprocessingPool:
    def __init__(self) -> None:
        import multiprocessing.pool

        self.context = multiprocessing.get_context("fork")

    def open(self, workers: int) -> None:
        self.pool = self.context.Pool(workers)

    def submit(self, fn: Callable[[Any], Any], arg: object) -> Callable[[], Any]:
        return self.pool.apply_async(fn, (arg,)).get

    def map(self, fn: Callable[[Any], Any], items: range, workers: int) -> Iterable[Any]:
        return self.pool.map(fn, items)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


ENGINES: dict[str, Callable[[], Engine]] = {
    "rightlane process": lambda: Rightlane("process"),
    "rightlane thread": lambda: Rightlane("thread"),
    "ProcessPoolExecutor": ProcessPool,
    "ThreadPoolExecutor": ThreadPool,
    "multiprocessing.Pool": MultiprocessingPool,
}


def plain(value: int) -> int:
    """A function of `__main__`, for the cold start."""
    return value


def cold(engine: Engine, workers: int) -> Values:
    start = time.perf_counter()
    engine.open(workers)
    assert engine.submit(plain, 1)() == 1
    return {"first_s": time.perf_counter() - start}


def latency(engine: Engine, workers: int, count: int) -> Values:
    engine.open(workers)
    for value in range(100):
        engine.submit(tasks.noop, value)()
    times_s = []
    for value in range(count):
        start = time.perf_counter()
        engine.submit(tasks.noop, value)()
        times_s.append(time.perf_counter() - start)
    return {"p50_s": statistics.median(times_s), "p99_s": statistics.quantiles(times_s, n=100)[98]}


def submits(engine: Engine, workers: int, count: int) -> Values:
    _warm(engine, workers)
    start = time.perf_counter()
    answers = [engine.submit(tasks.noop, value) for value in range(count)]
    results = [answer() for answer in answers]
    per_task_s = (time.perf_counter() - start) / count
    assert results == list(range(count))
    return {"per_task_s": per_task_s}


def map_noop(engine: Engine, workers: int, count: int) -> Values:
    _warm(engine, workers)
    start = time.perf_counter()
    results = list(engine.map(tasks.noop, range(count), workers))
    per_item_s = (time.perf_counter() - start) / count
    assert results == list(range(count))
    return {"per_item_s": per_item_s}


def burns(engine: Engine, workers: int, count: int, steps: int) -> Values:
    _warm(engine, workers)
    start = time.perf_counter()
    for answer in [engine.submit(tasks.burn, steps) for _ in range(count)]:
        answer()
    return {"total_s": time.perf_counter() - start}


def naps(engine: Engine, workers: int, count: int, seconds: float) -> Values:
    _warm(engine, workers)
    start = time.perf_counter()
    for answer in [engine.submit(tasks.nap, seconds) for _ in range(count)]:
        answer()
    return {"total_s": time.perf_counter() - start}


def _warm(engine: Engine, workers: int) -> None:
    """Open, and have every worker started: the cold start has a case of its own."""
    engine.open(workers)
    for answer in [engine.submit(tasks.nap, 0.01) for _ in range(2 * workers)]:
        answer()


CASES: dict[str, Callable[..., Values]] = {
    "cold": cold,
    "latency": latency,
    "submits": submits,
    "map": map_noop,
    "cpu": burns,
    "sleep": naps,
}


def main(engine_name: str, case_name: str, parameters: str) -> None:
    engine = ENGINES[engine_name]()
    print(json.dumps(CASES[case_name](engine, **json.loads(parameters))), flush=True)
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
