"""Digests of state: what a function could change, written down before a call and after it.

A `Walk` takes notes of what a `_guard.Task` names, and `changed` compares two of them. Objects are taken
apart by their exact kinds, with the methods of the built-in types, so that nothing of the user's runs: no
`__eq__`, `__hash__`, `__repr__`, `__getattr__` or property. Iterators and files are left alone. The notes
hold immutable values, copies of those and addresses; they keep nothing of the user's alive, and are compared
without asking anybody.
"""

from __future__ import annotations

import sys
import time
from itertools import islice  # built in

from rightlane import _guard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FunctionType
    from typing import Any
else:
    FunctionType = type(lambda: 0)

__all__ = ["Walk", "changed"]

_KEYS = _guard.ATOMS | {tuple}
_GetSet = type(FunctionType.__dict__["__code__"])
_Member = type(FunctionType.__dict__["__globals__"])

_MOST_BYTES = 1 << 20
_ELEMENT_BYTES = 64  # what an element of a container counts as: looking at it takes some 30 ns
_MOST_OBJECTS = 2048  # of which there is time for some
_CLOCK_EVERY = 32  # objects
_SAMPLES = 4096
_TAIL = 8

# What stands in the notes for something that is looked at on its own, or was before; and for modules.
_NESTED, _SEEN, _MODULE = ("nested",), ("seen",), ("module",)

# Of the standard library's own classes these hold data in attributes, and nothing else.
_DATA_MODULES = frozenset({"collections", "types", "queue", "argparse", "os", "configparser"})


class _Spent(Exception):
    """The time for a digest is over."""


class _Layout:
    """How objects of a class are taken apart."""

    __slots__ = ("cached", "get_dict", "installed", "kind", "opaque", "slots")

    def __init__(self, kind: type) -> None:
        self.kind: Any = None
        self.get_dict: Any = None
        self.slots: list[tuple[str, Any]] = []
        self.cached: set[str] = set()  # attributes that `functools.cached_property` fills
        self.opaque = False
        mro = _guard.mro_of(kind)
        containers = _containers()
        self.kind = next((containers[base] for base in mro if base in containers), None)
        home = _guard.home_of(kind)
        self.installed = home == _guard.INSTALLED
        standard = home == _guard.STANDARD and _guard.module_of(kind) not in _DATA_MODULES
        if type(kind) is not type and _guard.name_of(type(kind)) in ("EnumType", "EnumMeta"):
            standard = True
        if standard:
            return  # a lock, a logger, a path, an iterator, a date: immutable, or its state means nothing
        python = False
        cached_property = _guard.loaded("functools", "cached_property")
        for base in mro:
            space = _guard.dict_of(base)
            if base is not object and base not in containers:
                python = python or "__slots__" in space
            for name, value in space.items():
                of = type(value)
                if name == "__dict__" and (of is _GetSet or of is _Member):
                    self.get_dict = self.get_dict or value.__get__
                elif of is _Member and name[:2] != "__":
                    self.slots.append((name, value.__get__))
                elif cached_property is not None and issubclass(of, cached_property):
                    self.cached.add(name)
        if self.kind is None and self.get_dict is None and not self.slots and not python:
            self.opaque = not _is_frozen(kind)


def _containers() -> dict[type, Any]:
    kinds: dict[type, Any] = dict(_BUILT_IN)
    for module, name, how in (
        ("_collections", "deque", Walk.of_deque),
        ("array", "array", Walk.of_buffer),
        ("numpy", "ndarray", Walk.of_array),
    ):
        kind = _guard.loaded(module, name)
        if kind is not None:
            kinds[kind] = how
    return kinds


def _is_frozen(kind: type) -> bool:
    """Whether it is one of NumPy's immutable kinds."""
    bases = [_guard.loaded("numpy", name) for name in ("generic", "dtype", "ufunc")]
    return any(base is not None and issubclass(kind, base) for base in bases)


class Walk:
    """One look at all that a function may change: for each thing in words, a list of what was found there.

    From the outside inwards, so that what is cut off by the limits lies deep.
    """

    def __init__(self, most_objects: int | None, patience_ns: int) -> None:
        self.notes: dict[str, list[Any]] = {}
        self.libraries: set[str] = set()  # those of them that may get their attributes when somebody asks
        self.modules: set[str] = set()  # whose attributes were looked at, by the names they go by
        self.cut = False
        self.objects = 0
        self._most_objects = most_objects
        self._bytes_left = _MOST_BYTES
        self._end_ns = time.thread_time_ns() + patience_ns
        self._todo: list[tuple[list[Any], str, Any]] = []
        self._seen: set[int] = set()
        self._classes: set[type] = set()
        self._layouts: dict[type, _Layout] = {}

    # Where to look

    def look(self, task: _guard.Task) -> None:
        try:
            for words, value in task.arguments:
                self.put(self._list(words), words, value)
            if task.owner is not None:
                self._owner(task.owner)
            if task.plan is not None:
                self.cut = task.plan.cut
                for fn, names in task.plan.functions:
                    self._function(fn, names)
            self._run()
        except _Spent:
            self.cut = True
        finally:
            # Nothing of it is to be held while the task runs.
            self._todo.clear()
            self._classes.clear()
            self._layouts.clear()

    def _list(self, words: str) -> list[Any]:
        return self.notes.setdefault(words, [])

    def _owner(self, owner: Any) -> None:
        kind = type(owner)
        if issubclass(kind, type):
            self._class(owner)
            return
        layout = self._layout(kind)
        if layout.kind is not None or layout.get_dict is None:
            self.put(self._list("`self`"), "`self`", owner)
            return
        self._seen.add(id(owner))
        self._class(kind)
        for name, value in self._attributes(owner, layout):
            words = f"`self.{name}`"
            self.put(self._list(words), words, value)

    def _function(self, fn: FunctionType, names: _guard.Names) -> None:
        space = fn.__globals__
        for name in names.globals_named:
            value = space.get(name, _guard.NOTHING)
            words = f"global `{name}`"
            if type(value) is _guard.ModuleType:
                self._list(words).append(_MODULE)
                self._module(value, name, names.attributes, 0)
            elif (
                value is not _guard.NOTHING and type(value) is not FunctionType
            ) or name in names.globals_stored:
                self.put(self._list(words), words, value)
        for name, value in _guard.contents(fn).items():
            words = f"closure variable `{name}`"
            self.put(self._list(words), words, value)
        code = fn.__code__
        if fn.__defaults__:
            positional = code.co_varnames[: code.co_argcount]
            for name, value in zip(positional[-len(fn.__defaults__) :], fn.__defaults__, strict=False):
                self._default(name, value)
        for name, value in (fn.__kwdefaults__ or {}).items():
            self._default(name, value)
        if fn.__dict__:
            words = f"attributes of `{fn.__name__}`"
            self.put(self._list(words), words, fn)

    def _default(self, name: str, value: Any) -> None:
        if type(value) not in _guard.ATOMS:
            words = f"the default of `{name}`"
            self.put(self._list(words), words, value)

    def _module(self, module: Any, known_as: str, attributes: set[str], depth: int) -> None:
        space = module.__dict__
        own = _guard.home(space.get("__name__")) == _guard.OWN
        if not own:
            self.libraries.add(known_as)
        self.modules.add(known_as)
        for name in attributes:
            value = space.get(name, _guard.NOTHING)
            kind = type(value)
            words = f"`{known_as}.{name}`"
            if kind is _guard.ModuleType:
                self._list(words).append(_MODULE)
                inside = value.__dict__.get("__name__") == f"{space.get('__name__')}.{name}"
                if inside and depth == 0:
                    self._module(value, f"{known_as}.{name}", attributes, 1)
            elif value is _guard.NOTHING:
                if own:
                    self._list(words).append(_MODULE)
            elif own:
                self.put(self._list(words), words, value)
            elif space is sys.__dict__ and value is sys.modules:
                continue
            elif kind in _guard.ATOMS or kind in _BUILT_IN or kind is _guard.loaded("os", "_Environ"):
                self.put(self._list(words), words, value)
            else:
                self._list(words).append(id(value))

    def _class(self, kind: Any) -> None:
        for base in _guard.mro_of(kind):
            if base in self._classes:
                continue
            self._classes.add(base)
            # Other metaclasses keep books of their own in their classes, such as those of `enum`.
            if _guard.home_of(base) != _guard.OWN or (
                type(base) is not type and _guard.name_of(type(base)) != "ABCMeta"
            ):
                continue
            title = _guard.name_of(base)
            for name, value in _guard.dict_of(base).items():
                plain = type(value) is FunctionType and not value.__dict__
                if not plain and (name[:2] != "__" or name[-2:] != "__"):
                    words = f"`{title}.{name}`"
                    self.put(self._list(words), words, value)

    # What is there

    def put(self, out: list[Any], words: str, value: Any) -> None:
        if type(value) in _guard.ATOMS or value is _guard.NOTHING:
            out.append(value)
        else:
            out.append(_NESTED)
            self._todo.append((out, words, value))

    def _put_all(self, out: list[Any], words: str, values: list[Any]) -> None:
        if _guard.ATOMS.issuperset(map(type, values)):
            out.append(tuple(values))
            return
        for value in values:
            if type(value) in _guard.ATOMS:
                out.append(value)
            elif len(self._todo) < _MOST_OBJECTS:
                out.append(_NESTED)
                self._todo.append((out, words, value))
            else:
                self.cut = True
                break

    def _run(self) -> None:
        clock, end_ns = time.thread_time_ns, self._end_ns
        for out, words, value in self._todo:
            if self.objects == self._most_objects:
                raise _Spent
            self.objects += 1
            # Never before the first ones: what lies outermost is seen, however long it took to list it.
            if self.objects % _CLOCK_EVERY == 0 and clock() > end_ns:
                raise _Spent
            if id(value) in self._seen:
                out.append(_SEEN)
                continue
            self._seen.add(id(value))
            self._visit(out, words, value)

    def _layout(self, kind: type) -> _Layout:
        layout = self._layouts.get(kind)
        if layout is None:
            layout = self._layouts[kind] = _Layout(kind)
        return layout

    def _visit(self, out: list[Any], words: str, value: Any) -> None:
        kind = type(value)
        if (simple := _BUILT_IN.get(kind)) is not None:
            simple(self, out, words, value)
        elif kind is FunctionType:
            out.append(id(value))
            for name, attribute in value.__dict__.items():
                if name[:2] != "__" and _guard.home(value.__globals__.get("__name__")) == _guard.OWN:
                    out.append(name)
                    self.put(out, words, attribute)
        elif kind is _guard.ModuleType:
            out.append(_MODULE)
        elif kind is _guard.MethodType:
            out.append(id(value.__func__))
            self.put(out, words, value.__self__)
        elif issubclass(kind, type):
            out.append(id(value))
            self._class(value)
        elif kind is _guard.loaded("itertools", "count"):
            self._counter(out, words, value)
        else:
            self._instance(out, words, value, self._layout(kind))

    @staticmethod
    def _counter(out: list[Any], words: str, value: Any) -> None:
        """An `itertools.count`: its state shows in its text alone, which is safe where it counts numbers."""
        import gc  # built in

        # Iterators are given as arguments so that something is taken from them.
        given = words.startswith("its argument")
        if given or not all(type(part) in _guard.ATOMS for part in gc.get_referents(value)):
            out.append(id(value))
        else:
            out.append(repr(value))

    def _instance(self, out: list[Any], words: str, value: Any, layout: _Layout) -> None:
        kind = type(value)
        if layout.kind is not None:
            layout.kind(self, out, words, value)
        if layout.get_dict is None and not layout.slots:
            if layout.kind is None:
                out.append(id(value))
                self.cut = self.cut or layout.opaque
            return
        out.append(id(kind))
        self._class(kind)
        for name, attribute in self._attributes(value, layout):
            if layout.installed and name[0] == "_":
                self.cut = True  # a library's own books, caches among them
                continue
            out.append(name)
            self.put(out, words, attribute)

    @staticmethod
    def _attributes(value: Any, layout: _Layout) -> list[tuple[str, Any]]:
        found = []
        if layout.get_dict is not None:
            space = layout.get_dict(value)
            if type(space) is dict:
                found = [
                    (name, attribute)
                    for name, attribute in space.items()
                    if type(name) is str and name[:2] != "__" and name not in layout.cached
                ]
        for name, get in layout.slots:
            try:
                found.append((name, get(value)))
            except AttributeError:
                found.append((name, _guard.NOTHING))
        return found

    # Containers; never by a method that a subclass may have replaced

    def _room(self, count: int) -> int:
        """How many elements may be looked at."""
        most = min(count, self._bytes_left // _ELEMENT_BYTES)
        self._bytes_left -= most * _ELEMENT_BYTES
        if most < count:
            self.cut = True
        elif most > 1000 and time.thread_time_ns() > self._end_ns:
            raise _Spent
        return most

    def of_list(self, out: list[Any], words: str, value: Any) -> None:
        count = list.__len__(value)
        out.append(count)
        room = self._room(count)
        self._put_all(out, words, list.__getitem__(value, slice(room)))
        if room < count:
            self._put_all(out, words, list.__getitem__(value, slice(-_TAIL, None)))

    def of_tuple(self, out: list[Any], words: str, value: Any) -> None:
        room = self._room(tuple.__len__(value))
        self._put_all(out, words, list(tuple.__getitem__(value, slice(room))))

    def of_dict(self, out: list[Any], words: str, value: Any) -> None:
        count = dict.__len__(value)
        out.append(count)
        room = self._room(2 * count) // 2
        keys = list(islice(dict.keys(value), room))
        values = list(islice(dict.values(value), room))
        if _guard.ATOMS.issuperset(map(type, keys)):
            out.append(tuple(keys))
        else:
            self._keys(out, words, keys)
        self._put_all(out, words, values)

    def _keys(self, out: list[Any], words: str, keys: list[Any]) -> None:
        # Tuples are often made anew for each use: what counts is what is in them.
        self.cut = self.cut or len(keys) > _MOST_OBJECTS
        del keys[_MOST_OBJECTS:]
        self._put_all(out, words, [key if type(key) in _KEYS else id(key) for key in keys])

    def of_set(self, out: list[Any], words: str, value: Any) -> None:
        iterate = set.__iter__ if issubclass(type(value), set) else frozenset.__iter__
        count = (set.__len__ if issubclass(type(value), set) else frozenset.__len__)(value)
        out.append(count)
        if self._room(count) < count:
            return
        parts = list(iterate(value))
        if _guard.ATOMS.issuperset(map(type, parts)):
            out.append(frozenset(parts))
            return
        if count > _MOST_OBJECTS:
            self.cut = True
            return
        out.append(frozenset(part if type(part) in _guard.ATOMS else id(part) for part in parts))
        self._put_all(out, words, [part for part in parts if type(part) not in _guard.ATOMS])

    def of_deque(self, out: list[Any], words: str, value: Any) -> None:
        deque = _guard.loaded("_collections", "deque")
        count = deque.__len__(value)
        out.append(count)
        if self._room(count) == count:
            self._put_all(out, words, list(deque.__iter__(value)))

    def of_buffer(self, out: list[Any], words: str, value: Any) -> None:
        with memoryview(value) as view:
            out.append(view.nbytes)
            if view.nbytes <= self._bytes_left:
                self._bytes_left -= view.nbytes
                out.append(view.tobytes())
                return
            self.cut = True
            if view.c_contiguous:
                # What is done to all of it shows in a few places.
                flat = view.cast("B")
                out.append(flat[:_SAMPLES].tobytes())
                out.append(flat[:: max(1, view.nbytes // _SAMPLES)].tobytes())
                out.append(flat[-_SAMPLES:].tobytes())

    def of_array(self, out: list[Any], words: str, value: Any) -> None:
        kind = _guard.loaded("numpy", "ndarray")
        out.append(kind.shape.__get__(value))
        nbytes = kind.nbytes.__get__(value)
        if nbytes > self._bytes_left:
            try:
                self.of_buffer(out, words, value)
            except (ValueError, BufferError, TypeError):
                self.cut = True
            return
        self._bytes_left -= nbytes
        out.append(kind.tobytes(value))


_BUILT_IN: dict[type, Any] = {
    list: Walk.of_list,
    tuple: Walk.of_tuple,
    dict: Walk.of_dict,
    set: Walk.of_set,
    frozenset: Walk.of_set,
    bytearray: Walk.of_buffer,
    memoryview: Walk.of_buffer,
}


def _is_same(before: Any, after: Any) -> bool:
    """Whether two notes that are not equal mean the same."""
    if type(before) is tuple and type(after) is tuple and len(before) == len(after):
        return all(a is b or a == b or _is_same(a, b) for a, b in zip(before, after, strict=True))
    if type(before) is float and type(after) is float:
        return before != before and after != after
    return False


def changed(before: Walk, after: Walk) -> list[str]:
    """What differs, in words. Where one look was cut off, only as far as both went."""
    cut = before.cut or after.cut
    brought = after.libraries | (after.modules - before.modules)
    changed = []
    for words in {**before.notes, **after.notes}:
        old, new = before.notes.get(words), after.notes.get(words)
        if old == new:
            continue
        if new is not None and _brings_module(old, new):
            continue
        if old is None and words.strip("`").rpartition(".")[0] in brought:
            continue
        if old is None or new is None:
            # Classes come up on the way; everything else is listed at the start.
            if not cut or words.startswith("`self."):
                changed.append(words)
            continue
        if len(old) != len(new) and not cut:
            changed.append(words)
        elif not all(a is b or a == b or _is_same(a, b) for a, b in zip(old, new, strict=False)):
            changed.append(words)
    return changed


def _brings_module(old: list[Any] | None, new: list[Any]) -> bool:
    """A module was imported when it was first needed, and is kept under the name."""
    return new in ([_MODULE], [_NESTED, _MODULE]) and old in (None, [None], [_guard.NOTHING], [_MODULE])
