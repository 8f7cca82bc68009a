"""``synap-realtime init``: write a small working project. See the package ``templates``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..templates import Template, create_project
from .console import printable, show


def init(
    template: Annotated[Template, typer.Argument(help="The frameworks of the project.")],
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="The folder to write, new or empty. Default: the name of the template.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a small working project to start from.

    It has a job, a web app with a page, the settings of the room server, and tests of all of it.
    The room server's keys are new ones, in the file .env. Nothing is installed and nothing is
    started; the commands for this are printed, and they are in the project's README.md.
    """
    target = folder if folder is not None else Path(template.value)
    for file in create_project(template, target):
        show(printable(f"  {target / file}"))
    show(
        "\nNow run:\n\n"
        f"  cd {shlex.quote(str(target))}\n"
        "  python3 -m venv .venv && . .venv/bin/activate\n"
        "  pip install -r requirements.txt\n"
        "  pytest\n"
        "  honcho start\n\n"
        "and open http://127.0.0.1:8000"
    )
