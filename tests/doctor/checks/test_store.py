"""Findings about the store, which the doctor only reads."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from synap_realtime.doctor.checks.store import FEW_BYTES, TOO_FEW_BYTES, rate_space
from synap_realtime.doctor.finding import Finding
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.program import Program
from tests.support.stores import ids, publish

from ..conftest import diagnosis

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rooms.db"


def contents(folder: Path) -> dict[str, bytes]:
    files = folder.iterdir() if folder.is_dir() else ()
    # Not the index of the log: SQLite rebuilds it from the log.
    return {file.name: file.read_bytes() for file in files if not file.name.endswith("-shm")}


async def said_of(path: Path) -> Finding:
    """What is said. Nothing beside the file, and nothing in it, is changed."""
    before = contents(path.parent)
    found = (await diagnosis(store=f"sqlite:///{path}"))["store"]
    assert contents(path.parent) == before
    return found


async def test_memory_is_lost_at_a_restart() -> None:
    found = (await diagnosis(store="memory://"))["store"]
    assert (found.level, "restart" in found.found) == ("ok", True)


@pytest.mark.parametrize(
    "url", ["postgres://u:hunter22@h", "sqlite:///:memory:", "sqlite:///", "x"]
)
async def test_reports_a_store_that_does_not_exist(url: str) -> None:
    found = (await diagnosis(store=url))["store"]
    assert (found.level, "hunter22" in found.found) == ("fail", False)


async def test_does_not_create_a_missing_file(path: Path) -> None:
    found = await said_of(path)
    assert (found.level, "does not exist yet" in found.found) == ("ok", True)


async def test_a_file_at_rest_is_checked(path: Path) -> None:
    store = SqliteStore(path)
    await publish(store, "n1")
    await store.close()
    found = await said_of(path)
    assert (found.level, "quick check" in found.found) == ("ok", True), found


async def test_a_running_server_is_not_disturbed(path: Path) -> None:
    store = SqliteStore(path)
    try:
        await publish(store, "n1")
        found = (await diagnosis(store=f"sqlite:///{path}"))["store"]
        assert (found.level, "in use by a running server" in found.found) == ("ok", True)
        await publish(store, "n2")
        assert await ids(store) == ["n1", "n2"]
    finally:
        await store.close()


async def test_after_a_crash_the_log_is_left_to_the_next_server(path: Path) -> None:
    server = Program(f"sqlite:///{path}")
    try:
        await server.start()
        note = {"type": "a", "data": {}, "id": "n1"}
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.post("/rooms/user_1/broadcast", json=note)).status_code == 200
            await server.kill()
            assert Path(f"{path}-wal").stat().st_size
            assert (await said_of(path)).level == "ok"
            await server.start()
            assert "n1" in (await client.get("/rooms/user_1/history")).text
    finally:
        await server.kill()


async def test_a_damaged_file(path: Path) -> None:
    store = SqliteStore(path)
    for number in range(20):
        await publish(store, f"n{number}", size=5000)
    await store.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 40_000)
    assert (await said_of(path)).level == "fail"


async def test_reports_foreign_files(path: Path) -> None:
    path.write_text("no database, but long enough to be taken for one" * 100)
    assert (await said_of(path)).level == "fail"
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE meta (name, value)")
        other.execute("PRAGMA user_version=1")
    assert (await said_of(path)).level == "fail"
    path.unlink()
    with closing(sqlite3.connect(path)) as older:
        older.execute("CREATE TABLE meta (name, value)")
        older.execute("INSERT INTO meta VALUES ('epoch', 'e')")
        older.executescript("PRAGMA application_id=1398361680; PRAGMA user_version=1")
    found = await said_of(path)
    assert (found.level, "an older version" in found.found) == ("fail", True)
    path.unlink()
    path.mkdir()
    assert (await diagnosis(store=f"sqlite:///{path}"))["store"].level == "fail"


async def test_reports_a_missing_directory(path: Path) -> None:
    found = await said_of(path.parent / "none" / "rooms.db")
    assert (found.level, "mkdir -p" in found.advice) == ("fail", True)


@pytest.fixture
def foreign_folder() -> Iterator[Path]:
    """Where this process may not write, even if root runs the tests."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)
            Path(name).chmod(0o755)


async def test_a_directory_that_may_not_be_written(foreign_folder: Path) -> None:
    found = await said_of(foreign_folder / "rooms.db")
    assert (found.level, "may not write" in found.found) == ("fail", True)


def test_how_much_space_will_do() -> None:
    folder = Path("/var")
    assert rate_space(FEW_BYTES, folder).level == "ok"
    assert rate_space(FEW_BYTES - 1, folder).level == "warn"
    assert rate_space(TOO_FEW_BYTES - 1, folder).level == "fail"


async def test_skips_a_custom_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_WORKERS", "2")
    found = (await diagnosis(store="tests.support.custom_stores:dying"))["store"]
    assert (found.level, "is not checked" in found.found) == ("ok", True)


async def test_workers_need_a_store_that_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAP_REALTIME_WORKERS", "2")
    found = (await diagnosis())["store"]
    assert (found.level, "a memory store belongs to one process" in found.found) == ("fail", True)
