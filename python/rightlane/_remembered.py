"""The name under which a function is remembered by later runs (`docs/design/lanes.md`).

It is made of what is the same in every process that has this function: module (of `__main__` the file),
qualified name, its code, and the code of the functions of the user's own that it calls, as far as it names
them. Versions of the standard library and of installed packages do not count. If any of it is changed it is
another function, of which nothing is known.

Nothing of the user's runs here.
"""

from __future__ import annotations

import _imp
import sys

from rightlane import _definitions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FunctionType, ModuleType
    from typing import Any
else:
    FunctionType = type(lambda: 0)
    CodeType = type((lambda: 0).__code__)
    ModuleType = type(sys)

__all__ = ["key"]

_BuiltinType = type(len)
_MOST_FUNCTIONS = 16
_MOST_CODES = 64
_HASH_KEYS = 11, 12


def key(fn: Any) -> str | None:
    """32 hexadecimal digits; None for what has no name that lasts. `fn` is not a `functools.partial`."""
    fn = getattr(fn, "__func__", fn) if type(fn).__name__ == "method" else fn
    if type(fn) is FunctionType:
        module = fn.__module__
        file = fn.__code__.co_filename.rpartition("/")[2] if module == "__main__" else ""
        parts = [module, "" if file.startswith("<") else file, fn.__qualname__]
        parts += [_definitions.code_hash(each.__code__).hex() for each in _reached(fn)]
    elif type(fn) is _BuiltinType and isinstance(getattr(fn, "__self__", fn), (type, ModuleType, type(None))):
        parts = [fn.__module__, fn.__qualname__]
    else:
        return None
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return "".join(_imp.source_hash(key, text).hex() for key in _HASH_KEYS)


def _reached(fn: FunctionType) -> list[FunctionType]:
    """It, and the functions that a call of it enters by a name in its code."""
    functions: list[FunctionType] = []
    todo: list[Any] = [fn]
    for found in todo:
        for each in _definitions.functions_behind(found):
            if each not in functions and (each is fn or not _definitions.is_foreign(each.__module__)):
                functions.append(each)
                todo += _named(each)
        if len(functions) >= _MOST_FUNCTIONS:
            break
    return functions


def _named(fn: FunctionType) -> list[Any]:
    names: dict[str, None] = {}
    codes = [fn.__code__]
    for code in codes:
        names.update(dict.fromkeys(code.co_names))
        if len(codes) < _MOST_CODES:
            codes += [const for const in code.co_consts if type(const) is CodeType]
    space = fn.__globals__
    found = [space[name] for name in names if name in space]
    for module in [value for value in found if type(value) is ModuleType]:
        found += [module.__dict__[name] for name in names if name in module.__dict__]
    for cell in fn.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue  # it has no value yet
    return found
