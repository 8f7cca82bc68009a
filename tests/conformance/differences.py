"""Known differences between a server and PROTOCOL.md. See ``differences.toml``."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
FILE = HERE / "differences.toml"


class DifferencesError(Exception):
    """A line of the file means nothing."""


def load(kind: str, file: Path = FILE) -> dict[str, str]:
    """The lines of one kind of server: the name of a case -> the reason.

    Raises:
        DifferencesError: the file has no such table, or a reason is missing.
    """
    tables = tomllib.loads(file.read_text())
    if kind not in tables:
        raise DifferencesError(f"{file.name} has no table [{kind}]")
    lines: dict[str, str] = {}
    for name, reason in tables[kind].items():
        if not isinstance(reason, str) or not reason.strip():
            raise DifferencesError(f"{file.name}: [{kind}] {name}: expected a reason")
        lines[name] = reason
    return lines


def check_names(lines: Iterable[str], collected: Iterable[str], here: Path = HERE) -> None:
    """Every line has to name a case, whichever of them are run now.

    Args:
        lines: the names in the file.
        collected: the names of the cases that pytest has found, variants included.

    Raises:
        DifferencesError: names the first line that does not.
    """
    found = set(collected)
    known = {name.partition("[")[0] for name in found}
    for line in lines:
        case, bracket, _ = line.partition("[")
        # A case of a file that is not run now is looked up in its source, without its variant.
        exists = line in found if bracket and case in known else _is_defined(case, here)
        if not exists:
            raise DifferencesError(f"differences.toml: {line!r} names no case; delete the line")


def reason_for(name: str, lines: dict[str, str]) -> str | None:
    """Why this case (``file::test[variant]``) is expected to fail, if it is."""
    reason = lines.get(name) or lines.get(name.partition("[")[0])
    if reason is None:
        return None
    return f"{reason} (if it passes: delete its line in differences.toml)"


def _is_defined(case: str, here: Path) -> bool:
    file, _, function = case.partition("::")
    path = here / file
    if not function or path.parent != here or not path.is_file():
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
        for node in ast.parse(path.read_text()).body
    )
