"""Recipes for arrays and other buffers in containers, and what makes two of them equal.

For the tests: nothing here is sent to a worker.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import rightlane as rl
import tasks

KIB, MIB = 1 << 10, 1 << 20
Array = NDArray[Any]


def equal(one: Any, other: Any) -> bool:
    """The same type, shape and content, to the last bit and in every part."""
    if isinstance(one, memoryview | pickle.PickleBuffer):
        # A view of memory has no type that could cross; whatever comes back has the same bytes.
        return bytes(memoryview(one)) == bytes(memoryview(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        # NumPy itself pickles some layouts in the machine's own byte order.
        one, other = (array.astype(array.dtype.newbyteorder("=")) for array in (one, other))
        same = np.array_equal if one.dtype.hasobject else lambda a, b: a.tobytes() == b.tobytes()
        return one.dtype == other.dtype and one.shape == other.shape and bool(same(one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


DTYPES = ("u1", "<i4", ">i8", "f8", "c16", "?", "S7", "U3", "M8[ns]", "O", "i4,2f8,S3")

LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "flat": lambda a: a,
    "table": lambda a: a[: len(a) // 4 * 4].reshape(4, -1),
    "Fortran": lambda a: np.asfortranarray(LAYOUTS["table"](a)),
    "turned": lambda a: LAYOUTS["table"](a).T,
    "backwards": lambda a: a[::-1],
    "thirds": lambda a: a[1::3],
    "middle": lambda a: a[len(a) // 4 : -len(a) // 4],
    "scalar": lambda a: a[:1].reshape(()) if len(a) else a,
    "empty": lambda a: a[:0].reshape(3, 0, 2),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}

BUFFERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "PickleBuffer": pickle.PickleBuffer,
    "writable PickleBuffer": lambda data: pickle.PickleBuffer(bytearray(data)),
    "one base": lambda data: views(np.frombuffer(bytearray(data), "u1")),
}


def views(base: Array) -> list[Array]:
    return [base[: len(base) // 2], base[len(base) // 3 :], base, base[::-2]]


@dataclass(frozen=True)
class Recipe:
    """What is printed when a test fails should be shorter than what was sent."""

    kind: str
    nbytes: int
    seed: int = 1
    layout: str = "flat"

    def make(self) -> Any:
        data = np.random.default_rng(self.seed).bytes(self.nbytes)
        if self.kind in BUFFERS:
            return BUFFERS[self.kind](data)
        dtype = np.dtype(self.kind)
        count = self.nbytes // dtype.itemsize
        if dtype.kind in "bUO":
            flat = (np.arange(count) % (self.seed + 2)).astype(dtype)
        else:
            flat = np.frombuffer(data[: count * dtype.itemsize], dtype).copy()
        return LAYOUTS[self.layout](flat)


def build(recipe: Any) -> Any:
    if isinstance(recipe, Recipe):
        return recipe.make()
    if isinstance(recipe, dict):
        return {key: build(value) for key, value in recipe.items()}
    return type(recipe)(map(build, recipe))


_sizes = st.sampled_from([0, 1, 100, *(n + d for n in (4 * KIB, 64 * KIB, MIB) for d in (-1, 0, 1))])
_kinds, _layouts = st.sampled_from([*DTYPES, *BUFFERS]), st.sampled_from(list(LAYOUTS))
RECIPES = st.recursive(
    st.builds(Recipe, _kinds, _sizes, st.integers(0, 100), _layouts),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


def storm(pool: rl.Executor, rounds: int, dice: random.Random) -> None:
    """Arrays of any size there and back, 20 in a round, a worker killed at any moment, some results kept."""
    kept: list[tuple[Array, int]] = []
    lost = 0
    for _ in range(rounds):
        pids = set(pool.map(tasks.here, range(6)))
        sent = [np.full(dice.choice((100, 10_000, 60_000, 400_000)), i) for i in range(20)]
        futures = [pool.submit(tasks.echo, values) for values in sent]
        time.sleep(dice.random() * 0.005)  # so that the kill may fall into any moment of the round
        try:
            os.kill(dice.choice(sorted(pids)), signal.SIGKILL)
        except ProcessLookupError:
            pass
        for values, future in zip(sent, futures, strict=True):
            try:
                back = future.result(60)
            except rl.WorkerLost:
                lost += 1
                continue
            assert (back == values).all()
            back += 1
            if dice.random() < 0.2:
                kept.append((back, int(values[0]) + 1))
        for back, value in kept:
            assert (back == value).all()
        del kept[: len(kept) - dice.randrange(50)]
    assert lost <= rounds, "only what a killed worker ran"
