"""The import contracts in pyproject.toml, "tool.importlinter", what an import loads, and what
tests may import.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import synap_realtime

ROOT = Path(__file__).parent.parent


def test_imports_only_go_down() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_import_cycle() -> None:
    """Imports inside functions and for type checkers count, too."""
    graph = grimp.build_graph("synap_realtime", cache_dir=None)
    imports = {module: graph.find_upstream_modules(module) for module in graph.modules}
    cycles = {
        frozenset({module, *(each for each in imports[module] if module in imports[each])})
        for module in imports
    }
    assert sorted(sorted(cycle) for cycle in cycles if len(cycle) > 1) == []


def loaded_by(code: str) -> set[str]:
    """The modules that are there after some code in a new process."""
    code += "; import sys; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_no_server_and_no_job_framework() -> None:
    loaded = loaded_by("from synap_realtime import broadcast_success")
    assert "synap_realtime.broadcast.aio" in loaded
    frameworks = {"celery", "inngest", "taskiq"}
    servers = {"starlette", "synap_realtime.server", "uvicorn", "websockets"}
    assert not loaded & (frameworks | servers | {"typer"})


def test_importing_the_package_loads_nothing_else() -> None:
    base = loaded_by("from __future__ import annotations; import importlib, typing")
    assert loaded_by("import synap_realtime") - base == {"synap_realtime"}


def test_pytest_plugin_imports_nothing_until_its_fixture_is_used() -> None:
    """It is imported in everybody's test runs, also where nothing else of ours is used."""
    base = loaded_by("import pytest")
    loaded = loaded_by("import pytest, synap_realtime.testing.plugin") - base
    assert loaded == {"synap_realtime", "synap_realtime.testing", "synap_realtime.testing.plugin"}


def test_broadcasting_imports_little_else() -> None:
    """It is to cost little more than httpx and pydantic; the rest comes when it is asked for."""
    base = loaded_by("import asyncio, httpx, uuid_utils, pydantic; pydantic.BaseModel")
    loaded = loaded_by("from synap_realtime import broadcast_success") - base
    ours = {name for name in loaded if name.startswith("synap_realtime")}
    inner = {name.split(".")[1] for name in ours if "." in name}
    assert inner == {
        "broadcast",
        "documentation",
        "endpoint",
        "errors",
        "event_loops",
        "forks",
        "lexical",
        "network",
        "protocol",
        "redaction",
        "tracing",
    }
    assert "synap_realtime.protocol.payloads" not in ours
    assert "opentelemetry" not in loaded
    roots = {name.split(".")[0] for name in loaded - ours}
    assert len(roots - sys.stdlib_module_names - {"pydantic", "annotated_types"}) == 0
    assert not roots & {"multiprocessing", "sqlite3", "unittest"}


def test_each_public_name_can_be_imported() -> None:
    names = "['delta', 'mint_token', 'follow_job', 'NoteCreated']"
    loaded = loaded_by(f"import synap_realtime as s; [getattr(s, name) for name in {names}]")
    assert {"synap_realtime.jobs", "synap_realtime.tokens", "synap_realtime.subscriber"} <= loaded
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        synap_realtime.nothing  # noqa: B018 - to ask is the test
    assert set(dir(synap_realtime)) >= set(synap_realtime.__all__)


def test_no_test_module_is_imported() -> None:
    """What tests share is in tests/support, or in a helper beside them."""
    imported = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.ImportFrom(module=str(module), names=names):
                    parts = [*module.split("."), *(each.name for each in names)]
                case ast.ImportFrom(names=names) | ast.Import(names=names):
                    parts = [part for each in names for part in each.name.split(".")]
                case _:
                    continue
            modules = [part for part in parts if part.startswith("test_")]
            imported += [f"{path.relative_to(ROOT)} imports {module}" for module in modules]
    assert imported == []
