"""The `rightlane` command: hands the command line to the Rust half, and is its host."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as a shell has it. The others are in
`crates/cli/src/exit.rs`."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    from rightlane import _compare, _native

    if argv is None:
        argv = sys.argv
        # As with `python -m`: a module beside the user is found. The script's own directory is not it.
        if not sys.flags.safe_path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
    progress = _compare.write_line(sys.stderr) if sys.stderr.isatty() else None
    try:
        code = _native.cli_main(argv, _compare.Host(progress), sys.stdout, sys.stderr)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`). Keep the interpreter's last flush from saying so again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
