"""The five handlers end to end with the Worker as their server: only REALTIME_URL differs."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from synap_realtime.demo import Config, open_backend
from synap_realtime.demo.app import create_app
from synap_realtime.demo.once import EXPECTED, do_each_once
from synap_realtime.demo.process import free_port
from synap_realtime.integrations.inngest.local import LocalInngest
from synap_realtime.server.serve import running_server


async def test_all_five(
    open_worker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REALTIME_URL", open_worker)
    logging.getLogger("httpx").setLevel("WARNING")
    port = free_port(0)
    config = Config(tmp_path, app_url=f"http://127.0.0.1:{port}", realtime_url=open_worker)
    async with AsyncExitStack() as stack:
        local = LocalInngest([f"{config.app_url}/api/inngest"])
        inngest_url = await stack.enter_async_context(running_server(local))
        config = replace(config, inngest_url=inngest_url)
        backend = await stack.enter_async_context(open_backend(config))
        await stack.enter_async_context(running_server(create_app(config, backend), port=port))
        await local.registered()
        assert await do_each_once(config.app_url, open_worker, print) == 0
    said = capsys.readouterr().out
    for type in EXPECTED.values():
        assert type in said
