"""Check the server of a store before a node starts."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from ....errors import ConfigurationError
from ..base import OPTION
from .address import RedisAddress
from .connection import (
    CONNECT_TIMEOUT_S,
    RedisConnection,
    RedisConnectionLostError,
    RedisReplyError,
    UnsuitableServerError,
)
from .errors import UNREACHABLE, describe_problem, is_forbidden, is_temporary
from .keys import SCHEMA_VERSION, KeySpace, describe_other_version
from .permissions import access_arguments, check_access, forbidden
from .requirements import Requirements
from .scripts import ACCESS
from .tls import TlsFileError
from .topology import Topology

logger = logging.getLogger(__name__)

_MUST_EXIT = ("NOAUTH", "WRONGPASS", "NOPERM", "ERR")

_COMMAND = re.compile(r"'([a-z|]+)' command")


def check_server(address: RedisAddress) -> None:
    """Check what an operator has to correct. Blocks for a few seconds at most.

    A server that cannot be reached now is only logged: the node becomes ready when it can be.

    Raises:
        ConfigurationError: the server rejects the credentials, is too old, may evict keys, …
    """

    async def connect() -> None:
        async with checked_connection(address):
            pass

    try:
        with ThreadPoolExecutor(1) as thread:  # an event loop may be running in this one
            thread.submit(asyncio.run, connect()).result()
    except (*UNREACHABLE, RedisReplyError) as error:
        if must_be_corrected(error):
            raise ConfigurationError(f"{OPTION}: {describe_problem(error)}") from None
        problem = describe_problem(error) + _hint(error, address)
        logger.warning("%s; the server is not ready until this ends", problem)


def _hint(error: BaseException, address: RedisAddress) -> str:
    """Return what else may be the cause, if both sides do not agree about TLS."""
    if isinstance(error, (ConnectionResetError, RedisConnectionLostError)):
        if address.tls:
            return (
                "; if it asks for a certificate of the client, write ?cert=/file.pem&key=/file.pem"
            )
        return "; if this port expects TLS, write rediss://"
    if isinstance(error, TimeoutError) and address.tls:  # it waits for the end of a line
        return "; if this port does not use TLS, write redis://"
    return ""


def must_be_corrected(error: BaseException) -> bool:
    """Return whether only an operator can end a problem, so that waiting for it is of no use."""
    if isinstance(error, RedisReplyError):
        return error.code in _MUST_EXIT and not is_temporary(error)
    if isinstance(error, ssl.SSLEOFError):  # a proxy whose server is away ends it like this, too
        return False
    return isinstance(error, (UnsuitableServerError, TlsFileError, ssl.SSLError))


@asynccontextmanager
async def checked_connection(
    address: RedisAddress,
) -> AsyncIterator[tuple[RedisConnection, Mapping[str, str]]]:
    """Open a connection to the primary, and check it. Yield it with what INFO says.

    Raises:
        OSError, RedisConnectionLostError, RedisReplyError: see :func:`must_be_corrected`.
    """
    topology = Topology(address, lambda: None)
    requirements = Requirements(address)
    try:
        connection = await topology.connect()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                replies = await connection.execute(requirements.commands)
                info = requirements.check(replies)
                version, *_, refused = await connection.execute(
                    [
                        ("GET", KeySpace(address.prefix).schema(0)),
                        ("SCRIPT", "LOAD", ACCESS.source),
                        ("EVALSHA", ACCESS.sha, 0, *access_arguments(address)),
                    ]
                )
            for reply in (*_, refused):
                if isinstance(reply, RedisReplyError):
                    raise reply
            check_access(address, refused)
            if isinstance(version, bytes) and int(version) != SCHEMA_VERSION:
                raise UnsuitableServerError(describe_other_version(address.prefix, int(version)))
            yield connection, info
        finally:
            connection.abort(RedisConnectionLostError("the check has ended"))
    except RedisReplyError as error:
        if not is_forbidden(error):
            raise
        found = _COMMAND.search(str(error))
        raise forbidden(address, found[1].upper() if found else "a command") from None
    finally:
        await topology.close()
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next iteration
