"""Drop-in replacements for `concurrent.futures`: the same names, on Rightlane's engine.

    from rightlane.futures import ProcessPoolExecutor, as_completed

`ProcessPoolExecutor` and `ThreadPoolExecutor` take the arguments of Python 3.14's, on every Python that
Rightlane supports; everything else here is the standard module's own object. docs/differences.md says where
they behave differently, with an example each.
"""

from __future__ import annotations

from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    TimeoutError,
    as_completed,
    wait,
)

from rightlane.futures import process, thread
from rightlane.futures.process import BrokenProcessPool, ProcessPoolExecutor
from rightlane.futures.thread import BrokenThreadPool, ThreadPoolExecutor

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "BrokenProcessPool",
    "BrokenThreadPool",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "process",
    "thread",
    "wait",
]
