"""A primary and its replica, whose nodes choose a level of durability."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import Retention, Store

from .timeouts import TIMEOUT_S
from .valkey import Valkey, running_valkey


class Pair:
    """A primary and its replica."""

    def __init__(self, primary: Valkey, replica: Valkey) -> None:
        self.primary, self.replica = primary, replica

    def open(self, durability: str) -> Store:
        return open_store(f"{self.primary.url}?durability={durability}", Retention())

    def until_confirmed(self) -> None:
        """Wait until the replica follows the primary."""
        end = time.monotonic() + TIMEOUT_S
        with self.primary.client(single_connection_client=True) as client:
            while not (client.set("x", "y") and client.wait(1, 100)):
                assert time.monotonic() < end

    def texts(self) -> list[bytes]:
        """What the logs of the replica contain."""
        with self.replica.client() as client:
            return [
                fields[b"t"] for key in client.keys("*:log:*") for _, fields in client.xrange(key)
            ]

    def promote(self) -> None:
        """Make the replica a primary."""
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")


@contextlib.contextmanager
def running_pair(folder: Path, program: Path) -> Iterator[Pair]:
    with running_valkey(folder / "primary", program=program) as primary:
        of = ("--replicaof", "127.0.0.1", str(primary.port))
        with running_valkey(folder / "replica", *of, program=program) as replica:
            pair = Pair(primary, replica)
            pair.until_confirmed()
            yield pair
