"""Check the server of a store before a node starts."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from ....errors import ConfigurationError
from ..base import OPTION
from .address import RedisAddress
from .connection import (
    CONNECT_TIMEOUT_S,
    Command,
    RedisConnectionLostError,
    RedisReplyError,
    login,
    new_reader,
    pack,
)
from .errors import UNREACHABLE, describe_problem

logger = logging.getLogger(__name__)

MIN_VERSION = (7, 0)
"""The first version with all that the scripts use. Valkey reports a version of Redis, too."""

_MUST_EXIT = ("NOAUTH", "WRONGPASS", "NOPERM", "ERR")


def check_server(address: RedisAddress) -> None:
    """Check what an operator has to correct. Blocks for a few seconds at most.

    A server that cannot be reached now is only logged: the node becomes ready when it can be.

    Raises:
        ConfigurationError: the server rejects the credentials, is too old, or may evict keys.
    """
    if address.service is not None:
        return  # the primary may change; it is asked for at each connection
    try:
        info = _read_info(address)
    except (*UNREACHABLE, RedisReplyError) as error:
        if isinstance(error, ssl.SSLError) or getattr(error, "code", "") in _MUST_EXIT:
            raise ConfigurationError(f"{OPTION}: {describe_problem(error)}") from None
        logger.warning("%s; the server is not ready until this ends", describe_problem(error))
        return
    version = info.get("redis_version", "0")
    if tuple(int(each) for each in version.split(".")[:2] if each.isdigit()) < MIN_VERSION:
        raise ConfigurationError(
            f"{OPTION}: Redis {version} is too old: use 7.0 or later, or Valkey"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ConfigurationError(
            f"{OPTION}: maxmemory-policy is {policy}, so that Redis may delete logs at any time; "
            "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)"
        )
    if info.get("role") == "slave":
        raise ConfigurationError(f"{OPTION}: this Redis is a replica; name its primary")


def _read_info(address: RedisAddress) -> dict[str, str]:
    with socket.create_connection(address.peers[0], CONNECT_TIMEOUT_S) as plain:
        if not address.tls:
            return _exchange(plain, address)
        context = ssl.create_default_context()
        with context.wrap_socket(plain, server_hostname=address.peers[0].host) as secure:
            return _exchange(secure, address)


def _exchange(sock: socket.socket, address: RedisAddress) -> dict[str, str]:
    commands: Sequence[Command] = [*login(address), ("INFO",)]
    sock.sendall(pack(commands))
    reader = new_reader()
    replies: list[Any] = []
    while len(replies) < len(commands):
        if (reply := reader.gets()) is not False:
            if isinstance(reply, RedisReplyError):
                raise reply
            replies.append(reply)
        elif data := sock.recv(65536):
            reader.feed(data)
        else:
            raise RedisConnectionLostError("the connection was closed")
    lines = replies[-1].decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
