"""Describe the public API as Markdown, for the ``.md`` beside each page.

On the pages themselves, mkdocstrings does that; its blocks (``:::``) are of no use to a reader of
the Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import griffe

from .docstrings import Markdown
from .pages import ROOT

_BLOCK = re.compile(r"^::: (\S+)$", re.MULTILINE)
_TITLES = {
    "attributes": "Attributes",
    "parameters": "Parameters",
    "raises": "Raises",
    "returns": "Returns",
    "yields": "Yields",
}


def expand(text: str) -> str:
    """Return the text of a page with a description in place of each block of mkdocstrings."""
    return _BLOCK.sub(lambda block: "\n".join(_describe(_find(block[1]), "###")).strip(), text)


@cache
def _package() -> Any:
    return griffe.load(
        "synap_realtime",
        search_paths=[ROOT],
        extensions=griffe.Extensions(Markdown()),
    )


def _find(path: str) -> Any:
    found = _package()[path.removeprefix("synap_realtime.")]
    return found.final_target if found.is_alias else found


def _describe(found: Any, level: str) -> Iterator[str]:
    yield f"{level} {found.name}\n"
    if found.is_function or found.is_class:
        yield f"```python\n{_signature(found)}\n```\n"
    if found.docstring is not None:
        for section in found.docstring.parse("google", warnings=False):
            yield from _section(section)
    if found.is_class:
        for member in found.members.values():
            if not member.is_alias and member.is_public and member.docstring is not None:
                yield from _describe(member, f"{level}#")


def _signature(found: Any) -> str:
    if found.is_class:
        bases = ", ".join(str(base) for base in found.bases)
        return f"class {found.name}({bases})" if bases else f"class {found.name}"
    prefix = "async def" if "async" in found.labels else "def"
    return f"{prefix} {found.signature()}"


def _section(section: Any) -> Iterator[str]:
    kind = section.kind.value
    if kind == "text":
        yield f"{section.value}\n"
    elif kind in _TITLES:
        yield f"{_TITLES[kind]}:\n"
        for each in section.value:
            name = getattr(each, "name", None) or str(each.annotation).strip("()")
            text = " ".join(each.description.split())
            yield f"- `{name}`: {text}" if kind not in ("returns", "yields") else f"- {text}"
        yield ""
