"""The requests of publishers: of the SDK, and of HTTP clients without it.

None is written by hand. Each client sends a request to a socket that captures it, with words in
place of the ids; for each publish, the ids are filled in, and the length as the client counts it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from synap_realtime import AsyncBroadcaster

from .capture import Capture, Captured
from .load import Publish

CLIENTS = Path(__file__).with_name("clients")

STAMP = "@" * 19  # load.c writes the time there
ID = f"{STAMP}-{'7' * 16}"
"""As long as a UUID, which the SDK uses."""

TYPE = "bench.moved"
STATUS = "success"
NOTIFICATION_BYTES = 200
PIECE = "word "
"""Of a growing text."""

KEY = "k" * 43
"""In place of a publisher's key, and as long."""

_PLACE = re.compile(rb"place(\d{4})")
_TIMEOUT_S = 60.0


class MissingError(Exception):
    """A requirement is not available on this machine; the message names it."""


def place(number: int = 0) -> str:
    """Return the word in place of the id of a user or a request."""
    return f"place{number:04d}"


def data() -> dict[str, str]:
    """Return the data that makes a notification as large as it is meant to be."""
    rest = len(_encode({"id": ID, "type": TYPE, "data": {"text": ""}, "status": STATUS}))
    return {"text": "x" * (NOTIFICATION_BYTES - rest)}


def notification() -> dict[str, object]:
    """Return the notification without its rooms, as the SDK sends it."""
    body = json.loads(sdk(_to_user).body)
    return {name: value for name, value in body["notifications"][0].items() if name != "rooms"}


@dataclass(frozen=True, slots=True)
class Call:
    """A POST of JSON by a client without the SDK."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: str

    @classmethod
    def of(cls, path: str, body: object, **headers: str) -> Call:
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return cls(path, named, _encode(body))


def fill(captured: Captured, key: str, ids: Sequence[str], deliveries: int) -> Publish:
    """Return a request with this key and these ids."""

    def named(data: bytes) -> bytes:
        return _PLACE.sub(lambda found: ids[int(found[1])].encode(), data)

    body = named(captured.body)
    head = named(captured.head).replace(KEY.encode(), key.encode())
    head = re.sub(rb"(?i)(\ncontent-length: *)\d+", rb"\g<1>%d" % len(body), head)
    return Publish(head + body, deliveries, len(head) if captured.writes_separately else 0)


# The SDK


Broadcast = Callable[[AsyncBroadcaster], Awaitable[Any]]


def _to_user(broadcaster: AsyncBroadcaster) -> Awaitable[Any]:
    return broadcaster.broadcast_success(place(), TYPE, data(), id=ID)


def _to_both(broadcaster: AsyncBroadcaster) -> Awaitable[Any]:
    return broadcaster.broadcast_success(place(), TYPE, data(), place(), id=ID)


def sdk_publish(kind: str) -> Captured:
    """Return the request of one notification to a room of this kind: ``user``, ``request``, …"""
    if kind == "user":
        return sdk(_to_user)
    return sdk(_to_room(kind))


def sdk_publish_to_both() -> Captured:
    """Return the request of one notification to a user's and a request's room."""
    return sdk(_to_both)


@functools.cache
def _to_room(kind: str) -> Broadcast:
    message = {"id": ID, "type": TYPE, "data": data(), "status": STATUS}
    return lambda broadcaster: broadcaster.broadcast(f"{kind}_{place()}", message)


@functools.cache
def sdk(broadcast: Broadcast) -> Captured:
    """Return the request of a broadcast with the SDK, on a connection that is open."""
    with Capture() as capture:

        async def publish() -> None:
            async with AsyncBroadcaster(capture.url, KEY) as broadcaster:
                for _ in range(2):
                    (await broadcast(broadcaster)).raise_for_status()

        _run(publish())
        return capture.requests[-1]


@functools.cache
def sdk_batch(kind: str, count: int) -> Captured:
    """Return the request of the SDK for broadcasts that were made while another was in flight."""
    message = {"id": ID, "type": TYPE, "data": data(), "status": STATUS}
    with Capture() as capture:

        async def publish() -> None:
            capture.answers.clear()
            async with AsyncBroadcaster(capture.url, KEY) as broadcaster:
                rooms = [f"{kind}_{place(number)}" for number in range(count)]
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(broadcaster.broadcast(rooms[0], message))
                    await asyncio.to_thread(capture.received.wait, _TIMEOUT_S)
                    for room in rooms:
                        tasks.create_task(broadcaster.broadcast(room, message))
                    await asyncio.sleep(0)
                    capture.answers.set()

        _run(publish())
        (_, batch) = capture.requests
        return batch


@functools.cache
def sdk_reply(kind: str, count: int) -> Sequence[Captured]:
    """Return the requests of the SDK for this number of pieces of a growing text, which the last
    one ends. Place 0 is the room's id, place 1 the name of the text.
    """
    with Capture() as capture:

        async def publish() -> None:
            async with AsyncBroadcaster(capture.url, KEY) as broadcaster:
                for number in range(count):
                    message = {
                        "id": ID,
                        "type": f"{TYPE}.delta",
                        "data": {"delta": PIECE, "index": number},
                        "fold": {
                            "key": f"{place(1)}:text", "mode": "append",
                            "offset": number * len(PIECE), "final": number == count - 1,
                        },
                    }  # fmt: skip
                    (await broadcaster.broadcast(f"{kind}_{place()}", message)).raise_for_status()

        _run(publish())
        return tuple(capture.requests)


def _run(publish: Awaitable[None]) -> None:
    async def within_time() -> None:
        async with asyncio.timeout(_TIMEOUT_S):
            await publish

    asyncio.run(within_time())


# HTTP clients without it


@functools.cache
def raw(client: str, call: Call) -> Captured:
    """Return the request of this client.

    Raises:
        MissingError: the client is not installed.
    """
    with Capture() as capture:
        RAW[client](capture.url + call.path, call)
        return capture.requests[-1]


def _httpx(url: str, call: Call) -> None:
    with httpx.Client(trust_env=False) as client:
        for _ in range(2):
            client.post(url, headers=dict(call.headers), json=json.loads(call.body))


def _requests(url: str, call: Call) -> None:
    try:
        import requests  # of the development environment
    except ImportError:
        raise MissingError("requests is not installed") from None
    with requests.Session() as session:
        session.trust_env = False
        for _ in range(2):
            session.post(
                url, headers=dict(call.headers), json=json.loads(call.body), timeout=_TIMEOUT_S
            )


def _node(url: str, call: Call) -> None:
    _command([_installed(str(Path(sys.executable).with_name("node"))), "fetch.mjs"], url, call)


def _go(url: str, call: Call) -> None:
    with tempfile.TemporaryDirectory(prefix="synap-bench-go-") as folder:
        program = Path(folder) / "post"
        _command([_installed("go"), "build", "-o", str(program), "post.go"], url, call)
        _command([str(program)], url, call)


def _curl(url: str, call: Call) -> None:
    headers = [("Content-Type", "application/json"), *call.headers]
    options = [f"-H{name}: {value}" for name, value in headers]
    once = ["--silent", "--show-error", "--output", "/dev/null", *options, "--data", call.body, url]
    _command([_installed("curl"), *once, "--next", *once], url, call)


RAW: Mapping[str, Callable[[str, Call], None]] = {
    "httpx": _httpx,
    "requests": _requests,
    "Node's fetch": _node,
    "Go": _go,
    "curl": _curl,
}
"""Each sends a call twice on one connection."""


def _installed(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"{Path(name).name} is not installed")
    return found


def _command(command: Sequence[str], url: str, call: Call) -> None:
    """Run a program that reads the call from its standard input."""
    given = {"url": url, "headers": dict(call.headers), "body": call.body}
    try:
        subprocess.run(
            command,
            input=json.dumps(given),
            text=True,
            cwd=CLIENTS,
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        raise MissingError(f"{Path(command[0]).name}: {error.stderr[-200:]}") from error


def _encode(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
