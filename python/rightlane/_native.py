"""The one place that imports the compiled half. Everything else says `_native.X`."""

from __future__ import annotations

from rightlane._core import (
    Definition,
    Engine,
    FutureCore,
    MapResults,
    WorkerSeat,
    after_fork_in_child,
    after_fork_in_parent,
    allow_blas_threads,
    before_fork,
    begin_exit,
    cli_main,
    compare,
    cpu_budget,
    retire_completions,
    serve_template,
    serve_worker,
    set_template_program,
    stop_completions,
    want_site,
)

__all__ = [
    "Definition",
    "Engine",
    "FutureCore",
    "MapResults",
    "WorkerSeat",
    "after_fork_in_child",
    "after_fork_in_parent",
    "allow_blas_threads",
    "before_fork",
    "begin_exit",
    "cli_main",
    "compare",
    "cpu_budget",
    "retire_completions",
    "serve_template",
    "serve_worker",
    "set_template_program",
    "stop_completions",
    "want_site",
]
