"""The records of jobs in the SQLite file. See :class:`base.JobStore`."""

from __future__ import annotations

import sqlite3

import pydantic_core

from ....protocol.job_state import JobEvent, JobRecord, fold_job, parse_record, text_key
from ....protocol.rooms import Room
from ..base import MAX_JOBS_BYTES, JobQuery, Retention, position_of
from ..folds import MAX_PAGE_BYTES, utf8_size
from .keys import read_text

_SIZE_STEP = 1024  # the size of a room's records is checked after one has grown by about this


class JobTable:
    """Changes records, within the transaction of the caller."""

    def __init__(self, db: sqlite3.Connection, retention: Retention, now: float) -> None:
        """
        Args:
            db: the connection of the writer.
            retention: how long records are kept.
            now: the time of the store's clock in seconds.
        """
        self._db = db
        self._execute = db.execute
        self._retention = retention
        self._now = now

    def has_ended(self, room: Room, run_id: str) -> bool:
        """Return whether a room has the record of a run that has ended.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        found = self._execute(
            "SELECT 1 FROM job WHERE room = ? AND run_id = ? AND has_ended AND expires_at > ?",
            (room, run_id, self._now),
        ).fetchone()
        return found is not None

    def apply(self, room: Room, event: JobEvent) -> None:
        """Change the record of a job by an event.

        Raises:
            sqlite3.Error: it could not be changed.
        """
        row = self._execute(
            "SELECT record, size FROM job WHERE room = ? AND job_id = ? AND expires_at > ?",
            (room, event.job_id, self._now),
        ).fetchone()
        present = None if row is None else _parse(row[0])
        record = fold_job(present, event)
        if record is present:
            return
        text = None
        if record.has_ended:
            text = read_text(self._db, room, text_key(record.run_id), self._now)
        content = pydantic_core.to_json(record.to_stored()).decode()
        size = utf8_size(content) + utf8_size(text or "")
        id = self._write(room, record, content, text, size)
        if row is None or size // _SIZE_STEP > row[1] // _SIZE_STEP:
            self._delete_surplus(room, id)

    def _write(
        self, room: Room, record: JobRecord, content: str, text: str | None, size: int
    ) -> int:
        """Store a record. Return the id of its row."""
        started_at, job_id = position_of(record)
        row = self._execute(
            "INSERT INTO job (room, job_id, run_id, type, status, has_ended, started_at,"
            " expires_at, size, record, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (room, job_id) DO UPDATE SET run_id = excluded.run_id,"
            " type = excluded.type, status = excluded.status, has_ended = excluded.has_ended,"
            " started_at = excluded.started_at, expires_at = excluded.expires_at,"
            " size = excluded.size, record = excluded.record, text = excluded.text"
            " RETURNING id",
            (
                *(room, job_id, record.run_id, record.type, record.status, record.has_ended),
                *(started_at, self._now + self._retention.job_age_s, size, content, text),
            ),
        ).fetchone()
        return int(row[0])

    def _delete_surplus(self, room: Room, written: int) -> None:
        """Delete records of a room that has too many, or too large ones, but not one of them."""
        count, size = self._execute(
            "SELECT count(*), sum(size) FROM job WHERE room = ?", (room,)
        ).fetchone()
        while (count > self._retention.job_count or size > MAX_JOBS_BYTES) and count > 1:
            oldest = self._execute(
                "DELETE FROM job WHERE id = (SELECT id FROM job WHERE room = ? AND id != ?"
                " ORDER BY has_ended DESC, expires_at LIMIT 1) RETURNING size",
                (room, written),
            ).fetchone()
            count, size = count - 1, size - oldest[0]

    def delete_expired(self, limit: int) -> None:
        """Delete some records whose time is over.

        Raises:
            sqlite3.Error: they could not be deleted.
        """
        self._execute(
            "DELETE FROM job WHERE id IN"
            " (SELECT id FROM job WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
            (self._now, limit),
        )


def read_job(db: sqlite3.Connection, room: Room, job_id: str, now: float) -> JobRecord | None:
    """Return the record of a job with the text of its run.

    Raises:
        sqlite3.Error: the file cannot be read now.
    """
    row = db.execute(
        "SELECT record, text FROM job WHERE room = ? AND job_id = ? AND expires_at > ?",
        (room, job_id, now),
    ).fetchone()
    if row is None:
        return None
    record, text = _parse(row[0]), row[1]
    if not record.has_ended:
        text = read_text(db, room, text_key(record.run_id), now)
    return record.with_text(text)


def read_jobs(
    db: sqlite3.Connection, room: Room, query: JobQuery, now: float
) -> tuple[list[JobRecord], bool]:
    """Return the records of a room that a query wants, and whether more follow.

    Raises:
        sqlite3.Error: the file cannot be read now.
    """
    where, values = "room = ? AND expires_at > ?", [room, now]
    if query.statuses:
        where += f" AND status IN ({', '.join('?' * len(query.statuses))})"
        values += query.statuses
    if query.type is not None:
        where += " AND type = ?"
        values.append(query.type)
    if query.after is not None:
        where += " AND (started_at, job_id) < (?, ?)"
        values += query.after
    rows = db.execute(
        f"SELECT record FROM job WHERE {where} ORDER BY started_at DESC, job_id DESC LIMIT ?",  # noqa: S608 - constants only
        (*values, query.limit + 1),
    )
    records: list[JobRecord] = []
    size = 0
    for (content,) in rows:
        if len(records) == query.limit or size >= MAX_PAGE_BYTES:
            return records, True
        records.append(_parse(content))
        size += utf8_size(content)
    return records, False


def _parse(content: str) -> JobRecord:
    return parse_record(pydantic_core.from_json(content))
