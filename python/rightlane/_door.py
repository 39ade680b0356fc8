"""The door: how a task asks the user's process for what only that has, and how it is answered (rule 21).

Worker side: `ask` sends a request in the middle of a task and waits for the answer. User's process: `attend`
starts the thread that answers, with the first worker; it ends with the engine's hub.

Protocol. All workers inherit one end of a pair of sockets through the template; the thread owns the other. A
request is one message: a word, an argument, and the descriptor of a fresh pair on which the asker waits. The
answer is one message on that: `+` and bytes, or `-` and a text that says what went wrong, perhaps with a
descriptor. What does not fit into a message travels as a memory file. So nothing is shared but the way in,
one request cannot be mistaken for another, and whoever dies half way leaves a closed descriptor behind. The
end has come when the thread reads an empty message: the hub shut the door, because no worker is left.

Why a thread of its own: the hub never runs Python code, the completion thread may stand in a callback that
waits for the very task which asks, and the user's threads may be anywhere. It sleeps in `recvmsg`, and until
somebody asks it imports nothing.

What may be asked: `tracker` (the descriptor of the resource tracker, which is started by the first such
request), `authkey` and `tempdir` of `multiprocessing`, `value` (a function that is by reference, by value).

A fork of the user's process waits for an answer under way, but for no longer than `_FORK_PATIENCE_S`: the
child must not inherit a half done import, nor the tracker's lock.
"""

from __future__ import annotations

import _socket
import _thread
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ask", "attend", "enter_worker", "join"]

_MOST_BYTES = 4096
_FORK_PATIENCE_S = 5.0
_JOIN_PATIENCE_S = 5.0
_INT_BYTES = 4  # a descriptor in a message of the kernel's

# Worker -------------------------------------------------------------------------------------------

_outside: int | None = None


def enter_worker(descriptor: int | None) -> None:
    """This process is a worker, and knocks here."""
    global _outside
    _outside = descriptor


def ask(word: str, argument: str = "") -> tuple[bytes, int | None]:
    """What the user's process answers: bytes, and a descriptor that is the caller's from here on.

    Raises RuntimeError if it cannot give what is asked for, or answers no more because it ends.
    """
    if _outside is None:
        raise RuntimeError("this process has no engine to ask")
    request = f"{word} {argument}".encode()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        try:
            door = _socket.socket(fileno=posix.dup(_outside))
            try:
                _send(door, request, theirs.fileno())
            finally:
                door.close()
        finally:
            theirs.close()
        answer, descriptor = _receive(ours)
    except OSError as error:
        raise RuntimeError(f"the process that this worker works for cannot be asked: {error}") from error
    finally:
        ours.close()
    if answer[:1] == b"+":
        return answer[1:], descriptor
    reason = answer[1:].decode(errors="replace") or "it is ending"
    raise RuntimeError(f"the process that this worker works for cannot give it the {word}: {reason}")


# Both ---------------------------------------------------------------------------------------------


def _send(socket: Any, message: bytes, descriptor: int | None) -> None:
    ancillary = []
    if descriptor is not None:
        data = descriptor.to_bytes(_INT_BYTES, sys.byteorder)
        ancillary.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data))
    socket.sendmsg([message], ancillary, _socket.MSG_NOSIGNAL)


def _receive(socket: Any) -> tuple[bytes, int | None]:
    space = _socket.CMSG_SPACE(_INT_BYTES)
    message, ancillary, _, _ = socket.recvmsg(_MOST_BYTES, space, _socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS and len(data) >= _INT_BYTES:
            return message, int.from_bytes(data[:_INT_BYTES], sys.byteorder)
    return message, None


# User's process -----------------------------------------------------------------------------------

_inside: Any = None  # the socket of the thread that attends
_attendant: Any = None
_answering = _thread.allocate_lock()  # held by an answer that imports, or takes locks of the standard library
_known_to_fork = False


def attend() -> None:
    """Start the thread that answers, unless the hub's door is attended to. Any thread may call this."""
    global _inside, _attendant, _known_to_fork
    import os
    import threading

    from rightlane import _native

    if not _known_to_fork:
        _known_to_fork = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
        )
    descriptor = _native.take_door()
    if descriptor is None:
        return
    socket = _inside = _socket.socket(fileno=descriptor)
    try:
        thread = threading.Thread(target=_serve, args=(socket,), name="rightlane-door", daemon=True)
        thread.start()
    except BaseException as error:
        # No thread is to be had, or Ctrl-C came: who asks will be told that nobody answers.
        socket.close()
        if isinstance(error, RuntimeError):
            return
        raise
    _attendant = thread


def join() -> None:
    """Wait for the thread to end, which it does with the hub; for long only if it answers with the user's
    code.
    """
    attendant = _attendant
    if attendant is not None and attendant.ident != _thread.get_ident():
        attendant.join(_JOIN_PATIENCE_S)


def _serve(socket: Any) -> None:
    try:
        while True:
            message, descriptor = _receive(socket)
            if not message:
                return
            if descriptor is None:
                continue  # not a request of ours
            reply = _socket.socket(fileno=descriptor)
            try:
                _reply(reply, message)
            finally:
                reply.close()
    except OSError:
        pass  # nobody can be heard any more
    finally:
        socket.close()


def _reply(reply: Any, message: bytes) -> None:
    word, _, argument = message.decode(errors="replace").partition(" ")
    given: int | None = None
    try:
        answer, given = _ANSWERS[word](argument)
        answer = b"+" + answer
    except BaseException as error:
        answer = f"-{type(error).__name__}: {error}".encode()[: _MOST_BYTES // 2]
    try:
        # It is the first message on this socket: there is room for it.
        _send(reply, answer, given)
    except OSError:
        pass  # who asked is gone
    finally:
        if given is not None:
            posix.close(given)


def _tracker(_: str) -> tuple[bytes, int]:
    with _answering:
        from multiprocessing import resource_tracker

        descriptor: Any = resource_tracker._resource_tracker.getfd()
        return b"", posix.dup(descriptor)


def _authkey(_: str) -> tuple[bytes, None]:
    with _answering:
        from multiprocessing import process

        return bytes(process.current_process().authkey), None


def _tempdir(_: str) -> tuple[bytes, None]:
    with _answering:
        import os
        from multiprocessing import util

        return os.fsencode(util.get_temp_dir()), None


def _value(argument: str) -> tuple[bytes, int]:
    # Not while `_answering`: this runs the user's pickling code, and waits for whoever makes a definition.
    import marshal

    from rightlane import _byvalue

    number, *modules = argument.split(" ")
    data = memoryview(marshal.dumps(_byvalue.frames_by_value(int(number), modules)))
    descriptor = posix.memfd_create("rightlane-value", posix.MFD_CLOEXEC)
    try:
        while data:
            data = data[posix.write(descriptor, data) :]
        posix.lseek(descriptor, 0, 0)
    except BaseException:
        posix.close(descriptor)
        raise
    return b"", descriptor


_ANSWERS: dict[str, Any] = {
    "tracker": _tracker,
    "authkey": _authkey,
    "tempdir": _tempdir,
    "value": _value,
}

_forking: set[int] = set()  # threads that hold the lock across a fork


def _before_fork() -> None:
    if _answering.acquire(timeout=_FORK_PATIENCE_S):
        _forking.add(_thread.get_ident())


def _after_fork_in_parent() -> None:
    if _thread.get_ident() in _forking:
        _forking.discard(_thread.get_ident())
        _answering.release()


def _after_fork_in_child() -> None:
    global _inside, _attendant, _answering
    socket, _inside, _attendant = _inside, None, None
    _answering = _thread.allocate_lock()
    _forking.clear()
    if socket is not None:
        socket.close()
