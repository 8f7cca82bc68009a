"""Key pairs of an identity provider, and the JWK set (RFC 7517) that it publishes."""

from __future__ import annotations

from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa


def public_jwk(key: Any, kid: str) -> dict[str, Any]:
    algorithm: dict[type, Any] = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    kind = next(kind for kind in algorithm if isinstance(key, kind))
    document: dict[str, Any] = algorithm[kind].to_jwk(key.public_key(), as_dict=True)
    document.pop("key_ops", None)
    return {**document, "kid": kid, "use": "sig"}


RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
PRIVATE = {"RS256": RSA_KEY, "ES256": EC_KEY, "EdDSA": ED_KEY}
DOCUMENT = {"keys": [public_jwk(key, alg) for alg, key in PRIVATE.items()]}
