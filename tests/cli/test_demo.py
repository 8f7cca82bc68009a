"""``synap-realtime demo``. Its page is tested in tests/browser/test_example.py, its start from the
wheel in tests/release/test_wheel.py."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import httpx

from synap_realtime.demo.database import NotesDatabase
from synap_realtime.demo.storage import Folder
from synap_realtime.handlers import Message
from tests.support.command_line import COMMAND
from tests.support.credentials import SECRET
from tests.support.demo import Demo
from tests.support.timeouts import TIMEOUT_S


def run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demo with ``--once``; temporary files are made in ``folder``."""
    variables = {**os.environ, "TMPDIR": str(folder), **environment}
    return subprocess.run(
        [COMMAND, "demo", "--once", *options], env=variables,
        capture_output=True, text=True, timeout=3 * TIMEOUT_S, check=False,
    )  # fmt: skip


def test_removes_its_temporary_folder(tmp_path: Path) -> None:
    done = run(tmp_path, "--port", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 jobs ended as expected." in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_names_a_port_that_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = run(tmp_path, "--port", str(port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"synap-realtime: --port: {port} is in use, or may not be used;")
    assert len(done.stderr.splitlines()) == 1


def test_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(tmp_path, "--data", str(tmp_path / "file" / "in"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"synap-realtime: --data: cannot write to {tmp_path}/file/in: ")


def test_refuses_keys_which_its_page_does_not_have(tmp_path: Path) -> None:
    done = run(tmp_path, "--port", "0", SYNAP_REALTIME_TOKEN_SECRETS=SECRET)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "unset SYNAP_REALTIME_KEYS_FILE, SYNAP_REALTIME_TOKEN_SECRETS" in line
    assert SECRET not in line


def test_keeps_its_data_in_the_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run(tmp_path, "--data", str(data), "--port", "0").returncode == 0
    assert {path.name for path in data.iterdir()} >= {"files", "notes.sqlite", "rooms.db"}
    assert next(data.rglob("*.md")).read_text().startswith("# Milk")


def test_serves_no_file_from_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    demo = Demo(tmp_path / "demo")
    demo.start()
    try:
        for path in ("", "x", "../secret", "..%2F..%2Fsecret", "%2e%2e/secret", "x%00", "%2Fetc"):
            assert httpx.get(f"{demo.url}/files/{path}").status_code == 404, path
    finally:
        demo.stop()


async def test_the_folder_gives_only_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = Folder(tmp_path / "files", "http://app")
    assert await folder.put("a/b.md", b"first", "text/markdown") == "http://app/files/a/b.md"
    assert await folder.get("a/b.md") == b"first"
    for path in ("a", "../secret", "a/../../secret", "/etc/passwd", "a//b.md", "b\0", "x" * 9000):
        assert await folder.get(path) is None, path[:20]


async def test_the_database_keeps_what_it_has_over_a_restart(tmp_path: Path) -> None:
    database = NotesDatabase(tmp_path / "notes.sqlite")
    await database.append(message := Message("m1", "c1", "42", "user", "Hello"))
    await database.close()
    database = NotesDatabase(tmp_path / "notes.sqlite")
    assert list(await database.history("c1", "42")) == [message]
    assert list(await database.history("c1", "43")) == []
    await database.close()
