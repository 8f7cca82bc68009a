"""The list of nodes: a node proves that it is alive, and removes what failed ones have reported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from ...errors import StoreUnavailableError
from .keys import ALL_PARTITIONS, NODES_PARTITION, KeySpace
from .script import us
from .scripts import LIVE_NODES, PROBE, PROBE_AS_NODE, REMOVE_NODE
from .tasks import Tasks

logger = logging.getLogger(__name__)

NODE_LIFETIME_S = 10.0
"""A node that sends no probe for this time has failed. Another one removes what it has reported."""

_MAX_PAUSE_S = 3.0  # between two probes while Redis answers

Report = Callable[[Collection[int]], Awaitable[None]]
"""Stores again what this node has in some partitions: Redis may have lost it, or others may have
removed it. Raises StoreUnavailableError if that fails; it is called again later."""

Remove = Callable[[str], Awaitable[None]]
"""Removes what a failed node has stored. All nodes may do so at the same time, and again. Raises
StoreUnavailableError if that fails; it is called again later."""


class Membership:
    """Keeps this node in the list of nodes."""

    def __init__(
        self, keys: KeySpace, node: str, call: Callable[..., asyncio.Future[Any]], tasks: Tasks
    ) -> None:
        """
        Args:
            call: calls a script with keys and arguments.
        """
        self._keys = keys
        self._lists = (keys.nodes, keys.departed)
        self._node = node
        self._call = call
        self._tasks = tasks
        self._reports: list[Report] = []
        self._removes: list[Remove] = []
        self._must_report = False
        self._maintaining: asyncio.Task[None] | None = None
        self._probing: dict[int, asyncio.Task[None]] = {}
        self._probed_at = self._probing_since = -math.inf  # by the clock of the event loop

    def register(self, report: Report, remove: Remove) -> None:
        """Add what must be stored again after a reconnect, and removed if a node fails."""
        self._reports.append(report)
        self._removes.append(remove)

    def send_probe(self, partition: int) -> None:
        """Send a message to this node over the primary of a partition, without waiting.

        With the partition of the list of nodes, it also keeps this node in the list.
        """
        running = self._probing.get(partition)
        if running is None or running.done():  # else Redis does not answer
            is_list = partition == NODES_PARTITION
            probe = self._keep_alive() if is_list else self._probe(partition)
            self._probing[partition] = self._tasks.spawn(probe)

    async def report(self, partitions: Collection[int]) -> None:
        """Store again what this node has in some partitions.

        Raises:
            StoreUnavailableError: a part was not stored.
        """
        await asyncio.gather(*(report(partitions) for report in self._reports))

    async def list_live(self) -> set[str]:
        """Return the nodes that have sent a probe within their lifetime.

        Raises:
            StoreUnavailableError: the list cannot be read now.
        """
        found = await self._call(LIVE_NODES, (self._keys.nodes,), us(NODE_LIFETIME_S))
        return {name.decode() for name in found}

    async def leave(self, stays_s: float) -> None:
        """Remove this node from the list.

        Args:
            stays_s: how long what it has stored stays; then another node removes it.

        Raises:
            StoreUnavailableError: it stays in the list.
        """
        await self._unlist(self._node, stays_s)

    async def remove(self, node: str) -> None:
        """Remove a node that has failed or left, and what it has stored.

        Raises:
            StoreUnavailableError: a part was not removed; the node stays in the list.
        """
        await asyncio.gather(*(remove(node) for remove in self._removes))
        await self._unlist(node)

    async def _unlist(self, node: str, stays_s: float = 0.0) -> None:
        await self._call(REMOVE_NODE, self._lists, node, us(stays_s))

    async def _probe(self, partition: int) -> None:
        with contextlib.suppress(StoreUnavailableError):
            channel = self._keys.probe(partition, self._node)
            await self._call(PROBE, (channel,), channel)

    async def _keep_alive(self) -> None:
        with contextlib.suppress(StoreUnavailableError):
            is_new, failed, departed = await self._call(
                PROBE_AS_NODE,
                self._lists,
                self._node,
                self._keys.probe(NODES_PARTITION, self._node),
                us(NODE_LIFETIME_S),
            )
            # If it is new, others may have removed what this node had reported while it was silent.
            self._must_report = self._must_report or bool(is_new)
            if not self._has_probed_for_long():
                failed = []
            if (self._must_report or failed or departed) and (
                self._maintaining is None or self._maintaining.done()
            ):
                self._maintaining = self._tasks.spawn(self._maintain(failed, departed))

    async def _maintain(self, failed: Sequence[bytes], departed: Sequence[bytes]) -> None:
        with contextlib.suppress(StoreUnavailableError):
            if self._must_report:
                await self.report(ALL_PARTITIONS)
                self._must_report = False
            for node in failed:
                await self.remove(node.decode())
                logger.warning(
                    "a node has failed; what it had reported was removed; node=%s", node.decode()
                )
            for node in departed:
                await self.remove(node.decode())

    def _has_probed_for_long(self) -> bool:
        """Note a probe. Return whether a node that is silent has failed.

        After Redis was away, all nodes have been silent.
        """
        now = asyncio.get_running_loop().time()
        if now - self._probed_at > _MAX_PAUSE_S:
            self._probing_since = now
        self._probed_at = now
        return now - self._probing_since >= NODE_LIFETIME_S
