"""The pytest plugin in a project that uses the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALONE = ("-p", "synap_realtime.testing.plugin")
REPORTS = """
from synap_realtime import progress

async def create_report(run):
    progress(0.5, "Rendering")
    return {"url": f"/reports/{run.data['title']}.pdf"}
"""


def run_pytest(project: Path, *plugins: str) -> str:
    """Run pytest in a fresh project, with these plugins and no others; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugins, "."],
        cwd=project,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "others",
    [(), ("-p", "anyio"), ("-p", "pytest_asyncio"), ("-p", "pytest_asyncio", "-p", "anyio")],
)
def test_page_snippet_works_in_a_fresh_project(tmp_path: Path, others: tuple[str, ...]) -> None:
    """With no plugin for async tests, and with the common ones, in their default modes."""
    page = (ROOT / "docs" / "testing.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (snippet,) = (each for each in blocks if "def test_the_user_gets_the_report" in each)
    (tmp_path / "your_app").mkdir()
    (tmp_path / "your_app" / "reports.py").write_text(REPORTS)
    (tmp_path / "test_report.py").write_text(snippet)
    assert "1 passed" in run_pytest(tmp_path, *ALONE, *others)


def test_async_test_that_fails_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("async def test_it(realtime):\n    assert not realtime")
    assert "1 failed" in run_pytest(tmp_path, *ALONE)


def test_async_test_of_others_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("async def test_it(): pass")
    assert "async def functions are not natively supported" in run_pytest(tmp_path, *ALONE)


def test_unrelated_test_run_loads_nothing_of_ours(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    ours = sorted(name for name in sys.modules if name.startswith('synap_realtime'))\n"
        "    assert ours == ['synap_realtime', 'synap_realtime.testing',\n"
        "                    'synap_realtime.testing.plugin']\n"
        "    assert not {'httpx', 'pydantic', 'asyncio'} & set(sys.modules)\n"
    )
    assert "1 passed" in run_pytest(tmp_path, *ALONE)
