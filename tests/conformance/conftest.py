"""Which server the cases meet: one that runs somewhere, or ours, started here."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from .client import Client, open_client, problem_of
from .differences import DifferencesError, check_names, load, reason_for
from .watch import Watch

HERE = Path(__file__).parent
OURS = ("memory", "sqlite")
OUR_SILENCE_S = 3.0
THE_SILENCE_S = 75.0
START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test."""

    url: str
    watch: Watch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--server", help="memory, sqlite, or the URL of any server (default: ours)")
    group.addoption("--differences", help="the server's table in differences.toml")
    group.addoption(
        "--silence-s",
        type=float,
        help="after how many silent seconds it closes a WebSocket (75; ours run with 3)",
    )


def kinds(config: pytest.Config) -> tuple[str, ...]:
    """The servers to meet: names of ours, or one URL."""
    given = config.getoption("--server", None)
    return OURS if given is None else (given,)


@pytest.hookimpl(tryfirst=True)  # before there is a reporter, which would say it again
def pytest_configure(config: pytest.Config) -> None:
    """A wrong address is one line, not some hundred failures."""
    for kind in kinds(config):
        if kind not in OURS and not config.option.collectonly:
            if not kind.startswith(("http://", "https://")):
                pytest.exit(f"--server: expected memory, sqlite or a URL, got {kind!r}", 2)
            if (problem := problem_of(kind)) is not None:
                pytest.exit(f"--server: no room server answers at {kind}: {problem}", 2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        names = kinds(metafunc.config)
        ids = [kind if kind in OURS else "url" for kind in names]
        metafunc.parametrize("server", names, ids=ids, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Expect the known differences; afterwards, put last what waits for a long time."""
    cases = [
        item for item in items if isinstance(item, pytest.Function) and item.path.parent == HERE
    ]
    try:
        for kind in kinds(config):
            _expect_differences(kind, config, cases)
    except DifferencesError as error:
        raise pytest.UsageError(str(error)) from None
    yield
    places = [place for place, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[place] for place in places), key=_waits_long)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


def _waits_long(item: pytest.Item) -> bool:
    return "watch" in getattr(item, "fixturenames", ())


def _expect_differences(kind: str, config: pytest.Config, cases: list[pytest.Function]) -> None:
    table = config.getoption("--differences", None) or (kind if kind in OURS else None)
    if table is None:
        return
    lines = load(table)
    mine = {case: _name(case) for case in cases if _kind(case) in (kind, None)}
    check_names(lines, mine.values())
    for case, name in mine.items():
        if (reason := reason_for(name, lines)) is not None:
            case.add_marker(pytest.mark.xfail(strict=True, reason=reason))


def _kind(case: pytest.Function) -> str | None:
    return str(case.callspec.params.get("server")) if hasattr(case, "callspec") else None


def _name(case: pytest.Function) -> str:
    """``file::test[variant]``, without the name of the server."""
    variant = case.name.removeprefix(case.originalname)
    for server in (*OURS, "url"):
        variant = variant.replace(f"[{server}]", "").replace(f"[{server}-", "[")
        variant = variant.replace(f"-{server}]", "]")
    return f"{case.path.name}::{case.originalname}{variant}"


@pytest.fixture(scope="session")
def _servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """All servers of this run, each watched from before the first case on."""
    silence_s = request.config.getoption("--silence-s", None)
    with contextlib.ExitStack() as stack:
        running: dict[str, Server] = {}
        for kind in kinds(request.config):
            if kind in OURS:
                seconds = silence_s or OUR_SILENCE_S
                folder = tmp_path_factory.mktemp(kind)
                url = stack.enter_context(_ours(kind, folder, seconds))
            else:
                seconds = silence_s or THE_SILENCE_S
                url = kind
            running[kind] = Server(url, stack.enter_context(Watch(url, seconds)))
        yield running


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Server:
    """The server that a case meets."""
    return _servers[request.param]


@pytest.fixture
def watch(server: Server) -> Watch:
    """What only time shows. Cases that ask for it run last."""
    return server.watch


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with open_client(server.url) as client:
        yield client


@contextlib.contextmanager
def _ours(kind: str, folder: Path, silence_s: float) -> Iterator[str]:
    """Our own server, as an operator starts it. Yields its address.

    Whatever a client did to it, it has to end well, without a traceback in its log.
    """
    store = "memory://" if kind == "memory" else f"sqlite:///{folder / 'rooms.db'}"
    settings = {k: v for k, v in os.environ.items() if not k.startswith("SYNAP_REALTIME_")}
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("synap-realtime"),
            *("serve", "--port", "0", "--store", store, "--silence-s", str(silence_s)),
        ],
        env=settings,
        stderr=subprocess.PIPE,
        text=True,
    )
    log: list[str] = []
    addresses: queue.Queue[str | None] = queue.Queue()
    reader = Thread(target=_read_log, args=(process, log, addresses), name="conformance-log")
    reader.start()
    try:
        try:
            url = addresses.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            url = None
        assert url is not None, f"the {kind} server did not start:\n{''.join(log)}"
        yield url
        process.terminate()
        code = process.wait(START_TIMEOUT_S)
        reader.join(START_TIMEOUT_S)
        said = "".join(log)
        assert code == 0, f"the {kind} server ended with {code}:\n{said[-10_000:]}"
        assert "Traceback" not in said, f"the {kind} server wrote:\n{said[-10_000:]}"
    finally:
        process.kill()
        process.wait()
        reader.join(START_TIMEOUT_S)


def _read_log(
    process: subprocess.Popen[str], log: list[str], addresses: queue.Queue[str | None]
) -> None:
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            log.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                addresses.put(found[1])
    addresses.put(None)  # it has ended
