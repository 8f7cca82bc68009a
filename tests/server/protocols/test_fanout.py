"""Fan-out groups: what each subscriber of a shared batched write receives.

PROTOCOL.md, "Subscribing", over real sockets, with io_uring and without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
from typing import Any

import pytest

from synap_realtime import tracing
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.config import ServerSettings
from synap_realtime.server.protocols import io_uring as rings
from synap_realtime.server.stores.base import Entry
from tests.support.stores import LateStore
from tests.support.websocket_frames import CLOSE, CONT, PING, TEXT, frame

from .conftest import WAYS, Run
from .fanout_clients import MANY, OTHER, ROOM, Client, listening, serving, settings_of

CLOSED = (1000).to_bytes(2, "big")


@pytest.fixture(params=[*WAYS, "not allowed"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
    if request.param == "not allowed":
        monkeypatch.setattr(rings, "_SETUP", 100_000)  # the kernel knows no such call
    return settings_of(io_uring=request.param != "loop")


def test_all_receive_all_in_order_while_members_join_and_leave(
    run: Run, settings: ServerSettings
) -> None:
    """Two rooms, so that a descriptor that is used again would bring the other room's."""
    rng = random.Random(3)

    async def test() -> None:
        async with serving(settings) as server, contextlib.AsyncExitStack() as undo:
            everyone: list[tuple[Client, int]] = []  # and how many its room had received before
            for n in range(400):
                room = rng.choice([ROOM, OTHER])
                match rng.choice(["come", "come", "go", "publish", "publish", "publish"]):
                    case "come" if len(everyone) < 80:
                        kind = rng.randrange(4)
                        query = "after=latest" + ("&device=d" if kind == 0 else "")
                        coming = listening(server, 1, room, query=query, acknowledges=kind != 1)
                        (client,) = await undo.enter_async_context(coming)
                        everyone.append((client, len(server.published.get(room, []))))
                    case "go" if everyone:
                        client, before = everyone.pop(rng.randrange(len(everyone)))
                        published = server.published.get(client.room, [])[before:]
                        if rng.random() < 0.3:
                            client.reset()
                        else:
                            await client.until_received(published)
                            client.socket.close()
                    case _:
                        await server.publish(room, rng.choice([0, 0, 100, 5000]))
                        if rng.random() < 0.3:
                            await server.publish(room)
                if n % 50 == 49:
                    for client, before in everyone:
                        await client.until_received(server.published.get(client.room, [])[before:])
            assert server.together(ROOM) > 5
            assert server.together(OTHER) > 5

    run(test())


def test_slow_member_receives_everything_later_and_delays_nobody(
    run: Run, settings: ServerSettings
) -> None:
    async def test() -> None:
        async with (
            serving(settings) as server,
            listening(server) as quick,
            listening(server, 2, receive_bytes=4096) as slow,
        ):
            await server.until(lambda: server.together() == MANY + 2)
            while server.together() > MANY:
                assert await server.publish(size=60_000) == MANY + 2
                for client in quick:
                    await client.until_received(server.published[ROOM])
            for size in (60_000, 10, 60_000):  # these wait
                assert await server.publish(size=size) == MANY + 2
            for client in quick:
                await client.until_received(server.published[ROOM])
            for client in slow:
                await client.until_received(server.published[ROOM])
            await server.until(lambda: server.together() == MANY + 2)
            await server.publish()
            for client in (*quick, *slow):
                await client.until_received(server.published[ROOM])

    run(test())


class Apart:
    """A listener that is always offered by itself."""

    def deliver(self, entry: Entry, published_at: float) -> bool:
        return True

    def join_group(self) -> None: ...

    def on_gap(self, position: Cursor) -> None: ...


def test_member_blocked_by_an_individual_write_misses_no_broadcast(
    run: Run, settings: ServerSettings
) -> None:
    """In one loop iteration: publish to few, let them become many, and publish to all."""

    async def test() -> None:
        async with (
            serving(settings) as server,
            listening(server, 3) as quick,
            listening(server, 1, receive_bytes=4096) as slow,
        ):
            await server.until(lambda: server.hub.subscriber_count(ROOM) == 4)
            few: Any = server.hub._rooms[ROOM]
            for subscription in few:
                descriptor = os.dup(subscription._sink.socket.descriptor)
                with socket.socket(fileno=descriptor) as ours:
                    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await server.publish(size=40_000)
            server.hub.subscribe(ROOM, Apart())
            assert server.together() == 4
            assert await server.publish() == 5
            assert await server.publish() == 5
            for client in (*quick, *slow):
                await client.until_received(server.published[ROOM])
            await server.until(lambda: server.together() == 4)

    run(test())


def test_closes_member_that_never_reads_as_slow_consumer(
    run: Run, settings: ServerSettings
) -> None:
    async def test() -> None:
        async with (
            serving(settings) as server,
            listening(server) as quick,
            listening(server, 1, receive_bytes=4096),
        ):
            while server.hub.subscriber_count(ROOM) > MANY:
                await server.publish(size=200_000)
                for client in quick:
                    await client.until_received(server.published[ROOM])
                await asyncio.sleep(0)

    run(test())


def test_dead_peer_among_a_thousand_affects_nobody(run: Run, settings: ServerSettings) -> None:
    async def test() -> None:
        async with serving(settings) as server, listening(server, 1000) as clients:
            await server.until(lambda: server.together() == 1000)
            for dead in (clients.pop(0), clients.pop(500), clients.pop()):
                dead.reset()
            for _ in range(3):
                await server.publish()
            await server.until(lambda: server.hub.subscriber_count(ROOM) == 997)
            assert server.together() == 997
            assert await server.publish() == 997
            for client in clients:
                await client.until_received(server.published[ROOM])

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    try:
        run(test())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reused_descriptor_receives_nothing_of_the_old_room(
    run: Run, settings: ServerSettings
) -> None:
    async def test() -> None:
        async with serving(settings) as server, listening(server) as clients:
            await server.until(lambda: server.together() == MANY)
            descriptors = {socket.descriptor for socket in server.group()._subscriptions}  # type: ignore[union-attr]
            gone = clients[::2]
            for client in gone:
                client.reset()
            await server.publish()
            await server.until(lambda: server.hub.subscriber_count(ROOM) == MANY - len(gone))
            async with listening(server, len(gone), OTHER) as others:
                await server.until(lambda: server.together(OTHER) == len(gone))
                again = {socket.descriptor for socket in server.group(OTHER)._subscriptions}  # type: ignore[union-attr]
                assert again & descriptors
                for _ in range(3):
                    await server.publish()
                    await server.publish(OTHER)
                for client in (*clients[1::2], *others):
                    await client.until_received(server.published[client.room])

    run(test())


def test_group_forms_and_dissolves_with_the_room_size(run: Run, settings: ServerSettings) -> None:
    async def test() -> None:
        async with serving(settings) as server:
            for _ in range(2):
                async with listening(server, 4) as few:
                    before = len(server.published.get(ROOM, []))
                    assert await server.publish() == 4
                    assert server.group() is None
                    async with listening(server, 1) as (fifth,):
                        await server.until(lambda: server.together() == 5)
                        assert await server.publish() == 5
                        await fifth.until_received(server.published[ROOM][before + 1 :])
                    for client in few[1:]:
                        client.socket.close()
                    await server.until(lambda: server.hub.subscriber_count(ROOM) == 1)
                    assert await server.publish() == 1
                    await few[0].until_received(server.published[ROOM][before:])
                await server.until(lambda: server.hub.subscriber_count(ROOM) == 0)
                assert len(server.hub) == 0

    run(test())


def test_client_messages_are_answered_between_notifications(
    run: Run, settings: ServerSettings
) -> None:
    async def test() -> None:
        async with serving(settings) as server, listening(server) as clients:
            await server.until(lambda: server.together() == MANY)
            for _ in range(30):
                for client in clients:
                    await client.say(frame(TEXT, b"ping") + frame(PING, b"p"))
                await server.publish(size=3000)
            for client in clients:
                await client.until_received(server.published[ROOM])
                await client.until(lambda: len(client.control) == 61)  # noqa: B023
            assert server.together() == MANY

    run(test())


def test_violating_client_receives_a_close_frame_and_nothing_after_it(
    run: Run, settings: ServerSettings
) -> None:
    async def test() -> None:
        async with serving(settings) as server, listening(server) as clients:
            await server.until(lambda: server.together() == MANY)
            await clients[0].say(frame(CONT, b"x"))
            await clients[1].say(frame(CLOSE, CLOSED))
            while server.together() > MANY - 2:
                await server.publish()
                await asyncio.sleep(0)
            await server.publish()
            for client, code in zip(clients, (1002, 1000), strict=False):
                await client.until(lambda: client.close_code is not None)  # noqa: B023
                assert client.close_code == code
                assert client.ids == server.published[ROOM][: len(client.ids)]
            for client in clients[2:]:
                await client.until_received(server.published[ROOM])

    run(test())


def test_draining_server_delivers_accepted_notifications_and_announces_it(
    run: Run, settings: ServerSettings
) -> None:
    async def test() -> None:
        async with serving(settings) as server, listening(server) as clients:
            await server.until(lambda: server.together() == MANY)
            await server.publish()
            stopping = asyncio.create_task(server.app.drain())
            for client in clients:
                await client.until(lambda: client.close_code is not None)  # noqa: B023
                assert client.ids == server.published[ROOM]
                assert client.control[-1][1]["type"] == "synap.closing"
                client.socket.close()
            await stopping

    run(test())


def test_group_continues_in_a_new_epoch_after_a_gap(run: Run, settings: ServerSettings) -> None:
    async def test() -> None:
        async with (
            serving(settings) as server,
            listening(server) as clients,
            listening(server, MANY, acknowledges=False) as others,
        ):
            await server.until(lambda: server.together() == 2 * MANY)
            await server.publish()
            position = Cursor("new", 5)  # offsets may start anew
            server.hub.report_gap(ROOM, position)
            assert server.together() == 2 * MANY
            await server.publish()
            assert server.together() == 2 * MANY
            for client in (*clients, *others):
                await client.until_received(server.published[ROOM])
            for client in clients:
                count, frame = client.control[-1]
                assert (count, frame["type"]) == (1, "synap.subscribed")
                assert frame["data"]["cursor"] == str(position)
                assert frame["data"]["recovered"] is False

    run(test())


@pytest.mark.parametrize("still_in", [True, False])
def test_notifications_delivered_to_a_group_can_be_acknowledged(
    run: Run, settings: ServerSettings, still_in: bool
) -> None:
    async def test() -> None:
        async with serving(settings) as server, listening(server) as clients:
            await server.until(lambda: server.together() == MANY)
            await server.publish()
            if not still_in:
                server.group().disband()  # type: ignore[union-attr]
            head = await server.store.head(ROOM)
            ahead = f"{head.epoch}-{head.offset + 1}"
            for cursor, counts in ((ahead, False), (str(head), True)):
                text = json.dumps({"action": "ack", "cursor": cursor}) + " " * 40
                await clients[3].say(frame(TEXT, text.encode()) + frame(TEXT, b"ping"))
                await clients[3].until(lambda: clients[3].control[-1][1] == "pong")
                clients[3].control.pop()
                mark = await server.store.get_ack(ROOM)
                assert (mark == head) is counts

    run(test())


def test_acknowledged_cursors_advance_for_clients_without_acks(
    run: Run, settings: ServerSettings
) -> None:
    """The room's is one for all who have no device; a device has its own."""

    async def test() -> None:
        async with (
            serving(settings) as server,
            listening(server),
            listening(server, 3, acknowledges=False) as plain,
        ):
            await server.until(lambda: server.together() == MANY + 3)
            assert await server.publish() == MANY + 3
            assert await server.store.get_ack(ROOM) == await server.store.head(ROOM)
            device = listening(server, 2, query="after=latest&device=d", acknowledges=False)
            async with device:
                assert await server.publish() == MANY + 5
                assert server.together() == MANY + 3
                head = await server.store.head(ROOM)
                assert await server.store.get_ack(ROOM, "d") == head
            for client in plain:
                await client.until_received(server.published[ROOM])

    run(test())


def test_unread_backlog_is_not_acknowledged(run: Run, settings: ServerSettings) -> None:
    async def test() -> None:
        async with (
            serving(settings) as server,
            listening(server) as quick,
            listening(server, 1, acknowledges=False, receive_bytes=4096) as (slow,),
        ):
            await server.until(lambda: server.together() == MANY + 1)
            while server.together() > MANY:
                before = await server.store.get_ack(ROOM)
                await server.publish(size=60_000)
                for client in quick:
                    await client.until_received(server.published[ROOM])
            assert await server.store.get_ack(ROOM) == before
            await slow.until_received(server.published[ROOM])
            await server.until(lambda: server.together() == MANY + 1)
            assert await server.store.get_ack(ROOM) == await server.store.head(ROOM)

    run(test())


def test_notification_read_from_the_log_is_not_delivered_twice(
    run: Run, settings: ServerSettings
) -> None:
    """A store on disk delivers later than it can be read."""

    async def test() -> None:
        store = LateStore()
        async with serving(settings, store) as server, listening(server) as before:
            await server.until(lambda: server.together() == MANY)
            await server.publish()
            async with listening(server, 3, query="after=earliest") as since:
                await server.until(lambda: server.together() == MANY + 3)
                for client in since:
                    await client.until_received(server.published[ROOM])
                assert before[0].ids == []
                await server.publish()
                store.release()
                assert server.together() == MANY + 3
                for client in (*before, *since):
                    await client.until_received(server.published[ROOM])
                await server.publish()
                store.release()
                for client in (*before, *since):
                    await client.until_received(server.published[ROOM])

    run(test())


def test_each_delivery_has_a_span_when_tracing(
    run: Run, settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with serving(settings) as server, listening(server) as clients:
            await server.until(lambda: server.together() == MANY)
            await server.publish()
            spans = []

            def begin(room: Room, _: Entry) -> tracing.Span:
                spans.append(room)
                return tracing.Span()

            monkeypatch.setattr(tracing, "_is_enabled", True)
            monkeypatch.setattr(
                "synap_realtime.server.rooms.subscription.start_delivery_span",
                begin,
            )
            await server.publish()
            assert server.together() == 0
            await server.publish()
            assert len(spans) == 2 * MANY
            for client in clients:
                await client.until_received(server.published[ROOM])

    run(test())
