"""Exceptions over the wire: a task's exception arrives as what it was, with the traceback of where it was
raised.

Worker side, `pack`: an exception whose plain pickle round trip gives back the same class and arguments
travels as that pickle. One whose `__init__` cannot be replayed is rebuilt without `__init__`, from `args` and
state. One whose class or content cannot travel arrives as a `SerializationError` that names the part, with a
stand-in for the original as its cause. Parent side, `unpack` puts the remote traceback where the standard
library puts it: the cause of the exception, or of the last exception in its chain of causes.

Neither ever raises, whatever the exception does in `__reduce__`, `__str__`, `__repr__` or `__getattribute__`:
a task that fails must fail alone. Attributes of exceptions are therefore read through `BaseException`'s own
descriptors.

The chain (`__cause__`, `__context__`, notes, members of groups) is packed exception by exception, so that one
bad link does not spoil the others. Live traceback objects do not travel; the text does, at most 64 KiB of it,
without the frames of this package.
"""

from __future__ import annotations

import _pickle
import marshal

from rightlane import _byvalue, _definitions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, TypeAlias

    Packed: TypeAlias = tuple[Any, ...]

__all__ = ["pack", "unpack"]

_TEXT_LIMIT = 64 * 1024
_CHAIN_LIMIT = 64
_PICKLED, _REBUILT, _FOREIGN, _GROUPED = range(4)


# Worker side --------------------------------------------------------------------------------------


def pack(exc: BaseException, text: str | None = None) -> bytes:
    """The exception for the wire. `text` is its traceback; None formats the one it carries. Never raises."""
    if text is None:
        text = _format(exc)
    text = _shortened(text)
    try:
        return marshal.dumps((text, _pack_chain(exc)))
    except BaseException as error:
        name = _name(type(exc))
        message = f"{name} raised by the task cannot be sent back: {_text(error) or _name(type(error))}"
        lost = (_FOREIGN, (name, message, "exception", None), -1, -1, False, ())
        return marshal.dumps((text, (lost,)))


def _pack_chain(root: BaseException) -> tuple[Packed, ...]:
    found = {id(root): 0}
    chain = [root]
    packed: list[Packed] = []

    def place(exc: Any) -> int:
        if not issubclass(type(exc), BaseException):
            return -1
        known = found.get(id(exc))
        if known is None:
            if len(chain) >= _CHAIN_LIMIT:
                return -1
            known = found[id(exc)] = len(chain)
            chain.append(exc)
        return known

    for exc in chain:  # grows while it is walked
        cause, context = _slot(exc, "__cause__"), _slot(exc, "__context__")
        suppress = bool(_slot(exc, "__suppress_context__"))
        members: tuple[int, ...] = ()
        if issubclass(type(exc), BaseExceptionGroup):
            members = tuple(map(place, BaseExceptionGroup.exceptions.__get__(exc)))
        kind, data = _pack_one(exc, bool(members) and -1 not in members)
        packed.append((kind, data, place(cause), place(context), suppress, members))
    return tuple(packed)


def _slot(exc: BaseException, name: str) -> Any:
    """An attribute that every exception has, read past any `__getattribute__` of its class."""
    return BaseException.__dict__[name].__get__(exc)


def _pack_one(exc: BaseException, grouped: bool) -> tuple[int, Any]:
    kind = type(exc)
    name = _name(kind)
    args: tuple[Any, ...] = _slot(exc, "args")
    state: dict[Any, Any] = dict(_slot(exc, "__dict__"))
    reason: BaseException | None = None
    if grouped:
        message = BaseExceptionGroup.message.__get__(exc)
        try:
            return _GROUPED, (name, _dumps((kind, message, state)))
        except BaseException as error:
            base = BaseExceptionGroup if _first_plain_base(kind, Exception) is None else ExceptionGroup
            notes = [note for note in state.get("__notes__", ()) if type(note) is str]
            state = {"__notes__": [*notes, _stands_for(kind, error)]}
            return _GROUPED, (name, _dumps((base, str(message), state)))
    try:
        data = _dumps(exc)
        if _same_exception(exc, _loads(data)):
            return _PICKLED, (name, data)
    except BaseException as error:
        reason = error
    members = _members(exc)
    try:
        data = _dumps((kind, args, state, members))
        _loads(data)
        return _REBUILT, (name, data)
    except BaseException as error:
        reason = error
    path = _culprit(kind, args, state, members)
    cause = reason.reason if isinstance(reason, _byvalue.Unsendable) else _text(reason)
    message = f"{name} raised by the task cannot be sent back: {path}: {cause or _name(type(reason))}"
    return _FOREIGN, (name, message, path, _stand_in(exc, kind, args, state))


def _dumps(obj: Any) -> bytes:
    try:
        data = _pickle.dumps(obj, 5)
        if b"__main__" not in data:
            return data
    except Exception:
        pass
    return _byvalue.dumps_back(obj)


def _loads(data: bytes) -> Any:
    """Unpickle as the parent will, with the parent's classes looked up among this worker's own."""
    if b"resolve_parent" not in data:
        return _pickle.loads(data)
    import io

    class Unpickler(_pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            if name == "resolve_parent" and module == _byvalue.__name__:
                return _definitions.resolve
            return super().find_class(module, name)

    return Unpickler(io.BytesIO(data)).load()


def _same_exception(exc: BaseException, copy: Any) -> bool:
    """Whether replaying `__init__` gave the exception back. One that formats its message does not."""
    if type(copy) is not type(exc):
        return False
    return _alike(_slot(exc, "args"), _slot(copy, "args")) and _alike(
        {**_slot(exc, "__dict__"), **_members(exc)}, {**_slot(copy, "__dict__"), **_members(copy)}
    )


_ATOMS = frozenset({int, float, bool, str, bytes, type(None)})


def _alike(a: Any, b: Any) -> bool:
    """Equal as far as can be told without running code of the values' classes."""
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b):
        return False
    if kind in _ATOMS:
        return bool(a == b) or a != a  # a NaN is like a NaN
    if kind is tuple or kind is list:
        return len(a) == len(b) and all(map(_alike, a, b))
    if kind is dict:
        return len(a) == len(b) and all(map(_alike, a, b)) and all(map(_alike, a.values(), b.values()))
    return True


_DESCRIPTORS = (type(type(_alike).__code__), type(type(_alike).__globals__))  # type: ignore[attr-defined]


# `obj` is what an AttributeError was raised on: whole object graphs, and CPython does not pickle it either.
_NOT_SENT = ("__dict__", "__weakref__", "exceptions", "obj")


def _members(exc: BaseException) -> dict[str, Any]:
    """What lies outside `args` and `__dict__`: fields of built-in classes (`errno`, `code`), and slots."""
    found: dict[str, Any] = {}
    for kind in type.mro(type(exc)):
        if kind is BaseException:
            break
        for name, member in kind.__dict__.items():
            if isinstance(member, _DESCRIPTORS) and name not in _NOT_SENT:
                try:
                    value = member.__get__(exc)
                except Exception:
                    continue
                if value is not None:
                    found.setdefault(name, value)
    return found


def _culprit(kind: type, args: tuple[Any, ...], state: dict[Any, Any], members: dict[str, Any]) -> str:
    try:
        for name, value in [("args", args), *state.items(), *members.items()]:
            try:
                _loads(_dumps(value))
            except BaseException:
                return _byvalue.find_culprit(value, f"exception.{_text(name)}", _byvalue.dumps_back)
    except BaseException:
        pass
    return "exception"


def _stand_in(exc: BaseException, kind: type, args: tuple[Any, ...], state: dict[Any, Any]) -> bytes:
    """The exception as its own class or the nearest importable one, what cannot travel as its repr."""
    note = None
    try:
        _loads(_dumps(kind))
        # A class that can travel but refuses to be rebuilt must not be what we fall back on.
        _rebuild(kind, (), {}, {})
    except BaseException as error:
        note = _stands_for(kind, error)
        kind = _first_plain_base(kind) or Exception

    def part(value: Any) -> Any:
        try:
            _loads(_dumps(value))
        except BaseException:
            return _repr(value)
        return value

    kept = {name: part(value) for name, value in state.items() if type(name) is str}
    notes = kept.get("__notes__")
    if note:
        kept["__notes__"] = [*(notes if isinstance(notes, list) else ()), note]
    try:
        members = {name: value for name, value in _members(exc).items() if type(value) in _ATOMS}
        return _dumps((kind, tuple(map(part, args)), kept, members))
    except BaseException:
        return _pickle.dumps((Exception, tuple(map(_repr, args)), {}, {}), 5)


def _stands_for(kind: type, error: BaseException) -> str:
    return f"(stands for {_name(kind)}, which cannot be sent: {_text(error)})"


def _first_plain_base(kind: type, root: type = BaseException) -> type[BaseException] | None:
    """The nearest class in the method resolution order that any process can import."""
    bases: list[Any] = type.mro(kind)
    for base in bases:
        if issubclass(base, root):
            try:
                if _byvalue._by_value(base):
                    continue
                _pickle.loads(_pickle.dumps(base, 5))
                _rebuild(base, (), {}, {})
            except BaseException:
                continue
            found: type[BaseException] = base
            return found
    return None


def _name(kind: type) -> str:
    try:
        module, name = str(type.__dict__["__module__"].__get__(kind)), str(kind.__qualname__)
    except BaseException:
        return "an exception"
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def _text(value: Any) -> str:
    try:
        return str(value)
    except BaseException:
        return ""


def _repr(value: Any) -> str:
    try:
        text = repr(value)
        return text if len(text) <= 1000 else text[:1000] + "..."
    except BaseException:
        return f"<{_name(type(value))} object>"


def _format(exc: BaseException) -> str:
    """The traceback as text, without the frames of this package above the user's own."""
    try:
        import traceback

        trace: TracebackType | None = _slot(exc, "__traceback__")
        package = __file__.rpartition("/")[0] + "/"
        outer = trace
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith(package):
            trace = trace.tb_next
        if trace is None and outer is not None and outer.tb_next is not None:
            trace = outer  # raised by this package itself: its frames are all there is to show
        try:
            return "".join(traceback.format_exception(type(exc), exc, trace))
        except BaseException:
            return "".join(
                ["Traceback (most recent call last):\n", *traceback.format_tb(trace), _name(type(exc)), "\n"]
            )
    except BaseException:
        return f"{_name(type(exc))}\n"


def _shortened(text: str) -> str:
    """At most `_TEXT_LIMIT` bytes, cut in the middle: both the way in and what was raised stay."""
    if len(text) * 4 <= _TEXT_LIMIT:
        return text
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= _TEXT_LIMIT:
        return raw.decode()
    half = _TEXT_LIMIT // 2 - 40
    left_out = len(raw) - 2 * half
    start, end = raw[:half].decode("utf-8", "ignore"), raw[-half:].decode("utf-8", "ignore")
    return f"{start}\n  [... {left_out} bytes left out ...]\n{end}"


# Parent side --------------------------------------------------------------------------------------


def unpack(blob: bytes) -> BaseException:
    """The exception to raise in the parent. Never raises."""
    from rightlane._errors import DeserializationError, RemoteTraceback

    try:
        text, packed = marshal.loads(blob)
        remote = RemoteTraceback(text)
        made: list[BaseException | None] = [None] * len(packed)
        # Members of a group lie behind it, so the groups are built last.
        for i in reversed(range(len(packed))):
            made[i] = _unpack_one(packed[i], made, root=i == 0)
        for exc, (kind, _, cause, context, suppress, _) in zip(made, packed, strict=True):
            if exc is not None and exc is made[0] and kind == _FOREIGN:
                exc = exc.__cause__  # the chain is that of the original
            if exc is None:
                continue
            if cause >= 0:
                _set(exc, "__cause__", made[cause])
            if context >= 0:
                _set(exc, "__context__", made[context])
            _set(exc, "__suppress_context__", suppress)
        root = made[0]
        assert root is not None
    except BaseException as error:
        remote = RemoteTraceback("")
        root = DeserializationError(f"the task's exception cannot be unpickled: {_text(error)}", "exception")
    try:
        _attach(root, remote)
    except BaseException:
        pass
    return root


def _unpack_one(packed: Packed, made: list[BaseException | None], root: bool) -> BaseException | None:
    kind, data, _, _, _, members = packed
    try:
        return _unpack_as(kind, data, [made[i] for i in members], root)
    except BaseException as error:
        if not root:
            return None
        from rightlane._errors import DeserializationError

        return DeserializationError(
            f"{data[0]} raised by the task cannot be unpickled here: {_text(error) or _name(type(error))}",
            "exception",
        )


def _unpack_as(kind: int, data: Any, members: list[BaseException | None], root: bool) -> BaseException | None:
    exc: Any
    if kind == _PICKLED:
        exc = _pickle.loads(data[1])
    elif kind == _REBUILT:
        exc = _rebuild(*_pickle.loads(data[1]))
    elif kind == _GROUPED:
        cls, message, state = _pickle.loads(data[1])
        alive = [member for member in members if member is not None]
        if not alive:
            alive = [RuntimeError("no member of the group could be unpickled")]
        exc = _rebuild(cls, (message, alive), state, {})
    else:
        _, message, path, stand_in = data
        exc = None if stand_in is None else _rebuild(*_pickle.loads(stand_in))
        if root:
            from rightlane._errors import SerializationError

            failure = SerializationError(message, path)
            if exc is not None:
                failure.__cause__ = exc
            return failure
    if not issubclass(type(exc), BaseException):
        raise TypeError("it does not unpickle to an exception")
    found: BaseException = exc
    return found


def _rebuild(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[Any, Any], members: dict[str, Any]
) -> BaseException:
    """Make an exception without running an `__init__` written in Python."""
    exc: Any = None
    maker: Any = kind
    builtin: Any = next(base for base in type.mro(kind) if not base.__flags__ & _byvalue._HEAP_TYPE)
    attempts: tuple[Any, ...] = (
        lambda: maker.__new__(kind, *args),
        lambda: maker.__new__(kind),
        lambda: builtin.__new__(kind, *args),
        lambda: builtin.__new__(kind),
    )
    for attempt in attempts:
        try:
            exc = attempt()
        except Exception:
            continue
        if type(exc) is kind:
            break
    if type(exc) is not kind:
        raise TypeError(f"{_name(kind)} cannot be made without its __init__")
    if not issubclass(type(exc), BaseExceptionGroup):
        try:
            builtin.__init__(exc, *args)
        except Exception:
            pass  # its arguments are not those of its built-in base; `members` has the fields
    _set(exc, "args", args)
    _slot(exc, "__dict__").update(state)
    for name, value in members.items():
        try:
            object.__setattr__(exc, name, value)
        except Exception:
            try:
                BaseException.__setattr__(exc, name, value)
            except Exception:
                continue
    rebuilt: BaseException = exc
    return rebuilt


def _set(exc: BaseException, name: str, value: Any) -> None:
    BaseException.__dict__[name].__set__(exc, value)


def _attach(root: BaseException, remote: BaseException) -> None:
    """Make the remote traceback the cause of the last exception in the chain of causes."""
    seen = {id(root)}
    last = root
    while (cause := _slot(last, "__cause__")) is not None and id(cause) not in seen:
        seen.add(id(cause))
        last = cause
    suppress = _slot(last, "__suppress_context__")
    _set(last, "__cause__", remote)
    _set(last, "__suppress_context__", suppress)
