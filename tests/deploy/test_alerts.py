"""``deploy/alerts.yml``: Prometheus accepts it, and each alert is tested firing and not firing."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from .conftest import DEPLOY, ROOT, Promtool, alerts

RUNBOOKS = ROOT / "docs/operations/runbooks.md"
SITE = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["site_url"]


def test_prometheus_accepts_the_rules(promtool: Promtool) -> None:
    done = promtool("check", "rules", "--lint-fatal", "alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


def test_the_rules_pass_their_unit_tests(promtool: Promtool) -> None:
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        pytest.param("vector(1) > 1", "name: {} fires", id="never"),
        pytest.param("vector(1)", 'ALERTS{{alertname="{}"', id="always"),
    ],
)
def test_an_alert_is_tested_both_ways(
    expression: str, said: str, promtool: Promtool, tmp_path: Path
) -> None:
    """One that never fires fails a unit test, and so does one that always fires."""
    shutil.copy(DEPLOY / "alerts_test.yml", tmp_path)
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["expr"] = expression
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    done = promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert done.returncode == 1
    failures = (done.stdout + done.stderr).replace("\\", "")
    assert [name for name in alerts() if said.format(name) not in failures] == []


@pytest.mark.parametrize("name", alerts())
def test_alert_has_a_duration_and_a_remedy(name: str) -> None:
    rule = alerts()[name]
    assert re.fullmatch(r"SynapRealtime[A-Z]\w+", name)
    assert re.fullmatch(r"[1-9]\d*m", rule["for"]), "a moment is no alert"
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert len(rule["annotations"]["summary"]) < 160
    assert len(rule["annotations"]["description"]) > 100


CRITICAL_WITH_MITIGATION = sorted(
    name
    for name, rule in alerts().items()
    if rule["labels"]["severity"] == "critical" and name != "SynapRealtimeAbsent"  # no harm
)


@pytest.mark.parametrize("name", CRITICAL_WITH_MITIGATION)
def test_runbook_of_a_critical_alert_limits_the_damage_before_the_cure(name: str) -> None:
    runbook = RUNBOOKS.read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert runbook.index("**First look.**") < runbook.index("**Mitigation.**")
    assert runbook.index("**Mitigation.**") < runbook.index("**Cure.**")


@pytest.mark.parametrize("name", alerts())
def test_alert_leads_to_its_runbook(name: str) -> None:
    page = f"{SITE}operations/runbooks.html"
    assert alerts()[name]["annotations"]["runbook_url"] == f"{page}#{name.lower()}"
    _, found, runbook = RUNBOOKS.read_text().partition(f"\n## {name}\n")
    assert found, "it has no heading"
    runbook = runbook.partition("\n## ")[0]
    for part in ("**Meaning.**", "**First look.**", "**Cure.**"):
        assert part in runbook, part


def test_each_runbook_is_of_an_alert() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS.read_text(), re.MULTILINE) == list(alerts())


def test_the_list_of_runbooks_has_the_severity_of_each_alert() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \|", RUNBOOKS.read_text(), re.MULTILINE)
    assert rows == [
        (name, name.lower(), rule["labels"]["severity"]) for name, rule in alerts().items()
    ]
