"""Primaries with replicas that take over: by Sentinels, or in a cluster."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from synap_realtime.server.stores.redis.keys import partition_of, slot_of

from .polling import until
from .replicated import Replicated
from .valkey import VALKEY, Valkey, ValkeyCluster, running_cluster


class Redundant(ABC):
    """Servers of which each primary has a replica.

    Attributes:
        url: of the store.
    """

    url: str

    @abstractmethod
    def primary_of(self, name: str) -> Valkey:
        """Return the primary with the keys of a room or user, by that name."""

    @abstractmethod
    async def until_replaced(self, primary: Valkey) -> None:
        """Wait until the replica of a primary has taken over."""


class WithSentinels(Redundant):
    def __init__(self, servers: Replicated) -> None:
        self._servers = servers
        self.url = servers.url

    def primary_of(self, name: str) -> Valkey:
        return self._servers.primary

    async def until_replaced(self, primary: Valkey) -> None:
        await until(lambda: self._servers.replica.is_primary)


class InCluster(Redundant):
    def __init__(self, servers: ValkeyCluster) -> None:
        self._servers = servers
        self.url = servers.url

    def primary_of(self, name: str) -> Valkey:
        return self._servers.primary_of(slot_of(partition_of(name)))

    async def until_replaced(self, primary: Valkey) -> None:
        (number,) = (n for n, each in enumerate(self._servers.primaries) if each is primary)
        await until(lambda: self._servers.replicas[number].is_primary)
        await until(
            lambda: all(
                each.info()["cluster_state"] == "ok"
                for each in self._servers.nodes
                if each.is_running
            )
        )


@contextlib.contextmanager
def with_sentinels(folder: Path, program: Path = VALKEY) -> Iterator[Redundant]:
    servers = Replicated(folder, program)
    with servers.stack:
        yield WithSentinels(servers)


@contextlib.contextmanager
def in_cluster(folder: Path, program: Path = VALKEY) -> Iterator[Redundant]:
    with running_cluster(folder / "cluster", program=program) as servers:
        yield InCluster(servers)


async def lose_primary(servers: Redundant, primary: Valkey) -> None:
    """``kill -9`` of a primary. Returns when its replica has taken over."""
    await asyncio.to_thread(primary.kill)
    await servers.until_replaced(primary)
