"""websockets: its asyncio server on uvloop and its ``broadcast``, with HTTP for publishers.

It follows websockets.readthedocs.io, "Broadcasting". The library serves no request with a body, so
publishers use the next port, with HTTP parsed by httptools.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from typing import cast

import httptools
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def subscribe(connection: ServerConnection) -> None:
    assert connection.request is not None
    members = rooms[connection.request.path.split("/")[2]]
    members.add(connection)
    try:
        await connection.wait_closed()
    finally:
        members.discard(connection)


class Publisher(asyncio.Protocol):
    """One keep-alive connection of a publisher."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        for notification in json.loads(self._body)["notifications"]:
            targets = notification.pop("rooms")
            text = json.dumps(notification, separators=(",", ":"))
            for room in targets:
                broadcast(rooms.get(room, ()), text)
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b'Content-Length: 16\r\n\r\n{"success":true}'
        )


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(Publisher, "127.0.0.1", port + 1)
    async with serve(subscribe, "127.0.0.1", port, compression=None, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
