"""Responses to a request whose work is done later."""

from __future__ import annotations

import time

import jwt
import pytest

from synap_realtime import ConfigurationError, InvalidArgumentError
from synap_realtime.jobs import accepted_response, new_request_id
from tests.support.credentials import SECRET


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "PUBLIC_URL", "TOKEN_SECRET"):
        monkeypatch.delenv(f"REALTIME_{name}", raising=False)
    monkeypatch.delenv("NEXT_PUBLIC_REALTIME_URL", raising=False)


def test_body_names_the_room_to_subscribe_to() -> None:
    assert accepted_response("r1", url="https://rt.example.com/v1") == {
        "status": "pending",
        "requestId": "r1",
        "subscribe": {
            "url": "wss://rt.example.com/v1/rooms/request_r1/subscribe",
            "token": None,
        },
    }


def test_the_browsers_address_goes_before_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def host() -> str:
        return str(accepted_response("r1")["subscribe"]["url"]).split("/")[2]

    assert host() == "127.0.0.1:8787"
    for name in ("REALTIME_URL", "NEXT_PUBLIC_REALTIME_URL", "REALTIME_PUBLIC_URL"):
        where = name.lower().replace("_", "-")
        monkeypatch.setenv(name, f"http://{where}")
        assert host() == where


def test_the_token_opens_this_room_for_a_quarter_of_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REALTIME_TOKEN_SECRET", SECRET)
    token = accepted_response("r1")["subscribe"]["token"]
    claims = jwt.decode(token, SECRET, algorithms=["HS256"])
    assert claims["rooms"] == ["request_r1"]
    assert claims["scope"] == "subscribe"
    assert "sub" not in claims  # that would open the user's room, too
    assert claims["exp"] - claims["iat"] == 900
    assert abs(claims["iat"] - time.time()) < 60
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, "x" * 32, algorithms=["HS256"])


def test_invalid_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="request_id: "):
        accepted_response("a/b")
    with pytest.raises(ConfigurationError, match="at least 32 bytes") as caught:
        accepted_response("r1", secret="hunter2")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="url: expected"):
        accepted_response("r1", url="ftp://x")
    monkeypatch.setenv("REALTIME_PUBLIC_URL", "nonsense")
    with pytest.raises(ConfigurationError, match="REALTIME_PUBLIC_URL: expected"):
        accepted_response("r1")


def test_no_two_requests_have_one_id() -> None:
    assert len({new_request_id() for _ in range(1000)}) == 1000
