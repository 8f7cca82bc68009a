"""Find the only primary: a fixed server, or the one that the Sentinels name.

See https://valkey.io/topics/sentinel-clients/.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from .address import Peer, RedisAddress
from .connection import (
    CONNECT_TIMEOUT_S,
    RedisConnection,
    RedisConnectionLostError,
    RedisReplyError,
    UnsuitableServerError,
    connect,
)
from .errors import UNREACHABLE, describe_refusal_of_sentinel

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 5.0
"""How often the Sentinels are asked although none has announced another primary."""

_SWITCH = b"+switch-master"


class Topology:
    """Opens connections to the primary, and notices that another server has become it."""

    def __init__(self, address: RedisAddress, on_switch: Callable[[], None]) -> None:
        """
        Args:
            on_switch: called when connections may lead to a server that was replaced.
        """
        self._address = address
        self._on_switch = on_switch
        self._primary: Peer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._refusing: dict[Peer, str] = {}  # Sentinels, and why

    async def connect(self, on_message: Callable[[Any], None] | None = None) -> RedisConnection:
        """Open a connection to the primary.

        Raises:
            OSError, RedisConnectionLostError, RedisReplyError: there is no primary now.
        """
        address = self._address
        if address.is_cluster:
            return await self._connect_any(on_message)
        if address.service is None:
            return await connect(address, address.peers[0], on_message)
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        primary = await self._ask_all()
        self._set_primary(primary)
        connection = await connect(address, primary, on_message)
        if on_message is None:
            await self._check_role(connection, primary)
        if self._primary != primary:  # while this was connecting, so that no restart reached it
            lost = RedisConnectionLostError(f"{primary} is not the primary any more")
            connection.abort(lost)
            raise lost
        return connection

    def _set_primary(self, primary: Peer) -> None:
        former, self._primary = self._primary, primary
        if former is not None and former != primary:
            logger.warning("Redis: the primary is now %s", primary)
            self._on_switch()

    async def _connect_any(self, on_message: Callable[[Any], None] | None) -> RedisConnection:
        """Open a connection to the first node of a cluster that can be reached."""
        *others, last = self._address.peers
        for peer in others:
            with contextlib.suppress(*UNREACHABLE):
                return await connect(self._address, peer, on_message)
        return await connect(self._address, last, on_message)

    async def _check_role(self, connection: RedisConnection, primary: Peer) -> None:
        """Check that a server knows that it is the primary.

        Raises:
            TimeoutError, RedisConnectionLostError: it is not, or does not answer.
        """
        role = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                (role,) = await connection.execute([("ROLE",)])
        finally:
            if not isinstance(role, list) or role[0] != b"master":
                connection.abort(RedisConnectionLostError("it is no primary"))
        if connection.closed.done():
            raise RedisConnectionLostError(f"{primary} is not the primary yet")

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching

    async def _ask_all(self) -> Peer:
        """Return the primary of the latest configuration that a Sentinel knows.

        Raises:
            UnsuitableServerError: none names one, and some reject the login of this node.
            RedisConnectionLostError: none names one.
        """
        peers = self._address.peers
        answers = await asyncio.gather(*map(self._ask, peers), return_exceptions=True)
        refusals = {
            peer: reason
            for peer, each in zip(peers, answers, strict=True)
            if isinstance(each, RedisReplyError)
            and (reason := describe_refusal_of_sentinel(each)) is not None
        }
        known = [each for each in answers if isinstance(each, tuple)]
        if known:
            self._warn_of(refusals)
            return max(known, key=lambda each: each[0])[1]
        expected = (*UNREACHABLE, RedisReplyError)
        for each in answers:
            if isinstance(each, BaseException) and not isinstance(each, expected):
                raise each
        for refusal in refusals.values():
            raise UnsuitableServerError(refusal)
        reason = next((str(each) for each in answers if isinstance(each, RedisReplyError)), "")
        service = self._address.service
        raise RedisConnectionLostError(
            f"no Sentinel names the primary {service!r}" + (f": {reason}" if reason else "")
        )

    async def _ask(self, sentinel: Peer) -> tuple[int, Peer]:
        """Return the epoch of a Sentinel's configuration, and the primary."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S / 2):
            connection = await connect(self._address, sentinel, None, is_sentinel=True)
            try:
                state, found = await connection.execute(
                    [
                        ("SENTINEL", "MASTER", self._address.service or ""),
                        ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service or ""),
                    ]
                )
            finally:
                connection.abort(RedisConnectionLostError("it was asked"))
        for reply in (state, found):
            if isinstance(reply, RedisReplyError):
                raise reply
        members = dict(zip(state[::2], state[1::2], strict=True))
        host, port = found
        return int(members.get(b"config-epoch", 0)), Peer(host.decode(), int(port))

    def _warn_of(self, refusals: Mapping[Peer, str]) -> None:
        """Log once that a Sentinel is of no use, although others are."""
        for peer, reason in refusals.items():
            if self._refusing.get(peer) != reason:
                self._refusing[peer] = reason
                logger.warning("Sentinel %s is not used: %s; the others are asked", peer, reason)

    async def _watch(self) -> None:
        """Follow the announcements of one Sentinel after another."""
        for sentinel in itertools.cycle(self._address.peers):
            with contextlib.suppress(*UNREACHABLE, RedisReplyError):
                await self._follow(sentinel)
            await asyncio.sleep(0.2)

    async def _follow(self, sentinel: Peer) -> None:
        changed = asyncio.Event()

        def on_message(message: Any) -> None:
            if isinstance(message, RedisReplyError):
                reason = describe_refusal_of_sentinel(message) or str(message)
                self._warn_of({sentinel: reason})
            elif message[0] == b"message":
                name, _, _ = message[2].partition(b" ")
                if name.decode() == self._address.service:
                    changed.set()

        connection = await connect(self._address, sentinel, on_message, is_sentinel=True)
        connection.send([("SUBSCRIBE", _SWITCH)])
        try:
            while not connection.closed.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL_S):
                        await changed.wait()
                changed.clear()
                self._set_primary(await self._ask_all())
        finally:
            connection.abort(RedisConnectionLostError("it is not followed any more"))
