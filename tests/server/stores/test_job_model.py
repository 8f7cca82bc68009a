"""The records of jobs against a plain model: the events of the log, folded one after the other."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from synap_realtime.protocol.folding import MAX_ATTEMPT
from synap_realtime.protocol.job_state import JobRecord, fold_job
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import JobQuery, PublishResult, Retention, Store
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.folding import write
from tests.support.jobs import REQUEST, event_of, jobs_of, lifecycle
from tests.support.stores import USER

from .conftest import Clock

_T = TypeVar("_T")


@dataclass
class Text:
    """The text of a run in the log."""

    text: str
    attempt: int
    at: float


@dataclass
class Kept:
    """A record."""

    record: JobRecord
    at: float


class JobMachine(RuleBasedStateMachine):
    """A store, and a plain model: records by room and job, texts by room and run.

    Attributes:
        kind: the store.
    """

    kind: ClassVar[str]
    retention = Retention(
        max_age_s=60, request_max_age_s=30, dedupe_window_s=10, job_age_s=100, job_count=3
    )

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.store = self.open()
        self.count = 0
        # The record first that was changed longest ago.
        self.records: dict[Room, dict[str, Kept]] = {USER: {}, REQUEST: {}}
        self.texts: dict[tuple[Room, str], Text] = {}

    def open(self) -> Store:
        if self.kind == "memory":
            return MemoryStore(self.retention, clock=self.clock)
        path = Path(self.folder.name) / "rooms.db"
        return SqliteStore(path, self.retention, clock=self.clock)

    def run(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def expire(self) -> None:
        for records in self.records.values():
            for job_id, kept in list(records.items()):
                if kept.at + self.retention.job_age_s <= self.clock.now:
                    del records[job_id]
        for (room, run), text in list(self.texts.items()):
            if text.at + self.retention.age_s(room) <= self.clock.now:
                del self.texts[room, run]

    rooms = st.sampled_from([USER, REQUEST])
    runs = st.sampled_from(["r1", "r2", "r3", "r4", "r5"])
    requests = st.sampled_from(["q1", "q1", "q2", "q3", None])
    attempts = st.integers(1, 3)
    events = st.sampled_from(
        ["started", "progress", "progress", "retrying", "completed", "failed", "cancelled"]
    )

    @rule(
        room=rooms, run=runs, request=requests, event=events, attempt=attempts, again=st.booleans()
    )
    def event(
        self, room: Room, run: str, request: str | None, event: str, attempt: int, again: bool
    ) -> None:
        """Publish an event of any run and attempt, perhaps twice."""
        self.clock.now += 0.01
        self.count += 1
        data: dict[str, Any] = {"attempt": attempt, "error": f"e{self.count}"}
        if event == "progress":
            data = {"attempt": attempt, "progress": self.count % 10 / 10, "label": "é" * 3}
        one = lifecycle(
            event, run, at=self.count, id=f"e{self.count}", request=request, room=room, **data
        )
        for number in range(1 + again):
            (result,) = self.run(self.store.publish([one]))
            assert result.duplicate == bool(number)
        self.keep(room, run, one)

    def keep(self, room: Room, run: str, one: Any) -> None:
        event, records = event_of(one), self.records[room]
        kept = records.get(event.job_id)
        record = fold_job(None if kept is None else kept.record, event)
        text = self.texts.get((room, run))
        if kept is None or record is not kept.record:
            if record.has_ended:
                record = record.with_text(text.text if text else None)
            records.pop(event.job_id, None)
            records[event.job_id] = Kept(record, self.clock.now)
            if len(records) > self.retention.job_count:
                others = list(records)[:-1]
                ended = [job_id for job_id in others if records[job_id].record.has_ended]
                del records[(ended or others)[0]]
        if event.is_ending and text is not None:
            text.attempt = MAX_ATTEMPT

    @rule(room=rooms, run=runs, piece=st.text("aé😀", max_size=3), attempt=attempts)
    def append(self, room: Room, run: str, piece: str, attempt: int) -> None:
        """Write a piece of the text of any run and attempt, which may have ended."""
        self.count += 1
        result = self.run(
            write(
                self.store,
                f"p{self.count}",
                piece=piece,
                key=f"{run}:text",
                room=room,
                attempt=attempt,
            )
        )
        text = self.texts.get((room, run))
        if self.has_ended(room, run):
            assert self.refusal(result) == ("stale_attempt", MAX_ATTEMPT)
        elif text is not None and attempt < text.attempt:
            assert self.refusal(result) == ("stale_attempt", text.attempt)
        else:
            assert result.conflict is None
            before = text.text if text is not None and text.attempt == attempt else ""
            self.texts[room, run] = Text(before + piece, attempt, self.clock.now)

    def refusal(self, result: PublishResult) -> tuple[str, int | None]:
        assert result.conflict is not None
        return result.conflict.code, result.conflict.attempt

    def has_ended(self, room: Room, run: str) -> bool:
        records = [kept.record for kept in self.records[room].values()]
        return any(record.run_id == run and record.has_ended for record in records)

    @rule(seconds=st.sampled_from([1, 9, 31, 61, 101]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        self.expire()

    @rule()
    def restart(self) -> None:
        if self.kind == "memory":
            return
        self.run(self.store.close())
        self.store = self.open()

    @invariant()
    def the_records_are_those_of_the_model(self) -> None:
        store = jobs_of(self.store)
        for room, records in self.records.items():
            for job_id in ("q1", "q2", "q3", "r1", "r2", "r3", "r4", "r5"):
                found = self.run(store.get_job(room, job_id)).record
                assert found == self.expected(room, job_id)
            page = self.run(store.list_jobs(room, JobQuery(10)))
            expected = [kept.record.with_text(None) for kept in records.values()]
            expected.sort(key=lambda record: (record.started_at, record.job_id), reverse=True)
            assert list(page.records) == expected

    def expected(self, room: Room, job_id: str) -> JobRecord | None:
        kept = self.records[room].get(job_id)
        if kept is None:
            return None
        if kept.record.has_ended:
            return kept.record
        text = self.texts.get((room, kept.record.run_id))
        return kept.record.with_text(text.text if text else None)


def machine(store: str) -> type[JobMachine]:
    class Machine(JobMachine):
        kind = store

    return Machine


TestJobsInMemory = machine("memory").TestCase
TestJobsInMemory.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)
TestJobsInSqlite = machine("sqlite").TestCase
TestJobsInSqlite.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, derandomize=True
)
