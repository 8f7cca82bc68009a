"""What so many users a month cost: Durable Objects, Pusher, Ably, one machine of your own.

::

    $ python -m benchmarks.cost
    | users a month | at the same time | Durable Objects | Ably | Pusher | machines |
    | --- | --- | --- | --- | --- | --- |
    | 1,000 | 35 | $5 | $30 (Standard) | $0 (Sandbox) | $40 (1) |
    …

    $ python -m benchmarks.cost --users 50000 --jobs 60 --session-minutes 5

The prices are in ``prices.toml``, with their pages and dates. What the Worker does for each event
was counted by reading ``worker/src/log.ts`` and ``holder.ts``, and what a statement writes by
asking workerd (``rowsWritten``); no bill has confirmed it yet.
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
"""Of a month."""


@dataclass(frozen=True, slots=True)
class Use:
    """How an app is used.

    Attributes:
        users: a month.
        jobs: of a user, a month.
        notifications: of a job: started, progress, completed.
        notification_bytes: of one, as JSON.
        sessions: of a user, a month: a tab that is opened.
        session_minutes: how long it stays open. It listens to the user's room.
        peak: how many more users than on average are there at the busiest time.
        silence_s: how often an object looks for silent connections (``IDLE_TIMEOUT_S``); 0: never.
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
        """Notifications a month; each goes to the user's room and the request's."""
        return self.users * self.jobs * self.notifications

    @property
    def connected_minutes(self) -> float:
        return self.users * self.sessions * self.session_minutes

    @property
    def at_once(self) -> int:
        """Connections at the busiest time."""
        return math.ceil(self.connected_minutes / MINUTES * self.peak)


# Rows that the Worker writes, those of a new table, an index and the alarm among them.
ROWS_OF_A_NEW_ROOM = 2 + 1 + 1 + 1  # the log, its index, what is forgotten, the alarm
ROWS_OF_A_NOTIFICATION = 2  # itself, and its id
ROWS_TO_FORGET_ONE = 1
ROWS_TO_FORGET_A_ROOM = 1 + 1 + 1 + 1
"""That it is too old, the alarm that confirms it, the note gone, what is forgotten; letting the
storage go is taken as free."""
ROWS_OF_AN_ACK = 1
ROWS_OF_A_CONNECTION = 2 * 3 + 4  # user and token: in, the alarm, out; who has left, and two alarms

PING_S = 30
"""A client pings so often: a look comes ``silence_s`` after the last ping that it saw."""

OBJECT_MS = 10
"""So long is an object awake for an event, about."""

WORKER_CPU_MS = 2
"""Of a request, about: most of it checks a token."""


def cloudflare(use: Use, prices: Mapping[str, Any] = PRICES["cloudflare"]) -> dict[str, float]:
    """What each meter of Cloudflare's shows, and what it costs, in dollars a month."""
    jobs = use.users * use.jobs
    connections = use.users * use.sessions
    delivered = use.published  # to the user's tab
    # The request's room is read once, as history would be; most users watch their own room alone.
    worker_requests = use.published + connections
    messages_in = delivered + use.connected_minutes * 60 / PING_S  # acks and pings
    seconds = use.connected_minutes * 60
    looks = seconds / max(1, use.idle_timeout_s - PING_S / 2) if use.idle_timeout_s else 0
    rooms = jobs * 2  # made and let go: a user's room, too, is empty a day after a job
    alarms = rooms * 2  # one finds it too old, the second one lets it go
    object_requests = (
        use.published * 2  # two rooms
        + connections * (1 + 2 + 2)  # the room; who holds it, in and out
        + messages_in / prices["websocket_messages_per_request"]
        + looks
        + alarms
    )
    rows_written = (
        rooms * (ROWS_OF_A_NEW_ROOM + ROWS_TO_FORGET_A_ROOM)
        + use.published * 2 * (ROWS_OF_A_NOTIFICATION + ROWS_TO_FORGET_ONE)
        + delivered * ROWS_OF_AN_ACK
        + connections * ROWS_OF_A_CONNECTION
        + looks  # the next alarm
    )
    awake = use.published * 2 + connections * 5 + delivered + looks + alarms  # a ping wakes nobody
    meters = {
        "worker_requests": worker_requests,
        "worker_cpu_ms": worker_requests * WORKER_CPU_MS,
        "object_requests": object_requests,
        "object_gb_s": awake * OBJECT_MS / 1000 * prices["object_gb"],
        "rows_read": awake * 20,
        "rows_written": rows_written,
        # A publish, its delivery; a connection, and what it was sent first.
        "data_points": use.published * 2 + connections * 2,
        "stored_gb": (use.users * 30e3 + use.published / 30 * use.notification_bytes) / 1e9,
    }
    return {name: _over(value, prices[name]) for name, value in meters.items()}


def cloudflare_total(use: Use) -> float:
    return float(PRICES["cloudflare"]["plan"]) + sum(cloudflare(use).values())


def ably(use: Use, prices: Mapping[str, Any] = PRICES["ably"]) -> tuple[float, str] | None:
    """Dollars a month, and the package; None: more than the largest with a price."""
    for package in prices["packages"]:
        if use.at_once <= package["connections"]:
            messages = use.published * 2  # in and out
            minutes = use.connected_minutes
            rate = prices["per_million_connection_minutes"] + prices["per_million_channel_minutes"]
            usage = (messages * prices["per_million_messages"] + minutes * rate) / 1e6
            return package["price"] + usage, package["name"]
    return None


def pusher(use: Use, prices: Mapping[str, Any] = PRICES["pusher"]) -> tuple[float, str] | None:
    """Dollars a month, and the plan; None: more than the largest with a price."""
    messages_a_day = use.published * 2 / 30
    for plan in prices["plans"]:
        if use.at_once <= plan["connections"] and messages_a_day <= plan["messages_a_day"]:
            return plan["price"], plan["name"]
    return None


def machines(use: Use, prices: Mapping[str, Any] = PRICES["machine"]) -> tuple[float, int]:
    """Dollars a month, and how many."""
    count = max(1, math.ceil(use.at_once / prices["connections"]))
    return count * float(prices["price"]), count


def table(uses: list[Use]) -> str:
    lines = [
        "| users a month | at the same time | Durable Objects | Ably | Pusher | machines |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for use in uses:
        price, count = machines(use)
        cells = [
            f"{use.users:,}", f"{use.at_once:,}", _dollars(cloudflare_total(use)),
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
    parser = argparse.ArgumentParser(description="What so many users a month cost.")
    for each in fields(Use):
        name = f"--{each.name.replace('_', '-')}"
        parser.add_argument(name, type=float if each.type == "float" else int)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    counts = [given.pop("users")] if "users" in given else [1000, 100_000, 1_000_000]
    print(table([replace(Use(**given), users=users) for users in counts]))


if __name__ == "__main__":
    main()
