"""What `concurrent.futures.thread` offers."""

from __future__ import annotations

from concurrent.futures.thread import BrokenThreadPool

from rightlane._drop_in import ThreadPoolExecutor

__all__ = ["BrokenThreadPool", "ThreadPoolExecutor"]
