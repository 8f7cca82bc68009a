"""Fixtures for ``deploy/``: promtool, and the metrics of a real server."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from websockets.asyncio.client import connect
from websockets.typing import Origin

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

ORIGIN = "https://app.example"
SECRET, JOBS_KEY, PROMETHEUS_KEY = "s" * 32, "j" * 43, "p" * 43
KEYS = f"""\
token_secrets = ["{SECRET}"]

[api_keys]
jobs = "{JOBS_KEY}"
prometheus = {{ key = "{PROMETHEUS_KEY}", scope = "metrics" }}
"""

Promtool = Callable[..., subprocess.CompletedProcess[str]]


def alerts() -> dict[str, dict[str, Any]]:
    """The rules of ``alerts.yml`` by their names."""
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Runs promtool with arguments, in ``deploy/`` or another folder."""
    found = shutil.which("promtool") or shutil.which(ROOT / ".venv/promtool/promtool")
    if found is None:
        pytest.fail(
            "promtool is missing: scripts/setup dev gets it on Debian, and on macOS with Homebrew; "
            "elsewhere install Prometheus and have promtool on PATH"
        )

    def run(*arguments: str, cwd: Path = DEPLOY) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [found, *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=2 * TIMEOUT_S,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """What a server that has done a little of everything shows, asked as in ``prometheus.yml``."""
    folder = tmp_path_factory.mktemp("scraped")
    (folder / "keys.toml").write_text(KEYS)
    text = asyncio.run(_scrape(folder))
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


async def _scrape(folder: Path) -> str:
    """The text of ``/metrics`` after a publish, a subscriber, and one of each kind of trouble."""
    settings = load_settings(
        keys_file=folder / "keys.toml",
        store=f"sqlite:///{folder}/rooms.db",
        allowed_origins=(ORIGIN,),
        publishes_per_s=2,
    )
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    async with (
        running_server(create_app(settings)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):

        async def publish(credential: str | None, kind: object = "a") -> int:
            response = await client.post(
                "/rooms/user_1/broadcast",
                json={"type": kind, "data": {}},
                headers=_bearer(credential),
            )
            return response.status_code

        subscribe = url.replace("http", "ws") + "/rooms/user_1/subscribe"
        async with connect(f"{subscribe}?token={mint_token('1', secret=SECRET)}") as ws:
            assert await publish(JOBS_KEY) == 200
            async with asyncio.timeout(TIMEOUT_S):
                await ws.recv()
        page = f"{subscribe}?token={mint_token('2', secret=SECRET)}"
        async with connect(page, origin=Origin(ORIGIN)) as ws, asyncio.timeout(TIMEOUT_S):
            await ws.wait_closed()
        assert ws.close_code == 4503
        assert await publish(None) == 401
        assert await publish(JOBS_KEY, 1) == 400
        (folder / "rooms.db").rename(folder / "away.db")  # the store can keep nothing
        assert await publish(JOBS_KEY) == 503
        (folder / "away.db").rename(folder / "rooms.db")
        assert [await publish(JOBS_KEY) for _ in range(20)][-1] == 429
        async with asyncio.timeout(TIMEOUT_S):  # the loop is looked at twice a second
            while True:
                response = await client.get(job["metrics_path"], headers=_bearer(PROMETHEUS_KEY))
                assert response.status_code == 200, response.text
                if "synap_realtime_event_loop_lag_seconds_count 0.0" not in response.text:
                    return response.text
                await asyncio.sleep(0.05)


def _bearer(credential: str | None) -> dict[str, str]:
    return {} if credential is None else {"Authorization": f"Bearer {credential}"}
