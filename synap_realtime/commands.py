"""The commands ``subscribe``, ``publish``, ``generate-keys``, ``token``, ``generate-types`` and
``doctor``: what they do and print.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from . import keygen
from .broadcast import Broadcaster, BroadcastResult
from .console import UNWRITABLE, ReaderGoneError, UnwritableError, printable, read_stdin, say, show
from .doctor import run_checks
from .endpoint import SCHEMES, parse_server_url
from .errors import InvalidArgumentError, SubscriptionError
from .protocol.notification import Notification
from .subscriber import JobTracker, SubscriptionState, subscribe
from .tokens import inspect_token
from .types import build_catalog, load, to_json_schema, to_typescript

_SHORT = 100  # characters of data in a human line

SEND_DEADLINE_S = 3.0
"""Short, because a user waits at a terminal: an unreachable server is reported soon."""


def subscribe_to_room(
    room: str,
    url: str | None,
    token: str | None,
    *,
    after: str | None,
    as_json: bool,
    count: int | None,
    timeout_s: float | None,
) -> int:
    """Print notifications until the count, the timeout, Ctrl-C or a closed pipe.

    Returns:
        The exit code. 0: done; 1: fewer than ``count`` arrived in time, or the server cannot be
        reached at the start or rejects the subscription.

    Raises:
        ReaderGoneError, UnwritableError: stdout cannot be written.
        InvalidArgumentError, ConfigurationError: names the argument or setting that is wrong.
    """

    async def run() -> int:
        in_time = await _subscribe(room, url, token, after, as_json, count, timeout_s)
        return 0 if in_time or count is None else 1

    try:
        return asyncio.run(run())
    except SubscriptionError as error:
        say(_with_options(str(error)))
        return 1


async def _subscribe(
    room: str,
    url: str | None,
    token: str | None,
    after: str | None,
    as_json: bool,
    count: int | None,
    timeout_s: float | None,
) -> bool:
    watcher = _StateReporter(parse_server_url(url, SCHEMES).named)
    notifications = subscribe(
        room,
        url,
        token,
        after=after,
        max_reconnects=None,
        acknowledge=False,
        on_gap=lambda _: say("gap: notifications were missed, and the server no longer has them"),
        on_state_change=watcher,
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


class _StallDetector:
    """Report jobs that have published nothing for longer than their ``stallAfterS``."""

    def __init__(self) -> None:
        self._views: dict[str, JobTracker] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def apply(self, notification: Notification) -> None:
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


def format_line(notification: Notification) -> str:
    """Return one line of text: local time, type, status, and the beginning of the data."""
    when = datetime.now().astimezone()
    if notification.timestamp is not None:
        when = datetime.fromisoformat(notification.timestamp).astimezone()
    data = json.dumps(notification.data, ensure_ascii=False)
    if len(data) > _SHORT:
        data = data[: _SHORT - 1] + "…"
    parts = [f"{when:%H:%M:%S}", notification.type, notification.status or "-", data]
    return printable("  ".join(parts))


def publish(
    room: str,
    type: str,
    data: str,
    members: Mapping[str, str | None],
    url: str | None,
    key: str | None,
    *,
    as_json: bool,
) -> int:
    """Publish one notification and print the result.

    Args:
        data: a JSON object as text; ``-`` reads it from stdin.
        members: further members by their wire names; None leaves one out.

    Returns:
        The exit code. 0: the server accepted it; 1: it did not; :data:`UNWRITABLE`: it did, but the
        result could not be printed.

    Raises:
        InvalidArgumentError: names the argument that is wrong.
    """
    message = {
        "type": type,
        "data": _read_data(read_stdin("DATA") if data == "-" else data),
        **{name: value for name, value in members.items() if value is not None},
    }
    with Broadcaster(url, key, deadline_s=SEND_DEADLINE_S) as broadcaster:
        result = broadcaster.broadcast(room, message)
    if not result.success:
        say(f"not published: {_with_options(result.error or 'the server gave no reason')}")
    try:
        if as_json:
            show(json.dumps(_to_wire(result)))
        elif result.success:
            show(_format_result(room, result))
    except ReaderGoneError:
        pass
    except UnwritableError as error:
        if result.success:
            say(f"published {result.id} to {room}, but could not print the result: {error}")
            return UNWRITABLE
    return 0 if result.success else 1


def _with_options(text: str) -> str:
    """Replace the arguments that an error of the client names by options of this command."""
    for argument, option in _ARGUMENTS.items():
        text = text.replace(argument, option)
    return text


_ARGUMENTS = {"api_key=": "--key", "(token=)": "(--token, REALTIME_TOKEN)", "url=": "--url"}


def generate_keys(out: Path | None, *, rotate: bool, prune: bool) -> None:
    """Create, rotate or prune the keys of a server. Without a file, print new keys.

    Raises:
        InvalidArgumentError: the options exclude each other.
        ConfigurationError: the file exists, is missing, or cannot be written.
    """
    if rotate and prune:
        raise InvalidArgumentError(
            "--prune", "cannot be combined with --rotate: applications need the new keys first"
        )
    if out is None:
        if rotate or prune:
            raise InvalidArgumentError("--out", "name the file to change")
        if _is_redirected():
            say("note: a redirect does not set the mode of the file; --out FILE writes it as 0600")
        show(keygen.to_toml(keygen.new_keys()).rstrip("\n"))
        return
    if not (rotate or prune):
        keygen.create(out)
        show(f"created {out} with mode 0600; its last lines are for your application")
        return
    before, after = keygen.change(out, keygen.rotated if rotate else keygen.pruned)
    if rotate:
        show(
            f"added new keys to {out}; the old keys stay valid. Give your application the last "
            "lines of the file. When all tokens of the old secret have expired, run: "
            f"synap-realtime generate-keys --out {shlex.quote(str(out))} --prune"
        )
    else:
        secrets = len(before.token_secrets) - len(after.token_secrets)
        api_keys = len(before.api_keys) - len(after.api_keys)
        removed = f"{_counted(secrets, 'token secret')} and {_counted(api_keys, 'API key')}"
        show(f"removed {removed} from {out}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _is_redirected() -> bool:
    """Return whether stdout is a regular file."""
    with suppress(OSError, ValueError):  # a test's stdout has no descriptor
        return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
    return False


def explain_token(token: str) -> int:
    """Print the claims of a token and whether it is valid. Return the exit code: 1 if it is not."""
    problem, claims = inspect_token(token, os.environ.get("REALTIME_TOKEN_SECRET"))
    for name, value in claims.items():
        show(printable(f"{name:<9} {_readable(name, value)}"))
    show(f"{'valid':<9} {'yes' if problem is None else f'no: {problem}'}")
    return 0 if problem is None else 1


def _readable(name: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if name in ("exp", "iat", "nbf") and isinstance(value, int | float):
        with suppress(ValueError, OverflowError, OSError):
            moment = datetime.fromtimestamp(value).astimezone()
            away = round(value - time.time())
            when = f"in {away} s" if away >= 0 else f"{-away} s ago"
            text = f"{moment:%Y-%m-%d %H:%M:%S %z} ({when})"
    return text


def _format_result(room: str, result: BroadcastResult) -> str:
    count = result.broadcast_count
    line = f"published {result.id} to {room}: delivered to {_counted(count, 'subscriber')}"
    if result.duplicate:
        line += " (duplicate: this id was published before)"
    return printable(line)


def _read_data(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise InvalidArgumentError("DATA", f"not JSON ({reason}); {_EXAMPLE}") from None
    if not isinstance(value, dict):
        raise InvalidArgumentError("DATA", f"not an object; {_EXAMPLE}")
    return value


_EXAMPLE = """expected a JSON object such as '{"title": "Milk"}'"""


def _to_wire(result: BroadcastResult) -> dict[str, Any]:
    return {
        "success": result.success,
        "id": result.id,
        "rooms": list(result.rooms),
        "broadcastCount": result.broadcast_count,
        "duplicate": result.duplicate,
        "attempts": result.attempts,
        "error": result.error,
    }


def generate_types(references: Sequence[str], *, as_json_schema: bool, out: str | None) -> None:
    """Print or write the payload types of the built-in job types and of the given references.

    Args:
        references: ``module:NAME`` of values that :func:`~.types.build_catalog` takes.
        out: the file to replace atomically; None prints.

    Raises:
        InvalidArgumentError: a reference is wrong, or the file cannot be written.
    """
    catalog = build_catalog({reference: load(reference) for reference in references})
    options = ["--json-schema"] if as_json_schema else []
    comment = (
        "The payload types of synap-realtime notifications. Generated; regenerate with:\n"
        f"  {shlex.join(['synap-realtime', 'generate-types', *references, *options])} --out FILE"
    )
    if as_json_schema:
        text = json.dumps(to_json_schema(catalog, comment), indent=2, ensure_ascii=False) + "\n"
    else:
        text = to_typescript(catalog, comment)
    if out is not None:
        _write(Path(out), text)
        return
    show(text.removesuffix("\n"))


def doctor(url: str | None, given: Mapping[str, Any], *, as_json: bool) -> int:
    """Print a line for each check. Return the exit code: 1 if a check failed.

    Args:
        given: settings of the server by name; None means that it was not given.
    """
    return asyncio.run(_doctor(url, given, as_json))


async def _doctor(url: str | None, given: Mapping[str, Any], as_json: bool) -> int:
    code = 0
    async with aclosing(run_checks(url, given)) as findings:
        async for finding in findings:
            show(json.dumps(asdict(finding)) if as_json else printable(str(finding)))
            code |= finding.level == "fail"
    return code


def _write(path: Path, text: str) -> None:
    """Replace a file atomically. A concurrent reader sees the old or the new content."""
    target = path.resolve()  # a link stays a link
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(target)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InvalidArgumentError("--out", f"cannot write {path}: {error.strerror}") from None
