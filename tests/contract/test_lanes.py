"""Automatic choice: what functions are taken for, where they run because of that, and what is never moved."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import loads
import rightlane as rl
from loads import fresh
from rightlane import _guard
from support import eventually

Make = Callable[..., rl.Executor]
HERE = os.getpid()


@pytest.fixture(params=["system calls", "clocks only"])
def view(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What workers can see: rule 28 wants the second as much as the first."""
    if request.param == "clocks only":
        monkeypatch.setenv("_RIGHTLANE_CLOCKS_ONLY", "1")
    return str(request.param)


@pytest.fixture
def port() -> Iterator[int]:
    """A server that takes its time."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(connection: socket.socket) -> None:
            with connection:
                time.sleep(0.01)
                connection.sendall(b"answer")

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the guard could not look: then the code decides."""
    monkeypatch.setattr(_guard, "verdict", lambda fn: _guard.NOT_CHECKED)


def run(ex: Any, fn: Callable[..., Any], *args: Any, calls: int = 24) -> list[Any]:
    """Two at a time, as long as it takes to know a function of some milliseconds."""
    results = []
    for _ in range(calls // 2):
        results += [future.result(timeout=60) for future in [ex.submit(fn, *args) for _ in range(2)]]
    return results


def comes_home(ex: Any, fn: Callable[..., Any], *args: Any) -> None:
    """On a crowded machine more must be seen of a function until it is known."""
    eventually(lambda: HERE in run(ex, fn, *args, calls=4))


def told(ex: rl.Executor, fn: Callable[..., Any]) -> dict[str, Any]:
    return ex.explain(fn).as_dict()


# What a function is taken for ---------------------------------------------------------------------

KINDS: list[tuple[Callable[..., Any], set[str], set[str]]] = [
    (loads.python_loop, {"holds_lock"}, {"process"}),
    (loads.json_round_trip, {"holds_lock"}, {"process"}),
    (loads.small_arrays, {"holds_lock"}, {"process"}),
    (loads.hash_of_4_mib, {"frees_lock", "holds_lock"}, {"process", "thread"}),
    (loads.sleep, {"waits"}, {"thread"}),
    (loads.child_that_waits, {"waits"}, {"thread"}),
    # Where others take the cores, the child waits more than it burns.
    (loads.child_that_burns, {"children", "waits"}, {"process", "thread"}),
    (loads.burn_and_wait, {"mixed"}, {"process"}),
    (loads.matrix_product, {"own_threads", "frees_lock"}, {"process", "thread"}),
    (loads.own_threads, {"own_threads", "holds_lock", "mixed"}, {"process", "thread"}),
]


@pytest.mark.parametrize(("fn", "reasons", "lanes"), KINDS, ids=[kind[0].__name__ for kind in KINDS])
def test_a_function_is_taken_for_what_it_does(
    make: Make, view: str, fn: Callable[..., Any], reasons: set[str], lanes: set[str]
) -> None:
    """rule 28: each worker measures itself, by system calls or by clocks."""
    if fn in (loads.matrix_product, loads.small_arrays):
        pytest.importorskip("numpy")
    fn = fresh(fn)
    ex = make(None)
    run(ex, fn)
    found = told(ex, fn)
    if view == "clocks only":
        # Without the kernel's word, a core that others took may look like a wait on a busy machine.
        reasons = reasons | {"mixed"} | ({"waits"} if "own_threads" in reasons else set())
    assert found["reason"] in reasons, found
    assert found["lane"] in lanes, found
    if fn.__name__ == "hash_of_4_mib":
        # It makes the zeros under the lock.
        assert found["free_ns"] > found["cpu_ns"] / 5, found
    assert (found["child_cpu_ns"] > 10_000_000) == (fn.__name__ == "child_that_burns"), found


def test_waiting_for_a_socket_is_waiting(make: Make, view: str, port: int) -> None:
    fn = fresh(loads.fetch)
    ex = make(None)
    run(ex, fn, port)
    found = told(ex, fn)
    assert (found["reason"], found["lane"]) == ("waits", "thread"), found
    if view == "system calls":
        assert found["seen"]["network"] > 0.5, found


def test_who_waits_for_a_lock_stays(make: Make) -> None:
    """More threads would only be more who wait."""
    fn = fresh(loads.lock)
    ex = make(None)
    run(ex, fn)
    found = told(ex, fn)
    assert (found["reason"], found["lane"]) == ("waits_for_locks", "process"), found


@pytest.mark.parametrize("fn", [loads.sleep, loads.python_loop], ids=["waits", "burns"])
def test_a_busy_machine_changes_no_verdict(make: Make, view: str, fn: Callable[..., Any]) -> None:
    """What others take of the cores is not the function's doing."""
    fn = fresh(fn)
    busy = make(2, lane="process")
    burning = [busy.submit(loads.long_loop, 3.0) for _ in range(2)]
    ex = make(None)
    run(ex, fn)
    reasons = {"waits"} if fn.__name__ == "sleep" else {"holds_lock"}
    if view == "clocks only":
        reasons = reasons | {"mixed"}  # as above
    assert told(ex, fn)["reason"] in reasons, told(ex, fn)
    for future in burning:
        future.cancel()


def test_a_long_first_call_is_known_before_it_ends(make: Make, view: str) -> None:
    fn = fresh(loads.long_loop)
    ex = make(None)
    future = ex.submit(fn, 30.0)
    found = eventually(lambda: told(ex, fn)["reason"] == "holds_lock" and told(ex, fn), 25)
    assert not future.done()
    assert found["calls_in_workers"] == 0


def test_large_arguments_are_not_moved_for_little(make: Make, view: str) -> None:
    fn, data = fresh(loads.length), bytes(8 << 20)
    ex = make(None)
    run(ex, fn, data)
    found = told(ex, fn)
    assert (found["reason"], found["lane"]) == ("moving", "thread"), found
    assert found["argument_bytes"] >= 8 << 20
    assert found["calls_in_threads"] > 0


def test_who_frees_the_lock_has_to_beat_one_thread_with_two(make: Make) -> None:
    fn, data = fresh(loads.hash_of), bytes(16 << 20)
    ex = make(None)
    first = run(ex, fn, data, calls=40)
    found = told(ex, fn)
    assert found["scales"] is not None, found
    assert set(first) == {loads.hash_of(data)}


# Where it runs ------------------------------------------------------------------------------------


def test_an_unknown_function_starts_in_a_worker_and_comes_home(make: Make, view: str) -> None:
    fn = fresh(loads.who)
    ex = make(None)
    assert ex.explain(fn).lane is None
    assert ex.submit(fn).result() != HERE
    comes_home(ex, fn)
    found = told(ex, fn)
    assert (found["lane"], found["wanted"]) == ("thread", "thread")
    assert found["calls_in_threads"] > 0
    assert found["thread_wall_ns"] >= 4_000_000  # nothing is taken off there
    # All executors know.
    assert make(None).submit(fn).result() == HERE


@pytest.mark.parametrize(("size", "home"), [(1, False), (2, False), (16, True)])
def test_a_cap_of_the_users_is_kept_in_both_lanes(make: Make, size: int, home: bool) -> None:
    """rule 4: within the cores a process waits as well as a thread, beyond them it costs more."""
    fn = fresh(loads.who)
    run(make(None), fn)
    cores = len(os.sched_getaffinity(0))
    size = size if size < 16 else 16 * cores
    ex = make(min(size, cores) if not home else size)
    assert (ex.submit(fn).result() == HERE) == home, told(ex, fn)


def test_pins_are_respected(make: Make) -> None:
    fn = fresh(loads.who)
    ex = make(None)
    run(ex, fn)
    assert ex.options(lane="process").submit(fn).result() != HERE
    assert ex.options(lane="thread").submit(fn).result() == HERE
    assert HERE not in list(ex.options(lane="process").map(fn, range(4)))


def test_what_killed_a_worker_never_comes_home(make: Make) -> None:
    fn = fresh(loads.who_or_die)
    ex = make(None)
    comes_home(ex, fn, False)
    other = fresh(loads.who_or_die)
    with pytest.raises(rl.WorkerLost):
        ex.submit(other, True).result()
    assert HERE not in run(ex, other, False)
    assert told(ex, other)["bar"] == "deadly"


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
@pytest.mark.parametrize(
    ("fn", "bar", "text"),
    [
        (loads.who_names_a_list, "not_proven", "names the global `seen`, a list, which can be changed"),
        (loads.who_sets_a_global, "not_proven", "sets the global `counter`"),
        (loads.Client().who, "changes", "is a method of a Client, which has a state"),
    ],
    ids=["names a list", "sets a global", "method"],
)
def test_what_may_change_what_is_shared_stays(
    make: Make, unguarded: None, fn: Callable[..., Any], bar: str, text: str
) -> None:
    """rule 3."""
    ex = make(None)
    assert HERE not in run(ex, fn)
    found = told(ex, fn)
    assert (found["lane"], found["wanted"], found["bar"]) == ("process", "thread", bar)
    assert found["doubt"] == text
    assert text in str(ex.explain(fn))


def test_arguments_that_could_be_changed_stay(make: Make, unguarded: None) -> None:
    """rule 3: each call is asked for its own."""
    fn = fresh(loads.who)
    ex = make(None)
    comes_home(ex, fn, (1, "two", b"three", frozenset({4.0})))
    assert HERE not in run(ex, fn, [1])
    assert HERE not in run(ex, fn, ({},))
    assert "its arguments can be changed" in str(ex.explain(fn))
    assert ex.submit(fn, "text").result() == HERE
    assert ex.submit(fn, _=[1]).result() != HERE


def test_what_was_watched_and_changes_nothing_comes_home_with_any_arguments(make: Make) -> None:
    """rule 3: the guard knows better than the code."""
    fn = fresh(loads.who_names_a_list)
    ex = make(None)
    comes_home(ex, fn, [1])
    assert told(ex, fn)["doubt"] is None


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
def test_what_was_seen_to_change_stays(make: Make) -> None:
    """rule 3."""
    fn = fresh(loads.who_sets_a_global)
    ex = make(None)
    assert HERE not in run(ex, fn)
    assert told(ex, fn)["bar"] == "changes", told(ex, fn)


def test_an_initializer_keeps_functions_where_it_has_run(make: Make) -> None:
    """rule 10: what it sets up may be what workers need and the user's process must not have."""
    fn = fresh(loads.who)
    comes_home(make(None), fn)
    for options in ({"initializer": int}, {"max_tasks_per_child": 1000}):
        ex = make(None, **options)
        assert HERE not in run(ex, fn)
        assert told(ex, fn)["bar"] == "setup"


def test_a_function_that_begins_to_burn_goes_back(make: Make) -> None:
    fn = fresh(loads.who_or_burn)
    ex = make(None)
    comes_home(ex, fn, False)
    eventually(lambda: HERE not in run(ex, fn, True, calls=4))
    assert told(ex, fn)["lane"] == "process"


def test_a_function_that_begins_to_wait_comes_home(make: Make, view: str) -> None:
    fn = fresh(loads.who_or_burn)
    ex = make(None)
    assert HERE not in run(ex, fn, True)
    eventually(lambda: HERE in run(ex, fn, False))


def test_what_cannot_be_sent_stays_in_threads(make: Make) -> None:
    held = threading.Lock()

    def locked() -> int:
        with held:
            return os.getpid()

    ex = make(None)
    assert ex.submit(locked).result() == HERE
    assert (ex.explain(locked).lane, ex.explain(locked).reason) == ("thread", "unpicklable")


def test_short_calls_by_submit_stay_in_workers(make: Make) -> None:
    fn = fresh(loads.quick_who)
    ex = make(None)
    assert HERE not in run(ex, fn, calls=4000)


def test_nobody_looks_at_what_is_known(make: Make) -> None:
    fn = fresh(loads.sampler_switches)
    ex = make(1, lane="process")

    def between() -> bool:
        first = ex.submit(fn).result()
        for _ in range(40):
            last = ex.submit(fn).result()
        assert first >= 0, "no thread looks at tasks"
        return bool(last == first)

    eventually(between)


# Maps ---------------------------------------------------------------------------------------------


def tiny(ex: rl.Executor, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Has it run until it is known to be tiny, with items that cost something to pickle."""

    def is_known() -> bool:
        list(ex.options(lane="process").map(fn, [("item", i) for i in range(4_000)]))
        return told(ex, fn)["lane"] == "inline"

    eventually(is_known)
    return fn


def test_tiny_items_run_in_the_caller_of_a_later_map(make: Make) -> None:
    ex = make(None)
    assert HERE not in ex.map(loads.mark, range(10))
    tiny(ex, loads.mark)
    assert set(ex.map(loads.mark, range(100))) == {HERE}
    # Not by `submit`: its caller goes on at once.
    assert ex.submit(loads.mark, 1).result() != HERE


def test_items_in_the_caller_are_ordered_and_their_errors_their_own(make: Make) -> None:
    ex = make(None)
    fn = tiny(ex, fresh(loads.second))
    assert list(ex.map(fn, [(0, i) for i in range(50_000)])) == list(range(50_000))
    assert list(ex.map(fn, ((0, i) for i in range(30_000)))) == list(range(30_000))
    assert list(ex.map(fn, ((0, i) for i in range(300)), buffersize=7)) == list(range(300))
    assert list(ex.map(fn, [])) == []
    results = ex.map(fn, [(0, 1), (), (0, 3)])
    assert next(results) == 1
    with pytest.raises(IndexError):
        next(results)
    dropped = ex.map(fn, [(0, i) for i in range(1_000)])
    assert next(dropped) == 0
    del dropped


def test_never_in_a_thread_with_a_running_event_loop(make: Make) -> None:
    ex = make(None)
    fn = tiny(ex, loads.mark_in_a_loop)

    async def within() -> set[int]:
        return set(ex.map(fn, range(200)))

    assert set(ex.map(fn, range(200))) == {HERE}
    assert HERE not in asyncio.run(within())


def test_items_that_become_long_go_to_workers(make: Make) -> None:
    ex = make(None)
    for _ in range(3):
        list(ex.options(lane="process").map(loads.mark_unless_long, list(range(400)) * 20))
    if told(ex, loads.mark_unless_long)["lane"] != "inline":
        # A busy machine: too slow for the caller; what is below is about what comes after.
        return
    results = list(ex.map(loads.mark_unless_long, range(450, 530)))
    assert [x for _, x in results] == list(range(450, 530))
    assert [pid for pid, _ in results[:50]] == [HERE] * 50
    assert results[-1][0] != HERE


def test_items_that_could_be_changed_go_to_workers(make: Make, unguarded: None) -> None:
    ex = make(None)
    pids = list(ex.map(tiny(ex, loads.mark_what_can_change), [1, 2, [3], 4, 5]))
    assert pids[:2] == [HERE] * 2
    assert HERE not in pids[2:]
    slow = fresh(loads.who)
    run(ex, slow)
    items = [1, [2], 3, [4], {5: 6}, 7] * 3
    pids = list(ex.map(slow, items))
    assert [pid == HERE for pid in pids] == [isinstance(item, int) for item in items]


def test_a_map_of_what_waits_runs_in_threads(make: Make) -> None:
    ex = make(None)
    fn = fresh(loads.who)
    run(ex, fn)
    assert set(ex.map(fn, range(20))) == {HERE}
    assert set(ex.map(fn, "abc", chunksize=2)) == {HERE}


# What is queued ----------------------------------------------------------------------------------


def nap_and_say(value: Any) -> tuple[int, Any]:
    """Where it ran."""
    time.sleep(0.01)
    return os.getpid(), value


@pytest.mark.parametrize("kind", [list, tuple, range], ids=lambda kind: kind.__name__)
def test_queued_items_come_home_with_their_function(make: Make, view: str, kind: Callable[..., Any]) -> None:
    """DESIGN: queued work moves, once it is known where it belongs; results stay in order."""
    items = range(300) if kind is range else kind(range(300))
    with make(None) as ex:
        answers = list(ex.map(fresh(nap_and_say), items))
    assert [value for _, value in answers] == list(range(300))
    assert answers[0][0] != HERE
    assert answers[-1][0] == HERE


def test_queued_items_that_could_be_changed_stay(make: Make) -> None:
    """Threads would see what has changed since the call."""
    items = [[number] for number in range(100)]
    with make(None) as ex:
        results = ex.map(fresh(nap_and_say), items)
        for item in items:
            item[0] = -1
        answers = list(results)
    assert [value for _, value in answers] == [[number] for number in range(100)]
    assert HERE not in {pid for pid, _ in answers}


def sleep_or_raise(value: int) -> int:
    time.sleep(0.01)
    if value == 250:
        raise ValueError(os.getpid())
    return os.getpid()


def test_queued_items_that_moved_raise_for_themselves(make: Make) -> None:
    answers = []
    with make(None) as ex, pytest.raises(ValueError, match=str(HERE)):
        for pid in ex.map(fresh(sleep_or_raise), range(300)):
            answers.append(pid)
    assert len(answers) == 250


def test_queued_items_that_moved_are_cancelled_with_the_rest(make: Make, tmp_path: Path) -> None:
    marks = tmp_path / "marks"

    def mark(number: int) -> int:
        time.sleep(0.01)
        with marks.open("a") as file:
            file.write(f"{number}\n")
        return os.getpid()

    with make(None) as ex:
        results = ex.map(mark, range(2_000))
        for pid in results:
            if pid == HERE:
                break
        results.close()
    assert len(marks.read_text().split()) < 1_000


def test_queued_items_that_moved_end_with_the_executor(make: Make) -> None:
    ex = make(None)
    results = ex.map(fresh(nap_and_say), range(2_000))
    for pid, _ in results:
        if pid == HERE:
            break
    begun = time.monotonic()
    ex.shutdown(cancel_futures=True)
    assert time.monotonic() - begun < 10
    with pytest.raises(CancelledError):
        list(results)


# What is said -------------------------------------------------------------------------------------


def test_what_is_not_known_is_said_so(make: Make) -> None:
    ex = make(None)
    found = ex.explain(fresh(loads.second))
    assert str(found).startswith("`second`: not seen yet")
    assert (found.lane, found.reason) == (None, "not_seen")
    assert found.as_dict()["lane"] is None
    with pytest.raises(TypeError):
        ex.explain(3)  # type: ignore[arg-type]


def test_one_line_and_the_numbers_behind_it(make: Make) -> None:
    fn = fresh(loads.sleep)
    ex = make(None)
    run(ex, fn)
    found = ex.explain(fn)
    slots = found.as_dict()["threads"]
    assert str(found).startswith(f"`sleep`: threads, {slots} at once; waits ")
    assert "sleeping" in str(found)
    assert "\n" not in str(found)
    assert json.loads(found.to_json()) == found.as_dict()
    numbers = found.as_dict()
    assert numbers["wall_ns"] > 0
    assert numbers["cpu_ns"] < numbers["wall_ns"] / 2
    assert numbers["costs_ns"]["thread"] < numbers["costs_ns"]["process"]
    assert "worker processes" in found.change
    html = found._repr_html_()
    assert html.startswith("<div><b>`sleep`")
    assert html.count("<tr>") == html.count("</tr>") > 5


def test_it_can_be_asked_after_the_end(make: Make) -> None:
    fn = fresh(loads.sleep)
    with make(None) as ex:
        run(ex, fn)
    assert ex.explain(fn).reason == "waits"
