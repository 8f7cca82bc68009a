"""Write the generated parts of the reference pages: ``python -m website.reference``.

A page has them between two comments. ``tests/docs/test_reference.py`` compares them with the code.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from annotated_types import Ge, Gt, Le

from synap_realtime.cli.app import app
from synap_realtime.cli.serve import default_text, descriptions_of
from synap_realtime.server.config import ENV_PREFIX, SECRETS, ServerSettings

from .pages import ROOT

OPTIONS = ROOT / "docs/reference/options.md"
COMMANDS = ROOT / "docs/reference/commands.md"
CALCULATOR = ROOT / "docs/operations/calculator.js"

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Address": ("host", "port", "tls_cert", "tls_key", "trusted_proxies", "allowed_origins"),
    "Processes": ("workers", "io_uring", "drain_timeout_s"),
    "Store and retention": (
        "store", "max_memory_bytes", "retention_count", "retention_s", "request_retention_s",
        "job_retention_s", "jobs_per_user",
    ),
    "Connections": ("idle_timeout_s", "ping_interval_s", "piece_interval_ms"),
    "Keys and tokens": (
        "keys_file", "api_keys", "token_secrets", "jwks_urls", "token_issuer", "token_audience",
        "token_leeway_s", "token_max_lifetime_s", "authorizer",
    ),
    "Logs and the admin page": ("log_level", "log_format", "admin"),
    "Limits": (
        "max_connections", "max_connections_per_user", "max_connections_per_room",
        "max_connections_per_address", "max_rooms", "new_connections_per_s", "publishes_per_s",
        "publish_bytes_per_s", "requests_per_s", "read_bytes_per_s", "client_messages_per_s",
        "max_pending_connections", "max_request_bytes", "max_response_bytes", "max_backlog_bytes",
        "max_caller_bytes",
    ),
}  # fmt: skip
"""The settings of the server, by the headings of the page."""

_HUGE = 2**53
_TEN_YEARS_S = 10 * 366 * 86_400
_PRICES = re.compile(r"(?<=/\* generated \*/).*?(?=/\* end \*/)", re.DOTALL)
_PART = re.compile(r"(?<=<!-- generated -->\n).*?(?=<!-- end -->)", re.DOTALL)


def options_page() -> str:
    """Return the tables of the server's settings."""
    return "".join(_options(heading, names) for heading, names in GROUPS.items())


def commands_page() -> str:
    """Return a section for each command."""
    root: Any = typer.main.get_command(app)
    return "".join("\n".join(_command(name, root.commands[name])) for name in sorted(root.commands))


def with_prices(script: str) -> str:
    """Return the script of the cost calculator with the prices of ``benchmarks/prices.toml``."""
    prices = tomllib.loads((ROOT / "benchmarks/prices.toml").read_text())
    return _PRICES.sub(lambda _: f" {json.dumps(prices)} ", script)


def replace_generated(text: str, part: str) -> str:
    """Return the text of a page with another generated part."""
    return _PART.sub(lambda _: f"\n{part}", text)


def _options(heading: str, names: Iterable[str]) -> str:
    rows = [
        f"\n## {heading}\n", "| option | default | values | meaning |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    descriptions = descriptions_of(ServerSettings)
    for name in names:
        field = ServerSettings.model_fields[name]
        option = name.replace("_", "-")
        shown = f"`--{option}`"
        if name in SECRETS:
            shown = f"`{ENV_PREFIX}{name.upper()}`"
        elif field.annotation is bool:
            shown += f", `--no-{option}`"
        default = default_text(name, field.default)
        rows.append(
            _row(
                shown,
                "" if default is None else f"`{default.partition(' (')[0]}`{_unit(default)}",
                _range(field.metadata),
                descriptions[name],
            )
        )
    return "\n".join(rows) + "\n"


def _unit(default: str) -> str:
    _, found, unit = default.partition(" (")
    return f" ({unit}" if found else ""


def _range(metadata: Iterable[object]) -> str:
    least = most = ""
    for each in metadata:
        match each:
            case Ge(ge=bound):
                least = f"{bound:,}"
            case Gt(gt=bound):
                least = f"more than {bound:,}"
            case Le(le=bound) if isinstance(bound, int | float) and bound < _HUGE:
                most = "10 years" if bound == _TEN_YEARS_S else f"{bound:,}"
    if least and most:
        return f"{least} to {most}"
    return f"{least} or more" if least else ""


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"\n## synap-realtime {name}\n"
    for paragraph in (command.help or "").strip().split("\n\n"):
        yield " ".join(paragraph.replace("\f", "").split()) + "\n"
    if name == "serve":
        yield "Its options: [Server options](options.md).\n"
        return
    yield from ("| argument or option | meaning |", "| --- | --- |")
    for each in command.params:
        yield _row(_parameter(each), _help(each))
    yield ""


def _parameter(each: Any) -> str:
    if each.param_type_name == "argument":
        name = f"`{(each.metavar or each.name).upper().strip('[]{}')}`"
        return name if each.required else f"{name}, optional"
    return ", ".join(f"`{option}`" for option in each.opts)


def _help(each: Any) -> str:
    text = " ".join((each.help or "").split())
    has_default = isinstance(each.default, str | int) and not isinstance(each.default, bool)
    return f"{text} Default: `{each.default}`." if has_default and "Default:" not in text else text


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def main() -> None:
    for path, part in ((OPTIONS, options_page()), (COMMANDS, commands_page())):
        _rewrite(path, part)
    CALCULATOR.write_text(with_prices(CALCULATOR.read_text()))


def _rewrite(path: Path, part: str) -> None:
    path.write_text(replace_generated(path.read_text(), part))


if __name__ == "__main__":
    main()
