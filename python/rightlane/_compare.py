"""Which lane suits a function: `rl.compare`, and the Python half of `rightlane compare`.

The plan, the judgement and the text are Rust (`crates/cli`). Here is what needs the interpreter: the
function and its items, a timed run in a pool, the CPU time of everything that run used, and whether two
results are the same. Nothing here decides anything.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TextIO, cast

__all__ = ["Comparison", "Row", "compare"]


_Measurement = tuple[int, float, float, float, int, int | None]
"""Items, wall-clock time, CPU time, time waited for a core, how many raised, the first that differs."""


@dataclass(frozen=True, slots=True)
class Row:
    """One engine of a comparison.

    The figures are None where the lane could not run the function; `note` then says why.
    """

    lane: Literal["serial", "process", "thread"]
    size: int | None
    """Workers of the pool; None for the serial loop."""
    items: int | None
    time_s: float | None
    speed_up: float | None
    """Against the serial loop."""
    cores_used: float | None
    """CPU time of the caller, of the workers and of what they started, over wall-clock time."""
    tasks_per_s: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found out. `str()` of it is what `rightlane compare` prints."""

    rows: tuple[Row, ...]
    """The serial loop and the best pool of every lane, measured on all items."""
    sweep: tuple[Row, ...]
    """Every size that was tried on a sample."""
    best: Row
    """The row to go by: the fastest, or the simplest of those that tie with it."""
    verdict: str
    ok: bool
    """False when a lane broke, or when its results were not those of the serial loop."""
    text: str

    def __str__(self) -> str:
        return self.text

    def to_html(self) -> str:
        """The rows as bars on a page of their own, which loads nothing: to be written to a file.

        >>> import rightlane as rl
        >>> comparison = rl.compare(len, ["a", "bb", "ccc"])
        >>> comparison.to_html().startswith("<!doctype html>")
        True
        """
        from rightlane import _chart

        return _chart.page(self)

    def _repr_html_(self) -> str:
        from rightlane import _chart

        return _chart.fragment(self)


def compare(
    fn: Callable[[Any], object],
    items: Iterable[Any],
    *,
    max_workers: int | None = None,
    progress: Callable[[str], object] | None = None,
) -> Comparison:
    """Run `fn` on `items` serially, in processes and in threads, and say which wins and why.

    The items are made a list once. Pools of one, four and sixteen workers per core (threads also of
    sixty-four) are tried on a sample worth about half a second, none larger than `max_workers`; then the
    serial loop and the best pool of each lane run all items, taking turns, the making and the ending of
    the pool included. So `fn` is called several times for every item, and serially in this process: it
    should not change what it is given.

    An exception is a result like another: it is equal to one of the same type with the same arguments.
    `progress` is called with a line of text before each run.

    Raises TypeError if `fn` cannot be called, is a coroutine function, or `items` cannot be iterated;
    ValueError if there are no items or `max_workers` is less than 1.

    >>> import rightlane as rl
    >>> comparison = rl.compare(len, ["a", "bb", "ccc"])
    >>> comparison.rows[0].lane, comparison.ok
    ('serial', True)
    """
    if max_workers is not None:
        if not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be a whole number or None, not {max_workers!r}")
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {max_workers}")
    from rightlane import _native

    host = Host(progress)
    name, count, cores = host.take(fn, items)
    rows, sweep, best, verdict, ok, text = _native.compare(name, count, cores, max_workers, host)
    made = tuple(_row(*row) for row in rows)
    return Comparison(made, tuple(_row(*row) for row in sweep), made[best], verdict, ok, text)


def _row(
    lane: str, size: int | None, figures: tuple[int, float, float, float, float] | None, note: str
) -> Row:
    named = cast(Literal["serial", "process", "thread"], lane)
    items, time_s, speed_up, cores_used, tasks_per_s = figures or (None, None, None, None, None)
    return Row(named, size, items, time_s, speed_up, cores_used, tasks_per_s, note)


class Host:
    """What the Rust half of the commands calls; the shapes are those of `crates/python/src/cli.rs`."""

    def __init__(self, progress: Callable[[str], object] | None = None) -> None:
        self._progress = progress
        self._call: Caught | None = None
        self._items: list[Any] = []
        self._spread: list[int] = []
        self._reference: dict[int, object] = {}
        self._cpu = _CpuClock()

    def take(self, fn: Callable[[Any], object], items: Iterable[Any]) -> tuple[str, int, int]:
        """Check and keep a job: its name, how many items, and the core budget."""
        import inspect

        if not callable(fn):
            raise TypeError(f"compare needs a function, but {fn!r} cannot be called")
        if inspect.iscoroutinefunction(fn):
            raise TypeError(f"{_name(fn)} is a coroutine function; compare takes plain functions")
        try:
            self._items = list(items)
        except TypeError as error:
            raise TypeError(f"the items cannot be made a list: {error}") from error
        if not self._items:
            raise ValueError("there are no items to run the function on")
        self._call = Caught(fn)
        self._spread = _spread_order(len(self._items))
        return _name(fn), len(self._items), core_count()

    def load(self, spec: str, expression: str) -> tuple[str, int, int] | str:
        """The job that a command line names, or what is wrong with it in one line."""
        module_name, colon, path = spec.partition(":")
        if not (module_name and colon and path):
            return f"{spec!r} is not of the form package.module:function"
        try:
            module = importlib.import_module(module_name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(error, ModuleNotFoundError) and error.name is not None:
                if f"{module_name}.".startswith(f"{error.name}."):
                    return f"there is no module {error.name!r}"
            return f"importing {module_name!r} failed: {_one_line(error)}"
        fn: Any = module
        for attribute in path.split("."):
            try:
                fn = getattr(fn, attribute)
            except AttributeError:
                return f"module {module_name!r} has no {path!r}"
        try:
            items = eval(expression, vars(module))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return f"evaluating --items {expression!r} failed: {_one_line(error)}"
        try:
            return self.take(fn, items)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an iterator of the user's may raise anything
            if isinstance(error, TypeError | ValueError):
                return str(error)
            return f"making a list of --items {expression!r} failed: {_one_line(error)}"

    def calibrate(self, budget_s: float) -> _Measurement:
        """Run the items serially, in spread order, until the time is used up."""
        call = self._call
        assert call is not None
        raised = 0
        count = 0
        run = _Stopwatch(self._cpu)
        deadline = time.perf_counter() + budget_s
        for index in self._spread:
            raised += type(call(self._items[index])) is Raised
            count += 1
            if time.perf_counter() >= deadline:
                break
        return count, *run.stop(), raised, None

    def measure(
        self, lane: str, size: int, sample: int | None, index: int, of: int
    ) -> _Measurement | tuple[bool, str]:
        """One timed run; where the lane cannot do it, whether that is a failure, and why."""
        call = self._call
        assert call is not None
        chosen: range | list[int]
        chosen = range(index, len(self._items), of) if sample is None else self._spread[:sample]
        items = self._items if (index, of) == (0, 1) else [self._items[i] for i in chosen]
        gc.collect()  # nobody pays for the garbage of the run before
        run = _Stopwatch(self._cpu)
        if lane == "serial":
            results = [call(item) for item in items]
        elif lane == "process" and sys.platform != "linux":
            return False, "the process lane needs Linux"
        else:
            try:
                results = _run_pool(lane, size, call, items)
            except Exception as error:
                # What cannot be pickled is a finding; our own error for it is a PicklingError too.
                return not isinstance(error, pickle.PicklingError), _one_line(error)
        wall_s, cpu_s, delayed_s = run.stop()
        raised = sum(type(result) is Raised for result in results)
        differing = None
        if lane == "serial":
            self._reference.update(zip(chosen, results, strict=True))
        else:
            for i, result in zip(chosen, results, strict=True):
                if i in self._reference and not same(self._reference[i], result):
                    differing = i
                    break
        return len(items), wall_s, cpu_s, delayed_s if lane == "serial" else 0.0, raised, differing

    def progress(self, line: str) -> None:
        if self._progress is not None:
            self._progress(line)

    def findings(self) -> list[tuple[str, str, str, str]]:
        from rightlane import _doctor

        return _doctor.findings()


def _run_pool(lane: str, size: int, call: Caught, items: list[Any]) -> list[object]:
    from rightlane._executor import Executor

    with Executor(size, lane=cast(Literal["process", "thread"], lane)) as executor:
        return list(executor.map(call, items))


def core_count() -> int:
    """How many workers an executor takes by default: the core budget, rounded up."""
    from rightlane import _doctor

    return _doctor.core_budget().workers


class Caught:
    """Calls a function and gives back what it raised instead of raising it, so that one error does not
    end the run and takes the same way as a result."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[Any], object]) -> None:
        self.fn = fn

    def __call__(self, item: Any) -> object:
        try:
            return self.fn(item)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return Raised.of(error)


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception as far as it is compared: the name of its type, and its arguments."""

    type_name: str
    args: tuple[object, ...]

    @classmethod
    def of(cls, error: BaseException) -> Raised:
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        try:
            pickle.dumps(error.args)
        except Exception:
            return cls(name, tuple(type(arg).__qualname__ for arg in error.args))
        return cls(name, error.args)


def same(one: object, other: object) -> bool:
    """Whether two results are the same, one of them perhaps a copy of what the other is.

    More than `==`, because NaN is not equal to itself, arrays answer with an array, and two copies of an
    object whose class defines no equality are equal to nobody: those are compared by their parts.
    """
    pending = [(one, other)]
    # The pairs that were looked at, for objects that refer back to themselves. It holds the objects
    # too, so that no other can get the identity of one that is gone.
    seen: dict[tuple[int, int], tuple[object, object]] = {}
    while pending:
        one, other = pending.pop()
        pair = (id(one), id(other))
        if one is other or pair in seen:
            continue
        if type(one) is not type(other):
            return False
        seen[pair] = (one, other)
        parts = _differing_parts(one, other)
        if parts is None:
            return False
        pending += parts
    return True


def _differing_parts(one: object, other: object) -> list[tuple[object, object]] | None:
    """What has to be the same for two objects of one type to be so: nothing more if they are equal.

    None if they are not the same.
    """
    if isinstance(one, float) and isinstance(other, float):
        return [] if one == other or (math.isnan(one) and math.isnan(other)) else None
    if isinstance(one, list | tuple) and type(one) in (list, tuple):
        theirs = cast(list[object], other)
        return list(zip(one, theirs, strict=True)) if len(one) == len(theirs) else None
    if type(one) is dict:
        ours, found = one, cast(dict[object, object], other)
        return [(ours[key], found[key]) for key in ours] if ours.keys() == found.keys() else None
    if isinstance(one, Raised) and isinstance(other, Raised):
        return [(one.args, other.args)] if one.type_name == other.type_name else None
    try:
        equal = one == other
    except Exception:
        equal = None  # a class whose equality fails
    if equal is True:
        return []
    if equal is False and type(one).__eq__ is not object.__eq__:
        return None
    views = _views(one, other)
    if views is not None:
        a, b = views
        alike = (a.format, a.shape, a.tobytes()) == (b.format, b.shape, b.tobytes())
        return [] if alike else None
    try:
        return [(_parts(one), _parts(other))]
    except Exception:
        return None  # it cannot be taken apart


def _views(one: object, other: object) -> tuple[memoryview, memoryview] | None:
    """The memory of two arrays, if that says all there is about them."""
    try:
        views = memoryview(cast(Any, one)), memoryview(cast(Any, other))
    except (TypeError, ValueError, BufferError):
        return None
    # An array of objects holds their addresses, which say nothing.
    return None if any("O" in view.format for view in views) else views


def _parts(value: object) -> tuple[object, ...]:
    """What pickle would take the object apart into."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return (reduced,)
    return tuple(list(part) if index in (3, 4) and part else part for index, part in enumerate(reduced))


class _CpuClock:
    """CPU time of this process and of all its descendants, dead ones included.

    The workers' parent is the template, so `RUSAGE_CHILDREN` of this process knows nothing of them, and
    they are gone by the time a pool has ended. What the kernel keeps of a dead process is in its parent's
    cumulative children's time, so the sum over the tree of "own plus reaped children's" loses nothing:
    what leaves one term enters the next. Living processes are read through their CPU clocks, which count
    nanoseconds; `stat` counts ticks of 10 ms, an error that would add up over many workers.

    Descendants that lived before the comparison began and are not ours (a server the user started) are
    left out, with all that they start. Off Linux only this process and the children it reaped count.
    """

    def __init__(self) -> None:
        self._strangers: frozenset[int] = frozenset()
        if sys.platform == "linux":
            children = _children().get(os.getpid(), [])
            self._strangers = frozenset(pid for pid in children if not _is_template(pid))
            self._tick_s = 1 / os.sysconf("SC_CLK_TCK")

    def others_s(self) -> float:
        """What all but this process have used so far."""
        found: dict[int, float] = {}
        times = os.times()
        if sys.platform == "linux":
            # Who is reaped while the tree is read would count twice or not at all: read until nobody
            # came or went. Tasks may have left processes behind that come and go for ever.
            for _ in range(20):
                found = self._descendants_s()
                times = os.times()
                if self._descendants_s().keys() == found.keys():
                    break
        return times.children_user + times.children_system + sum(found.values())

    def _descendants_s(self) -> dict[int, float]:
        tree = _children()
        found: dict[int, float] = {}
        pending = [pid for pid in tree.get(os.getpid(), []) if pid not in self._strangers]
        while pending:
            pid = pending.pop()
            pending += tree.get(pid, [])
            try:
                # Linux's number for the CPU clock of a whole process (`CPUCLOCK_SCHED` in the kernel's
                # include/linux/posix-timers.h); `clock_getcpuclockid` gives the same.
                clock_s = time.clock_gettime((~pid << 3) | 2)
                ticks = sum(map(int, _stat(pid)[13:15]))
            except (OSError, IndexError):
                continue
            found[pid] = clock_s + ticks * self._tick_s
        return found


class _Stopwatch:
    """Wall-clock and CPU time from its making to `stop`. Reading the process tree is not part of it."""

    def __init__(self, cpu: _CpuClock) -> None:
        self._cpu = cpu
        self._others_s = cpu.others_s()
        self._delay_s = _delay_s()
        self._own_s = time.process_time()
        self._start_s = time.perf_counter()

    def stop(self) -> tuple[float, float, float]:
        """Wall-clock time, CPU time, and how long this thread had to wait for a core."""
        wall_s = time.perf_counter() - self._start_s
        own_s = time.process_time() - self._own_s
        # Reading the delay takes longer than a tiny run, and may itself be delayed.
        delayed_s = max(0.0, min(_delay_s() - self._delay_s, wall_s - own_s))
        return wall_s, own_s + self._cpu.others_s() - self._others_s, delayed_s


def _delay_s() -> float:
    """How long this thread has been ready to run without a core so far; 0 where nobody counts it."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _children() -> dict[int, list[int]]:
    """The process tree, from each parent to its children."""
    tree: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = int(_stat(int(name))[1])
            except (OSError, IndexError):
                continue
            tree.setdefault(parent, []).append(int(name))
    return tree


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/<pid>/stat` from the third (the state) on; the second may hold anything."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def _is_template(pid: int) -> bool:
    """Whether a child of this process is the engine's template, by the code it was started with."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            args = file.read().split(b"\0")
    except OSError:
        return False
    return any(flag == b"-c" and b"rightlane" in code for flag, code in itertools.pairwise(args))


def _spread_order(count: int) -> list[int]:
    """All indices below `count`, so that every beginning of them is spread over the whole range.

    Steps of about the golden section do that (Knuth, TAOCP 6.4); a step without a factor in common with
    `count` visits every index once.
    """
    step = max(1, round(count * 0.6180339887498949))
    while math.gcd(step, count) != 1:
        step += 1
    return [index * step % count for index in range(count)]


def _name(fn: object) -> str:
    return str(getattr(fn, "__qualname__", None) or repr(fn))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def write_line(stream: TextIO) -> Callable[[str], None]:
    """A `progress` that writes to a stream at once."""

    def progress(line: str) -> None:
        print(line, file=stream, flush=True)

    return progress
