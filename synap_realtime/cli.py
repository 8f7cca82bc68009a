"""The command ``synap-realtime``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from . import __version__, console
from .errors import SynapRealtimeError
from .extras import install, lacks, needed_by
from .redaction import redacted

try:
    import typer
except ImportError as error:
    console.say(lacks("this command", error, "server", "cli"))
    raise SystemExit(2) from None

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
        console.show(__version__)
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
        str | None,
        typer.Option(
            help=_setting(
                "HOST", "127.0.0.1 (default); localhost; :: for IPv6 and IPv4. Others need keys."
            )
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help=_setting("PORT", "Default 8787; 0 takes a free one."))
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(help=_setting("TLS_CERT", "Speak TLS: the certificate's chain (PEM).")),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help=_setting("TLS_KEY", "The certificate's key (PEM)."))
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help=_setting("WORKERS", "Processes, with a store that they share; 1.")),
    ] = None,
    io_uring: Annotated[
        bool | None,
        typer.Option(
            "--io-uring/--no-io-uring",
            help=_setting("IO_URING", "To write to many at once; where there is one."),
        ),
    ] = None,
    allowed_origins: Annotated[
        str | None,
        typer.Option(help=_setting("ALLOWED_ORIGINS", "Browsers' origins, comma-separated.")),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help=_setting("STORE", "memory:// (default), sqlite:///path or module:function.")
        ),
    ] = None,
    drain_timeout_s: Annotated[
        float | None,
        typer.Option(help=_setting("DRAIN_TIMEOUT_S", "To let subscribers go when it stops; 5.")),
    ] = None,
    idle_timeout_s: Annotated[
        float | None,
        typer.Option(help=_setting("IDLE_TIMEOUT_S", "Then a silent connection is closed; 75.")),
    ] = None,
    ping_interval_s: Annotated[
        float | None,
        typer.Option(help=_setting("PING_INTERVAL_S", "Ping a silent WebSocket; 25. 0: never.")),
    ] = None,
    max_memory_bytes: Annotated[
        int | None, typer.Option(help=_setting("MAX_MEMORY_BYTES", "Of the memory store; 512 MiB."))
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
    log_format: Annotated[
        str | None, typer.Option(help=_setting("LOG_FORMAT", "text (default) or json."))
    ] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option(help=_setting("KEYS_FILE", "A file with keys; make it with `generate_keys`.")),
    ] = None,
    jwks_urls: Annotated[
        str | None,
        typer.Option(help=_setting("JWKS_URLS", "An identity provider's keys, comma-separated.")),
    ] = None,
    token_issuer: Annotated[
        str | None, typer.Option(help=_setting("TOKEN_ISSUER", "What a token's iss must be."))
    ] = None,
    token_audience: Annotated[
        str | None, typer.Option(help=_setting("TOKEN_AUDIENCE", "What a token's aud must be."))
    ] = None,
    token_leeway_s: Annotated[
        float | None, typer.Option(help=_setting("TOKEN_LEEWAY_S", "Clocks may differ; 10."))
    ] = None,
    token_max_lifetime_s: Annotated[
        float | None,
        typer.Option(
            help=_setting("TOKEN_MAX_LIFETIME_S", "Longer-lived tokens are refused; 90 days.")
        ),
    ] = None,
    authorizer: Annotated[
        str | None,
        typer.Option(help=_setting("AUTHORIZER", "module:function, a rule of your own.")),
    ] = None,
    admin: Annotated[
        bool | None,
        typer.Option("--admin/--no-admin", help=_setting("ADMIN", "A page for operators, /admin.")),
    ] = None,
    trusted_proxies: Annotated[
        str | None,
        typer.Option(help=_setting("TRUSTED_PROXIES", "Whose X-Forwarded-For is believed.")),
    ] = None,
    max_connections: Annotated[
        int | None, typer.Option(help=_setting("MAX_CONNECTIONS", "In all; 20000. 0: no limit."))
    ] = None,
    max_connections_per_user: Annotated[
        int | None, typer.Option(help=_setting("MAX_CONNECTIONS_PER_USER", "50."))
    ] = None,
    max_connections_per_room: Annotated[
        int | None, typer.Option(help=_setting("MAX_CONNECTIONS_PER_ROOM", "10000."))
    ] = None,
    max_rooms: Annotated[
        int | None, typer.Option(help=_setting("MAX_ROOMS", "With listeners; 20000."))
    ] = None,
    max_pending_connections: Annotated[
        int | None,
        typer.Option(
            help=_setting("MAX_PENDING_CONNECTIONS", "Sockets that wait for a request; 5000.")
        ),
    ] = None,
    max_request_bytes: Annotated[
        int | None,
        typer.Option(
            help=_setting("MAX_REQUEST_BYTES", "Of requests that are not answered yet; 64 MiB.")
        ),
    ] = None,
    max_answer_bytes: Annotated[
        int | None,
        typer.Option(
            help=_setting("MAX_ANSWER_BYTES", "Of answers that are not taken yet; 64 MiB.")
        ),
    ] = None,
    max_backlog_bytes: Annotated[
        int | None,
        typer.Option(help=_setting("MAX_BACKLOG_BYTES", "What waits for slow consumers; 256 MiB.")),
    ] = None,
    max_caller_bytes: Annotated[
        int | None,
        typer.Option(help=_setting("MAX_CALLER_BYTES", "Of each, for one caller; 16 MiB.")),
    ] = None,
    max_connections_per_address: Annotated[
        int | None, typer.Option(help=_setting("MAX_CONNECTIONS_PER_ADDRESS", "1000."))
    ] = None,
    new_connections_per_s: Annotated[
        int | None,
        typer.Option(help=_setting("NEW_CONNECTIONS_PER_S", "New ones of an address; 50.")),
    ] = None,
    publishes_per_s: Annotated[
        int | None, typer.Option(help=_setting("PUBLISHES_PER_S", "Notifications of a key; 10000."))
    ] = None,
    publish_bytes_per_s: Annotated[
        int | None, typer.Option(help=_setting("PUBLISH_BYTES_PER_S", "What they weigh; 20 MiB."))
    ] = None,
    requests_per_s: Annotated[
        int | None,
        typer.Option(
            help=_setting("REQUESTS_PER_S", "Beside publishes, of a user, key or address; 200.")
        ),
    ] = None,
    read_bytes_per_s: Annotated[
        int | None,
        typer.Option(help=_setting("READ_BYTES_PER_S", "What a user or a key reads; 20 MiB.")),
    ] = None,
    client_messages_per_s: Annotated[
        int | None, typer.Option(help=_setting("CLIENT_MESSAGES_PER_S", "What a client says; 100."))
    ] = None,
) -> None:
    """Run the room server.

    Secrets are no options, because other users of a machine see those: put them into the file of
    --keys-file, or into SYNAP_REALTIME_TOKEN_SECRETS and SYNAP_REALTIME_API_KEYS.
    """
    with needed_by("synap-realtime serve", "server"):
        from .server.config import load_settings
        from .server.serve import run

    run(
        load_settings(
            host=host,
            port=port,
            tls_cert=tls_cert,
            tls_key=tls_key,
            workers=workers,
            io_uring=io_uring,
            allowed_origins=allowed_origins,
            store=store,
            drain_timeout_s=drain_timeout_s,
            idle_timeout_s=idle_timeout_s,
            ping_interval_s=ping_interval_s,
            max_memory_bytes=max_memory_bytes,
            retention_count=retention_count,
            retention_s=retention_s,
            request_retention_s=request_retention_s,
            log_level=log_level,
            log_format=log_format,
            keys_file=keys_file,
            jwks_urls=jwks_urls,
            token_issuer=token_issuer,
            token_audience=token_audience,
            token_leeway_s=token_leeway_s,
            token_max_lifetime_s=token_max_lifetime_s,
            authorizer=authorizer,
            admin=admin,
            trusted_proxies=trusted_proxies,
            max_connections=max_connections,
            max_connections_per_user=max_connections_per_user,
            max_connections_per_room=max_connections_per_room,
            max_rooms=max_rooms,
            max_pending_connections=max_pending_connections,
            max_request_bytes=max_request_bytes,
            max_answer_bytes=max_answer_bytes,
            max_backlog_bytes=max_backlog_bytes,
            max_caller_bytes=max_caller_bytes,
            max_connections_per_address=max_connections_per_address,
            new_connections_per_s=new_connections_per_s,
            publishes_per_s=publishes_per_s,
            publish_bytes_per_s=publish_bytes_per_s,
            requests_per_s=requests_per_s,
            read_bytes_per_s=read_bytes_per_s,
            client_messages_per_s=client_messages_per_s,
        )
    )


@app.command()
def generate_keys(
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write, atomically and with mode 0600. Default: print."),
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Add new keys to the file; the old ones stay valid.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove from the file the keys that were rotated out.")
    ] = False,
) -> None:
    """Make the key file of serve --keys-file, or change its keys.

    The end of the file says what your application needs. A running server reads the file again when
    it changes.
    """
    from .commands import generate_keys

    generate_keys(out, rotate=rotate, prune=prune)


@app.command()
def token(
    user: Annotated[
        str | None, typer.Argument(help="Whose room it opens. A token instead is explained.")
    ] = None,
    rooms: Annotated[
        list[str] | None, typer.Option("--room", help="Another room; a * at its end: any rest.")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="Of subscribe, broadcast, presence, metrics, admin.")
    ] = "subscribe",
    device: Annotated[str | None, typer.Option(help="Which of the user's devices.")] = None,
    expires_in_s: Annotated[float, typer.Option(help="How long it is good.")] = 900,
    issuer: Annotated[str | None, typer.Option(help="Its iss.")] = None,
    audience: Annotated[str | None, typer.Option(help="Its aud.")] = None,
) -> None:
    """Mint a token with REALTIME_TOKEN_SECRET, or explain one (- reads it from stdin).

    Explaining checks the signature if REALTIME_TOKEN_SECRET is set. Exits with 1 if it is not good.
    """
    from .commands import explain_token
    from .tokens import mint_token

    if user is not None and (user == "-" or user.count(".") == 2):
        raise typer.Exit(explain_token(console.read_stdin("USER").strip() if user == "-" else user))
    if user is None and not rooms and scope not in ("admin", "metrics"):
        raise typer.BadParameter("expected a user, --room, or --scope admin or metrics")
    console.show(
        mint_token(
            user,
            rooms=rooms or (),
            scope=scope,
            device=device,
            expires_in_s=expires_in_s,
            issuer=issuer,
            audience=audience,
        )
    )


_URL = typer.Option(help="The room server; default http://127.0.0.1:8787. [env: REALTIME_URL]")
_JSON = typer.Option("--json", help="Print JSON, for programs.")


@app.command()
def subscribe(
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

    Exits with 1 if the server cannot be reached or refuses, with 74 if they cannot be printed (a
    full disk).
    """
    from .commands import subscribe_to_room

    raise typer.Exit(
        subscribe_to_room(
            room, url, token, after=after, as_json=as_json, count=count, timeout_s=timeout_s
        )
    )


@app.command()
def publish(
    room: Annotated[str, typer.Argument(help="user_42, request_7f3a, workspace_7.")],
    type: Annotated[str, typer.Argument(help="Dotted: note.creation.completed.")],
    data: Annotated[str, typer.Argument(help="A JSON object; - reads it from stdin.")] = "{}",
    status: Annotated[str | None, typer.Option(help="pending, success or error.")] = None,
    id: Annotated[str | None, typer.Option(help="The same id is the same notification.")] = None,
    request_id: Annotated[str | None, typer.Option(help="The request that this answers.")] = None,
    url: Annotated[str | None, _URL] = None,
    key: Annotated[
        str | None, typer.Option(help="Sent as a bearer token. [env: REALTIME_API_KEY]")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Publish one notification to a room.

    Exits with 1 if it was not delivered, with 74 if it was, but the result could not be printed.
    """
    from .commands import publish

    members = {"status": status, "id": id, "requestId": request_id}
    raise typer.Exit(publish(room, type, data, members, url, key, as_json=as_json))


@app.command()
def generate_types(
    own: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODULE:NAME]...",
            help="Your own: a JobType, a mapping from types to models, or a list of such.",
        ),
    ] = None,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="JSON Schema (2020-12); default: TypeScript.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="A file to replace; default: print.")] = None,
) -> None:
    """What data holds in each type of notification, for front ends."""
    from .commands import generate_types

    generate_types(own or [], as_json_schema=json_schema, out=out)


@app.command()
def doctor(
    url: Annotated[str | None, _URL] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help=_setting("KEYS_FILE", "A server's file with keys."))
    ] = None,
    store: Annotated[
        str | None, typer.Option(help=_setting("STORE", "A server's memory:// or sqlite:///path."))
    ] = None,
    host: Annotated[
        str | None, typer.Option(help=_setting("HOST", "Where a server is to listen."))
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help=_setting("TLS_CERT", "A server's certificate (PEM)."))
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help=_setting("TLS_KEY", "The certificate's key (PEM)."))
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Check configuration, keys, certificate, store, clock and the way to the room server.

    It says what to do. It looks at the settings of serve and at those of the application
    (REALTIME_URL, REALTIME_API_KEY, REALTIME_TOKEN_SECRET, REALTIME_PUBLIC_URL), as this
    environment has them, and publishes one notification to a room of its own. Exits with 1 if
    something failed.
    """
    from .commands import doctor

    given = {
        "keys_file": keys_file,
        "store": store,
        "host": host,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
    }
    raise typer.Exit(doctor(url, given, as_json=as_json))


def main() -> None:
    """Entry point. What goes wrong is one line on stderr and an exit code, not a traceback.

    Exits with 0; 1: it was done, and failed; 2: the command line, the settings or the installation
    are wrong; 74: stdout takes nothing; 130: Ctrl-C.
    """
    console.prepare()
    try:
        code = _run()
        console.flush()
    except console.ReaderGoneError:
        code = 0
    except console.UnwritableError as error:
        console.say(f"could not print: {error}")
        code = console.UNWRITABLE
    except KeyboardInterrupt:
        code = console.INTERRUPTED
    sys.exit(code)


def _run() -> int:
    try:
        return app(standalone_mode=False) or 0
    except _USAGE_ERROR as error:
        return _say_usage(error)
    except typer.Abort:  # Ctrl-C, as Typer has it before 0.20
        return console.INTERRUPTED
    except SynapRealtimeError as error:
        console.say(_with_source(_with_option(str(error))))
    except ImportError as error:
        text = str(error)
        if "pip install" not in text:
            text = f"cannot be loaded ({text}): {install('server', 'cli')}"
        console.say(text)
    except OSError as error:
        what = redacted(str(error.filename)) if error.filename else "working directory"
        console.say(f"{what}: {error.strerror or error}")
        return 1
    return 2


def _with_option(text: str) -> str:
    """An error that names an argument of a function, with the name of its option instead."""
    name, _, problem = text.partition(": ")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = next((commands[word] for word in sys.argv[1:] if word in commands), None)
    for parameter in command.params if command else ():
        if parameter.name == _OPTIONS.get(name, name):
            shown = parameter.opts[0]
            shown = shown if shown.startswith("-") else shown.upper()
            variable = f" ({parameter.envvar})" if parameter.envvar else ""
            return f"{shown}{variable}: {problem}"
    return text


def _with_source(text: str) -> str:
    """An error that names an option, with the variable's name instead if the value is of that."""
    option, _, rest = text.partition(" ")
    name = option.rstrip(":")
    variable = "SYNAP_REALTIME_" + name.removeprefix("--").replace("-", "_").upper()
    if not name.startswith("--") or variable not in os.environ or rest.startswith("("):
        return text
    if any(word.partition("=")[0] == name for word in sys.argv[1:]):
        return text
    return f"{variable}{option.removeprefix(name)} {rest}"


_OPTIONS = {"api_key": "key", "user_id": "user", "requestId": "request_id"}
"""Options that have another name than the argument behind them."""


# Of Click, or of Typer's own copy of it.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]


def _say_usage(error: Exception) -> int:
    """One line for a wrong command line; all of the help if there was none."""
    context = getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    command = context.command_path if context else "synap-realtime"
    if context and text == context.get_help():
        console.show(text)
    else:
        said = redacted(" ".join(text.split())).rstrip(".")
        console.say(f"{said} (see: {command} --help)")
    return 2
