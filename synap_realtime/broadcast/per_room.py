"""Publish to a server without ``POST /broadcast``: one request for each room of a notification.

See PROTOCOL.md, "HTTP".
"""

from __future__ import annotations

from collections.abc import Generator
from urllib.parse import quote

from .encoding import ApiRequest, EncodedNotification
from .endpoint import Endpoint
from .responses import (
    ApiResponse,
    delivery_count,
    failure_result,
    is_duplicate,
    read_single,
    unexpected_response,
)
from .result import BroadcastResult

PerRoom = Generator[ApiRequest, ApiResponse, BroadcastResult]


def publish_per_room(endpoint: Endpoint, encoded: EncodedNotification) -> PerRoom:
    """Yield one ``POST /rooms/{room}/broadcast`` for each room, receive its final response, and
    return the result without its number of attempts.
    """
    count = 0
    duplicates = 0
    reached: list[str] = []
    errors: list[str] = []
    for room in encoded.rooms:
        answer = yield ApiRequest(f"/rooms/{quote(room, safe='')}/broadcast", encoded.body)
        if answer.status in (404, 405):
            endpoint.has_batch_route = True  # a later server at this address may have the route
            return failure_result(encoded, 0, unexpected_response(endpoint, answer))
        error = read_single(endpoint, answer)
        if error is None:
            reached.append(room)
            count += delivery_count(answer.body)
            duplicates += is_duplicate(answer.body)
        else:
            errors.append(f"{room}: {error}")
    return BroadcastResult(
        success=not errors,
        broadcast_count=count,
        id=encoded.id,
        rooms=tuple(reached),
        attempts=0,
        error="; ".join(errors) or None,
        duplicate=duplicates == len(encoded.rooms),
    )
