"""`concurrent.futures.wait` and `as_completed` of the standard library accept our futures."""

from __future__ import annotations

import concurrent.futures as cf
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import rightlane as rl
import tasks
from support import Gate, lines


def test_wait_for_all(ex: rl.Executor) -> None:
    futures = [ex.submit(tasks.double, i) for i in range(100)]
    done, not_done = cf.wait(futures)
    assert done == set(futures) and not not_done


def test_wait_for_the_first(busy: rl.Executor, gate: Gate) -> None:
    (held,) = gate.occupy(busy, 1)
    quick = busy.submit(tasks.double, 1)
    done, not_done = cf.wait([held, quick], return_when=cf.FIRST_COMPLETED)
    assert done == {quick} and not_done == {held}


def test_wait_for_the_first_exception(busy: rl.Executor, gate: Gate) -> None:
    (held,) = gate.occupy(busy, 1)
    good = busy.submit(tasks.double, 1)
    bad = busy.submit(tasks.fail, ValueError)
    done, not_done = cf.wait([held, good, bad], return_when=cf.FIRST_EXCEPTION)
    assert bad in done and not_done == {held}
    gate.open()
    done, _ = cf.wait([held, good], return_when=cf.FIRST_EXCEPTION)
    assert done == {held, good}, "without an exception it waits for all"


def test_wait_for_the_first_exception_opens_no_answer(
    make: Callable[..., rl.Executor], tmp_path: Path
) -> None:
    """rule 9: success or failure is a flag on the wire; answers are unpickled when asked for, once."""
    log = str(tmp_path / "opened")
    pool = make(lane="process")
    futures = [pool.submit(tasks.slippery, tasks.append, log, i) for i in range(5)]
    done, _ = cf.wait(futures, return_when=cf.FIRST_EXCEPTION)
    assert done == set(futures) and lines(log) == []
    opened: list[object] = [futures[2].result(), futures[2].result(), futures[2].exception()]
    assert opened == [2, 2, None]
    assert lines(log) == ["2"]


def test_wait_with_a_timeout(busy: rl.Executor, gate: Gate) -> None:
    (held,) = gate.occupy(busy, 1)
    quick = busy.submit(tasks.double, 1)
    quick.result()
    assert cf.wait([held, quick], timeout=0.01) == ({quick}, {held})
    assert cf.wait([held], timeout=0) == (set(), {held})


def test_wait_mixes_engines_lanes_and_cancelled_futures(busy: rl.Executor, gate: Gate) -> None:
    """Futures of the standard library and of two executors together; `wait` sees cancelled ones as done."""
    with cf.ThreadPoolExecutor(1) as stdlib, rl.Executor(1, lane="inline") as inline:
        held = gate.occupy(busy, 2)
        queued = [busy.submit(tasks.double, 1) for _ in range(3)]
        assert queued[-1].cancel()
        others = [stdlib.submit(tasks.double, 2), inline.submit(tasks.double, 3)]
        assert cf.wait([queued[-1]], timeout=60).done == {queued[-1]}
        done, not_done = cf.wait([*held, queued[-1], *others], timeout=60, return_when=cf.FIRST_COMPLETED)
        assert queued[-1] in done and set(held) <= not_done
        gate.open()
        done, not_done = cf.wait([*held, *queued, *others])
        assert not not_done


def test_as_completed_yields_all_once(ex: rl.Executor) -> None:
    futures = [ex.submit(tasks.double, i) for i in range(200)]
    seen = list(cf.as_completed(futures))
    assert len(seen) == 200 and set(seen) == set(futures)
    assert sorted(f.result() for f in seen) == [2 * i for i in range(200)]


def test_as_completed_follows_completion(busy: rl.Executor, gate: Gate) -> None:
    (held,) = gate.occupy(busy, 1)
    quick = [busy.submit(tasks.double, i) for i in range(3)]
    stream = cf.as_completed([held, *quick])
    assert {next(stream) for _ in range(3)} == set(quick)
    gate.open()
    assert next(stream) is held and list(stream) == []


def test_as_completed_with_a_timeout(busy: rl.Executor, gate: Gate) -> None:
    (held,) = gate.occupy(busy, 1)
    with pytest.raises(TimeoutError):
        list(cf.as_completed([held], timeout=0.01))


def test_many_waiters_at_once(busy: rl.Executor, gate: Gate) -> None:
    """Waiters share futures in differing orders: no deadlock, each sees them all."""
    futures = [*gate.occupy(busy, 2), *(busy.submit(tasks.double, i) for i in range(20))]
    seen: list[int] = []
    threads = [
        threading.Thread(target=lambda fs=fs: seen.append(len(cf.wait(fs).done)))
        for fs in (futures, futures[::-1], futures[1::2] + futures[::2]) * 3
    ]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(60)
    assert seen == [22] * 9
