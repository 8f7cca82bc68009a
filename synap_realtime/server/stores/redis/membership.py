"""The list of nodes: a node proves that it is alive, and removes what failed ones have reported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from ...errors import StoreUnavailableError
from .keys import ALL_PARTITIONS, KeySpace
from .scripts import LIVE_NODES, PROBE, REMOVE_NODE, us
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
        self._probing: asyncio.Task[None] | None = None
        self._probed_at = self._probing_since = -math.inf  # by the clock of the event loop

    def register(self, report: Report, remove: Remove) -> None:
        """Add what must be stored again after a reconnect, and removed if a node fails."""
        self._reports.append(report)
        self._removes.append(remove)

    def send_probe(self) -> None:
        """Send a message to this node and keep it in the list, without waiting."""
        if self._probing is None or self._probing.done():  # else Redis does not answer
            self._probing = self._tasks.spawn(self._probe())

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
        """
        with contextlib.suppress(StoreUnavailableError):
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

    async def _probe(self) -> None:
        with contextlib.suppress(StoreUnavailableError):
            is_new, failed, departed = await self._call(
                PROBE,
                self._lists,
                self._node,
                self._keys.probe(self._node),
                us(NODE_LIFETIME_S),
            )
            # If it is new, others may have removed what this node had reported while it was silent.
            self._must_report = self._must_report or bool(is_new)
            if self._must_report:
                await self.report(ALL_PARTITIONS)
                self._must_report = False
            if self._has_probed_for_long():
                for node in failed:
                    await self.remove(node.decode())
                    logger.warning(
                        "a node has failed; what it had reported was removed; node=%s",
                        node.decode(),
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
