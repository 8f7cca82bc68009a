"""How much one caller may have of the server. See PROTOCOL.md, "Limits".

The rates are counted by throttled-py (GCRA: no windows whose edges let twice as much through), in a
table of bounded size: however many strangers knock, the longest silent one is forgotten first.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from throttled import Throttled, per_sec
from throttled.store import MemoryStore

from ..protocol.rooms import Room
from .auth import Claims
from .config import ServerSettings, is_loopback
from .messages import RequestError

MAX_TRACKED_KEYS = 100_000
"""So many are counted at once, for each rate."""


@dataclass(frozen=True, slots=True)
class UserConnectionLimitError(Exception):
    """A user has as many connections as one may have."""

    limit: int


class ConnectionSlot(NamedTuple):
    """What one connection takes of the limits."""

    user: str | None
    room: Room
    address: str | None


class Limits:
    """The counts of one node."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._connects = _rate(settings.new_connections_per_s)
        self._publishes = _rate(settings.publishes_per_s)
        self._bytes = _rate(settings.publish_bytes_per_s)
        self._messages = _rate(settings.client_messages_per_s)
        self._requests = _Budget(settings.requests_per_s)
        self._attempts = _Budget(settings.requests_per_s)
        self._read = _Budget(settings.read_bytes_per_s)
        self.count_publishes = bool(settings.publishes_per_s or settings.publish_bytes_per_s)
        self._connections = 0
        self._by_user: Counter[str] = Counter()
        self._by_room: Counter[str] = Counter()
        self._by_address: Counter[str] = Counter()

    def check_publish(self, claims: Claims, count: int, size: int) -> None:
        """Count notifications and their bytes, each once for each of its rooms; of what is refused
        nothing counts. Without keys there is no limit.

        Raises:
            RequestError: 429.
        """
        who = _name_of(claims)
        if who is None:
            return
        if wait_s := self._publishes.try_acquire(who, count):
            most, what = self._settings.publishes_per_s, "notifications"
        elif wait_s := self._bytes.try_acquire(who, size):
            self._publishes.release(who, count)
            most, what = self._settings.publish_bytes_per_s, "bytes"
        else:
            return
        raise rate_limited(f"at most {most} {what} a second for a key", wait_s)

    def check_request(self, claims: Claims | None, address: str | None) -> None:
        """Count a request that is no publish, for who sends it, and see whether they may read more.

        Args:
            claims: of a credential that counts; None: there is none, and the address counts.

        Raises:
            RequestError: 429.
        """
        who = _caller(claims, address)
        if who is None:
            return
        if wait_s := self._requests.spend(who, 1):
            most, what = self._settings.requests_per_s, "requests"
        elif wait_s := self._read.try_acquire(who):
            most, what = self._settings.read_bytes_per_s, "bytes read"
        else:
            return
        raise rate_limited(
            f"at most {most} {what} a second for a user, a key or an address", wait_s
        )

    def count_read(self, claims: Claims, address: str | None, size: int) -> None:
        """Bytes that are being answered. They may be more than are left: then the next request
        waits for longer."""
        who = _caller(claims, address)
        if who is not None:
            self._read.charge(who, size)

    def check_attempt(self, address: str | None) -> None:
        """See whether an address may try a token: to verify one takes longer than anything else
        that a stranger can ask for.

        Raises:
            RequestError: 429.
        """
        who = _limited_address(address)
        if who is not None and (wait_s := self._attempts.try_acquire(who)):
            most = self._settings.requests_per_s
            raise rate_limited(f"at most {most} failed attempts a second for an address", wait_s)

    def check_publisher(self, claims: Claims) -> None:
        """See whether a publisher had too many requests refused.

        What is published has limits of its own.

        Raises:
            RequestError: 429.
        """
        who = _name_of(claims)
        if who is not None and (wait_s := self._requests.try_acquire(who)):
            most = self._settings.requests_per_s
            raise rate_limited(
                f"at most {most} refused requests a second for a user or a key", wait_s
            )

    def count_failed_attempt(self, address: str | None) -> None:
        """A token of this address did not count."""
        if (who := _limited_address(address)) is not None:
            self._attempts.charge(who, 1)

    def count_refusal(self, claims: Claims, address: str | None) -> None:
        """A request with a credential was refused: to find that out took its time."""
        if (who := _caller(claims, address)) is not None:
            self._requests.charge(who, 1)

    def allow_message(self, connection: int) -> bool:
        """Whether a client may say something more."""
        return not self._messages.try_acquire(str(connection), 1)

    def acquire(self, claims: Claims, room: Room, address: str | None) -> ConnectionSlot:
        """A place for a connection; :meth:`release` when it has ended.

        Raises:
            RequestError: 429: too many in all, of rooms, in this room, or of this address.
            TooManyForUserError: this user's are too many.
        """
        settings = self._settings
        source = _limited_address(address)
        if source is not None:
            if wait_s := self._connects.try_acquire(source, 1):
                raise rate_limited(
                    f"at most {settings.new_connections_per_s:g} new connections a second for an "
                    "address",
                    wait_s,
                )
            if _at_limit(self._by_address[source], settings.max_connections_per_address):
                most = settings.max_connections_per_address
                raise rate_limited(f"at most {most} connections for an address", 10)
        if _at_limit(self._connections, settings.max_connections):
            raise rate_limited(f"at most {settings.max_connections} connections", 10)
        if room not in self._by_room and _at_limit(len(self._by_room), settings.max_rooms):
            raise rate_limited(f"at most {settings.max_rooms} rooms that somebody listens to", 10)
        if _at_limit(self._by_room[room], settings.max_connections_per_room):
            most = settings.max_connections_per_room
            raise rate_limited(f"at most {most} connections in a room", 10)
        user = claims.user
        if user is not None and _at_limit(self._by_user[user], settings.max_connections_per_user):
            raise UserConnectionLimitError(settings.max_connections_per_user)
        place = ConnectionSlot(user, room, source)
        self._connections += 1
        for counter, name in self._counters(place):
            counter[name] += 1
        return place

    def release(self, place: ConnectionSlot) -> None:
        self._connections -= 1
        for counter, name in self._counters(place):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def _counters(self, place: ConnectionSlot) -> Iterator[tuple[Counter[str], str]]:
        if place.user is not None:
            yield self._by_user, place.user
        yield self._by_room, place.room
        if place.address is not None:
            yield self._by_address, place.address


def rate_limited(details: str, wait_s: float) -> RequestError:
    headers = {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return RequestError(429, "rate_limited", "Too many", details, headers)


def _name_of(claims: Claims) -> str | None:
    """What a caller's rates are counted by; None: there are no keys."""
    if claims.key_name is not None:
        return f"key {claims.key_name}"
    if claims.user is not None:  # who may be called "key …"
        return f"user {claims.user}"
    return None if claims.token_id is None else f"token {claims.token_id}"


def _caller(claims: Claims | None, address: str | None) -> str | None:
    who = None if claims is None else _name_of(claims)
    if who is None and (source := _limited_address(address)) is not None:
        who = f"address {source}"
    return who


def _limited_address(address: str | None) -> str | None:
    """None: it has no limit of its own. A loopback peer is a developer or a proxy, and a proxy's
    connections are everybody's."""
    return None if address is None or is_loopback(address) else address


class _Budget:
    """So much a second for each caller, and as much at once; what costs more than is left is a debt
    that is paid before the next.

    For each caller it is known when all is there again. Of too many, the one who was silent for
    longest is forgotten first.
    """

    def __init__(self, per_s: int) -> None:
        """
        Args:
            per_s: 0 is no limit.
        """
        self._per_s = per_s
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def try_acquire(self, who: str) -> float:
        """For how long there is nothing left; 0: there is something."""
        if not self._per_s:
            return 0.0
        now = time.monotonic()
        return max(0.0, self._full_at.get(who, now) - now - 1.0)

    def spend(self, who: str, cost: float) -> float:
        """Take so much, if there is anything left; 0, or how long to wait."""
        wait_s = self.try_acquire(who)
        if not wait_s:
            self.charge(who, cost)
        return wait_s

    def charge(self, who: str, cost: float) -> None:
        """Take so much, whether it is there or not."""
        if not self._per_s:
            return
        now = time.monotonic()
        full_at = max(self._full_at.pop(who, now), now) + cost / self._per_s
        self._full_at[who] = full_at
        if len(self._full_at) > MAX_TRACKED_KEYS:
            self._full_at.popitem(last=False)


class _Rate:
    """So many a second for each caller, and as many at once.

    To ask the library for each of 10,000 notifications a second would take a third of their time,
    so a caller takes a hundredth of a second's share at once, and uses it up.
    """

    def __init__(self, per_s: int) -> None:
        self._burst = per_s
        self._lease = per_s // 100
        self._leased: OrderedDict[str, int] = OrderedDict()
        self._throttled = Throttled(
            using="gcra",
            quota=per_sec(per_s, burst=per_s),
            store=MemoryStore(options={"MAX_SIZE": MAX_TRACKED_KEYS}),
        )

    def try_acquire(self, who: str, cost: int) -> float:
        """Take so many; 0, or how long to wait because they are too many."""
        left = self._leased.get(who, 0)
        if cost <= left:
            self._leased[who] = left - cost
            return 0.0
        lease = self._lease
        if cost < lease and not self._consume(who, lease):
            self._leased[who] = left + lease - cost
            if len(self._leased) > MAX_TRACKED_KEYS:
                self._leased.popitem(last=False)
            return 0.0
        return self._consume(who, min(cost, self._burst))

    def release(self, who: str, cost: int) -> None:
        """Who has taken so many does not use them after all."""
        cost = min(cost, self._burst)
        self._leased[who] = min(self._leased.get(who, 0) + cost, self._burst)
        if len(self._leased) > MAX_TRACKED_KEYS:
            self._leased.popitem(last=False)

    def _consume(self, who: str, cost: int) -> float:
        result = self._throttled.limit(who, cost)
        return max(float(result.state.retry_after), 0.001) if result.limited else 0.0


class _Unlimited:
    def try_acquire(self, who: str, cost: int) -> float:  # noqa: ARG002
        return 0.0

    def release(self, who: str, cost: int) -> None: ...


def _rate(per_s: int) -> _Rate | _Unlimited:
    return _Rate(per_s) if per_s else _Unlimited()


def _at_limit(count: int, most: int) -> bool:
    """0 is no limit."""
    return bool(most) and count >= most
