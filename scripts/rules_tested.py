"""Checks that every rule which is built and testable is named by a test.

docs/design/rules.md says for each rule whether it is built and what tests it. Where that line shows
`rule N`, at least one test must say so in its docstring ("rule 12"), or in its doc comment if it is
written in Rust. Also checks that the page still has the rules 1 to 33 in order: other pages, tests
and comments cite those numbers.

Prints what is missing, one line each; exit status 1 if anything is.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "design" / "rules.md"
RULES = range(1, 34)


def rules_on_page() -> dict[int, tuple[str, str]]:
    """Number: (status line, tested-by line)."""
    found: dict[int, tuple[str, str]] = {}
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        number = re.match(r"(\d+)\. ", section)
        status = re.search(r"^- \*\*Status:\*\* (.+)$", section, re.MULTILINE)
        tested = re.search(r"^- \*\*Tested by:\*\* (.+)$", section, re.MULTILINE)
        if number is None or status is None or tested is None:
            raise SystemExit(f"{PAGE}: malformed: {section.splitlines()[0]}")
        found[int(number[1])] = (status[1], tested[1])
    return found


def python_test_docs() -> Iterator[str]:
    """Docstrings of test functions, and of the classes that hold some."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("Test" if isinstance(node, ast.ClassDef) else "test"):
                yield ast.get_docstring(node) or ""


def rust_test_docs() -> Iterator[str]:
    """Doc comments of functions marked #[test], also inside macros such as proptest!."""
    for path in sorted((ROOT / "crates").rglob("*.rs")):
        doc: list[str] = []
        is_test = False
        for line in map(str.strip, path.read_text().splitlines()):
            if line.startswith("///"):
                doc.append(line[3:])
            elif line.startswith("#["):
                is_test = is_test or line.startswith("#[test]")
            else:
                if is_test:
                    yield "\n".join(doc)
                doc = []
                is_test = False


def cited(doc: str) -> set[int]:
    """The rules that a docstring names: "rule 12", "rules 5, 6 and 8", "rules 5 to 7"."""
    numbers = {int(number) for number in re.findall(r"\brule\s+(\d+)", doc, re.IGNORECASE)}
    for several in re.findall(r"\brules\s+(\d+(?:(?:\s*,\s*|\s+and\s+|\s+to\s+)\d+)*)", doc, re.IGNORECASE):
        for part in re.split(r",|and", several):
            ends = [int(number) for number in part.split("to")]
            numbers.update(range(ends[0], ends[-1] + 1))
    return numbers


def main() -> int:
    page = rules_on_page()
    problems = []
    if list(page) != list(RULES):
        problems.append(f"{PAGE.name}: the rules are not 1 to {RULES[-1]} in order: {list(page)}")
    named: set[int] = set()
    for doc in [*python_test_docs(), *rust_test_docs()]:
        named |= cited(doc)
    for number, (status, tested) in page.items():
        if f"`rule {number}`" in tested and status.startswith("built") and number not in named:
            problems.append(f"rule {number} is built, but no test names it in its docstring")
    for number in sorted(named - set(page)):
        problems.append(f"a test names rule {number}, which is not on the page")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
