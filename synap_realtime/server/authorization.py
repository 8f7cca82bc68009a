"""Who may do what: peers, origins, credentials, rooms. See PROTOCOL.md, "Who may"."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from ..errors import ConfigurationError
from ..loopback import (
    ForeignPageError,
    NotLocalError,
    host_of,
    is_loopback,
    names_own_origin,
    require_allowed_page,
    require_local,
)
from ..protocol.rooms import Room
from ..redaction import holds_token, redacted
from .auth import UNRESTRICTED, Authenticator, Claims, InvalidTokenError, KeysUnavailableError
from .limits import Limits
from .messages import Request, RequestError, unavailable
from .references import resolve
from .revocations import Revocations

logger = logging.getLogger(__name__)

Action = Literal["subscribe", "broadcast", "presence", "metrics", "admin"]
"""What is asked for. ``subscribe`` is reading of every kind."""

Authorizer = Callable[[str, str, Mapping[str, object]], Awaitable[bool]]
"""A rule of one's own: ``async def may(action, room, claims) -> bool``.

``claims`` is what the token says; for a publisher's key ``{"key": name}``. It is asked after our
own rules have said yes, and can only say no.
"""

_SEPARATORS = re.compile(r"[\s=:,;\"']+")

AUTHORIZER_TIMEOUT_S = 2.0
"""A rule that has not answered by then has said no."""

AUTHORIZER_CONCURRENCY = 20
"""Of so many rooms of a batch is a rule asked at once."""

AUTHORIZER_BATCH_TIMEOUT_S = 8.0
"""For all of them together: less than a publisher waits."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What a request shows of who sends it.

    Attributes:
        address: the peer's; None where the server does not know it (a Unix socket).
        host: the ``Host`` header.
        origin: the ``Origin`` header: a browser says which page asks.
        forwarded_for: the addresses in ``X-Forwarded-For``, ``Forwarded`` and ``X-Real-IP``.
        fetch_site: the ``Sec-Fetch-Site`` header: a browser says how the page relates to us.
        is_visit: a browser opens the operator's page, perhaps by a link on another site.
    """

    address: str | None = None
    host: str | None = None
    origin: str | None = None
    forwarded_for: str | None = None
    fetch_site: str | None = None
    is_visit: bool = False


class AccessControl:
    """The rules of one server."""

    def __init__(
        self,
        authenticator: Authenticator,
        revocations: Revocations,
        limits: Limits,
        *,
        allowed_origins: tuple[str, ...] = (),
        authorizer: Authorizer | None = None,
    ) -> None:
        self._authenticator = authenticator
        self.keys = authenticator.keys
        """Those that count now; false, if there are none."""
        self.id_of_token = authenticator.id_of
        self.refresh_keys = authenticator.refresh
        self.vouches_for = authenticator.vouches_for
        self._revocations = revocations
        self._limits = limits
        self._allowed_origins = allowed_origins
        self._allowed_hosts = frozenset(filter(None, map(host_of, allowed_origins)))
        self._authorizer = authorizer

    def may_block(self) -> bool:
        """Whether a rule, or the keys of others, may have to be waited for."""
        return self._authorizer is not None or bool(self.keys().jwks_urls)

    def check_peer(self, caller: PeerInfo) -> None:
        """Whether to talk to this caller at all.

        Raises:
            RequestError: 403 for a page of another origin; without keys, also for everything that
                does not come from this machine.
        """
        try:
            if not self.keys():
                require_local(
                    address=caller.address,
                    host=caller.host,
                    forwarded_for=caller.forwarded_for,
                    known_hosts=self._allowed_hosts,
                )
            require_allowed_page(
                origin=caller.origin,
                fetch_site=caller.fetch_site,
                allows=lambda origin: self._allows(origin, caller.host),
                is_visit=caller.is_visit,
            )
        except NotLocalError as error:
            details = f"{error}, until it has keys"
            raise RequestError(403, "forbidden", "This server has no keys", details) from None
        except ForeignPageError as error:
            details = f"{error}: add it with --allowed-origins (SYNAP_REALTIME_ALLOWED_ORIGINS)"
            raise RequestError(403, "forbidden", "Origin not allowed", details) from None

    async def authenticate(self, request: Request) -> Claims:
        """What a publisher's credential says; on a server without keys, everyone is :data:`ANYONE`.
        The request remembers it, for what may be said of it later.

        Raises:
            RequestError: 401; 429 for an address with too many that do not count; 503 while the
                keys of others cannot be had.
        """
        claims = await self._authenticate(request)
        self._limits.check_publisher(claims)
        return claims

    async def authenticate_counted(self, request: Request) -> Claims:
        """The same for a request that is no publish: it counts for its caller.

        Raises:
            RequestError: 401, 429, 503.
        """
        claims = await self._authenticate(request)
        self._limits.check_request(claims, request.address)
        return claims

    async def authenticate_renewed(self, token: str, before: Claims, address: str | None) -> Claims:
        """The same for a token that a connection hands in: it counts for whose connection it is.

        Raises:
            RequestError: 401, 429, 503.
        """
        self._limits.check_request(before, address)
        return await self.authenticate_credential(token, address)

    async def _authenticate(self, request: Request) -> Claims:
        try:
            claims = await self.authenticate_credential(request.credential, request.address)
        except RequestError as error:
            request.rejected_user = error.rejected_user
            raise
        request.claims = claims
        return claims

    async def authenticate_credential(self, credential: str | None, address: str | None) -> Claims:
        """The same as :meth:`authenticate`, without a request."""
        keys = self.keys()
        if not keys:
            return UNRESTRICTED
        if not credential:
            self._limits.check_request(None, address)
            raise unauthorized("no credential: send a token or a key as Authorization: Bearer …")
        return keys.claims_for_key(credential) or await self._authenticate_token(
            credential, address
        )

    async def _authenticate_token(self, token: str, address: str | None) -> Claims:
        self._limits.check_attempt(address)
        try:
            claims = await self._authenticator.authenticate(token)
        except InvalidTokenError as error:
            self._limits.count_failed_attempt(address)
            raise _rejected(str(error), error.user) from None
        except KeysUnavailableError:
            raise unavailable("the keys that would check the token cannot be had now") from None
        if not self._revocations.loaded:
            await self._revocations.load()
        if self._revocations.matches(claims):
            self._limits.count_failed_attempt(address)
            raise _rejected("token revoked", claims.user)
        return claims

    def is_still_valid(self, claims: Claims) -> bool:
        """Whether claims that :meth:`authenticate` accepted are still good: they were not revoked
        meanwhile, and the key that vouched for them was not removed."""
        return self.vouches_for(claims) and not self._revocations.matches(claims)

    def is_credential(self, text: str) -> bool:
        """Whether one of this server's keys or secrets, or a JWT or a part of one, is in a text:
        given in a wrong place, it must not be repeated to anybody."""
        keys = self.keys()
        return holds_token(text) or any(
            keys.claims_for_key(part) is not None or part in keys.token_secrets
            for part in {text.strip(), *_SEPARATORS.split(text)}
        )

    async def authorize(self, claims: Claims, action: Action, room: Room) -> None:
        """Whether these claims allow it in this room.

        Raises:
            RequestError: 403.
        """
        require_scope(claims, action)
        if not claims.allows_room(room):
            raise room_not_allowed(claims)
        if self._authorizer is not None:
            await self._call_authorizer(self._authorizer, claims, action, room)

    async def authorize_many(
        self, claims: Claims, action: Action, rooms: Iterable[Room]
    ) -> dict[Room, RequestError | None]:
        """For each room None, or the 403. A rule of one's own is asked of some at once, and when it
        takes longer than ``AUTHORIZER_BATCH_TIMEOUT_S`` for all, it has said no to the rest."""
        if self._authorizer is None:
            require_scope(claims, action)
            no = room_not_allowed(claims)
            return {room: None if claims.allows_room(room) else no for room in rooms}
        if not (rooms := tuple(rooms)):  # no item of the batch names a room that can be
            return {}
        late = forbidden("the server's own rule took too long")
        verdicts: dict[Room, RequestError | None] = dict.fromkeys(rooms, late)
        places = asyncio.Semaphore(AUTHORIZER_CONCURRENCY)

        async def judge(room: Room) -> None:
            try:
                async with places:
                    await self.authorize(claims, action, room)
                verdicts[room] = None
            except RequestError as error:
                verdicts[room] = error

        tasks = [asyncio.create_task(judge(room)) for room in verdicts]
        try:
            await asyncio.wait(tasks, timeout=AUTHORIZER_BATCH_TIMEOUT_S)
            return dict(verdicts)  # what comes later is too late
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _call_authorizer(
        self, authorizer: Authorizer, claims: Claims, action: Action, room: Room
    ) -> None:
        members = {"key": claims.key_name} if claims.key_name is not None else claims.raw_claims
        try:
            async with asyncio.timeout(AUTHORIZER_TIMEOUT_S) as limit:
                if await authorizer(action, room, members) is True and not limit.expired():
                    return
        except TimeoutError:
            logger.error(
                "may(%r, %r, …) took over %g s, so: no", action, room, AUTHORIZER_TIMEOUT_S
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no yes
            # Its text may hold anything, so only what it is.
            kind = type(error).__name__
            logger.error("may(%r, %r, …) raised %s, so: no", action, room, kind)
        raise forbidden("the server's own rule says no")

    def _allows(self, origin: str, host: str | None) -> bool:
        if origin in self._allowed_origins:
            return True
        if names_own_origin(origin, host):
            # The operator's page, and React Native. DNS rebinding gains nothing: the page of a name
            # that was pointed here has no credential, and without keys the host was checked.
            return True
        return not self.keys() and is_loopback(host_of(origin))


def _rejected(details: str, user: str | None) -> RequestError:
    """Return the error for a token that is not accepted.

    It is made here because an error that a local variable of the raising function holds is part of
    a reference cycle: a flood of forged tokens would leave its garbage to the collector, which
    stops the event loop for 60 ms at a time.
    """
    error = unauthorized(details, invalid=True)
    error.rejected_user = user
    return error


def require_scope(claims: Claims, *scopes: Action) -> None:
    """One of them.

    Raises:
        RequestError: 403.
    """
    if claims.scopes.isdisjoint(scopes):
        raise forbidden(f"the {_kind(claims)}'s scope does not hold {scopes[0]!r}")


def room_not_allowed(claims: Claims) -> RequestError:
    """403: the room is none that the credential opens."""
    return forbidden(f"the {_kind(claims)} does not open this room")


def _kind(claims: Claims) -> str:
    return "token" if claims.key_name is None else "key"


def load_authorizer(name: str) -> Authorizer:
    """The rule of ``--authorizer``, ``module:function``; the current folder's modules, too.

    Raises:
        ConfigurationError: there is no such thing.
    """
    rule = resolve("--authorizer (SYNAP_REALTIME_AUTHORIZER)", name)
    if not inspect.iscoroutinefunction(rule):
        raise ConfigurationError(
            f"--authorizer (SYNAP_REALTIME_AUTHORIZER): {redacted(name)}: "
            "expected async def may(action, room, claims)"
        )
    return cast(Authorizer, rule)


def unauthorized(details: str, *, invalid: bool = False) -> RequestError:
    """RFC 6750, section 3."""
    challenge = 'Bearer error="invalid_token"' if invalid else "Bearer"
    headers = {"WWW-Authenticate": challenge}
    return RequestError(401, "unauthorized", "Unauthorized", details, headers)


def forbidden(details: str) -> RequestError:
    return RequestError(403, "forbidden", "Forbidden", details)
