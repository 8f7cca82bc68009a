"""Records of jobs on Redis that several nodes change."""

from __future__ import annotations

import asyncio

import pytest

from synap_realtime.protocol.job_state import JobRecord
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import JobQuery, Publication, Retention
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.jobs import MAX_KNOWN_LENGTH
from synap_realtime.server.stores.redis.keys import KeySpace
from synap_realtime.server.stores.redis.store import RedisStore
from tests.server.stores.conftest import Clock
from tests.support.folding import write
from tests.support.jobs import REQUEST, lifecycle, report
from tests.support.stores import ids, publication
from tests.support.valkey import Valkey

KEYS = KeySpace("synap").of_room(REQUEST)
Nodes = tuple[RedisStore, RedisStore]


async def record_of(store: RedisStore, job_id: str = "q1") -> JobRecord:
    record = (await store.get_job(REQUEST, job_id)).record
    assert record is not None
    return record


def scripts_run(server: Valkey) -> int:
    return int(server.client().info("commandstats")["cmdstat_evalsha"]["calls"])


async def test_nodes_change_a_record_one_after_another(nodes: Nodes) -> None:
    await report(nodes[0], "started", at=1, attempt=1)
    for number in range(1, 10):
        await report(nodes[number % 2], "progress", at=number, progress=number / 10)
        assert (await record_of(nodes[0])).progress == number / 10
    await report(nodes[0], "completed", at=20, title="T")
    await report(nodes[1], "progress", at=21, progress=0.5)
    for store in nodes:
        assert (await record_of(store)).status == "completed"


async def test_concurrent_events_are_all_in_the_record_in_the_order_of_the_log(
    nodes: Nodes,
) -> None:
    await report(nodes[0], "started", at=0)
    for start in range(0, 100, 10):
        await asyncio.gather(
            *(
                report(nodes[n % 2], "progress", at=start + n, id=f"{start}:{n}", label=f"{n}")
                for n in range(10)
            )
        )
        (label,) = [event.rpartition(":")[2] for event in (await ids(nodes[0], REQUEST))[-1:]]
        assert (await record_of(nodes[1])).label == label
    assert len(await ids(nodes[0], REQUEST)) == 101


async def test_refused_batch_is_stored_in_its_order(nodes: Nodes) -> None:
    """The record is another one than the node knows: it publishes from there again."""
    await report(nodes[0], "started", at=1)
    await report(nodes[1], "progress", at=2, label="other")
    others = [Publication(REQUEST, f"n{n}", f'{{"id":"n{n}"}}') for n in range(2)]
    elsewhere = publication("m0", Room("user_1"))
    results = await nodes[0].publish(
        [
            others[0],
            lifecycle("progress", at=3, id="a", progress=0.3),
            elsewhere,
            others[1],
            lifecycle("progress", at=4, id="b", progress=0.4),
            lifecycle("completed", at=5, id="c"),
        ]
    )
    assert not any(result.duplicate or result.conflict for result in results)
    assert (await ids(nodes[0], REQUEST))[2:] == ["n0", "a", "n1", "b", "c"]
    record = await record_of(nodes[0])
    assert (record.status, record.label) == ("completed", "other")


async def test_batch_about_many_jobs_of_another_node_is_stored(nodes: Nodes) -> None:
    """As after a restart of the node: the first call tells what the records are, all at once."""
    jobs = [f"q{number}" for number in range(60)]
    room = Room("user_1")
    await nodes[0].publish(
        [lifecycle("started", f"r{id}", at=1, request=id, room=room) for id in jobs]
    )
    batch = [
        lifecycle("progress", f"r{id}", at=2 + n, id=f"{id}:{n}", request=id, room=room, label="x")
        for id in jobs
        for n in range(5)
    ]
    results = await nodes[1].publish(batch)
    assert not any(result.duplicate or result.conflict for result in results)
    records = (await nodes[0].list_jobs(room, JobQuery(100))).records
    assert [record.label for record in records] == ["x"] * 60


async def test_batch_with_many_conflicts_is_answered(nodes: Nodes) -> None:
    """Each of them leaves the record as it was, and the events after it are folded into that."""
    room = Room("user_1")
    for number in range(64):
        await write(nodes[0], f"p{number}", piece="x", key=f"k{number}", room=room)
    fold = {"key": "r1:progress", "mode": "replace"}
    batch = [lifecycle("started", at=1, room=room)]
    batch += [
        lifecycle("progress", at=2, id=f"{n}", room=room, fold=fold, label="x") for n in range(30)
    ]
    results = await nodes[0].publish([*batch, lifecycle("completed", at=3, room=room)])
    codes = [result.conflict and result.conflict.code for result in results]
    assert codes == [None, *["too_many_keys"] * 30, None]
    (record,) = (await nodes[1].list_jobs(room, JobQuery(10))).records
    assert (record.status, record.label) == ("completed", None)


async def test_event_costs_one_call_while_one_node_reports_it(
    nodes: Nodes, empty_valkey: Valkey
) -> None:
    await nodes[0].usage()
    empty_valkey.command("CONFIG", "RESETSTAT")
    await report(nodes[0], "started", at=1)
    for number in range(100):
        await report(nodes[0], "progress", at=number, progress=number / 100)
    assert scripts_run(empty_valkey) <= 101 + 20, "the node probes each second"


async def test_large_record_is_not_remembered_and_still_right(nodes: Nodes) -> None:
    await report(nodes[0], "started", at=1)
    for number in range(3):
        await report(nodes[0], "progress", at=number, label="x" * MAX_KNOWN_LENGTH + str(number))
    assert (await record_of(nodes[0])).label == "x" * MAX_KNOWN_LENGTH + "2"


async def test_records_that_were_lost_are_not_continued(nodes: Nodes, empty_valkey: Valkey) -> None:
    """As by a failover: the node knows a record that the server lacks."""
    await report(nodes[0], "started", at=1)
    await report(nodes[0], "progress", at=2, label="lost")
    empty_valkey.command("DEL", KEYS.jobs.decode())
    await report(nodes[0], "progress", at=3, progress=0.5)
    record = await record_of(nodes[0])
    assert (record.status, record.label, record.progress) == ("running", None, 0.5)


async def test_what_was_deleted_leaves_nothing_in_redis(empty_valkey: Valkey, clock: Clock) -> None:
    store = RedisStore(
        parse_address(empty_valkey.url), Retention(job_count=3, job_age_s=100), clock=clock
    )
    for number in range(20):
        clock.now += 1
        run = f"r{number}"
        await write(store, f"p{number}", piece="text", key=f"{run}:text", room=REQUEST)
        await report(store, "completed", run, at=number, request=f"q{number}")
    # Header, place, run, record, text and mark of three records, and the sum of their sizes.
    assert empty_valkey.command("HLEN", KEYS.jobs.decode()) == 3 * 6 + 1
    assert empty_valkey.command("ZCARD", KEYS.job_index.decode()) == 3
    clock.now += 200
    await report(store, "started", "r99", at=99, request="q99")
    assert empty_valkey.command("HLEN", KEYS.jobs.decode()) == 4 + 1
    page = await store.list_jobs(REQUEST, JobQuery(10))
    assert [record.job_id for record in page.records] == ["q99"]
    await store.close()


@pytest.mark.parametrize("name", [KEYS.jobs, KEYS.job_index, KEYS.job_times])
async def test_keys_of_another_type_are_an_error_and_nothing_is_stored(
    nodes: Nodes, empty_valkey: Valkey, name: bytes
) -> None:
    empty_valkey.command("SET", name.decode(), "other")
    with pytest.raises(Exception, match="another type"):
        await report(nodes[0], "started", at=1)
    assert await ids(nodes[0], REQUEST) == []
    empty_valkey.command("DEL", name.decode())
    assert not (await report(nodes[0], "started", at=1)).duplicate


async def test_control_room_keeps_no_records(nodes: Nodes) -> None:
    room = Room("synap_revocations")
    await report(nodes[0], "started", at=1, room=room)
    assert len(await ids(nodes[0], room)) == 1
    assert (await nodes[0].get_job(room, "q1")).record is None
