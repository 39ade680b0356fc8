"""Counts the instructions of the hot paths, and compares with the counts that are committed.

Counts hardly depend on what else the machine does, unlike times; they do depend on the compiler, on the C
library and on what the processor can do. So `benches/instructions.json` has them by machine, and on a machine
that it does not know there is nothing to compare: `--update` adds it. What is counted is in
`benches/instructions/paths.rs`, which runs under valgrind by way of gungraun.

Where valgrind or gungraun's runner is missing this says so in one line and is content; `--install` builds the
runner, which takes minutes once. The last line is "N passed, N failed" or begins with "skipped". Standard
library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
TOOLS = TARGET / "tools"
MANIFEST = ROOT / "benches" / "instructions" / "Cargo.toml"
COUNTS = ROOT / "benches" / "instructions.json"
RUNNER = "gungraun-runner"

# How far a count may be from the committed one, both ways: what got better by more is to be kept.
TOLERANCE = 0.05


def output_of(*command: str) -> str:
    """What a command prints; empty if it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine() -> dict[str, str]:
    """What the counts depend on."""
    rustc = output_of("rustc", "-vV")
    compiler = re.findall(r"^(?:release|commit-hash|host|LLVM version): (.*)$", rustc, re.MULTILINE)
    targeted = re.findall(r"^target_feature=\"(.*)\"$", output_of("rustc", "--print", "cfg"), re.MULTILINE)
    cpu = Path("/proc/cpuinfo").read_text()
    # x86-64 calls them flags, aarch64 Features; all cores have the same.
    able = re.search(r"^(?:flags|Features)\s*: (.*)$", cpu, re.MULTILINE)
    return {
        "compiler": " ".join(compiler),
        "target features": " ".join(sorted(targeted)),
        "rust flags": os.environ.get("RUSTFLAGS", ""),
        "processor features": digest(" ".join(sorted(able[1].split())) if able else ""),
        "C library": " ".join(platform.libc_ver()),
        "valgrind": output_of("valgrind", "--version"),
    }


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def runner_version() -> str:
    """The version that the library was pinned to; the runner's must be the same."""
    found = re.search(r'^gungraun = "=([0-9.]+)"$', MANIFEST.read_text(), re.MULTILINE)
    assert found, f"{MANIFEST} does not pin gungraun"
    return found[1]


def search_path() -> str:
    return f"{TOOLS / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"


def has_runner() -> bool:
    found = shutil.which(RUNNER, path=search_path())
    return found is not None and output_of(found, "--version").split()[-1:] == [runner_version()]


def install_runner() -> bool:
    command = ["cargo", "install", "--quiet", "--locked", "--force", "--root", str(TOOLS)]
    print(f"installing {RUNNER} {runner_version()} into {TOOLS}", flush=True)
    return subprocess.run([*command, f"{RUNNER}@{runner_version()}"]).returncode == 0


def count(*, locked: bool) -> dict[str, int] | None:
    """Builds and runs the paths: instructions by name. None if that failed; what cargo said is printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GUNGRAUN_")}
    environment["GUNGRAUN_HOME"] = str(TARGET / "instructions" / "gungraun")
    environment["PATH"] = search_path()
    command = ["cargo", "bench", "--quiet", "--manifest-path", str(MANIFEST), "--bench", "paths"]
    command += ["--target-dir", str(TARGET / "instructions"), *(["--locked"] if locked else [])]
    command += ["--", "--output-format=json"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if run.returncode != 0:
        print(run.stdout, end="")
        if locked:
            print("if cargo says that its lock file must be updated: make bench-check UPDATE=1")
        return None
    counts = {}
    for line in run.stdout.splitlines():
        summary = json.loads(line)
        name = summary["module_path"].removeprefix("paths::") + "::" + summary["id"]
        (profile,) = summary["profiles"]
        found = profile["data"]["total"]["metrics"]["Ir"]["values"]
        counts[name] = int(found["new"])
    return counts


def compare(old: dict[str, int], new: dict[str, int]) -> bool:
    """Prints each path with its change, and closes with how many held."""
    failed = 0
    for name in sorted({**old, **new}):
        if name not in new or name not in old:
            failed += 1
            print(f"  {name}: {'not counted any more' if name not in new else 'has no committed count'}")
            continue
        change = new[name] / old[name] - 1
        held = abs(change) <= TOLERANCE
        failed += not held
        note = "" if held else f"  beyond ±{TOLERANCE:.0%}"
        print(f"  {name}: {old[name]:,} -> {new[name]:,} ({change:+.1%}){note}")
    if failed:
        print("if that is meant: make bench-check UPDATE=1, and say why in the commit")
    print(f"{len({**old, **new}) - failed} passed, {failed} failed")
    return not failed


def skipped(why: str) -> int:
    print(f"skipped, {why}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="instructions.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="build the runner if it is missing")
    parser.add_argument(
        "--update", action="store_true", help="write this machine's counts instead of comparing"
    )
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        return skipped("valgrind is not installed")
    here = machine()
    key = digest(json.dumps(here, sort_keys=True))
    known = json.loads(COUNTS.read_text()) if COUNTS.exists() else {}
    if key not in known and not options.update:
        return skipped(
            f"{COUNTS.name} has no counts of this machine and compiler (make bench-check UPDATE=1)"
        )
    if not has_runner() and not (options.install and install_runner()):
        return skipped(f"{RUNNER} {runner_version()} is not installed (make bench-check builds it)")
    counts = count(locked=not options.update)
    if counts is None:
        print("0 passed, 1 failed")
        return 1
    if not options.update:
        return 0 if compare(known[key]["counts"], counts) else 1
    known[key] = {"machine": here, "counts": counts}
    COUNTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    print(f"{len(counts)} counts written to {COUNTS.relative_to(ROOT)}, machine {key}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
