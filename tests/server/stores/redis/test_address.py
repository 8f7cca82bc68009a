"""The URLs of stores on Redis."""

from __future__ import annotations

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.server.stores.redis.address import (
    SCHEMES,
    Login,
    Peer,
    RedisAddress,
    parse_address,
)


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
            "redis+sentinel://a/main?sentinel_password=pass+w%26ord&sentinel_username=jo",
            RedisAddress(
                (Peer("a", 26379),),
                *("main", 0, None, None, False, "synap"),
                sentinel_login=Login("jo", "pass+w&ord"),
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


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://a/main?sentinel_username=jo", "needs sentinel_password="),
        ("redis://a?sentinel_password=hunter22", r"needs Sentinels: write redis\+sentinel://"),
        ("redis+sentinel://a/main?sentinel_password=", "sentinel_password= is empty"),
        (
            "redis+sentinel://a/main?sentinel_password=hunter&22",
            "the options after '.' are prefix=",
        ),
        ("redis+sentinel://a/main?sentinel_password=hunter@22", "in a user or password, write"),
    ],
)
def test_an_incomplete_login_at_the_sentinels(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as wrong:
        parse_address(url)
    assert "hunter" not in str(wrong.value)


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
