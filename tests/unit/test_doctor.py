"""How the limits of a machine are read, on made-up ones; and that every probe of this one answers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from rightlane import _doctor

UNIFIED = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw"
OLD = "31 1 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OLD_MEMORY = "32 1 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files of a made-up Linux machine with 16 cores and 64 GiB."""
    found: dict[str, str] = {}

    def lines(path: str | Path) -> list[str]:
        return found.get(str(path), "").splitlines()

    def sysconf(name: str) -> int:
        return {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}[name]

    monkeypatch.setattr(_doctor, "_lines", lines)
    monkeypatch.setattr(_doctor, "_LINUX", True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(os, "sysconf", sysconf)
    return found


def test_without_limits_the_affinity_counts(files: dict[str, str]) -> None:
    files["/proc/self/mountinfo"] = UNIFIED
    files["/proc/self/cgroup"] = "0::/user/job"
    files["/sys/fs/cgroup/user/job/cpu.max"] = "max 100000"
    budget = _doctor.core_budget()
    assert (budget.affinity, budget.quota, budget.workers) == (16, math.inf, 16)


def test_the_least_quota_of_every_level_counts_and_is_rounded_up(files: dict[str, str]) -> None:
    files["/proc/self/mountinfo"] = UNIFIED
    files["/proc/self/cgroup"] = "0::/user/job"
    files["/sys/fs/cgroup/user/job/cpu.max"] = "800000 100000"
    files["/sys/fs/cgroup/user/cpu.max"] = "250000 100000"
    budget = _doctor.core_budget()
    assert (budget.quota, budget.workers) == (2.5, 3)
    assert budget.quota_source == "/sys/fs/cgroup/user/cpu.max"


def test_the_limit_of_the_mounted_root_itself_counts(files: dict[str, str]) -> None:
    files["/proc/self/mountinfo"] = UNIFIED
    files["/proc/self/cgroup"] = "0::/"
    files["/sys/fs/cgroup/cpu.max"] = "50000 100000"
    assert _doctor.core_budget().workers == 1


def test_the_older_kind_of_control_group(files: dict[str, str]) -> None:
    files["/proc/self/mountinfo"] = f"{UNIFIED}\n{OLD}\n{OLD_MEMORY}"
    files["/proc/self/cgroup"] = "4:cpu,cpuacct:/a/b\n3:memory:/m\n0::/"
    files["/sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us"] = "-1"
    files["/sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us"] = "100000"
    files["/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us"] = "400000"
    files["/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us"] = "100000"
    assert _doctor.core_budget().workers == 4


def test_a_container_sees_a_subtree(files: dict[str, str]) -> None:
    files["/proc/self/mountinfo"] = UNIFIED.replace(" / ", " /docker/abc ", 1)
    files["/proc/self/cgroup"] = "0::/docker/abc/inner"
    files["/sys/fs/cgroup/inner/cpu.max"] = "600000 100000"
    files["/sys/fs/cgroup/cpu.max"] = "200000 100000"
    assert _doctor.core_budget().workers == 2


def test_a_group_outside_what_is_mounted_is_read_at_the_mount(files: dict[str, str]) -> None:
    files["/proc/self/mountinfo"] = UNIFIED.replace(" / ", " /docker/abc ", 1)
    files["/proc/self/cgroup"] = "0::/../other"
    files["/sys/fs/cgroup/cpu.max"] = "200000 100000"
    assert _doctor.core_budget().workers == 2


def test_the_least_memory_limit_counts(files: dict[str, str]) -> None:
    files["/proc/self/mountinfo"] = f"{UNIFIED}\n{OLD_MEMORY}"
    files["/proc/self/cgroup"] = "3:memory:/m/n\n0::/job"
    files["/sys/fs/cgroup/job/memory.max"] = "max"
    files["/sys/fs/cgroup/memory/m/n/memory.limit_in_bytes"] = str(4 * 2**30)
    files["/sys/fs/cgroup/memory/m/memory.limit_in_bytes"] = str(2 * 2**30)
    files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712"
    expected = 2 * 2**30, "/sys/fs/cgroup/memory/m/memory.limit_in_bytes"
    assert _doctor.memory_limit_bytes() == expected


def test_no_limit_is_none(files: dict[str, str]) -> None:
    assert _doctor.memory_limit_bytes() is None
    assert _doctor.core_budget().workers == 16


def test_a_name_with_blanks(files: dict[str, str]) -> None:
    files["/proc/self/mountinfo"] = UNIFIED.replace("/sys/fs/cgroup", r"/sys/fs/c\040group")
    files["/proc/self/cgroup"] = "0::/"
    files["/sys/fs/c group/cpu.max"] = "200000 100000"
    assert _doctor.core_budget().workers == 2


def test_every_probe_answers() -> None:
    found = _doctor.findings()
    assert {section for section, _, _, _ in found} == {"machine", "limits", "what works here"}
    assert {state for _, _, state, _ in found} <= {"fact", "works", "limited", "missing"}
    names = [name for _, name, _, _ in found]
    assert len(names) == len(set(names))
    for section, name, state, text in found:
        assert "\n" not in text
        assert text or state == "works", (section, name)


def test_a_probe_that_fails_makes_the_process_lane_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_doctor, "_LINUX", True)
    monkeypatch.setattr(_doctor, "_memfd_seals", forbidden)
    found = {name: (state, text) for _, name, state, text in _doctor.findings()}
    state, text = found["process lane"]
    assert state == "missing" and "memfd with seals" in text
    assert found["memfd with seals"] == ("missing", "[Errno 1] Operation not permitted")


def test_off_linux_the_process_lane_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """rule 31"""
    monkeypatch.setattr(_doctor, "_LINUX", False)
    found = {name: state for _, name, state, _ in _doctor.findings()}
    lanes = (found["process lane"], found["thread lane"], found["inline lane"])
    assert lanes == ("missing", "works", "works")
