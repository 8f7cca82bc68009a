"""The addresses that ``--host`` listens on, and accepting when descriptors run out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from synap_realtime import ConfigurationError
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.listeners import authority, bind, holding, port_of
from synap_realtime.server.protocols import server
from synap_realtime.server.protocols.server import ACCEPT_RETRY_S
from synap_realtime.server.serve import running_server
from tests.support.certificates import certify
from tests.support.command_line import COMMAND
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

needs_ipv6 = pytest.mark.skipif(
    not socket.has_dualstack_ipv6(), reason="this machine has no IPv6 beside IPv4"
)


def reaches(address: str, port: int) -> bool:
    try:
        return httpx.get(f"http://{authority(address, port)}/health").status_code == 200
    except httpx.ConnectError:
        return False


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "v4", "v6", "shown"),
    [
        ("::", True, True, "[::]"), ("", True, True, "[::]"), ("0.0.0.0", True, False, "0.0.0.0"),
        ("localhost", True, True, "localhost"), ("127.0.0.1", True, False, "127.0.0.1"),
        ("::1", False, True, "[::1]"),
    ],
)  # fmt: skip
async def test_host_name_is_served_on_all_its_address_families(
    host: str, v4: bool, v6: bool, shown: str
) -> None:
    keys = {"jobs": SecretStr("k" * 43)}
    async with running_server(create_app(load_settings(api_keys=keys)), host) as url:
        assert re.fullmatch(rf"http://{re.escape(shown)}:\d+", url)
        port = urlsplit(url).port
        assert port is not None
        assert await asyncio.to_thread(reaches, "127.0.0.1", port) is v4
        assert await asyncio.to_thread(reaches, "::1", port) is v6


@needs_ipv6
async def test_an_ipv4_peer_of_both_families_has_its_ipv4_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Limits, trusted proxies and the log know it by one address."""
    caplog.set_level("INFO", "synap_realtime.server.logging.events")
    keys = {"jobs": SecretStr("k" * 43)}
    async with (
        running_server(create_app(load_settings(api_keys=keys)), "::") as url,
        httpx.AsyncClient() as client,
    ):
        await client.get(f"http://127.0.0.1:{urlsplit(url).port}/metrics")
    (rejected,) = [each for each in caplog.records if each.message == "rejected"]
    assert getattr(rejected, "address", None) == "127.0.0.1"


async def test_without_keys_only_loopback_is_listened_on() -> None:
    async with running_server(create_app(), "localhost") as url:
        assert await asyncio.to_thread(reaches, "127.0.0.1", urlsplit(url).port or 0)
    for host in ("", "::", "0.0.0.0"):
        with pytest.raises(ConfigurationError, match="authentication is not configured"):
            async with running_server(create_app(), host):
                pass


def test_port_in_use_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"could not listen on 127\.0\.0\.1:{port}"):
            bind("127.0.0.1", port)[0].listen()
        with pytest.raises(ConfigurationError, match=f"{port}"), holding("127.0.0.1", port):
            pass


def test_remote_bind_address_is_a_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="choose an address of this machine"):
        bind("192.0.2.1", 0)


def test_one_port_is_shared_by_both_families() -> None:
    sockets = bind("localhost", 0)
    assert {each.getsockname()[1] for each in sockets} == {port_of(sockets)}
    for each in sockets:
        each.close()


class Log:
    """The lines of a process, as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._process = process
        self._thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._thread.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    def close(self) -> None:
        self._thread.join(20)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def until(self, pattern: str) -> re.Match[str]:
        def find() -> re.Match[str] | None:
            return re.search(pattern, "".join(self.lines))

        with self._news:
            assert self._news.wait_for(find, TIMEOUT_S), self.lines
            found = find()
        assert found
        return found


@contextlib.contextmanager
def served(*options: str, files: int) -> Iterator[tuple[str, Log]]:
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", *options],
        env={k: v for k, v in os.environ.items() if not k.startswith("SYNAP_REALTIME_")},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )
    log = Log(process)
    try:
        yield log.until(r"listening on (\S+)")[1], log
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_out_of_descriptors_accepting_pauses_with_one_log_line(tmp_path: Path, tls: bool) -> None:
    options, verify = [], None
    if tls:
        certified = certify(tmp_path)
        options = ["--tls-cert", str(certified.chain), "--tls-key", str(certified.key)]
        verify = certified.client()
    with served(*options, files=64) as (url, log):
        where = urlsplit(url)
        address = (str(where.hostname), where.port or 0)
        with contextlib.ExitStack() as stack:
            peers = [
                stack.enter_context(socket.create_connection(address, timeout=TIMEOUT_S))
                for _ in range(100)
            ]
            log.until("accepting connections paused")
            time.sleep(1.5 * ACCEPT_RETRY_S)  # it tries again, and finds no more
            for peer in peers:  # none was dropped
                peer.setblocking(False)
                with pytest.raises(BlockingIOError):
                    peer.recv(1)
        for _ in range(3):
            health = httpx.get(f"{url}/health", verify=verify or True, timeout=TIMEOUT_S)
            assert health.status_code == 200
    assert "".join(log.lines).count("accepting connections paused") == 1
    assert "ulimit -n" in "".join(log.lines)
    assert "Traceback" not in "".join(log.lines)


class Failing(socket.socket):
    """A listener whose first calls of accept() fail."""

    errors: list[OSError]
    calls = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return super().accept()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_a_machine_without_resources_is_asked_again_after_a_pause(
    number: int, set_waits: SetWaits, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of all processes may run out before our own."""
    set_waits(accept_retry_s=0.05)
    taken: asyncio.Queue[socket.socket] = asyncio.Queue()
    listener = Failing()
    listener.errors = [OSError(number, os.strerror(number)) for _ in range(2)]
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    acceptor = server.Acceptor([listener], taken.put_nowait)
    with socket.create_connection(listener.getsockname()[:2]):
        async with asyncio.timeout(20):
            (await taken.get()).close()
        acceptor.close()
    assert listener.calls <= 4, "two fail, one succeeds, and one finds nobody"
    assert caplog.text.count("accepting connections paused") == 1


async def test_disconnected_peer_delays_nobody_and_logs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: asyncio.Queue[socket.socket] = asyncio.Queue()
    listener = Failing()
    listener.errors = [OSError(errno.ECONNABORTED, "aborted")]
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    acceptor = server.Acceptor([listener], taken.put_nowait)
    with socket.create_connection(listener.getsockname()[:2]):
        async with asyncio.timeout(20):
            (await taken.get()).close()
        acceptor.close()
    assert caplog.text == ""


async def test_some_descriptors_are_left_to_the_store_and_the_key_file(
    monkeypatch: pytest.MonkeyPatch, set_waits: SetWaits, caplog: pytest.LogCaptureFixture
) -> None:
    set_waits(accept_retry_s=60)
    taken: asyncio.Queue[socket.socket] = asyncio.Queue()
    listener = Failing()
    listener.errors = []
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    most = listener.fileno() + server.RESERVED_DESCRIPTORS
    monkeypatch.setattr(server, "_max_descriptors", lambda: most)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
        acceptor = server.Acceptor([listener], taken.put_nowait)
        async with asyncio.timeout(20):
            (await taken.get()).close()
        acceptor.close()
    assert listener.calls == 1
    assert f"of {most} open files are in use" in caplog.text


async def test_accepting_yields_to_open_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_ACCEPTED_PER_ITERATION", 2)
    loop, iteration, most = asyncio.get_running_loop(), 0, 6
    iterations: list[int] = []
    are_taken = asyncio.Event()

    def count() -> None:
        nonlocal iteration
        iteration += 1
        if not are_taken.is_set():
            loop.call_soon(count)

    def take(peer: socket.socket) -> None:
        peer.close()
        iterations.append(iteration)
        if len(iterations) == most:
            are_taken.set()

    with contextlib.ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0))
        for _ in range(most):
            stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
        acceptor = server.Acceptor([listener], take)
        count()
        async with asyncio.timeout(20):
            await are_taken.wait()
        acceptor.close()
    assert max(iterations.count(each) for each in iterations) == 2


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """All that are made; ``errors`` are raised by those of IPv6 that bind."""
    made: list[socket.socket] = []

    class Made(socket.socket):
        errors: ClassVar[list[int]] = []

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6 and self.errors:
                number = self.errors.pop(0)
                raise OSError(number, os.strerror(number))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Made)
    monkeypatch.setattr(socket, "has_ipv6", True)
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: True)
    return made


@pytest.mark.parametrize("host", ["localhost", "::"])
@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_a_machine_without_ipv6_is_served_by_ipv4(
    host: str, number: int, sockets: list[socket.socket]
) -> None:
    socket.socket.errors = [number]  # type: ignore[attr-defined]
    (found,) = bind(host, 0)
    assert found.family == socket.AF_INET
    found.close()
    assert [each.fileno() for each in sockets] == [-1, -1]


@needs_ipv6
def test_chooses_another_port_when_it_is_taken_in_the_other_family(
    sockets: list[socket.socket],
) -> None:
    socket.socket.errors = [errno.EADDRINUSE]  # type: ignore[attr-defined]
    found = bind("localhost", 0)
    assert len({each.getsockname()[1] for each in found}) == 1
    assert len(found) == 2
    for each in found:
        # Without it an answer in two parts waits for the peer's delayed acknowledgement.
        assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        each.close()
    assert {each.fileno() for each in sockets} == {-1}, "the first try left none open"


def test_first_log_line_lists_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    secret, key = "s" * 40, "k" * 43
    file.write_text(f'token_secrets = ["{secret}"]\n[api_keys]\njobs = "{key}"\n')
    with served("--keys-file", str(file), "--admin", files=1024) as (url, log):
        found = log.until(r"settings (.+)\n")[1]
        assert "api_keys=1 token_secrets=1 jwks_urls=0 origins=none" in found
        assert "max_connections=20000" in found
        log.until(r"WARNING .*no browser origins are allowed.*--allowed-origins")
        log.until(rf"{re.escape(url)}/admin")
    assert secret not in "".join(log.lines)
    assert key not in "".join(log.lines)
    with served(
        "--keys-file", str(file), "--allowed-origins", "https://A.example:443", files=1024
    ) as (
        _,
        log,
    ):
        assert "origins=https://a.example " in log.until(r"settings (.+)\n")[1]
    assert "no browser origins" not in "".join(log.lines)
