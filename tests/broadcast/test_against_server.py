"""The SDK against a real room server, and against servers that are unreachable or hang."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading

import pytest
import websockets

from synap_realtime import (
    AsyncBroadcaster,
    Broadcaster,
    BroadcastResult,
    broadcast_error,
    broadcast_notification,
    broadcast_success,
    broadcast_success_sync,
)


async def test_both_rooms_receive_it(rooms: str) -> None:
    ws = rooms.replace("http", "ws")
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        websockets.connect(f"{ws}/rooms/user_42/subscribe") as user,
        websockets.connect(f"{ws}/rooms/request_r1/subscribe") as request,
    ):
        result = await broadcaster.broadcast_success("42", "a.completed", {"x": "é"}, "r1")
        received = [json.loads(await ws.recv()) for ws in (user, request)]
    assert result.broadcast_count == 2
    assert [h["room"] for h in received] == ["user_42", "request_r1"]
    assert all(h["id"] == result.id and h["data"] == {"x": "é"} for h in received)


@pytest.mark.parametrize("has_batch_route", [True, False])
async def test_republishing_to_the_same_rooms_is_a_duplicate(
    rooms: str, has_batch_route: bool
) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        broadcaster._endpoint.has_batch_route = has_batch_route
        results = [
            await broadcaster.broadcast_success("42", "a.completed", {}, request, id="m1")
            for request in (None, "r1", "r1")
        ]
    assert all(result.success for result in results)
    assert [result.duplicate for result in results] == [False, False, True], (
        "the second was new to one of its rooms"
    )


async def test_the_functions_take_the_environment(
    rooms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REALTIME_URL", rooms)
    message = {"type": "a.b", "data": {}}
    results = [
        await broadcast_notification(user_id="42", message=message),
        await broadcast_success("42", "a.completed", {}),
        await broadcast_error("42", "a.failed", "No."),
        await asyncio.to_thread(broadcast_success_sync, "42", "a.completed", {}),
    ]
    assert [result.success for result in results] == [True] * 4
    assert len({result.id for result in results}) == 4


async def test_the_same_id_is_delivered_once(rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        url = f"{rooms.replace('http', 'ws')}/rooms/user_42/subscribe"
        async with websockets.connect(url) as ws:
            for _ in range(3):
                result = await broadcaster.broadcast_success("42", "a.completed", {}, id="same")
                assert (result.success, result.broadcast_count) == (True, 1)
            await broadcaster.broadcast_success("42", "a.completed", {}, id="next")
            assert [json.loads(await ws.recv())["id"] for _ in range(2)] == ["same", "next"]


async def test_delivers_a_thousand_concurrent_broadcasts(rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        results = await asyncio.gather(
            *(broadcaster.broadcast_success("42", "a.completed", {"n": n}) for n in range(1000))
        )
    assert all(result.success for result in results)


async def test_reports_an_unreachable_server_within_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with AsyncBroadcaster(f"http://127.0.0.1:{port}", deadline_s=0.5) as broadcaster:
        result = await broadcaster.broadcast_success("42", "a.completed", {})
    assert not result.success
    assert result.attempts > 1
    # The deadline may cut the last attempt before it is refused, as the others were.
    assert re.search("could not be reached|did not answer in time", result.error or "")


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_gives_up_on_a_server_that_never_responds(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = await asyncio.to_thread(_send_to_silence, url, kind)
    assert not result.success
    assert "did not answer in time" in (result.error or "")


def _send_to_silence(url: str, kind: str) -> BroadcastResult:
    options = {"timeout_s": 0.1, "deadline_s": 0.4}
    if kind == "sync":
        with Broadcaster(url, **options) as broadcaster:  # type: ignore[arg-type]
            return broadcaster.broadcast_success("42", "a.completed", {})

    async def run() -> BroadcastResult:
        async with AsyncBroadcaster(url, **options) as broadcaster:  # type: ignore[arg-type]
            return await broadcaster.broadcast_success("42", "a.completed", {})

    return asyncio.run(run())


async def test_one_client_serves_many_loops_and_threads(rooms: str) -> None:
    """Some frameworks run an event loop for each request."""
    broadcaster = AsyncBroadcaster(rooms)
    results: list[BroadcastResult] = []

    def one_loop() -> None:
        results.append(asyncio.run(broadcaster.broadcast_success("42", "a.completed", {})))

    def work() -> None:
        for _ in range(3):
            one_loop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert [result.success for result in results] == [True] * 12
    assert broadcaster._pools == {}, "a loop that ended must take its connections with it"


async def test_a_program_that_forgets_to_close_ends_without_a_warning(rooms: str) -> None:
    code = (
        "import asyncio, synap_realtime as s\n"
        "async def main():\n"
        "    print((await s.broadcast_success('42', 'a.completed', {})).success)\n"
        "asyncio.run(main())\n"
        "print(s.broadcast_success_sync('42', 'a.completed', {}).success)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={"REALTIME_URL": rooms, "PATH": ""},
        check=False,
    )
    assert done.stdout.split() == ["True", "True"]
    assert "Warning" not in done.stderr
