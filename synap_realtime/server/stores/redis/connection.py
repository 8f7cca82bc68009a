"""One connection to a server: RESP2 on hiredis, over asyncio.

See https://valkey.io/topics/protocol/.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import hiredis

from .address import Login, Peer, RedisAddress
from .tls import tls_context

CONNECT_TIMEOUT_S = 2.0

REPLY_TIMEOUT_S = 2.0
"""A server that does not reply for this time is considered dead."""

_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)

Command: TypeAlias = tuple[bytes | str | int, ...]


class RedisReplyError(Exception):
    """An error reply, such as ``READONLY You can't write against a read only replica.``

    Attributes:
        code: its first word.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


class RedisConnectionLostError(Exception):
    """The connection is closed, or what arrives is not RESP."""


class UnsuitableServerError(RedisConnectionLostError):
    """The server cannot keep a store as it is. The message says what to change."""


def backoff_s(failures: int) -> float:
    """Return how long to wait before the next connection, in seconds.

    Args:
        failures: how many attempts have failed before the last one.
    """
    return _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]


def new_reader() -> hiredis.Reader:
    """Make a parser of replies, which returns an error reply as :class:`RedisReplyError`."""
    return hiredis.Reader(protocolError=RedisConnectionLostError, replyError=RedisReplyError)


def pack(commands: Sequence[Command]) -> bytes:
    """Encode commands, for one write."""
    return b"".join([hiredis.pack_command(each) for each in commands])  # type: ignore[arg-type]  # wrong stub


class _Request:
    """Commands whose replies are awaited, until a time of the event loop."""

    __slots__ = ("count", "deadline", "done", "replies")

    def __init__(
        self, done: Callable[[list[Any] | Exception], None], count: int, deadline: float
    ) -> None:
        self.done = done
        self.count = count
        self.deadline = deadline
        self.replies: list[Any] = []


class RedisConnection(asyncio.Protocol):
    """Sends commands and receives their replies, in order, or messages."""

    def __init__(self, on_message: Callable[[Any], None] | None = None) -> None:
        """
        Args:
            on_message: called with each reply that no command waits for.
        """
        self._loop = asyncio.get_running_loop()
        self._reader = new_reader()
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Request] = deque()
        self._watching: asyncio.TimerHandle | None = None
        self.closed = self._loop.create_future()
        """Done when the connection has ended."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if self._waiting:
                    request = self._waiting[0]
                    request.replies.append(reply)
                    if len(request.replies) == request.count:
                        self._waiting.popleft()
                        request.done(request.replies)
                elif self._on_message is not None:
                    self._on_message(reply)
                elif isinstance(reply, RedisReplyError):  # the reason why the server disconnects
                    self.abort(reply)
        except RedisConnectionLostError as error:
            self.abort(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or RedisConnectionLostError("Redis has closed the connection"))

    def request(
        self,
        commands: Sequence[Command],
        done: Callable[[list[Any] | Exception], None],
    ) -> None:
        """Send commands in one write. Without a reply to all in time, the connection ends.

        Args:
            done: called once: with a reply for each, which may be an error, or with the reason why
                the connection has ended.
        """
        if self.closed.done():
            done(self.closed.result())
            return
        deadline = self._loop.time() + REPLY_TIMEOUT_S
        self._waiting.append(_Request(done, len(commands), deadline))
        if self._watching is None:
            self._watching = self._loop.call_later(REPLY_TIMEOUT_S, self._watch)
        self.send(commands)

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one write. Return a reply for each; errors are not raised.

        Raises:
            RedisConnectionLostError, OSError, RedisReplyError: why the connection has ended.
        """
        result: asyncio.Future[list[Any] | Exception] = self._loop.create_future()

        def done(replies: list[Any] | Exception) -> None:
            if not result.done():
                result.set_result(replies)

        self.request(commands, done)
        replies = await result
        if isinstance(replies, Exception):
            raise replies
        return replies

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands whose replies arrive as messages."""
        if self._transport is not None and not self.closed.done():
            self._transport.write(pack(commands))

    def abort(self, error: Exception) -> None:
        """Close the connection. All waiting commands fail."""
        if self._transport is not None:
            self._transport.abort()
        self._end(error)

    def _watch(self) -> None:
        """End the connection if the oldest request has waited for too long."""
        self._watching = None
        if self._waiting:
            deadline = self._waiting[0].deadline
            if self._loop.time() >= deadline:
                self.abort(TimeoutError())
            else:
                self._watching = self._loop.call_at(deadline, self._watch)

    def _end(self, error: Exception) -> None:
        if self.closed.done():
            return
        self.closed.set_result(error)
        if self._watching is not None:
            self._watching.cancel()
        while self._waiting:
            request = self._waiting.popleft()
            if request.replies and isinstance(request.replies[-1], RedisReplyError):
                error = request.replies[-1]  # the reason why the server has disconnected
            request.done(error)


def _first_commands(login: Login | None, database: int) -> list[Command]:
    """Return the commands that log in and select the database."""
    commands: list[Command] = []
    if login is not None:
        user = () if login.user is None else (login.user,)
        commands.append(("AUTH", *user, login.password))
    if database:
        commands.append(("SELECT", database))
    return commands


async def connect(
    address: RedisAddress,
    peer: Peer,
    on_message: Callable[[Any], None] | None = None,
    *,
    is_sentinel: bool = False,
) -> RedisConnection:
    """Open a connection, log in and select the database.

    Args:
        is_sentinel: whether it is a Sentinel, which has users of its own and no databases.

    Raises:
        OSError, TimeoutError, RedisConnectionLostError: the server cannot be reached.
        RedisReplyError: it rejects the credentials, or cannot serve now.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, connection = await loop.create_connection(
            lambda: RedisConnection(on_message),
            peer.host,
            peer.port,
            ssl=tls_context(address),
        )
        commands = (
            _first_commands(address.sentinel_login, 0)
            if is_sentinel
            else _first_commands(address.login, address.database)
        )
        if commands:
            try:
                for reply in await connection.execute(commands):
                    if isinstance(reply, RedisReplyError):
                        raise reply
            except BaseException:
                connection.abort(RedisConnectionLostError("the login failed"))
                raise
    return connection
