"""WebSocket frames of a client, byte by byte (RFC 6455, section 5.2)."""

from __future__ import annotations

import struct

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(
    opcode: int, data: bytes = b"", *, end: bool = True, reserved: int = 0, masked: bool = True,
    length: int | None = None, form: int | None = None,
) -> bytes:  # fmt: skip
    """A client's frame, masked with zeros.

    Args:
        length: what the head says; the default is the truth.
        form: 126 or 127 writes the length in two or eight bytes, though it may need fewer.
    """
    size = len(data) if length is None else length
    mask = 0x80 if masked else 0
    form = form or (size if size < 126 else 126 if size < 65536 else 127)
    head = bytes([end << 7 | reserved << 4 | opcode, mask | form])
    if form == 126:
        head += struct.pack("!H", size)
    elif form == 127:
        head += struct.pack("!Q", size)
    return head + (bytes(4) if masked else b"") + data
