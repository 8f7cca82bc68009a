"""``synap-realtime publish``: publish one notification."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidArgumentError
from .console import (
    UNWRITABLE,
    ReaderGoneError,
    UnwritableError,
    counted,
    printable,
    read_stdin,
    say,
    show,
)
from .messages import name_client_options
from .options import AS_JSON, URL

if TYPE_CHECKING:
    from ..broadcast import BroadcastResult

SEND_DEADLINE_S = 3.0
"""Short, because a user waits at a terminal: an unreachable server is reported soon."""

_EXAMPLE = """expected a JSON object such as '{"title": "Milk"}'"""


def publish(
    room: Annotated[str, typer.Argument(help="The room, such as user_42 or request_7f3a.")],
    type: Annotated[str, typer.Argument(help="The dotted type, such as note.creation.completed.")],
    data: Annotated[
        str,
        typer.Argument(
            help="The payload, a JSON object. - reads it from stdin. Default: {}.",
            show_default=False,
        ),
    ] = "{}",
    status: Annotated[
        str | None, typer.Option(help="The status: pending, success or error.")
    ] = None,
    id: Annotated[
        str | None, typer.Option(help="The id. Publishing the same id again delivers nothing new.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(help="The id of the request that this notification answers.")
    ] = None,
    url: Annotated[str | None, URL] = None,
    key: Annotated[
        str | None,
        typer.Option(help="The API key or token to authenticate with. [env: REALTIME_API_KEY]"),
    ] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Publish one notification to a room.

    Exits with 1 if it was not accepted, and with 74 if it was, but stdout cannot be written.
    """
    from ..broadcast import Broadcaster

    members = {"status": status, "id": id, "requestId": request_id}
    message = {
        "type": type,
        "data": _parse_data(read_stdin("DATA") if data == "-" else data),
        **{name: value for name, value in members.items() if value is not None},
    }
    with Broadcaster(url, key, deadline_s=SEND_DEADLINE_S) as broadcaster:
        result = broadcaster.broadcast(room, message)
    raise typer.Exit(_print_result(room, result, as_json=as_json))


def _parse_data(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise InvalidArgumentError("DATA", f"not JSON ({reason}); {_EXAMPLE}") from None
    if not isinstance(value, dict):
        raise InvalidArgumentError("DATA", f"not an object; {_EXAMPLE}")
    return value


def _print_result(room: str, result: BroadcastResult, *, as_json: bool) -> int:
    """Print the result and return the exit code.

    Returns:
        0: the server accepted the notification; 1: it did not; :data:`UNWRITABLE`: it did, but the
        result could not be printed.
    """
    if not result.success:
        say(f"not published: {name_client_options(result.error or 'the server gave no reason')}")
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


def _format_result(room: str, result: BroadcastResult) -> str:
    count = result.broadcast_count
    line = f"published {result.id} to {room}: delivered to {counted(count, 'subscriber')}"
    if result.duplicate:
        line += " (duplicate: this id was published before)"
    return printable(line)


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
