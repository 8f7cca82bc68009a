"""A kind of server: how to start it, and what its clients and publishers send."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import machine, senders
from .load import Client, Publish
from .senders import Call, MissingError

HERE = Path(__file__).parent
ROOT = HERE.parent
BASELINES = HERE / "baselines"
INSTALLED = ROOT / ".venv" / "bench"
TOOLS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "synap-realtime"

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
_PORTS = range(20_000, 32_000)
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A subscriber and its room.

    Attributes:
        user: the user's id.
        room: ``user_{user}``, or another one.
    """

    user: str
    room: str


def own_rooms(count: int, kind: str = "user") -> list[Subscriber]:
    """Return this number of users, each in its own room of this kind."""
    return [Subscriber(str(n), f"{kind}_{n}") for n in range(count)]


def one_room(count: int, room: str = "workspace_1") -> list[Subscriber]:
    """Return this number of users in one room."""
    return [Subscriber(str(n), room) for n in range(count)]


class Server:
    """One kind of server. Subclasses define the differences.

    Unless they define others, publishers send what the SDK sends.

    Attributes:
        name: for ``--servers``; title: in the table.
        live: a substring of the text that confirms a subscription; ``-``: the 101 response does.
        has_batches, has_replay: whether the server supports it.
        is_quick: whether it takes part in all scenarios. The others take part in a few, because
            thousands of connects take them too long.
    """

    name = ""
    title = ""
    live = "-"
    has_batches = True
    has_replay = False
    is_quick = True

    def command(self, at: Running) -> Sequence[str | Path]:
        """Return the command that starts the server on its port of loopback.

        Raises:
            MissingError: it is not installed.
        """
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def publish_port(self, port: int) -> int:
        return port

    # What clients send

    def client(self, subscriber: Subscriber) -> Client:
        """Return a client that receives new notifications."""
        return Client(handshake(f"/rooms/{subscriber.room}/subscribe"))

    def returning_client(self, subscriber: Subscriber, position: str) -> Client:
        """Return a client that continues after a position."""
        raise NotImplementedError

    def positions(self, port: int, rooms: Sequence[str]) -> list[str]:
        """Publish a notification to each of these rooms, and return their positions."""
        raise NotImplementedError

    # What publishers send

    @property
    def key(self) -> str:
        """The key of the next publisher."""
        return senders.KEY

    def publish(self, room: str, deliveries: int) -> Publish:
        """Return a request with one notification."""
        kind, _, id = room.partition("_")
        return senders.fill(senders.sdk_publish(kind), self.key, [id], deliveries)

    def publish_to_both(self, id: str, deliveries: int) -> Publish:
        """Return a request with one notification to the rooms of a user and of a request."""
        return senders.fill(senders.sdk_publish_to_both(), self.key, [id], deliveries)

    def publish_many(self, rooms: Sequence[str], deliveries: int) -> Publish:
        """Return a request with a notification for each of these rooms, all of one kind."""
        ids = [room.partition("_")[2] for room in rooms]
        kind = rooms[0].partition("_")[0]
        return senders.fill(senders.sdk_batch(kind, len(rooms)), self.key, ids, deliveries)

    def reply(self, room: str, number: int, pieces: int, subscribers: int) -> list[Publish]:  # noqa: ARG002 - see Ours
        """Return the requests of a text that is published in pieces, in their order.

        Args:
            number: of the reply, each time another one.
            subscribers: how many the room has.
        """
        return [self.publish(room, subscribers)] * pieces

    def call(self, room: str) -> Call:
        """Return what a client without the SDK posts to publish one notification."""
        path = f"/rooms/{room}/broadcast"
        return Call.of(path, senders.notification(), Authorization=f"Bearer {senders.KEY}")

    def publish_raw(self, client: str, room: str, deliveries: int) -> Publish:
        """Return the same request as :meth:`call`, as this client sends it.

        Raises:
            MissingError: the client is not installed.
        """
        kind, _, id = room.partition("_")
        captured = senders.raw(client, self.call(f"{kind}_{senders.place()}"))
        return senders.fill(captured, self.key, [id], deliveries)


def handshake(path: str, **headers: str) -> bytes:
    """Return a WebSocket handshake (RFC 6455, section 4.1)."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_KEY}",
        "Sec-WebSocket-Version: 13",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass(slots=True)
class Running:
    """A running server."""

    kind: Server
    port: int
    folder: Path
    core: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server."""
        command = self.kind.command(self)
        log = self.folder / "log"
        environment = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
        }
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**environment, **self.kind.environment()},
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=functools.partial(os.sched_setaffinity, 0, {self.core}),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        ports = {self.port, self.kind.publish_port(self.port)}
        while not all(map(_listens, ports)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise MissingError(f"it does not start: {log.read_text()[-400:].strip()}")
            time.sleep(0.01)

    def last_words(self) -> str | None:
        """Return the end of its log if it has exited by itself."""
        if self._process is None or self._process.poll() is None:
            return None
        return f"{self._process.returncode}: {(self.folder / 'log').read_text()[-400:].strip()}"

    def kill(self) -> None:
        """Kill it and its children with ``kill -9``."""
        if self._process is None:
            return
        for pid in machine.tree(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None


@contextlib.contextmanager
def running(kind: Server, core: int | None = None) -> Iterator[Running]:
    """Run a server on a free port; kill it at the end.

    Args:
        core: where it runs. Default: the servers' core.
    """
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a new folder
    with tempfile.TemporaryDirectory(prefix=f"synap-bench-{kind.name}-", dir=memory) as folder:
        place = machine.cores().server if core is None else core
        server = Running(kind, free_port(), Path(folder), place)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def present(path: Path, what: str) -> Path:
    """Return the path of a program.

    Raises:
        MissingError: it is not installed.
    """
    if not path.exists():
        raise MissingError(f"{what} is not installed: run scripts/bench")
    return path


def free_port() -> int:
    """Return a port followed by a free one, outside of the range of clients' ports (ip(7))."""
    while True:
        port = random.choice(_PORTS)  # noqa: S311 - not a secret
        with contextlib.suppress(OSError), contextlib.ExitStack() as both:
            for each in (port, port + 1):
                both.enter_context(socket.create_server(("127.0.0.1", each)))
            return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
