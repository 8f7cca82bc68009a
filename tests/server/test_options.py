"""Invalid values of an option of ``serve``: one error that names the option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from synap_realtime.errors import ConfigurationError
from synap_realtime.server import serve as program
from synap_realtime.server.config import ServerSettings, load_settings
from tests.support.waits import SetWaits

VALUES = (
    "", " ", "x", "-1", "99999999999999999999999", "1e300", "nan", "inf", "é☃", "a\nb", "\udcff",
    "/", "/nonexistent/x", "a,b", "x:y", "os:getcwd", "https://[", "http://", "sqlite:///", "*",
)  # fmt: skip
FREE_TEXT = ("token_issuer", "token_audience")
OPTIONS = [name for name in ServerSettings.model_fields if name not in FREE_TEXT]
SECRET = ("token_secrets", "api_keys")


async def attempt(**given: str) -> str:
    """Start a server, stop it immediately, and return the error about its settings."""
    base = {"port": "0", "drain_timeout_s": "0", **given}
    try:
        await program.serve(load_settings(**base))
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def _stops_immediately(
    monkeypatch: pytest.MonkeyPatch, set_waits: SetWaits, tmp_path: Path
) -> None:
    async def stopped() -> None:
        pass

    monkeypatch.setattr(program, "until_stopped", stopped)
    set_waits(serve_linger_s=0)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", OPTIONS)
async def test_no_value_of_an_option_is_more_than_a_configuration_error_that_names_it(
    name: str,
) -> None:
    for value in VALUES:
        said = await attempt(**{name: value})
        if said and name not in SECRET:
            assert re.match(rf"--{name.replace('_', '-')}\b|could not listen on ", said), value


@pytest.mark.parametrize(
    "name", ["idle_timeout_s", "retention_s", "request_retention_s", "drain_timeout_s"]
)
async def test_refuses_seconds_that_are_no_time(name: str) -> None:
    for value in ("nan", "inf", "1e300", "-1"):
        assert await attempt(**{name: value}), value


@pytest.mark.parametrize("name", ["token_secrets", "api_keys", "jwks_urls"])
@pytest.mark.parametrize("value", ["", " ", ",", " , "])
async def test_an_empty_variable_makes_no_server_without_keys(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"SYNAP_REALTIME_{name.upper()}", value)
    said = await attempt()
    assert f"SYNAP_REALTIME_{name.upper()}" in said
    assert "expected at least one" in said


@pytest.mark.parametrize("name", FREE_TEXT)
async def test_an_empty_claim_is_refused(name: str) -> None:
    assert name.replace("_", "-") in await attempt(**{name: ""})


@pytest.mark.parametrize("text", ["raise ValueError('odd')", "def (", "import sys; sys.exit(3)"])
@pytest.mark.parametrize("option", ["may", "store"])
async def test_a_module_that_cannot_be_imported_is_one_error(
    text: str, option: str, tmp_path: Path
) -> None:
    module = f"odd_{option}_{abs(hash(text))}"
    (tmp_path / f"{module}.py").write_text(text)
    said = await attempt(**{option: f"{module}:rule"})
    assert said.startswith(f"--{option} (SYNAP_REALTIME_{option.upper()}): ")
