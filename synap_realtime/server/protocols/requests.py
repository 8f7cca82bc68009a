"""Requests, and what their heads mean: the target, an upgrade, and the address of the client."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Mapping

import httptools

from ...loopback import strip_port
from ..messages import Request, RequestError, bad_request
from .body import RequestBody

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_SLASH = ord("/")


class HttpRequest(Request):
    """A request, as far as it has been received.

    Attributes:
        error: answers the request instead of its route.
        body: receives the body.
        weight: about the bytes of memory that the head takes, and the body once it is complete.
    """

    __slots__ = ("body", "error", "is_http_10", "keeps_alive", "weight")

    def __init__(
        self, method: str, path: str, query: str, headers: dict[str, str], address: str | None
    ) -> None:
        super().__init__(method, path, query, headers, address)
        self.keeps_alive = False
        self.is_http_10 = False
        self.error: RequestError | None = None
        self.body = RequestBody()
        self.weight = 0

    @property
    def declared_bytes(self) -> int:
        """The value of ``Content-Length``, or 0."""
        declared = self.headers.get("content-length", "0")
        return int(declared) if declared.isdigit() else 0

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100. HTTP/1.0 has no Expect (RFC 9110, section 10.1.1)."""
        return self.headers.get("expect", "").lower() == "100-continue" and not self.is_http_10

    def fail(self, error: RequestError) -> None:
        """Answer with an error, because the rest of the request is invalid."""
        self.error = error
        self.keeps_alive = False
        self.body.complete(error)


def parse_target(url: bytes) -> str:
    """Return the path and query of a request target.

    Of a target in absolute form (RFC 9112, section 3.2.2), these parts are returned.
    """
    if url[0] == _SLASH and b"#" not in url:  # the common case
        return url.decode("latin-1")
    if url[0] != _SLASH:
        try:
            parts = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            return "/" + url.decode("latin-1")
        url = parts.path or b"/"
        if parts.query is not None:
            url += b"?" + parts.query
    return url.decode("latin-1").partition("#")[0]


def validate_upgrade(request: HttpRequest) -> bool:
    """Validate a request with ``Upgrade``. An invalid one gets :attr:`HttpRequest.error`.

    Returns:
        Whether HTTP ends on this connection after the request, because it is a WebSocket handshake
        or ``CONNECT``. Every other upgrade is ignored (RFC 9110, section 7.8).
    """
    headers = request.headers
    if request.method == "CONNECT":
        request.error = bad_request("Invalid method", "this server is not a proxy")
        return True
    offered = [name.strip().lower() for name in headers.get("upgrade", "").split(",")]
    if request.method != "GET" or "websocket" not in offered:
        return False
    if headers.get("content-length", "").strip(" 0") or "transfer-encoding" in headers:
        request.error = bad_request("Invalid WebSocket handshake", "the request has a body")
        return True
    protocols = headers.get("sec-websocket-protocol", "").split(",")
    request.subprotocols = [name for part in protocols if (name := part.strip())]
    if headers.get("sec-websocket-version") != "13":
        request.error = RequestError(
            426, "upgrade_required", "Unsupported WebSocket version", "expected 13",
            {"Sec-WebSocket-Version": "13"},
        )  # fmt: skip
    elif (
        request.is_http_10
        or not _is_key(headers.get("sec-websocket-key", ""))
        or not all(map(_TOKEN.fullmatch, request.subprotocols))
    ):
        request.error = bad_request("Invalid WebSocket handshake", "see RFC 6455, section 4.2.1")
    return True


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text.strip(), validate=True)) == 16
    except (binascii.Error, ValueError):
        return False


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
