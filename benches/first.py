"""The first result in an interpreter that has only just started, imports included.

`python first.py ENGINE`, as `bench.py` starts it; `engine.py` has the library before the clock starts.
Imports nothing but what is built into the interpreter, so that each library pays for all that it needs.
"""

import sys
import time

WORKERS = 2


def plain(value: int) -> int:
    return value


def rightlane_process(workers: int) -> float:
    start = time.perf_counter()
    from rightlane import Executor

    with Executor(workers) as pool:
        assert pool.submit(plain, 1).result() == 1
        return time.perf_counter() - start


def rightlane_thread(workers: int) -> float:
    start = time.perf_counter()
    from rightlane import Executor

    with Executor(workers, lane="thread") as pool:
        assert pool.submit(plain, 1).result() == 1
        return time.perf_counter() - start


def process_pool(workers: int) -> float:
    start = time.perf_counter()
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(plain, 1).result() == 1
        return time.perf_counter() - start


def thread_pool(workers: int) -> float:
    start = time.perf_counter()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        assert pool.submit(plain, 1).result() == 1
        return time.perf_counter() - start


def multiprocessing_pool(workers: int) -> float:
    start = time.perf_counter()
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(workers) as pool:
        assert pool.apply_async(plain, (1,)).get() == 1
        return time.perf_counter() - start


def loky(workers: int) -> float:
    start = time.perf_counter()
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        assert pool.submit(plain, 1).result() == 1
        return time.perf_counter() - start


def joblib(workers: int) -> float:
    start = time.perf_counter()
    from joblib import Parallel, delayed

    assert Parallel(n_jobs=workers)([delayed(plain)(1)]) == [1]
    return time.perf_counter() - start


ENGINES = {
    "rightlane process": rightlane_process,
    "rightlane thread": rightlane_thread,
    "ProcessPoolExecutor": process_pool,
    "ThreadPoolExecutor": thread_pool,
    "multiprocessing.Pool": multiprocessing_pool,
    "loky": loky,
    "joblib": joblib,
}


def main(engine: str) -> None:
    first_s = ENGINES[engine](WORKERS)
    print(f'{{"first_s": {first_s!r}}}', flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
