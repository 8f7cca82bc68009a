"""Clients recognize a rejection that another credential would avoid."""

from __future__ import annotations

from typing import Any

import pytest

from synap_realtime.protocol.rejections import blames_credential


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
