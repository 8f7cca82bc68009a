"""What a store does with notifications that have ``fold``: the rules, without storage.

See PROTOCOL.md, "Folding". A store keeps a :class:`KeyState` for each key of a room, beside the log
entry that it belongs to, and asks :func:`place_write` what a write does to it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple, Protocol

import pydantic_core

from ...protocol.folding import MAX_ATTEMPT, Fold, Mode, parse_fold

MAX_FOLDED_BYTES = 1024 * 1024 - 1024
"""The largest folded notification, in bytes of UTF-8 JSON without ``room`` and ``cursor``.

With them it is at most 1 MiB, which is the largest message that clients read.
"""

MAX_PAGE_BYTES = 1024 * 1024
"""A page ends with the entry by which its folded entries reach this size, in bytes.

A reader holds a page in memory, and folded entries are larger than others.
"""

MAX_OPEN_KEYS = 64
"""Most open keys of a room. For another one, a store closes the key that is idle longest, if that
is :data:`IDLE_KEY_S`; else the result is :data:`TOO_MANY_KEYS`."""

IDLE_KEY_S = 600.0
"""After this time without a write, in seconds, a key may be closed for another one."""


class Conflict(NamedTuple):
    """Why a write was not stored. It had no effect.

    Attributes:
        code: as in PROTOCOL.md, "Errors".
        details: the cause, for the publisher.
        offset: where the next piece has to begin; None if that is not the cause.
        attempt: the attempt of the key; None if the key is not the cause.
    """

    code: str
    details: str
    offset: int | None = None
    attempt: int | None = None


TOO_MANY_KEYS = Conflict(
    "too_many_keys",
    f"fold.key: the room has {MAX_OPEN_KEYS} open keys; close one with a final write",
)

TOO_LARGE = Conflict(
    "payload_too_large", f"a folded notification has at most {MAX_FOLDED_BYTES} bytes"
)


def stale_attempt(fold: Fold, attempt: int) -> Conflict:
    """Return the conflict of a write whose attempt is lower than that of its key."""
    details = f"fold.attempt: got {fold.attempt}, and the key has attempt {attempt}"
    return Conflict("stale_attempt", details, attempt=attempt)


def other_mode(mode: Mode, attempt: int) -> Conflict:
    """Return the conflict of a write to an open key of this mode, and not of its own."""
    details = f"fold.mode: the key has mode '{mode}' until its final write"
    return Conflict("fold_mode", details, attempt=attempt)


def offset_mismatch(fold: Fold, length: int, attempt: int) -> Conflict:
    """Return the conflict of a piece with another offset than the length of the text."""
    details = f"fold.offset: got {fold.offset}, and the text has {length} code points"
    return Conflict("offset_mismatch", details, offset=length, attempt=attempt)


RUN_HAS_ENDED = Conflict(
    "stale_attempt", "fold.key: the run that it belongs to has ended", attempt=MAX_ATTEMPT
)


class Effect(Enum):
    """What a write does to the key that it names."""

    BEGIN = auto()
    """It begins a new entry. That of a closed key of this name stays, as an ordinary one."""

    RESTART = auto()
    """It replaces the entry of the key and its whole text: its attempt is a higher one."""

    CONTINUE = auto()
    """It replaces the entry of the key, and its piece continues the text."""


class Placement(NamedTuple):
    """A write that is to be stored.

    Attributes:
        effect: what it does to the key.
        offset: the offset of the piece in the text; 0 for ``replace``.
        length: the length of the text afterwards, in code points.
        size: the size of the text afterwards, in bytes as part of a JSON string.
    """

    effect: Effect
    offset: int
    length: int
    size: int


class Repeated(Enum):
    """The piece is in the text already, where it belongs."""

    REPEATED = auto()


REPEATED = Repeated.REPEATED


class KeyFields(Protocol):
    """What is known of a key beside its text. A key that was closed keeps its last values.

    Attributes:
        mode: of all its writes.
        attempt: of its last write.
        length: the length of its text in code points.
        size: bytes that its text takes inside a JSON string.
        is_closed: whether the last write was final, or the key was closed for another one.
    """

    @property
    def mode(self) -> Mode: ...
    @property
    def attempt(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def is_closed(self) -> bool: ...


def place_write(
    key: KeyFields | None, fold: Fold, text: str, read: Callable[[int, int], str]
) -> Placement | Repeated | Conflict:
    """Return what a write does to its key.

    Args:
        key: the key; None if the log has no entry of it.
        fold: the write.
        text: the notification as JSON.
        read: returns a part of the key's text, between two offsets in code points.
    """
    effect = Effect.BEGIN
    if key is not None:
        if fold.attempt < key.attempt:
            return stale_attempt(fold, key.attempt)
        if not key.is_closed:
            if fold.mode != key.mode:
                return other_mode(key.mode, key.attempt)
            effect = Effect.CONTINUE if fold.attempt == key.attempt else Effect.RESTART
    length, size = (key.length, key.size) if key and effect is Effect.CONTINUE else (0, 0)
    if fold.offset is not None and fold.offset != length:
        if key is not None and fold.attempt == key.attempt and _holds_piece(key, fold, read):
            return REPEATED
        return offset_mismatch(fold, length, fold.attempt if key is None else key.attempt)
    placement = Placement(effect, length, length + len(fold.piece), size + fold.size)
    if fold.mode == "append" and other_size(text, fold) + placement.size > MAX_FOLDED_BYTES:
        return TOO_LARGE
    return placement


def _holds_piece(key: KeyFields, fold: Fold, read: Callable[[int, int], str]) -> bool:
    """Return whether the piece of a write is in the text of the key at its offset."""
    if key.mode != fold.mode or fold.offset is None:
        return False
    end = fold.offset + len(fold.piece)
    return end <= key.length and read(fold.offset, end) == fold.piece


def other_size(text: str, fold: Fold) -> int:
    """Return how many bytes a folded notification has beside its text, or a few more.

    Args:
        text: the last write as JSON.
        fold: its ``fold``.
    """
    return utf8_size(text) - fold.size + len(',"offset":0')


def utf8_size(text: str) -> int:
    """Return the length of a text in bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def with_offset(text: str, fold: Fold) -> str:
    """Return a notification as it is delivered live: with ``fold.offset`` for ``append``.

    Args:
        text: the notification as JSON. Its last member is ``fold``, without ``offset``.
        fold: the write, with its offset.
    """
    return text if fold.offset is None else f'{text[:-2]},"offset":{fold.offset}}}}}'


def parse_live(text: str) -> Fold:
    """Return the member ``fold`` of a notification as :func:`with_offset` returned it.

    Raises:
        ValueError: another node has published something else.
    """
    wire = pydantic_core.from_json(text)
    if not isinstance(wire, dict) or not isinstance(data := wire.get("data"), dict):
        raise ValueError("not a notification")  # noqa: TRY004 - as from_json
    return parse_fold(wire.get("fold"), data)


def expand(text: str, whole: str, size: int) -> tuple[str, Fold]:
    """Return a notification of the mode ``append`` as the log has it, with the whole text.

    Args:
        text: the last write as JSON, perhaps with ``room`` and ``cursor``.
        whole: the text of its key.
        size: bytes that the text takes inside a JSON string.

    Returns:
        The notification as JSON, and its ``fold``.
    """
    wire = pydantic_core.from_json(text)
    data, fold = wire["data"], wire["fold"]
    data["delta"], fold["offset"] = whole, 0
    if "index" in data:
        data["index"] = 0
    final = fold.get("final", False)
    parsed = Fold(fold["key"], "append", fold["attempt"], final, 0, whole, size)
    return pydantic_core.to_json(wire).decode(), parsed


class PieceText:
    """A text to which pieces are appended. It copies each character a few times only.

    It holds chunks, each at least twice as long as the next. So there are about 20 in a mebibyte,
    and a character is copied once for each chunk that it has been in.
    """

    __slots__ = ("_chunks", "length")

    def __init__(self, text: str = "") -> None:
        self._chunks = [text] if text else []
        self.length = len(text)

    def append(self, piece: str) -> None:
        """Add a piece at the end."""
        if not piece:
            return
        self.length += len(piece)
        chunks = self._chunks
        while chunks and len(chunks[-1]) < 2 * len(piece):
            piece = chunks.pop() + piece
        chunks.append(piece)

    def read(self, start: int, end: int) -> str:
        """Return the part between two offsets, of which the first is not the higher one."""
        if start >= self.length:
            return ""
        parts = []
        begin = self.length
        for chunk in reversed(self._chunks):
            begin -= len(chunk)
            if begin < end:
                parts.append(chunk[max(start - begin, 0) : end - begin])
            if begin <= start:
                break
        return "".join(reversed(parts))

    def whole(self) -> str:
        """Return the text."""
        if len(self._chunks) > 1:
            self._chunks = ["".join(self._chunks)]
        return self._chunks[0] if self._chunks else ""

    def chunks(self) -> list[str]:
        """Return the strings that hold the text in memory."""
        return self._chunks
