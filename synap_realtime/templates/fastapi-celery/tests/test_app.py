"""The routes of the web app."""

import os
from typing import Any

import jobs
import jwt
import pytest
from app import app
from fastapi.testclient import TestClient
from kombu.exceptions import OperationalError


@pytest.fixture
def client() -> TestClient:
    return TestClient(app)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of the jobs that are started."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(jobs.create_report, "delay", lambda title, **names: calls.append(names))
    return calls


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, os.environ["REALTIME_TOKEN_SECRET"], algorithms=["HS256"])


def test_starts_a_job_of_the_user_and_names_its_room(
    client: TestClient, started: list[dict[str, Any]]
) -> None:
    user = claims(client.post("/api/realtime-token").json()["token"])["sub"]
    answer = client.post("/api/reports", json={"title": "Q3"})
    assert answer.status_code == 202
    request_id = answer.json()["requestId"]
    assert started == [{"failures": 0, "user_id": user, "request_id": request_id}]


def test_token_opens_the_rooms_of_one_user(client: TestClient) -> None:
    own, same, other = (
        claims(each.post("/api/realtime-token").json()["token"])
        for each in (client, client, TestClient(app))
    )
    assert own["sub"] == same["sub"] != other["sub"]
    assert own["rooms"] == ["request_*"]
    assert own["scope"] == "subscribe"


def test_rejects_a_report_without_a_title(
    client: TestClient, started: list[dict[str, Any]]
) -> None:
    assert client.post("/api/reports", json={"title": ""}).status_code == 422
    assert started == []


def test_user_reads_that_a_job_was_not_started(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delay(title: str, **names: object) -> None:
        raise OperationalError

    monkeypatch.setattr(jobs.create_report, "delay", delay)
    assert client.post("/api/reports", json={"title": "Q3"}).status_code == 503


def test_serves_the_page_and_what_it_loads(client: TestClient) -> None:
    assert "/static/page.js" in client.get("/").text
    for name in ("page.js", "page.css", "requests.js", "synap-realtime.js"):
        assert client.get(f"/static/{name}").status_code == 200
