"""Catalog references: what a user may name, and which definition takes precedence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from synap_realtime import InvalidArgumentError, NoteCreated
from synap_realtime.jobs import JobType
from synap_realtime.jobs.job_types import NOTE_CREATION
from synap_realtime.types import build_catalog, load
from synap_realtime.types.catalog import Data


class Report(BaseModel):
    url: str


class Other(BaseModel):
    pass


REPORT = JobType("report.creation", payload=Report)


def test_ours_are_there() -> None:
    catalog = build_catalog({})
    assert catalog["note.creation.completed"] == Data(NoteCreated, is_result=True)
    assert not catalog["note.creation.failed"].is_result
    assert len(catalog) == 5 * 7


def test_accepts_a_job_type_a_mapping_and_lists() -> None:
    catalog = build_catalog({"a": [REPORT, [{"x.y": Other, "x.z": None}]]})
    assert list(catalog)[-9:] == [
        *(f"report.creation.{word}" for word in ("started", "progress", "delta")),
        "report.creation.retrying",
        *(f"report.creation.{word}" for word in ("completed", "failed", "cancelled")),
        "x.y",
        "x.z",
    ]
    assert catalog["report.creation.completed"] == Data(Report, is_result=True)
    assert catalog["x.y"] == Data(Other)


def test_user_defined_job_type_overrides_the_builtin() -> None:
    catalog = build_catalog({"a": JobType("note.creation", payload=Report)})
    assert catalog[NOTE_CREATION.completed].payload is Report
    assert catalog[NOTE_CREATION.failed] == build_catalog({})[NOTE_CREATION.failed]


def test_a_type_has_one_payload() -> None:
    assert build_catalog({"a": REPORT, "b": REPORT})
    with pytest.raises(InvalidArgumentError, match=r"^b: 'x.y' already has another payload"):
        build_catalog({"a": {"x.y": Report}, "b": [{"x.y": Other}]})


@pytest.mark.parametrize("wrong", [Report, "report.creation", 3, None, [3]])
def test_other_values_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidArgumentError, match="expected a JobType, a mapping"):
        build_catalog({"a": wrong})


@pytest.mark.parametrize("type", ["", "synap.x", "x" * 129, 3])
def test_rejects_types_that_no_notification_can_have(type: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^a: "):
        build_catalog({"a": {type: Report}})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_a_module_of_the_working_directory_is_found(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine_a.py").write_text("class Outer:\n    X = {}\nprint('noise')\n")
    assert load("mine_a:Outer.X") == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "reference", "problem"),
    [
        ("", "mine_b", "expected module:NAME"),
        ("", ":X", "expected module:NAME"),
        ("", "mine_b:", "expected module:NAME"),
        ("", "mine_c:X", "cannot import mine_c: ModuleNotFoundError"),
        ("", "..mine_b:X", "cannot import ..mine_b: TypeError"),
        ("", "mine_b:X", "mine_b has no X"),
        ("1 / 0", "mine_d:X", "cannot import mine_d: ZeroDivisionError: division by zero"),
        ("import gone", "mine_e:X", "cannot import mine_e: ModuleNotFoundError: .*'gone'"),
        ("(", "mine_f:X", "cannot import mine_f: SyntaxError"),
        ("exit(3)", "mine_g:X", "cannot import mine_g: SystemExit: 3"),
    ],
)
def test_invalid_reference_is_explained(
    here: Path, text: str, reference: str, problem: str
) -> None:
    (here / f"{reference.partition(':')[0].strip('.') or 'x'}.py").write_text(text)
    (here / "mine_c.py").unlink(missing_ok=True)
    with pytest.raises(InvalidArgumentError, match=problem):
        load(reference)
