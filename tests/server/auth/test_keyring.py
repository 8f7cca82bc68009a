"""Keys from a file that changes while the server runs, and from an identity provider."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from synap_realtime import ConfigurationError
from synap_realtime.server.auth import Authenticator, InvalidTokenError, KeyRing
from synap_realtime.server.auth.jwks import KeysUnavailableError
from synap_realtime.server.serve import running
from synap_realtime.tokens import mint_token

from .test_verify import DOCUMENT, EC_KEY

OLD, NEW = "o" * 32, "n" * 32


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def write(file: Path, *secrets: str, **api_keys: str) -> None:
    lines = [f"token_secrets = {list(secrets)!r}", "[api_keys]"]
    file.write_text("\n".join(lines + [f'{name} = "{key}"' for name, key in api_keys.items()]))


async def test_rotation_needs_no_restart(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD)
    ring = KeyRing(file=file, clock=clock)
    subject = Authenticator(ring)
    old, new = mint_token("1", secret=OLD), mint_token("1", secret=NEW)
    await subject.identify(old)
    with pytest.raises(InvalidTokenError):
        await subject.identify(new)
    write(file, OLD, NEW)
    clock.now += 1
    await subject.identify(old)
    await subject.identify(new)
    write(file, NEW)
    clock.now += 1
    with pytest.raises(InvalidTokenError):
        await subject.identify(old)


async def test_a_file_that_becomes_wrong_is_said_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, clock = tmp_path / "keys.toml", Clock()
    write(file, OLD)
    ring = KeyRing(file=file, clock=clock)
    for broken in ("token_secrets = [", 'token_secrets = ["shhh-too-short"]', "", None):
        caplog.clear()
        if broken is None:
            file.unlink()
        elif broken:
            file.write_text(broken)
        else:
            file.write_bytes(b"\xff")
        for _ in range(3):
            clock.now += 1
            assert ring.current().token_secrets == (OLD,)
        assert len(caplog.records) == 1
        assert "shhh" not in caplog.text
        assert OLD not in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('token_secrets = ["shhh"]', "at least 32 bytes"),
        ('token_secrets = "shhh"', "token_secrets"),
        ('token_secrest = ["shhh"]', "token_secrest"),
        ('[api_keys]\njobs = "shhh"', "API key 'jobs'"),
        (f'[api_keys]\njobs = "shhh {"x" * 40}"', "without spaces"),
        ('jwks_urls = ["http://id.example/jwks"]', "expected https"),
        ("shhh", "after a key"),
    ],
)
def test_a_wrong_file_is_said_without_its_secrets(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        KeyRing(file=file)
    assert "shhh" not in str(caught.value)


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="synap-realtime keys"):
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
    async with running(Starlette(routes=[Route("/jwks", provider.answer)])) as url:
        provider.url = f"{url}/jwks"
        yield provider


def token(kid: str | None = "ES256", key: Any = EC_KEY) -> str:
    headers = None if kid is None else {"kid": kid}
    return jwt.encode({"sub": "1", "exp": 9e9}, key, "ES256", headers=headers)


async def test_keys_are_fetched_once_for_many(provider: Provider) -> None:
    subject = Authenticator(KeyRing(jwks_urls=[provider.url]))
    for _ in range(5):
        assert (await subject.identify(token())).user == "1"
    assert provider.fetched == 1


@pytest.mark.parametrize("wrong", ["status", [], {"keys": 1}, "text", {"keys": ["x"] * 10}])
async def test_a_provider_that_is_away_is_no_verdict(provider: Provider, wrong: object) -> None:
    """Who cannot ask for the keys does not say that the token is bad."""
    if wrong == "status":
        provider.status = 500
    else:
        provider.document = wrong
    subject = Authenticator(KeyRing(jwks_urls=[provider.url]))
    expected = InvalidTokenError if wrong == {"keys": ["x"] * 10} else KeysUnavailableError
    for _ in range(3):
        with pytest.raises(expected):
            await subject.identify(token())
    assert provider.fetched == 1
