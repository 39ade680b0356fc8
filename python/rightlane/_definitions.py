"""What a worker does with definitions: keeps what it was sent, and makes functions and classes of it.

The other half, how the parent makes definitions, is `_byvalue`, and the top of that module says what a
definition is. This half is on the way to the first result of every worker, so it imports nothing that a plain
function does not need: what an interpreter has when it is up, and no pickler. Such a function travels by
`marshal`; the pickler comes with the first object that needs it.

What travels by reference may be checked first: it says what code the parent has under its names, and where
that is not what this worker has imported, nothing of it is run (rule 5); `_outdated` knows what to do then.

There is one namespace per module name (rule 6). A global is installed when it differs from what was last sent
under its name, unless the worker itself has bound that name since. An object is registered before its state
is filled, which is what lets cycles close.

Threads. Resolving holds a re-entrant lock, which it shares with the pickling half: a worker may have workers
of its own. User code (`__reduce__`, `__setstate__`) runs inside it.
"""

from __future__ import annotations

import _imp
import _thread
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
    from typing import Any, TypeAlias

    Address: TypeAlias = tuple[int, int]
    # Module and hash of each piece of code behind a name; that with what the parent has under a name.
    Fingerprint: TypeAlias = tuple[tuple[str, bytes], ...]
    Mark: TypeAlias = tuple[str, str, Any]
else:
    FunctionType = type(lambda: 0)
    BuiltinFunctionType = type(len)
    ModuleType = type(sys)
    CellType = type((lambda x: lambda: x)(0).__closure__[0])
    CodeType = type((lambda: 0).__code__)
    MethodType = type((lambda self: 0).__get__(0))

__all__ = [
    "Outdated",
    "address_of",
    "code_hash",
    "define",
    "fingerprint",
    "forget",
    "functions_behind",
    "is_foreign",
    "is_lasting",
    "resolve",
    "start_worker",
    "substitute",
]

_MISSING: Any = object()
_SELF = -1  # the definition id by which a group refers to its own members
_PLAIN, _NAMED, _GROUP, _ALIAS, _CHECKED, _BUFFER = b"P", b"N", b"G", b"A", b"C", b"B"
_REF, _MODULE, _BLOB, _GONE = range(4)
# How the bytes of one object begin that was written without a pickler; a pickle begins with an opcode, PROTO.
_PLAIN_FUNCTION, _PLAIN_VALUE = b"F", b"V"

lock = _thread.RLock()


def _renew_lock() -> None:
    """A forked child must not inherit a lock that another thread of its parent held."""
    global lock
    lock = _thread.RLock()


posix.register_at_fork(after_in_child=_renew_lock)


def is_lasting(fn: Any) -> bool:
    """Whether a callable may be kept from one task to the next.

    Functions and classes may. A bound method, a partial or any other object with a state of its own is
    unpickled anew, so that a task never sees what an earlier one did to it.
    """
    return isinstance(fn, (FunctionType, type)) or (
        isinstance(fn, BuiltinFunctionType) and isinstance(fn.__self__, (ModuleType, type(None)))
    )


class Outdated(Exception):
    """This worker has imported other code than the parent has under the same names (rule 5).

    `marks` are those of the parent that do not hold here, with what is here instead.
    """

    def __init__(self, marks: list[tuple[Mark, Fingerprint]]) -> None:
        super().__init__(marks)
        self.marks = marks


_MOST_WRAPPED = 16


def functions_behind(obj: Any) -> list[FunctionType]:
    """The functions that a call of `obj` enters: its own, and what that wraps, as `functools.wraps` says.

    Nothing of the user's runs here: only objects of these very kinds are looked at.
    """
    found: list[FunctionType] = []
    for _ in range(_MOST_WRAPPED):
        kind = type(obj)
        if kind is FunctionType:
            found.append(obj)
            obj = obj.__dict__.get("__wrapped__")
        elif kind is staticmethod or kind is classmethod or kind is MethodType:
            obj = obj.__func__
        elif kind.__name__ == "_lru_cache_wrapper" and kind.__module__ == "functools":
            obj = obj.__wrapped__
        elif kind is property:
            for accessor in (obj.fget, obj.fset, obj.fdel):
                found += functions_behind(accessor)
            break
        else:
            break
    return found


def fingerprint(obj: Any) -> Fingerprint:
    """What tells the code behind a name from other code: where each part is at home, and its hash."""
    return tuple(
        (str(fn.__globals__.get("__name__", "")), code_hash(fn.__code__)) for fn in functions_behind(obj)
    )


def code_hash(code: CodeType) -> bytes:
    """Equal for equal code in any process of this interpreter, wherever it was compiled, or read from a
    cache.

    Neither file nor line nor the table of lines counts, as they differ where nothing else does. `co_code` is
    what was compiled, whatever the interpreter or a tracing tool has put in its place since.
    """
    return _imp.source_hash(_HASH_KEY, marshal.dumps(_canonical(code), 2))


_HASH_KEY = 5


def _canonical(value: Any) -> Any:
    kind = type(value)
    if kind is CodeType:
        return (
            value.co_code,
            tuple(map(_canonical, value.co_consts)),
            value.co_names,
            value.co_varnames,
            value.co_freevars,
            value.co_cellvars,
            (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags),
            value.co_exceptiontable,
            value.co_name,
        )
    if kind is tuple:
        return tuple(map(_canonical, value))
    if kind is frozenset:  # its order is that of the strings' hashes, and differs from run to run
        return [sorted(marshal.dumps(_canonical(part), 2) for part in value)]
    return value if kind in _CONSTANTS else [repr(value)]


_CONSTANTS = frozenset({int, float, complex, bool, str, bytes, type(None), type(...)})


def _loads(data: Any) -> Any:
    """Make the object that these bytes describe."""
    kind = data[:1]
    if kind == _PLAIN_FUNCTION:
        return _plain_function(*marshal.loads(memoryview(data)[1:]))
    if kind == _PLAIN_VALUE:
        return marshal.loads(memoryview(data)[1:])
    import _pickle

    return _pickle.loads(data)


class _Worker:
    """All that a worker knows of its parent's definitions."""

    def __init__(self) -> None:
        self.blobs: dict[int, bytes] = {}
        self.groups: dict[int, tuple[Any, ...]] = {}
        self.objects: dict[Address, Any] = {}
        self.addresses: dict[int, Address] = {}  # by id(): the object is held by `objects`
        self.aliases: dict[int, Address] = {}
        self.spaces: dict[str, dict[str, Any]] = {}
        self.modules: dict[str, ModuleType] = {}  # those that no import finds, by namespace key
        self.sent: dict[tuple[str, str], tuple[Any, Any]] = {}
        self.loading: list[_Load] = []
        self.started_ns = 0
        self.by_value: dict[str, int] = {}  # modules that could be imported, and with which case they came so
        self.undo: list[Callable[[], object]] = []  # what the outermost load under way did, to be taken back

    def resolve(self, definition_id: int, index: int) -> Any:
        obj = self.objects.get((definition_id, index), _MISSING)
        if obj is not _MISSING:
            return obj
        with lock:
            if not self.loading:
                self.resolve_foundations(definition_id)
            obj = self.objects.get((definition_id, index), _MISSING)
            return obj if obj is not _MISSING else self.load(definition_id, index)

    def resolve_foundations(self, definition_id: int) -> None:
        """Load what a definition refers to from the bottom up: a long chain of functions must not recurse."""
        order: list[int] = []
        seen: set[int] = set()
        todo = [(definition_id, False)]
        while todo:
            each, visited = todo.pop()
            if visited:
                order.append(each)
            elif each not in seen and (each, 0) not in self.objects:
                seen.add(each)
                todo.append((each, True))
                todo.extend((other, False) for other in self.foundations(each))
        for each in order[:-1]:
            for index in range(len(self.groups.get(each, ()))):
                if (each, index) not in self.objects:
                    self.load(each, index)

    def foundations(self, definition_id: int) -> Iterator[int]:
        group = self.groups.get(definition_id)
        if group is None:
            blob = self.blobs.get(definition_id, b"")
            if blob[:1] == _CHECKED:
                blob = marshal.loads(memoryview(blob)[1:])[0]
            if blob[:1] == _ALIAS:
                yield marshal.loads(memoryview(blob)[1:])[0]
            if blob[:1] != _GROUP:
                return
            group = self.groups[definition_id] = marshal.loads(memoryview(blob)[1:])
        for _, refs, _, entries, _ in group:
            named = list(refs)
            for _, _, kind, value in entries:
                named += [value] if kind == _REF else value[1] if kind == _BLOB else ()
            yield from (other for other, _ in named if other != _SELF)

    def load(self, definition_id: int, index: int) -> Any:
        group = self.groups.get(definition_id)
        if group is None:
            blob = self.blobs.get(definition_id)
            if blob is None:
                import _pickle

                raise _pickle.UnpicklingError(f"definition {definition_id} was never sent to this worker")
            if blob[:1] == _CHECKED:
                blob, marks, since = marshal.loads(memoryview(blob)[1:])
                if blob[:1] == _ALIAS:
                    # By value: what it names is imported as it is made.
                    obj = self.resolve(*marshal.loads(memoryview(blob)[1:]))
                    _check(marks, since, False)
                    self.objects[definition_id, 0] = obj
                    return obj
                _check(marks, since, True)
            kind, data = blob[:1], memoryview(blob)[1:]
            if kind == _BUFFER:
                from rightlane import _native

                # Never kept: whoever is given it may write there.
                return _native.view_buffer(bytes(data))
            if kind == _PLAIN or kind == _NAMED:
                # Without an address: a result names such an object as its own pickle does.
                obj = _loads(data) if kind == _PLAIN else _named(*marshal.loads(data))
                if is_lasting(obj):
                    self.objects[definition_id, 0] = obj
                return obj
            if kind == _ALIAS:
                obj = self.resolve(*marshal.loads(data))
                self.objects[definition_id, 0] = obj
                return obj
            group = self.groups[definition_id] = marshal.loads(data)
        load = _Load(definition_id, index, group[index])
        start = len(self.undo)
        self.loading.append(load)
        try:
            obj = _loads(load.data)
        except BaseException:
            # The next task must find neither what is half filled, nor what was loaded meanwhile and refers to
            # it.
            while len(self.undo) > start:
                self.undo.pop()()
            raise
        finally:
            self.loading.pop()
            if not self.loading:
                self.undo.clear()
        return obj

    def register(self, address: Address, obj: Any) -> None:
        self.objects[address] = obj
        self.addresses[id(obj)] = address

    def unregister(self, address: Address) -> None:
        obj = self.objects.pop(address, _MISSING)
        if obj is not _MISSING and self.addresses.get(id(obj)) == address:
            del self.addresses[id(obj)]

    def created(self, obj: Any) -> None:
        """The object being loaded exists, still empty: from here on, cycles find it."""
        load = self.loading[-1]
        address = load.definition_id, load.index
        self.register(address, obj)
        self.undo.append(lambda: self.unregister(address))
        self.install(load)

    def reference(self, load: _Load, address: Address) -> Any:
        definition_id, index = address
        return self.resolve(load.definition_id if definition_id == _SELF else definition_id, index)

    def install(self, load: _Load) -> None:
        for name in load.imports:
            _import(name)
        for space, name, kind, value in load.entries:
            key: Any = (kind, value)
            if kind == _REF:
                key = (kind, (load.definition_id if value[0] == _SELF else value[0], value[1]))
            elif kind == _BLOB:
                key = (
                    kind,
                    value[0],
                    [(load.definition_id if r[0] == _SELF else r[0], r[1]) for r in value[1]],
                )
            last = self.sent.get((space, name))
            if last is not None and last[0] == key:
                continue
            names = self.namespace(space, load)
            if name in names and (last is None or names[name] is not last[1]):
                continue  # bound by the worker itself, which wins
            if kind == _GONE:
                self.bind(names, space, name, key, _MISSING)
                continue
            if kind == _REF:
                made = self.reference(load, value)
            elif kind == _MODULE:
                made = _import(value)
            else:
                made = self.unpickle_global(load, value)
            last = self.sent.get((space, name))
            if last is None or last[0] != key:  # a nested load may have installed it
                self.bind(names, space, name, key, made)

    def bind(self, names: dict[str, Any], space: str, name: str, key: Any, value: Any) -> None:
        before, sent = names.get(name, _MISSING), self.sent.get((space, name))

        def put(value: Any, sent: tuple[Any, Any] | None) -> None:
            if value is _MISSING:
                names.pop(name, None)
            else:
                names[name] = value
            if sent is None:
                self.sent.pop((space, name), None)
            else:
                self.sent[space, name] = sent

        put(value, (key, value))
        self.undo.append(lambda: put(before, sent))

    def unpickle_global(self, load: _Load, unit: tuple[bytes, tuple[Address, ...]]) -> Any:
        self.loading.append(load.part(unit))
        try:
            return _loads(unit[0])
        finally:
            self.loading.pop()

    def namespace(self, key: str, load: _Load | None = None) -> dict[str, Any]:
        names = self.spaces.get(key)
        if names is None:
            if key.startswith("import "):
                names = vars(_import(key[7:]))
            elif key == "__main__":
                names = vars(sys.modules["__main__"])
            else:
                described = dict(load.namespaces).get(key) if load is not None else None
                module, package, file = described or (key.partition(" ")[0], None, None)
                # The module object carries the namespace; it stays out of sys.modules, where imports would
                # find it.
                made = self.modules[key] = ModuleType(module or "__main__")
                names = vars(made)
                names["__builtins__"] = sys.modules["builtins"]
                names["__package__"] = package
                if file is not None:
                    names["__file__"] = file
            self.spaces[key] = names
        return names


class _Load:
    """One body being unpickled: whose it is, and what its positions mean."""

    __slots__ = ("data", "definition_id", "entries", "imports", "index", "namespaces", "refs")

    def __init__(self, definition_id: int, index: int, wire: tuple[Any, ...]) -> None:
        self.definition_id = definition_id
        self.index = index
        self.data, self.refs, self.namespaces, self.entries, self.imports = wire

    def part(self, unit: tuple[bytes, tuple[Address, ...]]) -> _Load:
        return _Load(self.definition_id, self.index, (*unit, self.namespaces, (), ()))


_worker = _Worker()


def start_worker(
    main_file: str | None = None,
    main_name: str | None = None,
    main_package: str | None = None,
    started_ns: int = 0,
) -> None:
    """Give this process an empty `__main__` and forget every definition.

    `main_file`, `main_name` (the module name given to `python -m`) and `main_package` are those of the
    parent's main module, which is never run here. `started_ns` is when this process became a worker.
    """
    global _worker
    main = ModuleType("__main__")
    names = vars(main)
    names["__builtins__"] = sys.modules["builtins"]
    if main_file is not None:
        names["__file__"] = main_file
    if main_package is not None:
        names["__package__"] = main_package
    if main_name is not None:
        spec: Any = getattr(sys, "__spec__", None)  # spares the import of importlib.machinery
        main.__spec__ = type(spec)(main_name, None, origin=main_file)
    sys.modules["__main__"] = main
    _worker = _Worker()
    _worker.started_ns = started_ns


def define(definition_id: int, blob: bytes) -> None:
    """Store a definition. Nothing is unpickled, so no code of the user runs."""
    _worker.blobs[definition_id] = blob


def forget(definition_id: int) -> None:
    """Drop a definition that no message will name again. Objects that the user's code still holds live on.

    Classes keep their address: an instance may still come back, and sent by value, it would reset the
    parent's class.
    """
    worker = _worker
    worker.blobs.pop(definition_id, None)
    group = worker.groups.pop(definition_id, None)
    for index in range(len(group) if group else 1):
        if not isinstance(worker.objects.get((definition_id, index)), type):
            worker.unregister((definition_id, index))


def substitute(
    definition_id: int, frames: list[tuple[int, bytes]], modules: Iterable[str], since: int
) -> None:
    """From now on the first of `frames`, ids and bytes of definitions, is what this definition means.

    That is by value, and so are the functions of these modules from this case on.
    """
    _worker.by_value.update(dict.fromkeys(modules, since))
    for other, blob in frames:
        _worker.blobs.setdefault(other, blob)
    first, blob = frames[0]
    # Only what has a group is named by other objects; the rest is its bytes.
    _worker.blobs[definition_id] = _ALIAS + marshal.dumps((first, 0), 2) if blob[:1] == _GROUP else blob


def resolve(definition_id: int, index: int = 0) -> Any:
    """The function, class or callable behind a definition, unpickled when first asked for."""
    return _worker.resolve(definition_id, index)


def address_of(obj: Any) -> Address | None:
    """Where the parent knows a function or class that came from there."""
    return _worker.addresses.get(id(obj))


# What pickles call in the worker ------------------------------------------------------------------


def _ref(position: int) -> Any:
    load = _worker.loading[-1]
    return _worker.reference(load, load.refs[position])


def _load_body(wire: bytes) -> Any:
    """Arguments that hold functions: their globals first, then the arguments themselves."""
    with lock:
        load = _Load(0, 0, marshal.loads(wire))
        worker = _worker
        worker.loading.append(load)
        try:
            worker.install(load)
            return _loads(load.data)
        finally:
            worker.loading.pop()
            if not worker.loading:
                worker.undo.clear()


def _load_placed(ids: tuple[int, ...], pickle: bytes) -> Any:
    """What was pickled beside its large buffers."""
    import _pickle

    return _pickle.loads(pickle, buffers=[_worker.resolve(id, 0) for id in ids])


def _plain_function(
    made: tuple[Any, ...],
    defaults: tuple[Any, ...] | None,
    kwdefaults: dict[str, Any] | None,
    annotations: tuple[tuple[str, bool, Any], ...],
    doc: str | None,
    contents: tuple[tuple[Any, ...], ...] | None,
) -> FunctionType:
    """A function that came without a pickle. Annotations that are built-in types are there by name."""
    code, space, name, qualname, module = made
    cells = None if contents is None else tuple(CellType(*content) for content in contents)
    fn = _make_function(code, space, name, qualname, module, cells, True)
    builtins = sys.modules["builtins"]
    known = {name: getattr(builtins, value) if named else value for name, named, value in annotations}
    _fill_function(fn, (defaults, kwdefaults, known, doc, None, None, ()))
    return fn


def _named(module: str, qualname: str) -> Any:
    found = _import(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _check(marks: tuple[Mark, ...], since: int, by_reference: bool) -> None:
    """Raise `Outdated` unless this worker has the code that the parent has.

    What is `by_reference` itself comes first, and is imported for that. Nor may it be of a module that came
    by value here and was not yet known to, `since` whatever number of such cases: its state is there.
    """
    outdated = []
    for at, mark in enumerate(marks):
        module, qualname, wanted = mark
        if by_reference and not at:
            _import(module)
        elif module not in sys.modules:
            continue  # whoever imports it gets what is there then
        found: Fingerprint = ()
        if not qualname:
            if _is_younger(wanted):
                outdated.append((mark, found))
            continue
        try:
            obj: Any = sys.modules[module]
            for part in qualname.split("."):
                # As it stands there, not as access to it would give it.
                static = vars(obj) if issubclass(type(obj), type) else {}
                obj = static[part] if part in static else getattr(obj, part)
            found = fingerprint(obj)
        except AttributeError:
            pass
        if found != wanted or since < _worker.by_value.get(module, 0):
            outdated.append((mark, found))
    if outdated:
        raise Outdated(outdated)


def _is_younger(changed_ns: int) -> bool:
    """Whether a file was changed in this worker's time: then it may have imported the older one."""
    import time  # built in

    # Files have their times from a coarser clock; what comes from the future would be younger than any
    # worker.
    return _worker.started_ns - _CLOCK_STEP_NS < changed_ns <= time.time_ns()


_CLOCK_STEP_NS = 50_000_000


def _import(name: str) -> Any:
    __import__(name)
    return sys.modules[name]


def _made_module(space: str) -> ModuleType:
    worker = _worker
    worker.namespace(space, worker.loading[-1] if worker.loading else None)
    return worker.modules[space]


def _fill_module(module: ModuleType, state: dict[str, Any]) -> None:
    vars(module).update(state)


def _new_cell() -> CellType:
    return CellType()


def _make_class(make: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    cls = make(*arguments)
    _worker.created(cls)
    return cls


def _make_function(
    code: bytes,
    space: str,
    name: str,
    qualname: str,
    module: str | None,
    cells: tuple[CellType, ...] | None,
    root: bool,
) -> FunctionType:
    worker = _worker
    load = worker.loading[-1] if worker.loading else None
    fn = FunctionType(marshal.loads(code), worker.namespace(space, load), name, None, cells)
    fn.__qualname__ = qualname
    fn.__module__ = module  # type: ignore[assignment]
    if root:
        worker.created(fn)
    return fn


def _fill_function(fn: FunctionType, state: tuple[Any, ...]) -> None:
    defaults, kwdefaults, annotations, doc, attributes, parameters, filled = state
    fn.__defaults__ = defaults
    fn.__kwdefaults__ = kwdefaults
    fn.__doc__ = doc
    if annotations:
        fn.__annotations__ = annotations
    if attributes:
        fn.__dict__.update(attributes)
    if parameters:
        fn.__type_params__ = parameters  # type: ignore[attr-defined,unused-ignore]
    for cell, value in filled:
        cell.cell_contents = value


def _cached(fn: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    from functools import lru_cache

    return lru_cache(maxsize, typed)(fn)


def is_foreign(module: object) -> bool:
    """Whether it belongs to the standard library or an installed package."""
    if type(module) is not str:
        return False
    top = module.partition(".")[0]
    if (top in sys.stdlib_module_names and top != "__main__") or top == "builtins":
        return True
    loaded = sys.modules.get(module)
    file = vars(loaded).get("__file__") if type(loaded) is ModuleType else None
    return isinstance(file, str) and ("/site-packages/" in file or "/dist-packages/" in file)
