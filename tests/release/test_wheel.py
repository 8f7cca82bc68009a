"""The wheel in environments of its own, without the repository: each entry point, each extra."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.timeouts import TIMEOUT_S

from .environments import BIN, Environment


@contextmanager
def serving(environment: Environment) -> Iterator[str]:
    """Run ``synap-realtime serve``; yield its URL."""
    server = subprocess.Popen(
        [environment.bin / "synap-realtime", "serve", "--port", "0"],
        cwd=environment.folder, env=environment.variables(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        yield next(found[1] for line in lines if (found := re.search(r"(http://\S+)", line)))
    finally:
        server.terminate()
        server.communicate(timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def install(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    made: dict[str, Environment] = {}

    def _install(extras: str, *more: str) -> Environment:
        if extras not in made:
            made[extras] = Environment(tmp_path_factory.mktemp("installed"))
            made[extras].install(f"{wheel}[{extras}]" if extras else wheel, *more)
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
    with serving(everything) as url:
        done = install("").run("python", "-c", code, REALTIME_URL=url)
    assert done.stdout == "True\n", done.stderr


def test_the_server_extra_has_the_command_and_nothing_that_serving_does_not_need(
    install: Callable[[str], Environment],
) -> None:
    server = install("server")
    with serving(server) as url:
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
    with serving(everything) as url:
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
    with serving(everything) as url:
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


def test_the_demo_extra_runs_the_whole_system(install: Callable[[str], Environment]) -> None:
    demo = install("demo")
    for package in ("celery", "obstore", "pydantic_ai", "sqlalchemy", "taskiq"):
        assert not demo.has(package), package
    done = demo.run("synap-realtime", "demo", "--once", "--port", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 jobs ended as expected." in done.stdout
    assert [path.name for path in demo.folder.iterdir()] == ["venv"], "it leaves nothing behind"


def test_the_demo_serves_its_page_and_stops_at_ctrl_c(
    install: Callable[[str], Environment],
) -> None:
    process = install("demo").start("python", "-m", "synap_realtime", "demo", "--port", "0")
    try:
        assert process.stdout is not None
        found = (re.search(r"^Open (\S+)\. Ctrl-C", line) for line in process.stdout)
        url = next(match[1] for match in found if match)
        assert "/page/app.js" in httpx.get(url).text
        assert httpx.get(f"{url}/page/app.js").status_code == 200
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()


def uvx(folder: Path, source: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command by ``uvx --from source``, in an empty folder and with an empty HOME."""
    variables = Environment.variables_of(folder) | {"HOME": str(folder / "home")}
    variables.pop("XDG_CACHE_HOME", None)
    working = folder / "working"
    working.mkdir()
    return subprocess.run(
        [BIN / "uvx", "--python", sys.executable, "--from", source, *command],
        cwd=working, env=variables, capture_output=True, text=True, timeout=20 * TIMEOUT_S,
        check=False,
    )  # fmt: skip


def test_uvx_runs_the_demo_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    done = uvx(tmp_path, f"{wheel}[demo]", "synap-realtime", "demo", "--once", "--port", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 jobs ended as expected." in done.stdout
    assert list((tmp_path / "working").iterdir()) == []


def test_uvx_without_the_extra_names_the_command_that_has_it(wheel: Path, tmp_path: Path) -> None:
    done = uvx(tmp_path, str(wheel), "synap-realtime", "demo")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("synap-realtime: ")
    assert line.endswith(f': uvx --from "{wheel}[demo]" synap-realtime demo')


def test_the_demo_without_its_extra_says_so_in_one_line(
    install: Callable[[str], Environment],
) -> None:
    done = install("server").run("synap-realtime", "demo")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert 'pip install "synap-realtime[demo]"' in line
