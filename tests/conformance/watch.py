"""Cases that need time: started before the first case, and read after the last one."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType

from websockets import Frame, Opcode
from websockets.protocol import State

from tests.support.loop_thread import LoopThread
from tests.support.timeouts import TIMEOUT_S

from .client import fresh_room, open_client
from .credentials import Keys

COMMENT_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Closed:
    """How a WebSocket ended, and after how long."""

    code: int | None
    after_s: float


class Watch:
    """Four connections to one server, beside the cases, in a thread of their own.

    Attributes:
        silent: of a WebSocket that sends a `ping` and then nothing any more, not even a pong.
        kept: of a WebSocket that pings; None if it outlived the silent one.
        quiet: the same of one that sends no message, and answers protocol pings, as
            ``new WebSocket(url)`` does.
        comment_s: how long a quiet event stream was without a line; one that comes at once, as a
            greeting, is not counted.
    """

    def __init__(self, url: str, idle_timeout_s: float, keys: Keys | None = None) -> None:
        self.idle_timeout_s = idle_timeout_s
        self._url = url
        self._keys = keys
        self._thread = LoopThread("conformance-watch")

    def __enter__(self) -> Watch:
        start = self._thread.__enter__().start
        self.silent: Future[Closed] = start(self._stay_silent())
        self.kept: Future[Closed | None] = start(self._keep_alive())
        self.quiet: Future[Closed | None] = start(self._stay_quiet())
        self.comment_s: Future[float] = start(self._await_comment())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.__exit__(kind, error, trace)

    async def _stay_silent(self) -> Closed:
        async with (
            open_client(self._url, self._keys) as client,
            client.listen(fresh_room()) as listener,
        ):
            await listener.ping()
            began = time.monotonic()
            send = listener.ws.protocol.send_frame

            def send_no_pong(frame: Frame) -> None:
                if frame.opcode is not Opcode.PONG:
                    send(frame)

            listener.ws.protocol.send_frame = send_no_pong  # type: ignore[method-assign]
            async with asyncio.timeout(self.idle_timeout_s + TIMEOUT_S):
                # The close frame counts. The end of the TCP connection may come some seconds later.
                while listener.ws.state is State.OPEN:  # noqa: ASYNC110 - no event reports it
                    await asyncio.sleep(0.02)
            received = listener.ws.protocol.close_rcvd
            listener.ws.transport.abort()  # else a run that ends before that leaves it open
            return Closed(None if received is None else received.code, time.monotonic() - began)

    async def _keep_alive(self) -> Closed | None:
        async with (
            open_client(self._url, self._keys) as client,
            client.listen(fresh_room()) as listener,
        ):
            began = time.monotonic()
            while (lived := time.monotonic() - began) < self.idle_timeout_s * 1.3:
                if listener.ws.close_code is not None:
                    return Closed(listener.ws.close_code, lived)
                await listener.ping()
                await asyncio.sleep(self.idle_timeout_s / 3)
            return None

    async def _stay_quiet(self) -> Closed | None:
        async with (
            open_client(self._url, self._keys) as client,
            client.listen(fresh_room()) as listener,
        ):
            began = time.monotonic()
            while (lived := time.monotonic() - began) < self.idle_timeout_s * 1.5:
                if listener.ws.state is not State.OPEN:
                    return Closed(listener.ws.close_code, lived)
                await asyncio.sleep(self.idle_timeout_s / 30)
            return None

    async def _await_comment(self) -> float:
        async with (
            open_client(self._url, self._keys) as client,
            client.stream(fresh_room()) as stream,
        ):
            await stream.subscribed()
            began = time.monotonic()
            async with asyncio.timeout(COMMENT_EVERY_S + TIMEOUT_S):
                while True:
                    before = stream.comments
                    await stream.read()
                    waited_s = time.monotonic() - began
                    if stream.comments > before and waited_s > COMMENT_EVERY_S / 3:
                        return waited_s
