"""A Worker on workerd, started for these tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.workerd import running


@dataclass(frozen=True, slots=True)
class Worker:
    """Where it is, and what it knows."""

    url: str
    api_key: str
    token_secret: str


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """One with keys."""
    api_key, token_secret = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    variables = {"API_KEYS": f"jobs={api_key}", "TOKEN_SECRETS": token_secret}
    with running(variables) as url:
        yield Worker(url, api_key, token_secret)


@pytest.fixture(scope="session")
def open_worker() -> Iterator[str]:
    """One without keys, as on a developer's machine. Its address."""
    with running({}) as url:
        yield url
