"""PROTOCOL.md, "Authentication and authorization": the vectors that all implementations share.

First that ``tests/conformance/tokens.json`` is consistent, then that the server decides as it says.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, tzinfo
from threading import Thread
from typing import Any, cast

import jwt
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from synap_realtime.protocol.rooms import parse_room
from synap_realtime.server.auth.authorization import AccessControl, Action, require_scope
from synap_realtime.server.auth.keys import KeyRing
from synap_realtime.server.auth.limits import Limits
from synap_realtime.server.auth.revocations import Revocations
from synap_realtime.server.auth.tokens import Authenticator
from synap_realtime.server.config import load_settings
from synap_realtime.server.errors import RejectedError
from synap_realtime.server.messages import to_request_error
from synap_realtime.server.stores.memory import MemoryStore
from tests.conformance import vectors

DOCUMENT: dict[str, Any] = json.loads(vectors.FILE.read_text())
TOKENS: list[dict[str, Any]] = DOCUMENT["tokens"]
MADE = [*vectors.vectors(vectors.NOW), *vectors.vectors_with_keys(vectors.NOW)]


def b64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def public_key(kid: str) -> Any:
    (member,) = (member for member in DOCUMENT["jwks"]["keys"] if member["kid"] == kid)
    return jwt.PyJWK(member).key


def has_signed(signer: str, signed: bytes, signature: bytes) -> bool:
    """Whether it was this one, by cryptography alone (RFC 7518, section 3; RFC 8037)."""
    older, newer = DOCUMENT["secrets"]
    if signer == "nobody":
        return signature == b""
    secrets = {"secret": newer, "old-secret": older, "another-secret": vectors.ANOTHER}
    if signer in secrets:
        digest = hmac.digest(secrets[signer].encode(), signed, hashlib.sha256)
        return hmac.compare_digest(digest, signature)
    key = public_key(signer)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        else:
            cast(ed25519.Ed25519PublicKey, key).verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def test_the_file_has_each_vector_once() -> None:
    names = [vector.name for vector in MADE]
    assert len(set(names)) == len(names)
    assert [entry["name"] for entry in TOKENS] == names
    head = {name: DOCUMENT[name] for name in ("about", "now", "leewaySeconds", "secrets")}
    assert head == {
        "about": vectors.ABOUT,
        "now": vectors.NOW,
        "leewaySeconds": vectors.LEEWAY_S,
        "secrets": list(vectors.SECRETS),
    }
    assert all("d" not in member for member in DOCUMENT["jwks"]["keys"]), "public keys only"


@pytest.mark.parametrize("place", range(len(MADE)), ids=[vector.name for vector in MADE])
def test_each_vector_matches_its_description(place: int) -> None:
    """Its header, its payload, who signed it, and what is expected of it."""
    vector, entry = MADE[place], TOKENS[place]
    token = entry["token"]
    assert vectors.described(vector, token) == entry
    if vector.raw is not None and vector.signer == "secret":  # the same bytes each time
        assert token == vector.signed(vectors.hs256(vectors.SECRETS[1]))
        return
    head, body, signature = token.split(".")
    assert json.loads(b64(head)) == vector.full_header()
    if vector.raw is not None:  # it was another payload that was signed
        assert json.loads(b64(body)) != vector.claims
        body = vectors.encode(json.dumps(vector.claims).encode())
    assert json.loads(b64(body)) == vector.claims
    signed = f"{head}.{body}".encode()
    if vector.confused_with is not None:
        pem = public_key(vector.confused_with).public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        assert hmac.digest(pem, signed, hashlib.sha256) == b64(signature)
    else:
        assert has_signed(entry["signedBy"], signed, b64(signature))


# --- what our server makes of them


class Stopped(datetime):
    """The clock of the file."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Stopped:
        return cls.fromtimestamp(vectors.NOW, tz)


@pytest.fixture(scope="module")
def jwks_url() -> Iterator[str]:
    """An identity provider that answers with the file's public keys."""
    content = json.dumps(DOCUMENT["jwks"]).encode()

    class Provider(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/jwks"
        server.shutdown()
        thread.join()


@pytest.fixture
async def access(jwks_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AccessControl]:
    monkeypatch.setattr("jwt.api_jwt.datetime", Stopped)
    ring = KeyRing(token_secrets=DOCUMENT["secrets"], jwks_urls=[jwks_url])
    leeway_s = DOCUMENT["leewaySeconds"]
    authenticator = Authenticator(ring, leeway_s=leeway_s, clock=lambda: vectors.NOW)
    store = MemoryStore()
    yield AccessControl(authenticator, Revocations(store), Limits(load_settings()))
    await authenticator.close()
    await store.close()


async def status_of(access: AccessControl, claims: Any, ask: dict[str, Any]) -> int:
    action: Action = ask["action"]
    try:
        if ask["room"] is not None:
            await access.authorize(claims, action, parse_room(ask["room"]))
        else:
            require_scope(claims, *(("metrics", "admin") if action == "metrics" else (action,)))
    except RejectedError as error:
        return to_request_error(error).response.status
    return 200


@pytest.mark.parametrize("entry", TOKENS, ids=[entry["name"] for entry in TOKENS])
async def test_our_server_agrees(access: AccessControl, entry: dict[str, Any]) -> None:
    expected = entry["expected"]
    if expected["status"] != 200:
        with pytest.raises(RejectedError) as caught:
            await access.authenticate_credential(entry["token"], None)
        answer = to_request_error(caught.value)
        assert answer.response.status == expected["status"]
        assert answer.body["code"] == expected["code"]
        return
    claims = await access.authenticate_credential(entry["token"], None)
    said = {"user": claims.user, "scopes": sorted(claims.scopes), "device": claims.device}
    assert said == expected["says"]
    for ask in expected["asks"]:
        assert await status_of(access, claims, ask) == ask["status"], ask
