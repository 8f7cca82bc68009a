"""What publishers repeat: a program sends the same head before each of its notifications.

To parse it anew costs more than all the rest of a publish. So what a head came to is remembered,
byte for byte; a request that differs in anything but the room is parsed as ever.
"""

from __future__ import annotations

from ..auth import digest_of
from .exchange import Exchange

MAX_KNOWN = 1024
"""A publisher has one for each length of a body. Then the oldest is forgotten."""

MAX_BYTES = 1024
"""Of one that is remembered, without its first line."""

BEGIN = b"POST /rooms/"
"""What a request to publish to one room begins with."""

_END = b"/broadcast HTTP/1.1"  # and its first line ends
_NEVER = {"expect", "origin", "sec-fetch-site", "transfer-encoding", "upgrade"}
"""Fields that ask for more."""


Publish = tuple[str, bytes, bytes]
"""A request to publish to one room: the segment of the path where the room is, SHA-256 of the
publisher's key, and the body."""


class Heads:
    """The fields of requests to publish, without the first line, as they came."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, bytes]] = {}  # how long a body is; the key's digest

    def learn(self, first: bytes, exchange: Exchange) -> None:
        """Remember a head, if it was one of a request to publish that was answered well.

        Args:
            first: what came first, from the first byte of the request on. Of the rest of one, the
                part that says whose it is might be missing, and everybody who sends that rest would
                be taken for its sender.
            exchange: what the parser has made of that request.
        """
        claims, credential = exchange.claims, exchange.credential
        if claims is None or claims.key is None or credential is None or exchange.query_string:
            return
        if not (exchange.is_complete and exchange.keeps_alive):
            return
        line, end = _bounds(first)
        if not (line < end < line + MAX_BYTES and _is_publish(first, line)):
            return
        length = exchange.headers.get("content-length", "")
        if not (length.isdigit() and _NEVER.isdisjoint(exchange.headers)):
            return
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[first[line:end]] = (int(length), digest_of(credential))

    def find(self, data: bytes) -> Publish | None:
        """What came, if it is one whole request to publish with a head that is known."""
        line, end = _bounds(data)
        known = self._known.get(data[line:end])
        if known is None or len(data) - end != known[0] or not _is_publish(data, line):
            return None
        return data[len(BEGIN) : line - len(_END)].decode("latin-1"), known[1], data[end:]

    def is_alone(self, data: bytes) -> bool:
        """Whether what came is a head that is known, whose body follows. Many libraries send the
        two one after the other."""
        if not data.endswith(b"\r\n\r\n"):
            return False
        line, end = _bounds(data)
        known = self._known.get(data[line:end])
        return known is not None and known[0] > 0 and end == len(data) and _is_publish(data, line)


def _bounds(data: bytes) -> tuple[int, int]:
    """Where the first line ends, and where the head does; 3, if it does not end there."""
    line = data.find(b"\r\n")
    return line, data.find(b"\r\n\r\n", line) + 4


def _is_publish(data: bytes, line: int) -> bool:
    return data.startswith(BEGIN) and data.endswith(_END, 0, line)
