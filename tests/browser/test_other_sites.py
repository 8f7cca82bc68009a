"""A page of another site in Chromium, against the servers of a developer's machine.

The page sends requests in every way that a browser offers, with each method and media type; none
may have an effect. Two sites are tested: one with its own host name, and one that resolves its name
to the server itself (DNS rebinding), so that the browser sees one origin.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import fastapi
import httpx
import inngest
import inngest.fast_api
import pytest
from playwright.async_api import Browser, BrowserContext

from synap_realtime.integrations.inngest.local import LocalInngest
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support import workerd
from tests.support.timeouts import TIMEOUT_S

from .chromium import launched

ROOT = Path(__file__).parents[2]
EVIL = "evil.example"
WAIT_S = TIMEOUT_S

# Each way of a page to send a request to an address. An attempt ends without an answer, too.
ATTACKS = """
async ([urls, bodies]) => {
  const done = [];
  const attempt = async (name, url, send) => {
    let result;
    try { result = await Promise.race([send(), pause(2000)]); }
    catch (error) { result = error; }
    done.push([name, url, String(result)]);
  };
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms, "no answer"));
  const loaded = (element) => new Promise((resolve) => {
    element.onload = () => resolve("loaded");
    element.onerror = () => resolve("error");
    document.body.append(element);
  });
  const all = [];
  for (const url of urls) {
    const fetching = (name, init) =>
      all.push(attempt(`fetch ${name}`, url, async () => (await fetch(url, init)).status));
    for (const mode of ["cors", "no-cors"]) {
      for (const method of ["GET", "HEAD"]) {
        fetching(`${mode} ${method}`, {mode, method, credentials: "include"});
        fetching(`${mode} ${method}, no referrer`, {mode, method, referrerPolicy: "no-referrer"});
      }
    }
    for (const body of bodies) {
      for (const type of ["text/plain", "application/x-www-form-urlencoded", null]) {
        for (const referrerPolicy of ["unsafe-url", "no-referrer"]) {
          const content = type === null ? new Blob([body]) : new Blob([body], {type});
          const init = {method: "POST", mode: "no-cors", referrerPolicy, body: content};
          fetching(`no-cors POST ${type}, ${referrerPolicy}`, init);
        }
      }
      for (const method of ["POST", "PUT", "DELETE", "PATCH"]) {
        for (const type of ["text/plain", "application/json"]) {
          const headers = {"Content-Type": type};
          fetching(`cors ${method} ${type}`, {method, mode: "cors", body, headers});
        }
      }
      const init = {method: "POST", mode: "no-cors", keepalive: true, body};
      fetching("no-cors POST, keepalive", init);
    }
    for (const body of bodies) {
      all.push(attempt("sendBeacon", url, async () => navigator.sendBeacon(url, body)));
      all.push(attempt("sendBeacon of a blob", url, async () =>
        navigator.sendBeacon(url, new Blob([body], {type: "text/plain"}))));
    }
    for (const [tag, attribute] of [["img", "src"], ["script", "src"], ["link", "href"],
                                    ["iframe", "src"], ["object", "data"], ["embed", "src"],
                                    ["video", "src"], ["audio", "src"]]) {
      const element = document.createElement(tag);
      if (tag === "link") element.rel = "stylesheet";
      element[attribute] = url;
      all.push(attempt(tag, url, () => loaded(element)));
    }
    for (const rel of ["preload", "prefetch", "icon", "manifest"]) {
      const element = document.createElement("link");
      Object.assign(element, {rel, as: "fetch", href: url});
      all.push(attempt(`link ${rel}`, url, () => loaded(element)));
    }
    all.push(attempt("module", url, () => import(url)));
    all.push(attempt("worker", url, async () => { new Worker(url); }));
    all.push(attempt("EventSource", url, () => new Promise((resolve) => {
      const source = new EventSource(url, {withCredentials: true});
      source.onopen = () => resolve("open");
      source.onmessage = () => resolve("message");
      source.onerror = () => { source.close(); resolve("error"); };
    })));
    for (const protocols of [[], ["synap.v1"], ["v0.connect.inngest.com"]]) {
      all.push(attempt("WebSocket", url, () => new Promise((resolve) => {
        const socket = new WebSocket(url.replace("http", "ws"), protocols);
        socket.onopen = () => resolve("open");
        socket.onerror = () => resolve("error");
      })));
    }
    for (const method of ["GET", "POST"]) {
      for (const enctype of ["text/plain", "multipart/form-data",
                             "application/x-www-form-urlencoded"]) {
        for (const body of bodies) {
          const frame = document.createElement("iframe");
          frame.name = `frame${all.length}`;
          const form = document.createElement("form");
          Object.assign(form, {method, enctype, action: url, target: frame.name});
          const field = document.createElement("input");
          // As text/plain, {"name":"go","x":"=y"} is what arrives: JSON from a form.
          const [name, value] = [body.replace(/}$/, ',"x":"'), '"}'];
          Object.assign(field, {name, value});
          form.append(field);
          document.body.append(frame, form);
          all.push(attempt(`form ${method} ${enctype}`, url, async () => {
            form.submit();
            return pause(1000);
          }));
        }
      }
    }
  }
  await Promise.all(all);
  return done;
}
"""


class _Site(BaseHTTPRequestHandler):
    """A site with one page, which also leads elsewhere: ``/to/{url}`` redirects."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(307)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        page = b"<!doctype html><meta charset=utf-8><title>evil</title><body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def evil_site() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def chromium_that_maps(*rules: str) -> AsyncIterator[Browser]:
    # What the browser itself would prevent is not the servers' defence.
    features = "LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests"
    async with launched(
        f"--host-resolver-rules={', '.join(rules)}", f"--disable-features={features}"
    ) as browser:
        yield browser


async def attack(url: str, paths: list[str], bodies: list[Any]) -> list[list[str]]:
    """Have pages of other sites try everything on these paths.

    Returns:
        Of each attempt what was tried, the address, and what it came to.
    """
    port = int(url.rpartition(":")[2])
    texts = [json.dumps(body, separators=(",", ":")) for body in bodies]
    came_to: list[list[str]] = []
    with evil_site() as evil_port:
        evil, rebound = f"http://{EVIL}:{evil_port}", f"http://rebound.{EVIL}:{port}"
        rules = (f"MAP {EVIL} 127.0.0.1", f"MAP rebound.{EVIL} 127.0.0.1")
        async with chromium_that_maps(*rules) as browser:
            context = await browser.new_context()
            page = await context.new_page()
            await page.goto(evil)
            direct = [f"{url}{path}" for path in paths]
            named = [f"{each}".replace("127.0.0.1", "localhost") for each in direct[:2]]
            led = [f"{evil}/to/{each}" for each in direct[:2]]
            came_to += await page.evaluate(ATTACKS, [direct, texts])
            came_to += await page.evaluate(ATTACKS, [named + led, texts])
            for each in direct:
                for how in ("open(url)", "location.href = url"):
                    await visit(context, evil, how, each)
            # The page was loaded when its name still led to the attacker.
            await context.route(
                f"{rebound}/evil",
                lambda route: route.fulfill(content_type="text/html", body="<body>"),
            )
            await page.goto(f"{rebound}/evil")
            own = [f"{rebound}{path}" for path in paths]
            came_to += await page.evaluate(ATTACKS, [own, texts])
    return came_to


async def visit(context: BrowserContext, evil: str, how: str, url: str) -> None:
    """Lead a tab to an address, as a page of another site does."""
    page = await context.new_page()
    await page.goto(evil)
    async with context.expect_event("response", lambda response: response.url == url):
        await page.evaluate(f"(url) => {{ {how} }}", url)
    for each in context.pages[1:]:
        await each.close()


def assert_nothing_was_read(came_to: list[list[str]]) -> None:
    """No attempt was answered well, and none was let in."""
    assert len(came_to) > 100
    well = ("200", "202", "204", "400", "404", "405", "415", "422", "open", "message")
    assert [each for each in came_to if each[2] in well] == []


# --- the room server without keys


@pytest.fixture(params=["python", "worker"])
async def rooms(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A room server without keys: ours in Python with the operator's page, and the Worker."""
    if request.param == "worker":
        with workerd.running({}) as url:
            yield url
        return
    async with running_server(create_app(load_settings(admin=True))) as url:
        yield url


NOTE = {"type": "note.creation.completed", "data": {}}


async def test_page_of_another_site_does_nothing_to_room_server_without_keys(rooms: str) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        for number in range(3):
            body = {**NOTE, "id": f"n{number}"}
            response = await client.post("/rooms/user_7/broadcast", json=body)
            assert response.status_code == 200
        paths = [
            "/rooms/user_7/events", "/rooms/user_7/subscribe", "/rooms/user_7/broadcast",
            "/broadcast", "/revoke", "/rooms/user_7/history", "/metrics", "/admin/state",
        ]  # fmt: skip
        bodies = [
            {**NOTE, "id": "evil"},
            {"notifications": [{**NOTE, "id": "evil", "rooms": ["user_7"]}]},
            {"user": "7"},
        ]
        assert_nothing_was_read(await attack(rooms, paths, bodies))
        page = (await client.get("/rooms/user_7/history")).json()
        assert [each["id"] for each in page["notifications"]] == ["n0", "n1", "n2"]
        # The acknowledged cursor has not moved: the user still gets what they missed.
        async with client.stream("GET", "/rooms/user_7/events") as stream:
            assert await ids_of(stream, 3) == ["n0", "n1", "n2"]


async def ids_of(stream: httpx.Response, count: int) -> list[str]:
    ids: list[str] = []
    async with asyncio.timeout(WAIT_S):
        async for line in stream.aiter_lines():
            if line.startswith("data:") and '"id"' in line:
                ids.append(json.loads(line.removeprefix("data:"))["id"])
                if len(ids) == count:
                    break
    return ids


async def test_page_of_this_machine_uses_room_server_without_keys(rooms: str) -> None:
    """Also one that is another site to the browser: ``localhost`` and ``127.0.0.1`` are two."""
    with evil_site() as port:
        async with chromium_that_maps() as browser:
            page = await browser.new_page()
            for host in ("localhost", "127.0.0.1"):
                await page.goto(f"http://{host}:{port}/")
                received = await page.evaluate(
                    """async (url) => {
                      const source = new EventSource(`${url}/rooms/user_1/events`);
                      const room = `${url.replace("http", "ws")}/rooms/user_1`;
                      const socket = new WebSocket(`${room}/subscribe`);
                      const first = (target) => new Promise((resolve, reject) => {
                        target.onmessage = (event) => resolve(JSON.parse(event.data).type);
                        target.onerror = () => reject(new Error("refused"));
                      });
                      const open = (target) =>
                        new Promise((resolve) => { target.onopen = resolve; });
                      const both = [first(source), first(socket)];
                      await Promise.all([open(source), open(socket)]);
                      const response = await fetch(`${url}/rooms/user_1/broadcast`, {
                        method: "POST", headers: {"Content-Type": "application/json"},
                        body: JSON.stringify({type: "a.b", data: {}})});
                      const heard = [response.status, ...await Promise.all(both)];
                      source.close(); socket.close();
                      return heard;
                    }""",
                    rooms,
                )
                assert received == [200, "a.b", "a.b"]


async def test_link_of_another_site_opens_the_operators_page() -> None:
    """It does nothing until its user does; and it is in no frame."""
    async with running_server(create_app(load_settings(admin=True))) as url:
        with evil_site() as port:
            async with chromium_that_maps(f"MAP {EVIL} 127.0.0.1") as browser:
                page = await browser.new_page()
                await page.goto(f"http://{EVIL}:{port}/")
                async with page.expect_navigation(url=f"{url}/admin"):
                    await page.evaluate("(url) => { location.href = url }", f"{url}/admin")
                response = await page.reload()
                assert response is not None
                assert response.status == 200


# --- LocalInngest


@dataclass
class Victim:
    """A laptop: LocalInngest, and an app whose function counts."""

    url: str
    server: LocalInngest
    client: inngest.Inngest
    ran: list[str] = field(default_factory=list)


class _Thief(BaseHTTPRequestHandler):
    """Another local program, which an attacker would like to be sent events."""

    stolen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.stolen.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_POST()

    def do_PUT(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
async def laptop() -> AsyncIterator[Victim]:
    server = LocalInngest()
    async with running_server(server) as url:
        client = inngest.Inngest(
            app_id="app", is_production=False, api_base_url=url, event_api_base_url=url
        )
        victim = Victim(url, server, client)

        @client.create_function(fn_id="f", trigger=inngest.TriggerEvent(event="go"))
        async def f(ctx: inngest.Context) -> None:
            victim.ran.append(ctx.event.id)

        app = fastapi.FastAPI()
        inngest.fast_api.serve(app, client, [f])
        async with running_server(app) as app_url:
            async with httpx.AsyncClient() as http:
                assert (await http.put(f"{app_url}/api/inngest")).status_code == 200
            yield victim
        client._http_client._http_client_sync.close()
        await client._http_client._http_client.aclose()


async def test_page_of_another_site_does_nothing_to_local_inngest(laptop: Victim) -> None:
    """It sends no event, registers no function, re-registers no app, cancels no run."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Thief) as thief:
        thread = Thread(target=thief.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        elsewhere = f"http://127.0.0.1:{thief.server_address[1]}/"
        config = {
            "id": "app-f",
            "triggers": [{"event": "*"}],
            "steps": {"step": {"runtime": {"url": elsewhere}}},
        }
        bodies = [
            {"name": "go", "data": {}, "id": "evil"},
            {"appname": "app", "functions": [config]},
        ]
        paths = ["/e/key", "/fn/register", "/v0/connect/start", "/v0/connect", "/v1/runs/x"]
        try:
            assert_nothing_was_read(await attack(laptop.url, paths, bodies))
            assert laptop.ran == []
            await laptop.client.send(inngest.Event(name="go", id="mine"))
            async with asyncio.timeout(WAIT_S):
                await laptop.server.idle()
            assert laptop.ran == ["mine"], "the app is still where it was, and runs"
            assert _Thief.stolen == []
        finally:
            await asyncio.to_thread(thief.shutdown)
            thread.join()


# --- the demo


@asynccontextmanager
async def demo(folder: Path) -> AsyncIterator[dict[str, str]]:
    """``synap-realtime demo``; the addresses of its parts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "synap_realtime", "demo", "--data", folder,
        env={**os.environ, "INNGEST_DEV": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        found: dict[str, str] = {}
        assert process.stdout is not None
        async with asyncio.timeout(2 * TIMEOUT_S):
            async for line in process.stdout:
                if match := re.match(r"([a-z ]+?)  +(http://\S+)", line.decode()):
                    found[match[1]] = match[2]
                if "notes app" in found:
                    break
        yield found
    finally:
        process.terminate()
        await process.communicate()


async def test_page_of_another_site_does_nothing_to_the_demo(tmp_path: Path) -> None:
    """No job is requested, none of its functions is called, and the app is not registered
    elsewhere. Its own page works."""
    async with demo(tmp_path) as parts:
        url = parts["notes app"]
        paths = [
            "/api/notes", "/api/tasks/1/complete", "/api/conversations/1/messages", "/api/config",
            "/api/inngest", "/api/inngest?fnId=notes_app-note-creation&stepId=step", "/files/x",
        ]  # fmt: skip
        event = {"name": "note.creation.requested", "data": {"userId": "demo", "content": "evil"}}
        call = {
            "event": event, "events": [event], "steps": {},
            "ctx": {"run_id": "1", "attempt": 0, "stack": {"stack": [], "current": 0}},
        }  # fmt: skip
        assert_nothing_was_read(await attack(url, paths, [{"content": "evil"}, call]))
        async with httpx.AsyncClient(base_url=parts["room server"]) as client:
            page = (await client.get("/rooms/user_demo/history")).json()
            assert page["notifications"] == []
        async with chromium_that_maps() as browser:
            page = await browser.new_page()
            await page.goto(url)
            status = await page.evaluate(
                """async () => (await fetch("/api/notes", {method: "POST",
                  headers: {"Content-Type": "application/json"},
                  body: JSON.stringify({content: "mine"})})).status"""
            )
            assert status == 202
        async with (
            httpx.AsyncClient(base_url=parts["room server"], timeout=WAIT_S) as client,
            client.stream("GET", "/rooms/user_demo/events?after=earliest") as stream,
        ):
            assert len(await ids_of(stream, 2)) == 2
