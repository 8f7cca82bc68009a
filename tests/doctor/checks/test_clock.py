"""This machine's clock against that of a server."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from ..conftest import HEALTH, Answer, answering, diagnosis


@pytest.mark.parametrize(
    ("by_s", "level", "said"),
    [
        (0, "ok", "agrees"), (8, "warn", "behind"), (-9, "warn", "ahead of"),
        (60, "fail", "behind"), (-60, "fail", "ahead of"),
    ],
)  # fmt: skip
async def test_a_server_with_another_time(by_s: float, level: str, said: str) -> None:
    def answer(_: str) -> Answer:
        return 200, {"Date": formatdate(time.time() + by_s, usegmt=True)}, HEALTH

    async with answering(answer) as url:
        found = (await diagnosis(url))["clock"]
    assert (found.level, said in found.found) == (level, True), found
    assert level == "ok" or "NTP" in found.advice


async def test_more_leeway_allows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_TOKEN_LEEWAY_S", "300")
    date = formatdate(time.time() + 60, usegmt=True)
    async with answering(lambda _: (200, {"Date": date}, HEALTH)) as url:
        assert (await diagnosis(url))["clock"].level == "ok"


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Jan 9999 00:00:00 GMT", "1 Jan 2026"])
async def test_no_time_is_not_taken_for_a_good_one(date: str) -> None:
    async with answering(lambda _: (200, {"Date": date}, HEALTH)) as url:
        assert (await diagnosis(url))["clock"].level == "warn"


async def test_the_room_server_reports_its_time(rooms: str) -> None:
    assert (await diagnosis(rooms))["clock"].level == "ok"
