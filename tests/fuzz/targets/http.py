"""The HTTP protocol: bytes of a client on one connection, without a socket."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from zlib import crc32

from pydantic import SecretStr
from websockets.protocol import CLIENT, OPEN, Protocol

from synap_realtime.server.app import create_node
from synap_realtime.server.config import ServerSettings, load_settings
from synap_realtime.server.protocols.http1 import Http1Protocol
from synap_realtime.server.protocols.server import ConnectionServer
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.tokens import mint_token

from ..memory_log import MemoryLog
from ..memory_transport import Loop, MemoryTransport
from ..target import RuleBrokenError, Target, chunks_of, require
from .token import API_KEY, SECRET

LINE_BYTES = 1024
"""In the log, for each response and one more."""

MAX_BUFFERED_BYTES = 2 * 1024 * 1024
"""For a client that does not read."""

RENEWED_AFTER = 200
"""Inputs for one server: one that revokes a user would hide what follows."""

PATIENCE_S = 400.0
"""Longer than any of the server's timeouts, one after the other."""

_STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]+")
_FIELD = re.compile(rb"[A-Za-z][A-Za-z-]*: [\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one conversation came to.

    Attributes:
        statuses: of the responses, without 100.
        is_stream: the last one is an event stream or a WebSocket.
        is_cut: the connection ended before all had to be answered: by the client, or by a reset of
            the server that was no timeout.
    """

    statuses: tuple[int, ...]
    is_stream: bool
    is_cut: bool = False


class HttpTarget(Target):
    """All that one client sends. The answers may not depend on how the network splits it."""

    name = "http"
    max_bytes = 8 * 1024
    fixed_mutations = 20_000

    def __init__(self) -> None:
        self._log = MemoryLog(logging.INFO)
        self._server = _Server()
        self._inputs = 0
        self._tokens = make_tokens()

    def check(self, data: bytes) -> None:
        self._inputs += 1
        if self._inputs % RENEWED_AFTER == 0:
            self._server.close()
            self._server = _Server()
        data = with_tokens(data, self._tokens)
        whole = self._converse(self._server, data, "whole")
        way = ("chunks", "chunks", "unread", "half-closed", "reset")[crc32(data) % 5]
        outcome = self._converse(self._server, data, way)
        if not _agree(whole, outcome):
            # Perhaps what was published or revoked before made the difference: not in new servers.
            one, other = _Server(), _Server()
            try:
                whole = self._converse(one, data, "whole")
                outcome = self._converse(other, data, way)
            finally:
                one.close()
                other.close()
            require(_agree(whole, outcome), f"{way}: {outcome} is {whole}")

    def answer(self, data: bytes) -> Outcome:
        """Feed one input to a new server."""
        server = _Server()
        try:
            return self._converse(server, with_tokens(data, self._tokens), "whole")
        finally:
            server.close()

    def _converse(self, server: _Server, data: bytes, way: str) -> Outcome:
        loop = server.loop
        connection = server.connect()
        connection.is_reading_peer = way != "unread"
        for chunk in [data] if way in ("whole", "half-closed", "reset") else chunks_of(data):
            loop.run(connection.feed, chunk)
        if way == "unread":
            require(connection.peak_bytes < MAX_BUFFERED_BYTES, "buffered answers are bounded")
            loop.run(connection.read_on)
        elif way == "half-closed":
            loop.run(connection.end_input)
        elif way == "reset":
            loop.run(connection.drop)
        is_cut = way in ("half-closed", "reset") or connection.is_aborted
        loop.skip(PATIENCE_S)
        outcome = replace(_outcome_of(bytes(connection.output)), is_cut=is_cut)
        if not outcome.is_stream:
            require(connection.is_gone, "a connection that is silent is closed")
        loop.run(connection.end_input)
        loop.skip(PATIENCE_S)
        require(connection.is_gone, "a connection whose peer has gone is closed")
        server.check_idle()
        self._log.check(LINE_BYTES * (len(outcome.statuses) + 1))
        return outcome

    def close(self) -> None:
        self._server.close()
        self._log.close()


def make_tokens() -> dict[bytes, bytes]:
    """Return what stands for a token in an input, and the token: in a file it would expire."""
    day_s = 86_400.0
    user = mint_token("1", secret=SECRET, scope="subscribe presence broadcast", expires_in_s=day_s)
    scope = "admin metrics subscribe broadcast presence"
    ops = mint_token("ops", rooms=["*"], secret=SECRET, scope=scope, expires_in_s=day_s)
    return {b"@user@": user.encode(), b"@ops@": ops.encode()}


def with_tokens(data: bytes, tokens: Mapping[bytes, bytes]) -> bytes:
    for name, token in tokens.items():
        data = data.replace(name, token)
    return data


def fuzz_settings() -> ServerSettings:
    """A server with keys, without rates: what thousands of clients send comes from one."""
    return load_settings(
        api_keys={"fuzz": SecretStr(API_KEY)},
        token_secrets=(SecretStr(SECRET),),
        admin=True,
        drain_timeout_s=0,
        publishes_per_s=0,
        publish_bytes_per_s=0,
        new_connections_per_s=0,
        requests_per_s=0,
        read_bytes_per_s=0,
    )


class _Server:
    """A room server, and what its connections share, on a loop of its own."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.front = self.loop.run_until_complete(self._start())
        self.loop.settle()
        self._tasks = len(asyncio.all_tasks(self.loop))

    async def _start(self) -> ConnectionServer:
        store = MemoryStore(Retention(count=100, max_memory_bytes=1024 * 1024))
        return ConnectionServer(create_node(fuzz_settings(), store))

    def connect(self) -> MemoryTransport:
        """A client connects."""
        connections: list[MemoryTransport] = []

        def connect() -> None:
            connections.append(MemoryTransport(self.loop, Http1Protocol(self.front.state)))

        self.loop.run(connect)
        return connections[0]

    def check_idle(self) -> None:
        """Nothing of a connection is left."""
        require(not self.loop.problems, f"the loop's exception handler: {self.loop.problems}")
        require(not self.front.state.connections, "no connection is left")
        tasks = len(asyncio.all_tasks(self.loop)) - self._tasks
        require(tasks <= 0, f"{tasks} tasks are left")

    def close(self) -> None:
        self.loop.run_until_complete(self.front.node.close())
        self.loop.close()


def _agree(whole: Outcome, other: Outcome) -> bool:
    one, two = whole.statuses, other.statuses
    if whole.is_cut or other.is_cut:  # what is not answered by then never is
        count = min(len(one), len(two))
        one, two = one[:count], two[:count]
    if one == two:
        return whole.is_stream == other.is_stream or whole.is_cut or other.is_cut
    # A request whose body turns out to be malformed may have been answered before.
    is_last_malformed = 400 in (*one[-1:], *two[-1:])
    return len(one) == len(two) and one[:-1] == two[:-1] and is_last_malformed


def _outcome_of(output: bytes) -> Outcome:
    """
    Raises:
        RuleBrokenError: it is not HTTP/1.1 (RFC 9112).
    """
    statuses: list[int] = []
    at = 0
    while at < len(output):
        end = output.find(b"\r\n\r\n", at)
        require(end >= 0, f"a response has a whole head: {output[at : at + 200]!r}")
        line, *fields = output[at:end].split(b"\r\n")
        found = _STATUS.fullmatch(line)
        if found is None:
            raise RuleBrokenError(f"no status line: {line!r}")
        for field in fields:
            require(_FIELD.fullmatch(field), f"no header field: {field!r}")
        at = end + 4
        status = int(found[1])
        if status == 100:
            continue
        statuses.append(status)
        head = {name.lower(): value for name, _, value in (f.partition(b": ") for f in fields)}
        if status == 101:
            _check_frames(output[at:])
            return Outcome(tuple(statuses), is_stream=True)
        is_event_stream = head.get(b"content-type", b"").startswith(b"text/event-stream")
        if is_event_stream and b"content-length" not in head:
            return Outcome(tuple(statuses), is_stream=True)
        length = int(head.get(b"content-length", b"0"))
        if output[at : at + 9] == b"HTTP/1.1 " or at == len(output):  # the answer to a HEAD, or 204
            continue
        require(at + length <= len(output), "a response has all of its body")
        at += length
    return Outcome(tuple(statuses), is_stream=False)


def _check_frames(data: bytes) -> None:
    """RFC 6455, read by another implementation."""
    protocol = Protocol(CLIENT, state=OPEN, max_size=None)
    protocol.receive_data(data)
    require(protocol.parser_exc is None, f"frames of the server: {protocol.parser_exc!r}")


TARGET = HttpTarget
