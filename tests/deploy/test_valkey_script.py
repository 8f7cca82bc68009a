"""Which role ``valkey.sh`` gives to a server that starts, and when it calls the server ready.

The programs ``valkey-server`` and ``valkey-cli`` are replaced: Sentinels answer what a test says.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.polling import until
from tests.support.timeouts import TIMEOUT_S

SCRIPT = Path(__file__).parents[2] / "deploy/helm/synap-realtime/files/valkey.sh"
SERVERS = [f"pod-{number}:6379" for number in range(3)]
SENTINELS = [f"pod-{number}:26379" for number in range(3)]

_CLI = """\
#!/bin/sh
case $5 in SENTINEL) cat "$ANSWERS/$2:$4" ;; *) cat "$ANSWERS/$5" ;; esac
"""
_SERVER = """\
#!/bin/sh
cp "$1" "$ANSWERS/started"
"""


class Pod:
    """The first pod: its server and what it is answered."""

    def __init__(self, folder: Path) -> None:
        self.data, self._answers = folder / "data", folder / "answers"
        programs = folder / "bin"
        for each in (self.data, self._answers, programs):
            each.mkdir()
        for name, text in (("valkey-cli", _CLI), ("valkey-server", _SERVER)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.log = folder / "log"
        self._variables = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "ANSWERS": str(self._answers),
            "SELF": SERVERS[0],
            "SERVERS": " ".join(SERVERS),
            "SENTINELS": " ".join(SENTINELS),
            "VALKEY_PASSWORD": "p" * 40,
            "DATA": str(self.data),
        }

    def sentinel(
        self, number: int, primary: int, epoch: int, replicas: int = 2, flags: str = "master"
    ) -> None:
        """Let the Sentinel of a pod name the server of another one."""
        host, _, port = SERVERS[primary].partition(":")
        members = {
            "name": "main", "ip": host, "port": port, "runid": "", "flags": flags,
            "num-slaves": replicas, "quorum": 2, "config-epoch": epoch,
        }  # fmt: skip
        answer = "".join(f"{name}\n{value}\n" for name, value in members.items())
        (self._answers / SENTINELS[number]).write_text(answer)

    def replies(self, command: str, reply: str) -> None:
        """Set what the server replies to a command."""
        (self._answers / command).write_text(reply)

    def start(self, kind: str = "server") -> subprocess.Popen[bytes]:
        (self._answers / "started").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(["sh", SCRIPT, kind], env=self._variables, stderr=log)

    def run(self, command: str) -> int:
        return subprocess.run(
            ["sh", SCRIPT, command], env=self._variables, timeout=TIMEOUT_S, check=False
        ).returncode

    def follows(self) -> str | None:
        """Return the primary of the server that was started; None: it is one itself."""
        for line in (self._answers / "started").read_text().splitlines():
            if line.startswith("replicaof "):
                return line.removeprefix("replicaof ").replace(" ", ":")
        return None

    def starts(self) -> str | None:
        """Start the server, and return its primary."""
        assert self.start().wait(TIMEOUT_S) == 0
        return self.follows()


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


async def test_server_follows_the_latest_configuration(pod: Pod) -> None:
    """Its own Sentinel was down together with it, and the listed order is no rank."""
    for stale in range(3):
        for each in range(3):
            pod.sentinel(each, primary=2, epoch=10)
        pod.sentinel(stale, primary=0, epoch=9)
        assert pod.starts() == SERVERS[2]


async def test_server_starts_as_the_primary_that_most_sentinels_name(pod: Pod) -> None:
    (pod.data / "appendonlydir").mkdir()
    for each in (1, 2):
        pod.sentinel(each, primary=0, epoch=3)
    assert pod.starts() is None


@pytest.mark.parametrize("role", [None, "replicaof pod-1 6379"])
async def test_server_waits_until_most_sentinels_answer(pod: Pod, role: str | None) -> None:
    """Without them, the other pods may have a primary already; so the role before counts not."""
    (pod.data / "appendonlydir").mkdir()
    if role is not None:
        (pod.data / "valkey.conf").write_text(role)
    pod.sentinel(0, primary=0, epoch=0)
    process = pod.start()
    await until(lambda: "is not started" in pod.log.read_text())
    assert process.poll() is None
    assert pod.run("check-process") == 0, "the container is not restarted meanwhile"
    assert pod.run("check-server") != 0
    pod.sentinel(1, primary=1, epoch=1)
    assert await asyncio.to_thread(process.wait, TIMEOUT_S) == 0
    assert pod.follows() == SERVERS[1]
    assert pod.run("check-process") != 0, "the server answers nothing"


async def test_server_waits_for_the_end_of_a_failover(pod: Pod) -> None:
    for each in range(3):
        pod.sentinel(each, primary=0, epoch=1)
    pod.sentinel(2, primary=0, epoch=2, flags="master,o_down,failover_in_progress")
    process = pod.start()
    await until(lambda: "is not started" in pod.log.read_text())
    assert process.poll() is None
    pod.sentinel(2, primary=1, epoch=2)
    assert await asyncio.to_thread(process.wait, TIMEOUT_S) == 0
    assert pod.follows() == SERVERS[1]


async def test_empty_primary_waits_although_its_own_sentinel_knows_no_replica(pod: Pod) -> None:
    """The pod has lost its volume, so also what its Sentinel knew."""
    pod.sentinel(0, primary=0, epoch=0, replicas=0)
    for each in (1, 2):
        pod.sentinel(each, primary=0, epoch=0, replicas=2)
    process = pod.start()
    await until(lambda: "waiting for a failover" in pod.log.read_text())
    assert process.poll() is None
    for each in (1, 2):
        pod.sentinel(each, primary=1, epoch=1)
    assert await asyncio.to_thread(process.wait, TIMEOUT_S) == 0
    assert pod.follows() == SERVERS[1]


async def test_first_server_is_the_primary_of_a_new_installation(pod: Pod) -> None:
    for each in range(3):
        pod.sentinel(each, primary=0, epoch=0, replicas=0)
    assert pod.starts() is None


async def test_new_sentinel_watches_the_primary_of_the_latest_configuration(pod: Pod) -> None:
    pod.sentinel(1, primary=0, epoch=1)
    pod.sentinel(2, primary=2, epoch=2)
    assert pod.start("sentinel").wait(TIMEOUT_S) == 0
    text = (pod.data / "sentinel.conf").read_text()
    assert "sentinel monitor main pod-2 6379 2\n" in text


PRIMARY = "# Replication\r\nrole:master\r\nconnected_slaves:2\r\n"
REPLICA = (
    "# Replication\r\nrole:slave\r\nmaster_host:pod-1\r\nmaster_port:6379\r\n"
    "master_link_status:{}\r\n"
)


@pytest.mark.parametrize(
    ("info", "primary", "ready"),
    [
        (PRIMARY, 0, True),
        (PRIMARY, 1, False),
        (REPLICA.format("up"), 1, True),
        (REPLICA.format("down"), 1, False),
        (REPLICA.format("up"), 2, False),
        ("LOADING Valkey is loading the dataset in memory\r\n", 1, False),
    ],
    ids=["primary", "second primary", "replica", "no link", "replica of another", "loading"],
)
async def test_server_is_ready_in_the_role_that_the_sentinels_name(
    pod: Pod, info: str, primary: int, ready: bool
) -> None:
    pod.sentinel(0, primary=0, epoch=0)
    pod.sentinel(1, primary=primary, epoch=1)
    pod.replies("INFO", info)
    assert (pod.run("check-server") == 0) is ready


async def test_server_is_not_ready_unless_most_sentinels_answer(pod: Pod) -> None:
    pod.sentinel(0, primary=0, epoch=0)
    pod.replies("INFO", PRIMARY)
    assert pod.run("check-server") != 0
    pod.sentinel(2, primary=0, epoch=0)
    assert pod.run("check-server") == 0
