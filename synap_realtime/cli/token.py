"""``synap-realtime token``: mint or inspect a token."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import typer

from .console import printable, read_stdin, show


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
            help="Scopes, separated by spaces: subscribe, broadcast, presence, metrics, admin. "
            "Default: subscribe.",
            show_default=False,
        ),
    ] = "subscribe",
    device: Annotated[str | None, typer.Option(help="The name of the user's device.")] = None,
    expires_in_s: Annotated[
        float, typer.Option(help="The lifetime in seconds. Default: 900.", show_default=False)
    ] = 900,
    issuer: Annotated[str | None, typer.Option(help="The iss claim.")] = None,
    audience: Annotated[str | None, typer.Option(help="The aud claim.")] = None,
) -> None:
    """Mint a token with REALTIME_TOKEN_SECRET, or inspect one.

    A token is inspected if it is given in place of the user, or on stdin with -. Its signature is
    checked if REALTIME_TOKEN_SECRET is set. Exits with 1 if the token is not valid.
    """
    from ..tokens import mint_token

    if user is not None and (user == "-" or user.count(".") == 2):
        raise typer.Exit(_inspect(read_stdin("USER").strip() if user == "-" else user))
    if user is None and not rooms and scope not in ("admin", "metrics"):
        raise typer.BadParameter("expected a user, --room, or --scope admin or metrics")
    show(
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


def _inspect(token: str) -> int:
    """Print the claims of a token and whether it is valid. Return the exit code: 1 if it is not."""
    from ..tokens import inspect_token

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
