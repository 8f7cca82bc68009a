"""Scenario 5: 1,000 clients reconnect concurrently and replay 100 each; 10,000 after a restart."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..load import LoadError
from ..rounds import (
    SETTLE_S,
    Measure,
    Options,
    Row,
    Session,
    Stat,
    Table,
    alone,
    print_progress,
    session,
)
from ..servers import Limit, MissingError, Server, own_rooms
from .idle import fewer

BACK = 1000
KEPT = 100
"""Notifications in each room."""

CONNECTIONS = 10_000
IN_FLIGHT = 1000
"""Concurrent handshakes."""

TIMEOUT_S = 60.0
ENOUGH_S = 15.0
"""After a restart that took this long, no further rounds are run; the table shows how many were."""

REPLAY = {
    "all_ms": "until all are complete, ms",
    "replayed_us": "server CPU, µs per replayed notification",
    "load_busy": "load busy, %",
}
RESTART = {
    "from_kill_s": "from the kill until all are live, s",
    "from_first_s": "from the first live client, s",
    "load_busy": "load busy, %",
    "rounds": "rounds",
}


def run(options: Options) -> list[Table]:
    back, connections = options.scaled(BACK), options.scaled(CONNECTIONS)
    everyone: list[Server] = [Limit(), *options.kinds]
    replays = [
        alone(options, kind, lambda mine: _fill(mine, back), _replay(back))
        if kind.has_replay
        else Row(kind.title, note="has none")
        for kind in everyone
    ]
    restarts = [_restarts(options, kind, connections) for kind in everyone]
    concurrent = f"{min(IN_FLIGHT, connections):,} concurrent handshakes"
    return [
        Table(
            "resume",
            f"{back:,} clients reconnect concurrently ({concurrent}), and replay {KEPT} each",
            REPLAY,
            [],
            replays,
        ),
        Table(
            "restart",
            f"kill -9, start: {connections:,} clients reconnect ({concurrent})",
            RESTART,
            [],
            restarts,
            "The time from the kill includes the program's start. "
            + fewer(options.kinds, connections),
        ),
    ]


def _fill(mine: Session, back: int) -> None:
    """Publish this number of notifications to each room, without subscribers."""
    rooms = [one.room for one in own_rooms(back)]
    if mine.kind.has_batches:
        size = min(KEPT, back)
        batches = [rooms[start : start + size] for start in range(0, back, size)]
        publishes = [mine.kind.publish_many(batch, 0) for batch in batches]
    else:
        publishes = [mine.kind.publish(room, 0) for room in rooms]
    mine.load.publish(
        mine.publish_port,
        publishes,
        len(publishes) * KEPT,
        mode="closed",
        publishers=8,
        timeout_s=TIMEOUT_S,
    )


def _replay(back: int) -> Measure:
    def round_of(mine: Session) -> Mapping[str, float]:
        clients = [mine.kind.client(one) for one in own_rooms(back, replay=True)]
        with mine.used() as used_us:
            report = mine.load.dial(
                mine.port,
                clients,
                live=mine.kind.live,
                in_flight=IN_FLIGHT,
                expected=back * KEPT,
                timeout_s=TIMEOUT_S,
            )
        mine.load.hangup()
        time.sleep(SETTLE_S)  # the server notices the disconnects
        return {
            "all_ms": report.wall_s * 1e3,
            "replayed_us": used_us() / report.delivered,
            "load_busy": 100 * report.cpu_s / report.wall_s,
        }

    return round_of


def _restarts(options: Options, kind: Server, connections: int) -> Row:
    row = Row(kind.title)
    rounds: list[Mapping[str, float]] = []
    try:
        with session(kind) as mine:
            clients = [kind.client(one) for one in own_rooms(kind.most(connections))]
            mine.load.dial(mine.port, clients, live=kind.live, timeout_s=TIMEOUT_S)
            time.sleep(SETTLE_S)
            begun = time.monotonic()
            while len(rounds) < options.rounds and time.monotonic() < begun + ENOUGH_S:
                mine.load.expect_restart(in_flight=IN_FLIGHT, timeout_s=TIMEOUT_S)
                killed_ns = time.monotonic_ns()
                mine.server.kill()
                mine.server.start()
                report = mine.load.restarted()
                took_s = (report.last_live_ns - report.first_live_ns) / 1e9
                rounds.append(
                    {
                        "from_kill_s": (report.last_live_ns - killed_ns) / 1e9,
                        "from_first_s": took_s,
                        "load_busy": 100 * report.cpu_s / report.wall_s,
                    }
                )
    except (LoadError, MissingError) as error:
        row.note = " ".join(str(error).split())
    else:
        row.stats = {name: Stat.of([each[name] for each in rounds]) for name in rounds[0]}
        row.stats["rounds"] = Stat.of([len(rounds)])
    print_progress(f"{kind.name}: {row.note or 'restarted'}")
    return row
