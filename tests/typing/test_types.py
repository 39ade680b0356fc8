"""The face is fully typed: `mypy --strict` on a user's file finds the types it should, and the errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_a_strict_checker_agrees(tmp_path: Path) -> None:
    """`py.typed` is shipped and every public name is typed."""
    pytest.importorskip("mypy", reason="mypy is not installed for this Python")
    source = Path(__file__).with_name("check_face.py")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(source)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
