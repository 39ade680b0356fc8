"""Functions that change state which processes do not share: found, told once, and dealt with (rule 3)."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import labelled
import labelled_again
import rightlane as rl
import tasks
from rightlane import _guard
from rightlane.futures import ProcessPoolExecutor
from support import Start, eventually, lines

seen: list[int] = []
total = 0
table: dict[str, int] = {}


def collect(value: int) -> int:
    seen.append(value)
    return os.getpid()


def bump(value: int) -> int:
    global total
    total += value
    return os.getpid()


def tally(word: str) -> int:
    table[word] = table.get(word, 0) + 1
    return os.getpid()


def pure(value: int) -> int:
    return value + 1


def collect_and_log(log: str) -> None:
    tasks.append(log, "ran")
    seen.append(1)


def collect_late(count: list[int]) -> int:
    if len(count) > 3:
        seen.append(1)
    return len(count)


def read_all(data: Any) -> int:
    return len(data)


def blank(data: bytearray) -> None:
    data[0] = 1


def sort(items: list[Any]) -> None:
    items.sort(reverse=True)


def first(items: list[Any]) -> Any:
    return items[0]


def fork_and_collect() -> int:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    seen.append(pid)
    return pid


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, value: int) -> int:
        self.count += value
        return self.count


@pytest.fixture
def told() -> Iterator[list[warnings.WarningMessage]]:
    """The warnings of the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def texts(told: list[warnings.WarningMessage]) -> list[str]:
    assert all(each.category is rl.SharedStateWarning for each in told), told
    return [str(each.message) for each in told]


def name_of(fn: Any) -> str:
    return getattr(fn, "__qualname__", repr(fn))


@pytest.mark.parametrize("labels", [labelled, labelled_again], ids=lambda module: module.__name__)
def test_what_changes_state_is_found_and_nothing_else(
    make: Callable[..., rl.Executor], told: list[warnings.WarningMessage], labels: ModuleType
) -> None:
    """rule 3: at least 95 % of the labelled functions that change something are found, and no other one."""
    assert len(labels.CHANGE) >= 20 and len(labels.KEEP) >= 20
    ex = make()
    for fn, arguments in labels.CHANGE + labels.KEEP:
        for _ in range(3):
            error = ex.submit(fn, *arguments()).exception()
            assert not isinstance(error, rl.RightlaneError | AssertionError), (fn, error)
    found = [fn for fn, _ in labels.CHANGE if _guard.verdict(fn).startswith("changes ")]
    missed = [name_of(fn) for fn, _ in labels.CHANGE if fn not in found]
    assert len(missed) <= len(labels.CHANGE) * 0.05, missed
    kept = {name_of(fn): _guard.verdict(fn) for fn, _ in labels.KEEP}
    assert set(kept.values()) <= {"unchanged", "not checked"}, kept
    assert list(kept.values()).count("unchanged") >= len(kept) * 0.75
    assert len(texts(told)) == len({_guard._Target(fn).key() for fn in found})


def test_what_is_changed_is_named(
    make: Callable[..., rl.Executor], told: list[warnings.WarningMessage]
) -> None:
    """The warning says what, and stands at the function's definition."""
    ex = make()
    counter = Counter()
    for fn, args in ((collect, (1,)), (bump, (1,)), (counter.add, (1,)), (sort, ([1, 2],))):
        ex.submit(fn, *args).result()
    rest = '; worker processes change their own copy; `lane="thread"` shares it'
    assert texts(told) == [
        "`collect()` changes global `seen`" + rest,
        "`bump()` changes global `total`" + rest,
        "`Counter.add()` changes `self.count`" + rest,
        "`sort()` changes its argument `items`" + rest,
    ]
    assert [each.filename for each in told] == [__file__] * 4
    assert told[0].lineno == inspect.getsourcelines(collect)[1]
    assert _guard.verdict(collect) == "changes global `seen`"
    assert _guard.verdict(functools.partial(collect, 1)) == "changes global `seen`"


def by_result(ex: rl.Executor) -> None:
    ex.submit(collect, 1).result()


def by_exception(ex: rl.Executor) -> None:
    assert ex.submit(collect, 1).exception() is None


def by_map(ex: rl.Executor) -> None:
    assert len(list(ex.map(collect, range(20)))) == 20


def by_the_next_call(ex: rl.Executor) -> None:
    future = ex.submit(collect, 1)
    eventually(future.done)
    ex.submit(pure, 1)


def by_shutdown(ex: rl.Executor) -> None:
    ex.submit(collect, 1)
    ex.shutdown()


def by_a_callback(ex: rl.Executor) -> None:
    done = threading.Event()

    def call_back(future: rl.Future[int]) -> None:
        future.result()
        done.set()

    ex.submit(collect, 1).add_done_callback(call_back)
    assert done.wait(60)


@pytest.mark.parametrize(
    "way",
    [by_result, by_exception, by_map, by_the_next_call, by_shutdown, by_a_callback],
    ids=lambda way: way.__name__,
)
@pytest.mark.parametrize("lane", ["auto", "process"])
def test_it_is_told_however_results_are_taken(
    make: Callable[..., rl.Executor],
    told: list[warnings.WarningMessage],
    lane: str,
    way: Callable[[rl.Executor], None],
) -> None:
    way(make(lane=lane))
    assert len(texts(told)) == 1


def test_once_for_each_function_and_executor(
    make: Callable[..., rl.Executor], told: list[warnings.WarningMessage]
) -> None:
    for _ in range(2):
        ex = make(2)
        for _ in range(5):
            ex.submit(collect, 1).result()
            list(ex.map(collect, range(50)))
            ex.submit(tally, "a").result()
    assert sorted(text.partition("()")[0] for text in texts(told)) == ["`collect"] * 2 + ["`tally"] * 2


@pytest.mark.parametrize("lane", ["thread", "inline"])
@pytest.mark.parametrize("shared", ["warn", "thread", "error"])
def test_lanes_that_share_state_are_not_looked_at(
    make: Callable[..., rl.Executor], told: list[warnings.WarningMessage], lane: str, shared: str
) -> None:
    ex = make(lane=lane, shared=shared)
    before = len(seen)
    assert ex.submit(collect, 1).result() == os.getpid()
    assert list(ex.map(collect, [2, 3])) == [os.getpid()] * 2
    assert len(seen) == before + 3
    assert not told


def test_a_filter_makes_an_error_of_it_and_the_result_is_kept(make: Callable[..., rl.Executor]) -> None:
    ex = make()
    future = ex.submit(collect, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", rl.SharedStateWarning)
        with pytest.raises(rl.SharedStateWarning, match="changes global `seen`"):
            future.result()
        assert future.result() in ex._engine.worker_pids()


def test_existing_code_is_not_told(told: list[warnings.WarningMessage]) -> None:
    """Who uses the standard pools, or what stands in for them, knows that processes have copies."""
    with ProcessPoolExecutor(2) as drop_in:
        assert drop_in.submit(collect, 1).result() != os.getpid()
    with rl.Pool(2) as pool:
        assert pool.apply(collect, (1,)) != os.getpid()
    assert not told


def test_the_shared_executor_tells(start: Start) -> None:
    """And an exit of the interpreter, of what nobody has asked for."""
    script = start(
        """
        import rightlane as rl

        table = {}

        def tally(word):
            table[word] = 1

        def forget(word):
            table.pop(word, None)

        for word in "abc":
            rl.submit(tally, word).result()
        print(list(rl.map(tally, "abc")), flush=True)
        table["a"] = 1
        rl.submit(forget, "a")
        """
    )
    assert script.succeeds() == "[None, None, None]\n"
    told = [line for line in script.err.splitlines() if "SharedStateWarning" in line]
    assert ["`tally()`" in told[0], "`forget()`" in told[1], len(told)] == [True, True, 2]


def test_only_the_first_calls_are_watched(
    make: Callable[..., rl.Executor], told: list[warnings.WarningMessage]
) -> None:
    ex = make(1)
    for n in range(6):
        assert ex.submit(collect_late, [0] * n).result() == n
    assert _guard.verdict(collect_late) == "unchanged"
    assert not told


def test_beyond_the_limits_it_is_not_checked(
    make: Callable[..., rl.Executor], told: list[warnings.WarningMessage]
) -> None:
    """1 MiB of data; what shows within that counts all the same."""
    ex = make()
    assert _guard.verdict(read_all) == "not seen yet"
    assert ex.submit(read_all, bytearray(4 << 20)).result() == 4 << 20
    assert _guard.verdict(read_all) == "not checked"
    assert ex.submit(first, [*range(500_000)]).result() == 0
    assert _guard.verdict(first) == "not checked"
    assert not told
    ex.submit(blank, bytearray(4 << 20)).result()
    ex.submit(sort, [*range(500_000)]).result()
    assert [_guard.verdict(fn) for fn in (blank, sort)] == [
        "changes its argument `data`",
        "changes its argument `items`",
    ]


def test_shared_thread_brings_it_home(
    make: Callable[..., rl.Executor], told: list[warnings.WarningMessage]
) -> None:
    """What its code stores to sends a function to threads at once; else it goes once it was seen."""
    global total
    ex = make(2, shared="thread")
    here, total_before = os.getpid(), total
    assert ex.submit(bump, 2).result() == here
    assert list(ex.map(bump, [3, 4])) == [here] * 2
    assert total == total_before + 9
    assert not told

    def gather(value: int, into: dict[int, int] = {}) -> int:  # noqa: B006
        into[value] = value
        return os.getpid()

    assert ex.submit(gather, 1).result() != here
    assert ex.submit(gather, 1).result() == here
    assert list(ex.map(gather, [2, 3])) == [here] * 2
    assert gather.__defaults__ == ({1: 1, 2: 2, 3: 3},)
    assert len(texts(told)) == 1
    assert ex.submit(pure, 1).result() == 2
    assert ex.submit(os.getpid).result() != here
    # Who pins processes gets processes.
    assert ex.options(lane="process").submit(bump, 1).result() != here


def test_shared_error_fails_its_tasks(make: Callable[..., rl.Executor], tmp_path: Path) -> None:
    """A function is not run any more where it is known."""
    log = str(tmp_path / "log")
    ex = make(1, shared="error")
    for _ in range(3):
        with pytest.raises(rl.SharedStateError, match=r"`collect_and_log\(\)` changes global `seen`; worker"):
            ex.submit(collect_and_log, log).result()
    assert lines(log) == ["ran"]
    with pytest.raises(rl.SharedStateError, match="changes global `total`"):
        list(ex.map(bump, range(10)))
    counter = Counter()
    for _ in range(5):
        with pytest.raises(rl.SharedStateError, match=r"self\.count"):
            ex.submit(counter.add, 1).result()
    assert list(ex.map(pure, range(10))) == list(range(1, 11))
    assert issubclass(rl.SharedStateError, rl.RightlaneError | RuntimeError)
    assert issubclass(rl.SharedStateError, RuntimeError)


def test_functions_of_one_decorator_are_told_apart(make: Callable[..., rl.Executor]) -> None:
    def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            return fn(*args)

        return wrapper

    ex = make(1, shared="error")
    changes, keeps = logged(lambda n: seen.append(n)), logged(lambda n: n + 1)
    for _ in range(3):
        assert isinstance(ex.submit(changes, 1).exception(), rl.SharedStateError)
        assert ex.submit(keeps, 1).result() == 2


def test_errors_and_warnings_travel() -> None:
    error = rl.SharedStateError("text")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is rl.SharedStateError and str(again) == "text"


@pytest.mark.parametrize("shared", [None, "", "threads", 1, True])
def test_unknown_ways_are_refused(shared: Any) -> None:
    with pytest.raises(ValueError, match="unknown shared"):
        rl.Executor(2, shared=shared)


def test_a_child_that_the_task_forks_says_nothing(
    make: Callable[..., rl.Executor], told: list[warnings.WarningMessage]
) -> None:
    """The answer, and what was seen, are its parent's to tell."""
    ex = make(1)
    assert ex.submit(fork_and_collect).result() > 0
    assert ex.submit(pure, 1).result() == 2
    assert len(texts(told)) == 1
