"""What `concurrent.futures.process` offers."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from rightlane._drop_in import ProcessPoolExecutor

__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]
