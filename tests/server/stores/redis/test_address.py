"""The URLs of stores on Redis."""

from __future__ import annotations

import pytest

from synap_realtime.server.stores.redis.address import SCHEMES, Peer, RedisAddress, parse_address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "redis://localhost",
            RedisAddress((Peer("localhost", 6379),), None, 0, None, None, False, "synap"),
        ),
        (
            "rediss://jo:p%40ss@[::1]:7000/3?prefix=app",
            RedisAddress((Peer("::1", 7000),), None, 3, "jo", "p@ss", True, "app"),
        ),
        (
            "valkey+sentinel://:word@a,b:1/main/2",
            RedisAddress((Peer("a", 26379), Peer("b", 1)), "main", 2, None, "word", False, "synap"),
        ),
        (
            "valkey+cluster://jo:word@a,b:1?prefix=app",
            RedisAddress(
                (Peer("a", 6379), Peer("b", 1)),
                None,
                0,
                "jo",
                "word",
                False,
                "app",
                is_cluster=True,
            ),
        ),
        (
            "valkeys://a",
            RedisAddress((Peer("a", 6379),), None, 0, None, None, True, "synap"),
        ),
    ],
)
def test_parts_of_a_url(url: str, expected: RedisAddress) -> None:
    address = parse_address(url)
    assert address == expected
    assert "word" not in repr(address)
    assert "p@ss" not in repr(address)


def test_tls_is_only_in_schemes_with_an_s() -> None:
    secure = {
        scheme
        for scheme in SCHEMES
        if parse_address(f"{scheme}://a" + ("/main" if "sentinel" in scheme else "")).tls
    }
    assert secure == {
        f"{engine}{kind}"
        for engine in ("rediss", "valkeys")
        for kind in ("", "+sentinel", "+cluster")
    }
