"""Our Worker on workerd, the runtime of Cloudflare's network, started here."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

WORKER = Path(__file__).parents[2] / "worker"

_MEMORY = Path("/dev/shm")  # noqa: S108 - a new folder of our own in it


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A Worker that listens, and its keys."""

    url: str
    api_key: str
    token_secret: str


@contextlib.contextmanager
def running(settings: Mapping[str, str], port: int = 0) -> Iterator[str]:
    """A Worker with these variables, on a port of its own or this one. Yields its address.

    Whatever a client did to it, it has to live to the end, without a secret in its log.
    """
    # Each object is a file: a batch for a thousand rooms would wait a thousand times for a disk.
    memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="synap-worker-", dir=memory) as folder,
        Workerd(settings, Path(folder), port) as workerd,
    ):
        workerd.start()
        yield workerd.url


class Workerd:
    """A process of workerd with our Worker, through all its lives.

    Args:
        settings: the Worker's variables; see docs/cloudflare.md.
        folder: what the rooms keep; it outlives the process.
        port: 0 is a free one, which stays the same in each life.

    Attributes:
        url: where it listens, from its first life on.
        pid: of the life that it is in.
    """

    def __init__(self, settings: Mapping[str, str], folder: Path, port: int = 0) -> None:
        self.url = ""
        self.pid = 0
        self._settings = settings
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        bundle()
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        return self

    def start(self) -> None:
        """Begin a life; returns when it listens."""
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [
                *(_workerd(), "serve", WORKER / "workerd.capnp", f"--control-fd={writer}"),
                f"--socket-addr=http=127.0.0.1:{self._port}",
                f"--directory-path=rooms={self._folder}",
            ],
            env={"PATH": os.environ["PATH"], **self._settings},
            pass_fds=[writer],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._process, self.pid = process, process.pid
        os.close(writer)
        with os.fdopen(reader) as events:
            port = _port(events.readline())
        assert port is not None, f"workerd did not start:\n{_text_of(self._log)}"
        self._port = port
        self.url = f"http://127.0.0.1:{port}"

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._log:
            code = self._end()
            said = _text_of(self._log)
        if exc is None:
            assert code is None, f"workerd has ended:\n{said[-10_000:]}"
        keys = self._settings.get("API_KEYS", "").partition("=")[2]
        secrets = keys, self._settings.get("TOKEN_SECRETS", "")
        assert not any(each and each in said for each in secrets), "the Worker wrote a key"

    def _end(self) -> int | None:
        """Returns with which code it had already ended; None: it had not."""
        if self._process is None:
            return None
        code = self._process.poll()
        self.kill()  # on SIGTERM it would wait until every client has gone
        return code


@functools.cache
def bundle() -> None:
    """Make ``worker/dist`` from the sources, with the tool that deploys them.

    Others may be reading it: each file is there, old or new.
    """
    target = WORKER / "dist"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as folder:
        wrangler = "node_modules/wrangler/bin/wrangler.js"
        run_node(wrangler, "deploy", "--dry-run", "--outdir", folder)
        for made in Path(folder).iterdir():
            made.replace(target / made.name)


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
