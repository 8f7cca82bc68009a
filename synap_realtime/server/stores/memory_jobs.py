"""The records of jobs of the memory store. See :class:`base.JobStore`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from sys import getsizeof

import pydantic_core

from ...protocol.job_state import JobEvent, JobRecord, fold_job, parse_record
from ...protocol.rooms import Room
from .base import MAX_JOBS_BYTES, JobPosition, JobQuery, Retention, position_of
from .folds import MAX_PAGE_BYTES

# Measured memory of a record beside its texts, and of a room, with their entries in the tables.
_RECORD_BYTES, _ROOM_BYTES = 1000, 450


class _Kept:
    """A record. One that has ended is kept as JSON, which takes much less memory.

    Attributes:
        at: when it was written, by the store's clock.
        bytes: memory that it takes.
    """

    __slots__ = ("_record", "at", "bytes", "has_ended", "place", "run_id", "status", "text", "type")

    def __init__(self, record: JobRecord, at: float) -> None:
        self.at = at
        self.status, self.type, self.run_id = record.status, record.type, record.run_id
        self.has_ended = record.has_ended
        self.place = position_of(record)
        self.text = record.text
        self._record: JobRecord | bytes = record
        if self.has_ended:
            self._record = pydantic_core.to_json(record.with_text(None).to_stored())
            strings: Iterable[str | bytes | None] = (self._record, self.text)
        else:
            strings = (record.label, record.error)
        self.bytes = _RECORD_BYTES + sum([getsizeof(each) for each in strings])

    def record(self) -> JobRecord:
        """Return the record without its text."""
        if isinstance(self._record, JobRecord):
            return self._record
        return parse_record(pydantic_core.from_json(self._record))


@dataclass(slots=True)
class _RoomJobs:
    """The records of a room, the one first that was changed longest ago."""

    kept: OrderedDict[str, _Kept] = field(default_factory=OrderedDict)
    ended_runs: dict[str, str] = field(default_factory=dict)  # to the ids of their records
    bytes: int = _ROOM_BYTES


class MemoryJobs:
    """The records of all rooms.

    Attributes:
        bytes: memory that they take.
    """

    def __init__(self, retention: Retention) -> None:
        self.bytes = 0
        self._retention = retention
        # The logs may take the other half.
        self._max_bytes = retention.max_memory_bytes // 2
        self._rooms: dict[Room, _RoomJobs] = {}
        # Room and id of each record, the one first that was changed longest ago.
        self._order: OrderedDict[tuple[Room, str], None] = OrderedDict()

    def find(self, room: Room, job_id: str, now: float) -> JobRecord | None:
        """Return the record of a job, with its text if it has ended."""
        self.expire(now)
        jobs = self._rooms.get(room)
        kept = None if jobs is None else jobs.kept.get(job_id)
        return None if kept is None else kept.record().with_text(kept.text)

    def has_ended(self, room: Room, run_id: str, now: float) -> bool:
        """Return whether a room has the record of a run that has ended."""
        jobs = self._rooms.get(room)
        if jobs is None or run_id not in jobs.ended_runs:
            return False
        self.expire(now)
        return run_id in jobs.ended_runs

    def apply(self, room: Room, event: JobEvent, text: str | None, now: float) -> None:
        """Change the record of a job by an event.

        Args:
            room: the room of the publication.
            event: what it says.
            text: the text of its run; used if the event ends the run.
            now: the time in seconds.
        """
        self.expire(now)
        job_id = event.job_id
        jobs = self._rooms.get(room)
        kept = None if jobs is None else jobs.kept.get(job_id)
        present = None if kept is None else kept.record()
        record = fold_job(present, event)
        if record is present:
            return
        if jobs is None:
            jobs = self._rooms[room] = _RoomJobs()
            self.bytes += jobs.bytes
        if kept is not None:
            self._remove(room, job_id, keeps_room=True)
        self._add(
            room, jobs, job_id, _Kept(record.with_text(text if record.has_ended else None), now)
        )
        is_over = len(jobs.kept) > self._retention.job_count
        while (is_over or jobs.bytes > MAX_JOBS_BYTES) and len(jobs.kept) > 1:
            others = islice(jobs.kept.items(), len(jobs.kept) - 1)  # not the one just written
            oldest = next(iter(jobs.kept))
            self._remove(room, next((id for id, each in others if each.has_ended), oldest))
            is_over = len(jobs.kept) > self._retention.job_count
        while self.bytes > self._max_bytes and len(self._order) > 1:
            self._remove(*next(iter(self._order)))

    def list(self, room: Room, query: JobQuery, now: float) -> tuple[list[JobRecord], bool]:
        """Return the records that a query wants, and whether more follow."""
        self.expire(now)
        jobs = self._rooms.get(room)
        if jobs is None:
            return [], False
        wanted = [each for each in jobs.kept.values() if query.matches(each.status, each.type)]
        if query.after is not None:
            wanted = [each for each in wanted if each.place < query.after]
        wanted.sort(key=_place, reverse=True)
        records: list[JobRecord] = []
        size = 0
        for each in wanted[: query.limit]:
            if size >= MAX_PAGE_BYTES:
                break
            records.append(each.record())
            size += each.bytes - len(each.text or "")
        return records, len(wanted) > len(records)

    def expire(self, now: float) -> None:
        """Delete the records whose time is over."""
        age_s = self._retention.job_age_s
        while self._order:
            room, job_id = next(iter(self._order))
            if self._rooms[room].kept[job_id].at + age_s > now:
                return
            self._remove(room, job_id)

    def __bool__(self) -> bool:
        return bool(self._order)

    def _add(self, room: Room, jobs: _RoomJobs, job_id: str, kept: _Kept) -> None:
        jobs.kept[job_id] = kept
        if kept.has_ended:
            jobs.ended_runs[kept.run_id] = job_id
        jobs.bytes += kept.bytes
        self.bytes += kept.bytes
        self._order[room, job_id] = None

    def _remove(self, room: Room, job_id: str, *, keeps_room: bool = False) -> None:
        jobs = self._rooms[room]
        kept = jobs.kept.pop(job_id)
        del self._order[room, job_id]
        if jobs.ended_runs.get(kept.run_id) == job_id:
            del jobs.ended_runs[kept.run_id]
        jobs.bytes -= kept.bytes
        self.bytes -= kept.bytes
        if not jobs.kept and not keeps_room:
            self.bytes -= jobs.bytes
            del self._rooms[room]


def _place(kept: _Kept) -> JobPosition:
    return kept.place
