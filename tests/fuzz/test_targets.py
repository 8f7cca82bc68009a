"""Each fuzz target passes on its corpus and notices when its parser is broken."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synap_realtime.broadcast import responses
from synap_realtime.server.asgi import connections
from synap_realtime.server.auth import jwks
from synap_realtime.server.auth.tokens import Hs256
from synap_realtime.server.http import publish
from synap_realtime.server.http.admin import answers
from synap_realtime.server.http.routes import Router
from synap_realtime.server.messages import Response
from synap_realtime.server.protocols import ws_codec
from synap_realtime.server.protocols.http1 import Http1Protocol
from synap_realtime.server.rooms import pieces, room_actions
from synap_realtime.server.rooms.registry import SessionRegistry
from synap_realtime.server.stores.redis.live_rooms import LiveRooms
from synap_realtime.server.stores.redis.presence import SharedPresence
from synap_realtime.server.stores.redis.survey import RedisSurveys
from synap_realtime.subscriber import receiving, shared

from . import worker
from .merge import merge
from .mutation import Mutator
from .target import CORPUS, COVERED, RuleBrokenError, Target, chunks_of, kept_inputs
from .targets import NAMES, load
from .targets.asgi import AsgiTarget
from .targets.http import HttpTarget
from .targets.subscriber import SubscriberTarget
from .targets.token import TokenTarget
from .worker import Watch, fixed_inputs, has_atheris

ROOT = Path(__file__).parents[2]

INPUTS = 300
"""Mutated ones, for each target: ``scripts/fuzz`` is for more."""


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """A target changes the levels of loggers: in its own process that is nobody's concern."""
    names = (
        None,
        "synap_realtime.server.auth.jwks",
        "httpx",
        "httpcore",
        "synap_realtime.broadcast",
        "synap_realtime.subscriber",
    )
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    yield
    for logger, level in levels:
        logger.setLevel(level)


def feed(target: Target) -> None:
    """The corpus, then some mutations of it."""
    watch = Watch(target)
    mutator = Mutator(target.seeds(), target.words(), target.max_bytes, seed=1)
    try:
        for data in [*target.seeds(), *(mutator.next() for _ in range(INPUTS))]:
            watch.run(data)
    finally:
        target.close()


@pytest.mark.parametrize("name", NAMES)
def test_no_input_of_the_corpus_breaks_a_rule(name: str) -> None:
    feed(load(name))


def test_each_target_has_a_corpus_and_a_dictionary() -> None:
    assert sorted(NAMES) == sorted(folder.name for folder in CORPUS.iterdir())
    for name in NAMES:
        target = load(name)
        assert len(target.seeds()) > 10
        assert len(target.words()) > 5
        target.close()


def test_corpus_is_small() -> None:
    files = [file for folder in (CORPUS, COVERED) for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert sorted(file.stem for file in COVERED.iterdir()) == sorted(NAMES)
    for name in NAMES:
        kept = kept_inputs(name)
        assert len(kept) < 400
        assert kept == sorted(set(kept), key=lambda data: (len(data), data))


@pytest.mark.skipif(not has_atheris(), reason="atheris is not installed: scripts/fuzz installs it")
def test_merge_keeps_only_what_covers_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.merge.kept_file", lambda _name: tmp_path / "kept.txt")
    monkeypatch.setattr("tests.fuzz.merge.kept_inputs", lambda _name: [])
    found = tmp_path / "found"
    found.mkdir()
    (found / "1").write_bytes((CORPUS / "jwks" / "empty").read_bytes())  # a seed
    (found / "2").write_bytes(b"x" * 5000)  # too long
    assert merge("jwks", found) == (0, 0)


def seed(target: Target, name: str) -> bytes:
    return (CORPUS / target.name / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("admin", (200, 200)),
        ("events", (200,)),
        ("history", (200,)),
        ("metrics", (200,)),
        ("presence", (200,)),
        ("publish-twice-pipelined", (200, 200, 200)),
        ("revoke-user", (200,)),
        ("websocket", (101,)),
        ("websocket-authenticate", (101,)),
    ],
)
def test_seeds_of_http_reach_each_route(name: str, statuses: tuple[int, ...]) -> None:
    """With a credential that the server rejects, nothing behind it would be fuzzed."""
    target = HttpTarget()
    assert target.answer(seed(target, name)).statuses == statuses
    target.close()


@pytest.mark.parametrize(
    "name", ["admin", "batch", "events", "history", "metrics", "publish", "revoke", "websocket"]
)
def test_seeds_of_asgi_reach_each_route(name: str) -> None:
    target = AsgiTarget()
    first = target.converse(seed(target, name), way=0)[0]
    assert first.get("status", 101) in (101, 200), first
    assert first["type"] in ("http.response.start", "websocket.accept")
    target.close()


@pytest.mark.parametrize("name", ["admin", "signed", "user"])
def test_seeds_of_token_are_accepted(name: str) -> None:
    target = TokenTarget()
    assert target.authenticate(seed(target, name)).user
    target.close()


def catches(name: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each fault shows in its own way
        feed(load(name))
    assert not isinstance(caught.value, OSError)


def test_http_target_notices_a_connection_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Http1Protocol, "connection_lost", lambda _self, _exc: None)
    catches("http")


def test_http_target_notices_a_traceback_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Router.handle

    async def fails(self: Router, request: Any) -> Any:
        if request.method == "OPTIONS":
            raise KeyError("a fault")
        return await answer(self, request)

    monkeypatch.setattr(Router, "handle", fails)
    catches("http")


def test_http_target_notices_a_field_that_splits_the_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = Response.header_fields
    monkeypatch.setattr(Response, "header_fields", lambda self: {**fields(self), "X": "a\r\n\r\nb"})
    catches("http")


def test_http_target_notices_answers_that_depend_on_the_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data_received = Http1Protocol.data_received
    monkeypatch.setattr(
        Http1Protocol, "data_received", lambda self, data: data_received(self, data[:2000])
    )
    catches("http")


def test_asgi_target_notices_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of ``int`` for a Content-Length of which ``str.isdigit`` is true."""
    monkeypatch.setattr(connections, "parse_digits", lambda text: int(text) if text else None)
    catches("asgi")


def test_asgi_target_notices_a_field_that_splits_the_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = Response.header_fields
    monkeypatch.setattr(Response, "header_fields", lambda self: {**fields(self), "X": "a\r\n\r\nb"})
    catches("asgi")


def test_asgi_target_notices_a_subscription_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionRegistry, "close", lambda _self, _session: None)
    catches("asgi")


def test_websocket_target_notices_a_rule_of_the_rfc_that_is_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ws_codec, "is_close_code", lambda _code: True)
    catches("websocket")


def test_websocket_target_notices_text_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws_codec, "_decoded", lambda payload: payload.decode(errors="replace"))
    catches("websocket")


def test_notification_target_notices_a_weaker_validation_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_strictly = publish._read

    def lenient(read: Callable[[bytes], Any], content: bytes) -> dict[str, Any] | None:
        return read_strictly(read, content.replace(b'"status":"done"', b'"status":"error"'))

    monkeypatch.setattr(publish, "_read", lenient)
    catches("notification")


def test_token_target_notices_a_signature_that_is_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Hs256, "verify", staticmethod(lambda *_: True))
    catches("token")


def test_jwks_target_notices_a_shared_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {**jwks.ALGORITHMS, "HS256": "oct"}
    monkeypatch.setattr(jwks, "ALGORITHMS", kinds)
    catches("jwks")


def test_answer_target_notices_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_describe", lambda *given: given[-1]["error"])
    catches("answer")


def test_subscriber_target_notices_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "parse_notification", lambda value: value["type"])
    catches("subscriber")


def test_subscriber_target_notices_an_exception_about_one_of_many_rooms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared, "seconds", lambda milliseconds: milliseconds / 1000)
    catches("subscriber")


def test_rooms_target_notices_a_piece_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "join", lambda entries: entries[-1])
    catches("rooms")


def test_rooms_target_notices_a_room_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionRegistry, "close", lambda _self, _session: None)
    catches("rooms")


def test_rooms_target_notices_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_actions, "parse_device", lambda text: text.encode())
    catches("rooms")


@pytest.mark.parametrize("part", [LiveRooms, SharedPresence, RedisSurveys])
def test_nodes_target_notices_a_message_that_raises(
    part: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_on_question" if part is RedisSurveys else "on_message"
    handle = getattr(part, name)

    def strict(self: Any, *message: bytes) -> None:
        message[-1].decode()
        handle(self, *message)

    monkeypatch.setattr(part, name, strict)
    catches("nodes")


def test_nodes_target_notices_an_answer_that_breaks_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "newest_connections", lambda found: [e["since"] for e in found])
    catches("nodes")


class _Leaks(Target):
    name = "subscriber"

    def __init__(self) -> None:
        self._kept: list[object] = []

    def check(self, data: bytes) -> None:
        self._kept.extend({} for _ in range(400))


class _Spins(Target):
    name = "subscriber"

    def check(self, data: bytes) -> None:
        end = time.process_time() + worker.MAX_CPU_S + 0.1
        while time.process_time() < end:
            pass


def test_memory_that_grows_with_the_inputs_is_noticed() -> None:
    watch = Watch(_Leaks())

    def feed_many() -> None:
        for _ in range(2 * worker.CHECK_EVERY):
            watch.run(b"")

    with pytest.raises(RuleBrokenError, match="memory grows"):
        feed_many()


def test_an_input_that_takes_too_much_processor_time_is_noticed() -> None:
    with pytest.raises(RuleBrokenError, match="at most 1 s"):
        Watch(_Spins()).run(b"")


def test_mutations_are_reproducible() -> None:
    one, other = (Mutator([b"abc", b"defg"], [b"word"], 100, seed=7) for _ in range(2))
    inputs = [one.next() for _ in range(100)]
    assert inputs == [other.next() for _ in range(100)]
    assert len(set(inputs)) > 50
    assert max(map(len, inputs)) <= 100


def test_chunks_are_the_input() -> None:
    for size in (0, 1, 2, 300, 5000):
        assert b"".join(chunks_of(b"x" * size)) == b"x" * size


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


def test_fixed_inputs_are_the_same_in_each_process() -> None:
    """Whatever the order in which a set or a folder is read there."""
    code = (
        "import hashlib\n"
        "from itertools import islice\n"
        "from tests.fuzz.targets import NAMES, load\n"
        "from tests.fuzz.worker import fixed_inputs\n"
        "for name in NAMES:\n"
        "    inputs = list(islice(fixed_inputs(load(name)), 3000))\n"
        "    print(len(set(inputs)), hashlib.sha256(repr(inputs).encode()).hexdigest())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": number},
            capture_output=True, text=True, check=True,
        ).stdout
        for number in "12"
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert all(int(line.split()[0]) > 1000 for line in outputs[0].splitlines())


def test_fixed_run_reports_the_same_digest_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SubscriberTarget, "fixed_mutations", 500)
    digests = set()
    for _ in range(2):
        target = load("subscriber")
        watch = Watch(target)
        for data in fixed_inputs(target):
            watch.run(data)
        assert watch.inputs == len(target.seeds()) + 500
        digests.add(watch.digest)
    assert len(digests) == 1


def test_fixed_run_without_enough_time_reports_what_it_left_out() -> None:
    done = run("--fixed", 0.1, "--target", "http")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"http: (\d+) inputs in .*left out: (\d+) of (\d+) inputs", done.stdout)
    assert found is not None
    fed, left_out, total = map(int, found.groups())
    assert (fed + left_out, fed > 0) == (total, True)


def test_command_reports_what_ran() -> None:
    done = run(1, "--target", "subscriber", "--driver", "mutation", "--seed", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "subscriber: " in done.stdout
    assert "fuzz: 1 passed, 0 failed" in done.stdout


def test_one_input_is_reproduced(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"{}")
    done = run("--reproduce", "subscriber", file)
    assert (done.returncode, done.stdout) == (0, "subscriber: 2 bytes break nothing\n")
