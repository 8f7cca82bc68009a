"""Server processes as an operator runs them: nodes behind a balancer, on Valkey with Sentinels.

All methods block: call them in a thread beside an event loop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from redis.exceptions import RedisError

from tests.support.balancer import Balancer
from tests.support.command_line import COMMAND
from tests.support.link import Link
from tests.support.loop_thread import LoopThread
from tests.support.program import free_port
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import (
    REPLICAS_USER,
    VALKEY,
    Sentinel,
    Valkey,
    as_lines,
    running_sentinel,
)

RECOVERY_S = 3 * TIMEOUT_S
"""The longest time until everything works again. Sentinel may need several attempts."""


def wait_until(condition: Callable[[], bool], goal: str) -> None:
    """Wait for something that nothing announces. A server that does not answer is waited for."""
    end = time.monotonic() + RECOVERY_S
    while True:
        with contextlib.suppress(RedisError, httpx.HTTPError):
            if condition():
                return
        assert time.monotonic() < end, f"not reached: {goal}"
        time.sleep(0.05)


class DataServer(Valkey):
    """A Valkey whose configuration file Sentinel rewrites, so that it keeps its role."""

    def __init__(self, folder: Path, *options: str, primary: Valkey | None = None) -> None:
        self._primary = primary
        super().__init__(folder, *options)

    def _command(self) -> list[str]:
        file = self._folder / "valkey.conf"
        if not file.exists():
            lines = [
                f"port {self.port}",
                "bind 127.0.0.1",
                f"dir {self._folder}",
                'save ""',
                "appendonly yes",
                "appendfsync everysec",
                "repl-diskless-sync-delay 0",
                *as_lines(REPLICAS_USER),
                *self._options,
            ]
            if self._primary is not None:
                lines.append(f"replicaof 127.0.0.1 {self._primary.port}")
            file.write_text("\n".join(lines) + "\n")
        return [str(VALKEY), str(file)]

    @property
    def is_replicating(self) -> bool:
        role = self.command("ROLE")
        return bool(role[0] == b"slave" and role[3] == b"connected")

    def stop(self) -> None:
        """Stop the process as an operator does."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(TIMEOUT_S)
        self._process = None


class Node:
    """A ``synap-realtime serve``, through all its lives.

    Several faults may stop and start it at the same time.

    Attributes:
        url: where it listens, in each life.
    """

    def __init__(self, store: str, log: Path, *options: str) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._command = [COMMAND, "serve", "--port", str(self._port), "--store", store, *options]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # while the process is started or stopped

    def start(self) -> None:
        """Start the process unless it runs, without waiting for it."""
        with self._lock, self._log.open("ab") as log:
            if self._process is None:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

    @property
    def is_ready(self) -> bool:
        return httpx.get(f"{self.url}/ready", timeout=2).status_code == 200

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, and to the workers, if it runs."""
        with self._lock:
            if self._process is not None:
                for each in (self._process.pid, *self.workers()):
                    os.kill(each, number)

    def kill(self) -> None:
        """``kill -9``, also of the workers."""
        with self._lock:
            if self._process is None:
                return
            workers = self.workers()
            self._process.kill()
            for each in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Drain, and wait for the end of the process, if it runs."""
        with self._lock:
            if self._process is None:
                return
            self._process.terminate()
            code = self._process.wait(TIMEOUT_S)
            self._process = None
        assert code == 0, f"exit code {code}"

    def workers(self) -> list[int]:
        """Return the process ids of the workers (``--workers``)."""
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task")
        return [
            int(pid)
            for children in tasks.glob("*/children")
            for pid in children.read_text().split()
        ]

    def log(self) -> str:
        return self._log.read_text()


class Deployment:
    """Nodes and their store.

    Attributes:
        url: of the balancer.
        links: one between each node and its server; empty with Sentinels, which name the server.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 2,
        options: Sequence[str] = (),
        sentinels: int = 3,
        data: Path | None = None,
    ) -> None:
        """
        Args:
            options: of each node.
            sentinels: 0 for one server without a replica.
            data: the folder of the first server, instead of one in ``folder``.
        """
        self._stack = contextlib.ExitStack()
        self._folder = folder
        self._node_count = nodes
        # All notifications are retained, so that a subscriber that comes back late misses none.
        self._node_options = (
            *("--drain-timeout-s", "2", "--retention-count", "100000"),
            *options,
        )
        self._sentinel_count = sentinels
        self._data = data or folder / "data-1"
        self.servers: list[DataServer] = []
        self.sentinels: list[Sentinel] = []
        self.nodes: list[Node] = []
        self.links: list[Link] = []
        self.url = ""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._start_servers()
            self._loop = stack.enter_context(LoopThread("tests-links"))
            for number in range(self._node_count):
                store = self._store()
                node = Node(store, self._folder / f"node-{number}.log", *self._node_options)
                self.nodes.append(node)
                stack.callback(node.kill)
                node.start()
            balancer = Balancer([node.url for node in self.nodes])
            self.url = stack.enter_context(balancer).url
            self.until_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start_servers(self) -> None:
        first = DataServer(self._data)
        self.servers.append(first)
        self._stack.callback(first.kill)
        if self._sentinel_count:
            second = DataServer(self._folder / "data-2", primary=first)
            self.servers.append(second)
            self._stack.callback(second.kill)
        for number in range(self._sentinel_count):
            sentinel = running_sentinel(self._folder / f"sentinel-{number}", first.port)
            self.sentinels.append(self._stack.enter_context(sentinel))

    def _store(self) -> str:
        if self.sentinels:
            hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
            return f"redis+sentinel://{hosts}/main"
        link = Link(self.servers[0].url.replace("redis", "http"))
        self._loop.run(link.__aenter__())
        self._stack.callback(lambda: self._loop.run(link.__aexit__(None, None, None)))
        self.links.append(link)
        return link.url.replace("http", "redis")

    def on_links(self, change: Callable[[], None]) -> None:
        """Change a link, on the event loop of all links."""

        async def work() -> None:
            change()

        self._loop.run(work())

    @property
    def primary(self) -> DataServer:
        """The server that the Sentinels name."""
        if not self.sentinels:
            return self.servers[0]
        _, port = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return next(each for each in self.servers if each.port == int(port))

    @property
    def replica(self) -> DataServer:
        primary = self.primary
        return next(each for each in self.servers if each is not primary)

    def until_failed_over(self, former: DataServer) -> None:
        """Wait until another server is the primary, and the Sentinels name it."""
        wait_until(
            lambda: self.primary is not former and self.primary.is_primary, "another primary"
        )

    def until_whole(self) -> None:
        """Wait until all nodes are ready, and the next failover can succeed."""
        wait_until(self._is_redundant, "a primary, a replica and Sentinels that know them")
        self.until_ready()

    def until_ready(self) -> None:
        """Wait until all nodes are ready."""
        wait_until(lambda: all(node.is_ready for node in self.nodes), "nodes that are ready")

    def _is_redundant(self) -> bool:
        if not self.sentinels:
            return True
        if not (self.primary.is_primary and self.replica.is_replicating):
            return False
        for each in self.sentinels:
            with each.client(decode_responses=True) as client:
                state = client.sentinel_master("main")
                (replica,) = client.sentinel_slaves("main") or [None]
            if (
                state["port"] != self.primary.port
                or state["num-other-sentinels"] != len(self.sentinels) - 1
                or state["flags"] != "master"
                or replica is None
                or replica["flags"] != "slave"
                or replica["master-link-status"] != "ok"
            ):
                return False
        return True
