"""The records of jobs on Redis: what a node knows of them, and reading them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pydantic_core

from ....protocol.cursor import Cursor
from ....protocol.job_state import JobEvent, JobRecord, fold_job, parse_record
from ....protocol.rooms import Room
from ..base import JobPage, JobQuery, JobSnapshot, Retention
from .job_scripts import LIST_JOBS
from .keys import KeySpace
from .log_scripts import GET_JOB
from .script import us

MAX_KNOWN = 2000
"""Of how many running jobs a node remembers the record."""

MAX_KNOWN_LENGTH = 16 * 1024
"""A record with longer texts, in characters, is not remembered."""

MAX_ATTEMPTS = 20
"""How often a publish is repeated in vain because other nodes change the record of its job
meanwhile."""

ABSENT = b"-"

Place = tuple[Room, str]


class _Known(NamedTuple):
    """A record as it was stored or read last.

    Attributes:
        version: names the publication that has changed it last.
    """

    version: bytes
    record: JobRecord | None


_UNKNOWN = _Known(ABSENT, None)


class JobChanges:
    """Folds events into the records that the node knows.

    Redis rejects a change of a record that another node has changed meanwhile, and returns it.
    """

    def __init__(self, retention: Retention) -> None:
        self._limits = b"%d %d" % (retention.job_count, us(retention.job_age_s))
        self._known: OrderedDict[Place, _Known] = OrderedDict()

    def arguments(self, room: Room, event: JobEvent, version: bytes) -> tuple[bytes, ...]:
        """Return the arguments of PUBLISH that only a publication with ``job`` has.

        From now on the record is considered changed, so that the next event is folded into it.

        Args:
            room: the room of the publication.
            event: what it says.
            version: the version of the record if it is changed.
        """
        place = room, event.job_id
        known = self._known.get(place, _UNKNOWN)
        record = fold_job(known.record, event)
        is_changed = record is not known.record
        content = pydantic_core.to_json(record.to_stored()) if is_changed else b""
        if is_changed:
            self._remember(place, _Known(version, record))
        flags = b"%d %d %d" % (is_changed, event.is_ending, record.has_ended)
        return (
            b"%b %b %b %b" % (known.version, flags, record.status.encode(), self._limits),
            event.job_id.encode(),
            event.run_id.encode(),
            record.run_id.encode(),
            _began(record.started_at or ""),
            record.type.encode(),
            content,
        )

    def correct(self, room: Room, event: JobEvent, row: bytes) -> None:
        """Note the record that Redis has returned, because it is another version than was known.

        Args:
            row: a tilde, its version and the record; a tilde alone says nothing.
        """
        _, _, found = row.partition(b" ")
        if not found:
            return
        version, _, content = found.partition(b" ")
        if version == ABSENT:
            self.forget(room, event)
        else:
            record = parse_record(pydantic_core.from_json(content))
            self._remember((room, event.job_id), _Known(version, record))

    def forget(self, room: Room, event: JobEvent) -> None:
        """Forget a record which may have been stored or not."""
        self._known.pop((room, event.job_id), None)

    def settle(self, room: Room, event: JobEvent) -> None:
        """Forget a record after the call if it is large, or its job has ended."""
        record = self._known.get((room, event.job_id), _UNKNOWN).record
        if record is None:
            return
        length = len(record.label or "") + len(record.error or "")
        if record.has_ended or length > MAX_KNOWN_LENGTH:
            self.forget(room, event)

    def _remember(self, place: Place, known: _Known) -> None:
        self._known[place] = known
        self._known.move_to_end(place)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


class JobReader:
    """Reads records."""

    def __init__(
        self,
        keys: KeySpace,
        call: Callable[..., asyncio.Future[Any]],
        retention: Retention,
        lifetime_us: Callable[[Room], int],
    ) -> None:
        self._keys = keys
        self._call = call
        self._retention = retention
        self._lifetime_us = lifetime_us

    async def get(self, room: Room, job_id: str) -> JobSnapshot:
        """See :meth:`~..base.JobStore.get_job`."""
        keys = self._keys.of_room(room)
        epoch, position, *found = await self._call(
            GET_JOB,
            (keys.state, keys.meta, keys.folds, keys.jobs),
            self._lifetime_us(room),
            us(self._retention.age_s(room)) // 1000,
            job_id,
        )
        cursor = Cursor(epoch.decode(), int(position))
        if not found:
            return JobSnapshot(None, cursor)
        content, *parts = found
        text = b"".join(parts).decode() if parts else None
        return JobSnapshot(_parse(content).with_text(text), cursor)

    async def list(self, room: Room, query: JobQuery) -> JobPage:
        """See :meth:`~..base.JobStore.list_jobs`."""
        keys = self._keys.of_room(room)
        after = b""
        if query.after is not None:
            after = _began(query.after.started_at) + b"\0" + query.after.job_id.encode()
        epoch, position, more, *records = await self._call(
            LIST_JOBS,
            (keys.state, keys.meta, keys.jobs, keys.job_index),
            self._lifetime_us(room),
            query.limit,
            after,
            query.type or "",
            f" {' '.join(query.statuses)} " if query.statuses else "",
        )
        cursor = Cursor(epoch.decode(), int(position))
        return JobPage([_parse(each) for each in records], cursor, more == b"1")


def _parse(content: bytes) -> JobRecord:
    return parse_record(pydantic_core.from_json(content))


def _began(started_at: str) -> bytes:
    """Return when a job began, without what ends it in the index."""
    return started_at.replace("\0", "").encode()
