"""The shared-state guard: notices functions that change what worker processes do not share (rule 3).

In a worker, the first calls of a function are watched: what it could change is written down before the call
and again after it. That is its arguments, `self`, and the globals, closure cells, defaults and class
attributes that its code names, two levels deep: also those of the functions that it calls. Its code is
searched, too, for stores to globals and closure cells. What is found goes to the user's process as a notice,
ahead of the answer, and becomes a warning, an error, or a reason to run in threads.
`docs/design/guard.md` says what is looked at, what is not, and what it costs.

Nothing of the user's runs here: no `__eq__`, `__hash__`, `__repr__`, `__getattr__` or property. And the guard
must never be in a task's way: whatever goes wrong in it is "not checked".

Here is what code says, and who watches; `_digest` takes the notes, and is imported when there is something
to take. Neither imports anything but what every interpreter has in memory, because they are on the way to a
first result. Used in the user's process as well, where a function's verdict is asked for.
"""

from __future__ import annotations

import sys
import time

from rightlane import _definitions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType, FunctionType
    from typing import Any

    from rightlane import _digest
else:
    FunctionType = type(lambda: 0)
    CodeType = type((lambda: 0).__code__)

__all__ = ["NOT_CHECKED", "NOT_SEEN", "UNCHANGED", "goes_to_threads", "message", "tell", "verdict", "watch"]

# What is known of a function; or "changes ...", with what it changes.
NOT_SEEN = "not seen yet"
UNCHANGED = "unchanged"
NOT_CHECKED = "not checked"
_CHANGES = "changes "

_WATCHED_CALLS = 3
_PLAN_NS, _BEFORE_NS, _AFTER_NS = 200_000, 400_000, 400_000  # of the thread's CPU time: 1 ms for a call
_LEVELS = 2
_MOST_FUNCTIONS = 64
_MOST_NESTED = 8
_MOST_NAMED = 3
_MOST_WRAPPED = 16
_MOST_KNOWN = 1024  # functions of which a process remembers anything

_OPTIMIZED = 1  # co_flags: a function's code, not a class body's
_VARARGS, _VARKEYWORDS = 4, 8

MethodType = type((lambda self: 0).__get__(0))
_BuiltinType = type(len)
ModuleType = type(sys)
mro_of = type.__dict__["__mro__"].__get__
dict_of = type.__dict__["__dict__"].__get__
name_of = type.__dict__["__name__"].__get__
_type_module = type.__dict__["__module__"].__get__

ATOMS = frozenset({int, str, float, bool, type(None), bytes, complex, range, type(...), type(NotImplemented)})
NOTHING = ("nothing",)  # in place of what is not there


# Whose code it is ---------------------------------------------------------------------------------

STANDARD, INSTALLED, OWN = range(3)
_homes: dict[str, int] = {}


def home(module: object) -> int:
    if type(module) is not str:
        return OWN
    known = _homes.get(module)
    if known is None:
        known = _homes[module] = _find_home(module)
    return known


def _find_home(name: str) -> int:
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("builtins", "rightlane"):
        return STANDARD
    module = sys.modules.get(name)
    file = module.__dict__.get("__file__") if type(module) is ModuleType else None
    if type(file) is str and ("/site-packages/" in file or "/dist-packages/" in file):
        return INSTALLED
    return OWN


def module_of(kind: type) -> object:
    try:
        return _type_module(kind)
    except AttributeError:
        return None


def home_of(kind: type) -> int:
    return home(module_of(kind))


def loaded(module: str, name: str) -> Any:
    """Something of a module that has been imported; else nobody has an object of it."""
    found = sys.modules.get(module)
    return found.__dict__.get(name) if type(found) is ModuleType else None


# What code does -----------------------------------------------------------------------------------


def _opcodes() -> tuple[int, ...]:
    # Read off code that was compiled for this interpreter: importing `opcode` takes a millisecond.
    def keep() -> None:
        global _probe
        _probe = None

    def drop() -> None:
        global _probe
        del _probe

    def load() -> Any:
        return _probe

    def bring() -> None:
        from sys import path  # noqa: F401

    def enclose() -> tuple[CodeType, CodeType]:
        cell = None

        def keep() -> None:
            nonlocal cell
            cell = None

        def drop() -> None:
            nonlocal cell
            del cell

        return keep.__code__, drop.__code__

    keep_cell, drop_cell = enclose()
    imports = bring.__code__.co_code
    return (
        keep.__code__.co_code[4],
        drop.__code__.co_code[2],
        keep_cell.co_code[6],
        drop_cell.co_code[4],
        load.__code__.co_code[2],
        imports[6],
        imports[8],
    )


_probe: Any = None
_STORE_GLOBAL, _DELETE_GLOBAL, _STORE_DEREF, _DELETE_DEREF, _LOAD_GLOBAL, _IMPORT_NAME, _IMPORT_FROM = (
    _opcodes()
)


class Names:
    """What a function's code names, with the code inside of it."""

    __slots__ = ("attributes", "cells_stored", "globals_named", "globals_stored")

    def __init__(self, code: CodeType) -> None:
        self.globals_named: dict[str, None] = {}  # in order, each once
        self.globals_stored: dict[str, None] = {}
        self.cells_stored: dict[str, None] = {}
        self.attributes: set[str] = set()
        self._read(code, frozenset(code.co_freevars), 0)
        if "globals" in self.globals_named or "setattr" in self.globals_named:
            texts = [text for text in code.co_consts if type(text) is str]
            self.globals_named.update(dict.fromkeys(texts))
            self.attributes.update(texts)

    def _read(self, code: CodeType, outer: frozenset[str], depth: int) -> None:
        names = code.co_names
        self.attributes.update(names)
        if not code.co_flags & _OPTIMIZED:
            self.globals_named.update(dict.fromkeys(names))
        frees: tuple[str, ...] = ()
        extended, more, last = _extended(code), 0, 0
        instructions = iter(code.co_code)
        for op, arg in zip(instructions, instructions, strict=False):
            if op == 0:
                continue  # an inline cache
            arg |= more
            if op == extended:
                more = arg << 8
                continue
            more = 0
            if op == _LOAD_GLOBAL:
                self.globals_named[names[arg >> 1]] = None
            elif op in (_STORE_GLOBAL, _DELETE_GLOBAL):
                # An import inside a function that is kept as a global changes nothing that anybody sees.
                if last not in (_IMPORT_NAME, _IMPORT_FROM):
                    self.globals_stored[names[arg]] = None
                self.globals_named[names[arg]] = None
            elif op in (_STORE_DEREF, _DELETE_DEREF):
                if not frees:
                    frees = _slots(code)
                if frees[arg] in outer and frees[arg] in code.co_freevars:
                    self.cells_stored[frees[arg]] = None
            last = op
        if depth < _MOST_NESTED:
            for inner in code.co_consts:
                if type(inner) is CodeType:
                    # A name that is free in there is this function's own variable, unless it is free here.
                    self._read(inner, outer & frozenset(code.co_freevars), depth + 1)


def _slots(code: CodeType) -> tuple[str, ...]:
    """The variables by the numbers that instructions have for them."""
    cells = tuple(name for name in code.co_cellvars if name not in code.co_varnames)
    return code.co_varnames + cells + code.co_freevars


def _extended(code: CodeType) -> int:
    """The opcode by which numbers above 255 are written; -1 if there are none."""
    if (
        len(code.co_names) < 128
        and len(code.co_varnames) + len(code.co_cellvars) + len(code.co_freevars) < 256
    ):
        return -1
    import opcode

    return opcode.EXTENDED_ARG


def _functions_of(kind: type, names: Iterable[str]) -> Iterator[FunctionType]:
    """The methods of these names, where the class is somebody's own."""
    for base in mro_of(kind):
        if home_of(base) == OWN:
            space = dict_of(base)
            for name in names:
                if name in space:
                    yield from _definitions.functions_behind(space[name])


_IMPLIED = ("__init__", "__new__", "__post_init__", "__call__", "__enter__", "__exit__")


class Plan:
    """Where a function's state may be: the functions that it enters, with what their code names."""

    __slots__ = ("cut", "functions", "stored")

    def __init__(self, fn: FunctionType, objects: Iterable[Any]) -> None:
        self.cut = False
        self.functions: list[tuple[FunctionType, Names]] = []
        self.stored: dict[str, None] = {}  # what the code stores to, in words
        found: dict[FunctionType, tuple[int, bool]] = {fn: (0, True)}
        todo = [fn]
        end_ns = time.thread_time_ns() + _PLAN_NS
        for each in todo:
            if each is not fn and time.thread_time_ns() > end_ns:
                self.cut = True
                break
            level, named = found[each]
            names = Names(each.__code__)
            self.functions.append((each, names))
            if named:
                self.stored.update(dict.fromkeys(f"global `{name}`" for name in names.globals_stored))
                self.stored.update(dict.fromkeys(f"closure variable `{name}`" for name in names.cells_stored))
            if level < _LEVELS:
                for other, certain in self._called(each, names, objects if level == 0 else ()):
                    if other in found or not _is_own(other, each):
                        continue
                    if len(todo) == _MOST_FUNCTIONS:
                        self.cut = True
                        break
                    found[other] = level + 1, named and certain
                    todo.append(other)

    @staticmethod
    def _called(
        fn: FunctionType, names: Names, objects: Iterable[Any]
    ) -> Iterator[tuple[FunctionType, bool]]:
        """What it may call, and whether it is known by its own name and not by that of a method alone."""
        space = fn.__globals__
        values = [space[name] for name in names.globals_named if name in space]
        values += contents(fn).values()
        methods = (*_IMPLIED, *names.attributes)
        for value in (*values, *objects):
            kind = type(value)
            if kind in ATOMS:
                continue
            if kind is ModuleType:
                if home(value.__dict__.get("__name__")) == OWN:
                    inside = value.__dict__
                    for name in names.attributes:
                        for other in _definitions.functions_behind(inside.get(name)):
                            yield other, True
            elif behind := _definitions.functions_behind(value):
                for other in behind:
                    yield other, True
            else:
                for other in _functions_of(value if issubclass(kind, type) else kind, methods):
                    yield other, False


def _is_own(fn: FunctionType, caller: FunctionType) -> bool:
    return fn.__globals__ is caller.__globals__ or home(fn.__globals__.get("__name__")) == OWN


def _is_bare(fn: FunctionType, names: Names) -> bool:
    if fn.__dict__ or fn.__kwdefaults__ or _REACHING & names.attributes:
        return False
    values = [fn.__globals__.get(name, NOTHING) for name in names.globals_named]
    values += [*contents(fn).values(), *(fn.__defaults__ or ())]
    return all(type(value) in ATOMS or type(value) is FunctionType or value is NOTHING for value in values)


_REACHING = {"globals", "vars", "exec", "eval"}  # to what the code does not name


def contents(fn: FunctionType) -> dict[str, Any]:
    contents = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
        try:
            contents[name] = cell.cell_contents
        except ValueError:
            contents[name] = NOTHING
    return contents


# Watching calls -----------------------------------------------------------------------------------


class _Target:
    """A callable, taken apart."""

    __slots__ = ("arguments", "fn", "keywords", "module", "name", "owner")

    def __init__(self, function: Any) -> None:
        self.arguments: tuple[Any, ...] = ()
        self.keywords: dict[str, Any] = {}
        self.owner: Any = None
        self.fn: FunctionType | None = None
        self.name = self.module = ""
        partial = loaded("functools", "partial")
        for _ in range(_MOST_WRAPPED):
            kind = type(function)
            if kind is FunctionType:
                # Of what a decorator of the standard library has made, what it wraps. The library's own state
                # means nothing: caches, as a rule.
                behind = _definitions.functions_behind(function)
                homes = [home(fn.__globals__.get("__name__")) for fn in behind]
                self.fn = next((fn for fn, at in zip(behind, homes, strict=True) if at != STANDARD), None)
                self.module = str(function.__module__)
                self.name = (self.fn or function).__qualname__.rpartition("<locals>.")[2]
                break
            if partial is not None and kind is partial:
                self.arguments = function.args + self.arguments
                self.keywords = {**function.keywords, **self.keywords}
                function = function.func
            elif kind is MethodType:
                self.owner, function = function.__self__, function.__func__
            elif kind is _BuiltinType:
                if type(function.__self__) is not ModuleType:
                    self.owner = function.__self__
                self.name, self.module = function.__name__, str(function.__module__)
                break
            elif behind := _definitions.functions_behind(function):
                function = behind[0]
            elif issubclass(kind, type):
                self.owner, self.name = function, name_of(function)
                self.fn = next(_functions_of(function, ("__init__", "__new__")), None)
                break
            else:
                self.name = name_of(kind)
                self.owner, self.fn = function, next(_functions_of(kind, ("__call__",)), None)
                break

    def identity(self) -> Any:
        """What tells it from other functions, for a look-up.

        By code, since functions may be made anew for each task; with the code of the functions that it
        encloses, as those of a decorator do, which have their own code in common.
        """
        if self.fn is None:
            return self.key()
        return self.fn.__globals__.get("__name__"), self.fn.__qualname__, *self._codes(self.fn)

    def key(self) -> str:
        """The same for each process: the function's name and hashes of its code."""
        if self.fn is None:
            owner = self.owner
            kind = owner if issubclass(type(owner), type) else type(owner)
            return f"{self.module}.{module_of(kind)}.{name_of(kind)}.{self.name}"
        hashes = [_definitions.code_hash(code).hex() for code in self._codes(self.fn)]
        module = self.fn.__globals__.get("__name__")
        return f"{module}.{self.fn.__qualname__}:{'.'.join(hashes)}"

    @staticmethod
    def _codes(fn: FunctionType) -> list[CodeType]:
        functions = [fn]
        for each in functions:
            for value in contents(each).values():
                behind = _definitions.functions_behind(value)
                functions += [other for other in behind if other not in functions]
            if len(functions) >= _MOST_WRAPPED:
                break
        return [each.__code__ for each in functions]

    def label(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> list[tuple[str, Any]]:
        """The arguments that could change, in words."""
        names: tuple[str, ...] = ()
        rest = "args"
        if self.fn is not None:
            code = self.fn.__code__
            names = code.co_varnames[: code.co_argcount]
            if self.owner is not None:
                names = names[1:]
            if code.co_flags & _VARARGS:
                rest = code.co_varnames[code.co_argcount + code.co_kwonlyargcount]
        found = []
        for at, value in enumerate(self.arguments + args):
            if type(value) not in ATOMS:
                found.append((f"its argument `{names[at] if at < len(names) else rest}`", value))
        for name, value in {**self.keywords, **(kwargs or {})}.items():
            if type(value) not in ATOMS:
                found.append((f"its argument `{name}`", value))
        return found


class Task:
    """A call: what is looked at before and after it."""

    __slots__ = ("arguments", "owner", "plan")

    def __init__(self, target: _Target, arguments: list[tuple[str, Any]]) -> None:
        self.arguments = arguments
        self.owner = target.owner
        self.plan: Plan | None = None
        if target.fn is not None:
            objects = [value for _, value in arguments]
            if target.owner is not None:
                objects.append(target.owner)
            self.plan = Plan(target.fn, objects)

    def is_bare(self) -> bool:
        """Whether there is nothing that the function could change, but by a store in its code."""
        if self.arguments or self.owner is not None:
            return False
        return self.plan is None or (
            not self.plan.cut and all(_is_bare(fn, names) for fn, names in self.plan.functions)
        )


class _Record:
    """What this process knows of a function."""

    __slots__ = ("key", "left", "told", "verdict")

    def __init__(self, key: str) -> None:
        self.key = key
        self.left = _WATCHED_CALLS
        self.verdict = NOT_SEEN
        self.told = NOT_SEEN

    def note(self, verdict: str) -> None:
        """What a call showed that did not change anything. One that was not checked counts for all."""
        if self.verdict != NOT_CHECKED:
            self.verdict = verdict

    @property
    def changes(self) -> bool:
        return self.verdict.startswith(_CHANGES)


_records: dict[Any, _Record] = {}


def _record(target: _Target) -> _Record:
    identity = target.identity()
    record = _records.get(identity)
    if record is None:
        if len(_records) >= _MOST_KNOWN:
            _records.clear()  # somebody makes functions without end; a warning is given once all the same
        record = _records[identity] = _Record(target.key())
    return record


class Watch:
    """Watches the first calls of a function, in the worker that runs them."""

    __slots__ = ("_before", "_record", "_strict", "_target", "_task")

    def __init__(self, target: _Target, record: _Record, strict: bool) -> None:
        self._target = target
        self._record = record
        self._strict = strict
        self._task: Task | None = None
        self._before: _digest.Walk | None = None

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> BaseException | None:
        """Takes notes. Returns what the task is to fail with instead of being run, if it is."""
        self._task = self._before = None
        record = self._record
        if not record.changes:
            try:
                task = Task(self._target, self._target.label(args, kwargs))
                if task.plan is not None and task.plan.stored:
                    record.verdict = _CHANGES + _named(list(task.plan.stored))
                elif task.is_bare():
                    record.note(UNCHANGED)
                else:
                    from rightlane import _digest

                    before = _digest.Walk(None, _BEFORE_NS)
                    before.look(task)
                    self._task, self._before = task, before
            except Exception:
                record.note(NOT_CHECKED)
        return self._error() if record.changes and self._strict else None

    def after(self) -> tuple[bytes | None, bool, BaseException | None]:
        """Compares. Returns a notice for the engine, whether watching is over, and the task's error."""
        record, before, task = self._record, self._before, self._task
        self._task = self._before = None
        record.left -= 1
        if before is not None and task is not None:
            from rightlane import _digest

            try:
                after = _digest.Walk(before.objects if before.cut else None, _AFTER_NS)
                after.look(task)
                if changed := _digest.changed(before, after):
                    record.verdict = _CHANGES + _named(changed)
                else:
                    record.note(NOT_CHECKED if before.cut or after.cut else UNCHANGED)
            except Exception:
                record.note(NOT_CHECKED)
        error = self._error() if record.changes and self._strict else None
        if record.changes:
            record.left = 0
        return self._notice(), record.left <= 0 and error is None, error

    def _error(self) -> BaseException:
        from rightlane import _errors

        return _errors.SharedStateError(message(self._target.name, self._record.verdict))

    def _notice(self) -> bytes | None:
        record, fn = self._record, self._target.fn
        if record.told == record.verdict:
            return None
        record.told = record.verdict
        code = fn.__code__ if fn is not None else None
        parts = (
            "guard",
            record.key,
            record.verdict,
            self._target.name,
            str(fn.__globals__.get("__name__", "")) if fn is not None else "",
            str(code.co_firstlineno) if code is not None else "0",
            code.co_filename if code is not None else "",
        )
        return "\0".join(part.replace("\0", " ") for part in parts).encode(errors="replace")


def _named(changed: list[str]) -> str:
    shown = changed[:_MOST_NAMED]
    if len(changed) > _MOST_NAMED:
        shown.append(f"{len(changed) - _MOST_NAMED} more")
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def watch(function: Any, strict: bool) -> Watch | None:
    """Somebody who watches the next call of the function; None if it has been watched enough.

    `strict`: a call that changes shared state is to fail, and so are all later ones.
    """
    target = _Target(function)
    record = _record(target)
    if record.left <= 0 and not (strict and record.changes):
        return None
    return Watch(target, record, strict)


# User's process -----------------------------------------------------------------------------------


def message(name: str, verdict: str) -> str:
    """What is said of a function that changes shared state."""
    return f'`{name}()` {verdict}; worker processes change their own copy; `lane="thread"` shares it'


def tell(name: str, verdict: str, module: str, line: str, file: str) -> None:
    """Issue the warning, at the function's definition."""
    import warnings

    from rightlane import _errors

    warning = _errors.SharedStateWarning(message(name, verdict))
    place = file or "<built-in>"
    warnings.warn_explicit(warning, _errors.SharedStateWarning, place, int(line), module or place)


def verdict(fn: Callable[..., Any]) -> str:
    """What is known of the function: "unchanged", "changes ...", "not checked" or "not seen yet"."""
    from rightlane import _native

    return _native.guard_verdict(_Target(fn).key()) or NOT_SEEN


_asked: dict[Any, tuple[str, bool]] = {}


def goes_to_threads(fn: Callable[..., Any]) -> bool:
    """Whether the function was seen to change shared state, or its code stores to some."""
    from rightlane import _native

    try:
        target = _Target(fn)
        identity = target.identity()
        key, stores = _asked.get(identity) or ("", False)
        if not key:
            key = target.key()
            stored = list(Plan(target.fn, ()).stored) if target.fn else []
            stores = bool(stored)
            if stores:
                _native.guard_settle(key, _CHANGES + _named(stored))
            if len(_asked) >= _MOST_KNOWN:
                _asked.clear()
            _asked[identity] = key, stores
        return stores or (_native.guard_verdict(key) or "").startswith(_CHANGES)
    except Exception:
        return False  # it is watched where it runs
