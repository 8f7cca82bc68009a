"""Actions of a connection with many rooms, and notifications with ``fold`` and ``job``."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from pydantic import SecretStr

from synap_realtime.protocol.control import MAX_ROOMS, CloseCode, ControlFrame
from synap_realtime.protocol.job_state import STATUSES
from synap_realtime.server.app import Node, create_node
from synap_realtime.server.auth.keys import KeyRing
from synap_realtime.server.auth.tokens import Authenticator
from synap_realtime.server.config import load_settings
from synap_realtime.server.messages import Request, Response
from synap_realtime.server.rooms.backlog import UnbatchedSink
from synap_realtime.server.rooms.connection import Connection
from synap_realtime.server.stores.base import Entry
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.tokens import mint_token
from tests.support.clocks import VirtualTimeLoop
from tests.support.folding import Texts

from ..target import Target, require

SECRET = "fuzz-secret-0123456789abcdef-0123456789"
API_KEY = "fuzz-key-0123456789abcdef-0123456789"
ROOM, USER = "user_1", "1"
TOKENS = (b"$TOKEN", b"$OTHER", b"$FORGED")
"""Inputs contain these instead of tokens, which the target mints: of the user of the connection,
of another user, and one with a wrong signature."""

PUBLISH = b"+"
"""A line that begins so is a notification to the room; other lines are messages of the client."""

BLOCK, READ, WAIT = b"!block", b"!read", b"!wait"
"""Lines by which the peer stops reading and reads again, and by which time passes."""

_CODES = {
    "invalid_request", "too_many_rooms", "already_subscribed", "not_subscribed", "unauthorized",
    "forbidden", "rate_limited", "unavailable",
}  # fmt: skip


class Peer(UnbatchedSink):
    """The client of a connection.

    Attributes:
        is_writable: whether it reads.
        code: with which the server has closed the connection.
        texts: what it shows of the room.
    """

    def __init__(self) -> None:
        self.is_writable = True
        self.code: CloseCode | None = None
        self.texts = Texts()

    def send(self, entry: Entry) -> bool:
        require(self.is_writable, "nothing is written to a peer that does not read")
        wire = json.loads(entry.text)
        if wire["room"] == ROOM:
            self.texts.apply(wire)
        return True

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None:
        require(self.is_writable, "nothing is written to a peer that does not read")
        data = json.loads(frame.encoded())["data"]
        if frame.type == "synap.error":
            require(data["code"] in _CODES and data["details"], f"{data} names the error")
            require(SECRET not in frame.encoded() and len(frame.encoded()) < 1000, "it is short")

    def close(self, code: CloseCode) -> None:
        self.code = code


class RoomsTarget(Target):
    """Messages of a client and notifications, a line each."""

    name = "rooms"
    max_bytes = 2048
    fixed_mutations = 6_000

    def __init__(self) -> None:
        self._settings = load_settings(
            api_keys={"fuzz": SecretStr(API_KEY)}, token_secrets=(SecretStr(SECRET),),
            publishes_per_s=0, publish_bytes_per_s=0, requests_per_s=0, drain_timeout_s=0,
        )  # fmt: skip
        common: dict[str, Any] = {
            "rooms": ["*"], "scope": "subscribe presence", "secret": SECRET, "expires_in_s": 43_200
        }  # fmt: skip
        self._tokens = [mint_token(USER, **common), mint_token("2", **common)]
        self._tokens.append(self._tokens[0][:-4] + "AAAA")
        self._loop = VirtualTimeLoop()
        authenticator = Authenticator(
            KeyRing(token_secrets=[SECRET]), leeway_s=10, max_lifetime_s=86_400
        )
        self._claims = self._loop.run_until_complete(authenticator.authenticate(self._tokens[0]))
        self._faults: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self._faults.append(context))

    def check(self, data: bytes) -> None:
        self._faults.clear()
        self._loop.run_until_complete(self._check(data))
        require(not self._faults, f"no task has failed: {self._faults}")

    async def _check(self, data: bytes) -> None:
        for name, token in zip(TOKENS, self._tokens, strict=True):
            data = data.replace(name, token.encode())
        node = create_node(self._settings, MemoryStore())
        peer, witness = Peer(), Peer()
        connection = await self._connect(node, peer)
        watching = await self._connect(node, witness)
        watching.on_client_message(json.dumps({"action": "subscribe", "room": ROOM}))
        await asyncio.sleep(0.1)
        for line in data.split(b"\n"):
            await self._execute(node, connection, peer, line)
            require(len(connection.sessions()) <= MAX_ROOMS, "rooms are bounded")
        peer.is_writable = True
        connection.on_writable()
        await asyncio.sleep(0.1)
        await self._check_log(node, witness)
        for each in (connection, watching):
            node.sessions.close(each)
        await asyncio.sleep(0.1)
        require(node.budgets.backlogs.bytes == 0, "nothing is held for a peer that has gone")
        require(not node.sessions.deliveries(), "no session is left")
        await node.close()

    async def _connect(self, node: Node, peer: Peer) -> Connection:
        connection = await node.sessions.open_connection(self._claims, None, transport="websocket")
        await connection.run(None, peer)
        return connection

    async def _execute(self, node: Node, connection: Connection, peer: Peer, line: bytes) -> None:
        if line.startswith(PUBLISH):
            path = f"/rooms/{ROOM}/broadcast"
            response = await self._request(node, "POST", path, line[1:])
            known = (200, 400, 409, 413)
            require(response.status in known, f"{response.status} {response.body!r}")
        elif line == BLOCK:
            peer.is_writable = False
            connection.on_write_blocked()
        elif line == READ:
            peer.is_writable = True
            connection.on_writable()
        elif line == WAIT:
            await asyncio.sleep(1)
        elif peer.code is None:
            with contextlib.suppress(UnicodeDecodeError):  # closed by the codec
                connection.on_client_message(line.decode())
        await asyncio.sleep(0)

    async def _check_log(self, node: Node, witness: Peer) -> None:
        """The log has the texts that a subscriber shows, and the records of the jobs."""
        require(witness.code is None, "another connection is not closed")
        history = await self._request(node, "GET", f"/rooms/{ROOM}/history", b"", self._tokens[0])
        latest: dict[str, dict[str, Any]] = {}
        for wire in json.loads(history.body)["notifications"]:
            if (fold := wire.get("fold")) is not None:
                latest[fold["key"]] = wire
        for key, wire in latest.items():
            if wire["fold"]["mode"] == "append":
                shown = witness.texts.by_key.get(key)
                require(shown == wire["data"]["delta"], f"{key!r}: {shown!r} is {wire}")
        jobs = await self._request(node, "GET", f"/users/{USER}/jobs", b"", self._tokens[0])
        require(jobs.status == 200, f"{jobs.status} {jobs.body!r}")
        for job in json.loads(jobs.body)["jobs"]:
            require(job["status"] in STATUSES, f"{job}")

    async def _request(
        self, node: Node, method: str, path: str, body: bytes, credential: str = API_KEY
    ) -> Response:
        headers = {"authorization": f"Bearer {credential}", "content-type": "application/json"}
        request = Request(method, path, "", headers, "127.0.0.1")
        request.content = body
        response = await node.router.handle(request)
        assert isinstance(response, Response)
        return response

    def close(self) -> None:
        self._loop.close()


TARGET = RoomsTarget
