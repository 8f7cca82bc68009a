"""``deploy/compose``: the loader of Docker Compose accepts it, and it fits the server.

No container engine is needed, and nothing here starts containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from synap_realtime.server import create_app
from synap_realtime.server.config import ServerSettings, load_settings
from synap_realtime.server.serve import running_server
from synap_realtime.server.stores.redis.address import parse_address
from tests.support.program import Program, free_port
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import running_valkey

from .conftest import DEPLOY
from .go_tools import run_go_tool
from .proxy import running_proxy

COMPOSE = DEPLOY / "compose"
FILE = COMPOSE / "compose.yaml"
VALKEY_SH = (DEPLOY / "helm/synap-realtime/files/valkey.sh").read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The model that Docker Compose would run. Its loader reads no environment, so that is set."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(DEPLOY, folder / "deploy")
    copy = folder / "deploy/compose/compose.yaml"
    text, count = re.subn(r"\$\{VALKEY_PASSWORD:\?[^}]+\}", "secret", FILE.read_text())
    assert count == 2
    copy.write_text(text)
    (copy.parent / "keys.toml").touch()
    done = run_go_tool("compose-go", "-format", "json", copy, cwd=copy.parent)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def services(project: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        name: each for name, each in project["services"].items() if name.partition("-")[0] == kind
    }


def test_loader_rejects_a_missing_password_and_a_wrong_field(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(FILE.read_text())
    done = run_go_tool("compose-go", "compose.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert "VALKEY_PASSWORD is missing a value: set it in .env" in done.stderr
    wrong = FILE.read_text().replace("stop_grace_period", "stop_grace").replace(":?", ":-")
    (tmp_path / "compose.yaml").write_text(wrong)
    done = run_go_tool("compose-go", "compose.yaml", cwd=tmp_path)
    assert "stop_grace" in done.stderr


def test_mounted_files_exist(project: dict[str, Any]) -> None:
    for each in (*project["configs"].values(), *project["secrets"].values()):
        if "file" in each:
            assert Path(each["file"]).is_file()
    build = project["services"]["node-1"]["build"]
    assert (Path(build["context"]) / build["dockerfile"]).is_file()
    assert {"keys.toml", ".env"} <= set((COMPOSE / ".gitignore").read_text().split())


def test_there_are_two_nodes_a_replica_and_three_sentinels(project: dict[str, Any]) -> None:
    counts = {kind: len(services(project, kind)) for kind in ("node", "valkey", "sentinel")}
    assert counts == {"node": 2, "valkey": 2, "sentinel": 3}
    assert {name for name, each in project["services"].items() if "healthcheck" not in each} == {
        "proxy"
    }


def test_nodes_have_valid_options_and_ask_every_sentinel(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in services(project, "node").values():
        for name, value in node["environment"].items():
            assert name.removeprefix("SYNAP_REALTIME_").lower() in ServerSettings.model_fields
            monkeypatch.setenv(name, value)
        settings = load_settings()
        (secret,) = node["secrets"]
        assert str(settings.keys_file) == secret["target"]
        address = parse_address(settings.store)
        assert {each.host for each in address.peers} == set(services(project, "sentinel"))
        (front,) = project["networks"]["front"]["ipam"]["config"]
        assert settings.trusted_proxies == (front["subnet"],)


def test_valkey_knows_every_server_and_sentinel(project: dict[str, Any]) -> None:
    for kind, port in (("valkey", 6379), ("sentinel", 26379)):
        for name, each in services(project, kind).items():
            variables = each["environment"]
            assert variables["SELF"] == f"{name}:{port}"
            assert variables["SERVERS"].split() == [
                f"{other}:6379" for other in services(project, "valkey")
            ]
            assert variables["SENTINELS"].split() == [
                f"{other}:26379" for other in services(project, "sentinel")
            ]
            assert all(f"${{{used}" in VALKEY_SH or f"${used}" in VALKEY_SH for used in variables)
            assert each["entrypoint"] == ["sh", "/etc/valkey/valkey.sh"]
            assert f"\n    {each['command'][0]}) start_" in VALKEY_SH


def test_only_the_proxy_is_published_and_valkey_is_not_on_its_network(
    project: dict[str, Any],
) -> None:
    assert [name for name, each in project["services"].items() if "ports" in each] == ["proxy"]
    assert project["networks"]["store"]["internal"]
    for kind in ("valkey", "sentinel"):
        assert all(set(each["networks"]) == {"store"} for each in services(project, kind).values())


def test_stop_grace_period_covers_the_drain(project: dict[str, Any]) -> None:
    for node in services(project, "node").values():
        period_s = float(node["stop_grace_period"].removesuffix("s"))
        assert period_s >= 2 * load_settings().drain_timeout_s + 15


async def test_health_check_asks_whether_a_node_is_ready(project: dict[str, Any]) -> None:
    (kind, program, *arguments) = project["services"]["node-1"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    async with running_server(create_app()) as url:
        port = url.rpartition(":")[2]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *(each.replace("8787", port) for each in arguments)
        )
        assert await process.wait() == 0


async def test_proxy_sends_publishes_and_subscribers_to_a_node_that_works(tmp_path: Path) -> None:
    """Each of two nodes on one Valkey is killed in turn, and comes back."""
    with running_valkey(tmp_path / "valkey") as valkey:
        nodes = [Program(valkey.url), Program(valkey.url)]
        port = free_port()
        text = (COMPOSE / "Caddyfile").read_text()
        for written, here in (
            ("{\n\tlog", "{\n\tadmin off\n\tauto_https off\n\tlog"),
            ("{$SITE}", f"http://127.0.0.1:{port}"),
            ("node-1:8787", f"127.0.0.1:{nodes[0].port}"),
            ("node-2:8787", f"127.0.0.1:{nodes[1].port}"),
        ):
            assert text.count(written) == 1
            text = text.replace(written, here)
        (tmp_path / "Caddyfile").write_text(text)
        caddy = ("caddy", "run", "--adapter", "caddyfile", "--config", tmp_path / "Caddyfile")
        with running_proxy(*caddy, log=tmp_path / "caddy.log"):
            try:
                for node in nodes:
                    await node.start()
                await check_failover_of_the_proxy(f"http://127.0.0.1:{port}", nodes)
            finally:
                for node in nodes:
                    await node.kill()
            await asyncio.to_thread(
                httpx.get, f"http://127.0.0.1:{port}/rooms/user_1/events?token=SECRET", timeout=20
            )
        logs = (tmp_path / "caddy.log").read_text()
        assert "/rooms/user_1/events" in logs  # Caddy logs what it cannot forward
        assert "SECRET" not in logs


async def publish(client: httpx.AsyncClient, number: int) -> None:
    """As the SDK does: repeat with the same id. The proxy does not repeat what it has sent."""
    body = {"id": f"tick-{number}", "type": "tick", "data": {"number": number}}
    while (answer := await client.post("/rooms/user_1/broadcast", json=body)).status_code != 200:
        assert answer.status_code in (502, 503), answer.text
        await asyncio.sleep(0.1)


async def check_failover_of_the_proxy(url: str, nodes: list[Program]) -> None:
    async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/ready")).is_success:
                    break
            await asyncio.sleep(0.05)
        subscribe = url.replace("http", "ws") + "/rooms/user_1/subscribe?token=SECRET"
        for first, killed in zip((0, 20), nodes, strict=True):
            await killed.kill()
            async with connect(subscribe) as ws:
                for number in range(first, first + 20):
                    await publish(client, number)
                while json.loads(await ws.recv()).get("data") != {"number": number}:
                    pass
            await killed.start()
            while not (await client.get(f"{killed.url}/ready")).is_success:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
