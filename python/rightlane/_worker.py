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


def main(seat: _native.WorkerSeat) -> int:
    """Work until told to retire; returns the exit code."""
    if (preload := sys.modules.get("rightlane._preload")) is not None:
        preload.enter_worker()
    hooks = _Hooks()
    in_good_order = _native.serve_worker(seat, hooks)
    if in_good_order:
        _retire()
    hooks.flush()
    return 0


class _Hooks:
    """What the native loop calls. Its answers are plain values."""

    def __init__(self) -> None:
        self.define = _definitions.define
        self.forget = _definitions.forget
        self._site_ran = False
        self._notice: bytes | None = None
        self._modules = 0  # how many there were when somebody looked last

    def boot(self, world: bytes) -> None:
        """Become a worker of this caller."""
        if world:
            _definitions.start_worker(*_world.main_module(world))
            _world.apply(world)
        else:
            _definitions.start_worker()
        if hasattr(sys.stdout, "reconfigure"):
            # A line is out when it is printed, also if a later task of the same batch kills this process.
            sys.stdout.reconfigure(line_buffering=True)
        if "numpy.random" in sys.modules:
            # The template's `site` imported it: its legacy generator must not be everybody's.
            sys.modules["numpy.random"].seed()
        self._modules = len(sys.modules)

    def resolve(self, definition_id: int) -> tuple[Any, bool]:
        """The function behind a definition, and whether it may be kept for later tasks."""
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

    def dumps(self, result: object) -> bytes:
        """A result that plain pickling refuses or would tie to `__main__`."""
        from rightlane import _byvalue

        return _byvalue.dumps_result(result)

    def pack(self, error: BaseException) -> bytes:
        """An exception for the wire."""
        from rightlane import _remote

        return _remote.pack(error)

    def unreadable(self, error: BaseException, what: str) -> tuple[str, str]:
        """Message and path of something that cannot be pickled (`what` names it) or unpickled (empty)."""
        from rightlane import _byvalue

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
