"""What the template learns to import, and how it is guarded from that."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import Start, Started

# What the test's packages have in common. They tell by themselves where they are imported: the template leads
# a session, a worker has a second thread, and a rehearsal is the template's child with one thread.
PACKAGE = """
    import os, time
    ROLE = ("template" if os.getsid(0) == os.getpid()
            else "worker" if len(os.listdir("/proc/self/task")) > 1 else "rehearsal")
    PID = os.getpid()
    with open(os.path.join(os.path.dirname(__file__), "log"), "a") as log:
        log.write(f"{__name__} {ROLE} {PID}\\n")
    time.sleep(0.02)
"""

# What the scripts have in common. `fresh` asks a worker that was forked just now; `settle` returns when the
# template has learned `good`, which whoever calls it makes it learn last.
SCRIPT = """
    import os, sys, time
    import rightlane as rl
    from support import alive, eventually

    def visit(name):
        early = name in sys.modules
        module = __import__(name)
        return dict(pid=module.PID, role=module.ROLE, early=early, own=os.getpid(), template=os.getppid(),
                    threads=len(os.listdir("/proc/self/task")))

    def fresh(fn, *args):
        with rl.Executor(1, lane="process") as ex:
            return ex.submit(fn, *args).result()

    def imports(name, role):
        with open(os.path.join(sys.argv[1], "log")) as log:
            return [int(line.split()[2]) for line in log if line.split()[:2] == [name, role]]

    def settle():
        keep.submit(visit, "good").result()
        return eventually(lambda: (v := fresh(visit, "good"))["role"] == "template" and v)

    keep = rl.Executor(1, lane="process")
"""

LEAVE_A_THREAD = "import threading; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"


def installed(directory: Path, **sources: str) -> Path:
    """A directory of installed packages: `good`, and these."""
    site = directory / "site-packages"
    site.mkdir()
    for name, source in {"good": "", **sources}.items():
        text = textwrap.dedent(PACKAGE) + textwrap.dedent(source)
        (site / f"{name}.py").write_text(text)
    return site


def run(start: Start, site: Path, source: str) -> Started:
    tests = Path(__file__).parent.parent
    text = textwrap.dedent(SCRIPT) + textwrap.dedent(source) + "\nkeep.shutdown()\n"
    return start(text, site, env={"PYTHONPATH": f"{tests}:{site}"})


@pytest.mark.stress
def test_later_workers_have_what_earlier_ones_imported(start: Start, tmp_path: Path) -> None:
    """rule 19: of every executor; and a new template learns it again."""
    run(
        start,
        installed(tmp_path),
        """
        import signal
        first = keep.submit(visit, "good").result()
        assert first["role"] == "worker" and first["pid"] == first["own"], first
        later = settle()
        assert later["pid"] == later["template"] == first["template"], later
        # As if nothing had been imported, but for the time that an import takes.
        # The one that runs tasks, the one that watches the engine, and the one that looks at tasks.
        assert not later["early"] and later["threads"] == 3, later
        assert len(imports("good", "rehearsal")) == len(imports("good", "template")) == 1

        os.kill(first["template"], signal.SIGKILL)
        eventually(lambda: not alive(first["template"]))
        again = settle()
        assert again["template"] != first["template"] and again["pid"] == again["template"], again
        """,
    ).succeeds()


def test_a_package_comes_with_the_modules_that_were_used(start: Start, tmp_path: Path) -> None:
    """rule 19: and each of them looks as an import leaves it."""
    site = installed(tmp_path)
    package = site / "whole"
    package.mkdir()
    (package / "__init__.py").write_text("import time; time.sleep(0.02)\n")
    (package / "part.py").write_text("import os; PID = os.getpid()\n")
    run(
        start,
        site,
        """
        def parts():
            import whole.part
            import importlib, importlib.util
            assert whole.part is sys.modules["whole.part"] and sys.modules["whole"] is whole
            for module in (whole, whole.part):
                assert module.__spec__.name == module.__name__ and module.__spec__.has_location
                assert type(module.__spec__.loader).__name__ == "SourceFileLoader"
                assert module.__loader__ is module.__spec__.loader
                assert importlib.util.find_spec(module.__name__) is module.__spec__
            return whole.part.PID, os.getpid(), os.getppid()

        assert (first := keep.submit(parts).result())[0] == first[1]
        settle()
        pid, _, template = fresh(parts)
        assert pid == template
        """,
    ).succeeds()


@pytest.mark.parametrize(
    ("harm", "where"),
    [
        (LEAVE_A_THREAD, "rehearsal"),
        ("raise RuntimeError", "rehearsal"),
        ("time.sleep(1.01)", "rehearsal"),
        ("time.sleep(1000)", "rehearsal"),
        pytest.param("os._exit(3)", "rehearsal", marks=pytest.mark.stress),
        ("os.environ['RIGHTLANE_TEST_LEFT'] = '1'", "rehearsal"),
        (LEAVE_A_THREAD, "template"),
        ("raise RuntimeError", "template"),
        ("time.sleep(1.01)", "template"),
        pytest.param("os._exit(3)", "template", marks=pytest.mark.stress),
        ("os.kill(os.getpid(), 9)", "template"),
    ],
)
def test_what_does_harm_is_never_preloaded_again(start: Start, tmp_path: Path, harm: str, where: str) -> None:
    """rule 19: in the rehearsal it costs no template; in the template, one, and no running task."""
    site = installed(tmp_path, bad=f"if ROLE == {where!r}: {harm}")
    run(
        start,
        site,
        f"""
        import signal
        where = {where!r}
        """
        """
        running = rl.Executor(1, lane="process")
        gate = os.path.join(sys.argv[1], "gate")
        def hold():
            while not os.path.exists(gate):
                time.sleep(0.01)
            return os.getpid()
        held = running.submit(hold)
        first = keep.submit(visit, "bad").result()
        after = settle()
        assert (after["template"] == first["template"]) == (where == "rehearsal"), (first, after)
        assert len(imports("bad", "rehearsal")) == 1
        assert len(imports("bad", "template")) == (where == "template")
        # Workers import it for themselves, and tell of it again: to no avail, also with another template.
        here = fresh(visit, "bad")
        assert here["role"] == "worker" and here["pid"] == here["own"], here
        os.kill(after["template"], signal.SIGKILL)
        eventually(lambda: not alive(after["template"]))
        assert settle()["template"] != after["template"]
        assert fresh(visit, "bad")["role"] == "worker"
        assert len(imports("bad", "rehearsal")) == 1
        assert len(imports("bad", "template")) == (where == "template")
        assert not held.done()
        open(gate, "w").close()
        assert held.result() == running.submit(os.getpid).result()
        running.shutdown()
        """,
    ).succeeds()


@pytest.mark.stress
def test_nobody_waits_for_a_rehearsal(start: Start, tmp_path: Path) -> None:
    """rule 19: a worker is forked while something is being imported."""
    names = [f"slow{i}" for i in range(5)]
    harm = "if ROLE == 'rehearsal': time.sleep(1000)"
    run(
        start,
        installed(tmp_path, **dict.fromkeys(names, harm)),
        """
        # More than one try: on a busy machine a rehearsal may be over by the time the worker is there.
        for name in [f"slow{i}" for i in range(5)]:
            keep.submit(visit, name).result()
            pid = eventually(lambda: imports(name, "rehearsal"))[0]
            assert fresh(abs, -1) == 1
            if alive(pid):
                break
        else:
            raise AssertionError("each worker came after a rehearsal")
        eventually(lambda: not alive(pid))
        """,
    ).succeeds()


def test_rehearsals_leave_the_cores_to_busy_workers(start: Start, tmp_path: Path) -> None:
    """rule 19: at most one step a second while the pool computes; all of them when it rests."""
    names = [f"part{i}" for i in range(6)]
    run(
        start,
        installed(tmp_path, **dict.fromkeys(names, "")),
        """
        busy = rl.Executor(1, lane="process")
        stop = os.path.join(sys.argv[1], "stop")
        def burn():
            while not os.path.exists(stop):
                sum(range(10_000))
        burning = busy.submit(burn)
        eventually(burning.running)
        names = [f"part{i}" for i in range(6)]
        rehearsed = lambda: sum(len(imports(name, "rehearsal")) for name in names)
        begun = time.monotonic()
        try:
            for name in names:
                keep.submit(lambda name=name: visit(name)).result()
            eventually(rehearsed)
            assert rehearsed() <= 1 + (time.monotonic() - begun), "more than one in a second"
        finally:
            open(stop, "w").close()
        eventually(lambda: rehearsed() == len(names))
        burning.result()
        busy.shutdown()
        """,
    ).succeeds()


@pytest.mark.stress
def test_an_end_of_the_program_does_not_wait_for_a_rehearsal(start: Start, tmp_path: Path) -> None:
    """rule 19: what it started is gone as well."""
    harm = "import subprocess\nif ROLE == 'rehearsal': subprocess.run(['sleep', '1000'])"
    run(
        start,
        installed(tmp_path, slow=harm),
        """
        keep.submit(visit, "slow").result()
        eventually(lambda: imports("slow", "rehearsal"))
        """,
    ).succeeds()


def test_what_an_import_prints_is_not_for_the_terminal(start: Start, tmp_path: Path) -> None:
    """rule 19: a worker that imports it prints it, as without learning; the template does not."""
    script = run(
        start,
        installed(tmp_path, loud="print('loud', ROLE); os.system('echo loud echo')"),
        """
        keep.submit(visit, "loud").result()
        settle()
        assert fresh(visit, "loud")["role"] == "template"
        """,
    )
    assert sorted(script.succeeds().splitlines()) == ["loud echo", "loud worker"]


def test_a_users_own_modules_are_not_learned(start: Start, tmp_path: Path) -> None:
    """rule 19: they change, and may depend on what differs between template and worker."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(textwrap.dedent(PACKAGE))
    run(
        start,
        installed(tmp_path),
        """
        sys.path.insert(0, os.path.join(os.path.dirname(sys.argv[1]), "own"))
        assert keep.submit(visit, "mine").result()["role"] == "worker"
        settle()
        seen = fresh(visit, "mine")
        assert seen["role"] == "worker" and seen["pid"] == seen["own"]
        """,
    ).succeeds()


def test_the_callers_path_decides_which_module_a_worker_gets(start: Start, tmp_path: Path) -> None:
    """rule 19, rule 20: also when the template has imported another one of that name."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "good.py").write_text("PID, ROLE = 0, 'mine'\n")
    (tmp_path / "empty").mkdir()
    run(
        start,
        installed(tmp_path),
        """
        settle()
        home = os.path.dirname(sys.argv[1])
        sys.path.insert(0, os.path.join(home, "empty"))
        assert fresh(visit, "good")["role"] == "template"
        sys.path.insert(0, os.path.join(home, "own"))
        assert fresh(visit, "good")["role"] == "mine"
        """,
    ).succeeds()


def test_the_environment_is_the_callers_again(start: Start, tmp_path: Path) -> None:
    """rule 19, rule 20: OpenBLAS is held to one thread while the template imports, and at no other time."""
    site = installed(tmp_path, reads="VALUE = os.environ.get('OPENBLAS_NUM_THREADS')")
    run(
        start,
        site,
        """
        def look():
            import reads
            return reads.VALUE, os.environ.get("OPENBLAS_NUM_THREADS")
        os.environ.pop("OPENBLAS_NUM_THREADS", None)
        assert keep.submit(look).result() == (None, None)
        settle()
        assert fresh(look) == ("1", None)
        os.environ["OPENBLAS_NUM_THREADS"] = "3"
        assert fresh(look) == ("1", "3")
        """,
    ).succeeds()


def test_a_template_that_has_learned_sleeps(start: Start, tmp_path: Path) -> None:
    """rule 19: once there is nothing left to import, nothing wakes it."""
    run(
        start,
        installed(tmp_path, bad="if ROLE == 'rehearsal': os._exit(1)"),
        """
        from support import context_switches
        keep.submit(visit, "bad").result()
        template = settle()["template"]
        eventually(lambda: (before := context_switches([template])) == (
            time.sleep(0.3), context_switches([template]))[1] and before)
        """,
    ).succeeds()


def has_numpy() -> bool:
    command = [sys.executable, "-c", "import numpy"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_numpy(), reason="NumPy is not installed for this Python")
def test_numpy(start: Start, tmp_path: Path) -> None:
    """rule 19: learned, with as many threads as without, and no two workers draw the same numbers."""
    run(
        start,
        installed(tmp_path),
        """
        def draw():
            import numpy
            numpy.ones((200, 200)) @ numpy.ones((200, 200))
            preload = sys.modules.get("rightlane._preload")
            learned = preload is not None and "numpy" in preload._brought
            return learned, len(os.listdir("/proc/self/task")), float(numpy.random.rand())
        first = keep.submit(draw).result()
        assert not first[0]
        eventually(lambda: fresh(draw)[0])
        seen = [fresh(draw) for _ in range(3)]
        assert all(each[:2] == (True, first[1]) for each in seen), (first, seen)
        assert len({each[2] for each in seen}) == 3
        """,
    ).succeeds()
