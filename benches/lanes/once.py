"""One workload on one engine, in a process of its own, in which nothing is known: what `lanes.py` starts.

`python once.py PARAMETERS` prints as JSON how long it took, from before the pool is made until it has ended,
and on auto what it says of the function. Imports and making the items come before the clock.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rightlane as rl
from workloads import WORKLOADS, Place, sampled

DEFAULTS: dict[str, Callable[[], Executor]] = {
    "ProcessPoolExecutor": ProcessPoolExecutor,
    "ThreadPoolExecutor": ThreadPoolExecutor,
    "auto": rl.Executor,
    "inline": lambda: rl.Executor(lane="inline"),
}
"""As they come; of the two others the size is told."""


def _pool(engine: str, size: int | None) -> Executor:
    if engine == "process":
        return rl.Executor(size, lane="process")
    if engine == "thread":
        return rl.Executor(size, lane="thread")
    return DEFAULTS[engine]()


def _all(pool: Executor, fn: Callable[[Any], Any], items: Sequence[Any], submit: bool) -> int:
    """How many results: they are dropped as they come, as from any loop that uses them up."""
    if submit:
        futures = [pool.submit(fn, item) for item in items]
        futures.reverse()
        count = 0
        while futures:
            futures.pop().result()
            count += 1
        return count
    return sum(1 for _ in pool.map(fn, items))


def run(engine: str, size: int | None, name: str, share: float, place: Place) -> dict[str, Any]:
    workload = next(one for one in WORKLOADS if one.name == name)
    fn = getattr(importlib.import_module(workload.module), workload.function)
    items = workload.items(workload.count, place)
    if share < 1:
        items = sampled(items, share)
    start = time.perf_counter()
    if engine == "serial":
        for item in items:
            fn(item)
        return {"time_s": time.perf_counter() - start}
    with _pool(engine, size) as pool:
        assert _all(pool, fn, items, workload.submit) == len(items)
    answer: dict[str, Any] = {"time_s": time.perf_counter() - start}
    if engine == "auto":
        assert isinstance(pool, rl.Executor)
        explained = pool.explain(fn)
        answer["explained"] = explained.as_dict()
    return answer


def main(parameters: str) -> None:
    told = json.loads(parameters)
    place = Place(Path(told.pop("directory")), told.pop("port"))
    print(json.dumps(run(**told, place=place)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
