"""Find the address of a client behind trusted proxies."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from ...loopback import strip_port


class TrustedProxies:
    """The operator's proxies. ``X-Forwarded-For`` is trusted only if one of them has sent it."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """
        Args:
            trusted: addresses or networks of the proxies.

        Attributes:
            enabled: whether any proxy is trusted.
        """
        self._networks = [ipaddress.ip_network(name) for name in trusted]
        self.enabled = bool(self._networks)

    def client_address(self, peer: str | None, headers: Mapping[str, str]) -> str | None:
        """Return the last address of ``X-Forwarded-For`` that is not a trusted proxy.

        A client can send the header itself, so entries before that address are forgeable. If the
        peer is not a trusted proxy, its own address is returned.
        """
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
