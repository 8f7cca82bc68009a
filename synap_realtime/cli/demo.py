"""``synap-realtime demo``: run the whole system on this machine. See the package ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import show


def demo(
    port: Annotated[
        int | None,
        typer.Option(
            help="The port of the page; 0 takes a free one. Default: 8000, or a free one.",
            min=0,
            max=65535,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The folder that keeps notes, files and rooms over a restart. "
            "Default: a temporary folder.",
            file_okay=False,
        ),
    ] = None,
    room_server: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="A room server that runs already. Default: an embedded one."
        ),
    ] = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Run five jobs, print their notifications, and stop."),
    ] = False,
) -> None:
    """Run the whole system on this machine, to try it out.

    Starts a room server, an embedded Inngest server and a small web app, and prints the address of
    the app's page. Only this machine can reach them. Ctrl-C stops them. If INNGEST_DEV is set, the
    jobs run on that Inngest server.
    """
    from ..demo import run

    raise typer.Exit(run(show=show, data=data, port=port, room_server=room_server, once=once))
