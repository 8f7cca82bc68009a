"""Choose the connection that a subscription shares.

See PROTOCOL.md, "Clients".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from .options import Options
from .shared import ConnectionOptions, SharedConnection

REFUSED_FOR_S = 300.0
"""A server that has no connections with many rooms is asked again after this time."""

Key = tuple[str, object]


class SharedLine(Protocol):
    """A connection as a driver runs it.

    Attributes:
        shared: its subscriptions.
    """

    shared: SharedConnection


LineT = TypeVar("LineT", bound=SharedLine)


class Pool(Generic[LineT]):
    """The open connections, by server and credential. Pure: with threads, it needs a lock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines: dict[Key, list[LineT]] = {}
        self._refused_until: dict[str, float] = {}

    def can_share(self, options: Options) -> bool:
        """Return whether a subscription can share a connection."""
        if self._refused_until.get(str(options.address.url), 0.0) > self._clock():
            return False
        try:
            hash(options.token)
        except TypeError:  # an object with __call__ and __eq__
            return False
        return True

    def find(self, options: Options, create: Callable[[ConnectionOptions], LineT]) -> LineT:
        """Return a connection with a place for a room; one room is subscribed once on each."""
        lines = self._lines.setdefault(_key_of(options.address.url, options.token), [])
        for line in lines:
            if line.shared.can_add(options.room):
                return line
        line = create(ConnectionOptions(options.address, options.token))
        lines.append(line)
        return line

    def remove(self, line: LineT) -> None:
        """Forget a connection that has ended, or that nobody uses any more."""
        options = line.shared.options
        key = _key_of(options.address.url, options.token)
        lines = self._lines.get(key, [])
        if line in lines:
            lines.remove(line)
        if not lines:
            self._lines.pop(key, None)

    def refuse(self, options: ConnectionOptions) -> None:
        """Note that a server has no connections with many rooms."""
        self._refused_until[str(options.address.url)] = self._clock() + REFUSED_FOR_S


def _key_of(url: object, token: object) -> Key:
    return str(url), token
