"""The imports of the browser client and of the Worker: no cycle, and folders in one direction."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "browser/src", ROOT / "worker/src"]
WORKER_LAYERS = ["protocol", "stores", "auth", "rooms", "http"]
"""The Worker's folders: a module imports from its own folder and from those before it."""

# Imports of types count, too: a reader follows them like any other.
_IMPORT = re.compile(r"""(?:\bfrom|^import|\bimport\()\s*["'](\.{1,2}/[^"']+)["']""", re.MULTILINE)


def imports_of(file: Path) -> set[Path]:
    """Return the modules of the project that a module imports."""
    found = set()
    for name in _IMPORT.findall(file.read_text()):
        target = (file.parent / name).resolve()
        module = target.with_suffix(".ts") if target.suffix == ".js" else target
        candidates = [module, module.with_name(f"{module.name}.ts")]
        found.add(next(candidate for candidate in candidates if candidate.is_file()))
    return found


def modules(source: Path) -> list[Path]:
    return sorted([*source.rglob("*.ts"), *source.rglob("*.tsx")])


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.parent.name)
def test_modules_have_no_import_cycle(source: Path) -> None:
    graph = {file: imports_of(file) for file in modules(source)}
    assert sum(map(len, graph.values())) > len(graph)  # the imports were found
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = " -> ".join(file.relative_to(source).as_posix() for file in error.args[1])
        pytest.fail(f"import cycle: {cycle}")


def test_folders_of_the_worker_import_in_one_direction() -> None:
    source = ROOT / "worker/src"
    assert sorted(WORKER_LAYERS) == sorted(each.name for each in source.iterdir() if each.is_dir())
    for file in modules(source):
        folder = file.relative_to(source).parts[0]
        if folder not in WORKER_LAYERS:
            continue
        allowed = {*WORKER_LAYERS[: WORKER_LAYERS.index(folder) + 1]}
        for target in imports_of(file):
            layer = target.relative_to(source).parts[0]
            assert layer not in WORKER_LAYERS or layer in allowed, f"{file} imports {target}"
