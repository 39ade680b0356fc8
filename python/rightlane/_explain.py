"""What `Executor.explain` returns: a lane, why, and the numbers behind it."""

from __future__ import annotations

import html
import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Explanation"]

_LANES = {"process": "worker processes", "thread": "threads", "caller": "the caller"}

_WAITS = {
    "sleep": "sleeping",
    "network": "for sockets and pipes",
    "disk": "for files",
    "child": "for child processes",
    "lock": "for locks",
    "pool": "for threads of native code",
    "gil": "for the interpreter's lock",
    "unclear": "",
}


class Explanation:
    """Where automatic choice runs a function, and why. Made by `Executor.explain`; `str` of it is one line.

    Its numbers are those of the moment in which it was made.
    """

    __slots__ = ("_told",)

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told

    @property
    def lane(self) -> str | None:
        """The lane of its next call: "process", "thread", or "inline": items of a map run in the caller.

        None: not seen yet, which begins in a process.
        """
        if self.reason == "not_seen":
            return None
        if self.reason == "unpicklable":
            return "thread"
        place: str = self._told["place"]
        return "inline" if place == "caller" else place

    @property
    def reason(self) -> str:
        """What decided, in a word: "not_seen", "unpicklable", "waits", "waits_for_locks", "children",
        "holds_lock", "frees_lock", "own_threads", "mixed", "moving" or "tiny"."""
        told = self._told
        if told["reason"] == "not_seen" and told.get("unpicklable"):
            return "unpicklable"
        reason: str = told["reason"]
        return reason

    @property
    def change(self) -> str:
        """What would change the decision."""
        return _change(self._told, self.reason)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values: times in nanoseconds per call, sizes in bytes, shares from 0 to 1.

        "moved" is a dict of what went to and from worker processes for the function since the program began,
        in all calls together: "argument_bytes" and "result_bytes", which were pickled or copied into shared
        memory; "saved_bytes", of large buffers that lay there already; "copies", of large buffers and pickles
        into shared memory; "seconds", which that took in the caller and in workers. Of what is smaller than
        64 KiB the seconds follow from some calls that were timed.
        """
        told = {
            **self._told,
            "lane": self.lane,
            "reason": self.reason,
            "text": str(self),
            "change": self.change,
        }
        told.pop("place", None)
        return told

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.as_dict())

    def __str__(self) -> str:
        return _line(self._told, self.reason)

    def __repr__(self) -> str:
        return f"<Explanation {self}>"

    def _repr_html_(self) -> str:
        rows = [("why", _reason_in_words(self._told, self.reason)), ("what would change it", self.change)]
        rows += [(name, text) for name, text in _numbers(self._told) if text]
        rows += _moved(self._told["moved"])
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>"
            f"{html.escape(text)}</td></tr>"
            for name, text in rows
            if text
        )
        return f"<div><b>{html.escape(str(self))}</b><table>{cells}</table></div>"


def _line(told: dict[str, Any], reason: str) -> str:
    name = f"`{told['name']}`"
    if reason == "not_seen":
        return f"{name}: not seen yet; its first call runs in a worker process, and is measured there"
    if reason == "unpicklable":
        return f"{name}: threads; it or its arguments cannot be sent to a worker process"
    place = told["place"]
    where = f"{_LANES[place]}, {told['threads' if place == 'thread' else 'slots']} at once"
    if place == "caller":
        where = "worker processes; items of a map run in the caller"
    return f"{name}: {where}; {_reason_in_words(told, reason)}"


def _reason_in_words(told: dict[str, Any], reason: str) -> str:
    if reason == "not_seen":
        return "nothing is known"
    if reason == "unpicklable":
        return "what cannot be pickled has only threads"
    wall, cpu = max(told["wall_ns"], 1.0), told["cpu_ns"]
    share = _percent(told["wait_ns"] / wall)
    burns = f"{_time(cpu)} CPU per call"
    held = _percent(told["held_ns"] / cpu if cpu else 0.0)
    moved = told["pickle_ns"] + told["moving_ns"]
    what = "its arguments" if told["argument_bytes"] >= told["result_bytes"] else "its result"
    words = {
        "waits": f"waits {share} of the time{_waits_for(told)}, {burns}",
        "waits_for_locks": f"waits {share} of the time for locks or other threads, {burns}",
        "children": f"waits for child processes that burn {_time(told['child_cpu_ns'])} CPU per call",
        "holds_lock": f"{burns}, {held} of it under the interpreter's lock",
        "frees_lock": f"{burns}, {held} of it under the interpreter's lock",
        "own_threads": f"burns {_time(told['others_cpu_ns'])} CPU per call in threads of its own",
        "mixed": f"burns and waits: {burns}, waits {share} of the time{_waits_for(told)}",
        "moving": f"moving {what} takes {_time(moved)}, a call {_time(wall)}",
        "tiny": f"a call takes {_time(wall)}, less than moving it",
    }
    text = words[reason]
    if told.get("trial"):
        text += "; to see whether two threads beat one"
    if told.get("bar"):
        text += f"; not {_LANES[told['wanted']]}, because {_bar(told)}"
    if told.get("remembered"):
        text += "; remembered from earlier runs"
    return text


def _bar(told: dict[str, Any]) -> str:
    bars = {
        "unfinished": "too little is known of it yet",
        "deadly": "a worker died in it",
        "changes": f"it {told.get('doubt') or 'changes shared state'}",
        "not_proven": f"it {told.get('doubt') or 'may change what is shared'}",
        "arguments": "its arguments can be changed",
        "setup": "the executor has an initializer or recycles its workers",
        "drifted": "it burns more CPU in a thread than it did in a worker",
    }
    return bars[told["bar"]]


def _change(told: dict[str, Any], reason: str) -> str:
    if reason == "not_seen":
        return "a call"
    if reason == "unpicklable":
        return "a function and arguments that can be pickled"
    costs = {
        name: ns for name, ns in told["costs_ns"].items() if name != "caller" or told["place"] == "caller"
    }
    if told.get("bar"):
        text = f'nothing that is measured; `options(lane="thread")` if you know better than "{_bar(told)}"'
        return text if told["wanted"] == "thread" else "nothing that is measured"
    if reason == "waits_for_locks":
        return "a call that waits for something else"
    listed = ", ".join(f"{_time(ns)} in {_COSTS[name]}" for name, ns in costs.items())
    return f"other measurements: a call takes {listed}, with {told['slots']} at once on {told['cores']} cores"


_COSTS = {"process": "worker processes", "thread": "threads", "caller": "the caller"}


def _numbers(told: dict[str, Any]) -> list[tuple[str, str]]:
    if "wall_ns" not in told:
        return []
    threads = f", {told['calls_in_threads']} in threads" if told["calls_in_threads"] else ""
    earlier = ", others in earlier runs" if told.get("remembered") else ""
    scales = {True: "two beat one", False: "two do not beat one", None: ""}[told["scales"]]
    return [
        ("calls seen", f"{told['calls_in_workers']} in workers{threads}{earlier}"),
        ("a call takes", _time(told["wall_ns"])),
        ("CPU, lock held", _time(told["held_ns"])),
        ("CPU, lock free", _time(told["free_ns"])),
        ("CPU of other threads", _time(told["others_cpu_ns"])),
        ("CPU of child processes", _time(told["child_cpu_ns"])),
        ("waiting", _time(told["wait_ns"]) + _waits_for(told)),
        ("arguments", f"{_size(told['argument_bytes'])}, pickled in {_time(told['pickle_ns'])}"),
        ("result", _size(told["result_bytes"])),
        ("threads", scales),
    ]


def _moved(moved: dict[str, Any]) -> list[tuple[str, str]]:
    if not (moved["argument_bytes"] or moved["result_bytes"] or moved["saved_bytes"]):
        return []
    sizes = {name: _size(moved[f"{name}_bytes"]) for name in ("argument", "result", "saved")}
    return [
        ("moved in all", f"{sizes['argument']} of arguments, {sizes['result']} of results"),
        ("not moved", f"{sizes['saved']} lay in shared memory already"),
        ("copies of large buffers", str(moved["copies"])),
        ("time for that", _time(moved["seconds"] * 1e9)),
    ]


def _waits_for(told: dict[str, Any]) -> str:
    waits = {name: share for name, share in told["seen"].items() if name in _WAITS and share > 0}
    if not waits:
        return ""
    most = max(waits, key=lambda name: waits[name])
    return f" {_WAITS[most]}".rstrip()


def _percent(share: float) -> str:
    return f"{min(max(share, 0.0), 1.0) * 100:.0f} %"


def _time(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            value = ns / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.2g} {unit}"
    return f"{ns:.0f} ns"


def _size(size: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"
