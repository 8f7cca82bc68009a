"""The other servers: small programs of ``baselines/``, with production settings.

They do not validate, deduplicate, authenticate or keep a log, except nchan and this repository's
Worker.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import machine
from .centrifugo import Centrifugo
from .load import Client, Publish
from .ours import Ours
from .rounds import Options
from .senders import MissingError
from .servers import (
    BASELINES,
    INSTALLED,
    ROOT,
    TOOLS,
    Running,
    Server,
    Subscriber,
    handshake,
    present,
)

WORKER = ROOT / "worker"


class Limit(Server):
    name, title = "limit", "lower bound in C"

    def command(self, at: Running) -> Sequence[str | Path]:
        return [machine.compile_c(BASELINES / "limit.c"), str(at.port)]


_TEMPORARY = b"nginx-defaults/"  # as long as the function that it replaces in the module


class Nchan(Server):
    name, title, has_batches, has_replay = "nchan", "nchan", False, True

    def command(self, at: Running) -> Sequence[str | Path]:
        folder = TOOLS / "nchan" / "usr"
        nginx = present(folder / "sbin/nginx", "Debian's nginx")
        module = present(
            folder / "lib/nginx/modules/ngx_nchan_module.so", "Debian's libnginx-mod-nchan"
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

    def returning_client(self, subscriber: Subscriber, position: str) -> Client:  # noqa: ARG002
        return Client(handshake(f"/rooms/{subscriber.room}/replay"))

    def positions(self, port: int, rooms: Sequence[str]) -> list[str]:  # noqa: ARG002
        return [""] * len(rooms)  # it replays from the beginning

    def publish(self, room: str, deliveries: int) -> Publish:
        return self.publish_raw("httpx", room, deliveries)


class Bun(Server):
    name, title = "bun", "Bun"

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

    is_quick = False

    def command(self, at: Running) -> Sequence[str | Path]:
        python = present(INSTALLED / "bin/python", "requirements/bench.txt")
        if not _runs(python, "-c", f"import uvloop, uvicorn, {self.name}"):
            raise MissingError("requirements/bench.txt is not installed")
        return [python, BASELINES / f"{self.name}_rooms.py", str(at.port)]


class Websockets(InPython):
    name, title = "websockets", "websockets"

    def publish_port(self, port: int) -> int:
        return port + 1


class StarletteOnUvicorn(InPython):
    name, title = "starlette", "Starlette"


class SocketIo(InPython):
    """A baseline whose clients speak Socket.IO 5 over Engine.IO 4, directly on a WebSocket."""

    name, title, live = "socketio", "python-socketio", "430["

    def client(self, subscriber: Subscriber) -> Client:
        hello = ("40", "420" + json.dumps(["subscribe", subscriber.room], separators=(",", ":")))
        return Client(handshake("/socket.io/?EIO=4&transport=websocket"), hello)


class DurableObject(Server):
    """A Durable Object for each room."""

    name, title, is_quick = "workerd", "workerd", False

    def command(self, at: Running) -> Sequence[str | Path]:
        return [
            *(_workerd(), "serve", BASELINES / "durable_object.capnp"),
            f"--socket-addr=http=127.0.0.1:{at.port}",
        ]


class OurWorker(Ours):
    """This repository's Worker on workerd; its rooms are files in memory."""

    name, title, is_quick = "worker", "synap-realtime's Worker", False

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
        settings = super().environment()
        return {name.removeprefix("SYNAP_REALTIME_"): value for name, value in settings.items()}


KINDS: dict[str, type[Server]] = {
    kind.name: kind
    for kind in (
        *(Ours, Centrifugo, Limit, Nchan, Bun, Ws),
        *(Websockets, SocketIo, StarletteOnUvicorn, DurableObject, OurWorker),
    )
}
ON_REQUEST = ("worker",)
"""Measured only on request: a connect takes milliseconds."""


def everyone(options: Options, *, is_quick: bool = False) -> list[Server]:
    """Return the servers that take part.

    Args:
        is_quick: only the quick ones.
    """
    named = [kind() for kind in KINDS.values()]
    return [kind for kind in options.of(*named) if kind.is_quick or not is_quick]


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
