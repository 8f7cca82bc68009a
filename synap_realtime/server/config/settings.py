"""The settings of the server: arguments, else ``SYNAP_REALTIME_…`` in the environment."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, SecretStr
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ...errors import ConfigurationError
from ...loopback import is_loopback as is_loopback
from ...loopback import normalize_origin
from ...protocol.control import IDLE_TIMEOUT_S, PING_QUIET_S
from ...redaction import redacted
from ..stores.base import Retention

# An Origin as browsers send it: no path, no user, no upper case.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.\-]+)(?::[0-9]{1,5})?")

_SECRET = ("token_secrets", "api_keys")

_Limit = Annotated[int, Field(ge=0, le=2**53)]

_Seconds = Annotated[float, Field(gt=0, le=10 * 366 * 86_400)]


class ServerSettings(BaseSettings):
    """The settings of the room server. Each can be set by its ``SYNAP_REALTIME_`` variable.

    Attributes:
        host, port: the address that ``serve`` listens on; see :func:`listeners.bind`. Port 0 takes
            a free port.
        tls_cert, tls_key: PEM files with the certificate chain and its private key; ``serve`` then
            speaks TLS. They are reloaded when they change; see
            :class:`protocols.certificate.ReloadingCertificate`.
        workers: the number of processes that ``serve`` on one port, with a store that they share.
            Each has its own limits and rates; see :mod:`workers`.
        io_uring: write to rooms with many subscribers by io_uring, where the system allows it.
        allowed_origins: browser origins that are allowed in addition to loopback ones, such as
            ``https://app.example.com``. Separated by commas in the environment.
        store: ``memory://``, ``sqlite:///path``, or ``module:function``; see
            :func:`stores.open_store`.
        drain_timeout_s: the longest time for draining subscribers when the server stops.
        idle_timeout_s: a WebSocket from which no frame has arrived for this time is closed.
        ping_interval_s: a WebSocket from which no frame has arrived for this time is sent a ping,
            after a third of ``idle_timeout_s`` at the latest; 0 sends none. In a mounted app, the
            ASGI server pings (uvicorn: ``ws_ping_interval``).
        max_memory_bytes: the approximate maximum of the memory store. The oldest notifications are
            evicted first.
        retention_count: how many notifications a room keeps.
        retention_s: how long a room keeps them; ``request_retention_s``: a request's room.
        log_level: ``debug``, ``info``, ``warning`` or ``error``; log_format: ``text`` or ``json``.
        keys_file: a file with keys (TOML), which is reloaded when it changes; see
            :class:`auth.keys.KeyFile`.
        token_secrets: the secrets that verify tokens (HS256). Separated by commas in the
            environment.
        api_keys: API keys by name. In the environment ``name=key``, separated by commas.
        jwks_urls: where identity providers publish their keys. Separated by commas in the
            environment.
        token_issuer, token_audience: the ``iss`` and ``aud`` that tokens must have.
        token_leeway_s: the difference between two clocks that is tolerated.
        token_max_lifetime_s: a token that is valid for longer, from ``iat`` to ``exp``, is
            rejected. Revocations are kept for as long.
        admin: serve the admin page at ``/admin``.
        authorizer: ``module:function``; see :data:`auth.authorization.Authorizer`.
        trusted_proxies: addresses or networks whose ``X-Forwarded-For`` is trusted.
        max_connections, max_connections_per_user, max_connections_per_room,
            max_connections_per_address: 0 is no limit, here and below. Loopback addresses have
            no limit.
        max_rooms: rooms with at least one subscriber.
        max_pending_connections: sockets that have not completed a TLS handshake or a request.
        max_request_bytes: unanswered requests, in total: heads, targets, bodies, and the pipelined
            requests behind them.
        max_answer_bytes: answers that their peers have not read yet, in total.
        max_backlog_bytes: notifications that slow consumers have not read yet, in total.
        max_caller_bytes: each of these three for one caller: a user, a token, or an address.
        new_connections_per_s: new connections of an address.
        publishes_per_s: notifications of a key, each counted once for each of its rooms;
            ``publish_bytes_per_s``: their bytes.
        requests_per_s: requests of a user or a key other than publishes, including handshakes; of
            an address, those without a credential, and invalid tokens. ``read_bytes_per_s``: bytes
            of histories, replays and presence that a user or a key reads.
        client_messages_per_s: messages of one client.
    """

    model_config = SettingsConfigDict(env_prefix="SYNAP_REALTIME_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8787
    tls_cert: Path | None = None
    tls_key: Path | None = None
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    io_uring: bool = True
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()
    store: str = "memory://"
    drain_timeout_s: Annotated[float, Field(ge=0, le=600)] = 5.0
    idle_timeout_s: _Seconds = IDLE_TIMEOUT_S
    ping_interval_s: Annotated[float, Field(ge=0, le=86_400)] = PING_QUIET_S
    max_memory_bytes: Annotated[int, Field(ge=1024 * 1024, le=2**53)] = Retention().max_memory_bytes
    retention_count: Annotated[int, Field(ge=1, le=100_000)] = 1000
    retention_s: _Seconds = 24 * 3600.0
    request_retention_s: _Seconds = 3600.0
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"
    log_format: Literal["text", "json"] = "text"

    keys_file: Path | None = None
    token_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    api_keys: Annotated[Mapping[str, SecretStr], NoDecode] = Field(default_factory=dict)
    jwks_urls: Annotated[tuple[str, ...], NoDecode] = ()
    token_issuer: Annotated[str | None, Field(min_length=1)] = None
    token_audience: Annotated[str | None, Field(min_length=1)] = None
    token_leeway_s: Annotated[float, Field(ge=0, le=300)] = 10.0
    token_max_lifetime_s: _Seconds = 90 * 86_400.0
    admin: bool = False
    authorizer: Annotated[str | None, Field(pattern=r"^[\w.]+:\w+$")] = None
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()

    max_connections: _Limit = 20_000
    max_connections_per_user: _Limit = 50
    max_connections_per_room: _Limit = 10_000
    max_rooms: _Limit = 20_000
    max_connections_per_address: _Limit = 1000
    max_pending_connections: _Limit = 5000
    max_request_bytes: _Limit = 64 * 1024 * 1024
    max_answer_bytes: _Limit = 64 * 1024 * 1024
    max_backlog_bytes: _Limit = 256 * 1024 * 1024
    max_caller_bytes: _Limit = 16 * 1024 * 1024
    new_connections_per_s: _Limit = 50
    publishes_per_s: _Limit = 10_000
    publish_bytes_per_s: _Limit = 20 * 1024 * 1024
    requests_per_s: _Limit = 200
    read_bytes_per_s: _Limit = 20 * 1024 * 1024
    client_messages_per_s: _Limit = 100

    @pydantic.field_validator(
        "allowed_origins", "token_secrets", "jwks_urls", "trusted_proxies", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return _parts(value) if isinstance(value, str) else value

    @pydantic.field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        """Parse ``name=key,…``. A key without a name is named by its position."""
        if not isinstance(value, str):
            return value
        named = {}
        for number, part in enumerate(_parts(value), 1):
            name, found, key = part.partition("=")
            named.update({name: key} if found and key.strip("=") else {f"key-{number}": part})
        return named

    @pydantic.field_validator("token_secrets", "api_keys", "jwks_urls", mode="before")
    @classmethod
    def _check_not_empty(cls, value: object) -> object:
        """Reject an empty variable, because it would start a server that does not authenticate."""
        if isinstance(value, str) and not _parts(value):
            raise PydanticCustomError(
                "empty", "expected at least one value; unset the variable to have none"
            )
        return value

    @pydantic.field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise PydanticCustomError("network", "expected addresses or networks") from None
        return networks

    @pydantic.field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(map(normalize_origin, origins))
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise PydanticCustomError(
                    "origin",
                    "expected scheme://host[:port] for each, as browsers send it; no * and no path",
                )
        return origins

    def revocation_retention_s(self) -> float:
        """Return how long a revocation is kept, so that no revoked token becomes valid again.

        A token is valid until its ``exp`` and the leeway. One that was issued before the revocation
        has an ``iat`` of at most the leeway after it, and its ``exp`` is at most the longest
        lifetime later. One without ``iat`` that was valid at the revocation ends within that
        lifetime and the leeway after it. So no such token is valid after this time. The additional
        minute allows for stores that check ages in steps.
        """
        return self.token_max_lifetime_s + 2 * self.token_leeway_s + 60.0

    def limits(self) -> dict[str, int]:
        """Return the limits by the names of their options. See PROTOCOL.md, "Limits"."""
        names = type(self).model_fields
        return {
            name: getattr(self, name)
            for name in names
            if name.startswith("max_") or name.endswith("_per_s")
        }

    def retention(self) -> Retention:
        return Retention(
            self.retention_count,
            self.retention_s,
            self.request_retention_s,
            max_memory_bytes=self.max_memory_bytes,
            control_age_s=self.revocation_retention_s(),
        )


def load_settings(**given: Any) -> ServerSettings:
    """Load settings from arguments (None: not given), else from the environment.

    Raises:
        ConfigurationError: names the first setting that is invalid.
    """
    try:
        return ServerSettings(**{name: value for name, value in given.items() if value is not None})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        variable = f"SYNAP_REALTIME_{name.upper()}"
        if name in _SECRET:  # there is no option, and the value is secret
            raise ConfigurationError(f"{variable}: {first['msg']}") from None
        raise ConfigurationError(
            f"--{name.replace('_', '-')} ({variable}): {first['msg']}, "
            f"got {redacted(repr(first['input']))}"
        ) from None


def default_text(name: str) -> str | None:
    """Return the default of a setting as ``--help`` shows it; None if it has none."""
    field = ServerSettings.model_fields.get(name)
    value = None if field is None else field.default
    match value:
        case bool():
            return "on" if value else "off"
        case int() if "_bytes" in name:
            return f"{value} ({value // 2**20} MiB)"
        case int() | float() if value >= 86_400 and value % 86_400 == 0:
            days = int(value) // 86_400
            return f"{value:.15g} ({days} {'day' if days == 1 else 'days'})"
        case int() | float():
            return f"{value:.15g}"
        case str():
            return value
        case _:
            return None


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
