"""Credentials for a server with keys, minted with the key and the secret that it knows."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import jwt

API_KEY = "CONFORMANCE_API_KEY"
TOKEN_SECRET = "CONFORMANCE_TOKEN_SECRET"
ORIGIN = "https://app.example"
"""A page's origin that a server with keys has on its list, unless configured otherwise."""

TOKEN_S = 900

_ROOM = re.compile(r"([a-z][a-z0-9-]{0,31})_([A-Za-z0-9._~:@|=+\-]{1,200})")


class Secret(str):
    """A text that no report of a failure shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


class CredentialsError(Exception):
    """One of the two variables is there without the other, or cannot be used."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What a server with keys knows.

    Attributes:
        api_key: a program's, that may broadcast and nothing else.
        token_secret: signs tokens (HS256).
        origin: a page's, on the server's list.
    """

    api_key: str = field(repr=False)
    token_secret: str = field(repr=False)
    origin: str = ORIGIN

    def token(
        self,
        user: str | None = None,
        *,
        rooms: list[str] | None = None,
        scope: str | None = None,
        expires_in_s: float = TOKEN_S,
        **claims: object,
    ) -> Secret:
        """A token with these claims, and no others but ``iat``, ``exp`` and a ``jti``."""
        now = time.time()
        given = {"sub": user, "rooms": rooms, "scope": scope, **claims}
        said = {name: value for name, value in given.items() if value is not None}
        ends = {"iat": int(now), "exp": int(now + expires_in_s), "jti": uuid.uuid4().hex}
        return Secret(jwt.encode({**ends, **said}, self.token_secret, "HS256"))

    def for_path(self, path: str) -> str | None:
        """What opens a route: the key where something is published, a token where a room is read.

        In a user's room it is that user's; for another one it names the room; for what is no room
        it opens all, so that the room is what is wrong.
        """
        match urlsplit(path).path.split("/")[1:]:
            case ["broadcast"] | ["rooms", _, "broadcast"]:
                return self.api_key
            case ["rooms", quoted, *_]:
                return self.for_room(unquote(quoted))
            case ["jobs", quoted]:
                return self.for_room(f"request_{unquote(quoted)}")
            case ["users", quoted, "jobs"]:
                return self.for_room(f"user_{unquote(quoted)}")
        return None

    def for_room(self, room: str) -> Secret:
        """A token that reads a room."""
        scope = "subscribe presence"
        if (found := _ROOM.fullmatch(room)) is None:
            return self.token(rooms=["*"], scope=scope)
        if found[1] == "user":
            return self.token(found[2], scope=scope)
        return self.token(rooms=[room], scope=scope)


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": Secret(f"Bearer {credential}")}


def keys_of_environment(origin: str, environment: Mapping[str, str] = os.environ) -> Keys | None:
    """The keys of a server that runs somewhere; None: it has none.

    They come by the environment alone: what stands on a command line, every process can read.

    Raises:
        CredentialsError: names the variable that is wrong; does not show it.
    """
    api_key, secret = environment.get(API_KEY, ""), environment.get(TOKEN_SECRET, "")
    if not api_key and not secret:
        return None
    for name, value in ((API_KEY, api_key), (TOKEN_SECRET, secret)):
        if len(value.encode()) < 32:
            raise CredentialsError(
                f"{name}: expected at least 32 bytes; a server with keys has both"
            )
    return Keys(Secret(api_key), Secret(secret), origin)
