"""A refused broadcast names the server, the cause and the setting; a retry only where it helps."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from synap_realtime.broadcast.endpoint import Endpoint
from synap_realtime.broadcast.responses import ApiResponse
from synap_realtime.broadcast.retry import RetryPolicy
from synap_realtime.documentation import Topic, see
from tests.broadcast.hostile_server import answering, raw

from .conftest import Publish


@dataclass(frozen=True)
class Case:
    """What a server answers, and what the result says of it.

    Attributes:
        says: parts of the error, beside the server's address; ``SOURCE`` and ``KEY`` stand for
            what the address and the key were read from.
        says_not: parts that would name a wrong culprit.
    """

    status: str
    body: object
    says: tuple[str, ...]
    says_not: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


def problem(error: str, details: str) -> dict[str, str]:
    return {"error": error, "details": details, "code": "x"}


NOTIFICATION: tuple[Any, ...] = ("broadcast_success", "1", "a.b", {})
HTML = "<html>Welcome to nginx!</html>"
API_KEYS = "one of the server's API keys"
CASES = {
    "no key": Case(
        "401 Unauthorized", problem("Unauthorized", "no credential"),
        ("answered 401: Unauthorized: no credential;", API_KEYS),
    ),
    "scope": Case(
        "403 Forbidden", problem("Forbidden", "the token lacks scope 'broadcast'"),
        ("answered 403: Forbidden: the token lacks scope 'broadcast'; check KEY",),
    ),
    "room": Case(
        "403 Forbidden", problem("Forbidden", "the key does not grant access to this room"),
        ("answered 403: Forbidden: the key does not grant access to this room; check KEY",),
    ),
    "authorizer": Case(
        "403 Forbidden", problem("Forbidden", "denied by authorizer"),
        ("answered 403: Forbidden: denied by authorizer",), ("KEY", "check"),
    ),
    "no keys there": Case(
        "403 Forbidden", problem("Authentication not configured", "10.0.0.1 is not this machine"),
        ("answered 403: Authentication not configured: 10.0.0.1 is not this machine",),
        ("KEY", "check"),
    ),
    "too large": Case(
        "413 Too Large", problem("Too large", "a body has at most 5 bytes"),
        ("answered 413: Too large: a body has at most 5 bytes",), ("KEY",),
    ),
    "invalid": Case(
        "422 Unprocessable", problem("Invalid notification", "type: too long"),
        ("answered 422: Invalid notification: type: too long",), ("KEY",),
    ),
    "proxy's page": Case(
        "403 Forbidden", HTML,
        ("answered 403 with an HTML page, which no room server sends; check SOURCE",), ("KEY",),
    ),
    "another login": Case(
        "401 Unauthorized", HTML, ("answered 401 with an HTML page",), ("KEY", API_KEYS)
    ),
    "no method": Case("501 Not Implemented", HTML, ("answered 501 with an HTML page",), ("KEY",)),
    "old HTTP": Case("505 Version", "", ("answered 505",), ("KEY",)),
    "moved": Case(
        "301 Moved", HTML, ("answered 301 and redirects to https://b.example/; set SOURCE",),
        ("KEY", "code=1"), {"Location": "https://b.example/?code=1"},
    ),
    "nothing there": Case("404 Not Found", HTML, ("is not a room server (HTTP 404)",)),
    "everything is fine": Case("200 OK", HTML, ("is not a room server (HTTP 200)",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_refusal_names_the_server_the_cause_and_the_setting(
    case: Case, by_variable: bool, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = case.body if isinstance(case.body, str) else json.dumps(case.body)
    headers = [f"{name}: {value}" for name, value in case.headers.items()]
    key = "k" * 40
    with answering(raw(case.status, body.encode(), *headers)) as url:
        if by_variable:
            monkeypatch.setenv("REALTIME_URL", url)
            monkeypatch.setenv("REALTIME_API_KEY", key)
            result = publish(*NOTIFICATION, options={"deadline_s": 5})
        else:
            result = publish(*NOTIFICATION, options={"url": url, "api_key": key, "deadline_s": 5})
    error = result.error or ""
    source, key_name = ("REALTIME_URL", "REALTIME_API_KEY") if by_variable else ("url=", "api_key=")
    assert error.startswith(f"{url} ({source}) ")
    for part in case.says:
        assert part.replace("SOURCE", source).replace("KEY", key_name) in error
    for part in case.says_not:
        assert part.replace("KEY", key_name) not in error
    others = {"REALTIME_URL", "REALTIME_API_KEY", "url=", "api_key="} - {source, key_name}
    assert not [name for name in others if name in error]
    assert "\n" not in error
    # Two where the server may be one of the report's, which has another route.
    assert result.attempts <= 2


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_an_unreachable_server_is_named_with_the_systems_reason(publish: Publish) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    error = publish(*NOTIFICATION, options={"url": url, "deadline_s": 0.3}).error
    refused = "Connection refused; is the server running (synap-realtime serve)?"
    assert error == f"{url} (url=) could not be reached: {refused}{see(Topic.NO_PUBLISH)}"


def test_an_unknown_name_is_not_a_server_that_does_not_run(publish: Publish) -> None:
    url = "http://nowhere.invalid"
    error = publish(*NOTIFICATION, options={"url": url, "deadline_s": 2}).error or ""
    # Where no resolver answers, it is a look-up that did not end in time.
    assert error.startswith(f"{url} (url=) ")
    assert "no address is known" in error or "in time" in error
    assert "running" not in error


def test_the_default_address_is_called_so() -> None:
    assert Endpoint(None, None).named == (
        "http://127.0.0.1:8787 (the default; set REALTIME_URL to change it)"
    )


@pytest.mark.parametrize(
    ("status", "helps"), [(500, True), (501, False), (503, True), (505, False)]
)
def test_a_server_of_another_kind_is_not_asked_again(status: int, helps: bool) -> None:
    assert RetryPolicy().is_retriable(ApiResponse(status=status)) == helps
