"""The cost calculator of the site computes what ``benchmarks.cost`` computes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

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
    """Return what the script of the page shows."""
    script = f"""
        require({json.dumps(str(reference.CALCULATOR))});
        const uses = {json.dumps([asdict(use) for use in uses])};
        console.log(JSON.stringify(uses.map(globalThis.synapCosts)));
    """
    done = subprocess.run(
        [NODE, "--input-type=commonjs", "-e", script], capture_output=True, text=True, check=True
    )
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_results_are_those_of_the_model() -> None:
    names = ("peak", "cloudflare", "ably", "pusher", "machines")
    shown = [[cells[name] for name in names] for cells in calculated(USES)]
    model = [row.strip("| ").split(" | ")[1:] for row in cost.table(USES).splitlines()[2:]]
    assert shown == model


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
    inputs = dict(re.findall(r'<input name="(\w+)"[^>]* value="([\d.]+)"', PAGE))
    assert list(inputs) == [each.name for each in fields(Use)]
    defaults = {**asdict(Use()), "users": 10_000}
    assert {name: float(value) for name, value in inputs.items()} == defaults


def test_page_has_a_place_for_each_result() -> None:
    places = re.findall(r'data-cost="(\w+)"', PAGE)
    assert sorted(places) == sorted(calculated([Use()])[0])
