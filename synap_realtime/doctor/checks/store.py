"""Check the store of the rooms, without changing anything or disturbing a running server."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from ...errors import ConfigurationError
from ...server.stores import check_shared, is_own, parse_store_url
from ...server.stores.sqlite.database import DATABASE_ERRORS, has_tables
from ...server.stores.sqlite.file_guard import find_lock_holder
from ..context import CheckContext
from ..finding import Finding
from ..redis_store import check_redis
from ..timeouts import TIMEOUT_S, run_in_thread

FEW_BYTES = 1024**3
"""With less free space, the operator should free some."""

TOO_FEW_BYTES = 64 * 1024**2
"""With less free space, publishes may fail within the hour."""

_ELSEWHERE = "choose another path with --store (SYNAP_REALTIME_STORE)"


async def check_store(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check what a server would find if it started now."""
    settings = context.settings
    if settings is None:
        return
    if is_own(settings.store):
        own = "a custom store is not checked; the round trip tests it"
        yield Finding("ok", "store", f"{settings.store}: {own}")
        return
    try:
        if settings.workers > 1:
            check_shared(settings.store)
        scheme, name = parse_store_url(settings.store)
    except ConfigurationError as error:
        yield Finding("fail", "store", str(error), "correct it, then run doctor again")
        return
    match scheme:
        case "memory":
            found = "memory: a restart of the server loses the rooms' notifications"
            yield Finding("ok", "store", found)
        case "sqlite":
            async for finding in _check_file(Path(name)):
                yield finding
        case _:
            async for finding in check_redis(name):
                yield finding


async def _check_file(path: Path) -> AsyncGenerator[Finding]:
    try:
        findings = await run_in_thread(lambda: _inspect(path))
    except TimeoutError:
        yield Finding("fail", "store", f"the disk of {path} does not respond", _ELSEWHERE)
    except OSError as error:  # the user may not look into a directory above
        yield Finding("fail", "store", f"{path} cannot be used ({error.strerror})", _ELSEWHERE)
    else:
        for finding in findings:
            yield finding


def _inspect(path: Path) -> list[Finding]:
    try:
        path = path.resolve()  # as the server does: the lock file is beside the file itself
    except (OSError, RuntimeError):
        return [Finding("fail", "store", f"{path} is a broken link", _ELSEWHERE)]
    folder = path.parent
    if not folder.is_dir():
        return [
            Finding(
                "fail",
                "store",
                f"directory {folder} does not exist",
                f"mkdir -p {folder} (a path from the root has four slashes: sqlite:////var/…)",
            )
        ]
    if not _may(folder, os.W_OK | os.X_OK):
        found = f"this user may not write in {folder}, where the log is beside the file"
        return [Finding("fail", "store", found, f"{_ELSEWHERE}, or chown the directory")]
    return [_inspect_file(path), rate_space(shutil.disk_usage(folder).free, folder)]


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def rate_space(free_bytes: int, folder: Path) -> Finding:
    """Rate the free space."""
    found = f"{free_bytes / 1024**3:.1f} GiB free in {folder}"
    if free_bytes >= FEW_BYTES:
        return Finding("ok", "disk space", found)
    found = f"{free_bytes / 1024**2:.0f} MiB free in {folder}"
    if free_bytes >= TOO_FEW_BYTES:
        return Finding("warn", "disk space", found, "free some space, or lower --retention-s")
    return Finding("fail", "disk space", found, "free some space: publishing fails on a full disk")


def _inspect_file(path: Path) -> Finding:
    try:
        if not path.exists():
            return Finding("ok", "store", f"{path} does not exist yet; the server creates it")
        if not path.is_file():
            return Finding("fail", "store", f"{path} is not a file", _ELSEWHERE)
        if not _may(path, os.R_OK | os.W_OK):
            found = f"this user may not read and write {path}"
            return Finding("fail", "store", found, f"{_ELSEWHERE}, or chown the file")
        if path.stat().st_nlink > 1:
            return Finding(
                "fail", "store", f"{path} has more than one name", "remove one (hard link)"
            )
        if find_lock_holder(path) is not None:
            return Finding("ok", "store", f"{path} is in use by a running server; not checked")
        return _inspect_contents(path)
    except OSError as error:
        return Finding("fail", "store", f"{path} cannot be used ({error.strerror})", _ELSEWHERE)


def _inspect_contents(path: Path) -> Finding:
    # Immutable mode creates no files. After a crash there is a log, which belongs to the store.
    log = Path(f"{path}-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "mode=ro&immutable=1"
    deadline = time.monotonic() + TIMEOUT_S / 2
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True)) as db:
            if not has_tables(db, path):
                return Finding("ok", "store", f"{path} is empty; the server creates its tables")
            db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0]
            db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except ConfigurationError as error:
        return Finding("fail", "store", str(error), "correct it, then run doctor again")
    except DATABASE_ERRORS as error:
        # A server that has started since writes while we read.
        if find_lock_holder(path) is not None:
            return Finding("ok", "store", f"{path} is in use by a server that has just started")
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
            found = f"{path} opens; it is too large for a check in {TIMEOUT_S / 2:g} s"
            return Finding("ok", "store", found)
        found = str(error)
    if found != "ok":
        shown = f"{path} is damaged, or not a room store ({found})"
        return Finding("fail", "store", shown, f"restore a backup, or {_ELSEWHERE}")
    return Finding("ok", "store", f"{path} opens, and its quick check found no errors")


CHECKS = (check_store,)
