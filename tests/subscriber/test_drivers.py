"""Both drivers over real WebSockets, against a server that follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import threading
import time
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from synap_realtime import (
    ConfigurationError,
    InvalidArgumentError,
    SubscriptionError,
    SubscriptionState,
    follow_job,
    subscribe,
    subscribe_sync,
)
from tests.support.timeouts import scaled
from tests.support.waits import SetWaits

from .conftest import Listen, Scripted, control, note, scripted_server


def says(*texts: str | bytes, close: int | None = None) -> Any:
    """A script: say this, then close with the code, or listen until the client leaves."""

    def script(scripted: Scripted) -> Any:
        async def run(ws: ServerConnection) -> None:
            for text in texts:
                await ws.send(text)
            if close == 1006:
                ws.transport.abort()
            elif close is not None:
                await ws.close(close)
            else:
                await scripted.listen_to(ws)

        return run

    return script


def play(scripted: Scripted, *scripts: Any) -> None:
    scripted.scripts += [script(scripted) if callable(script) else script for script in scripts]


@pytest.mark.parametrize("code", [1000, 1006, 1012, 4008, 4012])
async def test_resumes_without_loss_or_duplicates(
    listen: Listen, scripted: Scripted, code: int
) -> None:
    play(
        scripted,
        says(control("subscribed", cursor="c-0", recovered=True), note("n1", "c-1"), close=code),
        says(note("n1", "c-1"), note("n2", "c-2")),
    )
    async with listen("user_1", scripted.url) as receive:
        assert [(await receive()).id, (await receive()).id] == ["n1", "n2"]
    assert scripted.positions == [None, "c-1"]


async def test_a_code_from_4500_on_ends_it(listen: Listen, scripted: Scripted) -> None:
    play(scripted, says(note("n1"), close=4501))
    async with listen("user_1", scripted.url, max_reconnects=None) as receive:
        assert (await receive()).id == "n1"
        with pytest.raises(SubscriptionError, match="4501") as caught:
            await receive()
    assert (caught.value.code, caught.value.retriable) == (4501, False)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_ends_it_and_the_token_is_not_shown(
    listen: Listen, scripted: Scripted, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    play(scripted, (status, {}))
    url = scripted.url.replace("//", "//me:secret@")
    async with listen("user_1", url, "secret-token", max_reconnects=None) as receive:
        with pytest.raises(SubscriptionError, match=f"{status}: No: because") as caught:
            await receive()
    assert caught.value.code == status
    assert scripted.requests[0].headers["Authorization"] == "Bearer secret-token"
    said = [r.getMessage() for r in caplog.records if r.name.startswith("synap_realtime")]
    assert "secret" not in str(caught.value) + "".join(said)


async def test_accepts_password_in_the_url(listen: Listen, scripted: Scripted) -> None:
    play(scripted, says(note("n1")))
    async with listen("user_1", scripted.url.replace("//", "//me:pw@")) as receive:
        await receive()
    assert scripted.requests[0].headers["Authorization"] == "Basic bWU6cHc="


async def test_obeys_503_with_retry_after(listen: Listen, scripted: Scripted) -> None:
    states: list[SubscriptionState] = []
    play(scripted, (503, {"Retry-After": "1"}), says(note("n1")))
    async with listen("user_1", scripted.url, on_state_change=states.append) as receive:
        start = time.monotonic()
        await receive()
        assert time.monotonic() - start >= 1
    assert [s.status for s in states] == ["reconnecting", "connected"]
    assert "503" in states[0].reason
    assert states[0].attempt == 1


async def test_obeys_the_reconnect_delay_of_a_draining_server(
    listen: Listen, scripted: Scripted
) -> None:
    states: list[SubscriptionState] = []
    closing = control("closing", code=4012, reconnectAfterMs=120)
    play(scripted, says(closing, note("n1", "c-1"), close=4012), says(note("n2", "c-2")))
    async with listen("user_1", scripted.url, on_state_change=states.append) as receive:
        assert [(await receive()).id, (await receive()).id] == ["n1", "n2"]
    assert [s.delay_s for s in states if s.status == "reconnecting"] == [0.12]


async def test_the_attempts_are_counted(listen: Listen, scripted: Scripted) -> None:
    play(scripted, *[(503, {})] * 3)
    async with listen("user_1", scripted.url, max_reconnects=2) as receive:
        with pytest.raises(SubscriptionError, match="after 2 attempts") as caught:
            await receive()
    assert (caught.value.code, caught.value.retriable) == (503, True)


async def test_reports_an_unreachable_server(listen: Listen, scripted: Scripted) -> None:
    async with listen("user_1", "http://me:secret@127.0.0.1:1", max_reconnects=0) as receive:
        with pytest.raises(SubscriptionError, match="could not be reached") as caught:
            await receive()
    assert "secret" not in str(caught.value)
    assert caught.value.code is None


async def test_calls_the_token_function_at_every_connect(
    listen: Listen, scripted: Scripted
) -> None:
    tokens = iter(["t1", "t2"])
    play(scripted, says(close=4000), says(note("n1")), (503, {}))
    async with listen("user_1", scripted.url, lambda: next(tokens)) as receive:
        await receive()
    sent = [request.headers["Authorization"] for request in scripted.requests]
    assert sent == ["Bearer t1", "Bearer t2"]


async def test_sends_a_new_token_before_the_present_one_expires(
    listen: Listen, scripted: Scripted
) -> None:
    """Once for each warning, if the function returns another one. An error changes nothing."""
    tokens: list[str | Exception] = ["t1", "t1", LookupError("signed out"), "t2"]
    sent: list[str | bytes] = []

    def token() -> str:
        match tokens.pop(0):
            case str(text):
                return text
            case error:
                raise error

    async def warn(ws: ServerConnection) -> None:
        for _ in range(3):
            await ws.send(control("token_expiring", expiresAt="2030-01-01T00:00:00Z"))
        sent.append(await ws.recv())
        await ws.send(note("n1"))
        await ws.wait_closed()

    play(scripted, lambda _: warn)
    async with listen("user_1", scripted.url, token) as receive:
        assert (await receive()).id == "n1"
    assert [json.loads(text) for text in sent] == [{"action": "authenticate", "token": "t2"}]


async def test_error_of_a_token_function_propagates(listen: Listen, scripted: Scripted) -> None:
    def token() -> str:
        raise LookupError("signed out")

    async with listen("user_1", scripted.url, token) as receive:
        with pytest.raises(LookupError, match="signed out"):
            await receive()
    assert not scripted.requests


async def test_calls_the_token_function_again_after_expiry(
    listen: Listen, scripted: Scripted
) -> None:
    """Whatever else is wrong with a token is final, and so is a fixed one that has expired."""
    scripted.details = "token expired"
    tokens = iter(["old", "new", "other"])
    play(scripted, (401, {}), says(note("n1")))
    async with listen("user_1", scripted.url, lambda: next(tokens)) as receive:
        assert (await receive()).id == "n1"
    assert [r.headers["Authorization"] for r in scripted.requests] == ["Bearer old", "Bearer new"]
    play(scripted, (401, {}))
    async with listen("user_1", scripted.url, "fixed") as receive:
        with pytest.raises(SubscriptionError, match="token expired") as caught:
            await receive()
    assert not caught.value.retriable
    scripted.details = "invalid signature"
    play(scripted, (401, {}))
    async with listen("user_1", scripted.url, lambda: next(tokens)) as receive:
        with pytest.raises(SubscriptionError, match="invalid signature"):
            await receive()


async def test_hanging_token_function_is_a_failed_connect(
    scripted: Scripted, set_waits: SetWaits
) -> None:
    set_waits(open_timeout_s=0.1)
    calls: list[int] = []
    reasons: list[str] = []

    async def token() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "t2"

    play(scripted, says(note("n1")))
    notifications = subscribe(
        "user_1", scripted.url, token, on_state_change=lambda state: reasons.append(state.reason)
    )
    async with contextlib.aclosing(notifications):
        await anext(notifications)
    assert (len(calls), reasons) == (2, ["the token function timed out", ""])


@pytest.mark.parametrize("given", [5, True, b"t", {}])
async def test_token_function_must_return_text(
    listen: Listen, scripted: Scripted, given: Any
) -> None:
    async with listen("user_1", scripted.url, lambda: given) as receive:
        with pytest.raises(InvalidArgumentError, match=r"^token: expected its function to return"):
            await receive()


async def test_async_functions_are_awaited(scripted: Scripted) -> None:
    statuses = []

    async def token() -> str:
        return "t1"

    async def on_state_change(state: SubscriptionState) -> None:
        statuses.append(state.status)

    play(scripted, says(note("n1")))
    notifications = subscribe("user_1", scripted.url, token, on_state_change=on_state_change)
    async with contextlib.aclosing(notifications):
        await anext(notifications)
    assert statuses == ["connected"]
    assert scripted.requests[0].headers["Authorization"] == "Bearer t1"


async def test_invalid_messages_are_skipped(listen: Listen, scripted: Scripted) -> None:
    garbage: list[str | bytes] = [
        "",
        "nonsense",
        "[1]",
        b"binary",
        control("future"),
        '{"type":5}',
        "[" * 100_000,
    ]
    play(scripted, says(*garbage, note("n1")))
    async with listen("user_1", scripted.url) as receive:
        assert (await receive()).id == "n1"


async def test_a_message_that_is_too_large_is_a_lost_connection(
    listen: Listen, scripted: Scripted
) -> None:
    play(scripted, says(note("n1", "c-1"), "x" * 50_000_000), says(note("n2", "c-2")))
    async with listen("user_1", scripted.url) as receive:
        assert [(await receive()).id, (await receive()).id] == ["n1", "n2"]
    assert scripted.positions == [None, "c-1"]


async def test_a_server_without_the_subprotocol_is_enough(listen: Listen) -> None:
    async with scripted_server(None) as scripted:
        play(scripted, says(note("n1"), note(None), close=1001), says(note("n1"), note("n2")))
        async with listen("user_1", scripted.url, after="latest") as receive:
            ids = [(await receive()).id for _ in range(3)]
        assert ids == ["n1", None, "n2"]
        assert scripted.said.empty()


async def test_detects_idle_server_and_answers_pings(
    listen: Listen, scripted: Scripted, set_waits: SetWaits
) -> None:
    set_waits(ping_interval_s=0.05, pong_timeout_s=0.2)
    states: list[SubscriptionState] = []

    async def polite(ws: ServerConnection) -> None:
        for _ in range(3):
            assert await ws.recv() == "ping"
            await ws.send("pong")
        await ws.send(note("n2", "c-2"))
        await scripted.listen_to(ws)

    play(scripted, says(note("n1", "c-1")))
    scripted.scripts.append(polite)
    async with listen("user_1", scripted.url, on_state_change=states.append) as receive:
        assert [(await receive()).id, (await receive()).id] == ["n1", "n2"]
    assert [s.reason for s in states if s.status == "reconnecting"] == ["no pong within 10 s"]


async def test_a_busy_consumer_keeps_its_connection(
    listen: Listen, scripted: Scripted, set_waits: SetWaits
) -> None:
    set_waits(ping_interval_s=0.05, pong_timeout_s=0.1)

    async def pushing(ws: ServerConnection) -> None:
        for n in range(40):  # more than waits at the client
            await ws.send(note(f"n{n}", f"c-{n}"))
        async for text in ws:
            scripted.said.put_nowait(str(text))
            if text == "ping":
                await ws.send("pong")

    scripted.scripts.append(pushing)
    async with listen("user_1", scripted.url) as receive:
        assert (await receive()).id == "n0"
        await scripted.receive(*["ping"] * 6)  # while nobody reads
        assert [(await receive()).id for _ in range(39)] == [f"n{n}" for n in range(1, 40)]
    assert len(scripted.requests) == 1


async def test_a_slow_consumer_loses_nothing_when_it_is_dropped(
    listen: Listen, scripted: Scripted
) -> None:
    dropped = asyncio.Event()

    async def impatient(ws: ServerConnection) -> None:
        for n in range(10):
            await ws.send(note(f"n{n}", f"c-{n}"))
        await ws.close(4008)
        dropped.set()

    scripted.scripts.append(impatient)
    play(scripted, says(*[note(f"n{n}", f"c-{n}") for n in range(10, 20)]))
    async with listen("user_1", scripted.url) as receive:
        ids = [(await receive()).id]
        await dropped.wait()
        ids += [(await receive()).id for _ in range(19)]
    assert ids == [f"n{n}" for n in range(20)]
    assert scripted.positions == [None, "c-9"]


async def test_acknowledges_received_notifications(listen: Listen, scripted: Scripted) -> None:
    play(scripted, says(*[note(f"n{n}", f"c-{n}") for n in range(3)]))
    async with listen("user_1", scripted.url) as receive:
        for _ in range(3):
            await receive()
        await scripted.receive("c-1")
    said = [scripted.said.get_nowait() for _ in range(scripted.said.qsize())]
    assert "c-2" not in said  # the consumer left with it in hand


async def test_close_sends_pending_acknowledgements(
    listen: Listen, scripted: Scripted, set_waits: SetWaits
) -> None:
    set_waits(ack_interval_s=60.0)
    play(scripted, says(*[note(f"n{n}", f"c-{n}") for n in range(9)]))
    async with listen("user_1", scripted.url) as receive:
        for _ in range(9):
            await receive()
    await scripted.receive("c-7")


async def test_lost_acknowledgement_is_sent_again(
    listen: Listen, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(
        scripted,
        says(note("n1", "c-1"), close=1006),
        says(control("subscribed", cursor="c-1", recovered=True)),
    )
    async with listen("user_1", scripted.url) as receive:
        await receive()
        waiting = asyncio.ensure_future(receive())
        await scripted.receive("c-1")
        play(scripted, says(note("n2", "c-2")))
        scripted.hang_up()
        assert (await waiting).id == "n2"


async def test_closing_during_a_flood_is_quick(listen: Listen, scripted: Scripted) -> None:
    async def flood(ws: ServerConnection) -> None:
        while True:
            await ws.send(note(None, None, data={"x": "y" * 10_000}))

    scripted.scripts.append(flood)
    async with listen("user_1", scripted.url) as receive:
        await receive()
        start = time.monotonic()
    assert time.monotonic() - start < scaled(3)


async def test_loopback_ignores_proxy_variables(
    listen: Listen, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, "socks5://me:secret@127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    play(scripted, says(note("n1")))
    async with listen("user_1", scripted.url) as receive:
        assert (await receive()).id == "n1"
    async with listen("user_1", "http://rooms.invalid") as receive:
        with pytest.raises(ConfigurationError) as caught:
            await receive()
    assert "secret" not in str(caught.value)


async def test_a_missing_library_is_named(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("asyncio.client", "sync.client"):
        monkeypatch.setitem(sys.modules, f"websockets.{name}", None)
    async with listen("user_1") as receive:
        with pytest.raises(ConfigurationError, match=r"synap-realtime\[subscriber\]"):
            await receive()


async def test_breaking_out_of_a_sync_loop_ends_everything(scripted: Scripted) -> None:
    play(scripted, says(note("n1"), note("n2")))

    def first() -> str | None:
        for notification in subscribe_sync("user_1", scripted.url):
            return notification.id
        return None

    before = threading.active_count()
    assert await asyncio.to_thread(first) == "n1"
    assert threading.active_count() <= before + 1  # the one of to_thread


async def test_cancelled_subscription_leaks_nothing(scripted: Scripted) -> None:
    play(scripted, says(note("n1")))
    receive = asyncio.Event()

    async def run() -> None:
        async with contextlib.aclosing(subscribe("user_1", scripted.url)) as notifications:
            async for _ in notifications:
                receive.set()

    task = asyncio.create_task(run())
    await receive.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_unknown_members_are_delivered(listen: Listen, scripted: Scripted) -> None:
    play(scripted, says(note("n1", "c-1", colour="blue", status="success")))
    async with listen("user_1", scripted.url) as receive:
        notification = await receive()
    assert notification.to_wire()["colour"] == "blue"
    assert json.dumps(notification.to_wire())


@pytest.mark.parametrize("following", [subscribe, follow_job])
def test_error_names_the_function_to_call_without_asyncio(following: Any) -> None:
    steps = following("user_1", "http://127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="subscribe_sync"):
        anext(steps).send(None)
