"""The routes of the web app."""

import os
from typing import Any

import jwt
import pytest
from django.contrib.staticfiles import finders
from django.test import Client
from kombu.exceptions import OperationalError
from reports import tasks


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of the jobs that are started."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks.create_report, "delay", lambda title, **names: calls.append(names))
    return calls


def claims(client: Client) -> dict[str, Any]:
    token = client.post("/api/realtime-token").json()["token"]
    return jwt.decode(token, os.environ["REALTIME_TOKEN_SECRET"], algorithms=["HS256"])


def post_report(client: Client, title: str) -> Any:
    return client.post("/api/reports", {"title": title}, content_type="application/json")


def test_starts_a_job_of_the_user_and_names_its_room(started: list[dict[str, Any]]) -> None:
    client = Client()
    user = claims(client)["sub"]
    answer = post_report(client, "Q3")
    assert answer.status_code == 202
    request_id = answer.json()["requestId"]
    assert started == [{"failures": 0, "user_id": user, "request_id": request_id}]


def test_token_opens_the_rooms_of_one_user() -> None:
    browser = Client()
    own, same, other = claims(browser), claims(browser), claims(Client())
    assert own["sub"] == same["sub"] != other["sub"]
    assert own["rooms"] == ["request_*"]
    assert own["scope"] == "subscribe"


def test_rejects_a_report_without_a_title(started: list[dict[str, Any]]) -> None:
    assert post_report(Client(), "").status_code == 422
    assert started == []


def test_rejects_a_request_that_another_site_forged(started: list[dict[str, Any]]) -> None:
    assert post_report(Client(enforce_csrf_checks=True), "Q3").status_code == 403
    assert started == []


def test_user_reads_that_a_job_was_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def delay(title: str, **names: object) -> None:
        raise OperationalError

    monkeypatch.setattr(tasks.create_report, "delay", delay)
    assert post_report(Client(), "Q3").status_code == 503


def test_serves_the_page_and_what_it_loads() -> None:
    page = Client().get("/")
    assert b"/static/page.js" in page.content
    assert "csrftoken" in page.cookies
    for name in ("page.js", "page.css", "requests.js", "synap-realtime.js"):
        assert finders.find(name)
