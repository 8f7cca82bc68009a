"""What the chart in ``deploy/helm`` starts works together, while pods fail and are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from synap_realtime.subscriber import subscribe
from synap_realtime.tokens import mint_token
from tests.support.timeouts import TIMEOUT_S

from .chart import release
from .conftest import JOBS_KEY, KEYS, SECRET
from .pods import Cluster, running_cluster

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8, one address for each pod"
)


FAST = ("--set", "valkey.config=repl-diskless-sync-delay 0")
"""A primary sends its data to a new replica without waiting for more of them."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    rendered = release("minimal", *FAST, "--set", "valkey.downAfterMilliseconds=1000")
    with running_cluster(rendered, tmp_path, KEYS) as started:
        yield started


@pytest.fixture
def patient_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Its primary may take the default of 5 s to start before it is replaced."""
    with running_cluster(release("minimal", *FAST), tmp_path, KEYS) as started:
        yield started


@pytest.fixture(params=["replica", "disk"])
def durable_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    rendered = release("minimal", *FAST, "--set", f"valkey.durability={request.param}")
    with running_cluster(rendered, tmp_path, KEYS) as started:
        yield started


async def until_ready(cluster: Cluster) -> None:
    async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient() as client:
        for url in cluster.nodes:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{url}/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
    for pod in cluster.valkey:
        for container in pod.values():
            await container.wait("readinessProbe")
            assert container.run("livenessProbe") == 0


class Traffic:
    """Publishes at the first node, and a subscriber at the second."""

    def __init__(self, cluster: Cluster) -> None:
        self._publisher, self._subscriber = cluster.nodes
        self.published: list[int] = []
        self.received: list[int] = []
        self.arrived = asyncio.Event()
        self.subscriber: asyncio.Task[None] | None = None

    async def subscribe(self) -> None:
        token = mint_token("1", secret=SECRET)
        async with aclosing(subscribe("user_1", self._subscriber, token)) as all_of_it:
            async for each in all_of_it:
                number = each.data["number"]
                if number not in self.received:
                    self.received.append(number)
                self.arrived.set()

    async def publish(self) -> None:
        """Publish the next notification, again and again with the same id until it is stored."""
        number = len(self.published)
        body = {"id": f"tick-{number}", "type": "tick", "data": {"number": number}}
        headers = {"Authorization": f"Bearer {JOBS_KEY}"}
        async with (
            asyncio.timeout(2 * TIMEOUT_S),  # see until_primary_is_not
            httpx.AsyncClient(base_url=self._publisher, headers=headers) as client,
        ):
            while True:
                answer = await client.post("/rooms/user_1/broadcast", json=body)
                if answer.status_code == 200:
                    break
                assert answer.status_code == 503
                await asyncio.sleep(0.1)
        self.published.append(number)

    async def history(self) -> list[int]:
        """Read what the store has kept."""
        headers = {"Authorization": f"Bearer {mint_token('1', secret=SECRET)}"}
        async with httpx.AsyncClient(base_url=self._publisher, headers=headers) as client:
            answer = await client.get("/rooms/user_1/history")
        return [each["data"]["number"] for each in answer.json()["notifications"]]

    async def arrive(self) -> None:
        """Wait until everything that was published has arrived, once and in order."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.received != self.published:
                assert self.subscriber is not None
                assert not self.subscriber.done()
                self.arrived.clear()
                await self.arrived.wait()


@asynccontextmanager
async def running_traffic(cluster: Cluster) -> AsyncIterator[Traffic]:
    await until_ready(cluster)
    traffic = Traffic(cluster)
    subscriber = traffic.subscriber = asyncio.create_task(traffic.subscribe())
    subscriber.add_done_callback(lambda _: traffic.arrived.set())
    try:
        await traffic.publish()
        await traffic.arrive()
        yield traffic
    finally:
        subscriber.cancel()
        await asyncio.gather(subscriber, return_exceptions=True)


async def until_primary_is_not(cluster: Cluster, pod: int) -> None:
    """On a busy machine, the Sentinels may need a second election, 20 s after the first."""
    async with asyncio.timeout(2 * TIMEOUT_S):
        while await asyncio.to_thread(cluster.primary) in (pod, None):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_lost_pod_of_the_primary_is_replaced_and_returns_as_a_replica(
    cluster: Cluster,
) -> None:
    async with running_traffic(cluster) as traffic:
        lost = cluster.primary()
        assert lost == 0
        await until_replicas_are_known(cluster)
        for container in cluster.valkey[lost].values():
            container.kill()
        await traffic.publish()
        await traffic.arrive()
        assert cluster.primary() not in (lost, None)
        # Its Sentinel answers first, and names the primary from before for some seconds.
        cluster.valkey[lost]["sentinel"].start()
        await cluster.valkey[lost]["sentinel"].wait("readinessProbe")
        cluster.valkey[lost]["valkey"].start()
        await cluster.valkey[lost]["valkey"].wait("readinessProbe")
        assert cluster.ask(lost, "ROLE")[0] == b"slave"
        await traffic.publish()
        await traffic.arrive()


async def test_servers_meet_the_requirements_of_each_durability(durable_cluster: Cluster) -> None:
    async with running_traffic(durable_cluster) as traffic:
        await traffic.publish()
        await traffic.arrive()


async def test_stop_of_a_primary_hands_over_first(cluster: Cluster) -> None:
    """As in a rolling restart of the StatefulSet: the hook, then SIGTERM."""
    async with running_traffic(cluster) as traffic:
        for pod in (2, 1, 0):
            for _ in range(5):
                await traffic.publish()
            server = cluster.valkey[pod]["valkey"]
            was_primary = cluster.primary() == pod
            assert await asyncio.to_thread(server.run, "preStop", 45) == 0
            if was_primary:
                assert cluster.ask(pod, "ROLE")[0] == b"slave"
                await until_primary_is_not(cluster, pod)
            for container in cluster.valkey[pod].values():
                container.stop()
            await traffic.publish()
            for container in cluster.valkey[pod].values():
                container.start()
            for container in cluster.valkey[pod].values():
                await container.wait("readinessProbe")
        await traffic.arrive()
        assert await traffic.history() == traffic.published


async def test_primary_that_lost_its_disk_empties_no_replica(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its server is back, empty, before the Sentinels notice that it was gone."""
    async with running_traffic(cluster) as traffic:
        for _ in range(5):
            await traffic.publish()
        await asyncio.to_thread(cluster.ask, 0, "WAIT", "2", "5000")
        await until_replicas_are_known(cluster)
        server = cluster.valkey[0]["valkey"]
        server.kill()
        shutil.rmtree(tmp_path / "rooms-synap-realtime-valkey-0/appendonlydir")
        server.start()
        await until_primary_is_not(cluster, 0)
        await server.wait("readinessProbe")
        await traffic.publish()
        await traffic.arrive()
        assert await traffic.history() == traffic.published


async def until_replicas_are_known(cluster: Cluster) -> None:
    """A Sentinel learns of replicas when it asks the primary: every ten seconds by default."""
    await asyncio.to_thread(cluster.ask_often)
    async with asyncio.timeout(TIMEOUT_S):
        while await asyncio.to_thread(cluster.known_replicas) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_restart_of_everything_keeps_the_log(patient_cluster: Cluster) -> None:
    """The primary is not the first server any more, which is so only in a new installation."""
    cluster = patient_cluster
    async with running_traffic(cluster) as traffic:
        await until_replicas_are_known(cluster)
        for container in cluster.valkey[0].values():
            container.kill()
        await traffic.publish()
        await traffic.arrive()
        for pod in cluster.valkey:
            for container in pod.values():
                container.stop()
        for pod in cluster.valkey:
            for container in pod.values():
                container.start()
        await until_ready(cluster)
        await traffic.publish()
        await traffic.arrive()
        assert await traffic.history() == traffic.published


async def test_changed_keys_are_accepted_as_the_kubelet_writes_them(
    cluster: Cluster, tmp_path: Path
) -> None:
    """A mounted Secret is a link to a folder, which a rename replaces."""
    folder = tmp_path / "keys"
    content = (folder / "keys.toml").read_text()
    (folder / "keys.toml").unlink()
    for version, text in (("..1", content), ("..2", content.replace(JOBS_KEY, "k" * 43))):
        (folder / version).mkdir()
        (folder / version / "keys.toml").write_text(text)
    (folder / "..data").symlink_to("..1")
    (folder / "keys.toml").symlink_to("..data/keys.toml")
    await until_ready(cluster)
    (folder / "..new").symlink_to("..2")
    (folder / "..new").rename(folder / "..data")
    url = next(iter(cluster.nodes))
    async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(base_url=url) as client:
        while True:
            answer = await client.post(
                "/rooms/user_1/broadcast", json={"type": "a", "data": {}},
                headers={"Authorization": f"Bearer {'k' * 43}"},
            )  # fmt: skip
            if answer.status_code == 200:
                break
            await asyncio.sleep(0.1)


async def test_sigterm_drains_within_the_grace_period(cluster: Cluster) -> None:
    grace_s = release("minimal").pod("Deployment")["terminationGracePeriodSeconds"]
    async with running_traffic(cluster):
        for node in cluster.nodes.values():
            began = asyncio.get_running_loop().time()
            await asyncio.to_thread(node.stop)
            assert asyncio.get_running_loop().time() - began < grace_s - 5
