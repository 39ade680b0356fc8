"""Functions of the workloads that wait: for a time, a server, a child process; and those on files."""

from __future__ import annotations

import shutil
import subprocess
import time
from http.client import HTTPConnection
from pathlib import Path

from plain import sum_squares


def nap(seconds: float) -> None:
    time.sleep(seconds)


def burn_and_nap(steps_and_seconds: tuple[int, float]) -> int:
    steps, seconds = steps_and_seconds
    total = sum_squares(steps)
    time.sleep(seconds)
    return total


def fetch(port_and_path: tuple[int, str]) -> int:
    port, path = port_and_path
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return len(connection.getresponse().read())
    finally:
        connection.close()


def run_sleep(seconds: str) -> int:
    """A child process that waits."""
    return subprocess.run(["sleep", seconds], check=True).returncode


def run_awk(steps: str) -> str:
    """A child process that burns."""
    program = f"BEGIN {{ for (i = 0; i < {steps}; i++) total += i % 7; print total }}"
    return subprocess.run(["awk", program], check=True, capture_output=True, text=True).stdout


def copy_file(source_and_target: tuple[str, str]) -> int:
    """System calls that let go of the interpreter's lock."""
    source, target = source_and_target
    shutil.copyfile(source, target)
    size = Path(target).stat().st_size
    Path(target).unlink()
    return size


def read_numbers(path: str) -> int:
    """A small read, and then Python."""
    with open(path, encoding="ascii") as lines:
        return sum(int(line) for line in lines)
