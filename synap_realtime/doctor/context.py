"""The input of the checks: the settings of a server and of the SDK in this environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import httpx

from ..endpoint import ServerUrl, parse_server_url
from ..errors import ConfigurationError
from ..extras import needed_by

if TYPE_CHECKING:
    from ..server.auth.keys import Keys
    from ..server.config import ServerSettings

PREFIX = "SYNAP_REALTIME_"
"""Prefix of the variables that a server reads."""

_SECRETS = (
    "REALTIME_API_KEY", "REALTIME_TOKEN_SECRET", "SYNAP_REALTIME_TOKEN_SECRETS",
    "SYNAP_REALTIME_API_KEYS",
)  # fmt: skip
_ADDRESSES = ("REALTIME_URL", "REALTIME_PUBLIC_URL", "NEXT_PUBLIC_REALTIME_URL")


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """Seconds by which this machine's clock is ahead of another's (negative: behind).

    This is the minimum: the header has whole seconds, and a response takes time.
    """

    host: str
    ahead_s: float


@dataclass(slots=True)
class CheckContext:
    """The input of the checks, and the results that one check leaves for another.

    Attributes:
        settings: the server's. Invalid settings are replaced by their defaults. None:
            ``import_problem`` names the package that is needed to read them.
        has_server: whether this environment has settings of a server. Otherwise only the
            application's settings are checked.
        settings_problem: of the first invalid setting; empty if all are valid.
        keys: the server's trusted keys; None: ``keys_problem`` states why they are unknown.
        address: the room server's; None: ``address_problem`` states why there is none.
        secrets: strings that no finding may contain.
        clock_offsets: of the servers that responded, for the check of the clocks.
        reachable: whether a possible room server responded at the address.
    """

    settings: ServerSettings | None = None
    has_server: bool = False
    settings_problem: str = ""
    import_problem: str = ""
    keys: Keys | None = None
    keys_problem: str = ""
    address: ServerUrl | None = None
    address_problem: str = ""
    secrets: set[str] = field(default_factory=set)
    clock_offsets: list[ClockOffset] = field(default_factory=list)
    reachable: bool = False

    @property
    def token_leeway_s(self) -> float:
        """Allowed clock difference."""
        return 10.0 if self.settings is None else self.settings.token_leeway_s


def load_client_config(url: str | None) -> CheckContext:
    """Read the SDK's configuration; keep its problems for the checks to report.

    Args:
        url: the room server. None: ``REALTIME_URL``, then the default.
    """
    context = CheckContext(secrets=set(_secrets_of_environment(url)))
    try:
        context.address = parse_server_url(url)
    except ConfigurationError as error:
        problem = str(error)
        context.address_problem = f"--{problem}" if problem.startswith("url: ") else problem
    return context


def load_server_config(context: CheckContext, given: Mapping[str, Any]) -> None:
    """Read a server's configuration. This may block: the keys file may be on any file system.

    Args:
        given: settings of the server by name, which override the environment. None: not given.
    """
    given = {name: value for name, value in given.items() if value is not None}
    context.has_server = bool(given) or any(name.upper().startswith(PREFIX) for name in os.environ)
    try:
        _load_server_config(context, given)
    except ImportError as error:
        context.import_problem = str(error)


def _load_server_config(context: CheckContext, given: dict[str, Any]) -> None:
    with needed_by("the room server", "server"):
        from ..server.config import load_settings

    try:
        context.settings = settings = load_settings(**given)
    except ConfigurationError as error:
        context.settings_problem = str(error)
        context.settings = settings = _without_wrong(given)
    context.secrets.update(_passwords_of(settings.store))
    from ..server.auth.keys import KeyRing

    # As in the server: see server/asgi/adapter.py.
    secrets = [secret.get_secret_value() for secret in settings.token_secrets]
    api_keys = {name: key.get_secret_value() for name, key in settings.api_keys.items()}
    try:
        context.keys = KeyRing(
            token_secrets=secrets,
            jwks_urls=settings.jwks_urls,
            api_keys=api_keys,
            file=settings.keys_file,
        ).current()
    except ConfigurationError as error:
        context.keys_problem = str(error)
    else:
        context.secrets.update(context.keys.token_secrets)


def _without_wrong(given: dict[str, Any]) -> ServerSettings:
    """Return the settings with defaults in place of the invalid ones."""
    import pydantic

    from ..server.config import ServerSettings

    fields = ServerSettings.model_fields
    try:
        return ServerSettings(**given)
    except pydantic.ValidationError as error:
        wrong = {str(each["loc"][0]) for each in error.errors(include_input=False)}
    defaults = {
        name: fields[name].get_default(call_default_factory=True) for name in wrong & set(fields)
    }
    return ServerSettings(**{**given, **defaults})


def _passwords_of(store: str) -> set[str]:
    """Return the passwords in the URL of a store, as written there and as sent."""
    try:
        parts = urlsplit(store)
        written = {parts.password} if parts.password is not None else set()
    except ValueError:
        return set()
    written |= {
        value
        for name, _, value in (each.partition("=") for each in parts.query.split("&"))
        if name == "sentinel_password"
    }
    return written | {unquote(each) for each in written}


def _secrets_of_environment(url: str | None) -> list[str]:
    found: list[str] = []
    for name in _SECRETS:
        for part in os.environ.get(name, "").split(","):
            found += [part.strip(), part.strip().partition("=")[2]]
        found.append(os.environ.get(name, "").strip())
    for text in (url, *(os.environ.get(name) for name in _ADDRESSES)):
        try:
            found.append(httpx.URL(text or "").password)
        except (httpx.InvalidURL, ValueError, TypeError):
            continue
    return found
