"""A TCP load balancer: one address in front of several servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from .loop_thread import LoopThread

_CHUNK_BYTES = 64 * 1024


class Balancer:
    """Leads the first connection to the first server, the next one to the next, and so on.

    A server that refuses a connection is passed over. The balancer runs in a thread of its own, and
    buffers little, so that a peer that does not read is noticed by the other one.

    Attributes:
        url: where clients connect.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        parts = [urlsplit(url) for url in urls]
        self._servers = [(str(each.hostname), each.port or 80) for each in parts]
        self._numbers = itertools.count()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = LoopThread("tests-balancer")

    def __enter__(self) -> Self:
        self._thread.__enter__()
        serving = asyncio.start_server(self._accept, sock=self._listener, limit=_CHUNK_BYTES)
        self._server = self._thread.run(serving)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.run(self._close())
        self._thread.__exit__(kind, error, trace)

    async def _close(self) -> None:
        self._server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Counted here, so that the order of connections decides.
        carrying = asyncio.get_running_loop().create_task(
            self._carry(reader, writer, next(self._numbers))
        )
        self._connections.add(carrying)
        carrying.add_done_callback(self._connections.discard)

    async def _connect(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        count = len(self._servers)
        for host, port in [self._servers[(number + n) % count] for n in range(count)]:
            with contextlib.suppress(ConnectionRefusedError):
                return await asyncio.open_connection(host, port, limit=_CHUNK_BYTES)
        raise ConnectionRefusedError

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        writers = [writer]
        try:
            answers, requests = await self._connect(number)
            writers.append(requests)
            for each in writers:
                each.transport.set_write_buffer_limits(high=0)
                sock = each.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _CHUNK_BYTES)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHUNK_BYTES)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, requests))
                pumps.create_task(_pump(answers, writer))
            for each in writers:
                each.close()
        except* OSError:
            pass  # one peer has reset its connection; the other one's is reset below
        finally:
            for each in writers:
                if not each.is_closing():
                    each.transport.abort()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK_BYTES):
        target.write(chunk)
        await target.drain()
    with contextlib.suppress(OSError):  # it has closed already
        target.write_eof()
