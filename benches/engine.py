"""One case on one engine, in a process of its own: what `bench.py` starts.

`python engine.py ENGINE CASE PARAMETERS` prints the measured values as JSON. An engine that has run before,
a heap that has grown and a clock that has warmed up are thereby nobody's advantage.

To add a peer, add a class to `ENGINES`; to add a case, a function to `CASES` and its description to
`bench.py`. The last part of a value's name is its unit, which is how `bench.py` knows how to print it.
"""

from __future__ import annotations

import json
import logging
import operator
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import tasks

Values = dict[str, float]


class Engine:
    """A pool behind the same face. Importing the library is done when the object is made, making the pool
    in `open`."""

    submit: Callable[..., Any]
    """Starts a call and gives the pool's own future. Where it can, it is the pool's own method: what a
    wrapper of ours costs would count for the fastest most."""

    take: Callable[[Any], Any] = staticmethod(operator.methodcaller("result"))
    """Waits for such a future."""

    def open(self, workers: int) -> None:
        raise NotImplementedError

    def run_all(self, fn: Callable[[Any], Any], args: Sequence[Any]) -> list[Any]:
        """Each as a task of its own, first all of them started, then all results."""
        submit = self.submit
        return list(map(self.take, [submit(fn, arg) for arg in args]))

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        raise NotImplementedError

    def store(self, array: Any) -> tuple[Callable[[Any], Any], Any] | None:
        """The array where every worker sees it: what to call with what, if the pool can do that."""
        return None

    def close(self) -> None:
        raise NotImplementedError


class Rightlane(Engine):
    def __init__(self, lane: Literal["process", "thread"]) -> None:
        from rightlane import Executor

        self.make = Executor
        self.lane: Literal["process", "thread"] = lane

    def open(self, workers: int) -> None:
        self.pool = self.make(workers, lane=self.lane)
        self.submit = self.pool.submit

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        return self.pool.map(fn, items)

    def store(self, array: Any) -> tuple[Callable[[Any], Any], Any]:
        import rightlane as rl

        return tasks.ends_of_shared, rl.share(array)

    def close(self) -> None:
        self.pool.shutdown()


class ProcessPool(Engine):
    def __init__(self) -> None:
        import multiprocessing
        from concurrent.futures.process import ProcessPoolExecutor

        self.make = ProcessPoolExecutor
        self.context = multiprocessing.get_context("fork")

    def open(self, workers: int) -> None:
        self.pool = self.make(workers, mp_context=self.context)
        self.submit = self.pool.submit

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=_chunk_items(items, workers))

    def close(self) -> None:
        self.pool.shutdown()


class ThreadPool(Engine):
    def __init__(self) -> None:
        from concurrent.futures.thread import ThreadPoolExecutor

        self.make = ThreadPoolExecutor

    def open(self, workers: int) -> None:
        self.pool = self.make(workers)
        self.submit = self.pool.submit

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        return self.pool.map(fn, items)

    def close(self) -> None:
        self.pool.shutdown()


class MultiprocessingPool(Engine):
    take = staticmethod(operator.methodcaller("get"))

    def __init__(self) -> None:
        import multiprocessing.pool

        self.context = multiprocessing.get_context("fork")

    def open(self, workers: int) -> None:
        self.pool = self.context.Pool(workers)
        apply_async = self.pool.apply_async
        self.submit = lambda fn, *args: apply_async(fn, args)

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        return self.pool.map(fn, items)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Loky(Engine):
    def __init__(self) -> None:
        from loky import ProcessPoolExecutor

        self.make = ProcessPoolExecutor

    def open(self, workers: int) -> None:
        self.pool = self.make(workers)
        self.submit = self.pool.submit

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        results: Iterable[Any] = self.pool.map(fn, items, chunksize=_chunk_items(items, workers))
        return results

    def close(self) -> None:
        self.pool.shutdown()


class Joblib(Engine):
    """Has no `submit`: it is given all at once. Its workers stay from one call to the next by themselves."""

    def __init__(self) -> None:
        import joblib

        self.make = joblib.Parallel
        self.delayed = joblib.delayed

    def open(self, workers: int) -> None:
        self.one_by_one = self.make(n_jobs=workers, batch_size=1, pre_dispatch="all")
        self.grouped = self.make(n_jobs=workers)

    def run_all(self, fn: Callable[[Any], Any], args: Sequence[Any]) -> list[Any]:
        call = self.delayed(fn)
        return list(self.one_by_one(call(arg) for arg in args))

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        call = self.delayed(fn)
        results: Iterable[Any] = self.grouped(call(item) for item in items)
        return results

    def close(self) -> None:
        pass


class Ray(Engine):
    """Processes around a store in shared memory. Arguments and results that are large go through the store;
    arrays come out of it read-only."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import tempfile

        import ray

        self.directory = tempfile.TemporaryDirectory(prefix="ray-")
        self.ray = ray
        self.take = ray.get
        self.remote: dict[Callable[..., Any], Any] = {}

    def open(self, workers: int) -> None:
        self.ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self.directory.name,
        )

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        if fn not in self.remote:
            self.remote[fn] = self.ray.remote(fn)
        return self.remote[fn].remote(*args)

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        return self.run_all(fn, items)

    def store(self, array: Any) -> tuple[Callable[[Any], Any], Any]:
        return tasks.ends, self.ray.put(array)

    def close(self) -> None:
        self.ray.shutdown()
        self.directory.cleanup()


class NoPool(Engine):
    """What Python does without any pool: a loop, or a bare process for each share of the tasks."""

    def open(self, workers: int) -> None:
        self.workers = workers

    def run_all(self, fn: Callable[[Any], Any], args: Sequence[Any]) -> list[Any]:
        """Every worker's share in a loop of its own process; nothing comes back."""
        children = []
        for number in range(self.workers):
            child = os.fork()
            if child == 0:
                for arg in args[number :: self.workers]:
                    fn(arg)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        return []

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterable[Any]:
        return map(fn, items)

    def close(self) -> None:
        pass


def _chunk_items(items: Sequence[Any], workers: int) -> int:
    """What `multiprocessing.Pool` takes; the default of one item would last for minutes."""
    return -(-len(items) // (4 * workers))


ENGINES: dict[str, Callable[[], Engine]] = {
    "rightlane process": lambda: Rightlane("process"),
    "rightlane thread": lambda: Rightlane("thread"),
    "ProcessPoolExecutor": ProcessPool,
    "ThreadPoolExecutor": ThreadPool,
    "multiprocessing.Pool": MultiprocessingPool,
    "loky": Loky,
    "joblib": Joblib,
    "ray": Ray,
    "no pool": NoPool,
}


# --- the first result ------------------------------------------------------------------------------


def plain(value: int) -> int:
    """A function of `__main__`, for the cold start."""
    return value


def cold(engine: Engine, workers: int) -> Values:
    start = time.perf_counter()
    engine.open(workers)
    assert engine.run_all(plain, [1]) == [1]
    return {"first_s": time.perf_counter() - start}


def settled(engine: Engine, workers: int, rest_s: float) -> Values:
    engine.open(workers)
    time.sleep(rest_s)
    start = time.perf_counter()
    assert engine.run_all(plain, [1]) == [1]
    return {"first_s": time.perf_counter() - start}


# --- one at a time ---------------------------------------------------------------------------------


def latency(engine: Engine, workers: int, count: int, rest_s: float = 0.0, cores: int = 0) -> Values:
    """Back to back, or with a rest before each; on so many cores, or on all that there are."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    _warm(engine, workers)
    submit, take = engine.submit, engine.take
    for value in range(100):
        take(submit(tasks.noop, value))
    times_s = []
    for value in range(count):
        if rest_s:
            time.sleep(rest_s)
        start = time.perf_counter()
        take(submit(tasks.noop, value))
        times_s.append(time.perf_counter() - start)
    return {"p50_s": statistics.median(times_s), "p99_s": statistics.quantiles(times_s, n=100)[98]}


# --- many at once ----------------------------------------------------------------------------------


def submits(engine: Engine, workers: int, count: int) -> Values:
    _warm(engine, workers)
    return {"per_task_s": _per_task_s(engine, count)}


def depths(engine: Engine, workers: int, few: int, times: int, many: int) -> Values:
    """The cost of a task among few pending ones, by the median of several times, and among many."""
    _warm(engine, workers)
    few_s = statistics.median(_per_task_s(engine, few) for _ in range(times))
    many_s = _per_task_s(engine, many)
    return {"few_s": few_s, "many_s": many_s, "growth_ratio": many_s / few_s}


def widths(engine: Engine, workers: int, more_workers: int, count: int) -> Values:
    """The cost of a task with few workers, and with many more than there are cores."""
    _warm(engine, workers)
    few_s = _per_task_s(engine, count)
    engine.close()
    _warm(engine, more_workers)
    many_s = _per_task_s(engine, count)
    return {"few_s": few_s, "many_s": many_s, "growth_ratio": many_s / few_s}


def _per_task_s(engine: Engine, count: int) -> float:
    start = time.perf_counter()
    results = engine.run_all(tasks.noop, range(count))
    per_task_s = (time.perf_counter() - start) / count
    assert results == list(range(count))
    return per_task_s


def map_range(engine: Engine, workers: int, count: int) -> Values:
    return _per_item(engine, workers, range(count))


def map_tuples(engine: Engine, workers: int, count: int) -> Values:
    return _per_item(engine, workers, [(number, str(number)) for number in range(count)])


def _per_item(engine: Engine, workers: int, items: Sequence[Any]) -> Values:
    _warm(engine, workers)
    start = time.perf_counter()
    results = list(engine.map(tasks.noop, items, workers))
    per_item_s = (time.perf_counter() - start) / len(items)
    assert results == list(items)
    return {"per_item_s": per_item_s}


# --- what a pool costs beside the work ---------------------------------------------------------------


def share(engine: Engine, workers: int, count: int, steps: int, task_s: float) -> Values:
    wall_s = _burn_s(engine, workers, count, steps)
    return {"share_percent": 100 * count * task_s / (workers * wall_s)}


def burns(engine: Engine, workers: int, count: int, steps: int, task_s: float) -> Values:
    wall_s = _burn_s(engine, workers, count, steps)
    return {"total_s": wall_s, "ideal_ratio": wall_s * workers / (count * task_s)}


def _burn_s(engine: Engine, workers: int, count: int, steps: int) -> float:
    _warm(engine, workers)
    start = time.perf_counter()
    engine.run_all(tasks.burn, [steps] * count)
    return time.perf_counter() - start


def parent_cpu(engine: Engine, workers: int, count: int, steps: int) -> Values:
    """All threads of this process, from the first wait to the last result."""
    _warm(engine, workers)
    futures = [engine.submit(tasks.burn, steps) for _ in range(count)]
    start, cpu_start = time.perf_counter(), time.process_time()
    for future in futures:
        engine.take(future)
    cpu_s, wall_s = time.process_time() - cpu_start, time.perf_counter() - start
    return {"core_percent": 100 * cpu_s / wall_s}


def naps(engine: Engine, workers: int, count: int, seconds: float) -> Values:
    _warm(engine, workers)
    start = time.perf_counter()
    engine.run_all(tasks.nap, [seconds] * count)
    return {"total_s": time.perf_counter() - start}


def pending_bytes(engine: Engine, workers: int, count: int, argument: str) -> Values:
    """How much this process grows by each task that waits behind tasks that do not end."""
    _warm(engine, workers)
    blocking = [engine.submit(tasks.nap, 3600.0) for _ in range(workers)]
    time.sleep(0.1)
    # The slots of the list are the caller's.
    pending: list[Any] = [None] * count
    submit = engine.submit
    before = _resident_bytes()
    if argument == "int":
        for number in range(count):
            pending[number] = submit(tasks.noop, number)
    else:
        for number in range(count):
            pending[number] = submit(tasks.noop, {"a": number})
    per_task_bytes = (_resident_bytes() - before) / count
    assert not any(future.done() for future in blocking if hasattr(future, "done"))
    return {"per_task_bytes": per_task_bytes}


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def killed(engine: Engine, workers: int, kills: int, busy: int) -> Values:
    """From the kill of the only worker, in the midst of a task or idle, to the result of a task that its
    replacement ran."""
    assert workers == 1, "with others alive it is not clear when a replacement is needed"
    _warm(engine, workers)
    times_s = []
    pid, _ = engine.take(engine.submit(tasks.who, 0.0))
    for _ in range(kills):
        if busy:
            engine.submit(tasks.nap, 3600.0)
        time.sleep(0.05)
        start = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        new_pid, _ = engine.take(engine.submit(tasks.who, 0.0))
        times_s.append(time.perf_counter() - start)
        assert new_pid != pid
        pid = new_pid
    return {"p50_s": statistics.median(times_s), "max_s": max(times_s)}


def drop_ins(engine: Engine, workers: int, count: int, turns: int) -> Values:
    """The same work through the executor and through the drop-ins, in turns, as a ratio of medians."""
    import rightlane as rl

    _warm(engine, workers)
    executor: Any = engine.pool  # type: ignore[attr-defined]
    numbers = range(count)
    noop = tasks.noop
    with rl.futures.ProcessPoolExecutor(workers) as futures, rl.Pool(workers) as pool:
        submits: dict[str, Callable[[], list[int]]] = {
            "executor": lambda: [f.result() for f in [executor.submit(noop, n) for n in numbers]],
            "futures": lambda: [f.result() for f in [futures.submit(noop, n) for n in numbers]],
            "pool": lambda: [r.get() for r in [pool.apply_async(noop, (n,)) for n in numbers]],
        }
        maps: dict[str, Callable[[], list[int]]] = {
            "executor": lambda: list(executor.map(noop, numbers)),
            "futures": lambda: list(futures.map(noop, numbers)),
            "pool": lambda: pool.map(noop, numbers),
        }
        values: Values = {}
        for kind, ways in (("submits", submits), ("map", maps)):
            times_s: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(turns + 1):
                for name, way in ways.items():
                    start = time.perf_counter()
                    assert way() == list(numbers)
                    if turn > 0:
                        times_s[name].append(time.perf_counter() - start)
            medians_s = {name: statistics.median(some) for name, some in times_s.items()}
            for name in ("futures", "pool"):
                values[f"{name}_{kind}_ratio"] = medians_s[name] / medians_s["executor"]
    return values


# --- arrays ----------------------------------------------------------------------------------------


def array_in(engine: Engine, workers: int, mib: int, count: int) -> Values:
    """Each a new array: a peer that remembers what it has sent before would send nothing."""
    import numpy as np

    _warm(engine, workers, tasks.who_with_numpy)
    size = mib * 2**20 // 8
    times_s: dict[str, list[float]] = {"per_call_s": [], "summed_s": []}
    for number in range(2 * count + 2):
        array = np.full(size, float(number))
        key, fn = (("per_call_s", tasks.ends), ("summed_s", tasks.total))[number % 2]
        start = time.perf_counter()
        [answer] = engine.run_all(fn, [array])
        time_s = time.perf_counter() - start
        assert answer == ((number, number) if fn is tasks.ends else number * size)
        if number > 1:
            times_s[key].append(time_s)
    return {key: statistics.median(some) for key, some in times_s.items()}


def array_out(engine: Engine, workers: int, mib: int, count: int) -> Values:
    """From the call until its result is there and dropped, in workers that have sent such a one before."""
    _warm(engine, workers, tasks.who_with_numpy)
    size = mib * 2**20 // 8
    engine.run_all(tasks.prepared, [(size, 0.0)] * (2 * workers))
    times_s = []
    for number in range(count):
        start = time.perf_counter()
        [array] = engine.run_all(tasks.prepared, [(size, float(number))])
        assert array.size == size and array[0] == array[-1] == number
        del array
        times_s.append(time.perf_counter() - start)
    return {"per_call_s": statistics.median(times_s)}


def array_again(engine: Engine, workers: int, mib: int, count: int) -> Values:
    import numpy as np

    _warm(engine, workers, tasks.who_with_numpy)
    array = np.ones(mib * 2**20 // 8)
    items = [array] * count
    start = time.perf_counter()
    submitted = engine.run_all(tasks.ends, items)
    per_task_s = (time.perf_counter() - start) / count
    start = time.perf_counter()
    mapped = list(engine.map(tasks.ends, items, workers))
    per_item_s = (time.perf_counter() - start) / count
    assert submitted == mapped == [(1.0, 1.0)] * count
    per_shared_s, stored = per_task_s, engine.store(array)
    if stored is not None:
        fn, handle = stored
        start = time.perf_counter()
        shared = engine.run_all(fn, [handle] * count)
        per_shared_s = (time.perf_counter() - start) / count
        assert shared == submitted
    return {"per_task_s": per_task_s, "per_item_s": per_item_s, "per_shared_s": per_shared_s}


def array_written(engine: Engine, workers: int, mib: int, count: int) -> Values:
    """Each a new array; the two ways take turns."""
    import numpy as np

    _warm(engine, workers, tasks.who_with_numpy)
    times_s: dict[Callable[..., float], list[float]] = {tasks.overwrite: [], tasks.copy_and_overwrite: []}
    array = np.ones(mib * 2**20 // 8)
    for number in range(count):
        for fn, some in times_s.items():
            array[0] = array[-1] = number
            start = time.perf_counter()
            [answer] = engine.run_all(fn, [array])
            some.append(time.perf_counter() - start)
            assert answer == number + 1
    in_place_s, copied_s = map(statistics.median, times_s.values())
    return {"growth_ratio": in_place_s / copied_s, "per_call_s": in_place_s, "copied_s": copied_s}


def array_sizes(engine: Engine, workers: int, count: int) -> Values:
    """There and back, one at a time; sizes take turns."""
    import numpy as np

    _warm(engine, workers, tasks.who_with_numpy)
    submit, take = engine.submit, engine.take
    arrays = {f"kib_{kib}_s": np.ones(kib * 2**10 // 8) for kib in (4, 16, 64, 256)}
    times_s: dict[str, list[float]] = {key: [] for key in arrays}
    for number in range(count):
        for key, array in arrays.items():
            array[-1] = number
            start = time.perf_counter()
            back = take(submit(tasks.noop, array))
            times_s[key].append(time.perf_counter() - start)
            assert back.size == array.size and back[-1] == number
    return {key: statistics.median(some) for key, some in times_s.items()}


def array_first(engine: Engine, workers: int, mib: int) -> Values:
    import numpy as np

    _warm(engine, workers, tasks.who_with_numpy)
    array = np.ones(mib * 2**20 // 8)
    start = time.perf_counter()
    assert engine.run_all(tasks.ends, [array]) == [(1.0, 1.0)]
    return {"first_s": time.perf_counter() - start}


def _warm(engine: Engine, workers: int, who: Callable[[float], tuple[int, int]] = tasks.who) -> None:
    """Open, and have every worker started and at work: the cold start has cases of its own."""
    engine.open(workers)
    seen: set[tuple[int, int]] = set()
    nap_s = 0.01
    for _ in range(20):
        seen.update(engine.run_all(who, [nap_s] * (2 * workers)) or [(n, n) for n in range(workers)])
        if len(seen) >= workers:
            return
        nap_s = min(2 * nap_s, 0.2)
    raise TimeoutError(f"only {len(seen)} of {workers} workers have run anything")


CASES: dict[str, Callable[..., Values]] = {
    "cold": cold,
    "cold-30ms": settled,
    "latency": latency,
    "latency-one-core": latency,
    "latency-after-rest": latency,
    "submits": submits,
    "map": map_range,
    "map-tuples": map_tuples,
    "share-0.1ms": share,
    "share-1ms": share,
    "cpu-1ms": burns,
    "cpu": burns,
    "parent-cpu": parent_cpu,
    "sleep": naps,
    "pending-bytes-int": pending_bytes,
    "pending-bytes-dict": pending_bytes,
    "depth": depths,
    "width": widths,
    "drop-ins": drop_ins,
    "killed-idle": killed,
    "killed-busy": killed,
    "array-in": array_in,
    "array-out": array_out,
    "array-again": array_again,
    "array-sizes": array_sizes,
    "array-written": array_written,
    "array-first": array_first,
}

LEFT_BUSY = {"pending-bytes-int", "pending-bytes-dict", "killed-busy"}
"""Cases that end while tasks run that do not end: here the process goes, and its workers with it."""


def main(engine_name: str, case_name: str, parameters: str) -> None:
    engine = ENGINES[engine_name]()
    print(json.dumps(CASES[case_name](engine, **json.loads(parameters))), flush=True)
    if case_name in LEFT_BUSY:
        os._exit(0)
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
