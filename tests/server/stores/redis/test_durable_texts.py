"""What a piece of a text that was answered may rely on, by the level of durability."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import JobStore, Retention, Store
from tests.support.durability import Pair, running_pair
from tests.support.folding import write
from tests.support.jobs import lifecycle
from tests.support.polling import until_ready
from tests.support.stores import USER
from tests.support.valkey import PROGRAMS, running_valkey


@pytest.fixture(params=PROGRAMS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with running_pair(tmp_path, request.param) as pair:
        yield pair


async def text_in(store: Store) -> str:
    """Return the text that the log contains as one entry."""
    (entry,) = (await store.read(USER, store.earliest(), 10)).entries
    text: str = json.loads(entry.text)["data"]["delta"]
    return text


async def test_an_answered_piece_is_at_a_replica(pair: Pair) -> None:
    store = pair.open("replica")
    text = ""
    for number, piece in enumerate(["é" * 700, "b" * 900, "", "c"]):  # in more than one part
        await write(store, f"p{number}", piece=piece, offset=len(text))
        text += piece
    pair.primary.kill()
    pair.promote()
    await store.close()
    promoted = open_store(pair.replica.url, Retention())
    await until_ready(promoted)
    assert await text_in(promoted) == text
    last = await write(promoted, "p9", piece="d", offset=len(text), final=True)
    assert last.conflict is None, "the text goes on"
    await promoted.close()


async def test_a_piece_that_no_replica_has_is_refused_and_can_be_repeated(pair: Pair) -> None:
    """Also at another node, whose connection has written nothing yet."""
    first, other = pair.open("replica"), pair.open("replica")
    await write(first, "p0", piece="Hello", offset=0)
    await other.head(USER)
    pair.replica.signal(signal.SIGSTOP)
    for store in (first, other, first):
        with pytest.raises(StoreUnavailableError, match="no replica has confirmed"):
            await write(store, "p1", piece=" world", offset=5)
    pair.replica.signal(signal.SIGCONT)
    pair.until_confirmed()
    for store in (other, first):
        assert (await write(store, "p1", piece=" world", offset=5)).conflict is None
        assert await text_in(store) == "Hello world", "it was stored once"
    for store in (first, other):
        await store.close()


async def test_an_answered_end_of_a_job_is_at_a_replica(pair: Pair) -> None:
    store = pair.open("replica")
    started, ended = lifecycle("started", at=1), lifecycle("completed", at=2, title="T")
    await store.publish([started])
    pair.replica.signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailableError, match="no replica has confirmed"):
        await store.publish([ended])
    pair.replica.signal(signal.SIGCONT)
    pair.until_confirmed()
    await store.publish([ended])
    pair.primary.kill()
    pair.promote()
    await store.close()
    promoted = open_store(pair.replica.url, Retention())
    await until_ready(promoted)
    assert isinstance(promoted, JobStore)
    record = (await promoted.get_job(ended.room, "q1")).record
    assert record is not None
    assert (record.status, record.result) == ("completed", {"title": "T"})
    await promoted.close()


@pytest.mark.parametrize("program", PROGRAMS)
async def test_an_answered_piece_is_on_the_disk(tmp_path: Path, program: Path) -> None:
    with running_valkey(tmp_path / "server", program=program) as server:
        store = open_store(f"{server.url}?durability=disk", Retention())
        text = ""
        for number in range(5):
            await write(store, f"p{number}", piece=f"é{number} " * 200, offset=len(text))
            text += f"é{number} " * 200
            server.restart()
            await until_ready(store)
            assert await text_in(store) == text
        await store.close()
