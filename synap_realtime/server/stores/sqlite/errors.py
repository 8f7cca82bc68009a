"""Explain errors of SQLite and of the file system to an operator."""

from __future__ import annotations

import errno
import sqlite3

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

DATABASE_ERRORS = (sqlite3.Error, TypeError)
"""Raised for a file that SQLite cannot read. TypeError: a required row is missing."""


def describe_problem(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the primary result code
    match error:
        case IsADirectoryError():
            return "is a directory; choose another path: a file in it, such as rooms.db"
        case PermissionError():
            return "is not writable for this user; choose another path, or change its mode"
        case OSError() if error.errno not in _NO_SPACE:
            return f"cannot be used ({error.strerror}); choose another path"
    if code == sqlite3.SQLITE_NOTADB:
        return "is not a SQLite database; choose another path"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR) or isinstance(error, TypeError):
        what = "a row is missing" if isinstance(error, TypeError) else error
        return f"is damaged ({what}); restore a copy of it, or choose another path"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"cannot be written ({error}), nor a file beside it; choose another path"
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in _NO_SPACE:
        return "cannot be created: its disk, or the quota of this user, is full; free space"
    if code == sqlite3.SQLITE_IOERR:
        return f"cannot be used: its disk reports an error ({error}); check the system's log"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "is locked by another program; end that program, or choose another path"
    return f"cannot be used ({error}); choose another path"
