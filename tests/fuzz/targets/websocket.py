"""The WebSocket codec against the ``websockets`` library's parser: same bytes, same events."""

from __future__ import annotations

from codecs import getincrementaldecoder

from websockets.exceptions import PayloadTooBig
from websockets.frames import Close as CloseFrame
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER, Protocol

from synap_realtime.server.protocols.ws_codec import (
    NOT_UTF8,
    PROTOCOL_ERROR,
    TOO_BIG,
    Close,
    Decoder,
    Event,
    Ping,
    Pong,
    ProtocolFailure,
)

from ..target import Target, chunks_of, require

MAX_MESSAGE_BYTES = 300
_MAX_CONTROL_BYTES = 125
_ENOUGH = bytes(70_000)
_STRICTER = ("shortest form", "2^63", "more than 125 bytes")
"""RFC 6455, sections 5.2 and 5.5: websockets takes a length that could be written shorter."""


class Reference:
    """What websockets reads, as our events.

    Attributes:
        events: complete messages and control frames.
        failure: the close code with which it failed the connection; None: it did not.
        is_strict: it failed at a close frame inside a fragmented message, which the RFC allows.
        fragments: payload of a text message that is not complete; None: there is none.
    """

    def __init__(self, data: bytes) -> None:
        # websockets counts a control frame inside a fragmented message against the limit of the
        # message. It gets room for one, and the limit itself is checked in _take().
        max_size = MAX_MESSAGE_BYTES + _MAX_CONTROL_BYTES
        protocol = Protocol(SERVER, state=OPEN, max_size=max_size)
        protocol.receive_data(data)
        self.events: list[Event] = []
        self.failure: int | None = None
        self.is_strict = False
        self.fragments: bytes | None = None
        self._is_text = False
        self._payload = b""
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if not self._take(event):
                return
        error = protocol.parser_exc
        if isinstance(error, UnicodeDecodeError):  # in the reason of a close frame
            self.failure = NOT_UTF8
        elif error is not None:
            is_too_big = isinstance(error, PayloadTooBig)
            self.failure = TOO_BIG if is_too_big else PROTOCOL_ERROR
            self.is_strict = str(error) == "incomplete fragmented message"

    def _take(self, frame: Frame) -> bool:
        data = bytes(frame.data)
        match frame.opcode:
            case Opcode.PING:
                self.events.append(Ping(data))
            case Opcode.PONG:
                self.events.append(Pong(data))
            case Opcode.CLOSE:
                close = CloseFrame.parse(data)
                self.events.append(Close(int(close.code) if data else None, close.reason))
            case _:
                if frame.opcode is not Opcode.CONT:
                    self._is_text = frame.opcode is Opcode.TEXT
                    self._payload = b""
                self._payload += data
                self.fragments = None
                if len(self._payload) > MAX_MESSAGE_BYTES:
                    self.failure = TOO_BIG
                    return False
                if not frame.fin:
                    self.fragments = self._payload if self._is_text else None
                elif not self._is_text:
                    self.events.append(self._payload)
                else:
                    try:
                        self.events.append(self._payload.decode())
                    except UnicodeDecodeError:
                        self.failure = NOT_UTF8
                        return False
        return True


class WebSocketTarget(Target):
    """Frames of a client. The decoder may be stricter than the reference only where RFC 6455 is."""

    name = "websocket"
    max_bytes = 1500

    def check(self, data: bytes) -> None:
        whole = _decoded([data])
        require(whole == _decoded(chunks_of(data)), "the events do not depend on the chunks")
        reference = Reference(data)
        ended = next(
            (n for n, event in enumerate(whole) if isinstance(event, (Close, ProtocolFailure))),
            None,
        )
        require(ended in (None, len(whole) - 1), "nothing follows a close or a failure")
        last = whole[-1] if whole else None
        failure = last if isinstance(last, ProtocolFailure) else None
        if failure is not None:
            whole.pop()
        if reference.is_strict and failure is None:
            require(whole and isinstance(whole.pop(), Close), "it ends with a close frame")
            reference.failure = None
        require(whole == reference.events[: len(whole)], f"{whole} is {reference.events}")
        if failure is None:
            require(reference.failure is None, f"the reference fails with {reference.failure}")
            require(len(whole) == len(reference.events), f"{reference.events} is {whole}")
        elif not any(words in failure.reason for words in _STRICTER):
            self._check_failure(failure, data)

    def _check_failure(self, failure: ProtocolFailure, data: bytes) -> None:
        """The reference agrees; it may need the rest of the frame to decide."""
        reference = Reference(data + _ENOUGH)
        if failure.code == NOT_UTF8 and reference.fragments is not None:
            try:
                getincrementaldecoder("utf-8")().decode(reference.fragments)
            except UnicodeDecodeError:
                return
        # A frame can break several rules; which one is seen first is nobody's concern.
        require(reference.failure is not None, f"{failure.reason}: the reference sees nothing")


def _decoded(chunks: list[bytes]) -> list[Event]:
    decoder = Decoder(MAX_MESSAGE_BYTES)
    return [event for chunk in chunks for event in decoder.feed(chunk)]


TARGET = WebSocketTarget
