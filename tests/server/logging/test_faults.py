"""Internal errors are counted, and logged at a bounded rate."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest

from synap_realtime.server import create_app
from synap_realtime.server.http.routes import Router
from synap_realtime.server.logging import faults
from synap_realtime.server.serve import running_server


async def test_errors_of_the_server_are_bounded_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a route, in a callback and in a task of the loop."""

    async def broken(*_: object) -> None:
        raise LookupError("what the peer has sent")

    monkeypatch.setattr(Router, "handle", broken)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(None)
    async with running_server(create_app()) as url:
        async with httpx.AsyncClient() as client:
            for _ in range(2 * faults.MAX_LINES_PER_S):
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.get(f"{url}/health")
        for _ in range(2 * faults.MAX_LINES_PER_S):
            loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)
        monkeypatch.undo()
        async with httpx.AsyncClient() as client:
            shown = (await client.get(f"{url}/metrics")).text
    assert f"internal_errors_total {4 * faults.MAX_LINES_PER_S}.0" in shown
    lines = [r for r in caplog.records if r.name == faults.logger.name]
    assert 0 < len(lines) <= 3 * faults.MAX_LINES_PER_S
    assert all(r.exc_info is None and len(r.getMessage()) < 300 for r in lines)
    assert "LookupError at test_faults.py" in lines[0].getMessage()
    assert "what the peer has sent" not in caplog.text
    assert not [r for r in caplog.records if r.name == "asyncio"]


def test_debug_log_holds_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, faults.logger.name)
    try:
        raise LookupError
    except LookupError as error:
        faults.report("request failed", error)
    assert caplog.records[-1].exc_info
    assert [each.levelno for each in caplog.records if each.exc_info] == [logging.DEBUG]
