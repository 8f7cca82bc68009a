"""What a server must be to keep a store. Each connection for commands checks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....lexical import parse_digits
from .address import RedisAddress
from .connection import Command, RedisReplyError, UnsuitableServerError
from .durability import CONFIRM_MS, Durability
from .keys import SLOTS

MIN_VERSION = (7, 0)
"""The first version with all that the scripts use. Valkey reports a version of Redis, too."""

_DISK = "durability=disk needs appendonly yes and appendfsync always in redis.conf"


class Requirements:
    """What the address requires of the server that it leads to.

    Attributes:
        commands: to send first over a connection.
        confirm: the command by which a flush waits until a replica has what was published; None: a
            publish is answered without.
    """

    def __init__(self, address: RedisAddress) -> None:
        self.commands: list[Command] = [("INFO",)]
        self.confirm: Command | None = None
        match address.durability:
            case Durability.REPLICA:
                self.confirm = ("WAIT", 1, CONFIRM_MS)
            case Durability.DISK:
                self.commands.append(("CONFIG", "GET", "appendfsync"))
        self._is_cluster = address.is_cluster
        if address.is_cluster:
            self.commands.append(("CLUSTER", "INFO"))

    def check(self, replies: Sequence[Any]) -> dict[str, str]:
        """Check the replies to the commands. Return what INFO says.

        Raises:
            UnsuitableServerError: the operator has to change something.
            RedisReplyError: the server rejects a command, or cannot serve now.
        """
        info, *others = replies
        if isinstance(info, RedisReplyError):
            raise info
        said = parse_info(info)
        _check_info(said)
        _check_kind(said, self._is_cluster)
        if self._is_cluster:
            _check_cluster(others.pop())
        for fsync in others:
            _check_disk(said, fsync)
        return said


def parse_info(reply: bytes) -> dict[str, str]:
    """Return the fields of a reply to INFO."""
    lines = reply.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _check_info(info: Mapping[str, str]) -> None:
    mode = info.get("redis_mode") or info.get("server_mode")  # Valkey 9
    if mode == "sentinel":
        raise UnsuitableServerError(
            "this is a Sentinel: write redis+sentinel://host/name with the name of the primary"
        )
    if "run_id" not in info:
        raise UnsuitableServerError("the server is no Redis: INFO has no run_id")
    version = info.get("redis_version", "0")
    if tuple(parse_digits(each) or 0 for each in version.split(".")[:2]) < MIN_VERSION:
        raise UnsuitableServerError(f"Redis {version} is too old: use 7.0 or later, or Valkey")
    if info.get("loading") == "1":
        raise RedisReplyError("LOADING Redis is loading the dataset in memory")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise UnsuitableServerError(
            f"maxmemory-policy is {policy}, so that Redis may delete logs at any time; "
            "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)"
        )


def _check_kind(info: Mapping[str, str], is_cluster: bool) -> None:
    if info.get("cluster_enabled") == "1":
        if not is_cluster:
            raise UnsuitableServerError(
                "this Redis is a node of a cluster: write redis+cluster:// instead of redis://"
            )
    elif is_cluster:
        raise UnsuitableServerError(
            "this Redis is no node of a cluster: write redis:// instead of redis+cluster://"
        )
    elif info.get("role") == "slave":
        raise UnsuitableServerError("this Redis is a replica; name its primary")


def _check_cluster(reply: Any) -> None:
    """Check the reply to CLUSTER INFO."""
    if isinstance(reply, RedisReplyError):
        raise reply
    state = parse_info(reply)
    if state.get("cluster_state") == "ok":
        return
    assigned = state.get("cluster_slots_assigned", "0")
    if assigned != str(SLOTS):
        raise UnsuitableServerError(
            f"the cluster is not complete: {assigned} of {SLOTS} slots have a primary; see "
            "redis-cli --cluster check"
        )
    raise RedisReplyError("CLUSTERDOWN cluster_state is fail")  # perhaps during a failover


def _check_disk(info: Mapping[str, str], fsync: Any) -> None:
    if isinstance(fsync, RedisReplyError):
        raise UnsuitableServerError(
            f"{_DISK}, which cannot be checked, because Redis rejects CONFIG GET ({fsync}): allow "
            "it (+config|get), or choose another durability"
        )
    if info.get("aof_enabled") != "1":
        raise UnsuitableServerError(f"{_DISK}; appendonly is no")
    value = fsync[1].decode() if len(fsync) > 1 else "unknown"
    if value != "always":
        raise UnsuitableServerError(f"{_DISK}; appendfsync is {value}")
