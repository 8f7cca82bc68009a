"""Keys from a file that changes while the server runs, and from an identity provider."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import json
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from synap_realtime import ConfigurationError
from synap_realtime.server.auth import tokens
from synap_realtime.server.auth.jwks import REFRESH_AFTER_S, Jwks, KeysUnavailableError
from synap_realtime.server.auth.keys import MAX_FILE_BYTES, KeyRing
from synap_realtime.server.auth.tokens import Authenticator, InvalidTokenError
from synap_realtime.server.config import CHECK_INTERVAL_S
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.keys import DOCUMENT, EC_KEY
from tests.support.timeouts import TIMEOUT_S

OLD, NEW = "o" * 32, "n" * 32


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def write(file: Path, *secrets: str, **api_keys: str) -> None:
    lines = [f"token_secrets = {list(secrets)!r}", "[api_keys]"]
    file.write_text("\n".join(lines + [f'{name} = "{key}"' for name, key in api_keys.items()]))


def look(ring: KeyRing | Authenticator, clock: Clock) -> bool:
    """Let a changed file settle: whether the keys are others now."""
    found = False
    for _ in range(3):
        clock.now += CHECK_INTERVAL_S
        found |= ring.refresh()
    return found


async def test_rotation_needs_no_restart(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD)
    subject = Authenticator(KeyRing(file=file, clock=clock))
    old, new = mint_token("1", secret=OLD), mint_token("1", secret=NEW)
    by_old = await subject.authenticate(old)
    with pytest.raises(InvalidTokenError):
        await subject.authenticate(new)
    write(file, OLD, NEW)
    assert look(subject, clock)
    await subject.authenticate(old)
    by_new = await subject.authenticate(new)
    assert subject.vouches_for(by_old)
    write(file, NEW)
    assert look(subject, clock)
    with pytest.raises(InvalidTokenError):
        await subject.authenticate(old)
    assert not subject.vouches_for(by_old)
    assert subject.vouches_for(by_new)


def test_tokens_of_a_key_that_lost_a_scope_are_rejected(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.toml", Clock()

    def give(scope: str) -> None:
        file.write_text(f'[api_keys]\njobs = {{ key = "{OLD}", scope = "{scope}" }}\n')

    give("subscribe broadcast")
    ring = KeyRing(file=file, clock=clock)
    subject = Authenticator(ring)
    claims = ring.current().claims_for_key(OLD)
    assert claims is not None
    give("subscribe broadcast presence")
    assert look(subject, clock)
    assert subject.vouches_for(claims)
    give("broadcast")
    assert look(subject, clock)
    assert not subject.vouches_for(claims)


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_link_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.with_name("nowhere"))


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_text(""),
    "blank": lambda file: file.write_text("\n \n\t\n"),
    "comments": lambda file: file.write_text(f"# {OLD}\n# [api_keys]\n"),
    "empty lists": lambda file: file.write_text("token_secrets = []\njwks_urls = []\n[api_keys]\n"),
    "truncated": lambda file: file.write_text(f'token_secrets = ["{OLD[:5]}'),
    "too short": lambda file: file.write_text('token_secrets = ["shhh-too-short"]'),
    "not UTF-8": lambda file: file.write_bytes(b"\xff"),
    "zeros": lambda file: file.write_bytes(b"\0" * 100),
    "UTF-16": lambda file: file.write_text("token_secrets = []", encoding="utf-16"),
    "invalid_request": lambda file: file.write_text(f"{OLD}\n"),
    "an unknown member": lambda file: file.write_text(f'secret = "{OLD}"\n'),
    "of other types": lambda file: file.write_text(f'token_secrets = "{OLD}"\napi_keys = 1\n'),
    "nested": lambda file: file.write_text(f"a = {'[' * 5000}"),
    "huge": lambda file: file.write_text(f'token_secrets = ["{NEW}"]\n' + "#" * MAX_FILE_BYTES),
    "missing": Path.unlink,
    "a folder": make_folder,
    "a link to nowhere": make_link_nowhere,
    "a pipe": make_pipe,
}


@pytest.mark.parametrize("broken", BROKEN)
def test_keeps_previous_keys_while_the_file_is_broken(
    broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD, jobs=NEW)
    ring = KeyRing(file=file, clock=clock)
    before = ring.current()
    BROKEN[broken](file)
    for _ in range(20):
        assert not look(ring, clock)
        assert ring.current() == before
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "keys file reload failed, keeping previous keys: --keys-file "
    )
    assert "shhh" not in caplog.text
    assert OLD not in caplog.text


def test_reloads_a_repaired_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD)
    ring = KeyRing(file=file, clock=clock)
    for text in ("", "# nothing\n", "["):
        file.write_text(text)
        assert not look(ring, clock)
        assert not look(ring, clock)
    assert len(caplog.records) == 3, "one line for each state of the file"
    write(file, NEW)
    assert look(ring, clock)
    assert [*ring.current().token_secrets] == [NEW]


def test_a_file_that_is_missing_again_is_logged_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD)
    ring = KeyRing(file=file, clock=clock)
    for _ in range(2):
        file.unlink()
        look(ring, clock)
        write(file, OLD)
        look(ring, clock)
    assert len(caplog.records) == 2


def test_reloads_a_file_restored_with_its_old_times(tmp_path: Path) -> None:
    """As ``cp -p`` and ``rsync --times --inplace`` do, over a file of the same length."""
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD)
    before = file.stat()
    ring = KeyRing(file=file, clock=clock)
    write(file, NEW)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert look(ring, clock)
    assert [*ring.current().token_secrets] == [NEW]


def test_retries_a_file_that_could_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An I/O error leaves no trace in the file's state."""
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD)
    ring = KeyRing(file=file, clock=clock)
    write(file, NEW)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(Path, "open", fail)
        assert not look(ring, clock)
        assert not look(ring, clock)
    assert len(caplog.records) == 1
    assert look(ring, clock)
    assert [*ring.current().token_secrets] == [NEW]


def test_does_not_read_a_file_that_is_still_being_written(tmp_path: Path) -> None:
    """Half of a file may be good TOML, without the keys that were to come."""
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD, jobs=NEW)
    ring = KeyRing(file=file, clock=clock)
    before = ring.current()
    whole = file.read_text() + "# rotated\n"
    for end in range(1, len(whole)):
        file.write_text(whole[:end])
        clock.now += CHECK_INTERVAL_S
        assert not ring.refresh()
        assert ring.current() == before


@pytest.mark.parametrize("broken", BROKEN)
def test_refuses_to_start_with_a_file_without_keys(broken: str, tmp_path: Path) -> None:
    """Also beside keys of the environment: what the file was to add would be missing."""
    file = tmp_path / "keys.toml"
    write(file, OLD)
    BROKEN[broken](file)
    for others in ([], [NEW]):
        with pytest.raises(ConfigurationError, match="--keys-file ") as caught:
            KeyRing(file=file, token_secrets=others)
        assert OLD not in str(caught.value)


def test_a_secret_in_the_place_of_the_file_is_not_shown() -> None:
    for secret in (secrets.token_urlsafe(32), secrets.token_hex(32), OLD):
        said = r"--keys-file \(SYNAP_REALTIME_KEYS_FILE\): …: No such file"
        with pytest.raises(ConfigurationError, match=said) as caught:
            KeyRing(file=Path(secret))
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('token_secrets = ["shhh"]', "at least 32 bytes"),
        ('token_secrets = "shhh"', "token_secrets"),
        ('token_secrest = ["shhh"]', "token_secrest"),
        ('[api_keys]\njobs = "shhh"', "API key 'jobs'"),
        (f'[api_keys]\njobs = "shhh {"x" * 40}"', "without spaces"),
        ('jwks_urls = ["http://id.example/jwks"]', "expected https"),
        (f'[api_keys]\njobs = {{ key = "{"x" * 40}", scope = "shhh" }}', "scope: expected some of"),
        ("shhh", "after a key"),
        ("[shhh]\n[shhh]", "Cannot declare"),
        ("x = { shhh = 1, shhh = 2 }", "Duplicate inline table key"),
        (f'[api_keys]\nshhh{"Xy1" * 20} = {{ key = "{NEW}", scope = "all" }}', "API key"),
        (f'[api_keys]\nshhh{"Xy1" * 20} = "short"', "API key"),
        (f'[api_keys]\nshhh{"Xy1" * 20} = "x {"x" * 40}"', "API key"),
    ],
)
def test_error_of_an_invalid_file_holds_no_secret(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        KeyRing(file=file)
    assert "shhh" not in str(caught.value)


def test_error_of_a_missing_file_names_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="synap-realtime generate-keys"):
        KeyRing(file=tmp_path / "none.toml")


def test_nothing_shows_the_keys(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ring = KeyRing(token_secrets=[OLD], api_keys={"jobs": NEW})
    shown = f"{ring.current()!r} {ring!r} {ring._own!r} {Authenticator(ring)!r}"
    assert OLD not in shown
    assert NEW not in shown


class Provider:
    """An identity provider's address, for real."""

    url: str

    def __init__(self) -> None:
        self.fetched = 0
        self.status = 200
        self.document: Any = DOCUMENT

    async def answer(self, _: Request) -> JSONResponse:
        self.fetched += 1
        return JSONResponse(self.document, self.status)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    async with running_server(Starlette(routes=[Route("/jwks", provider.answer)])) as url:
        provider.url = f"{url}/jwks"
        yield provider


def token(kid: str | None = "ES256", key: Any = EC_KEY) -> str:
    headers = None if kid is None else {"kid": kid}
    return jwt.encode({"sub": "1", "exp": time.time() + 600}, key, "ES256", headers=headers)


async def test_keys_are_fetched_once_for_many(provider: Provider) -> None:
    subject = Authenticator(KeyRing(jwks_urls=[provider.url]))
    for _ in range(5):
        assert (await subject.authenticate(token())).user == "1"
    assert provider.fetched == 1


@pytest.mark.parametrize("wrong", ["status", [], {"keys": 1}, "text", {"keys": ["x"] * 10}])
async def test_unavailable_provider_is_not_an_invalid_token(
    provider: Provider, wrong: object
) -> None:
    """When the keys cannot be fetched, the token is not reported as invalid."""
    if wrong == "status":
        provider.status = 500
    else:
        provider.document = wrong
    subject = Authenticator(KeyRing(jwks_urls=[provider.url]))
    expected = InvalidTokenError if wrong == {"keys": ["x"] * 10} else KeysUnavailableError
    for _ in range(3):
        with pytest.raises(expected):
            await subject.authenticate(token())
    assert provider.fetched == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
async def test_refuses_compressed_jwks(encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    """A few bytes could become a gigabyte, and none was asked for."""

    async def answer(request: Request) -> Response:
        assert request.headers["accept-encoding"] == "identity"
        body = gzip.compress(json.dumps(DOCUMENT).encode())
        return Response(body, headers={"Content-Encoding": encoding})

    async with running_server(Starlette(routes=[Route("/jwks", answer)])) as url:
        subject = Authenticator(KeyRing(jwks_urls=[f"{url}/jwks"]))
        with pytest.raises(KeysUnavailableError):
            await subject.authenticate(token())
    assert f"Content-Encoding '{encoding}'" in caplog.text


WRONG_MEMBERS: list[Any] = [
    1, None, [], {}, {"kty": "RSA"}, {"kty": ["RSA"]}, {"kty": "RSA", "n": 1, "e": []},
    {"kty": "EC", "crv": "P-256", "x": "", "y": ""}, {"kty": "EC", "crv": 7},
    {"kty": "OKP", "crv": "Ed25519", "x": None}, {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": 5},
    {"kty": "RSA", "n": "AQAB", "e": "AQAB", "alg": "none"}, {"kty": "RSA", "key_ops": "x"},
]  # fmt: skip


@pytest.mark.parametrize("place", ["before", "behind"])
async def test_passes_over_members_of_jwks_that_are_no_keys(provider: Provider, place: str) -> None:
    """RFC 7517, section 5. What the libraries raise for them must not end a request."""
    good = DOCUMENT["keys"]
    keys = [*WRONG_MEMBERS, *good] if place == "before" else [*good, *WRONG_MEMBERS]
    others: list[Any] = [1, None, [], {}, "x"]
    for member in good:
        keys += [{**member, name: value} for name in member for value in others]
        keys += [{**member, "kid": "other", "d": "AQAB"}, {**member, "kid": "other", "alg": []}]
    provider.document = {"keys": keys}
    subject = Authenticator(KeyRing(jwks_urls=[provider.url]))
    assert (await subject.authenticate(token())).user is not None


async def test_jwks_of_more_than_the_bound_are_not_read(provider: Provider) -> None:
    provider.document = {**DOCUMENT, "x": "x" * 2_000_000}
    subject = Authenticator(KeyRing(jwks_urls=[provider.url]))
    with pytest.raises(KeysUnavailableError):
        await subject.authenticate(token())


async def test_a_redirect_of_jwks_is_not_followed(provider: Provider) -> None:
    async def answer(_: Request) -> Response:
        return Response(status_code=302, headers={"Location": provider.url})

    async with running_server(Starlette(routes=[Route("/jwks", answer)])) as url:
        subject = Authenticator(KeyRing(jwks_urls=[f"{url}/jwks"]))
        with pytest.raises(KeysUnavailableError):
            await subject.authenticate(token())
    assert provider.fetched == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks://127.0.0.1:9"), ("NO_PROXY", "fd00::/8"), ("SSL_CERT_FILE", "/none")],
)
async def test_loopback_jwks_ignores_proxy_variables(
    provider: Provider, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    subject = Authenticator(KeyRing(jwks_urls=[provider.url]))
    assert (await subject.authenticate(token())).user == "1"


async def test_withdrawn_public_key_is_dropped_without_traffic(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(tokens, "Jwks", partial(Jwks, clock=clock))
    subject = Authenticator(KeyRing(jwks_urls=[provider.url]))
    claims = await subject.authenticate(token())
    subject.refresh()
    assert subject.vouches_for(claims)
    provider.document = {"keys": [key for key in DOCUMENT["keys"] if key["kid"] != "ES256"]}
    assert not subject.refresh(), "not yet due"
    clock.now += REFRESH_AFTER_S + 1
    async with asyncio.timeout(TIMEOUT_S):
        while not subject.refresh():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not subject.vouches_for(claims)
    await subject.close()


async def test_keys_of_a_removed_jwks_url_are_dropped(provider: Provider, tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    file.write_text(f'token_secrets = ["{OLD}"]\njwks_urls = ["{provider.url}"]\n')
    subject = Authenticator(KeyRing(file=file, clock=clock))
    claims = await subject.authenticate(token())
    write(file, OLD)
    assert look(subject, clock)
    assert not subject.vouches_for(claims)
    with pytest.raises(InvalidTokenError):
        await subject.authenticate(token())


async def test_a_password_in_the_address_of_keys_is_not_logged(
    provider: Provider, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    url = "http://jwks:hunter2-hunter2@127.0.0.1:9/jwks?token=hunter3"
    subject = Authenticator(KeyRing(jwks_urls=[url]))
    with pytest.raises(KeysUnavailableError) as caught:
        await subject.authenticate(token())
    for text in (caplog.text, str(caught.value)):
        assert "127.0.0.1:9" in text
        assert "hunter" not in text
    for answers in (True, False):  # the HTTP client logs each address itself
        if not answers:
            provider.document = {"keys": None}
        url = provider.url.replace("http://", "http://jwks:hunter2-hunter2@") + "?token=hunter3"
        subject = Authenticator(KeyRing(jwks_urls=[url]))
        with contextlib.suppress(KeysUnavailableError):
            await subject.authenticate(token())
    assert provider.fetched == 2
    assert "HTTP Request: GET http://127.0.0.1" in caplog.text
    assert "hunter" not in caplog.text
    with pytest.raises(ConfigurationError) as refused:
        KeyRing(jwks_urls=["http://jwks:hunter2@id.example/jwks"])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"token_secrets": ["short"]}, "SYNAP_REALTIME_TOKEN_SECRETS: token secret: expected at"),
        ({"api_keys": {"jobs": "x"}}, "SYNAP_REALTIME_API_KEYS: API key 'jobs': expected at least"),
        ({"jwks_urls": ["http://a.b/"]}, "--jwks-urls (SYNAP_REALTIME_JWKS_URLS, or jwks_urls in"),
    ],
)
def test_invalid_key_is_named_by_its_variable(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KeyRing(**given)
    assert str(caught.value).startswith(said)
