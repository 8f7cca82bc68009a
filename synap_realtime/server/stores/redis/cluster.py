"""Find the primaries of a Redis Cluster.

See https://valkey.io/topics/cluster-spec/.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from ....lexical import parse_digits
from .address import Peer, RedisAddress
from .connection import (
    CONNECT_TIMEOUT_S,
    RedisConnectionLostError,
    RedisReplyError,
    connect,
)
from .errors import UNREACHABLE
from .keys import ALL_PARTITIONS, slot_of

logger = logging.getLogger(__name__)

REFRESH_INTERVAL_S = 5.0
"""The mean interval at which the slot map is read although no reply says that it changed."""

_URGENT_INTERVAL_S = 0.1
_URGENT_S = 1.0  # for how long it is read more often after a reply said that it changed
_CONCURRENT = 2  # how many nodes are asked at the same time

Owners = Sequence[Peer | None]
"""The primary of each partition; None while no node serves it."""


class _View(NamedTuple):
    """What one node knows about the cluster.

    Attributes:
        epoch: grows with each change, so that it tells old views from new ones.
        nodes: all addresses.
    """

    epoch: int
    owners: Owners
    nodes: frozenset[Peer]


class SlotMap:
    """Reads which primary serves which partition.

    Attributes:
        problem: why nothing is known; None once something is.
    """

    def __init__(self, address: RedisAddress, on_owners: Callable[[Owners], None]) -> None:
        """
        Args:
            on_owners: called each time that the map was read.
        """
        self.problem: str | None = "the cluster was not asked yet"
        self._address = address
        self._on_owners = on_owners
        self._epoch = 0
        self._nodes: frozenset[Peer] = frozenset()
        self._hints: set[Peer] = set()
        self._urgent_until = 0.0
        self._requested = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Read the map now, and from time to time."""
        if self._task is None:
            self.refresh()

    def refresh(self, hint: Peer | None = None) -> None:
        """Read the map soon: it may have changed.

        Args:
            hint: a node that should know the change.
        """
        loop = asyncio.get_running_loop()
        if hint is not None:
            self._hints.add(hint)
        self._urgent_until = loop.time() + _URGENT_S
        self._requested.set()
        if self._task is None and not self._is_closed:
            self._task = loop.create_task(self._run(), name="synap-slots")

    async def close(self) -> None:
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._requested.clear()
            view = await self._read()
            if view is not None:
                self._epoch, self._nodes, self.problem = view.epoch, view.nodes, None
                self._on_owners(view.owners)
            await asyncio.sleep(_URGENT_INTERVAL_S / 2)
            if loop.time() < self._urgent_until:
                timeout = _URGENT_INTERVAL_S
            else:
                timeout = REFRESH_INTERVAL_S * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
            await _wait(self._requested.wait(), timeout)

    async def _read(self) -> _View | None:
        """Return the first view that is not older than the last one, else the newest; or None."""
        hints, self._hints = self._hints, set()
        known = [*self._nodes, *(each for each in self._address.peers if each not in self._nodes)]
        random.shuffle(known)
        peers = [*hints, *(each for each in known if each not in hints)]
        newest: _View | None = None
        for start in range(0, len(peers), _CONCURRENT):
            asked = [
                asyncio.ensure_future(self._ask(peer))
                for peer in peers[start : start + _CONCURRENT]
            ]
            try:
                for answer in asyncio.as_completed(asked):
                    view = await answer
                    if view is not None and view.epoch >= self._epoch:
                        return view
                    if view is not None and (newest is None or view.epoch > newest.epoch):
                        newest = view
            finally:
                for each in asked:
                    each.cancel()
                await asyncio.wait(asked)
        return newest

    async def _ask(self, peer: Peer) -> _View | None:
        """Return what a node knows; None if it is cut off or cannot be reached."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S / 2):
                connection = await connect(self._address, peer)
                try:
                    state, slots = await connection.execute(
                        [("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")]
                    )
                finally:
                    connection.abort(RedisConnectionLostError("it was asked"))
            for reply in (state, slots):
                if isinstance(reply, RedisReplyError):
                    raise reply
        except (*UNREACHABLE, RedisReplyError) as error:
            if self.problem is not None:
                self.problem = str(error) or type(error).__name__
            return None
        info = dict(line.split(b":", 1) for line in state.split(b"\r\n") if b":" in line)
        if info.get(b"cluster_state") != b"ok":
            # While a failover is under way, or at the smaller side of a cut network. Its view may
            # be old.
            if self.problem is not None:
                self.problem = "the cluster is down: cluster_state is fail"
            return None
        return parse_slots(
            slots,
            peer,
            int(info.get(b"cluster_current_epoch", 0)),
        )


def parse_slots(slots: Sequence[Any], asked: Peer, epoch: int = 0) -> _View:
    """Parse the reply of ``CLUSTER SLOTS``.

    Args:
        asked: the node that replied. Servers without a host have the same one.
    """
    owner_of_slot: dict[range, Peer | None] = {}
    nodes: set[Peer] = {asked}
    for first, last, *servers in slots:
        peers = [_peer(server, asked) for server in servers]
        owner_of_slot[range(first, last + 1)] = peers[0] if peers else None
        nodes.update(peer for peer in peers if peer is not None)
    owners = [
        next((owner for slots, owner in owner_of_slot.items() if slot_of(number) in slots), None)
        for number in ALL_PARTITIONS
    ]
    return _View(epoch, owners, frozenset(nodes))


def _peer(server: Sequence[Any], asked: Peer) -> Peer | None:
    """Return the address of a node: its preferred one, else its IP address."""
    host, port, *more = server
    if not host:
        return Peer(asked.host, port)
    if host != b"?":
        return Peer(host.decode(), port)
    metadata = more[1] if len(more) > 1 else []
    other = dict(zip(metadata[::2], metadata[1::2], strict=False)).get(b"ip")
    return Peer(other.decode(), port) if other else None


def parse_redirection(error: RedisReplyError, asked: Peer | None) -> Peer | None:
    """Return the node that a reply such as ``MOVED 3999 127.0.0.1:6381`` names.

    Args:
        asked: the node that replied. A redirection without a host means the same one.
    """
    words = str(error).split()
    host, _, port = words[-1].rpartition(":")
    number = parse_digits(port)
    if number is None or number > 65535 or (not host and asked is None) or host == "?":
        return None
    return Peer(host.strip("[]") or (asked.host if asked else ""), number)


async def _wait(condition: Awaitable[object], timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await condition
    except TimeoutError:
        pass
