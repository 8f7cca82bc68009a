"""io_uring: many sends by one call of the kernel, where it lets us. See io_uring(7).

Of its many uses this is one: a frame to many sockets, each of which takes it now, or part of it.
Nothing is under way when :meth:`Ring.send` returns.
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
"""Twice what the longest notification takes."""

ENTRY_BYTES = 64

_ENTRIES = 1024
_SETUP, _ENTER = 425, 426  # the same on both
_MACHINES = ("x86_64", "aarch64")

_CLAMP, _SUBMIT_ALL = 1 << 4, 1 << 7  # IORING_SETUP_…; the second is of Linux 5.18
_OF_RINGS, _OF_ENTRIES = 0, 0x10000000  # IORING_OFF_SQ_RING, IORING_OFF_SQES
_SINGLE_MMAP = 1  # IORING_FEAT_SINGLE_MMAP

_PARAMETERS = Struct("<7I12x8I8x8I8x")
"""struct io_uring_params: sq_entries, cq_entries, flags, two of no use here, features, one of no
use. Then what is where in the rings: of submissions the head, tail, mask, entries, flags, dropped,
array; of completions the head, tail, mask, entries, overflow, the completions, flags."""

_SEND = 26  # IORING_OP_SEND
_SKIP_SUCCESS = 1 << 6  # IOSQE_CQE_SKIP_SUCCESS
# DONTWAIT: no worker of the kernel's goes on with it. WAITALL: part of a frame is no success, so
# there is a completion, which says how much (io_send and io_sendrecv_fail in io_uring/net.c).
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_WAITALL | socket.MSG_NOSIGNAL
_ENTRY = Struct("<BBHiQQIIQ24x")
"""struct io_uring_sqe: opcode, flags, ioprio, fd, off, addr, len, msg_flags, user_data."""

LENGTH_AT = 24
"""Where in an entry its length is: four bytes."""

_COMPLETION = Struct("<QiI")
"""struct io_uring_cqe: user_data, res, flags."""

_WORD = 0xFFFFFFFF


class IoUringUnavailableError(Exception):
    """There is no io_uring here, or not one that does what is needed; the message says why."""


class IoUring:
    """An io_uring of our own. It belongs to one thread, and a program started from here does not
    get it."""

    _ring: int
    _size: int  # so many are sent at once

    def __init__(self) -> None:
        """
        Raises:
            RingUnavailableError: too old a kernel, another system, or it is not allowed.
        """
        if (
            sys.platform != "linux"
            or platform.machine() not in _MACHINES
            or sys.byteorder != "little"
            or ctypes.sizeof(ctypes.c_void_p) != 8
        ):
            raise IoUringUnavailableError("this system has none")
        with contextlib.ExitStack() as undo:
            self._set_up(undo)
            self._self_test()
            self._close = undo.pop_all().close

    def close(self) -> None:
        """Give it back. From now on it sends nothing: nobody is tried."""
        self._size = 0
        self._close()

    def write_sqe(self, block: memoryview, place: int, descriptor: int, size: int) -> None:
        """Write an entry into a block of them: whoever is in this place gets the frame.

        Args:
            block: :data:`ENTRY_BYTES` for each.
            descriptor: of a socket, which stays open while it is in the block.
            size: of the frame that is sent next, in bytes.
        """
        _ENTRY.pack_into(
            block, place * ENTRY_BYTES,
            _SEND, _SKIP_SUCCESS, 0, descriptor, 0, self._frame_at, size, _FLAGS, place,
        )  # fmt: skip

    def send(
        self, block: memoryview, begin: int, end: int, frame: bytes
    ) -> tuple[int, list[tuple[int, int]]]:
        """Send a frame to those in these places of a block, whose entries know its size.

        Args:
            frame: at most :data:`MAX_FRAME_BYTES`.

        Returns:
            The place behind the last one that was tried: mostly ``end``. And of those who did not
            take the whole of it the places, each with how many bytes it took, or -1 if it is gone.
        """
        short: list[tuple[int, int]] = []
        if self._size:
            self._frame[: len(frame)] = frame
        while begin < end and self._size:
            wanted = min(end - begin, self._size)
            self._copy_sqes(block, begin, wanted)
            done = self._submit(wanted)
            begin += done
            short += self._reap_cqes()
            if done < wanted:  # the kernel has no memory, or a signal came: who calls goes on
                break
        return begin, short

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
        # As many fail at once as are sent at once: then none is put aside.
        if not features & _SINGLE_MMAP or completions < self._size:
            raise IoUringUnavailableError("its rings are of another kind")
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
            self._frame = mmap.mmap(-1, MAX_FRAME_BYTES)  # a page takes memory once it is used
            undo.callback(self._frame.close)
        except (OSError, ValueError) as error:
            raise IoUringUnavailableError(f"its memory cannot be had: {error}") from error
        self._frame_at = ctypes.addressof(ctypes.c_char.from_buffer(self._frame))
        self._words = memoryview(self._rings).cast("I")
        undo.callback(self._words.release)
        for place in range(self._size):
            self._words[array + place] = place

    def _copy_sqes(self, block: memoryview, begin: int, count: int) -> None:
        """Put entries of a block behind the last one that was submitted."""
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
        """How many of them the kernel took; the rest is taken back."""
        self._call(_ENTER, self._ring, count, 0, 0, 0, 0)
        words = self._words
        left: int = (words[self._tail] - words[self._head]) & _WORD
        if left:
            words[self._tail] = words[self._head]
        return count - left

    def _reap_cqes(self) -> list[tuple[int, int]]:
        words = self._words
        head, tail = words[self._completions_head], words[self._completions_tail]
        short = []
        while head != tail:
            at = self._completions + (head & self._completions_mask) * _COMPLETION.size
            place, result, _ = _COMPLETION.unpack_from(self._rings, at)
            short.append((place, 0 if result == -errno.EAGAIN else max(result, -1)))
            head = (head + 1) & _WORD
        words[self._completions_head] = head
        return short

    def _self_test(self) -> None:
        """See on a pair of sockets that it does what :meth:`send` says: older kernels differ.

        Raises:
            RingUnavailableError: it does not.
        """
        with contextlib.ExitStack() as undo:
            ours, peer = (undo.enter_context(each) for each in socket.socketpair())
            for each in (ours, peer):
                each.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            block = undo.enter_context(memoryview(bytearray(2 * ENTRY_BYTES)))

            def send(frame: bytes) -> list[int]:
                self.write_sqe(block, 1, ours.fileno(), len(frame))
                end, short = self.send(block, 1, 2, frame)
                if end != 2 or any(place != 1 for place, _ in short):
                    raise IoUringUnavailableError("it does not send")
                return [taken for _, taken in short]

            found = [send(b"whole"), _drained(peer) == len(b"whole")]
            part = send(bytes(65536))
            full = send(b"none")
            taken = _drained(peer)
            peer.close()
            found += [part == [taken], 0 < taken < 65536, full, send(b"gone")]
        if found != [[], True, True, True, [0], [-1]]:
            raise IoUringUnavailableError("it does not say what was not sent")


def _drained(peer: socket.socket) -> int:
    """How many bytes were there."""
    size = 0
    with contextlib.suppress(BlockingIOError):
        while got := len(peer.recv(65536)):
            size += got
    return size
