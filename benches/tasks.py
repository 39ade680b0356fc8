"""What the benchmarks run. A module of its own, because that is where most users' functions live: workers
import it by name."""

from __future__ import annotations

import os
import threading
import time
from typing import TypeVar

T = TypeVar("T")


def noop(value: T) -> T:
    return value


def burn(steps: int) -> int:
    """Pure Python that holds the interpreter lock; how long a step takes is measured by the caller."""
    total = 0
    for step in range(steps):
        total += step * step
    return total


def nap(seconds: float) -> None:
    time.sleep(seconds)


def who(seconds: float) -> tuple[int, int]:
    """Process and thread that ran this, after a nap that leaves time for the others to come along."""
    time.sleep(seconds)
    return os.getpid(), threading.get_ident()
