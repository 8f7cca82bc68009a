"""The publish pipeline: validate, authorize, limit, store and broadcast notifications.

See PROTOCOL.md, "HTTP".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from json.encoder import encode_basestring_ascii as as_json
from logging import DEBUG
from time import perf_counter
from typing import Annotated, Any, Required

import pydantic
import uuid_utils
from pydantic import AfterValidator, ConfigDict, TypeAdapter
from pydantic_core import CoreConfig, SchemaValidator, to_json
from typing_extensions import TypedDict

from ...errors import InvalidArgumentError
from ...protocol.folding import Fold, parse_fold
from ...protocol.job_state import JobEvent, parse_job
from ...protocol.notification import (
    MAX_BATCH_FANOUT_BYTES,
    MAX_BATCH_NOTIFICATIONS,
    MAX_NOTIFICATION_BYTES,
    NAME,
    RESERVED_PREFIX,
    Status,
    encode_json,
    not_reserved,
    now_as_timestamp,
    parse_notification,
    to_utc_timestamp,
)
from ...protocol.rooms import Room, key_of
from ...tracing import NOOP_SPAN, Span, is_enabled
from ..auth.authorization import AccessControl, require_scope
from ..auth.claims import Claims
from ..auth.limits import Limits
from ..errors import (
    ConflictError,
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
    bad_request,
    decode_json,
    parse_room_param,
    payload_too_large,
    read_json_body,
    to_request_error,
)
from ..metrics import Metrics
from ..stores.base import LogStore, Publication, PublishResult
from ..tracing import start_publish_span
from .in_flight import InFlight


class _RawWire(TypedDict, total=False):
    """A :class:`Notification` on the wire, whose type may be a reserved one."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    type: Required[Annotated[str, NAME]]
    data: Required[dict[str, Any]]
    id: Annotated[str, NAME]
    requestId: str
    status: Status
    timestamp: Annotated[str, AfterValidator(to_utc_timestamp)]
    room: str
    cursor: str


class _Wire(_RawWire, total=False):
    """A notification from a publisher, without reserved types."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    type: Required[Annotated[str, NAME, AfterValidator(not_reserved)]]


class _BatchWire(_RawWire):
    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    rooms: Required[list[str]]


class _Batch(TypedDict):
    notifications: Annotated[list[_BatchWire], pydantic.Field(min_length=1)]


def _reader(kind: type) -> Callable[[bytes], Any]:
    # Caching keys only: values such as ids are unique, and a cache of them would waste memory.
    schema = TypeAdapter(kind).core_schema
    return SchemaValidator(schema, CoreConfig(cache_strings="keys")).validate_json


_read_notification, _read_batch = _reader(_RawWire), _reader(_Batch)
_check_wire = TypeAdapter(_Wire).validator.validate_python


ValidNotification = tuple[str, str, Fold | None, JobEvent | None, Span]
"""A valid notification: its id, the JSON for the store, its ``fold``, its ``job``, and the span of
the publish. A plain tuple, because each publish makes one."""


def validate_notification(content: bytes, traceparent: str | None) -> ValidNotification:
    """Validate the body of a publish to one room, fill in its defaults, and start its span.

    Args:
        content: the body.
        traceparent: the ``traceparent`` of the request.

    Raises:
        RequestError: 400 or 413, the notification is invalid or too large.
    """
    value, is_checked = decode_notification(content)
    return encode_notification(value, traceparent, is_checked=is_checked)


class BatchItem:
    """One notification of a batch.

    Attributes:
        rooms: where it goes, each room once; none if they are invalid.
        problem: why they are invalid.
    """

    __slots__ = ("_is_checked", "_value", "problem", "rooms")

    def __init__(self, value: Any, names: Sequence[Any], *, is_checked: bool) -> None:
        """
        Args:
            value: the notification, decoded.
            names: its rooms, as :func:`_room_list` returns them.
            is_checked: see :func:`decode_batch`.
        """
        self.rooms: Sequence[Room] = ()
        self.problem: RequestError | None = None
        try:
            self.rooms = _parse_rooms(value, names)
        except RequestError as error:
            self.problem = error
        self._value = value
        self._is_checked = is_checked

    def validate(self, traceparent: str | None) -> ValidNotification:
        """Validate it, as :func:`validate_notification` does. Its rooms must be valid."""
        del self._value["rooms"]
        return encode_notification(self._value, traceparent, is_checked=self._is_checked)


def parse_batch(content: bytes) -> list[BatchItem]:
    """Decode the body of a batch.

    Raises:
        RequestError: 400 or 413, the body is not a list of notifications, or the list is empty or
            too long.
    """
    values, is_checked = decode_batch(content)
    if len(values) > MAX_BATCH_NOTIFICATIONS:
        raise payload_too_large(f"a batch has at most {MAX_BATCH_NOTIFICATIONS} notifications")
    rooms = [_room_list(value) for value in values]
    if sum(map(len, rooms)) > MAX_BATCH_NOTIFICATIONS:
        raise payload_too_large(
            f"a batch goes to at most {MAX_BATCH_NOTIFICATIONS} rooms, over all its notifications"
        )
    return [
        BatchItem(value, names, is_checked=is_checked)
        for value, names in zip(values, rooms, strict=True)
    ]


def decode_notification(content: bytes) -> tuple[object, bool]:
    """Decode the body of a publish to one room.

    Returns:
        The JSON value, and whether it was checked in the same pass. Its type may still be a
        reserved one.

    Raises:
        RequestError: 400, the body is not JSON.
    """
    wire = _read(_read_notification, content)
    return (decode_json(content), False) if wire is None else (wire, True)


def decode_batch(content: bytes) -> tuple[list[Any], bool]:
    """Decode the body of a batch.

    Returns:
        The JSON values, and whether all of them were checked, as for :func:`decode_notification`.
        Then their ``rooms`` are lists of strings, else anything.

    Raises:
        RequestError: 400, the body is not a list of notifications, or the list is empty.
    """
    batch = _read(_read_batch, content)
    if batch is not None:
        return batch["notifications"], True
    body = decode_json(content)
    values = body.get("notifications") if isinstance(body, dict) else None
    if not isinstance(values, list) or not values:
        raise bad_request("Invalid batch", "notifications: expected a list of at least one")
    return values, False


def encode_notification(
    value: Any, traceparent: str | None, *, is_checked: bool
) -> ValidNotification:
    """Validate a decoded notification and encode it; see :func:`validate_notification`.

    Args:
        is_checked: see :func:`decode_notification`.
    """
    span = NOOP_SPAN
    try:
        if isinstance(value, dict):  # a publisher cannot set them: they are added on delivery
            value.pop("room", None)
            value.pop("cursor", None)
        is_valid = is_checked and not value["type"].startswith(RESERVED_PREFIX)
        wire = value if is_valid else _to_wire(value)
        if "id" not in wire:
            wire["id"] = str(uuid_utils.uuid7())
        if "timestamp" not in wire:
            wire["timestamp"] = now_as_timestamp()
        if is_enabled():
            span = start_publish_span(wire, traceparent)
        job = _read_job(wire) if "job" in wire else None
        fold = _move_fold(wire) if "fold" in wire else None
        content = to_json(wire)
        if b"Infinity" in content or b"NaN" in content:  # perhaps a number
            content = encode_json("notification", wire)
    except InvalidArgumentError as error:
        span.end("invalid")
        raise bad_request(
            "Invalid message format. Required: type, data", f"{error.field}: {error.problem}"
        ) from error
    if len(content) > MAX_NOTIFICATION_BYTES:
        span.end("too large")
        raise payload_too_large(f"a notification has at most {MAX_NOTIFICATION_BYTES} bytes")
    return wire["id"], content.decode(), fold, job, span


def _read_job(wire: dict[str, Any]) -> JobEvent | None:
    """Parse the member ``job``.

    Raises:
        InvalidArgumentError: names the member that is invalid.
    """
    value = wire["job"]
    if value is None:  # null counts as absent
        del wire["job"]
        return None
    return parse_job(value, wire)


def _move_fold(wire: dict[str, Any]) -> Fold | None:
    """Parse the member ``fold``, and make it the last one, without its offset.

    Raises:
        InvalidArgumentError: names the member that is invalid.
    """
    value = wire.pop("fold")
    if value is None:  # null counts as absent
        return None
    fold = parse_fold(value, wire["data"])
    wire["fold"] = fold.to_wire()
    return fold


def _read(read: Callable[[bytes], Any], content: bytes) -> dict[str, Any] | None:
    """Decode and validate in one pass. Return None if that takes two."""
    if b"NaN" in content or b"Infinity" in content:  # JSON has no such numbers; pydantic reads them
        return None
    try:
        wire: dict[str, Any] = read(content)
    except pydantic.ValidationError:
        return None
    return wire


def _to_wire(value: object) -> dict[str, Any]:
    """Validate a decoded JSON value, and return its wire form.

    The result is that of ``parse_notification(…).to_wire()``, in a third of the time.

    Raises:
        InvalidArgumentError: names the first member that is invalid.
    """
    try:
        wire: dict[str, Any] = _check_wire(value)
    except pydantic.ValidationError:  # or a member is null, which counts as absent
        return parse_notification(value).to_wire()
    return wire


def _room_list(value: object) -> list[Any]:
    """Return the rooms of one notification of a batch. An invalid one has none."""
    rooms = value.get("rooms") if isinstance(value, dict) else None
    return rooms if isinstance(rooms, list) else []


def _parse_rooms(value: object, names: Sequence[Any]) -> list[Room]:
    """Return the rooms of one notification of a batch, each once.

    Args:
        names: as :func:`_room_list` returns them.

    Raises:
        RequestError: 400.
    """
    if not names:
        if not isinstance(value, dict):
            raise bad_request("Invalid notification", "expected a JSON object")
        raise bad_request("Invalid notification", "rooms: expected a list of at least one")
    if len(names) == 1:
        return [parse_room_param(_room_name(names[0]))]
    return [parse_room_param(name) for name in dict.fromkeys(map(_room_name, names))]


def _room_name(value: object) -> str:
    if not isinstance(value, str):
        raise bad_request("Invalid room id", "rooms: expected strings")
    return value


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
        encoded = validate_notification(content, request.headers.get("traceparent"))
        id, text, fold, job, span = encoded
        spans = () if span is NOOP_SPAN else (span,)
        publications = (Publication(room, id, text, began_at, fold, job),)
        (result,) = await self._publish(claims, publications, len(text), spans)
        if result.conflict is not None:
            raise ConflictError(*result.conflict)
        return Response(200, _encode_result(result))

    async def broadcast_batch(self, request: Request) -> Response:
        """Handle ``POST /broadcast``."""
        began_at = perf_counter()
        self._in_flight.ensure_accepting()
        claims = await self._access.authenticate(request)
        require_scope(claims, "broadcast")
        items = parse_batch(await read_json_body(request))
        rooms = chain.from_iterable([item.rooms for item in items])
        denied = await self._access.authorize_many(claims, "broadcast", rooms)
        traceparent = request.headers.get("traceparent")
        validated: list[list[Publication] | RequestError] = []
        spans: list[Span] = []
        for number, item in enumerate(items):
            if number and number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # a large batch must not block the event loop
            entry = _validate_item(item, denied, traceparent, spans, began_at)
            validated.append(entry)
            if isinstance(entry, RequestError):
                self._log_rejected(request, entry, item.rooms, denied)
        return await self._publish_items(validated, claims, spans)

    def _log_rejected(
        self,
        request: Request,
        problem: RequestError,
        rooms: Sequence[Room],
        denied: Mapping[Room, PermissionDeniedError],
    ) -> None:
        """Log a rejected notification of a batch, with the room that the error is about."""
        room = next((room for room in rooms if room in denied), None)
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
        publications: list[Publication] = []
        rejected = 0
        for entry in validated:
            if isinstance(entry, RequestError):
                rejected += 1
            else:
                publications += entry
        size = sum([len(publication.text) for publication in publications])
        if size > MAX_BATCH_FANOUT_BYTES:
            for span in spans:
                span.end("too large")
            raise payload_too_large(
                f"a batch has at most {MAX_BATCH_FANOUT_BYTES} bytes, each notification counted "
                "once for each of its rooms"
            )
        self._metrics.published("rejected", rejected)
        stored: Iterator[PublishResult] = iter(())
        failure: RequestError | None = None
        try:
            stored = iter(await self._publish(claims, publications, size, spans))
        except StoreUnavailableError as unavailable:
            failure = to_request_error(unavailable)
        results = []
        succeeded = not rejected and failure is None
        for entry in validated:
            if isinstance(entry, RequestError):
                error = entry
            elif failure is not None:
                error = failure
            else:
                result, is_stored = _encode_item_result(entry, stored)
                results.append(result)
                succeeded = succeeded and is_stored
                continue
            results.append(json.dumps({"success": False, **error.body}))
        return _encode_results(results, success=succeeded)

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
                    counting = self._limits.check_publish(claims, count, size)
                    if counting is not None:
                        await counting
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
        self._metrics.answered(results, size)
        if events.logger.isEnabledFor(DEBUG):
            rooms = (publication.room for publication in publications)
            kept = (each for each in zip(rooms, results, strict=True) if each[1].conflict is None)
            events.log_published(claims, kept, self._access.is_credential)
        return results


def _validate_item(
    item: BatchItem,
    denied: Mapping[Room, PermissionDeniedError],
    traceparent: str | None,
    spans: list[Span],
    published_at: float,
) -> list[Publication] | RequestError:
    """Return one notification of a batch for each of its rooms, or the error."""
    if item.problem is not None:
        return item.problem
    for room in item.rooms if denied else ():
        if room in denied:
            return to_request_error(denied[room])
    try:
        id, text, fold, job, span = item.validate(traceparent)
    except RequestError as error:
        return error
    if span is not NOOP_SPAN:
        spans.append(span)
    return [Publication(room, id, text, published_at, fold, job) for room in item.rooms]


def _encode_result(result: PublishResult) -> bytes:
    """Encode the result of one notification for one room. (A cursor contains no quote.)"""
    id, (epoch, offset), count, duplicate, _ = result
    return (
        f'{{"success":true,"broadcastCount":{count},"message":"Notification broadcasted",'
        f'"id":{as_json(id)},"cursor":"{epoch}-{offset}",'
        f'"duplicate":{"true" if duplicate else "false"}}}'
    ).encode()


def _encode_item_result(
    publications: Sequence[Publication], stored: Iterator[PublishResult]
) -> tuple[str, bool]:
    """Encode the results of one notification of a batch, over its rooms.

    (Neither a room nor a cursor contains a quote.)

    Args:
        publications: one for each room.
        stored: begins with their results.

    Returns:
        The JSON, and whether it succeeded: it has failed if it conflicts in one of the rooms.
    """
    total, rooms, failure = 0, [], None
    for publication, (_, (epoch, offset), count, duplicate, conflict) in zip(
        publications, stored, strict=False
    ):
        total += count
        if conflict is not None:
            error = to_request_error(ConflictError(*conflict)).body
            rooms.append(f'"{publication.room}":{json.dumps(error)}')
            failure = failure or error
            continue
        rooms.append(
            f'"{publication.room}":{{"broadcastCount":{count},"cursor":"{epoch}-{offset}",'
            f'"duplicate":{"true" if duplicate else "false"}}}'
        )
    outcome = "true" if failure is None else f"false,{json.dumps(failure)[1:-1]}"
    text = (
        f'{{"success":{outcome},"broadcastCount":{total},"id":{as_json(publications[0].id)},'
        f'"rooms":{{{",".join(rooms)}}}}}'
    )
    return text, failure is None


def _encode_results(results: Iterable[str], *, success: bool) -> Response:
    literal = "true" if success else "false"
    return Response(200, f'{{"success":{literal},"results":[{",".join(results)}]}}'.encode())
