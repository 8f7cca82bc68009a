"""Publishing never harms the caller: proxies, forks, event loops and interpreter shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from synap_realtime import (
    AsyncBroadcaster,
    ConfigurationError,
    broadcast_success,
    broadcast_success_sync,
)
from synap_realtime.network import find_proxy, names_this_machine
from synap_realtime.server import create_app
from synap_realtime.server.serve import running_server
from tests.broadcast.hostile_server import answering, raw
from tests.support.certificates import certify
from tests.support.timeouts import TIMEOUT_S

from .conftest import Publish

ROOT = Path(__file__).parents[2]
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
DEAD = "http://127.0.0.1:9"

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "socks": {"ALL_PROXY": "socks5://127.0.0.1:9"},
    "socks without a version": {"all_proxy": "socks://127.0.0.1:9"},
    "socks for http": {"http_proxy": "socks5h://127.0.0.1:9"},
    "a network": {"NO_PROXY": "fd00::/8,10.0.0.0/8", "HTTP_PROXY": DEAD},
    "brackets": {"NO_PROXY": "localhost,[::1],::1", "HTTP_PROXY": DEAD},
    "junk to bypass": {"NO_PROXY": ",, [, :, /, *.*, http://x:y, \u00e9", "HTTP_PROXY": DEAD},
    "no authorities": {"SSL_CERT_FILE": "/nonexistent"},
    "no folder of authorities": {"SSL_CERT_DIR": "/nonexistent"},
    "authorities that are none": {"SSL_CERT_FILE": __file__},
    "a dead proxy": {"HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD, "ALL_PROXY": DEAD},
    "a proxy without a scheme": {"HTTP_PROXY": "127.0.0.1:9"},
    "a proxy that is no URL": {"HTTP_PROXY": "http://[", "HTTPS_PROXY": "http://["},
    "a proxy with a bad port": {"HTTP_PROXY": "http://x:port", "HTTPS_PROXY": "http://x:99999999"},
    "a proxy of another kind": {"HTTP_PROXY": "ftp://127.0.0.1:9", "HTTPS_PROXY": "quic://x"},
}


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with running_server(create_app()) as found:
        yield found


def set_all(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("kind", ENVIRONMENTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_loopback_ignores_proxy_variables(
    publish: Publish, url: str, kind: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, ENVIRONMENTS[kind])
    address = url.replace("127.0.0.1", host)
    result = await asyncio.to_thread(
        publish, "broadcast_success", "1", "a.completed", {}, options={"url": address}
    )
    assert result.success, result.error


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_remote_broadcast_returns_a_failed_result_in_any_environment(
    publish: Publish, kind: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, ENVIRONMENTS[kind])
    options = {"url": f"{scheme}://rooms.invalid", "deadline_s": 0.5}
    result = publish("broadcast_success", "1", "a.completed", {}, options=options)
    assert not result.success
    assert result.error


@pytest.mark.parametrize(
    ("environment", "named", "scheme"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "ALL_PROXY", "http"),
        ({"all_proxy": "socks://127.0.0.1:9"}, "all_proxy", "http"),
        ({"HTTPS_PROXY": "ftp://x"}, "HTTPS_PROXY", "https"),
        ({"HTTP_PROXY": DEAD}, "HTTP_PROXY=http://127.0.0.1:9", "http"),
        ({"HTTP_PROXY": "http://me:s3cret@127.0.0.1:9"}, "HTTP_PROXY=http://127.0.0.1:9", "http"),
        ({"SSL_CERT_FILE": "/nonexistent"}, "SSL_CERT_FILE", "https"),
        ({"SSL_CERT_FILE": __file__}, "SSL_CERT_FILE", "https"),
    ],
)
def test_the_result_names_the_variable_and_shows_no_password(
    publish: Publish,
    environment: dict[str, str],
    named: str,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, environment)
    options = {"url": f"{scheme}://rooms.invalid", "deadline_s": 0.3}
    result = publish("broadcast_success", "1", "a.completed", {}, options=options)
    assert named in (result.error or "")
    assert "s3cret" not in (result.error or "")


@pytest.mark.parametrize(
    ("url", "no_proxy", "is_direct"),
    [
        ("http://a.example.com", "example.com", True),
        ("http://a.example.com", ".example.com", True),
        ("http://a.example.com", "*.example.com", True),
        ("http://badexample.com", "example.com", False),
        ("http://example.com:8787", "example.com:8787", True),
        ("http://example.com:8787", "example.com:80", False),
        ("http://10.1.2.3", "10.0.0.0/8", True),
        ("http://11.1.2.3", "10.0.0.0/8", False),
        ("http://[fd00::7]", "fd00::/8", True),
        ("http://[fd00::7]:8787", "[fd00::7]:8787", True),
        ("http://[fd00::7]", "[fd00::7]", True),
        ("http://x", "*", True),
        ("http://x", "", False),
    ],
)
def test_no_proxy_lists_hosts_ports_and_networks(
    url: str, no_proxy: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (find_proxy(httpx.URL(url), socks_library="socksio") is None) is is_direct


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "a.localhost", "localhost.", "127.0.0.1", "127.1", "127.9.9.9",
     "0.0.0.0", "::1", "[::1]", "::ffff:127.0.0.1", "::"],
)  # fmt: skip
def test_names_and_addresses_of_this_machine_have_no_proxy(host: str) -> None:
    assert names_this_machine(host)


@pytest.mark.parametrize("host", ["localhost.example.com", "10.0.0.1", "127.0.0.1.nip.io", "12"])
def test_others_may_have_one(host: str) -> None:
    assert not names_this_machine(host)


def test_a_proxy_of_the_environment_is_used(
    publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"success":true,"results":[{"success":true,"broadcastCount":1}]}'
    with answering(raw("200 OK", body)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        options = {"url": "http://rooms.invalid"}
        assert publish("broadcast_success", "1", "a", {}, options=options).success


@pytest.mark.parametrize("url", ["127.0.0.1:8787", "ftp://x", "http://[::", "http://x?y"])
def test_invalid_url_variable_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_URL", url)
    with pytest.raises(ConfigurationError, match=r"^REALTIME_URL: "):
        broadcast_success_sync("1", "a", {})


def test_invalid_key_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_API_KEY", "s3cret\n")
    with pytest.raises(ConfigurationError, match=r"^REALTIME_API_KEY: ") as caught:
        broadcast_success_sync("1", "a", {})
    assert "s3cret" not in str(caught.value)


JOB = """
import asyncio, logging
logging.basicConfig(format="LOG %(message)s")
from synap_realtime import progress
from synap_realtime.integrations.inprocess import run_job

async def job(run):
    progress(0.5, "Half")
    return {"entityId": "n1"}

print("result", asyncio.run(run_job("note.creation", job, {"userId": "1"})))
"""


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"REALTIME_URL": "127.0.0.1:8787"}, "REALTIME_URL"),
        ({"REALTIME_URL": "http://127.0.0.1:1", "REALTIME_API_KEY": "a b\n"}, "REALTIME_API_KEY"),
        ({"REALTIME_URL": "http://rooms.invalid", "ALL_PROXY": "socks5://x"}, "ALL_PROXY"),
        ({"REALTIME_URL": "https://rooms.invalid", "SSL_CERT_FILE": "/none"}, "SSL_CERT_FILE"),
        ({"REALTIME_URL": "http://rooms.invalid", "HTTP_PROXY": "http://x:port"}, "HTTP_PROXY"),
    ],
)
def test_job_runs_in_any_environment_and_logs_why_it_cannot_publish(
    environment: dict[str, str], named: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOB],
        env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True,
        timeout=2 * TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "result" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("LOG")]
    assert len(lines) == 1, done.stderr
    assert named in lines[0]
    assert "Traceback" not in done.stderr


def test_a_server_without_tls_is_not_asked_again(publish: Publish) -> None:
    with answering(raw("400 Bad Request", b"no"), "https") as url:
        result = publish("broadcast_success", "1", "a", {}, options={"url": url})
    assert result.attempts == 1
    assert "does not speak TLS" in (result.error or "")
    assert "http://" in (result.error or "")


def test_a_certificate_that_is_not_trusted_is_not_asked_again(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certified = certify(tmp_path)
    context = certified.server()

    def shake_hands(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True, do_handshake_on_connect=True)

    with answering(shake_hands, "https", reads=False) as url:
        result = publish("broadcast_success", "1", "a", {}, options={"url": url})
    assert result.attempts == 1
    assert "certificate" in (result.error or "")
    assert "SSL_CERT_FILE" in (result.error or "")


IMPORTED = """
import sys, threading
from synap_realtime.broadcast import background_broadcaster
broadcaster = background_broadcaster()
started = threading.Event()
before = set()
start = threading.Thread.start
def noting(thread):
    before.update(sys.modules)
    start(thread)
threading.Thread.start = noting
for n in range(2):
    broadcaster.broadcast_notification(user_id="1", message={"type": "a", "data": {"n": n}})
    broadcaster.flush()
print(sorted(set(sys.modules) - before))
"""


async def test_the_thread_that_sends_imports_nothing(url: str) -> None:
    """A module that it imports while the process forks is never whole in the child."""
    for address in (url, url.replace("127.0.0.1", "localhost")):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IMPORTED, cwd=ROOT,
            env={**os.environ, "REALTIME_URL": address}, stdout=subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert said.decode().strip() == "[]"


LOOKED_UP = """
import asyncio, sys
import synap_realtime
from synap_realtime.broadcast import AsyncBroadcaster, Broadcaster
names = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        names.append(name)
message = {"type": "a", "data": {}}
async def publish():
    async with AsyncBroadcaster() as broadcaster:
        await broadcaster.broadcast_notification(user_id="1", message=message)
        sys.meta_path.insert(0, Finder())
        await broadcaster.broadcast_notification(user_id="1", message=message)
        sys.meta_path.pop(0)
asyncio.run(publish())
with Broadcaster() as broadcaster:
    broadcaster.broadcast_notification(user_id="1", message=message)
    sys.meta_path.insert(0, Finder())
    broadcaster.broadcast_notification(user_id="1", message=message)
print(names)
"""


async def test_a_request_looks_up_no_module(url: str) -> None:
    """The lookup of an absent module holds its lock, which a fork copies into the child."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOOKED_UP, cwd=ROOT,
        env={**os.environ, "REALTIME_URL": url}, stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert output.decode().strip() == "[]"


FORKS = """
import os, sys
from synap_realtime.broadcast import background_broadcaster
def post(n):
    message = {"type": "a", "data": {"n": n}}
    background_broadcaster().broadcast_notification(user_id="1", message=message)
children = []
post(-1)
for n in range(24):
    if (child := os.fork()) == 0:
        post(n)
        background_broadcaster().flush()
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
async def test_children_forked_right_after_the_first_notification_lose_nothing(url: str) -> None:
    for address in (url, url.replace("127.0.0.1", "localhost")):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FORKS, cwd=ROOT,
            env={**os.environ, "REALTIME_URL": address}, stderr=subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        async with httpx.AsyncClient() as client:
            answer = (await client.get(f"{url}/rooms/user_1/history")).json()
        received = sorted(m["data"]["n"] for m in answer["notifications"])
        assert received == sorted([*range(-1, 24)] * (1 if address == url else 2))


FORKS_BESIDE_TLS = """
import faulthandler, os, ssl, sys, threading
from synap_realtime import Broadcaster
from synap_realtime.broadcast.functions import background_broadcaster
single = Broadcaster()
def publish(n):
    assert single.broadcast_success("1", "a", {"n": n}).success
    background_broadcaster().broadcast_notification(
        user_id="1", message={"type": "a", "data": {"n": n}}
    )
    return background_broadcaster().flush()
assert publish(-1)
def use_tls():
    while not over.is_set():
        for _ in range(50):  # more than the garbage collector releases one by one
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
over = threading.Event()
threads = [threading.Thread(target=use_tls) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for n in range(60):
    if (child := os.fork()) == 0:
        faulthandler.dump_traceback_later(20, exit=True)
        assert publish(n)
        os._exit(0)
    children.append(child)
statuses = {os.waitpid(child, 0)[1] for child in children}
over.set()
assert statuses == {0}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
async def test_children_forked_while_another_thread_uses_tls_lose_nothing(url: str) -> None:
    """The fork copies the locks of OpenSSL that the thread holds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", FORKS_BESIDE_TLS, cwd=ROOT,
        env={**os.environ, "REALTIME_URL": url}, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    assert (process.returncode, said.decode()) == (0, "")
    async with httpx.AsyncClient() as client:
        answer = (await client.get(f"{url}/rooms/user_1/history?limit=500")).json()
    received = [m["data"]["n"] for m in answer["notifications"]]
    assert sorted(received) == sorted([*range(-1, 60)] * 2)


FORKED_IDS = """
import os
from synap_realtime.broadcast import encoding
def random_bits():
    notification = encoding.normalize({"type": "a", "data": {}}, None)
    return notification.id[14:]  # without the time, which would hide a repetition
random_bits()
readable, writable = os.pipe()
children = []
for _ in range(50):
    if (child := os.fork()) == 0:
        os.write(writable, f"{random_bits()}\\n".encode())
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
os.close(writable)
ids = os.fdopen(readable).read().split()
print(len(ids), len(set(ids)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
async def test_forked_children_do_not_repeat_ids() -> None:
    """The server drops a notification with the id of another one as a duplicate."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORKED_IDS, cwd=ROOT, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output.decode().strip() == "50 50"


FIRST_USES = {
    "sync, by a name of the package": """
import synap_realtime
synap_realtime.JobError  # the first name
def publish(n):
    return synap_realtime.broadcast_success_sync("1", "a", {"n": n})
""",
    "sync": """
from synap_realtime import broadcast_success_sync
def publish(n):
    return broadcast_success_sync("1", "a", {"n": n})
""",
    "async": """
import asyncio
from synap_realtime import broadcast_success
def publish(n):
    return asyncio.run(broadcast_success("1", "a", {"n": n}))
""",
}

FORKS_DURING_FIRST_USE = """
import faulthandler, os, threading, time
threads = [threading.Thread(target=publish, args=[-n]) for n in (1, 2)]
for thread in threads:
    thread.start()
children = []
for n in range(12):
    time.sleep(0.02)
    if (child := os.fork()) == 0:
        faulthandler.dump_traceback_later(20, exit=True)
        assert publish(n).success
        os._exit(0)
    children.append(child)
for thread in threads:
    thread.join()
assert {os.waitpid(child, 0)[1] for child in children} == {0}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("how", FIRST_USES)
async def test_children_forked_during_the_first_use_of_another_thread_lose_nothing(
    url: str, how: str
) -> None:
    """A module that the thread was importing is half imported in the child, and locked there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", FIRST_USES[how] + FORKS_DURING_FIRST_USE, cwd=ROOT,
        env={**os.environ, "REALTIME_URL": url}, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    assert (process.returncode, said.decode()) == (0, "")
    async with httpx.AsyncClient() as client:
        answer = (await client.get(f"{url}/rooms/user_1/history")).json()
    assert sorted(m["data"]["n"] for m in answer["notifications"]) == [*range(-2, 12)]


IMPORTED_BY_LOOP = """
import asyncio, sys
from synap_realtime import broadcast_success
from synap_realtime import transport
before = set()
class Noting(transport.AsyncTransport):
    def __init__(self, url):
        super().__init__(url)
        before.update(sys.modules)
transport.AsyncTransport = Noting
asyncio.run(broadcast_success("1", "a", {}))
print(sorted(set(sys.modules) - before))
"""


async def test_the_event_loop_that_sends_imports_nothing_while_it_waits(url: str) -> None:
    for address in (url, url.replace("127.0.0.1", "localhost")):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IMPORTED_BY_LOOP, cwd=ROOT,
            env={**os.environ, "REALTIME_URL": address}, stdout=subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        assert said.decode().strip() == "[]"


def outside_of_asyncio(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run one as another library does: in a thread without an event loop of asyncio."""

    def run() -> Any:
        try:
            coroutine.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("it waits")

    with ThreadPoolExecutor(1) as other:
        return other.submit(run).result()


async def test_result_names_the_function_to_call_without_asyncio(url: str) -> None:
    broadcaster = AsyncBroadcaster(url)
    for coroutine in (
        broadcast_success("1", "a", {}),
        broadcaster.broadcast_success("1", "a", {}),
    ):
        result = outside_of_asyncio(coroutine)
        assert not result.success
        assert "broadcast_notification_sync()" in result.error
    assert outside_of_asyncio(broadcaster.aclose()) is None


def open_sockets() -> int:
    found = 0
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(name.readlink()).startswith("socket:")
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors by /proc")
@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_event_loops_that_are_closed_by_hand_leave_no_sockets(url: str) -> None:
    def run() -> list[int]:
        broadcaster = AsyncBroadcaster(url)
        counts = []
        for n in range(60):
            loop = asyncio.new_event_loop()
            result = loop.run_until_complete(broadcaster.broadcast_success("1", "a", {"n": n}))
            assert result.success
            loop.close()
            counts.append(open_sockets())
        return counts

    counts = await asyncio.to_thread(run)
    gc.collect()  # asyncio warns of each transport that its loop has left open, while it may
    assert counts[-1] <= counts[0] + 10


ENDS = {
    "atexit, sync": """
import atexit
from synap_realtime import broadcast_success_sync
def last():
    print(broadcast_success_sync("1", "a", {}).success)
atexit.register(last)
""",
    "atexit, async": """
import asyncio, atexit
from synap_realtime import broadcast_success
def last():
    print(asyncio.run(broadcast_success("1", "a", {})).success)
atexit.register(last)
""",
    "atexit, background": """
import atexit
from synap_realtime.broadcast import background_broadcaster
def last():
    background_broadcaster().broadcast_notification(user_id="1", message={"type": "a", "data": {}})
    print(True)
atexit.register(last)
""",
    "a thread that goes on": """
import threading, time
from synap_realtime import broadcast_success_sync
def last():
    threading.main_thread().join()
    print(broadcast_success_sync("1", "a", {}).success)
threading.Thread(target=last).start()
""",
    "a finalizer": """
from synap_realtime import Broadcaster
broadcaster = Broadcaster()
broadcaster._poster.open()  # from now on nothing can be imported
class Last:
    def __del__(self):
        print(broadcaster.broadcast_success("1", "a", {}).success)
last = Last()
""",
}


AFTER_THE_END = """
import builtins
from synap_realtime import broadcast_success_sync
class Last:
    def __del__(self):
        print(broadcast_success_sync("1", "a", {}))
broadcast_success_sync("1", "a", {})
builtins.last = Last()  # outlives the modules
"""


async def test_a_finalizer_that_outlives_the_modules_gets_a_failed_result(url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", AFTER_THE_END, cwd=ROOT,
        env={**os.environ, "REALTIME_URL": url},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    said, errors = await process.communicate()
    assert errors.decode() == ""
    assert "success=False" in said.decode()
    assert "nothing could be sent to" in said.decode()


@pytest.mark.parametrize("how", ENDS)
async def test_publishing_while_the_interpreter_ends_raises_nothing(url: str, how: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENDS[how], cwd=ROOT,
        env={**os.environ, "REALTIME_URL": url},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(TIMEOUT_S):
        said, errors = await process.communicate()
    assert (said.decode().strip(), errors.decode()) == ("True", "")
    async with httpx.AsyncClient() as client:
        answer = (await client.get(f"{url}/rooms/user_1/history")).json()
    assert len(answer["notifications"]) == 1
