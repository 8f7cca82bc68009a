"""The snippets of the pages compile (mypy, tsc), and the commands that they show exist."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.npm import BROWSER, tool
from website.pages import sources

ROOT = Path(__file__).parents[2]
TOP_LEVEL_AWAIT = r"^(\w+ = )?await |^async (with|for) "
COMMAND = Path(sys.executable).with_name("synap-realtime")
PAGES = [
    ROOT / page
    for page in ("README.md", *sources())
    if not page.startswith("docs/tutorials/")  # test_tutorials.py runs the tutorials
]
READERS_OWN_PYTHON = """\
from typing import Any
app: Any
broker: Any
client: Any
document: Any
enqueue: Any
pool: Any
render: Any
user: Any
class Report:
    title: str
class User:
    id: str
"""
"""What snippets use of the reader's app. Whatever else a snippet uses, it imports or defines."""

READERS_OWN_TYPESCRIPT = """\
declare const userId: string;
declare const requestId: string;
declare const text: string;
declare const subscription: import("@synap/realtime").Subscription;
declare function fetchToken(): Promise<string>;
declare function reload(): void;
declare function show(state: object): void;
declare function toast(text: string): void;
declare module "@/auth" {
  export function auth(): Promise<{ user?: { id?: string } } | null>;
}
declare module "react-native" {
  type Listener = (state: string) => void;
  export const AppState: { addEventListener(type: string, listener: Listener): void };
}
declare const process: { env: Record<string, string | undefined> };
"""


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Return the code blocks in these languages, each with the name of its page and a number."""
    found = []
    for page in PAGES:
        pattern = rf"^```({'|'.join(languages)})\n(.*?)^```$"
        for number, match in enumerate(re.finditer(pattern, page.read_text(), re.M | re.S)):
            name = re.sub(r"\W", "_", str(page.relative_to(ROOT).with_suffix("")))
            found.append((f"{name}_{number}.{match[1]}".lower(), match[2]))
    return found


def test_python_snippets_are_typed(tmp_path: Path) -> None:
    snippets = blocks("python")
    assert len(snippets) > 10
    for name, code in snippets:
        body = textwrap.indent(code, "    ") if re.search(TOP_LEVEL_AWAIT, code, re.M) else ""
        text = f"async def snippet() -> None:\n{body}" if body else code
        (tmp_path / name.replace(".python", ".py")).write_text(f"{READERS_OWN_PYTHON}\n{text}")
    modules = "\n".join(
        "[[tool.mypy.overrides]]\nmodule = [" + repr(f"{each}.*") + ", " + repr(each) + "]\n"
        "ignore_missing_imports = true\nignore_errors = true\n"
        for each in ("celery", "taskiq_redis", "your_app")
    )
    (tmp_path / "mypy.toml").write_text(
        "[tool.mypy]\ncheck_untyped_defs = true\n"
        'disable_error_code = ["no-redef", "misc", "empty-body"]\n' + modules
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", tmp_path / "mypy.toml"),
            *("--cache-dir", tmp_path / "cache", "--no-error-summary"),
            *sorted(tmp_path.glob("*.py")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_typescript_snippets_compile(tmp_path: Path) -> None:
    snippets = blocks("tsx", "ts", "js")
    assert len(snippets) > 8
    (tmp_path / "own.d.ts").write_text(READERS_OWN_TYPESCRIPT)
    (tmp_path / "reports.py").write_text(
        "from pydantic import BaseModel\nfrom synap_realtime.jobs import JobType\n"
        "class ReportCreated(BaseModel):\n    url: str\n"
        'REPORT = JobType("report.creation", payload=ReportCreated)\n'
    )
    types = [str(COMMAND), "generate-types", "reports:REPORT", "--out", "notifications.ts"]
    subprocess.run(types, cwd=tmp_path, check=True)
    for name, code in snippets:
        path = tmp_path / name.replace(".js", ".ts")
        path.write_text(code.replace("  …\n", "  return null;\n") + "\nexport {};\n")
    modules = BROWSER / "node_modules"
    paths = {
        "@synap/realtime": BROWSER / "src/index.ts",
        "@synap/realtime/job": BROWSER / "src/job.ts",
        "@synap/realtime/react": BROWSER / "src/react.ts",
        "jose": ROOT / "worker/node_modules/jose/dist/types/index.d.ts",
        "react": modules / "@types/react",
        "react/*": modules / "@types/react/*",
    }
    options = {"noEmit": True, "paths": {name: [str(path)] for name, path in paths.items()}}
    config = {"extends": str(BROWSER / "tsconfig.example.json"), "compilerOptions": options}
    (tmp_path / "tsconfig.json").write_text(json.dumps({**config, "include": ["."]}))
    tool("tsc", "-p", tmp_path / "tsconfig.json")


COMMANDS = sorted(
    {
        " ".join(line.split("#")[0].split())
        for page in PAGES
        for code in re.findall(
            r"^```(?:console|bash)\n(.*?)^```$|`([^`\n]+)`", page.read_text(), re.M | re.S
        )
        for line in "".join(code).replace("\\\n", " ").splitlines()
        if re.search(r"(^|[ /])synap-realtime [a-z]", line) and "pip" not in line
    }
)


@functools.cache
def help_of(command: str) -> str:
    done = subprocess.run([COMMAND, command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("line", COMMANDS)
def test_command_and_its_options_exist(line: str) -> None:
    line = re.split(r"[|&;]", line[line.index("synap-realtime ") :])[0].replace("…", "")
    _, command, *arguments = shlex.split(line)
    usage = help_of(command)
    for option in (each.partition("=")[0] for each in arguments if each.startswith("--")):
        assert re.search(rf"(^|[\s/]){option}\b", usage), option
    if command == "generate-types":
        for name in arguments[: next((i for i, a in enumerate(arguments) if a[0] == "-"), None)]:
            assert re.fullmatch(r"[\w.]+:\w+", name)
