"""A loopback HTTP server for the demo: serves the files below a directory, each after a fixed latency.

`python latency_server.py DIRECTORY LATENCY_S` prints the port it listens on and serves until its standard
input ends. The program that started it holds the other end of that pipe, so the server ends with it,
however it ends. One event loop serves any number of connections; each carries one request.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from urllib.parse import unquote

BACKLOG = 4096
REQUEST_BYTES = 16 * 1024


def respond(root: Path, request: bytes) -> bytes:
    """The whole response to a request's head."""
    words = request.split(None, 2)
    if len(words) < 3 or words[0] != b"GET":
        return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    path = (root / unquote(words[1].decode("ascii", "replace")).lstrip("/")).resolve()
    if root not in path.parents or not path.is_file():
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    body = path.read_bytes()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def serve(root: Path, latency_s: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(latency_s)
            writer.write(respond(root, request))
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the client went away, or is none of ours
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=BACKLOG, limit=REQUEST_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    server.close()


if __name__ == "__main__":
    # Ctrl-C at the terminal is for the program that started it; that one's end is the signal here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(Path(sys.argv[1]).resolve(), float(sys.argv[2])))
