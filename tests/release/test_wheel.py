"""The wheel in environments of its own, without the repository: each entry point, each extra."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.timeouts import TIMEOUT_S

BIN = Path(sys.executable).parent
CONSTRAINTS = Path(__file__).parent.parent.parent / "requirements" / "dev.txt"


class Environment:
    """A virtual environment outside the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, in an empty folder."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.folder, env=_environment() | variables, capture_output=True, text=True,
            timeout=4 * TIMEOUT_S, check=False,
        )  # fmt: skip

    def has(self, package: str) -> bool:
        return self.run("python", "-c", f"import {package}").returncode == 0

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Run ``synap-realtime serve``; yield its URL."""
        server = subprocess.Popen(
            [self.bin / "synap-realtime", "serve", "--port", "0"],
            cwd=self.folder, env=_environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            yield next(found[1] for line in lines if (found := re.search(r"(http://\S+)", line)))
        finally:
            server.terminate()
            server.communicate(timeout=TIMEOUT_S)


def _environment() -> dict[str, str]:
    """Return an environment in which nothing leads to the repository."""
    names = ("HOME", "LANG", "PATH", "SSL_CERT_FILE", "XDG_CACHE_HOME")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {
        key: value for key, value in os.environ.items() if key.startswith(("PIP_", "UV_"))
    }


@pytest.fixture(scope="module")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    made: dict[str, Environment] = {}

    def _install(extras: str, *more: str) -> Environment:
        if extras not in made:
            folder = tmp_path_factory.mktemp("installed")
            made[extras] = Environment(folder)
            uv = BIN / "uv"
            subprocess.run(
                [uv, "venv", "-q", "--python", sys.executable, folder / "venv"], check=True
            )
            python = folder / "venv" / "bin" / "python"
            subprocess.run(
                [uv, "pip", "install", "-q", "--python", python, "-c", CONSTRAINTS,
                 f"{wheel}[{extras}]" if extras else wheel, *more],
                check=True, timeout=20 * TIMEOUT_S,
            )  # fmt: skip
        return made[extras]

    return _install


@pytest.fixture(scope="module")
def everything(install: Callable[..., Environment]) -> Environment:
    return install("all", "pytest")


def test_the_sdk_alone_installs_no_server_and_no_framework(
    install: Callable[[str], Environment],
) -> None:
    sdk = install("")
    assert sdk.run("python", "-c", "import synap_realtime").returncode == 0
    for package in ("celery", "inngest", "starlette", "taskiq", "typer", "uvicorn", "websockets"):
        assert not sdk.has(package), package


def test_the_sdk_alone_publishes(
    install: Callable[[str], Environment], everything: Environment
) -> None:
    code = """
from synap_realtime import broadcast_success_sync
print(broadcast_success_sync("1", "note.creation.completed", {}).success)
"""
    with everything.serving() as url:
        done = install("").run("python", "-c", code, REALTIME_URL=url)
    assert done.stdout == "True\n", done.stderr


def test_the_server_extra_has_the_command_and_nothing_that_serving_does_not_need(
    install: Callable[[str], Environment],
) -> None:
    server = install("server")
    with server.serving() as url:
        assert httpx.get(f"{url}/health").status_code == 200
    for package in ("starlette", "uvicorn", "websockets"):
        assert not server.has(package), package


def test_a_missing_extra_is_named_in_one_line(install: Callable[[str], Environment]) -> None:
    done = install("").run("synap-realtime", "serve")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert 'pip install "synap-realtime[' in line


@pytest.mark.parametrize("program", [("synap-realtime",), ("python", "-m", "synap_realtime")])
def test_publishes_and_subscribes(everything: Environment, program: tuple[str, ...]) -> None:
    with everything.serving() as url:
        sent = everything.run(
            *program, "publish", "user_1", "note.creation.completed", "--url", url
        )
        assert sent.returncode == 0, sent.stderr
        seen = everything.run(
            *program,
            "subscribe",
            "user_1",
            "--url",
            url,
            "--after",
            "earliest",
            "--count",
            "1",
            "--json",
        )  # fmt: skip
    assert json.loads(seen.stdout.splitlines()[-1])["type"] == "note.creation.completed"


def test_doctor_finds_no_fault(everything: Environment) -> None:
    with everything.serving() as url:
        done = everything.run("synap-realtime", "doctor", "--url", url)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pytest_loads_the_plugin(everything: Environment) -> None:
    (everything.folder / "test_it.py").write_text(
        "def test_it(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.has_plugin('synap_realtime')\n"
    )
    done = everything.run("python", "-m", "pytest", "-q", "test_it.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module",
    ["handlers", "integrations.celery", "integrations.inngest", "integrations.inngest.local",
     "integrations.inprocess", "integrations.taskiq", "server", "subscriber", "testing", "types"],
)  # fmt: skip
def test_all_brings_what_each_module_needs(everything: Environment, module: str) -> None:
    done = everything.run("python", "-c", f"import synap_realtime.{module}")
    assert done.returncode == 0, done.stderr
