"""Bind the sockets that a server listens on. See ``serve --help``, ``--host``."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from ..errors import ConfigurationError

BACKLOG = 2048

_OPTIONS = "--host, --port (SYNAP_REALTIME_HOST, SYNAP_REALTIME_PORT)"

_EVERY = ("", "::")
"""All addresses of both families."""

_TRIES = 10
_NO_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bind(host: str, port: int, *, shares_port: bool = False) -> list[socket.socket]:
    """Bind sockets to an address; call ``listen()`` on each.

    Args:
        host: ``::`` or an empty string is every address of IPv6 and IPv4 by one socket, or of IPv4
            alone where the system has no IPv6. ``0.0.0.0`` is every address of IPv4 alone.
            ``localhost`` is 127.0.0.1 and, if the machine has it, ::1. Everything else is one
            address, or a name that resolves to one.
        port: 0 takes a free port, the same for both families.
        shares_port: other processes that set it, too, may bind the same port (SO_REUSEPORT).

    Raises:
        ConfigurationError: names the address and the reason.
    """
    for left in reversed(range(_TRIES)):
        sockets: list[socket.socket] = []
        try:
            if host in _EVERY:
                sockets.append(_bind_every(port, shares_port))
            elif host == "localhost":
                _bind_localhost(sockets, port, shares_port)
            else:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                sockets.append(_bind_one(family, host, port, shares_port))
        except OSError as error:
            for each in sockets:
                each.close()
            # Retry: the free port of one family was taken in the other one.
            if port or error.errno != errno.EADDRINUSE or not left:
                raise ConfigurationError(
                    f"{_OPTIONS}: could not listen on {authority(host, port)} "
                    f"({error.strerror or error}); {_fix_of(error)}"
                ) from error
        else:
            return sockets
    raise AssertionError  # pragma: no cover - the last try returns or raises


def port_of(sockets: list[socket.socket]) -> int:
    port: int = sockets[0].getsockname()[1]
    return port


def authority(host: str, port: int) -> str:
    """Return host and port as in a URL (RFC 3986, section 3.2)."""
    host = host or "::"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def holding(host: str, port: int) -> Iterator[int]:
    """Reserve a port that several processes share, even while none of them runs.

    Yields:
        The port.

    Raises:
        ConfigurationError: the port cannot be bound.
    """
    # First without sharing: another server on this port must be an error.
    first = bind(host, port)
    try:
        for each in first:
            each.listen()
        port = port_of(first)
    except OSError as error:
        raise ConfigurationError(
            f"{_OPTIONS}: could not listen on {authority(host, port)} ({error.strerror}); "
            f"{_fix_of(error)}"
        ) from error
    finally:
        for each in first:
            each.close()
    held = bind(host, port, shares_port=True)
    try:
        yield port
    finally:
        for each in held:
            each.close()


def _bind_every(port: int, shares_port: bool) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(_NoFamilyError):
            return _bind_one(socket.AF_INET6, "::", port, shares_port, dual=True)
    return _bind_one(socket.AF_INET, "0.0.0.0", port, shares_port)


def _bind_localhost(sockets: list[socket.socket], port: int, shares_port: bool) -> None:
    sockets.append(_bind_one(socket.AF_INET, "127.0.0.1", port, shares_port))
    if socket.has_ipv6:
        with contextlib.suppress(_NoFamilyError):
            same = port_of(sockets)
            sockets.append(_bind_one(socket.AF_INET6, "::1", same, shares_port))


class _NoFamilyError(OSError):
    """The machine has no address of this family."""


def _bind_one(
    family: socket.AddressFamily, host: str, port: int, shares_port: bool, *, dual: bool = False
) -> socket.socket:
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _NoFamilyError(error.errno, error.strerror) from error
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # asyncio sets it only on sockets that it creates. Without it, a response in two writes is
        # delayed by 40 ms, by Nagle's algorithm and the delayed acknowledgement of the peer.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno in _NO_FAMILY and host in ("::", "::1"):
            raise _NoFamilyError(error.errno, error.strerror) from error
        raise
    return bound


def _fix_of(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            "a port below 1024 needs the capability CAP_NET_BIND_SERVICE (deploy/README.md), or "
            "choose another"
        )
    if error.errno == errno.EADDRINUSE:
        return "choose another port, or 0 for a free one"
    return "choose an address of this machine"
