"""The synchronous client of the SDK: threads send batches for one another."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx
from pydantic import BaseModel

from ..errors import ConfigurationError
from ..lazy_imports import importing
from ..network import BoundedBody, deadline
from ..protocol.notification import Notification
from ..protocol.rooms import Room, UserId, parse_room
from . import encoding, forks, retry
from .batch_queue import BatchQueue, QueuedNotification
from .result import BroadcastResult

if TYPE_CHECKING:
    from .transport import DeadlineTransport


class HttpClient:
    """Connections to one room server, and single requests over them."""

    def __init__(self, endpoint: encoding.Endpoint, transport: httpx.BaseTransport | None) -> None:
        """Create a client; it connects and reads the environment at the first request."""
        self._endpoint = endpoint
        self._given = transport
        self._own: DeadlineTransport | None = None

    @property
    def is_own(self) -> bool:
        """Whether the package's own transport is in use, not a custom one."""
        return self._given is None

    def open(self) -> httpx.BaseTransport:
        """Read the environment and import the dependencies of a request.

        Raises:
            ConfigurationError: an environment variable is invalid; names it.
        """
        if self._given is not None:
            return self._given
        if self._own is None:
            with importing():
                # Imported with httpcore, only by publishers.
                from .transport import DeadlineTransport

                retry.load()
                self._own = DeadlineTransport(self._endpoint.address)
        return self._own

    def post(self, call: encoding.ApiRequest, budget_s: float) -> encoding.ApiResponse:
        """Make one attempt. Never raises for a failure of the network, the server or the
        environment.
        """
        try:
            return self._post(call, budget_s)
        except (TimeoutError, ConfigurationError, *encoding.TRANSPORT_ERRORS) as error:
            return encoding.response_from_error(self._endpoint, error)
        except Exception as error:
            if self._given is not None:
                raise
            return encoding.response_from_error(self._endpoint, error)

    def close(self) -> None:
        for transport in (self._given, self._own):
            if transport is not None:
                transport.close()
        self._own = None

    def renewed(self) -> HttpClient:
        """Return a copy for a forked child; the parent keeps using the connections."""
        if self._own is not None:
            self._own.abandon()
        return HttpClient(self._endpoint, self._given)

    def _post(self, call: encoding.ApiRequest, budget_s: float) -> encoding.ApiResponse:
        end = time.monotonic() + budget_s
        transport = self.open()
        request = encoding.build_request(self._endpoint, call, budget_s)
        with deadline(end):
            response = transport.handle_request(request)
            assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - as in httpx
            body = BoundedBody(response, encoding.MAX_ANSWER_BYTES)
            try:
                for chunk in () if body.encoding else response.stream:
                    if time.monotonic() > end:  # for a custom transport
                        raise TimeoutError
                    if not body.add(chunk):
                        break
            finally:
                response.stream.close()
        return encoding.read_body(self._endpoint, response, body)


class Broadcaster:
    """Synchronous variant of :class:`AsyncBroadcaster`. Safe to share between threads.

    Concurrent broadcasts of several threads are batched: one of the threads sends for all.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = retry.TIMEOUT_S,
        deadline_s: float = retry.DEADLINE_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Create a client; the arguments are those of :class:`AsyncBroadcaster`."""
        self._endpoint = encoding.Endpoint(url, api_key)
        self._timeout_s = encoding.check_seconds("timeout_s", timeout_s)
        self._deadline_s = encoding.check_seconds("deadline_s", deadline_s)
        self._poster = HttpClient(self._endpoint, transport)
        self._reset()
        forks.renew_in_child(self)

    def broadcast_notification(
        self,
        *,
        user_id: UserId | None = None,
        request_id: UserId | None = None,
        message: Notification | Mapping[str, Any],
    ) -> BroadcastResult:
        """See :meth:`AsyncBroadcaster.broadcast_notification`."""
        rooms = encoding.rooms_for(user_id, request_id)
        return self._deliver(rooms, encoding.normalize(message, request_id))

    def broadcast_success(
        self,
        user_id: UserId | None,
        type: str,
        data: Mapping[str, Any] | BaseModel,
        request_id: UserId | None = None,
        *,
        id: str | None = None,
    ) -> BroadcastResult:
        """See :meth:`AsyncBroadcaster.broadcast_success`."""
        message = encoding.message_of(type, data, "success", id=id)
        return self.broadcast_notification(user_id=user_id, request_id=request_id, message=message)

    def broadcast_error(
        self,
        user_id: UserId | None,
        type: str,
        error: str,
        request_id: UserId | None = None,
        *,
        id: str | None = None,
    ) -> BroadcastResult:
        """See :meth:`AsyncBroadcaster.broadcast_error`."""
        message = encoding.message_of(type, encoding.error_data(error), "error", id=id)
        return self.broadcast_notification(user_id=user_id, request_id=request_id, message=message)

    def broadcast(self, room: str, message: Notification | Mapping[str, Any]) -> BroadcastResult:
        """See :meth:`AsyncBroadcaster.broadcast`."""
        return self._deliver((parse_room(room),), encoding.normalize(message))

    def close(self) -> None:
        """Finish the broadcasts of other threads that are in flight, then close the connections.

        This ends because each broadcast has a deadline.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._batch_queue.is_idle)
        self._poster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _deliver(self, rooms: tuple[Room, ...], message: Notification) -> BroadcastResult:
        span = encoding.start_broadcast_span(message)
        with span.current():
            result = self._publish(encoding.encode(rooms, message))
        span.end(result.error)
        return result

    def _publish(self, parcel: encoding.EncodedNotification) -> BroadcastResult:
        item = QueuedNotification(parcel, time.monotonic() + self._deadline_s)
        try:
            self._enter(item)
            while self._wait_for_result_or_lead(item):
                self._send_batch(item)
        except BaseException:
            with self._changed:
                self._batch_queue.cancel(item)
                self._leave(item)
            raise
        return item.outcome()

    def renew(self) -> None:
        """Reset the client in a forked child; the parent owns the queue and the connections."""
        self._poster = self._poster.renewed()
        self._reset()

    def _reset(self) -> None:
        self._batch_queue = BatchQueue(self._endpoint)
        self._changed = threading.Condition()

    def _enter(self, item: QueuedNotification) -> None:
        with self._changed:
            if self._changed.wait_for(lambda: not self._batch_queue.is_full, self._deadline_s):
                self._batch_queue.add(item)
            else:
                self._batch_queue.expire(item)

    def _wait_for_result_or_lead(self, item: QueuedNotification) -> bool:
        """Wait until this caller has a result (return False) or must send a batch (return True)."""
        with self._changed:
            while True:
                self._ensure_flushing()
                if item.batch or item.is_settled:
                    return bool(item.batch)
                now = time.monotonic()
                if now >= item.deadline:
                    self._batch_queue.expire(item)
                    return False
                due = self._batch_queue.next_due(now) or item.deadline
                self._changed.wait(min(due, item.deadline) - now)

    def _ensure_flushing(self) -> None:
        """Wake the first caller of the next batch to send it."""
        while items := self._batch_queue.next_batch(time.monotonic()):
            items[0].batch = items
            self._changed.notify_all()

    def _leave(self, item: QueuedNotification) -> None:
        items, item.batch = item.batch, []
        self._batch_queue.release(items)
        self._ensure_flushing()
        self._changed.notify_all()

    def _send_batch(self, item: QueuedNotification) -> None:
        """Make one attempt for a batch, or all for a server without ``POST /broadcast``."""
        try:
            if self._endpoint.has_batch_route:
                call = encoding.batch_request([each.encoded for each in item.batch])
                answer = self._post(call, item.deadline)
                with self._changed:
                    self._batch_queue.apply_response(item.batch, answer, time.monotonic())
            else:
                item.resolve(self._one_by_one(item))
        except Exception as error:  # noqa: BLE001 - re-raised to their callers
            with self._changed:
                for each in item.batch:
                    if self._poster.is_own:
                        each.resolve(encoding.unsent(self._endpoint, each.encoded, error))
                    else:
                        each.fail(error)
        finally:
            with self._changed:
                self._leave(item)

    def _one_by_one(self, item: QueuedNotification) -> BroadcastResult:
        steps = encoding.publish_per_room(self._endpoint, item.encoded, item.attempts)
        call = next(steps)
        while True:
            answer = self._send_with_retry(call, item.deadline)
            try:
                call = steps.send(answer)
            except StopIteration as done:
                result: BroadcastResult = done.value
                return result

    def _send_with_retry(self, call: encoding.ApiRequest, deadline: float) -> encoding.ApiResponse:
        """Send until the response is final."""
        from tenacity import Retrying

        retrying = Retrying(**retry.arguments(deadline - time.monotonic()))
        answer: encoding.ApiResponse = retrying(self._post, call, deadline)
        return retry.with_attempts(answer, retrying.statistics["attempt_number"])

    def _post(self, call: encoding.ApiRequest, deadline: float) -> encoding.ApiResponse:
        budget_s = min(self._timeout_s, max(0.001, deadline - time.monotonic()))
        return self._poster.post(call, budget_s)
