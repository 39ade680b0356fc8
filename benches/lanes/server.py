"""The server of the workloads that talk HTTP, in a process of its own: prints its port, ends with its input.

`/after/20` answers after 20 ms, any number at once. `/paced/20` lets 50 requests a second through, in order,
and answers each 20 ms after its turn.
"""

from __future__ import annotations

import asyncio
import sys
import time

BODY = b"x" * 1000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY)
PACE_S = 1 / 50

_next_turn = 0.0


def _delay_s(path: str) -> float:
    global _next_turn
    _, kind, milliseconds = path.split("/")
    delay_s = int(milliseconds) / 1000
    if kind == "paced":
        now = time.monotonic()
        turn = max(now, _next_turn)
        _next_turn = turn + PACE_S
        delay_s += turn - now
    return delay_s


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        request = await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(_delay_s(request.split(b" ", 2)[1].decode()))
        writer.write(ANSWER)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _serve() -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve())
