"""The names of the keys and channels in Redis.

All keys of a room carry the tag of its partition, so that they are in one hash slot of a Redis
Cluster. A standalone server gets the same names: moving to a cluster renames nothing.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from ....protocol.rooms import Room

PARTITIONS = 128
"""The number of partitions. Part of the schema: another number would move rooms between keys."""

ALL_PARTITIONS = range(PARTITIONS)

NODES_PARTITION = 0
"""The partition with the list of nodes."""

SLOTS = 16_384
"""The number of hash slots of a Redis Cluster."""

SCHEMA_VERSION = 3
"""The version of the names and values of all keys. Nodes of different versions must not share a
prefix; :meth:`RedisStore.check` compares it."""


def describe_other_version(prefix: str, version: int) -> str:
    """Say that nodes of another version use a prefix."""
    return (
        f"the keys under the prefix {prefix} have version {version}, and this server uses "
        f"{SCHEMA_VERSION}: run one version, or choose another prefix (?prefix=…)"
    )


class RoomKeys(NamedTuple):
    """The keys of one room.

    Attributes:
        partition: the number of the room's partition.
        state: epoch and incarnation of the room's partition (string).
        log: the notifications (stream); the id of an entry is its offset. The channel where new
            entries are announced has the same name.
        meta: the last offset, the last issued head, the number of subscribers, and what retention
            has deleted (hash).
        folds: the keys of folded notifications, with their texts (hash).
        jobs, job_index, job_times: the records of jobs (hash; sorted sets); see ``job_scripts.py``.
        acks: the acknowledged cursors (hash).
        dedupe: the prefix of the key of each remembered id (string).
        presence: the users of each node (hash), and the channel where their changes are announced.
    """

    partition: int
    state: bytes
    log: bytes
    meta: bytes
    folds: bytes
    jobs: bytes
    job_index: bytes
    job_times: bytes
    acks: bytes
    dedupe: bytes
    presence: bytes


class KeySpace:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self.nodes = b"%b:nodes" % self.partition(NODES_PARTITION)
        self.departed = b"%b:departed" % self.partition(NODES_PARTITION)
        self.questions = b"%b:survey" % self.partition(NODES_PARTITION)
        self.replaced = b"%b:replaced" % self.partition(NODES_PARTITION)
        self.of_room = lru_cache(16_384)(self._of_room)

    def _of_room(self, room: Room) -> RoomKeys:
        name = room.encode()
        number = partition_of(room)
        partition = self.partition(number)
        return RoomKeys(
            number,
            self.state(number),
            b"%b:log:%b" % (partition, name),
            b"%b:room:%b" % (partition, name),
            b"%b:folds:%b" % (partition, name),
            b"%b:jobs:%b" % (partition, name),
            b"%b:jobindex:%b" % (partition, name),
            b"%b:jobtimes:%b" % (partition, name),
            b"%b:acks:%b" % (partition, name),
            b"%b:id:%b:" % (partition, name),
            b"%b:presence:%b" % (partition, name),
        )

    def partition(self, number: int) -> bytes:
        """Return what the keys of a partition begin with. The braces are the hash tag."""
        return b"%b:{%d}" % (self._prefix, number)

    def state(self, partition: int) -> bytes:
        """Return the key of epoch and incarnation of a partition (string)."""
        return b"%b:state" % self.partition(partition)

    def node_rooms(self, room: Room, node: str) -> bytes:
        """Return the key of a node's rooms in the partition of a room (hash)."""
        return self.node_rooms_in(partition_of(room), node)

    def node_rooms_in(self, partition: int, node: str) -> bytes:
        """Return the key of a node's rooms in a partition (hash)."""
        return b"%b:node:%b" % (self.partition(partition), node.encode())

    def present_rooms(self, partition: int, node: str) -> bytes:
        """Return the key of the rooms of a partition in which a node has users (set)."""
        return b"%b:present:%b" % (self.partition(partition), node.encode())

    def user_connections(self, user: str) -> bytes:
        """Return the key of the number of connections that a user has at each node (hash)."""
        return b"%b:user:%b" % (self.partition(partition_of(user)), user.encode())

    def connected_users(self, partition: int, node: str) -> bytes:
        """Return the key of the users of a partition who have connections at a node (set)."""
        return b"%b:users:%b" % (self.partition(partition), node.encode())

    def schema(self, partition: int) -> bytes:
        """Return the key of the version of a partition's keys (string)."""
        return b"%b:schema" % self.partition(partition)

    def probe(self, partition: int, node: str) -> bytes:
        """Return the channel on which a node checks that it receives from a partition's primary."""
        return b"%b:probe:%b" % (self.partition(partition), node.encode())

    def answers(self, node: str) -> bytes:
        """Return the channel on which a node receives the answers to its questions."""
        return b"%b:%b" % (self.questions, node.encode())

    def rates(self, caller: str, names: Sequence[str]) -> list[bytes]:
        """Return the key of each rate of a caller (string), all in one partition."""
        digest = blake2b(caller.encode(), digest_size=16).hexdigest().encode()
        partition = self.partition(crc32(digest) % PARTITIONS)
        return [b"%b:rate:%b:%b" % (partition, name.encode(), digest) for name in names]


def slot_of(partition: int) -> int:
    """Return the hash slot of a partition in a Redis Cluster.

    See https://valkey.io/topics/cluster-spec/ (Key distribution model).
    """
    return crc_hqx(b"%d" % partition, 0) % SLOTS


def partition_of_key(name: bytes) -> int:
    """Return the number of the partition of a key or channel."""
    return int(name[name.index(b"{") + 1 : name.index(b"}")])


def partition_of(name: str) -> int:
    """Return the number of the partition of a room or a user."""
    return crc32(name.encode()) % PARTITIONS
