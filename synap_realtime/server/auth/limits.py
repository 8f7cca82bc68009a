"""Limit connections and rates per caller. See PROTOCOL.md, "Limits".

Rates are counted by GCRA, which has no windows whose edges let twice the rate through. The tables
have a bounded size: unauthenticated clients cannot fill the memory, because the least recently
charged entry is evicted first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, NoReturn

from ...loopback import is_loopback
from ...protocol.rooms import Room
from ..config import ServerSettings
from ..errors import RateLimitedError, UserConnectionLimitError
from ..stores.base import SharedRateStore, UserConnectionStore
from .claims import Claims
from .shared_rates import SharedRates

MAX_TRACKED_KEYS = 100_000
"""The maximum number of callers that each rate counts."""


class ConnectionSlot(NamedTuple):
    """The counters that one connection occupies.

    Attributes:
        room: its room; None if it has many, which are counted by :meth:`Limits.admit_room`.
    """

    user: str | None
    room: Room | None
    address: str | None


def slot_of(claims: Claims, room: Room | None, address: str | None) -> ConnectionSlot:
    """Return the counters that a connection of this client occupies."""
    return ConnectionSlot(claims.user, room, _limited_address(address))


class Limits:
    """The counters of one node, and its part of what nodes share."""

    def __init__(
        self,
        settings: ServerSettings,
        rates: SharedRateStore | None = None,
        connections: UserConnectionStore | None = None,
    ) -> None:
        """
        Args:
            rates: where the nodes share the rates of publishers; None: this node alone counts them.
            connections: where they share the connections of each user; None: likewise.
        """
        self._settings = settings
        self._shared_connections = connections if settings.max_connections_per_user else None
        self._shared: SharedRates | None = None
        if rates is not None:
            shared = {
                "notifications": settings.publishes_per_s, "bytes": settings.publish_bytes_per_s
            }  # fmt: skip
            self._shared = SharedRates(rates, shared, most=MAX_TRACKED_KEYS)
        self._connects = _Rate(settings.new_connections_per_s)
        self._publishes = _Rate(settings.publishes_per_s)
        self._bytes = _Rate(settings.publish_bytes_per_s)
        self._messages = _Rate(settings.client_messages_per_s)
        self._requests = _Budget(settings.requests_per_s)
        self._attempts = _Budget(settings.requests_per_s)
        self._read = _Budget(settings.read_bytes_per_s)
        self.count_publishes = bool(settings.publishes_per_s or settings.publish_bytes_per_s)
        self._connections = 0
        self._by_user: dict[str, int] = {}
        self._by_room: dict[str, int] = {}
        self._by_address: dict[str, int] = {}

    def check_publish(self, claims: Claims, count: int, size: int) -> Awaitable[None] | None:
        """Count notifications and their bytes, each once for each of its rooms.

        A rejected request counts nothing. Without keys there is no limit.

        Returns:
            None if they are counted; else what to await, because the store has to be asked. It
            raises StoreUnavailableError if the store cannot answer.

        Raises:
            RateLimitedError: over the limit.
        """
        who = claims.caller
        if who is None:
            return None
        if self._shared is not None:
            if self._shared.take_leased(who, (count, size)):
                return None
            return self._take_shared(self._shared, who, (count, size))
        if wait_s := self._publishes.acquire(who, count):
            self._reject_publish(wait_s, 0.0)
        elif wait_s := self._bytes.acquire(who, size):
            self._publishes.release(who, count)
            self._reject_publish(0.0, wait_s)
        return None

    async def _take_shared(self, rates: SharedRates, who: str, costs: Sequence[int]) -> None:
        waits = await rates.take(who, costs)
        if any(waits):
            self._reject_publish(*waits)

    def _reject_publish(self, notifications_s: float, bytes_s: float) -> NoReturn:
        """Reject a publish of a caller who has to wait for so many seconds."""
        if notifications_s:
            most, what = self._settings.publishes_per_s, "notifications"
        else:
            most, what = self._settings.publish_bytes_per_s, "bytes"
        raise RateLimitedError(
            f"rate limit exceeded: {most} {what}/s per key", notifications_s or bytes_s
        )

    def check_request(self, claims: Claims | None, address: str | None) -> None:
        """Count a request other than a publish, and check that its caller may read more.

        Args:
            claims: of a valid credential; None counts the request for the address.

        Raises:
            RateLimitedError: over the limit.
        """
        who = _caller(claims, address)
        if who is None:
            return
        if wait_s := self._requests.spend(who, 1):
            most, what = self._settings.requests_per_s, "requests"
        elif wait_s := self._read.try_acquire(who):
            most, what = self._settings.read_bytes_per_s, "read bytes"
        else:
            return
        raise RateLimitedError(
            f"rate limit exceeded: {most} {what}/s per user, key or address", wait_s
        )

    def count_read(self, claims: Claims | None, address: str | None, size: int) -> None:
        """Count the bytes of a response.

        They may exceed the limit. Then the next requests are rejected until the excess is made up.
        """
        who = _caller(claims, address)
        if who is not None:
            self._read.charge(who, size)

    def check_attempt(self, address: str | None) -> None:
        """Check that an address may try another token.

        Verifying a token costs more than anything else that an unauthenticated client can request.

        Raises:
            RateLimitedError: over the limit.
        """
        who = _limited_address(address)
        if who is not None and (wait_s := self._attempts.try_acquire(who)):
            most = self._settings.requests_per_s
            raise RateLimitedError(
                f"rate limit exceeded: {most} failed attempts/s per address", wait_s
            )

    def check_publisher(self, claims: Claims) -> None:
        """Check that a publisher has not had too many rejected requests.

        Accepted publishes have their own limits.

        Raises:
            RateLimitedError: over the limit.
        """
        who = claims.caller
        if who is not None and (wait_s := self._requests.try_acquire(who)):
            most = self._settings.requests_per_s
            raise RateLimitedError(
                f"rate limit exceeded: {most} rejected requests/s per user or key", wait_s
            )

    def count_failed_attempt(self, address: str | None) -> None:
        """Count an invalid token of this address."""
        if (who := _limited_address(address)) is not None:
            self._attempts.charge(who, 1)

    def count_rejection(self, claims: Claims, address: str | None) -> None:
        """Count a rejected request of an authenticated client, because rejecting it has a cost."""
        if (who := _caller(claims, address)) is not None:
            self._requests.charge(who, 1)

    def allow_message(self, connection: int) -> bool:
        """Count a message of a connection. Return False if it is over the limit."""
        return not self._messages.acquire(str(connection), 1)

    async def admit(self, claims: Claims, room: Room | None, address: str | None) -> ConnectionSlot:
        """Count a connection. Call :meth:`release` when it has ended.

        Args:
            room: None for a connection with many rooms; see :meth:`admit_room`.

        Raises:
            RateLimitedError: over the limit in total, of rooms, of this room, or of this address.
            UserConnectionLimitError: over the limit of this user, at all nodes.
            StoreUnavailableError: the connections at other nodes cannot be counted now.
        """
        slot = self._acquire(claims, room, address)
        shared = self._shared_connections
        if shared is None or slot.user is None:
            return slot
        most = self._settings.max_connections_per_user
        try:
            is_counted = await shared.acquire_connection(slot.user, most)
        except BaseException:
            self._release(slot)
            raise
        if not is_counted:
            self._release(slot)
            raise UserConnectionLimitError(most)
        return slot

    def admit_room(self, room: Room) -> None:
        """Count a room of a connection with many. Call :meth:`release_room` when it has ended.

        Raises:
            RateLimitedError: over the limit of rooms, or of connections of this room.
        """
        self._check_room(room)
        self._by_room[room] = self._by_room.get(room, 0) + 1

    def release_room(self, room: Room) -> None:
        _decrement(self._by_room, room)

    def release(self, slot: ConnectionSlot) -> None:
        self._release(slot)
        if self._shared_connections is not None and slot.user is not None:
            self._shared_connections.release_connection(slot.user)

    def _acquire(self, claims: Claims, room: Room | None, address: str | None) -> ConnectionSlot:
        """Count a connection at this node.

        Raises:
            RateLimitedError: over a limit.
        """
        settings = self._settings
        slot = slot_of(claims, room, address)
        source, user = slot.address, slot.user
        if source is not None:
            if wait_s := self._connects.acquire(source, 1):
                raise RateLimitedError(
                    f"rate limit exceeded: {settings.new_connections_per_s} new connections/s "
                    "per address",
                    wait_s,
                )
            if _at_limit(self._by_address.get(source, 0), settings.max_connections_per_address):
                most = settings.max_connections_per_address
                raise RateLimitedError(f"connection limit ({most}) per address reached", 10)
        if _at_limit(self._connections, settings.max_connections):
            raise RateLimitedError(f"connection limit ({settings.max_connections}) reached", 10)
        if room is not None:
            self._check_room(room)
        if user is not None and _at_limit(
            self._by_user.get(user, 0), settings.max_connections_per_user
        ):
            raise UserConnectionLimitError(settings.max_connections_per_user)
        self._connections += 1
        for counter, name in self._counters(slot):
            if name is not None:
                counter[name] = counter.get(name, 0) + 1
        return slot

    def _check_room(self, room: Room) -> None:
        """Check that a room may have one more connection.

        Raises:
            RateLimitedError: over a limit.
        """
        settings = self._settings
        if room not in self._by_room and _at_limit(len(self._by_room), settings.max_rooms):
            raise RateLimitedError(f"active room limit ({settings.max_rooms}) reached", 10)
        if _at_limit(self._by_room.get(room, 0), settings.max_connections_per_room):
            most = settings.max_connections_per_room
            raise RateLimitedError(f"connection limit ({most}) of the room reached", 10)

    def _release(self, slot: ConnectionSlot) -> None:
        self._connections -= 1
        for counter, name in self._counters(slot):
            if name is not None:
                _decrement(counter, name)

    def _counters(self, slot: ConnectionSlot) -> tuple[tuple[dict[str, int], str | None], ...]:
        return (
            (self._by_user, slot.user),
            (self._by_room, slot.room),
            (self._by_address, slot.address),
        )


def _decrement(counter: dict[str, int], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]


def _caller(claims: Claims | None, address: str | None) -> str | None:
    who = None if claims is None else claims.caller
    if who is None and (source := _limited_address(address)) is not None:
        who = f"address {source}"
    return who


def _limited_address(address: str | None) -> str | None:
    """Return the address, or None if it has no limit.

    A loopback peer is a developer, or a proxy that forwards the requests of all clients.
    """
    return None if address is None or is_loopback(address) else address


class _Budget:
    """A token bucket for each caller, with a burst of one second's amount, that allows debt.

    A cost over the remaining amount is a debt, and the caller is limited until it is repaid. Each
    caller is stored as the time when its bucket is full again. For each new one, the least recently
    charged one is removed if its bucket is full, and evicted over the maximum number of callers.
    """

    def __init__(self, per_s: int) -> None:
        """
        Args:
            per_s: the refill rate; 0 is no limit.
        """
        self._per_s = per_s
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def try_acquire(self, who: str) -> float:
        """Return how long the bucket stays empty, in seconds; 0 if something is left."""
        full_at = self._full_at.get(who)
        if full_at is None:
            return 0.0
        return max(0.0, full_at - time.monotonic() - 1.0)

    def spend(self, who: str, cost: float) -> float:
        """Take ``cost`` if anything is left. Return 0, or how long to wait, in seconds."""
        wait_s = self.try_acquire(who)
        if not wait_s:
            self.charge(who, cost)
        return wait_s

    def charge(self, who: str, cost: float) -> None:
        """Take ``cost``, even if less is left."""
        if not self._per_s:
            return
        now = time.monotonic()
        self._set(who, max(self._full_at.get(who, now), now) + cost / self._per_s, now)

    def _set(self, who: str, full_at: float, now: float) -> None:
        tracked = self._full_at
        if who in tracked:
            tracked.move_to_end(who)
            tracked[who] = full_at
            return
        tracked[who] = full_at
        # A full bucket is the same as none, so a caller who is quiet again takes no memory.
        oldest = next(iter(tracked))
        if tracked[oldest] <= now or len(tracked) > MAX_TRACKED_KEYS:
            del tracked[oldest]


class _Rate(_Budget):
    """A budget without debt: a cost over the remaining amount is rejected, and takes nothing."""

    def acquire(self, who: str, cost: int) -> float:
        """Take ``cost``, at most a burst. Return 0, or how long to wait, in seconds."""
        if not self._per_s:
            return 0.0
        now = time.monotonic()
        full_at = self._full_at.get(who, now)
        if full_at < now:
            full_at = now
        full_at += cost / self._per_s if cost < self._per_s else 1.0
        wait_s = full_at - now - 1.0
        if wait_s > _ROUNDING_S:
            return max(wait_s, 0.001)
        self._set(who, full_at, now)
        return 0.0

    def release(self, who: str, cost: int) -> None:
        """Give back a cost that was acquired and not used."""
        if who in self._full_at:
            self._full_at[who] -= min(cost, self._per_s) / self._per_s


_ROUNDING_S = 1e-6  # of sums of costs, so that a burst is exactly one second's amount


def _at_limit(count: int, most: int) -> bool:
    """Return whether a count has reached a limit; 0 is no limit."""
    return bool(most) and count >= most
