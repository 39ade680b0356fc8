"""`rightlane.Executor`: the face of the engine. It checks, names and documents; the work is done in Rust."""

from __future__ import annotations

import concurrent.futures
import math
import operator
import os
import sys
import threading
from concurrent.futures import thread as _thread_pool

# Imported here, with the user's own import, and not by the first call in some thread: a fork of the
# process in the middle of an import would leave the child waiting for it. What pickles functions is imported
# by the first executor that may need it, while the template starts on another core.
from rightlane import _door, _forks, _future, _native, _world

TYPE_CHECKING = False  # nothing here needs `typing` at run time, and its import takes two milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Any, Literal, ParamSpec, TypeVar

    from rightlane._explain import Explanation
    from rightlane._future import Future

    P = ParamSpec("P")
    T = TypeVar("T")
    Lane = Literal["auto", "process", "thread", "inline"]
    SharedState = Literal["warn", "thread", "error"]

__all__ = ["Executor", "ExecutorView"]

_LANES = ("auto", "process", "thread", "inline")
_SHARED_STATE = ("warn", "thread", "error")
_MOST_WORKERS = 4096
_NO_LIMIT = 2**63  # more tasks than any worker will see
_EXIT_PATIENCE_S = 5.0


class ExecutorView(concurrent.futures.Executor):
    """An executor seen through options: shares its pool, and ends with it. Made by `Executor.options`."""

    _engine: _native.Engine
    _lane: Lane

    def __init__(self, engine: _native.Engine, lane: Lane) -> None:
        self._engine = engine
        self._lane = lane

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` in the lane and return its future, at once, if the executor is not full.

        Where as much is pending as may be (`max_pending`), it waits until there is room; Ctrl-C and other
        signals interrupt that. It never waits in a callback on the completion thread, where an asyncio event
        loop runs, and in a task on a thread of the same executor, whose slot may be what is waited for: there
        it raises `QueueFull` instead.

        In the process lane the function and its arguments are pickled here, in the calling thread: what
        happens to them afterwards does not reach the task. Functions, classes, lambdas and closures of
        `__main__`, of a REPL and of notebook cells work; there is no need for a `__main__` guard.

        Parameters
        ----------
        fn : callable
            What to run. Not a coroutine function.
        *args, **kwargs
            Its arguments. All of them are the function's: options go through `Executor.options`.

        Raises
        ------
        TypeError
            `fn` is not callable, or is a coroutine function.
        RuntimeError
            The executor was shut down, or the interpreter is exiting.
        BrokenExecutor
            An initializer failed, or workers could not be started.
        QueueFull
            The executor is full, and the caller must not wait.

        What cannot be pickled fails the future with `SerializationError`, except in lane "auto", where it
        runs in a thread. May be called from any thread.

        >>> import rightlane as rl
        >>> with rl.Executor() as ex:
        ...     ex.submit(lambda a, b: a + b, 1, b=2).result(timeout=60)
        3
        """
        future: Future[T] = self._engine.submit(self._lane, fn, args, kwargs)
        return future

    def try_submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As `submit`, but never waits: raises `QueueFull` at once where the executor is full.

        Parameters
        ----------
        fn : callable
            What to run.
        *args, **kwargs
            Its arguments, all of them.

        Raises
        ------
        QueueFull
            As many tasks, or bytes of arguments, are pending as may be; nothing was accepted. It is a
            `queue.Full` as well.

        Other errors as of `submit`. An inline executor is never full. May be called from any thread.

        >>> import rightlane as rl
        >>> with rl.Executor(2, max_pending=2) as ex:
        ...     ex.try_submit(pow, 2, 5).result(timeout=60)
        32
        """
        future: Future[T] = self._engine.try_submit(self._lane, fn, args, kwargs)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Run `fn` on each item, and yield the results in order. The work starts at the call.

        Items travel in batches sized by measured time; errors stay per item. Inputs whose length is known are
        read at the call, which waits, as `submit` does, while the executor is full. Others are read ahead of
        the iteration: at most 10,000 items, or `max_pending` if that is less, and about 256 MiB of arguments
        and results that nobody has taken, or as many as keep the workers busy within the bound in bytes. So
        an endless input of large arrays runs in constant memory. `shutdown(wait=True)` and the end of `with`
        read on until such an input ends. An endless input needs iteration or `buffersize`.

        A map that is never iterated runs all the same. Dropping or closing a partly iterated one cancels the
        rest, and so does an exception that it raises.

        Parameters
        ----------
        fn : callable
            Called with one item of each iterable.
        *iterables : iterable
            Read in the calling thread, in parallel, until the shortest ends.
        timeout : float, optional
            Seconds from this call after which waiting for a result raises TimeoutError. Default: none.
        chunksize : int, optional
            Items per batch, at least 1. Default: measured.
        buffersize : int, optional
            At most so many items are read and not yet yielded, at least 1. Default: no such bound. The
            input of such a map is read by its iteration only.

        Raises
        ------
        TypeError, ValueError
            An argument makes no sense. Whatever reading an iterable raises at the call is raised here, later
            on in its place among the results.
        QueueFull
            The executor is full, and the caller must not wait, as with `submit`. What was begun is
            cancelled.

        >>> import rightlane as rl
        >>> with rl.Executor() as ex:
        ...     list(ex.map(pow, [1, 2, 3], [2, 2, 2]))
        [1, 4, 9]
        """
        _at_least_one("chunksize", chunksize)
        _at_least_one("buffersize", buffersize)
        if not iterables:
            raise TypeError("map() needs at least one iterable")
        spread = len(iterables) > 1
        items: Iterable[Any] = zip(*iterables, strict=False) if spread else iterables[0]
        if type(items) is not range or buffersize is not None:
            items = iter(items)
        sized = any(hasattr(type(iterable), "__len__") for iterable in iterables)
        return self._engine.map(self._lane, fn, items, spread, sized, buffersize, timeout, chunksize)

    def options(self, *, lane: Lane | None = None) -> ExecutorView:
        """The same pool, with other options, as an object with `submit`, `try_submit` and `map`.

        Options are not mixed with the function's own keywords this way.

        Parameters
        ----------
        lane : {"auto", "process", "thread", "inline"}, optional
            Where its tasks run. Default: as here.

        >>> import rightlane as rl
        >>> with rl.Executor() as ex:
        ...     ex.options(lane="thread").submit(len, "abc").result(timeout=60)
        3
        """
        lane = self._lane if lane is None else _lane(lane)
        if lane in ("auto", "process"):
            _prepare_template()
            _import_pickling()
        return ExecutorView(self._engine, lane)

    def explain(self, fn: Callable[..., Any]) -> Explanation:
        """Which lane "auto" has for `fn`, and why: `str` of what is returned is one line.

        Functions are measured while they run in workers: their CPU time, how much of it under the
        interpreter's lock, what they wait for, and what it costs to move their arguments and results. What is
        known is known to all executors of this process, and remembered by later ones (`profiles`): then the
        line says "remembered from earlier runs", until as much has been measured in this one.

        Parameters
        ----------
        fn : callable
            What was, or will be, given to `submit` or `map`. It is not called.

        Returns
        -------
        Explanation
            With `lane`, `reason`, `change` (what would change the decision), `as_dict()` (times in
            nanoseconds per call; under "moved" the bytes moved and saved, copies and seconds of all calls so
            far) and `to_json()`. Before its first call has been measured: "not seen yet".

        Raises
        ------
        TypeError
            `fn` is not callable.

        May be called from any thread, also after the executor was shut down. With lane "process" or "thread"
        it says what "auto" would do.

        >>> import rightlane as rl, math
        >>> with rl.Executor() as ex:
        ...     print(ex.explain(math.prod))
        `prod`: not seen yet; its first call runs in a worker process, and is measured there
        """
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        from rightlane import _explain

        return _explain.Explanation(self._engine.explain(fn))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, kill: bool = False) -> None:
        """End the pool. What was accepted is finished first, unless told otherwise. May be called again.

        Parameters
        ----------
        wait : bool
            Return only when everything is done and no process or thread of the pool is left.
        cancel_futures : bool
            Cancel what nobody has begun.
        kill : bool
            Cancel what nobody has begun and kill the workers: their tasks fail with `WorkerLost`. Threads
            cannot be killed; their tasks go on.

        Ctrl-C interrupts the waiting, not the work.
        """
        engine = self._engine
        if wait and not (cancel_futures or kill):
            # From here on no new calls, but maps go on reading what they were promised to read.
            engine.read_on()
        engine.close(cancel_futures, kill)
        if wait:
            engine.wait_drained(None)
            _join(engine)
            _native.save_profiles()
            _native.guard_tell()


class Executor(ExecutorView):
    """Runs functions in worker processes, in threads or inline; a real `concurrent.futures.Executor`.

    Parameters
    ----------
    max_workers : int, optional
        A hard cap on started, unfinished tasks, over all lanes. Default: the CPU budget (affinity and control
        group quota, rounded up); for lane "thread", `min(32, budget + 4)`; inside a task of another executor,
        1. Inline tasks take no worker.
    lane : {"auto", "process", "thread", "inline"}
        Where tasks run. "process": in worker processes. "thread": in threads of this process. "inline": in
        the caller, during `submit`. "auto" (the default): an unknown function in a worker process; a known
        one where it costs least, which `explain` says and why; in a thread what cannot be pickled. What could
        notice that it runs in this process stays in worker processes.
    initializer : callable, optional
        Called once in each worker process and each lane thread before its first task; inline never. If it
        raises, the executor is broken.
    initargs : tuple
        Its arguments.
    max_tasks_per_child : int, optional
        How many tasks one worker process runs, at least 1; then it ends in good order (`atexit` handlers run,
        threads are joined) and another takes its place. Items of a map count one by one, however they travel.
        Default: no limit. Threads and inline tasks know none.
    max_pending : int or math.inf, optional
        How many tasks may be accepted and not have ended, over all lanes, at least 1; `submit` waits while
        there are so many, `try_submit` raises `QueueFull`. Default: as many as take a sixteenth of the free
        memory at 256 bytes each, at least 1,000,000. The bytes of their arguments (pickles, and arrays placed
        in shared memory) are bounded, too, with and without `max_pending`: by a quarter of the free memory,
        at least 16 MiB; a task that is larger than that is accepted when no other's arguments are kept. Free
        is what the machine and every control group leave, less a margin, when it first matters. `math.inf`
        lifts both bounds. Threads share their arguments, so only their number counts. A map over a `range`
        keeps nothing for its numbers; they count only where `max_pending` is a number.
    thread_name_prefix : str
        Names of lane threads begin with it.
    shared : {"warn", "thread", "error"}
        What to do about a function that, in a worker process, changes state of which the caller's process has
        its own copy: a global, a variable of an enclosing function, a mutable default, a class attribute, its
        `self` or an argument. Each worker looks at the first three calls of a function, and at its code.
        "warn" (the default): one `SharedStateWarning` for each function and executor. "thread": with lane
        "auto" such a function also runs in threads from then on, at once where its code says so; calls that
        were made before stay as they were. "error": its tasks fail with `SharedStateError`. What runs in
        threads or inline shares everything, and is not looked at.
    profiles : bool
        Whether lane "auto" begins with what earlier runs have measured of the same functions, and keeps what
        it measures for later ones, in `$XDG_CACHE_HOME/rightlane` or `~/.cache/rightlane`. Default: True. The
        environment variable `RIGHTLANE_PROFILES=0` switches it off for all executors. It says where a
        function is fastest, never that it is harmless.

    Raises
    ------
    TypeError, ValueError
        An argument makes no sense.
    SerializationError
        The initializer cannot be sent to workers.
    RuntimeError
        This interpreter is frozen or embedded, so that no worker process can be started.

    Worker processes are forked from a fresh interpreter, never from this process. A worker that dies costs
    the task it was running, whose future gets `WorkerLost`; it is replaced, and what had not begun runs
    elsewhere. May be used from any thread. After a fork of this process the child has a fresh, empty
    executor.

    As a context manager it waits at the end. The first Ctrl-C inside raises KeyboardInterrupt and still waits
    for what was accepted; a second one kills the workers.

    >>> import rightlane as rl
    >>> with rl.Executor(2) as ex:
    ...     sorted(ex.map(lambda n: n * n, range(4)))
    [0, 1, 4, 9]
    """

    # Whether it stands for a pool of the standard library, which accepts everything: where a caller must not
    # wait for room, its calls are accepted beyond the bounds.
    _standard = False
    _guards = True

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        lane: Lane = "auto",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        max_pending: float | None = None,
        thread_name_prefix: str = "",
        shared: SharedState = "warn",
        profiles: bool = True,
    ) -> None:
        lane = _lane(lane)
        if not isinstance(shared, str) or shared not in _SHARED_STATE:
            known = ", ".join(repr(name) for name in _SHARED_STATE)
            raise ValueError(f"unknown shared {shared!r}; use one of {known}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable or None, not {type(initializer).__name__}")
        if not isinstance(thread_name_prefix, str):
            raise TypeError(f"thread_name_prefix must be a str, not {type(thread_name_prefix).__name__}")
        if not isinstance(profiles, bool):
            raise TypeError(f"profiles must be True or False, not {type(profiles).__name__}")
        workers = _default_workers(lane) if max_workers is None else _workers(max_workers)
        _at_least_one("max_tasks_per_child", max_tasks_per_child)
        tasks = None if max_tasks_per_child is None else min(int(max_tasks_per_child), _NO_LIMIT)
        pending = _max_pending(max_pending)
        processes = lane in ("auto", "process")
        if processes:
            _prepare_template()
        name = thread_name_prefix or f"rightlane-{_next_number()}"
        guarding = shared if self._guards else None
        engine = _native.Engine(
            workers,
            processes,
            initializer,
            tuple(initargs),
            name,
            tasks,
            max_pending=pending,
            standard=self._standard,
            guarding=guarding,
            capped=max_workers is not None,
            profiles=profiles,
        )
        if processes:
            _import_pickling()
        super().__init__(engine, lane)
        self._max_workers = workers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} lane={self._lane!r} max_workers={self._max_workers}>"

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            if error is None or not isinstance(error, KeyboardInterrupt):
                # The first Ctrl-C came while we waited: it is raised; what was accepted is still finished.
                try:
                    self.shutdown(wait=True)
                except KeyboardInterrupt:
                    self.shutdown(wait=True, kill=True)
                raise
            self.shutdown(wait=True, kill=True)
            raise


_numbers = iter(range(sys.maxsize))


def _next_number() -> int:
    return next(_numbers)


def _lane(lane: object) -> Lane:
    if isinstance(lane, str) and lane in _LANES:
        return lane  # type: ignore[return-value]
    known = ", ".join(repr(name) for name in _LANES)
    raise ValueError(f"unknown lane {lane!r}; use one of {known}")


def _workers(max_workers: object) -> int:
    if isinstance(max_workers, bool) or not hasattr(type(max_workers), "__index__"):
        kind = type(max_workers).__name__
        raise TypeError(f"max_workers must be an integer or None, not {kind}")
    number = max_workers.__index__()  # type: ignore[attr-defined]
    if number <= 0:
        raise ValueError(f"max_workers must be at least 1, not {number}; leave it out to use the CPU budget")
    return min(int(number), _MOST_WORKERS)


def _default_workers(lane: Lane) -> int:
    in_task, _ = _native.nesting()
    if in_task:
        return 1  # the executor that runs the task has the budget already
    budget = _native.cpu_budget()[2]
    return min(32, budget + 4) if lane == "thread" else budget


def _at_least_one(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an integer or None, not {type(value).__name__}")
    if value.__index__() < 1:  # type: ignore[attr-defined]
        raise ValueError(f"{name} must be at least 1, not {value}")


def _max_pending(max_pending: object) -> int | None:
    """As the engine takes it: 0 lifts the bounds."""
    if isinstance(max_pending, float) and max_pending == math.inf:
        return 0
    if isinstance(max_pending, float):
        raise TypeError(f"max_pending must be an integer, math.inf or None, not {max_pending!r}")
    _at_least_one("max_pending", max_pending)
    return None if max_pending is None else min(operator.index(max_pending), _NO_LIMIT)  # type: ignore[arg-type]


_prepared = False


def _prepare_template() -> None:
    """Tell the native half, once, how to start a template: this interpreter, with this package."""
    global _prepared
    if sys.platform != "linux":
        raise RuntimeError(
            f"worker processes need Linux 5.10 or newer, and this is {sys.platform}; "
            'use Executor(lane="thread"); `rightlane doctor` shows what works here'
        )
    if not _prepared:
        argv, environment = _world.template_command()
        home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        code = f"import sys; sys.path.insert(0, {home!r}); from rightlane import _template; _template.main()"
        argv = [*argv, "-c", code]
        env = [os.fsencode(name) + b"=" + os.fsencode(value) for name, value in environment.items()]
        _native.set_template_program(os.fsencode(argv[0]), [os.fsencode(part) for part in argv], env)
        if _world.needs_site():
            _native.want_site()
        _prepared = True


def _import_pickling() -> None:
    from rightlane import _byvalue, _remembered

    assert _byvalue is not None and _remembered is not None


def _join(engine: _native.Engine) -> None:
    current = threading.current_thread()
    for thread in engine.threads():
        if thread is not current:
            thread.join()
    if _native.retire_completions():
        _door.join()


def _at_exit() -> None:
    """Finish what was accepted before the interpreter's threads end (rules 2 and 17)."""
    engines = _native.begin_exit()
    for engine in engines:
        try:
            engine.read_on()
            engine.close(False, False)
            if not engine.wait_drained(_EXIT_PATIENCE_S):
                _name_open_tasks(engine)
                engine.wait_drained(None)
        except KeyboardInterrupt:
            engine.close(True, True)
            engine.wait_drained(None)
        except Exception:
            # One executor's input that raises must not cost another its accepted work.
            sys.excepthook(*sys.exc_info())
            engine.close(False, False)
            engine.wait_drained(None)
        _join(engine)
    _native.stop_completions()
    _door.join()
    _native.save_profiles()
    try:
        _native.guard_tell()
    except Exception:
        sys.excepthook(*sys.exc_info())


def _name_open_tasks(engine: _native.Engine) -> None:
    tasks = engine.open_tasks()
    shown = ", ".join(tasks[:5]) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")
    if tasks and sys.stderr is not None:
        text = f"rightlane: the exit waits for {shown}; press Ctrl-C to kill them"
        print(text, file=sys.stderr, flush=True)


# Registered after the standard library's own hook, hence run before it: lane threads may use its pools
# until they end.
assert _thread_pool is not None and _future is not None and _forks is not None
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
