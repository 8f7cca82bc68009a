"""Authorize requests: peers, origins, credentials, rooms.

See PROTOCOL.md, "Authentication and authorization".
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from ...errors import ConfigurationError
from ...loopback import (
    ForeignPageError,
    NotLocalError,
    host_of,
    is_loopback,
    names_own_origin,
    require_allowed_page,
    require_local,
)
from ...protocol.rooms import Room
from ...redaction import holds_token, redacted
from ...tokens import MIN_SECRET_BYTES
from ..config import resolve
from ..errors import (
    PeerRejectedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from .claims import UNRESTRICTED, Claims
from .jwks import KeysUnavailableError
from .limits import Limits
from .revocations import Revocations
from .tokens import Authenticator, InvalidTokenError

logger = logging.getLogger(__name__)

Action = Literal["subscribe", "broadcast", "presence", "metrics", "admin"]
"""What a request does. ``subscribe`` stands for every kind of reading."""

Authorizer = Callable[[str, str, Mapping[str, object]], Awaitable[bool]]
"""A rule of the application: ``async def authorize(action, room, claims) -> bool``.

``claims`` are the claims of the token; for an API key ``{"key": name}``. The authorizer is called
after the server has allowed the request, so it can only deny.
"""

_SEPARATORS = re.compile(r"[\s=:,;\"']+")

AUTHORIZER_TIMEOUT_S = 2.0
"""An authorizer that takes longer denies the request."""

AUTHORIZER_CONCURRENCY = 20
"""For how many rooms of a batch an authorizer is called concurrently."""

AUTHORIZER_BATCH_TIMEOUT_S = 8.0
"""The timeout for all rooms of a batch. It is shorter than a publisher's own timeout."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What a request reveals about its sender.

    Attributes:
        address: the address of the peer; None where it is unknown (a Unix socket).
        host: the ``Host`` header.
        origin: the ``Origin`` header, by which a browser names the page.
        forwarded_for: the addresses in ``X-Forwarded-For``, ``Forwarded`` and ``X-Real-IP``.
        fetch_site: the ``Sec-Fetch-Site`` header: how the page relates to this server.
        is_visit: a browser opens the admin page, possibly by a link on another site.
    """

    address: str | None = None
    host: str | None = None
    origin: str | None = None
    forwarded_for: str | None = None
    fetch_site: str | None = None
    is_visit: bool = False


class CredentialHolder(Protocol):
    """A request whose sender is authenticated.

    Attributes:
        credential: an API key or a token; None if there is none.
        address: the address of the peer; None where it is unknown.
        claims: set when the credential turns out to be valid.
    """

    credential: str | None
    address: str | None
    claims: Claims | None


class AccessControl:
    """The authentication and authorization rules of one server."""

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
        """The current keys; false if there are none."""
        self.id_of_token = authenticator.id_of
        self.refresh_keys = authenticator.refresh
        self.vouches_for = authenticator.vouches_for
        self._revocations = revocations
        self._limits = limits
        self._allowed_origins = allowed_origins
        self._allowed_hosts = frozenset(filter(None, map(host_of, allowed_origins)))
        self._authorizer = authorizer

    def may_block(self) -> bool:
        """Return whether a check may await something that requires a current task.

        An authorizer may. Waiting for the keys of an identity provider does not: a task of its own
        fetches them.
        """
        return self._authorizer is not None

    def check_peer(self, caller: PeerInfo) -> None:
        """Check that the server may answer this peer at all.

        Raises:
            PeerRejectedError: the origin of the page is not allowed; without keys, also for every
                request from another machine.
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
            details = f"{error} (no keys are configured: --keys-file)"
            raise PeerRejectedError("Authentication not configured", details) from None
        except ForeignPageError as error:
            fix = "request it as fetch() does by default: only then the browser names the origin"
            if caller.origin is not None:
                fix = "add it with --allowed-origins (SYNAP_REALTIME_ALLOWED_ORIGINS)"
            raise PeerRejectedError("Origin not allowed", f"{error}: {fix}") from None

    async def authenticate(self, request: CredentialHolder) -> Claims:
        """Authenticate a publisher, and keep the claims in the request.

        On a server without keys, the claims of every client are :data:`UNRESTRICTED`.

        Raises:
            UnauthenticatedError: there is no valid credential.
            RateLimitedError: the address has sent too many invalid tokens, or the publisher too
                many requests that were rejected.
            UnavailableError: the signing keys are unavailable now.
        """
        claims = await self.authenticate_credential(request.credential, request.address)
        request.claims = claims
        self._limits.check_publisher(claims)
        return claims

    async def authenticate_counted(self, request: CredentialHolder) -> Claims:
        """Authenticate a request other than a publish, and count it for its caller.

        Raises:
            UnauthenticatedError, RateLimitedError, UnavailableError: as :meth:`authenticate`.
        """
        claims = await self.authenticate_credential(request.credential, request.address)
        request.claims = claims
        self._limits.check_request(claims, request.address)
        return claims

    async def authenticate_renewed(self, token: str, before: Claims, address: str | None) -> Claims:
        """Authenticate the new token of a connection, and count it for the owner of the connection.

        Raises:
            UnauthenticatedError, RateLimitedError, UnavailableError: as :meth:`authenticate`.
        """
        self._limits.check_request(before, address)
        return await self.authenticate_credential(token, address)

    async def authenticate_credential(self, credential: str | None, address: str | None) -> Claims:
        """Do the same as :meth:`authenticate`, without a request."""
        keys = self.keys()
        if not keys:
            return UNRESTRICTED
        if not credential:
            self._limits.check_request(None, address)
            raise UnauthenticatedError(
                "no credential: send a token or a key as Authorization: Bearer …"
            )
        return keys.claims_for_key(credential) or await self._authenticate_token(
            credential, address
        )

    async def _authenticate_token(self, token: str, address: str | None) -> Claims:
        self._limits.check_attempt(address)
        try:
            claims = await self._authenticator.authenticate_token(token)
        except InvalidTokenError as error:
            self._limits.count_failed_attempt(address)
            raise _rejected(str(error), error.user) from None
        except KeysUnavailableError:
            raise UnavailableError("signing keys temporarily unavailable") from None
        if not self._revocations.loaded:
            await self._revocations.load()
        if self._revocations.matches(claims):
            self._limits.count_failed_attempt(address)
            raise _rejected("token revoked", claims.user)
        return claims

    def is_still_valid(self, claims: Claims) -> bool:
        """Return whether claims that :meth:`authenticate` accepted are still valid.

        They are not if they were revoked, or if the key that verified them was removed.
        """
        return self.vouches_for(claims) and not self._revocations.matches(claims)

    def is_credential(self, text: str) -> bool:
        """Return whether a text contains a key or secret of this server, or a part of a JWT.

        A credential in a wrong place must not appear in a log line or a response.
        """
        if holds_token(text):
            return True
        if len(text) < MIN_SECRET_BYTES and text.isascii():  # shorter than any key or secret
            return False
        keys = self.keys()
        return any(
            keys.claims_for_key(part) is not None or part in keys.token_secrets
            for part in {text.strip(), *_SEPARATORS.split(text)}
        )

    async def authorize(self, claims: Claims, action: Action, room: Room) -> None:
        """Check that these claims allow an action in a room.

        Raises:
            PermissionDeniedError: they do not.
        """
        require_scope(claims, action)
        if not claims.allows_room(room):
            raise room_not_allowed(claims)
        if self._authorizer is not None:
            await self._call_authorizer(self._authorizer, claims, action, room)

    async def authorize_many(
        self, claims: Claims, action: Action, rooms: Iterable[Room]
    ) -> Mapping[Room, PermissionDeniedError]:
        """Return the rooms in which these claims do not allow an action, each with the error.

        An authorizer is called for several rooms concurrently. When it takes longer than
        ``AUTHORIZER_BATCH_TIMEOUT_S`` for all of them, the remaining rooms are denied.
        """
        if self._authorizer is None:
            require_scope(claims, action)
            denied = [room for room in rooms if not claims.allows_room(room)]
            return dict.fromkeys(denied, room_not_allowed(claims)) if denied else {}
        late = PermissionDeniedError("authorizer timed out")
        verdicts: dict[Room, PermissionDeniedError] = dict.fromkeys(rooms, late)
        if not verdicts:  # no item of the batch names a valid room
            return {}
        semaphore = asyncio.Semaphore(AUTHORIZER_CONCURRENCY)

        async def authorize_one(room: Room) -> None:
            try:
                async with semaphore:
                    await self.authorize(claims, action, room)
                del verdicts[room]
            except PermissionDeniedError as error:
                verdicts[room] = error

        tasks = [asyncio.create_task(authorize_one(room)) for room in verdicts]
        try:
            await asyncio.wait(tasks, timeout=AUTHORIZER_BATCH_TIMEOUT_S)
            return dict(verdicts)  # later verdicts are ignored
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
                "authorizer timed out after %g s, denying %r on %r",
                AUTHORIZER_TIMEOUT_S,
                action,
                room,
            )
        except Exception as error:  # noqa: BLE001 - an authorizer that fails denies
            # Only the type is logged, because the text may contain a secret.
            kind = type(error).__name__
            logger.error("authorizer raised %s, denying %r on %r", kind, action, room)
        raise PermissionDeniedError("denied by authorizer")

    def _allows(self, origin: str, host: str | None) -> bool:
        if origin in self._allowed_origins:
            return True
        if names_own_origin(origin, host):
            # The admin page, and React Native. DNS rebinding gains nothing: a page whose name was
            # pointed at this server has no credential, and without keys the Host was checked.
            return True
        return not self.keys() and is_loopback(host_of(origin))


def _rejected(details: str, user: str | None) -> UnauthenticatedError:
    """Return the error for a token that is not accepted.

    The error is created here because an error in a local variable of the raising function is part
    of a reference cycle. A flood of forged tokens would leave them to the garbage collector, which
    blocks the event loop for 60 ms at a time.
    """
    return UnauthenticatedError(details, is_invalid=True, user=user)


def require_scope(claims: Claims, *scopes: Action) -> None:
    """Check that the claims have at least one of the scopes.

    Raises:
        PermissionDeniedError: they do not.
    """
    if claims.scopes.isdisjoint(scopes):
        raise PermissionDeniedError(f"the {_kind(claims)} lacks scope {scopes[0]!r}")


def room_not_allowed(claims: Claims) -> PermissionDeniedError:
    """Return the error for a room that the credential does not grant access to."""
    return PermissionDeniedError(f"the {_kind(claims)} does not grant access to this room")


def _kind(claims: Claims) -> str:
    return "token" if claims.key_name is None else "key"


def load_authorizer(name: str) -> Authorizer:
    """Load the authorizer of ``--authorizer``: ``module:function``, also from the current folder.

    Raises:
        ConfigurationError: it cannot be imported, or is not an async function.
    """
    rule = resolve("--authorizer (SYNAP_REALTIME_AUTHORIZER)", name)
    if not inspect.iscoroutinefunction(rule):
        raise ConfigurationError(
            f"--authorizer (SYNAP_REALTIME_AUTHORIZER): {redacted(name)}: "
            "expected async def authorize(action, room, claims)"
        )
    return cast(Authorizer, rule)
