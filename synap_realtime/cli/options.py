"""Options that several commands have."""

from __future__ import annotations

import typer

URL = typer.Option(
    help="The URL of the room server. Default: http://127.0.0.1:8787. [env: REALTIME_URL]"
)
AS_JSON = typer.Option("--json", help="Print JSON, one object a line.")
