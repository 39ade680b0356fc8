"""What the benchmarks run. A module of its own, because that is where most users' functions live: workers
import it by name."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rightlane import Shared

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


def who_with_numpy(seconds: float) -> tuple[int, int]:
    """The same, by a worker that has NumPy from then on."""
    import numpy  # noqa: F401

    return who(seconds)


def ends(array: NDArray[np.float64]) -> tuple[float, float]:
    """As little as a task can do with an array and show that it has it."""
    return float(array[0]), float(array[-1])


def ends_of_shared(handle: Shared[NDArray[np.float64]]) -> tuple[float, float]:
    """The same, of a handle."""
    return ends(handle.get())


def overwrite(array: NDArray[np.float64]) -> float:
    array += 1
    return float(array[-1])


def copy_and_overwrite(array: NDArray[np.float64]) -> float:
    return overwrite(array.copy())


def total(array: NDArray[np.float64]) -> float:
    """All of it is read."""
    return float(array.sum())


_prepared: dict[int, Any] = {}


def prepared(size_and_value: tuple[int, float]) -> NDArray[np.float64]:
    """An array that the worker has already, with the value at its ends: making a new one would take longer
    than to send it."""
    import numpy as np

    size, value = size_and_value
    if size not in _prepared:
        _prepared[size] = np.ones(size)
    array: NDArray[np.float64] = _prepared[size]
    array[0] = array[-1] = value
    return array
