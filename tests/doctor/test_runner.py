"""A check that raises or hangs does not hide the other findings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from synap_realtime.doctor import installation
from synap_realtime.doctor.context import CheckContext
from synap_realtime.doctor.finding import Finding, redact
from tests.support.waits import SetWaits

from .conftest import diagnosis

OTHERS = {"store", "health", "WebSocket", "clock"}


async def test_check_that_raises_is_a_finding(rooms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check_odd(_: CheckContext) -> AsyncGenerator[Finding]:
        yield Finding("ok", "first", "found before")
        raise ZeroDivisionError

    monkeypatch.setattr(installation, "CHECKS", (check_odd,))
    found = await diagnosis(rooms, store="memory://")
    assert found["first"].level == "ok"
    assert (found["odd"].level, found["clock"].level) == ("fail", "ok")
    assert found.keys() >= OTHERS


async def test_check_that_hangs_is_a_finding(
    rooms: str, monkeypatch: pytest.MonkeyPatch, set_waits: SetWaits
) -> None:
    async def check_odd(_: CheckContext) -> AsyncGenerator[Finding]:
        await asyncio.Event().wait()
        yield Finding("ok", "never", "")

    monkeypatch.setattr(installation, "CHECKS", (check_odd,))
    set_waits(doctor_limit_s=3.0)
    found = await diagnosis(rooms, store="memory://")
    assert found["odd"].level == "fail"
    assert found.keys() >= OTHERS


def test_no_secret_is_shown_that_another_program_echoes() -> None:
    original = Finding("fail", "x", "got hunter22-long and hunter22", "see http://u:pw@h/")
    shown = redact(original, {"hunter22", "hunter22-long", "x", ""})
    assert str(shown) == "fail  x              got … and …; see http://…@h/"
