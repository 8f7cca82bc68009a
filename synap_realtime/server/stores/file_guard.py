"""Notice changes that other programs make to a file that this process has open."""

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

HELD: set[tuple[int, int]] = set()
"""Devices and inodes of the databases that this process has open: its own locks do not stop it."""


class Change(Enum):
    """What happened to a file. The value completes "the file was …"."""

    DELETED = "deleted"
    REPLACED = "replaced"
    TRUNCATED = "truncated"
    OVERWRITTEN = "overwritten"


class GuardedFile:
    """A file that only this process writes.

    It holds a descriptor. POSIX locks of a process end when it closes *any* descriptor of the file,
    so close a database's only after its connections.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """
        Args:
            create: make the file if it is not there, for its owner only.

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
        """Accept the present state of the file as correct."""
        status = os.fstat(self._descriptor)
        self.size, self._modified_ns = status.st_size, status.st_mtime_ns
        self._head = self._read_head()

    def find_change(self, *, own_append: bool = False) -> Change | None:
        """Return what another program did to the file since it was accepted.

        Args:
            own_append: this process has written at the file's end since.

        A touched file that still begins with the same bytes is accepted as it is.

        Raises:
            OSError: it cannot be told.
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
    """Describe what is at a path, if it is anything but a regular file.

    Raises:
        OSError: it cannot be told.
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
    return None if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "no regular file")


def find_network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The kind of network file system that a path is on; None if it is on none, or not known.

    Args:
        mounts: the content of Linux's ``/proc/self/mounts``, see proc_pid_mounts(5).
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return None
    found, depth = None, -1
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        # Blanks are written as octal numbers.
        point = Path(place.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if path.is_relative_to(point) and len(point.parts) >= depth:  # the last one is on top
            found, depth = kind, len(point.parts)
    return found if found in _NETWORK_FILE_SYSTEMS else None


def find_user(path: Path) -> int | None:
    """The id of a process that has a database open, by its lock; None if none has.

    0: one has, but its id is not known here (another container, another machine).

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if (status.st_dev, status.st_ino) in HELD:
        return os.getpid()  # do not open it: closing it again would end the lock
    return _find_lock_holder(path)


def _find_lock_holder(path: Path) -> int | None:
    if sys.platform == "win32":
        return None
    darwin = sys.platform == "darwin"
    # struct flock: the order of its members is the platform's.
    layout = "qqihh" if darwin else "hhqqi"
    asked = (0, 0, 0, fcntl.F_WRLCK, 0) if darwin else (fcntl.F_WRLCK, 0, 0, 0, 0)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, *asked))
    finally:
        os.close(descriptor)
    found = struct.unpack(layout, answer)
    kind, pid = (found[3], found[2]) if darwin else (found[0], found[4])
    return None if kind == fcntl.F_UNLCK else max(pid, 0)
