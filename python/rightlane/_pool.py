"""`rightlane.Pool` and `rightlane.ThreadPool`: the interface of `multiprocessing.pool` on the engine.

They check, name and document. A call is a `submit`, and its `AsyncResult` the future itself. A map is a map
of the engine that can be waited for as a whole. What the standard pool does in threads of its own needs none
here, but for one thing: an input whose reading may block or never end is read by a thread, so that results
can be had before it ends (`_Feeder`).

A pool can be dropped while its work goes on. What outlives it is its `_Ledger`: the engine, who still reads
an input, and how many callbacks are still to be called. Nothing else here is shared between threads.

Errors are those that the standard pool raises, or inherit from them; `_as_standard` sees to that, when
somebody asks for the result.
"""

from __future__ import annotations

import functools
import multiprocessing.pool
import operator
import os
import sys
import threading
import time
import types
import warnings
import weakref
from collections import deque

from rightlane import _errors, _executor, _future, _native, _process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from multiprocessing.context import BaseContext
    from types import TracebackType
    from typing import Any, Literal, Protocol, Self, TypeVar

    T = TypeVar("T")
    S = TypeVar("S")
    R_co = TypeVar("R_co", covariant=True)

    class IMapIterator(Protocol[R_co]):
        """What `Pool.imap` returns."""

        def __iter__(self) -> Iterator[R_co]: ...
        def __next__(self) -> R_co: ...
        def next(self, timeout: float | None = None) -> R_co: ...

    _standard: Any  # the stubs of the standard module lack some names
else:
    from rightlane._future import T

    _standard = multiprocessing.pool

__all__ = ["AsyncResult", "MapResult", "MaybeEncodingError", "Pool", "ThreadPool"]

_NO_KEYWORDS: Mapping[str, Any] = types.MappingProxyType({})
RUN = multiprocessing.pool.RUN
CLOSE = multiprocessing.pool.CLOSE
TERMINATE = multiprocessing.pool.TERMINATE

# Inputs whose reading neither blocks nor runs anybody's code: read at the call, in such portions, unless they
# are very large when they are pickled. A range is not even that.
_READY = (list, tuple, str, bytes, bytearray, dict, set, frozenset, deque)
_READY_BYTES = 64 * 1024 * 1024
_PORTION_ITEMS = 512


class MaybeEncodingError(_errors.SerializationError, _standard.MaybeEncodingError):  # type: ignore[misc]
    """The result of a task of a pool cannot be pickled.

    Parameters
    ----------
    message : str
        What failed; also the attribute `exc`, as in the standard class.
    path : str
        The part that cannot be sent, as in `result['lock']`; also the attribute `value`.
    """

    def __init__(self, message: str = "", path: str = "") -> None:
        Exception.__init__(self, message, path)
        self.path = path
        self.exc = message
        self.value = path

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"


# Errors -------------------------------------------------------------------------------------------


def _as_standard(error: BaseException) -> BaseException:
    """What the standard pool would raise for an error of a worker, or an error that is also that."""
    if isinstance(error, _errors.SerializationError):
        return _serialization_error(error)
    link: BaseException = error
    while (cause := link.__cause__) is not None:
        if type(cause) is _errors.RemoteTraceback:
            link.__cause__ = _standard.RemoteTraceback(f'\n"""\n{cause}"""')
            break
        link = cause
    return error


def _serialization_error(error: _errors.SerializationError) -> BaseException:
    error.args = (str(error).replace('use lane="thread"', "use a ThreadPool"), error.path)
    cause = error.__cause__
    made: BaseException
    if error.path.startswith("exception"):
        made = MaybeEncodingError(str(error), error.path)
    elif error.path.startswith("result"):
        if cause is not None:  # it was sent, and cannot be unpickled here
            return error
        made = MaybeEncodingError(str(error), error.path)
    elif cause is None or isinstance(error, type(cause)):
        return error
    else:
        try:
            made = _also(type(cause))(str(error), error.path)
        except Exception:  # a class of the user's that cannot be inherited from, or made, just so
            return error
    made.__cause__ = cause
    return made


def _also(kind: type[BaseException]) -> type[_errors.SerializationError]:
    """A SerializationError that is also what the pickler raised, as the standard pool does."""

    if known := _made.get(kind):
        return known

    def reduce(self: _errors.SerializationError) -> tuple[Any, ...]:
        return _also_made, (kind, str(self), self.path), self.__dict__

    bases = (_errors.SerializationError, kind)
    body = {"__init__": _errors.SerializationError.__init__, "__reduce__": reduce, "__module__": "rightlane"}
    return _made.setdefault(kind, type(_errors.SerializationError.__name__, bases, body))


# What `_also` made, as long as it is in use.
_made: weakref.WeakValueDictionary[type[BaseException], type[_errors.SerializationError]]
_made = weakref.WeakValueDictionary()


def _also_made(kind: type[BaseException], message: str, path: str) -> BaseException:
    return _also(kind)(message, path)


def _as_it_is(error: BaseException) -> BaseException:
    return error


# What outlives a pool -----------------------------------------------------------------------------


class _Ledger:
    """What is under way in a pool; see the module."""

    def __init__(self, engine: _native.Engine) -> None:
        self.engine = engine
        self.changed = threading.Condition()
        self.feeders: list[_Feeder] = []
        self.untold = 0
        self.tellers: set[int] = set()
        self.closing = False
        _ledgers.add(self)

    def close(self) -> None:
        """Take no more calls; the inputs that are being read are read to their ends first."""
        with self.changed:
            self.closing = True
            still_read = bool(self.feeders)
        if not still_read:
            self.engine.close(False, False)

    def fed(self, feeder: _Feeder) -> None:
        with self.changed:
            self.feeders.remove(feeder)
            last = self.closing and not self.feeders
            self.changed.notify_all()
        if last:
            self.engine.close(False, False)

    def read_on(self) -> None:
        """Wait until the inputs are read, whether or not anybody takes the results."""
        for feeder in self.feeders.copy():
            feeder.inlet.lift()
        with self.changed:
            while self.feeders and not self.engine.drained:
                self.changed.wait()

    def stop_reading(self) -> None:
        """End the inputs where they are: at exit a thread that waits in the engine could not come back."""
        for feeder in self.feeders.copy():
            feeder.inlet.end(None)
            while feeder.is_alive() and feeder.inlet.waiting:
                feeder.join(0.01)

    def wait_until_told(self) -> None:
        """Wait until every callback was called; one that waits here itself is not waited for."""
        with self.changed:
            if threading.get_ident() not in self.tellers:
                while self.untold:
                    self.changed.wait()


class _Feeder(threading.Thread):
    """Reads an input and pushes it into a map."""

    def __init__(self, ledger: _Ledger, items: Iterator[Any], inlet: _native.Inlet, portion: int) -> None:
        super().__init__(name="rightlane-feeder", daemon=True)
        self.ledger = ledger
        self.inlet = inlet
        self.items: Iterator[Any] | None = items
        self.portion = portion

    def run(self) -> None:
        items, self.items = self.items, None
        error: BaseException | None = None
        try:
            assert items is not None
            self.inlet.feed(items, self.portion)
        except BaseException as raised:
            error = raised
        try:
            del items  # a generator's finally clause may run here
            self.inlet.end(error)
        finally:
            error = None
            self.ledger.fed(self)


class _Telling:
    """Calls the callbacks of a result; whoever waits for it, waits until they have returned."""

    __slots__ = ("callback", "done", "error_callback", "ledger", "teller")

    def __init__(
        self,
        ledger: _Ledger,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self.ledger = ledger
        self.callback = callback
        self.error_callback = error_callback
        self.done = threading.Event()
        self.teller = 0

    def is_over(self) -> bool:
        """Whether they have returned. A callback that asks for its own result has it."""
        return self.done.is_set() or self.teller == threading.get_ident()

    def wait(self, timeout: float | None) -> bool:
        return self.is_over() or self.done.wait(timeout)

    def __call__(self, result: AsyncResult[Any]) -> None:
        ledger = self.ledger
        self.teller = threading.get_ident()
        with ledger.changed:
            ledger.tellers.add(self.teller)
        try:
            self.tell(result)
        finally:
            self.callback = self.error_callback = None
            self.teller = 0
            self.done.set()
            with ledger.changed:
                ledger.tellers.discard(threading.get_ident())
                ledger.untold -= 1
                ledger.changed.notify_all()

    def tell(self, result: AsyncResult[Any]) -> None:
        try:
            value = result.get()
        except BaseException as error:
            if self.error_callback is None:
                return
            value, callback = error, self.error_callback
        else:
            if self.callback is None:
                return
            callback = self.callback
        callback(value)


# Results ------------------------------------------------------------------------------------------


class AsyncResult(_future.Future[T]):
    """The outcome of `Pool.apply_async`, now or later. It is a `rightlane.Future` too, and can be awaited.

    With callbacks a result is ready when they have returned. `get` may be called again, from any thread.

    >>> import rightlane as rl
    >>> with rl.Pool(2) as pool:
    ...     result = pool.apply_async(pow, (2, 10))
    ...     result.get(timeout=60)
    1024
    """

    __slots__ = ()
    _telling: _Telling | None = None
    _convert = staticmethod(_as_standard)

    if TYPE_CHECKING:

        def get(self, timeout: float | None = None) -> T: ...

    else:
        get = _native.FutureCore._get

    def _get_told(self, timeout: float | None = None) -> T:
        """As `get`, once the callbacks have returned."""
        telling = self._telling
        if telling is not None and not telling.wait(timeout):
            raise multiprocessing.TimeoutError
        try:
            return self.result(timeout)
        except BaseException as error:
            converted = self._raised(error)
            if converted is error:
                raise
        try:
            raise converted
        finally:
            del converted

    def _raised(self, error: BaseException) -> BaseException:
        """What `get` raises where `result` raised this."""
        if isinstance(error, TimeoutError) and not self.done():
            return multiprocessing.TimeoutError()
        return self._convert(error)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is ready, at most `timeout` seconds."""
        telling = self._telling
        if telling is not None:
            telling.wait(timeout)
        else:
            self._wait(timeout)

    def ready(self) -> bool:
        """Whether the task has ended, in whatever way."""
        telling = self._telling
        return self.done() if telling is None else telling.is_over()

    def successful(self) -> bool:
        """Whether the task returned. Raises ValueError when the result is not ready."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return not self.cancelled() and self.exception() is None

    def _tell(
        self,
        ledger: _Ledger,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._telling = telling = _Telling(ledger, callback, error_callback)
        with ledger.changed:
            ledger.untold += 1
        self._call_back(telling)


class _LocalResult(AsyncResult[T]):
    """The same of a thread: nothing travelled."""

    __slots__ = ()
    _convert = staticmethod(_as_it_is)


class MapResult(AsyncResult[T]):
    """The outcome of `Pool.map_async` and `starmap_async`: a list, or the error of the first that failed.

    It is ready when every item has ended. It cannot be cancelled.
    """

    __slots__ = ()
    _convert = staticmethod(_as_it_is)
    get = AsyncResult._get_told
    _map: _native.PoolMap

    def _begin(self, results: _native.PoolMap) -> None:
        self._map = results
        self._turn = threading.RLock()
        self._values: list[Any] = []
        self._errors: list[BaseException] = []
        self._gathered = False

    def result(self, timeout: float | None = None) -> T:
        """As `get`, but with the built-in TimeoutError."""
        if not self._gather(timeout):
            raise TimeoutError
        if self._errors:
            raise self._errors[0]
        return self._values  # type: ignore[return-value]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None."""
        if not self._gather(timeout):
            raise TimeoutError
        return self._errors[0] if self._errors else None

    def cancel(self) -> bool:
        """False: what was given to a pool is run. `Pool.terminate` ends it."""
        return False

    def cancelled(self) -> bool:
        """False."""
        return False

    def _gather(self, timeout: float | None) -> bool:
        """Collects what has ended, as it comes. One thread does; others wait for it."""
        if self._gathered:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._turn.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            return False
        try:
            if not self._gathered:
                left = None if deadline is None else max(deadline - time.monotonic(), 0)
                self._gathered = self._map.gather(self._values, self._errors, left)
            return self._gathered
        finally:
            self._turn.release()


# Pools --------------------------------------------------------------------------------------------


class Pool(_standard.Pool):  # type: ignore[misc]
    """The interface of `multiprocessing.Pool` on Rightlane's engine. Changing the import is all.

    Parameters
    ----------
    processes : int, optional
        How many workers there are at most; they start when there is work for them. Default: the CPU budget
        (affinity and control group quota, rounded up).
    initializer : callable, optional
        Called once in each worker before its first task. If it raises, the pool is broken.
    initargs : iterable
        Its arguments.
    maxtasksperchild : int, optional
        A worker is replaced when it has run so many items; those of maps count one by one. Default: never.
    context : optional
        A context of `multiprocessing`. Recorded and not used: workers are always forked from a fresh
        interpreter.

    Raises
    ------
    TypeError, ValueError
        An argument makes no sense.

    Functions and arguments are pickled in the calling thread; lambdas, closures and what `__main__` defines
    can be sent, and no `__main__` guard is needed. A worker that dies costs the task it was running, which
    raises `WorkerLost`; the pool goes on. Callbacks run on the engine's completion thread. May be used from
    any thread. After a fork of this process the child has a fresh, empty pool.

    It is a subclass of the standard class, so that `isinstance` answers as before; nothing of that is used.

    The end of `with` is `terminate`, as in the standard library. An exit of the interpreter terminates a pool
    that was not closed, too. A closed one finishes what it was given; so does one that is garbage-collected.

    >>> import rightlane as rl
    >>> with rl.Pool(2) as pool:
    ...     pool.map(lambda n: n * n, range(4))
    [0, 1, 4, 9]
    """

    _lane: Literal["process", "thread"] = "process"
    _result_class: type[AsyncResult[Any]] = AsyncResult
    _convert: Callable[[BaseException], BaseException] | None = staticmethod(_as_standard)
    _state = multiprocessing.pool.INIT

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | None = None,
    ) -> None:
        number = _native.cpu_budget()[2] if processes is None else operator.index(processes)
        if number < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and not (isinstance(maxtasksperchild, int) and maxtasksperchild > 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        processes_wanted = self._lane == "process"
        if processes_wanted:
            _executor._prepare_template()
        name = f"rightlane-pool-{_executor._next_number()}"
        workers = min(number, _executor._MOST_WORKERS)
        tasks = None if maxtasksperchild is None else min(maxtasksperchild, _executor._NO_LIMIT)
        self._engine = _native.Engine(
            workers, processes_wanted, initializer, tuple(initargs), name, tasks, standard=True
        )
        if processes_wanted:
            _executor._import_pickling()
        self._processes = number
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        self._ctx = context
        self._ledger = _Ledger(self._engine)
        self._state = RUN
        _pools.add(self)

    def apply(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = _NO_KEYWORDS,
    ) -> T:
        """Run `func(*args, **kwds)` in a worker, wait for it, and return what it returns."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = _NO_KEYWORDS,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """Run `func(*args, **kwds)` in a worker and return its result to come, at once.

        Parameters
        ----------
        func : callable
            What to run. Not a coroutine function.
        args, kwds : iterable, mapping
            Its arguments.
        callback : callable, optional
            Called with the value, on the engine's completion thread. What it raises is logged.
        error_callback : callable, optional
            Called with the exception, likewise.

        Raises
        ------
        ValueError
            The pool was closed or terminated.
        BrokenExecutor
            An initializer failed, or workers could not be started.

        >>> import rightlane as rl
        >>> with rl.Pool(2) as pool:
        ...     pool.apply_async(divmod, (17, 5)).get(timeout=60)
        (3, 2)
        """
        if self._state != RUN:
            raise ValueError("Pool not running")
        result: AsyncResult[T] = self._engine.submit(
            self._lane,
            func,
            args if type(args) is tuple else tuple(args),
            None if kwds is _NO_KEYWORDS else dict(kwds),
            self._result_class,
        )
        if callback is not None or error_callback is not None:
            result._tell(self._ledger, callback, error_callback)
        return result

    def map(self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int | None = None) -> list[T]:
        """Run `func` on each item, wait for all, and return the results in order.

        Parameters
        ----------
        func : callable
            Called with one item.
        iterable : iterable
            Read at the call, in the calling thread.
        chunksize : int, optional
            Items that travel together, at least 1. Default: measured. Errors stay per item.

        Raises what the first item that failed raised, when all have ended.

        >>> import rightlane as rl
        >>> with rl.Pool(2) as pool:
        ...     pool.map(str.upper, ["a", "b"])
        ['A', 'B']
        """
        return self._map(func, iterable, False, chunksize)

    def map_async(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[list[T]]:
        """As `map`, but returns a result to come; callbacks as in `apply_async`, called for the whole."""
        return self._map_async(func, iterable, False, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """As `map`, where each item holds the arguments of one call.

        >>> import rightlane as rl
        >>> with rl.Pool(2) as pool:
        ...     pool.starmap(pow, [(2, 3), (3, 2)])
        [8, 9]
        """
        return self._map(func, iterable, True, chunksize)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[list[T]]:
        """As `starmap`, but returns a result to come; callbacks as in `map_async`."""
        return self._map_async(func, iterable, True, chunksize, callback, error_callback)

    def imap(self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int = 1) -> IMapIterator[T]:
        """Run `func` on each item, and return an iterator over the results in order, at once.

        Containers are read at the call, up to 64 MiB of pickles. Any other input, and what is left of a large
        one, is read by a thread, at most 10,000 items ahead of the iteration, so that it may block or have no
        end; `join` reads on as tasks end. Results can be had before the input ends.

        An item that fails raises in its place, and the iteration can go on after it. The iterator has also
        `next(timeout)`, which raises `multiprocessing.TimeoutError` when the next result is not there in
        time. May be used by several threads. Dropping it cancels nothing.

        Parameters
        ----------
        func : callable
            Called with one item.
        iterable : iterable
            The input; may be endless.
        chunksize : int
            Items that are read and travel together. 1, the default, measures how many should travel together.

        >>> import itertools
        >>> import rightlane as rl
        >>> with rl.Pool(2) as pool:
        ...     squares = pool.imap(lambda n: n * n, itertools.count())
        ...     [next(squares) for _ in range(4)]
        [0, 1, 4, 9]
        """
        return self._imap(func, iterable, chunksize, False)

    def imap_unordered(
        self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int = 1
    ) -> IMapIterator[T]:
        """As `imap`, but results come as they are ready."""
        return self._imap(func, iterable, chunksize, True)

    def close(self) -> None:
        """Take no more work. What was given is finished; inputs that are being read are read on."""
        if self._state == RUN:
            self._state = CLOSE
            self._ledger.close()

    def terminate(self) -> None:
        """End at once. Tasks that have not begun end with CancelledError, those that run with `WorkerLost`.

        The workers are killed, and gone when this returns. Threads cannot be killed: what a `ThreadPool` has
        begun goes on, and this does not wait for it.
        """
        self._state = TERMINATE
        self._engine.close(True, True)
        if self._lane == "process":
            self._engine.wait_drained(None)

    def join(self) -> None:
        """Wait until all is done, callbacks included, and no worker is left. ValueError before `close`."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if self._state == CLOSE:
            self._ledger.read_on()
        self._engine.wait_drained(None)
        self._ledger.wait_until_told()
        _executor._join(self._engine)

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    def __repr__(self) -> str:
        kind = type(self)
        return (
            f"<{kind.__module__}.{kind.__qualname__} state={self._state} "
            f"pool_size={getattr(self, '_processes', 0)}>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    # The defaults live as long as this function, also while the interpreter takes its modules apart.
    def __del__(self, _warn: Any = warnings.warn, _run: str = RUN) -> None:
        if self._state == _run:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
            self._ledger.close()

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def _map(
        self, func: Callable[..., T], iterable: Iterable[Any], spread: bool, chunksize: int | None
    ) -> list[T]:
        values: list[T] = []
        errors: list[BaseException] = []
        self._start_map(func, iterable, spread, chunksize).gather(values, errors)
        if not errors:
            return values
        try:
            raise errors[0]
        finally:
            errors.clear()

    def _map_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any],
        spread: bool,
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> MapResult[list[T]]:
        results = self._start_map(func, iterable, spread, chunksize)
        result: MapResult[list[T]] = results.whole(MapResult)
        result._begin(results)
        if callback is not None or error_callback is not None:
            result._tell(self._ledger, callback, error_callback)
        return result

    def _start_map(
        self, func: Callable[..., Any], iterable: Iterable[Any], spread: bool, chunksize: int | None
    ) -> _native.PoolMap:
        self._check_running()
        if chunksize is not None and operator.index(chunksize) < 1:
            # The standard pool takes 0 for a map of nothing; what it makes of less nobody relies on.
            chunksize = None
        # Nothing runs unless the whole input can be read.
        items = iterable if hasattr(type(iterable), "__len__") else list(iterable)
        return self._engine.pool_map(self._lane, func, items, spread, False, chunksize, self._convert)

    def _imap(
        self, func: Callable[[S], T], iterable: Iterable[S], chunksize: int, unordered: bool
    ) -> IMapIterator[T]:
        self._check_running()
        if operator.index(chunksize) < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        chunk = None if chunksize == 1 else chunksize
        start = functools.partial(self._engine.pool_map, self._lane, func)
        if type(iterable) is range:
            return start(iterable, False, unordered, chunk, self._convert)
        items = iter(iterable)
        results = start(None, False, unordered, chunk, self._convert)
        inlet = results.inlet()
        portion = chunksize
        if type(iterable) in _READY:
            portion = max(chunksize, _PORTION_ITEMS)
            if inlet.feed(items, portion, _READY_BYTES):
                inlet.end(None)
                return results
        feeder = _Feeder(self._ledger, items, inlet, portion)
        with self._ledger.changed:
            self._ledger.feeders.append(feeder)
        try:
            feeder.start()
        except BaseException:
            feeder.inlet.end(None)
            self._ledger.fed(feeder)
            raise
        return results

    # What code in the wild reads of the standard pool.

    def _repopulate_pool(self) -> None:
        """Start the workers that are not there, ahead of their work."""
        if self._lane == "process" and self._state == RUN:
            self._engine.start_workers(min(self._processes, _executor._MOST_WORKERS))

    @property
    def _pool(self) -> list[Any]:
        """The workers, as far as they can be started: the standard pool has them all from the beginning."""
        self._repopulate_pool()
        return list(_process.worker_processes(self._engine).values())


class ThreadPool(Pool, _standard.ThreadPool):  # type: ignore[misc]
    """The interface of `multiprocessing.pool.ThreadPool`: a `Pool` whose tasks run in threads.

    Parameters
    ----------
    processes : int, optional
        How many threads there are at most. Default: the CPU budget.
    initializer : callable, optional
        Called once in each thread before its first task.
    initargs : iterable
        Its arguments.

    Nothing is pickled. A running task cannot be ended: `terminate` and the end of `with` cancel what has not
    begun, and `join` and the interpreter's exit wait for the rest.

    >>> import rightlane as rl
    >>> with rl.ThreadPool(4) as pool:
    ...     pool.map(len, ["a", "bc"])
    [1, 2]
    """

    _lane = "thread"
    _result_class = _LocalResult
    _convert = None

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        super().__init__(processes, initializer, initargs)

    @property
    def _pool(self) -> list[Any]:
        """As many entries as there may be threads: those that run, and what stands for the others."""
        threads = self._engine.threads()
        rest = self._processes - len(threads)
        return [*threads, *(threading.Thread(name="not started") for _ in range(rest))]


# The end of the process ---------------------------------------------------------------------------

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_ledgers: weakref.WeakSet[_Ledger] = weakref.WeakSet()


def _at_exit() -> None:
    """Terminate what runs, as the standard pool does. What was closed finishes what it has read so far."""
    for pool in list(_pools):
        try:
            if pool._state == RUN:
                pool.terminate()
        except Exception:
            sys.excepthook(*sys.exc_info())
    for ledger in list(_ledgers):
        ledger.stop_reading()


def _after_fork_in_child() -> None:
    _ledgers.clear()
    for pool in list(_pools):
        # Threads that read or tell are not there, and the lock may have been held.
        pool._ledger = _Ledger(pool._engine)
        pool._ledger.closing = pool._state != RUN


# Registered after the executors' hook, hence run before it.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_after_fork_in_child)
