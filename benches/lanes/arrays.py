"""Functions of the workloads that need NumPy."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def transcend(seed: int) -> float:
    """Long operations on whole arrays, which let go of the interpreter's lock."""
    values = np.linspace(0.0, 1.0 + seed, 300_000)
    return float(np.sqrt(np.sin(values) ** 2 + np.exp(-values)).sum())


def rotate(steps: int) -> float:
    """Many operations on small arrays: the interpreter's lock is held nearly all the time."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    point = np.array([1.0, 0.0])
    for _ in range(steps):
        point = turn @ point
    return float(point[0])


def multiply(seed: int) -> float:
    """BLAS, which may have threads of its own."""
    matrix = np.full((400, 400), 1.0 + seed)
    return float((matrix @ matrix)[0, 0])


def sum_logarithms(array: Array) -> float:
    """An argument of 4 MiB, of which little is made."""
    return float(np.log1p(array).sum())


def noise(seed: int) -> Array:
    """A result of 4 MiB."""
    return np.random.default_rng(seed).random(2**19)


def thumbnail(seed: int) -> int:
    """A picture is made, blurred, halved and encoded as PNG."""
    height, width = 384, 512
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([rows * 255 // height, columns * 255 // width, (rows * columns + seed) % 256], axis=2)
    blurred = image.astype(np.float64)
    for axis in (0, 1):
        blurred = (np.roll(blurred, 1, axis) + blurred + np.roll(blurred, -1, axis)) / 3.0
    small = blurred.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    return len(_png(small))


def _png(image: NDArray[np.uint8]) -> bytes:
    height, width, _ = image.shape
    lines = b"".join(b"\0" + line.tobytes() for line in image)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 6))
        + chunk(b"IEND", b"")
    )
