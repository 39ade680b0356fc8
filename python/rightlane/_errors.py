"""The errors a user meets: one tree under `RightlaneError`, each also the standard type that existing code
catches.

Importing this imports `concurrent.futures`; the package therefore loads it only when a name of it is asked
for, and a worker never does on its normal path. Cancellation has no class here: it is the standard
`CancelledError`.

Every class survives `pickle` and `copy`: errors are themselves sent between processes, and logged by tools
that copy them.
"""

from __future__ import annotations

import pickle
import queue
import signal as _signal
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "BrokenExecutor",
    "DeserializationError",
    "MemoryWarning",
    "QueueFull",
    "RemoteTraceback",
    "RightlaneError",
    "SerializationError",
    "SharedStateError",
    "SharedStateWarning",
    "WorkerLost",
]


class RightlaneError(Exception):
    """Base of every error that Rightlane itself raises. Errors of user functions pass as they are."""


class BrokenExecutor(RightlaneError, BrokenProcessPool, BrokenThreadPool):
    """The executor can run nothing any more; every pending future gets this, and so does a later `submit`.

    Raised when an initializer fails, when workers fail to start three times in a row without running a task,
    and for what was pending at `shutdown(kill=True)`. The cause, where there is one, is `__cause__`. Make a
    new executor.
    """


class QueueFull(RightlaneError, queue.Full):
    """The executor has as many pending tasks, or bytes of their arguments, as it may: the call was refused.

    Raised by `Executor.try_submit`, and by `submit` and `map` where they would have to wait and must not: in
    a callback on the completion thread, where an asyncio event loop runs, and in a task on a thread of the
    same executor. Try again when some tasks have ended.
    """


class WorkerLost(RightlaneError, BrokenProcessPool):
    """The worker died while it ran this task. The executor lives on and has replaced it; other tasks are
    unharmed.

    Parameters (each also an attribute)
    ----------
    pid : int
        The process that died.
    signal : int or None
        The signal that ended it, if one did.
    exit_code : int or None
        Its exit code, if it left by itself. Both are None when nobody was left to see how it ended.
    task : str
        What it was running.
    attempt : int
        Which attempt at the task this was, from 1.
    """

    def __init__(
        self, pid: int, signal: int | None, exit_code: int | None, task: str, attempt: int = 1
    ) -> None:
        super().__init__(pid, signal, exit_code, task, attempt)
        self.pid = pid
        self.signal = signal
        self.exit_code = exit_code
        self.task = task
        self.attempt = attempt

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                ending = f"was ended by {_signal.Signals(self.signal).name}"
            except ValueError:
                ending = f"was ended by signal {self.signal}"
        elif self.exit_code is not None:
            ending = f"left with exit code {self.exit_code}"
        else:
            ending = "is gone, exit status unknown"
        return f"worker {self.pid} {ending} while it ran {self.task} (attempt {self.attempt})"

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.pid, self.signal, self.exit_code, self.task, self.attempt)
        return type(self), arguments, self.__dict__


class SerializationError(RightlaneError, pickle.PicklingError):
    """A function, argument, result or exception cannot travel between processes. Only its task fails.

    Parameters
    ----------
    message : str
        What failed and what to do about it.
    path : str
        The part that cannot be sent, as in `args[0]['config'].lock`; also an attribute. Empty when it is
        unknown.
    """

    def __init__(self, message: str = "", path: str = "") -> None:
        super().__init__(message, path)
        self.path = path

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.path), self.__dict__


class DeserializationError(SerializationError, pickle.UnpicklingError, BrokenProcessPool):
    """A function, argument, result or exception was sent, and could not be unpickled where it arrived.

    Only its task fails. It is a `BrokenProcessPool` because a standard pool breaks of it. Parameters as of
    `SerializationError`.
    """


class SharedStateError(RightlaneError, RuntimeError):
    """The function changes state that its caller's process has and does not share with workers.

    What its task gets from an executor with `shared="error"`; see `SharedStateWarning`. The message says what
    is changed. The function may have run, in the worker; once it is known, it is not run any more.
    """


class SharedStateWarning(UserWarning):
    """A function in a worker process changes state that it does not share with the caller's process.

    That is a global, a variable of an enclosing function, a mutable default, a class attribute, its `self` or
    an argument. Each worker process changes its own copy, and the caller's stays what it was; in threads all
    see one. Where it does not matter, as with a cache, ignore it as any warning; `Executor(shared=...)` says
    what else may be done.

    Issued once for each function and executor, for the line of the function's definition, in the thread that
    takes a result, makes a call or shuts the executor down. Under a filter that makes errors of warnings it
    is raised there; the result is kept for the next time that it is asked for.
    """


class MemoryWarning(RuntimeWarning):
    """Memory is short: a large buffer travelled with its message, because shared memory has no room for it.

    Everything works as before, slower: such buffers are copied several times. Shared memory is taken only
    where the machine and every control group can give it and keep a margin of a sixteenth. Where tasks under
    way still have some, `submit` and `map` wait for it, at most a second for each buffer, unless they must
    not: in `try_submit`, in a callback, where an event loop runs, and in a task on a thread of the same
    executor.

    Issued once in each process, in the thread that next takes a result or makes a call, also for what a
    worker had no room for. To make room: keep fewer results, bound what is pending by `max_pending`, send
    less at a time, or give the process more memory.
    """


class RemoteTraceback(Exception):
    """The traceback of an exception raised in a worker, as text. It is the cause of that exception.

    Parameters
    ----------
    text : str
        The traceback as the worker would have printed it.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text

    @property
    def tb(self) -> str:
        """The text, by the name that it has in the standard library's remote tracebacks."""
        return self.text

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.text,), self.__dict__
