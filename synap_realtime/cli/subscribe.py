"""``synap-realtime subscribe``: print the notifications of a room as they arrive."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SubscriptionError
from .console import ReaderGoneError, printable, say, show
from .messages import name_client_options
from .options import AS_JSON, URL

if TYPE_CHECKING:
    from ..protocol.notification import Notification
    from ..subscriber import JobTracker, SubscriptionState

_MAX_DATA_CHARS = 100  # of a line of text


def subscribe(
    room: Annotated[str, typer.Argument(help="The room, such as user_42 or request_7f3a.")],
    url: Annotated[str | None, URL] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="The token to authenticate with. [env: REALTIME_TOKEN]",
            envvar="REALTIME_TOKEN",
            show_envvar=False,
        ),
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Where to start: a cursor, earliest or latest.")
    ] = None,
    as_json: Annotated[bool, AS_JSON] = False,
    count: Annotated[
        int | None, typer.Option(min=1, help="Exit after this number of notifications.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            min=0, help="Exit after this time, in seconds; with 1 if --count was not reached."
        ),
    ] = None,
) -> None:
    """Print the notifications of a room as they arrive.

    It acknowledges none of them. Exits with 1 if the server cannot be reached or rejects the
    subscription, and with 74 if stdout cannot be written (a full disk).
    """
    try:
        done = asyncio.run(_print_notifications(room, url, token, after, as_json, count, timeout_s))
    except SubscriptionError as error:
        say(name_client_options(str(error)))
        raise typer.Exit(1) from None
    raise typer.Exit(0 if done or count is None else 1)


async def _print_notifications(
    room: str,
    url: str | None,
    token: str | None,
    after: str | None,
    as_json: bool,
    count: int | None,
    timeout_s: float | None,
) -> bool:
    """Print notifications until the count or the timeout is reached, or the pipe is closed.

    Returns:
        False at the timeout.

    Raises:
        SubscriptionError: the server cannot be reached at the start, or rejects the subscription.
        ReaderGoneError, UnwritableError: stdout cannot be written.
        InvalidArgumentError, ConfigurationError: names the argument or setting that is wrong.
    """
    from ..endpoint import SCHEMES, parse_server_url
    from ..subscriber import subscribe

    notifications = subscribe(
        room,
        url,
        token,
        after=after,
        max_reconnects=None,
        acknowledge=False,
        on_gap=lambda _: say("gap: notifications were missed, and the server no longer has them"),
        on_state_change=_StateReporter(parse_server_url(url, SCHEMES).named),
    )
    reader = _StdoutWatcher()
    stalls = _StallDetector()
    printed = 0
    try:
        async with asyncio.timeout(timeout_s) as limit, aclosing(notifications):
            reader.watch(limit)
            async for notification in notifications:
                wire = notification.to_wire()
                show(json.dumps(wire) if as_json else format_line(notification))
                stalls.apply(notification)
                printed += 1
                if printed == count:
                    return True
    except TimeoutError:
        if reader.is_gone:
            raise ReaderGoneError from None
        return False
    return True


def format_line(notification: Notification) -> str:
    """Return one line of text: local time, type, status, and the beginning of the data."""
    when = datetime.now().astimezone()
    if notification.timestamp is not None:
        when = datetime.fromisoformat(notification.timestamp).astimezone()
    data = json.dumps(notification.data, ensure_ascii=False)
    if len(data) > _MAX_DATA_CHARS:
        data = data[: _MAX_DATA_CHARS - 1] + "…"
    parts = [f"{when:%H:%M:%S}", notification.type, notification.status or "-", data]
    return printable("  ".join(parts))


class _StateReporter:
    """Print the state of the connection. A server that was never reached is an error."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._was_connected = False

    def __call__(self, state: SubscriptionState) -> None:
        if state.status == "connected":
            self._was_connected = True
            say("connected")
        elif self._was_connected:
            say(f"connection lost: {state.reason}; reconnecting in {state.delay_s:.1f} s")
        else:
            raise SubscriptionError(f"{self._server}: {state.reason}", retriable=True)


class _StallDetector:
    """Report jobs that have published nothing for longer than their ``stallAfterS``."""

    def __init__(self) -> None:
        self._views: dict[str, JobTracker] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def apply(self, notification: Notification) -> None:
        from ..subscriber import JobTracker

        run = notification.data.get("runId")
        if not isinstance(run, str):
            run = (notification.id or "").removesuffix(":ended")
        if (timer := self._timers.pop(run, None)) is not None:
            timer.cancel()
        view = self._views.pop(run, None) or JobTracker()
        if view.apply(notification).is_finished or view.stall_after_s is None:
            return
        self._views[run] = view
        problem = f"{notification.type}: no update for {view.stall_after_s:g} s (run {run})"
        loop = asyncio.get_running_loop()
        self._timers[run] = loop.call_later(view.stall_after_s, say, f"stalled: {problem}")


class _StdoutWatcher:
    """Notice that the reader of a pipe has closed it, even while there is nothing to print."""

    is_gone = False

    def watch(self, limit: asyncio.Timeout) -> None:
        """If stdout is a pipe, expire ``limit`` when its reader closes it."""
        loop = asyncio.get_running_loop()
        stdout = sys.stdout.fileno()

        def leave() -> None:
            loop.remove_reader(stdout)
            self.is_gone = True
            limit.reschedule(loop.time())

        if stat.S_ISFIFO(os.fstat(stdout).st_mode):
            loop.add_reader(stdout, leave)  # a pipe without a reader polls as readable
