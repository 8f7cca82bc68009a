"""Detect changes that other programs make to a file that this process has open."""

from __future__ import annotations

import os
import stat
import struct
import sys
from enum import Enum
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_HEAD_BYTES = 100  # of SQLite's database file; its log's header is shorter

_NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "lustre"}
    | {"nfs", "nfs4", "smb3", "smbfs"}
)

OPEN_FILES: set[tuple[int, int]] = set()
"""Device and inode of the databases that this process has open. File locks do not exclude the
process that holds them."""


class Change(Enum):
    """What happened to a file. The value completes "the file was …"."""

    DELETED = "deleted"
    REPLACED = "replaced"
    TRUNCATED = "truncated"
    OVERWRITTEN = "overwritten"


class GuardedFile:
    """A file that only this process should write.

    It holds a descriptor. A process loses its POSIX locks on a file when it closes *any* descriptor
    of it, so close this one only after the connections to the database.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """
        Args:
            path: the file.
            create: create the file if it does not exist, accessible for its owner only.

        Raises:
            OSError: it cannot be opened for reading and writing.
        """
        flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_CLOEXEC", 0)
        self._path = path
        self._descriptor = os.open(path, flags, 0o600)
        status = os.fstat(self._descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self.links = status.st_nlink
        self.accept()

    def accept(self) -> None:
        """Take the present state of the file as the expected one."""
        status = os.fstat(self._descriptor)
        self.size, self._modified_ns = status.st_size, status.st_mtime_ns
        self._head = self._read_head()

    def find_change(self, *, own_append: bool = False) -> Change | None:
        """Return what another program has done to the file since :meth:`accept`.

        A file with a new modification time that still begins with the same bytes is accepted.

        Args:
            own_append: this process has appended to the file since.

        Raises:
            OSError: the file cannot be examined.
        """
        try:
            status = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return Change.DELETED
        if (status.st_dev, status.st_ino) != self.identity:
            return Change.REPLACED
        if status.st_size < self.size:
            return Change.TRUNCATED
        if not own_append and (status.st_size, status.st_mtime_ns) != (
            self.size,
            self._modified_ns,
        ):
            if self._read_head() != self._head:
                return Change.OVERWRITTEN
            self.accept()
        return None

    def close(self) -> None:
        os.close(self._descriptor)

    def _read_head(self) -> bytes:
        if sys.platform == "win32":
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            return os.read(self._descriptor, _HEAD_BYTES)
        return os.pread(self._descriptor, _HEAD_BYTES, 0)


def describe_irregular(path: Path) -> str | None:
    """Describe what is at a path. Return None for a regular file and for nothing.

    Raises:
        OSError: the path cannot be examined.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return None if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "not a regular file")


def find_network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """Return the type of the network file system that holds a path.

    Args:
        path: the file.
        mounts: the content of Linux's ``/proc/self/mounts``, see proc_pid_mounts(5).

    Returns:
        None if the file system is local or unknown.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return None
    found, depth = None, -1
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        # Spaces are escaped as octal numbers.
        point = Path(place.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if (
            path.is_relative_to(point) and len(point.parts) >= depth
        ):  # later mounts cover earlier ones
            found, depth = kind, len(point.parts)
    return found if found in _NETWORK_FILE_SYSTEMS else None


def find_lock_holder(path: Path) -> int | None:
    """Return the id of the process that holds the lock of a database.

    Returns:
        None if no process holds it; 0 if the id is not known here (another container or machine).

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if (status.st_dev, status.st_ino) in OPEN_FILES:
        return os.getpid()  # opening and closing it would release the lock
    return _query_lock(path)


def _query_lock(path: Path) -> int | None:
    if sys.platform == "win32":
        return None
    darwin = sys.platform == "darwin"
    # struct flock: the order of the members depends on the platform.
    layout = "qqihh" if darwin else "hhqqi"
    query = (0, 0, 0, fcntl.F_WRLCK, 0) if darwin else (fcntl.F_WRLCK, 0, 0, 0, 0)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *query))
    finally:
        os.close(descriptor)
    found = struct.unpack(layout, answer)
    kind, pid = (found[3], found[2]) if darwin else (found[0], found[4])
    return None if kind == fcntl.F_UNLCK else max(pid, 0)
