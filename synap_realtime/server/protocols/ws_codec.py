"""Encode and decode WebSocket frames for a server (RFC 6455), without I/O.

A client masks each of its frames, and a server none. No extension is supported, so the reserved
bits must be 0.
"""

from __future__ import annotations

import binascii
import hashlib
from codecs import utf_8_decode
from dataclasses import dataclass
from struct import Struct
from typing import NoReturn

from ..stores.base import Entry

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_LAST = 0x80  # the bit FIN: the last frame of a message
_RESERVED = 0x70
_CONTROL = 0x08
_MASKED = 0x80

_MAX_CONTROL_BYTES = 125
_MAX_REASON_BYTES = _MAX_CONTROL_BYTES - 2

PROTOCOL_ERROR = 1002
NOT_UTF8 = 1007
TOO_BIG = 1009

_HEAD_16 = Struct("!BBH").pack
_HEAD_64 = Struct("!BBQ").pack
_SHORT_TEXT = tuple(bytes((_LAST | _TEXT, size)) for size in range(126))

_BLOCK_BYTES = 4096
"""The block size for unmasking. XOR of long integers is fastest in blocks that fit the L1 cache."""


def accept_key(key: str) -> str:
    """Return ``Sec-WebSocket-Accept`` for a ``Sec-WebSocket-Key`` (RFC 6455, section 4.2.2)."""
    digest = hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()
    return binascii.b2a_base64(digest, newline=False).decode()


def text_frame(payload: bytes) -> bytes:
    """Encode a text message. The same bytes can be sent to any number of clients.

    Args:
        payload: UTF-8.
    """
    size = len(payload)
    if size < 126:
        return _SHORT_TEXT[size] + payload
    if size < 65536:
        return _HEAD_16(0x81, 126, size) + payload
    return _HEAD_64(0x81, 127, size) + payload


class _Last:
    entry: Entry | None = None
    frame = b""


_last = _Last()


def encode_entry_frame(entry: Entry) -> bytes:
    """Return the WebSocket frame of a notification. The last frame is cached."""
    if entry is not _last.entry:
        _last.entry, _last.frame = entry, text_frame(entry.text.encode())
    return _last.frame


def binary_frame(payload: bytes) -> bytes:
    """Encode a binary message."""
    size = len(payload)
    if size < 126:
        return bytes((_LAST | _BINARY, size)) + payload
    if size < 65536:
        return _HEAD_16(_LAST | _BINARY, 126, size) + payload
    return _HEAD_64(_LAST | _BINARY, 127, size) + payload


def ping_frame(payload: bytes = b"") -> bytes:
    """Encode a ping.

    Args:
        payload: at most 125 bytes.
    """
    return _control(_PING, payload)


def pong_frame(payload: bytes = b"") -> bytes:
    """Encode a pong.

    Args:
        payload: the payload of the ping; at most 125 bytes.
    """
    return _control(_PONG, payload)


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Encode a close frame.

    Args:
        code: ``None`` sends neither a code nor a reason.
        reason: truncated to the 123 bytes that a close frame has for it.
    """
    if code is None:
        return _control(_CLOSE, b"")
    return _control(_CLOSE, code.to_bytes(2, "big") + cut_reason(reason).encode())


def cut_reason(reason: str) -> str:
    """Truncate a reason to the 123 bytes of a close frame, without splitting a character."""
    return reason.encode(errors="replace")[:_MAX_REASON_BYTES].decode(errors="ignore")


def _control(opcode: int, payload: bytes) -> bytes:
    if len(payload) > _MAX_CONTROL_BYTES:
        raise ValueError(f"a control frame has at most {_MAX_CONTROL_BYTES} bytes")
    return bytes((_LAST | opcode, len(payload))) + payload


@dataclass(frozen=True, slots=True)
class Ping:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """A close frame of the peer.

    Attributes:
        code: ``None`` where the peer gave none.
    """

    code: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProtocolFailure:
    """The peer violated the protocol or a limit. Fail the connection (section 7.1.7).

    Attributes:
        code: the code for the close frame.
        reason: the violation, without data of the peer.
    """

    code: int
    reason: str


Event = str | bytes | Ping | Pong | Close | ProtocolFailure
"""A text message is ``str``, a binary one ``bytes``."""


class _ProtocolError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Message:
    """A message that has arrived in part.

    Attributes:
        is_text: whether it is a text message. Its payload is then validated as UTF-8 on arrival.
        payload: the unmasked payload so far.
        checked: how many bytes of it are complete characters.
        left: how many bytes of the current frame are still to arrive; 0 between frames.
        mask: the mask, rotated to the next byte.
        is_last: whether the current frame is the last one of the message.
    """

    __slots__ = ("checked", "is_last", "is_text", "left", "mask", "payload")

    def __init__(self, *, is_text: bool) -> None:
        self.is_text = is_text
        self.payload = bytearray()
        self.checked = 0
        self.left = 0
        self.mask = b""
        self.is_last = False

    def begin(self, length: int, mask: bytes, *, is_last: bool) -> None:
        self.left = length
        self.mask = mask
        self.is_last = is_last

    def add(self, masked: bytes) -> None:
        self.payload += _unmasked(masked, self.mask)
        self.left -= len(masked)
        shift = len(masked) % 4
        self.mask = self.mask[shift:] + self.mask[:shift]
        if self.is_text and not self.is_whole:
            self._check()

    @property
    def is_whole(self) -> bool:
        return self.is_last and not self.left

    def finish(self) -> str | bytes:
        return _decoded(self.payload) if self.is_text else bytes(self.payload)

    def _check(self) -> None:
        unchecked = self.payload[self.checked :]
        try:
            _, size = utf_8_decode(unchecked, "strict", False)
        except UnicodeDecodeError:
            _fail_text()
        # Python waits for the third byte of an encoded surrogate, which is always invalid.
        if len(unchecked) - size == 2 and unchecked[size] == 0xED and unchecked[-1] >= 0xA0:
            _fail_text()
        self.checked += size


class Decoder:
    """Decode the frames of one client.

    It holds the received part of an incomplete message, at most ``max_message_bytes``, and nothing
    between messages.

    Attributes:
        frames: how many frames have started, including pings, pongs and fragments. A caller that
            counts frames per second resets it to 0.
    """

    __slots__ = ("_has_ended", "_max_message_bytes", "_message", "_rest", "frames")

    def __init__(self, max_message_bytes: int) -> None:
        """
        Args:
            max_message_bytes: a longer message is a :class:`ProtocolFailure` as soon as a frame
                header, or the sum of the fragments, exceeds it.
        """
        self._max_message_bytes = max_message_bytes
        self._message: _Message | None = None
        self._rest = b""  # an incomplete frame header or control frame
        self._has_ended = False
        self.frames = 0

    def feed(self, data: bytes) -> list[Event]:
        """Decode more data.

        Args:
            data: data from the socket, split anywhere.

        Returns:
            The events that are complete now, in order. A :class:`Close` or a
            :class:`ProtocolFailure` is the last event, and all further data is ignored.
        """
        events: list[Event] = []
        if self._has_ended:
            return events
        if self._rest:
            data = self._rest + data
            self._rest = b""
        try:
            self._read(data, events)
        except _ProtocolError as error:
            events.append(ProtocolFailure(error.code, error.reason))
            self._end()
        return events

    def _read(self, data: bytes, events: list[Event]) -> None:
        at = 0
        size = len(data)
        while at < size and not self._has_ended:
            message = self._message
            if message is not None and message.left:
                part = data[at : at + message.left]
                message.add(part)
                at += len(part)
                if message.is_whole:
                    self._message = None
                    events.append(message.finish())
                continue
            if size - at < 2:
                break
            opcode, length = _parse_head(data[at], data[at + 1])
            begin = at + 6
            if length >= 126:
                begin += 2 if length == 126 else 8
                if begin - 4 > size:
                    break
                length = _long_length(data[at + 2 : begin - 4])
            if opcode < _CONTROL:
                self._check_order(opcode, length)
            if begin > size:
                break
            mask = data[begin - 4 : begin]
            is_last = data[at] >= _LAST
            end = begin + length
            if opcode >= _CONTROL:
                if end > size:
                    break
                events.append(self._control(opcode, _unmasked(data[begin:end], mask)))
                at = end
            elif message is None and is_last and end <= size:  # the common case
                payload = _unmasked(data[begin:end], mask)
                events.append(_decoded(payload) if opcode == _TEXT else payload)
                at = end
            else:
                if message is None:
                    message = self._message = _Message(is_text=opcode == _TEXT)
                message.begin(length, mask, is_last=is_last)
                at = begin
                if message.is_whole:  # an empty last fragment
                    self._message = None
                    events.append(message.finish())
            self.frames += 1
        if at < size and not self._has_ended:
            self._rest = data[at:]

    def _check_order(self, opcode: int, length: int) -> None:
        """Check the order of fragments (section 5.4), and the size limit."""
        message = self._message
        if message is None:
            if opcode == _CONTINUATION:
                _fail_protocol("a continuation without a message")
            so_far = 0
        else:
            if opcode != _CONTINUATION:
                _fail_protocol("a message inside another")
            so_far = len(message.payload)
        if so_far + length > self._max_message_bytes:
            raise _ProtocolError(TOO_BIG, f"a message has at most {self._max_message_bytes} bytes")

    def _control(self, opcode: int, payload: bytes) -> Ping | Pong | Close:
        if opcode == _PING:
            return Ping(payload)
        if opcode == _PONG:
            return Pong(payload)
        close = _closed(payload)
        self._end()
        return close

    def _end(self) -> None:
        self._has_ended = True
        self._message = None


def _parse_head(first: int, second: int) -> tuple[int, int]:
    """Parse the first two bytes (section 5.2): the opcode, and the length or 126 or 127."""
    opcode = first & 0x0F
    length = second & 0x7F
    if first & _RESERVED:
        _fail_protocol("a reserved bit is set")
    if opcode not in (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
        _fail_protocol("an unknown opcode")
    if second < _MASKED:
        _fail_protocol("a frame without a mask")
    if opcode >= _CONTROL:
        if first < _LAST:
            _fail_protocol("a fragmented control frame")
        if length > _MAX_CONTROL_BYTES:
            _fail_protocol(f"a control frame of more than {_MAX_CONTROL_BYTES} bytes")
    return opcode, length


def _long_length(data: bytes) -> int:
    length = int.from_bytes(data, "big")
    if length < (126 if len(data) == 2 else 65536):
        _fail_protocol("a length that is not encoded in the shortest form")
    if length >= 2**63:
        _fail_protocol("a length of 2^63 or more")
    return length


def _closed(payload: bytes) -> Close:
    """Decode the payload of a close frame (sections 5.5.1 and 7.4)."""
    if not payload:
        return Close(None)
    if len(payload) == 1:
        _fail_protocol("an incomplete close code")
    code = int.from_bytes(payload[:2], "big")
    if not is_close_code(code):
        _fail_protocol("an invalid close code")
    return Close(code, _decoded(payload[2:]))


def is_close_code(code: int) -> bool:
    """Return whether a close frame may have this code.

    See section 7.4, and 1012 to 1014 in IANA's "WebSocket Close Code Number Registry".
    """
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def _decoded(payload: bytes | bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        _fail_text()


def _unmasked(data: bytes, mask: bytes) -> bytes:
    """Unmask a payload (section 5.3), at about 2 ns a byte."""
    size = len(data)
    if size <= _BLOCK_BYTES:
        key = (mask * (size // 4 + 1))[:size]
        return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(
            size, "little"
        )
    key_of_block = int.from_bytes(mask * (_BLOCK_BYTES // 4), "little")
    tail = size - size % _BLOCK_BYTES
    blocks = [
        (int.from_bytes(data[at : at + _BLOCK_BYTES], "little") ^ key_of_block).to_bytes(
            _BLOCK_BYTES, "little"
        )
        for at in range(0, tail, _BLOCK_BYTES)
    ]
    blocks.append(_unmasked(data[tail:], mask))
    return b"".join(blocks)


def _fail_protocol(reason: str) -> NoReturn:
    raise _ProtocolError(PROTOCOL_ERROR, reason)


def _fail_text() -> NoReturn:
    raise _ProtocolError(NOT_UTF8, "not UTF-8")
