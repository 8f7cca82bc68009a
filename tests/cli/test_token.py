"""``synap-realtime token``, and the keys that ``generate-keys`` makes for it."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import jwt
import pytest

from synap_realtime import mint_token
from synap_realtime.server.auth.keys import KeyRing
from tests.support.command_line import COMMAND
from tests.support.credentials import SECRET
from tests.support.timeouts import TIMEOUT_S


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "REALTIME" not in name}
    return subprocess.run(
        [COMMAND, *arguments], env={**clean, **environment}, input=stdin,
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def test_the_keys_that_are_made_can_be_used(tmp_path: Path) -> None:
    made, again = run("generate-keys").stdout, run("generate-keys").stdout
    assert made != again
    file = tmp_path / "keys.toml"
    file.write_text(made)
    keys = KeyRing(file=file).current()
    assert [claims.key_name for claims in keys.api_keys.values()] == ["jobs"]
    assert len(keys.token_secrets) == 1
    parsed = tomllib.loads(made)
    assert f"REALTIME_TOKEN_SECRET={parsed['token_secrets'][0]}" in made
    assert f"REALTIME_API_KEY={parsed['api_keys']['jobs']}" in made


def test_command_mints_and_inspects_a_token() -> None:
    minted = run("token", "1", "--room", "request_*", REALTIME_TOKEN_SECRET=SECRET)
    assert (minted.returncode, minted.stderr) == (0, "")
    token = minted.stdout.strip()
    explained = run("token", token, REALTIME_TOKEN_SECRET=SECRET)
    assert explained.returncode == 0
    assert "sub       1\n" in explained.stdout
    assert re.search(r"\nexp .* \(in (900|8\d\d) s\)\n", explained.stdout)
    assert explained.stdout.endswith("valid     yes\n")
    assert run("token", "-", stdin=token, REALTIME_TOKEN_SECRET=SECRET).returncode == 0


@pytest.mark.parametrize(
    ("token", "secret", "said"),
    [
        (None, "x" * 32, "Signature verification failed"),
        (None, "", "the signature was not verified"),
        (jwt.encode({"exp": 1}, SECRET), SECRET, "Signature has expired"),
        (jwt.encode({"sub": "1"}, SECRET), SECRET, 'missing the "exp" claim'),
        ("a.b.c", SECRET, "not a JWT"),
    ],
)
def test_problem_of_a_token_is_reported(token: str | None, secret: str, said: str) -> None:
    explained = run("token", token or mint_token("1", secret=SECRET), REALTIME_TOKEN_SECRET=secret)
    assert explained.returncode == 1
    assert said in explained.stdout.splitlines()[-1]
    assert "Traceback" not in explained.stderr


def test_token_without_a_user_is_not_minted() -> None:
    done = run("token", REALTIME_TOKEN_SECRET=SECRET)
    assert done.returncode == 2
    assert "expected a user" in done.stderr
