"""Programs written for `multiprocessing.Pool` print the same when only its import line says `rightlane`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import Start

SCRIPTS = sorted((Path(__file__).parent / "dropin").glob("pool_*.py"))


def comparable(output: str) -> list[str]:
    """What a program printed, without workers' names and the dots of waiting; sorted where order is open."""
    output = re.sub(r"\S+ says", "somebody says", output)
    output = re.sub(r"[ .]+$", "", output, flags=re.MULTILINE)
    parts = re.split(r"^(Unordered .*)$", output, flags=re.MULTILINE)
    if len(parts) == 1:
        return output.splitlines()
    before, title, after = parts
    unordered, blank, rest = after.partition("\n\n")
    return [*before.splitlines(), title, *sorted(unordered.splitlines()), blank, *rest.splitlines()]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in SCRIPTS])
def test_only_the_import_changes(path: Path, start: Start) -> None:
    standard = path.read_text()
    ours = standard.replace("from multiprocessing import Pool\n", "from rightlane import Pool\n")
    assert ours != standard
    expected = start(standard).succeeds()
    assert expected.count("\n") > 7
    assert comparable(start(ours).succeeds()) == comparable(expected)


def test_both_are_there() -> None:
    assert len(SCRIPTS) == 2
