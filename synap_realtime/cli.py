"""The command ``synap-realtime``."""

from __future__ import annotations

import sys
from typing import Annotated

try:
    import typer
except ImportError:
    sys.exit("synap-realtime: this command needs: pip install 'synap-realtime[server,cli]'")

from . import __version__
from .errors import SynapRealtimeError

app = typer.Typer(
    name="synap-realtime",
    help="The moment a background job moves, the user who waits for it sees it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", help="Print it.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


def _setting(name: str, text: str) -> str:
    return f"{text} [env: SYNAP_REALTIME_{name}]"


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help=_setting("HOST", "Loopback address; default 127.0.0.1."))
    ] = None,
    port: Annotated[
        int | None, typer.Option(help=_setting("PORT", "Default 8787; 0 takes a free one."))
    ] = None,
    allowed_origins: Annotated[
        str | None,
        typer.Option(help=_setting("ALLOWED_ORIGINS", "Browsers' origins, comma-separated.")),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help=_setting("STORE", "memory:// (default) or sqlite:///path."))
    ] = None,
    drain_s: Annotated[
        float | None,
        typer.Option(help=_setting("DRAIN_S", "To let subscribers go when it stops; 5.")),
    ] = None,
    silence_s: Annotated[
        float | None,
        typer.Option(help=_setting("SILENCE_S", "Then a silent connection is closed; 75.")),
    ] = None,
    retention_count: Annotated[
        int | None,
        typer.Option(help=_setting("RETENTION_COUNT", "Notifications a room keeps; 1000.")),
    ] = None,
    retention_s: Annotated[
        float | None,
        typer.Option(help=_setting("RETENTION_S", "For so many seconds; 86400.")),
    ] = None,
    request_retention_s: Annotated[
        float | None,
        typer.Option(help=_setting("REQUEST_RETENTION_S", "In a request's room; 3600.")),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help=_setting("LOG_LEVEL", "debug, info, warning or error."))
    ] = None,
) -> None:
    """Run the room server."""
    from .server.serve import run
    from .server.settings import load_settings

    run(
        load_settings(
            host=host,
            port=port,
            allowed_origins=allowed_origins,
            store=store,
            drain_s=drain_s,
            silence_s=silence_s,
            retention_count=retention_count,
            retention_s=retention_s,
            request_retention_s=request_retention_s,
            log_level=log_level,
        )
    )


_URL = typer.Option(help="The room server; default http://127.0.0.1:8787. [env: REALTIME_URL]")
_JSON = typer.Option("--json", help="Print JSON, for programs.")


@app.command()
def listen(
    room: Annotated[str, typer.Argument(help="user_42, request_7f3a, workspace_7.")],
    url: Annotated[str | None, _URL] = None,
    token: Annotated[
        str | None, typer.Option(help="Sent as a bearer token.", envvar="REALTIME_TOKEN")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Where to start: a cursor, earliest or latest.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(min=0, help="End after so many seconds; 1 if --count was not reached."),
    ] = None,
) -> None:
    """Print a room's notifications as they come. Watching marks nothing as received.

    Exits with 74 if they cannot be printed (a full disk).
    """
    from .commands import listen

    raise typer.Exit(
        listen(room, url, token, after=after, as_json=as_json, count=count, timeout_s=timeout_s)
    )


@app.command()
def send(
    room: Annotated[str, typer.Argument(help="user_42, request_7f3a, workspace_7.")],
    type: Annotated[str, typer.Argument(help="Dotted: note.creation.completed.")],
    data: Annotated[str, typer.Argument(help="A JSON object; - reads it from stdin.")] = "{}",
    status: Annotated[str | None, typer.Option(help="pending, success or error.")] = None,
    id: Annotated[str | None, typer.Option(help="The same id is the same notification.")] = None,
    request_id: Annotated[str | None, typer.Option(help="The request that this answers.")] = None,
    url: Annotated[str | None, _URL] = None,
    key: Annotated[
        str | None, typer.Option(help="Sent as a bearer token.", envvar="REALTIME_API_KEY")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Publish one notification to a room.

    Exits with 1 if it was not delivered, with 74 if it was and that could not be printed.
    """
    from .commands import send

    members = {"status": status, "id": id, "requestId": request_id}
    raise typer.Exit(send(room, type, data, members, url, key, as_json=as_json))


@app.command()
def types(
    own: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODULE:NAME]...",
            help="Your own: a Family, a mapping from types to models, or a list of such.",
        ),
    ] = None,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="JSON Schema (2020-12); default: TypeScript.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="A file to replace; default: print.")] = None,
) -> None:
    """What data holds in each type of notification, for front ends."""
    from .commands import types

    raise typer.Exit(types(own or [], as_json_schema=json_schema, out=out))


def main() -> None:
    """Entry point: an error that we know is one line, not a traceback."""
    try:
        app()
    except SynapRealtimeError as error:
        print(f"synap-realtime: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ImportError as error:
        text = str(error)
        if "pip install" not in text:
            text += "; install it with: pip install 'synap-realtime[server,cli]'"
        print(f"synap-realtime: {text}", file=sys.stderr)
        raise SystemExit(2) from None
