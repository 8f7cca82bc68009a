"""PROTOCOL.md, "Subscribing", Devices: each device has its own acknowledged cursor."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.timeouts import TIMEOUT_S

from .client import Client, check_error, fresh_room, ids_of, room_path


async def _receive(client: Client, room: str, device: str | None, count: int) -> list[str]:
    """Take what waits for a device, and acknowledge it; it has to be so many."""
    async with client.listen(room, v1=True, device=device) as listener:
        received = await listener.take(count)
        assert (await listener.subscribed())["replayed"] == count
        if received:
            await listener.ack(received[-1]["cursor"])
    return ids_of(received)


async def test_each_device_has_its_own_acknowledged_cursor(client: Client) -> None:
    """Devices: what the phone has received is still delivered to the laptop."""
    room = fresh_room()
    for device in ("phone", "laptop"):
        await _receive(client, room, device, 0)
    await client.fill(room, 2)
    assert await _receive(client, room, "phone", 2) == ["n0", "n1"]
    await client.fill(room, 1, first=2)
    assert await _receive(client, room, "phone", 1) == ["n2"]
    assert await _receive(client, room, "laptop", 3) == ["n0", "n1", "n2"]
    assert await _receive(client, room, "laptop", 0) == []


async def test_new_device_starts_at_the_rooms_acknowledged_cursor(client: Client) -> None:
    """Devices: a new one starts at the room's cursor, the furthest of all."""
    room = fresh_room()
    await client.fill(room, 2)
    await _receive(client, room, "phone", 2)
    await client.fill(room, 1, first=2)
    assert await _receive(client, room, "tablet", 1) == ["n2"]
    assert await _receive(client, room, None, 0) == [], "the room's cursor has moved, too"
    assert await _receive(client, room, "phone", 1) == ["n2"]


async def test_connection_without_a_device_uses_the_rooms_cursor(client: Client) -> None:
    """Devices: a connection without one uses the room's cursor, and moves no device's."""
    room = fresh_room()
    await _receive(client, room, "phone", 0)
    await client.fill(room, 2)
    assert await _receive(client, room, None, 2) == ["n0", "n1"]
    assert await _receive(client, room, "phone", 2) == ["n0", "n1"]


async def test_client_without_synap_v1_is_a_device(client: Client) -> None:
    """Devices: without `synap.v1`, every delivery counts as received."""
    room = fresh_room()
    for device in ("phone", "laptop"):
        await _receive(client, room, device, 0)
    await client.fill(room, 2)
    async with client.listen(room, device="phone") as listener:
        assert ids_of(await listener.take(2)) == ["n0", "n1"]
        assert await listener.ping() == []
    await client.until_connections(room, 0)
    assert await _receive(client, room, "phone", 0) == []
    assert await _receive(client, room, "laptop", 2) == ["n0", "n1"]


async def test_a_device_of_a_stream(client: Client) -> None:
    """Devices: on an event stream, too."""
    room = fresh_room()
    for device in ("phone", "laptop"):
        await _receive(client, room, device, 0)
    await client.fill(room, 1)
    await _receive(client, room, "laptop", 1)
    async with client.stream(room, device="phone") as stream:
        assert ids_of(await stream.take(1)) == ["n0"]


async def test_explicit_cursor_overrides_the_acknowledged_cursor(client: Client) -> None:
    """Subscribing: `?after=` selects the start, for a device as well."""
    room = fresh_room()
    cursors = await client.fill(room, 3)
    await _receive(client, room, "phone", 3)
    async with client.listen(room, cursors[0], v1=True, device="phone") as listener:
        assert ids_of(await listener.take(2)) == ["n1", "n2"]


async def test_room_keeps_its_64_most_recent_devices(client: Client) -> None:
    """Devices: the 64 that connected last. A server may forget others a little later.

    Reading a device's cursor connects it, so each check is of another device.
    """
    room = fresh_room()
    earlier = [f"earlier{number}" for number in range(20)]
    for device in (*earlier, "known"):
        await _receive(client, room, device, 0)
    await client.fill(room, 1)
    assert await _receive(client, room, "known", 1) == ["n0"]
    assert await _receive(client, room, "d0", 0) == [], "the room's cursor is behind n0"
    for number in range(1, 63):
        await _receive(client, room, f"d{number}", 0)
    async with asyncio.timeout(TIMEOUT_S):
        for device in earlier:
            async with client.listen(room, v1=True, device=device) as listener:
                if (await listener.next())["type"] == "synap.subscribed":
                    break  # nothing waits for it: it is as a new one
            await asyncio.sleep(0.2)
        else:
            pytest.fail("a room knows more than 64 devices")


async def test_64_devices_keep_their_acknowledged_cursors(client: Client) -> None:
    """Devices: a room remembers the 64 that connected last, and those whole."""
    room = fresh_room()
    devices = [f"d{number}" for number in range(64)]
    for device in devices:
        await _receive(client, room, device, 0)
    await client.fill(room, 1)
    for device in devices:
        assert await _receive(client, room, device, 1) == ["n0"]


async def test_a_device_that_reconnects_is_the_last_to_be_forgotten(client: Client) -> None:
    """Devices: a room remembers the 64 that connected last, whenever they connected first."""
    room = fresh_room()
    for device in ("known", *(f"d{number}" for number in range(40))):
        await _receive(client, room, device, 0)
    await _receive(client, room, "known", 0)
    await client.fill(room, 1)
    await _receive(client, room, "other", 1)
    for number in range(60):
        await _receive(client, room, f"late{number}", 0)
    assert await _receive(client, room, "known", 1) == ["n0"]


@pytest.mark.parametrize("device", ["x" * 64, "A-Z._~:@|=+-09", "d"])
async def test_a_name(client: Client, device: str) -> None:
    """Devices: 1 to 64 characters of `A-Z a-z 0-9 . _ ~ : @ | = + -`."""
    room = fresh_room()
    await _receive(client, room, device, 0)
    await client.fill(room, 1)
    await _receive(client, room, None, 1)
    assert await _receive(client, room, device, 1) == ["n0"]


@pytest.mark.parametrize("device", ["x" * 65, "a b", "é", "a/b", "a\n", "a%00", "a*"])
async def test_no_name(client: Client, device: str) -> None:
    """Devices: another name is wrong. Errors: 400 `invalid_request`; `details` names it."""
    room = fresh_room()
    status, refusal = await client.refusal(room_path(room, "subscribe", device=device))
    assert (status, refusal["code"]) == (400, "invalid_request")
    response = await client.get(room_path(room, "events", device=device))
    check_error(response, 400, "invalid_request")
    assert "device" in response.json()["details"]


@pytest.mark.with_keys
async def test_a_tokens_device(client: Client) -> None:
    """Devices: a token with `device`, which takes precedence over `?device=`."""
    room = fresh_room()
    user = room.partition("_")[2]
    phone = client.showing(client.keys.token(user, device="phone"))
    await _receive(phone, room, None, 0)
    await _receive(client, room, "laptop", 0)
    await client.fill(room, 1)
    assert await _receive(phone, room, "laptop", 1) == ["n0"]
    assert await _receive(client, room, "laptop", 1) == ["n0"], "the laptop's cursor stayed"
    assert await _receive(client, room, "phone", 0) == []
