"""JWK sets: only usable public keys are taken from any response of an identity provider."""

from __future__ import annotations

import contextlib
import json
import logging

from synap_realtime.server.auth.jwks import MAX_KEYS, parse_keys

from ..target import Target, require


class JwksTarget(Target):
    """The body of a response."""

    name = "jwks"
    max_bytes = 8 * 1024

    def __init__(self) -> None:
        logging.getLogger("synap_realtime.server.auth.jwks").setLevel(logging.ERROR)

    def check(self, data: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError):  # the previous keys stay
            keys = parse_keys(data)
            require(len(keys) <= MAX_KEYS, "keys are bounded")
            document = json.loads(data)["keys"]
            for key in keys:
                require(key.jwk.key_type in ("RSA", "EC", "OKP"), "no shared secret is taken")
                require(len(key.digest) == 32, "each key has a digest")
            require(len(keys) <= len(document), "each key is in the document")


TARGET = JwksTarget
