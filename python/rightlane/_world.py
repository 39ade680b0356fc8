"""The caller's world, rebuilt in its workers: paths, arguments, flags, environment, directory, filters (rule
20).

Parent side: `template_command` says how the template is started, `capture` describes the caller as it is now,
and `needs_site` tells whether the caller finds modules by means that only `site` sets up. Worker side:
`apply` makes this process look like the description. Only what differs is touched: the second worker of a
template that is up to date pays for the comparison alone.

The template starts with `-P -s -S` to be up in a few milliseconds. Those are ours, not the caller's: a child
that a task starts (`subprocess`, the spawn method of `multiprocessing`) would inherit them through
`sys.flags`, and then lack its site-packages. `sys.flags` cannot be changed or made anew, but the name can be
bound to another object: `apply` binds it to a tuple with the caller's values under the same attributes.

What it does not do: it carries no locale, no open files, no signal handlers, no resource limits (those are
inherited by exec and fork), and no warnings filter that cannot be written by `marshal` or is about a category
which a worker cannot import.
"""

from __future__ import annotations

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["apply", "capture", "needs_site", "template_command"]

_OUR_FLAGS = ("-P", "-s", "-S")

# As in `subprocess._args_from_interpreter_flags`, without those of `_OUR_FLAGS` and without -i and -q, which
# are about a terminal that the template does not have.
_LETTERS = (("debug", "d"), ("dont_write_bytecode", "B"), ("verbose", "v"), ("bytes_warning", "b"))


def template_command(executable: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The start of the template's command line, without `-c`, and its environment.

    The flags are `-P -s -S` and the caller's own. `-I` is never added: it implies `-E`, with which the
    template would lose the hash seed and every other `PYTHON*` variable. Only for a caller who runs with `-E`
    or `-I`, and so ignores them too, is `-E` passed on. The environment is the caller's own, `PYTHON*`
    variables included.

    Raises RuntimeError for a frozen or embedded interpreter: there is nothing to start a worker with.
    """
    executable = executable or sys.executable
    frozen = getattr(sys, "frozen", False)
    if frozen or not executable or not _is_program(executable):
        kind = "a frozen application" if frozen else "an embedded interpreter"
        raise RuntimeError(
            f"worker processes need a Python interpreter to start, and {kind} has none (sys.executable is "
            f'{executable!r}); set sys.executable to one, or use lane="thread"'
        )
    flags = sys.flags
    argv = [executable, *_OUR_FLAGS]
    if flags.optimize:
        argv.append("-" + "O" * flags.optimize)
    if flags.ignore_environment:
        argv.append("-E")
    for name, letter in _LETTERS:
        if value := int(getattr(flags, name)):
            argv.append("-" + letter * value)
    argv.extend("-W" + option for option in _own_warnoptions())
    for name, value in sys._xoptions.items():
        argv += ["-X", name if value is True else f"{name}={value}"]
    return argv, dict(_environ())


def _is_program(path: str) -> bool:
    return posix.access(path, posix.X_OK)


def _environ() -> Any:
    import os

    return os.environ


def _environment() -> dict[bytes, bytes]:
    import os

    # The dictionary behind the mapping holds bytes already; going through the mapping takes five times as
    # long.
    data = getattr(os.environ, "_data", None)
    return dict(data if type(data) is dict else os.environb)


def _own_warnoptions() -> list[str]:
    """`sys.warnoptions` without what -b and -X dev add by themselves."""
    options = list(sys.warnoptions)
    derived = []
    if sys.flags.bytes_warning:
        derived.append("error::BytesWarning" if sys.flags.bytes_warning > 1 else "default::BytesWarning")
    if sys.flags.dev_mode:
        derived.append("default")
    for option in derived:
        if option in options:
            options.remove(option)
    return options


# Capture ------------------------------------------------------------------------------------------


def capture() -> bytes:
    """The caller's world as bytes for `apply`."""
    import os

    try:
        cwd = posix.getcwd()
    except FileNotFoundError:
        cwd = ""
    world = (
        _absolute(sys.path, cwd),
        [arg for arg in sys.argv if type(arg) is str],
        (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, sys.executable),
        sys.getrecursionlimit(),
        os.fsencode(cwd),
        _environment(),
        _umask(),
        _filters(),
        tuple(sys.flags),
        list(sys.warnoptions),
        [arg for arg in getattr(sys, "orig_argv", ()) if type(arg) is str],
        _main(cwd),
        sys.getswitchinterval(),
        sys.dont_write_bytecode,
        sys.get_int_max_str_digits(),
        sys.pycache_prefix,
        _identity(),
    )
    return marshal.dumps(world, 2)


def _absolute(path: list[Any], cwd: str) -> list[str]:
    """Path entries that mean the same from every directory, without those that imports ignore too."""
    return [p if p[:1] == "/" else f"{cwd}/{p}".rstrip("/") or "/" for p in path if type(p) is str]


def _umask() -> int:
    """Read, not set and set back: another thread might make a file in between."""
    try:
        fd = posix.open("/proc/self/status", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            text = posix.read(fd, 256)
        finally:
            posix.close(fd)
        start = text.index(b"Umask:") + 6
        return int(text[start : text.index(b"\n", start)], 8)
    except (OSError, ValueError):
        return -1


def _filters() -> list[tuple[Any, ...]]:
    """Warnings filters by value: categories by name, patterns by their source."""
    import _warnings

    filters = getattr(sys.modules.get("warnings", _warnings), "filters", ())
    described = []
    for entry in filters:
        try:
            action, message, category, module, line = entry
            described.append(
                (
                    action,
                    _pattern(message),
                    (category.__module__, category.__qualname__),
                    _pattern(module),
                    line,
                )
            )
        except Exception:  # not a filter that warnings would understand
            continue
    return described


def _pattern(pattern: Any) -> Any:
    return pattern if pattern is None or type(pattern) is str else (pattern.pattern, pattern.flags)


def _main(cwd: str) -> tuple[str | None, str | None, str | None]:
    """File, name given to `-m`, and package of the main module."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    file = file if type(file) is str else None
    if file is not None and cwd and not file.startswith("/"):
        file = f"{cwd}/{file}"
    name = getattr(getattr(main, "__spec__", None), "name", None)
    package = getattr(main, "__package__", None)
    return file, name if type(name) is str else None, package if type(package) is str else None


def _identity() -> tuple[int, str, str | None]:
    """This process as `multiprocessing` knows it: pid, name, and the start method set by the user, if any.

    Raises RuntimeError in a child of `multiprocessing` that is still importing the main module: a worker's
    children would come here again, and so on without end.
    """
    process: Any = sys.modules.get("multiprocessing.process")
    if process is None:
        return posix.getpid(), "MainProcess", None
    current = process.current_process()
    if getattr(current, "_inheriting", False):
        raise RuntimeError(
            "a child process that multiprocessing started by spawn or forkserver imports the main module, "
            "and that uses worker processes as it is imported; put the script's own work under "
            'if __name__ == "__main__":'
        )
    context: Any = sys.modules.get("multiprocessing.context")
    method = None if context is None else context._default_context.get_start_method(allow_none=True)
    return posix.getpid(), str(current.name), method


# Apply --------------------------------------------------------------------------------------------


def apply(blob: bytes) -> None:
    """Make this process look like the captured one, touching only what differs.

    The umask is set without a look at it, which would take longer.

    A directory that was deleted, or may not be entered, leaves this process in the root directory.
    """
    world = marshal.loads(blob)
    path, argv, prefixes, recursion, cwd, environment, umask, filters = world[:8]
    flags, warnoptions, orig_argv, _, interval, bytecode, digits, cache = world[8:16]
    if sys.path != path:
        sys.path[:] = path
        sys.path_importer_cache.pop("", None)
    sys.argv = argv
    sys.orig_argv = orig_argv
    names = ("prefix", "base_prefix", "exec_prefix", "base_exec_prefix", "executable")
    for name, value in zip(names, prefixes, strict=True):
        if value and getattr(sys, name) != value:
            setattr(sys, name, value)
    if sys.getrecursionlimit() != recursion:
        sys.setrecursionlimit(recursion)
    if sys.getswitchinterval() != interval:
        sys.setswitchinterval(interval)
    if sys.get_int_max_str_digits() != digits:
        sys.set_int_max_str_digits(digits)
    sys.dont_write_bytecode = bytecode
    sys.pycache_prefix = cache
    _apply_environment(environment)
    _apply_directory(cwd)
    if umask >= 0:
        posix.umask(umask)
    sys.warnoptions[:] = warnoptions
    if filters != _filters():
        _apply_filters(filters)
    _apply_flags(flags)


def main_module(blob: bytes) -> tuple[str | None, str | None, str | None]:
    """What `start_worker` wants of a captured world: file, name and package of the main module."""
    main: tuple[str | None, str | None, str | None] = marshal.loads(blob)[11]
    return main


def identity(blob: bytes) -> tuple[int, str, str | None]:
    """Of a captured world: pid and name of the caller's process, and the start method that it has set."""
    found: tuple[int, str, str | None] = marshal.loads(blob)[16]
    return found


def _apply_environment(environment: dict[bytes, bytes]) -> None:
    # What `os.environ` keeps its values in, or will when it is imported: that takes a millisecond.
    current: Any = posix.environ
    for name in [name for name in current if name not in environment]:
        posix.unsetenv(name)
        del current[name]
    for name, value in environment.items():
        if current.get(name) != value:
            posix.putenv(name, value)
            current[name] = value


def _apply_directory(cwd: bytes) -> None:
    try:
        here = posix.getcwdb()
    except FileNotFoundError:
        here = b""
    if here != cwd:  # an empty one cannot be entered either
        try:
            posix.chdir(cwd)
        except OSError:
            posix.chdir("/")


def _apply_filters(filters: list[tuple[Any, ...]]) -> None:
    import re
    import warnings

    made: list[Any] = []
    for action, message, category, module, line in filters:
        found = _category(*category)
        if found is not None:
            patterns = [p if p is None or type(p) is str else re.compile(*p) for p in (message, module)]
            made.append((action, patterns[0], found, patterns[1], line))
    warnings.filters[:] = made  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _category(module: str, name: str) -> type[Warning] | None:
    try:
        found: Any = sys.modules.get(module) or __import__(module, fromlist=("",))
        for part in name.split("."):
            found = getattr(found, part)
    except Exception:
        return None
    return found if isinstance(found, type) and issubclass(found, Warning) else None


class _Flags(tuple):  # type: ignore[type-arg]
    """Stands in for `sys.flags`: the same items and attributes, with the caller's values.

    Attributes that are not items (`gil` from 3.13) are those of the real one.
    """

    _real: Any

    def __getattr__(self, name: str) -> Any:
        real = self.__dict__["_real"]
        names = type(real).__match_args__
        return self[names.index(name)] if name in names else getattr(real, name)

    def __repr__(self) -> str:
        items = zip(type(self._real).__match_args__, self, strict=False)
        return f"sys.flags({', '.join(f'{name}={value!r}' for name, value in items)})"


def _apply_flags(values: tuple[Any, ...]) -> None:
    real = getattr(sys.flags, "_real", sys.flags)
    if tuple(sys.flags) == values:
        return
    if tuple(real) == values:
        flags = real
    else:
        flags = _Flags(values)
        flags._real = real
    sys.flags = flags


# Site ---------------------------------------------------------------------------------------------

# Finders that need no `site`: the interpreter's own, and those that a package or tool installs when it is
# imported.
_PLAIN_FINDERS = (
    "_frozen_importlib",
    "_frozen_importlib_external",
    "importlib",
    "rightlane",
    "_distutils_hack",
    "six",
    "_pytest",
)


def needs_site() -> bool:
    """Whether the caller imports by finders that a plain interpreter lacks, as editable installs do."""
    for finder in sys.meta_path:
        kind = finder if isinstance(finder, type) else type(finder)
        module = str(getattr(kind, "__module__", ""))
        if module.partition(".")[0] not in _PLAIN_FINDERS:
            return True
    return False
