"""Functions that run in workers. A module of its own, so that they travel by reference as a user's would.

Nothing here imports the engine, pytest or `support`: a worker should load what a task needs and no more.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from support import Lane


def double(x: Any) -> Any:
    return x * 2


def add(a: Any, b: Any) -> Any:
    return a + b


def noop(*_: Any) -> None:
    return None


def echo(x: Any) -> Any:
    return x


def everything(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def where() -> tuple[int, int]:
    """Process and thread this runs in."""
    return os.getpid(), threading.get_native_id()


def here(_: Any = None) -> int:
    return os.getpid()


def divide(x: float) -> float:
    return 10 / x


def fail(kind: type[BaseException], *args: Any) -> NoReturn:
    raise kind(*args)


def fail_at(x: int, bad: int) -> int:
    if x == bad:
        raise ValueError(f"item {x}")
    return x


def sink_for_ever(n: int = 0) -> int:
    return sink_for_ever(n + 1) + 1


def append(path: str, line: Any) -> Any:
    """One line in one write to an O_APPEND descriptor: lines of many processes never mix."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(log, f"{line}\n".encode())
    finally:
        os.close(log)
    return line


def append_where(path: str) -> None:
    append(path, "{} {}".format(*where()))


def append_slowly(path: str, line: Any, seconds: float = 0.001) -> Any:
    append(path, line)
    time.sleep(seconds)
    return line


def append_pid_slowly(path: str, item: int, seconds: float = 0.001) -> int:
    append(path, f"{item} {os.getpid()}")
    time.sleep(seconds)
    return item


def append_then_die_at(path: str, item: int, deadly: frozenset[int]) -> int:
    append(path, item)
    if item in deadly:
        os.kill(os.getpid(), 9)
    return item


def enter_and_leave(path: str, seconds: float = 0.002) -> None:
    append(path, "+")
    time.sleep(seconds)
    append(path, "-")


def hold(gate: str, name: Any = "", value: Any = None) -> Any:
    """Say that this task has started, then wait for the gate to open (a file to exist)."""
    with open(f"{gate}.started.{name}", "w") as mark:
        mark.write(f"{os.getpid()}")
    deadline = time.monotonic() + 100
    while not os.path.exists(gate):
        if time.monotonic() > deadline:
            raise RuntimeError("nobody opened the gate")
        time.sleep(0.003)
    return value


class Slippery:
    """Calls a function when it is unpickled: `Slippery(os._exit, 3)` ends who opens it."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.wire = function, args

    def __call__(self, *_: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return self.wire


def slippery(*args: Any) -> Slippery:
    return Slippery(*args)


def fail_outside(pid: int) -> str:
    """An unpickler that works in one process only."""
    if os.getpid() != pid:
        raise ValueError("this cannot be opened here")
    return "opened"


def result_that_opens_only_here() -> Slippery:
    return Slippery(fail_outside, os.getpid())


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()


def lock_holder(path: str | None = None) -> dict[str, Locked]:
    if path is not None:
        append(path, "ran")
    return {"config": Locked()}


class TwoArguments(Exception):
    """Its `__init__` cannot be replayed from `args`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


class LockedError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Hostile(Exception):
    """Everything about it raises."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no reduce")

    def __str__(self) -> str:
        raise RuntimeError("no str")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def fail_with_two_arguments() -> NoReturn:
    raise TwoArguments(42, "no space")


def fail_with_lock() -> NoReturn:
    raise LockedError


def fail_hostile() -> NoReturn:
    raise Hostile("x")


def fail_in_a_chain() -> NoReturn:
    try:
        raise KeyError("the root")
    except KeyError as root:
        error = ValueError("the face")
        error.add_note("a note from the worker")
        raise error from root


def fail_in_a_group() -> NoReturn:
    raise ExceptionGroup("several", [ValueError("a"), TypeError("b")])


def die_by_signal(number: int) -> NoReturn:
    os.kill(os.getpid(), number)
    raise AssertionError("still alive")


def segfault() -> NoReturn:
    import ctypes
    import faulthandler

    faulthandler.disable()
    ctypes.string_at(0)
    raise AssertionError("still alive")


def ends(data: bytes) -> tuple[int, bytes, bytes]:
    return len(data), data[:1], data[-1:]


def big(size: int) -> bytes:
    return b"a" + bytes(size - 2) + b"z"


def set_variable(name: str, value: str) -> None:
    os.environ[name] = value


def read_file(path: str) -> str:
    with open(path) as file:
        return file.read()


def modules(*names: str) -> list[str]:
    return [name for name in names if name in sys.modules]


def nested(lane: Lane) -> list[int]:
    import rightlane as rl

    with rl.Executor(1, lane=lane) as ex:
        return list(ex.map(double, range(5)))


def rings() -> list[tuple[int, int, str]]:
    """Shared mappings of memfds in this process: start, size, permissions."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "memfd:" in fields[5] and fields[1].endswith("s"):
            start, end = (int(x, 16) for x in fields[0].split("-"))
            found.append((start, end - start, fields[1]))
    return found


def try_to_make_writable(start: int, size: int) -> int:
    """errno of mprotect(PROT_READ | PROT_WRITE), 0 on success."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), 3) else 0


def nest(depth: int) -> list[Any]:
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    return deep


async def coroutine_function() -> None:
    return None


def hold_if(gate: str, held: bool) -> None:
    if held:
        hold(gate)


def die_at_13(number: int) -> int:
    if number == 13:
        os._exit(1)
    return number


def nap_from_3(number: int) -> int:
    if number >= 3:
        time.sleep(0.2)
    return number


def call_method(obj: Any, name: str, *args: Any) -> Any:
    return getattr(obj, name)(*args)


# --- buffers ---

KEPT: dict[str, Any] = {}
"""What tasks leave behind in their worker."""


def checksum(buffer: Any) -> int:
    return zlib.crc32(buffer)


def overwrite(buffer: Any, step: int = 1) -> int:
    """The checksum of what was there before every `step`th byte was changed."""
    view = memoryview(buffer).cast("B")
    before = zlib.crc32(view)
    view[::step] = bytes(255 - byte for byte in view[::step]) if step > 1 else b"\xa5" * len(view)
    return before


def numbers(first: int, count: int) -> Any:
    import numpy as np

    return np.arange(first, first + count)


def keep(name: str, value: Any) -> Any:
    KEPT[name] = value
    return value


def kept(name: str) -> Any:
    return KEPT[name]


def overwrite_kept(name: str) -> int:
    return overwrite(KEPT[name])


def overwrite_then_die(buffer: Any) -> NoReturn:
    overwrite(buffer)
    os.kill(os.getpid(), 9)
    raise AssertionError("still alive")


def parts(array: Any) -> tuple[Any, ...]:
    """Views that overlap, on one base; the first and the last are one object."""
    half = array[: len(array) // 2]
    return half, array[len(array) // 4 :], array[::-1], array[::-3], array, half


def raise_with(array: Any) -> NoReturn:
    error = ValueError("a message", array)
    error.rest = array[::-1]  # type: ignore[attr-defined]
    raise error
