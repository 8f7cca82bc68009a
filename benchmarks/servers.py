"""The servers: how to start each, and the protocol of its clients and publishers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import resource
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synap_realtime import mint_token

from . import machine
from .load import Client, Publish

HERE = Path(__file__).parent
ROOT = HERE.parent
BASELINES = HERE / "baselines"
INSTALLED = ROOT / ".venv" / "bench"
WORKER = ROOT / "worker"

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
NOTIFICATION_BYTES = 200
_PORTS = range(20_000, 32_000)
STAMP = "@" * 19  # load.c writes the time there
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class MissingError(Exception):
    """A requirement is not available on this machine; the message names it."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A subscriber and its room.

    Attributes:
        user: the user's id.
        room: ``user_{user}``, or a shared one.
        replay: from the beginning of the log; otherwise only new notifications.
    """

    user: str
    room: str
    replay: bool = False


def own_rooms(count: int, *, replay: bool = False) -> list[Subscriber]:
    """Return this number of users, each in its own room."""
    return [Subscriber(str(n), f"user_{n}", replay) for n in range(count)]


def one_room(count: int, room: str = "workspace_1") -> list[Subscriber]:
    """Return this number of users in one room."""
    return [Subscriber(str(n), room) for n in range(count)]


def notification() -> str:
    """Return a notification of 200 bytes whose id is the time of sending."""
    head = f'{{"id":"{STAMP}","type":"bench.moved","status":"pending","data":{{"text":"'
    return head + "x" * (NOTIFICATION_BYTES - len(head) - 3) + '"}}'


class Server:
    """One kind of server. Subclasses define the differences.

    Attributes:
        name: for ``--baselines``; title: in the table.
        live: a substring of the text that confirms a subscription; ``-``: the 101 response does.
        has_batches, has_replay: whether the server supports it.
    """

    name = ""
    title = ""
    live = "-"
    has_batches = True
    has_replay = False

    def command(self, at: Running) -> Sequence[str | Path]:
        """Return the command that starts the server on its port of loopback.

        Raises:
            MissingError: it is not installed.
        """
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def most(self, connections: int) -> int:
        """Return this number of connections, or the maximum that the system allows."""
        return connections

    def publish_port(self, port: int) -> int:
        return port

    def client(self, subscriber: Subscriber) -> Client:
        return Client(handshake(f"/rooms/{subscriber.room}/subscribe"))

    def headers(self) -> dict[str, str]:
        """Return the headers of a publish."""
        return {}

    def publish(self, room: str, deliveries: int) -> Publish:
        return Publish(post(f"/rooms/{room}/broadcast", notification(), self.headers()), deliveries)

    def publish_many(self, rooms: Sequence[str], deliveries: int) -> Publish:
        """Return one request with a notification for each of these rooms."""
        each = ",".join(f'{{"rooms":["{room}"],{notification()[1:]}' for room in rooms)
        return Publish(
            post("/broadcast", f'{{"notifications":[{each}]}}', self.headers()), deliveries
        )


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


def post(path: str, body: str, headers: Mapping[str, str]) -> bytes:
    """Return a request with a body of JSON."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


class Limit(Server):
    name, title = "limit", "C, send(2) in a loop: lower bound"

    def command(self, at: Running) -> Sequence[str | Path]:
        return [machine.compile_c(BASELINES / "limit.c"), str(at.port)]


class Ours(Server):
    """The room server with keys, a token for each user, validation, deduplication and log; no rate
    limits.
    """

    name, title, live, has_replay = "ours", "synap-realtime", '"synap.subscribed"', True

    def __init__(self, store: str = "memory://") -> None:
        self._store = store
        self.key = secrets.token_urlsafe(32)
        self._secret = secrets.token_urlsafe(32)

    def command(self, at: Running) -> Sequence[str | Path]:
        program = Path(sys.executable).with_name("synap-realtime")
        return [program, "serve", "--port", str(at.port), "--store", self._store]

    def environment(self) -> dict[str, str]:
        limits = ("MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_ROOM", "MAX_ROOMS", "MAX_HALF_OPEN")
        rates = ("CONNECTS_PER_S", "PUBLISHES_PER_S", "PUBLISH_BYTES_PER_S")
        return {
            "SYNAP_REALTIME_API_KEYS": f"bench={self.key}",
            "SYNAP_REALTIME_TOKEN_SECRETS": self._secret,
            **{f"SYNAP_REALTIME_{name}": "0" for name in (*limits, *rates)},
        }

    def client(self, subscriber: Subscriber) -> Client:
        rooms = [] if subscriber.room == f"user_{subscriber.user}" else [subscriber.room]
        token = mint_token(subscriber.user, rooms=rooms, secret=self._secret)
        after = "earliest" if subscriber.replay else "latest"
        return Client(
            handshake(
                f"/rooms/{subscriber.room}/subscribe?after={after}",
                Authorization=f"Bearer {token}",
                Sec_WebSocket_Protocol="synap.v1",
            )
        )

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


class WithoutRing(Ours):
    """The room server where io_uring is not allowed."""

    title = "synap-realtime, --no-io-uring"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SYNAP_REALTIME_IO_URING": "0"}


_TEMPORARY = b"nginx-defaults/"  # as long as the function that it replaces in the module


class Nchan(Server):
    name, title, has_batches, has_replay = "nchan", "nchan in nginx, memory store", False, True

    def command(self, at: Running) -> Sequence[str | Path]:
        nginx = present(INSTALLED / "nchan/usr/sbin/nginx", "Debian's nginx")
        module = present(
            INSTALLED / "nchan/usr/lib/nginx/modules/ngx_nchan_module.so",
            "Debian's libnginx-mod-nchan",
        )
        # Debian's module creates its compiled-in temporary folder whatever the configuration says,
        # and only an installed nginx has /var/lib/nginx. A relative path is below -p.
        own_module = at.folder / module.name
        own_module.write_bytes(module.read_bytes().replace(b"/var/lib/nginx/", _TEMPORARY))
        (at.folder / _TEMPORARY.decode()).mkdir(exist_ok=True)
        text = (BASELINES / "nchan.conf").read_text()
        for word, value in (("FOLDER", at.folder), ("MODULE", own_module), ("PORT", at.port)):
            text = text.replace(word, str(value))
        (at.folder / "nginx.conf").write_text(text)
        return [nginx, "-p", at.folder, "-e", "stderr", "-c", at.folder / "nginx.conf"]

    def client(self, subscriber: Subscriber) -> Client:
        route = "replay" if subscriber.replay else "subscribe"
        return Client(handshake(f"/rooms/{subscriber.room}/{route}"))


class Bun(Server):
    name, title = "bun", "Bun, its pub/sub"

    def command(self, at: Running) -> Sequence[str | Path]:
        for program in sorted((INSTALLED / "npm/node_modules/@oven").glob("bun-*/bin/bun*")):
            if _runs(program, "--version"):
                return [program, BASELINES / "bun_rooms.js", str(at.port)]
        raise MissingError("npm's bun is not installed, or does not run here")


class Ws(Server):
    name, title = "ws", "ws on Node"

    def command(self, at: Running) -> Sequence[str | Path]:
        present(INSTALLED / "npm/node_modules/ws", "npm's ws")
        return [_node(), BASELINES / "ws_rooms.mjs", str(at.port)]

    def environment(self) -> dict[str, str]:
        return {"NODE_ENV": "production", "PEERS": str(INSTALLED / "npm")}


class InPython(Server):
    """A baseline of ``requirements/bench.txt``."""

    def command(self, at: Running) -> Sequence[str | Path]:
        python = present(INSTALLED / "bin/python", "requirements/bench.txt")
        if not _runs(python, "-c", f"import uvloop, uvicorn, {self.name}"):
            raise MissingError("requirements/bench.txt is not installed")
        return [python, BASELINES / f"{self.name}_rooms.py", str(at.port)]


class Websockets(InPython):
    name, title = "websockets", "websockets, its broadcast"

    def publish_port(self, port: int) -> int:
        return port + 1


class StarletteOnUvicorn(InPython):
    name, title = "starlette", "Starlette on uvicorn"


class SocketIo(InPython):
    """A baseline whose clients speak Socket.IO 5 over Engine.IO 4, directly on a WebSocket."""

    name, title, live = "socketio", "python-socketio on uvicorn", "430["

    def client(self, subscriber: Subscriber) -> Client:
        hello = ("40", "420" + json.dumps(["subscribe", subscriber.room], separators=(",", ":")))
        return Client(handshake("/socket.io/?EIO=4&transport=websocket"), hello)


class DurableObject(Server):
    name, title = "workerd", "a Durable Object in workerd"

    def most(self, connections: int) -> int:
        """Return the maximum: it uses two descriptors per connection, and exits when there are none
        left.
        """
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return min(connections, (files - 500) // 2)

    def command(self, at: Running) -> Sequence[str | Path]:
        return [
            *(_workerd(), "serve", BASELINES / "durable_object.capnp"),
            f"--socket-addr=http=127.0.0.1:{at.port}",
        ]


class OurWorker(Ours):
    """This repository's Worker on workerd; its rooms are files in memory."""

    name, title = "worker", "synap-realtime's Worker in workerd"

    def command(self, at: Running) -> Sequence[str | Path]:
        workerd = _workerd()
        _bundle()
        rooms = at.folder / "rooms"
        rooms.mkdir(exist_ok=True)
        return [
            *(workerd, "serve", WORKER / "workerd.capnp", f"--directory-path=rooms={rooms}"),
            f"--socket-addr=http=127.0.0.1:{at.port}",
        ]

    def environment(self) -> dict[str, str]:
        limits = ("MAX_CONNECTIONS_PER_USER", "MAX_CONNECTIONS_PER_ROOM")
        rates = ("PUBLISHES_PER_S", "PUBLISH_BYTES_PER_S")
        return {
            "API_KEYS": f"bench={self.key}",
            "TOKEN_SECRETS": self._secret,
            **dict.fromkeys((*limits, *rates), "0"),
        }


KINDS: dict[str, type[Server]] = {
    kind.name: kind
    for kind in (
        *(Limit, Ours, Nchan, Bun, Ws, Websockets, SocketIo, StarletteOnUvicorn),
        *(DurableObject, OurWorker),
    )
}
ON_REQUEST = ("worker",)
"""Measured only on request: a connect takes milliseconds."""


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


@functools.cache
def _runs(program: Path, *arguments: str) -> bool:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run([program, *arguments], check=True, capture_output=True, timeout=30)
        return True
    return False


def _node() -> Path:
    return present(Path(sys.executable).with_name("node"), "Node")


def _workerd() -> Path:
    found = sorted((WORKER / "node_modules/@cloudflare").glob("workerd-*/bin/workerd"))
    if not found:
        raise MissingError("workerd is not installed: run scripts/setup dev")
    return found[0]


@functools.cache
def _bundle() -> None:
    """Build ``worker/dist``."""
    subprocess.run(
        [
            _node(),
            "node_modules/wrangler/bin/wrangler.js",
            "deploy",
            "--dry-run",
            "--outdir",
            "dist",
        ],
        cwd=WORKER,
        env={**os.environ, "WRANGLER_SEND_METRICS": "false", "CI": "true"},
        check=True,
        capture_output=True,
        timeout=300,
    )


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
