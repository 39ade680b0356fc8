"""Where large buffers travel through shared memory: nothing is left of it, and nothing grows."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rightlane as rl
import tasks
from buffers import MIB, Array
from support import Start, available_memory_bytes, eventually

Make = Callable[..., rl.Executor]

BYTES = 8 * MIB


@pytest.fixture(autouse=True)
def alone() -> None:
    """Executors of earlier tests have been killed, which nobody waited for: what they held goes first."""

    def nothing_there() -> bool:
        gc.collect()
        return total_mib() == 0

    eventually(nothing_there, what="the end of all that was there before")


def arenas_mib() -> list[float]:
    """How much memory the files of this process's shared memory hold, in MiB."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if "rightlane-arena" in os.readlink(entry):
                found.append(entry.stat().st_blocks * 512 / MIB)
        except FileNotFoundError:
            pass
    return found


def total_mib() -> float:
    return sum(arenas_mib())


def array(first: int) -> Array:
    return np.arange(first, first + BYTES // 8)


def test_the_same_memory_serves_one_argument_after_another(make: Make) -> None:
    """invariant 8: it is free again when its task has ended."""
    pool = make(1, lane="process")
    for i in range(30):
        assert pool.submit(first, array(i)).result() == i
    assert total_mib() <= 3 * BYTES / MIB


def first(values: Array) -> int:
    return int(values[0])


def test_the_same_memory_serves_one_result_after_another(make: Make) -> None:
    """rule 25: a result's memory is its worker's again when nobody reads it, and not before."""
    pool = make(1, lane="process")
    kept = [pool.submit(array, i).result() for i in range(4)]
    for i in range(30):
        assert pool.submit(array, i).result()[-1] == i + BYTES // 8 - 1
    assert total_mib() <= (4 + 3) * BYTES / MIB
    assert [int(values[0]) for values in kept] == [0, 1, 2, 3]


def test_memory_of_results_outlives_the_pool_only_as_long_as_it_is_read(make: Make) -> None:
    pool = make(2, lane="process")
    kept = list(pool.map(array, range(6)))
    pool.shutdown()
    del kept[1:]
    eventually(lambda: total_mib() <= BYTES / MIB + 1)
    assert (kept[0] == array(0)).all()
    del kept[:]
    eventually(lambda: arenas_mib() in ([], [0.0]))


def overwrite_in_a_thread(values: Array) -> int:
    import threading

    before = int(values[-1])
    writer = threading.Thread(target=values.fill, args=(-1,))
    writer.start()
    writer.join()
    return before


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
def test_whoever_wrote_into_an_argument_the_next_one_is_right(make: Make) -> None:
    """rule 26: the pages that a thread of the task wrote are dropped, too."""
    pool = make(1, lane="process")
    for i in range(6):
        assert pool.submit(overwrite_in_a_thread, array(i)).result() == i + BYTES // 8 - 1
        assert (pool.submit(np.copy, array(i + 1)).result() == array(i + 1)).all()


def keep(values: Array) -> int:
    tasks.borrowed = values  # type: ignore[attr-defined]
    values[0] += 1
    return int(values[0])


def kept_first(values: Array) -> tuple[int, int]:
    return int(tasks.borrowed[0]), int(values[0])  # type: ignore[attr-defined]


def drop_kept() -> None:
    del tasks.borrowed  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
def test_what_a_task_keeps_is_lent_until_it_is_dropped(make: Make) -> None:
    pool = make(1, lane="process")
    for round_ in range(3):
        assert pool.submit(keep, array(round_)).result() == round_ + 1
        for i in range(10):
            assert pool.submit(kept_first, array(100 + i)).result() == (round_ + 1, 100 + i)
        pool.submit(drop_kept).result()
    for i in range(10):
        assert pool.submit(first, array(i)).result() == i
    assert total_mib() <= 4 * BYTES / MIB


STORM = """
    import gc, os, random, sys
    from pathlib import Path
    import rightlane as rl
    from buffers import storm
    from support import eventually, holdings

    def nothing_is_left():
        gc.collect()
        return holdings() == before

    def resident_mib():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    rl.Executor, rl.Future, rl.WorkerLost
    before, dice = holdings(), random.Random(11)
    with rl.Executor(3, lane="process") as ex:
        storm(ex, 12, dice)
        assert "/dev/shm" not in Path("/proc/self/maps").read_text()
    del ex
    eventually(nothing_is_left, what=f"{before} again; now {holdings()}")
    rounds = int(sys.argv[1])
    if rounds:
        resident = resident_mib()
        with rl.Executor(3, lane="process") as ex:
            storm(ex, rounds, dice)
        del ex
        eventually(nothing_is_left, what=f"{before} again; now {holdings()}")
        assert resident_mib() - resident < 32, (resident, resident_mib())
"""


@pytest.mark.stress
def test_nothing_is_left_after_a_storm_of_kills(start: Start) -> None:
    """invariants 1 and 3: also of arrays, whatever their size."""
    start(STORM, "0").succeeds()


@pytest.mark.soak
def test_twenty_thousand_arrays_among_kills(start: Start) -> None:
    start(STORM, "1000").succeeds(timeout=3000)


@pytest.mark.once
def test_with_64_descriptors_in_all(start: Start) -> None:
    """However many arrays are on their way, or alive: no descriptor is any one's own."""
    script = start(
        """
        import os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        import numpy as np
        import rightlane as rl, tasks

        arrays = [np.full(20_000, n) for n in range(300)]
        with rl.Executor(4, lane="process") as ex:
            kept = list(ex.map(tasks.echo, arrays))
            handles = [rl.share(array) for array in arrays]
            own = [rl.asarray(array) for array in arrays]
            assert list(ex.map(lambda n: int(handles[n].get()[5]), range(300))) == list(range(300))
            assert [int(a[7]) for a in ex.map(tasks.echo, own)] == list(range(300))
            assert all((a == b).all() for a, b in zip(arrays, kept))
            print(len(os.listdir("/proc/self/fd")) < 40)
        """
    )
    assert script.succeeds().split() == ["True"]


@pytest.mark.once
@pytest.mark.skipif(available_memory_bytes() < 4 << 30, reason="needs 4 GiB of free memory")
def test_ten_thousand_results_alive(make: Make) -> None:
    ex = make(2, lane="process")
    kept = list(ex.map(tasks.numbers, range(10_000), [9_000] * 10_000))
    for number, values in enumerate(kept):
        assert values[0] == number and values[-1] == number + 8_999
        values[:] = -number
    ex.shutdown()
    assert all(values[0] == values[-1] == -number for number, values in enumerate(kept))
    del kept, values
    eventually(lambda: arenas_mib() in ([], [0.0]))


@pytest.mark.once
@pytest.mark.skipif(available_memory_bytes() < 12 << 30, reason="needs 12 GiB of free memory")
@pytest.mark.filterwarnings("ignore::rightlane.SharedStateWarning")
def test_more_than_two_gib(make: Make) -> None:
    """Beyond what 32 bits count, signed or not, together."""
    ex = make(1, lane="process")
    values = np.zeros((2 << 30) + 8, "u1")
    values[::4096] = 7
    values[-1] = 9
    back = ex.submit(overwrite_ends, values).result()
    assert values[0] == 7 and values[-1] == 9
    assert back.shape == values.shape and back[0] == back[-1] == 1
    values[0] = values[-1] = 1
    assert np.array_equal(values[::4096], back[::4096])


def overwrite_ends(values: Array) -> Array:
    values[0] = values[-1] = 1
    return values


@pytest.mark.once
def test_without_descriptors_to_spare(start: Start) -> None:
    """Buffers travel with the message where no shared memory is to be had."""
    script = start(
        """
        import os, resource
        import numpy as np
        import rightlane as rl, tasks

        with rl.Executor(1, lane="process") as ex:
            ex.submit(abs, 1).result()
            import concurrent.futures, hashlib, json, socket
        used = len(os.listdir("/proc/self/fd"))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for spare in range(14, 26):
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
            with rl.Executor(1, lane="process") as ex:
                try:
                    values = np.arange(100_000)
                    assert (ex.submit(tasks.echo, values).result() == values).all()
                    print("ran", flush=True)
                except (OSError, rl.RightlaneError) as error:
                    print("refused", flush=True)
        """
    )
    assert script.succeeds().splitlines()[-1] == "ran"


def test_a_bare_buffer_is_a_view_of_its_bytes(make: Make) -> None:
    import pickle

    def look(buffer: memoryview) -> tuple[str, bytes, bool]:
        return type(buffer).__name__, bytes(buffer[3:6]), buffer.readonly

    pool = make(1, lane="process")
    for values in (bytearray(range(256)) * 1024, bytes(range(256)) * 1024):
        seen = pool.submit(look, pickle.PickleBuffer(values)).result()
        assert seen == ("memoryview", b"\3\4\5", isinstance(values, bytes))


def test_without_room_for_mappings(start: Start) -> None:
    """rule 27: where addresses are short, buffers are copied as ever."""
    script = start(
        """
        import resource
        import numpy as np
        import rightlane as rl, tasks

        def limit(mib):
            with open("/proc/self/statm") as f:
                used = int(f.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20, resource.RLIM_INFINITY))

        values = np.arange(100_000)
        with rl.Executor(1, lane="process") as ex:
            ex.submit(limit, 50).result()
            for i in range(3):
                assert int(ex.submit(np.sum, values + i).result()) == int((values + i).sum())
        with rl.Executor(1, lane="process") as ex:
            ex.submit(np.copy, 1).result()
            limit(50)
            kept = [ex.submit(np.copy, values + i).result() for i in range(5)]
            for i, result in enumerate(kept):
                result += 1
                assert (result == values + i + 1).all()
            del kept, result
            assert "rightlane-arena" not in open("/proc/self/maps").read()
        print("right", flush=True)
        """
    )
    assert "right" in script.succeeds()


def leave_a_child(values: Array, log: str, go_on: str) -> None:
    if os.fork() == 0:
        while not os.path.exists(go_on):
            time.sleep(0.01)  # others are given the memory meanwhile
        with open(log + ".part", "w") as file:
            file.write(str(sorted({int(value) for value in values})))
        os.rename(log + ".part", log)
        os._exit(0)


def test_a_child_that_a_task_leaves_behind_keeps_its_argument(make: Make, tmp_path: Path) -> None:
    """rule 24, in a worker: what was in the memory at the fork stays for the child, whoever uses it next."""
    log, go_on = tmp_path / "log", tmp_path / "go on"
    pool = make(1, lane="process")
    pool.submit(leave_a_child, np.full(200_000, 7), str(log), str(go_on)).result()
    for i in range(5):
        assert pool.submit(first, np.full(200_000, 100 + i)).result() == 100 + i
    go_on.touch()
    eventually(log.exists)
    assert log.read_text() == "[7]"


def lock_all_memory(flags: int) -> bool:
    import ctypes

    return ctypes.CDLL(None).mlockall(flags) == 0


@pytest.mark.parametrize("flags", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False])
def test_a_worker_with_locked_memory(make: Make, flags: int, before: bool) -> None:
    """rule 26: its private pages cannot be dropped, so it gets copies."""
    pool = make(1, lane="process")
    if before:
        assert pool.submit(first, np.full(200_000, 1)).result() == 1
    if not pool.submit(lock_all_memory, flags).result():
        pytest.skip("this process may not lock so much memory")
    for i in range(2, 8):
        assert pool.submit(first, np.full(200_000, i)).result() == i


def test_a_result_for_which_there_is_no_memory_is_no_hang(start: Start) -> None:
    """invariant 1: it costs the task, and the next one runs."""
    script = start(
        """
        import resource
        import numpy as np
        import rightlane as rl, tasks

        with rl.Executor(1, lane="process") as ex:
            ex.submit(abs, 1).result()
            with open("/proc/self/statm") as f:
                used = int(f.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 30 * 2**20, resource.RLIM_INFINITY))
            print(type(ex.submit(np.ones, 6_000_000).exception()).__name__, ex.submit(abs, -4).result())
        """
    )
    assert script.succeeds().split() == ["WorkerLost", "4"]
