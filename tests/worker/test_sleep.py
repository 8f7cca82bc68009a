"""A room on workerd with a thousand subscribers sleeps and wakes, over real sockets.

An object has left memory when workerd closes its database file. worker/tests/sleep.test.ts tests
the same from inside.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from synap_realtime import mint_token
from tests.support.timeouts import TIMEOUT_S
from tests.support.workerd import Workerd

ROOM = "workspace_1"
USERS, EACH = 25, 40
WAIT_S = 2 * TIMEOUT_S
SECRET, KEY = "s" * 32, "j" * 43


@pytest.fixture
def workerd(tmp_path: Path) -> Iterator[Workerd]:
    """One for this room alone, which has nothing to wake for but what the test does."""
    with Workerd(
        {
            "API_KEYS": f"jobs={KEY}",
            "TOKEN_SECRETS": SECRET,
            "TOKEN_LEEWAY_S": "0",
            "IDLE_TIMEOUT_S": "0",
        },
        tmp_path,
    ) as found:
        found.start()
        yield found


def is_awake(workerd: Workerd) -> bool:
    """Whether the room's object is in memory."""
    for descriptor in Path(f"/proc/{workerd.pid}/fd").iterdir():
        try:
            file = descriptor.readlink()
        except FileNotFoundError:  # closed meanwhile
            continue
        # metadata.sqlite is workerd's own: the alarms of all.
        if file.parent.name == "NotificationRoom" and not file.name.startswith("metadata.sqlite"):
            return True
    return False


async def until_asleep(workerd: Workerd) -> None:
    """Until 10 s have gone in which it had nothing to do."""
    async with asyncio.timeout(WAIT_S):
        while is_awake(workerd):  # noqa: ASYNC110 - polling is the only way
            await asyncio.sleep(0.1)


async def receive(socket: ClientConnection) -> str:
    text = await asyncio.wait_for(socket.recv(), WAIT_S)
    assert isinstance(text, str)
    return text


def minted(user: str, expires_in_s: int = 900, scope: str = "subscribe") -> str:
    return mint_token(user, secret=SECRET, rooms=[ROOM], expires_in_s=expires_in_s, scope=scope)


async def test_sleeping_worker_serves_a_thousand_subscribers(workerd: Workerd) -> None:
    """Subscribing, Presence, Close codes: all as if it had never slept."""
    address = workerd.url.replace("http", "ws", 1) + f"/rooms/{ROOM}/subscribe?token="

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"{workerd.url}/rooms/{ROOM}", timeout=WAIT_S)
        )

        async def listen(token: str) -> ClientConnection:
            socket = await connect(f"{address}{token}", ping_interval=None)
            stack.push_async_callback(socket.wait_closed)
            stack.callback(socket.transport.abort)
            return socket

        async def publish_and_receive() -> None:
            """Everyone does, once: then comes the answer to a ping."""
            body = {"type": "note.creation.completed", "data": {}, "id": uuid.uuid4().hex}
            headers = {"Authorization": f"Bearer {KEY}"}
            answer = await client.post("/broadcast", json=body, headers=headers)
            assert answer.json()["broadcastCount"] == len(sockets), answer.text
            for socket in sockets:
                await socket.send("ping")
            received = []
            for socket in sockets:
                while (text := await receive(socket)) != "pong":
                    received.append(json.loads(text)["id"])
            assert received == [body["id"]] * len(sockets)

        sockets: list[ClientConnection] = []
        for number in range(USERS):
            token = minted(f"u{number}")
            sockets += await asyncio.gather(*(listen(token) for _ in range(EACH)))
        assert is_awake(workerd)
        await until_asleep(workerd)

        # A ping is answered, and wakes nobody.
        for socket in sockets:
            await socket.send("ping")
        assert {await receive(socket) for socket in sockets} == {"pong"}
        assert not is_awake(workerd)

        # A publish does.
        await publish_and_receive()
        assert is_awake(workerd)

        # So does the token of one who has come meanwhile, when it ends.
        brief = await listen(minted("brief", expires_in_s=12))
        await until_asleep(workerd)
        with pytest.raises(ConnectionClosed) as ended:
            await receive(brief)
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 4401
        await publish_and_receive()

        watcher = {"Authorization": f"Bearer {minted('watcher', scope='presence')}"}
        there = (await client.get("/presence", headers=watcher)).json()
        assert there["connections"] == len(sockets)
        counts = {user["user"]: user["connections"] for user in there["users"]}
        assert counts.pop("brief", 0) == 0  # listed for 5 s more
        assert counts == {f"u{number}": EACH for number in range(USERS)}
