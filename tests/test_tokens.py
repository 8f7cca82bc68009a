"""Minting tokens."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from synap_realtime import ConfigurationError, InvalidArgumentError, mint_token
from tests.support.credentials import SECRET


def test_token_holds_user_scopes_and_expiry() -> None:
    token = mint_token(
        "1", rooms=["request_*"], scope="subscribe presence", device="phone", expires_in_s=60,
        secret=SECRET, issuer="me", audience="rooms",
    )  # fmt: skip
    claims = jwt.decode(token, SECRET, ["HS256"], audience="rooms", issuer="me")
    assert abs(claims.pop("exp") - time.time() - 60) < 5
    assert abs(claims.pop("iat") - time.time()) < 5
    assert len(claims.pop("jti")) == 36
    assert claims == {
        "sub": "1", "rooms": ["request_*"], "scope": "subscribe presence", "device": "phone",
        "iss": "me", "aud": "rooms",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"user_id": "a b"}, "user_id"),
        ({"rooms": ["nonsense!"]}, "rooms"),
        ({"rooms": ["synap_revocations"]}, "rooms"),
        ({"scope": "everything"}, "scope"),
        ({"scope": ""}, "scope"),
        ({"device": "a b"}, "device"),
        ({"expires_in_s": 0}, "expires_in_s"),
        ({"expires_in_s": float("nan")}, "expires_in_s"),
        ({"expires_in_s": float("inf")}, "expires_in_s"),
    ],
)
def test_invalid_argument_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        mint_token(**options, secret=SECRET)
    assert caught.value.field == field


@pytest.mark.parametrize("secret", [None, "shhh"])
def test_a_secret_is_needed_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, secret: str | None
) -> None:
    monkeypatch.delenv("REALTIME_TOKEN_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="at least 32 bytes") as caught:
        mint_token("1", secret=secret)
    assert "shhh" not in str(caught.value)
