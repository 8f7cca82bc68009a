"""An echo server on the room server's WebSocket code, for Autobahn's fuzzing client.

    $ .venv/bin/python -m tests.autobahn.echo 9001
    listening on ws://127.0.0.1:9001
    $ wstest -m fuzzingclient -s tests/autobahn/fuzzingclient.json

``wstest`` is ``autobahntestsuite`` of the Python package index, and needs Python 2.7.
``tests/autobahn/test_cases.py`` sends the same cases without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import cast

import httptools

from synap_realtime.server.deadlines import PendingConnections
from synap_realtime.server.protocols.websocket import WebSocketProtocol
from synap_realtime.server.protocols.writes import WriteBatch
from synap_realtime.server.protocols.ws_codec import accept_key, binary_frame, text_frame
from synap_realtime.server.resources.pacing import Pacer

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_ANSWER = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: {}\r\n\r\n"
)


class Unhurried(WebSocketProtocol):
    """Autobahn sends 65,536 fragments of one message as quickly as it can."""

    __slots__ = ()

    max_frames_per_s = sys.maxsize


class Echo:
    """Echo each message."""

    def __init__(
        self, transport: asyncio.Transport, pending_connections: PendingConnections
    ) -> None:
        transport.set_write_buffer_limits(high=0)
        self.socket = Unhurried(
            transport,
            self,
            pending_connections=pending_connections,
            write_batch=WriteBatch(),
            pacer=Pacer(),
            max_message_bytes=MAX_MESSAGE_BYTES,
            descriptor=transport.get_extra_info("socket").fileno(),
        )

    def on_activity(self) -> None: ...

    def on_message(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.socket.write(text_frame(message.encode()))
        else:
            self.socket.write(binary_frame(message))

    def on_pause(self) -> None:
        """Autobahn reads on."""

    def on_resume(self) -> None:
        """Nothing waits: Autobahn reads."""

    def on_close(self) -> None:
        """Nothing is to be done."""

    def on_disconnect(self) -> None:
        """Nor here."""


class Handshake(asyncio.Protocol):
    """Reads one request, and answers it as if it were always the right one."""

    def __init__(self, pending_connections: PendingConnections) -> None:
        self._pending_connections = pending_connections
        self._parser = httptools.HttpRequestParser(self)
        self._key = ""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"sec-websocket-key":
            self._key = value.decode()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._transport.write(_ANSWER.format(accept_key(self._key)).encode())
            socket = Echo(self._transport, self._pending_connections).socket
            self._transport.set_protocol(socket)
            if rest := data[upgrade.args[0] :]:
                socket.data_received(rest)
        except httptools.HttpParserError:
            self._transport.close()


async def serve(port: int) -> None:
    pending_connections = PendingConnections(0)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Handshake(pending_connections), "127.0.0.1", port)
    print(  # noqa: T201 - who started it waits for this line
        f"listening on ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True
    )
    await server.serve_forever()


def main() -> None:
    loop_factory = None
    with contextlib.suppress(ImportError):  # as the room server does
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
