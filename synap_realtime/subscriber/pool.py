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


class PooledConnection(Protocol):
    """A connection as a driver runs it.

    Attributes:
        shared: its subscriptions.
    """

    shared: SharedConnection


ConnectionT = TypeVar("ConnectionT", bound=PooledConnection)


class Pool(Generic[ConnectionT]):
    """The open connections, by server and credential. Pure: with threads, it needs a lock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._connections: dict[Key, list[ConnectionT]] = {}
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

    def find(
        self, options: Options, create: Callable[[ConnectionOptions], ConnectionT]
    ) -> ConnectionT:
        """Return a connection with a place for a room; one room is subscribed once on each."""
        connections = self._connections.setdefault(_key_of(options.address.url, options.token), [])
        for connection in connections:
            if connection.shared.can_add(options.room):
                return connection
        connection = create(ConnectionOptions(options.address, options.token))
        connections.append(connection)
        return connection

    def remove(self, connection: ConnectionT) -> None:
        """Forget a connection that has ended, or that nobody uses any more."""
        options = connection.shared.options
        key = _key_of(options.address.url, options.token)
        connections = self._connections.get(key, [])
        if connection in connections:
            connections.remove(connection)
        if not connections:
            self._connections.pop(key, None)

    def refuse(self, options: ConnectionOptions) -> None:
        """Note that a server has no connections with many rooms."""
        self._refused_until[str(options.address.url)] = self._clock() + REFUSED_FOR_S


def _key_of(url: object, token: object) -> Key:
    return str(url), token
