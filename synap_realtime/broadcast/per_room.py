"""Publish notifications to a server without ``POST /broadcast``: one request for each room.

See PROTOCOL.md, "HTTP".
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from urllib.parse import quote

from .encoding import ApiRequest, EncodedNotification, batch_request
from .endpoint import Endpoint
from .responses import (
    ApiResponse,
    delivery_count,
    failure_result,
    is_duplicate,
    lacks_batch_route,
    read_batch,
    read_single,
    unexpected_response,
)
from .result import BroadcastResult

Delivery = Generator[ApiRequest, ApiResponse, list[BroadcastResult]]
Single = Generator[ApiRequest, ApiResponse, BroadcastResult]


def delivery(endpoint: Endpoint, parcels: Sequence[EncodedNotification]) -> Delivery:
    """Publish notifications to their rooms; see PROTOCOL.md, "HTTP"."""
    attempts = 0
    if endpoint.has_batch_route:
        answer = yield batch_request(parcels)
        attempts += answer.attempts
        if not lacks_batch_route(answer):
            return [
                replace(result, attempts=attempts)
                for result in read_batch(endpoint, answer, parcels)
            ]
        endpoint.has_batch_route = False
    results = []
    for parcel in parcels:
        results.append((yield from publish_per_room(endpoint, parcel, attempts)))
        attempts = 0
    return results


def publish_per_room(endpoint: Endpoint, parcel: EncodedNotification, attempts: int) -> Single:
    """Send one ``POST /rooms/{room}/broadcast`` for each room; ``attempts`` counts earlier
    attempts.
    """
    count = 0
    duplicates = 0
    reached: list[str] = []
    errors: list[str] = []
    for room in parcel.rooms:
        answer = yield ApiRequest(f"/rooms/{quote(room, safe='')}/broadcast", parcel.body)
        attempts += answer.attempts
        if answer.status in (404, 405):
            endpoint.has_batch_route = True  # a later server at this address may have the route
            return failure_result(parcel, attempts, unexpected_response(endpoint, answer))
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
        id=parcel.id,
        rooms=tuple(reached),
        attempts=attempts,
        error="; ".join(errors) or None,
        duplicate=duplicates == len(parcel.rooms),
    )
