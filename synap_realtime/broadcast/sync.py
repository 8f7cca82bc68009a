"""The synchronous client: lifecycle, nothing more."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx
import tenacity
from pydantic import BaseModel

from ..protocol.notification import Notification
from ..protocol.rooms import Room, parse_room
from . import requests, retry
from .result import BroadcastResult


class Poster:
    """Connections to one room server, and single requests over them."""

    def __init__(self, endpoint: requests.Endpoint, transport: httpx.BaseTransport | None) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._open()

    def _open(self) -> None:
        self._client = httpx.Client(transport=self._transport)
        self._pid = os.getpid()

    def post(self, call: requests.Call, budget_s: float) -> requests.Answer:
        """One attempt. Never raises for what the network or the server does."""
        if self._pid != os.getpid():
            self._open()  # a forked child must not write on its parent's connections
        try:
            return self._post(call, budget_s)
        except (TimeoutError, *requests.UNSENDABLE) as error:
            return requests.read_failure(self._endpoint, error)

    def close(self) -> None:
        self._client.close()

    def _post(self, call: requests.Call, budget_s: float) -> requests.Answer:
        """httpx bounds each read; the sum of them is bounded here."""
        end = time.monotonic() + budget_s
        url = self._endpoint.url + call.path
        content = b""
        with self._client.stream(
            "POST", url, content=call.body, headers=self._endpoint.headers, timeout=budget_s
        ) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if time.monotonic() > end:
                    raise TimeoutError
                if len(content) > requests.MAX_ANSWER_BYTES:
                    break
        return requests.read_response(response.status_code, response.headers, content)


class Broadcaster:
    """:class:`AsyncBroadcaster` for code that does not await. Safe to share between threads."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = retry.TIMEOUT_S,
        deadline_s: float = retry.DEADLINE_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Make a client; the arguments are those of :class:`AsyncBroadcaster`."""
        self._endpoint = requests.Endpoint(url, api_key)
        self._timeout_s = requests.check_seconds("timeout_s", timeout_s)
        self._deadline_s = requests.check_seconds("deadline_s", deadline_s)
        self._poster = Poster(self._endpoint, transport)

    def broadcast_notification(
        self,
        *,
        user_id: str | None = None,
        request_id: str | None = None,
        message: Notification | Mapping[str, Any],
    ) -> BroadcastResult:
        """See :meth:`AsyncBroadcaster.broadcast_notification`."""
        rooms = requests.rooms_for(user_id, request_id)
        return self._deliver(rooms, requests.prepare(message, request_id))

    def broadcast_success(
        self,
        user_id: str | None,
        type: str,
        data: Mapping[str, Any] | BaseModel,
        request_id: str | None = None,
        *,
        id: str | None = None,
    ) -> BroadcastResult:
        """See :meth:`AsyncBroadcaster.broadcast_success`."""
        message = requests.message_of(type, data, "success", id=id)
        return self.broadcast_notification(user_id=user_id, request_id=request_id, message=message)

    def broadcast_error(
        self,
        user_id: str | None,
        type: str,
        error: str,
        request_id: str | None = None,
        *,
        id: str | None = None,
    ) -> BroadcastResult:
        """See :meth:`AsyncBroadcaster.broadcast_error`."""
        message = requests.message_of(type, requests.error_data(error), "error", id=id)
        return self.broadcast_notification(user_id=user_id, request_id=request_id, message=message)

    def broadcast(self, room: str, message: Notification | Mapping[str, Any]) -> BroadcastResult:
        """See :meth:`AsyncBroadcaster.broadcast`."""
        return self._deliver((parse_room(room),), requests.prepare(message))

    def close(self) -> None:
        """Close the connections."""
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
        span = requests.begin_broadcast(message)
        with span.current():
            result = self._publish(requests.pack(rooms, message))
        span.end(result.error)
        return result

    def _publish(self, parcel: requests.Parcel) -> BroadcastResult:
        deadline = time.monotonic() + self._deadline_s
        steps = requests.delivery(self._endpoint, [parcel])
        call = next(steps)
        while True:
            answer = self._call(call, deadline)
            try:
                call = steps.send(answer)
            except StopIteration as done:
                (result,) = done.value
                assert isinstance(result, BroadcastResult)  # noqa: S101 - for the type checker
                return result

    def _call(self, call: requests.Call, deadline: float) -> requests.Answer:
        attempts = 0

        def attempt() -> requests.Answer:
            nonlocal attempts
            attempts += 1
            budget = min(self._timeout_s, max(0.001, deadline - time.monotonic()))
            return self._poster.post(call, budget)

        retrying = tenacity.Retrying(**retry.policy(deadline - time.monotonic()))
        return retry.counted(retrying(attempt), attempts)
