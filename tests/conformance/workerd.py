"""Our Worker on workerd, the runtime of Cloudflare's machines, started here."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

WORKER = Path(__file__).parents[2] / "worker"
END_TIMEOUT_S = 30.0

_MEMORY = Path("/dev/shm")  # noqa: S108 - a new folder of our own in it


@contextlib.contextmanager
def running(settings: Mapping[str, str]) -> Iterator[str]:
    """A Worker with these variables, on a free port. Yields its address.

    Whatever a client did to it, it has to live to the end, without a secret in its log.
    """
    bundle()
    # Each object is a file: a batch for a thousand rooms would wait a thousand times for a disk.
    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="synap-worker-", dir=memory) as folder,
        tempfile.TemporaryFile("w+", errors="replace") as log,
    ):
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [
                *(_workerd(), "serve", WORKER / "workerd.capnp", "--socket-addr=http=127.0.0.1:0"),
                *(f"--directory-path=rooms={folder}", f"--control-fd={writer}"),
            ],
            env={"PATH": os.environ["PATH"], **settings},
            pass_fds=[writer],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        os.close(writer)
        try:
            with os.fdopen(reader) as events:
                port = _port(events.readline())
                assert port is not None, f"workerd did not start:\n{_text_of(log)}"
                yield f"http://127.0.0.1:{port}"
                assert process.poll() is None, f"workerd has ended:\n{_text_of(log)[-10_000:]}"
        finally:
            process.terminate()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        said = _text_of(log)
        secrets = settings.get("API_KEYS", "").partition("=")[2], settings.get("TOKEN_SECRETS", "")
        assert not any(each and each in said for each in secrets), "the Worker wrote a key"


@functools.cache
def bundle() -> None:
    """Make ``worker/dist`` from the sources, with the tool that deploys them."""
    run_node("node_modules/wrangler/bin/wrangler.js", "deploy", "--dry-run", "--outdir", "dist")


def run_node(*arguments: str, timeout_s: float = 300.0) -> str:
    """Run a program of ``worker/node_modules``; returns what it wrote.

    Raises:
        AssertionError: it failed.
    """
    folder = Path(sys.executable).parent
    done = subprocess.run(
        [folder / "node", *arguments],
        cwd=WORKER,
        env={
            **os.environ,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "WRANGLER_SEND_METRICS": "false",
            "CI": "true",  # nothing asks
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout[-20_000:]}"
    return done.stdout


def _workerd() -> Path:
    found = sorted((WORKER / "node_modules/@cloudflare").glob("workerd-*/bin/workerd"))
    assert found, "worker/node_modules is missing: run scripts/setup dev"
    return found[0]


def _port(line: str) -> int | None:
    """From what workerd says when it listens; None: it has ended."""
    return int(json.loads(line)["port"]) if line else None


def _text_of(log: TextIO) -> str:
    log.seek(0)
    return log.read()
