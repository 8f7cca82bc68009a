"""Check the Redis of a store, without changing anything in it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence

from ..extras import needed_by
from ..server.stores.redis.address import RedisAddress, parse_address
from ..server.stores.redis.durability import Durability
from .finding import Finding

FULL = 0.8
"""With more of its maxmemory in use, Redis may soon reject publishes."""

CLOCK_S = 5.0
"""The greatest difference of clocks, in seconds, that is no finding."""


async def check_redis(url: str) -> AsyncGenerator[Finding]:
    """Check what a node would find if it started now. No finding contains user or password."""
    address = parse_address(url)
    try:
        with needed_by("the store on Redis", "redis"):
            from ..server.stores.redis.connection import RedisReplyError
            from ..server.stores.redis.errors import UNREACHABLE, describe_problem
            from ..server.stores.redis.startup import checked_connection, must_be_corrected
    except ImportError as error:
        yield Finding("fail", "store", str(error), "install it, then run doctor again")
        return
    try:
        async with checked_connection(address) as (connection, info):
            begun = time.time()
            now, fsync = await connection.execute([("TIME",), ("CONFIG", "GET", "appendfsync")])
            ended = time.time()
    except (*UNREACHABLE, RedisReplyError) as error:
        found = f"{address.shown}: {describe_problem(error)}"
        advice = "correct it" if must_be_corrected(error) else "start Redis, or correct --store"
        yield Finding("fail", "store", found, f"{advice}, then run doctor again")
        return
    valkey = info.get("valkey_version")
    version = f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"
    found = f"{address.shown}: {version} answers in {(ended - begun) * 1000:.0f} ms"
    yield Finding("ok", "store", f"{found}; credentials, permissions and policy are right")
    yield rate_persistence(info, "" if isinstance(fsync, RedisReplyError) else _value(fsync))
    yield rate_replicas(info, address)
    yield rate_memory(info)
    if not isinstance(now, RedisReplyError):
        theirs = int(now[0]) + int(now[1]) / 1_000_000
        yield rate_clock(max(begun - theirs, theirs - ended, 0.0))


def _value(pair: Sequence[bytes]) -> str:
    return pair[1].decode() if len(pair) > 1 else ""


def rate_persistence(info: Mapping[str, str], fsync: str) -> Finding:
    """Rate what a restart of Redis loses.

    Args:
        fsync: the value of ``appendfsync``; empty: unknown.
    """
    if info.get("aof_enabled") != "1":
        return Finding(
            "warn",
            "persistence",
            "appendonly is no: a restart of Redis loses what came after its last snapshot",
            "set appendonly yes in redis.conf, unless the notifications may be lost",
        )
    found = f"appendonly yes, appendfsync {fsync or 'unknown (CONFIG GET is forbidden)'}"
    if info.get("aof_last_write_status", "ok") != "ok":
        advice = "free space on the disk of Redis, and see its log"
        return Finding("fail", "persistence", f"{found}; the last write has failed", advice)
    return Finding("ok", "persistence", found)


def rate_replicas(info: Mapping[str, str], address: RedisAddress) -> Finding:
    """Rate whether replicas follow the primary."""
    count = int(info.get("connected_slaves", 0))
    if count == 0 and address.durability is Durability.REPLICA:
        found = "none, so that every publish is refused: durability=replica needs one"
        return Finding("fail", "replicas", found, "start one, or choose another durability")
    if count == 0 and (address.service is not None):
        found = "none: Sentinel has nothing to fail over to"
        return Finding("warn", "replicas", found, "start one (replicaof)")
    states = [value for name, value in info.items() if name[:5] == "slave" and "state=" in value]
    late = sum("state=online" not in value for value in states)
    if late:
        found = f"{count}, of which {late} not in step"
        return Finding("warn", "replicas", found, "wait for its synchronization, or see its log")
    return Finding("ok", "replicas", str(count) if count else "none; there is no failover")


def rate_memory(info: Mapping[str, str]) -> Finding:
    """Rate how full the memory of Redis is."""
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    found = f"{used / 1024**2:.0f} MiB used"
    if not most:
        return Finding("ok", "memory", f"{found}, without maxmemory")
    found += f" of {most / 1024**2:.0f} MiB (maxmemory)"
    if used > FULL * most:
        advice = "raise maxmemory, or lower --retention-count: a full Redis rejects publishes"
        return Finding("warn", "memory", found, advice)
    return Finding("ok", "memory", found)


def rate_clock(off_s: float) -> Finding:
    """Rate the difference between the clock of Redis and that of this machine.

    The age of notifications is measured by the clock of Redis.
    """
    if off_s <= CLOCK_S:
        return Finding("ok", "store clock", "Redis and this machine agree")
    found = f"that of Redis differs from this machine's by {off_s:.0f} s"
    return Finding("warn", "store clock", found, "run NTP on both machines (timedatectl)")
