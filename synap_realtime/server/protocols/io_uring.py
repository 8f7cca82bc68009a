"""Send one frame to many sockets with one system call, by io_uring. See io_uring(7).

The sends do not block: a socket accepts the whole frame, a part of it or nothing. No operation is
in flight when :meth:`IoUring.send` returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import socket
import sys
from struct import Struct

MAX_FRAME_BYTES = 512 * 1024
"""Twice the size of the largest notification."""

ENTRY_BYTES = 64

_ENTRIES = 1024
_SETUP, _ENTER = 425, 426  # system call numbers, the same on both architectures
_MACHINES = ("x86_64", "aarch64")

_CLAMP, _SUBMIT_ALL = 1 << 4, 1 << 7  # IORING_SETUP_…; the second is of Linux 5.18
_OF_RINGS, _OF_ENTRIES = 0, 0x10000000  # IORING_OFF_SQ_RING, IORING_OFF_SQES
_SINGLE_MMAP = 1  # IORING_FEAT_SINGLE_MMAP

_PARAMETERS = Struct("<7I12x8I8x8I8x")
"""struct io_uring_params: sq_entries, cq_entries, flags, two unused fields, features, one unused
field. Then the ring offsets: for submissions head, tail, mask, entries, flags, dropped, array; for
completions head, tail, mask, entries, overflow, cqes, flags."""

_SEND = 26  # IORING_OP_SEND
_SKIP_SUCCESS = 1 << 6  # IOSQE_CQE_SKIP_SUCCESS
# DONTWAIT: the kernel does not pass a blocked send to a worker. WAITALL: a partial send counts as a
# failure, so it has a completion, with the number of bytes sent (io_send and io_sendrecv_fail in
# io_uring/net.c).
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_WAITALL | socket.MSG_NOSIGNAL
_ENTRY = Struct("<BBHiQQIIQ24x")
"""struct io_uring_sqe: opcode, flags, ioprio, fd, off, addr, len, msg_flags, user_data."""

LENGTH_AT = 24
"""Offset of the four-byte length field in an entry."""

_COMPLETION = Struct("<QiI")
"""struct io_uring_cqe: user_data, res, flags."""

_WORD = 0xFFFFFFFF


class IoUringUnavailableError(Exception):
    """This system has no io_uring that does what is needed. The message names the cause."""


class IoUring:
    """An io_uring instance. Use it from one thread only. Child processes do not inherit it."""

    _ring: int
    _size: int  # submissions per system call

    def __init__(self) -> None:
        """
        Raises:
            IoUringUnavailableError: the kernel is too old, the system is not Linux, or io_uring is
                not permitted.
        """
        if (
            sys.platform != "linux"
            or platform.machine() not in _MACHINES
            or sys.byteorder != "little"
            or ctypes.sizeof(ctypes.c_void_p) != 8
        ):
            raise IoUringUnavailableError("not supported on this system")
        with contextlib.ExitStack() as undo:
            self._set_up(undo)
            self._self_test()
            self._close = undo.pop_all().close

    def close(self) -> None:
        """Release the io_uring. :meth:`send` attempts nothing from now on."""
        self._size = 0
        self._close()

    def write_sqe(self, block: memoryview, index: int, descriptor: int, size: int) -> None:
        """Write a submission queue entry into a block of entries.

        Args:
            block: has :data:`ENTRY_BYTES` for each entry.
            index: the position of the entry in the block.
            descriptor: a socket, which must stay open while its entry is in the block.
            size: the length of the next frame, in bytes.
        """
        _ENTRY.pack_into(
            block, index * ENTRY_BYTES,
            _SEND, _SKIP_SUCCESS, 0, descriptor, 0, self._frame_at, size, _FLAGS, index,
        )  # fmt: skip

    def send(
        self, block: memoryview, begin: int, end: int, frame: bytes
    ) -> tuple[int, list[tuple[int, int]]]:
        """Send a frame to the sockets of a range of a block.

        Args:
            block: entries of :meth:`write_sqe`, with the length of the frame.
            begin: the index of the first entry.
            end: the index after the last entry.
            frame: at most :data:`MAX_FRAME_BYTES`.

        Returns:
            The index after the last entry that was attempted, usually ``end``. And the entries
            that did not get the whole frame: the index and the number of bytes sent, or -1 if the
            connection is closed.
        """
        partial_writes: list[tuple[int, int]] = []
        if self._size:
            self._frame[: len(frame)] = frame
        while begin < end and self._size:
            wanted = min(end - begin, self._size)
            self._copy_sqes(block, begin, wanted)
            done = self._submit(wanted)
            begin += done
            partial_writes += self._reap_cqes()
            if done < wanted:  # no kernel memory, or a signal: the caller sends the rest
                break
        return begin, partial_writes

    def _set_up(self, undo: contextlib.ExitStack) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._call.argtypes = [ctypes.c_long] * 7
        given = (ctypes.c_char * _PARAMETERS.size)()
        _PARAMETERS.pack_into(given, 0, 0, 0, _CLAMP | _SUBMIT_ALL, *[0] * 20)
        self._ring = self._call(_SETUP, _ENTRIES, ctypes.addressof(given), 0, 0, 0, 0)
        if self._ring < 0:
            raise IoUringUnavailableError(os.strerror(ctypes.get_errno()))
        undo.callback(os.close, self._ring)
        self._size, completions, _, _, _, features, _, *at = _PARAMETERS.unpack(given)
        # All submissions of a call may fail, so the completion ring must hold as many.
        if not features & _SINGLE_MMAP or completions < self._size:
            raise IoUringUnavailableError("unsupported ring layout")
        self._head, self._tail, _, _, _, _, array, _ = (each // 4 for each in at[:8])
        self._completions_head, self._completions_tail = at[8] // 4, at[9] // 4
        self._completions = at[13]
        self._completions_mask = completions - 1
        size = max(at[6] + 4 * self._size, self._completions + completions * _COMPLETION.size)
        try:
            self._rings = mmap.mmap(self._ring, size, offset=_OF_RINGS)
            undo.callback(self._rings.close)
            self._entries = mmap.mmap(self._ring, self._size * ENTRY_BYTES, offset=_OF_ENTRIES)
            undo.callback(self._entries.close)
            self._frame = mmap.mmap(-1, MAX_FRAME_BYTES)  # allocated on first use
            undo.callback(self._frame.close)
        except (OSError, ValueError) as error:
            raise IoUringUnavailableError(f"cannot map its memory: {error}") from error
        self._frame_at = ctypes.addressof(ctypes.c_char.from_buffer(self._frame))
        self._words = memoryview(self._rings).cast("I")
        undo.callback(self._words.release)
        for index in range(self._size):
            self._words[array + index] = index

    def _copy_sqes(self, block: memoryview, begin: int, count: int) -> None:
        """Copy entries of a block to the tail of the submission queue."""
        tail = self._words[self._tail]
        at = tail % self._size  # a power of two
        first = min(count, self._size - at)
        entries, begin = self._entries, begin * ENTRY_BYTES
        middle, end = begin + first * ENTRY_BYTES, begin + count * ENTRY_BYTES
        entries[at * ENTRY_BYTES : (at + first) * ENTRY_BYTES] = block[begin:middle]
        if first < count:
            entries[: end - middle] = block[middle:end]
        self._words[self._tail] = (tail + count) & _WORD

    def _submit(self, count: int) -> int:
        """Submit entries. Return how many the kernel consumed; the others are withdrawn."""
        self._call(_ENTER, self._ring, count, 0, 0, 0, 0)
        words = self._words
        left: int = (words[self._tail] - words[self._head]) & _WORD
        if left:
            words[self._tail] = words[self._head]
        return count - left

    def _reap_cqes(self) -> list[tuple[int, int]]:
        words = self._words
        head, tail = words[self._completions_head], words[self._completions_tail]
        partial_writes = []
        while head != tail:
            at = self._completions + (head & self._completions_mask) * _COMPLETION.size
            index, result, _ = _COMPLETION.unpack_from(self._rings, at)
            partial_writes.append((index, 0 if result == -errno.EAGAIN else max(result, -1)))
            head = (head + 1) & _WORD
        words[self._completions_head] = head
        return partial_writes

    def _self_test(self) -> None:
        """Check the behaviour that :meth:`send` relies on, since older kernels differ.

        Raises:
            IoUringUnavailableError: the kernel behaves differently.
        """
        with contextlib.ExitStack() as undo:
            ours, peer = (undo.enter_context(each) for each in socket.socketpair())
            for each in (ours, peer):
                each.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            block = undo.enter_context(memoryview(bytearray(2 * ENTRY_BYTES)))

            def send(frame: bytes) -> list[int]:
                self.write_sqe(block, 1, ours.fileno(), len(frame))
                end, partial_writes = self.send(block, 1, 2, frame)
                if end != 2 or any(index != 1 for index, _ in partial_writes):
                    raise IoUringUnavailableError("sending fails")
                return [written for _, written in partial_writes]

            found = [send(b"whole"), _drained(peer) == len(b"whole")]
            part = send(bytes(65536))
            full = send(b"none")
            received = _drained(peer)
            peer.close()
            found += [part == [received], 0 < received < 65536, full, send(b"gone")]
        if found != [[], True, True, True, [0], [-1]]:
            raise IoUringUnavailableError("partial sends are not reported")


def _drained(peer: socket.socket) -> int:
    """Read everything that a socket has received. Return the number of bytes."""
    size = 0
    with contextlib.suppress(BlockingIOError):
        while got := len(peer.recv(65536)):
            size += got
    return size
