"""What fails: each fault ends with everything working again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from .deployment import DataServer, Deployment, Node, wait_until

Fault = Callable[[Deployment, random.Random], None]
"""Breaks something and waits until it works again. It blocks, and runs in a thread."""


def kill_primary(deployment: Deployment, chance: random.Random) -> None:
    """``kill -9`` of the primary, which returns as a replica."""
    deployment.until_whole()
    _lose_primary(deployment, deployment.primary)


def kill_primary_behind(deployment: Deployment, chance: random.Random) -> None:
    """Cut the link between primary and replica, then kill the primary: writes are lost."""
    deployment.until_whole()
    primary = deployment.primary
    primary.cut_replication()
    time.sleep(chance.uniform(0.3, 1.5))
    _lose_primary(deployment, primary)


def _lose_primary(deployment: Deployment, primary: DataServer) -> None:
    primary.kill()
    deployment.until_failed_over(primary)
    primary.start()
    # As a Sentinel does some 10 s later.
    primary.command("REPLICAOF", "127.0.0.1", deployment.primary.port)
    deployment.until_whole()


def stop_primary(deployment: Deployment, chance: random.Random) -> None:
    """SIGSTOP of the primary until another one was chosen. It returns as if nothing had been."""
    deployment.until_whole()
    primary = deployment.primary
    primary.cut_replication()  # so that it has acknowledged what the replica lacks
    time.sleep(chance.uniform(0.1, 0.5))
    primary.signal(signal.SIGSTOP)
    try:
        deployment.until_failed_over(primary)
        time.sleep(chance.uniform(0.0, 1.0))
    finally:
        primary.signal(signal.SIGCONT)
    primary.restore_replication()
    deployment.until_whole()


def kill_replica(deployment: Deployment, chance: random.Random) -> None:
    """``kill -9`` of the replica."""
    replica = deployment.replica
    replica.kill()
    time.sleep(chance.uniform(0.2, 1.0))
    replica.start()
    deployment.until_whole()


def cut_replication(deployment: Deployment, chance: random.Random) -> None:
    """Cut the link between primary and replica for a while."""
    primary = deployment.primary
    primary.cut_replication()
    time.sleep(chance.uniform(0.5, 1.5))
    primary.restore_replication()
    deployment.until_whole()


def kill_node(deployment: Deployment, chance: random.Random) -> None:
    """``kill -9`` of a node."""
    node = chance.choice(deployment.nodes)
    node.kill()
    time.sleep(chance.uniform(0.1, 1.0))
    _start_node(node)


def kill_worker(deployment: Deployment, chance: random.Random) -> None:
    """``kill -9`` of one worker of a node. The supervisor starts it again."""
    node = chance.choice(deployment.nodes)
    before = node.workers()
    killed = chance.choice(before)
    os.kill(killed, signal.SIGKILL)
    wait_until(
        lambda: len(node.workers()) == len(before) and killed not in node.workers(), "a new worker"
    )
    deployment.until_whole()


def pause_node(deployment: Deployment, chance: random.Random) -> None:
    """SIGSTOP of a node until the others have removed its subscribers (10 s)."""
    node = chance.choice(deployment.nodes)
    node.signal(signal.SIGSTOP)
    time.sleep(11.5)
    node.signal(signal.SIGCONT)
    deployment.until_whole()


def kill_connections(deployment: Deployment, chance: random.Random) -> None:
    """CLIENT KILL of all connections for messages, and then of those for commands."""
    primary = deployment.primary
    for kind in ("pubsub", "pubsub", "normal"):
        primary.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        time.sleep(chance.uniform(0.1, 0.4))
    deployment.until_ready()


def roll_nodes(deployment: Deployment, chance: random.Random) -> None:
    """Restart one node after the other: SIGTERM, drain, start."""
    for node in deployment.nodes:
        node.stop()
        _start_node(node)


def roll_redis(deployment: Deployment, chance: random.Random) -> None:
    """Restart the replica, fail over by ``SENTINEL FAILOVER``, restart the former primary."""
    replica, primary = deployment.replica, deployment.primary
    replica.stop()
    replica.start()
    deployment.until_whole()
    wait_until(lambda: _fails_over(deployment, primary), "a planned failover")
    deployment.until_whole()
    primary.stop()
    primary.start()
    deployment.until_whole()


def _fails_over(deployment: Deployment, former: DataServer) -> bool:
    """Ask for a failover, also again: on a busy machine, the Sentinel may give one up.

    It refuses with INPROG while one is under way, and with NOGOODSLAVE for some seconds after one.
    """
    if deployment.primary is former:
        deployment.sentinels[0].command("SENTINEL", "FAILOVER", "main")
    return deployment.primary is not former and deployment.primary.is_primary


def cut_link(deployment: Deployment, chance: random.Random) -> None:
    """Break the connections between one node and its server, and refuse new ones."""
    link = chance.choice(deployment.links)
    link.refuse()
    deployment.on_links(link.cut)
    time.sleep(chance.uniform(0.5, 1.5))
    deployment.on_links(link.restore)
    deployment.until_whole()


def stall_link(deployment: Deployment, chance: random.Random) -> None:
    """Carry nothing between one node and its server, as if the cable was pulled."""
    link = chance.choice(deployment.links)
    deployment.on_links(link.stall)
    time.sleep(chance.uniform(1.0, 4.0))
    deployment.on_links(link.restore)
    deployment.until_whole()


def restart_server(deployment: Deployment, chance: random.Random) -> None:
    """``kill -9`` of the only server, which comes back with what is on its disk."""
    deployment.primary.restart()
    deployment.until_whole()


def _start_node(node: Node) -> None:
    node.start()
    wait_until(lambda: node.is_ready, "a node that is ready")


SENTINEL_FAULTS: dict[str, Fault] = {
    "kill -9 of the primary": kill_primary,
    "the primary's link to the replica is cut, then kill -9 of the primary": kill_primary_behind,
    "SIGSTOP of the primary for longer than the failover": stop_primary,
    "kill -9 of the replica": kill_replica,
    "cut link between primary and replica": cut_replication,
    "planned failover, and restart of each Valkey": roll_redis,
    "kill -9 of a node": kill_node,
    "SIGSTOP of a node for 11.5 s": pause_node,
    "rolling restart of the nodes": roll_nodes,
    "`CLIENT KILL` of all connections": kill_connections,
}
"""The faults of nodes with Sentinels, by their names in the table."""

LINK_FAULTS: dict[str, Fault] = {
    "cut link between a node and Valkey": cut_link,
    "stalled link between a node and Valkey": stall_link,
    "kill -9 of a Valkey without a replica": restart_server,
}
"""Those of nodes with one server, each over a link of its own."""


def while_paused(deployment: Deployment, chance: random.Random, publish: Callable[[], None]) -> int:
    """Pause a node while large notifications are published, with a small output buffer.

    Returns:
        How many connections the server has closed because of it.
    """
    primary = deployment.primary
    node = chance.choice(deployment.nodes)
    before = _overflows(primary)
    primary.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 0 0")
    node.signal(signal.SIGSTOP)
    try:
        publish()
    finally:
        node.signal(signal.SIGCONT)
        primary.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 33554432 8388608 60")
    deployment.until_whole()
    return _overflows(primary) - before


def _overflows(server: DataServer) -> int:
    with server.client(decode_responses=True) as client:
        return int(client.info("stats")["client_output_buffer_limit_disconnections"])
