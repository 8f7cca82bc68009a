"""``synap-realtime generate-types`` as users run it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import COMMAND
from tests.support.timeouts import TIMEOUT_S

from .conftest import Compile

REPORTS = """
from pydantic import BaseModel, Field
from synap_realtime.jobs import JobType

class ReportCreated(BaseModel):
    "A report."
    url: str
    pages: int = Field(description="How many.")

REPORT = JobType("report.creation", payload=ReportCreated)
OTHERS = {"report.read": ReportCreated}
WRONG = {"report.read": int}
print("noise")
"""

USE = """
import type { SynapNotification } from "./types";
export const pages = (n: SynapNotification): number =>
  n.type === "report.creation.completed" && !n.data.truncated ? n.data.pages : 0;
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "reports.py").write_text(REPORTS)
    return tmp_path


def run(*arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [COMMAND, "generate-types", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=TIMEOUT_S,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_prints_typescript_of_builtin_and_user_types(app: Path, errors_of: Compile) -> None:
    code, types, said = run("reports:REPORT", "reports:OTHERS", cwd=app)
    assert (code, said) == (0, "noise\n")
    assert "//   synap-realtime generate-types reports:REPORT reports:OTHERS --out FILE\n" in types
    assert '  "report.read": ReportCreated;\n' in types
    assert errors_of(types=types, use=USE) == []
    _, ours, _ = run()
    assert errors_of(types=ours, use=USE) != []


def test_prints_json_schema(app: Path) -> None:
    code, out, _ = run("reports:REPORT", "--json-schema", cwd=app)
    assert code == 0
    schema = json.loads(out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$defs"]["ReportCreated"]["properties"]["pages"]["description"] == "How many."


def test_a_file_is_replaced_as_a_whole(app: Path) -> None:
    target = app / "real.ts"
    target.write_text("old")
    (app / "notifications.ts").symlink_to(target)
    assert run("--out", "notifications.ts", cwd=app) == (0, "", "")
    assert target.read_text(encoding="utf-8") == run()[1]
    assert (app / "notifications.ts").is_symlink()
    before = target.read_text(encoding="utf-8")
    assert run("reports:WRONG", "--out", "notifications.ts", cwd=app)[0] == 2
    assert target.read_text(encoding="utf-8") == before
    assert not list(app.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reports"], "reports: expected module:NAME"),
        (["gone:X"], "gone:X: cannot import gone"),
        (["reports:GONE"], "reports:GONE: reports has no GONE"),
        (["reports:ReportCreated"], "reports:ReportCreated: expected a JobType"),
        (["reports:WRONG"], "report.read: data must be a JSON object"),
        (["--out", "gone/x.ts"], "--out: cannot write gone/x.ts: No such file"),
        (["--out", "reports.py/x.ts"], "--out: cannot write reports.py/x.ts: Not a directory"),
        (["--out", "."], "--out: cannot write .: "),
    ],
)
def test_invalid_usage_is_a_one_line_error(app: Path, arguments: list[str], said: str) -> None:
    code, out, errors = run(*arguments, cwd=app)
    assert (code, out) == (2, "")
    last = errors.removeprefix("noise\n")
    assert said in last
    assert len(last.splitlines()) == 1


def test_closed_output_pipe_ends_it_quietly(app: Path) -> None:
    with subprocess.Popen(
        [COMMAND, "generate-types"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as it:
        assert it.stdout is not None
        assert it.stderr is not None
        it.stdout.close()
        assert it.stderr.read() == b""
