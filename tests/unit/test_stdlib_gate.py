"""The gate that runs CPython's tests (`scripts/stdlib.py`): it sees failures, hangs, crashes and orphans."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from support import alive, eventually

ROOT = Path(__file__).resolve().parents[2]
EXEMPTIONS = (ROOT / "tests/stdlib/exemptions.txt").read_text()

CASES = """
    import os, subprocess, sys, threading, time, unittest
    from concurrent import futures

    class Cases(unittest.TestCase):
        def test_passes(self): pass
        def test_fails(self): self.assertEqual(1, 2)
        def test_skips(self): self.skipTest("not here")
        def test_hangs(self): threading.Event().wait()
        def test_hangs_at_exit(self): threading.Thread(target=threading.Event().wait).start()
        def test_crashes(self): os.abort()
        def test_leaves(self): os._exit(0)
        def test_exits_badly(self):
            import atexit
            atexit.register(os._exit, 3)
        def test_orphan(self):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print("orphan", child.pid)
        def test_is_ours(self):
            self.assertIn("rightlane", futures.ProcessPoolExecutor.__module__)
            self.assertIn("rightlane", futures.thread.ThreadPoolExecutor.__module__)
            with futures.ProcessPoolExecutor(1) as pool:
                self.assertEqual(pool.submit(pow, 2, 3).result(), 8)
        def test_is_ours_in_children(self):
            from test.support.script_helper import assert_python_ok
            _, out, _ = assert_python_ok("-c", "import concurrent.futures as c; print(c.ProcessPoolExecutor)")
            self.assertIn(b"rightlane", out)
"""

# The server of a suite that is not in the list, with less patience.
SERVER = """
    import sys
    sys.path.insert(0, {scripts!r})
    import stdlib
    stdlib.TEST_LIMIT_S = 3
    stdlib.ORPHAN_GRACE_S = 1
    sys.exit(stdlib.serve({variant!r}, stdlib.Suite("cases", ("gate_cases",), "Cases", 1.0)))
"""


def outcomes(directory: Path, variant: str) -> dict[str, dict[str, Any]]:
    import cloudpickle

    import rightlane

    (directory / "gate_cases.py").write_text(textwrap.dedent(CASES))
    server = directory / "server.py"
    server.write_text(textwrap.dedent(SERVER.format(scripts=str(ROOT / "scripts"), variant=variant)))
    packages = [str(Path(module.__file__ or "").parents[1]) for module in (rightlane, cloudpickle)]
    process = subprocess.Popen(
        [sys.executable, str(server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), *packages])},
    )
    assert process.stdin and process.stdout
    try:
        ids = json.loads(process.stdout.readline())["ids"]
        print(json.dumps({"ids": ids, "jobs": 4}), file=process.stdin, flush=True)
        answers = [json.loads(line) for line in process.stdout]
    finally:
        process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()
    assert sorted(answer["id"] for answer in answers) == sorted(ids)
    return {answer["id"].rpartition(".test_")[2]: answer for answer in answers}


def test_every_kind_of_end_is_told(tmp_path: Path) -> None:
    pytest.importorskip("test.support.script_helper")
    found = outcomes(tmp_path, "ours")
    ends = {name: answer["outcome"] for name, answer in found.items()}
    assert ends == {
        "passes": "passed",
        "fails": "failed",
        "skips": "skipped",
        "hangs": "failed",
        "hangs_at_exit": "failed",
        "crashes": "failed",
        "leaves": "failed",
        "exits_badly": "failed",
        "orphan": "failed",
        "is_ours": "passed",
        "is_ours_in_children": "passed",
    }
    for name, text in {
        "fails": "1 != 2",
        "hangs": "had not ended after 3 s",
        "hangs_at_exit": "had not ended after 3 s",
        "crashes": f"status {-signal.SIGABRT}",
        "leaves": "without a verdict",
        "exits_badly": "left with status 3",
        "orphan": "left processes behind",
    }.items():
        assert text in found[name]["text"], (name, found[name])
    match = re.search(r"^orphan (\d+)$", found["orphan"]["text"], re.MULTILINE)
    assert match
    eventually(lambda: not alive(int(match[1])))


def test_the_standard_variant_is_the_standard_library(tmp_path: Path) -> None:
    found = outcomes(tmp_path, "standard")
    assert found["passes"]["outcome"] == "passed"
    assert found["is_ours"]["outcome"] == "failed"


def test_every_exemption_is_explained_to_users() -> None:
    """Each exempt test is named on the page of differences, and has a reason of its own."""
    page = (ROOT / "docs/differences.md").read_text()
    lines = [line for line in EXEMPTIONS.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        test, _, reason = line.partition(" ")
        assert test.count(".") == 2 and len(reason.split()) > 3, line
        assert f"`{test.rpartition('.')[2]}`" in page, (
            f"docs/differences.md does not say what {test} is about"
        )
    assert len({line.partition(" ")[0] for line in lines}) == len(lines)
