"""Whether a function may run in the user's own process without anybody noticing: what its code says (rule 3).

A function that changes what is shared, or reads what others change, gives other results in a thread than in
a worker, which has a copy of its own. The shared-state guard watches calls and knows; where it does not, the
code is read here. Reading code cannot prove much, so the answer leans to "maybe": every name that leads to
something changeable is a doubt, whether or not the function changes it. Functions of the standard library and
of installed packages are taken at their word, as the caller takes them.

Nothing of the user's runs here.
"""

from __future__ import annotations

import builtins
import opcode
import sys

from rightlane import _definitions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FunctionType, ModuleType
    from typing import Any
else:
    FunctionType = type(lambda: 0)
    CodeType = type((lambda: 0).__code__)
    ModuleType = type(sys)

__all__ = ["apart", "prove"]

_BuiltinType = type(len)
_MethodType = type((lambda self: 0).__get__(0))
_ATOMS = frozenset({int, str, float, bool, type(None), bytes, complex, range, type(...)})
_LEVELS = 3
_MOST_WRAPPED = 32

# C modules with functions that change the process they run in, and how the names of those begin.
_PROCESS_MODULES = frozenset(
    {"posix", "sys", "_signal", "gc", "_locale", "faulthandler", "_thread", "resource"}
)
_CHANGING = (
    *("_exit", "abort", "activate", "alarm", "ch", "closerange", "disable", "dup2", "dump", "enable", "exec"),
    *("fch", "fork", "freeze", "interrupt", "kill", "nice", "pause", "pthread", "put", "raise", "register"),
    *("sched_set", "set", "signal", "start", "stack", "umask", "un", "wait", "call_tracing", "add"),
)
_REACHING_BUILTINS = frozenset({"exec", "eval", "globals", "setattr", "delattr", "vars", "locals", "input"})


def prove(fn: Any) -> tuple[str, str]:
    """What is known of a function, and what it is about.

    "unchanged": it was watched, and changes neither what it shares nor its arguments. "plain": its code names
    nothing that could be changed. "doubt": it may, and the text says why. "changes": it does.
    """
    method = _method_of(fn)
    if method:
        return "changes", method
    from rightlane import _guard

    said = _guard.verdict(fn)
    if said.startswith("changes "):
        return "changes", said
    if said == "unchanged":
        return "unchanged", ""
    doubt = _doubt(fn, _LEVELS, set())
    return ("doubt", doubt) if doubt else ("plain", "")


def apart(value: Any) -> Any:
    """A copy of a result, as a worker's is one: nobody else's, whatever the function returned it from.

    What cannot be pickled is returned as it is.
    """
    import pickle

    buffers: list[pickle.PickleBuffer] = []
    try:
        pickled = pickle.dumps(value, 5, buffer_callback=buffers.append)
    except Exception:
        return value
    return pickle.loads(pickled, buffers=[bytearray(buffer.raw()) for buffer in buffers])


def _method_of(fn: Any) -> str:
    """What is never shared, whatever was seen: methods of objects that can be changed."""
    for _ in range(_MOST_WRAPPED):
        if type(fn).__name__ != "partial" or not hasattr(fn, "func"):
            break
        fn = fn.func
    kind = type(fn)
    if kind is _MethodType or kind is _BuiltinType:
        owner = fn.__self__
        if not isinstance(owner, (type, ModuleType)) and not _is_constant(owner):
            return f"is a method of a {type(owner).__name__}, which has a state"
    elif kind is not FunctionType and not isinstance(fn, type) and not _is_slot(kind):
        return f"is an object with a state, a {kind.__name__}"
    return ""


def _is_slot(kind: type) -> bool:
    return kind.__module__ == "builtins" or kind.__name__ == "ufunc"


def _doubt(fn: Any, levels: int, seen: set[int]) -> str:
    """Why it may share something that changes; empty if it does not seem to."""
    if id(fn) in seen:
        return ""
    seen.add(id(fn))
    if type(fn).__name__ == "partial" and hasattr(fn, "func"):
        if not all(map(_is_constant, (*fn.args, *fn.keywords.values()))):
            return "holds arguments that can be changed"
        return _doubt(fn.func, levels, seen)
    kind = type(fn)
    if kind is _MethodType:
        return _doubt(fn.__func__, levels, seen)
    if kind is _BuiltinType:
        return _doubt_of_builtin(fn)
    if isinstance(fn, type):
        return (
            ""
            if _definitions.is_foreign(fn.__module__) or issubclass(fn, BaseException)
            else f"makes a {fn.__name__}"
        )
    if kind is not FunctionType or _definitions.is_foreign(fn.__module__):
        return ""
    if levels == 0:
        return "calls functions that call functions"
    for value in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()):
        if not _is_constant(value):
            return f"has a {type(value).__name__} as a default"
    return _doubt_of_code(fn, levels, seen)


def _doubt_of_builtin(fn: Any) -> str:
    owner = fn.__self__
    if owner is None or isinstance(owner, (type, ModuleType)):
        changes = fn.__module__ in _PROCESS_MODULES and fn.__name__.startswith(_CHANGING)
        reaches = owner is builtins and fn.__name__ in _REACHING_BUILTINS
        return f"calls `{fn.__name__}`" if changes or reaches else ""
    return "" if _is_constant(owner) else f"calls a method of a {type(owner).__name__} that others share"


def _doubt_of_code(fn: FunctionType, levels: int, seen: set[int]) -> str:
    closure = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False))
    for name, cell in closure.items():
        try:
            value = cell.cell_contents
        except ValueError:
            return f"uses `{name}` of the function around it, which has no value yet"
        if doubt := _doubt_of_value(f"`{name}` of the function around it", value, levels, seen):
            return doubt
    todo = [fn.__code__]
    while todo:
        code = todo.pop()
        todo.extend(const for const in code.co_consts if type(const) is CodeType)
        if doubt := _doubt_of_steps(fn, code, closure, levels, seen):
            return doubt
    return ""


def _doubt_of_steps(
    fn: FunctionType, code: CodeType, closure: dict[str, Any], levels: int, seen: set[int]
) -> str:
    names = fn.__globals__
    found: Any = _NOTHING  # what the step before has loaded, if it was a module
    path = ""
    imported: list[Any] = []
    for step, arg in _steps(code):
        before, found = found, _NOTHING
        if step in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            return f"sets the global `{code.co_names[arg]}`"
        if step in ("STORE_ATTR", "DELETE_ATTR"):
            return f"sets the attribute `{code.co_names[arg]}` of an object"
        if step in ("STORE_DEREF", "DELETE_DEREF"):
            name = code._varname_from_oparg(arg)  # type: ignore[attr-defined]
            if name in closure:
                return f"sets `{name}` of the function around it"
        elif step in ("LOAD_GLOBAL", "LOAD_NAME"):
            name = code.co_names[arg >> 1 if step == "LOAD_GLOBAL" else arg]
            if name not in names:
                known = getattr(builtins, name, _NOTHING)
                if known is _NOTHING:
                    return f"names the global `{name}`, which is not there yet"
                if type(known) is _BuiltinType and (doubt := _doubt_of_builtin(known)):
                    return doubt
                continue
            path, value = name, names[name]
            if type(value) is ModuleType:
                found = value
            elif doubt := _doubt_of_value(f"the global `{name}`", value, levels, seen):
                return doubt
        elif step in ("LOAD_ATTR", "LOAD_METHOD") and before is not _NOTHING:
            shift = step == "LOAD_ATTR" and sys.version_info >= (3, 12)
            name = code.co_names[arg >> 1 if shift else arg]
            path = f"{path}.{name}"
            value = vars(before).get(name, _NOTHING)
            if type(value) is ModuleType:
                found = value
            elif value is not _NOTHING and (doubt := _doubt_of_value(f"`{path}`", value, levels, seen)):
                return doubt
        elif step == "IMPORT_NAME":
            imported.append(sys.modules.get(code.co_names[arg], _NOTHING))
    for module in imported:
        # Where its parts go afterwards nobody follows: any of these names may be one of them.
        if type(module) is not ModuleType:
            return "imports a module that is not there yet"
        for name in code.co_names:
            value = vars(module).get(name, None)
            if type(value) is not ModuleType and (
                doubt := _doubt_of_value(f"`{module.__name__}.{name}`", value, levels, seen)
            ):
                return doubt
    return ""


_NOTHING = object()


def _steps(code: CodeType) -> Iterator[tuple[str, int]]:
    raw, high = code.co_code, 0
    for at in range(0, len(raw), 2):
        name = opcode.opname[raw[at]]
        arg = raw[at + 1] | high
        if name == "CACHE":
            continue
        high = arg << 8 if name == "EXTENDED_ARG" else 0
        if not high:
            yield name, arg


def _doubt_of_value(what: str, value: Any, levels: int, seen: set[int]) -> str:
    kind = type(value)
    if _is_constant(value) or kind is ModuleType:
        return ""
    if kind in (FunctionType, _BuiltinType, _MethodType) or isinstance(value, type):
        if kind is _MethodType and not isinstance(value.__self__, type):
            return f"calls {what}, a method of an object that others share"
        return _doubt(value, levels - 1, seen)
    if kind.__name__ == "ufunc" or (_is_slot(kind) and callable(value)):
        return ""
    return f"names {what}, a {kind.__name__}, which can be changed"


def _is_constant(value: Any) -> bool:
    kind = type(value)
    if kind is tuple or kind is frozenset:
        return all(map(_is_constant, value))
    return kind in _ATOMS
