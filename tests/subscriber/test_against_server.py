"""A real room server, and a bad network between it and the subscriber."""

from __future__ import annotations

import asyncio

import fastapi
import httpx

from synap_realtime import AsyncBroadcaster, SubscriptionState
from synap_realtime.server import create_app
from synap_realtime.server.serve import running_server
from tests.support.link import Link
from tests.support.waits import SetWaits

from .conftest import Listen


async def test_receives_publishes(listen: Listen, rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster, listen("request_7", rooms) as receive:
        await broadcaster.broadcast_success("1", "a.completed", {"x": 1}, "7", id="n1")
        notification = await receive()
    assert (notification.id, notification.data, notification.request_id) == ("n1", {"x": 1}, "7")
    assert notification.room == "request_7"


async def test_a_position_is_where_it_starts(listen: Listen, rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        for n in range(3):
            await broadcaster.broadcast_success("1", "a.completed", {}, id=f"n{n}")
    async with listen("user_1", rooms, after="earliest") as receive:
        cursor = (await receive()).cursor
    async with listen("user_1", rooms, after=cursor) as receive:
        assert (await receive()).id == "n1"


async def test_connects_to_a_mounted_server(listen: Listen) -> None:
    app = fastapi.FastAPI()
    app.mount("/realtime/v1", create_app())
    async with running_server(app) as url:
        async with AsyncBroadcaster(f"{url}/realtime/v1/") as broadcaster:
            await broadcaster.broadcast_success(None, "a.completed", {}, "7", id="n1")
        async with listen("request_7", f"{url}/realtime/v1/") as receive:
            assert (await receive()).id == "n1"


async def test_on_a_bad_network_everything_arrives_once_and_in_order(
    listen: Listen, rooms: str
) -> None:
    """Cuts, cuts amid a frame, and refusals, while 300 notifications are published."""
    states: list[SubscriptionState] = []
    ahead = asyncio.Semaphore(4)  # batches that the publisher may be ahead of the listener
    async with (
        Link(rooms) as link,
        httpx.AsyncClient(base_url=rooms) as client,
        listen(
            "request_7", link.url, max_reconnects=None, on_state_change=states.append
        ) as receive,
    ):

        async def publish() -> None:
            for n in range(0, 300, 5):
                await ahead.acquire()
                batch = [
                    {"rooms": ["request_7"], "type": "a.progress", "data": {"n": n + k}}
                    for k in range(5)
                ]
                await client.post("/broadcast", json={"notifications": batch})

        async with asyncio.TaskGroup() as group:
            group.create_task(publish())
            numbers = []
            for n in range(300):
                numbers.append((await receive()).data["n"])
                if n % 5 == 4:
                    ahead.release()
                if n % 60 == 20:
                    link.cut()
                elif n % 60 == 40:
                    link.cut_after(333)
                elif n % 60 == 50:
                    link.refuse()
                    link.cut()
                    asyncio.get_running_loop().call_later(0.05, link.restore)
    assert numbers == list(range(300))
    # Each group of 60 breaks the connection three times; a break during a reconnect adds none.
    assert len([s for s in states if s.status == "reconnecting"]) >= 5


async def test_acknowledged_notifications_are_not_redelivered(listen: Listen, rooms: str) -> None:
    """A user's room goes on after what was acknowledged; the last one in hand was not."""
    async with AsyncBroadcaster(rooms) as broadcaster:
        for n in range(3):
            await broadcaster.broadcast_success("1", "a.completed", {}, id=f"n{n}")
    for first, acknowledge in (("n0", False), ("n0", True), ("n1", True)):
        async with listen("user_1", rooms, acknowledge=acknowledge) as receive:
            assert (await receive()).id == first
            await receive()


async def test_reconnects_after_a_drain(listen: Listen) -> None:
    app = create_app()
    states: list[SubscriptionState] = []
    async with (
        running_server(app) as first,
        running_server(create_app()) as second,
        Link(first) as link,
        AsyncBroadcaster(first) as at_first,
        AsyncBroadcaster(second) as at_second,
        listen("request_7", link.url, on_state_change=states.append) as receive,
    ):
        await at_first.broadcast_success(None, "a.completed", {}, "7", id="n1")
        assert (await receive()).id == "n1"
        await at_second.broadcast_success(None, "a.completed", {}, "7", id="n2")
        link.move(second)
        await app.drain()
        assert (await receive()).id == "n2"
    assert "4012" in states[1].reason


async def test_reconnects_after_a_restart_and_reports_the_gap(
    listen: Listen,
) -> None:
    """The new server does not know the old one's cursors: its log is still delivered."""
    gaps: list[str] = []
    async with (
        running_server(create_app()) as first,
        running_server(create_app()) as second,
        Link(first) as link,
        AsyncBroadcaster(first) as at_first,
        AsyncBroadcaster(second) as at_second,
        listen("request_7", link.url, max_reconnects=None, on_gap=gaps.append) as receive,
    ):
        await at_first.broadcast_success(None, "a.completed", {}, "7", id="n1")
        assert (await receive()).id == "n1"
        await at_second.broadcast_success(None, "a.completed", {}, "7", id="n2")
        link.move(second)
        link.cut()
        assert (await receive()).id == "n2"
        await at_second.broadcast_success(None, "a.completed", {}, "7", id="n3")
        assert (await receive()).id == "n3"
    assert gaps == ["request_7"]


async def test_detects_a_pulled_cable(listen: Listen, rooms: str, set_waits: SetWaits) -> None:
    set_waits(ping_interval_s=0.05, pong_timeout_s=0.2)
    async with (
        Link(rooms) as link,
        AsyncBroadcaster(rooms) as broadcaster,
        listen("request_7", link.url) as receive,
    ):
        await broadcaster.broadcast_success(None, "a.completed", {}, "7", id="n1")
        assert (await receive()).id == "n1"
        link.stall()
        await broadcaster.broadcast_success(None, "a.completed", {}, "7", id="n2")
        waiting = asyncio.ensure_future(receive())
        await link.until_accepted(2)  # nobody closed the first
        link.restore()
        assert (await waiting).id == "n2"
