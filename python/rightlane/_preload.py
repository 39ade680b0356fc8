"""Learning what to import in the template (rule 19).

Worker: `news` names what a function's first use imported. The engine passes it on to templates as lessons.

Template: `learn` imports what a lesson names, first in a child made to see what comes of it, then for good;
and puts it aside. A worker that is forked later starts without these modules in `sys.modules`, as if nothing
had been learned; the first import of one of them brings all of them in, which takes microseconds. So whoever
imports none of them does not pay for the threads of a BLAS library, and `sys.modules` and `sys.path` decide
what a worker gets, as they would otherwise: what the caller's path has covered meanwhile, by another module
of the same name, is dropped.

Only the standard library and what lies in a `site-packages` or `dist-packages` directory is learned: a
user's own modules change, and their import may depend on directory, arguments and environment. The
template's environment is the one it was started with. An import that changes environment, directory or
`sys.path` is not for the template, because a worker that takes on the caller's world would undo that.
"""

from __future__ import annotations

import marshal
import posix
import sys
import time

from rightlane import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["enter_worker", "has_brought", "knows", "learn", "news"]

_PATIENCE_S = 1.0
_SETTLING_S = 0.02

# A name's parts and a lesson's names: enough for `scipy.optimize` and `xml.etree.ElementTree`, while a
# package's own modules come with it.
_MOST_PARTS, _MOST_NAMES = 3, 100

_NOT_LEARNED = {"__main__", "rightlane", "site", "sitecustomize", "usercustomize"}

# The only BLAS library that starts threads when it is loaded.
_BLAS_THREADS = b"OPENBLAS_NUM_THREADS"

_STANDARD = str(sys.modules["encodings"].__file__).rsplit("/", 2)[0] + "/"


def _in_library(path: str) -> bool:
    path += "/"
    return path.startswith(_STANDARD) or "/site-packages/" in path or "/dist-packages/" in path


def _places(spec: Any) -> list[str]:
    """Where a module was found; nothing for what is built in, or was not found at all."""
    if spec is None or spec.origin in ("built-in", "frozen"):
        return []
    return [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())


# Worker -------------------------------------------------------------------------------------------


def news(known: int) -> bytes | None:
    """What was imported after the first `known` modules, for the engine; None when it is nothing to learn.

    One lesson for each top-level module: its name, then those of its submodules, in the order of import.
    Installed packages come first: they bring most of what they need of the standard library.
    """
    lessons: dict[str, list[str]] = {}
    for name in list(sys.modules)[known:]:
        parts = name.split(".")
        if len(parts) > _MOST_PARTS or name in _brought or not all(map(str.isidentifier, parts)):
            continue
        top = parts[0]
        if top[0] == "_" or top in _NOT_LEARNED:
            continue
        if top not in lessons:
            places = _places(getattr(sys.modules.get(top), "__spec__", None))
            lessons[top] = [top] if places and all(map(_in_library, places)) else []
        if lessons[top] and name != top and len(lessons[top]) < _MOST_NAMES:
            lessons[top].append(name)
    learned = [names for names in lessons.values() if names]
    if not learned:
        return None
    learned.sort(key=lambda names: names[0] in sys.stdlib_module_names)
    common = marshal.dumps((list(sys.path), sys.prefix, sys.exec_prefix))
    return b"learn\0" + "\n".join(map(" ".join, learned)).encode() + b"\0" + common


# Template -----------------------------------------------------------------------------------------

_aside: dict[str, Any] = {}  # imported, and not in sys.modules
_brought: set[str] = set()  # what came from there
_paths: list[list[str]] = []  # each sys.path that is known to cover nothing of it
_is_worker = False


def _read(lesson: bytes) -> tuple[list[str], tuple[list[str], str, str]]:
    names, _, common = lesson.partition(b"\0")
    return names.decode().split(" "), marshal.loads(common)


def knows(lesson: bytes) -> bool:
    """Whether all of it is here."""
    return all(name in sys.modules or name in _aside for name in _read(lesson)[0])


def learn(lesson: bytes) -> bool:
    """Import it; False if this process, or what it would give to workers, is not what it should be then."""
    names, (path, prefix, exec_prefix) = _read(lesson)
    sys.prefix, sys.exec_prefix = prefix, exec_prefix
    sys.modules.update(_aside)
    known = len(sys.modules)
    own_path, own_threads = list(sys.path), _variables().get(_BLAS_THREADS)
    streams = _silence()
    try:
        sys.path[:] = [entry for entry in path if _in_library(entry)]
        _set_variable(_BLAS_THREADS, b"1")
        before = _surroundings()
        begun = time.monotonic()
        _import(names)
        fit = time.monotonic() - begun < _PATIENCE_S and before == _surroundings()
        fit = fit and _is_single_threaded()
        new = list(sys.modules)[known:]
        fit = fit and not _covered(new, path)
    except BaseException:
        return False
    finally:
        sys.path[:] = own_path
        _set_variable(_BLAS_THREADS, own_threads)
        _restore(streams)
    _paths[:] = [] if _covered(list(_aside), path) else [path]
    _put_aside(new)
    return fit


def _import(names: list[str]) -> None:
    for name in names:
        try:
            if name not in sys.modules:
                __import__(name)
        except ImportError:
            # What a module put into `sys.modules` under a name of its own choice can't be imported by it.
            if name == names[0]:
                raise


def _surroundings() -> tuple[Any, ...]:
    here = posix.stat(".")
    return dict(_variables()), (here.st_dev, here.st_ino), list(sys.path)


def _variables() -> Any:
    # The dictionary behind `os.environ`.
    return posix.environ


def _set_variable(name: bytes, value: bytes | None) -> None:
    variables = _variables()
    if value is None:
        posix.unsetenv(name)
        variables.pop(name, None)
    else:
        posix.putenv(name, value)
        variables[name] = value


def _is_single_threaded() -> bool:
    end = time.monotonic() + _SETTLING_S
    while len(posix.listdir("/proc/self/task")) > 1:
        # One that has been joined may take a moment to disappear.
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def _silence() -> list[int]:
    """What an import prints is not for the caller's terminal; returns the streams for `_restore`."""
    saved = [posix.dup(1), posix.dup(2)]
    null = posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC)
    posix.dup2(null, 1)
    posix.dup2(null, 2)
    posix.close(null)
    return saved


def _restore(streams: list[int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass
    for number, saved in enumerate(streams, 1):
        posix.dup2(saved, number)
        posix.close(saved)


def _covered(names: list[str], path: list[str]) -> list[str]:
    """Those of these top-level modules that an import with this path would take from elsewhere."""
    from _frozen_importlib_external import PathFinder

    covered = []
    for name in names:
        places = _places(getattr(sys.modules.get(name) or _aside.get(name), "__spec__", None))
        if "." not in name and places and _places(PathFinder.find_spec(name, path)) != places:
            covered.append(name)
    return covered


def _put_aside(new: list[str]) -> None:
    """The standard library stays, and so does what has no home: extension modules share it by its name."""
    for name in [*_aside, *new]:
        module = sys.modules.get(name)
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top == "rightlane" or getattr(module, "__spec__", None) is None:
            continue
        _aside[name] = sys.modules.pop(name)
    if _aside and _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


# Worker of a template that has learned ------------------------------------------------------------


def enter_worker() -> None:
    """From here on, what was put aside is brought back as a worker needs it."""
    global _is_worker
    _is_worker = True
    if _brought:
        # By the template's `site`, after it had learned.
        _freshen()


def has_brought(name: str) -> bool:
    """Whether this module was imported by the template."""
    return name in _brought


class _Finder:
    """Finds what was put aside."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name in _aside and _is_worker and sys.path not in _paths:
            _drop_covered()
        module = _aside.get(name)
        if module is None:
            return None
        real = module.__spec__
        spec = type(real)(name, _Bringer(module), origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec


class _Bringer:
    """The loader of one module that was put aside. The first that is loaded brings in all."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.spec = module.__spec__

    def create_module(self, spec: Any) -> Any:
        return self.module

    def exec_module(self, module: Any) -> None:
        module.__spec__ = self.spec
        _bring_in()


def _drop_covered() -> None:
    _paths.append(list(sys.path))
    tops = {name for name in _aside if "." not in name}
    covered = set(_covered(list(tops), sys.path))
    for name in [name for name in _aside if name.partition(".")[0] in covered]:
        del _aside[name]


def _bring_in() -> None:
    modules = dict(_aside)
    _aside.clear()
    _brought.update(modules)
    for name, module in modules.items():
        sys.modules.setdefault(name, module)
    if _is_worker:
        _freshen()


def _freshen() -> None:
    _native.allow_blas_threads()
    if "numpy.random" in _brought:
        # Its legacy generator must not be every worker's.
        sys.modules["numpy.random"].seed()
