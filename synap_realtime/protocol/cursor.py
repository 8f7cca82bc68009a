"""Define positions in a room's log. See PROTOCOL.md, "Terminology" and "Subscribing"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import InvalidArgumentError
from .rooms import Room

_CURSOR = re.compile(r"([A-Za-z0-9]{1,32})-([0-9]{1,18})")


class Cursor(NamedTuple):
    """A position in a room's log.

    ``epoch`` identifies the store's log, so that a cursor of a lost log is recognised. ``offset``
    grows within a room; 0 is before the first notification.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def parse_cursor(text: str) -> Cursor:
    """Parse a cursor that :meth:`Cursor.__str__` returned.

    Raises:
        InvalidArgumentError: it is not a cursor.
    """
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidArgumentError("after", "expected a cursor, 'earliest' or 'latest'")
    return Cursor(match[1], int(match[2]))


def is_cursor(text: str) -> bool:
    return _CURSOR.fullmatch(text) is not None


def format_positions(positions: Mapping[Room, str]) -> str:
    """Return the positions in several rooms as one id of an event: ``room/cursor,room/cursor``.

    Neither a room nor a cursor contains one of the separators.
    """
    return ",".join([f"{room}/{cursor}" for room, cursor in positions.items()])


def parse_positions(text: str) -> dict[str, str] | None:
    """Parse what :func:`format_positions` returned. None if it is not that."""
    positions = {}
    for part in text.split(","):
        room, _, cursor = part.strip().partition("/")
        if not room or not is_cursor(cursor):
            return None
        positions[room] = cursor
    return positions
