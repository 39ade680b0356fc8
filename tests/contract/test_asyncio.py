"""Event loops: `await future`, `wrap_future`, `run_in_executor`, default executors; one loop or several."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

import rightlane as rl
import tasks
from rightlane import futures
from support import Gate, eventually


def test_await_gives_result_or_exception(ex: rl.Executor) -> None:
    async def main() -> None:
        assert await ex.submit(tasks.double, 21) == 42
        with pytest.raises(ValueError, match="bad"):
            await ex.submit(tasks.fail, ValueError, "bad")
        done = ex.submit(tasks.double, 1)
        done.result()
        assert await done == 2 and await done == 2

    asyncio.run(main())


def test_gather_many(ex: rl.Executor) -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(ex.submit(tasks.double, i) for i in range(500))))

    assert asyncio.run(main()) == [2 * i for i in range(500)]


def test_awaiting_does_not_block_the_loop(busy: rl.Executor, gate: Gate) -> None:
    """While one coroutine awaits, another opens the gate."""

    async def opener() -> None:
        await asyncio.sleep(0)
        gate.open()

    async def main() -> object:
        held, _ = await asyncio.gather(busy.submit(tasks.hold, gate.path, "x", "passed"), opener())
        return held

    assert asyncio.run(main()) == "passed"


def test_wrap_future(ex: rl.Executor) -> None:
    async def main() -> None:
        assert await asyncio.wrap_future(ex.submit(tasks.double, 1)) == 2
        with pytest.raises(KeyError):
            await asyncio.wrap_future(ex.submit(tasks.fail, KeyError, "k"))

    asyncio.run(main())


def test_cancelling_a_wrapped_future_cancels_ours(busy: rl.Executor, gate: Gate) -> None:
    gate.occupy(busy, 2)
    ours = [busy.submit(tasks.double, 1) for _ in range(3)][-1]

    async def main() -> None:
        wrapped = asyncio.wrap_future(ours)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main())
    assert ours.cancelled()


def test_a_cancelled_future_cancels_its_awaiters(busy: rl.Executor, gate: Gate) -> None:
    gate.occupy(busy, 2)
    ours = [busy.submit(tasks.double, 1) for _ in range(3)][-1]

    async def main() -> None:
        async def waiter() -> None:
            await ours

        task = asyncio.ensure_future(waiter())
        await asyncio.sleep(0)
        assert ours.cancel()
        with pytest.raises((asyncio.CancelledError, concurrent.futures.CancelledError)):
            await task

    asyncio.run(main())


def test_wait_for_with_a_timeout(busy: rl.Executor, gate: Gate) -> None:
    """The loop's patience ends the wait; the executor goes on."""

    async def main() -> None:
        (held,) = gate.occupy(busy, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(held, 0.01)
        assert await busy.submit(tasks.double, 3) == 6

    asyncio.run(main())


def test_run_in_executor(ex: rl.Executor) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(ex, tasks.add, 1, 2) == 3
        assert await asyncio.gather(*(loop.run_in_executor(ex, tasks.double, i) for i in range(50))) == [
            2 * i for i in range(50)
        ]

    asyncio.run(main())


def test_several_loops_await_one_future(busy: rl.Executor, gate: Gate) -> None:
    (held,) = gate.occupy(busy, 1)
    seen: list[object] = []
    waiting: list[int] = []

    async def waiter() -> None:
        waiting.append(1)
        seen.append(await held)
        seen.append(await busy.submit(tasks.double, 4))

    threads = [threading.Thread(target=lambda: asyncio.run(waiter())) for _ in range(5)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(waiting) == 5)
    gate.open()
    for thread in threads:
        thread.join(60)
    assert sorted(map(str, seen)) == ["8"] * 5 + ["busy0"] * 5


def test_a_loop_that_closed_meanwhile_disturbs_nobody(busy: rl.Executor, gate: Gate) -> None:
    """The answer for a closed loop is dropped; later callbacks still run."""
    held = gate.occupy(busy, 2)

    async def give_up(future: rl.Future[object]) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(_await(future))), 0.01)

    async def _await(future: rl.Future[object]) -> object:
        return await future

    asyncio.run(give_up(held[0]))
    gate.open()
    calls: list[int] = []
    held[1].add_done_callback(lambda f: calls.append(1))
    eventually(lambda: calls)

    async def main() -> int:
        return await busy.submit(tasks.double, 5)

    assert asyncio.run(main()) == 10


def test_blocking_callers_and_loops_share_a_future(make: Callable[..., rl.Executor], gate: Gate) -> None:
    """One object serves both."""
    pool = make(lane="process")
    (held,) = gate.occupy(pool, 1)
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(held.result()))
    thread.start()

    async def main() -> object:
        asyncio.get_running_loop().call_soon(gate.open)
        return await held

    assert asyncio.run(main()) == "busy0"
    thread.join(60)
    assert seen == ["busy0"]


# --- executors of a loop ---


def test_a_loops_default_executor() -> None:
    """asyncio takes only an instance of the standard thread pool; the drop-in is one."""
    pool = futures.ThreadPoolExecutor(2, thread_name_prefix="ours")

    def name() -> str:
        return threading.current_thread().name

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        assert (await loop.run_in_executor(None, name)).startswith("ours_")
        assert (await asyncio.to_thread(name)).startswith("ours_")
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match="shutdown"):
            await loop.run_in_executor(None, name)

    asyncio.run(main())
    assert pool._shutdown and not any(thread.is_alive() for thread in pool._threads)


def test_only_threads_can_be_the_default(make: Callable[..., rl.Executor]) -> None:
    """asyncio's own rule: code that gives it no executor expects threads."""
    loop = asyncio.new_event_loop()
    try:
        for other in (make(lane="thread"), make(lane="process")):
            with pytest.raises(TypeError):
                loop.set_default_executor(other)  # type: ignore[arg-type]
    finally:
        loop.close()


@pytest.mark.parametrize("kind", [futures.ProcessPoolExecutor, futures.ThreadPoolExecutor])
def test_drop_ins_in_a_loop(kind: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with kind(2) as pool:
            assert await loop.run_in_executor(pool, tasks.add, 1, 2) == 3
            assert await pool.submit(tasks.double, 2) == 4
            with pytest.raises(KeyError):
                await loop.run_in_executor(pool, tasks.fail, KeyError, "k")

    asyncio.run(main())


def test_cancelling_the_awaiting_task_cancels_what_is_not_begun(busy: rl.Executor, gate: Gate) -> None:
    held = gate.occupy(busy, 2)
    ours = [busy.submit(tasks.double, 1) for _ in range(3)][-1]
    direct = [busy.submit(tasks.double, 1) for _ in range(3)][-1]

    async def main() -> None:
        async def wait_for(future: Any) -> None:
            await future

        loop = asyncio.get_running_loop()
        through_loop = loop.run_in_executor(busy, tasks.double, 1)
        waiting = [
            asyncio.ensure_future(wait_for(asyncio.wrap_future(ours))),
            asyncio.ensure_future(wait_for(direct)),
            asyncio.ensure_future(wait_for(through_loop)),
        ]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        for task in waiting:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert through_loop.cancelled()

    asyncio.run(main())
    assert ours.cancelled() and direct.cancelled()
    gate.open()
    assert [future.result() for future in held] == ["busy0", "busy1"]


def test_cancelling_the_awaiting_task_leaves_a_running_one(busy: rl.Executor, gate: Gate) -> None:
    """The coroutine is told at once; the task goes on and its result is there for others."""
    (held,) = gate.occupy(busy, 1)

    async def main() -> None:
        async def wait_for_it() -> None:
            await held

        task = asyncio.ensure_future(wait_for_it())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert held.running() and not held.cancelled()
    gate.open()
    assert held.result() == "busy0"


def test_several_loops_share_an_executor(busy: rl.Executor) -> None:
    """Each loop in a thread of its own, each with tasks of its own in flight."""
    loops = 4
    seen: dict[int, list[int]] = {}
    together = threading.Barrier(loops)

    async def main(number: int) -> None:
        loop = asyncio.get_running_loop()
        together.wait(60)
        for _ in range(5):
            seen[number] = list(
                await asyncio.gather(
                    *(loop.run_in_executor(busy, tasks.add, number, i) for i in range(20)),
                    *(busy.submit(tasks.add, number, i) for i in range(20)),
                )
            )

    threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(loops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == {n: [n + i for i in range(20)] * 2 for n in range(loops)}


def test_a_dead_worker_reaches_the_awaiting_task(pool: rl.Executor) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(rl.WorkerLost):
            await loop.run_in_executor(pool, os._exit, 3)
        assert await pool.submit(tasks.double, 2) == 4

    asyncio.run(main())
