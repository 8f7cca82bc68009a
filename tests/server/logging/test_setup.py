"""The server's log, as an operator's programs read it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import jwt
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from synap_realtime.server.logging.events import MAX_LINES_PER_S, RateLimitFilter
from synap_realtime.tokens import mint_token
from tests.support.command_line import COMMAND
from tests.support.timeouts import TIMEOUT_S


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    """The server's own lines, and those that come with a traceback."""
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--log-format", "json"],
        env={k: v for k, v in os.environ.items() if not k.startswith("SYNAP_REALTIME_")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if "listening on" in lines[-1]["message"]:
                process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert lines[0]["message"].startswith("memory store")
    assert lines[-1]["message"] == "stopped"
    for entry in lines:
        assert entry["level"] == "INFO"
        assert entry["logger"] == "synap_realtime.server.serve"
        assert datetime.fromisoformat(entry["timestamp"]).tzinfo is not None


def test_traceback_is_part_of_its_line() -> None:
    code = (
        "import logging; from synap_realtime.server.logging.setup import configure;"
        "configure('info', 'json');"
        "logging.getLogger('x').error('%s\\n%s', 'é', 'two', exc_info=ValueError('why'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    (line,) = done.stderr.decode().splitlines()
    entry = json.loads(line)
    assert entry["message"] == "é\ntwo"
    assert "ValueError: why" in entry["exc_info"]


def test_unknown_format_is_a_one_line_error() -> None:
    done = subprocess.run(
        [COMMAND, "serve", "--log-format", "xml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--log-format (SYNAP_REALTIME_LOG_FORMAT)" in done.stderr
    assert "Traceback" not in done.stderr


SECRET, JOBS, OPERATOR = "s" * 32, "j" * 43, "o" * 43
NOTE = {"type": "note.completed", "data": {"text": "for the user alone"}, "id": "n1"}


class Server:
    """A process whose lines are kept."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._process = process
        while not (found := re.search(r"listening on (http://[\d.:]+)", self._read())):
            pass
        self.url = found[1]

    def _read(self) -> str:
        assert self._process.stderr is not None
        self.lines.append(self._process.stderr.readline())
        assert self.lines[-1], "the server has ended"
        return self.lines[-1]

    def next(self, message: str) -> str:
        """The next line with this message."""
        while (
            f'"message": "{message}"' not in self._read() and f": {message} " not in self.lines[-1]
        ):
            pass
        return self.lines[-1]

    def stop(self) -> None:
        """End it, and keep the rest of its lines."""
        self._process.terminate()
        self.lines += self._process.communicate(timeout=TIMEOUT_S)[1].splitlines()

    def post(self, path: str, key: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, headers={"Authorization": f"Bearer {key}"}, json=body)

    def subscribe(self, token: str, query: str = "") -> str:
        return f"{self.url.replace('http', 'ws')}/rooms/user_1/subscribe?token={token}{query}"


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    file = folder / "keys.toml"
    file.write_text(
        f'token_secrets = ["{SECRET}"]\n[api_keys]\njobs = "{JOBS}"\n'
        f'operator = {{ key = "{OPERATOR}", scope = "admin" }}\n'
    )
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--keys-file", str(file), *options],
        env={k: v for k, v in os.environ.items() if not k.startswith("SYNAP_REALTIME_")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.communicate()


def test_connections_publishes_and_refusals_have_their_ids(tmp_path: Path) -> None:
    with serving(tmp_path, "--log-format", "json", "--log-level", "debug") as server:

        def members(message: str) -> dict[str, object]:
            entry = json.loads(server.next(message))
            assert entry.pop("logger") == "synap_realtime.server.logging.events"
            return {k: v for k, v in entry.items() if k not in ("timestamp", "message")}

        with connect(server.subscribe(mint_token("1", secret=SECRET), "&device=phone")):
            here = {
                "level": "DEBUG", "user": "1", "room": "user_1", "device": "phone",
                "address": "127.0.0.1",
            }  # fmt: skip
            assert members("connected") == {**here, "transport": "websocket"}
            assert server.post("/rooms/user_1/broadcast", JOBS, NOTE).status_code == 200
            assert members("published") == {
                "level": "DEBUG", "key": "jobs", "room": "user_1", "id": "n1", "subscribers": 1,
                "duplicate": False,
            }  # fmt: skip
        ended = members("disconnected")
        assert 0 <= float(str(ended.pop("lasted_s"))) < 20
        assert ended == {**here, "reason": "gone"}

        assert server.post("/rooms/user_1/broadcast", "k" * 43, NOTE).status_code == 401
        assert members("rejected") == {
            "level": "INFO", "room": "user_1", "address": "127.0.0.1", "code": "unauthorized",
            "details": "unknown key: not a key of this server, and not a JWT",
        }  # fmt: skip
        assert server.post("/rooms/user_1/broadcast", JOBS, {"type": "x"}).status_code == 400
        assert members("rejected") == {
            "level": "INFO", "key": "jobs", "room": "user_1", "address": "127.0.0.1",
            "code": "invalid_request", "details": "Invalid message format. Required: type, data",
        }  # fmt: skip
        batch = {"notifications": [{**NOTE, "rooms": []}]}
        assert server.post("/broadcast", JOBS, batch).status_code == 200
        assert members("rejected")["key"] == "jobs"

        with connect(server.subscribe(mint_token("1", secret=SECRET))) as listener:
            assert server.post("/revoke", OPERATOR, {"user": "1"}).status_code == 200
            assert members("revoked") == {
                "level": "INFO", "key": "operator", "revoked_user": "1", "closed": 1,
            }  # fmt: skip
            with pytest.raises(ConnectionClosed):
                listener.recv(timeout=TIMEOUT_S)
        ended = members("disconnected")
        assert (ended["level"], ended["code"], ended["reason"]) == ("INFO", 4504, "revoked")


def test_text_line_ends_with_its_fields(tmp_path: Path) -> None:
    """Also when a user's name contains line breaks."""
    hostile = "1\u20282026-01-01 INFO x: all is well"  # a line separator
    with serving(tmp_path, "--log-level", "debug") as server:
        claims = {
            "sub": hostile,
            "rooms": ["user_1"],
            "scope": "subscribe",
            "exp": time.time() + 60,
        }
        with connect(server.subscribe(jwt.encode(claims, SECRET))):
            line = server.next("connected")
    assert line.endswith(
        ' connected user="1\\u20282026-01-01 INFO x: all is well" room=user_1 address=127.0.0.1 '
        "transport=websocket\n"
    )


def test_unauthenticated_clients_cannot_fill_the_disk(tmp_path: Path) -> None:
    with serving(tmp_path) as server, httpx.Client() as client:
        begun = time.monotonic()
        asked = 0
        while asked < 4 * MAX_LINES_PER_S or time.monotonic() < begun + 1.1:
            assert client.get(f"{server.url}/rooms/user_1/history").status_code == 401
            asked += 1
        seconds = time.monotonic() - begun
        server.stop()
    rejected = [line for line in server.lines if ": rejected " in line]
    assert len(rejected) <= MAX_LINES_PER_S * (seconds + 2)  # of the first and the last, a part
    assert any(" suppressed=" in line for line in rejected)


def test_invalid_requests_cannot_fill_the_disk(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        where = urlsplit(server.url)
        begun = time.monotonic()
        for _ in range(4 * MAX_LINES_PER_S):
            with socket.create_connection((where.hostname or "", where.port or 0)) as peer:
                peer.sendall(b"nonsense\r\n\r\n")
                assert peer.recv(12) == b"HTTP/1.1 400"
        seconds = time.monotonic() - begun
        server.stop()
    invalid = [line for line in server.lines if "Invalid HTTP request" in line]
    assert 0 < len(invalid) <= MAX_LINES_PER_S * (seconds + 1)


def test_pipelined_request_is_logged_without_the_previous_user(tmp_path: Path) -> None:
    """Pipelined requests share a task's context."""
    with serving(tmp_path, "--log-format", "json") as server:
        where = urlsplit(server.url)
        asked = "GET /rooms/user_1/history HTTP/1.1\r\nHost: x\r\n%s\r\n"
        token = mint_token("1", secret=SECRET)
        with socket.create_connection((where.hostname or "", where.port or 0)) as peer:
            peer.sendall((asked % f"Authorization: Bearer {token}\r\n" + asked % "").encode())
            rejected = json.loads(server.next("rejected"))
    assert rejected["code"] == "unauthorized"
    assert "user" not in rejected


def lines_of(limit: RateLimitFilter, count: int, **members: object) -> int:
    """How many of so many records with these members pass."""
    passed = 0
    for _ in range(count):
        record = logging.LogRecord("x", logging.INFO, "", 0, "rejected", (), None)
        vars(record).update(members)
        passed += bool(limit.filter(record))
    return passed


def test_one_caller_cannot_suppress_lines_of_others() -> None:
    limit = RateLimitFilter(50, 10, clock=lambda: 1.0)
    assert lines_of(limit, 1000, code="forbidden", address="203.0.113.7") == 10
    assert lines_of(limit, 1, code="forbidden", address="203.0.113.8") == 1
    assert lines_of(limit, 1, code="forbidden", address="203.0.113.7", user="1") == 1
    assert lines_of(limit, 1, code="forbidden", key="jobs") == 1


def test_flood_of_one_kind_suppresses_no_other() -> None:
    limit = RateLimitFilter(50, 10, clock=lambda: 1.0)
    passed = sum(
        lines_of(limit, 1, code="unauthorized", address=f"2001:db8::{n:x}") for n in range(1000)
    )
    assert passed == 50
    assert lines_of(limit, 1, code="unavailable", address="203.0.113.7") == 1


def test_lines_of_all_kinds_together_are_bounded() -> None:
    limit = RateLimitFilter(50, 10, clock=lambda: 1.0)
    passed = sum(
        lines_of(limit, 1, code=n % 1000, address=f"2001:db8::{n:x}") for n in range(20_000)
    )
    assert passed <= 4 * 50 + 60


async def test_suppressed_lines_are_summarized_without_further_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flood")
    logger, limit = logging.getLogger("flood"), RateLimitFilter(2)
    logger.addFilter(limit)
    try:
        for _ in range(10):
            logger.info("rejected", extra={"code": "forbidden", "address": "203.0.113.7"})
        async with asyncio.timeout(TIMEOUT_S):
            while not hasattr(caplog.records[-1], "suppressed"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        logger.removeFilter(limit)
    summary = caplog.records[-1]
    assert (summary.message, vars(summary)["code"]) == ("rejected", "forbidden")
    assert len(caplog.records) - 1 + vars(summary)["suppressed"] == 10


def test_suppressed_lines_are_counted() -> None:
    now = 10.0
    limit = RateLimitFilter(3, clock=lambda: now)

    def passes(level: int = logging.INFO) -> bool | int:
        record = logging.LogRecord("x", level, "", 0, "rejected", (), None)
        return limit.filter(record) and getattr(record, "suppressed", True)

    assert [passes() for _ in range(5)] == [True, True, True, False, False]
    assert passes(logging.DEBUG)
    now = 11.0
    assert [passes() for _ in range(2)] == [2, True]
    now = 12.0
    assert passes() is True
