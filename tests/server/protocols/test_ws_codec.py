"""The WebSocket codec without a socket: compatible with ``websockets``, safe for hostile bytes."""

from __future__ import annotations

import gc
import random
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from synap_realtime.server.protocols.ws_codec import (
    Close,
    Decoder,
    Event,
    Ping,
    Pong,
    ProtocolFailure,
    accept_key,
    binary_frame,
    close_frame,
    is_close_code,
    ping_frame,
    pong_frame,
    text_frame,
)
from tests.support.websocket_frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, frame

LIMIT = 4096


def read(*pieces: bytes, limit: int = LIMIT) -> list[Event]:
    decoder = Decoder(limit)
    return [event for piece in pieces for event in decoder.feed(piece)]


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(edge for edge in at if edge < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def size_of(decoder: Decoder) -> int:
    """Bytes of it and of all that it alone holds."""
    seen: dict[int, object] = {}
    waiting: list[object] = [decoder]
    while waiting:
        if id(thing := waiting.pop()) in seen or isinstance(thing, type):
            continue
        seen[id(thing)] = thing
        waiting += gc.get_referents(thing)
    return sum(sys.getsizeof(thing) for thing in seen.values())


invented = settings(max_examples=150, deadline=None, derandomize=True)

# --- What websockets says -------------------------------------------------------------------------

masks = st.binary(min_size=4, max_size=4)
payloads = st.binary(max_size=200) | st.sampled_from([126, 127, 65535, 65536]).map(bytes)
texts = st.text(max_size=60) | st.sampled_from(["é" * 63, "€" * 21846, "x" * 65536])
controls = st.builds(
    lambda opcode, data: (opcode, data),
    st.sampled_from([Opcode.PING, Opcode.PONG]),
    st.binary(max_size=125),
)
closes = st.builds(
    Close,
    st.integers(1000, 4999).filter(is_close_code),
    st.text(max_size=30),
) | st.just(Close(None))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Event]]:
    """What a client sends, and what it says."""
    sent: list[bytes] = []
    said: list[Event] = []

    def send(opcode: Opcode, data: bytes, *, end: bool = True) -> None:
        sent.append(Frame(opcode, data, fin=end).serialize(mask=True))

    def send_control() -> None:
        opcode, data = draw(controls)
        send(opcode, data)
        said.append(Ping(data) if opcode is Opcode.PING else Pong(data))

    for _ in range(draw(st.integers(0, 4))):
        message = draw(texts | payloads)
        data = message.encode() if isinstance(message, str) else message
        parts = cut(data, draw(st.lists(st.integers(0, len(data)), max_size=4)))
        kind = Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
        for number, part in enumerate(parts):
            if draw(st.booleans()):
                send_control()
            send(Opcode.CONT if number else kind, part, end=number == len(parts) - 1)
        said.append(message)
    if draw(st.booleans()):
        close = draw(closes)
        code = b"" if close.code is None else struct.pack("!H", close.code)
        send(Opcode.CLOSE, code + close.reason.encode())
        said.append(close)
    return b"".join(sent), said


@invented
@given(conversations(), st.lists(st.integers(0, 1000), max_size=20))
def test_valid_frames_are_decoded_in_any_chunks(
    conversation: tuple[bytes, list[Event]], edges: list[int]
) -> None:
    sent, said = conversation
    limit = 1024 * 1024
    assert read(sent, limit=limit) == said
    assert read(*cut(sent, edges), limit=limit) == said
    if len(sent) < 2000:
        assert read(*(bytes([byte]) for byte in sent), limit=limit) == said


@invented
@given(conversations(), st.data())
def test_invalid_frames_fail_in_any_chunks(
    conversation: tuple[bytes, list[Event]], data: st.DataObject
) -> None:
    """One byte of what a client sends is another."""
    sent = bytearray(conversation[0][:2000])
    if sent:
        at = data.draw(st.integers(0, min(len(sent) - 1, 40)))
        sent[at] = data.draw(st.integers(0, 255))
    events = read(bytes(sent))
    assert events == read(*(bytes([byte]) for byte in sent))
    edges = data.draw(st.lists(st.integers(0, len(sent)), max_size=8))
    assert events == read(*cut(bytes(sent), edges))


@invented
@given(st.lists(st.binary(max_size=300)))
def test_any_bytes_are_read_without_an_error_and_held_within_the_limit(
    pieces: Sequence[bytes],
) -> None:
    decoder = Decoder(100)
    ended = False
    for piece in pieces:
        events = decoder.feed(piece)
        assert not (ended and events)
        ended = ended or any(isinstance(event, (Close, ProtocolFailure)) for event in events)
        assert all(not isinstance(event, (Close, ProtocolFailure)) for event in events[:-1])
        assert size_of(decoder) < 1024


@invented
@given(st.sampled_from([TEXT, BINARY, CONT, PING]), st.booleans(), st.binary(max_size=700))
def test_frames_of_any_bytes_are_read_without_an_error(opcode: int, end: bool, data: bytes) -> None:
    decoder = Decoder(500)
    for _ in range(3):
        decoder.feed(frame(opcode, data, end=end))
        assert size_of(decoder) < 2048


# --- What the server says -------------------------------------------------------------------------


def decode_all(data: bytes) -> list[Frame]:
    """By the client of ``websockets``."""
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN, max_size=None)
    client.receive_data(data)
    assert client.parser_exc is None
    return [event for event in client.events_received() if isinstance(event, Frame)]


@invented
@given(payloads)
def test_the_servers_frames_are_read_by_another_client(payload: bytes) -> None:
    text = payload.hex().encode()
    for encoded, expected in (
        (text_frame(text), Frame(Opcode.TEXT, text)),
        (binary_frame(payload), Frame(Opcode.BINARY, payload)),
        (ping_frame(payload[:125]), Frame(Opcode.PING, payload[:125])),
        (pong_frame(payload[:125]), Frame(Opcode.PONG, payload[:125])),
    ):
        assert decode_all(encoded) == [expected]
        assert encoded == expected.serialize(mask=False)


def test_the_servers_close_frames_are_read_by_another_client() -> None:
    assert decode_all(close_frame(None)) == [Frame(Opcode.CLOSE, b"")]
    assert decode_all(close_frame(4008)) == [Frame(Opcode.CLOSE, b"\x0f\xa8")]
    assert decode_all(close_frame(1000, "é")) == [Frame(Opcode.CLOSE, b"\x03\xe8\xc3\xa9")]
    # 123 bytes are odd: no half of a letter is sent
    assert decode_all(close_frame(1000, "é" * 100)) == [
        Frame(Opcode.CLOSE, b"\x03\xe8" + b"\xc3\xa9" * 61)
    ]


def test_invalid_control_frame_is_not_encoded() -> None:
    for make in (ping_frame, pong_frame):
        with pytest.raises(ValueError, match="125"):
            make(b"x" * 126)


def test_the_handshake_of_the_rfc() -> None:
    """RFC 6455, section 1.3."""
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


# --- What is refused ------------------------------------------------------------------------------

BROKEN = {
    "a reserved bit": (frame(TEXT, b"x", reserved=4), 1002),
    "a reserved bit of a control frame": (frame(PING, reserved=1), 1002),
    "an unknown opcode": (frame(3), 1002),
    "an unknown control opcode": (frame(11), 1002),
    "no mask": (frame(TEXT, b"ping", masked=False), 1002),
    "a ping in fragments": (frame(PING, b"x", end=False), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a ping of 0 bytes in a long form": (frame(PING, form=126), 1002),
    "125 bytes in the form of 126": (frame(TEXT, b"x" * 125, form=126), 1002),
    "125 bytes in the form of 65536": (frame(TEXT, b"x" * 125, form=127), 1002),
    "65535 bytes in the form of 65536": (frame(TEXT, length=65535, form=127), 1002),
    "2^63 bytes": (frame(TEXT, length=2**63), 1002),
    "2^63 - 1 bytes": (frame(TEXT, length=2**63 - 1), 1009),
    "a continuation of nothing": (frame(CONT, b"x"), 1002),
    "a continuation of what has ended": (frame(TEXT) + frame(CONT), 1002),
    "a text in a text": (frame(TEXT, b"a", end=False) + frame(TEXT, b"b"), 1002),
    "bytes in a text": (frame(TEXT, b"a", end=False) + frame(BINARY, b"b"), 1002),
    "a text over the limit": (frame(TEXT, length=LIMIT + 1), 1009),
    "fragments over the limit": (
        frame(TEXT, b"x" * LIMIT, end=False) + frame(CONT, length=1, end=False), 1009
    ),
    "not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "half a letter": (frame(TEXT, b"\xc3"), 1007),
    "half a letter, in fragments": (frame(TEXT, b"\xc3", end=False) + frame(CONT), 1007),
    "a close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "a close that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_violation_fails_at_its_position(what: str) -> None:
    """Frames before the violation are decoded, later ones are not."""
    sent, code = BROKEN[what]
    decoder = Decoder(LIMIT)
    before, *_, failure = decoder.feed(frame(TEXT, b"before") + sent + frame(TEXT, b"behind"))
    assert before == "before"
    assert isinstance(failure, ProtocolFailure)
    assert failure.code == code
    assert decoder.feed(frame(TEXT, b"behind")) == []


def test_close_codes() -> None:
    """RFC 6455, section 7.4.1, and IANA's registry."""
    good = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    for code in range(65536):
        sent = frame(CLOSE, struct.pack("!H", code))
        (event,) = read(sent)
        assert event == Close(code) if code in good else isinstance(event, ProtocolFailure), code


def test_nothing_is_received_behind_a_close() -> None:
    assert read(frame(CLOSE) + frame(PING), frame(TEXT, b"x"), b"\xff" * 10) == [Close(None)]
    inside = frame(TEXT, b"a", end=False) + frame(CLOSE) + frame(CONT, b"b")
    assert read(inside) == [Close(None)]


def test_text_fails_at_its_first_invalid_byte() -> None:
    """Not at the end of its frame, nor of its message."""
    whole = frame(TEXT, b"\xce\xba\xf4\x90\x80\x80 and more")
    good, bad = whole[:-12], whole[-12:-11]
    assert good[-1:] == b"\xf4"
    decoder = Decoder(LIMIT)
    assert decoder.feed(good) == []
    (failure,) = decoder.feed(bad)
    assert isinstance(failure, ProtocolFailure)
    assert failure.code == 1007


def test_text_fails_as_soon_as_it_cannot_become_valid() -> None:
    """All beginnings of a letter, of two bytes and of three."""
    # What 64 neighbours differ in is their last byte.
    codes = [code for code in range(0, 0x110000, 64) if not 0xD800 <= code < 0xE000]
    letters = [chr(code).encode() for code in codes]
    right = {letter[:size] for letter in letters for size in range(1, len(letter))}
    right |= {letter[:-1] + bytes([last]) for letter in letters for last in range(0x80, 0xC0)}
    twos = [bytes([first, second]) for first in range(0xC0, 256) for second in range(256)]
    edges = (0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0)
    threes = [two + bytes([third]) for two in twos if two in right for third in edges]
    for start in twos + [three for three in threes if three[0] >= 0xE0]:
        failed = read(frame(TEXT, start, end=False)) != []
        assert failed == (start not in right), start


def test_frame_header_is_refused_before_its_payload() -> None:
    (failure,) = read(frame(TEXT, length=LIMIT + 1)[:-4])  # without its mask
    assert isinstance(failure, ProtocolFailure)
    assert read(frame(TEXT, b"x" * LIMIT)) == ["x" * LIMIT]
    halves = frame(TEXT, b"x" * 96, end=False) + frame(CONT, b"x" * (LIMIT - 96))
    assert read(halves) == ["x" * LIMIT]


def test_a_failure_repeats_nothing_that_was_sent() -> None:
    for sent, _ in BROKEN.values():
        *_, failure = read(sent.replace(b"x", b"s3cret"))
        assert "s3cret" not in repr(failure)


# --- What it costs --------------------------------------------------------------------------------


def test_an_idle_decoder_is_tiny() -> None:
    decoder = Decoder(LIMIT)
    before = size_of(decoder)
    assert before < 250
    decoder.feed(frame(TEXT, b"x" * 1000, end=False) + frame(PING) + frame(CONT, b"x")[:-1])
    assert size_of(decoder) > 1000
    decoder.feed(b"x")
    assert size_of(decoder) == before


@pytest.mark.parametrize("last", [frame(CLOSE), frame(3)])
def test_closed_decoder_holds_no_memory(last: bytes) -> None:
    decoder = Decoder(LIMIT)
    before = size_of(decoder)
    decoder.feed(frame(TEXT, b"x" * 1000, end=False) + frame(CONT, b"x" * 1000, end=False) + last)
    decoder.feed(frame(TEXT)[:3])
    assert size_of(decoder) == before


def test_announced_payload_takes_no_memory() -> None:
    decoder = Decoder(2**40)
    decoder.feed(frame(BINARY, length=2**40)[:12])
    assert size_of(decoder) < 1000


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_fragmented_message_takes_no_more_memory_than_its_size(opcode: int) -> None:
    """Lists of small pieces would take many times as much."""
    decoder = Decoder(100_000)
    decoder.feed(frame(opcode, b"x" * 10_000, end=False))
    for _ in range(40_000):
        decoder.feed(frame(CONT, b"x", end=False))
        decoder.feed(frame(CONT, b"", end=False))
    for byte in frame(CONT, b"x" * 40_000, end=False):
        decoder.feed(bytes([byte]))
    decoder.feed(frame(CONT, b"x" * 9_000)[:-1])
    assert size_of(decoder) < 150_000
    (message,) = decoder.feed(b"x")
    assert isinstance(message, (str, bytes))
    assert len(message) == 99_000


def test_control_frames_are_counted() -> None:
    decoder = Decoder(LIMIT)
    decoder.feed(frame(TEXT, b"a", end=False) + frame(PING) + frame(CONT, end=False) * 3)
    assert decoder.frames == 5
    decoder.feed(frame(CONT, b"b") + frame(PONG) + frame(TEXT, b"c")[:3])
    assert decoder.frames == 7


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_long_message_in_small_packets_takes_linear_time(opcode: int) -> None:
    """16 times as long takes 16 times as long; if it were copied for each packet, 256 times."""

    def seconds(size: int) -> float:
        packets = cut(frame(opcode, bytes(size)), range(1024, size + 1024, 1024))
        decoder = Decoder(size)
        begin = time.process_time()
        for packet in packets[:-1]:
            assert decoder.feed(packet) == []
        (message,) = decoder.feed(packets[-1])
        end = time.process_time()
        assert isinstance(message, (str, bytes))
        assert len(message) == size
        return end - begin

    short = min(seconds(1024 * 1024) for _ in range(5))
    assert seconds(16 * 1024 * 1024) < 100 * short


@invented
@given(st.integers(0, 20_000), masks)
def test_unmasks_in_blocks(size: int, mask: bytes) -> None:
    """Around the ends of the blocks, and from any place in them."""
    payload = random.Random(size).randbytes(size)
    sent = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    head = frame(BINARY, length=size)[:-4] + mask
    limit = 20_000
    assert read(head + sent, limit=limit) == [payload]
    edges = (len(head) + 1, len(head) + 4099, len(head) + 12_345)
    assert read(*cut(head + sent, edges), limit=limit) == [payload]
