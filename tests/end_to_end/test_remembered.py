"""What earlier runs have measured: it says where a function is fastest, and is trusted in nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import rightlane as rl
from support import TESTS

FUNCTIONS = """
    import os, time
    import library

    def helper():
        return 1

    def waits(*_):
        time.sleep(0.02)
        return os.getpid() + 0 * helper()

    def tiny(n):
        return n

    def burns(*_):
        total = 0
        for n in range(300_000):
            total += n
        return os.getpid()

    def calls_a_library(*_):
        library.pause()
        return os.getpid()

    def reads(*_):
        time.sleep(0.02)
        return os.getpid() + 0 * len(SEEN)

    SEEN = []

    def collects(*_):
        time.sleep(0.02)
        SEEN.append(1)
        return os.getpid()
"""

RUN = """
    import os, sys
    import rightlane as rl
    import remembered_functions as functions

    def here(ex, fn, *args):
        return ex.submit(fn, *args).result(timeout=60) == os.getpid()

    def learn(ex, fn, calls=12):
        for _ in range(calls):
            here(ex, fn)
"""

LEARN = "with rl.Executor() as ex: learn(ex, functions.waits)"
LOOK = """
with rl.Executor() as ex:
    print(ex.explain(functions.waits))
    print("here" if here(ex, functions.waits) else "away")
"""

Run = Callable[..., list[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "remembered_functions.py").write_text(textwrap.dedent(FUNCTIONS))
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "library.py").write_text("import time\ndef pause(): time.sleep(0.02)\n")
    return tmp_path


@pytest.fixture
def run(home: Path) -> Run:
    """Runs a program with the cache of its own; returns the lines that it printed."""

    def runner(source: str, *, code: int = 0, **environment: str) -> list[str]:
        script = home / "program.py"
        script.write_text(textwrap.dedent(RUN) + textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, str(script)],
            env={
                **os.environ,
                "PYTHONPATH": f"{home}:{home}/site-packages:{TESTS}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "XDG_CACHE_HOME": str(home / "cache"),
                "RIGHTLANE_PROFILES": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert code or not done.stderr, done.stderr
        return done.stdout.splitlines()

    return runner


def book(home: Path) -> Path:
    (found,) = (home / "cache" / "rightlane").iterdir()
    return found


def remembers(lines: list[str]) -> bool:
    says, place = lines
    assert ("remembered from earlier runs" in says) == (place == "here"), lines
    return place == "here"


def test_the_first_call_of_a_known_function_goes_where_it_belongs(run: Run, home: Path) -> None:
    run(LEARN)
    says, place = run(LOOK)
    assert place == "here"
    assert says.startswith("`waits`: threads"), says
    assert says.endswith("; remembered from earlier runs"), says
    assert (book(home).stat().st_mode & 0o777, book(home).parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert remembers(run(LOOK)), "and the next one, too"


def test_what_burns_stays_and_is_measured_again(run: Run) -> None:
    run("with rl.Executor() as ex: learn(ex, functions.burns)")
    source = """
    with rl.Executor() as ex:
        told = ex.explain(functions.burns)
        print(told.lane, told.reason, told.as_dict()["remembered"], told.as_dict()["calls_in_workers"])
        print(here(ex, functions.burns))
        for _ in range(200):
            here(ex, functions.burns)
        told = ex.explain(functions.burns)
        print(told.lane, told.reason, told.as_dict()["remembered"])
    """
    assert run(source) == ["process holds_lock True 0", "False", "process holds_lock False"]


def test_items_of_a_map_run_in_the_caller_at_once(run: Run) -> None:
    items = "items = [('item', n) for n in range(4_000)]"
    learn = f"""
    from rightlane import _native
    {items}
    with rl.Executor() as ex:
        ex.submit(functions.tiny, items[0]).result(timeout=60)
        while not os.path.exists(os.environ["XDG_CACHE_HOME"]):
            list(ex.options(lane="process").map(functions.tiny, items))
            if ex.explain(functions.tiny).lane == "inline":
                _native.save_profiles()  # which waits until enough is known
    """
    run(learn)
    use = f"""
    {items}
    with rl.Executor() as ex:
        # What has not travelled is the same object. On a busy machine workers may run the rest.
        print(any(result is item for result, item in zip(ex.map(functions.tiny, items), items)))
    """
    assert run(use) == ["True"]
    assert run(use, RIGHTLANE_PROFILES="0") == ["False"]


def test_main_and_its_closures_are_remembered(run: Run) -> None:
    source = """
    import time

    def make(seconds):
        def pause():
            time.sleep(seconds)
            return os.getpid()
        return pause

    pause = lambda *_: time.sleep(0.02) or os.getpid()
    with rl.Executor() as ex:
        print([here(ex, fn) for fn in (make(0.02), pause)])
        learn(ex, make(0.02))
        learn(ex, pause)
    """
    assert run(source) == ["[False, False]"]
    assert run(source) == ["[True, True]"]


@pytest.mark.parametrize("value", ["0", "off", "False", "NO"])
def test_the_environment_switches_it_off(run: Run, home: Path, value: str) -> None:
    run(LEARN, RIGHTLANE_PROFILES=value)
    assert not (home / "cache").exists(), "nothing is written"
    run(LEARN)
    assert not remembers(run(LOOK, RIGHTLANE_PROFILES=value)), "nor read"


def test_the_option_switches_it_off(run: Run, home: Path) -> None:
    run(LEARN.replace("()", "(profiles=False)"))
    assert not (home / "cache").exists(), "nothing is written"
    run(LEARN)
    assert not remembers(run(LOOK.replace("rl.Executor()", "rl.Executor(profiles=False)"))), "nor read"
    both = """
    with rl.Executor() as with_it, rl.Executor(profiles=False) as without:
        print(with_it.explain(functions.waits))
        print("here" if here(with_it, functions.waits) else "away")
        print(without.explain(functions.waits))
        print("here" if here(without, functions.waits) else "away")
    """
    lines = run(both)
    assert remembers(lines[:2]) and not remembers(lines[2:]), lines


def test_the_option_is_a_truth_value() -> None:
    with pytest.raises(TypeError, match="profiles must be True or False, not str"):
        rl.Executor(profiles="no")  # type: ignore[arg-type]


def test_without_a_home_nothing_is_kept(run: Run, home: Path) -> None:
    run(LEARN, XDG_CACHE_HOME="cache", HOME="")
    assert not list(home.glob("**/profiles-*")), "a relative path is none"
    run(LEARN, XDG_CACHE_HOME="", HOME=str(home))
    assert len(list((home / ".cache" / "rightlane").iterdir())) == 1


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda text: text[:-20],
    "noise": lambda _: os.urandom(4096),
    "noise under the title": lambda text: text.split(b"\n")[0] + b"\n" + os.urandom(4096),
    "another form": lambda text: text.replace(b"form 1:", b"form 2:"),
    "another version": lambda text: text.replace(b"version ", b"version 9"),
    "another machine": lambda text: text.replace(b" cores", b"0 cores"),
    "another interpreter": lambda text: text.replace(b"cpython-3", b"cpython-2"),
    "a wrong number": lambda text: text[:-25] + bytes([text[-25] ^ 1]) + text[-24:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_what_is_not_ours_is_ignored_and_replaced(
    run: Run, home: Path, damage: Callable[[bytes], bytes]
) -> None:
    run(LEARN)
    text = book(home).read_bytes()
    assert damage(text) != text
    book(home).write_bytes(damage(text))
    assert not remembers(run(LOOK))
    run(LEARN)
    assert remembers(run(LOOK))


def test_whoever_else_may_write_it_is_not_believed(run: Run, home: Path) -> None:
    run(LEARN)
    book(home).chmod(0o666)
    assert not remembers(run(LOOK))


@pytest.mark.parametrize(
    "change",
    [
        ("sleep(0.02)", "sleep(0.021)"),
        ("return 1", "return 2"),
        ("def helper():", "def helper(n=1):\n        n"),
    ],
    ids=["its own code", "a helper's", "a helper's arguments"],
)
def test_changed_code_is_another_function(run: Run, home: Path, change: tuple[str, str]) -> None:
    run(LEARN)
    (home / "remembered_functions.py").write_text(textwrap.dedent(FUNCTIONS.replace(*change)))
    assert not remembers(run(LOOK))


def test_a_comment_changes_nothing(run: Run, home: Path) -> None:
    run(LEARN)
    (home / "remembered_functions.py").write_text("# a comment\n" + textwrap.dedent(FUNCTIONS))
    assert remembers(run(LOOK))


def test_a_directory_that_cannot_be_written_is_no_matter(run: Run, home: Path) -> None:
    (home / "cache").write_text("a file, where a directory should be")
    assert not remembers(run(LOOK))
    run(LEARN, XDG_CACHE_HOME="/proc/nowhere")
    assert (home / "cache").read_text().startswith("a file")


def test_it_is_no_proof_that_nothing_is_shared(run: Run, home: Path) -> None:
    """rule 3: what a function changes is looked at in every run, whatever is remembered of its speed."""
    source = """
    with rl.Executor(shared="warn") as ex:
        learn(ex, functions.collects)
        print(here(ex, functions.collects), functions.SEEN)
        print(ex.explain(functions.collects).as_dict()["bar"])
    """
    quiet = {"PYTHONWARNINGS": "ignore"}
    assert run(source, **quiet) == ["False []", "changes"]
    assert not remembers(run(LOOK.replace("waits", "collects"), **quiet)), (
        "nobody was told that it is harmless"
    )
    assert run(source, **quiet) == ["False []", "changes"], "and it is watched again"


def test_code_that_may_share_something_is_no_better_for_it(run: Run) -> None:
    """rule 3: how long it takes is remembered, and what it names is looked at in every run."""
    run("with rl.Executor() as ex: learn(ex, functions.reads)")
    look = """
    with rl.Executor() as ex:
        told = ex.explain(functions.reads).as_dict()
        print(told["remembered"], told["wanted"], told["bar"], here(ex, functions.reads))
    """
    assert run(look) == ["True thread not_proven False"]


def test_changeable_arguments_are_no_better_for_it(run: Run) -> None:
    """rule 3."""
    run(LEARN)
    assert run("with rl.Executor() as ex: print(here(ex, functions.waits, []))") == ["False"]


def test_an_initializer_keeps_it_in_workers(run: Run) -> None:
    run(LEARN)
    assert run("with rl.Executor(initializer=int) as ex: print(here(ex, functions.waits))") == ["False"]


def test_who_took_the_process_down_is_not_trusted_again(run: Run, home: Path) -> None:
    """A function that is remembered as harmless may not be so today: it costs one process, not each."""
    learn, look = (program.replace("waits", "calls_a_library") for program in (LEARN, LOOK))
    run(learn)
    assert remembers(run(look))
    library = home / "site-packages" / "library.py"
    sound = library.read_text()
    library.write_text("import os\ndef pause(): os._exit(7)\n")
    run(look, code=7)
    library.write_text(sound)
    assert not remembers(run(look))
    run(learn)
    assert remembers(run(look)), "it has been seen in workers since"


def test_a_function_that_kills_its_worker_is_forgotten(run: Run, home: Path) -> None:
    learn, look = (program.replace("waits", "calls_a_library") for program in (LEARN, LOOK))
    run(learn)
    library = home / "site-packages" / "library.py"
    sound = library.read_text()
    library.write_text("import os\ndef pause(): os.kill(os.getpid(), 9)\n")
    dies = """
    with rl.Executor(initializer=int) as ex:
        print(type(ex.submit(functions.calls_a_library).exception(timeout=60)).__name__)
    """
    assert run(dies) == ["WorkerLost"]
    library.write_text(sound)
    assert not remembers(run(look))


def test_what_is_measured_now_is_believed_sooner(run: Run) -> None:
    """It waited, and burns now: the same code, other arguments."""
    source = """
    def either(burn):
        if not burn:
            time.sleep(0.01)
        n = 0
        while n < burn:
            n += 1
        return os.getpid()

    import time
    with rl.Executor() as ex:
        if {burn}:
            told = ex.explain(either)
            print(told.lane, told.as_dict()["remembered"])
        for _ in range(12):
            here(ex, either, {burn})
        told = ex.explain(either)
        print(told.lane, told.reason)
        print(told.as_dict()["remembered"])
    """
    assert run(source.format(burn=0))[0] == "thread waits"
    lines = run(source.format(burn=400_000))
    assert lines[0] == "thread True"
    assert lines[1:] == ["process holds_lock", "False"]


def test_programs_that_end_at_once_lose_nothing(run: Run, home: Path) -> None:
    source = """
    import time

    def make(number):
        code = functions.waits.__code__.replace(co_consts=(*functions.waits.__code__.co_consts, number))
        return type(functions.waits)(code, functions.waits.__globals__, "waits")

    def one(first):
        with rl.Executor() as ex:
            fns = [make(n) for n in range(first, first + 4)]
            print(*(here(ex, fn) for fn in fns))
            for fn in fns:
                learn(ex, fn)

    if __name__ == "__main__":
        one(int(os.environ["FIRST"]))
    """
    run(source, FIRST="0")
    script = [sys.executable, str(home / "program.py")]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{home}:{home}/site-packages:{TESTS}",
        "XDG_CACHE_HOME": str(home / "cache"),
        "RIGHTLANE_PROFILES": "1",
    }
    programs = [
        subprocess.Popen(script, env={**environment, "FIRST": str(first)}, stdout=subprocess.DEVNULL)
        for first in (10, 20, 30)
    ]
    assert [program.wait(timeout=120) for program in programs] == [0, 0, 0]
    for first in (0, 10, 20, 30):
        assert run(source, FIRST=str(first)) == ["True True True True"], first
