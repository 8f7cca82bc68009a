"""Questions among the nodes of a store on Redis."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import redis.asyncio

from synap_realtime.server.stores.base import Survey, SurveyHandler
from synap_realtime.server.stores.redis import survey
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.keys import KeySpace
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.polling import until_ready
from tests.support.program import free_port
from tests.support.timeouts import TIMEOUT_S, scaled

OpenNode = Callable[[SurveyHandler], Awaitable[RedisStore]]


def answer(question: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return {"got": dict(arguments)} if question == "known" else None


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """On a standalone server, unless a test names another kind."""
    server = request.getfixturevalue(getattr(request, "param", "valkey"))
    return f"{server}?prefix={secrets.token_hex(4)}"


@pytest.fixture
async def open_node(url: str) -> AsyncIterator[OpenNode]:
    """Open a node that is listed and receives."""
    opened: list[RedisStore] = []

    async def opener(handler: SurveyHandler) -> RedisStore:
        store = RedisStore(parse_address(url))
        store.answer_surveys(handler)
        opened.append(store)
        await until_ready(store)
        return store

    yield opener
    for store in opened:
        await store.close()


async def until_asked(store: RedisStore, count: int) -> Survey:
    """Ask until so many others are listed."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await store.survey("known", {"room": "user_1"})
            if found.asked == count:
                return found


@pytest.mark.parametrize("url", ["valkey", "sentinel", "cluster"], indirect=True)
async def test_all_other_nodes_answer(open_node: OpenNode) -> None:
    nodes = [await open_node(answer) for _ in range(3)]
    for node in nodes:
        found = await until_asked(node, 2)
        assert list(found.answers.values()) == [{"got": {"room": "user_1"}}] * 2


async def test_answers_take_no_longer_than_they_need(open_node: OpenNode) -> None:
    first, _ = await open_node(answer), await open_node(answer)
    await until_asked(first, 1)
    began_at = time.monotonic()
    for _ in range(20):
        await first.survey("known", {})
    assert time.monotonic() - began_at < scaled(1.0)


async def test_alone_a_node_waits_for_nobody(open_node: OpenNode) -> None:
    node = await open_node(answer)
    assert await node.survey("known", {}) == Survey({}, 0)


async def test_node_that_does_not_know_the_question_is_not_waited_for(open_node: OpenNode) -> None:
    first, _ = await open_node(answer), await open_node(answer)
    await until_asked(first, 1)
    began_at = time.monotonic()
    assert await first.survey("of a newer version", {}) == Survey({}, 1)
    assert time.monotonic() - began_at < survey.TIMEOUT_S


async def test_silent_node_is_missing_after_a_second(open_node: OpenNode, url: str) -> None:
    first, _ = await open_node(answer), await open_node(answer)
    await until_asked(first, 1)
    nodes = KeySpace(parse_address(url).prefix).nodes
    async with redis.asyncio.Redis.from_url(url.partition("?")[0]) as client:
        await client.zadd(nodes, {"dead": time.time() * 1_000_000})
    began_at = time.monotonic()
    found = await first.survey("known", {})
    assert (len(found.answers), found.asked) == (1, 2)
    assert survey.TIMEOUT_S * 0.9 < time.monotonic() - began_at < scaled(2 * survey.TIMEOUT_S)


async def test_node_that_sent_no_probe_for_its_lifetime_is_not_asked(
    open_node: OpenNode, url: str
) -> None:
    node = await open_node(answer)
    nodes = KeySpace(parse_address(url).prefix).nodes
    async with redis.asyncio.Redis.from_url(url.partition("?")[0]) as client:
        await client.zadd(nodes, {"dead": (time.time() - 11) * 1_000_000})
    assert await node.survey("known", {}) == Survey({}, 0)


async def test_closed_node_is_not_asked(open_node: OpenNode) -> None:
    first, second = await open_node(answer), await open_node(answer)
    await until_asked(first, 1)
    await second.close()
    assert await first.survey("known", {}) == Survey({}, 0)


@pytest.mark.parametrize("length", [survey.MAX_ANSWER_BYTES, 10 * survey.MAX_ANSWER_BYTES])
async def test_answer_that_is_too_long_is_missing(open_node: OpenNode, length: int) -> None:
    def answer_at_length(question: str, _: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"text": "x" * length if question == "long" else ""}

    first, _ = await open_node(answer), await open_node(answer_at_length)
    await until_asked(first, 1)
    assert await first.survey("long", {}) == Survey({}, 1)
    assert len((await first.survey("known", {})).answers) == 1


async def test_failing_handler_is_missing_and_logged(
    open_node: OpenNode, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(question: str, _: Mapping[str, Any]) -> Mapping[str, Any]:
        raise ZeroDivisionError(question)

    first, _ = await open_node(answer), await open_node(fail)
    await until_asked(first, 1)
    with caplog.at_level(logging.ERROR):
        assert await first.survey("known", {}) == Survey({}, 1)
    assert "a question of another node failed; question=known" in caplog.text


async def test_questions_over_the_bounds_are_not_asked(
    open_node: OpenNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await open_node(answer), await open_node(answer)
    await until_asked(first, 1)
    long = {"text": "x" * survey.MAX_QUESTION_BYTES}
    assert await first.survey("known", long) == Survey({}, None)
    monkeypatch.setattr(survey, "MAX_OPEN", 2)
    found = await asyncio.gather(*(first.survey("known", {}) for _ in range(5)))
    assert sorted(len(each.answers) for each in found) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b"[]", b"{}", b'{"id":[],"node":"x","answer":{}}', b'"x"', b"1",
     b'{"id":"x","from":"y","question":"known","arguments":3}', b"[" * 5000,
     b'{"id":"x","from":"\\ud800","question":"known","arguments":{}}'],
)  # fmt: skip
async def test_malformed_messages_are_ignored(
    open_node: OpenNode, url: str, payload: bytes
) -> None:
    first, second = await open_node(answer), await open_node(answer)
    await until_asked(first, 1)
    prefix = parse_address(url).prefix
    async with redis.asyncio.Redis.from_url(url.partition("?")[0]) as client:
        channels = await client.pubsub_shardchannels(f"{prefix}:*survey*")
        assert len(channels) == 3
        for channel in channels:
            await client.spublish(channel, payload)
    for node in (first, second):
        assert len((await node.survey("known", {})).answers) == 1


async def test_without_redis_nobody_answers_within_a_second() -> None:
    store = RedisStore(parse_address(f"redis://127.0.0.1:{free_port()}"))
    began_at = time.monotonic()
    assert await store.survey("known", {}) == Survey({}, None)
    assert time.monotonic() - began_at < scaled(2 * survey.TIMEOUT_S)
    await store.close()
