"""Batched writes to many sockets have the same result with io_uring and without it."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from synap_realtime.server.protocols import fanout
from synap_realtime.server.protocols.fanout import IO_URING_MIN_SOCKETS, BatchWriter
from synap_realtime.server.protocols.io_uring import MAX_FRAME_BYTES, IoUring

from .conftest import WAYS, drained, pairs, received


class Member:
    index = -1


@pytest.fixture(params=WAYS)
def ring(request: pytest.FixtureRequest) -> Iterator[IoUring | None]:
    if request.param == "loop":
        yield None
        return
    with contextlib.closing(IoUring()) as ring:
        yield ring


def test_delivers_frames_of_any_size_to_all(ring: IoUring | None) -> None:
    sizes = (1, 125, 126, 300, 300, 9000, 65536, 7)
    with pairs(IO_URING_MIN_SOCKETS + 3) as (ours, peers):
        fan: BatchWriter[Member] = BatchWriter(ring)
        for each in ours:
            fan.add(Member(), each.fileno())
        for n, size in enumerate(sizes):
            assert fan.write(bytes([n]) * size) == []
            assert all(received(peer, size) == bytes([n]) * size for peer in peers)


def test_delivers_frame_over_the_notification_limit(ring: IoUring | None) -> None:
    frame = b"x" * (MAX_FRAME_BYTES + 1)
    with pairs(IO_URING_MIN_SOCKETS) as (ours, peers):
        fan: BatchWriter[Member] = BatchWriter(ring)
        members = [Member() for _ in ours]
        for member, each in zip(members, ours, strict=True):
            fan.add(member, each.fileno())
        taken = {id(member): taken for member, taken in fan.write(frame)}
        for member, peer in zip(members, peers, strict=True):
            size = taken.get(id(member), len(frame))
            assert received(peer, size) == frame[:size]


def test_member_receives_exactly_the_frames_written_while_it_was_in_the_group(
    ring: IoUring | None,
) -> None:
    """Against the plain model; the next member reuses a descriptor immediately."""
    rng = random.Random(7)
    fan: BatchWriter[Member] = BatchWriter(ring)
    live: dict[Member, tuple[socket.socket, socket.socket, bytearray]] = {}
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as undo:
        for n in range(1500):
            if rng.random() < 0.55 and len(live) < 90:
                peer = undo.enter_context(socket.create_connection(listener.getsockname()))
                ours = undo.enter_context(listener.accept()[0])
                ours.setblocking(False)
                peer.setblocking(False)
                member = Member()
                fan.add(member, ours.fileno())
                live[member] = ours, peer, bytearray()
            elif live:
                member = rng.choice(list(live))
                fan.discard(member)
                ours, peer, written = live.pop(member)
                ours.close()
                assert received(peer, len(written)) == bytes(written)
                assert peer.recv(1) == b"", "nothing more"
                peer.close()
            assert len(fan) == len(live)
            frame = b"%d;" % n
            assert fan.write(frame) == []
            for _, _, written in live.values():
                written += frame
        for _, peer, written in live.values():
            assert received(peer, len(written)) == bytes(written)
            assert drained(peer) == b""


def test_reports_closed_and_blocked_members_with_bytes_written(
    ring: IoUring | None,
) -> None:
    frame = b"x" * 50_000
    with pairs(IO_URING_MIN_SOCKETS + 2) as (ours, peers):
        fan: BatchWriter[Member] = BatchWriter(ring)
        members = [Member() for _ in ours]
        for member, each in zip(members, ours, strict=True):
            fan.add(member, each.fileno())
        peers[3].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peers[3].close()
        said = 0
        for _ in range(1000):
            short = dict(fan.write(frame))
            assert short.pop(members[3]) == -1
            for place in set(range(len(peers))) - {3, 5}:
                assert received(peers[place], len(frame)) == frame
            taken = short.pop(members[5], len(frame))
            said += taken
            assert not short
            if not taken:
                break
        assert said % len(frame)
        assert received(peers[5], said) == b"x" * said


def test_entries_that_the_kernel_did_not_accept_are_written(
    ring: IoUring | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it has no memory for more, or a signal has come."""
    with pairs(IO_URING_MIN_SOCKETS + 4) as (ours, peers):
        fan: BatchWriter[Member] = BatchWriter(ring)
        for each in ours:
            fan.add(Member(), each.fileno())
        if ring is not None:
            call = ring._call
            asked = iter((0, 5, 3, IO_URING_MIN_SOCKETS + 4))
            monkeypatch.setattr(
                ring, "_call", lambda nr, fd, _count, *rest: call(nr, fd, next(asked), *rest)
            )
        for n in range(4):
            assert fan.write(b"frame %d" % n) == []
        for peer in peers:
            assert drained(peer) == b"frame 0frame 1frame 2frame 3"


def test_few_are_written_to_without_the_ring(ring: IoUring | None) -> None:
    assert fanout.IO_URING_MIN_SOCKETS > 4, "hub._FEW: rooms with fewer have none of this"
    with pairs(IO_URING_MIN_SOCKETS - 1) as (ours, peers):
        fan: BatchWriter[Member] = BatchWriter(ring)
        for each in ours:
            fan.add(Member(), each.fileno())
        if ring is not None:
            ring.close()
        assert fan.write(b"hello") == []
        assert [drained(peer) for peer in peers] == [b"hello"] * (IO_URING_MIN_SOCKETS - 1)
