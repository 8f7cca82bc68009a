"""Read the configuration: settings, references to application code, and watched files."""

from __future__ import annotations

import importlib
import ipaddress
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from ..errors import ConfigurationError
from ..loopback import normalize_origin
from ..protocol.control import IDLE_TIMEOUT_S, PING_QUIET_S
from ..redaction import redacted

REFERENCE = re.compile(r"[\w.]+:\w+")


def resolve(option: str, reference: str) -> object:
    """Return the object that a reference names. Modules of the current folder are found, too.

    Args:
        option: for the error, such as ``--authorizer (SYNAP_REALTIME_AUTHORIZER)``.

    Raises:
        ConfigurationError: the module cannot be imported, or has no such name.
    """
    module, _, attribute = reference.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        known = isinstance(error, ImportError | AttributeError)
        cause = f"{error}" if known else f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{option}: {redacted(f'{reference}: {cause}')}") from error
    finally:
        sys.path.remove("")


CHECK_INTERVAL_S = 0.25
"""The shortest time between two checks of the files."""

_State = tuple[tuple[int, ...] | None, ...]


class FileWatcher:
    """Notice changes of a group of files that are read together."""

    def __init__(
        self, *files: Path, settles: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            settles: report a change only after two consecutive checks with the same result, so that
                a file is not read while it is being written. This needs periodic calls.
        """
        self._files = files
        self._settles = settles
        self._clock = clock
        self._checked_at = clock()
        self._state = self._seen = self._check()

    def have_changed(self) -> bool:
        """Return whether the files differ from the last report: True once for each change."""
        if not self._files or self._clock() - self._checked_at < CHECK_INTERVAL_S:
            return False
        self._checked_at = self._clock()
        before, self._seen = self._seen, self._check()
        if self._seen == self._state or (self._settles and self._seen != before):
            return False
        self._state = self._seen
        return True

    def report_again(self) -> None:
        """Let the next call of :meth:`have_changed` report the current state again."""
        self._state = ()

    @property
    def state(self) -> object:
        """The state at the last check, for comparison: equal as long as no file changes."""
        return self._seen

    def _check(self) -> _State:
        return tuple(_state_of(file) for file in self._files)


def _state_of(file: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - follows a link whose target changes
    except (OSError, ValueError):
        return None
    # The change time also notices changed permissions, and a restored modification time.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino, found.st_size


# An Origin as browsers send it: no path, no user, no upper case.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.\-]+)(?::[0-9]{1,5})?")

ENV_PREFIX = "SYNAP_REALTIME_"
"""The prefix of the environment variables of the settings."""

SECRETS = ("token_secrets", "api_keys")
"""The settings without an option, because other users of the machine can read command lines."""

_Limit = Annotated[int, Field(ge=0, le=2**53)]

_Seconds = Annotated[float, Field(gt=0, le=10 * 366 * 86_400)]


class ServerSettings(BaseModel):
    """The settings of the room server: arguments, else environment variables, else defaults.

    The field ``port`` is also the variable ``SYNAP_REALTIME_PORT`` and, except for secrets, the
    option ``--port`` of ``serve``; its docstring is the option's help.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # See listeners.bind.
    host: str = "127.0.0.1"
    """The address to listen on: an IP address or a name. localhost is 127.0.0.1 and ::1; :: is
    every address of IPv6 and IPv4. Addresses other than loopback need keys."""

    port: Annotated[int, Field(ge=0, le=65535)] = 8787
    """The TCP port to listen on. 0 takes a free port."""

    # Both files are reloaded when they change; see protocols.tls.ReloadingCertificate.
    tls_cert: Path | None = None
    """A PEM file with the certificate chain. The server then speaks TLS."""

    tls_key: Path | None = None
    """A PEM file with the certificate's private key."""

    # Each worker has its own limits and rates; see workers.
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """The number of worker processes. More than one needs a store that processes can share."""

    io_uring: bool = True
    """Write to large rooms with io_uring where the kernel has it."""

    allowed_origins: tuple[str, ...] = ()
    """The origins of the pages that may connect, separated by commas: https://app.example.com.
    Without keys, pages of loopback origins may connect, too; with keys, they need to be listed."""

    # See stores.open_store.
    store: str = "memory://"
    """Where rooms keep their logs: memory://, sqlite:///path, redis://host:port/database (Redis or
    Valkey, which several servers share) or module:function."""

    drain_timeout_s: Annotated[float, Field(ge=0, le=600)] = 5.0
    """How long the server waits for publishes and subscribers to finish when it stops, in
    seconds."""

    idle_timeout_s: _Seconds = IDLE_TIMEOUT_S
    """Close a WebSocket after this time without a frame from its client, in seconds."""

    # After a third of idle_timeout_s at the latest. In a mounted app, the ASGI server pings
    # (uvicorn: ws_ping_interval).
    ping_interval_s: Annotated[float, Field(ge=0, le=86_400)] = PING_QUIET_S
    """Ping a WebSocket after this time without a frame from its client, in seconds. 0 sends no
    pings."""

    piece_interval_ms: Annotated[int, Field(ge=0, le=10_000)] = 40
    """Join the pieces of a text that are published within this time for its subscribers, in
    milliseconds. 0 delivers each piece alone."""

    max_memory_bytes: Annotated[int, Field(ge=1024 * 1024, le=2**53)] = 512 * 1024 * 1024
    """The approximate maximum size of the memory store, in bytes. The oldest notifications are
    evicted first."""

    retention_count: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """The maximum number of notifications that a room keeps."""

    retention_s: _Seconds = 24 * 3600.0
    """How long a room keeps a notification, in seconds."""

    request_retention_s: _Seconds = 3600.0
    """How long a request's room keeps a notification, in seconds."""

    job_retention_s: _Seconds = 7 * 24 * 3600.0
    """How long the record of a job is kept after its last change, in seconds."""

    # Of each room; a request's room usually has one.
    jobs_per_user: Annotated[int, Field(ge=1, le=10_000)] = 1000
    """The maximum number of jobs in the list of a user."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe level that is logged: debug, info, warning or error."""

    log_format: Literal["text", "json"] = "text"
    """The format of the log: text or json."""

    # See auth.keys.KeyFile.
    keys_file: Path | None = None
    """A TOML file with keys, as generate-keys writes it. It is reloaded when it changes."""

    token_secrets: tuple[SecretStr, ...] = ()
    """The secrets that verify tokens (HS256), separated by commas."""

    api_keys: Mapping[str, SecretStr] = Field(default_factory=dict)
    """API keys by name, as name=key, separated by commas."""

    jwks_urls: tuple[str, ...] = ()
    """Where identity providers publish their JWK sets: https:// URLs, separated by commas."""

    token_issuer: Annotated[str | None, Field(min_length=1)] = None
    """The iss claim that tokens must have."""

    token_audience: Annotated[str | None, Field(min_length=1)] = None
    """The aud claim that tokens must have."""

    token_leeway_s: Annotated[float, Field(ge=0, le=300)] = 10.0
    """The clock difference that is tolerated when a token is validated, in seconds."""

    # From iat to exp. Revocations are kept for as long.
    token_max_lifetime_s: _Seconds = 90 * 86_400.0
    """Reject tokens that are valid for longer than this, in seconds."""

    # See auth.authorization.Authorizer.
    authorizer: str | None = None
    """Your own authorizer, as module:function. It can only deny what the server allows."""

    admin: bool = False
    """Serve the admin page at /admin."""

    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For is trusted, separated by commas."""

    max_connections: _Limit = 20_000
    """The maximum number of open connections. 0 is no limit, here and below."""

    max_connections_per_user: _Limit = 50
    """The maximum number of open connections per user."""

    max_connections_per_room: _Limit = 10_000
    """The maximum number of open connections per room."""

    max_rooms: _Limit = 20_000
    """The maximum number of rooms that have subscribers."""

    max_pending_connections: _Limit = 5000
    """The maximum number of sockets that have not sent a whole request yet."""

    # Heads, targets, bodies, and the pipelined requests behind them.
    max_request_bytes: _Limit = 64 * 1024 * 1024
    """The maximum size of all unanswered requests together, in bytes."""

    max_response_bytes: _Limit = 64 * 1024 * 1024
    """The maximum size of all responses that clients have not read yet, in bytes."""

    max_backlog_bytes: _Limit = 256 * 1024 * 1024
    """The maximum size of all notifications that slow consumers have not read yet, in bytes."""

    max_caller_bytes: _Limit = 16 * 1024 * 1024
    """The maximum of each of the three sizes above for one user, token or address, in bytes."""

    # Loopback addresses have no limit.
    max_connections_per_address: _Limit = 1000
    """The maximum number of open connections per address."""

    new_connections_per_s: _Limit = 50
    """The rate limit of new connections per address, per second."""

    # Each notification counts once for each of its rooms.
    publishes_per_s: _Limit = 10_000
    """The rate limit of notifications per key, per second."""

    publish_bytes_per_s: _Limit = 20 * 1024 * 1024
    """The rate limit of published bytes per key, per second."""

    # Including handshakes. Of an address: those without a credential, and invalid tokens.
    requests_per_s: _Limit = 200
    """The rate limit of requests other than publishes per user, key or address, per second."""

    read_bytes_per_s: _Limit = 20 * 1024 * 1024
    """The rate limit of bytes read (history, replay, presence, jobs) per user or key,
    per second."""

    client_messages_per_s: _Limit = 100
    """The rate limit of messages that one client sends, per second."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**_from_environment(type(self).model_fields), **given})

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

    @pydantic.field_validator("authorizer")
    @classmethod
    def _check_reference(cls, reference: str | None) -> str | None:
        if reference is not None and not REFERENCE.fullmatch(reference):
            raise PydanticCustomError("reference", "expected module:function")
        return reference

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


def _from_environment(names: Iterable[str]) -> dict[str, str]:
    """Return the settings of the environment by their names, in upper or lower case."""
    variables = {variable.upper(): value for variable, value in os.environ.items()}
    wanted = {name: ENV_PREFIX + name.upper() for name in names}
    return {name: variables[each] for name, each in wanted.items() if each in variables}


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
        variable = ENV_PREFIX + name.upper()
        if name in SECRETS:
            raise ConfigurationError(f"{variable}: {first['msg']}") from None
        raise ConfigurationError(
            f"--{name.replace('_', '-')} ({variable}): {first['msg']}, "
            f"got {redacted(repr(first['input']))}"
        ) from None


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
