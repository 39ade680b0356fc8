"""What code in the wild reads of a standard pool's insides, as facts about the engine.

`WorkerProcess`, in the shape of `multiprocessing.Process`, stands for one worker: for code that lists,
watches or kills workers. It holds a pidfd that the engine gave out, so it never means another process that
got the same number. It does not know how its process ended: workers are the template's children, and only
their parent learns that (rule 12). `Supervision` stands for the thread that a standard pool has for this,
`Backlog` for the queue in front of its workers. None of them keeps a pool that nobody holds from ending.
"""

from __future__ import annotations

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rightlane import _native

_BIRTH_PATIENCE_S = 10.0


class WorkerProcess:
    """One worker process: `pid`, `name`, `sentinel`, `is_alive`, `terminate`, `kill`, `join`."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self._pidfd = pidfd
        self.pid = pid
        self.name = f"rightlane-worker-{pid}"
        self.daemon = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pid={self.pid} {'started' if self.is_alive() else 'stopped'}>"

    def __del__(self) -> None:
        os.close(self._pidfd)

    @property
    def ident(self) -> int:
        """The process id."""
        return self.pid

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable once the process has ended, as `multiprocessing.connection.wait`
        takes."""
        return self._pidfd

    @property
    def exitcode(self) -> None:
        """None: the exit status belongs to the template. Futures say how a worker ended (`WorkerLost`)."""
        return None

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return not self._ended(0)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def join(self, timeout: float | None = None) -> None:
        """Wait until the process has ended, or for `timeout` seconds."""
        self._ended(None if timeout is None else max(timeout, 0))

    def _signal(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass

    def _ended(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))


def worker_processes(engine: _native.Engine) -> dict[int, WorkerProcess]:
    """The living workers by pid, in the order in which they were started.

    Those that the template is just forking have no pid yet; that takes a millisecond or two and is waited
    for, since a standard pool has started its process when `submit` returns.
    """
    deadline = time.monotonic() + _BIRTH_PATIENCE_S
    while True:
        born, awaited = engine.worker_handles()
        found = {pid: WorkerProcess(pid, pidfd) for pid, pidfd in born}
        if not awaited or time.monotonic() > deadline:
            return found
        time.sleep(0.001)


class Supervision:
    """Lasts as long as the pool: until everything accepted is done and every worker has ended after a
    shutdown."""

    name = "rightlane-hub"
    daemon = True

    def __init__(self, engine: _native.Engine) -> None:
        self._engine = engine.view()

    def is_alive(self) -> bool:
        """Whether the pool has work or workers left, or can get any."""
        return not self._engine.drained

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the pool, or for `timeout` seconds."""
        self._engine.wait_drained(timeout)


class Backlog:
    """The tasks that were accepted and have not ended."""

    def __init__(self, engine: _native.Engine) -> None:
        self._engine = engine.view()

    def __len__(self) -> int:
        return len(self._engine.open_tasks())

    def qsize(self) -> int:
        """How many there are, running ones included; a map counts as one."""
        return len(self)

    def empty(self) -> bool:
        """Whether there are none."""
        return not len(self)

    def join_thread(self) -> None:
        """Return: no thread feeds this."""
