"""Connect from any environment: addresses, proxies, certificate authorities, deadlines.

An invalid environment variable raises :class:`~synap_realtime.ConfigurationError`, whose message
names the variable.
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import httpx

from .errors import ConfigurationError
from .lexical import OWS

T = TypeVar("T")

_deadline: ContextVar[float] = ContextVar("synap_realtime_deadline", default=float("inf"))

PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


@contextmanager
def deadline(end: float) -> Iterator[None]:
    """Bound all network operations of a block by ``end``, in seconds of the monotonic clock."""
    before = _deadline.set(end)
    try:
        yield
    finally:
        _deadline.reset(before)


def left_s(timeout_s: float | None = None) -> float:
    """Return the seconds until the :func:`deadline`, at most ``timeout_s``; 0 or less after it."""
    left = _deadline.get() - time.monotonic()
    return min(left, 86400.0 if timeout_s is None else timeout_s)  # sockets reject infinity


class Proxy(NamedTuple):
    """The proxy that the environment names for one server."""

    url: httpx.URL
    source: str
    """The environment variable, such as ``HTTPS_PROXY``."""

    @property
    def shown(self) -> str:
        """The variable and the proxy without user and password, for messages."""
        shown = str(self.url.copy_with(username=None, password=None)).rstrip("/")
        return f"{self.source}={shown}"


def names_this_machine(host: str) -> bool:
    """Return whether a host is this machine, which is never connected to by a proxy.

    ``localhost`` and names below it, ``127.0.0.0/8``, ``::1``, the unspecified address, and their
    short and IPv4-mapped forms, such as ``127.1`` and ``::ffff:127.0.0.1``. Do not use it to admit
    peers: see :func:`synap_realtime.loopback.is_loopback` for that.
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    ip = _ip_of(name)
    return ip is not None and (ip.is_loopback or ip.is_unspecified)


def find_proxy(url: httpx.URL, socks_library: str) -> Proxy | None:
    """Return the proxy of the environment for a server; None to connect directly.

    Args:
        socks_library: the module that a SOCKS proxy needs.

    ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``ALL_PROXY`` name it. ``NO_PROXY`` lists hosts (with their
    subdomains), ``host:port``, addresses and networks; an entry that is none of these matches
    nothing. Loopback addresses have no proxy, whatever the environment says.

    Raises:
        ConfigurationError: names the variable that holds no usable proxy.
    """
    if names_this_machine(url.host):
        return None
    scheme = {"ws": "http", "wss": "https"}.get(url.scheme, url.scheme)
    found = urllib.request.getproxies()
    text = found.get(scheme) or found.get("all")
    if not text or _is_bypassed(url, found.get("no", "")):
        return None
    source = _source_of((scheme, "all"), text)
    try:
        parsed = httpx.URL(text if "://" in text else f"http://{text}")
    except (httpx.InvalidURL, ValueError):
        raise ConfigurationError(f"{source}: not the URL of a proxy; correct or unset it") from None
    proxy = Proxy(parsed, source)
    if parsed.scheme not in PROXY_SCHEMES or not parsed.host:
        expected = ", ".join(f"{each}://" for each in PROXY_SCHEMES)
        raise ConfigurationError(
            f"{source}: expected a proxy with {expected}, got {parsed.scheme}://…; "
            f"correct it, unset it, or add {url.host} to NO_PROXY"
        )
    if parsed.scheme.startswith("socks") and not importlib.util.find_spec(socks_library):
        package = socks_library.replace("_", "-")
        raise ConfigurationError(
            f"{source}: a SOCKS proxy needs the package {package} (pip install {package}); "
            f"else unset it, or add {url.host} to NO_PROXY"
        )
    return proxy


def tls_context(url: httpx.URL) -> ssl.SSLContext | None:
    """Return the context that verifies a server, with the authorities of ``SSL_CERT_FILE`` or
    ``SSL_CERT_DIR``, else those of certifi.

    Return None for a URL without TLS: nothing of OpenSSL is created.

    Raises:
        ConfigurationError: names the variable whose file or folder cannot be used.
    """
    if url.scheme not in ("https", "wss"):
        return None
    try:
        return httpx.create_ssl_context()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
        source = next((name for name in names if os.environ.get(name)), "certifi")
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise ConfigurationError(
            f"{source}: no certificate authorities can be loaded ({reason}); "
            "name a file in PEM format, or unset it"
        ) from None


_NO_TLS = (
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "UNSUPPORTED_PROTOCOL",
    "WRONG_VERSION_NUMBER",
)
"""The reasons that OpenSSL gives for a peer that does not speak TLS, or an old version of it."""


def tls_problem(error: BaseException | None) -> str | None:
    """Return the problem of a server's TLS, as a predicate of the server, and the fix.

    Return None if neither the error nor its causes are about TLS. A retry cannot help with these.
    """
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"has a certificate that is not trusted: {error.verify_message}; "
                "SSL_CERT_FILE names an authority of your own"
            )
        if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
            return (
                f"does not speak TLS ({error.reason}); write http://, or the port at which it does"
            )
        error = error.__cause__ or error.__context__
    return None


def reason_of(error: BaseException) -> str:
    """Return the cause of a failed connection in words, and the fix if it is known.

    The text of a library, such as "All connection attempts failed", is less specific.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if isinstance(found, OSError) and not isinstance(found, TimeoutError):
            if isinstance(found, socket.gaierror):
                return f"no address is known for its name ({found.strerror}); check the URL"
            if found.errno == errno.ECONNREFUSED:
                return f"{os.strerror(found.errno)}; is the server running (synap-realtime serve)?"
            if found.errno is not None and found.errno > 0:
                return os.strerror(found.errno)
        found = found.__cause__ or found.__context__
    return str(error) or type(error).__name__


def async_client(url: httpx.URL, timeout_s: float | None) -> httpx.AsyncClient:
    """Return a client for a few requests to one server. It rejects encodings and redirects.

    Args:
        timeout_s: the timeout of each read and write. The caller bounds the whole request.

    Raises:
        ConfigurationError: names the environment variable that cannot be used.
    """
    proxy = find_proxy(url, socks_library="socksio")
    return httpx.AsyncClient(
        timeout=timeout_s,
        trust_env=False,
        transport=_Transport(
            trust_env=False,
            proxy=httpx.Proxy(proxy.url) if proxy else None,
            # httpx requires a context; without TLS, this one is not used and trusts no authority.
            verify=tls_context(url) or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        ),
        headers={"Accept-Encoding": "identity"},
    )


class _Transport(httpx.AsyncHTTPTransport):
    """Send requests without leaving a credential in the log of httpx.

    httpx logs each URL at INFO, with the password and the query, after the transport has returned.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        finally:
            request.url = request.url.copy_with(username=None, password=None, query=None)


class BoundedBody:
    """Collect the body of a response, up to a maximum size.

    Content encodings were not requested and are rejected, because a few compressed bytes could
    expand to any size.
    """

    def __init__(self, response: httpx.Response, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._content = bytearray()
        encoding = response.headers.get("Content-Encoding", "").strip(OWS)
        self.encoding = "" if encoding.lower() == "identity" else encoding[:40]
        """The ``Content-Encoding``. If there is one, do not read the body."""

    @property
    def content(self) -> bytes:
        return bytes(self._content)

    def add(self, chunk: bytes) -> bool:
        """Add a chunk. Return False once the body is too large; do not read the rest then."""
        self._content += chunk
        return len(self._content) <= self._max_bytes


async def read_body(response: httpx.Response, max_bytes: int) -> bytes:
    """Read the body of a streamed response.

    Raises:
        ValueError: it is larger, or has a ``Content-Encoding``.
    """
    body = BoundedBody(response, max_bytes)
    if body.encoding:
        raise ValueError(
            f"answered with Content-Encoding {body.encoding!r}, which was not requested"
        )
    async for chunk in response.aiter_raw():
        if not body.add(chunk):
            raise ValueError(f"answered with more than {max_bytes} bytes")
    return body.content


def connect(
    host: str,
    port: int,
    end: float,
    attempt: Callable[[str, float], T],
    failures: tuple[type[Exception], ...] = (OSError,),
) -> T:
    """Call ``attempt(address, timeout_s)`` for each address of a host until one succeeds.

    Each address gets a share of the remaining time, so that an address that drops packets does not
    use up the time of the others.

    Args:
        end: the deadline, in seconds of the monotonic clock; it includes the name look-up.
        failures: the exceptions of an attempt that lead to the next address.

    Raises:
        TimeoutError: the deadline has passed.
        OSError: the name has no address.
        Exception: the exception of the last attempt.
    """
    addresses = _resolve(host, port, end)
    for n, address in enumerate(addresses):
        left_s = end - time.monotonic()
        if left_s <= 0:
            break
        try:
            return attempt(address, left_s / (len(addresses) - n))
        except failures:
            if n == len(addresses) - 1:
                raise
    raise TimeoutError


def _resolve(host: str, port: int, end: float) -> list[str]:
    """Return the addresses of a host, looked up in a thread because a look-up has no timeout."""
    if _ip_of(host) is not None or "%" in host:
        return [host]
    answer: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.put(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except Exception as error:  # noqa: BLE001 - raised in the calling thread
            answer.put(error)

    try:
        threading.Thread(target=look_up, name="synap-resolver", daemon=True).start()
    except RuntimeError:  # the interpreter shuts down, or no thread can be started
        look_up()
    try:
        found = answer.get(timeout=max(0.0, end - time.monotonic()))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise found
    return found


def _ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address if the host is one; None if it is a name."""
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        try:  # forms that only the C library parses: 127.1, 0x7f.0.0.1
            return ipaddress.ip_address(socket.inet_aton(host)) if host[:1].isdigit() else None
        except (OSError, ValueError):
            return None
    return getattr(ip, "ipv4_mapped", None) or ip


def _is_bypassed(url: httpx.URL, no_proxy: str) -> bool:
    host = url.host.rstrip(".").lower()
    ip = _ip_of(host)
    port = url.port or {"http": 80, "ws": 80}.get(url.scheme, 443)
    for entry in no_proxy.lower().replace(",", " ").split():
        if entry == "*":
            return True
        name, _, digits = entry.rpartition(":")
        is_name_with_port = digits.isdecimal() and (name.endswith("]") or ":" not in name)
        if is_name_with_port:
            if int(digits[:6]) != port:
                continue
            entry = name
        entry = entry.strip("[]")
        if ip is not None:
            try:
                if ip in ipaddress.ip_network(entry, strict=False):
                    return True
            except (ValueError, TypeError):
                continue
        entry = entry.removeprefix("*").strip(".")
        if entry and (host == entry or host.endswith(f".{entry}")):
            return True
    # macOS and Windows have a system list, which applies if the environment names no proxies.
    try:
        return not urllib.request.getproxies_environment() and urllib.request.proxy_bypass(host)
    except (OSError, ValueError):
        return False


def _source_of(kinds: tuple[str, ...], text: str) -> str:
    names = [name for kind in kinds for name in (f"{kind}_proxy", f"{kind}_PROXY".upper())]
    return next((name for name in names if os.environ.get(name) == text), "the system's proxy")
