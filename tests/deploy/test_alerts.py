"""``deploy/alerts.yml``: Prometheus accepts it, and each alert is tested firing and not firing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from .conftest import DEPLOY, Promtool, alerts


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
