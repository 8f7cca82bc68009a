"""What publishers repeat: a program sends the same head before each of its notifications.

To parse it anew costs more than all the rest of a publish. So what a head came to is remembered,
byte for byte; a request that differs in anything but the room is parsed as ever.
"""

from __future__ import annotations

from hashlib import sha256

from .exchange import Exchange

MAX_KNOWN = 1024
"""A publisher has one for each length of a body. Then the oldest is forgotten."""

MAX_BYTES = 1024
"""Of one that is remembered."""

_BEGIN = b"POST /rooms/"
"""What a request to publish to one room begins with."""

_END = b"/broadcast HTTP/1.1"  # and its first line ends
_NEVER = {"expect", "origin", "transfer-encoding", "upgrade"}  # fields that ask for more


Publish = tuple[str, bytes, bytes]
"""A request to publish to one room: the segment of the path where the room is, SHA-256 of the
publisher's key, and the body."""


class Heads:
    """The fields of requests to publish, without the first line, as they came."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, bytes]] = {}  # how long a body is; the key's digest

    def learn(self, data: bytes, exchange: Exchange) -> None:
        """Remember what came, if it is one whole request to publish, which was answered well.

        Args:
            data: from the first byte of a request: of the rest of one, the part that says whose it
                is might be missing, and everybody who sends that rest would be taken for its
                sender.
            exchange: what the parser has made of the first request in it.
        """
        claims, credential = exchange.claims, exchange.credential
        if claims is None or claims.key is None or credential is None or exchange.query_string:
            return
        if not (exchange.is_complete and exchange.keeps_alive):
            return
        line = data.find(b"\r\n")
        end = data.find(b"\r\n\r\n", line) + 4
        if not (_is_publish(data, line) and _NEVER.isdisjoint(exchange.headers)):
            return
        length = exchange.headers.get("content-length", "")
        if not length.isdigit() or int(length) != len(data) - end or not 0 < end - line < MAX_BYTES:
            return
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        digest = sha256(credential.encode(errors="surrogatepass")).digest()
        self._known[data[line:end]] = (len(data) - end, digest)

    def find(self, data: bytes) -> Publish | None:
        """What came, if it is one whole request to publish with a head that is known."""
        line = data.find(b"\r\n")
        end = data.find(b"\r\n\r\n", line) + 4
        known = self._known.get(data[line:end])
        if known is None or len(data) - end != known[0] or not _is_publish(data, line):
            return None
        return data[len(_BEGIN) : line - len(_END)].decode("latin-1"), known[1], data[end:]


def _is_publish(data: bytes, line: int) -> bool:
    return data.startswith(_BEGIN) and data.endswith(_END, 0, line)
