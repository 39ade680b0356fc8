"""Programs written for `concurrent.futures` print the same when only their import lines say `rightlane`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import Start

SCRIPTS = sorted(
    path
    for path in (Path(__file__).parent / "dropin").glob("*.py")
    if re.search(r"^from concurrent[. ]", path.read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in SCRIPTS])
def test_only_the_import_changes(path: Path, start: Start) -> None:
    standard = path.read_text()
    ours, changed = re.subn(r"^from concurrent(?=[. ])", "from rightlane", standard, flags=re.MULTILINE)
    assert changed and "concurrent.futures import" not in ours
    expected = start(standard).succeeds()
    assert expected.count("\n") > 3
    assert start(ours).succeeds() == expected


def test_there_are_three() -> None:
    assert len(SCRIPTS) == 3
