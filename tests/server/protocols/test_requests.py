"""The client address of a request behind a proxy."""

from __future__ import annotations

import pytest

from synap_realtime.server.protocols.requests import TrustedProxies

PROXY, CLIENT = "10.0.0.1", "203.0.113.7"


@pytest.mark.parametrize(
    ("peer", "given", "address"),
    [
        (PROXY, CLIENT, CLIENT),
        (PROXY, f"198.51.100.1, {CLIENT}", CLIENT),
        (PROXY, f"127.0.0.1, {CLIENT}, 10.0.0.2", CLIENT),
        (PROXY, f" ,, {CLIENT} , ", CLIENT),
        (PROXY, "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        (PROXY, f"\t{CLIENT} ", CLIENT),
        (PROXY, f"\xa0{CLIENT}", f"\xa0{CLIENT}"),  # no whitespace in a header field
        (PROXY, "", PROXY),
        (PROXY, " , ", PROXY),
        (PROXY, f"{CLIENT}:4711", CLIENT),
        (PROXY, "[2001:db8::7]:4711", "2001:db8::7"),
        (PROXY, "[2001:db8::7]", "2001:db8::7"),
        (PROXY, "2001:db8::7", "2001:db8::7"),
        (PROXY, f"{CLIENT}, [fd00::2]:80", CLIENT),
        (PROXY, f"{CLIENT}, 10.0.0.2:80", CLIENT),
        (PROXY, f"{CLIENT}, unknown", "unknown"),
        (PROXY, "a" * 10_000, "a" * 10_000),
        ("fd00::1", CLIENT, CLIENT),
        ("::ffff:10.0.0.1", CLIENT, CLIENT),
        (CLIENT, "127.0.0.1", CLIENT),
        (None, "127.0.0.1", None),
        ("10.0.0", "127.0.0.1", "10.0.0"),
    ],
)
def test_reads_forwarding_fields_of_trusted_proxies_only(
    peer: str | None, given: str, address: str | None
) -> None:
    proxies = TrustedProxies(["10.0.0.0/8", "fd00::/8"])
    assert proxies.client_address(peer, {"x-forwarded-for": given}) == address


def test_without_trusted_proxies_no_forwarding_field_is_read() -> None:
    for peer in ("127.0.0.1", None, CLIENT):
        assert TrustedProxies([]).client_address(peer, {"x-forwarded-for": "198.51.100.1"}) == peer


def test_peer_address_is_used_without_forwarding_fields() -> None:
    assert TrustedProxies([PROXY]).client_address(PROXY, {}) == PROXY
