"""``deploy/dashboard.json`` can be imported into any Grafana."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest

from .conftest import DEPLOY

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def test_is_bound_to_no_grafana_instance() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] == "synap-realtime"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert all(variable["current"] == {} for variable in variables.values())
    sources = [*PANELS, variables["instance"], *DASHBOARD["annotations"]["list"]]
    sources += [target for panel in PANELS for target in panel.get("targets", ())]
    chosen = {json.dumps(each["datasource"]) for each in sources if each.get("type") != "row"}
    assert chosen == {'{"type": "prometheus", "uid": "${datasource}"}'}


def test_lists_servers_by_the_version_metric() -> None:
    (instance,) = (v for v in DASHBOARD["templating"]["list"] if v["name"] == "instance")
    assert instance["query"]["query"] == "label_values(synap_realtime_build_info, instance)"
    for panel in PANELS:
        for target in panel.get("targets", ()):
            assert 'instance=~"$instance"' in target["expr"], panel["title"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_each_panel_has_a_description(panel: dict[str, Any]) -> None:
    if panel["type"] != "row":
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names) > 0


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)

    def apart(one: dict[str, int], other: dict[str, int]) -> bool:
        return (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )

    for one, other in combinations(PANELS, 2):
        assert apart(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


@pytest.mark.parametrize(
    "metric", ["active_rooms", "store_bytes", "store_rooms", "max_connections", "limit"]
)
def test_gauges_that_servers_count_alike_are_not_added_up(metric: str) -> None:
    """A room counts at each server that has subscribers of it, and a shared store at all."""
    for panel in PANELS:
        for target in panel.get("targets", ()):
            if f"synap_realtime_{metric}{{" in target["expr"]:
                assert "sum" not in target["expr"], panel["title"]


def test_shows_what_servers_that_share_a_store_count() -> None:
    text = json.dumps(PANELS)
    for name in (
        *("store_deaf_seconds_total", "store_unconfirmed_subscriptions", "store_reconnects_total"),
        *("store_failovers_total", "store_heals_total", "store_gaps_total"),
    ):
        assert f"synap_realtime_{name}" in text
