"""A socket that captures the requests of HTTP clients, byte for byte."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_DATA_SEGMENTS_IN = 152
"""Where ``tcpi_data_segs_in`` is in Linux's ``struct tcp_info``."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A request as a client has sent it.

    Attributes:
        head: up to and with the empty line.
        writes_separately: whether the client writes the body after the head, as most do.
    """

    head: bytes
    body: bytes
    writes_separately: bool


class Capture:
    """A server on loopback that answers each request as a room server would.

    Attributes:
        url: where it listens.
        requests: those of all connections, in order of arrival; received: whether there is one.
        answers: while it is not set, requests wait for their response.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[Captured] = []
        self.received = threading.Event()
        self.answers = threading.Event()
        self.answers.set()
        self._peers: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many clients have connected."""
        return len(self._peers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.answers.set()
        for each in (self._listener, *self._peers):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self._peers.append(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        data, segments = b"", 0
        with contextlib.suppress(OSError):
            while received := peer.recv(1 << 20):
                data += received
                head, found, body = data.partition(b"\r\n\r\n")
                if not found or len(body) < _content_length(head):
                    continue
                before, segments = segments, _data_segments(peer)
                self.requests.append(Captured(head + found, body, segments - before > 1))
                data = b""
                self.received.set()
                self.answers.wait()
                peer.sendall(_answer(body))


def _content_length(head: bytes) -> int:
    found = re.search(rb"\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return int(found[1]) if found else 0


def _data_segments(peer: socket.socket) -> int:
    """Return how many segments with data have arrived: on loopback, one for each write."""
    info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("I", info, _DATA_SEGMENTS_IN)[0])


def _answer(request: bytes) -> bytes:
    each = {"success": True, "id": "1", "broadcastCount": 1, "rooms": {}}
    count = len(json.loads(request).get("notifications", ()))
    body = json.dumps({**each, "results": [each] * count}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body
