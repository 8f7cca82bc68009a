"""Folded notifications on Redis: what other nodes receive, and what Redis keeps of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.folding import make_fold
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Entry, Retention
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.fold_scripts import PART_BYTES, UPKEEP_S
from synap_realtime.server.stores.redis.folded import parse_conflict
from synap_realtime.server.stores.redis.keys import KeySpace
from synap_realtime.server.stores.redis.script import INLINE_BYTES
from synap_realtime.server.stores.redis.store import RedisStore
from tests.server.stores.conftest import Clock
from tests.support.folding import Texts, folded, write
from tests.support.polling import until
from tests.support.stores import publish
from tests.support.valkey import Valkey

ROOM = Room("user_1")
KEYS = KeySpace("synap").of_room(ROOM)
Nodes = tuple[RedisStore, RedisStore]


class Subscriber:
    """What a node delivers."""

    def __init__(self, store: RedisStore) -> None:
        self.entries: list[Entry] = []
        self.texts = Texts()
        store.subscribe(self.deliver)

    @property
    def wires(self) -> list[Any]:
        return [json.loads(entry.text) for entry in self.entries]

    def deliver(self, _room: Room, entry: Entry, _published_at: float | None) -> int:
        self.entries.append(entry)
        self.texts.apply(json.loads(entry.text))
        return 1


async def test_other_nodes_deliver_pieces_as_they_were_published(nodes: Nodes) -> None:
    subscribers = [Subscriber(store) for store in nodes]
    for store in nodes:
        await store.join(ROOM)
    for number, piece in enumerate(["aé", "😀", "\n"]):
        await write(nodes[0], f"p{number}", piece=piece, data={"index": number})
    await write(nodes[0], "r0", "replace", key="state")
    await publish(nodes[0], "n0", ROOM)
    await until(lambda: all(len(each.entries) == 5 for each in subscribers))
    assert subscribers[0].entries == subscribers[1].entries
    assert [entry.fold for entry in subscribers[1].entries] == [
        make_fold("k", "append", "aé", offset=0),
        make_fold("k", "append", "😀", offset=2),
        make_fold("k", "append", "\n", offset=3),
        make_fold("state", "replace"),
        None,
    ]
    assert [wire["data"].get("index") for wire in subscribers[1].wires] == [0, 1, 2, None, None]


async def test_large_piece_reaches_other_nodes(nodes: Nodes) -> None:
    subscriber = Subscriber(nodes[1])
    await nodes[1].join(ROOM)
    for number in range(3):
        await write(nodes[0], f"p{number}", piece=str(number) * INLINE_BYTES)
    expected = "".join(str(number) * INLINE_BYTES for number in range(3))
    await until(lambda: subscriber.texts.by_key.get("k") == expected)


async def test_call_that_is_repeated_is_no_duplicate_of_itself(
    nodes: Nodes, empty_valkey: Valkey
) -> None:
    """A reply may be lost after the call has run."""
    store = nodes[0]
    await write(store, "p0", piece="a", offset=0)
    pieces = [folded(f"p{n}", make_fold("k", "append", "b", offset=n)) for n in range(1, 4)]
    call = store.publisher.send(b"call", pieces, range(3))
    rows = await call
    repeated = await store.publisher.send(b"call", pieces, range(3))
    assert [row.split()[3] for row in (*rows, *repeated)] == [b"0"] * 3 + [b"2"] * 3
    other = await store.publisher.send(b"other", pieces, range(3))
    assert [row.split()[3] for row in other] == [b"1"] * 3
    results = [store.publisher.result_of(*each) for each in zip(pieces, repeated, strict=True)]
    assert [result and result.duplicate for result in results] == [False] * 3
    (entry,) = (await store.read(ROOM, store.earliest(), 10)).entries
    assert json.loads(entry.text)["data"]["delta"] == "abbb"


async def test_texts_that_retention_deletes_are_deleted_in_redis(empty_valkey: Valkey) -> None:
    store = RedisStore(parse_address(empty_valkey.url), Retention(count=3))
    for number in range(20):
        await write(store, f"p{number}", piece="x" * PART_BYTES * 3, key=f"k{number}", final=True)
        await write(store, f"q{number}", piece="x" * PART_BYTES * 3, key=f"l{number}")
        await write(store, f"r{number}", piece="y" * PART_BYTES, key=f"l{number}")
        await publish(store, f"n{number}", ROOM)
    # The texts of the last three entries, the rows of their keys, and those that the last two
    # entries have replaced in the log.
    assert empty_valkey.command("HLEN", KEYS.folds.decode()) < 20
    assert empty_valkey.command("XLEN", KEYS.log.decode()) == 3
    await store.close()


async def test_keys_of_a_busy_room_do_not_expire(empty_valkey: Valkey, clock: Clock) -> None:
    store = RedisStore(parse_address(empty_valkey.url), clock=clock)
    names = [name.decode() for name in (KEYS.log, KEYS.meta, KEYS.folds)]
    await write(store, "p0", piece="x")
    await publish(store, "n0", ROOM)
    for name in names:
        empty_valkey.command("PEXPIRE", name, 5000)
    for number in range(1, 6):
        clock.now += UPKEEP_S / 4
        await write(store, f"p{number}", piece="x")
        await publish(store, f"n{number}", ROOM)
    assert all(empty_valkey.command("PTTL", name) > 60_000 for name in names)
    await store.close()


async def test_room_that_folds_for_the_first_time_knows_what_it_has_deleted(
    empty_valkey: Valkey,
) -> None:
    store = RedisStore(parse_address(empty_valkey.url), Retention(count=3))
    cursors = [(await publish(store, f"n{number}", ROOM)).cursor for number in range(6)]
    await write(store, "p0", piece="x")
    await write(store, "p1", piece="x")
    found = [(await store.read(ROOM, cursor, 10)).recovered for cursor in cursors]
    assert found == [False, False, False, True, True, True]
    await store.close()


async def test_log_that_has_expired_is_known_to_be_incomplete(
    empty_valkey: Valkey, clock: Clock
) -> None:
    store = RedisStore(parse_address(empty_valkey.url), Retention(max_age_s=100), clock=clock)
    first = await write(store, "p0", piece="x")
    second = await publish(store, "n0", ROOM)
    clock.now += 200
    empty_valkey.command("DEL", KEYS.log.decode())  # as its expiry does
    for id in ("n1", "p1"):
        await (publish(store, id, ROOM) if id == "n1" else write(store, id, piece="y"))
        assert not (await store.read(ROOM, first.cursor, 10)).recovered
        assert (await store.read(ROOM, second.cursor, 10)).recovered
    await store.close()


async def test_keys_of_another_type_are_an_error_and_nothing_is_stored(
    nodes: Nodes, empty_valkey: Valkey
) -> None:
    empty_valkey.command("SET", KEYS.folds.decode(), "other")
    with pytest.raises(Exception, match="another type"):
        await write(nodes[0], "p0", piece="x")
    assert (await nodes[0].read(ROOM, nodes[0].earliest(), 10)).entries == []
    empty_valkey.command("DEL", KEYS.folds.decode())
    assert (await write(nodes[0], "p0", piece="x")).cursor > Cursor("", 0)


def test_mode_of_a_conflict_is_the_other_one() -> None:
    conflict = parse_conflict(make_fold("k", "append", "x"), b"! fold_mode 3")
    assert (conflict.attempt, "mode 'replace'" in conflict.details) == (3, True)
