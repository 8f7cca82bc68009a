"""``synap-realtime generate-types``: write the types of payloads for front ends."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidArgumentError
from .console import show


def generate_types(
    own: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODULE:NAME",
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
    """Generate the payload types of notifications.

    They are for front ends: a type for each notification type that is built in, and for your own.
    """
    text = _generate(own or [], as_json_schema=json_schema)
    if out is None:
        show(text.removesuffix("\n"))
    else:
        _write(Path(out), text)


def _generate(references: Sequence[str], *, as_json_schema: bool) -> str:
    """Return the types of the built-in job types and of ``module:NAME`` references.

    Raises:
        InvalidArgumentError: a reference is wrong.
    """
    from ..types import build_catalog, load, to_json_schema, to_typescript

    catalog = build_catalog({reference: load(reference) for reference in references})
    options = ["--json-schema"] if as_json_schema else []
    comment = (
        "The payload types of synap-realtime notifications. Generated; regenerate with:\n"
        f"  {shlex.join(['synap-realtime', 'generate-types', *references, *options])} --out FILE"
    )
    if as_json_schema:
        return json.dumps(to_json_schema(catalog, comment), indent=2, ensure_ascii=False) + "\n"
    return to_typescript(catalog, comment)


def _write(path: Path, text: str) -> None:
    """Replace a file atomically. A concurrent reader sees the old or the new content.

    Raises:
        InvalidArgumentError: the file cannot be written.
    """
    target = path.resolve()  # a link stays a link
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(target)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InvalidArgumentError("--out", f"cannot write {path}: {error.strerror}") from None
