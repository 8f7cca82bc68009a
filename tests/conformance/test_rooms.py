"""PROTOCOL.md, "Terminology": room ids, rooms, cursors."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest

from .client import Client, fresh_room, ids_of, note, room_path

ROUTES = [
    ("POST", "broadcast"),
    ("GET", "subscribe"),
    ("GET", "events"),
    ("GET", "history"),
    ("GET", "health"),
]


async def _is_a_room_everywhere(client: Client, room: str) -> None:
    """Every route takes the room, and names it as it is."""
    published = await client.publish(room, "n1")
    assert (await client.history(room))["room"] == room
    response = await client.get(room_path(room, "health"))
    assert response.json()["roomId"] == room
    result = (await client.batch([note("n2", rooms=[room])]))["results"][0]
    assert set(result["rooms"]) == {room}
    async with client.listen(room, after="earliest") as listener:
        first, second = await listener.take(2)
    assert (first["room"], first["cursor"]) == (room, published["cursor"])
    async with client.stream(room, after="earliest") as stream:
        assert ids_of(await stream.take(2)) == ids_of([first, second])


@pytest.mark.parametrize("mark", list("AZaz09._~:@|=+-"))
async def test_each_character_of_a_key(client: Client, mark: str) -> None:
    """Terminology: a key of `A-Z a-z 0-9 . _ ~ : @ | = + -`; in a path it is percent-encoded."""
    room = f"{fresh_room()}{mark}"
    published = await client.publish(room, "n1")
    history = await client.history(room)
    assert (history["room"], history["notifications"][0]["cursor"]) == (room, published["cursor"])


@pytest.mark.parametrize(
    "shape", ["a.b_c~d:e@f|g=h+i-j", "..", ".", "auth0|507f1f77", "a@b.example"]
)
async def test_a_key_on_every_route(client: Client, shape: str) -> None:
    """Terminology: a key of 1 to 200 of `A-Z a-z 0-9 . _ ~ : @ | = + -`."""
    await _is_a_room_everywhere(client, f"{fresh_room()}{shape}")


@pytest.mark.parametrize("length", [1, 200])
async def test_the_length_of_a_key(client: Client, length: int) -> None:
    """Terminology: a key of 1 to 200."""
    kind = fresh_room("k").replace("_", "")[:20]  # fresh too where the key is one character
    await _is_a_room_everywhere(client, f"{kind}_{'x' * length}")


@pytest.mark.parametrize("kind", ["a", "workspace", "a-b", "a1", "k" * 32])
async def test_a_kind(client: Client, kind: str) -> None:
    """Terminology: a kind (`[a-z][a-z0-9-]*`, at most 32 characters)."""
    await _is_a_room_everywhere(client, fresh_room(kind))


async def test_encoded_and_plain_spell_the_same_room(client: Client) -> None:
    """Terminology: in a path it is percent-encoded."""
    room = f"{fresh_room()}:a@b=c+d~e"
    await client.publish(room, "n1")
    everything = "".join(f"%{byte:02X}" for byte in room.encode())
    for spelled in (room, everything, everything.lower(), quote(room, safe=":")):
        response = await client.get(f"/rooms/{spelled}/history")
        assert ids_of(response.json()["notifications"]) == ["n1"]


@pytest.mark.parametrize(
    "segment",
    [
        "user", "user_", "_1", "USER_1", "User_1", "1user_1", "-user_1", "us.er_1", "user-1",
        "k" * 33 + "_1", "user_" + "x" * 201, "user_" + "x" * 7_000, "user_a%2Fb", "user_..%2Fb",
        "user_%00", "user_a%20b", "user_a%0Ab", "user_a%0A", "user_%C3%A9", "user_%ff",
        "user_%F0%9F", "user_a%25", "user_a%3Fb", "user_a%23b", "user_a,b", "user_%EF%BC%91",
        "user_%22", "user_%5C", "synap_1", "synap_revocations",
    ],
    ids=lambda segment: segment if len(segment) < 40 else f"{segment[:8]}-{len(segment)}",
)  # fmt: skip
async def test_rejects_invalid_room_id(client: Client, segment: str) -> None:
    """Terminology: a room id is a kind, `_`, and a key. Errors: 400 when the room is wrong."""
    for method, route in ROUTES:
        path = f"/rooms/{segment}/{route}"
        response = await client.request(method, path, body=note() if method == "POST" else None)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request"), path[
            -80:
        ]
        assert len(response.content) < 2000, "an answer does not repeat what it was sent"


@pytest.mark.parametrize(
    "room",
    ["user", "user_", "USER_1", "user_a/b", "user_\u0000", "user_é", "user_a%7Cb", "",
     "user_" + "x" * 201, "synap_revocations"],
    ids=lambda room: repr(room[:12]),
)  # fmt: skip
async def test_invalid_room_id_fails_alone_in_a_batch(client: Client, room: str) -> None:
    """Terminology: a room id is a kind, `_`, and a key; in a batch it is not encoded."""
    answer = await client.batch([note(rooms=[room])])
    assert answer["success"] is False
    assert answer["results"][0]["code"] == "invalid_request"


async def test_rooms_are_separate(client: Client) -> None:
    """Terminology: a room is a named log with live subscribers."""
    room = fresh_room()
    others = [room + "a", room + "A", room + ".", room.replace("user_", "user-a_")]
    for number, name in enumerate([room, *others]):
        await client.publish(name, f"n{number}")
    for number, name in enumerate([room, *others]):
        assert ids_of((await client.history(name))["notifications"]) == [f"n{number}"]


async def test_other_kinds_are_as_a_user_room(client: Client) -> None:
    """Terminology: other kinds (`workspace_7`) are treated like `user_`."""
    room = fresh_room("workspace")
    await client.publish(room, "n1")
    async with client.listen(room, v1=True) as listener:
        [first] = await listener.take(1)
        await listener.subscribed()
        await listener.ack(first["cursor"])
    await client.publish(room, "n2")
    async with client.listen(room, v1=True) as listener:
        assert ids_of(await listener.take(1)) == ["n2"]
        assert (await listener.subscribed())["replayed"] == 1


async def test_a_cursor(client: Client) -> None:
    """Terminology: a cursor is at most 64 characters of `A-Z a-z 0-9 -`."""
    room = fresh_room()
    cursors = [(await client.publish(room))["cursor"] for _ in range(3)]
    assert len(set(cursors)) == 3
    cursors.append((await client.history(room))["cursor"])
    cursors.append((await client.history(fresh_room()))["cursor"])
    async with client.listen(fresh_room(), v1=True) as listener:
        cursors.append((await listener.subscribed())["cursor"])
    assert all(re.fullmatch(r"[A-Za-z0-9-]{1,64}", cursor) for cursor in cursors)
