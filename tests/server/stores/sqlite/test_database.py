"""Which files a SQLite store opens, and what it says about the others."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Publication
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.stores import ids, publish

USER = Room("user_1")


async def test_one_server_for_one_file(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        SqliteStore(path)
    await store.close()
    await SqliteStore(path).close()


async def test_a_file_is_one_file_under_all_its_names(path: Path) -> None:
    folder = path.with_name("other")
    folder.mkdir()
    link = folder / "link.db"
    link.symlink_to(path)
    store = SqliteStore(link)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        SqliteStore(path)
    await store.close()
    store = SqliteStore(path)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        SqliteStore(link)
    await store.close()
    (folder / "hard.db").hardlink_to(path)
    for name in (path, folder / "hard.db"):
        with pytest.raises(ConfigurationError, match="another name \\(a hard link\\)"):
            SqliteStore(name)
    (folder / "hard.db").unlink()
    await SqliteStore(path).close()
    circle = folder / "circle.db"
    circle.symlink_to(circle)
    with pytest.raises(ConfigurationError, match="choose another path"):
        SqliteStore(circle)


@pytest.mark.parametrize("was_there", [False, True])
async def test_only_its_owner_may_read_it(path: Path, was_there: bool) -> None:
    if was_there:
        path.touch()
        path.chmod(0o644)
    store = SqliteStore(path)
    await publish(store, "n0")
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name
    await store.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"this is a text, and no database, " * 100, "not a SQLite database"),
        ("CREATE TABLE theirs (x)", "another program's database"),
        (
            "PRAGMA application_id=1398361680; PRAGMA user_version=99; CREATE TABLE x (y)",
            r"--store .*rooms\.db was written by a newer version .* 99, .* upgrade this program",
        ),
        (
            "PRAGMA application_id=1398361680; PRAGMA user_version=1; CREATE TABLE x (y)",
            r"--store .*rooms\.db was written by an older version .* 1, .* move the file away",
        ),
    ],
)
def test_foreign_file_is_left_unchanged(path: Path, content: bytes | str, said: str) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with closing(sqlite3.connect(path)) as db:
            db.executescript(content)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=said):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_invalid_path_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no directory"):
        SqliteStore(tmp_path / "none" / "rooms.db")
    with pytest.raises(ConfigurationError, match="is a directory; choose another path"):
        SqliteStore(tmp_path)
    with pytest.raises(ConfigurationError, match="choose another path") as wrong:
        SqliteStore(tmp_path / ("x" * 300))
    assert str(wrong.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
def test_a_path_that_is_no_regular_file_is_refused(path: Path, kind: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "a named pipe":
            os.mkfifo(path)
        elif kind == "a socket":
            listener.bind(str(path))
        else:
            path.symlink_to("/dev/null")
        with pytest.raises(ConfigurationError, match=rf"--store .* is {kind}; choose another"):
            SqliteStore(path)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return ballast


def test_full_disk_at_start_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        with pytest.raises(ConfigurationError, match=r"--store .*rooms\.db .* full; free space"):
            SqliteStore(disk / "rooms.db")


async def test_full_disk_loses_and_duplicates_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls are kept whole or not at all, and kept again when there is space again."""
    with small_disk(tmp_path / "disk") as disk:
        store = SqliteStore(disk / "rooms.db")
        kept = ["n0"]
        await publish(store, "n0")
        ballast = fill(disk)
        refused = []
        for number in range(1, 200):
            batch = [
                Publication(USER, f"n{number}.{part}", json.dumps({"id": f"n{number}.{part}"}))
                for part in range(20)
            ]
            try:
                await store.publish(batch)
            except StoreUnavailableError:
                refused.append(batch)
            else:
                kept += [each.id for each in batch]
            if len(refused) == 5:
                break
        assert len(refused) == 5
        with pytest.raises(StoreUnavailableError):
            await store.check()
        assert await ids(store) == kept
        ballast.unlink()
        for batch in refused:
            receipts = await store.publish(batch)
            assert not any(receipt.duplicate for receipt in receipts)
            kept += [each.id for each in batch]
        assert await ids(store) == kept
        said = [r.levelname for r in caplog.records if r.message.startswith("store ")]
        assert said in (["ERROR", "WARNING"], ["ERROR"]), "once each"
        await store.close()
        store = SqliteStore(disk / "rooms.db")
        assert await ids(store) == kept
        await store.close()


async def test_damaged_file_is_reported_with_a_remedy(path: Path) -> None:
    await SqliteStore(path).close()
    whole = path.read_bytes()
    damages = {
        "half": whole[: len(whole) // 2],
        "no pages": whole[:4096] + b"\xff" * (len(whole) - 4096),
    }
    for content in damages.values():
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"is damaged .*; restore a copy") as wrong:
            SqliteStore(path)
        assert str(wrong.value).count(str(path)) == 1
    for statement in ("DELETE FROM meta", "DROP TABLE meta", "DELETE FROM sqlite_sequence"):
        path.write_bytes(whole)
        with closing(sqlite3.connect(path)) as db:
            db.executescript(statement)
        with pytest.raises(ConfigurationError, match=r"is damaged .*; restore a copy"):
            SqliteStore(path)
    path.write_bytes(whole)
    await SqliteStore(path).close()
