"""The bars that Rightlane sets itself: what `bench.py` measures, and how good it should be.

A bar is judged by medians of one run, against a peer in the same run or against a number that does not depend
on how fast the machine is; the few that are durations name a limit that leaves room for slow machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["times", "%", "ms", "B"]

# How many of the unit a second, a percent or a byte of the case's values is.
SCALES: Mapping[Unit, float] = {"times": 1.0, "%": 1.0, "ms": 1000.0, "B": 1.0}


@dataclass(frozen=True)
class Bar:
    """One value of one engine; with a peer, how many times its value the peer's is, or the reverse."""

    title: str
    case: str
    key: str
    limit: float
    unit: Unit
    at_least: bool = False
    engine: str = "rightlane process"
    peer: str = ""
    peer_key: str = ""
    """Where the peer's value is another one."""
    beside: str = ""
    """An engine whose value says what the machine had to give: ours counts in percent of it."""

    def measured(self, medians: Mapping[str, Mapping[str, Mapping[str, float]]]) -> float | None:
        """In the bar's unit, from the medians by case, engine and key; None where there are none."""
        engines = medians.get(self.case, {})
        own = engines.get(self.engine)
        if own is None:
            return None
        given = engines.get(self.beside)
        if given is not None:
            return 100 * own[self.key] / given[self.key]
        if not self.peer:
            return own[self.key] * SCALES[self.unit]
        other = engines.get(self.peer)
        if other is None:
            return None
        # "At least so many times as fast" counts the peer's time, "at most so much of" our own.
        theirs = other[self.peer_key or self.key]
        return theirs / own[self.key] if self.at_least else own[self.key] / theirs

    def told_beside(self, medians: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
        other = medians.get(self.case, {}).get(self.beside)
        return f" ({self.beside}: {self.shown(other[self.key])} of the nominal)" if other else ""

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def shown(self, value: float) -> str:
        if self.unit == "times":
            return f"{value:.3g}×"
        return f"{value:,.0f} B" if self.unit == "B" else f"{value:.3g} {self.unit}"


_PPE = "ProcessPoolExecutor"
_POOL = "multiprocessing.Pool"
_TPE = "ThreadPoolExecutor"

BARS = [
    *(
        Bar(
            f"share of what two bare processes get of two cores, tasks of {size}",
            f"share-{size.replace(' ', '')}",
            "share_percent",
            90,
            "%",
            True,
            beside="no pool",
        )
        for size in ("0.1 ms", "1 ms")
    ),
    Bar(f"600 × 1 ms, of {_PPE}'s time", "cpu-1ms", "total_s", 0.75, "times", peer=_PPE),
    Bar("CPU of the waiting parent, of one core", "parent-cpu", "core_percent", 2.5, "%"),
    *(
        Bar(f"latency {where}{key[:3]}, faster than {_PPE}", case, key, limit, "times", True, peer=_PPE)
        for case, where, limits in (
            ("latency", "", {"p50_s": 8, "p99_s": 4}),
            ("latency-one-core", "on one core ", {"p50_s": 8}),
            ("latency-after-rest", "after 10 ms of rest ", {"p50_s": 4}),
        )
        for key, limit in limits.items()
    ),
    Bar(f"cold first result, of {_PPE}'s time", "cold", "first_s", 1, "times", peer=_PPE),
    Bar(f"the same with the import, of {_PPE}'s time", "cold-import", "first_s", 1, "times", peer=_PPE),
    Bar("first result of a pool that is 30 ms old", "cold-30ms", "first_s", 4, "ms"),
    Bar(f"100,000 submits, faster than {_PPE}", "submits", "per_task_s", 50, "times", True, peer=_PPE),
    Bar(
        "100,000 submits, faster than Pool.apply_async",
        "submits",
        "per_task_s",
        20,
        "times",
        True,
        peer=_POOL,
    ),
    Bar("map over a range, faster than Pool.map", "map", "per_item_s", 1.5, "times", True, peer=_POOL),
    Bar("map over tuples, faster than Pool.map", "map-tuples", "per_item_s", 1.2, "times", True, peer=_POOL),
    Bar("memory per pending task, int", "pending-bytes-int", "per_task_bytes", 220, "B"),
    Bar("memory per pending task, dict of one item", "pending-bytes-dict", "per_task_bytes", 280, "B"),
    Bar("killed idle worker replaced, p50", "killed-idle", "p50_s", 10, "ms"),
    Bar("killed busy worker replaced, p50", "killed-busy", "p50_s", 10, "ms"),
    Bar(
        f"thread lane: latency p50, faster than {_TPE}",
        "latency",
        "p50_s",
        3,
        "times",
        True,
        "rightlane thread",
        _TPE,
    ),
    Bar(
        f"thread lane: 100,000 submits, faster than {_TPE}",
        "submits",
        "per_task_s",
        8,
        "times",
        True,
        "rightlane thread",
        _TPE,
    ),
    Bar("cost of a task at 1,000,000 pending, of that at 1,000", "depth", "growth_ratio", 1.3, "times"),
    *(
        Bar(f"{name}, of the executor's time", "drop-ins", key, 1.1, "times")
        for name, key in (
            ("futures.ProcessPoolExecutor.submit", "futures_submits_ratio"),
            ("futures.ProcessPoolExecutor.map", "futures_map_ratio"),
            ("Pool.apply_async", "pool_submits_ratio"),
            ("Pool.map", "pool_map_ratio"),
        )
    ),
    Bar("cost of a task with 64 workers, of that with 2", "width", "growth_ratio", 1.5, "times"),
    *(
        Bar(f"{what}, faster than {_PPE}", case, key, limit, "times", True, peer=_PPE)
        for what, case, key, limit in (
            ("array of 128 MiB as argument", "array-in", "per_call_s", 30),
            ("array of 128 MiB as result", "array-out", "per_call_s", 20),
            ("the same array of 32 MiB to 50 tasks", "array-again", "per_task_s", 25),
        )
    ),
    *(
        Bar(
            f"the same {how}, faster than {_PPE} by submit",
            "array-again",
            key,
            500,
            "times",
            True,
            peer=_PPE,
            peer_key="per_task_s",
        )
        for how, key in (("by one map", "per_item_s"), ("by rl.share", "per_shared_s"))
    ),
    Bar(f"first array of 32 MiB, of {_PPE}'s time", "array-first", "first_s", 1.5, "times", peer=_PPE),
    Bar(
        "array of 128 MiB overwritten in place, of copied and written",
        "array-written",
        "growth_ratio",
        1.3,
        "times",
    ),
    *(
        Bar(
            f"array of {kib} KiB there and back, of {_PPE}'s time",
            "array-sizes",
            f"kib_{kib}_s",
            1,
            "times",
            peer=_PPE,
        )
        for kib in (4, 16, 64, 256)
    ),
]
