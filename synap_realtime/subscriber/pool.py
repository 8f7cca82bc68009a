"""Choose the connection that a subscription shares.

See PROTOCOL.md, "Clients".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from ..protocol.rooms import Room
from .options import Options
from .shared import ConnectionOptions, SharedConnection

REFUSED_FOR_S = 300.0
"""A server that has no connections with many rooms is asked again after this time."""

Key = tuple[str, object]


class OneRoomOnlyError(Exception):
    """The server has no connections with many rooms: use one for each.

    Attributes:
        positions: where each room continues.
        token: the token of the function that was not used; None if there is none.
    """

    def __init__(self, positions: Mapping[Room, str | None], token: str | None = None) -> None:
        super().__init__()
        self.positions = positions
        self.token = token


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

    def find(
        self, options: Options, create: Callable[[ConnectionOptions], ConnectionT]
    ) -> ConnectionT:
        """Return a connection for a subscription: one that others with a single room share, too.

        One room is subscribed once on each connection. Several rooms have a connection of their
        own: their consumer is often behind, and leaving them for others costs too many messages.

        Raises:
            OneRoomOnlyError: the server has no such connections.
        """
        if self._refused_until.get(str(options.address.url), 0.0) > self._clock():
            raise OneRoomOnlyError(options.positions)
        common = ConnectionOptions(options.address, options.token)
        if len(options.positions) > 1:
            return create(common)
        (room,) = options.positions
        connections = self._connections.setdefault(_key_of(common), [])
        for connection in connections:
            if connection.shared.can_add(room):
                return connection
        connection = create(common)
        connections.append(connection)
        return connection

    def remove(self, connection: ConnectionT) -> None:
        """Forget a connection that has ended, or that nobody uses any more."""
        key = _key_of(connection.shared.options)
        connections = self._connections.get(key, [])
        if connection in connections:
            connections.remove(connection)
        if not connections:
            self._connections.pop(key, None)

    def refuse(self, options: ConnectionOptions) -> None:
        """Note that a server has no connections with many rooms."""
        self._refused_until[str(options.address.url)] = self._clock() + REFUSED_FOR_S


def _key_of(options: ConnectionOptions) -> Key:
    token: object = options.token
    try:
        hash(token)
    except TypeError:  # an object with __call__ and __eq__, which its connection keeps alive
        token = id(token)
    return str(options.address.url), token
