"""``deploy/prometheus.yml``: Prometheus accepts it, with the alerts beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from .conftest import DEPLOY, Promtool, alerts


def test_prometheus_accepts_the_configuration(promtool: Promtool, tmp_path: Path) -> None:
    """All of it, the credential's file too, which is somewhere else here."""
    credential = "/etc/prometheus/synap-realtime.token"
    text = (DEPLOY / "prometheus.yml").read_text()
    assert text.count(credential) == 1
    (tmp_path / "token").write_text("of Prometheus")
    (tmp_path / "prometheus.yml").write_text(text.replace(credential, "token"))
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    done = promtool("check", "config", "prometheus.yml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout
    assert f"{len(alerts())} rules found" in done.stdout
