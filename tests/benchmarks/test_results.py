"""What is missed is computed from the measurements; the documents quote no other figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks.results import one_table, what_is_missed
from benchmarks.rounds import Result, Stat
from benchmarks.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Decision records keep the figures of their time."""

MEASURED = re.compile(r"Measured\b")
FIGURE = re.compile(r"\d[\d.,]* (?:µs|times (?:the|as|Centrifugo|nchan|ws|Bun)\b)")
CELL = re.compile(r"\d[\d.,]*(?: (?:to \d[\d.,]* )?(?:µs|ms|KB|MB|GB))?")


def result(name: str, **values: tuple[float, ...]) -> Result:
    stats = {server: Stat.of(each) for server, each in values.items()}
    return Result(name, f"{name}, µs", stats)


def test_a_target_that_is_missed_is_listed_with_the_difference() -> None:
    results = [
        result("publish", ours=(60, 90, 90), centrifugo=(60, 60, 60), limit=(15, 15, 15)),
        result("replay", ours=(3, 4, 5)),
        result("batch", ours=(10, 10, 10)),
        result("sqlite", ours=(15_000,)),
    ]
    targets = [
        Target("publish", 0.75, "centrifugo"),
        Target("replay", 6.0),
        Target("batch", 1.0, "ws"),
        Target("sqlite", 20_000, is_least=True),
        Target("publish", 20, "replay"),
        Target("of a scenario that was not run", 1),
    ]
    assert what_is_missed(results, targets) == (
        "| | target | measured | missed by |\n"
        "| --- | --- | --- | --- |\n"
        "| publish, µs, times Centrifugo 6.9.1 | at most 0.75 | 1.50 | 100 % too high |\n"
        "| sqlite, µs | at least 20,000 | 15,000 | 25 % too low |\n"
        "| publish, µs, times replay, µs | at most 20 | 22.5 | 12 % too high |\n"
        "\n"
        "Reached: replay, µs: 4 (at most 6).\n"
        "\n"
        "Not measured: batch, µs, times ws on Node."
    )


def test_the_table_has_a_row_for_each_measurement_and_names_what_is_missing() -> None:
    missing = result("replay", ours=(3, 4, 5))
    missing.notes["centrifugo"] = "Centrifugo 6.9.1 is not installed: run scripts/bench"
    publish = result("publish", ours=(60, 90, 90), centrifugo=(60, 60, 60), limit=(15, 15, 30))
    publish.load_busy = 42.0
    text = one_table([publish, missing])
    assert "| publish, µs | 90 | **1.50** (1.00 to 1.50) | **4.00** (3.00 to 6.00) |" in text
    assert "| 60 | 15 | 42 % |" in text
    assert "| replay, µs | 4 | | | ? | | |" in text
    assert text.endswith("Centrifugo 6.9.1: Centrifugo 6.9.1 is not installed: run scripts/bench.")


def test_each_target_is_of_a_measurement_in_the_results() -> None:
    text = command_line.RESULTS.read_text()
    assert "### What is missed" in text
    assert len({(each.result, each.over) for each in TARGETS}) == len(TARGETS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_a_document_quotes_no_figure_that_is_not_in_the_results(document: Path) -> None:
    results = command_line.RESULTS.read_text()
    for figure in figures(document.read_text()):
        assert figure in results, f"{document.name}: {figure}"


def figures(text: str) -> set[str]:
    """Return the figures with a unit that only a measurement has, and the cells of tables that
    follow the word "Measured".
    """
    found = set(FIGURE.findall(text))
    is_measured = False
    for block in text.split("\n\n"):
        if not block.startswith("|"):
            is_measured = bool(MEASURED.search(block))
        elif is_measured:
            cells = [cell for line in block.splitlines()[2:] for cell in line.split("|")[2:]]
            found.update(figure for cell in cells for figure in CELL.findall(cell))
    return found
