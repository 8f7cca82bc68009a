"""Tokens and the expected response of a server with keys to each, for every implementation.

``tokens.json`` holds them with a fixed secret and a fixed time, for tests that can give a clock.
``test_tokens.py`` re-signs those of the shared secret with the current time and sends them to a
server.

::

    python -m tests.conformance.vectors      # rewrites tokens.json

The private keys of the file's public keys are discarded immediately;
``tests/server/auth/test_token_vectors.py`` verifies the claims and the signature of each token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_name("tokens.json")
NOW = 1_800_000_000
"""The file's time, in seconds since 1970."""

LEEWAY_S = 10
LIFETIME_S = 90 * 86_400
"""The longest that a token may live, from ``iat``, else from now."""

SECRETS = ("an-older-secret-that-still-counts-000", "a-secret-that-everybody-may-know-0001")
ANOTHER = "a-secret-of-somebody-else-0123456789"

Signer = Literal["secret", "old-secret", "another-secret", "nobody", "RS256", "ES256", "EdDSA"]
Ask = tuple[str, str, int]
"""An action (a scope's word), a room (without a meaning for ``metrics`` and ``admin``), and the
status of the answer: 200 or 403."""

ABOUT = (
    "Tokens for a server with keys whose clock stands at `now`, which knows `secrets` (HS256) and "
    "`jwks`, and asks for no issuer and no audience. `expected.status` is 200 or 401; a 401 has "
    "the code `unauthorized`, and is 4501 for a page. `says` is what a token of 200 means, `asks` "
    "what it may: 200 or 403 (`forbidden`, 4503). `confusedWith` names a public key whose PEM was "
    "used as a secret; `broken` tokens were changed after they were signed. Made by "
    "tests/conformance/vectors.py."
)


@dataclass(frozen=True, slots=True)
class Vector:
    """One token.

    Attributes:
        name: what it shows, in words.
        claims: the payload; usually an object.
        header: what stands in the JWT's header beside ``alg`` and ``typ``, or in their place;
            None takes one away.
        signer: whose signature it has.
        says: of one that counts: what it means, ``user``, ``scopes``, ``device``.
        asks: of one that counts: what it may, and what not. None: it does not count.
        confused_with: the public key whose PEM was the HS256 secret.
        raw: what is done to the token at last.
    """

    name: str
    claims: object
    header: Mapping[str, object] = field(default_factory=dict)
    signer: Signer = "secret"
    says: Mapping[str, object] = field(default_factory=dict)
    asks: Sequence[Ask] | None = None
    confused_with: str | None = None
    raw: Callable[[str], str] | None = None

    @property
    def algorithm(self) -> str:
        if self.signer in ("RS256", "ES256", "EdDSA"):
            return self.signer
        return "none" if self.signer == "nobody" else "HS256"

    def full_header(self) -> dict[str, object]:
        given = {"alg": self.algorithm, "typ": "JWT", **self.header}
        return {name: value for name, value in given.items() if value is not None}

    def signed(self, sign: Callable[[bytes], bytes]) -> str:
        """The token (RFC 7515, section 7.1)."""
        head = encode(json.dumps(self.full_header()).encode())
        body = encode(json.dumps(self.claims).encode())
        token = f"{head}.{body}.{encode(sign(f'{head}.{body}'.encode()))}"
        return self.raw(token) if self.raw else token


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def hs256(secret: str) -> Callable[[bytes], bytes]:
    return lambda signed: hmac.digest(secret.encode(), signed, hashlib.sha256)


def nobody(signed: bytes) -> bytes:
    return b""


def vectors(now: int, user: str = "u1") -> list[Vector]:
    """All of them, for this time and this user."""
    exp = now + 600
    mine, other = f"user_{user}", f"user_{user}x"
    request = f"request_{user}"

    def counts(
        name: str,
        claims: Mapping[str, object],
        *asks: Ask,
        header: Mapping[str, object] | None = None,
        signer: Signer = "secret",
        **says: object,
    ) -> Vector:
        said = {"user": claims.get("sub"), "scopes": ["subscribe"], "device": None, **says}
        return Vector(name, {"exp": exp, **claims}, header or {}, signer, said, asks)

    def refused(name: str, claims: object, signer: Signer = "secret", **header: object) -> Vector:
        return Vector(name, claims, header, signer)

    own = {"sub": user, "exp": exp}
    reads = [("subscribe", mine, 200), ("subscribe", other, 403)]
    return [
        # who
        counts("sub opens the user's room and no other's", {"sub": user},
               *reads, ("subscribe", request, 403), ("subscribe", f"workspace_{user}", 403)),
        counts("a sub with all the marks of a key", {"sub": f"{user}.a_b~c:d@e|f=g+h-i"},
               ("subscribe", f"{mine}.a_b~c:d@e|f=g+h-i", 200), ("subscribe", mine, 403)),
        counts("no sub, and no rooms: nothing is open", {}, ("subscribe", mine, 403)),
        counts("a sub is no pattern", {"sub": "*"}, ("subscribe", mine, 403)),
        counts("a sub is no room", {"sub": mine}, ("subscribe", mine, 403)),
        refused("a sub that is a number", {**own, "sub": 1}),
        refused("an empty sub", {**own, "sub": ""}),
        refused("a sub that is a list", {**own, "sub": [user]}),
        refused("a sub that is no UTF-8: a lone surrogate", {**own, "sub": "\ud800"}),
        refused("a sub with a lone surrogate in it", {**own, "sub": f"{user}\udfffx"}),
        refused("a sub with a control character", {**own, "sub": f"{user}\n"}),
        refused("a sub with a NUL", {**own, "sub": f"{user}\0"}),
        refused("a sub with a control character above ASCII", {**own, "sub": f"{user}\x9b"}),
        refused("a sub of 513 characters", {**own, "sub": "x" * 513}),
        counts("a sub of 300 characters of two UTF-16 units", {"sub": "\U0001f600" * 300},
               ("subscribe", mine, 403)),
        # rooms
        counts("rooms opens those as well", {"sub": user, "rooms": [request]},
               *reads, ("subscribe", request, 200), ("subscribe", f"{request}x", 403)),
        counts("rooms without a sub", {"rooms": [request]},
               ("subscribe", request, 200), ("subscribe", mine, 403)),
        counts("a star at the end stands for any rest", {"rooms": [f"{request}*"]},
               ("subscribe", request, 200), ("subscribe", f"{request}x", 200),
               ("subscribe", mine, 403)),
        counts("a star for a kind", {"rooms": ["request_*"]},
               ("subscribe", request, 200), ("subscribe", mine, 403)),
        counts("a star alone opens all", {"rooms": ["*"]},
               ("subscribe", request, 200), ("subscribe", mine, 200)),
        counts("a dot in a room is a dot", {"rooms": [f"{request}.a"]},
               ("subscribe", f"{request}.a", 200), ("subscribe", f"{request}xa", 403)),
        counts("an empty list of rooms", {"sub": user, "rooms": []}, *reads),
        refused("rooms that is a text", {**own, "rooms": mine}),
        refused("rooms with a number", {**own, "rooms": [1]}),
        refused("a star in the middle", {**own, "rooms": ["user_*x"]}),
        refused("a star at the beginning", {**own, "rooms": [f"*_{user}"]}),
        refused("a reserved room", {**own, "rooms": ["synap_revocations"]}),
        refused("rooms that are no rooms", {**own, "rooms": ["nope"]}),
        # scope
        counts("without a scope: subscribe", {"sub": user},
               ("subscribe", mine, 200), ("broadcast", mine, 403), ("presence", mine, 403),
               ("admin", "", 403), ("metrics", "", 403)),
        counts("scope broadcast", {"sub": user, "scope": "broadcast"},
               ("broadcast", mine, 200), ("broadcast", other, 403), ("subscribe", mine, 403),
               scopes=["broadcast"]),
        counts("scope presence", {"sub": user, "scope": "presence"},
               ("presence", mine, 200), ("presence", other, 403), ("subscribe", mine, 403),
               scopes=["presence"]),
        counts("scope metrics", {"scope": "metrics"},
               ("metrics", "", 200), ("admin", "", 403), ("subscribe", mine, 403),
               scopes=["metrics"]),
        counts("scope admin", {"scope": "admin"},
               ("admin", "", 200), ("metrics", "", 200), ("subscribe", mine, 403),
               ("broadcast", mine, 403), scopes=["admin"]),
        counts("scope admin opens no room", {"scope": "admin subscribe"},
               ("admin", "", 200), ("subscribe", mine, 403), scopes=["admin", "subscribe"]),
        counts("several scopes", {"sub": user, "scope": "subscribe broadcast presence"},
               ("subscribe", mine, 200), ("broadcast", mine, 200), ("presence", mine, 200),
               ("admin", "", 403), scopes=["broadcast", "presence", "subscribe"]),
        counts("other words mean nothing", {"sub": user, "scope": "openid email presence"},
               ("presence", mine, 200), ("subscribe", mine, 403), scopes=["presence"]),
        counts("only other words", {"sub": user, "scope": "openid"},
               ("subscribe", mine, 403), scopes=[]),
        counts("an empty scope is none", {"sub": user, "scope": ""},
               ("subscribe", mine, 403), scopes=[]),
        counts("a word in capitals is another word", {"sub": user, "scope": "SUBSCRIBE"},
               ("subscribe", mine, 403), scopes=[]),
        refused("a scope that is a number", {**own, "scope": 1}),
        # device and jti
        counts("a device", {"sub": user, "device": "phone"}, *reads, device="phone"),
        refused("a device with a space", {**own, "device": "a b"}),
        refused("a device of 65 characters", {**own, "device": "x" * 65}),
        refused("a device that is a number", {**own, "device": 1}),
        refused("a jti that is a number", {**own, "jti": 7}),
        refused("a jti that is no UTF-8", {**own, "jti": "a\ud83d"}),
        refused("a jti with a control character", {**own, "jti": "a\x1b[31m"}),
        refused("a jti of 513 characters", {**own, "jti": "x" * 513}),
        refused("a device that is no UTF-8", {**own, "device": "\ud800"}),
        refused("a device with a line end", {**own, "device": "phone\n"}),
        refused("a room that is no UTF-8", {**own, "rooms": ["user_\ud800"]}),
        refused("a room with a line end", {**own, "rooms": [f"{request}\n"]}),
        # time
        refused("no exp", {"sub": user}),
        refused("expired", {**own, "exp": now - 60}),
        refused("expired for longer than clocks may differ", {**own, "exp": now - LEEWAY_S - 5}),
        counts("expired, but clocks may differ", {"sub": user, "exp": now - LEEWAY_S + 8}, *reads),
        refused("not good yet", {**own, "nbf": now + 60}),
        counts("good since", {"sub": user, "nbf": now - 60}, *reads),
        counts("good soon, but clocks may differ", {"sub": user, "nbf": now + 5}, *reads),
        refused("issued in the future", {**own, "iat": now + 60}),
        counts("the longest lifetime", {"sub": user, "iat": now - 60, "exp": now - 60 + LIFETIME_S},
               *reads),
        refused("a longer lifetime", {**own, "iat": now - 60, "exp": now - 55 + LIFETIME_S}),
        refused("issued in 1970", {**own, "iat": 0}),
        counts("no iat, and an end within the longest lifetime",
               {"sub": user, "exp": now + LIFETIME_S - 60}, *reads),
        refused("no iat, and an end too far away", {**own, "exp": now + LIFETIME_S + 600}),
        refused("an end that no float can hold", {**own, "exp": 10**400}),
        refused("exp that is a text", {**own, "exp": "soon"}),
        refused("exp that is null", {**own, "exp": None}),
        refused("exp that is true", {**own, "exp": True}),
        refused("exp that is a list", {**own, "exp": [exp]}),
        refused("iat that is a text", {**own, "iat": "x"}),
        # for whom
        refused("an aud, where none is asked for", {**own, "aud": "somebody"}),
        counts("an iss, where none is asked for", {"sub": user, "iss": "https://id.example"},
               *reads),
        # signature
        refused("another's secret", own, "another-secret"),
        Vector("a payload that was changed", own, raw=_with_payload({**own, "sub": "u2"})),
        Vector("no signature", own, raw=lambda token: token.rpartition(".")[0] + "."),
        Vector("half a signature", own, raw=lambda token: token[:-20]),
        Vector("two parts", own, raw=lambda token: token.rpartition(".")[0]),
        Vector("four parts", own, raw=lambda token: f"{token}.x"),
        Vector("no JWT", own, raw=lambda _: "nonsense"),
        Vector("three parts that are none", own, raw=lambda _: "a.b.c"),
        # algorithm
        refused("alg none", own, "nobody"),
        refused("alg None", own, "nobody", alg="None"),
        refused("alg none, signed", own, alg="none"),
        *(refused(f"alg {alg} over an HS256 signature", own, alg=alg)
          for alg in ("HS384", "HS512", "RS256", "PS256", "ES256", "EdDSA", "", "hs256")),
        refused("no alg", own, alg=None),
        refused("crit", own, crit=["exp"]),
        refused("crit with what it names", own, crit=["b64"], b64=True),
        counts("a kid over a shared secret means nothing", {"sub": user}, *reads,
               header={"kid": "whatever"}),
        counts("no typ", {"sub": user}, *reads, header={"typ": None}),
        refused("a payload that is a list", []),
        refused("a payload that is a text", "x"),
        refused("a payload that is null", None),
        refused("a token over 8 KiB", {**own, "x": "y" * 8192}),
    ]  # fmt: skip


def vectors_with_keys(now: int, user: str = "u1") -> list[Vector]:
    """Those that need the older secret or the public keys of the file."""
    own = {"sub": user, "exp": now + 600}
    reads = [("subscribe", f"user_{user}", 200), ("subscribe", "user_u2", 403)]
    said = {"user": user, "scopes": ["subscribe"], "device": None}
    public: list[Vector] = []
    signers: tuple[Signer, ...] = ("RS256", "ES256", "EdDSA")
    for alg in signers:
        kid = {"kid": alg}
        public += [
            Vector(f"{alg}, with its kid", own, kid, alg, said, reads),
            Vector(f"{alg}, without a kid", own, {}, alg, said, reads),
            Vector(f"{alg}, with a kid that is not there", own, {"kid": "gone"}, alg),
            Vector(f"{alg}, expired", {**own, "exp": now - 60}, kid, alg),
            Vector(f"{alg}, a payload that was changed", own, kid, alg,
                   raw=_with_payload({**own, "sub": "u2"})),
            Vector(f"the public key of {alg} as a shared secret", own, kid, confused_with=alg),
        ]  # fmt: skip
    return [
        Vector("the older of two secrets", own, {}, "old-secret", said, reads),
        *public,
        Vector("the kid of another algorithm's key", own, {"kid": "ES256"}, "RS256"),
    ]


def _with_payload(claims: object) -> Callable[[str], str]:
    def change(token: str) -> str:
        head, _, signature = token.split(".")
        return f"{head}.{encode(json.dumps(claims).encode())}.{signature}"

    return change


def described(vector: Vector, token: str) -> dict[str, Any]:
    """A vector as the file has it."""
    expected: dict[str, Any] = {"status": 401, "code": "unauthorized"}
    if vector.asks is not None:
        asks = [{"action": action, "room": room or None, "status": status}
                for action, room, status in vector.asks]  # fmt: skip
        expected = {"status": 200, "says": {**vector.says}, "asks": asks}
    made: dict[str, Any] = {"name": vector.name, "signedBy": vector.signer}
    if vector.raw is not None:
        made["broken"] = True
    if vector.confused_with is not None:
        made["confusedWith"] = vector.confused_with
    return {**made, "token": token, "expected": expected}


def document() -> dict[str, Any]:
    """The file, with new public keys."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from jwt import algorithms

    private: dict[str, Any] = {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    known = algorithms.get_default_algorithms()
    jwks: list[dict[str, Any]] = []
    signers: dict[str, Callable[[bytes], bytes]] = {
        "secret": hs256(SECRETS[1]),
        "old-secret": hs256(SECRETS[0]),
        "another-secret": hs256(ANOTHER),
        "nobody": nobody,
    }
    pem: dict[str, str] = {}
    for alg, key in private.items():
        member = known[alg].to_jwk(key.public_key(), as_dict=True)
        member.pop("key_ops", None)
        jwks.append({**member, "kid": alg, "use": "sig", "alg": alg})
        signers[alg] = _signer(known[alg], key)
        pem[alg] = (
            key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )
    made = []
    for vector in (*vectors(NOW), *vectors_with_keys(NOW)):
        confused = vector.confused_with
        sign = signers[vector.signer] if confused is None else hs256(pem[confused])
        made.append(described(vector, vector.signed(sign)))
    return {
        "about": ABOUT,
        "now": NOW,
        "leewaySeconds": LEEWAY_S,
        "secrets": list(SECRETS),
        "jwks": {"keys": jwks},
        "tokens": made,
    }


def _signer(algorithm: Any, key: Any) -> Callable[[bytes], bytes]:
    def sign(signed: bytes) -> bytes:
        made: bytes = algorithm.sign(signed, key)
        return made

    return sign


if __name__ == "__main__":
    FILE.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n")
