"""Parse which series a PromQL expression reads, as far as the queries of deploy/ need it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()\s*(\{[^}]*\})?")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*[\"']([^\"']*)[\"']")
_WORDS = frozenset({"and", "or", "unless", "bool", "offset"})


@dataclass(frozen=True, slots=True)
class Selector:
    """``name{label="value"}``; ``equal``: the labels that must be just so."""

    name: str
    labels: frozenset[str]
    equal: frozenset[tuple[str, str]]


def selectors(expression: str) -> list[Selector]:
    """Every name in an expression that is no function and no word of the language."""
    plain = _GROUPING.sub(" ", _RANGE.sub(" ", expression))
    found = []
    for name, matchers in _SELECTOR.findall(plain):
        if name not in _WORDS:
            parts = _MATCHER.findall(matchers)
            labels = frozenset(label for label, _, _ in parts)
            equal = frozenset((label, value) for label, how, value in parts if how == "=")
            found.append(Selector(name, labels, equal))
    return found


def grouping(expression: str) -> set[str]:
    """The labels that it adds up or joins by."""
    lists = ",".join(_GROUPING.findall(expression))
    return {label for label in (part.strip() for part in lists.split(",")) if label}
