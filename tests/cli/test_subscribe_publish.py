"""``synap-realtime subscribe`` and ``publish`` as users run them: processes, pipes, signals."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import httpx
import pytest

from synap_realtime import AsyncBroadcaster, Notification
from synap_realtime.cli.subscribe import format_line
from synap_realtime.jobs import JobType, RunNotifications
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.command_line import COMMAND, run, started
from tests.support.link import Link
from tests.support.timeouts import TIMEOUT_S, scaled


async def line(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    return (await stream.readline()).decode()


async def test_published_notification_is_printed_by_subscribe(rooms: str) -> None:
    async with started("subscribe", "user_1", "--url", rooms, "--json", "--count", "1") as process:
        assert await line(process.stderr) == "synap-realtime: connected\n"
        code, out, errors = await run(
            "publish", "user_1", "note.creation.completed", '{"entityId": "n1"}', "--id", "m1",
            "--status", "success", "--request-id", "r1", "--url", rooms,
        )  # fmt: skip
        assert (code, out, errors) == (
            0,
            "published m1 to user_1: delivered to 1 subscriber\n",
            "",
        )
        received = json.loads(await line(process.stdout))
        assert await process.wait() == 0
    assert received["id"] == "m1"
    assert received["data"] == {"entityId": "n1"}
    assert (received["requestId"], received["status"], received["room"]) == (
        "r1",
        "success",
        "user_1",
    )


async def test_watching_advances_no_acknowledged_cursor(rooms: str) -> None:
    assert (await run("publish", "user_1", "a.completed", REALTIME_URL=rooms))[0] == 0
    for _ in range(2):
        code, out, _ = await run("subscribe", "user_1", "--count", "1", REALTIME_URL=rooms)
        assert code == 0
        assert out.endswith("  a.completed  -  {}\n")


async def test_flushes_each_line_and_exits_quietly_on_ctrl_c(rooms: str) -> None:
    async with started("subscribe", "request_7", "--url", rooms) as process:
        await line(process.stderr)
        async with AsyncBroadcaster(rooms) as broadcaster:
            await broadcaster.broadcast_success(None, "a.completed", {"x": 1}, "7")
        assert '{"x": 1}' in await line(process.stdout)
        process.send_signal(signal.SIGINT)
        out, errors = await process.communicate()
    assert (process.returncode, out, errors) == (130, b"", b"")


async def test_closed_output_pipe_ends_it_quietly(rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        for _ in range(3):
            await broadcaster.broadcast_success(None, "a.completed", {}, "7")
    listen = f'"{COMMAND}" subscribe request_7 --url {rooms} | head -1'
    shell = await asyncio.create_subprocess_shell(listen, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(TIMEOUT_S):
        out, errors = await shell.communicate()
    assert out.count(b"\n") == 1
    assert errors == b"synap-realtime: connected\n"


async def test_reports_lost_and_restored_connection_and_gaps() -> None:
    async with (
        running_server(create_app()) as first,
        running_server(create_app()) as second,
        Link(first) as link,
        AsyncBroadcaster(first) as broadcaster,
        started("subscribe", "user_1", "--url", link.url) as process,
    ):
        assert await line(process.stderr) == "synap-realtime: connected\n"
        await broadcaster.broadcast_success("1", "a.completed", {})
        assert "a.completed" in await line(process.stdout)
        link.move(second)
        link.cut()
        lost = await line(process.stderr)
        assert lost.startswith(
            "synap-realtime: connection lost: the connection was cut; reconnecting in 1."
        )
        assert await line(process.stderr) == "synap-realtime: connected\n"
        assert "gap" in await line(process.stderr)


async def test_stalled_job_is_reported(rooms: str) -> None:
    run = RunNotifications(JobType("report.creation"), "r7", stall_after_s=0.1)
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        started("subscribe", "user_1", "--url", rooms) as process,
    ):
        assert await line(process.stderr) == "synap-realtime: connected\n"
        await broadcaster.broadcast_notification(user_id="1", message=run.started())
        said = await line(process.stderr)
        assert said == (
            "synap-realtime: stalled: report.creation.started: no update for 0.1 s (run r7)\n"
        )
        await broadcaster.broadcast_notification(user_id="1", message=run.completed({}))
        await broadcaster.broadcast_success("1", "last", {})
        lines = [await line(process.stdout) for _ in range(3)]
        assert [text.split()[1].rpartition(".")[2] for text in lines] == [
            "started",
            "completed",
            "last",
        ]


async def test_the_time_ends_it(rooms: str) -> None:
    assert (await run("subscribe", "user_1", "--url", rooms, "--timeout-s", "0.3"))[0] == 0
    options = ["--timeout-s", "0.3", "--count", "1"]
    assert (await run("subscribe", "user_1", "--url", rooms, *options))[0] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["subscribe", "user_1", "--url", "http://127.0.0.1:1"], 1, "synap-realtime serve"),
        (["subscribe", "nope"], 2, "expected a kind"),
        (["subscribe", "user_1", "--after", "no cursor"], 2, "expected a cursor"),
        (["subscribe", "user_1", "--url", "ftp://me:secret@x"], 2, "expected http://"),
        (["publish", "nope", "a"], 2, "expected a kind"),
        (["publish", "user_1", "a", "{"], 2, "not JSON"),
        (["publish", "user_1", "a", "[]"], 2, "not an object"),
        (["publish", "user_1", "a", "--status", "odd"], 2, "status"),
        (["publish", "user_1", "synap.x"], 2, "reserved"),
        (["publish", "user_1", "a", "--url", "ftp://me:secret@x"], 2, "expected http://"),
    ],
)
async def test_invalid_usage_is_a_one_line_error(
    arguments: list[str], code: int, said: str
) -> None:
    done, out, errors = await run(*arguments)
    assert done == code
    assert said in errors
    assert "secret" not in errors
    assert out == ""
    assert len(errors.splitlines()) == 1


async def test_wrong_path_is_a_one_line_error(rooms: str) -> None:
    code, _, errors = await run("subscribe", "user_1", "--url", f"{rooms}/nowhere")
    assert code == 1
    assert len(errors.splitlines()) == 1


async def test_failed_publish_exits_with_1(rooms: str) -> None:
    wrong = f"{rooms}/nowhere"
    code, out, errors = await run("publish", "user_1", "a", "--url", wrong, "--json")
    assert code == 1
    assert json.loads(out)["success"] is False
    assert "not published" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_full_disk_is_a_one_line_error_with_its_own_exit_code(
    rooms: str, options: list[str]
) -> None:
    for arguments, said in (
        (["publish", "user_1", "a", "--id", "m1", "--url", rooms], "published m1 to user_1, but"),
        (["subscribe", "user_1", "--count", "1", "--url", rooms], "could not print: No space left"),
        (["publish", "user_1", "a", "--url", f"{rooms}/nowhere"], "not published"),
    ):
        command = shlex.join([COMMAND, *arguments, *options])
        process = await asyncio.create_subprocess_shell(f"{command} > /dev/full", stderr=PIPE)
        async with asyncio.timeout(TIMEOUT_S):
            _, errors = await process.communicate()
        lines = errors.decode().replace("synap-realtime: connected\n", "").splitlines()
        assert len(lines) == 1, lines
        assert said in lines[0]
        assert process.returncode == (1 if said == "not published" else 74)


async def test_closed_stdout_does_not_change_the_exit_code_of_publish(rooms: str) -> None:
    send = f'"{COMMAND}" publish user_1 a --url {rooms}; echo $? >&2'
    shell = await asyncio.create_subprocess_shell(f"({send}) | true", stderr=PIPE)
    async with asyncio.timeout(TIMEOUT_S):
        _, errors = await shell.communicate()
    assert errors == b"0\n"


async def test_unreachable_server_is_reported_quickly() -> None:
    begun = time.monotonic()
    code, _, errors = await run("publish", "user_1", "a", "--url", "http://127.0.0.1:1")
    assert (code, errors.count("\n")) == (1, 1)
    assert time.monotonic() - begun < scaled(20)


async def test_duplicate_publish_is_reported(rooms: str) -> None:
    arguments = ["publish", "user_1", "a", "--id", "m1", "--url", rooms]
    assert "duplicate" not in (await run(*arguments))[1]
    assert "(duplicate: this id was published before)" in (await run(*arguments))[1]
    assert json.loads((await run(*arguments, "--json"))[1])["duplicate"] is True


async def test_reads_data_from_stdin(rooms: str) -> None:
    code, out, _ = await run(
        "publish", "user_1", "a", "-", "--url", rooms, "--json", said='{"text": "é"}'
    )
    assert code == 0
    assert json.loads(out)["rooms"] == ["user_1"]
    async with httpx.AsyncClient(base_url=rooms) as client:
        history = (await client.get("/rooms/user_1/history")).json()
    assert history["notifications"][0]["data"] == {"text": "é"}


def test_a_notification_cannot_play_with_the_terminal() -> None:
    evil = "\x1b[2J\r\n\x07\u202e\x9b"
    notification = Notification(type=f"a{evil}", data={evil: evil})
    assert format_line(notification).isprintable()


def test_a_line_is_short() -> None:
    notification = Notification(
        type="a", data={"x": "y" * 1000}, timestamp="2026-01-31T12:00:00.000Z"
    )
    assert len(format_line(notification)) < 140


WITH_KEYS = load_settings(api_keys=f"jobs={'k' * 43}", token_secrets="s" * 43)


@pytest.mark.parametrize("key", ["", "w" * 43])
async def test_refused_key_names_its_variable_without_suggesting_a_stopped_server(
    key: str,
) -> None:
    async with running_server(create_app(WITH_KEYS)) as url:
        code, _, errors = await run(
            "publish", "user_1", "a", REALTIME_URL=url, REALTIME_API_KEY=key
        )
    assert (code, errors.count("\n")) == (1, 1)
    assert "401" in errors
    assert "set REALTIME_API_KEY to" in errors
    assert "running" not in errors


async def test_only_an_unreachable_server_is_suggested_to_be_stopped() -> None:
    _, _, errors = await run("publish", "user_1", "a", "--url", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 (--url) could not be reached: Connection refused" in errors
    assert "is the server running (synap-realtime serve)?" in errors


@pytest.mark.parametrize("command", [["publish", "user_1", "a"], ["subscribe", "user_1"]])
async def test_wrong_scheme_is_reported(rooms: str, command: list[str]) -> None:
    wrong = rooms.replace("http://", "https://")
    _, _, errors = await run(*command, "--url", wrong)
    assert "does not speak TLS (WRONG_VERSION_NUMBER); write http://" in errors
    assert errors.count("\n") == 1
    assert "running" not in errors


NOT_ROOMS = {
    "a page": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "the server answered 404"),
    "HTTP/1.0": (b"HTTP/1.0 404 Not Found\r\n\r\n", "the server answered 404"),
    "no method": (b"HTTP/1.0 501 No\r\n\r\n", "the server answered 501"),
    "moved": (
        b"HTTP/1.1 301 Moved\r\nLocation: https://b.example/?c=1\r\nContent-Length: 0\r\n\r\n",
        "the server answered 301 and redirects to https://b.example/; set the URL",
    ),
    "no HTTP": (b"SSH-2.0-x\r\n", "is not a room server (it does not speak HTTP/1.1)"),
    "no WebSocket": (
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "is not a room server (its handshake is invalid: InvalidUpgrade)",
    ),
}


@pytest.mark.parametrize(("answer", "said"), NOT_ROOMS.values(), ids=NOT_ROOMS)
async def test_subscribing_to_another_kind_of_server_is_reported(answer: bytes, said: str) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, _, errors = await run("subscribe", "user_1", "--url", url)
    assert code == 1
    assert errors.startswith(f"synap-realtime: {url} (--url): {said}")
    assert errors.count("\n") == 1
    assert "running" not in errors


async def test_an_address_from_the_environment_is_named_by_its_variable() -> None:
    for command in (["subscribe", "user_1"], ["publish", "user_1", "a"]):
        code, _, errors = await run(*command, REALTIME_URL="http://127.0.0.1:1")
        assert code == 1
        assert "http://127.0.0.1:1 (REALTIME_URL)" in errors
        assert "Connection refused; is the server running (synap-realtime serve)?" in errors


REFUSALS = [
    (["subscribe", "user_1"], {}, "no credential"),
    (["subscribe", "user_1", "--token", "x"], {}, "check the token (--token, REALTIME_TOKEN)"),
    (["subscribe", "user_1"], {"REALTIME_TOKEN": "x"}, "check the token (--token, REALTIME_TOKEN)"),
    (["publish", "user_1", "a", "--key", "x"], {}, "; give --key one of the server's API keys"),
    (["publish", "user_1", "a"], {"REALTIME_API_KEY": "x"}, "; set REALTIME_API_KEY to one of"),
]


async def test_a_refusal_names_the_option_or_the_variable_that_was_given() -> None:
    async with running_server(create_app(WITH_KEYS)) as url:
        for command, environment, said in REFUSALS:
            code, _, errors = await run(*command, "--url", url, **environment)
            assert (code, errors.count("\n")) == (1, 1)
            assert f"{url} (--url)" in errors
            assert said in errors
