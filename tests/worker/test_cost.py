"""The arithmetic of benchmarks/cost.py, and that docs/cost.md says what it prints."""

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
    """One million jobs of one notification, nobody stays to listen."""
    use = Use(users=1_000_000, jobs=1, notifications=1, sessions=0)
    meters = cloudflare(use, PAID)
    assert meters["worker_requests"] == pytest.approx(0.30)
    # Two rooms for each, an ack is a twentieth of a request, two alarms each.
    assert meters["object_requests"] == pytest.approx(0.15 * (2 + 0.05 + 4))
    # Two rooms: 5 to make one, 2 for the notification, 1 to forget it, 4 to let go; 1 for an ack.
    assert meters["rows_written"] == pytest.approx(2 * (5 + 2 + 1 + 4) + 1)
    # 7 million times awake, 10 ms, an eighth of a GB: 8,750 GB-s.
    assert meters["object_gb_s"] == pytest.approx(8_750 / 1e6 * 12.50)
    assert meters["data_points"] == pytest.approx(0.25 * 2)


def test_a_look_comes_a_minute_after_the_last_one() -> None:
    """A ping is 15 s old on average when the object looks, and 75 s after it it looks again."""
    looks = [
        cloudflare(
            Use(users=1000, jobs=0, sessions=1, session_minutes=1000, idle_timeout_s=s), PAID
        )
        for s in (75, 0)
    ]
    difference = looks[0]["rows_written"] - looks[1]["rows_written"]
    assert difference == pytest.approx(1_000_000 / 1e6)


def test_what_is_included_costs_nothing_more() -> None:
    assert cloudflare_total(Use(users=100)) == 5.0


def test_more_users_never_cost_less() -> None:
    totals = [cloudflare_total(Use(users=users)) for users in (1, 10**3, 10**5, 10**6, 10**7)]
    assert totals == sorted(totals)


def test_not_looking_for_silent_connections_is_cheaper() -> None:
    assert cloudflare_total(Use(10**6, idle_timeout_s=0)) < cloudflare_total(Use(10**6))


def test_at_the_same_time() -> None:
    """30 days have 43,200 minutes."""
    assert Use(users=43_200, sessions=1, session_minutes=1, peak=5).at_once == 5


def test_plans() -> None:
    assert pusher(Use(users=1000)) == (0.0, "Sandbox")
    assert pusher(Use(users=10**7)) is None
    found = ably(Use(users=10**7))
    assert found is None
    assert machines(Use(users=10**6))[1] == 2


def test_the_page_says_what_the_script_prints() -> None:
    printed = table([Use(users=users) for users in (1000, 100_000, 1_000_000)])
    assert printed in (ROOT / "docs/cost.md").read_text()


def test_own_numbers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cost", "--users", "50000", "--idle-timeout-s", "0"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "| 50,000 |" in done.stdout
