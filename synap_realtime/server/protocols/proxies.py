"""Who a request comes from, where a proxy stands between."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from ...loopback import strip_port


class TrustedProxies:
    """The operator's own: what their ``X-Forwarded-For`` says is believed, and nobody else's."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """
        Args:
            trusted: addresses or networks.

        Attributes:
            are_trusted: whether there are any.
        """
        self._networks = [ipaddress.ip_network(name) for name in trusted]
        self.enabled = bool(self._networks)

    def client_address(self, peer: str | None, headers: Mapping[str, str]) -> str | None:
        """Of the client: the last one in the list that is no proxy of ours."""
        if not self._trusts(peer):
            return peer
        given = headers.get("x-forwarded-for", "")
        hosts = [strip_port(host) for part in given.split(",") if (host := part.strip())]
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
