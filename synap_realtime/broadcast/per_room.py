"""Publish to a server without ``POST /broadcast``: one request for each room of a notification.

See PROTOCOL.md, "HTTP".
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple
from urllib.parse import quote

from ..protocol.rooms import Room
from .encoding import ApiRequest, EncodedNotification
from .endpoint import Endpoint
from .responses import (
    ApiResponse,
    Rejection,
    delivery_count,
    failure_result,
    is_duplicate,
    read_single,
    single_rejection,
    unexpected_response,
)
from .result import BroadcastResult


class PerRoomResult(NamedTuple):
    """The result over all rooms, and the rooms that have rejected the notification."""

    result: BroadcastResult
    rejections: dict[Room, Rejection]


PerRoom = Generator[ApiRequest, ApiResponse, PerRoomResult]


def publish_per_room(endpoint: Endpoint, encoded: EncodedNotification) -> PerRoom:
    """Yield one ``POST /rooms/{room}/broadcast`` for each room, receive its final response, and
    return the result without its number of attempts.
    """
    count = 0
    duplicates = 0
    reached: list[str] = []
    errors: list[str] = []
    rejections: dict[Room, Rejection] = {}
    for room in encoded.rooms:
        answer = yield ApiRequest(f"/rooms/{quote(room, safe='')}/broadcast", encoded.body)
        if answer.status in (404, 405):
            endpoint.has_batch_route = True  # a later server at this address may have the route
            return PerRoomResult(
                failure_result(encoded, 0, unexpected_response(endpoint, answer)), {}
            )
        error = read_single(endpoint, answer)
        if error is None:
            reached.append(room)
            count += delivery_count(answer.body)
            duplicates += is_duplicate(answer.body)
        else:
            errors.append(f"{room}: {error}")
            if (rejection := single_rejection(answer)) is not None:
                rejections[room] = rejection
    result = BroadcastResult(
        success=not errors,
        broadcast_count=count,
        id=encoded.id,
        rooms=tuple(reached),
        attempts=0,
        error="; ".join(errors) or None,
        duplicate=duplicates == len(encoded.rooms),
    )
    return PerRoomResult(result, rejections)
