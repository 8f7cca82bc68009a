"""httpx transports with a deadline for the whole request and a validated environment.

httpx limits each read and write of a synchronous request, but not their sum: a server that sends
one byte at a time could hold a request forever. :class:`DeadlineTransport` limits the sum with
:func:`~synap_realtime.network.deadline`, from the name lookup to the last byte. The asynchronous
client uses ``asyncio.timeout`` for that; :class:`AsyncTransport` closes connections that such a
timeout, or the end of an event loop, leaves open.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
import ssl
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

import httpcore
import httpx

from . import network

_WRITE_BYTES = 16 * 1024
"""The size of one TLS record. A larger write could be split, and each part would get the whole
timeout.
"""

_LAZY_IMPORTS = (
    "sniffio",
    "anyio.streams.tls",
    "anyio.to_thread",
    "anyio._backends._asyncio",
    "anyio._core._resources",
    "anyio._core._sockets",
    "anyio._core._synchronization",
    "anyio._core._tasks",
)
"""Modules that httpcore and anyio import during a request, when another thread may fork: see
:mod:`synap_realtime.forks`. httpcore looks for sniffio, if it is absent, in each request.
"""

_FAILURES = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.ReadError, httpx.ReadError),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.ProxyError, httpx.ProxyError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
)


class DeadlineTransport(httpx.BaseTransport):
    """httpx's transport to one server, with a deadline for the whole request."""

    def __init__(self, url: httpx.URL) -> None:
        """Create a transport; nothing is connected yet.

        Raises:
            ConfigurationError: an environment variable is invalid; names it.
        """
        self._backend = _Backend()
        self._pool = httpcore.ConnectionPool(**_settings(url), network_backend=self._backend)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See :class:`httpx.BaseTransport`."""
        with _as_httpx():
            response = self._pool.handle_request(_as_httpcore(request))
        assert isinstance(response.stream, Iterable)  # noqa: S101 - as in httpx
        return _response(response, _Body(response.stream))

    def close(self) -> None:
        """See :class:`httpx.BaseTransport`."""
        self._pool.close()

    def abandon(self) -> None:
        """Close this process's copies of the sockets. Send nothing, and take no lock.

        For a forked child: the parent keeps using the connections.
        """
        for stream in list(self._backend.streams):
            sock = stream.get_extra_info("socket")
            # To close a TLS socket would release OpenSSL's object, which takes a lock.
            if isinstance(sock, socket.socket) and sock.fileno() >= 0:
                os.close(sock.detach())


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Iterable[bytes]) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._stream

    def close(self) -> None:
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()


class _Backend(httpcore.NetworkBackend):
    """TCP connections whose operations end at the deadline of the current request."""

    def __init__(self) -> None:
        self._tcp = httpcore.SyncBackend()
        self.streams: weakref.WeakSet[_Stream] = weakref.WeakSet()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        def attempt(address: str, timeout_s: float) -> httpcore.NetworkStream:
            return self._tcp.connect_tcp(address, port, timeout_s, local_address, socket_options)

        end = time.monotonic() + _left_s(timeout, httpcore.ConnectTimeout)
        failures = (httpcore.ConnectError, httpcore.ConnectTimeout)
        try:
            stream = network.connect(host, port, end, attempt, failures)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        return self._bounded(stream)

    def _bounded(self, stream: httpcore.NetworkStream) -> _Stream:
        bounded = _Stream(stream, self)
        self.streams.add(bounded)
        return bounded

    def wrap(self, stream: httpcore.NetworkStream) -> httpcore.NetworkStream:
        return self._bounded(stream)

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, _left_s(None, httpcore.ConnectTimeout)))


class _Stream(httpcore.NetworkStream):
    """httpcore's stream. An operation gets the remaining time; none starts after the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, backend: _Backend) -> None:
        self._stream = stream
        self._backend = backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left_s(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        sock = self._stream.get_extra_info("socket")
        if isinstance(sock, socket.socket) and not isinstance(sock, ssl.SSLSocket):
            self._send(sock, buffer, timeout)
            return
        for at in range(0, len(buffer), _WRITE_BYTES):
            left_s = _left_s(timeout, httpcore.WriteTimeout)
            self._stream.write(buffer[at : at + _WRITE_BYTES], left_s)

    def _send(self, sock: socket.socket, buffer: bytes, timeout: float | None) -> None:
        """Send with one deadline, so that a peer that reads slowly cannot extend it."""
        rest = memoryview(buffer)
        try:
            while rest:
                sock.settimeout(_left_s(timeout, httpcore.WriteTimeout))
                rest = rest[sock.send(rest) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left_s = _left_s(timeout, httpcore.ConnectTimeout)
        return self._backend.wrap(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class AsyncTransport(httpx.AsyncBaseTransport):
    """httpx's transport to one server, for one event loop."""

    def __init__(self, url: httpx.URL) -> None:
        """Create a transport; nothing is connected yet.

        Raises:
            ConfigurationError: an environment variable is invalid; names it.
        """
        for name in _LAZY_IMPORTS:
            with contextlib.suppress(ImportError):  # other versions of httpx
                importlib.import_module(name)
        self._backend = _AsyncBackend()
        self._pool = httpcore.AsyncConnectionPool(**_settings(url), network_backend=self._backend)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See :class:`httpx.AsyncBaseTransport`."""
        with _as_httpx():
            response = await self._pool.handle_async_request(_as_httpcore(request))
        assert isinstance(response.stream, AsyncIterable)  # noqa: S101 - as in httpx
        return _response(response, _AsyncBody(response.stream))

    async def aclose(self) -> None:
        """See :class:`httpx.AsyncBaseTransport`."""
        await self._pool.aclose()

    def abandon(self) -> None:
        """Close the sockets of a closed event loop, where nothing can be awaited."""
        for stream in list(self._backend.streams):
            # asyncio exposes a stream's socket without a way to close it.
            sock = getattr(stream.get_extra_info("socket"), "_sock", None)
            if isinstance(sock, socket.socket):
                sock.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    """TCP connections that are tracked while they are open."""

    def __init__(self) -> None:
        self._tcp = httpcore.AnyIOBackend()
        self.streams: weakref.WeakSet[httpcore.AsyncNetworkStream] = weakref.WeakSet()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        async def attempt(address: str) -> httpcore.AsyncNetworkStream:
            return await self._tcp.connect_tcp(
                address, port, timeout, local_address, socket_options
            )

        try:
            try:
                stream = await attempt(host)
            except RuntimeError:
                # No thread can look up a name: the interpreter shuts down.
                infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                stream = await attempt(str(infos[-1][4][0]))
        except (OSError, UnicodeError) as error:  # an invalid host name
            raise httpcore.ConnectError(str(error)) from error
        return self.known(_AsyncStream(stream, self))

    def known(self, stream: httpcore.AsyncNetworkStream) -> httpcore.AsyncNetworkStream:
        self.streams.add(stream)
        return stream

    async def sleep(self, seconds: float) -> None:
        await self._tcp.sleep(seconds)


class _AsyncStream(httpcore.AsyncNetworkStream):
    """httpcore's stream, closed also if its TLS handshake is cancelled."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, backend: _AsyncBackend) -> None:
        self._stream = stream
        self._backend = backend
        self.read = stream.read  # type: ignore[method-assign]
        self.write = stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except asyncio.CancelledError:
            await self._stream.aclose()
            raise
        return self._backend.known(_AsyncStream(stream, self._backend))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _settings(url: httpx.URL) -> dict[str, Any]:
    """Return the arguments of both pools: limits as in httpx, proxy and certificate authorities."""
    proxy = network.find_proxy(url, socks_library="socksio")
    return {
        "ssl_context": network.tls_context(url),
        "proxy": _httpcore_proxy(proxy) if proxy else None,
        "max_connections": 100,
        "max_keepalive_connections": 20,
        "keepalive_expiry": 5.0,
    }


def _as_httpcore(request: httpx.Request) -> httpcore.Request:
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        headers=request.headers.raw,
        content=request.stream,
        extensions=request.extensions,
    )


def _response(
    response: httpcore.Response, stream: httpx.SyncByteStream | httpx.AsyncByteStream
) -> httpx.Response:
    return httpx.Response(
        response.status, headers=response.headers, stream=stream, extensions=response.extensions
    )


def _left_s(timeout_s: float | None, late: type[Exception]) -> float:
    left_s = network.left_s(timeout_s)
    if left_s <= 0:
        raise late("the deadline has passed")
    return left_s


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for theirs, ours in _FAILURES:
            if isinstance(error, theirs):
                raise ours(str(error)) from error
        raise


def _httpcore_proxy(proxy: network.Proxy) -> httpcore.Proxy:
    bare = httpx.Proxy(proxy.url)  # which removes user and password from the URL
    url = bare.url
    return httpcore.Proxy(
        url=httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        auth=bare.raw_auth,
        headers=bare.headers.raw,
    )
