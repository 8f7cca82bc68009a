"""Create the key file of a room server, and rotate its keys.

See docs/server.md, "Keys and tokens". :class:`server.auth.keys.KeyFile` describes the file.
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

from ..errors import ConfigurationError
from ..redaction import redacted

_PREVIOUS = re.compile(r"-previous(-[0-9]+)?$")
"""The suffix of the name of an API key after a rotation, until it is pruned."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")  # a TOML key without quotes

ApiKey = str | Mapping[str, str]
"""A key, or a mapping with the key and its scope."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The content of a key file. The repr shows no key.

    Attributes:
        token_secrets: the token secrets, newest first.
        jwks_urls: the JWK sets of identity providers.
        api_keys: the API keys by name.
    """

    token_secrets: tuple[str, ...] = field(repr=False)
    jwks_urls: tuple[str, ...] = field(default=(), repr=False)
    api_keys: Mapping[str, ApiKey] = field(default_factory=dict, repr=False)


def new_keys() -> KeySet:
    """Return a new token secret, and a new API key ``jobs`` with the scope ``broadcast``."""
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
        "# new keys (below); then synap-realtime generate-keys --out keys.toml --prune. The",
        "# server reloads this file when it changes.",
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
    lines += ["", "# Environment of your application:"]
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
        ConfigurationError: the file exists, or cannot be written.
    """
    if file.is_dir():
        raise ConfigurationError(
            f"--out {_shown(file)}: it is a directory; name a file in it, such as keys.toml"
        )
    if os.path.lexists(file):
        raise ConfigurationError(
            f"--out {_shown(file)}: the file exists; replace its keys with --rotate, or choose "
            "another name"
        )
    _write(file, to_toml(new_keys()), status=None)


def change(file: Path, transform: Callable[[KeySet], KeySet]) -> tuple[KeySet, KeySet]:
    """Replace the keys of a file. Return the keys before and after.

    Comments of the file are not kept, because they may repeat old keys.

    Raises:
        ConfigurationError: it is not a key file, or cannot be written. It is then unchanged.
    """
    target = Path(os.path.realpath(file))  # do not replace a symbolic link
    try:
        status = target.stat()
        before = _parse(target.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"--out {_shown(file)}: there is no such file; create it without --rotate and --prune"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"--out {_shown(file)}: {_reason(error)}") from None
    except (ValueError, TypeError, RecursionError):
        raise ConfigurationError(
            f"--out {_shown(file)}: not a key file; it was not changed"
        ) from None
    after = transform(before)
    _write(target, to_toml(after), status)
    return before, after


def _parse(text: str) -> KeySet:
    """Parse a key file.

    Raises:
        ValueError: it is not a key file.
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
            raise ValueError("an API key has unknown members")
    if document or not all(isinstance(value, str) for value in values) or not values:
        raise ValueError("unknown members, or no keys")
    return keys


def _write(file: Path, text: str, status: os.stat_result | None) -> None:
    """Replace a file atomically, so that a concurrent reader sees the old or the new content.

    The owner can read the new file, and the group if it could read the old file.

    Args:
        status: the status of the file that it replaces; None if the file must not exist.

    Raises:
        ConfigurationError: it cannot be written, or was created concurrently.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".keys-")  # mode 0600
        with open(descriptor, "w", encoding="utf-8") as opened:  # noqa: PTH123 - a descriptor
            if status is not None and os.name == "posix":
                new = os.fstat(descriptor)
                if (new.st_uid, new.st_gid) != (status.st_uid, status.st_gid):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, 0o600 | (status.st_mode & stat.S_IRGRP))
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        if status is None:
            os.link(temporary, file)  # fails if the file was created concurrently
        else:
            os.replace(temporary, file)  # noqa: PTH105
            temporary = None
        _flush_folder(file.parent)
    except OSError as error:
        raise ConfigurationError(f"--out {_shown(file)}: {_reason(error)}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108


def _reason(error: OSError) -> str:
    """Return the problem of a path, and how to fix it if the user can."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "there is no such directory; create it first"
        case FileExistsError():
            return "another program has just created it"
        case PermissionError():
            return f"{error.strerror}; choose another path, or change its mode or owner"
    return error.strerror or str(error)


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
    """Encode a basic string of TOML: as JSON, except for DEL, which only JSON allows unescaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _shown(file: Path) -> str:
    return redacted(str(file))
