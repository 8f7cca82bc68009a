"""The cases of Autobahn's WebSocket test suite: what each sends, and the expected events.

Groups 1 to 7, 9 and 10: the 301 cases that need no extension, under the suite's own numbers. Where
the suite has several grades, the best one ("OK") is required here.

Source: crossbario/autobahn-testsuite, ``autobahntestsuite/case/``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@dataclass(frozen=True)
class Repeated:
    """So many bytes, made when they are needed: the long ones have 100 MB in all."""

    pattern: bytes
    size: int

    def whole(self) -> bytes:
        return (self.pattern * (self.size // len(self.pattern) + 1))[: self.size]


Payload = bytes | Repeated


@dataclass(frozen=True)
class Frame:
    """One frame is sent.

    Attributes:
        chop: in pieces of so many bytes.
        alone: in a packet of its own, as far as that is the sender's to say.
        cuts: up to this many bytes of the payload; after each but the last, nothing may come back,
            and what is behind the last is never sent.
    """

    opcode: int
    payload: Payload = b""
    is_last: bool = True
    reserved: int = 0
    chop: int | None = None
    alone: bool = False
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Quiet:
    """The connection is open, and nothing comes back."""


@dataclass(frozen=True)
class Reply:
    """A whole frame comes back."""

    opcode: int
    payload: Payload


@dataclass(frozen=True)
class Fragments:
    """A message is sent in frames of so many bytes, and the rest."""

    opcode: int
    payload: Payload
    size: int

    def frames(self) -> Iterator[Frame]:
        payload = self.payload if isinstance(self.payload, bytes) else self.payload.whole()
        for at in range(0, len(payload), self.size):
            end = at + self.size
            opcode = CONTINUATION if at else self.opcode
            yield Frame(opcode, payload[at:end], is_last=end >= len(payload))


@dataclass(frozen=True)
class RoundTrips:
    """The next message is sent when the one before has come back."""

    opcode: int
    payload: bytes
    times: int


Step = Frame | Quiet | Reply | Fragments | RoundTrips


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        number: the suite's.
        codes: the server's close frame has one of them; ``None`` is a frame without a code. Then
            the server ends the TCP connection.
        we_close: when all has come back, the client begins the closing handshake.
    """

    number: str
    steps: tuple[Step, ...]
    codes: frozenset[int | None]
    we_close: bool


def _clean(number: str, *steps: Step) -> Case:
    """All comes back; then the client closes, and is answered."""
    return Case(number, steps, frozenset({1000}), we_close=True)


def _failed(number: str, *steps: Step, codes: tuple[int, ...] = (1002,)) -> Case:
    """The server fails the connection."""
    return Case(number, steps, frozenset(codes), we_close=False)


def _closed(number: str, *steps: Step, codes: tuple[int | None, ...] = (1000,)) -> Case:
    """The client's close frame is among what it sends."""
    return Case(number, steps, frozenset(codes), we_close=False)


def _echoed(opcode: int, payload: Payload, chop: int | None = None) -> tuple[Step, Step]:
    return Frame(opcode, payload, chop=chop), Reply(opcode, payload)


HELLO = b"Hello, world!"
BYTES = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
CLOSE_1000 = Frame(CLOSE, b"\x03\xe8")


def _framing() -> Iterator[Case]:
    """Group 1: sizes at which the head of a frame changes."""
    sizes = (0, 125, 126, 127, 128, 65535, 65536)
    for group, opcode, byte in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
        for number, size in enumerate(sizes, 1):
            yield _clean(f"1.{group}.{number}", *_echoed(opcode, byte * size))
        yield _clean(f"1.{group}.8", *_echoed(opcode, byte * 65536, chop=997))


def _pings() -> Iterator[Case]:
    """Group 2."""
    unsolicited = Frame(PONG, b"unsolicited pong payload")
    long = b"\xfe" * 125
    for number, payload in ((1, b""), (2, HELLO), (3, BYTES), (4, long)):
        yield _clean(f"2.{number}", Frame(PING, payload), Reply(PONG, payload))
    yield _failed("2.5", Frame(PING, b"\xfe" * 126))
    yield _clean("2.6", Frame(PING, long, chop=1), Reply(PONG, long))
    yield _closed("2.7", Frame(PONG), CLOSE_1000)
    yield _closed("2.8", unsolicited, CLOSE_1000)
    yield _clean("2.9", unsolicited, Frame(PING, b"ping payload"), Reply(PONG, b"ping payload"))
    payloads = [b"payload-%d" % n for n in range(10)]
    for number, chop in ((10, None), (11, 1)):
        yield _clean(
            f"2.{number}",
            *(Frame(PING, payload, chop=chop) for payload in payloads),
            *(Reply(PONG, payload) for payload in payloads),
        )


def _broken(number: str, bad: Frame) -> Case:
    """A good message, a bad frame, a ping: the first is echoed, the last not answered."""
    chop, alone = bad.chop, bad.alone
    return _failed(
        number,
        Frame(TEXT, HELLO, chop=chop, alone=alone),
        bad,
        Frame(PING, chop=chop, alone=alone),
        Reply(TEXT, HELLO),
    )


def _reserved_bits() -> Iterator[Case]:
    """Group 3."""
    yield _failed("3.1", Frame(TEXT, HELLO, reserved=1))
    yield _broken("3.2", Frame(TEXT, HELLO, reserved=2))
    yield _broken("3.3", Frame(TEXT, HELLO, reserved=3, alone=True))
    yield _broken("3.4", Frame(TEXT, HELLO, reserved=4, chop=1))
    yield _failed("3.5", Frame(BINARY, BYTES, reserved=5))
    yield _failed("3.6", Frame(BINARY, HELLO, reserved=6))
    yield _failed("3.7", Frame(CLOSE, reserved=7))


def _opcodes() -> Iterator[Case]:
    """Group 4: opcodes that mean nothing."""
    for group, first in ((1, 3), (2, 11)):
        yield _failed(f"4.{group}.1", Frame(first))
        yield _failed(f"4.{group}.2", Frame(first + 1, b"reserved opcode payload"))
        yield _broken(f"4.{group}.3", Frame(first + 2))
        yield _broken(f"4.{group}.4", Frame(first + 3, HELLO))
        yield _broken(f"4.{group}.5", Frame(first + 4, HELLO, chop=1))


def _fragmentation() -> Iterator[Case]:
    """Group 5."""
    one, two, three = b"fragment1", b"fragment2", b"fragment3"
    ping = b"ping payload"
    for number, opcode in ((1, PING), (2, PONG)):
        yield _failed(f"5.{number}", Frame(opcode, one, is_last=False), Frame(CONTINUATION, two))
    ways: tuple[tuple[int | None, bool], ...] = ((None, False), (None, True), (1, False))
    for number, (chop, alone) in enumerate(ways):
        start = Frame(TEXT, one, is_last=False, chop=chop, alone=alone)
        end = Frame(CONTINUATION, two, chop=chop, alone=alone)
        between = Frame(PING, ping, chop=chop, alone=alone)
        yield _clean(f"5.{3 + number}", start, end, Reply(TEXT, one + two))
        yield _clean(
            f"5.{6 + number}", start, between, end, Reply(PONG, ping), Reply(TEXT, one + two)
        )
        for first, is_last in ((9, True), (12, False)):
            nothing = b"non-continuation payload"
            yield _failed(
                f"5.{first + number}",
                Frame(CONTINUATION, nothing, is_last=is_last, chop=chop, alone=alone),
                Frame(TEXT, HELLO, chop=chop, alone=alone),
            )
    yield _failed(
        "5.15",
        Frame(TEXT, one, is_last=False),
        Frame(CONTINUATION, two),
        Frame(CONTINUATION, three, is_last=False),
        Frame(TEXT, b"fragment4"),
        Reply(TEXT, one + two),
    )
    for number, is_last in ((16, False), (17, True)):
        yield _failed(
            f"5.{number}",
            *(
                Frame(CONTINUATION, one, is_last=is_last),
                Frame(TEXT, two, is_last=False),
                Frame(CONTINUATION, three),
            )
            * 2,
        )
    yield _failed("5.18", Frame(TEXT, one, is_last=False), Frame(TEXT, two))
    for number, alone in ((19, False), (20, True)):
        yield _clean(
            f"5.{number}",
            Frame(TEXT, one, is_last=False, alone=alone),
            Frame(CONTINUATION, two, is_last=False, alone=alone),
            Frame(PING, b"pongme 1!", alone=alone),
            Reply(PONG, b"pongme 1!"),
            Frame(CONTINUATION, three, is_last=False, alone=alone),
            Frame(CONTINUATION, b"fragment4", is_last=False, alone=alone),
            Frame(PING, b"pongme 2!", alone=alone),
            Frame(CONTINUATION, b"fragment5", alone=alone),
            Reply(PONG, b"pongme 2!"),
            Reply(TEXT, b"fragment1fragment2fragment3fragment4fragment5"),
        )


KOSME = bytes.fromhex("ceba e1bdb9 cf83 cebc ceb5")  # Greek for "world"
EDITED = b"edited"

_VALID, _INVALID = True, False
_INCOMPLETE = (
    "c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf",
    "fdbfbfbfbf",
)  # fmt: skip
_HIGH_AND_LOW = ("eda080", "edadbf", "edae80", "edafbf"), ("edb080", "edbfbf")

UTF8: tuple[tuple[int, bool, tuple[str, ...]], ...] = (
    (7, _VALID, ("00", "c280", "e0a080", "f0908080")),  # the first of each length
    (8, _INVALID, ("f888808080", "fc8480808080")),
    (9, _VALID, ("7f", "dfbf", "efbfbf", "f48fbfbf")),  # the last of each length
    (10, _INVALID, ("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf")),
    (12, _INVALID, (  # continuation bytes alone
        "80", "bf", "80bf", "80bf80", "80bf80bf", "80bf80bf80", "80bf80bf80bf",
        bytes(range(0x80, 0xBF)).hex(),
    )),
    (13, _INVALID, tuple(  # start bytes alone
        "20".join(f"{byte:02x}" for byte in range(first, last)) + "20"
        for first, last in (
            (0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD)
        )
    )),
    (14, _INVALID, _INCOMPLETE),
    (15, _INVALID, ("".join(_INCOMPLETE),)),
    (16, _INVALID, ("fe", "ff", "fefeffff")),
    (17, _INVALID, ("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af")),  # overlong: "/"
    (18, _INVALID, ("c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf")),
    (19, _INVALID, ("c080", "e08080", "f0808080", "f880808080", "fc8080808080")),
    (20, _INVALID, (  # surrogates
        "eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf",
    )),
    (21, _INVALID, tuple(high + low for high in _HIGH_AND_LOW[0] for low in _HIGH_AND_LOW[1])),
    (22, _VALID, ("efbfbe", "efbfbf", *(  # the last two code points of each plane
        chr(plane << 16 | 0xFFFE | last).encode().hex()
        for plane in range(1, 17) for last in (0, 1)
    ))),
    (23, _VALID, ("efbfb9", "efbfba", "efbfbb", "efbfbc", "efbfbd", "efbfbe", "efbfbf")),
)  # fmt: skip


def _utf8() -> Iterator[Case]:
    """Group 6: text is UTF-8, and what is not fails as soon as it is seen."""
    yield _clean("6.1.1", *_echoed(TEXT, b""))
    for number, payload in ((2, b""), (3, b"middle frame payload")):
        yield _clean(
            f"6.1.{number}",
            Frame(TEXT, is_last=False),
            Frame(CONTINUATION, payload, is_last=False),
            Frame(CONTINUATION),
            Reply(TEXT, payload),
        )
    halves = "Hello-µ@ßöä".encode(), "üàá-UTF-8!!".encode()
    hello = b"".join(halves)
    yield _clean("6.2.1", *_echoed(TEXT, hello))
    yield _clean(
        "6.2.2",
        Frame(TEXT, halves[0], is_last=False),
        Frame(CONTINUATION, halves[1]),
        Reply(TEXT, hello),
    )
    yield _clean("6.2.3", Fragments(TEXT, hello, 1), Reply(TEXT, hello))
    yield _clean("6.2.4", Fragments(TEXT, KOSME, 1), Reply(TEXT, KOSME))

    surrogate = KOSME + b"\xed\xa0\x80" + EDITED
    yield _failed("6.3.1", Frame(TEXT, surrogate), codes=(1007,))
    yield _failed("6.3.2", Fragments(TEXT, surrogate, 1), codes=(1007,))

    too_high = KOSME + b"\xf4\x90\x80\x80" + EDITED  # U+110000; wrong from its second byte on
    for number, (first, second) in enumerate(((11, 15), (12, 13)), 1):
        yield _failed(
            f"6.4.{number}",
            Frame(TEXT, too_high[:first], is_last=False),
            Quiet(),
            Frame(CONTINUATION, too_high[first:second], is_last=False),
            codes=(1007,),
        )
        yield _failed(
            f"6.4.{number + 2}", Frame(TEXT, too_high, cuts=(first, second)), codes=(1007,)
        )

    inside = (b"hello%sworld" % sign.encode() for sign in ("$", "¢", "€", "𤭢"))
    for number, payload in enumerate((*inside, KOSME), 1):
        yield _clean(f"6.5.{number}", *_echoed(TEXT, payload))
    ends = {2, 5, 7, 9, 11}  # of the letters
    for size in range(1, len(KOSME) + 1):
        yield _text(f"6.6.{size}", KOSME[:size], is_valid=size in ends)
    boundaries = ("ed9fbf", "ee8080", "efbfbd", "f48fbfbf", "f4908080")
    for number, sequence in enumerate(boundaries, 1):
        yield _text(f"6.11.{number}", bytes.fromhex(sequence), is_valid=number < 5)
    for group, is_valid, sequences in UTF8:
        for number, sequence in enumerate(sequences, 1):
            yield _text(f"6.{group}.{number}", bytes.fromhex(sequence), is_valid=is_valid)


def _text(number: str, payload: bytes, *, is_valid: bool) -> Case:
    if is_valid:
        return _clean(number, *_echoed(TEXT, payload))
    return _failed(number, Frame(TEXT, payload), codes=(1007,))


def _closes() -> Iterator[Case]:
    """Group 7."""
    yield _clean("7.1.1", *_echoed(TEXT, b"Hello World!"))
    yield _closed("7.1.2", CLOSE_1000, Frame(CLOSE))
    yield _closed("7.1.3", CLOSE_1000, Frame(PING))
    yield _closed("7.1.4", CLOSE_1000, Frame(TEXT, b"Hello World!"))
    yield _closed(
        "7.1.5",
        Frame(TEXT, b"fragment1", is_last=False),
        CLOSE_1000,
        Frame(CONTINUATION, b"fragment2"),
    )
    long = Repeated(b"BAsd7&jh23", 256 * 1024)
    yield _closed(  # to the suite for information; what was said before a close is echoed before it
        "7.1.6",
        Frame(TEXT, long, alone=True),
        Frame(TEXT, b"Hello World!"),
        CLOSE_1000,
        Frame(PING),
        Reply(TEXT, long),
        Reply(TEXT, b"Hello World!"),
    )
    yield _closed("7.3.1", Frame(CLOSE), codes=(1000, None))
    yield _failed("7.3.2", Frame(CLOSE, b"a"))
    yield _closed("7.3.3", CLOSE_1000)
    yield _closed("7.3.4", Frame(CLOSE, b"\x03\xe8Hello World!"))
    yield _closed("7.3.5", Frame(CLOSE, b"\x03\xe8" + b"*" * 123))
    yield _failed("7.3.6", Frame(CLOSE, b"\x03\xe8" + b"*" * 124))
    surrogate = KOSME + b"\xed\xa0\x80" + EDITED
    yield _failed("7.5.1", Frame(CLOSE, b"\x03\xe8" + surrogate), codes=(1002, 1007))
    good = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    for number, code in enumerate(good, 1):
        yield _closed(f"7.7.{number}", Frame(CLOSE, code.to_bytes(2, "big")), codes=(1000, code))
    for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
        yield _failed(f"7.9.{number}", Frame(CLOSE, code.to_bytes(2, "big")))
    for number, code in enumerate((5000, 65535), 1):  # to the suite for information
        yield _failed(f"7.13.{number}", Frame(CLOSE, code.to_bytes(2, "big")))


def _sizes() -> Iterator[Case]:
    """Group 9: long messages, many fragments, many pieces, many messages."""
    kib, mib = 1024, 1024 * 1024
    text, binary = b"BAsd7&jh23", b"\x00\xfe\x23\xfa\xf0"
    for number, size in enumerate((64 * kib, 256 * kib, mib, 4 * mib, 8 * mib, 16 * mib), 1):
        yield _clean(f"9.1.{number}", *_echoed(TEXT, Repeated(text, size)))
        yield _clean(f"9.2.{number}", *_echoed(BINARY, Repeated(binary, size)))
    fragments = (64, 256, kib, 4 * kib, 16 * kib, 64 * kib, 256 * kib, mib, 4 * mib)
    for number, size in enumerate(fragments, 1):
        stars = Repeated(b"*", 4 * mib)
        yield _clean(f"9.3.{number}", Fragments(TEXT, stars, size), Reply(TEXT, stars))
        other = Repeated(b"\xfe", 4 * mib) if number == 1 else stars
        yield _clean(f"9.4.{number}", Fragments(BINARY, other, size), Reply(BINARY, other))
    for number, chop in enumerate((64, 128, 256, 512, 1024, 2048), 1):
        yield _clean(f"9.5.{number}", *_echoed(TEXT, Repeated(text, mib), chop))
        yield _clean(f"9.6.{number}", *_echoed(BINARY, Repeated(binary, mib), chop))
    for number, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
        yield _clean(f"9.7.{number}", RoundTrips(TEXT, b"*" * size, 1000))
        yield _clean(f"9.8.{number}", RoundTrips(BINARY, b"\xfe" * size, 1000))


def _automatic_fragmentation() -> Iterator[Case]:
    """Group 10."""
    stars = b"*" * 65536
    yield _clean("10.1.1", Fragments(TEXT, stars, 1300), Reply(TEXT, stars))


def cases() -> Iterator[Case]:
    """All of them, group by group."""
    for group in (
        _framing, _pings, _reserved_bits, _opcodes, _fragmentation, _utf8, _closes, _sizes,
        _automatic_fragmentation,
    ):  # fmt: skip
        yield from group()
