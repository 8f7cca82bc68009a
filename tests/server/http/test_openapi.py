"""A real server matches its document at ``/openapi.json``."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.http.openapi import document
from synap_realtime.server.http.routes import route_table
from synap_realtime.server.serve import running_server
from tests.support.timeouts import TIMEOUT_S

EVENTS = "/rooms/{room}/events"
STREAMS = (EVENTS, "/events")
WEBSOCKETS = ("/rooms/{room}/subscribe", "/subscribe")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server in a thread of its own: Schemathesis asks without asyncio."""
    file: Path = tmp_path_factory.mktemp("openapi") / "rooms.db"
    store = "memory://" if request.param == "memory" else f"sqlite:///{file}"
    started: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def serve() -> None:
        stop = asyncio.Event()
        async with running_server(create_app(load_settings(store=store, drain_timeout_s=1))) as url:
            started.append((url, asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    url, loop, stop = started[0]
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


def filled(path: str) -> str:
    return re.sub("{.+}", "user_42", path)


async def test_the_served_document_is_this_one(rooms: str) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        assert (await client.get("/openapi.json")).json() == document()


def test_protocol_lists_the_same_routes() -> None:
    contract = (Path(__file__).parents[3] / "PROTOCOL.md").read_text()
    listed = re.findall(r"^\| `(GET|POST) (/\S+)` \|", contract, re.MULTILINE)
    paths: dict[str, Any] = document()["paths"]
    assert sorted(listed) == sorted(
        (method.upper(), path)
        for path, operations in paths.items()
        for method in operations
        if method != "parameters"
    )


def test_the_document_describes_each_route() -> None:
    handlers = Mock()
    table = route_table(handlers, handlers, handlers, handlers, handlers, handlers, None)
    documented = {
        (path, method.upper())
        for path, operations in document()["paths"].items()
        for method in operations
        if method != "parameters"
    }
    assert {(path, route.method) for path, route in table.items()} == documented


async def test_each_documented_route_accepts_only_its_methods(rooms: str) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        for path, operations in document()["paths"].items():
            for method in METHODS:
                async with client.stream(method, filled(path)) as response:
                    said = (path, method, response.status_code)
                    if (operation := operations.get(method.lower())) is not None:
                        assert str(response.status_code) in operation["responses"], said
                    else:
                        assert response.status_code == 405, said
                        assert response.headers["Allow"].lower() in operations


async def test_head_answers_as_get_without_the_body(rooms: str) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        for path, operations in document()["paths"].items():
            head = await client.head(filled(path))
            assert head.content == b""
            if "get" not in operations:
                assert head.status_code == 405
                continue
            async with client.stream("GET", filled(path)) as get:
                assert head.status_code == get.status_code
                assert head.headers["Content-Type"] == get.headers["Content-Type"]


async def test_no_route_is_missing_in_the_document(rooms: str) -> None:
    """PUT distinguishes them: a route responds with 405, a missing one with 404."""
    documented = {filled(path) for path in document()["paths"]}
    words = {word for path in documented for word in path[1:].split("/")} | {"metrics", "docs"}
    tried = [
        "/" + "/".join(part)
        for length in (1, 2, 3)
        for part in itertools.product(sorted(words), repeat=length)
        if length < 3 or part[1] == "user_42"
    ]
    found = set()
    async with httpx.AsyncClient(base_url=rooms) as client:
        for path in ["/", *tried]:
            response = await client.put(path)
            assert response.status_code in (404, 405)
            if response.status_code == 405:
                found.add(path)
    # What is below rooms/ and jobs/ is such a route, whatever it is: it is checked later.
    others = re.compile("/rooms/(?!user_42/)|/jobs/(?!user_42)")
    assert {path for path in found if not others.match(path)} == documented


# A body that is too large for its schema (more than 1,000 items) is refused with 413, and
# /subscribe answers 426 before it looks at `after`: both are refusals.
schema = schemathesis.openapi.from_dict(
    document(),
    config=schemathesis.Config.from_dict(
        {"checks": {"negative_data_rejection": {"expected-statuses": [400, 413, 415, 426]}}}
    ),
)


# /events does not end, so that a client which reads answers whole never returns: it has a test of
# its own below.
@schema.exclude(path=EVENTS).exclude(path="/events").parametrize()
@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
def test_every_response_matches_the_document(
    case: schemathesis.Case[schemathesis.APIOperation[Any, Any, Any, Any]], served: str
) -> None:
    # A valid request for a WebSocket needs an upgrade, which HTTP clients cannot ask for.
    without: list[schemathesis.CheckFunction] = (
        [positive_data_acceptance] if case.path in WEBSOCKETS else []
    )
    case.call_and_validate(base_url=served, excluded_checks=without, timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("room", "query", "status"),
    [
        ("user_42", "", 200),
        ("user_42", "?after=", 200),
        ("user_42", "?after=earliest", 200),
        ("user_42", "?after=latest", 200),
        ("user_42", "?after=abc-1", 200),
        ("user_42", "?after=nowhere", 400),
        ("user_42", "?after=lost", 400),
        ("nobody", "", 400),
    ],
)
def test_event_stream_matches_the_document(served: str, room: str, query: str, status: int) -> None:
    with httpx.stream("GET", f"{served}/rooms/{room}/events{query}") as response:
        assert response.status_code == status
        (media,) = document()["paths"][EVENTS]["get"]["responses"][str(status)]["content"]
        assert response.headers["Content-Type"].partition(";")[0] == media
        first = next(response.iter_text())
    assert first.startswith("retry: " if status == 200 else '{"error":')


async def test_errors_without_a_triggering_input_match_the_document() -> None:
    """503 of a server that drains, and 403 for a page of another origin."""
    server = create_app()
    await server.drain()
    transport = httpx.ASGITransport(server)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for headers, status in (({}, "503"), ({"Origin": "https://evil.example"}, "403")):
            for path, operations in document()["paths"].items():
                for method, operation in operations.items():
                    # Without an upgrade, /subscribe answers 426 before it looks at the rest; a
                    # stream is answered 200: see PROTOCOL.md, "Draining".
                    if method == "parameters" or (
                        path in (*WEBSOCKETS, *STREAMS) and status == "503"
                    ):
                        continue
                    if status in operation["responses"]:
                        response = await client.request(method, filled(path), headers=headers)
                        reads = ("/history", "/health", "/presence", "/metrics", "/jobs")
                        if response.status_code == 200 and path.endswith(reads):
                            continue  # what is there can still be read
                        if path.startswith("/jobs/") and response.status_code == 404:
                            continue
                        assert str(response.status_code) == status, (method, path)
                        schema[path][method].validate_response(response)
