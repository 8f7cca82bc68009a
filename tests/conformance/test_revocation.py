"""PROTOCOL.md, "Revoking"."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from tests.support.timeouts import TIMEOUT_S

from .client import Client, Json, check_error, fresh_room, note, room_path
from .credentials import Secret

pytestmark = pytest.mark.with_keys


@pytest.fixture
def user() -> str:
    """A user's id that no other case knows."""
    return fresh_room().partition("_")[2]


async def _revoke(client: Client, **what: str) -> Json:
    response = await client.showing(client.keys.token(scope="admin")).post("/revoke", what)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


async def _status(client: Client, token: str, room: str) -> int:
    return (await client.showing(token).get(room_path(room, "history"))).status_code


async def test_a_user(client: Client, user: str) -> None:
    """Revoking: all tokens of a user; `closed` connections were closed with 4504; 401 from then."""
    room, other = f"user_{user}", fresh_room()
    mine = client.showing(client.keys.token(user, scope="subscribe broadcast"))
    async with (
        mine.listen(room) as one,
        client.showing(client.keys.token(user)).listen(room, v1=True) as two,
        mine.stream(room) as stream,
        client.listen(other, v1=True) as stays,
    ):
        for each in (two, stream, stays):
            await each.subscribed()
        assert await one.ping() == []
        assert await _revoke(client, user=user) == {"success": True, "revoked": True, "closed": 3}
        assert await one.closed() == 4504
        assert await two.closed() == 4504
        await stream.ended()
        assert await stays.ping() == [], "nobody else is closed"
    for response in (
        await mine.get(room_path(room, "history")),
        await mine.get(room_path(room, "events")),
        await mine.broadcast(room, note()),
        await mine.post("/broadcast", {"notifications": [note(rooms=[room])]}),
    ):
        check_error(response, 401, "unauthorized")
    assert (await mine.request("HEAD", room_path(room, "events"))).status_code == 401
    path, headers = room_path(room, "subscribe"), {"Origin": client.keys.origin}
    assert (await mine.refusal(path))[0] == 401
    async with mine.listen_at(path, headers=headers) as listener:
        assert await listener.closed() == 4501


async def test_revokes_tokens_whose_issuer_clock_is_ahead(client: Client, user: str) -> None:
    """Revoking: that were issued (`iat`) until 10 s from now: clocks may differ by so much."""
    room, now = f"user_{user}", int(time.time())
    tokens = [client.keys.token(user, iat=now + ahead) for ahead in (-100, -1, 0, 2, 5, 9)]
    await _revoke(client, user=user)
    for token in tokens:
        assert await _status(client, token, room) == 401


async def test_tokens_that_are_issued_later(client: Client, user: str) -> None:
    """Revoking: one that is issued later than clocks may differ counts again."""
    room = f"user_{user}"
    await _revoke(client, user=user)
    token = client.keys.token(user, iat=int(time.time()) + 12)
    async with asyncio.timeout(TIMEOUT_S):  # it is not good yet
        while await _status(client, token, room) != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_revoking_a_user_keeps_tokens_of_others(client: Client, user: str) -> None:
    """Revoking: a user's tokens, and not those that open the user's room for others."""
    room = f"user_{user}"
    others = [client.keys.token(rooms=[room]), client.keys.token(f"{user}x", rooms=[room])]
    await _revoke(client, user=user)
    for token in others:
        assert await _status(client, token, room) == 200
    await client.publish(room, "n0")  # the key is nobody's token


@pytest.mark.parametrize("by", ["itself", "jti", "hash"])
async def test_one_token(client: Client, user: str, by: str) -> None:
    """Revoking: `{"token":…}` for one by itself, `{"jti":…}` by its `jti`, else its SHA-256."""
    member = "token" if by == "itself" else "jti"
    room = f"user_{user}"
    claims: dict[str, Any] = {"sub": user, "exp": int(time.time()) + 600, "jti": fresh_room()}
    if by == "hash":
        del claims["jti"]
    one = Secret(jwt.encode(claims, client.keys.token_secret, "HS256"))
    another = client.keys.token(user)
    name = {
        "itself": str(one),
        "jti": claims.get("jti", ""),
        "hash": hashlib.sha256(one.rpartition(".")[0].encode()).hexdigest(),
    }[by]
    async with (
        client.showing(one).listen(room) as revoked,
        client.showing(another).listen(room) as stays,
    ):
        assert await revoked.ping() == []
        assert await stays.ping() == []
        answer = await _revoke(client, **{member: name})
        assert answer == {"success": True, "revoked": True, "closed": 1}
        assert await revoked.closed() == 4504
        assert await stays.ping() == []
    assert await _status(client, one, room) == 401
    assert await _status(client, another, room) == 200


@pytest.mark.parametrize(
    "around",
    [
        "Bearer {}", "bearer  {}", "BEARER {}\n", " {}", "{} ", "{}\n", "\t{}\r\n", '"{}"',
        "'{}'", '"Bearer {}"', 'Bearer "{}"', "Authorization: Bearer {}", "bearer.{}",
        ' " {} " ', "\u00a0{}",
    ],
)  # fmt: skip
async def test_accepts_token_copied_with_quotes_or_scheme(
    client: Client, user: str, around: str
) -> None:
    """Revoking: white space, quotes and `Bearer` around it are removed."""
    token = client.keys.token(user)
    answer = await _revoke(client, token=around.format(token))
    assert answer == {"success": True, "revoked": True, "closed": 0}
    assert await _status(client, token, f"user_{user}") == 401


UNPARSABLE: dict[str, Callable[[str], str]] = {
    "no signature": lambda token: token.rpartition(".")[0],
    "an empty signature": lambda token: token.rpartition(".")[0] + ".",
    "a payload alone": lambda token: token.split(".")[1],
    "half of it": lambda token: token[: len(token) // 2],
    "its beginning": lambda token: token[:10],
    "without its end": lambda token: token[:-7],
    "without its first letter": lambda token: token[1:],
    "twice": lambda token: f"{token} {token}",
    "with an ellipsis": lambda token: f"{token[:-9]}…",
    "a blank inside": lambda token: f"{token[:50]} {token[50:]}",
    "four parts": lambda token: f"{token}.x",
    "a changed payload": lambda token: ".".join(
        [token.split(".")[0], "eyJzdWIiOiIxIn0", token.split(".")[2]]
    ),
    "a word": lambda _: "nonsense",
    "Bearer alone": lambda _: "Bearer ",
    "blanks": lambda _: "  ",
    "a lone dot": lambda _: "..",
}


@pytest.mark.parametrize("case", UNPARSABLE)
@pytest.mark.parametrize("around", ["{}", "Bearer {}"])
async def test_refuses_incomplete_or_foreign_token(
    client: Client, user: str, case: str, around: str
) -> None:
    """Revoking: 400, nothing was revoked, and nothing of what was given is in the answer."""
    token = client.keys.token(user)
    given = around.format(UNPARSABLE[case](token))
    admin = client.showing(client.keys.token(scope="admin"))
    response = await admin.post("/revoke", {"token": given})
    check_error(response, 400, "invalid_request")
    assert token[:20] not in response.text
    assert await _status(client, token, f"user_{user}") == 200


@pytest.mark.parametrize("member", ["user", "jti"])
@pytest.mark.parametrize("case", ["token", "Bearer", "no signature", "half of it", "key"])
async def test_credential_in_the_wrong_member_is_refused(
    client: Client, user: str, member: str, case: str
) -> None:
    """Revoking: a credential that is given as an id is 400, and repeated to nobody."""
    token = client.keys.token(user)
    given = {
        "token": str(token),
        "Bearer": f"Bearer {token}",
        "no signature": token.rpartition(".")[0],
        "half of it": token[: len(token) // 2],
        "key": str(client.keys.api_key),
    }[case]
    admin = client.showing(client.keys.token(scope="admin"))
    response = await admin.post("/revoke", {member: given[:512]})
    check_error(response, 400, "invalid_request")
    assert given[:20] not in response.text
    assert await _status(client, token, f"user_{user}") == 200


@pytest.mark.parametrize("claims", [{"exp": -60}, {"nbf": 600}, {"aud": "another"}])
async def test_revokes_expired_or_not_yet_valid_token(
    client: Client, user: str, claims: dict[str, Any]
) -> None:
    """Revoking: one that this server's key has signed is taken back, also if it has ended or has
    not begun."""
    now = int(time.time())
    moved: dict[str, Any] = {name: now + each if isinstance(each, int) else each
                             for name, each in claims.items()}  # fmt: skip
    token = client.keys.token(user, **moved)
    assert await _revoke(client, token=str(token)) == {
        "success": True, "revoked": True, "closed": 0
    }  # fmt: skip


async def test_a_revoked_token_renews_nothing(client: Client, user: str) -> None:
    """WebSocket: `authenticate` replaces the token; an invalid one is 4501."""
    taken, good = client.keys.token(user), client.keys.token(user)
    await _revoke(client, token=str(taken))
    async with client.showing(good).listen(f"user_{user}", v1=True) as listener:
        await listener.send(Secret(f'{{"action":"authenticate","token":"{taken}"}}'))
        assert await listener.closed() == 4501


async def test_renewed_connection_belongs_to_the_new_token(client: Client, user: str) -> None:
    """WebSocket: in place of the old one: the old one's end is no longer the connection's."""
    old, new = client.keys.token(user), client.keys.token(user)
    async with client.showing(old).listen(f"user_{user}", v1=True) as listener:
        await listener.subscribed()
        await listener.send(Secret(f'{{"action":"authenticate","token":"{new}"}}'))
        assert await listener.ping() == []
        # The new token may still be looked at: who is closed tells which one it has.
        while (await _revoke(client, token=str(new)))["closed"] == 0:
            pass
        assert await listener.closed() == 4504


async def test_revocation_without_connections_succeeds(client: Client, user: str) -> None:
    """Revoking: `closed` counts connections: none is a success, too; and it can be said twice."""
    for _ in range(2):
        assert await _revoke(client, user=user) == {"success": True, "revoked": True, "closed": 0}


@pytest.mark.parametrize(
    "body", [{}, [], None, "x", {"user": ""}, {"user": 1}, {"user": None}, {"token": None},
             {"token": ""}, {"users": "a"}, {"jti": ""}, {"jti": 1}, {"user": "x" * 513},
             {"token": "x" * 9000}, {"user": "a", "token": "b"}, {"user": "a", "jti": "b"}],
)  # fmt: skip
async def test_revocation_requires_a_subject(client: Client, body: object) -> None:
    """Errors: 400 `invalid_request`: the body is wrong."""
    admin = client.showing(client.keys.token(scope="admin"))
    check_error(await admin.post("/revoke", body), 400, "invalid_request")


@pytest.mark.parametrize(
    "scope", [None, "subscribe", "broadcast presence metrics", "administrator"]
)
async def test_revocation_requires_admin_scope(
    client: Client, user: str, scope: str | None
) -> None:
    """Revoking: scope `admin`."""
    mine = client.showing(client.keys.token(user, rooms=["*"], scope=scope))
    for what in ({"user": user}, {"token": "x"}, {"jti": "x"}):
        check_error(await mine.post("/revoke", what), 403, "forbidden")
    check_error(await client.showing(None).post("/revoke", {"user": user}), 401, "unauthorized")
    assert await _status(client, client.keys.token(user), f"user_{user}") == 200
