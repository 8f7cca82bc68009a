"""Autobahn's cases, against the echo server on the room server's WebSocket code.

The client here knows nothing of that code: it masks each frame with another mask, and reads what
comes back byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import random
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.timeouts import TIMEOUT_S

from .cases import CLOSE, Case, Fragments, Frame, Payload, Quiet, Reply, RoundTrips, Step, cases

CASES = {case.number: case for case in cases()}

ROOT = Path(__file__).parents[2]

QUIET_S = 0.05  # a slow machine sees less in it, and no failure that is none


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    command = [sys.executable, "-m", "tests.autobahn.echo", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            yield int(line.rpartition(":")[2])
        finally:
            server.terminate()


class Client:
    """One WebSocket.

    Args:
        seed: of its masks.
    """

    def __init__(self, port: int, seed: str) -> None:
        self._random = random.Random(seed)
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._from_server = self._socket.makefile("rb")
        self._unsent = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._from_server.close()
        self._socket.close()

    def shake_hands(self) -> None:
        key = base64.b64encode(self._random.randbytes(16)).decode()
        self._socket.sendall(
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self._from_server.readline()
        guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        digest = hashlib.sha1((key + guid).encode(), usedforsecurity=False).digest()
        accept = base64.b64encode(digest)
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert accept in answer

    def send(self, frame: Frame) -> None:
        data = self._encoded(frame)
        if frame.cuts:
            self._send_up_to_cuts(data, len(whole(frame.payload)), frame.cuts)
        elif frame.chop:
            self.flush()
            for at in range(0, len(data), frame.chop):
                self._socket.sendall(data[at : at + frame.chop])
        else:
            self._unsent += data
            if frame.alone or len(self._unsent) > 65536:
                self.flush()

    def flush(self) -> None:
        self._socket.sendall(bytes(self._unsent))
        self._unsent.clear()

    def require_quiet(self) -> None:
        self.flush()
        readable, _, _ = select.select([self._socket], [], [], QUIET_S)
        assert not readable, f"too early: {self._from_server.read1()!r}"

    def receive(self) -> tuple[int, bytes]:
        """The next frame: its first byte, and its payload. A server's has no mask."""
        first, size = self._read(2)
        if size == 126:
            size = int.from_bytes(self._read(2), "big")
            assert size >= 126
        elif size == 127:
            size = int.from_bytes(self._read(8), "big")
            assert size >= 65536
        assert size < 2**63
        return first, self._read(size)

    def require_end(self) -> None:
        assert self._from_server.read() == b""

    def _read(self, size: int) -> bytes:
        data = self._from_server.read(size)
        assert len(data) == size, f"the connection ended after {data[:100]!r}"
        return data

    def _encoded(self, frame: Frame) -> bytes:
        payload = whole(frame.payload)
        size = len(payload)
        head = bytes([frame.is_last << 7 | frame.reserved << 4 | frame.opcode])
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += b"\xfe" + size.to_bytes(2, "big")
        else:
            head += b"\xff" + size.to_bytes(8, "big")
        mask = self._random.randbytes(4)
        key = (mask * (size // 4 + 1))[:size]
        masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
        return head + mask + masked.to_bytes(size, "big")

    def _send_up_to_cuts(self, data: bytes, size: int, cuts: tuple[int, ...]) -> None:
        head = len(data) - size
        sent = 0
        for cut in cuts:
            if sent:
                self.require_quiet()
            self._socket.sendall(data[sent : head + cut])
            sent = head + cut


def whole(payload: Payload) -> bytes:
    return payload if isinstance(payload, bytes) else payload.whole()


def require_reply(client: Client, opcode: int, payload: Payload) -> None:
    client.flush()
    first, data = client.receive()
    assert first == 0x80 | opcode
    expected = whole(payload)
    same = data == expected  # pytest would compare 16 MiB letter by letter
    assert same, (len(data), data[:100], len(expected), expected[:100])


def take(client: Client, step: Step) -> None:
    if isinstance(step, Frame):
        client.send(step)
    elif isinstance(step, Fragments):
        for frame in step.frames():
            client.send(frame)
    elif isinstance(step, Reply):
        require_reply(client, step.opcode, step.payload)
    elif isinstance(step, RoundTrips):
        for _ in range(step.times):
            client.send(Frame(step.opcode, step.payload))
            require_reply(client, step.opcode, step.payload)
    else:
        assert isinstance(step, Quiet)
        client.require_quiet()


def require_close(client: Client, case: Case) -> None:
    """The server's close frame, then the end of what it sends, while this side is still open."""
    client.flush()
    first, body = client.receive()
    assert first == 0x80 | CLOSE, (first, body[:100])
    code = int.from_bytes(body[:2], "big") if body else None
    assert code in case.codes
    body[2:].decode()
    client.require_end()


@pytest.mark.parametrize("number", CASES)
def test_case(number: str, port: int) -> None:
    case = CASES[number]
    with Client(port, seed=number) as client:
        client.shake_hands()
        for step in case.steps:
            take(client, step)
        if case.we_close:
            client.send(Frame(CLOSE, b"\x03\xe8"))
        require_close(client, case)


def test_none_is_missing() -> None:
    """So many has the suite in each group."""
    groups = [number.partition(".")[0] for number in CASES]
    assert {group: groups.count(group) for group in dict.fromkeys(groups)} == {
        "1": 16, "2": 11, "3": 7, "4": 10, "5": 20, "6": 145, "7": 37, "9": 54, "10": 1,
    }  # fmt: skip
