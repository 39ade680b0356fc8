"""State of another module, for functions that change it or only read it."""

from __future__ import annotations

from typing import Any

debug = False
level: int | None = None
options: dict[str, Any] = {"depth": 1}
history: list[int] = []


def remember(value: int) -> None:
    history.append(value)


def depth() -> int:
    return int(options["depth"])
