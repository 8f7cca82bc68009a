"""Small working projects: a job, its web app with a page, the room server's settings, and tests.

Each folder here is a project; ``common`` is a part of all of them. ``synap-realtime init`` writes
them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from .. import __version__
from ..errors import ConfigurationError
from ..extras import installed_from

_HERE = Path(__file__).parent
_RENAMED = {"env.example": ".env.example", "gitignore": ".gitignore"}
"""Files whose names would mean something where the package is built."""

_FILLED = ("env.example", "requirements.txt")
"""Files with ``{names}`` in place of values."""

_EXAMPLES = {
    "api_key": "a-long-random-key",
    "token_secret": "a-secret-of-at-least-32-bytes-that-only-the-servers-know",
    "session_secret": "another-long-random-secret",
}


class Template(StrEnum):
    """The projects."""

    FASTAPI_CELERY = "fastapi-celery"
    FASTAPI_INNGEST = "fastapi-inngest"
    DJANGO_CELERY = "django-celery"


def create_project(template: Template, folder: Path) -> list[Path]:
    """Write a project. Return its files, relative to the folder.

    ``.env`` has new secrets and mode 0600; ``.env.example`` has the same names without secrets.
    ``requirements.txt`` names the file that this package was installed from, if it was one.

    Args:
        folder: a new or an empty folder.

    Raises:
        ConfigurationError: the folder is not empty or not a folder, or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            problem = "is not empty" if folder.is_dir() else "is not a folder"
            raise ConfigurationError(
                f"FOLDER: {folder} {problem}; name a folder that does not exist yet"
            )
        written = []
        for name, content in _files(template):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            # Only the owner may read secrets, from the moment that the file exists.
            mode = 0o600 if name == ".env" else 0o666
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(file, flags, mode), "wb") as opened:
                opened.write(content)
            written.append(Path(name))
    except OSError as error:
        raise ConfigurationError(f"FOLDER: cannot write {folder}: {error.strerror}") from error
    return sorted(written)


def _files(template: Template) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of a project's files."""
    sources: dict[str, Path] = {}
    for root in (_HERE / "common", _HERE / template.value):
        for path in root.rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                sources[path.relative_to(root).as_posix()] = path
    for name, path in sources.items():
        content = path.read_bytes()
        if name in _FILLED:
            yield _RENAMED.get(name, name), _fill(content, {**_EXAMPLES, **_origin()})
        else:
            yield _RENAMED.get(name, name), content
    yield ".env", _fill(sources["env.example"].read_bytes(), _new_secrets())


def _origin() -> dict[str, str]:
    """Return where pip gets this package: from the same file, else from the package index."""
    released = f">={__version__}"
    if (url := installed_from()) is None:
        return {"comment": "", "version": released}
    comment = (
        f"# A file of this machine. With a release of the package, write {released} instead.\n"
    )
    return {"comment": comment, "version": f" @ {url}"}


def _new_secrets() -> dict[str, str]:
    names = ("api_key", "token_secret", "session_secret")
    return {name: secrets.token_urlsafe(32) for name in names}


def _fill(content: bytes, values: Mapping[str, str]) -> bytes:
    return content.decode().format_map(values).encode()
