"""``synap-realtime serve`` as an operator runs it: a process, its settings, its errors."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.sync.client import connect

from synap_realtime import ConfigurationError, __version__
from synap_realtime.cli.serve import default_text
from synap_realtime.loopback import is_loopback
from synap_realtime.server.config import ServerSettings, load_settings
from tests.support.certificates import certify
from tests.support.command_line import COMMAND, run_blocking
from tests.support.timeouts import TIMEOUT_S


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", *arguments],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        first, second = process.stderr.readline(), process.stderr.readline()
        assert "memory store" in first
        found = re.search(r"listening on (https?://\S+)", second)
        assert found, second
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def test_serves_and_stops_on_sigterm() -> None:
    with served() as (process, url):
        note = {"type": "a", "data": {}, "id": "n1"}
        with connect(url.replace("http", "ws") + "/rooms/user_1/subscribe") as ws:
            assert httpx.post(f"{url}/rooms/user_1/broadcast", json=note).status_code == 200
            assert '"id":"n1"' in str(ws.recv(timeout=TIMEOUT_S))
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0
        assert "Traceback" not in errors
        assert errors.splitlines()[-1].endswith(": stopped")


def test_serves_tls_with_a_certificate(tmp_path: Path) -> None:
    certified = certify(tmp_path)
    files = ["--tls-cert", str(certified.chain), "--tls-key", str(certified.key)]
    with served(*files) as (process, url):
        assert url.startswith("https://127.0.0.1:")
        note = {"type": "a", "data": {}, "id": "n1"}
        tls = certified.client()
        with connect(url.replace("http", "ws") + "/rooms/user_1/subscribe", ssl=tls) as ws:
            answer = httpx.post(f"{url}/rooms/user_1/broadcast", json=note, verify=tls)
            assert answer.status_code == 200
            assert '"id":"n1"' in str(ws.recv(timeout=TIMEOUT_S))
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0
        assert "Traceback" not in errors


async def test_an_answer_does_not_wait_for_an_ack(rooms: str) -> None:
    """An answer takes about 1 ms; with Nagle's algorithm most take 40 ms."""
    where = urlsplit(rooms)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    took_s = []
    for _ in range(50):
        begun = time.monotonic()
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b'{"status":"ok"}')
        took_s.append(time.monotonic() - begun)
    assert statistics.median(took_s) < 0.035
    writer.close()
    await writer.wait_closed()


def test_each_option_is_also_in_the_environment() -> None:
    with served(SYNAP_REALTIME_RETENTION_COUNT="1") as (_, url):
        for id in ("n1", "n2"):
            note = {"type": "a", "data": {}, "id": id}
            httpx.post(f"{url}/rooms/user_1/broadcast", json=note)
        with connect(url.replace("http", "ws") + "/rooms/user_1/subscribe") as ws:
            assert '"id":"n2"' in str(ws.recv(timeout=TIMEOUT_S))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port (SYNAP_REALTIME_PORT)"),
        (["--retention-count", "0"], "--retention-count"),
        (["--log-level", "loud"], "--log-level"),
        (["--allowed-origins", "example.com"], "expected scheme://host[:port]"),
        (["--allowed-origins", "https://a.example,https://b.example/x"], "scheme://host"),
        (["--allowed-origins", "https://*.example"], "expected scheme://host[:port]"),
        (["--allowed-origins", "null"], "expected scheme://host[:port]"),
        (["--allowed-origins", "*"], "expected scheme://host[:port]"),
        (["--tls-cert", "chain.pem"], "needs --tls-key (SYNAP_REALTIME_TLS_KEY)"),
        (["--tls-cert", "none.pem", "--tls-key", "key.pem"], "none.pem: No such file"),
        (["--host", "0.0.0.0"], "authentication is not configured"),
        (["--host", "::"], "authentication is not configured"),
    ],
)
def test_invalid_setting_is_a_one_line_error(arguments: list[str], said: str) -> None:
    done = run_blocking("serve", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_invalid_variable_is_named() -> None:
    done = run_blocking("serve", SYNAP_REALTIME_PORT="many")
    assert done.returncode == 2
    assert "SYNAP_REALTIME_PORT" in done.stderr


def test_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_blocking("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "could not listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_and_the_variables_are_shown() -> None:
    assert run_blocking("--version").stdout.strip() == __version__
    assert "SYNAP_REALTIME_PORT" in run_blocking("serve", "--help").stdout


def test_help_shows_the_default_of_each_setting() -> None:
    text = " ".join(run_blocking("serve", "--help").stdout.split())
    for name, field in ServerSettings.model_fields.items():
        variable = f"[env: SYNAP_REALTIME_{name.upper()}]"
        if name in ("token_secrets", "api_keys"):
            assert variable not in text
        elif field.default in (None, ()):
            assert f". {variable}" in text
        else:
            assert f" Default: {default_text(name, field.default)}. {variable}" in text
    assert " Default: 50. [env: SYNAP_REALTIME_MAX_CONNECTIONS_PER_USER]" in text
    assert " Default: 67108864 (64 MiB). [env: SYNAP_REALTIME_MAX_REQUEST_BYTES]" in text
    assert " Default: 7776000 (90 days). [env: SYNAP_REALTIME_TOKEN_MAX_LIFETIME_S]" in text


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_PORT", "1111")
    assert load_settings().port == 1111
    assert load_settings(port=2222).port == 2222
    with pytest.raises(ConfigurationError, match="--nonsense"):
        load_settings(nonsense=1)


def test_missing_server_extra_names_the_install_command() -> None:
    code = "import sys; sys.modules['httptools'] = None; import synap_realtime.{}"
    done = subprocess.run(
        [sys.executable, "-c", code.format("server")], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == (
        "synap_realtime.extras.MissingExtraError: the room server needs httptools: "
        'pip install "synap-realtime[server]"'
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format("cli as cli; sys.argv[1:] = ['serve']; cli.main()")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("pip install") == 1
    assert len(done.stderr.splitlines()) == 1


def test_origins_as_browsers_send_them() -> None:
    """A port that the scheme implies is never in an Origin."""
    given = (
        "https://app.example.com/, http://10.0.0.1:3000,http://[fd00::1]:80, tauri://localhost,"
        "https://a.example:443, http://a.example:443/, https://a.example:80, https://[fd00::443]"
    )
    origins = load_settings(allowed_origins=given).allowed_origins
    assert origins == (
        "https://app.example.com",
        "http://10.0.0.1:3000",
        "http://[fd00::1]",
        "tauri://localhost",
        "https://a.example",
        "http://a.example:443",
        "https://a.example:80",
        "https://[fd00::443]",
    )


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
     ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_recognizes_loopback_addresses(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
