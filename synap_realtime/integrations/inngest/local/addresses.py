"""Restrict the addresses of apps. An app receives every event that triggers its functions."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import httpx

from ....loopback import is_loopback

_NAME = re.compile(r"[a-z0-9_.\-]+")


class AddressError(ValueError):
    """An app's address is not allowed; the message states the reason."""


class AppHosts:
    """The hosts at which apps may be served: this machine, and those that the developer has listed.

    A host is checked by its name, never by the addresses that the name resolves to: these can
    change between the check and the call (DNS rebinding).
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Validate the host names.

        Args:
            names: allowed hosts, without a port, in addition to this machine.

        Raises:
            AddressError: a name is not a host.
        """
        self._names = {name.lower() for name in names}
        for name in self._names:
            if not (_NAME.fullmatch(name) or _is_ipv6(name)):
                raise AddressError(f"expected a host without scheme and port, got {name[:100]!r}")

    def allow(self, url: str) -> None:
        """Allow the host of an address that the developer has configured."""
        self._names.add(_parsed(url).host)

    def check(self, url: str) -> None:
        """Check that functions may be called at an address.

        Raises:
            AddressError: the address is not allowed.
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
    """Parse the address with the HTTP client's parser. Another parser could see another host."""
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise AddressError(f"an app's address is invalid: {error}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise AddressError("an app's address must begin with http:// or https:// and name a host")
    return address
