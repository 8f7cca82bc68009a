"""Tokens of subscribers, by the algorithms of the scenario ``connects``."""

from __future__ import annotations

import http.server
import json
import secrets
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

Algorithm = Literal["HS256", "ES256", "RS256"]

LIFETIME_S = 3600


class Signer:
    """An identity provider with one key.

    Attributes:
        algorithm: how it signs.
        secret: for HS256, the secret that servers share with it.
        public_key: otherwise, as PEM.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm
        self.secret = ""
        self.public_key = ""
        self._jwks: http.server.ThreadingHTTPServer | None = None
        self._key: Any
        if algorithm == "HS256":
            self._key = self.secret = secrets.token_urlsafe(32)
            return
        if algorithm == "ES256":
            self._key = ec.generate_private_key(ec.SECP256R1())
        else:
            self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.public_key = (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def sign(self, user: str, **claims: object) -> str:
        """Return a token of a user, with the claims that every server needs."""
        now = int(time.time())
        times = {"iat": now, "exp": now + LIFETIME_S, "jti": str(uuid.uuid4())}
        headers = None if self.algorithm == "HS256" else {"kid": "bench"}
        return jwt.encode({"sub": user, **claims, **times}, self._key, self.algorithm, headers)

    def serve_jwks(self) -> str:
        """Serve the public key as a JWK set on loopback while the program runs; return the URL."""
        if self._jwks is None:
            body = json.dumps({"keys": [self._jwk()]}).encode()

            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, *_: object) -> None:
                    pass

            self._jwks = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=self._jwks.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._jwks.server_port}/jwks.json"

    def _jwk(self) -> Mapping[str, object]:
        of = jwt.get_algorithm_by_name(self.algorithm)
        jwk: Mapping[str, object] = of.to_jwk(self._key.public_key(), as_dict=True)
        return {**jwk, "kid": "bench", "use": "sig", "alg": self.algorithm}
