"""Helpers of the suite: waiting on conditions, gates, scripts in sessions of their own, a look into /proc.

Standard library only: scripts import it too. Nothing here sleeps to synchronise; waits are for conditions.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import tasks

if TYPE_CHECKING:
    import rightlane as rl

Lane = Literal["auto", "process", "thread", "inline"]
T = TypeVar("T")
MARK = "RIGHTLANE_TEST_MARK"
PATIENCE = 60.0
TESTS = os.path.dirname(os.path.abspath(__file__))


def eventually(predicate: Callable[[], T], timeout: float = PATIENCE, what: str = "") -> T:
    """Poll until `predicate` is true and return its value; fail with its last value at the timeout."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or 'the condition'} never came true; last seen: {value!r}")
        time.sleep(0.005)


class Gate:
    """Tasks wait at it (`tasks.hold`) in any process or thread; `open` lets them all pass."""

    def __init__(self, directory: Path, name: str = "gate") -> None:
        self.path = str(directory / name)

    def open(self) -> None:
        with open(self.path, "w"):
            pass

    def started(self) -> dict[str, int]:
        """Names of the tasks that have started, and their processes."""
        prefix = os.path.basename(self.path) + ".started."
        found: dict[str, int] = {}
        for entry in os.listdir(os.path.dirname(self.path)):
            if entry.startswith(prefix):
                pid = Path(os.path.dirname(self.path), entry).read_text()
                if pid:
                    found[entry.removeprefix(prefix)] = int(pid)
        return found

    def occupy(self, executor: Any, count: int, prefix: str = "busy") -> list[rl.Future[Any]]:
        """Hold `count` tasks of `executor` at the gate; returns once all of them have started."""
        names = [f"{prefix}{i}" for i in range(count)]
        futures = [executor.submit(tasks.hold, self.path, name, name) for name in names]
        eventually(lambda: set(names) <= set(self.started()), what=f"start of {names}")
        return futures


def lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []


def repeated(items: Iterable[T]) -> dict[T, int]:
    return {item: count for item, count in Counter(items).items() if count > 1}


# --- processes ---


def _stat(pid: int | str) -> tuple[str, int] | None:
    """State letter and parent of a process, or None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0].decode(), int(fields[1])


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie counts as gone."""
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX"


def children(pid: int) -> list[int]:
    """Living children, read from the parent field of every process."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = _stat(entry)
            if stat is not None and stat[1] == pid and stat[0] not in "ZX":
                found.append(int(entry))
    return found


def marked(mark: str) -> dict[int, str]:
    """Living processes that carry `mark` in their environment, with their command lines."""
    wanted = f"{MARK}={mark}".encode()
    found: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            environment = Path("/proc", entry, "environ").read_bytes()
            if wanted in environment.split(b"\0") and alive(int(entry)):
                found[int(entry)] = (
                    Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
                )
    return found


def template_of(executor: Any) -> int:
    """The template process is what a worker calls its parent."""
    pid = int(executor.submit(os.getppid).result(PATIENCE))
    assert pid not in (0, 1, os.getpid()), f"workers are children of {pid}, not of a template"
    return pid


def status(pid: int | str, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return line.partition(":")[2].strip()
    raise KeyError(field)


def signal_pending(pid: int, number: int) -> bool:
    bit = 1 << (number - 1)
    return bool((int(status(pid, "ShdPnd"), 16) | int(status(pid, "SigPnd"), 16)) & bit)


def context_switches(pids: Iterable[int]) -> dict[tuple[int, int], int]:
    """Switches, voluntary or not, of every thread of these processes since it started."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        for tid in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{tid}/status").read_text()
            found[pid, int(tid)] = sum(int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", text))
    return found


class Holdings(NamedTuple):
    """What a process holds of the system's goods."""

    descriptors: list[str]
    threads: int
    children: list[int]
    segments: list[str]


def holdings() -> Holdings:
    """What this process holds now; compare before and after. Socket and pipe numbers are left out."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(re.sub(r":\[\d+\]", "", os.readlink(f"/proc/self/fd/{fd}")))
    maps = Path("/proc/self/maps").read_text().splitlines()
    return Holdings(
        descriptors=sorted(name for name in names if not name.startswith("/proc/")),
        threads=len(os.listdir("/proc/self/task")),
        children=sorted(children(os.getpid())),
        segments=[line for line in maps if "memfd:" in line],
    )


def available_memory_bytes() -> int:
    """The least of what the machine has free and what each cgroup level leaves."""
    text = Path("/proc/meminfo").read_text()
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    assert match
    least = int(match[1]) * 1024
    for limit_name, usage_name in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            least = min(least, int(Path(limit_name).read_text()) - int(Path(usage_name).read_text()))
    return least


# --- scripts ---


class Start(Protocol):
    def __call__(self, source: str, *argv: object, **options: object) -> Started: ...


class Started:
    """A script that runs in a session of its own, its output in files.

    Everything it starts carries a mark in the environment, whatever session or group it moves to.
    """

    def __init__(
        self,
        directory: Path,
        source: str,
        argv: Sequence[object] = (),
        *,
        flags: Sequence[str] = (),
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        stdin: int | None = None,
        interactive: bool = False,
    ) -> None:
        self.mark = uuid.uuid4().hex
        stem = directory / f"script_{self.mark[:6]}"
        self._out, self._err = stem.with_suffix(".out"), stem.with_suffix(".err")
        source = textwrap.dedent(source)
        command = [sys.executable, *flags]
        if interactive:
            command += ["-i", "-q"]
        else:
            stem.with_suffix(".py").write_text(source)
            command.append(str(stem.with_suffix(".py")))
        environment = {**os.environ, "PYTHONPATH": TESTS, MARK: self.mark, **(env or {})}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*command, *map(str, argv)],
                stdin=subprocess.PIPE if stdin is None else stdin,
                stdout=out,
                stderr=err,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
        if interactive:
            self.type(source)
            self.close_stdin()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def type(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def expect(self, text: str) -> str:
        """Wait until the script has printed `text`; returns all it printed."""

        def seen() -> bool:
            if text in self.out:
                return True
            code = self.process.poll()
            assert code is None or text in self.out, (
                f"ended with {code} before {text!r}\n{self.out}\n{self.err}"
            )
            return False

        eventually(seen, what=f"{text!r} in the output")
        return self.out

    def wait(self, timeout: float = PATIENCE) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the script does not end\n{self.out}\n{self.err}") from None

    def succeeds(self, timeout: float = PATIENCE) -> str:
        """The script ends with code 0 and leaves nothing behind; returns what it printed."""
        code = self.wait(timeout)
        assert code == 0, f"exit code {code}\n{self.out}\n{self.err}"
        self.leaves_nothing()
        return self.out

    def leaves_nothing(self) -> None:
        last: dict[int, str] = {}

        def gone() -> bool:
            last.clear()
            last.update(marked(self.mark))
            return not last

        try:
            eventually(gone, timeout=20)
        except AssertionError:
            raise AssertionError(f"still running: {last}") from None

    def kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin:
            self.close_stdin()
        for _ in range(100):
            left = marked(self.mark)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.01)
