"""The arithmetic of benchmarks/cost.py, and the table in docs/cost.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cost import Use, ably, cloudflare, cloudflare_total, machines, pusher, table

ROOT = Path(__file__).parents[2]
PAID = {
    "worker_requests": {"included": 0, "per_million": 0.30},
    "worker_cpu_ms": {"included": 0, "per_million": 0},
    "object_requests": {"included": 0, "per_million": 0.15},
    "object_gb_s": {"included": 0, "per_million": 12.50},
    "rows_read": {"included": 0, "per_million": 0},
    "rows_written": {"included": 0, "per_million": 1.00},
    "data_points": {"included": 0, "per_million": 0.25},
    "stored_gb": {"included": 0, "per_million": 0},
    "websocket_messages_per_request": 20,
    "object_gb": 0.125,
}


def test_by_hand() -> None:
    """One million jobs of one notification, without subscribers."""
    use = Use(users=1_000_000, jobs=1, notifications=1, sessions=0)
    meters = cloudflare(use, PAID)
    assert meters["worker_requests"] == pytest.approx(0.30)
    # Two rooms for each, an ack is a twentieth of a request, four alarms each.
    assert meters["object_requests"] == pytest.approx(0.15 * (2 + 0.05 + 8))
    # Two rooms: 7 to create, 2 for the notification, 1 to delete it, 1 for the record, 1 to delete
    # it, 4 when the log has expired, 4 to delete the room; 1 ack.
    assert meters["rows_written"] == pytest.approx(2 * (7 + 2 + 1 + 1 + 1 + 4 + 4) + 1)
    # Awake 11 million times, 10 ms, an eighth of a GB: 13,750 GB-s.
    assert meters["object_gb_s"] == pytest.approx(13_750 / 1e6 * 12.50)
    assert meters["data_points"] == pytest.approx(0.25 * 2)


def test_progress_is_folded() -> None:
    """The keys of a run are closed and deleted, and each room has two more tables."""
    two, three = (
        cloudflare(Use(users=1_000_000, jobs=1, notifications=number, sessions=0), PAID)
        for number in (2, 3)
    )
    difference = three["rows_written"] - two["rows_written"]
    assert difference == pytest.approx(2 * (2 + 1 + 1 + 2 + 5) + 1)


def test_checks_for_idle_connections_once_a_minute() -> None:
    """A ping is 15 s old on average at a check, and the next check is 75 s after the ping."""
    checks = [
        cloudflare(
            Use(users=1000, jobs=0, sessions=1, session_minutes=1000, idle_timeout_s=s), PAID
        )
        for s in (75, 0)
    ]
    difference = checks[0]["rows_written"] - checks[1]["rows_written"]
    assert difference == pytest.approx(1_000_000 / 1e6)


def test_included_usage_costs_nothing() -> None:
    assert cloudflare_total(Use(users=100)) == 5.0


def test_more_users_never_cost_less() -> None:
    totals = [cloudflare_total(Use(users=users)) for users in (1, 10**3, 10**5, 10**6, 10**7)]
    assert totals == sorted(totals)


def test_disabled_idle_checks_are_cheaper() -> None:
    assert cloudflare_total(Use(10**6, idle_timeout_s=0)) < cloudflare_total(Use(10**6))


def test_peak_connections() -> None:
    """30 days have 43,200 minutes."""
    assert Use(users=43_200, sessions=1, session_minutes=1, peak=5).peak_connections == 5


def test_plans() -> None:
    assert pusher(Use(users=1000)) == (0.0, "Sandbox")
    assert pusher(Use(users=10**7)) is None
    found = ably(Use(users=10**7))
    assert found is None
    assert machines(Use(users=10**6))[1] == 2


def test_docs_contain_the_printed_table() -> None:
    printed = table([Use(users=users) for users in (1000, 100_000, 1_000_000)])
    assert printed in (ROOT / "docs/cost.md").read_text()


def test_own_numbers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cost", "--users", "50000", "--idle-timeout-s", "0"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "| 50,000 |" in done.stdout
