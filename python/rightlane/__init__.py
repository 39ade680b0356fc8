"""Give it functions; it puts each in the right lane: worker processes, threads or inline.

    import rightlane as rl

    with rl.Executor() as ex:
        future = ex.submit(pow, 2, 10)
        print(future.result(), list(ex.map(abs, [-1, -2])))

Names are loaded when they are first used: worker processes import this package too, and must not pay for what
only the user's process needs.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rightlane import futures as futures
    from rightlane._compare import Comparison as Comparison
    from rightlane._compare import Row as Row
    from rightlane._compare import compare as compare
    from rightlane._errors import BrokenExecutor as BrokenExecutor
    from rightlane._errors import DeserializationError as DeserializationError
    from rightlane._errors import MemoryWarning as MemoryWarning
    from rightlane._errors import QueueFull as QueueFull
    from rightlane._errors import RemoteTraceback as RemoteTraceback
    from rightlane._errors import RightlaneError as RightlaneError
    from rightlane._errors import SerializationError as SerializationError
    from rightlane._errors import SharedStateError as SharedStateError
    from rightlane._errors import SharedStateWarning as SharedStateWarning
    from rightlane._errors import WorkerLost as WorkerLost
    from rightlane._executor import Executor as Executor
    from rightlane._executor import ExecutorView as ExecutorView
    from rightlane._future import Future as Future
    from rightlane._memory import Shared as Shared
    from rightlane._memory import asarray as asarray
    from rightlane._memory import empty as empty
    from rightlane._memory import share as share
    from rightlane._pool import Pool as Pool
    from rightlane._pool import ThreadPool as ThreadPool
    from rightlane._shared import map as map
    from rightlane._shared import submit as submit

__all__ = [
    "BrokenExecutor",
    "Comparison",
    "DeserializationError",
    "Executor",
    "ExecutorView",
    "Future",
    "MemoryWarning",
    "Pool",
    "QueueFull",
    "RemoteTraceback",
    "RightlaneError",
    "Row",
    "SerializationError",
    "Shared",
    "SharedStateError",
    "SharedStateWarning",
    "ThreadPool",
    "WorkerLost",
    "__version__",
    "asarray",
    "compare",
    "empty",
    "share",
    "submit",
]  # and `map`, which is left out so that `import *` does not hide the built-in one

__version__ = "0.1.0"

_HOME = {
    "BrokenExecutor": "_errors",
    "Comparison": "_compare",
    "DeserializationError": "_errors",
    "Executor": "_executor",
    "ExecutorView": "_executor",
    "Future": "_future",
    "Pool": "_pool",
    "MemoryWarning": "_errors",
    "QueueFull": "_errors",
    "RemoteTraceback": "_errors",
    "RightlaneError": "_errors",
    "Row": "_compare",
    "SerializationError": "_errors",
    "Shared": "_memory",
    "SharedStateError": "_errors",
    "SharedStateWarning": "_errors",
    "ThreadPool": "_pool",
    "WorkerLost": "_errors",
    "asarray": "_memory",
    "compare": "_compare",
    "empty": "_memory",
    "map": "_shared",
    "share": "_memory",
    "submit": "_shared",
}


def __getattr__(name: str) -> object:
    if name == "futures":
        __import__(f"{__name__}.futures")
        return sys.modules[f"{__name__}.futures"]
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    __import__(f"{__name__}.{home}")
    value = getattr(sys.modules[f"{__name__}.{home}"], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *__all__})
