"""``scripts/bench`` measures correctly: each scenario with few connections, ours and the C bound.

The tests do not assert costs. They assert that every notification is delivered exactly once: a
round with other deliveries than expected is an error.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command_line
from benchmarks import centrifugo as centrifugo_node
from benchmarks import machine, peers, servers
from benchmarks.attacks import ATTACKS
from benchmarks.capture import Capture
from benchmarks.centrifugo import VERSION, Centrifugo
from benchmarks.load import Load, LoadError, Mode, Publish, Report
from benchmarks.nodes import CentrifugoNodes, OurNodes, cluster
from benchmarks.ours import Ours
from benchmarks.peers import KINDS, Limit
from benchmarks.relay import Relay
from benchmarks.rounds import Options, Part, Session, measure, session
from benchmarks.scenarios import SCENARIOS, abuse, nodes
from benchmarks.senders import MissingError
from benchmarks.servers import Running, Server, one_room, own_rooms
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parents[2]
FEW = 0.01
"""Of the connections: ten, where a thousand is meant."""


OF_OURS_ALONE = {"fanout-loop", "reply-apart", "reply-apart-frames"}

SDK_HEAD = re.compile(
    rb"POST /broadcast HTTP/1.1\r\nHost: \S+\r\nAccept: application/json\r\n"
    rb"Accept-Encoding: identity\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
    rb"User-Agent: python-httpx/\S+\r\nAuthorization: Bearer \S{43}\r\nContent-Length: \d+\r\n\r\n"
)


class Missing(Server):
    name, title = "missing", "a peer that is not here"

    def command(self, at: Running) -> Sequence[str | Path]:
        raise MissingError("it is not installed: run scripts/bench")


@pytest.fixture(params=[Limit, Ours], ids=["limit", "ours"])
def mine(request: pytest.FixtureRequest) -> Iterator[Session]:
    """A server and its load."""
    with session(request.param()) as running:
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_scenario_is_measured_with_the_requests_of_the_sdk(
    scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[bytes] = []
    publish = Load.publish

    def watched(
        self: Load, port: int, publishes: Sequence[Publish], *args: Any, **options: Any
    ) -> Report:
        requests.extend(each.request for each in publishes)
        return publish(self, port, publishes, *args, **options)

    monkeypatch.setattr(Load, "publish", watched)
    results = SCENARIOS[scenario](Options(["ours", "limit"], rounds=1, scale=FEW))
    assert results
    for each in results:
        assert each.notes == {}, each.what
        assert each.stats, each.what
        for name, stat in each.stats.items():
            if "memory" not in each.name:  # for few, what was free already is enough
                assert stat.least > 0, f"{each.what}: {name}"
    if scenario != "raw":
        assert all(map(SDK_HEAD.match, requests))


@pytest.mark.skipif(
    not (servers.TOOLS / f"centrifugo@{VERSION}").exists(), reason="scripts/bench builds it"
)
@pytest.mark.parametrize("scenario", sorted({*SCENARIOS} - {"sqlite", "sdk", "growth"}))
def test_centrifugo_is_a_peer_in_each_scenario_that_it_has(scenario: str) -> None:
    results = SCENARIOS[scenario](Options(["centrifugo"], rounds=1, scale=FEW))
    for each in results:
        assert each.notes == {}, each.what
        assert each.stats or each.name in OF_OURS_ALONE


def test_an_honest_publisher_is_measured_beside_an_attack() -> None:
    names = ("none", "byte_after_close", "unread_answers")
    assert {*names} < {*ATTACKS}
    (measured,) = abuse.run(Options(rounds=1, scale=FEW), names)
    for row in measured.rows:
        assert row.note is None
        assert {*row.stats} == {*measured.columns}
        assert row.stats["p99_ms"].median > 0
        assert row.stats["failed"].median == 0
    assert [row.stats["connections"].median for row in measured.rows] == [0, 8, 45]


def test_nodes_are_measured_and_a_peer_that_is_not_here_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(centrifugo_node, "TOOLS", tmp_path)
    tables = nodes.run(Options(rounds=1, scale=FEW), (1, 2))
    for each in tables:
        assert each.rows
        for row in each.rows:
            if row.server.startswith(Centrifugo.title):
                assert row.note == f"{Centrifugo.title} is not installed: run scripts/bench"
                continue
            assert row.note is None, f"{each.title}: {row.server}: {row.note}"
            assert {*row.stats} == {*each.columns}
            for name, stat in row.stats.items():
                assert stat.least > 0, f"{each.title}: {row.server}: {name}"
    (flushes,) = [each for each in tables if each.scenario == "nodes-flushes"]
    assert flushes.rows[1].stats["trips"].least < 2


@pytest.mark.skipif(
    not (servers.TOOLS / f"centrifugo@{VERSION}").exists(), reason="scripts/bench builds it"
)
def test_centrifugo_nodes_deliver_what_is_expected() -> None:
    with cluster(CentrifugoNodes, 2) as mine:
        kind = mine.kind
        mine.dial([kind.client(one) for one in one_room(10) + own_rooms(10)])
        report = mine.load.publish(mine.ports, [kind.publish("workspace_1", 10)], 3, mode="paced")
        assert (report.answered, report.delivered) == (3, 30)
        batch = kind.publish_many([one.room for one in own_rooms(10)], 10)
        report = mine.load.publish(mine.ports, [batch], 4, mode="closed", publishers=2)
        assert (report.answered, report.delivered) == (4, 40)


def test_subscribers_of_a_node_that_dies_return_to_the_others() -> None:
    with cluster(OurNodes, 2) as mine:
        kind, load = mine.kind, mine.load
        assert isinstance(kind, OurNodes)
        first, second = mine.nodes
        everyone = own_rooms(5)
        positions = kind.positions(second.port, [one.room for one in everyone])
        load.publish(mine.ports, [kind.publish(one.room, 0) for one in everyone], 5, mode="closed")
        back = [kind.returning_client(*each) for each in zip(everyone, positions, strict=True)]
        load.dial(first.port, back, live=kind.live, expected=5)
        load.expect_restart(in_flight=5, timeout_s=TIMEOUT_S, expected=5, ports=[second.port])
        first.kill()
        assert load.restarted().live == 5
        stopped = [mine.store.pid, second.pid]
    assert not [pid for pid in stopped if Path(f"/proc/{pid}").exists()]


def test_a_relay_counts_requests_that_wait_for_a_reply() -> None:
    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1024):
                self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as store:
        serving = threading.Thread(target=store.serve_forever)
        serving.start()
        try:
            with (
                Relay(store.server_address[1]) as relay,
                socket.create_connection(("127.0.0.1", relay.port), TIMEOUT_S) as peer,
            ):
                for number in range(1, 4):
                    peer.sendall(b"request")
                    assert peer.recv(1024) == b"request"
                    assert relay.bursts() == number
        finally:
            store.shutdown()
            serving.join()


def test_a_section_of_the_results_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.md"
    file.write_text("# Results\n")
    monkeypatch.setattr(command_line, "RESULTS", file)
    for name, section in (("a", "1"), ("a nodes", "2"), ("a", "3")):
        command_line.write_section(name, section)
    assert file.read_text() == (
        "# Results\n\n<!-- begin a -->\n3\n<!-- end a -->\n\n"
        "<!-- begin a nodes -->\n2\n<!-- end a nodes -->\n"
    )


def test_the_pieces_of_a_reply_are_joined_and_their_deliveries_counted() -> None:
    with session(Ours()) as mine:
        kind, load = mine.kind, mine.load
        load.dial(mine.port, [kind.client(one) for one in one_room(10)], live=kind.live)
        for number in range(2):
            pieces = kind.reply("workspace_1", number, 40, 10)
            report = load.publish(mine.port, pieces, 40, mode="rate", rate=200, may_exceed=True)
            assert report.answered == 40
            assert 10 <= report.delivered < 400


def test_each_delivery_is_counted(mine: Session) -> None:
    """In one room, in rooms of their own, one a request and many."""
    kind, load = mine.kind, mine.load
    together, apart = one_room(10), own_rooms(10)
    load.dial(mine.port, [kind.client(one) for one in together + apart], live=kind.live)
    report = load.publish(mine.port, [kind.publish("workspace_1", 10)], 7, mode="paced")
    assert (report.answered, report.delivered) == (7, 70)
    each = [kind.publish(one.room, 1) for one in apart]
    report = load.publish(mine.port, each, 25, mode="closed", publishers=3)
    assert (report.answered, report.delivered) == (25, 25)
    batch = kind.publish_many([one.room for one in apart], 10)
    report = load.publish(mine.port, [batch], 4, mode="closed", publishers=2)
    assert (report.answered, report.delivered) == (4, 40)
    report = load.publish(mine.port, each, 20, mode="rate", rate=200, publishers=2)
    assert (report.answered, report.delivered) == (20, 20)
    assert 0 < report.p50_us <= report.p99_us <= report.max_us


def test_a_server_that_fails_once_is_measured_with_new_clients() -> None:
    failures = [LoadError("it lost a client")]
    pids: list[int] = []

    def fails_once(session: Session) -> dict[str, float]:
        pids.append(session.server.pid)
        if len(pids) == 2:
            raise failures.pop()
        return {"cost": len(pids)}

    part = Part({"cost": "a cost, µs"}, fails_once)
    (result,) = measure(Options(rounds=2), [Limit()], lambda _: None, [part])
    assert result.notes == {}
    assert list(result.stats["limit"].values) == [4, 5]
    assert len({*pids}) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_server_that_fails_again_takes_no_further_part() -> None:
    def fails(_: Session) -> dict[str, float]:
        raise LoadError("it lost a client")

    parts = [Part({name: name}, fails) for name in ("first", "second")]
    for result in measure(Options(rounds=1), [Limit()], lambda _: None, parts):
        assert result.stats == {}
        assert result.notes == {"limit": "it lost a client"}


def test_a_cold_publish_has_a_connection_of_its_own() -> None:
    with Capture() as capture, Load(machine.cores().load) as load:
        publish = Ours().publish("user_1", 0)
        port = int(capture.url.rpartition(":")[2])
        modes: dict[Mode, int] = {"cold": 5, "closed": 2}
        for mode, connections in modes.items():
            before = capture.connections
            load.publish(port, [publish], 5, mode=mode, publishers=2)
            assert capture.connections - before == connections
        assert len(capture.requests) == 10


def test_a_client_acknowledges_what_it_has_received() -> None:
    with session(Ours()) as mine:
        kind, load = mine.kind, mine.load
        assert isinstance(kind, Ours)
        one = own_rooms(1)
        load.dial(mine.port, [kind.client(each) for each in one], live=kind.live)
        load.acknowledge()  # keeps cursors from now on
        load.publish(mine.port, [kind.publish("user_0", 1)], 3, mode="closed")
        load.acknowledge()
        load.hangup()
        load.publish(mine.port, [kind.publish("user_0", 0)], 2, mode="closed")
        after_acknowledged = [kind.returning_client(each, "") for each in one]
        load.dial(mine.port, after_acknowledged, live=kind.live, expected=2)


@pytest.mark.parametrize("expected", [9, 11], ids=["one too many", "one too few"])
def test_another_number_of_deliveries_is_an_error(mine: Session, expected: int) -> None:
    kind, load = mine.kind, mine.load
    load.dial(mine.port, [kind.client(one) for one in one_room(10)], live=kind.live)
    with pytest.raises(LoadError, match=rf"10 of {expected} deliveries"):
        load.publish(
            mine.port, [kind.publish("workspace_1", expected)], 1, mode="closed", timeout_s=1
        )


def test_a_refused_publish_is_an_error() -> None:
    with session(Ours()) as mine:
        other = Ours().publish("workspace_1", 0)  # another server's key
        with pytest.raises(LoadError, match="1 of 1 publishes were answered, 1 refused"):
            mine.load.publish(mine.port, [other], 1, mode="closed")


def test_a_refused_handshake_is_an_error() -> None:
    with session(Ours()) as mine:
        clients = [Ours().client(one) for one in own_rooms(3)]
        with pytest.raises(LoadError, match="0 of 3 clients are live"):
            mine.load.dial(mine.port, clients, live=mine.kind.live)


def test_a_peer_that_is_not_here_is_reported_in_the_table() -> None:
    part = Part({"cost": "a cost, µs"}, lambda _: {"cost": 1.0})
    (result,) = measure(Options(rounds=1), [Missing(), Limit()], lambda _: None, [part])
    assert result.notes == {"missing": "it is not installed: run scripts/bench"}
    assert result.stats["limit"].median == 1


def test_nchan_writes_below_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's module creates its compiled-in temporary folder, which is there only where nginx is
    installed."""
    tools, folder = tmp_path / "tools", tmp_path / "run"
    nginx = tools / "nchan/usr/sbin/nginx"
    module = tools / "nchan/usr/lib/nginx/modules/ngx_nchan_module.so"
    for file in (nginx, module):
        file.parent.mkdir(parents=True)
    nginx.touch()
    compiled = b"\x7fELF\0/var/lib/nginx/body\0/var/lib/nginx/proxy\0"
    module.write_bytes(compiled)
    folder.mkdir()
    monkeypatch.setattr(peers, "TOOLS", tools)
    command = peers.Nchan().command(Running(peers.Nchan(), 1, folder, 0))
    assert command[:3] == [nginx, "-p", folder]
    (loaded,) = re.findall(r"^load_module (\S+);", (folder / "nginx.conf").read_text(), re.M)
    changed = Path(loaded).read_bytes()
    assert len(changed) == len(compiled)
    for name in changed.split(b"\0")[1:-1]:
        assert not name.startswith(b"/")
        assert (folder / name.decode()).parent.is_dir()
    assert module.read_bytes() == compiled


def test_cpu_time_includes_child_processes() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    busy = "print('ready', flush=True)\nwhile True: pass"
    with subprocess.Popen(
        [sys.executable, "-c", code, busy], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        tree = machine.tree(process.pid)
        assert len(tree) == 2
        before = machine.cpu_s(process.pid)
        while machine.cpu_s(process.pid) < before + 0.05:  # it never ends if the child is left out
            pass
        for pid in tree:
            os.kill(pid, 9)


def test_nothing_is_left_running() -> None:
    with session(Limit()) as mine:
        pid = mine.server.pid
        folder = mine.server.folder
        assert machine.max_memory_bytes(pid) > 0
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()


def test_nothing_is_left_after_ctrl_c() -> None:
    """Two servers and their loads, in sessions of their own, which the terminal's signal misses."""
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "fanout",
        "--servers",
        "ours",
        "--rounds",
        "1000",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while len(started := machine.tree(process.pid)) < 5:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_each_peer_has_its_name() -> None:
    assert all(kind.name == name and kind.title for name, kind in KINDS.items())


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks",
            "fanout",
            "--quick",
            "--servers",
            "ours",
            "--json",
            out,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=4 * TIMEOUT_S,
    )
    assert f"| {Ours.title} |" in done.stdout
    delivery, in_a_loop = json.loads(out.read_text())["results"]
    assert {*delivery["stats"]} == {*in_a_loop["stats"]} == {"ours"}
    assert delivery["stats"]["ours"]["median"] > 0
