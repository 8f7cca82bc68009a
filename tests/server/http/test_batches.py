"""A batch with one room for each notification is authorized in one step, with the same result.

The same notifications are also sent with a token that names the same rooms, for which each
notification is checked separately.
"""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.http import publish
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.credentials import API_KEY, SECRET


def publisher_token() -> str:
    rooms = ["user_1", "user_2", "request_*"]
    return mint_token(secret=SECRET, rooms=rooms, scope="broadcast")


def reader_token() -> str:
    return mint_token(secret=SECRET, rooms=["*"])


MADE = re.compile(r'(?<="id":")[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT[\d:.]+Z')
CURSOR = re.compile(r'(?<="cursor":")[0-9a-f]{12}-(\d+)')


def comparable(texts: list[str]) -> list[str]:
    """Without generated ids and times, and with the rank of each cursor instead of its value."""
    offsets = {int(offset) for text in texts for offset in CURSOR.findall(text)}
    ranks = {offset: str(rank) for rank, offset in enumerate(sorted(offsets))}
    return [CURSOR.sub(lambda found: ranks[int(found[1])], MADE.sub("_", text)) for text in texts]


def item(more: str = "", rooms: str = '["user_1"]') -> str:
    return f'{{"rooms":{rooms},"type":"a","data":{{}}{more}}}'


def batch(*items: str, more: str = "") -> str:
    return f'{{{more}"notifications":[{",".join(items)}]}}'


GOOD = item(), item(',"id":"n1","x":null', '["user_2"]'), item(',"status":"error"', '["request_1"]')
ONE_PASS = {
    "one": batch(item()),
    "some": batch(*GOOD),
    "the same id twice": batch(*[item(',"id":"n"')] * 2, item(',"id":"n"', '["user_2"]')),
    "a thousand": batch(*[item(f',"id":"n{number}"') for number in range(1000)]),
    "members at the top": batch(*GOOD, more='"x":[1],"rooms":5,'),
    "the list twice": batch(item(), more='"notifications":[],'),
    "a name twice": batch(item(',"type":"b","data":{"y":1},"data":{"z":2}')),
    "rooms twice": batch(item(',"rooms":["user_2"]')),
    "other letters": batch(item(',"id":"é\\"\\ud83d\\ude00"')),
    "numbers": batch(item(',"x":[0,-0,-0.0,1e2,1e22,123456789012345678901234567890]')),
}  # fmt: skip
OTHERWISE = {
    "empty": batch(),
    "nothing": "",
    "no list": '{"notifications":{}}',
    "null": '{"notifications":null}',
    "a list": "[]",
    "no JSON": batch(*GOOD)[:-1],
    "something behind": batch(*GOOD) + "x",
    "two rooms": batch(item(), item(rooms='["user_1","user_2"]')),
    "the same room twice": batch(item(rooms='["user_1","user_1"]')),
    "more than a thousand": batch(*[item()] * 1001),
    "more than a thousand rooms": batch(*[item(rooms='["user_1","user_2"]')] * 501),
    "over 1 MiB": batch(*[item(f',"x":"{"y" * 200_000}"')] * 6),
    "one over 256 KiB": batch(item(), item(f',"x":"{"y" * 270_000}"'), item()),
    "larger when it is written out": batch(item(), item(f',"x":[{"1e15," * 40_000}1]')),
    "all bad": batch(*[item(',"type":5')] * 150),
    "one that is none": batch(item(), "5", item()),
    "rooms that are none": batch(item(), item(rooms="[]"), item(rooms="null"), item(rooms="[5]")),
    "without rooms": batch(item(), '{"type":"a","data":{}}'),
    "too deep": batch(item(), item(f',"x":{"[" * 200}{"]" * 200}')),
    "NaN": batch(item(), item(',"x":NaN')),
    "half of a letter": batch(item(), item(',"x":"\\ud800"')),
    **{
        f"one with {more}": batch(*GOOD, item(more), *GOOD)
        for more in (
            ',"type":"synap.x"', ',"type":null', ',"data":[]', ',"id":null', ',"id":""',
            ',"room":"user_2"', ',"cursor":5', ',"x":1e999', ',"x":-1e999', ',"timestamp":"x"',
            ',"status":"done"', ',"requestId":5', ',"rooms":["nope"]', ',"rooms":["synap_x"]',
        )
    },
}  # fmt: skip


async def comes_to(credential: str, content: str) -> list[Any]:
    """What is answered, and what is in the rooms then."""
    settings = load_settings(
        token_secrets=(SecretStr(SECRET),), api_keys={"jobs": SecretStr(API_KEY)}, drain_timeout_s=0
    )
    reader = {"Authorization": f"Bearer {reader_token()}"}
    async with running_server(create_app(settings)) as url, httpx.AsyncClient(base_url=url) as http:
        headers = {"Authorization": f"Bearer {credential}"}
        answer = await http.post("/broadcast", content=content.encode(), headers=headers)
        texts = [answer.text]
        for room in ("user_1", "user_2", "request_1"):
            history = await http.get(f"/rooms/{room}/history?limit=1000", headers=reader)
            texts.append(history.text)
        headers["Authorization"] = f"Bearer {mint_token(secret=SECRET, scope='metrics')}"
        lines = (await http.get("/metrics", headers=headers)).text.splitlines()
        counts = [line for line in lines if re.match(r"synap_realtime_\w+_(total|count)\b", line)
                 and "lag" not in line]  # fmt: skip
    return [answer.status_code, *comparable(texts), *counts]


@pytest.mark.parametrize("name", [*ONE_PASS, *OTHERWISE])
async def test_one_and_two_passes_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    decode_batch = publish.decode_batch

    def watched(content: bytes) -> tuple[list[Any], bool]:
        items, is_checked = decode_batch(content)
        passes.append(1 if is_checked else 2)
        return items, is_checked

    monkeypatch.setattr(publish, "decode_batch", watched)
    content = ONE_PASS.get(name) or OTHERWISE.get(name, "")
    first = await comes_to(API_KEY, content)
    if name in ONE_PASS:
        assert (first[0], json.loads(first[1])["success"]) == (200, True)
        assert passes == [1]
    monkeypatch.setattr(publish, "_read", lambda _read, _content: None)
    assert first == await comes_to(API_KEY, content)
    assert 1 not in passes[1:]
    assert first == await comes_to(publisher_token(), content)
