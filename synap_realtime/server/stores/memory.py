"""The store in memory: fast, for one process, gone with it."""

from __future__ import annotations

import json
import secrets
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...protocol.cursor import Cursor
from ...protocol.rooms import Room, is_request_room
from .base import Deliver, Entry, Page, Receipt, Retention

_SWEEP = 4  # rooms looked at for each publish: more than one can add, so the sweep keeps up


@dataclass(slots=True)
class _Log:
    entries: deque[tuple[float, Entry]] = field(default_factory=deque)
    ids: OrderedDict[str, tuple[float, Receipt]] = field(default_factory=OrderedDict)
    forgotten: int = 0  # the highest offset that was in this log and is no longer
    mark: int = 0  # 0: nobody ever received anything


class MemoryStore:
    """Logs in dictionaries. Offsets are counted over the whole store, so none is ever reused."""

    def __init__(
        self, retention: Retention | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retention = retention or Retention()
        self._clock = clock
        self._epoch = secrets.token_hex(6)
        self._offset = 0
        self._dropped = 0  # the highest offset in any log that was dropped whole
        self._logs: OrderedDict[Room, _Log] = OrderedDict()

    def head(self) -> Cursor:
        return Cursor(self._epoch, self._offset)

    def earliest(self) -> Cursor:
        return Cursor(self._epoch, 0)

    async def publish(
        self, room: Room, id: str, notification: dict[str, Any], deliver: Deliver
    ) -> Receipt:
        now = self._clock()
        self._sweep(now)
        log = self._logs.setdefault(room, _Log(forgotten=self._dropped))
        self._logs.move_to_end(room)
        self._trim(room, log, now)
        if (seen := log.ids.get(id)) is not None:
            first = seen[1]
            return Receipt(first.id, first.cursor, first.broadcast_count, duplicate=True)

        cursor = Cursor(self._epoch, self._offset + 1)
        wire = {**notification, "room": room, "cursor": str(cursor)}
        text = json.dumps(wire, ensure_ascii=False, separators=(",", ":"))
        self._offset += 1
        entry = Entry(self._offset, text, len(text.encode()))
        log.entries.append((now, entry))
        if len(log.entries) > self._retention.count:
            log.forgotten = log.entries.popleft()[1].offset
        receipt = Receipt(id, cursor, deliver(entry), duplicate=False)
        log.ids[id] = (now, receipt)
        return receipt

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        log = self._logs.get(room)
        foreign = after.epoch != self._epoch or after.offset > self._offset
        if log is None:
            lost = 0 < after.offset < self._dropped
            return Page((), recovered=not foreign and not lost)
        self._trim(room, log, self._clock())
        start = 0 if foreign else after.offset
        entries = [entry for _, entry in log.entries]
        first = bisect_right(entries, start, key=lambda entry: entry.offset)
        lost = 0 < start < log.forgotten
        return Page(entries[first : first + limit], recovered=not foreign and not lost)

    async def received_mark(self, room: Room) -> Cursor | None:
        log = self._logs.get(room)
        return Cursor(self._epoch, log.mark) if log is not None and log.mark else None

    async def set_received_mark(self, room: Room, position: Cursor) -> None:
        log = self._logs.get(room)
        if log is not None and position.epoch == self._epoch:
            log.mark = max(log.mark, position.offset)

    async def close(self) -> None:
        self._logs.clear()

    def _trim(self, room: Room, log: _Log, now: float) -> None:
        kept = self._retention
        oldest = now - (kept.request_age_s if is_request_room(room) else kept.user_age_s)
        while log.entries and log.entries[0][0] <= oldest:
            log.forgotten = log.entries.popleft()[1].offset
        while log.ids and next(iter(log.ids.values()))[0] <= now - kept.dedupe_s:
            log.ids.popitem(last=False)

    def _sweep(self, now: float) -> None:
        """Look at a few rooms and drop those that hold nothing any more."""
        for _ in range(min(_SWEEP, len(self._logs))):
            room, log = next(iter(self._logs.items()))
            self._trim(room, log, now)
            if log.entries or log.ids:
                self._logs.move_to_end(room)
            else:
                self._dropped = max(self._dropped, log.forgotten)
                del self._logs[room]
