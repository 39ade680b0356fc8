"""Three real jobs on real input, the source files of this interpreter's own standard library.

Each job runs serially, in processes and in threads, in several sizes; the table shows what each took, and
the verdict names the lane to use. `make demo` runs it, in about a minute on two cores.

This is a plain script: there is no `if __name__ == "__main__"` guard, and its functions run in worker
processes all the same.
"""

from __future__ import annotations

import ast
import hashlib
import http.client
import subprocess
import sys
import sysconfig
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import rightlane as rl

FETCHED_FILES = 300
LATENCY_S = 0.020
STDLIB = Path(sysconfig.get_path("stdlib")).resolve()


def source_files() -> list[str]:
    """Every source file of the standard library, without what was installed beside it."""
    return [
        str(path)
        for path in sorted(STDLIB.rglob("*.py"))
        if path.is_file() and not {"site-packages", "dist-packages"} & set(path.parts)
    ]


def count_nodes(path: str) -> int | str:
    """How many nodes a file's syntax tree has, or why it does not parse (some test data must not)."""
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError) as error:
        return f"error: {type(error).__name__}"
    return sum(1 for _ in ast.walk(tree))


def compress_and_hash(path: str) -> tuple[int, str]:
    """A file's compressed size, and the hash of what it holds."""
    content = Path(path).read_bytes()
    return len(zlib.compress(content)), hashlib.sha256(content).hexdigest()


def fetch(request: tuple[int, str]) -> tuple[int, str]:
    """The status of a request to a port of this machine, and the hash of what came."""
    port, path = request
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, hashlib.sha256(response.read()).hexdigest()
    finally:
        connection.close()


@contextmanager
def latency_server(root: Path) -> Iterator[int]:
    """A server for the files below `root`, in a process of its own; the value is its port."""
    script = Path(__file__).with_name("latency_server.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(root), str(LATENCY_S)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()  # the server ends with its standard input
            try:
                server.wait(timeout=5)
            except subprocess.TimeoutExpired:
                server.kill()


def progress(line: str) -> None:
    print(f"  … {line}", flush=True)


def show(title: str, comparison: rl.Comparison) -> bool:
    print(f"\n{title}\n{comparison}\n", flush=True)
    return comparison.ok


# Some of the library's test data is odd on purpose; what the compiler thinks of it is not the point.
warnings.simplefilter("ignore", SyntaxWarning)
warnings.simplefilter("ignore", DeprecationWarning)

start_s = time.monotonic()
files = source_files()
size_mb = sum(Path(path).stat().st_size for path in files) / 1e6
print(f"{len(files):,} source files, {size_mb:.1f} MB, below {STDLIB}\n", flush=True)

all_well = show("Parse every file and count its nodes", rl.compare(count_nodes, files, progress=progress))
all_well &= show("Compress and hash every file", rl.compare(compress_and_hash, files, progress=progress))
with latency_server(STDLIB) as port:
    stride = max(1, len(files) // FETCHED_FILES)
    paths = ["/" + quote(str(Path(path).relative_to(STDLIB))) for path in files[::stride][:FETCHED_FILES]]
    all_well &= show(
        f"Fetch {len(paths)} files over HTTP, each {LATENCY_S * 1e3:.0f} ms away",
        rl.compare(fetch, [(port, path) for path in paths], progress=progress),
    )
print(f"done in {time.monotonic() - start_s:.0f} s")
sys.exit(0 if all_well else 1)
