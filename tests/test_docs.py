"""The examples in the documents do what they say: each is run as a user would run it.

Blocks fenced as ```python in Markdown are scripts of their own, without a `__main__` guard; what is not
meant to run is fenced ```text or ```console. Docstring examples (`>>>`) of the public names are doctests.
Every example gets a fresh interpreter, so none leans on what an earlier one left behind.
"""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

import rightlane.futures

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PATIENCE_S = 100
DROP_INS = ["futures.ProcessPoolExecutor", "futures.ThreadPoolExecutor", "_drop_in._Pool"]


def python_blocks() -> list[tuple[str, str]]:
    """(page:line, source) of each block, padded so that tracebacks show the line of the page."""
    blocks = []
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, found.start()) + 2
            blocks.append((f"{page.relative_to(ROOT)}:{line}", "\n" * (line - 1) + found[1]))
    return blocks


def names_with_examples() -> list[str]:
    """The public names, and their public methods, that have examples in their docstrings."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = []
    for name in ["", "map", *rightlane.__all__, *DROP_INS]:
        target = attrgetter(name)(rightlane) if name else rightlane
        # The module's own docstring only: what it holds comes under its own name.
        documented = [target.__doc__] if not name else [test.docstring for test in finder.find(target, name)]
        if any(">>>" in (text or "") for text in documented):
            names.append(name)
    return names


def run_script(path: Path, *arguments: str) -> None:
    """Runs a script to its end; what it leaves behind is killed, and a failure shows all it printed."""
    process = subprocess.Popen(
        [sys.executable, str(path), *arguments],
        cwd=path.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"did not end within {PATIENCE_S} s; it printed:\n{output}")
    assert process.returncode == 0, output


@pytest.mark.parametrize("source", [pytest.param(source, id=where) for where, source in python_blocks()])
def test_python_blocks_run_as_scripts(source: str, tmp_path: Path) -> None:
    """Each ```python block of the documents runs to its end as a script."""
    script = tmp_path / "example.py"
    script.write_text(source)
    run_script(script)


# Functions that an example defines belong to `__main__`, as if typed at a prompt.
DOCTEST_DRIVER = """\
import doctest
import sys

from operator import attrgetter

import rightlane.futures

name = sys.argv[1]
target = attrgetter(name)(rightlane) if name else rightlane
namespace = {"__name__": "__main__", "rl": rightlane, "rightlane": rightlane}
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
finder = doctest.DocTestFinder(recurse=bool(name))
for test in finder.find(target, name or "rightlane", module=False, globs=namespace):
    runner.run(test)
assert runner.tries, "no example was found"
sys.exit(1 if runner.failures else 0)
"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=name or "rightlane") for name in names_with_examples()]
)
def test_docstring_examples(name: str, tmp_path: Path) -> None:
    """The `>>>` examples of each public name print what they say."""
    script = tmp_path / "driver.py"
    script.write_text(DOCTEST_DRIVER)
    run_script(script, name)


def test_the_readme_has_an_example() -> None:
    """The first page opens with something to run; a changed fence must not hide it from the test above."""
    assert any(where.startswith("README.md:") for where, _ in python_blocks())
