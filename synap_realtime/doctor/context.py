"""What is examined: the settings of a server and of the SDK, as this environment has them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from ..endpoint import ServerUrl, parse_server_url
from ..errors import ConfigurationError
from ..extras import needed_by

if TYPE_CHECKING:
    from ..server.auth.keys import Keys
    from ..server.config import ServerSettings
    from .probe import ClockOffset

PREFIX = "SYNAP_REALTIME_"
"""Of the variables that a server reads."""

_SECRETS = (
    "REALTIME_API_KEY", "REALTIME_TOKEN_SECRET", "SYNAP_REALTIME_TOKEN_SECRETS",
    "SYNAP_REALTIME_API_KEYS",
)  # fmt: skip
_ADDRESSES = ("REALTIME_URL", "REALTIME_PUBLIC_URL", "NEXT_PUBLIC_REALTIME_URL")


@dataclass(slots=True)
class CheckContext:
    """What the checks look at, and what one of them leaves for another.

    Attributes:
        settings: the server's; those that are wrong have their defaults. None: ``missing`` says
            what has to be installed before they can be read.
        has_server: whether this environment has settings of a server; else only the application's
            are looked at.
        wrong: what is wrong with the first wrong setting; None if nothing is.
        keys: those that the server would trust; None: ``keys_problem`` says why nobody knows.
        address: the room server's; None: ``address_problem`` says why there is none.
        secrets: what no finding may hold.
        dates: what the clocks of others said, for the check of this machine's.
        is_reached: whether something answered there that may be a room server.
    """

    settings: ServerSettings | None = None
    has_server: bool = False
    wrong: str | None = None
    missing: str = ""
    keys: Keys | None = None
    keys_problem: str = ""
    address: ServerUrl | None = None
    address_problem: str = ""
    secrets: set[str] = field(default_factory=set)
    dates: list[ClockOffset] = field(default_factory=list)
    reachable: bool = False

    @property
    def token_leeway_s(self) -> float:
        """By so much may clocks differ."""
        return 10.0 if self.settings is None else self.settings.token_leeway_s


def load_client_config(url: str | None) -> CheckContext:
    """Read what the SDK reads, and keep what is wrong with it for the checks to say.

    Args:
        url: the room server; None: ``REALTIME_URL``, else the default.
    """
    subject = CheckContext(secrets=set(_secrets_of_environment(url)))
    try:
        subject.address = parse_server_url(url)
    except ConfigurationError as error:
        subject.address_problem = str(error)
    return subject


def load_server_config(subject: CheckContext, given: Mapping[str, Any]) -> None:
    """Read what a server reads. Its file of keys may be anywhere: this may block.

    Args:
        given: settings of the server by name, over the environment. None: not given.
    """
    given = {name: value for name, value in given.items() if value is not None}
    subject.has_server = bool(given) or any(name.upper().startswith(PREFIX) for name in os.environ)
    try:
        _load_server_config(subject, given)
    except ImportError as error:
        subject.missing = str(error)


def _load_server_config(subject: CheckContext, given: dict[str, Any]) -> None:
    with needed_by("the room server", "server"):
        from ..server.config import load_settings

    try:
        subject.settings = settings = load_settings(**given)
    except ConfigurationError as error:
        subject.wrong = str(error)
        subject.settings = settings = _without_wrong(given)
    from ..server.auth import KeyRing

    # As the server has them: see server/asgi.py.
    secrets = [secret.get_secret_value() for secret in settings.token_secrets]
    api_keys = {name: key.get_secret_value() for name, key in settings.api_keys.items()}
    try:
        subject.keys = KeyRing(
            token_secrets=secrets,
            jwks_urls=settings.jwks_urls,
            api_keys=api_keys,
            file=settings.keys_file,
        ).current()
    except ConfigurationError as error:
        subject.keys_problem = str(error)
    else:
        subject.secrets.update(subject.keys.token_secrets)


def _without_wrong(given: dict[str, Any]) -> ServerSettings:
    """The settings with the defaults in the place of all that are wrong."""
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
