"""The client in Chromium, on a page of another origin, against real room servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, Literal

import jwt
import pytest
from playwright.async_api import BrowserContext, Error

from tests.support.link import Link
from tests.support.program import Program, free_port
from tests.support.timeouts import TIMEOUT_S

from .chromium import launched
from .pages import SECRET, Publisher, Server, Tab, bundle, environment, serving, site, token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_five_notifications_in_order_and_nothing_of_the_connection(
    tab: Tab, url: str, job: Publisher
) -> None:
    await tab.listen(url)
    await tab.until_open()
    await job.publish(5)
    await tab.until_received(["n1", "n2", "n3", "n4", "n5"])
    states = [state["status"] for state in await tab.states()]
    assert states == ["connecting", "open"]
    assert await tab.transports() == ["websocket"]
    await tab.page.evaluate("subscription.close()")
    assert await tab.page.evaluate("subscription.state.status") == "closed"


async def test_presence_follows_joins_and_leaves(
    tab: Tab, context: BrowserContext, origin: str, url: str
) -> None:
    scope = "subscribe presence"
    room = "request_7"
    await tab.listen(url, room, token=token("1", scope=scope, device="laptop"), presence=True)
    await tab.until("recorded.presences.length === 1")
    other = await Tab.open(context, origin)
    await other.listen(url, room, token=token("2", device="phone"))
    await tab.until("recorded.presences.length === 2")
    laptop = {"user": "1", "connections": 1, "devices": ["laptop"]}
    for frame in (received := await tab.page.evaluate("recorded.presences")):
        frame.pop("room", None)  # of a connection with many rooms
    assert received == [
        {"event": "state", "users": [laptop]},
        {"event": "join", "user": "2", "connections": 1, "devices": ["phone"]},
    ]


async def test_a_page_of_a_foreign_origin_receives_nothing(
    context: BrowserContext, tmp_path: Path, origin: str, url: str, job: Publisher
) -> None:
    bundle("listener.ts", tmp_path / "listener")
    with site(tmp_path) as foreign:
        assert foreign != origin
        tab = await Tab.open(context, foreign)
        await job.publish()
        await tab.listen(url)
        await tab.until("recorded.states.some(({status}) => status === 'reconnecting')")
        assert await tab.received_ids() == []
        assert await tab.transports() == []


# ---- the server goes, and comes back ----


async def test_recovers_from_kill_9_during_a_stream(
    tab: Tab, server: Server, tmp_path: Path
) -> None:
    """What the server has said that it keeps comes once, in order; also on the wire, for the
    client resumes."""
    wire: list[str] = []

    def read(frame: str | bytes) -> None:
        if frame != "pong" and (id_ := json.loads(frame).get("id")):
            wire.append(id_)

    tab.page.on("websocket", lambda socket: socket.on("framereceived", read))
    async with server.program(tmp_path) as program:
        await program.start()
        job = Publisher(program.url)
        await tab.listen(program.url)
        await tab.until_open()
        async with job.running():
            await tab.until("recorded.notifications.length >= 20")
            await program.kill()
            await tab.until("recorded.states.at(-1).status === 'reconnecting'")
            await program.start()
            await tab.until_open(2)
            await tab.until(f"recorded.notifications.length >= {len(job.kept) + 20}")
        await tab.until_received(job.kept)
        assert await tab.page.evaluate("recorded.gaps") == 0
        assert wire == job.kept
        await job.close()


async def test_a_gap_is_reported_when_more_was_missed_than_is_kept(
    tab: Tab, server: Server
) -> None:
    async with server.serving(retention_count=3) as url, Link(url) as link:
        job = Publisher(url)
        await tab.listen(link.url)
        await job.publish(2)
        await tab.until_received(job.kept)
        link.refuse()
        link.cut()
        await tab.until("recorded.states.at(-1).status === 'reconnecting'")
        await job.publish(5)
        link.restore()
        await tab.until("recorded.gaps === 1")
        await tab.until_received([*job.kept[:2], *job.kept[-3:]])
        await job.close()


# ---- what only the Python server does: it forgets, and it drains ----


async def test_reports_a_gap_when_the_log_was_lost(tab: Tab, origin: str) -> None:
    server = Program("memory://", **environment(origin))
    job = Publisher(server.url)
    await server.start()
    try:
        await tab.listen(server.url)
        await job.publish(3)
        await tab.until_received(job.kept)
        await server.kill()
        await server.start()
        await job.publish(2)
        await tab.until("recorded.gaps === 1")
        await tab.until_received(job.kept)
    finally:
        await server.kill()
        await job.close()


async def test_a_server_that_drains(tab: Tab, origin: str, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'rooms.db'}"
    async with serving(origin, store=store, drain_timeout_s=1) as url:
        port = int(url.rpartition(":")[2])
        job = Publisher(url)
        await tab.listen(url)
        await job.publish(3)
        await tab.until_received(job.kept)
    async with serving(origin, port, store=store):
        await job.publish(3)
        await tab.until_received(job.kept)
    await job.close()
    assert set(await tab.transports()) == {"websocket"}
    assert await tab.page.evaluate("recorded.gaps") == 0


# ---- the network ----


async def test_online_event_reconnects_immediately(
    tab: Tab, context: BrowserContext, url: str, job: Publisher
) -> None:
    """The clock stands still, so that nothing but the event can bring it back."""
    async with Link(url) as link:
        await tab.page.clock.install()
        await tab.stop_clock()
        await tab.listen(link.url)
        await job.publish(2)
        await tab.until_received(job.kept)
        await context.set_offline(True)
        link.cut()
        await tab.until("recorded.states.at(-1).status === 'reconnecting'")
        await job.publish(3)
        await context.set_offline(False)
        await tab.until_received(job.kept)


async def test_restarts_an_interrupted_replay_without_duplicates(
    tab: Tab, url: str, job: Publisher
) -> None:
    """Only the end of the replay shows whether there is a gap."""
    async with Link(url) as link:
        await tab.listen(link.url)
        await job.publish()
        await tab.until_received(job.kept)
        link.cut()
        link.cut_after(20_000)  # about 50 notifications; workerd compresses them
        await job.publish_nowait(200, random_bytes=200)
        await tab.until(
            "recorded.states.filter(({status}) => status === 'reconnecting').length === 2"
        )
        assert 1 < len(await tab.received_ids()) < 200
        await tab.until_received(job.kept)


async def stall_while_listening(tab: Tab, link: Link, job: Publisher) -> None:
    """With a stopped clock: two are received, then nothing passes, and two more are published."""
    await tab.page.clock.install()
    await tab.stop_clock()
    await tab.listen(link.url)
    await job.publish(2)
    await tab.until_received(job.kept)
    link.stall()
    await job.publish(2)


async def test_detects_a_server_that_stops_responding(tab: Tab, url: str, job: Publisher) -> None:
    """Neither end notices a pulled cable: 30 s to the next ping, 10 s for its pong."""
    async with Link(url) as link:
        await stall_while_listening(tab, link, job)
        await tab.page.clock.run_for(39_000)
        assert (await tab.states())[-1]["status"] == "open"
        await tab.page.clock.run_for(1_000)
        last = (await tab.states())[-1]
        assert last["status"] == "reconnecting"
        assert last["error"]["message"] == "pong timeout"
        link.restore()
        await tab.page.clock.run_for(1_250)
        await tab.until_received(job.kept)


async def test_gives_up_after_five_attempts_until_revived(
    tab: Tab, context: BrowserContext, server: Server
) -> None:
    async with server.serving() as url:
        port = int(url.rpartition(":")[2])
        await tab.page.clock.install()
        await tab.listen(url)
        await tab.until_open()
        # It was up for long enough: the count restarts.
        await tab.page.clock.run_for(6_000)
        await tab.stop_clock()
    for attempt, least_ms in enumerate([1000, 2000, 4000, 8000, 16_000], 1):
        await tab.until(
            f"recorded.states.filter(s => s.status === 'reconnecting').length === {attempt}"
        )
        state = (await tab.states())[-1]
        assert state["attempt"] == attempt
        if attempt > 1 or not server.says_goodbye:  # it has asked for a pause
            assert least_ms <= state["delayMs"] <= 1.25 * least_ms
        await tab.page.clock.run_for(round(state["delayMs"]) + 1)
    await tab.until("recorded.states.at(-1).status === 'closed'")
    last = (await tab.states())[-1]
    assert last["error"]["message"]
    assert last["error"]["retriable"] is True
    async with server.serving(port) as url:
        await context.set_offline(True)
        await context.set_offline(False)  # `online`
        await tab.until_open(2)
    await tab.until("recorded.states.at(-1).status === 'reconnecting'")
    async with server.serving(port) as url:
        await tab.page.evaluate("subscription.reconnect()")
        await tab.until_open(3)


# ---- WebSockets are blocked ----


@pytest.mark.parametrize("how", ["refused", "swallowed"])
async def test_falls_back_to_server_sent_events_when_websockets_are_blocked(
    tab: Tab, url: str, job: Publisher, how: Literal["refused", "swallowed"]
) -> None:
    async with Link(url) as link:
        link.websockets = how
        link.chunk_bytes = 1000  # a notification comes in many pieces
        await tab.page.clock.install()
        await tab.listen(link.url)
        if how == "swallowed":
            await link.until_accepted(1)
            await tab.page.clock.run_for(10_000)
        await tab.until_open()
        big = "ä" * 100_000
        await job.publish(2)
        await job.publish(data={"text": big})
        await tab.until_received(job.kept)
        assert await tab.page.evaluate("recorded.notifications.at(-1).data.text") == big
        link.cut()
        await tab.until("recorded.states.at(-1).status === 'reconnecting'")
        await job.publish(2)
        await tab.page.clock.run_for(1_250)
        if how == "swallowed":  # it is remembered: no second wait of 10 s
            await tab.until_open(2)
        await tab.until_received(job.kept)
        assert await tab.transports() == ["sse", "sse"]
        assert await tab.page.evaluate("recorded.gaps") == 0


async def test_without_a_token_falls_back_after_one_failed_websocket(
    tab: Tab, server: Server
) -> None:
    """A report's server, which is tried too then, would have refused it and not kept silent."""
    async with server.serving(has_keys=False) as url, Link(url) as link:
        link.websockets = "swallowed"
        await tab.page.clock.install()
        await tab.stop_clock()
        await tab.listen(link.url, token=None)
        await link.until_accepted(1)
        await tab.page.clock.run_for(10_000)
        await tab.until_open()
        assert await tab.transports() == ["sse"]


async def test_falls_back_when_websockets_become_blocked(
    tab: Tab, url: str, job: Publisher
) -> None:
    """The laptop has come into another network. One attempt that fails says nothing yet."""
    async with Link(url) as link:
        await tab.listen(link.url)
        await job.publish(2)
        await tab.until_received(job.kept)
        link.websockets = "refused"
        link.cut()
        await job.publish(2)
        await tab.until_received(job.kept)
        assert await tab.transports() == ["websocket", "sse"]
        attempts = [s["attempt"] for s in await tab.states() if s["status"] == "reconnecting"]
        assert attempts == [1, 2]


async def test_single_refused_handshake_does_not_disable_websockets(
    tab: Tab, url: str, job: Publisher
) -> None:
    async with Link(url) as link:
        link.websockets = "refused"
        await tab.listen(link.url)
        await job.publish(2)
        await tab.until_received(job.kept)
        link.websockets = "carried"
        link.cut()
        await job.publish(2)
        await tab.until_received(job.kept)
        assert await tab.transports() == ["sse", "websocket"]


async def test_a_dead_stream_is_found(tab: Tab, url: str, job: Publisher) -> None:
    """A comment comes every 15 s; after 30 s without one it is dead."""
    async with Link(url) as link:
        link.websockets = "refused"
        await stall_while_listening(tab, link, job)
        await tab.page.clock.run_for(30_000)
        assert (await tab.states())[-1]["status"] == "reconnecting"
        link.restore()
        await tab.page.clock.run_for(1_250)
        await tab.until_received(job.kept)


async def test_a_bad_token_is_final_over_server_sent_events(tab: Tab, url: str) -> None:
    async with Link(url) as link:
        link.websockets = "refused"
        await tab.listen(link.url, token=token(secret="x" * 32))
        await tab.until("recorded.states.at(-1).status === 'closed'")
        error = (await tab.states())[-1]["error"]
        assert "invalid signature" in error["message"]
        assert (error["code"], error["retriable"]) == (401, False)


async def test_stream_that_only_sends_retry_is_not_a_connection(tab: Tab) -> None:
    """So does a server that drains answer; its WebSockets are refused."""
    count = 0

    async def drain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            count += 1
            answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
            if b"/events" in head:
                answer = (
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
                    b"Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: *\r\n\r\n"
                )
                if head.startswith(b"GET"):
                    answer += b"retry: 60\n\n"
            writer.write(answer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(drain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await tab.listen(f"http://127.0.0.1:{port}", token=None)
        await tab.until(
            "recorded.states.filter(({status}) => status === 'reconnecting').length === 2"
        )
        await tab.page.evaluate("subscription.close()")
    assert await tab.transports() == []
    delays = [s["delayMs"] for s in await tab.states() if s["status"] == "reconnecting"]
    assert set(delays) == {60}  # more than two on a slow machine: it went on until it was closed


# ---- tokens ----


async def test_requests_a_token_at_every_connect(tab: Tab, url: str, job: Publisher) -> None:
    given: list[str] = []

    def bring() -> str:
        given.append(token(secret="x" * 32) if len(given) == 1 else token())
        return given[-1]

    await tab.page.expose_function("bringToken", bring)
    async with Link(url) as link:
        await tab.listen(link.url, bringsToken=True)
        await job.publish(2)
        await tab.until_received(job.kept)
        link.cut()
        await tab.until("recorded.states.at(-1).status === 'closed'")
        assert len(given) == 2
        # Refused for good; whoever signs in again asks for another attempt.
        await job.publish(2)
        await tab.page.evaluate("subscription.reconnect()")
        await tab.until_received(job.kept)
        assert len(given) == 3


async def test_a_new_token_in_time_keeps_the_connection(
    tab: Tab, context: BrowserContext, origin: str, server: Server
) -> None:
    """Beside it a tab with the same first token, a string: it is closed and does not reconnect."""
    first = token(expires_in_s=6)
    given: list[str] = []

    def bring() -> str:
        given.append(token() if given else first)
        return given[-1]

    await tab.page.expose_function("bringToken", bring)
    other = await Tab.open(context, origin)
    async with server.serving(token_leeway_s=0) as url:
        job = Publisher(url)
        await tab.listen(url, bringsToken=True)
        await other.listen(url, token=first)
        await other.until("recorded.states.at(-1).status === 'closed'")
        codes = [s["error"]["code"] for s in await other.states() if s.get("error")]
        assert codes == [4401, 4501]
        assert (await other.states())[-1]["error"]["retriable"] is False
        await job.publish()
        await tab.until_received(job.kept)
        assert [state["status"] for state in await tab.states()] == ["connecting", "open"]
        assert len(given) == 2
        await job.close()


async def test_asks_for_tokens_of_seconds_once_each(tab: Tab, server: Server) -> None:
    """Over many renewals there is one connection, and nothing is lost."""
    given: list[str] = []

    def bring() -> str:
        given.append(token(expires_in_s=6))
        return given[-1]

    await tab.page.expose_function("bringToken", bring)
    async with server.serving(token_leeway_s=0) as url:
        job = Publisher(url)
        await tab.listen(url, bringsToken=True)
        async with asyncio.timeout(2 * TIMEOUT_S):
            while len(given) < 9:
                await job.publish()
                await asyncio.sleep(0.2)
                assert len(given) <= len(job.kept) / 5 + 2
        await tab.until_received(job.kept)
        assert [state["status"] for state in await tab.states()] == ["connecting", "open"]
        await job.close()


# ---- why there is no connection ----


@pytest.mark.parametrize(
    ("secret", "claims", "word"),
    [
        (SECRET, {"exp": 1}, "token expired"), ("x" * 32, {}, "invalid signature"),
        (SECRET, {"aud": "others"}, "audience"),
    ],
)  # fmt: skip
async def test_reports_what_is_wrong_with_a_token(
    tab: Tab, url: str, secret: str, claims: dict[str, Any], word: str
) -> None:
    wrong = jwt.encode({"sub": "1", "exp": 2**33, **claims}, secret, "HS256")
    await tab.listen(url, token=wrong)
    await tab.until("recorded.states.at(-1).status === 'closed'")
    error = (await tab.states())[-1]["error"]
    assert word in error["message"]
    assert (error["code"], error["retriable"]) == (4501, False)


async def test_names_the_origin_that_is_not_allowed(
    context: BrowserContext, tmp_path: Path, origin: str, url: str
) -> None:
    bundle("listener.ts", tmp_path / "listener")
    with site(tmp_path) as foreign:
        tab = await Tab.open(context, foreign)
        await tab.listen(url)
        await tab.until("recorded.states.at(-1).status === 'reconnecting'")
        message = (await tab.states())[-1]["error"]["message"]
    assert f"does not allow origin {foreign}" in message
    assert url in message


async def test_reports_an_unreachable_server(tab: Tab) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    await tab.listen(url)
    await tab.until("recorded.states.at(-1).status === 'reconnecting'")
    message = (await tab.states())[-1]["error"]["message"]
    assert message.startswith(f"cannot reach {url}")
    assert "origin" not in message


async def test_does_not_reconnect_to_another_application(tab: Tab, origin: str) -> None:
    """The page's own server: it has no such route, and may be read."""
    await tab.listen(origin)
    await tab.until("recorded.states.at(-1).status === 'closed'")
    error = (await tab.states())[-1]["error"]
    assert f"is a room server at {origin}?" in error["message"]
    assert error["retriable"] is False


@pytest.mark.parametrize("url", ["/realtime", "realtime", "", "ftp://rooms.example"])
async def test_invalid_url_fails_at_the_call(tab: Tab, url: str) -> None:
    with pytest.raises(Error, match="url: expected https://HOST"):
        await tab.listen(url)


async def test_admits_credentialed_requests_with_custom_headers(
    tab: Tab, url: str, job: Publisher
) -> None:
    await job.publish()
    text = await tab.page.evaluate(
        """async ([url, token]) => {
            const response = await fetch(`${url}/rooms/user_1/history`, {
                credentials: "include",
                headers: {
                    Authorization: `Bearer ${token}`, "Cache-Control": "no-cache",
                    traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                },
            });
            return response.text();
        }""",
        [url, token()],
    )
    assert [each["id"] for each in json.loads(text)["notifications"]] == ["n1"]
    events = await tab.page.evaluate(
        """([url, token]) => new Promise((resolve) => {
            const source = new EventSource(
                `${url}/rooms/user_1/events?after=earliest&token=${token}`,
                { withCredentials: true },
            );
            source.onmessage = ({ data }) => { source.close(); resolve(data); };
            source.onerror = () => { source.close(); resolve("error"); };
        })""",
        [url, token()],
    )
    assert json.loads(events)["id"] == "n1"


# ---- hidden tabs ----


@pytest.mark.parametrize("meanwhile", ["it stays connected", "it is cut"])
async def test_frozen_tab_misses_nothing(
    tab: Tab, context: BrowserContext, url: str, job: Publisher, meanwhile: str
) -> None:
    devtools = await context.new_cdp_session(tab.page)
    async with Link(url) as link:
        await tab.listen(link.url)
        await job.publish(1)
        await tab.until_received(job.kept)
        await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
        await job.publish_nowait(500)
        if meanwhile == "it is cut":
            link.cut()
            await job.publish_nowait(100)
        await devtools.send("Page.setWebLifecycleState", {"state": "active"})
        await tab.until_received(job.kept)


async def test_page_restored_from_the_back_forward_cache_connects_immediately(
    origin: str, url: str, job: Publisher
) -> None:
    async with launched(ignore_default_args=["--disable-back-forward-cache"]) as browser:
        tab = await Tab.open(await browser.new_context(), origin)
        await tab.page.clock.install()
        await tab.listen(url)
        await job.publish(2)
        await tab.until_received(job.kept)
        await tab.stop_clock()
        await tab.page.goto(f"{origin}/away.html")
        await job.publish(3)
        await tab.page.go_back(wait_until="commit")
        await tab.until_received(job.kept)  # of the same page: it has received the first two before


# ---- tabs that share ----


async def test_two_tabs_share_a_connection_and_a_third_takes_over(
    context: BrowserContext, origin: str, link: Link, job: Publisher, server: Server
) -> None:
    leading, following = await Tab.open(context, origin), await Tab.open(context, origin)
    for tab in (leading, following):
        await tab.listen(link.url, isShared=True)
        await tab.until_open()
    async with job.running():
        for tab in (leading, following):
            await tab.until("recorded.notifications.length >= 20")
        await job.until_connections(1)
        await leading.page.close()
        await following.until(f"recorded.notifications.length >= {len(job.kept) + 20}")
        late = await Tab.open(context, origin)
        await late.listen(link.url, isShared=True)
        await late.until("recorded.notifications.length >= 20")
        await job.until_connections(1)
    await following.until_received(job.kept)
    received = await late.received_ids()
    await late.until_received(job.kept[job.kept.index(received[0]) :])
    assert link.accepted <= server.dials(2)


async def test_tab_that_takes_over_resumes_from_its_cursor(
    context: BrowserContext, origin: str, link: Link, job: Publisher, server: Server
) -> None:
    """The server knows no mark, so what was before the tab came could come again."""
    leading = await Tab.open(context, origin)
    await job.publish(2)
    await leading.listen(link.url, isShared=True, acknowledge=False)
    await leading.until_received(job.kept)
    following, idle = await Tab.open(context, origin), await Tab.open(context, origin)
    for tab in (following, idle):
        await tab.listen(link.url, isShared=True, acknowledge=False)
        await tab.until_open()
    await leading.page.close()
    await following.until_open(2)
    await job.publish(2)
    for tab in (following, idle):
        await tab.until_received(["n3", "n4"])
    assert link.accepted <= server.dials(2)


async def test_tab_opened_later_sees_the_whole_request(
    context: BrowserContext, origin: str, url: str, link: Link, server: Server
) -> None:
    job = Publisher(url, "request_7")
    await job.publish(2)
    first = await Tab.open(context, origin)
    await first.listen(link.url, "request_7", isShared=True)
    await first.until_received(job.kept)
    await job.publish(2)
    second = await Tab.open(context, origin)
    await second.listen(link.url, "request_7", isShared=True)
    await second.until_received(job.kept)
    await job.publish()
    for tab in (first, second):
        await tab.until_received(job.kept)
    assert link.accepted <= server.dials(1)
    await job.close()


async def test_follower_tab_can_revive_the_connection(
    context: BrowserContext, origin: str, server: Server
) -> None:
    """The one that leads has given up, and nobody looks at it."""
    leading, following = await Tab.open(context, origin), await Tab.open(context, origin)
    async with server.serving() as url:
        port = int(url.rpartition(":")[2])
        for tab in (leading, following):
            await tab.listen(url, isShared=True, maxReconnects=0)
            await tab.until_open()
    for tab in (leading, following):
        await tab.until("recorded.states.at(-1).status === 'closed'")
    async with server.serving(port):
        await following.page.evaluate("subscription.reconnect()")
        for tab in (leading, following):
            await tab.until_open(2)


async def test_visible_tab_revives_the_connection(
    context: BrowserContext, origin: str, server: Server
) -> None:
    """The tab that leads is not looked at, and waits with a clock that stands still."""
    leading, following = await Tab.open(context, origin), await Tab.open(context, origin)
    await leading.page.clock.install()
    async with server.serving() as url:
        port = int(url.rpartition(":")[2])
        for tab in (leading, following):
            await tab.listen(url, isShared=True)
            await tab.until_open()
        await leading.stop_clock()
    for tab in (leading, following):
        await tab.until("recorded.states.at(-1).status === 'reconnecting'")
    async with server.serving(port):
        # Headless, every tab is visible: to become so again is only an event.
        await following.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        for tab in (leading, following):
            await tab.until_open(2)
