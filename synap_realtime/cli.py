"""The command ``synap-realtime``."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from . import __version__, console
from .errors import SynapRealtimeError
from .extras import install, lacks, needed_by
from .redaction import redacted

try:
    import typer
    from typer.core import TyperCommand
except ImportError as error:
    console.say(lacks("this command", error, "server", "cli"))
    raise SystemExit(2) from None

app = typer.Typer(
    name="synap-realtime",
    help="Push realtime notifications of background jobs to the users who requested them.",
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
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def _setting(name: str, text: str) -> str:
    return f"{text} {_ENV}SYNAP_REALTIME_{name}]"


_ENV = "[env: "


class _SettingsCommand(TyperCommand):
    """A command whose options are server settings. Its help shows the settings' own defaults."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with suppress(ImportError):  # without the extra "server" the help has no defaults
            from .server.config.settings import default_text

            for parameter in self.params:
                text = getattr(parameter, "help", None) or ""
                default = default_text(parameter.name or "")
                if default is not None and _ENV in text and "Default:" not in text:
                    with_default = text.replace(_ENV, f"Default: {default}. {_ENV}")
                    parameter.help = with_default  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


@app.command(cls=_SettingsCommand)
def serve(
    host: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "HOST",
                "The address to listen on: an IP address or a name. localhost is "
                "127.0.0.1 and ::1; :: is every address of IPv6 and IPv4. Addresses "
                "other than loopback need keys.",
            )
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "PORT",
                "The TCP port to listen on. 0 takes a free port.",
            )
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help=_setting(
                "TLS_CERT",
                "A PEM file with the certificate chain. The server then speaks TLS.",
            )
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            help=_setting(
                "TLS_KEY",
                "A PEM file with the certificate's private key.",
            )
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "WORKERS",
                "The number of worker processes. More than one needs a store that "
                "processes can share.",
            )
        ),
    ] = None,
    io_uring: Annotated[
        bool | None,
        typer.Option(
            "--io-uring/--no-io-uring",
            help=_setting(
                "IO_URING",
                "Write to large rooms with io_uring where the kernel has it.",
            ),
        ),
    ] = None,
    allowed_origins: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "ALLOWED_ORIGINS",
                "Browser origins that may connect beside loopback ones, separated "
                "by commas: https://app.example.com.",
            )
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "STORE",
                "Where rooms keep their logs: memory://, sqlite:///path or module:function.",
            )
        ),
    ] = None,
    drain_timeout_s: Annotated[
        float | None,
        typer.Option(
            help=_setting(
                "DRAIN_TIMEOUT_S",
                "How long the server waits for publishes and subscribers to finish "
                "when it stops, in seconds.",
            )
        ),
    ] = None,
    idle_timeout_s: Annotated[
        float | None,
        typer.Option(
            help=_setting(
                "IDLE_TIMEOUT_S",
                "Close a WebSocket after this time without a frame from its client, in seconds.",
            )
        ),
    ] = None,
    ping_interval_s: Annotated[
        float | None,
        typer.Option(
            help=_setting(
                "PING_INTERVAL_S",
                "Ping a WebSocket after this time without a frame from its client, "
                "in seconds. 0 sends no pings.",
            )
        ),
    ] = None,
    max_memory_bytes: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_MEMORY_BYTES",
                "The maximum size of the memory store, in bytes. The oldest "
                "notifications are evicted first.",
            )
        ),
    ] = None,
    retention_count: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "RETENTION_COUNT",
                "The maximum number of notifications that a room keeps.",
            )
        ),
    ] = None,
    retention_s: Annotated[
        float | None,
        typer.Option(
            help=_setting(
                "RETENTION_S",
                "How long a room keeps a notification, in seconds.",
            )
        ),
    ] = None,
    request_retention_s: Annotated[
        float | None,
        typer.Option(
            help=_setting(
                "REQUEST_RETENTION_S",
                "How long a request's room keeps a notification, in seconds.",
            )
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "LOG_LEVEL",
                "The least severe level that is logged: debug, info, warning or error.",
            )
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "LOG_FORMAT",
                "The format of the log: text or json.",
            )
        ),
    ] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option(
            help=_setting(
                "KEYS_FILE",
                "A TOML file with keys, as generate-keys writes it. It is reloaded "
                "when it changes.",
            )
        ),
    ] = None,
    jwks_urls: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "JWKS_URLS",
                "Where identity providers publish their JWK sets: https:// URLs, "
                "separated by commas.",
            )
        ),
    ] = None,
    token_issuer: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "TOKEN_ISSUER",
                "The iss claim that tokens must have.",
            )
        ),
    ] = None,
    token_audience: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "TOKEN_AUDIENCE",
                "The aud claim that tokens must have.",
            )
        ),
    ] = None,
    token_leeway_s: Annotated[
        float | None,
        typer.Option(
            help=_setting(
                "TOKEN_LEEWAY_S",
                "The clock difference that is tolerated when a token is validated, in seconds.",
            )
        ),
    ] = None,
    token_max_lifetime_s: Annotated[
        float | None,
        typer.Option(
            help=_setting(
                "TOKEN_MAX_LIFETIME_S",
                "Reject tokens that are valid for longer than this, in seconds.",
            )
        ),
    ] = None,
    authorizer: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "AUTHORIZER",
                "Your own authorizer, as module:function. It can only deny what the server allows.",
            )
        ),
    ] = None,
    admin: Annotated[
        bool | None,
        typer.Option(
            "--admin/--no-admin",
            help=_setting(
                "ADMIN",
                "Serve the admin page at /admin.",
            ),
        ),
    ] = None,
    trusted_proxies: Annotated[
        str | None,
        typer.Option(
            help=_setting(
                "TRUSTED_PROXIES",
                "Addresses or networks of proxies whose X-Forwarded-For is trusted, "
                "separated by commas.",
            )
        ),
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_CONNECTIONS",
                "The maximum number of open connections. 0 is no limit, here and below.",
            )
        ),
    ] = None,
    max_connections_per_user: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_CONNECTIONS_PER_USER",
                "The maximum number of open connections per user.",
            )
        ),
    ] = None,
    max_connections_per_room: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_CONNECTIONS_PER_ROOM",
                "The maximum number of open connections per room.",
            )
        ),
    ] = None,
    max_rooms: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_ROOMS",
                "The maximum number of rooms that have subscribers.",
            )
        ),
    ] = None,
    max_pending_connections: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_PENDING_CONNECTIONS",
                "The maximum number of sockets that have not sent a whole request yet.",
            )
        ),
    ] = None,
    max_request_bytes: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_REQUEST_BYTES",
                "The maximum size of all unanswered requests together, in bytes.",
            )
        ),
    ] = None,
    max_answer_bytes: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_ANSWER_BYTES",
                "The maximum size of all responses that clients have not read yet, in bytes.",
            )
        ),
    ] = None,
    max_backlog_bytes: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_BACKLOG_BYTES",
                "The maximum size of all notifications that slow consumers have not "
                "read yet, in bytes.",
            )
        ),
    ] = None,
    max_caller_bytes: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_CALLER_BYTES",
                "The maximum of each of the three sizes above for one user, token "
                "or address, in bytes.",
            )
        ),
    ] = None,
    max_connections_per_address: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "MAX_CONNECTIONS_PER_ADDRESS",
                "The maximum number of open connections per address.",
            )
        ),
    ] = None,
    new_connections_per_s: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "NEW_CONNECTIONS_PER_S",
                "The rate limit of new connections per address, per second.",
            )
        ),
    ] = None,
    publishes_per_s: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "PUBLISHES_PER_S",
                "The rate limit of notifications per key, per second.",
            )
        ),
    ] = None,
    publish_bytes_per_s: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "PUBLISH_BYTES_PER_S",
                "The rate limit of published bytes per key, per second.",
            )
        ),
    ] = None,
    requests_per_s: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "REQUESTS_PER_S",
                "The rate limit of requests other than publishes per user, key or "
                "address, per second.",
            )
        ),
    ] = None,
    read_bytes_per_s: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "READ_BYTES_PER_S",
                "The rate limit of bytes read (history, replay, presence) per user "
                "or key, per second.",
            )
        ),
    ] = None,
    client_messages_per_s: Annotated[
        int | None,
        typer.Option(
            help=_setting(
                "CLIENT_MESSAGES_PER_S",
                "The rate limit of messages that one client sends, per second.",
            )
        ),
    ] = None,
) -> None:
    """Run the room server.

    There are no options for secrets, because other users of the machine can read command lines.
    Put secrets into the file of --keys-file, or into SYNAP_REALTIME_TOKEN_SECRETS and
    SYNAP_REALTIME_API_KEYS.
    """
    with needed_by("synap-realtime serve", "server"):
        from .server.config.settings import load_settings
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
        typer.Option(
            help="The file to write, atomically and with mode 0600. Default: print the keys."
        ),
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Add new keys to the file. The old keys stay valid.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the keys that were rotated out from the file.")
    ] = False,
) -> None:
    """Create the file of serve --keys-file, or rotate its keys.

    The last lines of the file are the environment of your application. A running server reloads the
    file when it changes.
    """
    from .commands import generate_keys

    generate_keys(out, rotate=rotate, prune=prune)


@app.command()
def token(
    user: Annotated[
        str | None,
        typer.Argument(
            help="The user whose room the token grants. A token, or - for stdin, is inspected."
        ),
    ] = None,
    rooms: Annotated[
        list[str] | None,
        typer.Option("--room", help="A further room. A * at its end matches any rest."),
    ] = None,
    scope: Annotated[
        str,
        typer.Option(
            help="Scopes, separated by spaces: subscribe, broadcast, presence, metrics, admin."
        ),
    ] = "subscribe",
    device: Annotated[str | None, typer.Option(help="The name of the user's device.")] = None,
    expires_in_s: Annotated[
        float, typer.Option(help="The lifetime in seconds. Default: 900.", show_default=False)
    ] = 900,
    issuer: Annotated[str | None, typer.Option(help="The iss claim.")] = None,
    audience: Annotated[str | None, typer.Option(help="The aud claim.")] = None,
) -> None:
    """Mint a token with REALTIME_TOKEN_SECRET, or inspect a token.

    A token is inspected if it is given in place of the user, or on stdin with -. Its signature is
    checked if REALTIME_TOKEN_SECRET is set. Exits with 1 if the token is not valid.
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


_URL = typer.Option(
    help="The URL of the room server. Default: http://127.0.0.1:8787. [env: REALTIME_URL]"
)
_JSON = typer.Option("--json", help="Print JSON, one object a line.")


@app.command()
def subscribe(
    room: Annotated[str, typer.Argument(help="The room, such as user_42 or request_7f3a.")],
    url: Annotated[str | None, _URL] = None,
    token: Annotated[
        str | None, typer.Option(help="The token to authenticate with.", envvar="REALTIME_TOKEN")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Where to start: a cursor, earliest or latest.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
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
    """Print the notifications of a room as they arrive, without acknowledging them.

    Exits with 1 if the server cannot be reached or rejects the subscription, and with 74 if stdout
    cannot be written (a full disk).
    """
    from .commands import subscribe_to_room

    raise typer.Exit(
        subscribe_to_room(
            room, url, token, after=after, as_json=as_json, count=count, timeout_s=timeout_s
        )
    )


@app.command()
def publish(
    room: Annotated[str, typer.Argument(help="The room, such as user_42 or request_7f3a.")],
    type: Annotated[str, typer.Argument(help="The dotted type, such as note.creation.completed.")],
    data: Annotated[
        str, typer.Argument(help="The payload, a JSON object. - reads it from stdin.")
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
    url: Annotated[str | None, _URL] = None,
    key: Annotated[
        str | None,
        typer.Option(help="The API key or token to authenticate with. [env: REALTIME_API_KEY]"),
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Publish one notification to a room.

    Exits with 1 if it was not accepted, and with 74 if it was, but stdout cannot be written.
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
            help="Your own types: a JobType, a mapping from types to models, or a list of these.",
        ),
    ] = None,
    json_schema: Annotated[
        bool,
        typer.Option("--json-schema", help="Write JSON Schema (2020-12). Default: TypeScript."),
    ] = False,
    out: Annotated[
        str | None, typer.Option(help="The file to write, atomically. Default: print.")
    ] = None,
) -> None:
    """Generate types of the payload of each notification type, for front ends."""
    from .commands import generate_types

    generate_types(own or [], as_json_schema=json_schema, out=out)


@app.command()
def doctor(
    url: Annotated[str | None, _URL] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help=_setting("KEYS_FILE", "The key file of a server."))
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help=_setting("STORE", "The store of a server: memory:// or sqlite:///path.")),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help=_setting("HOST", "The address that a server listens on."))
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help=_setting("TLS_CERT", "A PEM file with the certificate chain of a server.")
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(help=_setting("TLS_KEY", "A PEM file with the certificate's private key.")),
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Check the configuration, keys, certificate, store, clock and the path to the room server.

    Each finding names the fix. The checks read the settings of serve and of the application
    (REALTIME_URL, REALTIME_API_KEY, REALTIME_TOKEN_SECRET, REALTIME_PUBLIC_URL) from the
    environment, and publish one notification to a room that nothing else uses. Exits with 1 if a
    check fails.
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
    """Run the command line. Report errors as one line on stderr and an exit code, not a traceback.

    Exit codes: 0; 1: the command failed; 2: the command line, the settings or the installation are
    wrong; 74: stdout cannot be written; 130: Ctrl-C.
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
    except typer.Abort:  # Ctrl-C in Typer before 0.20
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
    """Replace the name of a function's argument in an error by the name of its option."""
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
    """Replace an option in an error by its environment variable, if the value came from there."""
    option, _, rest = text.partition(" ")
    name = option.rstrip(":")
    variable = "SYNAP_REALTIME_" + name.removeprefix("--").replace("-", "_").upper()
    if not name.startswith("--") or variable not in os.environ or rest.startswith("("):
        return text
    if any(word.partition("=")[0] == name for word in sys.argv[1:]):
        return text
    return f"{variable}{option.removeprefix(name)} {rest}"


_OPTIONS = {"api_key": "key", "user_id": "user", "requestId": "request_id"}
"""The options whose name differs from the argument's, by the name of the argument."""


# The class of Click, or of the copy of Click in Typer.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]


def _say_usage(error: Exception) -> int:
    """Print one line about a wrong command line, or the whole help if the command line is empty."""
    context = getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    command = context.command_path if context else "synap-realtime"
    if context and text == context.get_help():
        console.show(text)
    else:
        problem = redacted(" ".join(text.split())).rstrip(".")
        console.say(f"{problem} (see: {command} --help)")
    return 2
