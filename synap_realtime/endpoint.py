"""The room server's address, the key for it, and when it wants to be asked again: what a publisher
and a listener both need.

Address and key may hold a secret, so neither is ever shown as it is.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx

from .errors import ConfigurationError
from .network import names_this_machine
from .redaction import redacted

DEFAULT_URL = "http://127.0.0.1:8787"
"""Where ``synap-realtime serve`` listens unless told otherwise."""

SCHEMES = ("http", "https", "ws", "wss")
"""What a listener's URL may begin with: it is the same server either way."""


class ServerUrl(NamedTuple):
    """A room server's base URL, with the path that it is mounted at, without a slash at the end."""

    url: httpx.URL
    redacted: str
    """The same without user and password, for messages."""

    source: str = ""
    """What it was read from: ``url``, an environment variable; empty: it is the default."""

    def __str__(self) -> str:
        return str(self.url).rstrip("/")

    @property
    def named(self) -> str:
        """The address with what has to be changed to change it, for messages."""
        return f"{self.redacted} ({self.setting or 'the default; REALTIME_URL names another'})"

    @property
    def setting(self) -> str:
        """What has to be changed to change it: ``url=`` or an environment variable; may be empty,
        see :attr:`source`."""
        return "url=" if self.source == "url" else self.source

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, which no proxy of the environment leads to."""
        return names_this_machine(self.url.host)


def parse_server_url(
    url: str | None,
    schemes: tuple[str, ...] = ("http", "https"),
    variables: tuple[str, ...] = ("REALTIME_URL",),
) -> ServerUrl:
    """Take the argument, else the first of the variables that is set, else :data:`DEFAULT_URL`.

    Raises:
        ConfigurationError: it is no URL with one of the schemes and a host.
    """
    source, text = "url", url
    for name in variables if not text else ():
        source, text = name, os.environ.get(name)
        if text:
            break
    if not text:
        source, text = "", DEFAULT_URL
    shown = redacted(str(text))
    try:
        parsed = httpx.URL(text)
    except (httpx.InvalidURL, TypeError, ValueError):
        raise ConfigurationError(f"{source}: not a URL: {shown!r}") from None
    if parsed.scheme not in schemes or not parsed.host:
        expected = " or ".join(f"{scheme}://…" for scheme in schemes)
        raise ConfigurationError(f"{source}: expected {expected}, got {shown!r}")
    if parsed.query or parsed.fragment or not 0 < (parsed.port or 80) < 65536:
        raise ConfigurationError(f"{source}: expected a host, a port and a path, got {shown!r}")
    shown = str(parsed.copy_with(username=None, password=None)).rstrip("/")
    return ServerUrl(parsed, shown, source)


def authorization_header(source: str, key: object) -> str:
    """A key or a token as the value of ``Authorization``.

    Raises:
        ConfigurationError: no HTTP header can carry it. The message does not show it.
    """
    if not (isinstance(key, str) and key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"{source}: holds a character that an HTTP header cannot carry; "
            "is there a line end in it?"
        )
    return f"Bearer {key}"


def retry_after_s(value: str | None) -> float | None:
    """Seconds to wait, from either form of ``Retry-After`` (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    if value.isascii() and value.strip().isdigit():
        return float(value[:12])
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
