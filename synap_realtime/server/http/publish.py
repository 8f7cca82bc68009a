"""The publish routes: validate, authorize, store and broadcast notifications.

See PROTOCOL.md, "HTTP".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from json.encoder import encode_basestring_ascii as as_json
from logging import DEBUG
from time import perf_counter

from ...protocol.notification import MAX_BATCH_FANOUT_BYTES
from ...protocol.rooms import Room, key_of
from ...tracing import NOOP_SPAN, Span
from ..auth.authorization import AccessControl, require_scope
from ..auth.claims import Claims
from ..auth.limits import Limits
from ..errors import (
    PermissionDeniedError,
    RateLimitedError,
    StoreUnavailableError,
    UnavailableError,
)
from ..logging import events
from ..messages import (
    Request,
    RequestError,
    Response,
    parse_room_param,
    payload_too_large,
    read_json_body,
)
from ..metrics import Metrics
from ..stores.base import LogStore, Publication, PublishResult
from .errors import to_request_error
from .in_flight import InFlight
from .validation import BatchItem, parse_batch, validate_notification

_YIELD_EVERY = 100  # notifications of a batch that are validated without yielding


class PublishService:
    """Handles the publish routes of one node."""

    def __init__(
        self,
        store: LogStore,
        access: AccessControl,
        limits: Limits,
        in_flight: InFlight,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._access = access
        self._limits = limits
        self._in_flight = in_flight
        self._metrics = metrics

    async def broadcast(self, request: Request) -> Response:
        """Handle ``POST /rooms/{room}/broadcast``."""
        began_at = perf_counter()
        self._in_flight.ensure_accepting()
        room = parse_room_param(request.path_segments[1])
        claims = await self._access.authenticate(request)
        await self._access.authorize(claims, "broadcast", room)
        content = await read_json_body(request)
        id, text, span = validate_notification(content, request.headers.get("traceparent"))
        spans = () if span is NOOP_SPAN else (span,)
        publications = (Publication(room, id, text, began_at),)
        (result,) = await self._publish(claims, publications, len(text), spans)
        return Response(200, _encode_result(result))

    async def broadcast_batch(self, request: Request) -> Response:
        """Handle ``POST /broadcast``."""
        began_at = perf_counter()
        self._in_flight.ensure_accepting()
        claims = await self._access.authenticate(request)
        require_scope(claims, "broadcast")
        items = parse_batch(await read_json_body(request))
        named = dict.fromkeys(room for item in items for room in item.rooms)
        verdicts = await self._access.authorize_many(claims, "broadcast", named)
        traceparent = request.headers.get("traceparent")
        validated: list[list[Publication] | RequestError] = []
        spans: list[Span] = []
        for number, item in enumerate(items, 1):
            entry = _validate_item(item, verdicts, traceparent, spans, began_at)
            validated.append(entry)
            if isinstance(entry, RequestError):
                self._log_rejected(request, entry, item.rooms, verdicts)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # a large batch must not block the event loop
        return await self._publish_items(validated, claims, spans)

    def _log_rejected(
        self,
        request: Request,
        problem: RequestError,
        rooms: Sequence[Room],
        verdicts: Mapping[Room, PermissionDeniedError | None],
    ) -> None:
        """Log a rejected notification of a batch, with the room that the error is about."""
        room = next((room for room in rooms if verdicts[room] is not None), None)
        if room is None and rooms:
            room = rooms[0]
        if room is not None and self._access.is_credential(key_of(room)):
            room = None
        events.log_rejected(
            problem.body, request.address, room, request.claims,
            origin=request.headers.get("origin"),
        )  # fmt: skip

    async def _publish_items(
        self,
        validated: Sequence[list[Publication] | RequestError],
        claims: Claims,
        spans: Sequence[Span],
    ) -> Response:
        good = [entry for entry in validated if not isinstance(entry, RequestError)]
        size = sum([len(each.text) for entry in good for each in entry])
        if size > MAX_BATCH_FANOUT_BYTES:
            for span in spans:
                span.end("too large")
            raise payload_too_large(
                f"a batch has at most {MAX_BATCH_FANOUT_BYTES} bytes, each notification counted "
                "once for each of its rooms"
            )
        self._metrics.published("rejected", len(validated) - len(good))
        publications = [each for entry in good for each in entry]
        try:
            stored = iter(await self._publish(claims, publications, size, spans))
            failure = None
        except StoreUnavailableError as error:
            failure = to_request_error(error)
        results = []
        for entry in validated:
            problem = entry if isinstance(entry, RequestError) else failure
            if problem is not None:
                failed = {"success": False, **problem.body}
                results.append(json.dumps(failed))
            else:
                assert not isinstance(entry, RequestError)  # noqa: S101 - else problem is set
                results.append(_encode_item_result([(each, next(stored)) for each in entry]))
        return _encode_results(results, success=failure is None and len(good) == len(validated))

    async def _publish(
        self,
        claims: Claims,
        publications: Sequence[Publication],
        size: int,
        spans: Sequence[Span],
    ) -> Sequence[PublishResult]:
        """Store and broadcast publications.

        Args:
            claims: the publisher.
            publications: the validated notifications.
            size: bytes of all their texts.
            spans: ended when the publish has ended.

        Raises:
            RateLimitedError, UnavailableError, StoreUnavailableError: nothing was stored.
        """
        problem: str | None = "cancelled"
        count = len(publications)
        try:
            with self._in_flight:
                if self._limits.count_publishes:
                    self._limits.check_publish(claims, count, size)
                results = await self._store.publish(publications)
            problem = None
        except RateLimitedError as error:
            problem = str(error)
            self._metrics.published("rejected", count)
            raise
        except (UnavailableError, StoreUnavailableError) as error:
            problem = str(error)
            self._metrics.published("unavailable", count)
            raise
        finally:
            for span in spans:
                span.end(problem)
        self._metrics.accepted(results, size)
        if events.logger.isEnabledFor(DEBUG):
            rooms = (publication.room for publication in publications)
            kept = zip(rooms, results, strict=True)
            events.log_published(claims, kept, self._access.is_credential)
        return results


def _validate_item(
    item: BatchItem,
    verdicts: Mapping[Room, PermissionDeniedError | None],
    traceparent: str | None,
    spans: list[Span],
    published_at: float,
) -> list[Publication] | RequestError:
    """Return one notification of a batch for each of its rooms, or the error."""
    if item.problem is not None:
        return item.problem
    for room in item.rooms:
        if (verdict := verdicts[room]) is not None:
            return to_request_error(verdict)
    try:
        id, text, span = item.validate(traceparent)
    except RequestError as error:
        return error
    if span is not NOOP_SPAN:
        spans.append(span)
    return [Publication(room, id, text, published_at) for room in item.rooms]


def _encode_result(result: PublishResult) -> bytes:
    """Encode the result of one notification for one room. (A cursor contains no quote.)"""
    id, (epoch, offset), count, duplicate = result
    return (
        f'{{"success":true,"broadcastCount":{count},"message":"Notification broadcasted",'
        f'"id":{as_json(id)},"cursor":"{epoch}-{offset}",'
        f'"duplicate":{"true" if duplicate else "false"}}}'
    ).encode()


def _encode_item_result(kept: Iterable[tuple[Publication, PublishResult]]) -> str:
    """Encode the results of one notification of a batch, over its rooms.

    (Neither a room nor a cursor contains a quote.)
    """
    total, rooms, name = 0, [], ""
    for (room, _, _, _), (id, (epoch, offset), count, duplicate) in kept:
        total += count
        name = as_json(id)
        rooms.append(
            f'"{room}":{{"broadcastCount":{count},"cursor":"{epoch}-{offset}",'
            f'"duplicate":{"true" if duplicate else "false"}}}'
        )
    return f'{{"success":true,"broadcastCount":{total},"id":{name},"rooms":{{{",".join(rooms)}}}}}'


def _encode_results(results: Iterable[str], *, success: bool) -> Response:
    literal = "true" if success else "false"
    return Response(200, f'{{"success":{literal},"results":[{",".join(results)}]}}'.encode())
