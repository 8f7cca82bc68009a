"""PROTOCOL.md, "Authentication and authorization": which tokens are valid, and what each grants."""

from __future__ import annotations

import time

import pytest

from .client import Client, fresh_room, note, room_path
from .credentials import Secret
from .vectors import ANOTHER, Ask, Vector, hs256, nobody, vectors

pytestmark = pytest.mark.with_keys

NAMES = [vector.name for vector in vectors(0)]


def _made(client: Client, place: int) -> tuple[Vector, Secret]:
    """A vector for a fresh user, signed with the server's own secret."""
    user = fresh_room().partition("_")[2]
    vector = vectors(int(time.time()), user)[place]
    sign = {
        "secret": hs256(client.keys.token_secret),
        "another-secret": hs256(ANOTHER),
        "nobody": nobody,
    }[vector.signer]
    return vector, Secret(vector.signed(sign))


async def _answer(client: Client, ask: Ask) -> tuple[int, str | None]:
    action, room, _ = ask
    if action == "broadcast":
        response = await client.broadcast(room, note())
    elif action == "admin":
        response = await client.post("/revoke", {"jti": "of-nobody"})
    elif action == "metrics":
        response = await client.get("/metrics")
    else:
        route = "history" if action == "subscribe" else action
        response = await client.get(room_path(room, route))
    return response.status_code, response.json()["code"] if response.is_error else None


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
async def test_a_token(client: Client, place: int) -> None:
    """Tokens are JWTs signed with a shared secret; the claims and their meanings."""
    vector, token = _made(client, place)
    if vector.asks is None:
        room = fresh_room()
        response = await client.showing(token).get(room_path(room, "history"))
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
        assert token not in response.text
        return
    for ask in vector.asks:
        status, code = await _answer(client.showing(token), ask)
        assert (status, code) == (ask[2], "forbidden" if ask[2] == 403 else None), ask


REFUSED = [
    place for place, vector in enumerate(vectors(0))
    if vector.asks is None and len(str(vector.claims)) < 8000
]  # fmt: skip


@pytest.mark.parametrize("place", REFUSED, ids=[NAMES[place] for place in REFUSED])
async def test_rejects_handshake_with_invalid_token(client: Client, place: int) -> None:
    """Subscribing: a handshake with an invalid credential is refused; a page's gets 4501."""
    token = _made(client, place)[1]
    other = client.showing(token)
    path = room_path(fresh_room(), "subscribe")
    status, refusal = await other.refusal(path)
    assert (status, refusal["code"]) == (401, "unauthorized")
    async with other.listen_at(path, headers={"Origin": client.keys.origin}) as listener:
        assert await listener.closed() == 4501
