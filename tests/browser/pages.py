"""Pages of another origin than the room server's, and what they received."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Protocol

import httpx
import pytest
from playwright.async_api import BrowserContext, Page
from pydantic import SecretStr

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support import workerd
from tests.support.program import Program
from tests.support.timeouts import TIMEOUT_S
from tests.support.workerd import Workerd

HERE = Path(__file__).parent
NODE_MODULES = HERE.parents[1] / "browser/node_modules"
SECRET, KEY = "s" * 32, "j" * 43
WAIT_S = TIMEOUT_S


def bundle(source: str, to: Path, *options: str) -> None:
    """Make one script of a page's source and of the client's, and a page that loads it."""
    esbuild = NODE_MODULES / "esbuild/bin/esbuild"
    if not esbuild.exists():
        pytest.fail(f"{esbuild} is missing: scripts/setup dev gets it")
    node = Path(sys.executable).with_name("node")
    arguments = (str(HERE / source), "--bundle", "--format=iife", "--jsx=automatic", *options)
    subprocess.run(
        [node, esbuild, *arguments, f"--outfile={to.with_suffix('.js')}", "--log-level=warning"],
        env={"NODE_PATH": str(NODE_MODULES)},
        check=True,
    )
    icon = '<link rel="icon" href="data:,">'  # else every browser asks for one
    script = f'<script src="{to.stem}.js"></script>'
    to.with_suffix(".html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{to.stem}</title>'
        f'{icon}<body><main id="root"></main>{script}'
    )


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """Serve a folder; the origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@asynccontextmanager
async def serving(origin: str, port: int = 0, **settings: Any) -> AsyncIterator[str]:
    """A room server with keys, in this process; its address."""
    given = {"drain_timeout_s": 0, **settings}
    app = create_app(
        load_settings(
            token_secrets=(SecretStr(SECRET),),
            api_keys={"jobs": SecretStr(KEY)},
            allowed_origins=(origin,),
            **given,
        )
    )
    async with running_server(app, port=port) as url:
        yield url


Kind = Literal["python", "worker"]
SERVERS: tuple[Kind, ...] = ("python", "worker")


@dataclass(frozen=True, slots=True)
class Server:
    """A room server that a test meets: ours in Python, or our Worker on workerd."""

    kind: Kind
    origin: str

    @asynccontextmanager
    async def serving(
        self, port: int = 0, *, has_keys: bool = True, **settings: Any
    ) -> AsyncIterator[str]:
        """One with these settings and an empty store; its address."""
        if self.kind == "worker":
            variables = self._variables() if has_keys else {}
            given = {name.upper(): str(value) for name, value in settings.items()}
            with workerd.running({**variables, **given}, port) as url:
                yield url
        elif has_keys:
            async with serving(self.origin, port, **settings) as url:
                yield url
        else:
            async with running_server(create_app(load_settings(**settings)), port=port) as url:
                yield url

    @asynccontextmanager
    async def program(self, folder: Path) -> AsyncIterator[Mortal]:
        """One that a test starts and kills, and that finds again what it kept in a folder."""
        if self.kind == "worker":
            with Workerd(self._variables(), folder) as worker:
                yield _MortalWorker(worker)
            return
        server = Program(f"sqlite:///{folder / 'rooms.db'}", **environment(self.origin))
        try:
            yield server
        finally:
            await server.kill()

    @property
    def says_goodbye(self) -> bool:
        """Whether a stopping server drains and sends a reconnect delay."""
        return self.kind == "python"

    def dials(self, connections: int) -> int:
        """The TCP connections at most that so many connections of a client take. The Worker has
        none with many rooms, which a page finds out by a handshake and a request."""
        return connections if self.kind == "python" else 3 * connections

    def _variables(self) -> dict[str, str]:
        return {
            "TOKEN_SECRETS": SECRET,
            "API_KEYS": f"jobs={KEY}",
            "ALLOWED_ORIGINS": self.origin,
        }


class Mortal(Protocol):
    """A server's process, through all its lives."""

    @property
    def url(self) -> str:
        """In each of its lives, from the first one on."""

    async def start(self) -> None: ...

    async def kill(self) -> None:
        """``kill -9``."""


class _MortalWorker:
    def __init__(self, worker: Workerd) -> None:
        self._worker = worker

    @property
    def url(self) -> str:
        return self._worker.url

    async def start(self) -> None:
        self._worker.start()

    async def kill(self) -> None:
        self._worker.kill()


def environment(origin: str) -> dict[str, str]:
    """The Python server's settings, for the program."""
    return {
        "SYNAP_REALTIME_TOKEN_SECRETS": SECRET,
        "SYNAP_REALTIME_API_KEYS": f"jobs={KEY}",
        "SYNAP_REALTIME_ALLOWED_ORIGINS": origin,
    }


def token(user: str = "1", **claims: Any) -> str:
    return mint_token(user, **{"secret": SECRET, "rooms": ["request_*"], **claims})


class Publisher:
    """A job that publishes numbers to a room, each until it is kept."""

    def __init__(self, url: str, room: str = "user_1") -> None:
        self.kept: list[str] = []
        self._room = room
        headers = {"Authorization": f"Bearer {KEY}"}
        self._client = httpx.AsyncClient(base_url=url, headers=headers, timeout=2)

    async def publish(self, count: int = 1, **members: object) -> None:
        """One after the other."""
        for _ in range(count):
            body = {"type": "note.creation.progress", "data": {}, "id": f"n{len(self.kept) + 1}"}
            while not await self._is_kept({**body, **members}):  # noqa: ASYNC110 - it is away
                await asyncio.sleep(0.02)
            self.kept.append(str(body["id"]))

    async def publish_nowait(self, count: int, random_bytes: int = 0) -> None:
        """In one request. Each with so many bytes that no server can make less of."""
        ids = [f"n{len(self.kept) + 1 + number}" for number in range(count)]
        await self.send(
            {
                "rooms": [self._room],
                "type": "note.creation.progress",
                "data": {"noise": secrets.token_urlsafe(random_bytes)},
                "id": id_,
            }
            for id_ in ids
        )
        self.kept += ids

    async def send(self, notifications: Iterable[dict[str, object]]) -> None:
        """Many, each with its rooms."""
        body = {"notifications": list(notifications)}
        response = await self._client.post("/broadcast", json=body)
        assert response.json()["success"], response.text

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish all the time."""

        stop = asyncio.Event()

        async def run() -> None:
            while not stop.is_set():
                await self.publish()
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run())
            try:
                yield
            finally:
                stop.set()

    async def until_connections(self, count: int) -> None:
        """Until so many listen to the room."""
        async with asyncio.timeout(WAIT_S):
            while await self._connections() != count:  # noqa: ASYNC110 - the server does not say
                await asyncio.sleep(0.02)

    async def _connections(self) -> int:
        response = await self._client.get(f"/rooms/{self._room}/health")
        count: int = response.json()["connections"]
        return count

    async def _is_kept(self, body: object) -> bool:
        try:
            response = await self._client.post(f"/rooms/{self._room}/broadcast", json=body)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    async def close(self) -> None:
        await self._client.aclose()


class Tab:
    """A page with :file:`listener.ts` or :file:`components.tsx`."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @classmethod
    async def open(cls, context: BrowserContext, origin: str, name: str = "listener") -> Tab:
        tab = cls(await context.new_page())
        await tab.page.goto(f"{origin}/{name}.html")
        return tab

    async def listen(self, url: str, room: str = "user_1", **options: Any) -> None:
        await self.page.evaluate(
            "([room, options]) => listen(room, options)",
            [room, {"url": url, "token": token(), **options}],
        )

    async def stop_clock(self) -> None:
        """From now on timers fire only while ``page.clock.run_for`` runs. It was installed before
        they were made."""
        now_s = await self.page.evaluate("Date.now()") / 1000
        await self.page.clock.pause_at(now_s + 0.5)  # in the page's future, whatever the call takes

    async def until(self, condition: str) -> None:
        """Until this JavaScript is true."""
        try:
            async with asyncio.timeout(WAIT_S):
                await self.page.evaluate("condition => until(condition)", condition)
        except TimeoutError:
            recorded = await self.page.evaluate("globalThis.recorded ?? globalThis.seen")
            pytest.fail(f"it did not come to {condition}: {recorded}"[:4000])

    async def until_open(self, times: int = 1) -> None:
        await self.until(
            f"recorded.states.filter(({{status}}) => status === 'open').length >= {times}"
        )

    async def until_received(self, ids: list[str]) -> None:
        """Until the last of them is there; then it is these, in this order."""
        await self.until(f"recorded.notifications.some(({{id}}) => id === '{ids[-1]}')")
        assert await self.received_ids() == ids

    async def received_ids(self) -> list[str]:
        found: list[str] = await self.page.evaluate("recorded.notifications.map(({id}) => id)")
        return found

    async def states(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.page.evaluate("recorded.states")
        return found

    async def transports(self) -> list[str]:
        """Of each time it was open."""
        return [state["transport"] for state in await self.states() if state["status"] == "open"]

    async def show(self, component: str, *, strict: bool = False, **properties: Any) -> None:
        """Render it, or render it again."""
        await self.page.evaluate(
            "([name, props, isStrict]) => show(name, props, isStrict)",
            [component, properties, strict],
        )

    async def calls(self) -> list[str]:
        """The arguments of the component's callbacks."""
        found: list[str] = await self.page.evaluate("seen.calls")
        return found
