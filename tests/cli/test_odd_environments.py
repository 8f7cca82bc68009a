"""The command in unusual environments: closed streams, full disks, locales, removed folders."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.command_line import COMMAND
from tests.support.timeouts import TIMEOUT_S

NOBODY = ["--url", "http://127.0.0.1:1"]


def shell(
    text: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``$C …`` in a shell; no traceback is ever printed."""
    done = subprocess.run(
        ["bash", "-c", f"C={shlex.quote(COMMAND)}; {text}"],
        env={**os.environ, "REALTIME_TOKEN_SECRET": "s" * 40, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        check=False,
        timeout=2 * TIMEOUT_S,
    )
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception ignored" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("$C token 42 >&-", 0),
        ("$C token 42 <&- >&- 2>&-", 0),
        (f"$C subscribe user_1 {' '.join(NOBODY)} <&- >&- 2>&-", 1),
        ("$C publish user_1 a - <&-", 2),
    ],
)
def test_closed_streams_lead_nowhere(command: str, code: int) -> None:
    assert shell(command).returncode == code


def test_prints_nothing_to_stdout_that_is_for_a_closed_stderr() -> None:
    done = shell("$C publish nope a 2>&-")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
@pytest.mark.parametrize(
    "command", ["token 42", "generate-keys", "generate-types", "doctor --url http://127.0.0.1:1"]
)
def test_a_full_disk_is_one_line_and_exit_code_74(command: str) -> None:
    done = shell(f"$C {command} > /dev/full")
    lines = [line for line in done.stderr.decode().splitlines() if ": note: " not in line]
    assert done.returncode == 74
    assert lines == ["synap-realtime: could not print: No space left on device"]


@pytest.mark.parametrize(
    "command",
    [
        "token 42",
        "generate-keys",
        "generate-types",
        "doctor --url http://127.0.0.1:1",
        "serve --help",
    ],
)
def test_a_reader_that_leaves_is_no_failure(command: str) -> None:
    done = shell(f"($C {command}; echo $? >&2) | true")
    assert done.stderr in (b"0\n", b"1\n")


def test_a_character_that_the_locale_lacks_is_escaped() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = shell("$C generate-keys", plain)
    assert done.returncode == 0
    assert b"\\u2026" in done.stdout
    assert shell("$C generate-keys --help", plain).returncode == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (r"printf '\xff' | LC_ALL=C.UTF-8 $C publish user_1 a -", "DATA: "),
        (r"""$C publish user_1 a "$(printf '{"x":"\xff"}')" """, "lone surrogate"),
        (r"""$C publish user_1 a --key "$(printf 'k\xff')" """, "--key: "),
        (r"""$C subscribe user_1 --url "$(printf 'http://\xff')" """, "--url: not a URL"),
        (r"""$C subscribe "$(printf 'user_\xff')" """, "ROOM: expected"),
    ],
)
def test_undecodable_input_is_a_one_line_error(command: str, said: str) -> None:
    done = shell(command)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr.decode()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("generate-types a:b", 1),
        ("generate-types --out x.ts", 1),
        ("generate-keys --out k.toml", 2),
        ("serve --port 0 --store sqlite:///x.db", 2),
    ],
)
def test_removed_working_directory_is_a_one_line_error(
    command: str, code: int, tmp_path: Path
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    done = shell(f"rmdir ../gone; $C {command}", cwd=folder)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1


def test_runs_without_a_home_and_without_any_variable() -> None:
    done = shell(f"env -i $C doctor {' '.join(NOBODY)}")
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("serve --port x", "--port (SYNAP_REALTIME_PORT): "),
        ("serve --prot 1", "No such option: --prot"),
        ("serv", "'serve'"),
        ("serve --port", "(see: synap-realtime serve --help)"),
        ("serve --log-level loud", "--log-level (SYNAP_REALTIME_LOG_LEVEL): "),
        ("serve --authorizer access", "(SYNAP_REALTIME_AUTHORIZER): expected module:function"),
        ("generate-keys --out /", "--out /: it is a directory"),
        ("publish", "Missing argument '"),
        ("subscribe user_1 --count 0", "'--count': "),
        ("token", "expected a user, --room"),
        ("token 42 --expires-in-s nan", "--expires-in-s: "),
        ("token 42 --expires-in-s=-5", "--expires-in-s: "),
        ("token 42 --room zzz", "--room: "),
        ("token 'a b'", "USER: "),
        ("publish user_1 a --status odd", "--status: "),
        ("publish user_1 a --url 127.0.0.1:8787", "--url: "),
        ("generate-types --out /nonexistent/x.ts", "--out: "),
    ],
)
def test_invalid_command_line_is_a_one_line_error_naming_the_option(
    arguments: str, said: str
) -> None:
    done = shell(f"$C {arguments}")
    text = done.stderr.decode()
    assert (done.returncode, done.stdout, len(text.splitlines())) == (2, b"", 1), text
    assert text.startswith("synap-realtime: ")
    assert said in text


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed, who may not read a file")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("serve --port 0 --keys-file secret", 2),
        ("serve --port 0 --tls-cert secret --tls-key secret", 2),
        ("serve --port 0 --store sqlite:///rooms.db", 2),
        ("generate-keys --out secret --rotate", 2),
        ("generate-keys --out new", 2),
        ("generate-types --out new", 2),
    ],
)
def test_file_that_the_user_may_not_use_is_a_one_line_error_naming_the_option(
    arguments: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "secret").touch(mode=0o600)
    tmp_path.chmod(0o755)  # directories above it are closed to the other user
    done = shell(f"setpriv --reuid 65534 --clear-groups $C {arguments}", cwd=tmp_path)
    text = done.stderr.decode()
    assert (done.returncode, len(text.splitlines())) == (code, 1), text
    assert re.search(r"--(keys-file|tls-cert|store|out)\b", text)
    assert re.search("Permission denied|not writable", text)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed, who may not read a file")
def test_doctor_reports_files_that_the_user_may_not_use(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(mode=0o600)
    tmp_path.chmod(0o755)
    arguments = f"--keys-file secret --store sqlite:///rooms.db {' '.join(NOBODY)}"
    done = shell(f"setpriv --reuid 65534 --clear-groups $C doctor {arguments}", cwd=tmp_path)
    failed = [line for line in done.stdout.decode().splitlines() if line.startswith("fail ")]
    assert [line.split()[1] for line in failed] == ["keys", "store", "network"]
    assert all("Permission denied; ch" in line or "(Permission denied);" in line
               for line in failed[:2])  # fmt: skip


def test_invalid_variable_is_named_instead_of_an_option() -> None:
    done = shell("$C publish user_1 a", {"REALTIME_URL": "127.0.0.1:8787"})
    assert done.stderr.startswith(b"synap-realtime: REALTIME_URL: expected http://")


def test_without_arguments_it_shows_the_help() -> None:
    done = shell("$C")
    assert done.returncode == 2
    assert b"Commands:" in done.stdout
