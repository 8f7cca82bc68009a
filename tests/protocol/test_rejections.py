"""Clients recognize a rejection that another credential would avoid."""

from __future__ import annotations

from typing import Any

import pytest

from synap_realtime.protocol.rejections import blames_credential, reason_of


@pytest.mark.parametrize("details", ["the token lacks scope 'broadcast'", "the key is too weak"])
def test_recognizes_a_rejected_credential(details: str) -> None:
    assert blames_credential({"error": "Forbidden", "details": details, "code": "forbidden"})


@pytest.mark.parametrize(
    "body",
    [
        {"error": "Forbidden", "details": "denied by authorizer", "code": "forbidden"},
        {"error": "Forbidden", "details": "the keyboard", "code": "forbidden"},
        {"error": "Origin not allowed", "details": "the token of another page"},
        {"error": "Forbidden", "details": ["the token "]},
        {"error": "Forbidden"},
        "the token ",
        None,
    ],
)
def test_other_rejections_do_not_concern_the_credential(body: Any) -> None:
    assert not blames_credential(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "Forbidden", "details": "denied"}, "Forbidden: denied"),
        ({"error": "Forbidden", "details": 1}, "Forbidden"),
        ({"details": "denied"}, None),
        ("<html>", None),
    ],
)
def test_reads_the_reason_of_a_room_server_only(body: Any, reason: str | None) -> None:
    assert reason_of(body) == reason
