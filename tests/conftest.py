"""Fixtures that all tests share: a real room server on a free port."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from synap_realtime.server import create_app
from synap_realtime.server.serve import running_server
from tests.support.httpx_defaults import set_defaults
from tests.support.waits import SetWaits, wait_setter

set_defaults()


INTEGRATION = (
    "benchmarks", "deploy", "docs", "examples", "fuzz", "integrations", "release", "typescript",
    "worker",
)  # fmt: skip
TIERS = {
    "browser": "browser",
    "chaos": "chaos",
    "conformance": "conformance",
    "roots": "roots",
    **dict.fromkeys(INTEGRATION, "integration"),
}
"""The tier of the tests of a folder, unless a module names its own. Other tests are of the tier
"unit"; see CONTRIBUTING.md."""

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier: its own marker, else that of its folder."""
    for item in items:
        if item.path.is_relative_to(HERE) and not any(map(item.get_closest_marker, TIERS.values())):
            item.add_marker(TIERS.get(item.path.relative_to(HERE).parts[0], "unit"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds", type=int, default=5, help="times that the server is killed in tests/chaos"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Refuse to mint a token while test modules are imported.

    It would expire after 15 minutes, before its tests run where the suite is slow.
    """
    error = RuntimeError(
        "mint the token in the test: one minted at import may expire before it runs"
    )
    with mock.patch("synap_realtime.tokens._sign", side_effect=error):
        return (yield)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own environment changes no test."""
    for name in ("REALTIME_URL", "REALTIME_API_KEY", "INNGEST_DEV", "INNGEST_EVENT_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _invalid_names_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a name server takes 5 s to say so. RFC 6761, section 6.4."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if str(host).rstrip("'").endswith(".invalid"):  # or bytes
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def set_waits(monkeypatch: pytest.MonkeyPatch) -> SetWaits:
    """Set waits of the package until the end of the test: see :mod:`tests.support.waits`."""
    return wait_setter(monkeypatch)


@pytest.fixture
async def rooms() -> AsyncIterator[str]:
    """The address of a room server with an empty memory store."""
    async with running_server(create_app()) as url:
        yield url
