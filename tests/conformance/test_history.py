"""PROTOCOL.md, "HTTP", History."""

from __future__ import annotations

import pytest

from .client import Client, fresh_room, ids_of, room_path


async def test_an_empty_room(client: Client) -> None:
    """History: the members of the answer; a room that nobody has published to is empty."""
    room = fresh_room()
    answer = await client.history(room)
    cursor = answer.pop("cursor")
    assert answer == {"room": room, "notifications": [], "recovered": True, "more": False}
    await client.publish(room, "n1")
    later = await client.history(room, after=cursor)
    assert (ids_of(later["notifications"]), later["recovered"]) == (["n1"], True)


async def test_the_cursor_of_an_empty_room_after_the_retention(client: Client) -> None:
    """History: `recovered` is false if more came after the cursor than is retained."""
    room = fresh_room()
    cursor = (await client.history(room))["cursor"]
    await client.fill(room, 1001)
    later = await client.history(room, after=cursor, limit=1)
    assert (ids_of(later["notifications"]), later["recovered"]) == (["n1"], False)


async def test_oldest_first(client: Client) -> None:
    """History: the retained log, oldest first, as it was delivered."""
    room = fresh_room()
    await client.fill(room, 3)
    answer = await client.history(room)
    assert ids_of(answer["notifications"]) == ["n0", "n1", "n2"]
    async with client.listen(room, after="earliest") as listener:
        assert await listener.take(3) == answer["notifications"]


async def test_earliest_is_the_default(client: Client) -> None:
    """History: `?after=` is a cursor or `earliest` (the default)."""
    room = fresh_room()
    await client.fill(room, 3)
    assert await client.history(room) == await client.history(room, after="earliest")


async def test_after_a_cursor(client: Client) -> None:
    """History: `?after=` is a cursor: what comes after it."""
    room = fresh_room()
    cursors = await client.fill(room, 3)
    for position, cursor in enumerate(cursors):
        answer = await client.history(room, after=cursor)
        assert ids_of(answer["notifications"]) == ["n0", "n1", "n2"][position + 1 :]
        assert answer["recovered"] is True
        assert answer["more"] is False


async def test_the_default_limit(client: Client) -> None:
    """History: `?limit=` default 100."""
    room = fresh_room()
    await client.fill(room, 101)
    answer = await client.history(room)
    assert len(answer["notifications"]) == 100
    assert answer["more"] is True
    rest = await client.history(room, after=answer["cursor"])
    assert ids_of(rest["notifications"]) == ["n100"]
    assert rest["more"] is False


@pytest.mark.parametrize("limit", [1, 2, 7, 999, 1000])
async def test_a_limit(client: Client, limit: int) -> None:
    """History: `?limit=` 1 to 1,000; while `more` is true, ask again with `after`."""
    room = fresh_room()
    count = 20 if limit < 20 else 1000
    await client.fill(room, count)
    page = await client.history(room, limit=limit)
    found = ids_of(page["notifications"])
    while page["more"]:
        assert len(page["notifications"]) == limit
        page = await client.history(room, after=page["cursor"], limit=limit)
        assert page["notifications"], "`more` promised something"
        found += ids_of(page["notifications"])
    assert found == [f"n{n}" for n in range(count)]


@pytest.mark.parametrize("count", [1, 16, 32, 64, 100, 128, 1000])
async def test_more_is_false_at_the_end(client: Client, count: int) -> None:
    """History: `more`, and not where an answer happens to be full."""
    room = fresh_room()
    await client.fill(room, count)
    answer = await client.history(room, limit=count)
    assert (len(answer["notifications"]), answer["more"]) == (count, False)


@pytest.mark.parametrize(
    "limit",
    ["0", "-1", "1001", "1e2", "1.5", "ten", "9" * 5000, "\uff11", "0x10"],
    ids=lambda limit: ascii(limit[:6]),
)
async def test_rejects_invalid_limit(client: Client, limit: str) -> None:
    """History: `?limit=` 1 to 1,000. Errors: 400 `invalid_request`."""
    response = await client.get(room_path(fresh_room(), "history", limit=limit))
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("fill", ["y" * 200_000, "é" * 100_000], ids=["ascii", "utf-8"])
async def test_an_answer_ends_at_about_a_mebibyte(client: Client, fill: str) -> None:
    """History: an answer ends early at about 1 MiB."""
    room = fresh_room()
    for n in range(8):
        await client.publish(room, f"n{n}", data={"x": fill})
    response = await client.get(room_path(room, "history"))
    assert len(response.content) < 1.3 * 1024 * 1024
    page = response.json()
    assert page["more"] is True
    assert len(page["notifications"]) >= 4
    assert ids_of(await client.whole_history(room)) == [f"n{n}" for n in range(8)]


async def test_an_answer_has_at_least_one(client: Client) -> None:
    """History: with at least one notification."""
    room = fresh_room()
    for n in range(2):
        await client.publish(room, f"n{n}", data={"x": "y" * 260_000})
    page = await client.history(room, limit=1)
    assert (ids_of(page["notifications"]), page["more"]) == (["n0"], True)


async def test_a_lost_position(client: Client) -> None:
    """History: `recovered` is false if something after the asked cursor is gone."""
    room = fresh_room()
    cursors = await client.fill(room, 1002)
    lost = await client.history(room, after=cursors[0])
    assert lost["recovered"] is False
    assert lost["notifications"][0]["id"] == "n2", "it begins with the oldest that is retained"
    # n2 is the oldest that is retained: after n1 nothing is missing.
    kept = await client.history(room, after=cursors[1])
    assert (kept["recovered"], kept["notifications"][0]["id"]) == (True, "n2")


@pytest.mark.parametrize("after", ["a b", "é", "a_b", "x" * 65, "../..", "a\u0000", "-1.5"])
async def test_a_position_that_is_no_cursor(client: Client, after: str) -> None:
    """Errors: 400 when the position is wrong. A cursor is 64 of `A-Z a-z 0-9 -`."""
    response = await client.get(room_path(fresh_room(), "history", after=after))
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


async def test_reading_history_advances_no_acknowledged_cursor(client: Client) -> None:
    """History: reading history does not change an acknowledged cursor."""
    room = fresh_room()
    await client.fill(room, 2)
    await client.history(room)
    async with client.listen(room) as listener:
        assert ids_of(await listener.take(2)) == ["n0", "n1"]
