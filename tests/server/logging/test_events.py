"""The log names cause, room, user and origin of a refusal on every route."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from synap_realtime import mint_token
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.logging.events import (
    MAX_LINES_PER_CALLER_S,
    MAX_LINES_PER_S,
    RateLimitFilter,
)
from synap_realtime.server.serve import running_server
from tests.support.servers import Front
from tests.support.timeouts import TIMEOUT_S

SECRET, KEY = "s" * 43, "k" * 43
PAGE = "https://app.example.com"


@dataclass(frozen=True)
class Case:
    """A credential, the page that sends it, and the fields of the log line that are expected.

    Attributes:
        user: whose token is sent; None sends ``credential``.
    """

    code: str
    details: str
    fields: dict[str, str]
    user: str | None = None
    expires_in_s: float = 60
    credential: str = ""
    origin: str | None = None


CASES = {
    "no credential": Case("unauthorized", "no credential: ", {}),
    "unknown key": Case("unauthorized", "unknown key: ", {}, credential="x"),
    "forged": Case(
        "unauthorized", "invalid signature", {}, user="1", credential="forged", origin=PAGE
    ),
    "expired": Case("unauthorized", "token expired", {"user": "1"}, user="1", expires_in_s=-60),
    "expired, of a page": Case(
        "unauthorized", "token expired", {"user": "1"}, user="1", expires_in_s=-60, origin=PAGE
    ),
    "another's room": Case("forbidden", "the token does not grant", {"user": "2"}, user="2"),
    "another's room, of a page": Case(
        "forbidden", "the token does not grant", {"user": "2"}, user="2", origin=PAGE
    ),
    "foreign page": Case(
        "forbidden", "origin ", {}, user="1", origin="https://evil.example"
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_lines_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of lines is limited for each address, and all tests have the same one."""
    fresh = [RateLimitFilter(MAX_LINES_PER_S, MAX_LINES_PER_CALLER_S)]
    monkeypatch.setattr(logging.getLogger("synap_realtime.server.logging.events"), "filters", fresh)


@pytest.fixture
async def url(front: Front) -> AsyncIterator[str]:
    settings = load_settings(
        token_secrets=SECRET, api_keys=f"jobs={KEY}", allowed_origins=PAGE, token_leeway_s=0
    )
    async with front(create_app(settings)) as address:
        yield address


def headers_of(case: Case) -> dict[str, str]:
    credential = case.credential
    if case.user is not None:
        secret = "f" * 43 if credential == "forged" else SECRET
        credential = mint_token(case.user, secret=secret, expires_in_s=120)
        if case.expires_in_s < 0:
            credential = expired(case.user)
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    return headers if case.origin is None else {**headers, "Origin": case.origin}


def expired(user: str) -> str:
    import jwt

    return jwt.encode({"sub": user, "exp": 1_700_000_000}, SECRET, algorithm="HS256")


async def ask(url: str, transport: str, headers: dict[str, str]) -> None:
    if transport == "websocket":
        origin = headers.pop("Origin", None)
        with suppress(InvalidStatus, ConnectionClosed):
            async with connect(
                f"ws{url[4:]}/rooms/user_1/subscribe",
                additional_headers=headers,
                origin=None if origin is None else Origin(origin),
            ) as socket:
                await socket.recv()
        return
    route = {"http": "history", "sse": "events"}[transport]
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.get(f"/rooms/user_1/{route}", headers=headers)
        assert response.status_code in (401, 403)


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [vars(record) for record in caplog.records if record.getMessage() == "rejected"]


@pytest.mark.parametrize("transport", ["http", "sse", "websocket"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_the_log_names_cause_room_user_and_origin(
    case: Case, transport: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "synap_realtime.server.logging.events")
    await ask(url, transport, headers_of(case))
    # The client may have the response before the line is written.
    async with asyncio.timeout(TIMEOUT_S):
        while not refusals(caplog):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    (line,) = refusals(caplog)
    assert str(line["details"]).startswith(case.details)
    assert (line["room"], line["address"]) == ("user_1", "127.0.0.1")
    assert line.get("user") == case.fields.get("user")
    assert line.get("origin") == case.origin
    assert line["code"] == case.code


async def test_each_notification_of_a_batch_is_logged_with_its_room(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "synap_realtime.server.logging.events")
    token = mint_token("7", rooms=["request_*"], scope="broadcast", secret=SECRET)
    items = [
        {"type": "a", "data": {}, "rooms": ["request_1"]},
        {"type": "a", "data": {}, "rooms": ["request_2", "user_9"]},
        {"type": 5, "data": {}, "rooms": ["request_3"]},
        {"type": "a", "data": {}, "rooms": ["no room"]},
    ]
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.post(
            "/broadcast",
            content=json.dumps({"notifications": items}),
            headers={"Authorization": f"Bearer {token}"},
        )
    assert [result["success"] for result in response.json()["results"]] == [
        True, False, False, False,
    ]  # fmt: skip
    found = [(line["code"], line.get("room"), line["user"]) for line in refusals(caplog)]
    assert found == [
        ("forbidden", "user_9", "7"),
        ("invalid_request", "request_3", "7"),
        ("invalid_request", None, "7"),
    ]


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
async def test_read_of_a_job_that_has_not_begun_is_logged_for_debugging(
    caplog: pytest.LogCaptureFixture, level: int
) -> None:
    """A client that follows a job reads it first."""
    caplog.set_level(level, logger="synap_realtime.server")
    async with (
        running_server(create_app()) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        assert (await client.get("/jobs/r1")).status_code == 404
        assert (await client.get("/nothing")).status_code == 404
    expected = ["there is no record", "see PROTOCOL.md"] if level == logging.DEBUG else ["see PROT"]
    found = [str(each["details"]) for each in refusals(caplog)]
    assert len(found) == len(expected)
    assert all(details.startswith(start) for details, start in zip(found, expected, strict=True))
