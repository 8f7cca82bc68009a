"""Values that are not in the file yet: acknowledged cursors, and counts of subscribers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from ....protocol.rooms import Room

AckKey = tuple[Room, str | None]
"""A room and a device; None stands for the whole room."""

K = TypeVar("K")

Pending = tuple[int]
"""A value. Two of the same value are different objects, so that a later one is recognized."""


class PendingValues(Generic[K]):
    """The latest values that are not in the file yet, in the order in which they were set.

    The event loop changes them. The writing thread takes a snapshot, which it hands back once it is
    in the file.
    """

    def __init__(self) -> None:
        self._values: dict[K, Pending] = {}

    def get(self, key: K) -> int | None:
        value = self._values.get(key)
        return None if value is None else value[0]

    def set(self, key: K, value: int) -> None:
        """Set a value, which is then the last in the order."""
        self._values.pop(key, None)
        self._values[key] = (value,)

    def snapshot(self) -> Mapping[K, Pending]:
        """Return a copy of all values. Safe in any thread."""
        return self._values.copy()

    def discard(self, written: Mapping[K, Pending]) -> None:
        """Remove the values of a snapshot, except those that were set again since."""
        for key, value in written.items():
            if self._values.get(key) is value:
                del self._values[key]
