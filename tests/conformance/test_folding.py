"""PROTOCOL.md, "Folding"."""

from __future__ import annotations

from typing import Any

import pytest

from .client import Client, Json, Listener, fresh_room, ids_of, note, room_path


def append(piece: object, id: str | None = None, **members: Any) -> Json:
    """A piece of a text; the members that are not of ``data`` are those of ``fold``."""
    index = members.pop("index", None)
    data = {"delta": piece} if index is None else {"delta": piece, "index": index}
    return note(id, data=data, fold={"key": "text", "mode": "append", **members})


def replace(id: str | None = None, **members: Any) -> Json:
    return note(id, data={"n": id}, fold={"key": "state", "mode": "replace", **members})


async def publish(client: Client, room: str, notification: Json) -> Json:
    response = await client.broadcast(room, notification)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


async def conflict(client: Client, room: str, notification: Json) -> Json:
    response = await client.broadcast(room, notification)
    assert response.status_code == 409, response.text
    answer: Json = response.json()
    assert answer.pop("error") == "Conflict"
    assert isinstance(answer.pop("details"), str)
    return answer


async def take_text(listener: Listener, text: str) -> list[Json]:
    """Take what has the rest of a text. The server may join pieces."""
    received: list[Json] = []
    while not received or received[-1]["fold"]["offset"] + len(received[-1]["data"]["delta"]) < len(
        text
    ):
        received.append(await listener.next())
    return received


def text_of(received: list[Json]) -> str:
    """The text that a subscriber has after some notifications."""
    text = ""
    for message in received:
        offset = message["fold"]["offset"]
        assert offset <= len(text), "a piece is missing"
        text = text[:offset] + message["data"]["delta"]
    return text


async def test_replace_keeps_the_latest(client: Client) -> None:
    """Folding: the log has one notification for each key, at the position of the last write."""
    room = fresh_room()
    await publish(client, room, replace("p0"))
    await publish(client, room, note("n0"))
    answer = await publish(client, room, replace("p1"))
    log = await client.whole_history(room)
    assert ids_of(log) == ["n0", "p1"]
    assert log[1]["data"] == {"n": "p1"}
    assert log[1]["cursor"] == answer["cursor"]
    assert log[1]["fold"] == {"key": "state", "mode": "replace", "attempt": 0}


async def test_append_is_live_in_pieces_and_replayed_whole(client: Client) -> None:
    """Folding: live, a piece has its offset; a replay has the whole text once, with offset 0."""
    room = fresh_room()
    pieces = ["aé", "😀\u2028", "", "\x00end"]
    async with client.listen(room, v1=True) as listener:
        await listener.subscribed()
        for number, piece in enumerate(pieces):
            await publish(client, room, append(piece, f"p{number}", index=number))
        live = await take_text(listener, "".join(pieces))
    assert text_of(live) == "".join(pieces)
    assert live[0]["data"] == {"delta": "aé", "index": 0}
    assert [message["data"]["index"] for message in live] == list(range(len(live)))
    (whole,) = await client.whole_history(room)
    assert whole["id"] == "p3"
    assert whole["data"] == {"delta": "".join(pieces), "index": 0}
    assert whole["fold"] == {"key": "text", "mode": "append", "attempt": 0, "offset": 0}
    assert whole["cursor"] == live[-1]["cursor"]
    async with client.listen(room, "earliest", v1=True) as listener:
        assert await listener.next() == whole
        assert (await listener.subscribed())["replayed"] == 1


async def test_a_subscriber_that_joins_or_resumes_has_the_text(client: Client) -> None:
    """Folding: whatever the position, the pieces that follow fit the text that was replayed."""
    room = fresh_room()
    cursors = []
    for number in range(6):
        answer = await publish(client, room, append(f"{number}é", index=number))
        cursors.append(answer["cursor"])
    async with client.listen(room, cursors[2], v1=True) as listener:
        (replayed,) = await listener.take(1)
        assert (await listener.subscribed())["recovered"] is True
        await publish(client, room, append("live", index=6))
        assert text_of([replayed, await listener.next()]) == "0é1é2é3é4é5élive"
    async with client.listen(room, "latest", v1=True) as listener:
        await listener.subscribed()


async def test_a_client_of_version_1_counts_pieces_from_the_replayed_text(client: Client) -> None:
    """Folding: a replayed text is index 0, and the pieces that follow are 1, 2, …"""
    room = fresh_room("request")
    for number in range(5):
        await publish(client, room, append(f"{number}", index=number))
    async with client.listen(room) as listener:
        replayed = await listener.next()
        assert (replayed["data"]["index"], replayed["data"]["delta"]) == (0, "01234")
        async with client.listen(room, "latest", v1=True) as other:
            await other.subscribed()  # before, the position may be that before the next piece
            await publish(client, room, append("5", index=5))
            await publish(client, room, note("n0", data={"index": 7}))
            await publish(client, room, append("6", index=6, final=True))
            received = await listener.take(3)
            assert [message["data"]["index"] for message in received] == [1, 7, 2]
            unchanged = await other.take(3)
            assert [message["data"]["index"] for message in unchanged] == [5, 7, 6]


async def test_pieces_may_be_joined(client: Client) -> None:
    """Folding: pieces that come fast are joined, and come before what was published after them."""
    room = fresh_room()
    async with client.listen(room, v1=True) as listener:
        await listener.subscribed()
        items = [{**append("xy", offset=2 * n, index=n), "rooms": [room]} for n in range(50)]
        await client.batch([*items, {**note("n0"), "rooms": [room]}])
        received = await listener.until("n0")
    assert text_of(received[:-1]) == "xy" * 50
    assert [message["data"]["index"] for message in received[:-1]] == list(range(len(received) - 1))
    assert received[-2]["cursor"] == (await client.history(room))["notifications"][0]["cursor"]


async def test_a_repeated_piece_is_a_duplicate(client: Client) -> None:
    """Folding: a piece that the text has at its offset is answered with `duplicate: true`."""
    room = fresh_room()
    await publish(client, room, append("aé", "p0", offset=0))
    last = await publish(client, room, append("bc", "p1", offset=2))
    for piece, offset in (("aé", 0), ("éb", 1), ("bc", 2)):
        again = await publish(client, room, append(piece, "again", offset=offset))
        assert (again["duplicate"], again["cursor"]) == (True, last["cursor"])
    assert [m["data"]["delta"] for m in await client.whole_history(room)] == ["aébc"]


async def test_an_offset_that_does_not_fit(client: Client) -> None:
    """Folding: 409 `offset_mismatch` with the right offset; nothing is stored."""
    room = fresh_room()
    wrong = await conflict(client, room, append("x", offset=1))
    assert wrong == {"code": "offset_mismatch", "offset": 0, "attempt": 0}
    await publish(client, room, append("aé", offset=0))
    for piece, offset in (("x", 3), ("x", 0), ("éb", 1), ("x", 2**31 - 1)):
        wrong = await conflict(client, room, append(piece, "p1", offset=offset))
        assert wrong == {"code": "offset_mismatch", "offset": 2, "attempt": 0}
    assert not (await publish(client, room, append("b", "p1", offset=2)))["duplicate"]
    assert [m["data"]["delta"] for m in await client.whole_history(room)] == ["aéb"]


async def test_an_attempt_that_is_over_cannot_write(client: Client) -> None:
    """Folding: the attempt is a fencing number, also after the final write."""
    room = fresh_room()
    await publish(client, room, append("old", attempt=1))
    await publish(client, room, append("new", attempt=2, offset=0))
    late = await conflict(client, room, append(" zombie", attempt=1, offset=3))
    assert late == {"code": "stale_attempt", "attempt": 2}
    await publish(client, room, append(".", attempt=2, offset=3, final=True))
    late = await conflict(client, room, append("zombie", attempt=1, offset=0))
    assert late == {"code": "stale_attempt", "attempt": 2}
    assert [m["data"]["delta"] for m in await client.whole_history(room)] == ["new."]


async def test_a_final_write_closes_the_key(client: Client) -> None:
    """Folding: after `final`, the notification stays, and the next write begins another one."""
    room = fresh_room()
    await publish(client, room, append("one", offset=0))
    await publish(client, room, append(".", "last", offset=3, final=True))
    assert (await publish(client, room, append(".", "last", offset=3, final=True)))["duplicate"]
    await publish(client, room, append("two", offset=0))
    log = await client.whole_history(room)
    assert [m["data"]["delta"] for m in log] == ["one.", "two"]
    assert log[0]["fold"]["final"] is True


async def test_a_mode_that_changes(client: Client) -> None:
    """Folding: a key has one mode while it is open: 409 `fold_mode`."""
    room = fresh_room()
    await publish(client, room, append("x"))
    wrong = await conflict(client, room, replace(key="text"))
    assert wrong == {"code": "fold_mode", "attempt": 0}
    await publish(client, room, append("y", final=True))
    await publish(client, room, replace(key="text"))


async def test_too_many_keys(client: Client) -> None:
    """Folding: a room has at most 64 open keys: 409 `too_many_keys`."""
    room = fresh_room()
    for number in range(64):
        await publish(client, room, append("x", key=f"k{number}"))
    assert await conflict(client, room, append("x", key="more")) == {"code": "too_many_keys"}
    await publish(client, room, append("y", key="k0", final=True))
    await publish(client, room, append("x", key="more"))


async def test_a_text_is_bounded(client: Client) -> None:
    """Folding: a folded notification has at most 1 MiB as it is delivered: 413."""
    room = fresh_room()
    for _ in range(4):
        await publish(client, room, append("x" * 250_000))
    response = await client.broadcast(room, append("x" * 250_000))
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
    history = await client.get(room_path(room, "history"))
    assert len(history.content) < 1024 * 1024
    await publish(client, room, append("y", offset=1_000_000))


async def test_many_large_texts(client: Client) -> None:
    """Folding: history and replays have all of them, however large they are together."""
    room = fresh_room()
    for number in range(5):
        for _ in range(3):
            await publish(client, room, append(str(number) * 200_000, key=f"k{number}"))
    await publish(client, room, note("n0"))
    whole = await client.whole_history(room)
    assert [len(message["data"].get("delta", "")) for message in whole] == [*[600_000] * 5, 0]
    async with client.listen(room, "earliest", v1=True) as listener:
        assert await listener.take(6) == whole
        assert (await listener.subscribed())["replayed"] == 6


async def test_a_batch_has_a_result_for_each_write(client: Client) -> None:
    """Folding: in a batch, a conflict is the result of that notification, for each room."""
    room, other = fresh_room(), fresh_room()
    await publish(client, other, append("abc"))
    answer = await client.batch(
        [
            {**append("ab", "p0", offset=0), "rooms": [room]},
            {**append("c", "p1", offset=2), "rooms": [room, other]},
            {**append("c", "p2", offset=3), "rooms": [room]},
            {**note("n0"), "rooms": [room]},
        ]
    )
    assert answer["success"] is True
    first, both, last, ordinary = answer["results"]
    assert (first["success"], last["success"], ordinary["success"]) == (True, True, True)
    assert both["success"] is True, "the other room has this piece at this offset"
    assert both["rooms"][other]["duplicate"] is True
    answer = await client.batch([{**append("!", "p3", offset=4), "rooms": [room, other]}])
    (mixed,) = answer["results"]
    assert (mixed["success"], mixed["code"], mixed["offset"]) == (False, "offset_mismatch", 3)
    assert mixed["rooms"][room]["duplicate"] is False
    assert mixed["rooms"][other]["code"] == "offset_mismatch"
    assert [m["data"]["delta"] for m in await client.whole_history(other)] == ["abc"]


@pytest.mark.parametrize(
    ("fold", "member"),
    [
        ("x", "fold"),
        ({"mode": "append"}, "fold.key"),
        ({"key": "", "mode": "append"}, "fold.key"),
        ({"key": "k" * 129, "mode": "append"}, "fold.key"),
        ({"key": "é", "mode": "append"}, "fold.key"),
        ({"key": "k", "mode": "add"}, "fold.mode"),
        ({"key": "k", "mode": "append", "offset": -1}, "fold.offset"),
        ({"key": "k", "mode": "replace", "offset": 0}, "fold.offset"),
        ({"key": "k", "mode": "append", "attempt": "1"}, "fold.attempt"),
        ({"key": "k", "mode": "append", "final": 1}, "fold.final"),
        ({"key": "k", "mode": "append", "other": 1}, "fold"),
    ],
)
async def test_a_member_that_is_wrong(client: Client, fold: object, member: str) -> None:
    """Errors: 400 `invalid_request`; `details` names the member."""
    response = await client.broadcast(fresh_room(), note(data={"delta": "x"}, fold=fold))
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert response.json()["details"].startswith(f"{member}: ")


async def test_append_needs_a_text(client: Client) -> None:
    """Folding: with `append`, `data.delta` is a string."""
    for delta in (None, 7, ["x"]):
        response = await client.broadcast(fresh_room(), append(delta))
        assert response.status_code == 400
        assert response.json()["details"].startswith("data.delta: ")


async def test_fold_that_is_null_is_absent(client: Client) -> None:
    """Folding: a member that is null is absent."""
    room = fresh_room()
    for id in ("n0", "n1"):
        await publish(client, room, note(id, fold=None))
    log = await client.whole_history(room)
    assert ids_of(log) == ["n0", "n1"]
    assert all("fold" not in message for message in log)
