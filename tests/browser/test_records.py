"""The browser client folds notifications into records of jobs as the server does."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

from synap_realtime.protocol.job_state import JobRecord, fold_job, parse_job
from tests.support.npm import BIN, BROWSER, tool

RUNS = ("run-1", "run-2", "run-3")
EVENTS = ("started", "progress", "progress", "retrying", "completed", "failed", "cancelled")
CASES = 3000
MEMBERS = (
    "runId", "status", "progress", "label", "attempt", "maxAttempts", "error", "result",
    "stallAfterS", "updatedAt", "endedAt",
)  # fmt: skip
"""What notifications change. The client has the other members from the server's records only."""


def _notification(chance: random.Random, place: int, *, has_fence: bool) -> dict[str, Any]:
    """One event of a run, often one that comes late or has an invalid member."""
    data = {
        "attempt": chance.choice([1, 1, 2, 2, 3, 0, -1, 1.5, True, "2", 2**31]),
        "maxAttempts": chance.choice([3, 4, 0, None]),
        "progress": chance.choice([0, 0.25, 0.5, 1, 1.5, -1, "1", True]),
        "label": chance.choice(["Writing", "Reading", "", 7]),
        "error": chance.choice(["No paper.", "", 7]),
        "truncated": chance.choice([True, False, "yes"]),
        "stallAfterS": chance.choice([60, 0, -1, 0.5, "60", 2**31]),
    }
    weight = place + 1
    event = chance.choice(EVENTS if chance.random() < weight / 20 else EVENTS[:4])
    job: dict[str, Any] = {
        "event": event,
        "name": f"type-{chance.randrange(2)}",
        "runId": chance.choice(RUNS),
    }
    if has_fence:
        job["attempt"] = chance.randrange(4)
    if chance.random() < 0.3:
        job["userId"] = "42"
    return {
        "type": f"note.creation.{event}",
        "timestamp": f"2030-01-01T00:00:{place:02}.000Z",
        "data": {name: value for name, value in data.items() if chance.random() < 0.6},
        "job": job,
        **({"requestId": "q1"} if chance.random() < 0.5 else {}),
    }


def _known(record: dict[str, Any]) -> dict[str, Any]:
    """Its members, without an empty error and a duration of 0."""
    found = {name: record[name] for name in MEMBERS if record.get(name) not in (None, "")}
    if not found.get("stallAfterS", 0):
        found.pop("stallAfterS", None)
    return found


def _folded(notifications: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The record after each of them, as the server has it."""
    record: JobRecord | None = None
    found = []
    for each in notifications:
        record = fold_job(record, parse_job(each["job"], each))
        found.append(record.to_wire())
    return found


def test_folds_records_as_the_server_does(tmp_path: Path) -> None:
    chance = random.Random(24)
    cases = [
        [
            _notification(chance, place, has_fence=number % 3 == 0)
            for place in range(chance.randint(1, 12))
        ]
        for number in range(CASES)
    ]
    module = tmp_path / "records.mjs"
    source = BROWSER / "src/records.ts"
    tool("esbuild", source, "--bundle", "--format=esm", f"--outfile={module}")
    code = """
        import { foldJob } from "./records.mjs";
        const { readFileSync } = await import("node:fs");
        const cases = JSON.parse(readFileSync(0, "utf8"));
        console.log(JSON.stringify(cases.map((notifications) => {
          let record;
          const fences = new Map();
          return notifications.map((each) => (record = foldJob(record, each, fences)));
        })));
    """
    done = subprocess.run(
        [BIN / "node", "--input-type=module", "-e", code],
        input=json.dumps(cases), capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    for notifications, folded in zip(cases, json.loads(done.stdout), strict=True):
        found = [_known(each) for each in folded]
        assert found == [_known(each) for each in _folded(notifications)], notifications
