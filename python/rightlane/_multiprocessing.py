"""`multiprocessing` inside tasks: this worker as a process of the user's (rule 21).

`_worker` imports this when a task imports `multiprocessing`, which must not cost those that never do. It sets
up each of its modules as that is loaded:

- `process`: `current_process()` and `parent_process()` say what is so, and the authentication key is that of
  the user's process, asked for when somebody needs it. The worker is not daemonic: tasks may start processes.
- `resource_tracker`: the one of the user's process. A worker with a tracker of its own would have it unlink,
  at the worker's end, shared memory that others use.
- `util`: one directory for temporary files, which the user's process removes at its end, also if a worker
  that put its sockets there was killed.
- `context`: the start method that the user set.

What it does not do: start a tracker, or have one started before a task needs it. And the worker's own
`__main__` is the empty module that stands for the user's; so children that a task starts with `spawn` or
`forkserver` prepare the user's main module, as they would under the user's own process, and never the
template's.
"""

from __future__ import annotations

import os
import sys

from rightlane import _door

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

__all__ = ["settle"]


def settle(name: str, worker: tuple[int, int, str, str | None]) -> None:
    """Set up one module of `multiprocessing`, just loaded or inherited from the template.

    `worker`: which worker this is, pid and name of the user's process, and the start method set there.
    """
    _SETTLERS[name](sys.modules[name], *worker)


def _settle_process(process: Any, number: int, parent_pid: int, parent_name: str, _: str | None) -> None:
    base: Any = process.BaseProcess
    parent: Any = process._ParentProcess

    class RightlaneWorker(base):  # type: ignore[misc]
        # Not by the base's own: that would make a child of the current process, which is the template still.
        def __init__(self) -> None:
            self._identity = (number,)
            self._name = f"{type(self).__name__}-{number}"
            self._parent_pid = parent_pid
            self._parent_name = parent_name
            self._popen = None
            self._closed = False
            self._config = _Config(process.AuthenticationString)

    process._current_process = RightlaneWorker()
    # For the system that is the template. With the user's process this one ends too: its number is its own.
    process._parent_process = parent(parent_name, parent_pid, os.pidfd_open(parent_pid))
    process._children = set()
    process.ORIGINAL_DIR = _directory()


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


class _Config(dict):  # type: ignore[type-arg]
    """The configuration of this process, which its children copy. The key comes when it is wanted."""

    def __init__(self, key_type: type[bytes]) -> None:
        super().__init__(semprefix="/mp")
        self.key_type = key_type

    def __missing__(self, name: str) -> Any:
        if name != "authkey":
            raise KeyError(name)
        key = self[name] = self.key_type(_door.ask("authkey")[0])
        return key

    def copy(self) -> dict[str, Any]:
        return {"authkey": self["authkey"], **self}


def _settle_tracker(module: Any, *_: Any) -> None:
    base: Any = module.ResourceTracker

    class SharedTracker(base):  # type: ignore[misc]
        """The tracker of the user's process. `_fd` is where it listens, as in any child of that."""

        _fd: int | None
        _asking = False

        def ensure_running(self) -> None:
            with self._lock:
                if self._asking:
                    self._reentrant_call_error()
                self._asking = True
                try:
                    if self._fd is not None:
                        if self._check_alive():
                            return
                        os.close(self._fd)
                        self._fd = None
                    self._launch()
                finally:
                    self._asking = False

        def _launch(self) -> None:  # later versions call this by themselves
            self._fd = _door.ask("tracker")[1]

    tracker = module._resource_tracker
    tracker.__class__ = SharedTracker
    # Bound when the module was loaded, to what the class was then.
    module.ensure_running = tracker.ensure_running


def _settle_util(util: Any, *_: Any) -> None:
    def get_temp_dir() -> str:
        # Finalizers may run when nothing is left of `multiprocessing`.
        from multiprocessing import process

        config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
        if config.get("tempdir") is None:
            config["tempdir"] = os.fsdecode(_door.ask("tempdir")[0])
        directory: str = config["tempdir"]
        return directory

    get_temp_dir.__doc__ = util.get_temp_dir.__doc__
    util.get_temp_dir = get_temp_dir


def _settle_context(context: Any, _number: int, _pid: int, _name: str, method: str | None) -> None:
    if method is not None:
        context._default_context.set_start_method(method, force=True)


def _settle_spawn(spawn: ModuleType, *_: Any) -> None:
    # Loaded in the template, it has that one's idea of how to start a child.
    spawn.set_executable(sys.executable)


_SETTLERS: dict[str, Any] = {
    "multiprocessing.process": _settle_process,
    "multiprocessing.resource_tracker": _settle_tracker,
    "multiprocessing.util": _settle_util,
    "multiprocessing.context": _settle_context,
    "multiprocessing.spawn": _settle_spawn,
}
