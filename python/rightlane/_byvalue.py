"""Functions, classes and callables as definitions: by reference where possible, by value where they must be.

What it is for. A message names a function or a class by the id of a *definition* instead of carrying it. A
definition is pickled once in the parent, sent once to each worker and unpickled there when a task first needs
it. Objects that a worker can import travel by reference. What it cannot import (`__main__`, a notebook, a
lambda, a nested function or class, a module registered with `cloudpickle.register_pickle_by_value`) travels
by value.

What it deliberately does not do. It never runs the user's main module again, and it never sends a class back
to the parent by value when it came from there: unpickling one resets its attributes, so results name it by id
(rule 7). Plain `__main__` functions never import cloudpickle on either side; only by-value classes and
objects that the C pickler refuses do.

Parent side. Each by-value object has a *node*: its pickled body, the nodes that body refers to, and a
*stamp*, the immutable things the body was made from. A body is reused only while its stamp holds; a body made
from anything mutable has no stamp and is pickled again at each `record` (rule 5). Nodes that refer to each
other in a cycle share one definition, a *group*; so an object's address is a definition id and an index in
its group. Bodies hold positions into a table of references instead of ids, therefore equal bodies are equal
bytes, and an unchanged one keeps its definition.

Globals belong to a body, not to a function: every global that its functions name is pickled once, by itself.
The parent remembers per namespace and name what it announced last. A body whose announcement was overtaken by
another value gets a new definition, even with the bytes it had before: otherwise `k = 5`, `k = 10`, `k = 5`
would leave 10 in the workers.

Functions whose defaults, annotations and cells are plain values, and globals that are such, are written by
`marshal`: so the first task of a worker can do without a pickler, and its template need not have imported
one.

Worker side: `_definitions`, which is all that a worker imports at its start. This module follows there when a
result must be pickled that plain pickling refuses or would tie to `__main__`.

Threads. `record` and `dumps` may be called from any thread. Building nodes holds a re-entrant lock, and so
does resolving them; user code (`__reduce__`, `__setstate__`) runs inside it and must not wait for another
thread that submits.
"""

from __future__ import annotations

import _pickle
import _weakref
import io
import marshal
import opcode
import posix
import sys

from rightlane import _definitions
from rightlane._definitions import (
    _ALIAS,
    _BLOB,
    _CHECKED,
    _GONE,
    _GROUP,
    _MISSING,
    _MODULE,
    _NAMED,
    _PLAIN,
    _PLAIN_FUNCTION,
    _PLAIN_VALUE,
    _REF,
    _SELF,
    _cached,
    _fill_function,
    _fill_module,
    _import,
    _load_body,
    _load_placed,
    _made_module,
    _make_class,
    _make_function,
    _new_cell,
    _ref,
    resolve,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
    from typing import Any, TypeAlias

    from rightlane._native import Definition

    Address: TypeAlias = tuple[int, int]
    Reduced: TypeAlias = tuple[Any, ...]
else:
    FunctionType = type(lambda: 0)
    BuiltinFunctionType = type(len)
    ModuleType = type(sys)
    MethodType = type((lambda self: 0).__get__(0))
    CodeType = type(FunctionType(compile("0", "", "eval"), {}).__code__)

__all__ = [
    "Unsendable",
    "dumps",
    "dumps_back",
    "dumps_result",
    "find_culprit",
    "plain_pickles_suffice",
    "record",
    "resolve_parent",
]


class Unsendable(Exception):
    """An object that cannot be pickled. The face turns it into a `SerializationError`.

    `path` names the object that cannot be sent, as in `args[0]['config'].lock`; `reason` is a fragment that
    says why.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _NeedsCloudpickle(Exception):
    """The light pickler met something that only cloudpickle can do."""


class _Mutable(Exception):
    """What a body is made from can change without notice."""


# Version 2 writes no back references. Later versions flag them by reference count, so that equal code gives
# unequal bytes.
_MARSHAL_VERSION = 2
_RETRY = (_pickle.PicklingError, TypeError, AttributeError, NotImplementedError, _NeedsCloudpickle)
# These describe a module itself; the worker's namespace has its own.
_MODULE_NAMES = frozenset(
    "__name__ __doc__ __package__ __loader__ __spec__ __file__ __cached__ __path__ __builtins__".split()
)

# What is by value ---------------------------------------------------------------------------------


def _registered_by_value(name: str) -> bool:
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    registered = getattr(cloudpickle, "_PICKLE_BY_VALUE_MODULES", None)
    while registered:
        if name in registered:
            return True
        name, dot, _ = name.rpartition(".")
        if not dot:
            break
    return False


_PACKAGE = __name__.partition(".")[0]


def plain_pickles_suffice(pickle: bytes | None = None) -> bool:
    """Whether a plain pickle of arguments means the same in a worker, where it names things by reference.

    Not if it names a module that a worker cannot import, or that of multiprocessing's pipes; bytes that only
    look so do no harm, they take the slow path in vain. Nor while any module is registered with
    `cloudpickle.register_pickle_by_value`, which is rare enough not to be told from the bytes. Without a
    pickle: whether that holds for every one without `__main__` in it.
    """
    if getattr(sys.modules.get("cloudpickle.cloudpickle"), "_PICKLE_BY_VALUE_MODULES", None):
        return False
    marks = _marks_of_hidden_modules()
    if pickle is None:
        return not marks
    return b"__main__" not in pickle and not any(mark in pickle for mark in marks)


def _marks_of_hidden_modules() -> tuple[bytes, ...]:
    """How pickles name the modules that a worker does not find, because they were loaded by hand here.

    `pytest --import-mode=importlib` loads test modules like this, and so do many plugin systems.
    """
    global _hidden
    count, path_length, marks = _hidden
    if count == len(sys.modules) and path_length == len(sys.path):
        return marks
    count, path_length = len(sys.modules), len(sys.path)
    found = []
    for name, module in list(sys.modules.items()):
        if name == "multiprocessing.connection":
            found.append(
                name.encode()
            )  # whose objects the plain pickler takes for their descriptors' numbers
            continue
        # Exactly: a look at a module of the lazy kind would load it.
        if type(module) is not ModuleType or name.partition(".")[0] in sys.stdlib_module_names:
            continue
        if name != "__main__" and not _importable(name):
            encoded = name.encode("utf-8", "surrogatepass")
            if len(encoded) < 256:
                encoded = b"\x8c%c%b" % (len(encoded), encoded)  # the opcode SHORT_BINUNICODE
            found.append(encoded)
    _hidden = count, path_length, tuple(found)
    return _hidden[2]


_hidden: tuple[int, int, tuple[bytes, ...]] = (0, 0, ())


def _importable(name: str | None) -> bool:
    """Whether a worker that shares our `sys.path` finds the module called `name`."""
    if name is None or name == "__main__" or name == "__mp_main__":
        return False
    if name.partition(".")[0] == _PACKAGE:
        return True  # a worker has it before it has anything else
    module = sys.modules.get(name)
    if module is None or _registered_by_value(name):
        return False
    spec = getattr(module, "__spec__", None)
    if _outdated and _outdated.get(name, _MISSING) is spec:
        return False
    package, _, leaf = name.rpartition(".")
    if spec is None or spec.name != name:
        # A package may make submodules itself, or give one two names; importing the package brings them.
        return bool(package) and _importable(package)
    origin = spec.origin
    if origin is None and spec.submodule_search_locations is not None:
        origin = next(iter(spec.submodule_search_locations), None)  # a namespace package: its first directory
    elif origin is None or not origin.endswith(".py"):
        return True  # built in, frozen, compiled, zipped: nobody loads those by hand from elsewhere
    known = _found.get(name)
    if known is not None and known[0] is spec and known[1] == len(sys.path):
        return known[2]
    found = _on_path(origin, package, leaf)
    _found[name] = (spec, len(sys.path), found)
    return found


_found: dict[str, tuple[Any, int, bool]] = {}

# Modules that a worker imports otherwise than this process did, and the spec they had when that was seen: one
# that is loaded anew has another.
_outdated: dict[str, Any] = {}
_outdatings = 0  # how often something was added


def _on_path(origin: str | None, package: str, leaf: str) -> bool:
    """Whether a source file lies where the import system looks, not loaded by hand from elsewhere."""
    from rightlane._world import needs_site

    if origin is None or needs_site():
        return True  # an unknown finder may find modules that no path entry leads to
    places: Any = sys.path
    if package:
        parent = sys.modules.get(package)
        if parent is None or not _importable(package):
            return False
        places = getattr(parent, "__path__", ())
    ends = (f"{leaf}.py", f"{leaf}/__init__.py", leaf)
    for end in ends:  # nearly always it is this simple
        if origin.endswith(f"/{end}") and origin[: -len(end) - 1] in places:
            return True
    cwd = posix.getcwd()

    def absolute(path: str) -> str:
        path = path if path.startswith("/") else f"{cwd}/{path}"
        parts: list[str] = []
        for part in path.split("/"):
            if part == "..":
                del parts[-1:]
            elif part not in ("", "."):
                parts.append(part)
        return "/" + "/".join(parts)

    origin = absolute(origin)
    for place in places:
        if isinstance(place, str):
            base = absolute(place).rstrip("/")
            if any(origin == f"{base}/{end}" for end in ends):
                return True
    return False


def _resolves(obj: Any, module: str, qualname: str) -> bool:
    found: Any = sys.modules.get(module)
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception:
        return False
    return found is obj


def _by_value(obj: Any) -> bool:
    """Whether a function or class must travel by value."""
    try:
        module, qualname = obj.__module__, obj.__qualname__
    except Exception:
        return True
    if not isinstance(module, str) or not isinstance(qualname, str):
        return not (isinstance(obj, type) and not obj.__flags__ & _HEAP_TYPE)
    if isinstance(obj, type) and (obj in _BUILTIN_TYPES or not obj.__flags__ & _HEAP_TYPE):
        return False
    if "<locals>" in qualname or not _importable(module):
        return True
    return not _resolves(obj, module, qualname)


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_BUILTIN_TYPES = frozenset({type(None), type(...), type(NotImplemented)})


def _has_own_definition(obj: Any) -> bool:
    """By-value classes always, by-value functions when they are a global of their module under their own
    name.

    Other functions are written into what refers to them: they have no identity that a second message could
    name.
    """
    if isinstance(obj, type):
        return True
    name = obj.__qualname__
    return "." not in name and obj.__globals__.get(name) is obj


# Which globals a function names -------------------------------------------------------------------


def _global_names(code: CodeType) -> tuple[dict[str, None], set[str]]:
    """The globals that `code` and the code nested in it name, in order, and every name of any kind in it."""
    number = opcode.opmap
    extended = number["EXTENDED_ARG"]
    load_global = number["LOAD_GLOBAL"]
    direct = {
        number[name]
        for name in ("STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
        if name in number
    }
    found: dict[str, None] = {}
    every: set[str] = set()
    todo = [code]
    while todo:
        code = todo.pop()
        names = code.co_names
        every.update(names)
        if names:
            raw = code.co_code
            high = 0
            for i in range(0, len(raw), 2):
                op, arg = raw[i], raw[i + 1] | high
                high = arg << 8 if op == extended else 0
                if op == load_global:
                    found[names[arg >> 1]] = None  # the low bit asks for a NULL on the stack
                elif op in direct:
                    found[names[arg]] = None
        todo.extend(const for const in code.co_consts if type(const) is CodeType)
    return found, every


# Stamps: what a cached body was made from ---------------------------------------------------------

_ATOMS = frozenset(
    {int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented), range, CodeType}
)


def _atomic(value: Any) -> bool:
    kind = type(value)
    if kind in _ATOMS:
        return True
    return (kind is tuple or kind is frozenset) and all(map(_atomic, value))


class _Match:
    """A wanted value that is compared by its parts: holding it would keep the stamped object alive."""

    __slots__ = ("kind", "parts")

    def __init__(self, kind: type, parts: tuple[Any, ...]) -> None:
        self.kind = kind
        self.parts = parts

    def holds(self, value: Any) -> bool:
        if type(value) is not self.kind:
            return False
        parts = _parts(value)
        return len(parts) == len(self.parts) and all(map(_same, parts, self.parts))


def _parts(value: Any) -> tuple[Any, ...]:
    kind = type(value)
    if kind is property:
        return value.fget, value.fset, value.fdel, value.__doc__
    if kind is staticmethod or kind is classmethod:
        return (value.__func__,)
    if kind is dict:
        return tuple(part for item in value.items() for part in item)
    if kind is list or kind is set:
        return tuple(value)
    if kind.__module__ == "dataclasses":
        return tuple(getattr(value, name) for name in kind.__slots__ if name != "metadata")
    if kind.__name__ == "_abc_data":
        import _abc  # type: ignore[import-not-found,unused-ignore]

        return (_abc.get_cache_token(),)  # moves when any class is registered with any abstract one
    if hasattr(value, "__origin__"):
        return value.__origin__, *value.__args__
    return ()  # a slot or `__dict__` descriptor: its kind says all


_DESCRIPTORS = frozenset({type(FunctionType.__code__), type(FunctionType.__globals__)})  # getset and member


def _same(value: Any, wanted: Any) -> bool:
    if value is wanted:
        return True
    if type(wanted) is _weakref.ref:
        return wanted() is value
    return type(wanted) is _Match and wanted.holds(value)


class _Stamps:
    """Collects the stamps of one body: of its own object and of the functions written into it."""

    __slots__ = ("depth", "found", "immutable", "seen")

    def __init__(self) -> None:
        self.immutable = True
        self.depth = 0
        self.found: list[tuple[Any, Callable[[Any], bool]]] = []
        self.seen: set[int] = set()

    def add(self, obj: Any) -> None:
        if id(obj) not in self.seen:
            self.seen.add(id(obj))
            check = self.of_class(obj) if isinstance(obj, type) else self.of_function(obj)
            self.found.append((_weakref.ref(obj), check))

    def want(self, value: Any) -> Any:
        """What a later value is compared with. Functions and classes weakly: a cache must not keep them."""
        kind = type(value)
        if kind in _ATOMS or ((kind is tuple or kind is frozenset) and all(map(_atomic, value))):
            return value
        if kind is FunctionType:
            if _by_value(value) and not _has_own_definition(value):
                self.add(value)
            return _weakref.ref(value)
        if isinstance(value, type):
            return _weakref.ref(value)
        if kind is ModuleType and _importable(value.__name__):
            return value
        if kind is BuiltinFunctionType:
            bound = value.__self__
            fixed = isinstance(bound, type) and not bound.__flags__ & _HEAP_TYPE
            if bound is None or fixed or type(bound) is ModuleType:
                return value
        if self.depth < 6:
            self.depth += 1
            try:
                return self.want_parts(value, kind)
            finally:
                self.depth -= 1
        raise _Mutable

    def want_parts(self, value: Any, kind: type) -> Any:
        """Small containers and descriptions can change, but are quickly compared part by part."""
        if kind is dict or kind is list or kind is set:
            if len(value) > 64:
                raise _Mutable
            self.immutable = False
            return _Match(kind, tuple(map(self.want, _parts(value))))
        if kind is staticmethod or kind is classmethod or kind is property:
            return _Match(kind, tuple(map(self.want, _parts(value))))
        module = kind.__module__
        if module == "dataclasses":
            if not getattr(kind, "__slots__", ()):
                return value  # a sentinel
            if not getattr(value, "metadata", None):
                return _Match(kind, tuple(map(self.want, _parts(value))))
        if module in ("typing", "types") and hasattr(value, "__args__") and hasattr(value, "__origin__"):
            return _Match(kind, tuple(map(self.want, _parts(value))))
        if module == "typing" and kind.__name__ in ("_SpecialForm", "_AnyMeta"):
            return value
        if type(kind).__module__ == "enum":
            return _weakref.ref(value)  # its class, stamped where it is by value, looks at what members hold
        raise _Mutable

    def want_items(self, mapping: dict[Any, Any] | None) -> Any:
        if not mapping:
            return None
        return _Match(dict, tuple(self.want(part) for item in mapping.items() for part in item))

    def of_function(self, fn: FunctionType) -> Callable[[Any], bool]:
        code, defaults, kwdefaults = fn.__code__, fn.__defaults__ or (), fn.__kwdefaults__
        wanted_defaults = tuple(map(self.want, defaults))
        wanted_kwdefaults = self.want_items(kwdefaults)
        wanted_cells = tuple(self.want(_contents(cell)) for cell in fn.__closure__ or ())
        wanted_attributes = self.want_items(fn.__dict__)
        annotations = _annotations(fn)
        wanted_annotations = self.want_items(annotations)
        doc, name, qualname = fn.__doc__, fn.__name__, fn.__qualname__
        if type(doc) is not str and doc is not None:
            raise _Mutable
        named: tuple[tuple[str, Any], ...] = ()
        if not _uses_real_module(fn):
            outer = fn.__globals__
            named = tuple(
                (name, self.want_global(outer.get(name, _MISSING)))
                for name in _global_names(code)[0]
                if name not in _MODULE_NAMES
            )

        def holds(fn: FunctionType) -> bool:
            if fn.__code__ is not code or fn.__doc__ is not doc:
                return False
            if fn.__name__ is not name or fn.__qualname__ is not qualname:
                return False
            now = fn.__defaults__ or ()
            if len(now) != len(wanted_defaults) or not all(map(_same, now, wanted_defaults)):
                return False
            if not _items_hold(fn.__kwdefaults__, wanted_kwdefaults):
                return False
            if not _items_hold(fn.__dict__, wanted_attributes):
                return False
            if not _items_hold(_annotations(fn), wanted_annotations):
                return False
            if wanted_cells and not all(map(_same, map(_contents, fn.__closure__ or ()), wanted_cells)):
                return False
            outer = fn.__globals__
            for key, wanted in named:
                value = outer.get(key, _MISSING)
                if value is not wanted and not _same(value, wanted):
                    return False
            return True

        return holds

    def want_global(self, value: Any) -> Any:
        if value is _MISSING:
            return value
        # A by-value function bound to a global has a node of its own, whatever its name.
        return _weakref.ref(value) if type(value) is FunctionType else self.want(value)

    def of_class(self, cls: type) -> Callable[[Any], bool]:
        names = vars(cls)
        wanted: dict[str, Any] = {}
        members: list[tuple[Any, Any]] = []
        if type(type(cls)) is type and type(cls).__module__ == "enum":
            for member in cls.__members__.values():  # type: ignore[attr-defined]
                members.append((_weakref.ref(member), self.want_items(vars(member))))
        for name, value in names.items():
            kind = type(value)
            if kind in _DESCRIPTORS or kind.__name__ == "_abc_data":
                wanted[name] = _Match(kind, _parts(value))
            elif kind.__module__ == "enum" and kind.__name__ == "property":
                wanted[name] = _Match(kind, ())
            else:
                wanted[name] = self.want(value)
        bases, meta = tuple(map(_weakref.ref, cls.__bases__)), _weakref.ref(type(cls))

        def holds(cls: type) -> bool:
            names = vars(cls)
            if len(names) != len(wanted) or type(cls) is not meta():
                return False
            if len(cls.__bases__) != len(bases) or not all(map(_same, cls.__bases__, bases)):
                return False
            for ref, items in members:
                member = ref()
                if member is None or not _items_hold(vars(member), items):
                    return False
            return all(_same(value, wanted.get(name, _MISSING)) for name, value in names.items())

        return holds


def _items_hold(mapping: dict[str, Any] | None, wanted: Any) -> bool:
    if wanted is None:
        return not mapping
    return type(wanted) is _Match and wanted.holds(mapping)


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _annotations(fn: FunctionType) -> dict[str, Any] | None:
    try:
        return fn.__annotations__
    except Exception:  # evaluated lazily from 3.14, and may name what does not exist at run time
        return None


def _uses_real_module(fn: FunctionType) -> bool:
    """A nested function of an importable module finds its globals there, once the worker imports it."""
    module = fn.__module__
    return (
        isinstance(module, str)
        and _importable(module)
        and getattr(sys.modules.get(module), "__dict__", None) is fn.__globals__
    )


# Bodies: one pickled object with the globals it names ---------------------------------------------


class _Unit:
    """One pickle: its bytes, the nodes it refers to by position, its large buffers, which lie elsewhere."""

    __slots__ = ("buffers", "data", "nodes", "positions")

    def __init__(self) -> None:
        self.data = b""
        self.buffers: list[Definition] = []
        self.nodes: list[_Node] = []
        self.positions: dict[int, int] = {}

    def position(self, node: _Node) -> int:
        place = self.positions.setdefault(node.serial, len(self.nodes))
        if place == len(self.nodes):
            self.nodes.append(node)
        return place


class _Body:
    """A pickled object, the globals its functions name, and when those were announced.

    `namespaces` maps a namespace key to the module attributes it starts with. `entries` are tuples of
    namespace key, name, kind and unit, module name or node. `serials` are the announcements of those entries.
    """

    __slots__ = ("entries", "imports", "namespaces", "serials", "unit")

    def __init__(
        self, unit: _Unit, namespaces: dict[str, Any], entries: list[Any], imports: tuple[str, ...]
    ) -> None:
        self.unit = unit
        self.namespaces = namespaces
        self.entries = entries
        self.imports = imports
        self.serials: tuple[int, ...] = ()

    def nodes(self) -> Iterator[_Node]:
        yield from self.unit.nodes
        for _, _, kind, value in self.entries:
            if kind == _REF:
                yield value
            elif kind == _BLOB:
                yield from value.nodes

    def buffers(self) -> Iterator[Definition]:
        yield from self.unit.buffers
        for _, _, kind, value in self.entries:
            if kind == _BLOB:
                yield from value.buffers

    def announce(self) -> None:
        """Note what this body puts under its names; a body that was overtaken gets new serials."""
        global _epoch
        serials = []
        for space, name, kind, value in self.entries:
            if kind == _REF:
                content: Any = value.serial
            elif kind == _BLOB:
                content = (value.data, tuple(node.serial for node in value.nodes))
            else:
                content = value
            known = _announced.get((space, name))
            if known is None or known[0] != (kind, content):
                _epoch += known is not None
                known = _announced[space, name] = ((kind, content), _next_serial())
            serials.append(known[1])
        self.serials = tuple(serials)

    def current(self) -> bool:
        return all(
            _announced.get((space, name), (None, 0))[1] == serial
            for (space, name, _, _), serial in zip(self.entries, self.serials, strict=True)
        )

    def wire(self, address: Callable[[_Node], Address]) -> tuple[Any, ...]:
        """The body as `marshal` can write it."""

        def unit(u: _Unit) -> tuple[bytes, tuple[Address, ...]]:
            return u.data, tuple(map(address, u.nodes))

        entries = []
        for space, name, kind, value in self.entries:
            if kind == _REF:
                value = address(value)
            elif kind == _BLOB:
                value = unit(value)
            entries.append((space, name, kind, value))
        return (*unit(self.unit), tuple(self.namespaces.items()), tuple(entries), self.imports)


class _Collector:
    """What the picklers of one body share: the namespaces and globals that its functions name."""

    __slots__ = ("found", "names", "namespaces", "spaces")

    def __init__(self) -> None:
        self.namespaces: dict[str, tuple[Any, ...]] = {}
        self.spaces: dict[str, dict[str, Any]] = {}
        self.found: dict[tuple[str, str], None] = {}
        self.names: set[str] = set()

    def namespace_of(self, fn: FunctionType) -> str:
        """The key of the namespace that `fn` lives in, its globals noted for sending."""
        module, outer = fn.__module__, fn.__globals__
        if _uses_real_module(fn):
            return f"import {module}"
        key = self.space(module if isinstance(module, str) else "", outer)
        named, every = _global_names(fn.__code__)
        self.names |= every
        for name in named:
            if name not in _MODULE_NAMES:
                self.found[key, name] = None
        return key

    def space(self, module: str, outer: dict[str, Any]) -> str:
        # Code run by exec() in a dictionary of its own does not share globals with the module it is named
        # after.
        real = getattr(sys.modules.get(module), "__dict__", None)
        key = module if real is outer else f"{module} {id(outer):x}"
        if key not in self.spaces:
            self.spaces[key] = outer
            described = (outer.get("__name__", module), outer.get("__package__"), outer.get("__file__"))
            self.namespaces[key] = tuple(v if isinstance(v, str) else None for v in described)
        return key

    def entries(self) -> list[Any]:
        """Pickle every global on its own. A value may be or hold functions that name more of them."""
        entries: list[Any] = []
        done: set[tuple[str, str]] = set()
        while len(done) < len(self.found):
            for key in [key for key in self.found if key not in done]:
                done.add(key)
                space, name = key
                value = self.spaces[space].get(name, _MISSING)
                if value is _MISSING:
                    if key in _announced:
                        entries.append((space, name, _GONE, None))
                elif (type(value) is FunctionType or isinstance(value, type)) and _by_value(value):
                    entries.append((space, name, _REF, _node_of(value)))
                elif isinstance(value, ModuleType) and _importable(value.__name__):
                    entries.append((space, name, _MODULE, value.__name__))
                else:
                    entries.append((space, name, _BLOB, self.pickle(value)))
        return entries

    def describe(self, fn: FunctionType, root: bool) -> tuple[Any, ...]:
        """The arguments of `_make_function` up to the cells; the globals that `fn` names are noted."""
        if root and fn.__globals__.get(fn.__qualname__) is fn and not _uses_real_module(fn):
            space = self.space(fn.__module__ or "", fn.__globals__)
            self.found[space, fn.__qualname__] = None
        space = self.namespace_of(fn)
        return _marshal_code(fn.__code__), space, fn.__name__, fn.__qualname__, fn.__module__

    def plain_function(self, fn: FunctionType) -> bytes:
        """The function as `_definitions` makes it without a pickler; empty if it takes one."""
        defaults, kwdefaults, annotations = fn.__defaults__, fn.__kwdefaults__ or {}, _annotations(fn) or {}
        cells = tuple(() if c is _MISSING else (c,) for c in map(_contents, fn.__closure__ or ()))
        held = [fn.__module__, fn.__doc__, *(defaults or ()), *kwdefaults, *kwdefaults.values(), *annotations]
        held += [content for cell in cells for content in cell]
        if fn.__dict__ or getattr(fn, "__type_params__", None) or not all(map(_plain, held)):
            return b""
        described = []
        for name, value in annotations.items():
            builtin = _builtin_name(value)
            if not builtin and not _plain(value):
                return b""
            described.append((name, bool(builtin), builtin or value))
        found, names = dict(self.found), set(self.names)
        closure = cells if fn.__closure__ else None
        made = self.describe(fn, True), defaults, fn.__kwdefaults__, tuple(described), fn.__doc__, closure
        try:
            return _PLAIN_FUNCTION + marshal.dumps(made, _MARSHAL_VERSION)
        except ValueError:  # a name, say, that is not exactly a string
            self.found, self.names = found, names
            return b""

    def imports(self, entries: list[Any]) -> tuple[str, ...]:
        """Submodules that the code names and that are imported here: `import a.b` binds only `a`."""
        wanted = set()
        for _, _, kind, value in entries:
            if kind == _MODULE and hasattr(sys.modules.get(value), "__path__"):
                prefix = value + "."
                for name in list(sys.modules):
                    if name.startswith(prefix) and self.names.issuperset(name[len(prefix) :].split(".")):
                        wanted.add(name)
        return tuple(sorted(wanted))

    def pickle(self, obj: Any, root: bool = False, final: list[Definition] | None = None) -> _Unit:
        """Pickle one object: by `marshal` if it is plain, by cloudpickle when the C pickler alone cannot."""
        if final is None:
            unit = _Unit()
            unit.data = self.plain_function(obj) if root and type(obj) is FunctionType else _plain_value(obj)
            if unit.data:
                return unit
        light = not (root and isinstance(obj, type))
        while True:
            unit = _Unit()
            found, names = dict(self.found), set(self.names)
            held = None if final is None else len(final)
            try:
                pickler = _picklers(light)(self, unit, obj if root else _MISSING, final)
                unit.data = pickler.finish(obj)
                return unit
            except (Unsendable, MemoryError):
                raise
            except Exception as error:
                self.found, self.names = found, names
                if final is not None:
                    del final[held:]
                if not light or not isinstance(error, _RETRY):
                    raise Unsendable("", _reason(error)) from error
            light = False


_SCALARS = frozenset({int, float, complex, bool, str, bytes, type(None), type(...)})


def _plain(value: Any) -> bool:
    """Whether `marshal` writes a value as the pickler would: scalars, and short tuples of them.

    Longer or deeper ones are the pickler's business, which remembers what it has seen.
    """
    kind = type(value)
    if kind is tuple:
        return len(value) <= 16 and all(type(part) in _SCALARS for part in value)
    return kind in _SCALARS


def _builtin_name(value: Any) -> str:
    """The name under which a built-in type such as `int` is found everywhere; empty for anything else."""
    known = type(value) is type and vars(sys.modules["builtins"]).get(value.__name__) is value
    return str(value.__name__) if known else ""


def _plain_value(value: Any) -> bytes:
    return _PLAIN_VALUE + marshal.dumps(value, _MARSHAL_VERSION) if _plain(value) else b""


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply to be pickled"
    try:
        text = str(error)
    except Exception:
        text = ""
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


class _Cell:
    """Stands for a closure cell in a pickle, so that functions that shared it share it again."""

    __slots__ = ("__weakref__",)

    def __reduce__(self) -> Reduced:
        return _new_cell, ()


def _picklers(light: bool) -> Any:
    kind = _pickler_kinds.get(light)
    if kind is None:
        if light:
            base: Any = _pickle.Pickler
        else:
            import cloudpickle

            base = cloudpickle.Pickler
        kind = _pickler_kinds[light] = _make_pickler(base, light)
    return kind


_pickler_kinds: dict[bool, Any] = {}


def _as_inherited(obj: Any, kind: type) -> Reduced | None:
    """How to pickle what multiprocessing hands on to processes only as they start."""
    module = kind.__module__
    if "multiprocessing.sharedctypes" not in sys.modules and not (
        type(module) is str and module.startswith(("multiprocessing.", "_multiprocessing"))
    ):
        return None
    from rightlane import _inherited

    return _inherited.reduce(obj)


def _make_pickler(base: Any, light: bool) -> Any:
    class Pickler(base):  # type: ignore[misc]
        def __init__(
            self, collector: _Collector, unit: _Unit, root: Any, final: list[Definition] | None
        ) -> None:
            self.file = io.BytesIO()
            super().__init__(self.file, protocol=5, buffer_callback=_placer(unit.buffers))
            self.collector = collector
            self.unit = unit
            self.root = root
            self.final = final
            self.cells: dict[int, tuple[Any, _Cell]] = {}

        def finish(self, obj: Any) -> bytes:
            self.dump(obj)
            return _with_buffers(self.file.getvalue(), self.unit.buffers)

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is FunctionType:
                if obj is self.root:
                    return self.function(obj, True)
                if not _by_value(obj):
                    return NotImplemented
                return self.reference(obj) if _has_own_definition(obj) else self.function(obj, False)
            if issubclass(kind, type):
                if obj is self.root:
                    return self.class_(obj)
                if obj not in _BUILTIN_TYPES and _by_value(obj):
                    return self.reference(obj)
                if light or obj.__flags__ & _HEAP_TYPE:
                    return NotImplemented
                return super().reducer_override(obj)  # types that only the `types` module names
            if issubclass(kind, ModuleType):
                return self.module(obj)
            elif kind.__name__ == "_lru_cache_wrapper":
                if not _resolves(obj, getattr(obj, "__module__", ""), obj.__qualname__) or _by_value(obj):
                    # Its own reduction names a global, which a worker would not find.
                    parameters = obj.cache_parameters()
                    return _cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
            elif (reduced := _as_inherited(obj, kind)) is not None:
                return reduced
            elif light:
                if kind.__module__ == "typing" and kind.__name__ in ("TypeVar", "ParamSpec", "TypeVarTuple"):
                    raise _NeedsCloudpickle
            return NotImplemented if light else super().reducer_override(obj)

        def module(self, module: ModuleType) -> Reduced:
            name = module.__name__
            if _importable(name):
                return _import, (name,)
            if module is sys.modules.get("__main__"):
                return _import, ("__main__",)
            names = vars(module)
            space = self.collector.space(name, names)
            state = {key: value for key, value in names.items() if key not in _MODULE_NAMES}
            return _made_module, (space,), state, None, None, _fill_module

        def reference(self, obj: Any) -> Reduced:
            if self.final is None:
                return _ref, (self.unit.position(_node_of(obj)),)
            definition, index = _address(_node_of(obj))
            self.final.append(definition)
            return resolve, ((definition.id, index) if index else (definition.id,))

        def class_(self, cls: type) -> Reduced:
            from cloudpickle import cloudpickle

            if vars(sys.modules.get(cls.__module__, sys)).get(cls.__name__) is cls:
                # Plain pickles made in the worker name the class by its module.
                space = self.collector.space(cls.__module__, vars(sys.modules[cls.__module__]))
                self.collector.found[space, cls.__name__] = None
            make, arguments, *rest = cloudpickle._dynamic_class_reduce(cls)
            skeleton = make is cloudpickle._make_skeleton_class
            if skeleton and "__slots__" in vars(cls) and not _named_tuple(cls):
                # cloudpickle sets them on a finished class, which is then one without slots.
                slots = vars(cls)["__slots__"]
                slots = (slots,) if isinstance(slots, str) else tuple(slots)
                kwargs = {**arguments[3], "__slots__": slots}
                arguments = (*arguments[:3], kwargs, *arguments[4:])
            return _make_class, (make, arguments), *rest

        def function(self, fn: FunctionType, root: bool) -> Reduced:
            described = self.collector.describe(fn, root)
            cells = None
            filled: tuple[Any, ...] = ()
            if fn.__closure__:
                cells = tuple(map(self.cell, fn.__closure__))
                filled = tuple(
                    (stand_in, cell.cell_contents)
                    for stand_in, cell in zip(cells, fn.__closure__, strict=True)
                    if _contents(cell) is not _MISSING
                )
            extra: dict[str, Any] = dict(fn.__dict__)
            parameters = getattr(fn, "__type_params__", None)
            state = (
                fn.__defaults__,
                fn.__kwdefaults__,
                _annotations(fn) or None,
                fn.__doc__,
                extra or None,
                parameters or None,
                filled,
            )
            return _make_function, (*described, cells, root), state, None, None, _fill_function

        def cell(self, cell: CellType) -> _Cell:
            return self.cells.setdefault(id(cell), (cell, _Cell()))[1]

    return Pickler


def _placer(placed: list[Definition]) -> Callable[[Any], bool]:
    """A pickler's `buffer_callback` that places large buffers and notes the definitions which name them."""
    from rightlane import _native

    def place(buffer: Any) -> bool:
        made = _native.define_buffer(buffer)
        if made is None:
            return True
        placed.append(made)
        return False

    return place


def _with_buffers(pickle: bytes, placed: list[Definition]) -> bytes:
    return _pickle.dumps(_Placed(tuple(made.id for made in placed), pickle), 5) if placed else pickle


class _Placed:
    """A pickle whose large buffers lie elsewhere."""

    __slots__ = ("ids", "pickle")

    def __init__(self, ids: tuple[int, ...], pickle: bytes) -> None:
        self.ids = ids
        self.pickle = pickle

    def __reduce__(self) -> Reduced:
        return _load_placed, (self.ids, self.pickle)


def _named_tuple(cls: type) -> bool:
    """Whether `NamedTuple` makes a class as this one, with slots that it lets nobody give."""
    # By name: typing_extensions has one of its own.
    bases = vars(cls).get("__orig_bases__", ())
    return any(getattr(base, "__name__", None) == "NamedTuple" for base in bases)


def _marshal_code(code: CodeType) -> bytes:
    try:
        return marshal.dumps(code, _MARSHAL_VERSION)
    except ValueError:  # a constant that only later versions know
        return marshal.dumps(code)


# Nodes: the parent's view of one by-value object --------------------------------------------------

_serial = 0
_epoch = 0  # moves when an object's address or the announcement of a global changes
_announced: dict[tuple[str, str], tuple[Any, int]] = {}


def _next_serial() -> int:
    global _serial
    _serial += 1
    return _serial


class _Node:
    """What is known of one by-value function or class; it refers to the object weakly."""

    __slots__ = (
        "address",
        "alias",
        "body",
        "checked",
        "closure",
        "group",
        "ids",
        "immutable",
        "ref",
        "serial",
        "stamps",
    )

    def __init__(self, obj: Any) -> None:
        key = id(obj)
        self.serial = _next_serial()
        self.ref = _weakref.ref(obj, _dropper(_nodes, key))
        self.stamps: list[tuple[Any, Callable[[Any], bool]]] | None = None
        self.immutable = False  # stamped, and made from nothing that can change at all
        self.body: _Body | None = None
        self.address: tuple[Definition, int] | None = None
        self.alias: tuple[Definition, Definition] | None = None  # the group it stands for, and itself
        self.ids: list[int] = []  # of the definitions it has been part of, for results under way
        self.group: Any = None  # bodies, serials and foreign addresses that `address` was made from
        self.closure: list[_Node] | None = None  # every node reached from here, as of `checked`
        self.checked = -1

    def release(self) -> None:
        """The object is gone: what was kept of it refers to itself, and may hold large buffers."""
        self.closure = self.body = self.group = None

    def fresh(self) -> bool:
        stamps = self.stamps
        if stamps is None:
            return False
        for ref, holds in stamps:
            obj = ref()
            if obj is None or not holds(obj):
                return False
        return True


_nodes: dict[int, _Node] = {}


def _dropper(table: dict[int, Any], key: int) -> Callable[[Any], None]:
    """The callback of a weak reference, which takes its entry out of a table.

    It names no global of this module: at the interpreter's exit, those go before some objects do.
    """

    def drop(ref: Any) -> None:
        known = table.get(key)
        if known is not None and known.ref is ref:
            del table[key]
            known.release()

    return drop


def _node_of(obj: Any) -> _Node:
    node = _nodes.get(id(obj))
    if node is None or node.ref() is not obj:
        node = _nodes[id(obj)] = _Node(obj)
    return node


def _make_body(node: _Node) -> None:
    obj = node.ref()
    collector = _Collector()
    stamps: list[tuple[Any, Callable[[Any], bool]]] | None
    try:
        collected = _Stamps()
        collected.add(obj)
        stamps = collected.found
        node.immutable = collected.immutable
    except _Mutable:
        stamps = None
        node.immutable = False
    # Stamped before pickled: a change in between makes the body newer than its stamp, never older.
    unit = collector.pickle(obj, root=True)
    entries = collector.entries()
    node.stamps = stamps
    body = _Body(unit, collector.namespaces, entries, collector.imports(entries))
    body.announce()
    old = node.body
    if old is None or old.serials != body.serials or not _equal(old, body):
        node.body = body


def _equal(a: _Body, b: _Body) -> bool:
    def address(node: _Node) -> Address:
        return node.serial, 0

    return a.wire(address) == b.wire(address)


def _address(root: _Node) -> tuple[Definition, int]:
    """The definition that holds `root`, made or renewed with everything it refers to where needed."""
    closure = root.closure
    if closure is not None and root.checked == _epoch and root.address is not None:
        for node in closure:
            if not node.fresh():
                break
        else:
            return root.address
    with _definitions.lock:
        nodes, edges = _walk(root)
        for group in _components(root, edges):
            _settle(group, edges)
        root.closure = nodes
        root.checked = _epoch
        assert root.address is not None
        return root.address


def _walk(root: _Node) -> tuple[list[_Node], dict[_Node, list[_Node]]]:
    edges: dict[_Node, list[_Node]] = {}
    todo = [root]
    keep = []  # the objects must not die while their nodes are built
    while todo:
        node = todo.pop()
        if node in edges:
            continue
        keep.append(node.ref())
        if node.body is None or not node.fresh():
            _make_body(node)
        elif not node.body.current():
            renewed = _Body(node.body.unit, node.body.namespaces, node.body.entries, node.body.imports)
            renewed.announce()
            node.body = renewed
        assert node.body is not None
        edges[node] = list(dict.fromkeys(node.body.nodes()))
        todo.extend(edges[node])
    return list(edges), edges


def _components(root: _Node, edges: dict[_Node, list[_Node]]) -> list[list[_Node]]:
    """Strongly connected components, those referred to first (Tarjan's algorithm, without recursion)."""
    index: dict[_Node, int] = {}
    low: dict[_Node, int] = {}
    stack: list[_Node] = []
    stacked: set[_Node] = set()
    result: list[list[_Node]] = []
    work = [(root, iter(edges[root]))]
    index[root] = low[root] = 0
    stack.append(root)
    stacked.add(root)
    while work:
        node, rest = work[-1]
        for other in rest:
            if other not in index:
                index[other] = low[other] = len(index)
                stack.append(other)
                stacked.add(other)
                work.append((other, iter(edges[other])))
                break
            if other in stacked:
                low[node] = min(low[node], index[other])
        else:
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[node])
            if low[node] == index[node]:
                group = []
                while True:
                    member = stack.pop()
                    stacked.discard(member)
                    group.append(member)
                    if member is node:
                        break
                # The order must not depend on where the walk began, or equal groups would have unequal bytes.
                result.append(sorted(group, key=lambda member: member.serial))
    return result


def _settle(group: list[_Node], edges: dict[_Node, list[_Node]]) -> None:
    """Give a group its definition: the one it has when nothing changed, otherwise a new one."""
    global _epoch
    places = {node: i for i, node in enumerate(group)}
    foreign: dict[_Node, tuple[Definition, int]] = {}
    for node in group:
        for other in edges[node]:
            if other not in places:
                assert other.address is not None
                foreign[other] = other.address
    made_from = [(node.serial, node.body) for node in group], [(d.id, i) for d, i in foreign.values()]
    if all(node.group == made_from for node in group):
        return

    def address(node: _Node) -> Address:
        if node in places:
            return _SELF, places[node]
        definition, index = foreign[node]
        return definition.id, index

    bodies = tuple(node.body.wire(address) for node in group if node.body is not None)
    deps = list({d.id: d for d, _ in foreign.values()}.values())
    deps += {b.id: b for node in group if node.body is not None for b in node.body.buffers()}.values()
    blob = _GROUP + marshal.dumps(bodies, _MARSHAL_VERSION)
    definition = _shared_definition(blob, deps, group) or _new_definition(blob, deps)
    _remember(definition, [node.ref() for node in group])
    for node in group:
        if node.address is not None and node.address[0] is not definition:
            _epoch += 1
        node.address = definition, places[node]
        node.group = made_from
        if not node.ids or node.ids[-1] != definition.id:
            node.ids.append(definition.id)
            # A global that changes at every submit would otherwise leave an entry for each.
            if len(node.ids) > _KEEP:
                _originals.pop(node.ids.pop(0), None)


def _shared_definition(blob: bytes, deps: list[Definition], group: list[_Node]) -> Definition | None:
    """The definition of an equal function that came before: `submit(lambda: 1)` in a loop makes a new one
    each time.

    Only for functions made from immutable things: two closures over two lists must not share one list.
    """
    node = group[0]
    if len(group) > 1 or not node.immutable or isinstance(node.ref(), type) or len(blob) > 8192:
        return None
    key = (blob, tuple(dep.id for dep in deps), node.body.serials if node.body else ())
    known = _recent.pop(key, None)
    if known is None:
        known = _new_definition(blob, deps)
    _recent[key] = known
    if len(_recent) > 256:
        del _recent[next(iter(_recent))]
    return known


_recent: dict[Any, Definition] = {}


def _new_definition(blob: bytes, deps: Sequence[Definition]) -> Definition:
    from rightlane import _native

    made: Definition = _native.Definition(blob, deps)
    return made


# Where results find the parent's objects again ----------------------------------------------------

_originals: dict[int, list[Any]] = {}
_kept: dict[int, list[Any]] = {}
_KEEP = 1024


def _remember(definition: Definition, members: list[Any]) -> None:
    """Objects of a module live on by themselves. A local class may have died when a result that needs it
    arrives; the latest ones are therefore kept.
    """
    key = definition.id

    def forget_when_dead(_: Any, originals: dict[int, list[Any]] = _originals) -> None:
        refs = originals.get(key)
        if refs is not None and all(ref() is None for ref in refs):
            originals.pop(key, None)

    refs = [_weakref.ref(member, forget_when_dead) for member in members]
    known = _originals.get(key)
    if known is not None:  # equal functions share a definition; any that lives will do
        refs = [old if old() is not None else new for old, new in zip(known, refs, strict=True)]
    _originals[key] = refs
    local = [m for m in members if isinstance(m, type) and "<locals>" in m.__qualname__]
    if local:
        _kept[key] = local
        if len(_kept) > _KEEP:
            del _kept[next(iter(_kept))]


def resolve_parent(definition_id: int, index: int = 0) -> Any:
    """The parent's own function or class behind a definition. Pickled results call this."""
    refs = _originals.get(definition_id)
    obj = refs[index]() if refs is not None and index < len(refs) else None
    if obj is None:
        raise _pickle.UnpicklingError(
            f"the function or class behind definition {definition_id} no longer exists in this process"
        )
    return obj


# What the parent calls ----------------------------------------------------------------------------


class _Referenced:
    """A callable that travels as one plain pickle, or by value, and the definition it had last.

    `body` is what that says of a callable by value, which may have to be checked first.
    """

    __slots__ = ("body", "definition", "deps", "fixed", "marks", "ref")

    def __init__(
        self, ref: Any, definition: Definition, deps: list[int], fixed: bytes, marks: _Marks
    ) -> None:
        self.body: Definition | None = None
        self.ref = ref
        self.definition = definition
        self.deps = deps
        self.fixed = fixed
        self.marks = marks

    def release(self) -> None:
        pass  # nothing in it refers to it


_references: dict[int, _Referenced] = {}


def record(fn: Callable[..., Any]) -> Definition:
    """The definition of a callable, the same object for as long as nothing it was made from changes.

    Raises `Unsendable` with a path that starts at `fn`.
    """
    try:
        return _record(fn)
    except Unsendable as error:
        raise Unsendable(find_culprit(fn, "fn"), error.reason) from error.__cause__


def _record(fn: Callable[..., Any]) -> Definition:
    kind = type(fn)
    if kind is FunctionType or isinstance(fn, type):
        if _by_value(fn):
            node = _node_of(fn)
            definition, index = _address(node)
            if index:
                # A group's own id means its first member.
                if node.alias is None or node.alias[0] is not definition:
                    blob = _ALIAS + marshal.dumps((definition.id, index), _MARSHAL_VERSION)
                    node.alias = definition, _new_definition(blob, [definition])
                    _remember(node.alias[1], [fn])
                definition = node.alias[1]
            return _checked(fn, definition)
        known = _references.get(id(fn))
        if known is not None and known.ref() is fn and known.body is None and known.marks.hold():
            return known.definition
    return _record_pickled(fn)


def made_from(fn: Callable[..., Any], definition: Definition) -> tuple[Any, ...] | None:
    """What must still be the same objects for `record(fn)` to be `definition`, as comparisons that are made
    without asking here; None if there is more to it.

    The kinds, in the order that `crates/python/src/known.rs` numbers them: the function's attribute of this
    name is this object (0), or an empty dictionary (1); the dictionary has this object under the name (2), or
    nothing (3), or the function itself (4); the set is empty (5); of a pair, the first one's attribute of
    this name is the second (6).
    """
    if type(fn) is not FunctionType or fn.__closure__ is not None or fn.__kwdefaults__ or fn.__dict__:
        return None
    names = (
        "__code__",
        "__defaults__",
        "__kwdefaults__",
        "__name__",
        "__qualname__",
        "__module__",
        "__doc__",
    )
    checks: list[tuple[int, Any, str, Any]] = [(0, None, name, getattr(fn, name)) for name in names]
    checks += [(1, None, "__dict__", None), (2, globals(), "_epoch", _epoch)]
    if _by_value(fn):
        node = _node_of(fn)
        alone = node.closure is not None and len(node.closure) == 1 and node.checked == _epoch
        known = _references.get(id(fn))
        if known is None or known.ref() is not fn or known.definition is not definition:
            return None
        body = known.body or definition
        if not alone or not node.immutable or node.address != (body, 0) or _annotations(fn):
            return None
        if node.stamps is None or len(node.stamps) != 1:
            return None
        checks.append((1, None, "__annotations__", None))
        if not _uses_real_module(fn):
            stamps = _Stamps()
            for name in _global_names(fn.__code__)[0]:
                value = fn.__globals__.get(name, _MISSING)
                if value is _MISSING:
                    checks.append((3, fn.__globals__, name, None))
                elif type(value) is ModuleType or stamps.want(value) is value:
                    checks.append((2, fn.__globals__, name, value))
                else:
                    return None
        stamped = known.marks.checks()
        return None if stamped is None else (*checks, *stamped)
    known = _references.get(id(fn))
    if known is None or known.ref() is not fn or known.definition is not definition:
        return None
    module = sys.modules.get(fn.__module__)
    if type(module) is not ModuleType or vars(module).get(fn.__qualname__) is not fn:
        return None
    stamped = known.marks.checks()
    if stamped is None:
        return None
    # Of the function itself all is said.
    itself = (module, fn.__qualname__), (fn, "__code__")
    checks += [check for check in stamped if (check[3][0], check[2]) not in itself]
    checks += [(2, sys.modules, fn.__module__, module), (4, vars(module), fn.__qualname__, None)]
    pickler = sys.modules.get("cloudpickle.cloudpickle")
    if pickler is None:
        checks.append((3, sys.modules, "cloudpickle.cloudpickle", None))
    else:
        checks.append((5, None, "", pickler._PICKLE_BY_VALUE_MODULES))
    return tuple(checks)


def _checked(fn: Any, body: Definition) -> Definition:
    """A callable by value, whose functions may name some of a module that workers import (rule 5)."""
    known = _references.get(id(fn))
    if known is not None and known.ref() is fn and known.deps == [body.id] and known.marks.hold():
        return known.definition
    marks = _marks_of(fn)
    definition, data = body, b""
    if marks.found:
        alias = _ALIAS + marshal.dumps((body.id, 0), _MARSHAL_VERSION)
        data = _CHECKED + marshal.dumps((alias, marks.found, marks.since), _MARSHAL_VERSION)
        if known is not None and known.ref() is fn and known.deps == [body.id] and known.fixed == data:
            known.marks = marks
            return known.definition
        definition = _new_definition(data, [body])
    ref = _weakref.ref(fn, _dropper(_references, id(fn)))
    made = _references[id(fn)] = _Referenced(ref, definition, [body.id], data, marks)
    made.body = body
    if marks.found:
        _remember_checked(definition, _weakref.ref(fn), "", marks)
    return definition


def _record_pickled(fn: Callable[..., Any]) -> Definition:
    # Bound methods are made anew at each access; what they are bound to is what lasts.
    anchor = fn.__self__ if isinstance(fn, MethodType) else fn
    key = id(anchor) ^ id(fn.__func__) if isinstance(fn, MethodType) else id(fn)
    deps: list[Definition] = []
    known = _references.get(key)
    if known is not None and (known.ref() is not anchor or known.body is not None):
        known = None
    marks = known.marks if known is not None and known.marks.hold() else _marks_of(fn)
    name = _importable_name(fn)
    if name:
        data = _NAMED + marshal.dumps(name, _MARSHAL_VERSION)
    else:
        try:
            data = _with_buffers(_pickle.dumps(fn, 5, buffer_callback=_placer(deps)), deps)
        except Exception:
            data = b"__main__"
        if not plain_pickles_suffice(data):
            data, deps = _dumps(fn)
        data = _PLAIN + data
    if marks.found:
        data = _CHECKED + marshal.dumps((data, marks.found, marks.since), _MARSHAL_VERSION)
    ids = [dep.id for dep in deps]
    if known is not None and known.fixed == data and known.deps == ids:
        known.marks = marks
        return known.definition
    definition = _new_definition(data, deps)
    try:
        ref = _weakref.ref(anchor, _dropper(_references, key))
    except TypeError:
        return definition
    _references[key] = _Referenced(ref, definition, ids, data, marks)
    if marks.found:
        method = fn.__name__ if isinstance(fn, MethodType) else ""
        _remember_checked(definition, _weakref.ref(anchor), method, marks)
    return definition


def frames_by_value(definition_id: int, modules: list[str]) -> tuple[int, list[tuple[int, bytes]]]:
    """What a definition by reference means, by value, because a worker imports other code (rule 5). Also
    since when: definitions that were made before may still mean the modules' functions by reference.

    Of the modules named, those that the definition has to do with go by value from here on, until they are
    loaded anew. Raises `Unsendable` if that is not possible, and LookupError if the function is gone.
    """
    global _epoch, _hidden, _outdatings
    with _definitions.lock:
        ref, method, its_own = _checked_ones.get(definition_id, (None, "", ()))
        fn = ref() if ref is not None else None
        if fn is None:
            raise LookupError("it no longer exists there")
        if method:
            fn = getattr(fn, method)
        for name in modules:
            if name in its_own:
                _outdated[name] = getattr(sys.modules.get(name), "__spec__", None)
        for node in list(_nodes.values()):
            node.stamps = None  # it may hold what the module had when it went by reference
        _epoch += 1
        _outdatings += 1
        _hidden = (0, 0, ())
        from rightlane import _native

        # Nothing lends their buffers to the worker.
        outer = _native.keep_in_band(True)
        try:
            return _outdatings, record(fn).frames()
        finally:
            _native.keep_in_band(outer)


def _remember_checked(definition: Definition, ref: Any, method: str, marks: _Marks) -> None:
    """A worker may ask for what this definition means, also when another has taken its place here."""
    if len(_checked_ones) >= _KEEP:
        for number in [number for number, (ref, _, _) in _checked_ones.items() if ref() is None]:
            del _checked_ones[number]
        if len(_checked_ones) >= _KEEP:
            del _checked_ones[next(iter(_checked_ones))]
    _checked_ones[definition.id] = ref, method, tuple({module for module, _, _ in marks.found})


# By number: what they were made from, as in `_Referenced`, and the modules that they name.
_checked_ones: dict[int, tuple[Any, str, tuple[str, ...]]] = {}

# What code a definition by reference stands for ---------------------------------------------------

_MOST_MARKS = 64
_MOST_CHECKS = 24


class _Marks:
    """The code behind a callable that a worker is to import, and what must be the same for it to be so still.

    `found` is for the worker: module, qualified name and fingerprint; without a name, when its file changed.
    `stamps` are an object, the name of an attribute, and what that must be; functions, classes and modules by
    weak references.
    """

    __slots__ = ("found", "since", "stamps")

    def __init__(self) -> None:
        self.since = _outdatings
        self.found: tuple[tuple[str, str, Any], ...] = ()
        self.stamps: list[tuple[Any, str, Any]] = []

    def hold(self) -> bool:
        if self.since != _outdatings:
            return False
        for ref, name, wanted in self.stamps:
            obj = ref()
            if obj is None or not _same(getattr(obj, name, _MISSING), wanted):
                return False
        return True

    def checks(self) -> list[tuple[int, Any, str, tuple[Any, Any]]] | None:
        """The same for `known.rs`, if it is short."""
        if len(self.stamps) > _MOST_CHECKS:
            return None
        found = []
        for ref, name, wanted in self.stamps:
            obj, value = ref(), wanted() if type(wanted) is _weakref.ref else wanted
            if obj is None or value is None:
                return None
            found.append((6, None, name, (obj, value)))
        return found

    def reloaded(self, name: str) -> tuple[str, str, int]:
        """The mark of a module that was loaded anew: its data may be other data, so no worker may have it
        that is older than its file.
        """
        try:
            changed_ns = posix.stat(sys.modules[name].__spec__.origin).st_mtime_ns  # type: ignore[union-attr, arg-type]
        except (AttributeError, OSError, TypeError, ValueError):
            changed_ns = 0
        return name, "", changed_ns

    def stamp(self, obj: Any, name: str, wanted: Any) -> None:
        try:
            self.stamps.append((_weakref.ref(obj), name, wanted))
        except TypeError:
            pass  # something of the user's that stands in for a module


def _marks_of(fn: Any) -> _Marks:
    """The code that a call of `fn` enters by names that a worker imports.

    Of a user's module not only what is called, but also what that names in turn, as far as it is in such a
    module: an edit of a helper changes what a function does as much as one of its own lines. Installed
    packages are taken at their word beyond the function itself. Modules that an import hook made (pytest's
    assertions, say) are not looked at: a worker without the hook has other code, and always had.
    """
    marks = _Marks()
    found: dict[tuple[str, str], Any] = {}
    seen: set[int] = set()
    modules: dict[str, None] = {}  # of the user's, that a worker imports
    todo = [_entered(fn)]
    while todo and len(found) < _MOST_MARKS:
        obj = todo.pop()
        if id(obj) not in seen and _has_code(obj):
            seen.add(id(obj))
            try:
                todo += _mark(obj, marks, found, modules)
            except Exception:  # a class whose metaclass gives no straight answers
                continue
    for name in modules:
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        if module is not None and spec is not None:
            marks.stamp(module, "__spec__", spec)
            if _specs.setdefault(name, spec) is not spec:
                _specs[name] = spec
                _reloaded.add(name)
    marks.found = tuple((*key, value) for key, value in found.items())
    marks.found += tuple(marks.reloaded(name) for name in modules if name in _reloaded)
    return marks


def _mark(obj: Any, marks: _Marks, found: dict[tuple[str, str], Any], modules: dict[str, None]) -> list[Any]:
    """Add the marks of one function or class; returns what these name."""
    module, qualname = obj.__module__, obj.__qualname__
    is_class = issubclass(type(obj), type)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return []
    if is_class and not obj.__flags__ & _HEAP_TYPE:
        return []
    named: list[Any] = []
    if _by_value(obj):
        # Its own code comes along; what it changes to has a new definition.
        for member in list(vars(obj).values()) if is_class else [obj]:
            for function in _definitions.functions_behind(member):
                named += _named_by(function, modules)
        return named
    if _loaded_by_hook(module):
        return []
    users = _is_users(module)
    if users:
        modules[module] = None
    if "." not in qualname:
        marks.stamp(sys.modules[module], qualname, _weakref.ref(obj))
    members: list[tuple[str, Any]] = [(qualname, obj)]
    if is_class:
        members = [(f"{qualname}.{name}", value) for name, value in list(vars(obj).items())]
        named += [base for base in obj.__bases__ if _has_users_code(base)]
    for name, member in members:
        functions = _definitions.functions_behind(member)
        # Generated methods, as those of data classes, follow from what the class says.
        if functions and not (is_class and functions[0].__code__.co_filename[:1] == "<"):
            found[module, name] = _definitions.fingerprint(member)
            for function in functions:
                marks.stamp(function, "__code__", function.__code__)
                if users:
                    named += _named_by(function, modules)
    return named


def _entered(fn: Any) -> Any:
    """What a call of `fn` calls first that has a name."""
    for _ in range(16):
        if isinstance(fn, MethodType):
            fn = fn.__func__
        elif type(fn).__name__ == "partial" and type(fn).__module__ == "functools":
            fn = fn.func
        else:
            break
    return fn if _has_code(fn) else type(fn).__call__ if callable(fn) else None


def _has_code(obj: Any) -> bool:
    """Whether it is a function or a class. By its type alone: nothing of the user's must run here."""
    kind = type(obj)
    return kind is FunctionType or issubclass(kind, type) or kind.__name__ == "_lru_cache_wrapper"


def _loaded_by_hook(module: str) -> bool:
    loader = getattr(getattr(sys.modules.get(module), "__spec__", None), "loader", None)
    return type(loader).__module__ not in ("_frozen_importlib_external", "zipimport")


def _is_users(module: str) -> bool:
    top = module.partition(".")[0]
    if top == "__main__":
        return True
    if top in sys.stdlib_module_names or top == _PACKAGE:
        return False
    origin = getattr(getattr(sys.modules.get(module), "__spec__", None), "origin", None)
    return isinstance(origin, str) and "/site-packages/" not in origin and "/dist-packages/" not in origin


# The specs under which modules were first seen here, and those that have been loaded anew since.
_specs: dict[str, Any] = {}
_reloaded: set[str] = set()


def _named_by(fn: FunctionType, used: dict[str, None]) -> Iterator[Any]:
    """Functions and classes of a user's modules that the code of `fn` may mean by its names.

    The modules it names are added to `used`.
    """
    for value in map(_contents, fn.__closure__ or ()):
        if _has_users_code(value):
            yield value
    names: set[str] = set()
    codes = [fn.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes.extend(const for const in code.co_consts if type(const) is CodeType)
    modules = []
    order = sorted(names)
    for name in order:
        # One that is no global may be a module that the function imports by itself.
        value = fn.__globals__[name] if name in fn.__globals__ else sys.modules.get(name)
        if type(value) is ModuleType:
            known_as = getattr(value, "__name__", None)
            if isinstance(known_as, str) and _is_users(known_as):
                modules.append(vars(value))
                if _importable(known_as) and not _loaded_by_hook(known_as):
                    used[known_as] = None
        elif _has_users_code(value):
            yield value
    for space in modules:
        yield from (space[name] for name in order if _has_users_code(space.get(name)))


def _has_users_code(value: Any) -> bool:
    if not _has_code(value):
        return False
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and _is_users(module)


def _importable_name(fn: Callable[..., Any]) -> tuple[str, str] | None:
    """Module and name of a function or class for which these say all, as its pickle would."""
    kind = type(fn)
    if kind is not FunctionType and kind is not type:
        if kind is not BuiltinFunctionType or type(fn.__self__) is not ModuleType:  # type: ignore[attr-defined]
            return None
    module, qualname = fn.__module__, fn.__qualname__
    if type(module) is not str or type(qualname) is not str:
        return None
    return (module, qualname) if _importable(module) and _resolves(fn, module, qualname) else None


def dumps(obj: Any, name: str = "args") -> tuple[bytes, list[Definition]]:
    """Pickle arguments that plain pickling refuses or would tie to `__main__`, with the definitions they
    refer to.

    Raises `Unsendable` with a path that starts at `name`.
    """
    try:
        return _dumps(obj)
    except Unsendable as error:
        raise Unsendable(find_culprit(obj, name), error.reason) from error.__cause__


def _dumps(obj: Any) -> tuple[bytes, list[Definition]]:
    deps: list[Definition] = []
    collector = _Collector()
    unit = collector.pickle(obj, final=deps)
    entries = collector.entries()
    data = unit.data
    deps += unit.buffers
    if entries or collector.namespaces:
        with _definitions.lock:
            body = _Body(unit, collector.namespaces, entries, collector.imports(entries))
            body.announce()
            deps += body.buffers()

            def address(node: _Node) -> Address:
                definition, index = _address(node)
                deps.append(definition)
                return definition.id, index

            data = _pickle.dumps(_Loaded(marshal.dumps(body.wire(address), _MARSHAL_VERSION)), 5)
    return data, list({dep.id: dep for dep in deps}.values())


class _Loaded:
    """Pickles as a call of `_load_body`."""

    __slots__ = ("wire",)

    def __init__(self, wire: bytes) -> None:
        self.wire = wire

    def __reduce__(self) -> Reduced:
        return _load_body, (self.wire,)


# Which part of an object cannot be sent -----------------------------------------------------------


def find_culprit(
    obj: Any, root_name: str, dump: Callable[[Any], object] | None = None, seconds: float = 2.0
) -> str:
    """The path of the smallest part of `obj` that cannot be pickled, found by pickling its parts with `dump`.

    The walk ends at 24 levels, 2,000 attempts or after `seconds`; the path is then that of the smallest part
    known so far.
    """
    import time

    deadline = time.monotonic() + seconds
    attempts = 2000
    path = root_name
    seen = {id(obj)}
    for _ in range(24):
        for step, part in _parts_of(obj):
            attempts -= 1
            if attempts < 0 or time.monotonic() > deadline:
                return path
            if id(part) not in seen and not _picklable(part, dump or _dumps):
                seen.add(id(part))
                obj, path = part, path + step
                break
        else:
            break
    return path


def _picklable(obj: Any, dump: Callable[[Any], object]) -> bool:
    if type(obj) in _ATOMS:
        return True
    try:
        dump(obj)
    except Exception:
        return False
    return True


def _parts_of(obj: Any) -> Iterator[tuple[str, Any]]:
    """The parts of an object that pickling visits, with the step that leads to each. Never raises."""
    try:
        yield from _steps(obj)
    except Exception:
        return


def _steps(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, dict):
        for key, value in list(dict.items(obj)):
            yield f"[{_short(key)}]", value
            yield f".key({_short(key)})", key
    elif isinstance(obj, list | tuple):
        for i, value in enumerate(list(obj)):
            yield f"[{i}]", value
    elif isinstance(obj, set | frozenset):
        for value in list(obj):
            yield f".element({_short(value)})", value
    if isinstance(obj, MethodType):
        yield ".__self__", obj.__self__
        return
    if isinstance(obj, FunctionType):
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=False):
            if (value := _contents(cell)) is not _MISSING:
                yield f".<cell {name}>", value
        for i, value in enumerate(obj.__defaults__ or ()):
            yield f".__defaults__[{i}]", value
        for name, value in (obj.__kwdefaults__ or {}).items():
            yield f".__kwdefaults__[{name!r}]", value
        if not _uses_real_module(obj):
            for name in _global_names(obj.__code__)[0]:
                if name in obj.__globals__:
                    yield f".__globals__[{name!r}]", obj.__globals__[name]
    if isinstance(obj, type):
        for name, value in list(vars(obj).items()):
            if name not in ("__dict__", "__weakref__"):
                yield f".{name}", getattr(value, "__func__", value)
        return
    if type(obj).__name__ == "partial" and type(obj).__module__ == "functools":
        yield ".func", obj.func
        yield from ((f".args[{i}]", value) for i, value in enumerate(obj.args))
        yield from ((f".keywords[{name!r}]", value) for name, value in obj.keywords.items())
    state = getattr(obj, "__dict__", None)
    getstate: Any = type(obj).__getstate__
    if getstate is not object.__getstate__:
        state = obj.__getstate__()
        state = state[0] if isinstance(state, tuple) and state and isinstance(state[0], dict) else state
    kind = type(obj)
    if kind not in _ATOMS and not isinstance(obj, FunctionType | ModuleType) and _by_value(kind):
        yield ".__class__", kind
    if isinstance(state, dict):
        for name, value in list(state.items()):
            yield (f".{name}" if isinstance(name, str) else f".__dict__[{_short(name)}]"), value
    for kind in type(obj).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield f".{name}", getattr(obj, name)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


def dumps_result(obj: Any, name: str = "result") -> bytes:
    """Pickle a result that plain pickling refuses or would tie to `__main__`.

    What came from the parent goes back as its id. What the task itself made goes by value, through
    cloudpickle. Raises `Unsendable` with a path that starts at `name`.
    """
    try:
        return dumps_back(obj)
    except Unsendable as error:
        raise Unsendable(find_culprit(obj, name, dumps_back), error.reason) from error.__cause__


def dumps_back(obj: Any) -> bytes:
    """As `dumps_result`, without looking for the part that cannot be pickled."""
    for light in (True, False):
        try:
            data: bytes = _result_pickler(light)().finish(obj)
            return data
        except MemoryError:
            raise
        except Exception as error:
            if not light or not isinstance(error, _RETRY):
                raise Unsendable("", _reason(error)) from error
    raise AssertionError("unreachable")


_result_pickler_kinds: dict[bool, Any] = {}


def _result_pickler(light: bool) -> Any:
    kind = _result_pickler_kinds.get(light)
    if kind is None:
        if light:
            base: Any = _pickle.Pickler
        else:
            import cloudpickle

            base = cloudpickle.Pickler

        class ResultPickler(base):  # type: ignore[misc]
            def __init__(self) -> None:
                self.file = io.BytesIO()
                super().__init__(self.file, protocol=5)

            def finish(self, obj: Any) -> bytes:
                self.dump(obj)
                return self.file.getvalue()

            def reducer_override(self, obj: Any) -> Any:
                kind = type(obj)
                if kind is FunctionType or issubclass(kind, type):
                    address = _definitions.address_of(obj)
                    if address is not None:
                        return resolve_parent, (address if address[1] else address[:1])
                    if light and obj not in _BUILTIN_TYPES and _by_value(obj):
                        raise _NeedsCloudpickle
                elif light and issubclass(kind, ModuleType):
                    raise _NeedsCloudpickle
                return NotImplemented if light else super().reducer_override(obj)

        kind = _result_pickler_kinds[light] = ResultPickler
    return kind
