"""The synchronous client of the SDK: threads send batches for one another."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import BaseModel

from ..forks import renew_in_child
from ..protocol.notification import Notification
from ..protocol.rooms import Room, UserId, parse_room
from . import encoding, retry
from .batch_queue import BatchQueue, QueuedNotification
from .encoding import ApiRequest
from .endpoint import Endpoint, check_seconds
from .http_client import HttpClient, budget_s
from .result import BroadcastResult


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
        self._endpoint = Endpoint(url, api_key)
        self._timeout_s = check_seconds("timeout_s", timeout_s)
        self._deadline_s = check_seconds("deadline_s", deadline_s)
        self._poster = HttpClient(self._endpoint, transport)
        self._reset()
        renew_in_child(self)

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
        message = encoding.success_message(type, data, id)
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
        message = encoding.error_message(type, error, id)
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

    def _publish(self, encoded: encoding.EncodedNotification) -> BroadcastResult:
        item = QueuedNotification(encoded, time.monotonic() + self._deadline_s)
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
        """Make one attempt for the batch that this caller leads."""
        try:
            call: ApiRequest | None = self._batch_queue.begin(item.batch)
            while call is not None:
                answer = self._poster.post(call, budget_s(self._timeout_s, item.deadline))
                with self._changed:
                    call = self._batch_queue.apply_response(item.batch, answer, time.monotonic())
        except Exception as error:  # noqa: BLE001 - re-raised to their callers
            with self._changed:
                self._batch_queue.fail(item.batch, error, is_own=self._poster.is_own)
        finally:
            with self._changed:
                self._leave(item)
