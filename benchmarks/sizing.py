"""Measure what nodes and Valkey need, for docs/scale-out.md: memory, and the cost of durability.

Run as ``.venv/bin/python -m benchmarks.sizing``. CPU is user and system time, which other programs
change little. The time of a publish is that of the fastest round.
"""

from __future__ import annotations

import contextlib
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
from redis import Redis

from . import machine
from .load import Load
from .nodes import OurNodes, Valkey
from .servers import ROOT, Running, one_room, own_rooms, running

ROOMS = 500
FEW = (1, 9, 20, 40)
IN_ONE_ROOM = 1000
CONNECTIONS = 5000
PUBLISHERS = {1: 500, 32: 4000}
"""The number of publishes by the number of publishers that wait for each answer."""

SIZES = (200, 1000)
LEVELS = ("primary", "replica", "disk")


class DurableValkey(Valkey):
    """A server with an append-only file, on a disk and not in memory."""

    def __init__(self, level: str, folder: Path, primary_port: int | None = None) -> None:
        folder.mkdir()
        self._options: tuple[str, ...] = ("--appendonly", "yes", "--dir", str(folder))
        self._options += ("--appendfsync", "always" if level == "disk" else "everysec")
        if primary_port is not None:
            self._options += ("--replicaof", f"127.0.0.1 {primary_port}")

    def command(self, at: Running) -> Sequence[str | Path]:
        return [*super().command(at), *self._options]


class Node(OurNodes):
    """A node with one level of durability."""

    def __init__(self, store_port: int, level: str = "primary") -> None:
        super().__init__(store_port)
        self._store += f"?durability={level}"


@contextlib.contextmanager
def node_on(store_port: int, level: str = "primary") -> Iterator[tuple[Node, Running]]:
    kind = Node(store_port, level)
    with running(kind) as node:
        until(lambda: httpx.get(f"http://127.0.0.1:{node.port}/ready").is_success)
        yield kind, node


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.05)
    raise TimeoutError


def until_in_sync(port: int) -> None:
    """Wait until a replica has caught up."""
    with Redis(port=port) as client:
        until(lambda: client.info("replication").get("master_link_status") == "up")


def publish_to(kind: Node, node: Running, rooms: Sequence[str], size: int) -> None:
    """Publish a notification to each room, in batches."""
    with httpx.Client(base_url=f"http://127.0.0.1:{node.port}", timeout=30) as client:
        for start in range(0, len(rooms), 100):
            body = {
                "notifications": [
                    {"type": "x", "data": {"text": "x" * (size - 30)}, "rooms": [room]}
                    for room in rooms[start : start + 100]
                ]
            }
            client.post(
                "/broadcast", json=body, headers={"Authorization": f"Bearer {kind.key}"}
            ).raise_for_status()


def measure_store() -> None:
    """Print the memory of Valkey for notifications and rooms."""
    with running(Valkey()) as store, node_on(store.port) as (kind, node):
        redis = Redis(port=store.port)

        def used() -> int:
            return int(redis.info("memory")["used_memory"])

        def forget_ids() -> int:
            """Delete the ids, as after 5 minutes, and return what they took."""
            before = used()
            for key in redis.scan_iter("*:id:*", 1000):
                redis.delete(key)
            return before - used()

        publish_to(kind, node, ["request_warm"], 200)
        forget_ids()
        for size in SIZES:
            before = used()
            publish_to(kind, node, [f"request_{size}"] * IN_ONE_ROOM, size)
            ids = forget_ids()
            each = (used() - before) / IN_ONE_ROOM
            print(f"| a notification of {size} bytes, in a room with many | {each:,.0f} bytes |")
            print(f"| an id, for 5 minutes | {ids / IN_ONE_ROOM:,.0f} bytes |")
        for count in FEW:
            before = used()
            rooms = [f"request_{count}_{number}" for number in range(ROOMS)]
            publish_to(kind, node, rooms * count, 300)
            forget_ids()
            each = (used() - before) / ROOMS
            print(f"| a room with {count} notifications of 300 bytes | {each:,.0f} bytes |")
        with Load(machine.cores().load) as load:
            before, memory = used(), machine.max_memory_bytes(node.pid)
            load.dial(node.port, map(kind.client, own_rooms(CONNECTIONS)), live=kind.live)
            time.sleep(3)
            each = (used() - before) / CONNECTIONS
            print(f"| a room with a subscriber, more | {each:,.0f} bytes |")
            each = (machine.max_memory_bytes(node.pid) - memory) / CONNECTIONS
            print(f"| node: a connection in its own room | {each:,.0f} bytes |")
        print(f"| node: at its start | {memory / 1e6:,.0f} MB |")


def measure_cpu() -> None:
    """Print the CPU of a notification in a batch of 100, and of a delivery in a large room."""
    with (
        running(Valkey()) as store,
        node_on(store.port) as (kind, node),
        Load(machine.cores().load) as load,
    ):
        rooms = own_rooms(1000)
        load.dial(node.port, map(kind.client, rooms), live=kind.live)
        load.dial(node.port, map(kind.client, one_room(1000)), live=kind.live)
        names = [each.room for each in rooms]
        batches = [
            kind.publish_many(names[start : start + 100], 100) for start in range(0, 1000, 100)
        ]
        large = [kind.publish("workspace_1", 1000)]
        for what, publishes, count, parts in (
            ("a notification, 100 in a request, with its delivery", batches, 100, 100),
            ("a delivery in a room of 1,000", large, 50, 1000),
        ):
            rounds = []
            for _ in range(6):  # the first is not counted
                begin = [machine.cpu_s(node.pid), machine.cpu_s(store.pid)]
                load.publish([node.port], publishes, count, mode="closed", publishers=1)
                end = [machine.cpu_s(node.pid), machine.cpu_s(store.pid)]
                used = [later - earlier for earlier, later in zip(begin, end, strict=True)]
                rounds.append([each / count / parts * 1e6 for each in used])
            node_us, store_us = map(statistics.median, zip(*rounds[1:], strict=True))
            print(f"| {what} | {node_us:,.1f} µs | {store_us:,.1f} µs |")


def measure_levels() -> None:
    """Print the cost of a publish to 1,000 rooms with a subscriber each."""
    for level in LEVELS:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / ".venv")))
            store = stack.enter_context(running(DurableValkey(level, folder / "primary")))
            second = DurableValkey(level, folder / "replica", store.port)
            until_in_sync(stack.enter_context(running(second)).port)
            kind, node = stack.enter_context(node_on(store.port, level))
            load = stack.enter_context(Load(machine.cores().load))
            rooms = own_rooms(1000)
            load.dial(node.port, map(kind.client, rooms), live=kind.live)
            publishes = [kind.publish(each.room, 1) for each in rooms]
            for publishers, count in PUBLISHERS.items():
                rounds = []
                for _ in range(6):  # the first is not counted
                    begin = [machine.cpu_s(node.pid), machine.cpu_s(store.pid)]
                    report = load.publish(
                        [node.port], publishes, count, mode="closed", publishers=publishers
                    )
                    end = [machine.cpu_s(node.pid), machine.cpu_s(store.pid)]
                    used = [later - earlier for earlier, later in zip(begin, end, strict=True)]
                    rounds.append([each / count * 1e6 for each in (report.wall_s, *used)])
                wall_us = min(each[0] for each in rounds[1:])
                _, node_us, store_us = map(statistics.median, zip(*rounds[1:], strict=True))
                print(
                    f"| {level} | {publishers} | {wall_us * publishers:,.0f} µs | "
                    f"{1e6 / wall_us:,.0f} | {node_us:,.0f} µs | {store_us:,.0f} µs |"
                )


def main() -> None:
    machine.raise_file_limit()
    print(datetime.datetime.now(datetime.UTC).date().isoformat(), machine.describe())
    print("| what | memory |\n| --- | --- |")
    measure_store()
    print("\n| what | node CPU | Valkey CPU |\n| --- | --- | --- |")
    measure_cpu()
    print(
        "\n| durability | publishers | a publish | publishes/s | node CPU | Valkey CPU |"
        "\n| --- | --- | --- | --- | --- | --- |"
    )
    measure_levels()


if __name__ == "__main__":
    main()
