"""The key file of a room server: create it, rotate its keys, replace it atomically.

See README.md, "Keys". The file itself is described by :class:`server.auth.keyring.KeyFile`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import ConfigurationError
from .redaction import redacted

_PREVIOUS = re.compile(r"-previous(-[0-9]+)?$")
"""What the name of an API key ends with after a rotation, until it is pruned."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")  # a key of TOML that needs no quotes

ApiKey = str | Mapping[str, str]
"""A key, or a key and its scope."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """What a key file holds. Its repr shows no key.

    Attributes:
        token_secrets: newest first.
        jwks_urls: of identity providers.
        api_keys: by name.
    """

    token_secrets: tuple[str, ...] = field(repr=False)
    jwks_urls: tuple[str, ...] = field(default=(), repr=False)
    api_keys: Mapping[str, ApiKey] = field(default_factory=dict, repr=False)


def new_keys() -> KeySet:
    """A secret for tokens, and an API key ``jobs`` that may broadcast."""
    return KeySet((_new(),), (), {"jobs": _new()})


def rotated(keys: KeySet) -> KeySet:
    """Add a new secret before the others, and a new value for each API key.

    Nothing is revoked: the old secrets stay for tokens that have not expired, and the old value of
    an API key stays as ``NAME-previous`` for programs that do not have the new one yet.
    :func:`pruned` removes them.
    """
    current = {name: key for name, key in keys.api_keys.items() if not _PREVIOUS.search(name)}
    names = set(keys.api_keys)
    previous = {name: key for name, key in keys.api_keys.items() if name not in current}
    for name, key in current.items():
        free = _free_name(f"{name}-previous", names)
        names.add(free)
        previous[free] = key
    fresh: dict[str, ApiKey] = {
        name: _new() if isinstance(key, str) else {**key, "key": _new()}
        for name, key in current.items()
    }
    token_secrets = (_new(), *keys.token_secrets) if keys.token_secrets else ()
    return replace(keys, token_secrets=token_secrets, api_keys={**fresh, **previous})


def pruned(keys: KeySet) -> KeySet:
    """Remove the old keys: all secrets but the newest, and each ``NAME-previous``."""
    current = {name: key for name, key in keys.api_keys.items() if not _PREVIOUS.search(name)}
    return replace(keys, token_secrets=keys.token_secrets[:1], api_keys=current)


def to_toml(keys: KeySet) -> str:
    """Return the text of the file, with the application's environment as comments at its end."""
    lines = [
        "# Keys of the room server (serve --keys-file keys.toml). Keep them secret: the holder of",
        "# a token secret can impersonate every user.",
        "# To rotate: synap-realtime generate-keys --out keys.toml --rotate; give applications the",
        "# new ones (at the end); then synap-realtime generate-keys --out keys.toml --prune. The",
        "# server reads this file again when it changes.",
        f"token_secrets = {_list(keys.token_secrets)}",
        f"jwks_urls = {_list(keys.jwks_urls)}"
        if keys.jwks_urls
        else '# jwks_urls = ["https://id.example.com/.well-known/jwks.json"]',
        "",
        "[api_keys]",
        *(f"{_name(name)} = {_value(key)}" for name, key in keys.api_keys.items()),
    ]
    if "prometheus" not in keys.api_keys:
        lines.append('# prometheus = { key = "…", scope = "metrics" }')
    lines += ["", "# Of your application:"]
    if keys.token_secrets:
        lines.append(f"# REALTIME_TOKEN_SECRET={_remark(keys.token_secrets[0])}")
    lines += [
        f"# REALTIME_API_KEY={_remark(key if isinstance(key, str) else key['key'])}"
        + ("" if name == "jobs" else f"  ({_remark(name)})")
        for name, key in keys.api_keys.items()
        if not _PREVIOUS.search(name)
    ]
    return "\n".join(lines) + "\n"


def create(file: Path) -> None:
    """Write new keys to a file that does not exist yet.

    Raises:
        ConfigurationError: it exists, or cannot be written.
    """
    if os.path.lexists(file):
        raise ConfigurationError(
            f"--out {_shown(file)}: the file exists; replace its keys with --rotate, or choose "
            "another name"
        )
    _write(file, to_toml(new_keys()), status=None)


def change(file: Path, transform: Callable[[KeySet], KeySet]) -> tuple[KeySet, KeySet]:
    """Replace the keys of a file. Return the keys before and after.

    Comments of the file are not kept: they may repeat old keys.

    Raises:
        ConfigurationError: it is not a key file, or cannot be written. It is unchanged then.
    """
    target = Path(os.path.realpath(file))  # a link stays a link
    try:
        status = target.stat()
        before = _parse(target.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"--out {_shown(file)}: {error.strerror}; create it without --rotate and --prune"
        ) from None
    except (ValueError, TypeError, RecursionError):
        raise ConfigurationError(f"--out {_shown(file)}: no key file; it was not changed") from None
    after = transform(before)
    _write(target, to_toml(after), status)
    return before, after


def _parse(text: str) -> KeySet:
    """
    Raises:
        ValueError: it is no key file.
    """
    document: dict[str, Any] = tomllib.loads(text)
    keys = KeySet(
        tuple(document.pop("token_secrets", ())),
        tuple(document.pop("jwks_urls", ())),
        document.pop("api_keys", {}),
    )
    values: list[object] = [*keys.token_secrets, *keys.jwks_urls]
    for each in keys.api_keys.values():
        values += [each] if isinstance(each, str) else [each["key"], each.get("scope", "")]
        if not isinstance(each, str) and not set(each) <= {"key", "scope"}:
            raise ValueError("an API key has members that are not known")
    if document or not all(isinstance(value, str) for value in values) or not values:
        raise ValueError("it has other members, or none")
    return keys


def _write(file: Path, text: str, status: os.stat_result | None) -> None:
    """Replace a file atomically: a server that reads it meanwhile sees the old or the new content.

    Only its owner may read it, and its group if the group could read the old file.

    Args:
        status: of the file that it replaces; None: there must be none.

    Raises:
        ConfigurationError: it cannot be written, or was created meanwhile.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".keys-")  # mode 0600
        with open(descriptor, "w", encoding="utf-8") as opened:  # noqa: PTH123 - a descriptor
            if status is not None and os.name == "posix":
                mine = os.fstat(descriptor)
                if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, 0o600 | (status.st_mode & stat.S_IRGRP))
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        if status is None:
            os.link(temporary, file)  # fails if another was faster
        else:
            os.replace(temporary, file)  # noqa: PTH105
            temporary = None
        _flush_folder(file.parent)
    except OSError as error:
        raise ConfigurationError(f"--out {_shown(file)}: {error.strerror}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108


def _flush_folder(folder: Path) -> None:
    """Flush the directory entry, so that it survives a power failure."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _new() -> str:
    return secrets.token_urlsafe(32)


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _list(values: tuple[str, ...]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _value(key: ApiKey) -> str:
    if isinstance(key, str):
        return _text(key)
    return f"{{ {', '.join(f'{name} = {_text(value)}' for name, value in key.items())} }}"


def _remark(value: str) -> str:
    """Return a value for a comment. A line end in it would begin a new line of the file."""
    return value if value.isprintable() else "(as above)"


def _name(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _text(value: str) -> str:
    """A basic string of TOML: JSON's, but for the one control character that only JSON allows."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(file: Path) -> str:
    return redacted(str(file))
