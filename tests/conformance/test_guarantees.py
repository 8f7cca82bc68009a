"""PROTOCOL.md, "Guarantees": order, at least once, and the same id once."""

from __future__ import annotations

import asyncio
import contextlib

from .client import Client, Listener, Stream, fresh_room, ids_of, is_control, note


async def test_the_same_id_delivers_nothing(client: Client) -> None:
    """Guarantees: the same `id` again delivers nothing; the first result and `duplicate: true`."""
    room = fresh_room()
    async with client.listen(room) as listener:
        await client.until_connections(room, 1)
        first = await client.publish(room, "n1", data={"try": 1})
        assert (first["broadcastCount"], first["duplicate"]) == (1, False)
        await client.publish(room, "n2")
        async with client.listen(room, "latest"):
            await client.until_connections(room, 2)
            again = await client.publish(room, "n1", data={"try": 2}, status="error")
        assert again == {**first, "duplicate": True}
        await client.publish(room, "end")
        received = await listener.until("end")
    assert ids_of(received) == ["n1", "n2", "end"]
    assert received[0]["data"] == {"try": 1}
    assert (await client.history(room))["notifications"] == received


async def test_the_same_id_in_another_room(client: Client) -> None:
    """Guarantees: the same `id` to another room is delivered."""
    one, two = fresh_room(), fresh_room()
    assert (await client.publish(one, "n1"))["duplicate"] is False
    assert (await client.publish(two, "n1"))["duplicate"] is False
    assert ids_of((await client.history(two))["notifications"]) == ["n1"]


async def test_ids_are_compared_exactly(client: Client) -> None:
    """Notification: the same id is the same notification; another spelling is another."""
    room = fresh_room()
    ids = ["n1", "N1", "n1 ", " n1", "n01", "é", "e\u0301", "1", "1.0"]
    for id in ids:
        assert (await client.publish(room, id))["duplicate"] is False
    assert ids_of((await client.history(room))["notifications"]) == ids


async def test_duplicates_through_both_routes(client: Client) -> None:
    """Guarantees: the same `id` to a room again, whichever route it takes."""
    room, other = fresh_room(), fresh_room()
    single = await client.publish(room, "a")
    answer = await client.batch([note("a", rooms=[room, other]), note("b", rooms=[room])])
    assert answer["success"] is True
    rooms = answer["results"][0]["rooms"]
    assert rooms[room] == {"broadcastCount": 0, "cursor": single["cursor"], "duplicate": True}
    assert rooms[other]["duplicate"] is False
    again = await client.publish(room, "b")
    assert again["duplicate"] is True
    assert again["cursor"] == answer["results"][1]["rooms"][room]["cursor"]
    assert ids_of((await client.history(room))["notifications"]) == ["a", "b"]
    assert ids_of((await client.history(other))["notifications"]) == ["a"]


async def test_duplicates_in_one_batch(client: Client) -> None:
    """Guarantees: the same `id` to a room again, also within one request."""
    room = fresh_room()
    items = [note("a", rooms=[room], data={"n": n}) for n in range(3)]
    results = (await client.batch(items))["results"]
    assert [result["rooms"][room]["duplicate"] for result in results] == [False, True, True]
    assert len({result["rooms"][room]["cursor"] for result in results}) == 1
    [kept] = (await client.history(room))["notifications"]
    assert kept["data"] == {"n": 0}


async def test_repeated_room_is_delivered_once(client: Client) -> None:
    """Guarantees: once to a room, even if it is named twice."""
    room = fresh_room()
    async with client.listen(room):
        await client.until_connections(room, 1)
        answer = await client.batch([note("a", rooms=[room, room])])
    assert set(answer["results"][0]["rooms"]) == {room}
    assert answer["results"][0]["broadcastCount"] == 1
    assert ids_of((await client.history(room))["notifications"]) == ["a"]


async def test_fifty_concurrent_publishes_with_the_same_id(client: Client) -> None:
    """Guarantees: the same `id` is delivered once, however many send it concurrently."""
    room = fresh_room()
    async with client.listen(room) as listener:
        await client.until_connections(room, 1)
        answers = await asyncio.gather(*(client.publish(room, "n1") for _ in range(50)))
        assert sum(not answer["duplicate"] for answer in answers) == 1
        assert len({answer["cursor"] for answer in answers}) == 1
        await client.publish(room, "end")
        assert ids_of(await listener.until("end")) == ["n1", "end"]


async def test_all_subscribers_receive_the_same_order(client: Client) -> None:
    """Guarantees: order per room, however many publish concurrently."""
    room = fresh_room()

    async def publish(worker: int) -> list[str]:
        cursors = [(await client.publish(room, f"{worker}-{n}"))["cursor"] for n in range(5)]
        items = [note(f"{worker}-{n}", rooms=[room]) for n in range(5, 10)]
        results = (await client.batch(items))["results"]
        return cursors + [result["rooms"][room]["cursor"] for result in results]

    async with (
        client.listen(room) as one,
        client.listen(room, v1=True) as two,
        client.stream(room) as three,
    ):
        await client.until_connections(room, 3)
        await two.subscribed()
        answers = await asyncio.gather(*(publish(worker) for worker in range(12)))
        received = await one.take(120)
        assert await two.take(120) == received
        assert await three.take(120) == received
    assert await client.whole_history(room) == received
    cursors = [notification["cursor"] for notification in received]
    for answer in answers:
        places = [cursors.index(cursor) for cursor in answer]
        assert places == sorted(places), "what one sender sent in order is in order"


async def test_large_room_delivers_to_every_kind_of_subscriber(client: Client) -> None:
    """Guarantees: order per room, for each of many subscribers, however it is connected. HTTP:
    `broadcastCount` counts all of them."""
    room = fresh_room()
    async with contextlib.AsyncExitStack() as stack:
        everyone: list[Listener | Stream] = []
        for _ in range(6):
            everyone.append(await stack.enter_async_context(client.listen(room)))
            everyone.append(await stack.enter_async_context(client.listen(room, v1=True)))
        for n in range(2):
            everyone.append(
                await stack.enter_async_context(client.listen(room, device=f"phone{n}"))
            )
            everyone.append(await stack.enter_async_context(client.stream(room)))
        await client.until_connections(room, len(everyone))
        for n in range(10):
            assert (await client.publish(room, f"n{n}"))["broadcastCount"] == len(everyone)
        items = [note(f"n{n}", rooms=[room]) for n in range(10, 15)]
        results = (await client.batch(items))["results"]
        assert {result["broadcastCount"] for result in results} == {len(everyone)}
        for subscriber in everyone:
            received: list[str] = []
            while len(received) < 15:
                if not is_control(message := await subscriber.next()):
                    received.append(message["id"])
            assert received == [f"n{n}" for n in range(15)]


async def test_delivers_at_least_once_to_a_resuming_subscriber(client: Client) -> None:
    """Guarantees: each notification at least once to every subscriber that resumes."""
    room = fresh_room()

    async def publish() -> None:
        for n in range(60):
            await client.publish(room, f"n{n}")

    async def listen() -> list[str]:
        received: list[str] = []
        cursor = "earliest"
        while len(received) < 60:
            async with client.listen(room, cursor) as listener:
                for message in await listener.take(min(7, 60 - len(received))):
                    received.append(message["id"])
                    cursor = message["cursor"]
                listener.ws.transport.abort()  # as a network does
        return received

    _, *received = await asyncio.gather(publish(), listen(), listen())
    assert received == [[f"n{n}" for n in range(60)]] * 2


async def test_a_thousand_are_retained(client: Client) -> None:
    """Guarantees: the retention, by default 1,000 notifications for a room."""
    room = fresh_room()
    await client.fill(room, 1005)
    kept = await client.whole_history(room)
    assert ids_of(kept) == [f"n{n}" for n in range(5, 1005)]


async def test_retention_is_per_room(client: Client) -> None:
    """Guarantees: the retention is for a room."""
    quiet, busy = fresh_room(), fresh_room()
    [cursor, _] = await client.fill(quiet, 2)
    await client.fill(busy, 1100)
    page = await client.history(quiet, after=cursor)
    assert (ids_of(page["notifications"]), page["recovered"]) == (["n1"], True)


async def test_id_is_remembered_longer_than_its_notification(client: Client) -> None:
    """Guarantees: the same `id` within 5 minutes delivers nothing, also when it is not retained."""
    room = fresh_room()
    cursors = await client.fill(room, 1001)
    again = await client.publish(room, "n0")
    assert (again["duplicate"], again["cursor"]) == (True, cursors[0])


async def test_every_room_receives_its_own(client: Client) -> None:
    """Guarantees: each notification to every subscriber of the room, and to nobody else."""
    one, two = fresh_room(), fresh_room()
    async with client.listen(one) as first, client.listen(two) as second:
        await client.until_connections(one, 1)
        await client.until_connections(two, 1)
        await client.publish(one, "a")
        await client.publish(two, "b")
        await client.batch([note("end", rooms=[one, two])])
        assert ids_of(await first.until("end")) == ["a", "end"]
        assert ids_of(await second.until("end")) == ["b", "end"]
