"""PROTOCOL.md, "Job state"."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from .client import Client, Json, check_error, decode, fresh_room, note, room_path

NAME = "note.creation"
JOB = {"event": "started", "name": NAME, "runId": "r1"}
EVENTS = ("started", "progress", "retrying", "completed", "failed", "cancelled")


class Request:
    """A request of a user, of which a job reports.

    Attributes:
        user: the id of the user.
        id: the id of the request.
    """

    def __init__(self, client: Client, user: str | None = None) -> None:
        self.client = client
        self.user = user or uuid.uuid4().hex
        self.id = uuid.uuid4().hex
        self.room = f"request_{self.id}"
        self.user_room = f"user_{self.user}"

    def event(
        self, event: str, run: str = "r1", at: int = 0, name: str = NAME, **data: object
    ) -> Json:
        """A lifecycle notification. What folds is in ``fold``."""
        fold = data.pop("fold", None)
        members: Json = {} if fold is None else {"fold": fold}
        return note(
            type=f"{name}.{event}",
            requestId=self.id,
            timestamp=f"2026-01-31T12:{at // 60:02}:{at % 60:02}.000Z",
            job={"event": event, "name": name, "runId": run, "userId": self.user},
            data=data,
            **members,
        )

    async def report(self, *events: Json, rooms: Sequence[str] = ()) -> list[Json]:
        """Publish notifications to both rooms, or to others; returns their results."""
        targets = list(rooms) or [self.user_room, self.room]
        answer = await self.client.batch([{**event, "rooms": targets} for event in events])
        results: list[Json] = answer["results"]
        return results

    async def snapshot(self) -> Json:
        response = await self.client.get(f"/jobs/{self.id}")
        assert response.status_code == 200, response.text
        return decode(response.content)

    async def job(self) -> Json:
        job: Json = (await self.snapshot())["job"]
        return job

    async def text(self, piece: str, run: str = "r1", **fold: object) -> Json:
        """Write a piece of the run's text; returns the response."""
        written = note(
            type=f"{NAME}.delta",
            data={"delta": piece, "index": 0},
            fold={"key": f"{run}:text", "mode": "append", **fold},
        )
        response = await self.client.broadcast(self.room, written)
        body = decode(response.content)
        return {**body, "status": response.status_code}


async def jobs_of(client: Client, user: str, **query: object) -> Json:
    suffix = f"?{urlencode(query)}" if query else ""
    response = await client.get(f"/users/{quote(user, safe='')}/jobs{suffix}")
    assert response.status_code == 200, response.text
    return decode(response.content)


def ids(page: Json) -> list[str]:
    return [job["requestId"] for job in page["jobs"]]


async def test_record_of_a_request(client: Client) -> None:
    """Reading: the members of a record, from the start of the run to its end."""
    request = Request(client)
    await request.report(
        request.event("started", at=1, attempt=1, maxAttempts=3),
        request.event("progress", at=2, attempt=1, progress=0.5, label="Ünloading 😀"),
    )
    job = await request.job()
    assert job == {
        "type": NAME,
        "status": "running",
        "runId": "r1",
        "userId": request.user,
        "requestId": request.id,
        "attempt": 1,
        "maxAttempts": 3,
        "progress": 0.5,
        "label": "Ünloading 😀",
        "truncated": False,
        "startedAt": "2026-01-31T12:00:01.000Z",
        "updatedAt": "2026-01-31T12:00:02.000Z",
    }
    await request.report(request.event("retrying", at=3, attempt=2, error="Again."))
    job = await request.job()
    assert (job["status"], job["attempt"], job["error"]) == ("retrying", 2, "Again.")
    assert {"progress", "label"}.isdisjoint(job)
    await request.report(
        request.event("started", at=4, attempt=2),
        request.event("completed", at=5, entityId="e1", parts=[1, None, {"a": "é"}]),
    )
    job = await request.job()
    assert (job["status"], job["progress"], job["attempt"]) == ("completed", 1, 2)
    assert job["result"] == {"entityId": "e1", "parts": [1, None, {"a": "é"}]}
    assert job["endedAt"] == "2026-01-31T12:00:05.000Z"
    assert "error" not in job
    assert (await jobs_of(client, request.user))["jobs"] == [job]


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
async def test_first_terminal_event_counts(client: Client, ending: str) -> None:
    """Record: no event of the run has an effect after the first terminal one."""
    request = Request(client)
    await request.report(request.event("started"), request.event(ending, at=1, error="x"))
    job = await request.job()
    assert job["status"] == ending
    assert job.get("error") == (None if ending == "completed" else "x")
    await request.report(*[request.event(event, at=2, attempt=9, error="late") for event in EVENTS])
    assert await request.job() == job


async def test_later_run_begins_the_record_anew(client: Client) -> None:
    """Record: the first event of a run begins it anew; the run before then has no effect."""
    request = Request(client)
    await request.report(
        request.event("failed", at=1, error="x"), request.event("started", "r2", 9)
    )
    job = await request.job()
    assert (job["runId"], job["status"], job["startedAt"][17:19]) == ("r2", "running", "09")
    assert "error" not in job
    await request.report(*[request.event(event, at=20, error="late") for event in EVENTS])
    assert await request.job() == job


async def test_zombie_of_an_earlier_attempt_has_no_effect(client: Client) -> None:
    """Record: an event of a lower attempt has no effect, unless it is terminal."""
    request = Request(client)
    await request.report(
        request.event("started", attempt=2), request.event("progress", attempt=2, progress=0.2)
    )
    job = await request.job()
    await request.report(
        *[request.event(event, at=5, attempt=1, progress=0.9) for event in EVENTS[:3]]
    )
    assert await request.job() == job
    await request.report(request.event("failed", at=6, error="x"))
    assert (await request.job())["status"] == "failed"


async def test_attempts_that_are_counted_for_each_step(client: Client) -> None:
    """Member `job`: `attempt` decides which event is late, and not `data.attempt`."""
    request = Request(client)

    def step(event: str, fence: int, attempt: int, **data: Any) -> Json:
        made = request.event(event, attempt=attempt, **data)
        made["job"]["attempt"] = fence
        return made

    await request.report(
        step("started", 1, 1),
        step("retrying", 2, 2, error="x"),
        step("progress", 2, 2, progress=0.3, label="one"),
        step("progress", 33, 1, progress=0.5),
    )
    job = await request.job()
    assert (job["attempt"], job["progress"], job["label"]) == (1, 0.5, "one")
    assert "fence" not in job
    await request.report(step("progress", 2, 2, progress=0.9), step("retrying", 3, 3))
    assert await request.job() == job
    await request.report(step("retrying", 34, 2, error="y"))
    job = await request.job()
    assert (job["status"], job["attempt"], job["error"]) == ("retrying", 2, "y")
    assert "progress" not in job


async def test_job_without_a_request_is_in_the_users_list(client: Client) -> None:
    """Record: the id of a job is the `requestId`, otherwise the `runId`."""
    request = Request(client)
    runs = [request.event("started", run) for run in ("r1", "r2", "r1")]
    for event in runs:
        del event["requestId"]
    await request.report(*runs, rooms=[request.user_room])
    page = await jobs_of(client, request.user)
    assert [job["runId"] for job in page["jobs"]] == ["r2", "r1"]
    assert all("requestId" not in job for job in page["jobs"])


async def test_duplicate_and_conflict_change_nothing(client: Client) -> None:
    """Record: a notification that is a duplicate, or a conflict, changes nothing."""
    request = Request(client)
    fold = {"key": "r1:progress", "mode": "replace", "attempt": 2}
    first = {**request.event("progress", progress=0.1, fold=fold), "id": "p1"}
    again = {**request.event("progress", progress=0.9), "id": "p1"}
    stale = request.event("progress", progress=0.8, fold={**fold, "attempt": 1})
    results = await request.report(first, again, stale)
    assert [result["success"] for result in results] == [True, True, False]
    assert (await request.job())["progress"] == 0.1


async def test_member_job_is_delivered_as_it_was_published(client: Client) -> None:
    """Member `job`: unknown members have no effect, and are delivered; null counts as absent."""
    room = fresh_room()
    job = {**JOB, "later": {"x": [1]}, "userId": None}
    await client.publish(room, "n1", job=job)
    await client.publish(room, "n2", job=None)
    found = (await client.history(room))["notifications"]
    assert found[0]["job"] == job
    assert "job" not in found[1]


INVALID: dict[str, list[object]] = {
    "job": ["started", 1, True, []],
    "job.event": [None, "", "delta", "Started", "other", 1],
    "job.name": [None, "", 5, "x" * 129],
    "job.runId": [None, "", 5, "x" * 129],
    "job.attempt": [-1, 1.5, "1", True, 2**31, []],
    "job.userId": ["", 5, "x" * 201, {}],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in INVALID.items() for value in values]
)
async def test_invalid_job_is_refused_and_named(client: Client, field: str, value: object) -> None:
    """Member `job`: an invalid member is a 400 that names it."""
    request = Request(client)
    name = field.partition(".")[2]
    job = {**JOB, name: value} if name else value
    response = await client.broadcast(request.room, note(requestId=request.id, job=job))
    check_error(response, 400, "invalid_request")
    assert decode(response.content)["details"].startswith(f"{field}: ")
    bad, good = await request.report(note(job=job), request.event("started"))
    assert (bad["success"], bad["code"], good["success"]) == (False, "invalid_request", True)
    assert bad["details"].startswith(f"{field}: ")
    assert (await request.job())["status"] == "running"


async def test_missing_member_of_job_is_named(client: Client) -> None:
    """Member `job`: an invalid member is a 400 that names it."""
    for name in JOB:
        job = {key: value for key, value in JOB.items() if key != name}
        response = await client.broadcast(fresh_room(), note(job=job))
        check_error(response, 400, "invalid_request")
        assert decode(response.content)["details"].startswith(f"job.{name}: ")


async def test_subscribing_after_the_cursor_gives_what_came_after(client: Client) -> None:
    """Reading: who subscribes after `cursor` gets exactly what the response does not cover."""
    request = Request(client)
    events = [
        request.event("started"),
        *[request.event("progress", at=n, progress=n / 10) for n in range(1, 9)],
        request.event("completed", at=9),
    ]
    for event in events:
        event["id"] = uuid.uuid4().hex
    await request.report(events[0])
    for covered in range(1, len(events)):
        cursors = [
            ((await request.snapshot())["cursor"], request.room),
            ((await jobs_of(client, request.user))["cursor"], request.user_room),
        ]
        await request.report(events[covered])
        for cursor, room in cursors:
            async with client.listen(room, after=cursor) as listener:
                assert (await listener.next())["id"] == events[covered]["id"]
    for cursor, room in (
        ((await request.snapshot())["cursor"], request.room),
        ((await jobs_of(client, request.user))["cursor"], request.user_room),
    ):
        page = await client.history(room, after=cursor)
        assert (page["notifications"], page["recovered"]) == ([], True)


async def test_cursor_of_a_user_without_jobs(client: Client) -> None:
    """Reading: the cursor of an empty list is a position, too."""
    request = Request(client)
    page = await jobs_of(client, request.user)
    assert (page["jobs"], page["next"]) == ([], None)
    await request.report(request.event("started"))
    later = await client.history(request.user_room, after=page["cursor"])
    assert (len(later["notifications"]), later["recovered"]) == (1, True)


async def test_text_of_a_running_job_and_after_its_end(client: Client) -> None:
    """Text: what the key has now; the record of a run that has ended keeps it."""
    request = Request(client)
    await request.report(request.event("started"))
    assert "text" not in await request.job()
    for offset, piece in ((0, "aé"), (2, "😀"), (3, "!")):
        written = await request.text(piece, offset=offset)
        assert written["status"] == 200
        snapshot = await request.snapshot()
        assert snapshot["cursor"] == written["cursor"]
    assert snapshot["job"]["text"] == "aé😀!"
    await request.report(request.event("completed", at=5))
    job = await request.job()
    assert (job["status"], job["text"]) == ("completed", "aé😀!")
    assert all("text" not in job for job in (await jobs_of(client, request.user))["jobs"])


async def test_text_of_a_retried_attempt_replaces_the_one_before(client: Client) -> None:
    """Text: written with its attempt as `fold.attempt`."""
    request = Request(client)
    await request.text("one", attempt=1)
    await request.report(request.event("retrying", attempt=2, error="x"))
    await request.text("two", attempt=2, offset=0)
    assert (await request.text("zombie", attempt=1))["code"] == "stale_attempt"
    await request.report(request.event("completed", at=5))
    assert (await request.job())["text"] == "two"


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
async def test_terminal_event_closes_the_keys_of_its_run(client: Client, ending: str) -> None:
    """Text: a later write gets 409 `stale_attempt`."""
    request = Request(client)
    await request.text("all", attempt=2)
    await request.report(request.event(ending, error="x"))
    for attempt in (0, 2, 3, 2**31 - 1):
        late = await request.text("zombie", attempt=attempt)
        assert (late["status"], late["code"]) == (409, "stale_attempt")
        fold = {"key": "r1:progress", "mode": "replace", "attempt": attempt}
        for room in (request.room, request.user_room):
            response = await client.broadcast(room, note(fold=fold))
            check_conflict = decode(response.content)
            assert (response.status_code, check_conflict["code"]) == (409, "stale_attempt")
    assert (await request.text("another", "r2"))["status"] == 200
    assert (await request.job())["text"] == "all"
    stored = (await client.history(request.room))["notifications"]
    assert [each["data"].get("delta") for each in stored] == ["all", None, "another"]


async def test_list_has_the_newest_first(client: Client) -> None:
    """Reading: newest first by `startedAt`; `next` leads to the rest, without a gap or a repeat."""
    first = Request(client)
    requests = [first, *[Request(client, first.user) for _ in range(6)]]
    for at, request in ((3, 0), (9, 1), (1, 2), (7, 3), (5, 4), (8, 5), (2, 6)):
        await requests[request].report(requests[request].event("started", f"r{request}", at))
    expected = [requests[number].id for number in (1, 5, 3, 4, 0, 6, 2)]
    assert ids(await jobs_of(client, first.user)) == expected
    for limit in (1, 2, 3, 7, 1000):
        page = await jobs_of(client, first.user, limit=limit)
        found = ids(page)
        while page["next"] is not None:
            assert len(page["jobs"]) == limit
            page = await jobs_of(client, first.user, limit=limit, after=page["next"])
            found += ids(page)
        assert found == expected


async def test_jobs_that_began_together_are_all_listed(client: Client) -> None:
    """Reading: `next` leads to the rest, without a gap or a repeat."""
    first = Request(client)
    requests = [first, *[Request(client, first.user) for _ in range(4)]]
    for number, request in enumerate(requests):
        await request.report(request.event("started", f"r{number}"))
    found: list[str] = []
    page = await jobs_of(client, first.user, limit=2)
    found += ids(page)
    while page["next"] is not None:
        page = await jobs_of(client, first.user, limit=2, after=page["next"])
        found += ids(page)
    assert sorted(found) == sorted(request.id for request in requests)


async def test_list_of_some_statuses_and_a_type(client: Client) -> None:
    """Reading: `?status=` is one, or several separated by commas; `?type=` is a job type."""
    first = Request(client)
    requests = [first, *[Request(client, first.user) for _ in range(4)]]
    events = ("started", "retrying", "completed", "failed", "cancelled")
    for at, (request, event) in enumerate(zip(requests, events, strict=True)):
        name = "a.b" if at % 2 else NAME
        await request.report(request.event(event, f"r{at}", at, name, error="x"))

    async def numbers(**query: object) -> list[int]:
        found = ids(await jobs_of(client, first.user, **query))
        return [[request.id for request in requests].index(each) for each in found]

    for number, status in enumerate(("running", "retrying", "completed", "failed", "cancelled")):
        assert await numbers(status=status) == [number]
    assert await numbers(status="failed,running") == [3, 0]
    assert await numbers(type="a.b") == [3, 1]
    assert await numbers(type="a.b", status="failed,running") == [3]
    assert await numbers(type="other") == []
    assert await numbers(status="", type="", limit=2) == [4, 3]
    page = await jobs_of(client, first.user, type=NAME, limit=1)
    assert ids(page) == [requests[4].id]
    assert await numbers(type=NAME, after=page["next"]) == [2, 0]


async def test_large_list_ends_early(client: Client) -> None:
    """Reading: a response ends early at about 1 MiB, with at least one record."""
    first = Request(client)
    for at in range(8):
        request = Request(client, first.user)
        event = request.event("completed", f"r{at}", at, x="x" * 200_000)
        await request.report(event, rooms=[request.user_room])
    page = await jobs_of(client, first.user)
    assert 1 <= len(page["jobs"]) <= 6
    count = len(page["jobs"])
    while page["next"] is not None:
        page = await jobs_of(client, first.user, after=page["next"])
        count += len(page["jobs"])
    assert count == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("status", value) for value in ("done", "running,", ",", "Running", "running failed")],
        ("type", "x" * 129),
        *[("limit", value) for value in ("0", "1001", "-1", "x", "1.5", "٣")],
        *[("after", value) for value in ("x", "earliest", "abc-1", "2026-01-31T12:00:00.000Z")],
        ("after", "2026-01-31T12:00:00.000Z/"),
    ],
)
async def test_invalid_parameter_is_named(client: Client, name: str, value: str) -> None:
    """Errors: 400; `details` names it."""
    user = uuid.uuid4().hex
    response = await client.get(f"/users/{user}/jobs?{urlencode({name: value})}")
    check_error(response, 400, "invalid_request")
    assert decode(response.content)["details"].startswith(f"{name}: ")


@pytest.mark.parametrize("id", ["x" * 201, "a b", "é", "a*", "a%2Fb"])
async def test_invalid_id_is_named(client: Client, id: str) -> None:
    """Errors: 400; `details` names it."""
    quoted = id if "%" in id else quote(id, safe="")
    response = await client.get(f"/jobs/{quoted}")
    check_error(response, 400, "invalid_request")
    assert decode(response.content)["details"].startswith("requestId: ")
    response = await client.get(f"/users/{quoted}/jobs")
    check_error(response, 400, "invalid_request")
    assert decode(response.content)["details"].startswith("id: ")


async def test_job_that_is_not_known(client: Client) -> None:
    """Reading: 404 `not_found` if there is no record."""
    request = Request(client)
    response = await client.get(f"/jobs/{request.id}")
    check_error(response, 404, "not_found")
    assert "record" in decode(response.content)["details"]
    await request.client.publish(request.room, "n1", requestId=request.id)
    check_error(await client.get(f"/jobs/{request.id}"), 404, "not_found")
    await request.report(request.event("started"), rooms=[request.user_room])
    check_error(await client.get(f"/jobs/{request.id}"), 404, "not_found")


async def test_jobs_routes_are_read_only(client: Client) -> None:
    """Errors: 405 with `Allow`."""
    for path in ("/jobs/q1", "/users/u1/jobs"):
        response = await client.post(path, {})
        check_error(response, 405, "method_not_allowed")
        assert "GET" in response.headers["allow"]


@pytest.mark.with_keys
async def test_jobs_of_another_user_are_refused(client: Client) -> None:
    """Reading: the credential must allow to subscribe to the room."""
    request = Request(client)
    await request.report(request.event("started"))
    paths = (f"/jobs/{request.id}", f"/users/{request.user}/jobs")
    other = client.showing(client.keys.token("other"))
    publisher = client.showing(client.keys.api_key)
    only_publishes = client.showing(client.keys.token(request.user, scope="broadcast"))
    for path in paths:
        for caller in (other, publisher, only_publishes):
            check_error(await caller.get(path), 403, "forbidden")
        for credential in (None, "nonsense"):
            check_error(await client.showing(credential).get(path), 401, "unauthorized")
    unknown = Request(client)
    check_error(await other.get(f"/jobs/{unknown.id}"), 403, "forbidden")
    mine = client.showing(client.keys.token(request.user))
    assert (await mine.get(paths[1])).status_code == 200
    check_error(await mine.get(paths[0]), 403, "forbidden")
    reader = client.showing(client.keys.token(rooms=[request.room]))
    assert (await reader.get(paths[0])).status_code == 200


async def test_version_1_sees_events_as_before(client: Client) -> None:
    """Jobs: a subscriber gets each lifecycle notification, with all its members."""
    request = Request(client)
    events = [request.event(event, at=at) for at, event in enumerate(("started", "completed"))]
    async with client.listen(request.room, after="earliest", v1=True) as listener:
        await listener.subscribed()
        await request.report(*events)
        for event in events:
            received = await listener.next()
            assert {name: received[name] for name in event} == event
    history = await client.get(room_path(request.room, "history"))
    assert len(decode(history.content)["notifications"]) == 2
