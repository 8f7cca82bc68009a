"""Memory held for peers is bounded in bytes: requests, responses, and backlogs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import re
import socket
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import pytest

from synap_realtime.server import RoomServer
from synap_realtime.server.auth.claims import Claims
from synap_realtime.server.messages import Request, RequestError
from synap_realtime.server.protocols import server
from synap_realtime.server.resources.byte_budget import (
    BacklogBudget,
    ByteBudget,
    Caller,
    NoRoomError,
    caller_of,
)
from synap_realtime.server.resources.trim import (
    ATTEMPTS,
    CHECK_INTERVAL_S,
    CONNECTION_BYTES,
    MAX_SHARE,
    MIN_BYTES,
    MIN_HELD_BYTES,
    Trimmer,
)
from synap_realtime.server.serve import running_server
from synap_realtime.server.stores.base import Entry
from synap_realtime.tokens import mint_token
from tests.support.credentials import API_KEY, SECRET
from tests.support.raw_http import CHUNKED, HANDSHAKE, HEALTH, ROOM, bearer, http, peer, publish
from tests.support.servers import keyed_app, open_app
from tests.support.timeouts import TIMEOUT_S

from .conftest import Run

MIB = 1024 * 1024
LARGE = json.dumps({"type": "a", "data": {"x": "y" * 200_000}}).encode()


async def metric(url: str, name: str, **labels: str) -> float:
    """Of a server without keys, or with those of ``keyed_app``."""
    token = mint_token("ops", secret=SECRET, scope="metrics")
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
    shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.search(rf"^synap_realtime_{name}\{{{shown}\}} (\S+)$", response.text, re.MULTILINE)
    assert found, (name, response.text[:500])
    return float(found[1])


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await check():  # noqa: ASYNC110 - it is asked for over HTTP
            await asyncio.sleep(0.05)


async def is_below(most: float, value: Awaitable[float]) -> bool:
    return await value < most


async def is_some(value: Awaitable[float]) -> bool:
    return await value > 0


async def cuts(url: str, *kinds: str) -> float:
    return sum([await metric(url, "held_bytes_cuts_total", kind=kind) for kind in kinds])


async def filled(url: str, *fields: bytes, count: int = 10) -> None:
    """A room with 2 MB."""
    async with peer(url) as client:
        for _ in range(count):
            await client.say(publish(*fields, body=LARGE))
            assert await client.status() == 200


# --- the budget ---------------------------------------------------------------------------------


class Connection:
    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.is_cut = False

    def over_budget(self) -> None:
        self.is_cut = True


def callers(*names: str) -> list[Caller]:
    return [Caller(name, is_bounded=True) for name in names]


def test_budget_closes_the_largest_connection_of_the_heaviest_caller() -> None:
    budget = ByteBudget(1000, 0)
    heavy, light = callers("heavy", "light")
    many = [Connection(budget) for _ in range(9)]
    one = Connection(budget)
    budget.hold(one, light, 150)  # more than each of the others
    for each in many:
        budget.hold(each, heavy, 100)
    assert not one.is_cut
    assert budget.bytes <= 875
    assert sum(each.is_cut for each in many) == 2


def test_budget_of_a_caller_does_not_touch_others() -> None:
    cuts: list[None] = []
    budget = ByteBudget(0, 100, lambda: cuts.append(None))
    first, second = callers("first", "second")
    held = [Connection(budget) for _ in range(3)]
    budget.hold(held[0], first, 60)
    budget.hold(held[1], second, 90)
    budget.hold(held[2], first, 61)
    assert [each.is_cut for each in held] == [False, False, True]
    assert (budget.bytes, len(cuts)) == (150, 1)


def test_budget_of_a_caller_is_not_for_keys_and_loopback() -> None:
    budget = ByteBudget(0, 100)
    here = Connection(budget)
    budget.hold(here, caller_of(None, "127.0.0.1"), 1000)
    assert not here.is_cut
    there = Connection(budget)
    budget.hold(there, caller_of(None, "192.0.2.1"), 1000)
    assert there.is_cut


@pytest.mark.parametrize(
    ("claims", "is_bounded"),
    [
        (Claims(key_name="jobs"), False),
        (Claims(user="1"), True),
        (Claims(token_id="t1"), True),
    ],
)
def test_budget_of_a_caller_is_for_users_and_tokens_wherever_they_are(
    claims: Claims, is_bounded: bool
) -> None:
    budget = ByteBudget(0, 100)
    one = Connection(budget)
    budget.hold(one, caller_of(claims, "127.0.0.1"), 1000)
    assert one.is_cut is is_bounded


def test_budget_spares_light_callers_while_heavy_ones_remain() -> None:
    budget = ByteBudget(1000, 0)
    heavy = [Connection(budget) for _ in range(8)]
    light = [Connection(budget) for _ in range(81)]
    for n, each in enumerate(light):
        budget.hold(each, Caller(f"light {n}", is_bounded=True), 10)
    for n, each in enumerate(heavy):  # the last of them are too much
        budget.hold(each, Caller(f"heavy {n % 2}", is_bounded=True), 25)
    assert budget.bytes <= 875
    assert not any(each.is_cut for each in light)


def test_budget_keeps_no_state_of_a_disconnected_caller() -> None:
    """Strangers have addresses without end."""

    class Name(str):
        __slots__ = ("__weakref__",)

    budget = ByteBudget(1000, 1000)
    name = Name("address 192.0.2.1")
    gone = weakref.ref(name)
    connection = Connection(budget)
    budget.hold(connection, Caller(name, is_bounded=True), 10)
    budget.release(connection)
    del name
    gc.collect()
    assert gone() is None


def test_budget_forgets_released_connections() -> None:
    budget = ByteBudget(1000, 1000)
    (caller, other) = callers("a", "b")
    connection = Connection(budget)
    for size in (10, 500, 20):
        budget.hold(connection, caller, size)
        assert budget.bytes == size
    budget.hold(connection, other, 30)  # it has said who it is
    assert budget.bytes == 30
    budget.hold(connection, other, 0)
    budget.release(connection)
    assert budget.bytes == 0


def test_backlog_budget_of_all_closes_the_largest_backlog() -> None:
    budget = BacklogBudget(10_000, 0)

    class Slow(Connection):
        def __init__(self, *entries: Any) -> None:
            super().__init__(ByteBudget(0, 0))
            self.entries = entries

        def over_budget(self) -> None:
            super().over_budget()
            for entry in self.entries:
                budget.remove(entry)

    small, large = [
        Slow(*[Entry(None, "x", 1000) for _ in range(count)])  # type: ignore[arg-type]
        for count in (2, 8)
    ]
    for each, name in ((small, "a"), (large, "b")):
        for entry in each.entries:
            budget.add(entry)
        budget.charge(each, Caller(name, is_bounded=True), 1000 * len(each.entries))
    assert (small.is_cut, large.is_cut) == (False, True)
    assert budget.bytes <= 10_000


def test_reserves_for_a_caller_as_much_as_stays_free_for_others() -> None:
    budget = ByteBudget(1000, 0)
    first, second, third = callers("a", "b", "c")
    for caller, least in ((first, 450), (second, 200), (third, 100)):
        held = 0
        with contextlib.suppress(NoRoomError):
            while True:
                budget.reserve(Connection(budget), caller, 10)
                held += 10
        assert least <= held <= 1000 - budget.bytes + held - 10


def test_reserves_within_the_bound_of_a_caller() -> None:
    budget = ByteBudget(1000, 100)
    caller, other = callers("a", "b")
    connection = Connection(budget)
    budget.reserve(connection, caller, 60)
    budget.reserve(connection, caller, 90)  # instead
    with pytest.raises(NoRoomError) as caught:
        budget.reserve(Connection(budget), caller, 20)
    assert (caught.value.max_bytes, caught.value.is_of_caller) == (100, True)
    budget.reserve(Connection(budget), other, 20)
    budget.adjust(connection, 200)
    assert (budget.bytes, connection.is_cut) == (220, False)
    budget.release(connection)
    budget.adjust(connection, 50)
    assert budget.bytes == 20


def test_backlog_budget_counts_a_shared_notification_once() -> None:
    budget = BacklogBudget(10_000, 0)
    (caller,) = callers("a")
    entry: Any = Entry(None, "x", 5000)  # type: ignore[arg-type]
    subscribers = [Connection(ByteBudget(0, 0)) for _ in range(20)]
    for each in subscribers:
        budget.add(entry)
        budget.charge(each, caller, 5000)
    assert not any(each.is_cut for each in subscribers)
    for each in subscribers:
        budget.remove(entry)
        budget.charge(each, caller, 0)
    assert budget.bytes == 0


class Process:
    """A process whose size is known.

    Attributes:
        taken: bytes that are in use.
        freed: bytes that were freed and are still in physical memory.
    """

    def __init__(self) -> None:
        self.taken = 50 * MIB
        self.freed = self.trims = 0
        self.is_known = True

    def resident(self) -> int | None:
        return self.taken + self.freed if self.is_known else None

    def trim(self) -> None:
        self.trims += 1
        self.freed = 0


def test_trims_freed_memory_after_any_load() -> None:
    """A flood may come and go between two looks."""
    process, held = Process(), 0
    trimmer = Trimmer(lambda: held, process)
    trimmer.check()
    process.freed = 2 * MIN_BYTES
    trimmer.check()
    assert (process.trims, process.freed) == (1, 0)
    process.freed = MIN_BYTES // 2
    trimmer.check()
    assert process.trims == 1, "too little to be worth while"


def test_does_not_trim_for_memory_held_for_peers() -> None:
    process, held = Process(), 0
    trimmer = Trimmer(lambda: held, process)
    for size in (0, 2 * MIN_BYTES, 4 * MIN_BYTES):
        process.taken += size - held
        held = size
        trimmer.check()
        assert process.trims == 0
    process.taken, process.freed, held = process.taken - held, held, 0
    trimmer.check()
    assert (process.trims, process.freed) == (1, 0)


def test_trims_again_after_a_trim_in_the_middle_of_a_flood() -> None:
    """Peers have taken much more than is known."""
    process, held, taken = Process(), MIB, 15 * MIB
    trimmer = Trimmer(lambda: held, process)
    trimmer.check()
    process.taken += taken
    trimmer.check()
    assert process.trims == 1
    process.taken, process.freed, held = process.taken - taken, taken, 0
    trimmer.check()
    assert (process.trims, process.freed) == (2, 0)


async def test_remembers_the_size_before_an_early_flood() -> None:
    process = Process()
    trimmer = Trimmer(lambda: 0, process)
    trimmer.start()
    process.freed = 2 * MIN_BYTES
    trimmer.on_timer()
    assert (process.trims, process.freed) == (1, 0)
    trimmer.close()


async def test_trims_after_a_flood_without_waiting_for_the_next_attempt() -> None:
    process, held = Process(), 0
    trimmer = Trimmer(lambda: held, process)
    trimmer.on_timer()
    held = MIN_HELD_BYTES
    process.taken += 10 * MIN_BYTES  # much more than is known
    for _ in range(10):
        trimmer.on_timer()
    attempts = process.trims
    assert attempts < ATTEMPTS, "a pause has begun"
    process.taken, process.freed, held = process.taken - 10 * MIN_BYTES, 10 * MIN_BYTES, 0
    trimmer.on_timer()
    assert (process.trims, process.freed) == (attempts + 1, 0)
    trimmer.close()


def test_ineffective_trims_are_bounded() -> None:
    process = Process()
    trimmer = Trimmer(lambda: 0, process)
    trimmer.check()
    process.taken += 5 * MIN_BYTES
    pauses = [trimmer.check() for _ in range(20)]
    assert process.trims == ATTEMPTS
    assert pauses[:3] == [2 * CHECK_INTERVAL_S, 4 * CHECK_INTERVAL_S, 8 * CHECK_INTERVAL_S]
    assert pauses[-1] == CHECK_INTERVAL_S
    process.freed = 3 * MIN_BYTES
    trimmer.check()
    assert process.freed == 0


def test_busy_process_is_trimmed_after_a_peak_of_held_memory() -> None:
    process, held = Process(), 0
    trimmer = Trimmer(lambda: held, process, is_alone=False)
    trimmer.check()
    process.freed = 5 * MIN_BYTES
    trimmer.check()
    assert process.trims == 0
    held = MIN_HELD_BYTES
    trimmer.check()
    held = 0
    trimmer.check()
    assert (process.trims, process.freed) == (1, 0)


def test_trims_take_a_bounded_share_of_the_loop() -> None:
    process, times = Process(), iter([0.0, 0.08])
    trimmer = Trimmer(lambda: 0, process, clock=lambda: next(times))
    trimmer.check()
    process.freed = 2 * MIN_BYTES
    assert trimmer.check() == pytest.approx(0.08 / MAX_SHARE)


def test_does_not_trim_while_the_size_of_the_process_is_unknown() -> None:
    process = Process()
    trimmer = Trimmer(lambda: 0, process)
    trimmer.check()
    process.is_known, process.freed = False, 100 * MIB
    trimmer.check()
    assert process.trims == 0
    process.is_known = True
    trimmer.check()
    assert process.trims == 1


def test_open_connections_count_as_held_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,500 of them would leave 35 MB to the C library, whatever was answered on them."""
    held: list[Callable[[], int]] = []

    def trimmer(of: Callable[[], int]) -> Trimmer:
        held.append(of)
        return Trimmer(of, Process())

    monkeypatch.setattr(server, "Trimmer", trimmer)

    async def test() -> None:
        async with running_server(open_app()) as url:
            for _ in range(2):
                async with peer(url) as first, peer(url) as second:
                    for each in (first, second):
                        await each.say(HEALTH)
                        assert await each.status() == 200
                    assert held[0]() >= 2 * CONNECTION_BYTES
                async with asyncio.timeout(TIMEOUT_S):
                    while held[0]():  # noqa: ASYNC110 - the server notices their ends
                        await asyncio.sleep(0.01)

    run(test())


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["history", "events?after=earliest"])
def test_closes_caller_that_requests_on_many_sockets_without_reading(run: Run, route: str) -> None:
    async def test() -> None:
        limit = 1 * MIB
        app = keyed_app(max_response_bytes=limit, max_caller_bytes=limit // 2)
        async with running_server(app) as url:
            await filled(url, bearer(API_KEY))
            asked = http(
                b"GET " + ROOM + b"/" + route.encode(), bearer(mint_token("1", secret=SECRET))
            )
            greedy = [await silent(url, asked) for _ in range(30)]
            await until(lambda: is_some(cuts(url, "responses", "backlogs")))
            assert await metric(url, "held_bytes", kind="responses") <= limit // 2
            async with peer(url) as other:  # another user has an answer
                await other.say(http(b"GET /rooms/user_2/history", bearer(
                    mint_token("2", secret=SECRET))))  # fmt: skip
                assert await other.status() == 200
            for each in greedy:
                each.close()
            await until(lambda: is_below(1, metric(url, "held_bytes", kind="responses")))

    run(test())


async def silent(url: str, sent: bytes) -> socket.socket:
    """Sends, and reads nothing."""
    where = httpx.URL(url)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, (where.host, where.port))
    await loop.sock_sendall(raw, sent)
    return raw


def test_charges_responses_in_kernel_buffers(run: Run) -> None:
    """They are written whole, and the connection is idle; the memory is taken all the same."""

    async def test() -> None:
        async with running_server(open_app()) as url:
            await filled(url, count=1)
            raw = await silent(url, http(b"GET " + ROOM + b"/history?limit=1"))
            await until(lambda: is_some(metric(url, "held_bytes", kind="responses")))
            raw.setblocking(False)
            got = 0
            while got < 200_000:
                got += len(await asyncio.get_running_loop().sock_recv(raw, 1 << 16))
            await until(lambda: is_below(1, metric(url, "held_bytes", kind="responses")))
            raw.close()

    run(test())


def test_long_history_comes_in_chunks_and_short_with_its_length(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url:
            await filled(url, count=3)
            async with peer(url) as client:
                await client.say(http(b"GET " + ROOM + b"/history"))
                _, fields, body = await client.answer()
                assert fields["transfer-encoding"] == "chunked"
                assert "content-length" not in fields
                answer = json.loads(body)
                assert len(answer["notifications"]) == 3
                assert (answer["recovered"], answer["more"]) == (True, False)
                await client.say(http(b"HEAD " + ROOM + b"/history") + HEALTH)
                assert (await client.answer(has_body=False))[0] == 200
                assert (await client.answer())[2] == b'{"status":"ok"}'
                after = answer["cursor"].encode()
                await client.say(http(b"GET " + ROOM + b"/history?after=" + after))
                _, fields, body = await client.answer()
                assert int(fields["content-length"]) == len(body)
            async with peer(url) as client:  # HTTP/1.0 knows no chunks
                await client.say(http(b"GET " + ROOM + b"/history", version=b"1.0"))
                head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
                assert b"chunked" not in head
                assert json.loads(body) == answer

    run(test())


# --- requests -----------------------------------------------------------------------------------

HALVES = {
    "half a head": b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 30_000,
    "many fields": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(
        b"X%d:\r\n" % n for n in range(250)
    ),
    "half a body": publish(body=b"x" * 60_000)[:-30_000],
    "pipelined": http(b"GET /rooms/user_1/history") + http(b"GET /health", b"X: " + b"x" * 99) * 80,
}  # fmt: skip


@pytest.mark.parametrize("half", HALVES)
def test_closes_caller_with_the_most_incomplete_requests(run: Run, half: str) -> None:
    async def test() -> None:
        limit = 512 * 1024
        async with running_server(open_app(max_request_bytes=limit)) as url:
            await filled(url, count=4)
            many = [await silent(url, HALVES[half]) for _ in range(40)]
            await until(lambda: is_some(metric(url, "held_bytes_cuts_total", kind="requests")))
            assert 0 < await metric(url, "held_bytes", kind="requests") <= limit
            for each in many:
                each.close()
            # Only the request for the metrics is left.
            held = partial(metric, url, "held_bytes", kind="requests")
            await until(lambda: is_below(10_000, held()))

    run(test())


@pytest.mark.parametrize(
    "target", [b"/" + b"a/" * 30_000, b"/?" + b"a=b&" * 15_000, b"/" + b"x" * 62_000]
)
def test_rejects_target_over_8_kib(run: Run, target: bytes) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url:
            for _ in range(3):
                async with peer(url) as client:
                    await client.say(http(b"GET " + target))
                    status, _, body = await client.answer()
                    assert (status, json.loads(body)["code"]) == (414, "payload_too_large")
                    assert await client.has_ended()

    run(test())


@pytest.mark.parametrize("query", ["&".join(["a=b"] * 33), "a&" * 100, "a=b;" * 50 + "&" * 40])
def test_query_has_a_bounded_number_of_fields(query: str) -> None:
    request = Request("GET", "/health", query, {})
    with pytest.raises(RequestError, match="Invalid query"):
        request.parse_target()


def test_path_has_a_bounded_number_of_segments() -> None:
    request = Request("GET", "/a%61" * 2000, "", {})
    request.parse_target()
    assert len(request.path_segments) < 50


# --- backlogs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["websocket", "sse", "replay"])
def test_closes_the_slowest_of_a_user_over_the_budget(run: Run, transport: str) -> None:
    async def test() -> None:
        app = keyed_app(max_caller_bytes=600_000)
        token = bearer(mint_token("1", secret=SECRET))
        if transport == "sse":
            asked = http(b"GET " + ROOM + b"/events?after=latest", token)
        else:
            after = b"earliest" if transport == "replay" else b"latest"
            asked = http(b"GET " + ROOM + b"/subscribe?after=" + after, token, *HANDSHAKE)
        async with running_server(app) as url:
            if transport == "replay":
                await filled(url, bearer(API_KEY), count=8)
            stalled = [await silent(url, asked) for _ in range(6)]
            if transport != "replay":
                await until(lambda: is_below(1, missing(url, 6)))
                await filled(url, bearer(API_KEY), count=4)
            await until(lambda: is_some(cuts(url, "responses", "backlogs")))
            for each in stalled:
                each.close()
            await until(lambda: is_below(1, metric(url, "held_bytes", kind="backlogs")))

    run(test())


async def missing(url: str, count: int) -> float:
    """How many subscribers of the room are still to come."""
    token = mint_token("1", secret=SECRET)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers) as client:
        health = (await client.get("/rooms/user_1/health")).json()
    return count - float(health["connections"])


# --- whatever comes -----------------------------------------------------------------------------

AFTER_THE_LAST = [
    b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\nX",
    http(b"GET /health", b"Connection: close") + b"\0",
    http(b"GET /health", b"Connection: close") + HEALTH,
    http(b"GET /health", version=b"1.0") + b"GET",
    http(b"GET /rooms/user_1/history", b"Connection: close") + b"X" * 100,
    http(b"GET /rooms/user_1/events", b"Connection: close") + b"X" * 100,
    publish(b"Connection: close") + b"X",
    http(b"GET /health", b"Upgrade: x", b"Connection: Upgrade, close") + b"X",
    HEALTH + b"\0" + HEALTH,
    b"\0" * 3 + HEALTH,
    http(b"GET /") + http(b"GET /", b"Connection: close") * 3 + b"X",
]


@pytest.mark.parametrize("sent", AFTER_THE_LAST)
def test_bytes_after_the_last_request_are_no_error(
    run: Run, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with running_server(open_app()) as url:
            for start in range(0, len(sent), 7):
                async with peer(url) as client:
                    await client.say(sent[:start])
                    await asyncio.sleep(0)
                    await client.say(sent[start:])
                    if b"/events" not in sent:
                        await client.has_ended()
            assert not errors

    run(test())


SEEDS = [
    HEALTH, publish(), http(b"GET /rooms/user_1/subscribe", *HANDSHAKE) + b"\x81\x84aaaa\x11\x08",
    http(b"GET /rooms/user_1/history"), http(b"GET /rooms/user_1/events"),
    http(b"POST /broadcast", CHUNKED, body=b"5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
    http(b"POST /rooms/user_1/broadcast", b"Expect: 100-continue", b"Content-Length: 5"),
    http(b"OPTIONS *"), http(b"GET http://x/health", version=b"1.0"), *AFTER_THE_LAST,
]  # fmt: skip


INSERTED = [b"\r\n", b"\0", b" ", b":", b"\xff", b"0\r\n\r\n", b"GET "]


def mutated(dice: random.Random) -> bytes:
    data = bytearray(b"".join(dice.choices(SEEDS, k=dice.randint(1, 3))))
    for _ in range(dice.randint(0, 4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(4):
            case 0:
                data[at:at] = dice.choice(INSERTED)
            case 1:
                del data[at : at + dice.randint(1, 20)]
            case 2:
                data[at : at + 1] = dice.randbytes(1)
            case _:
                data[at:at] = data[at : at + dice.randint(1, 200)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_arbitrary_bytes_cause_no_traceback(run: Run, seed: int) -> None:
    """Cut anywhere, followed by anything, ended in each way. See also scripts/fuzz."""
    dice = random.Random(seed)

    async def once(url: str) -> None:
        async with peer(url) as client:
            data = mutated(dice)
            start = 0
            try:
                while start < len(data):
                    end = dice.randint(start + 1, len(data))
                    await client.say(data[start:end])
                    start = end
                    if dice.random() < 0.3:
                        await asyncio.sleep(0)
                match dice.randrange(4):
                    case 0:
                        client.writer.write_eof()
                    case 1:
                        await client.resets()
                    case 2:
                        await client.say(b"X")
                async with asyncio.timeout(0.02):
                    await client.reader.read()
            except (OSError, TimeoutError):
                pass

    async def test() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        app: RoomServer = open_app()
        async with running_server(app) as url:
            for _ in range(20):
                await asyncio.gather(*(once(url) for _ in range(5)))
            async with peer(url) as client:
                await client.say(HEALTH)
                assert await client.status() == 200
        assert not errors

    run(test())
