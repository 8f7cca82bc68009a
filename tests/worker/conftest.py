"""A Worker on workerd, started for these tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.support.workerd import RunningWorker, running


@pytest.fixture(scope="session")
def worker() -> Iterator[RunningWorker]:
    """One with keys."""
    api_key, token_secret = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    variables = {"API_KEYS": f"jobs={api_key}", "TOKEN_SECRETS": token_secret}
    with running(variables) as url:
        yield RunningWorker(url, api_key, token_secret)


@pytest.fixture(scope="session")
def open_worker() -> Iterator[str]:
    """One without keys, as on a developer's machine. Its address."""
    with running({}) as url:
        yield url
