"""Record what is broadcast, and inject faults."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import httpx

from ..broadcast import BackgroundBroadcaster, background_broadcaster
from ..broadcast.functions import use_transport
from ..errors import InvalidArgumentError
from ..jobs.strict import strict
from ..protocol.notification import Notification
from ..protocol.rooms import request_room, user_room
from ..subscriber.records import Job, parse_job_record
from .rooms import FakeRoomServer, SentNotification

FLUSH_S = 5.0
"""Maximum seconds to wait for notifications sent in the background."""


@dataclass(slots=True)
class _Fault:
    kind: Literal["delay", "double", "drop", "fail", "lose_answer"]
    times: int
    type: str | None
    seconds: float = 0.0
    status: int = 0


class RealtimeRecorder(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Records what this process broadcasts, as a room server would store it.

    The package's functions and jobs without a broadcaster send here. A broadcaster of your own does
    with ``transport=realtime``.

    Every fault below applies to the next ``times`` requests, or to those with a notification of a
    type.
    """

    def __init__(self) -> None:
        self._rooms = FakeRoomServer()
        self._faults: list[_Fault] = []
        self._broadcasters: list[BackgroundBroadcaster] = []
        self._lock = threading.Lock()

    # Recorded notifications

    def sent(
        self,
        type: str | None = None,
        *,
        user_id: str | None = None,
        request_id: str | None = None,
        room: str | None = None,
    ) -> list[SentNotification]:
        """Return what was received, in order, each id once; wait for the background queue first.

        Args:
            type: only notifications of this type.
            user_id, request_id, room: only notifications to these rooms.
        """
        self._flush()
        rooms = {room} if room is not None else set()
        rooms |= {user_room(user_id)} if user_id is not None else set()
        rooms |= {request_room(request_id)} if request_id is not None else set()
        with self._lock:
            return [
                each
                for each in self._rooms.sent
                if type in (None, each.type) and rooms.issubset(each.rooms)
            ]

    def types(self, *, user_id: str | None = None, request_id: str | None = None) -> list[str]:
        """Return the types of what was received, in order."""
        return [each.type for each in self.sent(user_id=user_id, request_id=request_id)]

    def text(self, *, user_id: str | None = None, request_id: str | None = None) -> str:
        """Return the text that the last job of a request, or of a user, has written with
        :func:`synap_realtime.delta`, as a page shows it.

        A retried attempt replaces the text. If the job names a request, ask for it: the text is in
        its room only.
        """
        job = self.job(user_id=user_id, request_id=request_id)
        return "" if job is None else job.text or ""

    def job(self, *, user_id: str | None = None, request_id: str | None = None) -> Job | None:
        """Return how the last job of a request, or of a user, stands: its status, progress, result,
        error and text. None if none was reported. See PROTOCOL.md, "Job state".
        """
        if (user_id is None) == (request_id is None):
            raise InvalidArgumentError("user_id", "expected a user_id or a request_id")
        room = request_room(request_id) if request_id is not None else user_room(user_id or "")
        self._flush()
        with self._lock:
            record = self._rooms.last_job(room)
        return None if record is None else parse_job_record(record.to_wire())

    @property
    def received(self) -> list[Notification]:
        """All received notifications, including duplicates."""
        self._flush()
        with self._lock:
            return list(self._rooms.arrivals)

    def assert_order(self, *types: str) -> None:
        """Fail unless these types were received in this order; others may be between them.

        Raises:
            AssertionError: lists what was received.
        """
        there = iter(self.types())
        for type in types:
            if type not in there:
                raise AssertionError(
                    f"{type} is missing, or was received too early\n{self._story()}"
                )

    def assert_single_terminal(self, run_id: str | None = None) -> None:
        """Fail unless each run, or this one, ends with exactly one terminal notification."""
        runs: dict[str, list[SentNotification]] = {}
        for each in self.sent():
            if each.run_id is not None and run_id in (None, each.run_id):
                runs.setdefault(each.run_id, []).append(each)
        if not runs:
            whose = "no run has" if run_id is None else f"run {run_id} has no"
            raise AssertionError(f"{whose} notifications\n{self._story()}")
        for id, received in runs.items():
            terminal = [each for each in received if each.is_terminal]
            if len(terminal) != 1:
                raise AssertionError(
                    f"run {id} has {len(terminal)} terminal notifications\n{self._story()}"
                )
            if not received[-1].is_terminal:
                raise AssertionError(
                    f"run {id} has notifications after its terminal one\n{self._story()}"
                )

    def clear(self) -> None:
        """Discard what was received, and all faults."""
        self._flush()
        with self._lock:
            self._rooms = FakeRoomServer()
            self._faults.clear()

    def broadcaster(self) -> BackgroundBroadcaster:
        """Return a broadcaster that sends here; the recorder waits for its queue, too."""
        broadcaster = BackgroundBroadcaster(transport=self)
        self._broadcasters.append(broadcaster)
        return broadcaster

    # Faults

    def drop_requests(self, times: int = 1, *, type: str | None = None) -> None:
        """Drop requests: the sender cannot connect."""
        self._add(_Fault("drop", times, type))

    def drop_responses(self, times: int = 1, *, type: str | None = None) -> None:
        """Accept requests but drop the responses: the sender will retry."""
        self._add(_Fault("lose_answer", times, type))

    def duplicate_requests(self, times: int = 1, *, type: str | None = None) -> None:
        """Deliver requests twice."""
        self._add(_Fault("double", times, type))

    def delay_requests(self, seconds: float, times: int = 1, *, type: str | None = None) -> None:
        """Deliver requests late."""
        self._add(_Fault("delay", times, type, seconds=seconds))

    def fail_requests(self, status: int = 503, times: int = 1, *, type: str | None = None) -> None:
        """Respond with an error, and store nothing."""
        self._add(_Fault("fail", times, type, status=status))

    def _add(self, fault: _Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    # Transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See :class:`httpx.BaseTransport`."""
        body = request.read()
        faults = self._due(body)
        time.sleep(_seconds(faults))
        return self._respond(request, body, faults)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See :class:`httpx.AsyncBaseTransport`."""
        body = await request.aread()
        faults = self._due(body)
        await asyncio.sleep(_seconds(faults))
        return self._respond(request, body, faults)

    def _due(self, body: bytes) -> list[_Fault]:
        """Return the faults that apply to this request."""
        due = []
        with self._lock:
            for fault in self._faults:
                if fault.type is None or f'"{fault.type}"'.encode() in body:
                    fault.times -= 1
                    due.append(fault)
            self._faults = [fault for fault in self._faults if fault.times > 0]
        return due

    def _respond(self, request: httpx.Request, body: bytes, faults: list[_Fault]) -> httpx.Response:
        kinds = {fault.kind for fault in faults}
        if "drop" in kinds:
            raise httpx.ConnectError("request dropped by the test", request=request)
        for fault in faults:
            if fault.kind == "fail":
                error = {"error": "Failed by the test", "details": "", "code": "unavailable"}
                return httpx.Response(fault.status, json=error)
        with self._lock:
            status, content = self._rooms.answer(request.url.path, body)
            if "double" in kinds:
                self._rooms.answer(request.url.path, body)
        if "lose_answer" in kinds:
            raise httpx.ReadTimeout("response dropped by the test", request=request)
        return httpx.Response(status, json=content)

    def _flush(self) -> None:
        end = time.monotonic() + FLUSH_S
        for broadcaster in (background_broadcaster(), *self._broadcasters):
            while not broadcaster.flush() and time.monotonic() < end:
                # After a fault, it counts as unavailable and flush() does not wait for it.
                time.sleep(0.005)

    def _story(self) -> str:
        lines = [f"  {each.type}  {each.status}  {each.id}" for each in self.sent()]
        return "received:\n" + ("\n".join(lines) or "  nothing")


def _seconds(faults: list[_Fault]) -> float:
    return sum(fault.seconds for fault in faults)


@contextmanager
def record() -> Iterator[RealtimeRecorder]:
    """Record what this process broadcasts from here on. See :class:`RealtimeRecorder`."""
    realtime = RealtimeRecorder()
    with use_transport(realtime), strict() as problems:
        try:
            yield realtime
        finally:
            for broadcaster in realtime._broadcasters:
                broadcaster.close()
    if problems:
        raise InvalidArgumentError("result", "; ".join(problems))
