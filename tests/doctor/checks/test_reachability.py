"""Findings about the path to the room server, and about the server that responds there."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.support.certificates import certify
from tests.support.timeouts import TIMEOUT_S

from ..conftest import HEALTH, answering, diagnosis


async def test_a_room_server(rooms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_URL", rooms)
    monkeypatch.setenv("REALTIME_PUBLIC_URL", rooms.replace("http", "ws"))
    found = await diagnosis()
    checks = ("network", "health", "ready", "public URL")
    assert {found[check].level for check in checks} == {"ok"}


async def test_reports_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = await diagnosis(f"http://127.0.0.1:{port}")
    assert (found["network"].level, "refused" in found["network"].found) == ("fail", True)
    assert "synap-realtime serve" in found["network"].advice
    assert (found["round trip"].level, found["clock"].level) == ("warn", "warn")


async def test_reports_an_unknown_host_name() -> None:
    assert (await diagnosis("http://nowhere.invalid"))["DNS"].level == "fail"


async def test_reports_an_invalid_address() -> None:
    found = (await diagnosis("ftp://u:hunter22@example.com"))["address"]
    assert (found.level, "hunter22" in found.found) == ("fail", False)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<html>hello</html>", "is not a room server"),
        (404, "", "is not a room server"),
        (502, "", "answered 502"),
        (301, "", "redirects to https://elsewhere.example/health"),
    ],
)
async def test_reports_another_kind_of_server(status: int, body: str, said: str) -> None:
    headers = {"Location": "https://u:hunter22@elsewhere.example/health"} if status == 301 else {}
    async with answering(lambda _: (status, headers, body)) as url:
        found = await diagnosis(url)
    health = found["health"]
    assert (health.level, said in health.found.replace("…@", "")) == ("fail", True), health
    assert "hunter22" not in health.found
    assert "ready" not in found


async def test_reports_a_server_that_speaks_no_http() -> None:
    async with answering(lambda _: (0, {"a\r\n b": "x\0"}, "")) as url:
        assert (await diagnosis(url))["health"].level == "fail"


async def test_unresponsive_server_does_not_delay_other_checks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(TIMEOUT_S):
            found = await diagnosis(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert (found["health"].level, "within" in found["health"].found) == ("fail", True)
    assert "clock" in found


async def test_a_server_that_is_not_ready() -> None:
    drains = '{"error":"Unavailable","details":"the server drains"}'
    async with answering(
        lambda path: (200, {}, HEALTH) if path == "/health" else (503, {}, drains)
    ) as url:
        found = (await diagnosis(url))["ready"]
    assert (found.level, "the server drains" in found.found) == ("fail", True)


async def test_the_public_address_is_another(rooms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(lambda _: (404, {}, "")) as url:
        monkeypatch.setenv("NEXT_PUBLIC_REALTIME_URL", url)
        found = await diagnosis(rooms)
    assert (found["health"].level, found["public URL"].level) == ("ok", "fail")
    assert "NEXT_PUBLIC_REALTIME_URL" in found["public URL"].advice


# 0.0.0.0 leads to this machine, and does not count as a loopback address, for which no setting of
# the environment counts.
HOST = "0.0.0.0"


@pytest.mark.parametrize(("days", "level"), [(90, "ok"), (5, "warn"), (-1, "fail")])
async def test_a_certificate(
    days: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certified = certify(tmp_path, days, HOST)
    monkeypatch.setenv("SSL_CERT_FILE", str(certified.root))
    async with answering(lambda _: (200, {}, HEALTH), HOST, certified.server()) as url:
        found = await diagnosis(url)
    assert found["certificate"].level == level, found
    assert ("health" in found) == (level != "fail")


async def test_reports_an_untrusted_certificate(tmp_path: Path) -> None:
    context = certify(tmp_path, 90, HOST).server()
    async with answering(lambda _: (200, {}, HEALTH), HOST, context) as url:
        found = (await diagnosis(url))["certificate"]
    assert (found.level, "issuer" in found.found) == ("fail", True), found


async def test_no_tls_where_it_is_expected(rooms: str) -> None:
    found = (await diagnosis(rooms.replace("http:", "https:")))["TLS"]
    assert (found.level, "http://" in found.advice) == ("fail", True)
