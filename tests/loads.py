"""Functions of which it is known what they do, for whoever measures them.

`fresh` makes a new one of each, which travels by value, so that nothing is known of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def fresh(fn: F) -> F:
    """The same function with code of its own: another one, as far as anybody remembers."""
    plain = cast("FunctionType", fn)
    code = plain.__code__.replace(co_consts=(*plain.__code__.co_consts, next(_numbers)))
    return cast("F", FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__))


_numbers = itertools.count(1_000_000)


def python_loop() -> int:
    total = 0
    for i in range(60_000):
        total += i
    return total


def json_round_trip() -> int:
    return len(json.loads(json.dumps(list(range(15_000)))))


def hash_of_4_mib() -> str:
    return hashlib.sha256(bytes(4 << 20)).hexdigest()


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sleep() -> int:
    time.sleep(0.01)
    return os.getpid()


def fetch(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        return connection.recv(16)


def child_that_waits() -> int:
    return subprocess.run(["sleep", "0.03"], check=True).returncode


def child_that_burns() -> int:
    return subprocess.run(
        [sys.executable, "-S", "-c", "for i in range(1500000): pass"], check=True
    ).returncode


def lock() -> bool:
    held = threading.Lock()
    held.acquire()
    return held.acquire(timeout=0.01)


def burn_and_wait() -> int:
    until = time.thread_time() + 0.006
    while time.thread_time() < until:
        pass
    time.sleep(0.006)
    return os.getpid()


def matrix_product() -> float:
    import numpy

    ones = numpy.ones((400, 400))
    return float((ones @ ones)[0, 0])


def small_arrays() -> float:
    import numpy

    one = numpy.ones(100)
    for _ in range(3_000):
        one = one + 1
    return float(one[0])


def own_threads() -> None:
    both = [threading.Thread(target=_burn) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()


def _burn() -> None:
    for _ in range(150_000):
        pass


def length(data: bytes) -> int:
    return len(data)


def second(pair: tuple[int, int]) -> int:
    return pair[1]


def long_loop(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def who(_: object = None) -> int:
    """Whose process it is; takes long enough to be worth a thread."""
    time.sleep(0.004)
    return os.getpid()


def quick_who(_: object = None) -> int:
    return os.getpid()


def who_or_die(die: bool) -> int:
    if die:
        subprocess.run(["kill", "-9", str(os.getpid())], check=False)
    time.sleep(0.004)
    return os.getpid()


def who_or_burn(burn: bool) -> int:
    if burn:
        until = time.thread_time() + 0.03
        while time.thread_time() < until:
            pass
    else:
        time.sleep(0.01)
    return os.getpid()


# By reference, so that they say whose module they are of, in less time than anything else takes.
PROCESS = os.getpid()


def mark(_: object) -> int:
    return PROCESS


def mark_in_a_loop(_: object) -> int:
    return PROCESS


def mark_what_can_change(_: object) -> int:
    return PROCESS


def mark_unless_long(x: int) -> tuple[int, int]:
    if x >= 500:
        time.sleep(0.02)
    return PROCESS, x


seen: list[int] = []


def who_names_a_list(_: object = None) -> int:
    time.sleep(0.004)
    return os.getpid() if len(seen) >= 0 else 0


counter = 0


def who_sets_a_global(_: object = None) -> int:
    global counter
    counter += 1
    time.sleep(0.004)
    return os.getpid()


class Client:
    def __init__(self) -> None:
        self.calls = 0

    def who(self, _: object = None) -> int:
        time.sleep(0.004)
        return os.getpid()


def sampler_switches() -> int:
    """How often the thread that looks at tasks has gone to sleep so far, in this worker."""
    time.sleep(0.001)
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as status:
            text = status.read()
        if text.startswith("Name:\trightlane-sampl"):
            return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return -1
