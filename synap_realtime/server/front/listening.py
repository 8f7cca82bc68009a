"""What the connections of one server share: from the first one taken to the last one gone."""

from __future__ import annotations

import asyncio
import socket
import ssl

from ..node import Node
from .half_open import HalfOpen, Tracked
from .proxies import Proxies
from .requests import HttpConnection
from .silence import Silence

CUT_S = 3.0
"""After draining, who does not read or sent half a request is cut after so long."""


class Front:
    """The connections of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.half_open = HalfOpen(node.settings.max_half_open)
        self.silence = Silence(node.settings.silence_s)
        self.proxies = Proxies(node.settings.trusted_proxies)
        self.connections: set[Tracked] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Take connections from now on."""
        self.node.watch_loop()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpConnection(self), sock=listener, ssl=tls, backlog=2048
        )

    async def stop(self) -> None:
        """Drain; answer what was begun, then take nothing more and let go of the store."""
        await self.node.drain()
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.finish()
        loop = asyncio.get_running_loop()
        end = loop.time() + CUT_S
        while self.connections and loop.time() < end:  # noqa: ASYNC110 - a few looks
            await asyncio.sleep(0.02)
        for connection in tuple(self.connections):
            connection.end()
        self.half_open.close()
        self.silence.close()
        await asyncio.sleep(0)  # their ends are heard
        await self.node.close()
