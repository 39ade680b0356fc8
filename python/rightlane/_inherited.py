"""What multiprocessing passes to its processes only while it starts them: locks, queues, pipes, shared ctypes
values.

A standard pool hands them on as arguments of the initializer, since it starts its workers itself. Ours are
there already, so such an object travels as any argument does. It is pickled as for a process that is being
spawned, and a descriptor is opened again by the worker, in /proc of the process that has it; the file's
identity is compared, since the number may be another file's by then. So a queue can be used as long as the
process that made it keeps it.

Locks of the "fork" context have no name that another process could find; only a fork of this process would
have them, and it is never forked (invariant 6).
"""

from __future__ import annotations

import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Reduced = tuple[Any, ...]

_MODULES = frozenset(
    {
        "multiprocessing.connection",
        "multiprocessing.heap",
        "multiprocessing.queues",
        "multiprocessing.sharedctypes",
        "multiprocessing.synchronize",
    }
)


def reduce(obj: Any) -> Reduced | None:
    """How to pickle an object of multiprocessing's that only a starting process gets; None for any other."""
    kind = type(obj)
    if kind.__module__ == "_multiprocessing":
        return _semaphore(obj) if kind.__name__ == "SemLock" else None
    shared = sys.modules.get("multiprocessing.sharedctypes")
    known = type(kind.__module__) is str and kind.__module__ in _MODULES
    if not known and shared is None:
        return None
    reducer = _reducers().get(kind)
    if not known and reducer is not shared.reduce_ctype:  # type: ignore[union-attr]
        return None
    from multiprocessing import context

    start: Any = _Start()
    outer = context.get_spawning_popen()
    context.set_spawning_popen(start)
    try:
        reduced: Reduced = obj.__reduce_ex__(5) if reducer is None else reducer(obj)
        return reduced
    except RuntimeError as error:
        if "fork" in str(error):
            raise RuntimeError(_FORK_ONLY.format(kind.__name__)) from error
        raise
    finally:
        context.set_spawning_popen(outer)


_FORK_ONLY = (
    'the lock in a {} of the "fork" context can only be had by forking this process, which is never done; '
    'make it with multiprocessing.get_context("spawn"), or use a Manager'
)


def _reducers() -> dict[type, Any]:
    from multiprocessing.reduction import ForkingPickler

    found: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    return found


def _semaphore(semaphore: Any) -> Reduced:
    if semaphore.name is None:
        raise RuntimeError(_FORK_ONLY.format("semaphore"))
    return _rebuild_semaphore, (semaphore.handle, semaphore.kind, semaphore.maxvalue, semaphore.name)


def _rebuild_semaphore(*state: Any) -> Any:
    from _multiprocessing import SemLock  # type: ignore[import-not-found]

    return SemLock._rebuild(*state)


class _Start:
    """Stands for the start of a process, which is what multiprocessing asks for descriptors."""

    def duplicate_for_child(self, fd: int) -> int:
        return fd

    def DupFd(self, fd: int) -> Any:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            from multiprocessing import resource_sharer

            return resource_sharer.DupFd(fd)  # for one receiver, once
        return Descriptor(fd)


class Descriptor:
    """A pipe or file that another process has open."""

    def __init__(self, fd: int) -> None:
        import fcntl

        found = os.fstat(fd)
        self._mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        self._path = f"/proc/{os.getpid()}/fd/{fd}"
        self._identity = (found.st_dev, found.st_ino)

    def detach(self) -> int:
        """A descriptor of this process for the same file."""
        fd = os.open(self._path, self._mode | os.O_CLOEXEC)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != self._identity:
            os.close(fd)
            raise OSError(f"{self._path} is another file by now: the process that sent it has closed it")
        return fd
