"""`synap-realtime generate-keys` creates and replaces the file of `--keys-file` atomically."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.cli import key_file, main
from synap_realtime.server.auth.keys import KeyRing, Keys
from tests.support.command_line import COMMAND


def run(*arguments: object, code: int = 0) -> str:
    """What the command printed, on stdout and on stderr."""
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.setattr(sys, "argv", ["synap-realtime", "generate-keys", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code or 0) == code, printed.getvalue()
    return printed.getvalue()


def keys_in(file: Path) -> Keys:
    return KeyRing(file=file).current()


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_creates_a_file_readable_by_its_owner_only(file: Path) -> None:
    before = os.umask(0)
    printed = run("--out", file)
    os.umask(before)
    assert mode_of(file) == 0o600
    keys = keys_in(file)
    assert (len(keys.token_secrets), len(keys.api_keys)) == (1, 1)
    assert not any(secret in printed for secret in keys.token_secrets)
    assert [each.name for each in file.parent.iterdir()] == ["keys.toml"]


def test_file_ends_with_the_application_environment(file: Path) -> None:
    run("--out", file)
    keys = keys_in(file)
    said = dict(line[2:].split("=", 1) for line in file.read_text().splitlines()[-2:])
    assert [said["REALTIME_TOKEN_SECRET"]] == [*keys.token_secrets]
    assert keys.claims_for_key(said["REALTIME_API_KEY"]) is not None


@pytest.mark.parametrize("there", ["file", "empty", "folder", "link"])
def test_refuses_to_overwrite(file: Path, there: str) -> None:
    if there == "folder":
        file.mkdir()
    elif there == "link":
        file.symlink_to("nowhere")
    else:
        file.write_text("precious" if there == "file" else "")
    hint = "name a file in it" if there == "folder" else "--rotate"
    assert hint in run("--out", file, code=2)
    assert there != "file" or file.read_text() == "precious"


def test_a_rotation_adds_keys_and_removes_none(file: Path) -> None:
    file.write_text(
        f'''# a comment with {"c" * 40}
token_secrets = ["{"a" * 32}", "{"b" * 32}"]
jwks_urls = ["https://id.example/jwks"]
[api_keys]
jobs = "{"j" * 40}"
"of the shop" = {{ key = "{"s" * 40}", scope = "broadcast metrics" }}
'''
    )
    before = keys_in(file)
    printed = run("--out", file, "--rotate")
    after = keys_in(file)
    assert [*after.token_secrets][1:] == ["a" * 32, "b" * 32], "the new secret comes first"
    assert after.jwks_urls == before.jwks_urls
    assert after.api_keys.keys() > before.api_keys.keys()
    scopes = {claims.key_name: claims.scopes for claims in after.api_keys.values()}
    metrics = frozenset({"broadcast", "metrics"})
    assert scopes == {
        "jobs": frozenset({"broadcast"}), "jobs-previous": frozenset({"broadcast"}),
        "of the shop": metrics, "of the shop-previous": metrics,
    }  # fmt: skip
    assert after.api_keys.keys() >= before.api_keys.keys()
    assert not any(secret in printed for secret in after.token_secrets)
    run("--out", file, "--rotate")
    assert keys_in(file).token_secrets.keys() > after.token_secrets.keys()
    assert keys_in(file).api_keys.keys() > after.api_keys.keys()


def test_pruning_leaves_the_newest_alone(file: Path) -> None:
    run("--out", file)
    old = keys_in(file)
    run("--out", file, "--rotate")
    run("--out", file, "--rotate")
    newest = tomllib.loads(file.read_text())
    assert "removed 2 token secrets and 2 API keys" in run("--out", file, "--prune")
    keys = keys_in(file)
    assert [*keys.token_secrets] == newest["token_secrets"][:1]
    assert keys.claims_for_key(newest["api_keys"]["jobs"]) is not None
    assert len(keys.api_keys) == 1
    for secret in old.token_secrets:
        assert secret not in file.read_text()


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o666, 0o640), (0o640, 0o640)])
def test_a_rotation_keeps_the_group_that_may_read(file: Path, mode: int, expected: int) -> None:
    """The server may run as another user; others never get to read the file."""
    run("--out", file)
    file.chmod(mode)
    run("--out", file, "--rotate")
    assert mode_of(file) == expected


def test_a_rotation_follows_a_link(file: Path) -> None:
    target = file.with_name("target.toml")
    run("--out", target)
    file.symlink_to(target.name)
    run("--out", file, "--rotate")
    assert file.is_symlink()
    assert len(keys_in(target).token_secrets) == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "[", "a = 1", "token_secrets = [1]", "\udcff"])
def test_a_file_that_is_no_key_file_stays(file: Path, text: str) -> None:
    content = text.encode(errors="surrogateescape")
    file.write_bytes(content)
    for option in ("--rotate", "--prune"):
        assert "not a key file" in run("--out", file, option, code=2)
        assert file.read_bytes() == content


def test_names_conflicting_options(file: Path) -> None:
    assert "--out" in run("--rotate", code=2)
    assert "--prune" in run("--out", file, "--rotate", "--prune", code=2)
    assert "without --rotate" in run("--out", file, "--rotate", code=2)
    assert "no such directory; create it" in run("--out", file / "below" / "x", code=2)


def test_a_redirect_is_reported_of_the_option(file: Path) -> None:
    with file.open("w") as opened:
        done = subprocess.run(
            [COMMAND, "generate-keys"], stdout=opened, stderr=subprocess.PIPE, check=True
        )
    assert b"--out FILE" in done.stderr
    assert len(keys_in(file).token_secrets) == 1


def test_readers_never_see_a_partial_file(file: Path) -> None:
    key_file.create(file)
    stop = threading.Event()
    problems: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                keys_in(file)
            except ConfigurationError as error:
                problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        key_file.change(file, key_file.rotated)
        key_file.change(file, key_file.pruned)
    stop.set()
    reader.join()
    assert problems == []


def test_a_failed_write_leaves_the_file_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file.create(file)
    before = file.read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigurationError, match="No space left"):
        key_file.change(file, key_file.rotated)
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["keys.toml"]


def test_names_and_values_survive(file: Path) -> None:
    keys = key_file.KeySet(
        ('"quoted" \\ back\u00e9 \x7f\n[x]' + "x" * 32,), (), {"a.b": "k" * 32, "": "l" * 32}
    )
    file.write_text(key_file.to_toml(keys))
    assert key_file.change(file, lambda same: same)[0] == keys
    assert key_file.change(file, lambda same: same)[1] == keys
