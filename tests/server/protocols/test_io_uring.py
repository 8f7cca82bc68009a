"""io_uring on real TCP sockets, as :class:`Ring` specifies it.

Where io_uring is missing or not allowed, one test checks that this is logged. All users of it also
work without it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime.server.protocols import io_uring as rings
from synap_realtime.server.protocols.io_uring import ENTRY_BYTES, IoUring

from .conftest import HAS_IO_URING, drained, pairs, received

with_io_uring = pytest.mark.skipif(not HAS_IO_URING, reason="this system gives no io_uring")


@pytest.fixture
def ring() -> Iterator[IoUring]:
    with contextlib.closing(IoUring()) as ring:
        yield ring


def block_of(ring: IoUring, sockets: list[socket.socket], size: int) -> memoryview:
    block = memoryview(bytearray(len(sockets) * ENTRY_BYTES))
    for place, each in enumerate(sockets):
        ring.write_sqe(block, place, each.fileno(), size)
    return block


@with_io_uring
def test_sends_a_frame_to_each_and_reports_no_success(ring: IoUring) -> None:
    with pairs(3) as (ours, peers):
        for n in range(1000):  # thrice around the ring
            frame = b"%d." % n
            assert ring.send(block_of(ring, ours, len(frame)), 0, 3, frame) == (3, [])
        for peer in peers:
            assert drained(peer) == b"".join(b"%d." % n for n in range(1000))


@with_io_uring
def test_more_than_fit_into_it_are_sent_in_rounds(
    ring: IoUring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rings, "_ENTRIES", 8)
    with contextlib.closing(IoUring()) as small, pairs(21) as (ours, peers):
        for frame in (b"first", b"secon"):
            assert small.send(block_of(small, ours, 5), 0, 21, frame) == (21, [])
        assert [drained(peer) for peer in peers] == [b"firstsecon"] * 21


@with_io_uring
def test_partial_write_reports_its_length_and_affects_nobody(ring: IoUring) -> None:
    """And the kernel sends nothing of the rest later."""
    with pairs(3) as (ours, peers):
        said = b""  # to the second, who does not read
        for n in range(1000):
            frame = bytes([n % 256]) * 100_000
            end, short = ring.send(block_of(ring, ours, len(frame)), 0, 3, frame)
            assert end == 3
            assert all(place == 1 for place, _ in short)
            assert [received(peer, len(frame)) for peer in (peers[0], peers[2])] == [frame] * 2
            taken = short[0][1] if short else len(frame)
            said += frame[:taken]
            if not taken:
                break
        assert len(said) % 100_000, "there was one that was taken in part"
        assert received(peers[1], len(said)) == said
        assert ring.send(block_of(ring, ours, 4), 1, 2, b"next") == (2, [])
        assert received(peers[1], 4) == b"next"


@with_io_uring
def test_distinguishes_closed_peer_from_full_buffer(ring: IoUring) -> None:
    with pairs(3) as (ours, peers):
        peers[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peers[1].close()  # a reset
        block = block_of(ring, ours, 5)
        assert ring.send(block, 0, 3, b"hello") == (3, [(1, -1)])
        assert ring.send(block, 0, 3, b"again") == (3, [(1, -1)])
        assert drained(peers[0]) == drained(peers[2]) == b"helloagain"


@with_io_uring
def test_invalid_descriptor_is_reported_and_affects_nobody(ring: IoUring) -> None:
    with pairs(2) as (ours, peers), open("/dev/null", "wb") as null:  # noqa: PTH123
        block = block_of(ring, ours, 5)
        ring.write_sqe(block, 0, null.fileno(), 5)
        assert ring.send(block, 0, 2, b"hello") == (2, [(0, -1)])
        assert drained(peers[1]) == b"hello"


@with_io_uring
def test_ring_is_not_inherited_by_child_processes(ring: IoUring) -> None:
    assert "io_uring" in str(open_files(Path("/proc/self/fd")))
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
    )
    try:
        assert "io_uring" not in str(open_files(Path(f"/proc/{child.pid}/fd")))
    finally:
        child.communicate(b"\n")


def open_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for each in folder.iterdir():
        with contextlib.suppress(OSError):  # of the folder itself
            found.append(each.readlink())
    return found


@with_io_uring
def test_closed_ring_sends_nothing() -> None:
    ring = IoUring()
    with pairs(1) as (ours, peers):
        block = block_of(ring, ours, 5)
        ring.close()
        assert ring.send(block, 0, 1, b"hello") == (0, [])
        assert drained(peers[0]) == b""


@pytest.mark.parametrize(
    ("name", "value"),
    [("_SETUP", 100_000), ("_MACHINES", ())],
    ids=["no such call", "another machine"],
)
def test_logs_when_io_uring_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(rings, name, value)
    with pytest.raises(rings.IoUringUnavailableError, match=r"not supported|not implemented"):
        IoUring()


@with_io_uring
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_FLAGS", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL),
        ("_SKIP_SUCCESS", 0),
        ("_SEND", 0),
        ("_SEND", 250),
    ],
    ids=["a part is a success", "success is told", "nothing is sent", "an unknown operation"],
)
def test_kernel_with_other_behaviour_is_not_used(
    monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    """As older ones do."""
    monkeypatch.setattr(rings, name, value)
    with pytest.raises(rings.IoUringUnavailableError, match=r"sending fails|not reported"):
        IoUring()
