"""Functions of the workloads in C code of the standard library."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import zlib
from typing import Any

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


def query(path_and_range: tuple[str, int, int]) -> Any:
    path, low, high = path_and_range
    connection = sqlite3.connect(path)
    try:
        sql = "select count(*), sum(value * value) from samples where id between ? and ?"
        return connection.execute(sql, (low, high)).fetchone()
    finally:
        connection.close()
