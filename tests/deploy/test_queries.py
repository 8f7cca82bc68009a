"""The alerts, their tests and the dashboard query only metrics that a real server exports."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.samples import Sample

from synap_realtime.protocol.control import CloseCode

from .conftest import DEPLOY, Promtool, alerts
from .promql import grouping, selectors

TARGET = {"job", "instance"}
"""The labels that Prometheus itself puts on each series."""

OF_PROMETHEUS = {"up": TARGET, "ALERTS": {"alertname", "alertstate"}}

ONLY_LINUX = {
    "process_cpu_seconds_total", "process_max_fds", "process_open_fds",
    "process_resident_memory_bytes", "process_start_time_seconds",
}  # fmt: skip
"""prometheus-client reads them from /proc; elsewhere a server does not show them."""

REASONS = {code.name.lower() for code in CloseCode}


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Where, and the query, as Grafana would send it."""
    dashboard = json.loads((DEPLOY / "dashboard.json").read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    found += [(each["name"], each["expr"]) for each in dashboard["annotations"]["list"]]
    for where, query in found:
        yield where, query.replace("$__rate_interval", "4m").replace("$instance", ".+")


def all_queries() -> Iterator[tuple[str, str]]:
    for name, rule in alerts().items():
        yield name, rule["expr"]
    for group in yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]:
        for series in group["input_series"]:
            yield group["name"], series["series"]
        for test in group.get("promql_expr_test", ()):
            yield group["name"], test["expr"]
    yield from dashboard_queries()


def shown(samples: list[Sample]) -> dict[str, dict[str, set[str]]]:
    """By name: the labels, with the values that were seen."""
    found: dict[str, dict[str, set[str]]] = {}
    for sample in samples:
        labels = found.setdefault(sample.name, {})
        for label, value in sample.labels.items():
            labels.setdefault(label, set()).add(value)
    if sys.platform != "linux":
        found.update({name: {} for name in ONLY_LINUX})
    return found


def problems(where: str, query: str, known: dict[str, dict[str, set[str]]]) -> Iterator[str]:
    """What of a query no server shows."""
    asked = selectors(query)
    if not asked:
        yield f"{where}: no metric in {query}"
    possible = set(TARGET)
    for selector in asked:
        if selector.name in OF_PROMETHEUS:
            possible |= OF_PROMETHEUS[selector.name]
            continue
        if selector.name not in known:
            yield f"{where}: no metric {selector.name}"
            continue
        labels = known[selector.name]
        possible |= set(labels)
        for label in selector.labels - set(labels) - TARGET:
            yield f"{where}: {selector.name} has no label {label}"
        for label, value in selector.equal:
            # Not each reason can be had in a short life; a bucket's edge is a number, not a word.
            values = REASONS if label == "reason" else labels.get(label, {value})
            if label == "le":
                values = {edge.removesuffix(".0") for edge in labels["le"]}
            if label not in TARGET and value not in values:
                yield f"{where}: {selector.name} has no {label}={value}"
    for label in grouping(query) - possible:
        yield f"{where}: nothing has the label {label}"


def test_every_query_uses_exported_metrics(samples: list[Sample]) -> None:
    known = shown(samples)
    wrong = [problem for where, query in all_queries() for problem in problems(where, query, known)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("synap_realtime_conections", "no metric synap_realtime_conections"),
        ("rate(process_cpu_total[5m])", "no metric process_cpu_total"),
        ('synap_realtime_connections{kind="sse"}', "has no label kind"),
        ('synap_realtime_publishes_total{outcome="lost"}', "has no outcome=lost"),
        ('synap_realtime_server_disconnects_total{reason="slow"}', "has no reason=slow"),
        ("sum by (room) (synap_realtime_active_rooms)", "nothing has the label room"),
        ('x_bucket{le="0.5"}', "no metric x_bucket"),
        ("vector(1)", "no metric in"),
    ],
)
def test_invalid_query_is_detected(query: str, said: str, samples: list[Sample]) -> None:
    (problem,) = problems("here", query, shown(samples))
    assert said in problem


def test_every_query_of_the_dashboard_finds_something(
    samples: list[Sample], promtool: Promtool, tmp_path: Path
) -> None:
    """Prometheus itself evaluates them, over what a real server shows."""
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {"series": series_of(sample), "values": f"{sample.value:f}+1x10"}
                for sample in fed(samples)
            ],
            "promql_expr_test": [
                {
                    "expr": f"count({query}) > bool 0",
                    "eval_time": "10m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
                for _, query in dashboard_queries()
            ],
        }
    ]
    (tmp_path / "tests.yml").write_text(yaml.safe_dump({"tests": tests}))
    done = promtool("test", "rules", "tests.yml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def fed(samples: list[Sample]) -> list[Sample]:
    elsewhere = [] if sys.platform == "linux" else [Sample(name, {}, 1.0) for name in ONLY_LINUX]
    return [*samples, *elsewhere]


def series_of(sample: Sample) -> str:
    labels: dict[str, Any] = {**sample.labels, "job": "synap-realtime", "instance": "rooms-1"}
    inner = ", ".join(f"{label}={json.dumps(value)}" for label, value in labels.items())
    assert re.fullmatch(r"[\w:]+", sample.name)
    return f"{sample.name}{{{inner}}}"
