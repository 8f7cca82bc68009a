"""Turn docstrings, which are reStructuredText, into the Markdown that the API pages need.

An extension of Griffe, which reads the docstrings for mkdocstrings; see ``zensical.toml``.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`~?([^`]+)`")
_LITERAL_BLOCK = re.compile(
    r"^(?P<indent> *)(?P<text>\S.*)?::[ ]*\n(?P<code>(?:[ ]*\n|(?P=indent) +\S.*(?:\n|\Z))+)",
    re.MULTILINE,
)
_PYTHON = re.compile(
    r"^(?:\w+ = |async |await |def |class |from |import |with |for |@|\w+\()", re.M
)


class Markdown(griffe.Extension):
    """Replace the text of each docstring."""

    def on_object(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Return Markdown with the same content.

    ``:class:`Name``` becomes code, and a literal block (``::``) a fenced one.
    """
    return _LITERAL_BLOCK.sub(_fence, _ROLE.sub(_code, text))


def _code(role: re.Match[str]) -> str:
    name = role[1].lstrip(".")
    return f"`{name.rpartition('.')[2] if role[0].split('`')[1].startswith('~') else name}`"


def _fence(block: re.Match[str]) -> str:
    indent, code = block["indent"], dedent(block["code"]).strip("\n")
    lines = [f"```{_language_of(code)}", *code.split("\n"), "```"]
    text = "" if block["text"] is None else f"{indent}{block['text'].rstrip()}:\n\n"
    return text + "".join(f"{indent}{line}".rstrip() + "\n" for line in lines) + "\n"


def _language_of(code: str) -> str:
    if code.startswith("$ "):
        return "console"
    return "python" if _PYTHON.search(code) else "text"
