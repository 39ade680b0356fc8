"""Objects and arrays whose memory every worker can see: `share`, `empty` and `asarray`.

What of it lies in shared memory is what could travel there anyway, buffers and pickles of 64 KiB and more;
the rest is ordinary memory. `docs/design/arena.md` tells how it is kept as it was when it was sent.
"""

from __future__ import annotations

import _pickle
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Generic, TypeVar

from rightlane import _forks, _native

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Literal, SupportsIndex

    from numpy.typing import ArrayLike, DTypeLike, NDArray


T = TypeVar("T")

__all__ = ["Shared", "asarray", "empty", "share"]

assert _forks is not None  # what lies in shared memory is not to be shared with forked children


class Shared(Generic[T]):
    """A handle to an object that `share` has stored. It is immutable, and small to send.

    It may be an argument, a part of one, of a closure or of a global, and a result, in every lane. When the
    last handle is gone, in the caller's process and in every task, the memory is free again.
    """

    __slots__ = ("__weakref__", "_buffers", "_by_value", "_pickle")

    def __init__(
        self, pickle: bytes | memoryview, buffers: Sequence[bytes | memoryview], by_value: bool = False
    ) -> None:
        self._pickle = pickle
        self._buffers = buffers
        # Other processes do not know its classes by the names that the pickle has.
        self._by_value = by_value

    def get(self) -> T:
        """The object, made anew each time, its large buffers not copied. One with classes or functions that
        travel by value is made once for each task that gets the handle.

        Arrays look into the shared memory, in a task as in the caller's process: they are read-only. `copy()`
        gives one to write into. They may outlive the handle, and the executor.

        May be called from any thread, and from tasks.

        Raises
        ------
        Exception
            Whatever unpickling the object raises.

        >>> import rightlane as rl
        >>> rl.share({"a": 1}).get()
        {'a': 1}
        """
        value: T = _pickle.loads(self._pickle, buffers=self._buffers)
        return value

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        if self._by_value:
            return _Made, (self.get(),)
        parts = (self._pickle, *self._buffers)
        if protocol.__index__() < 5:
            return _shared, tuple(map(bytes, parts))
        wrap = PickleBuffer
        return _shared, tuple(wrap(part) if isinstance(part, memoryview) else part for part in parts)

    def __repr__(self) -> str:
        size = sum(map(len, (self._pickle, *self._buffers)))
        return f"<rightlane.Shared object of {size:,} bytes>"


def _shared(pickle: Any, *buffers: Any) -> Shared[Any]:
    return Shared(_fixed(pickle), tuple(map(_fixed, buffers)))


class _Made(Shared[T]):
    """A handle that has travelled by value: with the object itself, made for it alone."""

    __slots__ = ("_object",)

    def __init__(self, obj: T) -> None:
        super().__init__(b"", ())
        self._object = obj

    def get(self) -> T:
        return self._object

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _Made, (self._object,)

    def __repr__(self) -> str:
        return f"<rightlane.Shared object of {type(self._object).__name__}>"


def _fixed(part: Any) -> bytes | memoryview:
    return part if isinstance(part, bytes) else memoryview(part).toreadonly()


def _store(buffer: PickleBuffer) -> bytes | memoryview:
    """A copy of these bytes that nobody can change."""
    memory = _native.store(buffer)
    return bytes(buffer.raw()) if memory is None else memory.toreadonly()


def share(obj: T) -> Shared[T]:
    """Store an object in shared memory, for any number of tasks.

    The object is pickled here and now: what happens to it later does not show. Tasks get the handle and call
    its `get()`. An object that is only an argument of many calls, of one `map` or one after the other, need
    not be shared: what did not change is not sent again, but each time compared with what was.

    Parameters
    ----------
    obj : object
        Anything that can be pickled.

    Returns
    -------
    Shared
        The handle.

    Raises
    ------
    SerializationError
        The object cannot be pickled.

    May be called from any thread, and from tasks. After a fork both processes have the handle; what the
    child sends is copied.

    >>> import rightlane as rl
    >>> table = rl.share(list(range(100_000)))
    >>> with rl.Executor() as ex:
    ...     list(ex.map(lambda n: table.get()[n], [1, 50, 99_999]))
    [1, 50, 99999]
    """
    from rightlane import _byvalue
    from rightlane._errors import SerializationError

    buffers: list[PickleBuffer] = []

    def pickle(callback: Callable[[PickleBuffer], object]) -> bytes:
        try:
            return _pickle.dumps(obj, 5, buffer_callback=callback)
        except (KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:
            path = _byvalue.find_culprit(obj, "obj", _pickle.dumps)
            raise SerializationError(f"{path} cannot be shared: {error}") from error

    data = pickle(buffers.append)
    stored = tuple(map(_store, buffers))
    return Shared(_store(PickleBuffer(data)), stored, not _byvalue.plain_pickles_suffice(data))


def empty(
    shape: int | Sequence[int], dtype: DTypeLike = float, order: Literal["C", "F"] = "C"
) -> NDArray[Any]:
    """An uninitialised NumPy array that is sent to worker processes, or returned from one, without a copy.

    With the first call that it is an argument of, its memory becomes copy-on-write: that task, and those to
    which it goes again, see it as it was when it was sent, and the caller may change it at any time. An array
    that was changed since is copied as any other; so fill it once, send it, and make a new one for other
    contents, which takes the same memory again. Slices along the first axis, of 64 KiB and more, are sent
    without a copy, too. A task that returns one should not keep it: then it is copied after all.

    Parameters
    ----------
    shape : int or sequence of int
        As for `numpy.empty`.
    dtype : data-type, optional
        Its elements' type, not one with Python objects. Default: `numpy.float64`.
    order : {"C", "F"}, optional
        Rows or columns first. Default: "C".

    Returns
    -------
    numpy.ndarray
        Below 64 KiB, and where there is no shared memory to be had, an ordinary array.

    Raises
    ------
    ModuleNotFoundError
        NumPy is not installed.
    TypeError, ValueError
        As for `numpy.empty`; TypeError also for elements that are Python objects.

    May be called from any thread, and from tasks.

    >>> import rightlane as rl
    >>> array = rl.empty((1000, 1000))
    >>> array[:] = 2
    >>> with rl.Executor() as ex:
    ...     sum(ex.map(lambda row: float(row.sum()), array))
    2000000.0
    """
    import numpy as np

    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError("arrays of Python objects cannot lie in shared memory; use numpy.empty")
    # NumPy itself says what is a shape, and of what size; nothing of that memory is touched.
    like = np.empty(shape, kind, order)
    memory = _native.allocate(like.nbytes)
    if memory is None:
        return like
    return np.ndarray(like.shape, kind, memory, order=order)


def asarray(a: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """An array with these contents that is sent to worker processes without a copy: see `empty`.

    Parameters
    ----------
    a : array_like
        Anything that `numpy.asarray` takes, whose elements are not Python objects.
    dtype : data-type, optional
        The elements' type. Default: that of `a`.

    Returns
    -------
    numpy.ndarray
        `a` itself if it is such an array; below 64 KiB what `numpy.asarray` gives; else a copy, in Fortran
        order if `a` is.

    Raises
    ------
    ModuleNotFoundError
        NumPy is not installed.
    TypeError, ValueError
        As for `numpy.asarray`; TypeError also for elements that are Python objects.

    May be called from any thread, and from tasks.

    >>> import rightlane as rl
    >>> rl.asarray([[1, 2], [3, 4]]).sum()
    np.int64(10)
    """
    import numpy as np

    array: NDArray[Any] = np.asarray(a, dtype)
    if _native.is_allocated(array.ctypes.data, array.nbytes):
        return array
    order: Literal["C", "F"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    made = empty(array.shape, array.dtype, order)
    if not _native.is_allocated(made.ctypes.data, made.nbytes):
        return array
    made[...] = array
    return made


def tell_short(size: int, left: int, in_worker: bool) -> None:
    """Issue a `MemoryWarning`, for the line of the user's that is under way."""
    import os
    import sys
    import warnings

    from rightlane import _errors

    here, frame = os.path.dirname(__file__) + os.sep, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame = frame.f_back
    whose = "in a worker for a result" if in_worker else "for an argument"
    # Where there is enough, addresses are short.
    why = f": {left / 2**20:.1f} MiB may be taken" if left < size else ""
    warnings.warn_explicit(
        f"memory is short: there is no room in shared memory {whose} of {size / 2**20:.1f} MiB{why}; "
        "large buffers that find none travel with their messages from now on, which is slower; "
        "keep fewer results, bound what is pending by max_pending, or give the process more memory",
        _errors.MemoryWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
    )
