"""Revoke tokens that have not expired. See PROTOCOL.md, "Revoking"."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from pydantic_core import from_json

from ...protocol.rooms import Room
from ..errors import StoreUnavailableError
from ..stores.base import Entry, Publication, Retention, Store
from .claims import Claims
from .tokens import LEEWAY_S

logger = logging.getLogger(__name__)

ROOM = Room("synap_revocations")
"""The room whose log holds the revocations, so that they are as durable as notifications and reach
every node of the store. No request can name it."""

_PAGE = 100
_MAX_RECENT = 1_000


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revocation.

    Attributes:
        kind: what ``subject`` is: the id of a user or of a token.
        at: seconds since 1970. Tokens of the user with an ``iat`` up to then are revoked.
    """

    kind: Literal["user", "token"]
    subject: str
    at: float

    def to_json(self) -> dict[str, Any]:
        return {"of": self.kind, "name": self.subject, "at": self.at}

    @classmethod
    def from_json(cls, members: object) -> Revocation:
        """
        Raises:
            ValueError: it is no revocation that this version knows.
        """
        match members:
            case {"of": "user" | "token" as kind, "name": str(name), "at": int() | float() as at}:
                return cls(kind, name, at)
        raise ValueError("expected of, name and at")

    def matches(self, claims: Claims) -> bool:
        if self.kind == "token":
            return claims.token_id == self.subject
        return claims.user == self.subject and (claims.issued_at or 0.0) <= self.at


class TooManyRevocationsError(Exception):
    """The maximum number of revocations is reached. One more would displace one that is needed."""


class Revocations:
    """The revocations that are in force.

    Their age is measured by the monotonic clock, here and in the store, so that a change of the
    wall clock cannot expire one.
    """

    def __init__(
        self,
        store: Store,
        *,
        leeway_s: float = LEEWAY_S,
        kept_s: float | None = None,
        most: int = Retention().control_count,
        clock: Callable[[], float] = time.time,
        running: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            leeway_s: how far the clocks of token issuers may be ahead.
            kept_s: how long the store keeps a revocation; see
                :meth:`ServerSettings.revocation_retention_s`.
            most: the maximum number of revocations.
            clock: returns seconds since 1970.
            running: returns monotonic seconds.
        """
        self._store = store
        self._leeway_s = leeway_s
        self._retention_s = Retention().control_age_s if kept_s is None else kept_s
        self._most = most
        self._clock = clock
        self._running = running
        self._began = clock() - running()
        self._known: dict[tuple[str, str], Revocation] = {}
        self._arrived: dict[Revocation, float] = {}
        """The monotonic time of the arrival of each, in this order. One that is read again, or is
        delivered while it is read, counts once."""
        self._closed: OrderedDict[Revocation, int] = OrderedDict()
        """Recent revocations -> how many connections each closed on this node."""
        self._to_find: set[Revocation] = set()  # in the log, once it was replaced
        self.loaded = False
        self._has_joined = self._was_loaded = False
        self._loading = asyncio.Lock()
        self._position = store.earliest()
        self.on_revoked: Callable[[Revocation], int] = lambda _: 0
        """Called with each revocation. Returns how many connections it closed on this node."""

    async def load(self) -> None:
        """Read the revocations from before the start of this server, once.

        Raises:
            StoreUnavailableError: the revocations cannot be read now.
        """
        if self.loaded:
            return
        async with self._loading:
            if not self._has_joined:
                await self._store.join(ROOM)
                self._has_joined = True
            while not self.loaded:
                page = await self._store.read(ROOM, self._position, _PAGE)
                for entry in page.entries:
                    found = self._remember(entry)
                    if found is not None and self._was_loaded:
                        self.enforce(found)
                    self._position = entry.cursor
                if len(page.entries) < _PAGE:
                    await self._store_again()
                    self.loaded = True
            self._was_loaded = True

    async def _store_again(self) -> None:
        """Publish what the log has lost. Otherwise a server that starts later would not know it."""
        self._forget_old()
        lost = list(self._to_find.intersection(self._known.values()))
        for start in range(0, len(lost), _PAGE):
            await self._store.publish([_publication(each) for each in lost[start : start + _PAGE]])
        if lost:
            logger.warning(
                "revocations were lost by the store, and stored again; count=%d", len(lost)
            )
        self._to_find.clear()

    async def reload(self) -> None:
        """Read all revocations again, because some may not have arrived. Put them in force.

        The log may have lost some, too: these are stored again. If the store is not available now,
        the next request that is authenticated does all this.
        """
        self.loaded = False
        self._position = self._store.earliest()
        self._to_find = set(self._known.values())
        with contextlib.suppress(StoreUnavailableError):
            await self.load()

    def matches(self, claims: Claims) -> bool:
        """Return whether these claims are revoked by a revocation that has arrived."""
        if not self._known:
            return False
        keys = [("user", claims.user), ("token", claims.token_id)]
        found = [self._known[key] for key in keys if key[1] is not None and key in self._known]
        return any(revocation.matches(claims) for revocation in found)

    async def revoke(self, of: Literal["user", "token"], name: str) -> Revocation:
        """Revoke the tokens of a user, or one token. Close the connections of this node.

        Raises:
            StoreUnavailableError: the revocation was not stored, and nothing was closed.
            TooManyRevocationsError: the same.
        """
        await self.load()  # earlier revocations count towards the maximum
        self._forget_old()
        if len(self._arrived) >= self._most:
            raise TooManyRevocationsError
        # Without the monotonic clock, setting the wall clock back would spare recent tokens.
        now = max(self._clock(), self._began + self._running())
        revocation = Revocation(of, name, now + self._leeway_s)
        await self._store.publish([_publication(revocation)])
        self.enforce(revocation)  # even if it is delivered later, it is in force now
        return revocation

    def apply(self, entry: Entry) -> int:
        """Put a delivered entry of :data:`ROOM` in force. Return how many connections it closed."""
        found = self._remember(entry)
        return 0 if found is None else self.enforce(found)

    def enforce(self, revocation: Revocation) -> int:
        """Put a stored revocation in force. Return how many connections it closed on this node.

        A further call has no effect, and returns the same.
        """
        closed = self._closed.get(revocation)
        if closed is None:
            self._remember_newest(revocation)
            closed = self._closed[revocation] = self.on_revoked(revocation)
            if len(self._closed) > _MAX_RECENT:
                self._closed.popitem(last=False)
        return closed

    def _remember(self, entry: Entry) -> Revocation | None:
        try:
            found = Revocation.from_json(from_json(entry.text, allow_inf_nan=False))
        except ValueError as error:  # otherwise every request with a token would fail
            logger.error(
                "a revocation of another node cannot be read and is not in force here: %s; run one "
                "version on all nodes; cursor=%s", error, entry.cursor,
            )  # fmt: skip
            return None
        self._to_find.discard(found)
        self._remember_newest(found)
        self._arrived.setdefault(found, self._running())
        return found

    def _remember_newest(self, revocation: Revocation) -> None:
        known = self._known.get((revocation.kind, revocation.subject))
        if known is None or known.at <= revocation.at:
            self._known[revocation.kind, revocation.subject] = revocation

    def _forget_old(self) -> None:
        oldest = self._running() - self._retention_s
        while self._arrived:
            found, arrived_at = next(iter(self._arrived.items()))
            if arrived_at >= oldest:
                return
            del self._arrived[found]
            if self._known.get((found.kind, found.subject)) == found:
                del self._known[found.kind, found.subject]


def _publication(revocation: Revocation) -> Publication:
    """Return what the log keeps. Nodes that store the same revocation again store it once."""
    text = json.dumps(revocation.to_json())
    return Publication(ROOM, sha256(text.encode()).hexdigest(), text)
