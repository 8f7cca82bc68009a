"""Write one frame to many sockets, with io_uring or with one system call per socket."""

from __future__ import annotations

import os
from array import array
from typing import Generic, Protocol, TypeVar

from .io_uring import ENTRY_BYTES, LENGTH_AT, MAX_FRAME_BYTES, IoUring

IO_URING_MIN_SOCKETS = 16
"""With fewer sockets, io_uring costs more than it saves."""

_INITIAL_ENTRIES = 16  # that a block has room for


class Member(Protocol):
    """A member of a :class:`BatchWriter`.

    Attributes:
        index: its position in the writer, which sets it.
    """

    index: int


M = TypeVar("M", bound=Member)


class BatchWriter(Generic[M]):
    """Sockets that receive the same frames. Adding and discarding one take constant time."""

    def __init__(self, ring: IoUring | None = None) -> None:
        """
        Args:
            ring: the io_uring to write with; None writes with one system call per socket.
        """
        self._members: list[M] = []
        self._descriptors: list[int] = []
        self._ring = ring
        self._block = memoryview(b"")  # one prepared submission entry per member
        self._lengths = self._block
        self._length = 0  # the frame length in all entries

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: M, descriptor: int) -> None:
        """Add a member.

        Args:
            member: in no other writer.
            descriptor: its non-blocking socket, with no pending write in its transport. It must
                stay open until the member is discarded.
        """
        member.index = len(self._members)
        self._members.append(member)
        self._descriptors.append(descriptor)
        self._write_sqe(member.index, descriptor)

    def discard(self, member: M) -> None:
        """Remove a member. The last member takes its position."""
        last = self._members.pop()
        descriptor = self._descriptors.pop()
        if last is not member:
            last.index = member.index
            self._members[last.index] = last
            self._descriptors[last.index] = descriptor
            self._write_sqe(last.index, descriptor)

    def write(self, frame: bytes) -> list[tuple[M, int]]:
        """Write a frame to all members, without blocking.

        Returns:
            The members that did not get the whole frame, each with the number of bytes that were
            written, or -1 if its connection is closed. They stay members.
        """
        begin = 0
        partial_writes: list[tuple[int, int]] = []
        ring, size, members = self._ring, len(frame), self._members
        if ring is not None and len(members) >= IO_URING_MIN_SOCKETS and size <= MAX_FRAME_BYTES:
            if size != self._length:
                self._length = size
                self._lengths[:] = array("I", [size]) * len(self._lengths)
            begin, partial_writes = ring.send(self._block, 0, len(members), frame)
        if begin < len(members):
            self._write_each(begin, frame, partial_writes)
        return [(members[index], written) for index, written in partial_writes]

    def _write_each(self, begin: int, frame: bytes, partial_writes: list[tuple[int, int]]) -> None:
        write, size = os.write, len(frame)
        for index, descriptor in enumerate(self._descriptors[begin:], begin):
            try:
                written = write(descriptor, frame)
            except BlockingIOError:
                written = 0
            except OSError:
                written = -1
            if written != size:
                partial_writes.append((index, written))

    def _write_sqe(self, index: int, descriptor: int) -> None:
        if self._ring is None:
            return
        if index * ENTRY_BYTES >= len(self._block):
            self._grow()
        self._ring.write_sqe(self._block, index, descriptor, self._length)

    def _grow(self) -> None:
        entries = self._block.tobytes()
        self._block = memoryview(
            bytearray(entries + bytes(len(entries) or _INITIAL_ENTRIES * ENTRY_BYTES))
        )
        self._lengths = self._block.cast("I")[LENGTH_AT // 4 :: ENTRY_BYTES // 4]
