"""Which rooms a credential grants."""

from __future__ import annotations

import time
from typing import Any

import pytest

from synap_realtime.protocol.rooms import parse_room
from synap_realtime.server.auth.claims import Claims


@pytest.mark.parametrize(
    ("rooms", "opened", "closed"),
    [
        ((), ["user_1"], ["user_2", "user_11", "request_1"]),
        (("request_7",), ["user_1", "request_7"], ["request_77", "request_8"]),
        (("request_*",), ["request_7"], ["requests_7", "user_2"]),
        (("us*", "team_7"), ["user_2", "team_7"], ["team_77", "request_1"]),
        (("*",), ["user_2", "request_1"], []),
    ],
)
def test_grants_own_room_and_rooms_of_its_patterns(
    rooms: tuple[str, ...], opened: list[str], closed: list[str]
) -> None:
    claims = Claims(user="1", rooms=rooms)
    assert all(claims.allows_room(parse_room(each)) for each in opened)
    assert not any(claims.allows_room(parse_room(each)) for each in closed)


def test_rooms_claim_is_part_of_the_comparison() -> None:
    claims: dict[str, Any] = {"user": "1", "scopes": frozenset({"subscribe"})}
    assert Claims(rooms=("a_1",), **claims) == Claims(rooms=("a_1",), **claims)
    assert Claims(rooms=("a_1",), **claims) != Claims(rooms=("a_2",), **claims)


def test_many_patterns_and_rooms_are_compared_quickly() -> None:
    """As many as fit into a token, and into a batch: one by one they take 300 ms."""
    claims = Claims(rooms=tuple(f"kind{n}_*" for n in range(1000)))
    rooms = [parse_room(f"zzz_{n}") for n in range(1000)]
    cpu = time.thread_time()
    assert not any(claims.allows_room(room) for room in rooms)
    taken_s = time.thread_time() - cpu
    one_by_one = time.thread_time()
    for room in rooms[:50]:
        assert not any(room.startswith(each[:-1]) for each in claims.rooms)
    assert taken_s < (time.thread_time() - one_by_one) * 20 / 3
