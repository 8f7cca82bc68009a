"""Scenario 3: 10,000 idle connections, each in its own room: memory per connection, CPU per
connect.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count as counting

from .. import machine
from ..rounds import Measure, Options, Session, Table, compare, shares
from ..servers import Server, Subscriber

CONNECTIONS = 10_000
REST_S = 0.4
"""Seconds before the memory is read."""

COLUMNS = {
    "connection_kb": "memory (PSS), KB a connection",
    "connect_us": "server CPU, µs a connect",
    "load_busy": "load busy, %",
}


def run(options: Options) -> list[Table]:
    steps = options.rounds + 1
    step = options.scaled(CONNECTIONS) // steps
    rows = compare(options, lambda _: None, measure(step, steps))
    title = f"Idle: {step * steps:,} connections in {steps} steps, the first is a warm-up"
    remark = fewer(options.kinds, step * steps)
    return [Table("idle", title, COLUMNS, ["connect_us"], rows, remark)]


def fewer(kinds: Sequence[Server], connections: int) -> str:
    """Remark on servers that cannot hold all connections."""
    return " ".join(
        f"{kind.title}: {most:,} connections; the system's limit of open files allows no more."
        for kind in kinds
        if (most := kind.most(connections)) < connections
    )


def measure(step: int, steps: int) -> Measure:
    """Run a round: add this number of connections."""
    numbers: Callable[[], int] = counting().__next__

    def round_of(session: Session) -> Mapping[str, float]:
        count = session.kind.most(step * steps) // steps
        users = [str(numbers()) for _ in range(count)]
        clients = [session.kind.client(Subscriber(user, f"user_{user}")) for user in users]
        before = machine.max_memory_bytes(session.server.pid)
        with session.used() as used_us:
            report = session.load.dial(session.port, clients, live=session.kind.live)
            time.sleep(REST_S)
        grown = machine.max_memory_bytes(session.server.pid) - before
        return {
            "connection_kb": grown / 1024 / count,
            "connect_us": used_us() / count,
            "load_busy": shares(report, used_us())["load_busy"],
        }

    return round_of
