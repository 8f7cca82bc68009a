"""How the admin page adds up the answers of several nodes."""

from __future__ import annotations

from typing import Any

import pytest

from synap_realtime.server.http.admin.answers import (
    MAX_CONNECTIONS,
    MAX_ROOMS,
    NodeState,
    largest_rooms,
    merge_rooms,
    merge_states,
    parse_node_state,
    parse_room_state,
    sample_rooms,
)


def state(name: str, rooms: dict[str, int]) -> NodeState:
    return {
        "name": name,
        "version": "1",
        "startedAt": "2026-01-01T00:00:00Z",
        "connections": {"websocket": sum(rooms.values()), "sse": 1},
        "roomCount": len(rooms),
        "roomHashes": sample_rooms(rooms.keys()),
        "rooms": largest_rooms(rooms.items()),
        "totals": {"published": 2.0, "delivered": 3.0},
    }


def test_counts_are_added() -> None:
    merged = merge_states([state("b", {"x": 3, "y": 1}), state("a", {"x": 1, "z": 4})])
    assert merged["rooms"] == [
        {"room": "x", "connections": 4},
        {"room": "z", "connections": 4},
        {"room": "y", "connections": 1},
    ]
    assert merged["connections"] == {"websocket": 9, "sse": 2}
    assert merged["totals"] == {"published": 4, "delivered": 6}
    assert merged["roomCount"] == 3
    assert [each["name"] for each in merged["nodes"]] == ["a", "b"]


def test_connection_of_another_version_may_lack_members() -> None:
    states = [{"total": 1, "connections": [each]} for each in ({"user": "1"}, {"since": "2026"})]
    assert merge_rooms([parse_room_state(state) for state in states]) == {
        "total": 2,
        "connections": [{"since": "2026"}, {"user": "1"}],
    }


@pytest.mark.parametrize("count", [1, 5000])
def test_count_of_rooms_needs_no_complete_sample(count: int) -> None:
    shortened = {**state("a", {"x": 1}), "roomCount": count}
    assert merge_states([parse_node_state(shortened)])["roomCount"] == count


def test_answer_stays_bounded() -> None:
    nodes = [state(str(n), {f"{n}-{room}": 1 for room in range(300)}) for n in range(3)]
    assert len(merge_states(nodes)["rooms"]) == MAX_ROOMS
    connections: list[dict[str, str | None]] = [
        {"since": f"{n:04}"} for n in range(MAX_CONNECTIONS)
    ]
    merged = merge_rooms([{"total": 900, "connections": [*connections]} for _ in range(3)])
    assert (merged["total"], len(merged["connections"])) == (2700, MAX_CONNECTIONS)
    assert merged["connections"][0] == {"since": f"{MAX_CONNECTIONS - 1:04}"}


@pytest.mark.parametrize(("each", "shared"), [(0, 0), (1, 1), (400, 100), (500, 500), (400, 0)])
def test_different_rooms_are_counted_exactly_up_to_a_thousand(each: int, shared: int) -> None:
    one = {f"user_{n}": 1 for n in range(each)}
    two = {f"user_{n}": 1 for n in range(each - shared, 2 * each - shared)}
    assert merge_states([state("a", one), state("b", two)])["roomCount"] == 2 * each - shared


@pytest.mark.parametrize("shared", [0, 10_000, 20_000])
def test_different_rooms_are_estimated_above(shared: int) -> None:
    one = {f"user_{n}": 1 for n in range(20_000)}
    two = {f"user_{n}": 1 for n in range(20_000 - shared, 40_000 - shared)}
    found = merge_states([state("a", one), state("b", two)])["roomCount"]
    assert found == pytest.approx(40_000 - shared, rel=0.1)
    assert 20_000 <= found <= 40_000


@pytest.mark.parametrize("rooms", [1001, 30_000])
def test_rooms_of_a_single_node_are_counted_exactly(rooms: int) -> None:
    found = merge_states([state("a", {f"user_{n}": 1 for n in range(rooms)})])
    assert found["roomCount"] == rooms


@pytest.mark.parametrize(
    "change",
    [
        {"rooms": None},
        {"connections": {"websocket": "many"}},
        {"totals": []},
        {"totals": {"published": float("inf")}},
        {"roomCount": "x"},
    ],
)
def test_answer_of_another_form_is_rejected(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_node_state({**state("a", {}), **change})
    assert parse_node_state({**state("a", {}), "of a newer version": 1})
