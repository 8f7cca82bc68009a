"""The routes of the web app."""

import os
from typing import Any

import inngest
import jobs
import jwt
import pytest
from app import app
from fastapi.testclient import TestClient


def new_client() -> TestClient:
    """A browser on this machine; see ``LocalOnly`` in ``app.py``."""
    return TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000))


@pytest.fixture
def client() -> TestClient:
    return new_client()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The data of the events that are sent."""
    events: list[dict[str, Any]] = []

    async def send(event: inngest.Event) -> list[str]:
        events.append(dict(event.data))
        return []

    monkeypatch.setattr(jobs.client, "send", send)
    return events


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, os.environ["REALTIME_TOKEN_SECRET"], algorithms=["HS256"])


def test_starts_a_job_of_the_user_and_names_its_room(
    client: TestClient, started: list[dict[str, Any]]
) -> None:
    user = claims(client.post("/api/realtime-token").json()["token"])["sub"]
    answer = client.post("/api/reports", json={"title": "Q3"})
    assert answer.status_code == 202
    request_id = answer.json()["requestId"]
    (data,) = started
    assert data == {"title": "Q3", "failures": 0, "userId": user, "requestId": request_id}


def test_token_opens_the_rooms_of_one_user(client: TestClient) -> None:
    own, same, other = (
        claims(each.post("/api/realtime-token").json()["token"])
        for each in (client, client, new_client())
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
    async def send(event: inngest.Event) -> list[str]:
        raise ConnectionError

    monkeypatch.setattr(jobs.client, "send", send)
    assert client.post("/api/reports", json={"title": "Q3"}).status_code == 503


def test_serves_the_page_and_what_it_loads(client: TestClient) -> None:
    assert "/static/page.js" in client.get("/").text
    for name in ("page.js", "page.css", "requests.js", "synap-realtime.js"):
        assert client.get(f"/static/{name}").status_code == 200


def test_rejects_a_page_of_another_site(client: TestClient, started: list[dict[str, Any]]) -> None:
    headers = {"Origin": "https://other.example"}
    for path in ("/api/reports", "/api/inngest?fnId=reports-create-report&stepId=step"):
        assert client.post(path, json={"title": "Q3"}, headers=headers).status_code == 403
    assert started == []
