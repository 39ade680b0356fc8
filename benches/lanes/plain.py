"""Functions of the workloads that need nothing but the standard library. A module of its own, because that is
where most users' functions live: workers import it by name, and nothing else with it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import time
import zlib
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

# --- pure Python -----------------------------------------------------------------------------------


def sum_squares(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step * step
    return total


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def count_words(text: str) -> int:
    counts: dict[str, int] = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return max(counts.values())


def longest_collatz(limit: int) -> int:
    """Uneven: an item takes as long as its limit is high."""
    most = 0
    for start in range(1, limit):
        length, value = 1, start
        while value != 1:
            value = value // 2 if value % 2 == 0 else 3 * value + 1
            length += 1
        most = max(most, length)
    return most


class Point:
    def __init__(self, x: float, y: float) -> None:
        self.x = x
        self.y = y

    def moved(self, dx: float, dy: float) -> Point:
        return Point(self.x + dx, self.y + dy)


def walk(steps: int) -> float:
    """Objects and method calls."""
    point = Point(0.0, 0.0)
    for step in range(steps):
        point = point.moved(step % 3 - 1, step % 5 - 2)
    return point.x + point.y


def tiny(number: int) -> bool:
    return number % 7 == 0


# --- C code ----------------------------------------------------------------------------------------

NAMES = re.compile(r"\b([a-z]+)ing\s+(?:the\s+)?([a-z]+)\b")


def find_names(text: str) -> int:
    """C code that holds the interpreter's lock."""
    return len(NAMES.findall(text))


def rewrite_json(text: str) -> int:
    """The same, with many objects made and freed."""
    return len(json.dumps(json.loads(text), sort_keys=True))


def compress(data: bytes) -> int:
    """C code that lets go of the interpreter's lock for milliseconds."""
    return len(zlib.compress(data, 6))


def derive_key(password: bytes) -> bytes:
    """The same, with next to nothing to move."""
    return hashlib.pbkdf2_hmac("sha256", password, b"salt", 20_000)


def hash_blocks(count: int) -> str:
    """C calls of microseconds that let go of the interpreter's lock each, and do not scale in threads."""
    block = b"x" * 4096
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(block)
    return digest.hexdigest()


def hash_all(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def decompress(data: bytes) -> bytes:
    return zlib.decompress(data)


# --- waiting ---------------------------------------------------------------------------------------


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


# --- files -----------------------------------------------------------------------------------------


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


def query(path_and_range: tuple[str, int, int]) -> Any:
    path, low, high = path_and_range
    connection = sqlite3.connect(path)
    try:
        sql = "select count(*), sum(value * value) from samples where id between ? and ?"
        return connection.execute(sql, (low, high)).fetchone()
    finally:
        connection.close()


# --- more than one kind ----------------------------------------------------------------------------


def work(kind_and_amount: tuple[str, float]) -> int:
    """What it does depends on what it is given: a function that changes its nature in the middle of a row."""
    kind, amount = kind_and_amount
    if kind == "nap":
        time.sleep(amount)
        return 0
    if kind == "hash":
        return len(hashlib.pbkdf2_hmac("sha256", b"password", b"salt", int(amount)))
    return sum_squares(int(amount))
