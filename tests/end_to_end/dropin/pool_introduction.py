"""A pool as the introduction of the documentation of `multiprocessing` shows it."""

import multiprocessing
import os
import time
from multiprocessing import Pool


def f(x):
    return x * x


if __name__ == "__main__":
    # four workers
    with Pool(processes=4) as pool:
        # the squares, in order
        print(pool.map(f, range(10)))

        # the same numbers in any order; shown sorted
        print(sorted(pool.imap_unordered(f, range(10))))

        # f(20), asynchronously, in one process
        res = pool.apply_async(f, (20,))
        print(res.get(timeout=60))

        # os.getpid(), in one process: not this one
        res = pool.apply_async(os.getpid, ())
        print(res.get(timeout=60) != os.getpid())

        # several calls, maybe in several processes
        multiple_results = [pool.apply_async(os.getpid, ()) for i in range(4)]
        print(1 <= len({res.get(timeout=60) for res in multiple_results}) <= 4)

        # a worker that sleeps for longer than the caller waits
        res = pool.apply_async(time.sleep, (60,))
        try:
            print(res.get(timeout=0.1))
        except multiprocessing.TimeoutError:
            print("We lacked patience and got a multiprocessing.TimeoutError")

        print("For the moment, the pool remains available for more work")

    # leaving the block has stopped the pool
    print("Now the pool is closed and no longer available")
