"""Runs the scripts of the unit tests, each as `__main__` of an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(script: str, directory: Path, *flags: str, stdin: str | None = None) -> str:
    """Run a script as `__main__` in an interpreter of its own; its output. A failure shows its traceback."""
    file = directory / "script.py"
    folders = [str(Path(__file__).parent), str(directory)]
    file.write_text(f"import sys; sys.path[:0] = {folders!r}\n{script}")
    done = subprocess.run(
        [sys.executable, *flags, str(file)],
        env=_environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=directory,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
