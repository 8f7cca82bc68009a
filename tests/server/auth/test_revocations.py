"""Revocations last as long as the longest token. See PROTOCOL.md, "Revoking"."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from synap_realtime.server import create_app
from synap_realtime.server.app import retention_of
from synap_realtime.server.auth.claims import Claims
from synap_realtime.server.auth.revocations import ROOM, Revocations, TooManyRevocationsError
from synap_realtime.server.config import load_settings
from synap_realtime.server.stores.base import Publication, Retention
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.tokens import mint_token
from tests.support.credentials import API_KEY, SECRET, token
from tests.support.http_client import NOTE, ask
from tests.support.servers import Front, serving

DAY_S = 86_400.0


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Clock:
    return Clock(time.time())


@pytest.fixture
def running() -> Clock:
    return Clock()


@pytest.fixture
def store(running: Clock) -> MemoryStore:
    return MemoryStore(Retention(control_age_s=100 * DAY_S), clock=running)


def revocations(store: MemoryStore, wall: Clock, running: Clock, **options: Any) -> Revocations:
    options = {"kept_s": 100 * DAY_S, **options}
    subject = Revocations(store, clock=wall, running=running, **options)
    store.subscribe(lambda _room, entry, _published_at: subject.apply(entry))
    return subject


def issued(at: float, user: str = "1") -> Claims:
    return Claims(user=user, issued_at=at, token_id="t")


async def test_survives_the_retention_of_notifications_and_a_restart(
    front: Front, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path / 'rooms.db'}", "retention_count": 5, "retention_s": 0.01
    }  # fmt: skip
    users = [str(number) for number in range(30)]
    tokens = {user: token(user) for user in users}
    admin = token(None, scope="admin")
    async with serving(front, **options) as url:
        for user in users:
            response = await ask(url, "POST", "/revoke", admin, json={"user": user})
            assert response.status_code == 200
        for number in range(20):
            note = {**NOTE, "id": f"n{number}"}
            await ask(url, "POST", "/rooms/user_1/broadcast", API_KEY, json=note)
    async with serving(front, **options) as url:
        for user in users:
            path = f"/rooms/user_{user}/history"
            assert (await ask(url, "GET", path, tokens[user])).status_code == 401, user


async def test_survives_the_budget_of_the_memory_store(front: Front) -> None:
    async with serving(front, max_memory_bytes=1024 * 1024, retention_s=0.01) as url:
        admin, mine = token(None, scope="admin"), token("1")
        await ask(url, "POST", "/revoke", admin, json={"user": "1"})
        for number in range(40):
            note = {"type": "a.b", "data": {"text": "x" * 50_000}, "id": f"n{number}"}
            await ask(url, "POST", f"/rooms/user_{number}/broadcast", API_KEY, json=note)
        assert (await ask(url, "GET", "/rooms/user_1/history", mine)).status_code == 401


@pytest.mark.parametrize("jump_s", [-400 * DAY_S, -DAY_S, 3 * DAY_S, 400 * DAY_S])
async def test_survives_jumps_of_the_wall_clock(
    store: MemoryStore, wall: Clock, running: Clock, jump_s: float
) -> None:
    subject = revocations(store, wall, running)
    before = issued(wall.now)
    await subject.revoke("user", "1")
    wall.now += jump_s
    await subject.revoke("user", "2")  # forgets what is too old
    wall.now -= jump_s
    assert subject.matches(before)
    again = revocations(store, wall, running)
    await again.load()
    assert again.matches(before)


async def test_a_clock_that_was_set_back_spares_no_token(
    store: MemoryStore, wall: Clock, running: Clock
) -> None:
    subject = revocations(store, wall, running)
    before = issued(wall.now)
    wall.now -= 3600
    await subject.revoke("user", "1")
    assert subject.matches(before)


@pytest.mark.parametrize(("ahead_s", "covered"), [(0, True), (9.5, True), (10, True), (11, False)])
async def test_covers_tokens_whose_issuers_clock_is_ahead(
    store: MemoryStore, wall: Clock, running: Clock, ahead_s: float, covered: bool
) -> None:
    subject = revocations(store, wall, running, leeway_s=10.0)
    await subject.revoke("user", "1")
    assert subject.matches(issued(wall.now + ahead_s)) is covered


async def test_older_revocation_does_not_weaken_a_newer_one(
    store: MemoryStore, wall: Clock, running: Clock
) -> None:
    """Of several servers, one has a clock that is behind."""
    ahead, behind = revocations(store, wall, running), revocations(store, Clock(0), Clock(0))
    await ahead.revoke("user", "1")
    await behind.revoke("user", "1")
    subject = revocations(store, wall, running)
    await subject.load()
    assert subject.matches(issued(wall.now))


async def test_after_a_restart_all_count_also_if_they_are_many(
    store: MemoryStore, wall: Clock, running: Clock
) -> None:
    most = 250
    before = revocations(store, wall, running, most=most)
    for n in range(most):
        await before.revoke("user", str(n))
    subject = revocations(store, wall, running, most=most)
    await subject.load()
    assert all(subject.matches(issued(0, user=str(n))) for n in range(most))
    unasked = revocations(store, wall, running, most=most)
    with pytest.raises(TooManyRevocationsError):
        await unasked.revoke("user", "another")


async def test_forgets_a_revocation_when_no_token_can_be_valid(
    store: MemoryStore, wall: Clock, running: Clock
) -> None:
    subject = revocations(store, wall, running)
    await subject.revoke("user", "1")
    running.now += 101 * DAY_S
    await subject.revoke("user", "2")
    assert not subject.matches(issued(0))
    assert subject.matches(issued(0, user="2"))


def test_keeps_them_for_as_long_as_the_longest_token_lives() -> None:
    for lifetime_s in (60.0, 400 * DAY_S):
        settings = load_settings(token_max_lifetime_s=lifetime_s, retention_s=1.0)
        kept_s = retention_of(settings).control_age_s
        assert kept_s > lifetime_s + 2 * settings.token_leeway_s


async def test_refuses_a_revocation_instead_of_forgetting_one(
    store: MemoryStore, wall: Clock, running: Clock
) -> None:
    subject = revocations(store, wall, running, most=3)
    for user in ("1", "2", "3"):
        await subject.revoke("user", user)
    with pytest.raises(TooManyRevocationsError):
        await subject.revoke("user", "4")
    assert all(subject.matches(issued(0, user=user)) for user in ("1", "2", "3"))


async def test_counts_once_what_is_delivered_while_it_is_read_and_read_again(
    store: MemoryStore, wall: Clock, running: Clock
) -> None:
    before = revocations(store, wall, running)
    await before.revoke("user", "1")
    subject = revocations(store, wall, running, most=3)
    page = await store.read(ROOM, store.earliest(), 10)
    for entry in page.entries:  # another node has published it during the load
        subject.apply(entry)
    await subject.load()
    await subject.reload()  # after a gap
    for user in ("2", "3"):
        await subject.revoke("user", user)
    with pytest.raises(TooManyRevocationsError):
        await subject.revoke("user", "4")
    running.now += 101 * DAY_S
    await subject.revoke("user", "5")
    assert not any(subject.matches(issued(0, user=user)) for user in ("1", "2", "3"))


@pytest.mark.parametrize(
    "make",
    [
        lambda jwt: {"token": jwt}, lambda jwt: {"token": f"Bearer {jwt}\n"},
        lambda jwt: {"token": jwt.rpartition(".")[0]}, lambda jwt: {"token": jwt[:50]},
        lambda jwt: {"user": jwt}, lambda jwt: {"user": f"Bearer {jwt}"},
        lambda jwt: {"jti": jwt}, lambda jwt: {"jti": jwt[1:]}, lambda jwt: {jwt: 1},
        lambda jwt: [jwt], lambda jwt: jwt, lambda jwt: {"token": {"token": jwt}},
        lambda _: {"user": API_KEY}, lambda _: {"jti": SECRET}, lambda _: {"token": SECRET},
    ],
)  # fmt: skip
async def test_logs_nothing_of_the_given_token(
    front: Front, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    mine = mint_token("1", secret=SECRET)
    async with serving(front) as url:
        body = json.dumps(make(mine))
        admin = token(None, scope="admin")
        headers = {"Content-Type": "application/json"}
        response = await ask(url, "POST", "/revoke", admin, content=body, headers=headers)
    ours = [each for each in caplog.records if each.name.startswith(("synap", "uvicorn"))]
    said = " ".join(f"{each.getMessage()} {vars(each)}" for each in ours) + response.text
    for secret in (*mine.split("."), mine[1:40], API_KEY, SECRET):
        assert secret not in said


async def test_the_log_names_a_token_by_a_digest(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(front) as url:
        admin = token(None, scope="admin")
        await ask(url, "POST", "/revoke", admin, json={"jti": "a-token-of-ours"})
        await ask(url, "POST", "/revoke", admin, json={"user": "42"})
    one, two = (vars(each) for each in caplog.records if each.getMessage() == "revoked")
    assert len(one["revoked_token"]) == 16
    assert two["revoked_user"] == "42"
    assert "a-token-of-ours" not in str(one)


async def test_without_keys_nothing_is_revoked(front: Front) -> None:
    async with front(create_app()) as url:
        for body in ({"user": "1"}, {"jti": "x"}, {"token": mint_token("1", secret=SECRET)}):
            response = await ask(url, "POST", "/revoke", json=body)
            assert response.json() == {"success": True, "revoked": False, "closed": 0}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "1", "{}", '{"of":"user","name":1,"at":1}', '{"of":"user","name":"1","at":"1"}',
     '{"of":"room","name":"1","at":1}', "[" * 5000],
)  # fmt: skip
async def test_entry_that_is_no_revocation_hides_no_other(
    store: MemoryStore, wall: Clock, running: Clock, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    await store.publish([Publication(ROOM, "x", text)])
    subject = revocations(store, wall, running)
    await subject.load()
    await store.publish([Publication(ROOM, "y", text)])
    await subject.revoke("user", "1")
    assert subject.matches(issued(wall.now))
    assert "not in force here" in caplog.text


async def test_revocation_of_a_newer_version_may_have_more_members(
    store: MemoryStore, wall: Clock, running: Clock
) -> None:
    text = json.dumps({"of": "user", "name": "1", "at": wall.now, "reason": "theft"})
    await store.publish([Publication(ROOM, "x", text)])
    subject = revocations(store, wall, running)
    await subject.load()
    assert subject.matches(issued(wall.now))
