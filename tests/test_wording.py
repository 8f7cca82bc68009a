"""Names are the field's terms: words of the project's former dialect define nothing.

CONTRIBUTING.md, "Glossary", has the terms to use instead.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BANNED = {
    "at once": "immediately, concurrently, or max_concurrent_…",
    "company": "fan-out group",
    "gather": "add to a group",
    "handed": "delivered",
    "heads": "request heads, or the latest cursors",
    "hear": "receive",
    "heard": "received",
    "hears": "receives",
    "let go": "release, close",
    "people": "recipients",
    "person": "recipient",
    "scatter": "remove from a group",
    "strangers": "unauthenticated clients",
    "stranger": "an unauthenticated client",
    "tell": "publish, deliver, report",
    "telling": "publishing, delivering, reporting",
    "tells": "publishes, delivers, reports",
    "told": "published, delivered, reported",
    "turn": "event-loop iteration, write batch",
    "who may": "authentication and authorization",
}

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_TYPESCRIPT = re.compile(
    r"\b(?:function\*?|class|interface|type|const|let|var|enum)\s+([A-Za-z_$][\w$]*)"
    r"|^\s+(?:(?:public|private|protected|static|readonly|async|get|set)\s+)*"
    r"(#?[A-Za-z_$][\w$]*)\s*[(:=?!]",
    re.MULTILINE,
)


def words(identifier: str) -> str:
    return " ".join(word.lower() for word in _WORD.findall(identifier))


def banned_word(identifier: str) -> str | None:
    text = f" {words(identifier)} "
    return next((word for word in BANNED if f" {word} " in text), None)


def python_definitions(source: str) -> Iterator[str]:
    """Names that a module defines: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr
            case ast.keyword(arg=str(name)):
                yield name


def typescript_definitions(source: str) -> Iterator[str]:
    for match in _TYPESCRIPT.finditer(source):
        yield match[1] or match[2]


def sources(*patterns: str) -> list[Path]:
    skipped = {"node_modules", "dist", ".venv", ".wrangler"}
    return sorted(
        path
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if skipped.isdisjoint(path.relative_to(ROOT).parts) and path != Path(__file__)
    )


FOLDERS = ("synap_realtime", "tests", "examples", "benchmarks")
PYTHON = sources(*(f"{folder}/**/*.py" for folder in FOLDERS))
TYPESCRIPT = sources("browser/**/*.ts", "browser/**/*.tsx", "worker/**/*.ts")


@pytest.mark.parametrize("path", PYTHON + TYPESCRIPT, ids=lambda path: str(path.relative_to(ROOT)))
def test_defines_no_name_of_the_former_dialect(path: Path) -> None:
    definitions = python_definitions if path.suffix == ".py" else typescript_definitions
    names = [path.stem, *definitions(path.read_text())]
    assert {name: BANNED[word] for name in names if (word := banned_word(name))} == {}


def test_no_two_public_classes_share_a_name() -> None:
    modules: dict[str, list[str]] = {}
    for path in sources("synap_realtime/**/*.py"):
        if "-" in path.relative_to(ROOT).parts[1:3][-1]:
            continue  # a project that is copied: each has names of its own
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in modules.items() if len(found) > 1} == {}
