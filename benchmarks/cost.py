"""Estimate the monthly cost of a number of users: Durable Objects, Pusher, Ably, your own machine.

::

    $ python -m benchmarks.cost
    | users a month | at peak | Durable Objects | Ably | Pusher | machines |
    | --- | --- | --- | --- | --- | --- |
    | 1,000 | 35 | $5 | $30 (Standard) | $0 (Sandbox) | $40 (1) |
    …

    $ python -m benchmarks.cost --users 50000 --jobs 60 --session-minutes 5

The prices are in ``prices.toml``, with their sources and dates. The work of the Worker for each
event was counted in ``worker/src/stores`` and ``worker/src/auth/registry.ts``, and the rows
that a statement writes are those that workerd reports (``rowsWritten``). No bill has confirmed the
result yet.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

PRICES = tomllib.loads(Path(__file__).with_name("prices.toml").read_text())
MINUTES = 30 * 24 * 60
"""Minutes of a month."""


@dataclass(frozen=True, slots=True)
class Use:
    """How an app is used.

    Attributes:
        users: users a month.
        jobs: jobs of a user, a month.
        notifications: notifications of a job: started, progress, completed.
        notification_bytes: size of a notification as JSON.
        sessions: tabs that a user opens, a month.
        session_minutes: how long a tab stays open, subscribed to the user's room.
        peak: how many times more users than on average are connected at peak.
        idle_timeout_s: interval of the checks for idle connections (``IDLE_TIMEOUT_S``); 0: none.
    """

    users: int = 1000
    jobs: int = 20
    notifications: int = 3
    notification_bytes: int = 500
    sessions: int = 20
    session_minutes: float = 15
    peak: float = 5
    idle_timeout_s: float = 75

    @property
    def published(self) -> float:
        """Return the notifications a month; each goes to the user's room and the request's."""
        return self.users * self.jobs * self.notifications

    @property
    def connected_minutes(self) -> float:
        return self.users * self.sessions * self.session_minutes

    @property
    def peak_connections(self) -> int:
        """Return the number of connections at peak."""
        return math.ceil(self.connected_minutes / MINUTES * self.peak)


# Rows that the Worker writes, including those of a new table, an index and the alarm.
ROWS_PER_NEW_ROOM = 2 + 1 + 2 + 1 + 1
"""The log, its index, the records of jobs, the trimmed offset, the alarm."""
ROWS_PER_FOLDING_ROOM = 2 + 2 + 1
"""With the first ``progress``: the keys, the ids of their writes, a flag."""
ROWS_PER_NOTIFICATION = 2  # the notification, or the key that it is folded into; and its id
ROWS_PER_DELETED_NOTIFICATION = 1
ROWS_PER_RECORD_CHANGE = 1  # with each notification of a job
ROWS_PER_DELETED_RECORD = 1
ROWS_PER_KEY = 1 + 1  # the end of the run closes it; its deletion
ROWS_PER_EXPIRED_LOG = 1 + 1 + 1 + 1
"""The expiry mark, the alarm that confirms it, the deleted mark, the trimmed offset."""
ROWS_PER_DELETED_ROOM = 1 + 1 + 1 + 1
"""The alarm for the records, their expiry mark, the alarm that confirms it, the deleted mark.
Deleting the whole storage is assumed to be free."""
ROWS_PER_ACK = 1
ROWS_PER_CONNECTION = (
    2 * 3 + 4
)  # user and token: connect, the alarm, disconnect; the departed user, and two alarms

RECORD_DAYS = 7
"""How long a room is kept after its last job."""

PING_S = 30
"""The interval of a client's pings. A check comes ``idle_timeout_s`` after the last ping."""

OBJECT_MS = 10
"""About how long an event keeps an object awake."""

WORKER_CPU_MS = 2
"""The CPU time of a request, approximately: most of it verifies a token."""


def cloudflare(use: Use, prices: Mapping[str, Any] = PRICES["cloudflare"]) -> dict[str, float]:
    """Return the cost of each of Cloudflare's meters, in dollars a month."""
    jobs = use.users * use.jobs
    connections = use.users * use.sessions
    delivered = use.published  # to the user's tab
    # The request's room is read once, as history would be; most users watch their own room alone.
    worker_requests = use.published + connections
    messages_in = delivered + use.connected_minutes * 60 / PING_S  # acks and pings
    seconds = use.connected_minutes * 60
    checks = seconds / max(1, use.idle_timeout_s - PING_S / 2) if use.idle_timeout_s else 0
    logs = jobs * 2  # expired: that of a user's room, too, is empty a day after a job
    rooms = jobs + min(jobs, use.users * 30 / RECORD_DAYS)  # created and deleted
    alarms = (logs + rooms) * 2  # the first finds it expired, the second deletes it
    runs_with_progress = jobs * 2 if use.notifications > 2 else 0
    object_requests = (
        use.published * 2  # two rooms
        + connections * (1 + 2 + 2)  # the room; the registries, on connect and disconnect
        + messages_in / prices["websocket_messages_per_request"]
        + checks
        + alarms
    )
    rows_written = (
        rooms * (ROWS_PER_NEW_ROOM + ROWS_PER_DELETED_ROOM)
        + logs * (ROWS_PER_EXPIRED_LOG + ROWS_PER_DELETED_RECORD)
        + use.published
        * 2
        * (ROWS_PER_NOTIFICATION + ROWS_PER_RECORD_CHANGE + ROWS_PER_DELETED_NOTIFICATION)
        + runs_with_progress * ROWS_PER_KEY
        + (rooms * ROWS_PER_FOLDING_ROOM if runs_with_progress else 0)
        + delivered * ROWS_PER_ACK
        + connections * ROWS_PER_CONNECTION
        + checks  # the next alarm
    )
    awake = (
        use.published * 2 + connections * 5 + delivered + checks + alarms
    )  # a ping wakes no object
    meters = {
        "worker_requests": worker_requests,
        "worker_cpu_ms": worker_requests * WORKER_CPU_MS,
        "object_requests": object_requests,
        "object_gb_s": awake * OBJECT_MS / 1000 * prices["object_gb"],
        "rows_read": awake * 20,
        "rows_written": rows_written,
        # A publish and its delivery; a connection and its replay.
        "data_points": use.published * 2 + connections * 2,
        "stored_gb": (
            use.users * 30e3
            + use.published / 30 * use.notification_bytes
            + jobs * 2 * RECORD_DAYS / 30 * use.notification_bytes
        )
        / 1e9,
    }
    return {name: _over(value, prices[name]) for name, value in meters.items()}


def cloudflare_total(use: Use) -> float:
    return float(PRICES["cloudflare"]["plan"]) + sum(cloudflare(use).values())


def ably(use: Use, prices: Mapping[str, Any] = PRICES["ably"]) -> tuple[float, str] | None:
    """Return dollars a month and the package; None if the largest with a price is too small."""
    for package in prices["packages"]:
        if use.peak_connections <= package["connections"]:
            messages = use.published * 2  # in and out
            minutes = use.connected_minutes
            rate = prices["per_million_connection_minutes"] + prices["per_million_channel_minutes"]
            usage = (messages * prices["per_million_messages"] + minutes * rate) / 1e6
            return package["price"] + usage, package["name"]
    return None


def pusher(use: Use, prices: Mapping[str, Any] = PRICES["pusher"]) -> tuple[float, str] | None:
    """Return dollars a month and the plan; None if the largest with a price is too small."""
    messages_a_day = use.published * 2 / 30
    for plan in prices["plans"]:
        if use.peak_connections <= plan["connections"] and messages_a_day <= plan["messages_a_day"]:
            return plan["price"], plan["name"]
    return None


def machines(use: Use, prices: Mapping[str, Any] = PRICES["machine"]) -> tuple[float, int]:
    """Return dollars a month, and the number of machines."""
    count = max(1, math.ceil(use.peak_connections / prices["connections"]))
    return count * float(prices["price"]), count


def table(uses: list[Use]) -> str:
    lines = [
        "| users a month | at peak | Durable Objects | Ably | Pusher | machines |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for use in uses:
        price, count = machines(use)
        cells = [
            f"{use.users:,}", f"{use.peak_connections:,}", _dollars(cloudflare_total(use)),
            _named(ably(use)), _named(pusher(use)), f"{_dollars(price)} ({count})",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _over(value: float, price: Mapping[str, float]) -> float:
    return max(0.0, value - price["included"]) * price["per_million"] / 1e6


def _named(found: tuple[float, str] | None) -> str:
    return "ask them" if found is None else f"{_dollars(found[0])} ({found[1]})"


def _dollars(amount: float) -> str:
    return f"${amount:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate the monthly cost of a number of users.")
    for each in fields(Use):
        name = f"--{each.name.replace('_', '-')}"
        parser.add_argument(name, type=float if each.type == "float" else int)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    counts = [given.pop("users")] if "users" in given else [1000, 100_000, 1_000_000]
    print(table([replace(Use(**given), users=users) for users in counts]))


if __name__ == "__main__":
    main()
