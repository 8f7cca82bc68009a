"""A credential given in a wrong place is never repeated."""

from __future__ import annotations

import base64
import logging
import random
import subprocess
import time
from urllib.parse import quote

import httpx
import jwt
import pytest
import uvicorn

from synap_realtime import AsyncBroadcaster, ConfigurationError
from synap_realtime.endpoint import parse_server_url
from synap_realtime.redaction import MAX_SHOWN, holds_token, redacted, redacted_origin
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.tokens import mint_token
from tests.support.command_line import COMMAND
from tests.support.servers import by_uvicorn
from tests.support.timeouts import TIMEOUT_S, scaled

TOKEN = jwt.encode({"sub": "1", "exp": 4e9}, "s" * 32, "HS256")
# Fixed, so that each process of a test run has the same cases. The second looks like a room.
RANDOM = random.Random(8)
KEYS = [
    base64.urlsafe_b64encode(RANDOM.randbytes(32)).decode().rstrip("="),
    "Ab_9fE2kLmN4pQ6rS8tUvW1xY3zA5bC7dE9fG1hJ2kL", RANDOM.randbytes(32).hex(), "s" * 32,
    "k" * 43, TOKEN, f"Bearer {TOKEN}", "AbCd1234+EfGh5678/IjKl9012+MnOp3456/QrSt7890=",
]  # fmt: skip


def pieces(secret: str) -> list[str]:
    """What must not be seen of it: any eight characters in a row."""
    secret = secret.removeprefix("Bearer ")
    return [secret[start : start + 8] for start in range(len(secret) - 7)]


@pytest.mark.parametrize("secret", KEYS)
@pytest.mark.parametrize(
    "around", ["{}", "'{}'", "--keys-file {}: No such file", "got {!r}", "a={} b"]
)
def test_masks_credentials(secret: str, around: str) -> None:
    shown = redacted(around.format(secret))
    assert not [piece for piece in pieces(secret) if piece in shown], shown


@pytest.mark.parametrize(
    "name",
    ["token", "Secret", "api_key", "keys", "password", "PASSWD", "pwd", "credentials",
     "Authorization"],
)  # fmt: skip
@pytest.mark.parametrize("pair", ["{}={}", "{}: {}", '{{"{}": "{}"}}', "{} = '{}'"])
def test_masks_what_follows_the_name_of_a_secret(name: str, pair: str) -> None:
    """A word that looks like no key."""
    shown = redacted(f"invalid: {pair.format(name, 'correcthorse')}, next")
    assert "correcthorse" not in shown
    assert name in shown
    assert shown.endswith(", next")


@pytest.mark.parametrize(
    "part", ["eyJzdWIiOiJhIg", "ewogIrYWxnIjoiZQ", "eyJzdWIiOiJhIg.bcdefghijk.lmnopqrstu"]
)
def test_masks_a_part_of_a_token_that_looks_like_no_key(part: str) -> None:
    """Short, without digits."""
    shown = redacted(f"got {part} in the path")
    assert not [piece for piece in pieces(part) if piece in shown], shown
    assert shown.startswith("got ")
    assert shown.endswith(" in the path")


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://u:hunter2@id.example/jwks", "id.example/jwks"),
        ("https://u:hun/ter2@id.example/jwks", "id.example"),
        ("postgres://u:hunter2@db:5432/x", "db:5432/x"),
        ("http://127.0.0.1:8787/?token=hunter2", "http://127.0.0.1:8787/?token="),
        ("http://h/#access_token=hunter2&x=hunter2", "access_token="),
        ("https://hunter2@h/", "https://…@h/"),
    ],
)
def test_masks_credentials_of_a_url(url: str, kept: str) -> None:
    shown = redacted(url)
    assert "hunter2" not in shown
    assert "hun/ter2" not in shown
    assert kept in shown


@pytest.mark.parametrize(
    "text",
    [
        "/etc/synap-realtime/keys.toml", "keys-production.toml", "keys.toml", "user_42",
        "access_control.rules:may_subscribe_to_room", "https://app.example.com:443/base",
        "user_123e4567-e89b-12d3-a456-426614174000", "127.0.0.1", "seven", "--token-max-lifetime-s",
        "SYNAP_REALTIME_MAX_CONNECTIONS_PER_ADDRESS", "/var/lib/synap/rooms.db",
        "No module named 'x'",
    ],
)  # fmt: skip
def test_keeps_diagnostic_information(text: str) -> None:
    assert redacted(text) == text


OPTIONS = [
    "host",
    "port",
    "tls_cert",
    "tls_key",
    "workers",
    "allowed_origins",
    "store",
    "drain_timeout_s",
    "idle_timeout_s",
    "max_memory_bytes",
    "retention_count",
    "log_level",
    "log_format",
    "keys_file",
    "jwks_urls",
    "token_leeway_s",
    "token_max_lifetime_s",
    "authorizer",
    "trusted_proxies",
    "max_connections",
]


@pytest.mark.parametrize(
    "text", [TOKEN, TOKEN.split(".")[1], f"a {TOKEN[:30]}", "ewogImFsZyI6IkhTMjU2In0"]
)
def test_recognizes_a_part_of_a_token(text: str) -> None:
    assert holds_token(text)


@pytest.mark.parametrize(
    "text", ["ewoldt-smith", "eyJVb9k2LqX7mN4pR8sT1wZ3", "42", "auth0|eyBx92kdlaW9"]
)
def test_does_not_mistake_ids_for_tokens(text: str) -> None:
    """Nobody could revoke such a user, or subscribe as one."""
    assert not holds_token(text)


@pytest.mark.parametrize(
    "origin",
    ["https://app-8kd9f2j3k4m5n6p7q8.example.com", "http://localhost:3000", "http://[::1]:1"],
)
def test_shows_an_origin_that_a_browser_sends(origin: str) -> None:
    assert redacted_origin(origin) == origin


@pytest.mark.parametrize("secret", KEYS)
@pytest.mark.parametrize(
    "place",
    [
        "/rooms/{}/history",
        "/rooms/user_{}/history",
        "/rooms/user_{}/events",
        "/rooms/user_1/events?device={}",
        "Origin",
        "Sec-Fetch-Site",
    ],
)
async def test_no_request_makes_the_server_repeat_a_secret(
    secret: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bare = secret.removeprefix("Bearer ")
    name = quote(bare, safe="")
    path, headers = "/rooms/user_1/history", {}
    if place.startswith("/"):
        path = place.format(name)
    else:
        headers[place] = bare
    known = {"name": bare} if bare.isascii() and bare != TOKEN else {}
    app = create_app(load_settings(token_secrets=("t" * 40,), api_keys=known))
    all_rooms = mint_token(secret="t" * 40, rooms=["*"])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for credential in (all_rooms, "b" * 40):
            answer = await client.get(
                path, headers={**headers, "Authorization": f"Bearer {credential}"}
            )
            is_error = answer.status_code >= 400
            assert is_error or path.endswith("/history")  # which nothing is written of
            seen = answer.text * is_error + "".join(
                f"{vars(each)}" for each in caplog.records if each.name.startswith("synap_realtime")
            )
            assert not [piece for piece in pieces(secret) if piece in seen], seen


@pytest.mark.parametrize("secret", [key for key in KEYS if "/" not in key and key.isascii()])
@pytest.mark.parametrize("place", ["room", "id"])
async def test_no_publish_makes_the_server_log_a_secret(
    secret: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The most talkative level has a line for each publish."""
    caplog.set_level(logging.DEBUG)
    bare = secret.removeprefix("Bearer ")
    known = {} if bare == TOKEN else {"name": bare}
    app = create_app(load_settings(token_secrets=("t" * 40,), api_keys=known))
    publisher = mint_token(secret="t" * 40, rooms=["*"], scope="broadcast")
    room = f"user_{bare}" if place == "room" else "user_1"
    body = {"type": "a", "data": {}, "id": bare[:128] if place == "id" else "n1"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://127.0.0.1",
        headers={"Authorization": f"Bearer {publisher}"},
    ) as client:  # fmt: skip
        await client.post(f"/rooms/{quote(room, safe='')}/broadcast", json=body)
        await client.post("/broadcast", json={"notifications": [{**body, "rooms": [room]}]})
    seen = "".join(
        f"{vars(each)}" for each in caplog.records if each.name.startswith("synap_realtime")
    )
    assert seen
    assert not [piece for piece in pieces(secret) if piece in seen], seen


@pytest.mark.parametrize("option", OPTIONS)
def test_no_setting_repeats_a_secret(option: str) -> None:
    for secret in (KEYS[0], TOKEN, KEYS[1]):
        given = f"https://u:{secret}@id.example" if secret is KEYS[1] else secret
        try:
            settings = load_settings(**{option: given})
            if option in ("keys_file", "authorizer", "store", "jwks_urls"):
                create_app(settings)
        except ConfigurationError as error:
            text = str(error)
            assert not [piece for piece in pieces(secret) if piece in text], text


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--keys-file"],
        ["serve", "--authorizer"],
        ["serve", "--port"],
        ["serve", "--store"],
        ["serve", "--log-level"],
        ["serve", "--jwks-urls"],
        ["serve", "--drain-timeout-s"],
        ["serve"],
        [],
    ],
    ids=" ".join,
)
def test_no_command_repeats_a_secret(arguments: list[str]) -> None:
    secret = KEYS[0].replace("-", "a")  # not taken for an option
    done = subprocess.run(
        [COMMAND, *arguments, secret],
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert not [piece for piece in pieces(secret) if piece in said], said


@pytest.mark.parametrize("secret", KEYS)
def test_no_address_repeats_a_secret(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (
        secret,
        f"http://h/?token={secret}",
        f"ftp://u:{secret}@h",
        f"http://{secret}@h/#x",
    ):
        monkeypatch.setenv("REALTIME_URL", url)
        with pytest.raises(ConfigurationError, match="REALTIME_URL") as caught:
            parse_server_url(None)
        text = str(caught.value)
        assert not [piece for piece in pieces(secret) if piece in text], text


@pytest.mark.parametrize("text", ["/" * 10**6, "//a" * 10**5, "a=" * 10**6, "eyJ." * 10**6])
def test_redacts_long_text_quickly(text: str) -> None:
    began_at = time.perf_counter()
    assert len(redacted(text)) <= MAX_SHOWN + 100
    assert time.perf_counter() - began_at < scaled(1)


async def test_the_hosts_access_log_holds_no_token(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """uvicorn writes its line from the scope, after the app has read it."""
    caplog.set_level(logging.INFO, "uvicorn.access")
    config = uvicorn.Config.__init__

    def verbose(self: uvicorn.Config, *args: object, **options: object) -> None:
        options |= {"access_log": True, "log_level": "info"}
        config(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(uvicorn.Config, "__init__", verbose)
    async with by_uvicorn(create_app()) as url, httpx.AsyncClient() as client:
        await client.get(f"{url}/rooms/user_1/history?limit=5&token={TOKEN}")
    (line,) = [each.getMessage() for each in caplog.records if each.name == "uvicorn.access"]
    assert "/rooms/user_1/history?" in line
    assert not [piece for piece in pieces(TOKEN) if piece in line], line


async def test_the_sdk_repeats_no_key() -> None:
    async with AsyncBroadcaster("http://u:hunter2-hunter2@127.0.0.1:9", KEYS[0]) as broadcaster:
        result = await broadcaster.broadcast_success("1", "a.completed", {})
    assert "hunter2" not in f"{result!r} {broadcaster!r}"
    assert KEYS[0] not in f"{result!r} {broadcaster!r}"


@pytest.mark.parametrize(
    "text", ["Bearer hunter2", "bearer  hunter2", "bearer.hunter2", "got 'Bearer hunter2'"]
)
def test_masks_a_bearer_credential_of_any_length(text: str) -> None:
    assert "hunter2" not in redacted(text)
