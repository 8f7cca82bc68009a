"""The list of known differences is accurate, or loading it is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conformance.differences import DifferencesError, check_names, load, reason_for

COLLECTED = [
    "test_http.py::test_ready",
    "test_rooms.py::test_a_kind[a]",
    "test_rooms.py::test_a_kind[a-b]",
]


def test_the_lines_of_one_kind_of_server(tmp_path: Path) -> None:
    file = tmp_path / "differences.toml"
    file.write_text('[worker]\n"test_http.py::test_ready" = "always ready"\n[other]\n')
    assert load("worker", file) == {"test_http.py::test_ready": "always ready"}
    assert load("other", file) == {}
    with pytest.raises(DifferencesError, match=r"no table \[nobody\]"):
        load("nobody", file)


@pytest.mark.parametrize("reason", ['""', '" "', "7", "{}"])
def test_a_reason_is_needed(tmp_path: Path, reason: str) -> None:
    file = tmp_path / "differences.toml"
    file.write_text(f'[worker]\n"test_http.py::test_ready" = {reason}\n')
    with pytest.raises(DifferencesError, match="expected a reason"):
        load("worker", file)


def test_a_line_means_a_case_or_one_variant() -> None:
    lines = {"test_http.py::test_ready": "r", "test_rooms.py::test_a_kind[a-b]": "k"}
    check_names(lines, COLLECTED)
    assert str(reason_for("test_http.py::test_ready", lines)).startswith("r (")
    assert str(reason_for("test_rooms.py::test_a_kind[a-b]", lines)).startswith("k (")
    assert reason_for("test_rooms.py::test_a_kind[a]", lines) is None
    assert reason_for("test_rooms.py::test_a_kind[a]", {"test_rooms.py::test_a_kind": "all"})


def test_a_case_that_is_not_run_now_is_known_too() -> None:
    check_names(["test_http.py::test_ready", "test_rooms.py::test_a_kind[a]"], [])


@pytest.mark.parametrize(
    "line",
    [
        "test_http.py::test_redy", "test_http.py", "test_nothing.py::test_ready", "test_ready",
        "../server/test_http.py::test_ready", "test_rooms.py::test_a_kind[z]", "",
    ],
)  # fmt: skip
def test_a_line_that_names_no_case_is_an_error(line: str) -> None:
    with pytest.raises(DifferencesError, match="names no case"):
        check_names([line], COLLECTED)
