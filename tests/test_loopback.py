"""Admission to the servers of a developer's machine, as far as wire tests cannot show it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from synap_realtime.loopback import LocalOnly, host_of, is_visit, strip_port


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def status(
    headers: list[tuple[str, str]],
    *,
    method: str = "GET",
    path: str = "/",
    peer: tuple[str, int] | None = ("127.0.0.1", 1),
    **options: Any,
) -> int:
    guarded = LocalOnly(app, name="app", **options)
    transport = httpx.ASGITransport(guarded, client=peer)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return (await client.request(method, path, headers=headers)).status_code


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (("127.0.0.1", 1), 200), (("::1", 1), 200), (("::ffff:127.0.0.1", 1), 200), (None, 200),
        (("192.168.1.2", 1), 403), (("::ffff:10.0.0.1", 1), 403), (("testclient", 1), 403),
    ],
)  # fmt: skip
async def test_admits_peers_of_this_machine(peer: tuple[str, int] | None, expected: int) -> None:
    assert await status([], peer=peer) == expected


async def test_admits_neither_of_two_hosts_or_origins() -> None:
    own = ("Origin", "http://127.0.0.1")
    assert await status([own]) == 200
    assert await status([own, ("Origin", "https://evil.example")]) == 403
    assert await status([own, own]) == 403
    assert await status([("Host", "127.0.0.1"), ("Host", "evil.example")]) == 403


@pytest.mark.parametrize(
    "authority",
    [
        "evil.example[::1]", "[::1].evil.example", "[::1]evil.example", "localhost:evil.example",
        "127.0.0.1:80:80", "evil.example@localhost", "[::1%25evil.example]", "[::1", "::1", "",
        "localhost:123456", "localhost evil.example",
    ],
)  # fmt: skip
async def test_authority_that_parsers_read_differently_is_no_host(authority: str) -> None:
    assert host_of(f"//{authority}") == ""
    assert await status([("Host", authority)]) == 403


def test_host_of_url_is_in_lower_case_without_port() -> None:
    assert host_of("http://LOCALHOST:3000/path") == "localhost"
    assert host_of("//localhost:") == "localhost"
    assert host_of("//[::1]:80") == "::1"


async def test_origin_without_a_host_allows_no_empty_host() -> None:
    assert await status([("Host", "")], allowed_origins=["null", "file://"]) == 403


@pytest.mark.parametrize(
    ("method", "path", "mode", "dest", "expected"),
    [
        ("GET", "/", "navigate", "document", 200),
        ("GET", "/", "navigate", "iframe", 403),
        ("GET", "/", "no-cors", "document", 403),
        ("GET", "/", "no-cors", "image", 403),
        ("POST", "/", "navigate", "document", 403),
        ("GET", "/api", "navigate", "document", 403),
    ],
)
async def test_admits_visit_of_a_page_that_may_be_linked_to(
    method: str, path: str, mode: str, dest: str, expected: int
) -> None:
    headers = [
        ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest),
    ]  # fmt: skip
    assert await status(headers, method=method, path=path, pages=("/",)) == expected


def test_visit_is_a_document_in_a_tab() -> None:
    assert not is_visit("GET", {})


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("127.0.0.1:5555", "127.0.0.1"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("::1", "::1"),
        ("127.0.0.1", "127.0.0.1"), ("evil.example:80", "evil.example:80"), ("", ""),
        ("127.0.0.1:evil", "127.0.0.1:evil"),
    ],
)  # fmt: skip
def test_strips_port_of_an_address(given: str, address: str) -> None:
    assert strip_port(given) == address
