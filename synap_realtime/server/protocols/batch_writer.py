"""The sockets of one room, which are written to together: by io_uring, or one after the other."""

from __future__ import annotations

import os
from array import array
from typing import Generic, Protocol, TypeVar

from .io_uring import ENTRY_BYTES, LENGTH_AT, MAX_FRAME_BYTES, IoUring

IO_URING_MIN_SOCKETS = 16
"""For fewer, io_uring costs more than it saves."""

_FIRST = 16  # places that a block has


class Member(Protocol):
    """
    Attributes:
        place: where in its fan it is; the fan's own.
    """

    index: int


M = TypeVar("M", bound=Member)


class BatchWriter(Generic[M]):
    """Sockets that get the same frames. To add one costs the same in any room, and so does to
    discard one."""

    def __init__(self, ring: IoUring | None = None) -> None:
        """
        Args:
            ring: None: they are written to one after the other.
        """
        self._members: list[M] = []
        self._descriptors: list[int] = []
        self._ring = ring
        self._block = memoryview(b"")  # an entry for each, made before there is something to send
        self._lengths = self._block
        self._length = 0  # in all entries

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: M, descriptor: int) -> None:
        """
        Args:
            descriptor: of its socket, which does not block. Nothing waits to be written there, and
                it stays open as long as the member is here.
        """
        member.index = len(self._members)
        self._members.append(member)
        self._descriptors.append(descriptor)
        self._write_sqe(member.index, descriptor)

    def discard(self, member: M) -> None:
        """Take one out that is there; the last one gets its place."""
        last = self._members.pop()
        descriptor = self._descriptors.pop()
        if last is not member:
            last.index = member.index
            self._members[last.index] = last
            self._descriptors[last.index] = descriptor
            self._write_sqe(last.index, descriptor)

    def write(self, frame: bytes) -> list[tuple[M, int]]:
        """Write to all, as far as they take it now.

        Returns:
            Those who did not take all of it, each with how many bytes it took, or -1 if its peer
            has gone. Nobody is out of the fan by that.
        """
        begin = 0
        short: list[tuple[int, int]] = []
        ring, size, members = self._ring, len(frame), self._members
        if ring is not None and len(members) >= IO_URING_MIN_SOCKETS and size <= MAX_FRAME_BYTES:
            if size != self._length:
                self._length = size
                self._lengths[:] = array("I", [size]) * len(self._lengths)
            begin, short = ring.send(self._block, 0, len(members), frame)
        if begin < len(members):
            self._write_each(begin, frame, short)
        return [(members[place], taken) for place, taken in short]

    def _write_each(self, begin: int, frame: bytes, short: list[tuple[int, int]]) -> None:
        write, size = os.write, len(frame)
        for place, descriptor in enumerate(self._descriptors[begin:], begin):
            try:
                taken = write(descriptor, frame)
            except BlockingIOError:
                taken = 0
            except OSError:
                taken = -1
            if taken != size:
                short.append((place, taken))

    def _write_sqe(self, place: int, descriptor: int) -> None:
        if self._ring is None:
            return
        if place * ENTRY_BYTES >= len(self._block):
            self._grow()
        self._ring.write_sqe(self._block, place, descriptor, self._length)

    def _grow(self) -> None:
        entries = self._block.tobytes()
        self._block = memoryview(bytearray(entries + bytes(len(entries) or _FIRST * ENTRY_BYTES)))
        self._lengths = self._block.cast("I")[LENGTH_AT // 4 :: ENTRY_BYTES // 4]
