"""What this machine allows: the probes of `rightlane doctor`.

Every line is found out by trying, or read where the kernel says it, at the moment of the call; nothing is
inferred from a version number. The probes change nothing that outlives them: what would (becoming a
subreaper, closing descriptors) is tried in a process that ends at once.

The core budget is here too because the doctor has to show how it came about. It is an executor's default
size: the least of the affinity and of the CPU quota at every level of the control groups, rounded up.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import platform
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Finding = tuple[str, str, str, str]
"""Section, name, state (`fact`, `works`, `limited` or `missing`), text."""

_MIN_KERNEL = (5, 10)
_ARCHITECTURES = ("x86_64", "aarch64")
_LANE_TIMEOUT_S = 30.0
_LINUX = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class CoreBudget:
    """How many cores this process may use."""

    affinity: int
    """Cores it may be scheduled on."""
    quota: float
    """Cores' worth of time the control groups grant it; infinite without a limit."""
    quota_source: str
    """The file with the least quota; empty without a limit."""

    @property
    def workers(self) -> int:
        return max(1, math.ceil(min(self.affinity, self.quota)))


def core_budget() -> CoreBudget:
    """The affinity, and the least CPU quota of every level of both kinds of control group."""
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:
        affinity = os.cpu_count() or 1
    least = (math.inf, "")
    for level in _cgroup_levels("cpu"):
        quota = _cpu_quota(level)
        if quota is not None and quota[0] < least[0]:
            least = quota
    return CoreBudget(affinity, *least)


def _cpu_quota(level: Path) -> tuple[float, str] | None:
    unified = _words(level / "cpu.max")
    if len(unified) == 2 and unified[0] != "max":
        return int(unified[0]) / int(unified[1]), str(level / "cpu.max")
    quota, period = _words(level / "cpu.cfs_quota_us"), _words(level / "cpu.cfs_period_us")
    if quota and period and int(quota[0]) > 0 and int(period[0]) > 0:
        return int(quota[0]) / int(period[0]), str(level / "cpu.cfs_quota_us")
    return None


def physical_bytes() -> int:
    """The memory of the machine; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def memory_limit_bytes() -> tuple[int, str] | None:
    """The least memory limit of every level, and the file that sets it."""
    physical = physical_bytes() or sys.maxsize
    least: tuple[int, str] | None = None
    for level in _cgroup_levels("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _words(level / name)
            # The older interface says "no limit" with a number no machine has.
            if words and words[0] != "max" and int(words[0]) < min(physical, least[0] if least else physical):
                least = int(words[0]), str(level / name)
    return least


def _cgroup_levels(controller: str) -> Iterator[Path]:
    """The directories of this process's control groups that may limit `controller`, from its own up to
    the mount, in the unified hierarchy and in the controller's own."""
    if not _LINUX:
        return
    memberships = [line.split(":", 2) for line in _lines("/proc/self/cgroup")]
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or not kind or kind[0] not in ("cgroup", "cgroup2"):
            continue
        for membership in memberships:
            if len(membership) != 3:
                continue
            controllers, path = membership[1].split(","), membership[2]
            unified = kind[0] == "cgroup2" and controllers == [""]
            # An old mount's controllers are among the options of its superblock.
            own = kind[0] == "cgroup" and controller in controllers and controller in kind[-1].split(",")
            if not (unified or own):
                continue
            root, top = _unescape(mount[3]), Path(_unescape(mount[4]))
            # What is mounted may be a subtree (a container); a path outside it is not to be seen here.
            relative = os.path.relpath(path, root) if path.startswith(root.rstrip("/")) else "."
            level = top / relative
            while True:
                yield level
                if level == top or top not in level.parents:
                    break
                level = level.parent


def _unescape(text: str) -> str:
    """A path of mountinfo, where blanks are octal."""
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def findings() -> list[Finding]:
    """Everything `rightlane doctor` prints, in order."""
    return [*_machine(), *_limits(), *_what_works()]


def _machine() -> Iterator[Finding]:
    from rightlane import __version__

    section = "machine"
    yield section, "rightlane", "fact", __version__
    yield section, "platform", "fact", f"{platform.system()} on {platform.machine()}"
    yield section, "kernel", "fact", platform.release()
    build = f"{platform.python_implementation()} {platform.python_version()}"
    yield section, "Python", "fact", f"{build}, {sys.executable}"
    yield section, "GIL", "fact", _gil()


def _gil() -> str:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return f"held by one thread at a time, switched every {sys.getswitchinterval() * 1e3:g} ms"
    enabled: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    return "free-threaded build, GIL " + ("on" if enabled() else "off")


def _limits() -> Iterator[Finding]:
    section = "limits"
    budget = core_budget()
    origin = f"affinity {budget.affinity} of {os.cpu_count()}, "
    if math.isinf(budget.quota):
        origin += "no CPU quota"
    else:
        origin += f"CPU quota {budget.quota:.2f} ({budget.quota_source})"
    yield section, "core budget", "fact", f"{budget.workers}: {origin}"
    physical = physical_bytes()
    limit = memory_limit_bytes()
    memory = (_gib(physical) if physical else "an unknown size") + " in the machine, "
    memory += "no control group limit" if limit is None else f"limit {_gib(limit[0])} ({limit[1]})"
    yield section, "memory", "fact", memory
    try:
        import resource
    except ImportError:  # not on Windows
        return

    def name(value: int) -> str:
        return "unlimited" if value == resource.RLIM_INFINITY else str(value)

    soft, hard = map(name, resource.getrlimit(resource.RLIMIT_NOFILE))
    yield section, "descriptors", "fact", f"{soft}, may be raised to {hard}"
    if hasattr(resource, "RLIMIT_NPROC"):
        yield section, "processes", "fact", name(resource.getrlimit(resource.RLIMIT_NPROC)[0])


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


def _what_works() -> Iterator[Finding]:
    section = "what works here"
    if not _LINUX:
        yield section, "process lane", "missing", f"needs Linux; this is {platform.system()}"
        yield _lane("thread")
        yield _lane("inline")
        return
    needed = [
        ("memfd with seals", _memfd_seals),
        ("futex", _futex),
        ("pidfd", _pidfd),
        ("subreaper", _subreaper),
        ("close_range", _close_range),
    ]
    tried = [(name, _attempt(probe)) for name, probe in needed]
    missing = [name for name, problem in tried if problem]
    kernel = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
    if kernel < _MIN_KERNEL:
        missing.append("a kernel of at least " + ".".join(map(str, _MIN_KERNEL)))
    if platform.machine() not in _ARCHITECTURES:
        missing.append(" or ".join(_ARCHITECTURES))
    if missing:
        yield section, "process lane", "missing", "for want of " + ", ".join(missing)
    else:
        yield _lane("process")
    yield _lane("thread")
    yield _lane("inline")
    for name, problem in tried:
        yield section, name, "missing" if problem else "works", problem
    problem = _attempt(_thread_syscall)
    text = f"{problem}; waiting is judged by CPU clocks instead" if problem else ""
    yield section, "thread's syscall file", "limited" if problem else "works", text
    levels = [level for name in ("cpu", "memory") for level in _cgroup_levels(name) if level.is_dir()]
    if levels:
        yield section, "control groups", "works", "limits are read from " + str(levels[0])
    else:
        yield section, "control groups", "limited", "none to be seen; limits they set stay unknown"


def _lane(lane: Literal["process", "thread", "inline"]) -> Finding:
    """Whether a lane runs a function here."""
    try:
        from rightlane._executor import Executor

        executor = Executor(1, lane=lane)
        try:
            pid = executor.submit(os.getpid).result(_LANE_TIMEOUT_S)
        finally:
            executor.shutdown(kill=True)
        assert (pid == os.getpid()) == (lane != "process"), "it ran in the wrong process"
    except Exception as error:  # whatever keeps it from working is what the user wants to read
        problem = " ".join(str(error).split()) or type(error).__name__
        return "what works here", f"{lane} lane", "missing", problem
    return "what works here", f"{lane} lane", "works", ""


def _attempt(probe: Callable[[], None]) -> str:
    """The empty string if the probe went well, else what went wrong."""
    try:
        probe()
    except (OSError, AttributeError, AssertionError) as error:
        return str(error) or type(error).__name__
    return ""


def _memfd_seals() -> None:
    """A memfd that is sealed as a worker's task ring is: what is mapped stays writable, nothing new."""
    import fcntl

    fd = os.memfd_create("rightlane-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    future_write = 0x10  # F_SEAL_FUTURE_WRITE, which the fcntl module does not name before 3.13
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        with mmap.mmap(fd, mmap.PAGESIZE) as view:
            fcntl.fcntl(
                fd,
                fcntl.F_ADD_SEALS,
                future_write | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
            )
            view[0] = 1
            try:
                mmap.mmap(fd, mmap.PAGESIZE).close()
            except PermissionError:
                return
            raise AssertionError("the seal against writing has no effect")
    finally:
        os.close(fd)


_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}


def _futex() -> None:
    """Wakes a shared futex that nobody sleeps on; a kernel without futexes says ENOSYS."""
    number = _SYS_FUTEX.get(platform.machine())
    assert number is not None, "the system call's number is unknown on this machine"
    word = ctypes.c_uint32(0)
    wake = 1
    _checked(_libc().syscall(number, ctypes.byref(word), wake, 1, None, None, 0))


def _pidfd() -> None:
    """Opens a pidfd of this process and sends a signal that only checks."""
    fd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(fd, 0)
    finally:
        os.close(fd)


def _subreaper() -> None:
    """A process adopts orphans; tried in one that ends at once, for the flag would stay."""
    _in_a_process("import ctypes\nassert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0")


def _close_range() -> None:
    _in_a_process("import ctypes\nassert ctypes.CDLL(None).close_range(1000, 1000, 0) == 0")


def _in_a_process(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(errno.EPERM, last or f"exit code {done.returncode}")


def _thread_syscall() -> None:
    Path("/proc/thread-self/syscall").read_text()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
