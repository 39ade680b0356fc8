"""`rightlane.submit` and `rightlane.map`: calls on an executor that everybody shares.

It is made at the first call, is nobody's to shut down, finishes what it has accepted at the interpreter's
exit as every executor does, and is empty in a forked child. Its lane is "auto".

**Idle workers.** Worker processes and threads with nothing to do for a minute end; the next call starts
others. A start takes a few milliseconds: who pauses for longer than a minute pays less than a thousandth of
his pause for it, while a program that made one call does not keep its workers' memory. The template stays.

**The caller's world** (rule 20). Other executors give a worker the world of the moment at which it is forked.
Here somebody may have changed it since, in another part of the program, so each call looks again: directory,
environment, umask, warnings filters, `sys.path`, recursion limit. That takes about two microseconds. Where
something differs, the engine is told (`turn_world`): from then on calls run only on workers that are forked
in the new world, those accepted before on workers of theirs. Changes that Python is not told of (`putenv` of
a C library) are not seen.

**Calls from tasks.** A task in a thread of the shared executor that waits for a call of its own would wait
for the slot that it holds; its calls go to another executor, one for each level. In a worker process there is
a shared executor of that process. Executors inside of tasks have one worker each.
"""

from __future__ import annotations

import os
import posix
import sys
import threading
import warnings

from rightlane import _executor, _native, _world

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, ParamSpec, TypeVar

    from rightlane._future import Future

    P = ParamSpec("P")
    T = TypeVar("T")
    _Seen = tuple[str, dict[bytes, bytes], list[str], list[Any], int, int]

__all__ = ["map", "submit"]

_IDLE_S = 60.0


class _Shared:
    """One of the shared executors, and the world that its calls belong to now."""

    def __init__(self, level: int) -> None:
        _executor._prepare_template()
        workers = _executor._default_workers("auto")
        name = f"rightlane-shared-{level}" if level else "rightlane-shared"
        self.engine = _native.Engine(
            workers, True, None, (), name, None, _IDLE_S, True, guarding="warn", capped=False
        )
        _executor._import_pickling()
        self.view = _executor.ExecutorView(self.engine, "auto")
        self._seen = self._present(_world._umask())
        self.engine.turn_world(_world.capture())

    def _present(self, umask: int) -> _Seen:
        """What is looked at of the present world; `umask` is the last one seen, -1 if it cannot be read."""
        return (
            _directory(),
            _world._environment(),
            list(sys.path),
            list(warnings.filters),
            sys.getrecursionlimit(),
            _native.umask(umask) if umask >= 0 else umask,
        )

    def _look(self) -> None:
        # In this order: what counts as seen is never newer than what the engine was told, and nobody takes a
        # change for known before the engine knows it.
        present = self._present(self._seen[-1])
        self.engine.turn_world(_world.capture())
        self._seen = present

    def _is_home(self) -> bool:
        """Whether the world is still the one that was seen last."""
        directory, environment, path, filters, recursion, umask = self._seen
        now = getattr(os.environ, "_data", None)
        if type(now) is not dict:
            now = _world._environment()
        return (
            directory == _directory()
            and environment == now
            and path == sys.path
            and filters == warnings.filters
            and recursion == sys.getrecursionlimit()
            and (umask < 0 or umask == _native.umask(umask))
        )

    def here(self) -> _executor.ExecutorView:
        """The executor, for a call from the present world."""
        if not self._is_home():
            with _looking:
                self._look()
        return self.view


def _directory() -> str:
    try:
        return posix.getcwd()
    except FileNotFoundError:
        return ""


_looking = threading.RLock()  # a signal handler may make calls, too
_levels: dict[int, _Shared] = {}


def _after_fork_in_child() -> None:
    global _looking
    _looking = threading.RLock()  # some other thread, which is not here, may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)


def _here() -> _executor.ExecutorView:
    _, level = _native.nesting()
    shared = _levels.get(level)
    if shared is None or shared.engine.broken:
        shared = _make(level, shared)
    return shared.here()


def _make(level: int, broken: _Shared | None) -> _Shared:
    with _looking:
        present = _levels.get(level)
        if present is not None and present is not broken:
            return present
        made = _levels[level] = _Shared(level)
    if broken is not None:
        broken.engine.close(False, False)
    return made


def submit(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Run `fn(*args, **kwargs)` on the shared executor and return its future, at once.

    The shared executor is made at the first call and stays warm: it takes lane "auto", as many workers as the
    CPU budget allows, and is never shut down by anybody. What was accepted is finished when the interpreter
    exits. Workers that have been idle for 60 s end and are started again when they are needed. Each call sees
    the caller's present directory, environment, umask, warnings filters, `sys.path` and recursion limit;
    tasks submitted before a change keep the old ones.

    Parameters
    ----------
    fn : callable
        What to run. Not a coroutine function.
    *args, **kwargs
        Its arguments.

    Raises
    ------
    TypeError
        `fn` is not callable, or is a coroutine function.
    RuntimeError
        The interpreter is exiting, or worker processes cannot be started here.

    What cannot be pickled runs in a thread. May be called from any thread, and from tasks: inside a worker
    process they share an executor of one worker there. In a forked child the shared executor is empty.

    >>> import rightlane as rl
    >>> rl.submit(pow, 2, 10).result(timeout=60)
    1024
    """
    return _here().submit(fn, *args, **kwargs)


def map(
    fn: Callable[..., T],
    *iterables: Iterable[Any],
    timeout: float | None = None,
    chunksize: int | None = None,
    buffersize: int | None = None,
) -> Iterator[T]:
    """Run `fn` on each item, and yield the results in order. The work starts at the call.

    The executor is the shared one of `rightlane.submit`, the rest is as in `Executor.map`.

    Parameters
    ----------
    fn : callable
        Called with one item of each iterable.
    *iterables : iterable
        Read in the calling thread, in parallel, until the shortest ends.
    timeout : float, optional
        Seconds from this call after which waiting for a result raises TimeoutError. Default: none.
    chunksize : int, optional
        Items per batch, at least 1. Default: measured.
    buffersize : int, optional
        At most so many items are read and not yet yielded, at least 1. Default: no such bound.

    Raises
    ------
    TypeError, ValueError
        An argument makes no sense. Whatever reading an iterable raises at the call is raised here, later on
        in its place among the results.
    RuntimeError
        The interpreter is exiting, or worker processes cannot be started here.

    >>> import rightlane as rl
    >>> list(rl.map(abs, [-1, -2, 3]))
    [1, 2, 3]
    """
    return _here().map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)
