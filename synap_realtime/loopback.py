"""Admit requests to servers that run on a developer's machine and do not authenticate.

Such a server trusts its machine, and the machine runs a browser, which runs pages of any site.
Every page can make the browser send requests to ``127.0.0.1``. Three properties distinguish these
requests, and a page can set none of them:

- ``Host`` names the site that the browser believes it talks to. A page that has pointed its own
  name at ``127.0.0.1`` (DNS rebinding) cannot hide that name.
- ``Origin`` names the page. Browsers send it with each WebSocket, each request in CORS mode and
  each method other than GET and HEAD.
- ``Sec-Fetch-Site`` says how the page relates to the server (W3C Fetch Metadata). It is the only
  one of the three that browsers send with an image, a script, a frame or a ``no-cors`` GET.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from .lexical import OWS
from .redaction import redacted, redacted_origin

logger = logging.getLogger(__name__)

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([0-9.]+):\d+")
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:@\s]+)(?::\d{0,5})?")
"""``host`` and ``host:port``. Python's URL parser takes ``evil.example[::1]`` for a loopback
address."""
_FORWARDED_FOR = re.compile(
    r"(?i)(?:^|[;,\s])for\s*=\s*(\"[^\"]*\"?|[^;,\s]*)"
)  # RFC 7239, section 4
_IMPLIED_PORTS = {"http": ":80", "https": ":443"}
_NO_OTHER_PAGE = (None, "none", "same-origin")
"""Values of ``Sec-Fetch-Site`` for programs, typed addresses and the server's own pages. Every
other value, including those of later specifications, is rejected."""


_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class AdmissionError(Exception):
    """The request is rejected. The message names the cause and the header field."""


class NotLocalError(AdmissionError):
    """The request comes from another machine, or was sent to another machine's name."""


class ForeignPageError(AdmissionError):
    """The request comes from a page of an origin that is not allowed."""


@lru_cache(1024)  # several limits ask for the address of each request
def is_loopback(host: str) -> bool:
    """Return whether an address reaches this machine only.

    Args:
        host: ``localhost`` or an IP address, IPv6 with or without brackets. Every other name is
            remote, whatever it resolves to: the answer of its name server can change at any time.
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def host_of(url: str) -> str:
    """Return the host of a URL or an origin, in lower case.

    It is empty if there is none, or if the authority is anything but a host and a port.
    """
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") if _AUTHORITY.fullmatch(parts.netloc) else ""
    except ValueError:
        return ""


def normalize_origin(origin: str) -> str:
    """Return an origin as browsers send it: in lower case, without a slash at its end, and without
    the default port of its scheme (RFC 6454, section 6.2)."""
    origin = origin.rstrip("/").lower()
    scheme = origin.partition("://")[0]
    return origin.removesuffix(_IMPLIED_PORTS.get(scheme, ""))


def strip_port(address: str) -> str:
    """Remove the port that some proxies add to an address of ``X-Forwarded-For``."""
    found = _WITH_PORT.fullmatch(address)
    return address if found is None else found[1] or found[2]


def forwarded_for(headers: Mapping[str, str]) -> str | None:
    """Return the addresses that a request was forwarded for, separated by commas.

    Return None if no header field says that it was forwarded.

    Args:
        headers: by names in lower case.
    """
    if not headers.keys() & _FORWARDING:
        return None
    peers = [headers.get("x-forwarded-for", ""), headers.get("x-real-ip", "")]
    peers += [peer.strip('"') for peer in _FORWARDED_FOR.findall(headers.get("forwarded", ""))]
    return ", ".join(filter(None, peers))


_FORWARDING = {"forwarded", "x-forwarded-for", "x-real-ip"}


def require_local(
    *,
    address: str | None,
    host: str | None,
    forwarded_for: str | None,
    known_hosts: Collection[str] = (),
) -> None:
    """Reject requests that do not come from this machine.

    Args:
        address: the address of the peer; None where it is unknown, such as over a Unix socket.
        host: the ``Host`` field.
        forwarded_for: see :func:`forwarded_for`. A proxy on this machine may forward requests of
            other machines.
        known_hosts: names, without a port, that are allowed in addition to those of this machine.

    Raises:
        NotLocalError: the peer, an address it is forwarded for, or the host is another machine's.
    """
    given = (part.strip(OWS) for part in (forwarded_for or "").split(","))
    for peer in (address, *map(strip_port, given)):
        if peer and not is_loopback(peer):
            raise NotLocalError("only loopback clients are accepted")
    if host is not None:
        name = host_of(f"//{host}")
        if not (is_loopback(name) or name in known_hosts):
            raise NotLocalError("Host is not a name of this machine: use 127.0.0.1")


def require_allowed_page(
    *,
    origin: str | None,
    fetch_site: str | None,
    allows: Callable[[str], bool],
    is_visit: bool = False,
) -> None:
    """Reject requests of pages whose origin is not allowed, even if the browser does not name it.

    Args:
        origin: the ``Origin`` field.
        fetch_site: the ``Sec-Fetch-Site`` field.
        allows: returns whether pages of an origin are allowed.
        is_visit: the user opens a page that other sites may link to; see :func:`is_visit`.

    Raises:
        ForeignPageError: the page is of another origin.
    """
    if origin is not None:
        if not allows(origin):
            raise ForeignPageError(f"origin {redacted_origin(origin)!r} is not allowed")
    elif fetch_site not in _NO_OTHER_PAGE and not is_visit:
        # This is an image, a script, a frame, a form with GET, or fetch() with no-cors. A page that
        # is allowed uses CORS, a WebSocket or an EventSource, which send its Origin.
        raise ForeignPageError(
            "a page of another origin sent it without Origin "
            f"(Sec-Fetch-Site: {redacted(fetch_site)[:50]})"
        )


def is_visit(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a browser opens the URL as a page in a tab, not in a frame.

    Exempt only pages that change nothing when they are opened.
    """
    return (
        method == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def names_own_origin(origin: str, host: str | None) -> bool:
    """Return whether a page was loaded from the server that it sends a request to.

    React Native has no pages and sends the server's own address as ``Origin``, on iOS with a slash
    at its end. This proves nothing unless the host was checked: a page can point its name at this
    server.
    """
    scheme, separator, _ = origin.lower().partition("://")
    if host is None or not separator or scheme not in _IMPLIED_PORTS:
        return False
    return normalize_origin(origin.lower()) == normalize_origin(f"{scheme}://{host.lower()}")


class LocalOnly:
    """ASGI middleware that admits requests of local programs and of the app's own pages.

    Other requests are answered 403 before they reach the app; a WebSocket is rejected. Use it for
    apps on a developer's machine that do not authenticate.
    """

    def __init__(
        self,
        app: _App,
        *,
        name: str,
        allowed_origins: Iterable[str] = (),
        pages: Collection[str] = (),
    ) -> None:
        """
        Args:
            app: the app to protect.
            name: the name of the app, for the log.
            allowed_origins: origins of pages that may send requests in addition to the app's own,
                such as ``http://127.0.0.1:3000``. Their hosts are also allowed in ``Host``.
            pages: paths that other sites may link to. Opening one must not change anything.
        """
        self._app = app
        self._name = name
        self._origins = frozenset(map(normalize_origin, allowed_origins))
        self._hosts = frozenset(filter(None, map(host_of, self._origins)))
        self._pages = pages
        self._logged_at = -1.0

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self._admit(scope)
            except AdmissionError as error:
                self._log(str(error))
                await _refuse(scope, send, f"{self._name}: {error}")
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: _Scope) -> None:
        headers = _joined(scope["headers"])
        host, client = headers.get("host"), scope.get("client")
        require_local(
            address=client[0] if client else None,
            host=host,
            forwarded_for=forwarded_for(headers),
            known_hosts=self._hosts,
        )
        require_allowed_page(
            origin=headers.get("origin"),
            fetch_site=headers.get("sec-fetch-site"),
            allows=lambda origin: origin in self._origins or names_own_origin(origin, host),
            is_visit=scope["path"] in self._pages and is_visit(scope.get("method", ""), headers),
        )

    def _log(self, reason: str) -> None:
        """Log at most one line a second, because a page can send any number of requests."""
        now = time.monotonic()
        if self._logged_at < 0 or now - self._logged_at >= 1:
            self._logged_at = now
            logger.warning("%s: rejected a request: %s", self._name, reason)


def _joined(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return header fields by name.

    Repeated fields are joined with a comma (RFC 9110, section 5.3), so that two hosts or two
    origins are rejected.
    """
    joined: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


async def _refuse(scope: _Scope, send: _Send, error: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    body = json.dumps({"error": error, "status": 403}).encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # a body that follows is not read
    ]
    await send({"type": "http.response.start", "status": 403, "headers": fields})
    await send({"type": "http.response.body", "body": body})
