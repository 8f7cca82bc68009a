"""Which addresses apps may have: an app is sent every event that its functions ask for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import httpx

from ....loopback import is_loopback

_NAME = re.compile(r"[a-z0-9_.\-]+")


class AddressError(ValueError):
    """An app's address is not allowed; the message says why."""


class AppHosts:
    """The hosts that apps may be served at: this machine, and those that the developer has named.

    A host is judged by its name, and never by the addresses that the name has: these can change
    between the check and the call (DNS rebinding).
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """
        Args:
            names: hosts without a port that are allowed beside this machine.

        Raises:
            AddressError: one is no host.
        """
        self._names = {name.lower() for name in names}
        for name in self._names:
            if not (_NAME.fullmatch(name) or _is_ipv6(name)):
                raise AddressError(f"expected a host without scheme and port, got {name[:100]!r}")

    def allow(self, url: str) -> None:
        """Allow the host of an address that the developer has given."""
        self._names.add(_parsed(url).host)

    def check(self, url: str) -> None:
        """
        Raises:
            AddressError: no function may be called there.
        """
        address = _parsed(url)
        if address.userinfo:
            raise AddressError("an app's address must not hold a user name or a password")
        if not (is_loopback(address.host) or address.host in self._names):
            raise AddressError(
                f"an app at {address.host[:100]!r} is not allowed: it must be served on loopback, "
                "such as http://127.0.0.1:8000; LocalInngest(app_hosts=[…]) allows other hosts"
            )


def _is_ipv6(name: str) -> bool:
    try:
        ipaddress.IPv6Address(name)
    except ValueError:
        return False
    return True


def _parsed(url: str) -> httpx.URL:
    """The address as the HTTP client reads it. Another parser could see another host."""
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise AddressError(f"an app's address cannot be read: {error}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise AddressError("an app's address must begin with http:// or https:// and name a host")
    return address
