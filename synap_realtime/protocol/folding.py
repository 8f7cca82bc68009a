"""The member ``fold`` of a notification. See PROTOCOL.md, "Folding"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic_core import to_json

from ..errors import InvalidArgumentError

MAX_KEY_LENGTH = 128
"""The longest key, in characters, which are printable ones of ASCII."""

MAX_ATTEMPT = 2**31 - 1
"""The highest attempt, and the highest offset."""

Mode = Literal["append", "replace"]
"""``append``: the texts of a key's notifications are joined. ``replace``: the last one counts."""

_KEY = re.compile(rf"[ -~]{{1,{MAX_KEY_LENGTH}}}")
_MEMBERS = {"key", "mode", "attempt", "offset", "final"}


class Fold(NamedTuple):
    """How a notification is folded into the one that the log already has for its key.

    Attributes:
        key: the key, which names the folded notification in its room.
        mode: how the two are combined.
        attempt: a fencing number. A write with a lower one than the key has is rejected, and a
            higher one starts the key again.
        final: whether the key is closed after this write.
        offset: how many code points of the text come before the piece; None: the piece is appended
            at the end. Always None for ``replace``.
        piece: for ``append``, the piece of the text (``data.delta``), else empty.
        size: bytes that the piece takes inside a JSON string. The size of a text is the sum of
            those of its pieces.
    """

    key: str
    mode: Mode
    attempt: int = 0
    final: bool = False
    offset: int | None = None
    piece: str = ""
    size: int = 0

    @property
    def keeps_id(self) -> bool:
        """Whether a repeated write is recognized by its id, and not by its offset alone.

        A final one is, because it may have closed the key, and its text is a new one then.
        """
        return self.offset is None or self.final

    def placed_at(self, offset: int) -> Fold:
        """Return the write with the offset of its piece, which the store has decided."""
        return self if self.mode == "replace" else self._replace(offset=offset)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object without ``offset``, which the store decides and adds."""
        wire: dict[str, Any] = {"key": self.key, "mode": self.mode, "attempt": self.attempt}
        return {**wire, "final": True} if self.final else wire


def is_key(value: str) -> bool:
    """Return whether a string can be the key of a fold."""
    return _KEY.fullmatch(value) is not None


def make_fold(
    key: str,
    mode: Mode,
    piece: str = "",
    *,
    attempt: int = 0,
    offset: int | None = None,
    final: bool = False,
) -> Fold:
    """Return a fold with the size of its piece. The arguments are those of :class:`Fold`."""
    size = len(to_json(piece)) - 2
    return Fold(key, mode, attempt, final, offset, piece, size)


def parse_fold(value: object, data: Mapping[str, Any]) -> Fold:
    """Validate the decoded member ``fold`` of a notification.

    An optional member that is null counts as absent.

    Args:
        value: the member.
        data: the notification's ``data``, which has the piece of the text.

    Raises:
        InvalidArgumentError: names the first invalid member, as ``fold.key``.
    """
    if not isinstance(value, dict):
        raise InvalidArgumentError("fold", "expected a JSON object with key and mode")
    for name in value:
        if name not in _MEMBERS:
            raise InvalidArgumentError("fold", f"unknown member {ascii(name)[:60]}")
    key, mode = value.get("key"), value.get("mode")
    if not isinstance(key, str) or not is_key(key):
        raise InvalidArgumentError(
            "fold.key", f"expected 1 to {MAX_KEY_LENGTH} printable ASCII characters"
        )
    if not (mode == "append" or mode == "replace"):
        raise InvalidArgumentError("fold.mode", "expected 'append' or 'replace'")
    attempt = parse_number("fold.attempt", value.get("attempt")) or 0
    offset = parse_number("fold.offset", value.get("offset"))
    final = value.get("final")
    if final is not None and not isinstance(final, bool):
        raise InvalidArgumentError("fold.final", "expected true or false")
    if mode == "replace":
        if offset is not None:
            raise InvalidArgumentError("fold.offset", "not allowed with mode 'replace'")
        return Fold(key, "replace", attempt, bool(final))
    piece = data.get("delta")
    if not isinstance(piece, str):
        raise InvalidArgumentError("data.delta", "expected a string with fold.mode 'append'")
    try:
        return make_fold(key, "append", piece, attempt=attempt, offset=offset, final=bool(final))
    except ValueError:  # a PydanticSerializationError: UTF-8 cannot encode it
        raise InvalidArgumentError(
            "data.delta", "contains a lone surrogate, which is not Unicode text"
        ) from None


def parse_number(field: str, value: Any) -> int | None:
    """Validate an attempt or an offset. None counts as absent.

    Raises:
        InvalidArgumentError: names the field.
    """
    if value is None:
        return None
    # JSON does not distinguish 1.0 from 1.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 <= value <= MAX_ATTEMPT and value == int(value):
        return int(value)
    raise InvalidArgumentError(field, f"expected an integer from 0 to {MAX_ATTEMPT}")
