"""The routes of publishers: what they send is checked, kept, and handed to who listens.

See PROTOCOL.md, "HTTP".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from json.encoder import encode_basestring_ascii as as_json
from time import perf_counter

from ...protocol.notification import (
    MAX_BATCH_FANOUT_BYTES,
    MAX_BATCH_NOTIFICATIONS,
)
from ...protocol.rooms import Room, key_of
from ...tracing import NOOP_SPAN, Span
from .. import events
from ..auth import Claims
from ..authorization import AccessControl, require_scope
from ..limits import Limits
from ..messages import (
    Request,
    RequestError,
    Response,
    parse_room_param,
    payload_too_large,
    read_json_body,
    unavailable,
)
from ..metrics import Metrics
from ..publications import (
    has_room_list,
    parse_item_rooms,
    validate_item,
    validate_notification,
)
from ..rooms.hub import Hub
from ..stores.base import Publication, PublishResult, StoreUnavailableError
from ..stores.measured import InstrumentedStore
from ..wire import decode_batch, decode_notification

_YIELD_EVERY = 100  # notifications of a batch that are checked without a pause


class PublishService:
    """What one node publishes."""

    def __init__(
        self,
        store: InstrumentedStore,
        hub: Hub,
        access: AccessControl,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._hub = hub
        self._access = access
        self._limits = limits
        self._metrics = metrics
        self._draining = False
        self._in_flight = 0  # what is not answered yet
        self._idle = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._draining

    async def drain(self) -> None:
        """Take nothing more, and wait until what was begun is answered."""
        self._draining = True
        self._metrics.draining.set(1)
        while self._in_flight:
            self._idle.clear()
            await self._idle.wait()

    def ensure_accepting(self) -> None:
        """
        Raises:
            RequestError: 503.
        """
        if self._draining:
            raise unavailable("the server is shutting down")

    def enter(self) -> None:
        """Something begins that draining waits for.

        Raises:
            RequestError: 503.
        """
        self.ensure_accepting()
        self._in_flight += 1

    def exit(self) -> None:
        self._in_flight -= 1
        if self._draining:
            self._idle.set()

    async def broadcast(self, request: Request) -> Response:
        """``POST /rooms/{room}/broadcast``."""
        began_at = perf_counter()
        self.ensure_accepting()
        room = parse_room_param(request.path_segments[1])
        claims = await self._access.authenticate(request)
        await self._access.authorize(claims, "broadcast", room)
        traceparent = request.headers.get("traceparent")
        value, is_valid = decode_notification(await read_json_body(request))
        id, text, span = validate_notification(value, traceparent, is_valid=is_valid)
        spans = () if span is NOOP_SPAN else (span,)
        publications = (Publication(room, id, text),)
        (receipt,) = await self._publish(claims, publications, len(text), began_at, spans)
        return Response(200, _encode_result(receipt))

    async def broadcast_batch(self, request: Request) -> Response:
        """``POST /broadcast``."""
        began_at = perf_counter()
        self.ensure_accepting()
        claims = await self._access.authenticate(request)
        require_scope(claims, "broadcast")
        items, is_valid = decode_batch(await read_json_body(request))
        if len(items) > MAX_BATCH_NOTIFICATIONS:
            raise payload_too_large(f"a batch has at most {MAX_BATCH_NOTIFICATIONS} notifications")
        pairs = sum(len(item["rooms"]) for item in items if has_room_list(item))
        if pairs > MAX_BATCH_NOTIFICATIONS:
            raise payload_too_large(
                f"a batch goes to at most {MAX_BATCH_NOTIFICATIONS} rooms, over all its "
                "notifications"
            )
        rooms = [parse_item_rooms(item) for item in items]
        named = (room for each in rooms if not isinstance(each, RequestError) for room in each)
        verdicts = await self._access.authorize_many(claims, "broadcast", dict.fromkeys(named))
        traceparent = request.headers.get("traceparent")
        checked: list[list[Publication] | RequestError] = []
        spans: list[Span] = []
        for number, (item, its_rooms) in enumerate(zip(items, rooms, strict=True), 1):
            entry = validate_item(item, its_rooms, verdicts, traceparent, spans, is_valid=is_valid)
            checked.append(entry)
            if isinstance(entry, RequestError):
                self._write_down(request, entry, its_rooms, verdicts)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)  # a large batch keeps nobody else waiting
        return await self._publish_items(checked, claims, began_at, spans)

    def _write_down(
        self,
        request: Request,
        problem: RequestError,
        rooms: list[Room] | RequestError,
        verdicts: Mapping[Room, RequestError | None],
    ) -> None:
        """Log the refusal of one notification of a batch, with the room that it is about."""
        named = [] if isinstance(rooms, RequestError) else rooms
        room = next((room for room in named if verdicts.get(room) is problem), None)
        if room is None and named:
            room = named[0]
        if room is not None and self._access.is_credential(key_of(room)):
            room = None
        events.log_rejected(
            problem.body, request.address, room, request.claims,
            origin=request.headers.get("origin"),
        )  # fmt: skip

    async def _publish_items(
        self,
        checked: Sequence[list[Publication] | RequestError],
        claims: Claims,
        published_at: float,
        spans: Sequence[Span],
    ) -> Response:
        good = [entry for entry in checked if not isinstance(entry, RequestError)]
        size = sum([len(each.text) for entry in good for each in entry])
        if size > MAX_BATCH_FANOUT_BYTES:
            for span in spans:
                span.end("too large")
            raise payload_too_large(
                f"a batch has at most {MAX_BATCH_FANOUT_BYTES} bytes, each notification counted "
                "once for "
                "each of its rooms"
            )
        self._metrics.published("rejected", len(checked) - len(good))
        publications = [each for entry in good for each in entry]
        try:
            receipts = iter(await self._publish(claims, publications, size, published_at, spans))
            failure = None
        except StoreUnavailableError as error:
            failure = unavailable(str(error))
        results = []
        for entry in checked:
            problem = entry if isinstance(entry, RequestError) else failure
            if problem is not None:
                failed = {"success": False, **problem.body}
                results.append(json.dumps(failed))
            else:
                assert not isinstance(entry, RequestError)  # noqa: S101 - else it is the problem
                results.append(_encode_item_result([(each, next(receipts)) for each in entry]))
        return _encode_results(results, success=failure is None and len(good) == len(checked))

    async def _publish(
        self,
        claims: Claims,
        publications: Sequence[Publication],
        size: int,
        published_at: float,
        spans: Sequence[Span],
    ) -> Sequence[PublishResult]:
        """
        Args:
            size: of all their texts.
            spans: end with it.

        Raises:
            RequestError: 429, or 503 while draining.
            StoreUnavailableError: nothing was kept.
        """
        problem: str | None = "cancelled"
        count = len(publications)
        self._in_flight += 1  # which draining waits for
        try:
            self.ensure_accepting()
            if self._limits.count_publishes:
                self._limits.check_publish(claims, count, size)
            deliver = partial(self._hub.broadcast, published_at=published_at)
            receipts = await self._store.publish(publications, deliver)
            problem = None
        except RequestError as error:
            problem = str(error)
            self._metrics.published(
                "unavailable" if error.response.status == 503 else "rejected", count
            )
            raise
        except StoreUnavailableError as error:
            problem = str(error)
            self._metrics.published("unavailable", count)
            raise
        finally:
            self.exit()
            for span in spans:
                span.end(problem)
        self._metrics.accepted(receipts, size)
        if events.debug_enabled():
            rooms = (publication.room for publication in publications)
            kept = zip(rooms, receipts, strict=True)
            events.log_published(claims, kept, self._access.is_credential)
        return receipts


def _encode_result(receipt: PublishResult) -> bytes:
    """What became of one notification for one room. (A cursor holds no quote.)"""
    id, (epoch, offset), count, duplicate = receipt
    return (
        f'{{"success":true,"broadcastCount":{count},"message":"Notification broadcasted",'
        f'"id":{as_json(id)},"cursor":"{epoch}-{offset}",'
        f'"duplicate":{"true" if duplicate else "false"}}}'
    ).encode()


def _encode_item_result(kept: Iterable[tuple[Publication, PublishResult]]) -> str:
    """What became of one notification of a batch. (Neither a room nor a cursor holds a quote.)"""
    in_all, rooms, name = 0, [], ""
    for (room, _, _), (id, (epoch, offset), count, duplicate) in kept:
        in_all += count
        name = as_json(id)
        rooms.append(
            f'"{room}":{{"broadcastCount":{count},"cursor":"{epoch}-{offset}",'
            f'"duplicate":{"true" if duplicate else "false"}}}'
        )
    return f'{{"success":true,"broadcastCount":{in_all},"id":{name},"rooms":{{{",".join(rooms)}}}}}'


def _encode_results(results: Iterable[str], *, success: bool) -> Response:
    said = "true" if success else "false"
    return Response(200, f'{{"success":{said},"results":[{",".join(results)}]}}'.encode())
