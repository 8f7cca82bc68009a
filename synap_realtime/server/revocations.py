"""Tokens that count no more, though they have not expired. See PROTOCOL.md, "Revoking"."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import uuid_utils

from ..protocol.rooms import Room
from .auth import Claims
from .hub import Hub
from .stores.base import Entry, Publication, Store

logger = logging.getLogger(__name__)

ROOM = Room("synap_revocations")
"""Kept in the log like everything else: it survives what the store survives, and reaches every node
that the store reaches. No request can name it."""

REMEMBERED_S = 24 * 3600.0
"""As long as the room keeps it: a token should live shorter."""

_PAGE = 100


@dataclass(frozen=True, slots=True)
class Revocation:
    """
    Attributes:
        of: what ``name`` is: a user's id or a token's.
        at: seconds since 1970; a user's tokens that were issued until then are revoked.
    """

    of: Literal["user", "token"]
    name: str
    at: float

    def covers(self, claims: Claims) -> bool:
        if self.of == "token":
            return claims.token_id == self.name
        return claims.user == self.name and (claims.issued_at or 0.0) <= self.at


class Revocations:
    """Those that count now."""

    def __init__(self, store: Store, hub: Hub, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._hub = hub
        self._clock = clock
        self._known: dict[tuple[str, str], Revocation] = {}
        self.are_loaded = False
        self.on_revoked: Callable[[Revocation], int] = lambda _: 0
        """Called with each, as it comes; returns how many connections it closed here."""
        self._closed = 0
        hub.join(ROOM, self)

    async def load(self) -> None:
        """Learn of those from before this server's start, once.

        Raises:
            StoreUnavailableError: nobody can say now what was revoked.
        """
        position = self._store.earliest()
        while not self.are_loaded:
            page = await self._store.read(ROOM, position, _PAGE)
            for entry in page.entries:
                self._remember(entry)
                position = entry.cursor
            self.are_loaded = len(page.entries) < _PAGE

    def covers(self, claims: Claims) -> bool:
        """Whether these claims were taken back, of what is known by now."""
        keys = [("user", claims.user), ("token", claims.token_id)]
        found = [self._known[key] for key in keys if key[1] is not None and key in self._known]
        return any(revocation.covers(claims) for revocation in found)

    async def revoke(self, of: Literal["user", "token"], name: str) -> int:
        """Take back a user's tokens, or one; returns how many connections that closed here.

        Raises:
            StoreUnavailableError: it was not kept, and nothing was closed.
        """
        now = self._clock()
        text = json.dumps({"of": of, "name": name, "at": now})
        closed = 0

        def deliver(room: Room, entry: Entry) -> int:
            nonlocal closed
            self._closed = 0
            count = self._hub.deliver(room, entry)
            closed = self._closed
            return count

        publication = Publication(ROOM, str(uuid_utils.uuid7()), text)
        await self._store.publish([publication], deliver)
        return closed

    def offer(self, entry: Entry, began_at: float | None) -> bool:  # noqa: ARG002 - it has no hurry
        """See :class:`Listener`."""
        self._closed += self.on_revoked(self._remember(entry))
        return True

    def gather(self) -> None:
        """See :class:`Listener`: it is always offered by itself."""

    def _remember(self, entry: Entry) -> Revocation:
        members = json.loads(entry.text)
        found = Revocation(members["of"], members["name"], members["at"])
        oldest = self._clock() - REMEMBERED_S
        for key, known in list(self._known.items()):
            if known.at > oldest:
                break  # in the order in which they came
            del self._known[key]
        self._known.pop((found.of, found.name), None)
        self._known[found.of, found.name] = found
        return found
