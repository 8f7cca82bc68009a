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
    MAX_BATCH_NOTIFICATIONS,
    MAX_SPREAD_BYTES,
)
from ...protocol.rooms import Room, key_of
from ...tracing import NOTHING, Span
from .. import events
from ..auth import Claims
from ..authorization import AccessControl, require_scope
from ..limits import Limits
from ..messages import (
    Request,
    RequestError,
    Response,
    json_body,
    payload_too_large,
    room_of,
    unavailable,
)
from ..metrics import Metrics
from ..publications import (
    check,
    check_item,
    has_rooms,
    rooms_of,
)
from ..rooms.hub import Hub
from ..stores.base import Publication, PublishResult, StoreUnavailableError
from ..stores.measured import InstrumentedStore
from ..wire import decode_batch, decode_notification

_AT_ONCE = 100  # notifications of a batch that are checked without a pause


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
        self._begun = 0  # what is not answered yet
        self._idle = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._draining

    async def drain(self) -> None:
        """Take nothing more, and wait until what was begun is answered."""
        self._draining = True
        self._metrics.draining.set(1)
        while self._begun:
            self._idle.clear()
            await self._idle.wait()

    def refuse_while_draining(self) -> None:
        """
        Raises:
            RequestError: 503.
        """
        if self._draining:
            raise unavailable("the server is shutting down")

    def begin(self) -> None:
        """Something begins that draining waits for.

        Raises:
            RequestError: 503.
        """
        self.refuse_while_draining()
        self._begun += 1

    def end(self) -> None:
        self._begun -= 1
        if self._draining:
            self._idle.set()

    async def one(self, request: Request) -> Response:
        """``POST /rooms/{room}/broadcast``."""
        began_at = perf_counter()
        self.refuse_while_draining()
        room = room_of(request.segments[1])
        claims = await self._access.identify(request)
        await self._access.permit(claims, "broadcast", room)
        traceparent = request.headers.get("traceparent")
        value, is_valid = decode_notification(await json_body(request))
        id, text, span = check(value, traceparent, is_valid=is_valid)
        spans = () if span is NOTHING else (span,)
        publications = (Publication(room, id, text),)
        (receipt,) = await self._publish(claims, publications, len(text), began_at, spans)
        return Response(200, _told(receipt))

    async def many(self, request: Request) -> Response:
        """``POST /broadcast``."""
        began_at = perf_counter()
        self.refuse_while_draining()
        claims = await self._access.identify(request)
        require_scope(claims, "broadcast")
        items, is_valid = decode_batch(await json_body(request))
        if len(items) > MAX_BATCH_NOTIFICATIONS:
            raise payload_too_large(f"a batch has at most {MAX_BATCH_NOTIFICATIONS} notifications")
        pairs = sum(len(item["rooms"]) for item in items if has_rooms(item))
        if pairs > MAX_BATCH_NOTIFICATIONS:
            raise payload_too_large(
                f"a batch goes to at most {MAX_BATCH_NOTIFICATIONS} rooms, over all its "
                "notifications"
            )
        rooms = [rooms_of(item) for item in items]
        named = (room for each in rooms if not isinstance(each, RequestError) for room in each)
        verdicts = await self._access.permit_each(claims, "broadcast", dict.fromkeys(named))
        traceparent = request.headers.get("traceparent")
        checked: list[list[Publication] | RequestError] = []
        spans: list[Span] = []
        for number, (item, its_rooms) in enumerate(zip(items, rooms, strict=True), 1):
            entry = check_item(item, its_rooms, verdicts, traceparent, spans, is_valid=is_valid)
            checked.append(entry)
            if isinstance(entry, RequestError):
                self._write_down(request, entry, its_rooms, verdicts)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # a large batch keeps nobody else waiting
        return await self._checked(checked, claims, began_at, spans)

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
        events.refused(
            problem.body, request.address, room, request.claims,
            origin=request.headers.get("origin"),
        )  # fmt: skip

    async def _checked(
        self,
        checked: Sequence[list[Publication] | RequestError],
        claims: Claims,
        began_at: float,
        spans: Sequence[Span],
    ) -> Response:
        good = [entry for entry in checked if not isinstance(entry, RequestError)]
        size = sum([len(each.text) for entry in good for each in entry])
        if size > MAX_SPREAD_BYTES:
            for span in spans:
                span.end("too large")
            raise payload_too_large(
                f"a batch has at most {MAX_SPREAD_BYTES} bytes, each notification counted once for "
                "each of its rooms"
            )
        self._metrics.published("rejected", len(checked) - len(good))
        publications = [each for entry in good for each in entry]
        try:
            receipts = iter(await self._publish(claims, publications, size, began_at, spans))
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
                results.append(_result([(each, next(receipts)) for each in entry]))
        return _results(results, success=failure is None and len(good) == len(checked))

    async def _publish(
        self,
        claims: Claims,
        publications: Sequence[Publication],
        size: int,
        began_at: float,
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
        self._begun += 1  # which draining waits for
        try:
            self.refuse_while_draining()
            if self._limits.count_publishes:
                self._limits.check_publish(claims, count, size)
            deliver = partial(self._hub.deliver, began_at=began_at)
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
            self.end()
            for span in spans:
                span.end(problem)
        self._metrics.accepted(receipts, size)
        if events.are_detailed():
            rooms = (publication.room for publication in publications)
            kept = zip(rooms, receipts, strict=True)
            events.published(claims, kept, self._access.is_credential)
        return receipts


def _told(receipt: PublishResult) -> bytes:
    """What became of one notification for one room. (A cursor holds no quote.)"""
    id, (epoch, offset), count, duplicate = receipt
    return (
        f'{{"success":true,"broadcastCount":{count},"message":"Notification broadcasted",'
        f'"id":{as_json(id)},"cursor":"{epoch}-{offset}",'
        f'"duplicate":{"true" if duplicate else "false"}}}'
    ).encode()


def _result(kept: Iterable[tuple[Publication, PublishResult]]) -> str:
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


def _results(results: Iterable[str], *, success: bool) -> Response:
    said = "true" if success else "false"
    return Response(200, f'{{"success":{said},"results":[{",".join(results)}]}}'.encode())
