"""The URL, the credential and the ``Retry-After`` of a room server, for publishers and subscribers.

URL and credential may contain a secret, so messages show them redacted only.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import NamedTuple

import httpx

from .errors import ConfigurationError
from .lexical import OWS, parse_date, parse_digits
from .network import names_this_machine
from .redaction import redacted

DEFAULT_URL = "http://127.0.0.1:8787"
"""Where ``synap-realtime serve`` listens by default."""

SCHEMES = ("http", "https", "ws", "wss")
"""The schemes of a subscriber's URL. ``http`` and ``ws`` name the same server."""


class ServerUrl(NamedTuple):
    """The base URL of a room server, with its mount path, without a slash at the end."""

    url: httpx.URL
    redacted: str
    """The URL without user and password, for messages."""

    source: str = ""
    """Where it was read from: ``url`` or an environment variable; empty for the default."""

    def __str__(self) -> str:
        return str(self.url).rstrip("/")

    @property
    def named(self) -> str:
        """The URL, and the setting that changes it, for messages."""
        return f"{self.redacted} ({self.setting or 'the default; set REALTIME_URL to change it'})"

    @property
    def setting(self) -> str:
        """The setting that changes it: ``url=`` or an environment variable; may be empty."""
        return "url=" if self.source == "url" else self.source

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, where no proxy of the environment is used."""
        return names_this_machine(self.url.host)


def parse_server_url(
    url: str | None,
    schemes: tuple[str, ...] = ("http", "https"),
    variables: tuple[str, ...] = ("REALTIME_URL",),
) -> ServerUrl:
    """Parse the argument, else the first of the variables that is set, else :data:`DEFAULT_URL`.

    Raises:
        ConfigurationError: it is not a URL with one of the schemes and a host.
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
    """Return the value of ``Authorization`` for a key or a token.

    Raises:
        ConfigurationError: an HTTP header cannot carry it. The message does not show it.
    """
    if not (isinstance(key, str) and key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"{source}: holds a character that an HTTP header cannot carry; "
            "is there a line end in it?"
        )
    return f"Bearer {key}"


def retry_after_s(value: str | None) -> float | None:
    """Parse either form of ``Retry-After`` into seconds (RFC 9110, section 10.2.3).

    Return None if there is none. One in any other form counts as none.
    """
    text = (value or "").strip(OWS)
    if (seconds := parse_digits(text)) is not None:
        return float(seconds)
    if (moment := parse_date(text)) is not None:
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return None
