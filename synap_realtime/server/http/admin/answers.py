"""What one node answers for the admin page, and how the answers of several are merged."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from zlib import crc32

from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter
from typing_extensions import TypedDict

MAX_ROOMS = 200
"""The maximum number of rooms in an answer: those with the most connections."""

MAX_CONNECTIONS = 200
"""The maximum number of connections of a room in an answer: the newest ones."""

_SAMPLE = 1_000  # rooms by which the number of different rooms is estimated
_HASHES = 2**32


class RoomCount(TypedDict):
    """A room and its connections."""

    room: str
    connections: int


class NodeState(TypedDict):
    """The state of one node.

    Attributes:
        name: host and process.
        connections: by transport.
        roomCount: rooms with connections.
        roomHashes: the smallest hashes of their names; see :func:`sample_rooms`.
        rooms: the largest ones that match the filter.
        totals: counters since the start.
    """

    name: str
    version: str
    startedAt: str
    connections: dict[str, int]
    roomCount: int
    roomHashes: list[NonNegativeInt]
    rooms: list[RoomCount]
    totals: dict[str, FiniteFloat]


class RoomState(TypedDict):
    """The connections of a room at one node, the newest ones first."""

    total: int
    connections: list[dict[str, str | None]]


parse_node_state = TypeAdapter(NodeState).validate_python
parse_room_state = TypeAdapter(RoomState).validate_python


def sample_rooms(rooms: Collection[str]) -> list[int]:
    """Return the smallest hashes of room names.

    From those of several nodes follows how many different rooms they have.
    """
    return heapq.nsmallest(_SAMPLE, [crc32(room.encode()) for room in rooms])


def largest_rooms(counts: Iterable[tuple[str, int]]) -> list[RoomCount]:
    """Return the rooms with the most connections; those with as many in order of their names."""
    largest = heapq.nsmallest(MAX_ROOMS, counts, key=lambda each: (-each[1], each[0]))
    return [{"room": room, "connections": count} for room, count in largest]


def newest_connections(connections: list[dict[str, str | None]]) -> list[dict[str, str | None]]:
    return heapq.nlargest(MAX_CONNECTIONS, connections, key=lambda each: each.get("since") or "")


def merge_states(states: Sequence[NodeState]) -> dict[str, Any]:
    """Add up the states of nodes.

    A room that is not among the largest ones of a node counts there as having no connections.
    """
    connections: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    rooms: Counter[str] = Counter()
    for state in states:
        connections.update(state["connections"])
        totals.update(state["totals"])
        rooms.update({each["room"]: each["connections"] for each in state["rooms"]})
    shown = ("name", "version", "startedAt", "connections")
    return {
        "connections": dict(connections),
        "roomCount": _count_rooms(states),
        "rooms": largest_rooms(rooms.items()),
        "totals": dict(totals),
        "nodes": sorted(
            ({name: state[name] for name in shown} for state in states),  # type: ignore[literal-required]
            key=lambda node: str(node["name"]),
        ),
    }


def merge_rooms(states: Sequence[RoomState]) -> dict[str, Any]:
    found = [connection for state in states for connection in state["connections"]]
    return {
        "total": sum(state["total"] for state in states),
        "connections": newest_connections(found),
    }


def _count_rooms(states: Sequence[NodeState]) -> int:
    """Return how many different rooms nodes have: exactly up to 1,000, else within about 3%.

    The k smallest of n evenly spread hashes reach up to about k / n of all hashes.
    """
    counts = [state["roomCount"] for state in states]
    hashes = sorted({each for state in states for each in state["roomHashes"]})
    if len(hashes) < _SAMPLE or (max(counts) <= _SAMPLE and len(hashes) <= _SAMPLE):
        return max(len(hashes), *counts)
    estimate = round((_SAMPLE - 1) * _HASHES / hashes[_SAMPLE - 1])
    return min(max(estimate, *counts), sum(counts))
