"""LocalInngest accepts only local programs: no page of another site, and no other machine."""

from __future__ import annotations

import asyncio
import json
import logging
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import inngest
import pytest
import websockets
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from synap_realtime import ConfigurationError
from synap_realtime.integrations.inngest.local import LocalInngest, bodies, registry
from synap_realtime.integrations.inngest.local import app as local_app
from synap_realtime.integrations.inngest.local.addresses import AddressError, AppHosts
from synap_realtime.integrations.inngest.local.runs import Backoff
from synap_realtime.server.serve import running_server
from tests.support.timeouts import TIMEOUT_S

from .conftest import Stage, on

EVENT = {"name": "go", "data": {}}
JSON = {"Content-Type": "application/json"}
FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:8288"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "0.0.0.0"},
    {"Host": "192.168.1.2:8288"},
    {"Host": ""},
    {"Host": "localhost@evil.example"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://localhost.evil.example"},
    {"Host": "evil.example", "Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"X-Forwarded-For": "203.0.113.7"},
    {"X-Forwarded-For": "127.0.0.1, 203.0.113.7:80"},
]
ROUTES = [
    ("POST", "/e/key"), ("POST", "/fn/register"), ("DELETE", "/v1/runs/01"), ("GET", "/health"),
    ("POST", "/v0/connect/start"), ("POST", "/v0/connect/flush"), ("OPTIONS", "/e/key"),
]  # fmt: skip


def registration(url: str = "http://127.0.0.1:9/", app: str = "a", **step: Any) -> dict[str, Any]:
    config = {
        "id": f"{app}-f",
        "triggers": [{"event": "*"}],
        "steps": {"step": {"runtime": {"url": url}, **step}},
    }
    return {"appname": app, "functions": [config]}


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stage.inngest_url) as client:
        yield client


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_refuses_other_sites_and_machines(
    stage: Stage, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    """On every route, and without telling the page anything (CORS)."""
    ran: list[str] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        ran.append(ctx.event.name)

    await stage.serve(f)
    for method, path in ROUTES:
        response = await client.request(method, path, json=EVENT, headers=headers)
        assert response.status_code == 403, path
        assert "LocalInngest" in response.json()["error"]
        assert not any(name.startswith("access-control") for name in response.headers)
    response = await client.post("/fn/register", json=registration(), headers=headers)
    assert response.status_code == 403
    await stage.send("go")
    await stage.finish()
    assert ran == ["go"]


@pytest.mark.parametrize("headers", FOREIGN[7:12], ids=str)
async def test_refuses_websocket_of_other_sites(stage: Stage, headers: dict[str, str]) -> None:
    """A page that is taken for a worker would be sent every event."""
    url = f"{stage.inngest_url.replace('http', 'ws')}/v0/connect"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(url, additional_headers=headers)
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost:8288"}, {"Host": "[::1]"}, {"X-Forwarded-For": "127.0.0.1:5555"},
        {"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)  # fmt: skip
async def test_admits_programs_of_this_machine(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.post("/e/key", json=EVENT, headers=headers)
    assert response.status_code == 200


async def test_admits_page_that_is_allowed() -> None:
    server = LocalInngest(allowed_origins=["http://dev.example:3000"])
    async with running_server(server) as url, httpx.AsyncClient(base_url=url) as client:
        for headers, status in (
            ({"Origin": "http://dev.example:3000"}, 200),
            ({"Origin": "http://dev.example:3001"}, 403),
            ({"Host": "dev.example:8288"}, 200),
        ):
            response = await client.post("/e/key", json=EVENT, headers=headers)
            assert response.status_code == status, headers


async def test_refusals_write_few_log_lines(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "synap_realtime.loopback"):
        for _ in range(50):
            await client.post("/e/key", headers={"Origin": "https://evil.example"})
    lines = [record for record in caplog.records if record.name == "synap_realtime.loopback"]
    assert 1 <= len(lines) < 10
    assert "https://evil.example" in lines[0].getMessage()


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
     None],
)  # fmt: skip
async def test_refuses_body_that_a_page_can_send_without_asking(
    client: httpx.AsyncClient, media_type: str | None
) -> None:
    """The media types of "simple" requests (Fetch, CORS-safelisted), and none at all."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    for path in ("/e/key", "/fn/register", "/v0/connect/start", "/v0/connect/flush"):
        response = await client.post(path, content=json.dumps(EVENT), headers=headers)
        assert response.status_code == 415, path


@pytest.mark.parametrize("declares_length", [True, False])
@pytest.mark.parametrize("path", ["/e/key", "/fn/register"])
async def test_refuses_huge_body_before_it_is_read(
    client: httpx.AsyncClient, path: str, declares_length: bool
) -> None:
    sent = 0

    async def content() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 1024 * 1024
            yield b" " * 1024 * 1024

    headers = {**JSON, **({"Content-Length": str(400 * 2**20)} if declares_length else {})}
    try:
        response = await client.post(path, content=content(), headers=headers)
        assert response.status_code == 413
    except (httpx.ReadError, httpx.WriteError):
        pass  # it was cut while sending
    assert sent < 100 * 2**20


async def test_responds_413_to_a_large_body(client: httpx.AsyncClient) -> None:
    """Also to a client that reads the answer only after it has sent all."""
    body = json.dumps({**EVENT, "data": {"text": "a" * 5_000_000}})
    for path in ("/e/key", "/fn/register"):
        response = await client.post(path, content=body, headers=JSON)
        assert response.status_code == 413, path


async def test_refuses_more_events_than_a_request_may_have(client: httpx.AsyncClient) -> None:
    most = local_app.MAX_EVENTS
    assert (await client.post("/e/key", json=[EVENT] * (most + 1))).status_code == 413
    assert (await client.post("/e/key", json=[EVENT] * most)).status_code == 200


async def test_refuses_events_while_too_many_runs_are_unfinished(
    stage: Stage, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_app, "MAX_UNFINISHED", 3)
    go_on = asyncio.Event()

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        await go_on.wait()

    await stage.serve(f)
    statuses = [(await client.post("/e/key", json=EVENT)).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    go_on.set()
    await stage.finish()
    assert (await client.post("/e/key", json=EVENT)).status_code == 200
    await stage.finish()


async def test_refuses_more_apps_and_functions_than_there_may_be(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_APPS", 2)
    monkeypatch.setattr(registry, "MAX_FUNCTIONS", 3)

    async def register(app: str, functions: int = 1) -> int:
        body = registration(app=app)
        first = body["functions"][0]
        body["functions"] = [{**first, "id": f"{app}-{number}"} for number in range(functions)]
        return (await client.post("/fn/register", json=body)).status_code

    assert [await register("a"), await register("b"), await register("c")] == [200, 200, 400]
    assert [await register("b", 2), await register("b", 3)] == [200, 400]


OTHER_HOSTS = [
    "http://evil.example/api/inngest", "http://10.0.0.1/", "http://169.254.169.254/latest",
    "http://127.0.0.1.evil.example/", "http://localhost.evil.example/", "http://evil.example:8000/",
    "http://127.0.0.1@evil.example/", "http://evil.example#@127.0.0.1/", "http://0.0.0.0/",
    "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/", "http://[::]/",
    "http://[::ffff:10.0.0.1]/", "http://[::ffff:0a00:1]/", "http://user:pass@127.0.0.1/",
    "http://evil.example\\@127.0.0.1/", "file:///etc/passwd", "//127.0.0.1/", "ftp://127.0.0.1/",
    "unix:/run/docker.sock", "wss://connect", "wss://evil.example", "", "127.0.0.1:8000", "http://",
    "http://localhost./", "http://①②⑦.evil.example/", "http://127.0.0.1 .evil.example/",
]  # fmt: skip


@pytest.mark.parametrize("url", OTHER_HOSTS)
async def test_refuses_app_that_is_not_on_this_machine(
    stage: Stage, client: httpx.AsyncClient, url: str
) -> None:
    response = await client.post("/fn/register", json=registration(url))
    assert response.status_code == 400
    await stage.send("go")  # nothing is called
    assert len(stage.server._executor) == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/api/inngest?fnId=a", "http://localhost:3000/", "https://[::1]:8443/",
        "http://127.9.9.9/", "http://[::ffff:127.0.0.1]/", "HTTP://LOCALHOST/",
    ],
)  # fmt: skip
async def test_admits_app_of_this_machine(client: httpx.AsyncClient, url: str) -> None:
    assert (await client.post("/fn/register", json=registration(url))).status_code == 200


async def test_option_allows_apps_of_other_hosts() -> None:
    server = LocalInngest(["http://web:8000/api/inngest"], app_hosts=["app", "fd00::7"])
    async with running_server(server) as url, httpx.AsyncClient(base_url=url) as client:
        for address, status in (
            ("http://app:8000/api/inngest", 200),
            ("http://web:8000/api/inngest", 200),
            ("http://[fd00::7]:8000/api/inngest", 200),
            ("http://db:8000/api/inngest", 400),
        ):
            response = await client.post("/fn/register", json=registration(address))
            assert response.status_code == status, address


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigurationError, match="app_hosts: expected a host"):
        LocalInngest(app_hosts=["http://app:8000"])
    with pytest.raises(ConfigurationError, match="app_hosts: expected a host"):
        LocalInngest(app_hosts=["abc:8000"])
    with pytest.raises(ConfigurationError, match="apps: an app's address"):
        LocalInngest(["127.0.0.1:8000/api/inngest"])
    with pytest.raises(AddressError):
        AppHosts().check("http://app:8000")


@asynccontextmanager
async def app_that_answers(answer: Any) -> AsyncIterator[tuple[str, list[str]]]:
    """An app with one address; the paths it was asked for."""
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            await request.body()
            asked.append(request.url.path)
            await answer(request)(scope, receive, send)

    async with running_server(app) as url:
        yield url, asked


@asynccontextmanager
async def called(answer: Any, caplog: pytest.LogCaptureFixture) -> AsyncIterator[list[str]]:
    """An app was registered and called once; the paths it was asked for."""
    server = LocalInngest(backoff=Backoff(first_s=0.01))
    async with (
        app_that_answers(answer) as (app_url, asked),
        running_server(server) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        body = registration(f"{app_url}/f", retries={"attempts": 0})
        body["functions"][0]["triggers"] = [{"event": "go"}]
        assert (await client.post("/fn/register", json=body)).status_code == 200
        with caplog.at_level(logging.WARNING):
            await client.post("/e/key", json=EVENT)
            async with asyncio.timeout(TIMEOUT_S):
                await server.idle()
        yield asked


async def test_does_not_follow_redirect_of_an_app(caplog: pytest.LogCaptureFixture) -> None:
    async with called(lambda _: RedirectResponse("/elsewhere", 307), caplog) as asked:
        assert asked == ["/f"]


async def test_reads_only_so_much_of_an_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_REPLY_BYTES", 1000)
    sdk = {"x-inngest-sdk": "py:v0"}
    async with called(lambda _: Response(b'"' + b"a" * 2000 + b'"', headers=sdk), caplog):
        assert "the app's response has more than 1000 bytes" in caplog.text


async def test_refuses_compressed_answer(caplog: pytest.LogCaptureFixture) -> None:
    """It was asked not to compress: a small answer could become a huge one."""
    content = zlib.compress(b'"' + b"a" * 10_000_000 + b'"')
    headers = {"x-inngest-sdk": "py:v0", "content-encoding": "deflate"}
    async with called(lambda _: Response(content, headers=headers), caplog):
        assert "the app's response is compressed" in caplog.text
