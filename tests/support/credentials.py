"""Credentials that the tests' servers accept."""

from __future__ import annotations

from typing import Any

from synap_realtime.tokens import mint_token

SECRET, API_KEY = "s" * 32, "k" * 43
ORIGIN = "https://app.example"


def token(user: str | None = "1", **options: Any) -> str:
    return mint_token(user, secret=SECRET, **options)


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}
