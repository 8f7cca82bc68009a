"""Notifications with ``job`` and the records after each of them, for every implementation.

``job_vectors.json`` holds them, and ``worker/tests/job_state.test.ts`` reads them, too.

::

    python -m tests.protocol.job_vectors      # rewrites job_vectors.json
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synap_realtime.errors import InvalidArgumentError
from synap_realtime.protocol.job_state import JobRecord, fold_job, parse_job

FILE = Path(__file__).with_name("job_vectors.json")
ABOUT = (
    "PROTOCOL.md, 'Job state'. `sequences`: the record, as it is stored, after each of the "
    "notifications in the order of the log. `invalid`: the error for a member `job`. Made by "
    "tests/protocol/job_vectors.py."
)
JOB = {"event": "started", "name": "note.creation", "runId": "r1"}
EVENTS = ("started", "progress", "retrying", "completed", "failed", "cancelled")
ENDINGS = EVENTS[3:]

Notification = dict[str, Any]


def note(
    event: str,
    at: int = 0,
    run: str = "r1",
    *,
    user: str | None = "u1",
    request: str | None = "q1",
    fence: int | None = None,
    **data: Any,
) -> Notification:
    job: dict[str, Any] = {"event": event, "name": "note.creation", "runId": run, "userId": user}
    if fence is not None:
        job["attempt"] = fence
    wire: Notification = {
        "type": f"note.creation.{event}",
        "data": data,
        "timestamp": f"2026-01-31T12:{at // 60:02}:{at % 60:02}.000Z",
        "job": job,
    }
    return wire if request is None else {**wire, "requestId": request}


def sequences() -> Iterator[tuple[str, list[Notification]]]:
    """Return notifications in the order of the log, each list with a name."""
    yield (
        "a run from its start to its result",
        [
            note("started", 1, attempt=1, maxAttempts=3),
            note("progress", 2, attempt=1, progress=0.5, label="Ünloading 😀"),
            note("retrying", 3, attempt=2, error="Again."),
            note("started", 4, attempt=2),
            note("progress", 5, attempt=2, progress=1),
            note("completed", 6, entityId="e1", parts=[1, None, {"a": "é"}]),
        ],
    )
    for ending in ENDINGS:
        later = [note(event, 9, attempt=9, error="late") for event in EVENTS]
        yield (
            f"nothing after the ending {ending}",
            [note("started"), note(ending, 1, error="first"), *later],
        )
        yield f"a run of which only {ending} is known", [note(ending, 3, error="", attempt=7)]
    yield (
        "events of an earlier attempt",
        [
            note("started", 1, attempt=2),
            note("progress", 2, attempt=2, progress=0.1, label="two"),
            *[note(event, 3, attempt=1, progress=0.9, error="x") for event in EVENTS[:3]],
            note("retrying", 4, attempt=2, error="it runs already"),
            note("failed", 5, attempt=1, error="an ending counts"),
        ],
    )
    yield (
        "a later run of the request",
        [
            note("started", 1),
            note("failed", 2, error="x"),
            note("started", 5, "r2"),
            *[note(event, 6, error="late") for event in EVENTS],
            note("completed", 7, "r2", truncated=True, omitted=["a"]),
            note("progress", 8, "r3", progress=0.25),
        ],
    )
    yield "many runs", [note("started", number, f"r{number}") for number in range(20)]
    yield (
        "whose job it is becomes known later",
        [
            note("started", 1, user=None, request=None),
            note("progress", 2, user="u1", request="q1", progress=0.5),
            note("progress", 3, user=None, request="", progress=0.75),
            note("cancelled", 4, user="u2", request="q2", error="by u2"),
        ],
    )
    yield (
        "attempts that are counted for each step",
        [
            note("started", 1, fence=1, attempt=1),
            note("retrying", 2, fence=2, attempt=2, error="x"),
            note("progress", 3, fence=2, attempt=2, progress=0.3, label="one"),
            note("progress", 4, fence=33, attempt=1, progress=0.5),
            note("progress", 5, fence=2, attempt=2, progress=0.9),
            note("retrying", 6, fence=3, attempt=3),
            note("started", 7, attempt=1),
            note("retrying", 8, fence=34, attempt=2, error="y"),
            note("progress", 9, fence=34, attempt=2, progress=0.7),
            note("retrying", 10, fence=34, attempt=2),
            note("started", 11, fence=0, attempt=9),
        ],
    )
    odd: list[Any] = [None, "", 0, -1, 1.5, 2, 2**31, True, False, "2", [], {}]
    yield (
        "members of data that are not valid count as absent",
        [
            note("started", attempt=1, maxAttempts=2, progress=0.5, label="first", error="first"),
            *[
                note(
                    "progress", number, attempt=value if value != 2 else 1,
                    maxAttempts=value, progress=value, label=value, error=value,
                )
                for number, value in enumerate(odd, 1)
            ],
            note("completed", 59, truncated="yes", progress=0),
        ],
    )  # fmt: skip
    yield (
        "data with names of the language",
        [
            note("started", 1, toString="x", constructor=1, hasOwnProperty=2),
            note("completed", 2, toString="x", constructor={}, __proto__=1),
        ],
    )
    source = random.Random(20260131)
    for number in range(25):
        yield f"at random {number}", [_random(source, at) for at in range(source.randint(3, 12))]


def _random(source: random.Random, at: int) -> Notification:
    data: dict[str, Any] = {
        "attempt": source.randint(1, 3),
        "maxAttempts": source.choice([3, None, "x"]),
        "progress": source.choice([0, 0.25, 1, 2, None]),
        "label": source.choice(["a", "", None]),
        "error": source.choice(["e", "", None]),
        "truncated": source.choice([True, False, 1]),
    }
    kept = {name: value for name, value in data.items() if source.random() < 0.6}
    event = source.choices(EVENTS, (4, 6, 3, 1, 1, 1))[0]
    run = source.choices(("r1", "r2", "r3"), (6, 2, 1))[0]
    request, fence = source.choice(["q1", "q1", None]), source.choice([None, None, 0, 1, 2])
    return note(event, at, run, request=request, fence=fence, **kept)


def invalid() -> Iterator[object]:
    """Return values that are not allowed as the member ``job``."""
    yield from ("x", 1, True, [], {})
    members: dict[str, list[object]] = {
        "event": [None, 1, "", "delta", "Started", []],
        "name": [None, 5, "", "x" * 129, "😀" * 129],
        "runId": [None, 5, "", "x" * 129],
        "attempt": [-1, 1.5, "1", True, 2**31, {}],
        "userId": [5, "", "x" * 201, []],
    }
    for name, values in members.items():
        yield from ({**JOB, name: value} for value in values)


def records_of(notifications: list[Notification]) -> list[dict[str, Any]]:
    """Return the record after each notification, as it is stored."""
    record: JobRecord | None = None
    records = []
    for wire in notifications:
        record = fold_job(record, parse_job(wire["job"], wire))
        records.append(record.to_stored())
    return records


def problem_with(job: object) -> str:
    try:
        parse_job(job, {"data": {}})
    except InvalidArgumentError as error:
        return str(error)
    raise AssertionError(f"{job} is valid")


def made() -> dict[str, Any]:
    """Return the content of the file."""
    return {
        "about": ABOUT,
        "invalid": [{"job": job, "details": problem_with(job)} for job in invalid()],
        "sequences": [
            {"name": name, "notifications": given, "records": records_of(given)}
            for name, given in sequences()
        ],
    }


def main() -> None:
    members = []
    for name, value in made().items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in value)
            text = f"[\n  {lines}\n ]"
        members.append(f' "{name}": {text}')
    FILE.write_text("{\n" + ",\n".join(members) + "\n}\n")


if __name__ == "__main__":
    main()
