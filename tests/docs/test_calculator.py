"""The calculators compute what ``benchmarks.cost`` computes, and what "Scale out" says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from benchmarks import cost
from benchmarks.cost import Use
from website import reference

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations/calculator.md").read_text()
NODE = Path(sys.executable).with_name("node")

USES = [
    Use(),
    Use(users=100_000),
    Use(users=1_000_000),
    Use(users=50_000, jobs=60, session_minutes=5),
    Use(users=3_000, jobs=0),
    Use(users=200_000, notifications=2, idle_timeout_s=0),
    Use(users=7_000_000, notifications=40, notification_bytes=4_000, sessions=60, peak=2.5),
]


def calculated(uses: list[Use]) -> list[dict[str, str]]:
    """Return what the script of the page shows as costs."""
    return shown("synapCosts", [asdict(use) for use in uses])


def shown(function: str, numbers: list[dict[str, float]]) -> list[dict[str, str]]:
    """Return the results of a function of the script."""
    script = f"""
        require({json.dumps(str(reference.CALCULATOR))});
        const numbers = {json.dumps(numbers)};
        console.log(JSON.stringify(numbers.map(globalThis.{function})));
    """
    done = subprocess.run(
        [NODE, "--input-type=commonjs", "-e", script], capture_output=True, text=True, check=True
    )
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_results_are_those_of_the_model() -> None:
    names = ("peak", "cloudflare", "ably", "pusher", "machines")
    cells = [[costs[name] for name in names] for costs in calculated(USES)]
    model = [row.strip("| ").split(" | ")[1:] for row in cost.table(USES).splitlines()[2:]]
    assert cells == model


def test_results_are_those_of_the_page_about_cost() -> None:
    table = re.findall(r"^\| ([\d,]+) \| (.+) \|$", (ROOT / "docs/cost.md").read_text(), re.M)
    assert len(table) == 3
    found = calculated([Use(users=int(users.replace(",", ""))) for users, _ in table])
    for (users, cells), costs in zip(table, found, strict=True):
        names = ("peak", "cloudflare", "ably", "pusher", "machines")
        assert cells.split(" | ") == [costs[name] for name in names], users


def test_prices_are_current() -> None:
    script = reference.CALCULATOR.read_text()
    assert reference.with_prices(script) == script, "run: python -m website.reference"


def test_form_has_every_number_of_the_model_and_its_default() -> None:
    inputs = inputs_of("costs")
    assert list(inputs) == [each.name for each in fields(Use)]
    defaults = {**asdict(Use()), "users": 10_000}
    assert inputs == defaults


def test_sizes_are_those_of_the_example_of_the_page_about_scaling() -> None:
    (sizes,) = shown("synapSizes", [inputs_of("sizes") | {"tls": 0}])
    example = (ROOT / "docs/scale-out.md").read_text().partition("For example, ")[2]
    for text in ("100,000 users", "20,000 are connected", "20 notifications of 300 bytes", "200\n"):
        assert text in example
    assert "need two nodes for the load, so three to be able to lose one" in example
    assert sizes["nodes"] == "2 for the load, 3 to be able to lose one"
    assert ": 1.2 GB." in example
    assert sizes["valkey"].startswith("1.2 GB")


@pytest.mark.parametrize(("kept", "kilobytes"), [(1, 4.5), (9, 4.5), (20, 12), (40, 20)])
def test_size_of_a_room_is_the_one_that_was_measured(kept: int, kilobytes: float) -> None:
    numbers = {"connections": 0, "publishes_per_s": 0, "notification_bytes": 300, "tls": 0}
    rooms = 1_000_000
    (sizes,) = shown("synapSizes", [{**numbers, "rooms": rooms, "kept": kept}])
    total = float(sizes["valkey"].partition(" GB")[0]) * 1024**3
    assert total / rooms / 1024 == pytest.approx(kilobytes, rel=0.05)


def test_page_has_a_place_for_each_result() -> None:
    places = re.findall(r'data-result="(\w+)"', PAGE)
    results = [*calculated([Use()])[0], *shown("synapSizes", [inputs_of("sizes")])[0]]
    assert sorted(places) == sorted(results)


def inputs_of(form: str) -> dict[str, float]:
    """Return the defaults of the numbers of a form."""
    text = PAGE.partition(f'id="{form}"')[2].partition("</form>")[0]
    found = re.findall(r'<input name="(\w+)"[^>]* value="([\d.]+)"', text)
    return {name: float(value) for name, value in found}
