"""``synap-realtime doctor`` as an operator runs it."""

from __future__ import annotations

import json
from pathlib import Path

from synap_realtime.server.serve import running_server
from tests.support.command_line import run
from tests.support.credentials import API_KEY, SECRET
from tests.support.servers import serving

from .conftest import WRONG_KEY, WRONG_SECRET


async def test_a_line_for_each_check_and_0_if_nothing_failed(rooms: str) -> None:
    code, out, errors = await run("doctor", "--url", rooms)
    assert (code, errors) == (0, "")
    lines = out.splitlines()
    assert all(line[:6] in ("ok    ", "warn  ") for line in lines)
    assert any(line.startswith("ok    WebSocket      published and received in ") for line in lines)


async def test_json_for_programs_and_1_if_something_failed() -> None:
    code, out, errors = await run("doctor", "--url", "http://127.0.0.1:9", "--json")
    assert (code, errors) == (1, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert all(each.keys() == {"level", "check", "found", "advice", "page"} for each in found)
    assert [each["check"] for each in found if each["level"] == "fail"] == ["network"]


async def test_wrong_arguments_are_2() -> None:
    assert (await run("doctor", "--nonsense"))[0] == 2


async def test_no_secret_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'token_secrets = ["{SECRET}"]\n[api_keys]\njobs = "{API_KEY}"\n')
    async with serving(running_server) as url:
        for key, secret in ((API_KEY, SECRET), (WRONG_KEY, WRONG_SECRET)):
            code, out, errors = await run(
                "doctor", "--keys-file", str(file), "--url", url,
                REALTIME_API_KEY=key, REALTIME_TOKEN_SECRET=secret,
            )  # fmt: skip
            assert (code, errors) == (int(key == WRONG_KEY), "")
            assert not any(text in out for text in (key, secret, SECRET, API_KEY))
