"""A missing extra is an error that names the package and the install command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from synap_realtime.extras import lacks
from tests.support.timeouts import TIMEOUT_S


def run_without(modules: str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process in which packages (comma-separated) cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({modules.split(',')}))"
    return subprocess.run(
        [sys.executable, "-c", f"{hide}; {code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * TIMEOUT_S,
    )


INNGEST = "synap_realtime.integrations.inngest"
TOKEN_SECRET = "s" * 40


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("inngest", f"from {INNGEST} import create_function", "inngest"),
        ("inngest", f"from {INNGEST} import accepted", "inngest"),
        ("inngest", f"import {INNGEST}.functions", "inngest"),
        ("starlette", f"from {INNGEST}.local import LocalInngest", "local"),
        ("cel", f"from {INNGEST}.local import expressions as e; e.evaluate('1')", "local"),
        ("celery", "import synap_realtime.integrations.celery", "celery"),
        ("taskiq", "import synap_realtime.integrations.taskiq", "taskiq"),
        ("prometheus_client", "from synap_realtime.server import create_app", "server"),
        (
            "websockets",
            "import synap_realtime as s; next(s.subscribe_sync('user_1'))",
            "subscriber",
        ),
        (
            "websockets",
            "import asyncio, synap_realtime as s; asyncio.run(anext(s.subscribe('user_1')))",
            "subscriber",
        ),
        ("jwt", f"import synap_realtime as s; s.mint_token('1', secret='{TOKEN_SECRET}')", "auth"),
    ],
)
def test_names_the_missing_package_and_the_install_command(
    missing: str, code: str, extra: str
) -> None:
    done = run_without(missing, code)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert missing in last
    assert f'pip install "synap-realtime[{extra}]"' in last


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("typer", ["token", "42"], "cli"),
        ("typer", ["serve", "--help"], "server"),
        ("typer", ["demo"], "demo"),
        ("prometheus_client", ["serve"], "server"),
        ("httptools", ["serve"], "server"),
        ("fastapi", ["demo"], "demo"),
        ("inngest", ["demo"], "demo"),
        ("cel", ["demo"], "demo"),
        ("jwt", ["token", "42"], "auth"),
        ("websockets", ["subscribe", "user_42"], "subscriber"),
        ("pythonjsonlogger", ["serve", "--port", "0", "--log-format", "json"], "server"),
    ],
)
def test_the_command_names_the_missing_package_in_one_line(
    missing: str, arguments: list[str], extra: str
) -> None:
    code = f"sys.argv[1:] = {arguments}; from synap_realtime.cli import main; main()"
    done = run_without(missing, code, REALTIME_TOKEN_SECRET=TOKEN_SECRET)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("synap-realtime: ")
    assert missing in done.stderr
    assert f'pip install "synap-realtime[{extra}]"' in done.stderr


def test_a_package_that_does_not_fit_is_to_be_upgraded() -> None:
    said = lacks("the Celery integration", ImportError("cannot import name 'x'"), "celery")
    assert said == (
        "the Celery integration cannot be loaded (cannot import name 'x'): "
        'pip install "synap-realtime[celery]" --upgrade'
    )


def test_an_import_error_of_our_own_code_is_not_blamed_on_a_missing_package() -> None:
    done = run_without("synap_realtime.jobs.extent", "import synap_realtime.integrations.celery")
    assert "synap_realtime.jobs.extent" in done.stderr.splitlines()[-1]
    assert "pip install" not in done.stderr


def test_under_uvx_the_whole_command_is_named() -> None:
    code = "sys.argv[1:] = ['demo', '--once']; from synap_realtime.cli import main; main()"
    hide = "import os; os.environ.pop('VIRTUAL_ENV', None)"
    done = run_without("fastapi", f"{hide}; {code}", UV="/usr/bin/uv")
    (line,) = done.stderr.splitlines()
    assert line.startswith('synap-realtime: synap-realtime demo needs fastapi: uvx --from "')
    assert line.endswith('[demo]" synap-realtime demo')
