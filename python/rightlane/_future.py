"""`rightlane.Future`: one object, a `concurrent.futures.Future` that can also be awaited."""

from __future__ import annotations

import concurrent.futures

from rightlane import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, TypeVar

    T = TypeVar("T")

    class _Bases(concurrent.futures.Future[T]):
        def _wait(self, timeout: float | None = None) -> bool: ...
        def _call_back(self, callback: Callable[[Any], object]) -> None: ...

else:
    T = object  # at run time the parameter of `Future[T]` means nothing, and `typing` is slow to import

    class _Bases(_native.FutureCore, concurrent.futures.Future):
        __slots__ = ()


class Future(_Bases[T]):
    """The outcome of a task, now or later.

    A real `concurrent.futures.Future`: `result`, `exception`, `cancel`, `add_done_callback` and the rest
    behave as documented there, `concurrent.futures.wait`, `as_completed` and `asyncio.wrap_future` accept it.
    It can also be awaited: `await future` waits in the running event loop without blocking it, and cancelling
    the awaiting task cancels the future, if it has not been claimed.

    `cancel()` succeeds until a worker or a thread has claimed the task; `running()` is true from then on.
    Callbacks run on the engine's completion thread, or at once in the caller if the future is done. A thread
    that waits in `result()` never runs another future's callbacks.

    Futures are made by `Executor.submit`. Any thread may use them. In a forked child, futures that were not
    done are cancelled.

    >>> import rightlane as rl
    >>> with rl.Executor() as ex:
    ...     future = ex.submit(sum, [1, 2, 3])
    ...     future.result(timeout=60)
    6
    """

    __slots__ = ()

    def __init__(self) -> None:
        # The standard class would make its condition here; ours is made when somebody asks for it.
        pass

    def __await__(self) -> Generator[Any, None, T]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        # asyncio reads futures by this from Python 3.14 on: (done, cancelled, result, exception).
        if not self.done():
            return False, False, None, None
        if self.cancelled():
            return True, True, None, None
        exception = self.exception()
        return True, False, None if exception is not None else self.result(), exception
