"""The Python half of a worker process: what its native loop calls.

The loop (`serve_worker`) claims items, calls functions and answers. Here is what needs Python: taking on the
caller's world, definitions, exceptions, flushing, and an orderly end.
"""

from __future__ import annotations

import sys

from rightlane import _definitions, _native, _world

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FLUSH_PATIENCE_S = 5.0


def main(seat: _native.WorkerSeat) -> int:
    """Work until told to retire; returns the exit code."""
    if (preload := sys.modules.get("rightlane._preload")) is not None:
        preload.enter_worker()
    hooks = _Hooks(seat.number, seat.take_door())
    in_good_order = _native.serve_worker(seat, hooks)
    if in_good_order:
        _retire()
    hooks.flush()
    return 0


_MOST_SUBSTITUTES = 16


class _Hooks:
    """What the native loop calls. Its answers are plain values."""

    def __init__(self, number: int, door: int | None) -> None:
        self.define = _definitions.define
        self.forget = _definitions.forget
        self._number = number
        self._door = door
        self._site_ran = False
        self._started_s = 0.0
        self._notice: bytes | None = None
        self._modules = 0  # how many there were when somebody looked last

    def boot(self, world: bytes) -> None:
        """Become a worker of this caller."""
        import time  # built in

        now_ns = time.time_ns()
        self._started_s = now_ns / 1e9
        if world:
            _definitions.start_worker(*_world.main_module(world), now_ns)
            _world.apply(world)
            _Watcher.begin((self._number, *_world.identity(world)), self._door)
        else:
            _definitions.start_worker()
        if hasattr(sys.stdout, "reconfigure"):
            # A line is out when it is printed, also if a later task of the same batch kills this process.
            sys.stdout.reconfigure(line_buffering=True)
        if "numpy.random" in sys.modules:
            # The template's `site` imported it: its legacy generator must not be everybody's.
            sys.modules["numpy.random"].seed()
        self._modules = len(sys.modules)

    def resolve(self, definition_id: int, may_refuse: bool) -> tuple[Any, bool] | None:
        """The function behind a definition, and whether it may be kept for later tasks.

        None if what this worker has imported is not what the caller's process has, and a new worker would
        import just that: then this one ends (rule 5).
        """
        asked = definition_id
        # What comes by value may bring in another module that is outdated; each comes but once.
        for _ in range(_MOST_SUBSTITUTES):
            try:
                function = self._resolve(definition_id)
                return function, _definitions.is_lasting(function)
            except _definitions.Outdated as error:
                from rightlane import _outdated

                if may_refuse and _outdated.is_renewable(error.marks, self._started_s):
                    self._notice = _outdated.notice(error.marks)
                    return None
                asked = _outdated.take_by_value(definition_id, asked, error.marks, _Watcher.door)
        function = self._resolve(definition_id)
        return function, _definitions.is_lasting(function)

    def _resolve(self, definition_id: int) -> Any:
        try:
            return _definitions.resolve(definition_id)
        except ImportError:
            if self._site_ran:
                raise
        # Something that `site` sets up may be missing, such as the finder of an editable install (rule 20).
        self._site_ran = True
        self._notice = b"site"
        import site

        site.main()
        return _definitions.resolve(definition_id)

    def take_notices(self) -> bytes | None:
        """What the engine should know, once."""
        notice = self._notice
        if notice is not None:
            self._notice = None
        return notice

    def news(self) -> bytes | None:
        """What was imported here since this was last asked, and would be better imported in the template."""
        known, self._modules = self._modules, len(sys.modules)
        if known == self._modules:
            return None
        from rightlane import _preload

        found = _preload.news(known)
        self._modules = len(sys.modules)
        return found

    def watch(self, function: Any, strict: bool) -> Any:
        """Who looks at what the next call of this function changes; None if enough calls were looked at."""
        from rightlane import _guard

        return _guard.watch(function, strict)

    def dumps(self, result: object) -> bytes:
        """A result that plain pickling refuses or would tie to `__main__`."""
        from rightlane import _byvalue

        return _byvalue.dumps_result(result)

    def pack(self, error: BaseException) -> bytes:
        """An exception for the wire."""
        from rightlane import _remote

        return _remote.pack(error)

    def initializer_raised(self, error: BaseException) -> bytes:
        """The exception for the wire. It is logged here, as by a standard pool's worker, and what handlers
        have put into queues of multiprocessing is on its way before this process is killed."""
        packed = self.pack(error)
        try:
            from concurrent.futures import _base

            _base.LOGGER.critical("Exception in initializer:", exc_info=error)
            if (util := sys.modules.get("multiprocessing.util")) is not None:
                import threading

                flushing = threading.Thread(target=util._run_finalizers, daemon=True)
                flushing.start()
                flushing.join(_FLUSH_PATIENCE_S)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        return packed

    def unreadable(self, error: BaseException, what: str) -> tuple[str, str]:
        """Message and path of something that cannot be pickled (`what` names it) or unpickled (empty)."""
        from rightlane import _byvalue

        outdated: Any = sys.modules.get("rightlane._outdated")
        if outdated is not None and isinstance(error, outdated.Changed):
            return str(error)[:4000], "fn"
        reason = f"{type(error).__qualname__}: {error}"[:2000]
        if isinstance(error, _byvalue.Unsendable):
            text = f"{error.path} cannot be sent back from the worker: {error.reason}"
            return text[:4000], error.path[:1000]
        if what:
            return f"the {what} cannot be sent back from the worker: {reason}", what
        return f"the function or its arguments cannot be unpickled in the worker: {reason}", "args"

    def flush(self) -> None:
        """What a task printed is out before its result is (rule 14)."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                try:
                    stream.flush()
                except (OSError, ValueError):
                    pass  # a closed or broken stream is the task's affair, and it has been told


class _Watcher:
    """Sees to it that `multiprocessing` knows where it is, once it is loaded (rule 21).

    As a finder: whether a task will import it cannot be known, and importing it for all would take longer
    than most first tasks.
    """

    worker: tuple[int, int, str, str | None]
    door: int | None

    @classmethod
    def begin(cls, worker: tuple[int, int, str, str | None], door: int | None) -> None:
        cls.worker = worker
        cls.door = door
        for name in _WATCHED:
            if name in sys.modules:  # the template has learned it
                cls.settle(name)
        sys.meta_path.insert(0, cls)

    @classmethod
    def settle(cls, name: str) -> None:
        from rightlane import _door, _multiprocessing

        _door.enter_worker(cls.door)
        _multiprocessing.settle(name, cls.worker)

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _WATCHED:
            return None
        from _frozen_importlib_external import PathFinder

        spec: Any = PathFinder.find_spec(name, path, target)
        if spec is None or not hasattr(spec.loader, "__dict__"):
            return spec
        loader = spec.loader
        execute = loader.exec_module

        def execute_and_settle(module: Any) -> None:
            del loader.exec_module
            execute(module)
            cls.settle(name)

        loader.exec_module = execute_and_settle
        return spec


_WATCHED = frozenset(
    f"multiprocessing.{name}" for name in ("process", "resource_tracker", "util", "context", "spawn")
)


def _retire() -> None:
    """Join threads (bounded by the engine's patience) and run exit handlers, as a process ends (rule 22)."""
    threading = sys.modules.get("threading")
    if threading is not None:
        try:
            threading._shutdown()
        except BaseException:
            sys.excepthook(*sys.exc_info())
    import atexit

    atexit._run_exitfuncs()
