"""Who a request comes from, where a proxy stands between."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping


class Proxies:
    """The operator's own: what their ``X-Forwarded-For`` says is believed, and nobody else's."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """
        Args:
            trusted: addresses or networks; ``*``: all.

        Attributes:
            are_trusted: whether there are any.
        """
        names = list(trusted)
        self._all = "*" in names
        self.are_trusted = bool(names)
        self._networks = [ipaddress.ip_network(name) for name in names if name != "*"]

    def address(self, peer: str | None, headers: Mapping[str, str]) -> str | None:
        """Of the client: the last one in the list that is no proxy of ours."""
        if not self._trusts(peer):
            return peer
        given = headers.get("x-forwarded-for", "")
        hosts = [host for part in given.split(",") if (host := part.strip())]
        for host in reversed(hosts):
            if not self._trusts(host):
                return host
        return hosts[0] if hosts else peer

    def _trusts(self, host: str | None) -> bool:
        if self._all:
            return True
        try:
            address = ipaddress.ip_address(host or "")
        except ValueError:
            return False
        return any(address in network for network in self._networks)
