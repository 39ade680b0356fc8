"""The template: the fresh, single-threaded interpreter from which workers are forked.

Started as `python -P -s -S -c ...`. It imports as little as it can, because its start is part of the first
result's time, and serves the engine until that goes away.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # unlike `signal`, it imports nothing
import posix
import sys

from rightlane import _native, _worker

_SITE_PATIENCE_S = 1.0


def main() -> None:
    """Serve the engine; does not return."""
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    code = 0
    try:
        seat = _native.serve_template(_fork, _run_site, _warm_up, _knows, _learn)
        if seat is not None:
            code = _worker.main(seat)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    finally:
        # Not by returning: nothing that a template or a worker inherited is to be finalised twice.
        posix._exit(code)


def _fork() -> int:
    # So that the hooks of imported modules run (rule 19): this is `os.fork`, without importing `os`.
    return posix.fork()


def _warm_up() -> bool:
    """Import the next thing that most workers need, but not for their first task; False when nothing is left.

    All of it is the standard library's or ours, and starts no thread.
    """
    if _WARMERS:
        try:
            __import__(_WARMERS.pop(0))
        except BaseException:
            _WARMERS.clear()  # whoever needs it will be told
    return bool(_WARMERS)


_WARMERS = [
    "rightlane._guard",
    "os",
    "_pickle",
    "rightlane._byvalue",
    "rightlane._remote",
    "rightlane._digest",
]
_WARMERS += ["rightlane._preload"]


def _knows(lesson: bytes) -> bool:
    """Whether there is nothing to import in what a worker came to need."""
    from rightlane import _preload

    return _preload.knows(lesson)


def _learn(lesson: bytes) -> bool:
    """Import that; False if this process may not be forked afterwards (rule 19)."""
    from rightlane import _preload

    return _preload.learn(lesson)


def _run_site() -> bool:
    """Run `site`, for editable installs and the like; False if this process may not be forked afterwards."""
    import time

    begun = time.monotonic()
    try:
        import site

        site.main()
    except BaseException:
        return False
    threads = len(posix.listdir("/proc/self/task"))
    return threads == 1 and time.monotonic() - begun < _SITE_PATIENCE_S
