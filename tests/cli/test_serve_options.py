"""The settings of the server have one source: ``ServerSettings``.

Its fields make the options of ``serve`` and the environment variables. The documents name only
these, with the same defaults.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from synap_realtime.cli.app import app
from synap_realtime.cli.serve import default_text, descriptions_of
from synap_realtime.cli.start import read_arguments
from synap_realtime.doctor.context import PREFIX
from synap_realtime.server.config import ENV_PREFIX, SECRETS, ServerSettings, load_settings

ROOT = Path(__file__).parents[2]
FIELDS = {name: field for name, field in ServerSettings.model_fields.items() if name not in SECRETS}

EXAMPLES = {
    "host": "::1", "tls_cert": "chain.pem", "tls_key": "key.pem", "store": "sqlite:///rooms.db",
    "allowed_origins": "https://a.example,https://b.example", "log_level": "debug",
    "log_format": "json", "keys_file": "keys.toml", "jwks_urls": "https://id.example/jwks.json",
    "token_issuer": "https://id.example", "token_audience": "rooms", "authorizer": "access:rule",
    "trusted_proxies": "10.0.0.0/8,::1", "max_memory_bytes": "2097152",
}  # fmt: skip


def options_of(command: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    context = typer.Context(group.commands[command])
    params = group.commands[command].get_params(context)
    return {param.name: param for param in params if param.name != "help"}


def parsed(*arguments: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    params: dict[str, Any] = group.commands["serve"].make_context("serve", [*arguments]).params
    return params


def test_each_setting_but_secrets_is_an_option() -> None:
    options = options_of("serve")
    assert list(options) == list(FIELDS)
    for name, option in options.items():
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert f"[env: SYNAP_REALTIME_{name.upper()}]" in option.help


@pytest.mark.parametrize("name", FIELDS)
def test_option_and_variable_set_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    option = f"--{name.replace('_', '-')}"
    if isinstance(FIELDS[name].default, bool):
        value = "false" if FIELDS[name].default else "true"
        arguments = [f"--no-{option[2:]}" if value == "false" else option]
    else:
        value = EXAMPLES.get(name, "7")
        arguments = [option, value]
    by_option = load_settings(**parsed(*arguments))
    assert getattr(by_option, name) != FIELDS[name].default
    for words in (arguments, ["=".join(arguments)], [*arguments, *arguments]):
        given = read_arguments(words)
        assert given is not None
        assert load_settings(**given) == by_option
    monkeypatch.setenv(f"SYNAP_REALTIME_{name.upper()}", value)
    assert load_settings() == by_option


@pytest.mark.parametrize(
    "words",
    [
        ["--help"], ["--port", "1", "--help"], ["--port"], ["--no-port", "1"], ["--no-port=1"],
        ["--admin=1"], ["--no-admin=1"], ["--nonsense", "1"], ["--api-keys", "a=b"], ["--"], ["="],
        ["--no_admin"], ["--token_leeway_s", "1"], ["-port", "1"], ["port", "1"], [""], ["1"],
        ["--", "--admin"], ["--no-"], ["--token-secrets=" + 40 * "s"], ["--admin", "1"],
    ],
)  # fmt: skip
def test_typer_reports_what_is_wrong_with_a_command_line(words: list[str]) -> None:
    assert read_arguments(words) is None


@pytest.mark.parametrize("name", ServerSettings.model_fields)
def test_help_is_whole_sentences_with_the_unit(name: str) -> None:
    text = descriptions_of(ServerSettings)[name]
    assert re.fullmatch(r"[A-Z].*[^.]\.", text)
    if name.endswith("_per_s"):
        assert text.endswith("per second.")
    elif name.endswith("_s"):
        assert "in seconds." in text
    elif name.endswith("_bytes"):
        assert "in bytes." in text


def test_doctor_has_settings_with_the_same_variables() -> None:
    assert PREFIX == ENV_PREFIX
    shared = {name: option for name, option in options_of("doctor").items() if name in FIELDS}
    assert len(shared) > 3
    for name, option in shared.items():
        assert option.help.endswith(f"[env: SYNAP_REALTIME_{name.upper()}]")


LIMITS = re.findall(
    r"^\|[^|]*\| `--([a-z-]+)` \| ([^|]*) \|", (ROOT / "PROTOCOL.md").read_text(), re.MULTILINE
)


def test_table_of_limits_is_complete() -> None:
    names = {name for name in FIELDS if name.startswith("max_") or name.endswith("_per_s")}
    listed = {option.replace("-", "_") for option, _ in LIMITS}
    assert listed == names | {"token_max_lifetime_s"}


@pytest.mark.parametrize(("option", "default"), LIMITS, ids=[option for option, _ in LIMITS])
def test_table_of_limits_has_the_defaults(option: str, default: str) -> None:
    found = re.match(r"([\d,]+)( MiB)?", default)
    assert found is not None
    number = int(found[1].replace(",", "")) * (2**20 if found[2] else 1)
    assert number == FIELDS[option.replace("-", "_")].default


PAGES = [
    *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("synap_realtime/**/*.py"),
    *(page for page in ROOT.glob("deploy/**/*") if page.is_file()),
]  # fmt: skip
NOT_SETTINGS = {
    "drain",  # the typing error that docs/operations.md shows
    *("domain", "group", "tls_folder"),  # of deploy/letsencrypt-hook.sh
}


def test_documents_and_messages_name_only_variables_that_exist() -> None:
    named = {
        (str(page.relative_to(ROOT)), name.lower())
        for page in PAGES
        for name in re.findall(r"\bSYNAP_REALTIME_([A-Z][A-Z_]*[A-Z])\b", page.read_text())
    }
    assert len(named) > 30
    known = {*ServerSettings.model_fields, *NOT_SETTINGS}
    assert {(page, name) for page, name in named if name not in known} == set()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_request_bytes", "67108864 (64 MiB)"),
        ("token_max_lifetime_s", "7776000 (90 days)"),
        ("retention_s", "86400 (1 day)"),
        ("drain_timeout_s", "5"),
        ("io_uring", "on"),
        ("admin", "off"),
        ("log_level", "info"),
        ("keys_file", None),
    ],
)
def test_default_is_readable(name: str, text: str | None) -> None:
    assert default_text(name, FIELDS[name].default) == text
