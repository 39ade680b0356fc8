"""The executors of `rightlane.futures`: the standard library's arguments, defaults and errors on our engine.

Both derive from the standard class that they replace, though they use nothing of it: asyncio accepts as a
loop's default executor only an instance of the standard ThreadPoolExecutor, and libraries ask
`isinstance(pool, ProcessPoolExecutor)` to learn whether tasks are pickled. The answers must not change with
the import.
"""

from __future__ import annotations

import concurrent.futures
import os
from itertools import count

from rightlane import _executor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.context import BaseContext
    from typing import Any, Literal, Self, TypeVar

    from rightlane._process import Backlog, Supervision, WorkerProcess

    T = TypeVar("T")

__all__ = ["ProcessPoolExecutor", "ThreadPoolExecutor"]


class _Pool(_executor.Executor):
    """What the two have in common: arguments and errors as in the standard library."""

    _initializer: Callable[..., object] | None
    _initargs: tuple[Any, ...]
    _ended: bool
    _standard = True
    _guards = False  # existing code knows that processes have copies, and expects no warnings

    def __init__(
        self,
        max_workers: int,
        lane: Literal["process", "thread"],
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        **options: Any,
    ) -> None:
        if not isinstance(max_workers, bool) and isinstance(max_workers, int | float) and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        super().__init__(max_workers, lane=lane, initializer=initializer, initargs=initargs, **options)
        self._initializer = initializer
        self._initargs = initargs
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As `concurrent.futures.Executor.map`: run `fn` on each item, and yield the results in order.

        The inputs are read to their end at the call, in the calling thread, and the work starts; with
        `buffersize` only so many items are, and one more for each result that is yielded.

        Parameters
        ----------
        fn : callable
            Called with one item of each iterable.
        *iterables : iterable
            Read in parallel, until the shortest ends.
        timeout : float, optional
            Seconds from this call after which waiting for a result raises TimeoutError. Default: none.
        chunksize : int
            Items that travel together to a worker process, at least 1. The default of 1, and None, leave it
            to the engine, which measures. An item that raises does not cost the others of its chunk their
            results. Means nothing to threads.
        buffersize : int, optional
            At most so many items are read and not yet yielded, at least 1. Default: no bound.

        Raises
        ------
        TypeError, ValueError
            An argument makes no sense.
        RuntimeError
            The executor was shut down.

        >>> from rightlane.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor() as executor:
        ...     list(executor.map(pow, [1, 2, 3], [2, 2, 2]))
        [1, 4, 9]
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        if self._lane == "thread":
            chunksize = None
        elif chunksize is not None and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        elif chunksize == 1:
            chunksize = None
        spread = len(iterables) != 1
        items: Iterable[Any] = zip(*iterables, strict=False) if spread else iterables[0]
        if type(items) is not range or buffersize is not None:
            items = iter(items)
        return self._engine.map(self._lane, fn, items, spread, True, buffersize, timeout, chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill: bool = False) -> None:
        """End the pool. What was accepted is finished first, unless told otherwise. May be called again.

        Parameters
        ----------
        wait : bool
            Return only when everything is done and no process or thread of the pool is left.
        cancel_futures : bool
            Cancel what nobody has begun.
        kill : bool
            Cancel what nobody has begun and kill the workers; see `rightlane.Executor.shutdown`. Not in the
            standard classes.

        >>> from rightlane.futures import ThreadPoolExecutor
        >>> executor = ThreadPoolExecutor(1)
        >>> executor.shutdown()
        """
        self._ended = True
        super().shutdown(wait, cancel_futures=cancel_futures, kill=kill)


class _ProcessPool(_Pool):
    """What code in the wild reads of the standard class's insides, where the answer is a plain fact."""

    @property
    def _shutdown_thread(self) -> bool:
        return self._ended

    @property
    def _broken(self) -> str | Literal[False]:
        return self._engine.breakage or False

    @property
    def _processes(self) -> dict[int, WorkerProcess] | None:
        """The living worker processes; None once the pool was shut down."""
        if self._ended:
            return None
        from rightlane._process import worker_processes

        return worker_processes(self._engine)

    @property
    def _executor_manager_thread(self) -> Supervision | None:
        if self._ended:
            return None
        from rightlane._process import Supervision

        return Supervision(self._engine)

    @property
    def _call_queue(self) -> Backlog | None:
        if self._ended:
            return None
        from rightlane._process import Backlog

        return Backlog(self._engine)


class _ThreadPool(_Pool):
    """The same of threads."""

    @property
    def _shutdown(self) -> bool:
        return self._ended

    @property
    def _broken(self) -> str | Literal[False]:
        return self._engine.breakage or False

    @property
    def _work_queue(self) -> Backlog:
        from rightlane._process import Backlog

        return Backlog(self._engine)

    @property
    def _threads(self) -> set[threading.Thread]:
        return set(self._engine.threads())


class ProcessPoolExecutor(_ProcessPool, concurrent.futures.ProcessPoolExecutor):  # type: ignore[misc, override]
    """`concurrent.futures.ProcessPoolExecutor` on Rightlane's engine, with the arguments of Python 3.14.

    Parameters
    ----------
    max_workers : int, optional
        At most so many worker processes. Default: as many as this process may use CPUs
        (`os.process_cpu_count()`).
    mp_context : multiprocessing context, optional
        Recorded, and asked for its start method where the standard class would refuse arguments. Worker
        processes are forked from a fresh interpreter whatever it says, as near to "forkserver" as to
        anything.
    initializer : callable, optional
        Called once in each worker process before its first task. If it raises, the executor is broken.
    initargs : tuple
        Its arguments.
    max_tasks_per_child : int, optional
        A worker process ends after so many tasks and is replaced. Default: never.

    Raises
    ------
    TypeError, ValueError
        An argument makes no sense; with the standard class's messages.
    SerializationError
        The initializer cannot be sent to worker processes.

    A worker that dies costs the task it was running, whose future gets `WorkerLost`, a `BrokenProcessPool`;
    the pool lives on. Functions of `__main__`, lambdas and closures can be submitted, and no `__main__` guard
    is needed. May be used from any thread.

    >>> from rightlane.futures import ProcessPoolExecutor
    >>> with ProcessPoolExecutor(max_workers=2) as executor:
    ...     executor.submit(pow, 323, 2).result()
    104329
    """

    _mp_context: BaseContext
    _max_tasks_per_child: int | None

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        import multiprocessing

        if mp_context is None:
            method = None if max_tasks_per_child is None else "spawn"
            mp_context = multiprocessing.get_context(method)
        if not hasattr(mp_context, "get_start_method"):
            kind = type(mp_context).__name__
            raise TypeError(
                f"mp_context must be what multiprocessing.get_context() returns, or None, not {kind}"
            )
        options: dict[str, Any] = {}
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if mp_context.get_start_method(allow_none=False) == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
                    "supply a different mp_context."
                )
            options["max_tasks_per_child"] = max_tasks_per_child
        workers = _cpus() if max_workers is None else max_workers
        super().__init__(workers, "process", initializer, initargs, **options)
        self._mp_context = mp_context
        self._max_tasks_per_child = max_tasks_per_child

    def terminate_workers(self) -> None:
        """End the pool and send SIGTERM to its worker processes: what they run fails with `WorkerLost`.

        What nobody has begun is cancelled. Does not wait. A task that catches SIGTERM goes on;
        `kill_workers` ends it too.

        >>> from rightlane.futures import ProcessPoolExecutor
        >>> executor = ProcessPoolExecutor(max_workers=2)
        >>> executor.terminate_workers()
        >>> executor.submit(abs, -1)
        Traceback (most recent call last):
            ...
        RuntimeError: cannot schedule new futures after shutdown; make a new Executor
        """
        import signal

        self.shutdown(wait=False, cancel_futures=True)
        self._engine.signal_workers(signal.SIGTERM)

    def kill_workers(self) -> None:
        """End the pool and kill its worker processes: what they run fails with `WorkerLost`.

        What nobody has begun is cancelled. Does not wait.

        >>> from rightlane.futures import ProcessPoolExecutor
        >>> executor = ProcessPoolExecutor(max_workers=2)
        >>> executor.kill_workers()
        """
        import signal

        self.shutdown(wait=False, cancel_futures=True)
        self._engine.signal_workers(signal.SIGKILL)


class ThreadPoolExecutor(_ThreadPool, concurrent.futures.ThreadPoolExecutor):  # type: ignore[misc, override]
    """`concurrent.futures.ThreadPoolExecutor` on Rightlane's engine, with the arguments of Python 3.14.

    Parameters
    ----------
    max_workers : int, optional
        At most so many threads. Default: `min(32, n + 4)`, where n is the number of CPUs that this process
        may use (`os.process_cpu_count()`).
    thread_name_prefix : str
        Names of the threads begin with it. Default: "ThreadPoolExecutor-" and a number.
    initializer : callable, optional
        Called once in each thread before its first task. If it raises, the executor is broken.
    initargs : tuple
        Its arguments.

    Raises
    ------
    TypeError, ValueError
        An argument makes no sense; with the standard class's messages.

    May be used from any thread, and as an event loop's default executor. It starts no process.

    >>> from rightlane.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(max_workers=1) as executor:
    ...     executor.submit(pow, 323, 2).result()
    104329
    """

    _thread_name_prefix: str

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        workers = min(32, _cpus() + 4) if max_workers is None else max_workers
        prefix = thread_name_prefix or f"ThreadPoolExecutor-{next(_numbers)}"
        super().__init__(workers, "thread", initializer, initargs, thread_name_prefix=prefix)
        self._thread_name_prefix = prefix


_numbers = count()


def _cpus() -> int:
    """How many CPUs this process may use, as `os.process_cpu_count` says from Python 3.13 on."""
    counted: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)
    return (len(os.sched_getaffinity(0)) if counted is None else counted()) or 1
