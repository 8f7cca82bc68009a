"""The commands of docs/cloudflare.md, as far as they work without an account."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.timeouts import TIMEOUT_S
from tests.support.workerd import WORKER, run_node

START_TIMEOUT_S = 2 * TIMEOUT_S


def test_deploy_dry_run_lists_its_actions() -> None:
    said = run_node("node_modules/wrangler/bin/wrangler.js", "deploy", "--dry-run", "--strict")
    for binding in (
        "env.NOTIFICATION_ROOM (NotificationRoom)",
        "env.CONNECTION_REGISTRY (ConnectionRegistry)",
    ):
        assert binding in said
    assert "warning" not in said.lower()


def test_generated_types_match_the_configuration() -> None:
    """``npm run types`` was run after the last change of ``wrangler.jsonc``."""
    script = json.loads((WORKER / "package.json").read_text())["scripts"]["types"]
    generated = (WORKER / "worker-configuration.d.ts").read_text()
    assert f"running `{script}`" in generated
    # A developer's own .dev.vars would be part of the types.
    run_node(
        "node_modules/wrangler/bin/wrangler.js", "types", "--check", f"--env-file={os.devnull}"
    )


def test_the_classes_are_made_with_sqlite() -> None:
    """A class that was once made without it can never have it."""
    text = (WORKER / "wrangler.jsonc").read_text()
    assert '"new_sqlite_classes": ["NotificationRoom", "ConnectionRegistry"]' in text
    assert "new_classes" not in text.replace("new_sqlite_classes", "")


def test_no_request_is_logged() -> None:
    """Its address may hold a token."""
    assert '"invocation_logs": false' in (WORKER / "wrangler.jsonc").read_text()


def test_wrangler_dev(tmp_path: Path) -> None:
    with _dev(tmp_path) as url:
        answer = httpx.post(
            f"{url}/rooms/user_1/broadcast",
            json={"type": "note.creation.completed", "data": {}},
            timeout=START_TIMEOUT_S,
        )
        assert answer.status_code == 200, answer.text
        history = httpx.get(f"{url}/rooms/user_1/history").json()
        assert [each["id"] for each in history["notifications"]] == [json.loads(answer.text)["id"]]


@contextlib.contextmanager
def _dev(folder: Path) -> Iterator[str]:
    bin_folder = Path(sys.executable).parent
    process = subprocess.Popen(
        [
            *(bin_folder / "node", "node_modules/wrangler/bin/wrangler.js", "dev"),
            *("--ip", "127.0.0.1", "--port", "0", "--persist-to", folder),
        ],
        cwd=WORKER,
        env={
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "WRANGLER_SEND_METRICS": "false",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # it starts workerd, which has to end with it
    )
    assert process.stdout is not None
    lines = process.stdout
    said: list[str] = []
    addresses: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in lines:
            said.append(line)
            if found := re.search(r"Ready on (http://\S+)", line):
                addresses.put(found[1])
        addresses.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        url = addresses.get(timeout=START_TIMEOUT_S)
        assert url is not None, "".join(said)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(10)
        lines.close()
