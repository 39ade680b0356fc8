"""Where memory is short: arguments wait for that of others, then go with messages, and a warning says so."""

from __future__ import annotations

import pytest

from support import Gate, Start

MIB = 1 << 20

# Two arrays of 8 MiB, and no third.
LITTLE = {"_RIGHTLANE_ARENA_BYTES": str(20 * MIB)}

HEAD = """
    import asyncio, sys, threading, time, warnings
    import numpy as np
    import rightlane as rl, tasks

    def numbers(first):
        return np.full(1 << 20, first)

    def first(values, *rest):
        return int(values[0])

    def nap(values):
        time.sleep(0.05)
        return int(values[0])

    def hold(values, gate, name):
        tasks.hold(gate, name, None)
        return int(values[0])

    def moved(fn):
        return ex.explain(fn).as_dict()["moved"]

    def fill():
        '''All the memory there is, lent to two tasks.'''
        held = [ex.submit(hold, numbers(i), sys.argv[1], f"held{i}") for i in range(2)]
        assert moved(hold)["copies"] == 2
        return held

    told = []
    warnings.showwarning = lambda message, category, *where: told.append((category, str(message), *where[:2]))
    ex = rl.Executor(2, lane="process")
"""


@pytest.mark.parametrize("how", ["submit", "map", "generator"])
def test_arguments_wait_for_the_ends_of_others(start: Start, how: str) -> None:
    script = start(
        HEAD
        + """
    with ex:
        if sys.argv[1] == "submit":
            found = [future.result() for future in [ex.submit(nap, numbers(i)) for i in range(10)]]
        elif sys.argv[1] == "map":
            found = list(ex.map(nap, [numbers(i) for i in range(10)]))
        else:
            found = list(ex.map(nap, (numbers(i) for i in range(10))))
        assert found == list(range(10)), found
        assert moved(nap)["copies"] == 10, moved(nap)
    assert not told, told
    """,
        how,
        env=LITTLE,
    )
    script.succeeds()


def test_who_has_waited_in_vain_falls_back_and_is_told_once(start: Start, gate: Gate) -> None:
    script = start(
        HEAD
        + """
    with ex:
        held = fill()
        more = [ex.submit(first, numbers(10 + i)) for i in range(3)]
        assert moved(first)["copies"] == 0 and moved(first)["argument_bytes"] > 3 << 23, moved(first)
        open(sys.argv[1], "w").close()
        assert [future.result() for future in held + more] == [0, 1, 10, 11, 12]
        # And as before, once there is room again.
        assert ex.submit(first, numbers(20)).result() == 20
        assert moved(first)["copies"] == 1
    [(category, message, file, line)] = told
    assert category is rl.MemoryWarning and "argument of 8.0 MiB" in message, told
    assert file == __file__ and 0 < line
    """,
        gate.path,
        env=LITTLE,
    )
    script.succeeds()


@pytest.mark.parametrize("where", ["try", "loop", "callback"])
def test_who_must_not_wait_falls_back_at_once(start: Start, gate: Gate, where: str) -> None:
    """Room comes once the call has returned, or so late that only who waits gets it."""
    script = start(
        HEAD
        + """
    returned = threading.Event()

    def make_room():
        returned.wait(0.7)
        open(sys.argv[1], "w").close()

    def submit():
        call = ex.try_submit if sys.argv[2] == "try" else ex.submit
        made.append(call(first, numbers(5)))
        returned.set()

    async def in_a_loop():
        submit()

    with ex, rl.Executor(1, lane="process") as other:
        held, made = fill(), []
        threading.Thread(target=make_room).start()
        if sys.argv[2] == "try":
            submit()
        elif sys.argv[2] == "loop":
            asyncio.run(in_a_loop())
        else:
            other.submit(abs, -1).add_done_callback(lambda _: submit())
            returned.wait(60)
        assert moved(first)["copies"] == 0
        assert [future.result() for future in made + held] == [5, 0, 1]
    assert [each[0] for each in told] == [rl.MemoryWarning], told
    """,
        gate.path,
        where,
        env=LITTLE,
    )
    script.succeeds()


@pytest.mark.parametrize("what", ["numbers(5)", "bytes(8 << 20)"])
def test_ctrl_c_ends_the_wait(start: Start, gate: Gate, what: str) -> None:
    """And nothing else: what is sent next may be what only travels by value."""
    script = start(
        HEAD
        + f"""
    import signal
    signal.signal(signal.SIGALRM, signal.default_int_handler)

    def call(function):
        return function()

    with ex:
        held = fill()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            ex.submit(first, {what})
        except KeyboardInterrupt:
            print("interrupted")
        called = ex.submit(call, lambda: 7)
        open(sys.argv[1], "w").close()
        assert called.result() == 7
        assert [future.result() for future in held] == [0, 1]
        assert ex.submit(first, numbers(6)).result() == 6
    assert not told, told
    """,
        gate.path,
        env=LITTLE,
    )
    assert script.succeeds().split() == ["interrupted"]


def test_so_does_what_another_signal_raises(start: Start, gate: Gate) -> None:
    script = start(
        HEAD
        + """
    import signal

    def alarm(*_):
        raise TimeoutError("enough")

    signal.signal(signal.SIGALRM, alarm)
    with ex:
        held = fill()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            ex.submit(first, numbers(5)).result()
        except TimeoutError as error:
            print(error)
        open(sys.argv[1], "w").close()
        assert [future.result() for future in held] == [0, 1]
    assert not told, told
    """,
        gate.path,
        env=LITTLE,
    )
    assert script.succeeds().split() == ["enough"]


def test_results_fall_back_and_the_caller_is_told(start: Start) -> None:
    script = start(
        HEAD
        + """
    with ex:
        kept = [ex.submit(numbers, i).result() for i in range(8)]
        kept += ex.map(numbers, range(8, 12))
    assert all((values == i).all() for i, values in enumerate(kept))
    [(category, message, file, line)] = told
    assert category is rl.MemoryWarning and "in a worker for a result of 8.0 MiB" in message, told
    assert file == __file__
    """,
        env=LITTLE,
    )
    script.succeeds()


def test_a_filter_that_makes_errors_of_warnings(start: Start, gate: Gate) -> None:
    """It is raised where it would be told, once, and costs no task."""
    script = start(
        HEAD
        + """
    warnings.simplefilter("error", rl.MemoryWarning)
    with ex:
        held = fill()
        future = ex.submit(first, numbers(5))
        open(sys.argv[1], "w").close()
        try:
            future.result()
        except rl.MemoryWarning:
            print("raised")
        assert future.result() == 5
        assert [future.result() for future in held] == [0, 1]
    """,
        gate.path,
        env=LITTLE,
    )
    assert script.succeeds().split() == ["raised"]
