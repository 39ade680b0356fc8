"""What a worker does when it has not the code that the user's process has under the same name (rule 5).

A function that can be imported travels as its name and a hash of its code. If the hashes differ, the module
was edited or reloaded since one of the two imported it, or was patched in the user's process. Before anything
of the function is run, the worker decides:

- A worker that starts now would import what is wanted: the file has it, and was changed after this worker
  began. So this one refuses and ends, in good order, and a new one runs the task. That is what happens after
  `importlib.reload`. It happens once for each change of the file, because the new worker is younger than
  that.
- A module that was loaded anew in the user's process has other data, perhaps, which is nobody's code: a
  worker that is older than its file ends likewise.
- It would not: the user's process still runs code that is in no file any more, or never was. Then the worker
  asks for the function by value, and runs that. For as long as it is so, the module goes by value from there.

What the user sees is what a call in his own process would give, either way, or one clear error: `Changed`.

A module that the template had imported in advance (rule 19) may be the older one too. Then the engine is
told, and the next template does without.
"""

from __future__ import annotations

import marshal
import posix
import sys

from rightlane import _definitions, _door

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Marks: TypeAlias = list[tuple[_definitions.Mark, _definitions.Fingerprint]]

__all__ = ["Changed", "is_renewable", "notice", "take_by_value"]

_CLOCK_STEP_S = 0.05  # files get their times from a clock that is coarser than ours


class Changed(Exception):
    """The worker's code is not the caller's, and the caller's cannot be had."""


def is_renewable(marks: Marks, started_s: float) -> bool:
    """Whether a worker that starts now would have what is wanted. `started_s`: when this one did."""
    on_disk: dict[str, set[bytes]] = {}
    for (module, qualname, wanted), found in marks:
        if not qualname:
            continue  # a new worker is younger than the file
        homes = {module, *(home for home, _ in (*wanted, *found))}
        for home in homes:
            if home not in on_disk:
                on_disk[home] = _hashes_on_disk(home)
        if not all(part in on_disk[home] for home, part in wanted):
            return False
        if found and all(part in on_disk[home] for home, part in found):
            return False
        if not any(_has_changed(home, started_s) for home in homes):
            return False
    return True


def _hashes_on_disk(module: str) -> set[bytes]:
    """Of all the code that an import of the module would compile or load now."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    try:
        todo = [spec.loader.get_code(spec.name)]  # type: ignore[union-attr]
    except Exception:  # no file, no source, no sense
        return set()
    found = set()
    while todo:
        code = todo.pop()
        if hasattr(code, "co_consts"):
            found.add(_definitions.code_hash(code))
            todo.extend(code.co_consts)
    return found


def _has_changed(module: str, since_s: float) -> bool:
    if _came_with_template(module):
        return True
    origin: Any = getattr(getattr(sys.modules.get(module), "__spec__", None), "origin", None)
    try:
        return posix.stat(origin).st_mtime >= since_s - _CLOCK_STEP_S
    except (OSError, TypeError, ValueError):
        return False


def _came_with_template(module: str) -> bool:
    preload: Any = sys.modules.get("rightlane._preload")
    return preload is not None and preload.has_brought(module)


def notice(marks: Marks) -> bytes | None:
    """What the engine should know before a worker takes this one's place, if anything."""
    for (module, _, _), _ in marks:
        if _came_with_template(module):
            return b"outdated\0%d\0%s" % (posix.getppid(), module.partition(".")[0].encode())
    return None


def take_by_value(definition_id: int, asked: int, marks: Marks, door: int | None) -> int:
    """Have what this definition means sent by value; raises `Changed` if that cannot be.

    `asked` is the definition that stands for it now, if not itself; returns which one does then.
    """
    _door.enter_worker(door)
    modules = sorted({module for (module, _, _), _ in marks})
    (module, qualname, _), _ = next((mark for mark in marks if mark[0][1]), marks[0])
    try:
        _, descriptor = _door.ask("value", " ".join([str(asked), *modules]))
        if descriptor is None:
            raise RuntimeError("nothing came")
        since, frames = marshal.loads(_read(descriptor))
    except RuntimeError as error:
        raise Changed(
            f"{module}.{qualname} is not in a worker what it is in the process that called it: "
            f"{', '.join(modules)} was changed in memory there, or its file after it was imported; "
            f"call importlib.reload() or start anew. It cannot be sent by value instead: {error}"
        ) from error
    if frames[0][0] == asked:
        raise Changed(f"{module}.{qualname} cannot be sent as the process that called it has it")
    _definitions.substitute(definition_id, frames, modules, since)
    return int(frames[0][0])


def _read(descriptor: int) -> bytes:
    try:
        parts = []
        while part := posix.read(descriptor, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        posix.close(descriptor)
