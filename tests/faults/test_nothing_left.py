"""After its end an executor leaves no process, thread, descriptor or segment; and at rest it does nothing."""

from __future__ import annotations

import time

import pytest

from support import Start, context_switches, eventually, marked

LEAKS = """
    import gc, os, sys, threading
    import rightlane as rl, tasks
    from support import eventually, holdings, Gate

    lanes = sys.argv[1].split(",")
    rl.Executor, rl.Future, rl.WorkerLost
    before = holdings()
    assert before.threads == 1 and before.children == []
    for round in range(20):
        ex = rl.Executor(2, lane=lanes[round % len(lanes)])
        futures = [ex.submit(tasks.double, i) for i in range(20)]
        assert list(ex.map(tasks.double, range(200))) == [2 * i for i in range(200)]
        ex.submit(tasks.echo, b"x" * 3_000_000).result()
        ending = round % 5
        if ending == 0:
            ex.shutdown()
        elif ending == 1:
            ex.shutdown(wait=False, cancel_futures=True)
        elif ending == 2:
            ex.shutdown(kill=True)
        elif ending == 3:
            if ex.submit(os.getpid).result() != os.getpid():
                assert ex.submit(os._exit, 3).exception() is not None
            ex.shutdown()
        del ex, futures
        gc.collect()
    eventually(lambda: holdings() == before, what=f"{before} again; now {holdings()}")
    assert threading.enumerate() == [threading.main_thread()]
"""


@pytest.mark.stress
@pytest.mark.parametrize("lanes", ["process", "thread", "auto", "inline", "process,thread,auto,inline"])
def test_twenty_executors_leave_nothing(start: Start, lanes: str) -> None:
    """rule 2, rule 12: with each kind of ending; the last one takes the template along."""
    start(LEAKS, lanes).succeeds()


@pytest.mark.stress
def test_a_used_executor_does_not_grow(start: Start) -> None:
    """Replaced workers give back what they held: a pool that lost 50 of them holds what it held before."""
    start("""
        import os
        import rightlane as rl, tasks
        from support import eventually, holdings
        with rl.Executor(2, lane="process") as ex:
            list(ex.map(tasks.double, range(1000)))
            template = ex.submit(os.getppid).result()
            count = lambda: (len(holdings().descriptors), holdings().threads, len(holdings().segments))
            in_template = lambda: len(os.listdir(f"/proc/{template}/fd"))
            eventually(lambda: all(ex.submit(os._exit, 1).exception() for _ in range(4)))
            list(ex.map(tasks.double, range(1000)))
            before, template_before = count(), in_template()
            for _ in range(50):
                assert isinstance(ex.submit(os._exit, 1).exception(), rl.WorkerLost)
            assert list(ex.map(tasks.double, range(1000))) == [2 * i for i in range(1000)]
            eventually(lambda: count() <= before and in_template() <= template_before,
                       what=f"{before} {template_before} again, not {count()} {in_template()}")
    """).succeeds()


@pytest.mark.stress
def test_workers_end_with_their_executor_not_with_the_template(start: Start) -> None:
    """rule 32: a neighbour keeps the template, but not the workers of the one that ended."""
    start("""
        import os
        import rightlane as rl, tasks
        from support import children, eventually
        with rl.Executor(1, lane="process") as stays:
            template = stays.submit(os.getppid).result()
            own = stays.submit(os.getpid).result()
            with rl.Executor(2, lane="process") as ends:
                list(ends.map(tasks.double, range(100)))
            eventually(lambda: children(template) == [own])
            assert stays.submit(os.getpid).result() == own
    """).succeeds()


def test_at_rest_nothing_wakes(start: Start) -> None:
    """No thread, worker or template of the engine is switched to in 10 s: nobody polls.

    What is measured is a count; the ten seconds are the window of observation, not a synchronisation.
    """
    script = start("""
        import sys
        import rightlane as rl, tasks
        executors = [rl.Executor(2, lane=lane) for lane in ("process", "thread", "auto")]
        for ex in executors:
            assert list(ex.map(tasks.double, range(1000))) == [2 * i for i in range(1000)]
            assert [ex.submit(tasks.double, i).result() for i in range(100)] == [2 * i for i in range(100)]
        print("at rest", flush=True)
        sys.stdin.read()
        for ex in executors:
            assert ex.submit(tasks.double, 3).result() == 6
            ex.shutdown()
    """)
    script.expect("at rest")

    def counts() -> dict[tuple[int, int], int]:
        return context_switches(marked(script.mark))

    def settled() -> dict[tuple[int, int], int] | None:
        first = counts()
        time.sleep(0.5)
        return first if counts() == first else None

    before = eventually(settled, what="a process at rest")
    assert before is not None and len({pid for pid, _ in before}) >= 4, (
        "user, template and workers are all there"
    )
    time.sleep(10)
    after = counts()
    assert after == before, {key: (before.get(key), after.get(key)) for key in before.keys() | after.keys()}
    script.close_stdin()
    script.succeeds()


@pytest.mark.stress
def test_descriptors_are_not_inherited_by_children_of_the_user(start: Start) -> None:
    """Everything the engine opens is close-on-exec, and so is a worker's."""
    start("""
        import os, subprocess, sys
        import rightlane as rl, tasks

        def inherited():
            # The listing's own descriptor is closed by the time its name is looked up.
            names = "[os.readlink(d + n) for n in os.listdir(d) if int(n) > 2 and os.path.lexists(d + n)]"
            code = f"import os; d = '/proc/self/fd/'; print({names})"
            command = [sys.executable, "-S", "-c", code]
            run = subprocess.run(command, close_fds=False, capture_output=True, text=True)
            return [name for name in eval(run.stdout) if not name.startswith("/proc")]

        before = inherited()
        with rl.Executor(2, lane="process") as ex:
            list(ex.map(tasks.double, range(100)))
            assert inherited() == before, inherited()
            assert ex.submit(inherited).result() == [], ex.submit(inherited).result()
    """).succeeds()
