"""Stores by their URLs."""

from __future__ import annotations

from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import (
    Retention,
)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory", "has no scheme"),
        ("rooms.db", "has no scheme"),
        ("", "is empty"),
        ("sqlite://rooms.db", "three slashes"),
        ("sqlite://host/path", "three slashes"),
        ("sqlite:///a?b=1", "options after .* not supported"),
        ("sqlite:///a?", "options after .* not supported"),
        ("sqlite:///:memory:", "use memory://"),
        ("postgres://x", "got postgres://"),
        ("redis://", "host is missing"),
        ("redis://host/rooms", "database is no number"),
        ("redis://host:http", "port is no number"),
        ("redis://host:0", "port is no number"),
        ("redis://host:65536", "port is no number"),
        ("redis://host/-1", "database is no number"),
        ("redis://host?db=1", "options after .* prefix=, durability=, ca=, cert=, key="),
        ("redis://host?prefix=a%20b", "prefix: expected"),
        ("redis://host?prefix=", "prefix= is empty"),
        ("redis://host?prefix=a&prefix=b", "given twice"),
        ("redis://host?durability=all", "expected one of primary, replica, disk"),
        ("redis://host?ca=a.pem", "need TLS: write rediss://"),
        ("valkeys://host?key=a.pem", "key= needs cert="),
        ("redis://word@host", "password is missing"),
        ("redis://:a#b@host", "write %23"),
        ("redis://:a/b@host", "%2F for '/'"),
        ("redis://:a?b@host", "%3F for .?"),
        ("rediss://host?ca=/does/not/exist.pem", "ca=/does/not/exist.pem: No such file"),
        ("redis://one,two", "several hosts need redis.sentinel:// or redis.cluster"),
        ("redis+sentinel://one,two", "name of the primary is missing"),
        ("redis+sentinel://one,,two/main", "host is missing"),
        ("redis+sentinel://one/main/x", "database is no number"),
        ("redis+cluster://", "host is missing"),
        ("redis+cluster://one,two/1", "a cluster has no databases"),
        ("redis+cluster://one?db=1", "options after .* prefix="),
    ],
)
def test_invalid_url_is_reported_with_a_remedy(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as wrong:
        open_store(url, Retention())
    assert "no://" not in str(wrong.value)


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite://host/path", "postgres://:secret@host", "memory:///x",
     "redis://:secret@", "redis://:secret@host/x", "redis://:secret@host:x", "rediss://:secret@host?a=b",
     "valkey://:secret@host?prefix=%20", "redis://secret@host", "redis://:a?secret@host",
     "redis://:secret@host?secret", "redis://:secret@host?durability=secret",
     "rooms.db", "", "sqlite:///a?b=1"],
)  # fmt: skip
def test_error_of_an_invalid_url_holds_no_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        open_store(url, Retention())
    assert "--store" in str(wrong.value)
    assert "secret" not in str(wrong.value)


async def test_a_url_chooses_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, promised in (
        ("memory://", "lost when it ends"),
        ("sqlite:///here.db", str(tmp_path / "here.db")),
        (f"sqlite:///{tmp_path}/with%20space.db", "with space.db"),
    ):
        store = open_store(url, Retention())
        assert promised in store.description
        await store.close()
