"""Keep logs in memory, for one process; they are lost when it exits."""

from __future__ import annotations

import asyncio
import math
import secrets
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from sys import getsizeof

from ...protocol.cursor import Cursor
from ...protocol.folding import Fold
from ...protocol.job_state import JobEvent, run_of_key, text_key
from ...protocol.rooms import Room, is_control_room, is_request_room
from .base import (
    DEVICE_AGE_S,
    MAX_DEVICES,
    DeliveryHandler,
    Entry,
    GapHandler,
    JobPage,
    JobQuery,
    JobSnapshot,
    Page,
    Publication,
    PublishResult,
    Retention,
    StoreStats,
    deliver_to_nobody,
    ignore_gap,
    make_entry,
)
from .clock import OffsetClock, RunningClock
from .folds import RUN_HAS_ENDED, Conflict, Placement, with_offset
from .memory_folds import FoldedKeys
from .memory_jobs import MemoryJobs

MAX_DEVICES_IN_ALL = 100_000
"""Most devices over all rooms. Above it, the one that has not connected for longest is removed."""

# After this many new rooms, as many are swept: they cannot be added faster than they are swept.
_SWEEP = 50
_MAX_SLICE = 50  # publications that are stored without yielding
_IDLE_SWEEP = 500  # rooms swept each second, so that memory is freed without publishes

# Measured memory of an object beside its text, with its entries in the tables, in bytes.
_ROOM_BYTES, _ENTRY_BYTES, _ID_BYTES = 1300, 450, 350


@dataclass(slots=True)
class _Log:
    max_entries: int
    entries: deque[tuple[float, Entry]] = field(default_factory=deque)
    # When each id was published, its offset, and how many subscribers accepted it.
    ids: OrderedDict[str, tuple[float, int, int]] = field(default_factory=OrderedDict)
    trimmed: int = 0  # the highest offset that was deleted from this log
    acked: int = 0  # 0: no subscriber has received anything
    # When each device last connected, and its acknowledged offset; least recent first.
    devices: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)
    next_expiry: float = math.inf  # nothing in the log expires before
    # Room and id of each offset whose entry or id is kept. All rooms share the store's, except
    # control rooms: what is only in a room's own is never evicted.
    kept: OrderedDict[int, tuple[Room, str]] = field(default_factory=OrderedDict)
    keys: FoldedKeys | None = None  # None until something is folded


class MemoryStore:
    """Keeps logs in dictionaries. Offsets are unique in the whole store and never reused.

    Entries that are evicted for lack of memory count like expired ones: resuming from before them
    returns ``recovered: false``.
    """

    runs_without_task = True
    reads_immediately = True
    description = "memory store: fast, for this process only; notifications are lost when it ends"

    def __init__(
        self,
        retention: Retention | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._retention = retention or Retention()
        self._clock = clock or RunningClock()
        self._bytes = 0
        self._evicted = 0
        self._rooms_since_sweep = 0
        self._epoch = secrets.token_hex(6)
        self._offset_clock = OffsetClock()
        self._offset = 1  # the highest that was issued; 0 is the position before every entry
        # The highest offset of any deleted log, separately for the rooms of requests (True) and
        # others: logs that are kept for an hour do not limit those that are kept for a day.
        self._trimmed_by_kind = {True: 0, False: 0}
        self._logs: OrderedDict[Room, _Log] = OrderedDict()
        # Room and id of each offset whose entry or id is kept, oldest first.
        self._kept: OrderedDict[int, tuple[Room, str]] = OrderedDict()
        self._devices: OrderedDict[tuple[Room, str], None] = OrderedDict()  # least recent first
        self._jobs = MemoryJobs(self._retention)
        self._timer: asyncio.TimerHandle | None = None
        self._deliver: DeliveryHandler = deliver_to_nobody

    def subscribe(self, handler: DeliveryHandler, on_gap: GapHandler = ignore_gap) -> None:  # noqa: ARG002 - it loses nothing
        self._deliver = handler

    async def join(self, room: Room) -> None:
        pass  # the entries of all rooms are delivered

    def leave(self, room: Room) -> None:
        pass

    def earliest(self) -> Cursor:
        return Cursor(self._epoch, 0)

    async def head(self, room: Room) -> Cursor:
        log = self._logs.get(room)
        if log is not None and log.entries:
            return log.entries[-1][1].cursor
        self._offset = self._offset_clock.next(self._offset)
        return Cursor(self._epoch, self._offset)

    async def publish(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        if len(publications) <= _MAX_SLICE:
            return self._publish_few(publications)
        results: list[PublishResult] = []
        for start in range(0, len(publications), _MAX_SLICE):
            if start:  # a large call must not block subscribers and other requests
                await asyncio.sleep(0)
            results += self._publish_few(publications[start : start + _MAX_SLICE])
        return results

    def _publish_few(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        self._start_ticking()
        now = self._clock()
        max_bytes = self._retention.max_memory_bytes
        results = []
        for room, id, text, published_at, fold, job in publications:
            log = self._logs.get(room) or self._log(room)
            if now >= log.next_expiry:
                self._trim(room, log, now)
            ids = log.ids
            seen = ids.get(id)
            if seen is not None:
                _, offset, count = seen
                results.append(PublishResult(id, Cursor(self._epoch, offset), count, True))
                continue
            self._offset = offset = self._offset_clock.next(self._offset)
            cursor = Cursor(self._epoch, offset)
            keeps_id = True
            if fold is not None:
                placed = self._fold(room, log, fold, text, offset, now)
                if not isinstance(placed, Placement):
                    results.append(PublishResult(id, *placed))
                    continue
                keeps_id = fold.keeps_id
                fold = fold.placed_at(placed.offset)
                text = with_offset(text, fold)
            entry = make_entry(room, cursor, text, fold)
            log.entries.append((now, entry))
            if not ids or len(log.entries) == 1:
                keep_s = min(self._retention.age_s(room), self._retention.dedupe_window_s)
                log.next_expiry = min(log.next_expiry, now + keep_s)
            log.kept[offset] = (room, id)
            if job is not None and not is_control_room(room):
                self._apply_job(room, log, job, now)
            count = self._deliver(room, entry, published_at)
            results.append(PublishResult(id, cursor, count, False))
            self._bytes += getsizeof(entry.text) + getsizeof(id) + _ENTRY_BYTES + _ID_BYTES
            if keeps_id:
                ids[id] = (now, offset, count)
            else:
                self._bytes -= _id_bytes(id)
            if len(log.entries) > log.max_entries:
                self._remove_entry(log)
            while self._bytes + self._jobs.bytes > max_bytes and len(self._kept) > 1:
                self._evict()
        if self._rooms_since_sweep >= _SWEEP:
            self._rooms_since_sweep = 0
            self._sweep(now, _SWEEP)
        return results

    def _apply_job(self, room: Room, log: _Log, job: JobEvent, now: float) -> None:
        """Change the record of a job, and end the keys of a run that has ended."""
        text = None
        if job.is_ending and log.keys is not None:
            text = log.keys.text_of(text_key(job.run_id))
            for key in job.run_keys:
                log.keys.end(key)
        self._jobs.apply(room, job, text, now)

    def _fold(
        self, room: Room, log: _Log, fold: Fold, text: str, offset: int, now: float
    ) -> Placement | tuple[Cursor, int, bool, Conflict | None]:
        """Fold a publication into the entry of its key, which leaves its position.

        Returns:
            Where the piece is; or, if nothing is stored, the result without its id.
        """
        run_id = run_of_key(fold.key)
        if run_id is not None and self._jobs.has_ended(room, run_id, now):
            return Cursor(self._epoch, 0), 0, False, RUN_HAS_ENDED
        if log.keys is None:
            log.keys = FoldedKeys()
        placement = log.keys.place(fold, text, now)
        if isinstance(placement, Conflict):
            return Cursor(self._epoch, 0), 0, False, placement
        if not isinstance(placement, Placement):
            return Cursor(self._epoch, log.keys.offset_of(fold.key)), 0, True, None
        self._bytes -= log.keys.bytes
        replaced = log.keys.write(fold, placement, offset, now)
        self._bytes += log.keys.bytes
        if replaced is not None:
            self._take_entry(log, replaced)
        return placement

    def _take_entry(self, log: _Log, offset: int) -> None:
        """Remove an entry whose content is in a later one. Nothing is missing without it."""
        position = bisect_left(log.entries, offset, key=lambda kept: kept[1].cursor.offset)
        self._bytes -= _entry_bytes(log.entries[position][1])
        del log.entries[position]
        seen = log.ids.get(log.kept[offset][1])
        if seen is None or seen[1] != offset:
            del log.kept[offset]
        else:
            assert log.keys is not None  # noqa: S101 - it is a key's entry
            log.keys.left_offsets.add(offset)

    def _evict(self) -> None:
        """Delete the oldest notification of all rooms, with its id."""
        offset, (room, id) = next(iter(self._kept.items()))
        log = self._logs[room]
        was_left = log.keys is not None and offset in log.keys.left_offsets
        if offset > log.trimmed and not was_left:
            self._remove_entry(log)
            self._evicted += 1
        if offset in self._kept:
            self._remove_id(log, id)

    def _remove_entry(self, log: _Log) -> None:
        """Delete the oldest entry of a log."""
        _, entry = log.entries.popleft()
        log.trimmed = offset = entry.cursor.offset
        self._bytes -= _entry_bytes(entry)
        if log.keys is not None:
            self._bytes -= log.keys.bytes
            log.keys.remove(offset)
            self._bytes += log.keys.bytes
        _, id = log.kept[offset]
        if id not in log.ids or log.ids[id][1] != offset:
            del log.kept[offset]

    def _remove_id(self, log: _Log, id: str) -> None:
        _, offset, _ = log.ids.pop(id)
        self._bytes -= _id_bytes(id)
        was_left = log.keys is not None and log.keys.forget_left(offset)
        if was_left or offset <= log.trimmed:  # its entry is not there, either
            del log.kept[offset]

    def _remove_device(self, room: Room, device: str) -> None:
        del self._logs[room].devices[device]
        del self._devices[room, device]

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        log = self._logs.get(room)
        # Compared with the time, not with the last offset, which would reveal publishes to others.
        newest = max(self._offset, self._offset_clock.now())
        foreign = after.epoch != self._epoch or after.offset > newest
        if log is None:
            lost = 0 < after.offset < self._trimmed_by_kind[is_request_room(room)]
            return Page((), recovered=not foreign and not lost)
        self._trim(room, log, self._clock())
        start = 0 if foreign else after.offset
        first = bisect_right(log.entries, start, key=lambda kept: kept[1].cursor.offset)
        entries = [entry for _, entry in islice(log.entries, first, first + limit)]
        found = len(entries)
        if log.keys is not None:
            entries = log.keys.expand_page(entries)
        lost = 0 < start < log.trimmed
        recovered = not foreign and not lost
        return Page(entries, recovered, ends_early=len(entries) < found)

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        log = self._logs.get(room)
        if log is None:
            return None
        if device is not None and device in log.devices:
            return Cursor(self._epoch, log.devices[device][1])
        return Cursor(self._epoch, log.acked) if log.acked else None

    def register_device(self, room: Room, device: str, position: Cursor) -> None:
        if position.epoch == self._epoch:
            self._start_ticking()
            log = self._log(room)
            _, acked = log.devices.pop(device, (0.0, 0))
            now = self._clock()
            log.devices[device] = (now, max(acked, position.offset))
            log.next_expiry = min(log.next_expiry, now + DEVICE_AGE_S)
            self._devices[room, device] = None
            self._devices.move_to_end((room, device))
            if len(log.devices) > MAX_DEVICES:
                self._remove_device(room, next(iter(log.devices)))
            if len(self._devices) > MAX_DEVICES_IN_ALL:
                self._remove_device(*next(iter(self._devices)))

    def ack(self, room: Room, position: Cursor, device: str | None = None) -> None:
        log = self._logs.get(room)
        if log is not None and position.epoch == self._epoch:
            log.acked = max(log.acked, position.offset)
            if device is not None:
                self.register_device(room, device, position)

    async def get_job(self, room: Room, job_id: str) -> JobSnapshot:
        cursor, now = await self.head(room), self._clock()
        record = self._jobs.find(room, job_id, now)
        if record is not None and not record.has_ended:
            log = self._logs.get(room)
            if log is not None and log.keys is not None:
                self._trim(room, log, now)
                record = record.with_text(log.keys.text_of(text_key(record.run_id)))
        return JobSnapshot(record, cursor)

    async def list_jobs(self, room: Room, query: JobQuery) -> JobPage:
        cursor = await self.head(room)
        records, more = self._jobs.list(room, query, self._clock())
        return JobPage(records, cursor, more)

    async def check(self) -> None:
        pass  # memory is always available

    async def usage(self) -> StoreStats:
        return StoreStats(self._bytes + self._jobs.bytes, len(self._logs), self._evicted)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._logs.clear()
        self._jobs = MemoryJobs(self._retention)

    def _log(self, room: Room) -> _Log:
        log = self._logs.get(room)
        if log is None:
            log = self._logs[room] = _Log(
                self._retention.count_of(room), trimmed=self._trimmed_by_kind[is_request_room(room)]
            )
            if not is_control_room(room):
                log.kept = self._kept
            self._bytes += _ROOM_BYTES
            self._rooms_since_sweep += 1
        return log

    def _start_ticking(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(1.0, self._tick)

    def _trim(self, room: Room, log: _Log, now: float) -> None:
        """Delete what has expired."""
        if now < log.next_expiry:
            return
        age_s, dedupe_s = self._retention.age_s(room), self._retention.dedupe_window_s
        while log.entries and log.entries[0][0] + age_s <= now:
            self._remove_entry(log)
        while log.ids and next(iter(log.ids.values()))[0] + dedupe_s <= now:
            self._remove_id(log, next(iter(log.ids)))
        while log.devices and next(iter(log.devices.values()))[0] + DEVICE_AGE_S <= now:
            self._remove_device(room, next(iter(log.devices)))
        log.next_expiry = math.inf
        if log.entries:
            log.next_expiry = log.entries[0][0] + age_s
        if log.ids:
            log.next_expiry = min(log.next_expiry, next(iter(log.ids.values()))[0] + dedupe_s)
        if log.devices:
            log.next_expiry = min(
                log.next_expiry, next(iter(log.devices.values()))[0] + DEVICE_AGE_S
            )

    def _tick(self) -> None:
        self._timer = None
        now = self._clock()
        self._sweep(now, _IDLE_SWEEP)
        self._jobs.expire(now)
        if self._logs or self._jobs:
            self._timer = asyncio.get_running_loop().call_later(1.0, self._tick)
        else:
            # An emptied dictionary keeps the size that it has grown to.
            self._logs, self._kept, self._devices = OrderedDict(), OrderedDict(), OrderedDict()

    def _sweep(self, now: float, rooms: int) -> None:
        """Trim the logs of a few rooms and delete empty ones."""
        for room, log in list(islice(self._logs.items(), rooms)):
            if now >= log.next_expiry:
                self._trim(room, log, now)
            if log.entries or log.ids or log.devices:
                self._logs.move_to_end(room)
            else:
                kind = is_request_room(room)
                self._trimmed_by_kind[kind] = max(self._trimmed_by_kind[kind], log.trimmed)
                del self._logs[room]
                self._bytes -= _ROOM_BYTES


def _entry_bytes(entry: Entry) -> int:
    return getsizeof(entry.text) + _ENTRY_BYTES


def _id_bytes(id: str) -> int:
    return getsizeof(id) + _ID_BYTES
