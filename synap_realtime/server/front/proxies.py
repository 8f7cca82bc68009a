"""Who a request comes from, where a proxy stands between."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([0-9.]+):\d+")


class Proxies:
    """The operator's own: what their ``X-Forwarded-For`` says is believed, and nobody else's."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """
        Args:
            trusted: addresses or networks.

        Attributes:
            are_trusted: whether there are any.
        """
        self._networks = [ipaddress.ip_network(name) for name in trusted]
        self.are_trusted = bool(self._networks)

    def address(self, peer: str | None, headers: Mapping[str, str]) -> str | None:
        """Of the client: the last one in the list that is no proxy of ours."""
        if not self._trusts(peer):
            return peer
        given = headers.get("x-forwarded-for", "")
        hosts = [_without_port(host) for part in given.split(",") if (host := part.strip())]
        for host in reversed(hosts):
            if not self._trusts(host):
                return host
        return hosts[0] if hosts else peer

    def _trusts(self, host: str | None) -> bool:
        try:
            address = ipaddress.ip_address(host or "")
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def _without_port(host: str) -> str:
    """Some proxies add the port, which is another one each time."""
    found = _WITH_PORT.fullmatch(host)
    return host if found is None else found[1] or found[2]
