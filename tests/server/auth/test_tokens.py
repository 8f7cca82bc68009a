"""PROTOCOL.md, "Authentication and authorization": which tokens are valid."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest

from synap_realtime.server.auth import jwks
from synap_realtime.server.auth.keys import KeyRing
from synap_realtime.server.auth.tokens import Authenticator, InvalidTokenError
from synap_realtime.tokens import mint_token
from tests.support.credentials import API_KEY
from tests.support.keys import DOCUMENT, EC_KEY, ED_KEY, PRIVATE, RSA_KEY

OLD, NEW, OTHER = "o" * 32, "n" * 32, "x" * 32
CLAIMS = {"sub": "1", "exp": time.time() + 3600}


def authenticator(**options: Any) -> Authenticator:
    ring = KeyRing(token_secrets=[OLD, NEW], api_keys={"jobs": API_KEY})
    return Authenticator(ring, **options)


def sign(claims: dict[str, Any], secret: str = NEW, **header: Any) -> str:
    return jwt.encode({"exp": time.time() + 60, **claims}, secret, "HS256", headers=header or None)


def raw(header: object, claims: object, secret: str = NEW) -> str:
    """A token of any shape, with a good signature."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(x).encode()).rstrip(b"=") for x in (header, claims)
    ]
    signature = hmac.digest(secret.encode(), b".".join(parts), hashlib.sha256)
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


async def refused(token: str, **options: Any) -> InvalidTokenError:
    with pytest.raises(InvalidTokenError) as caught:
        await authenticator(**options).authenticate(token)
    assert token not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("secret", [OLD, NEW])
async def test_each_of_several_secrets_verifies(secret: str) -> None:
    token = mint_token("1", rooms=["request_*"], device="phone", secret=secret)
    claims = await authenticator().authenticate(token)
    assert (claims.user, claims.rooms, claims.device) == ("1", ("request_*",), "phone")
    assert claims.scopes == {"subscribe"}
    assert claims.expires_at is not None
    assert 890 < claims.expires_at - time.time() <= 900


async def test_a_publishers_key_is_no_user() -> None:
    claims = await authenticator().authenticate(API_KEY)
    assert (claims.key_name, claims.user) == ("jobs", None)
    assert claims.scopes == {"broadcast"}


@pytest.mark.parametrize("wrong", [API_KEY[:-1], API_KEY + "k", "", "x", "a.b", "é" * 43])
async def test_rejects_token_of_another_key(wrong: str) -> None:
    await refused(wrong or "-")


async def test_rejects_forged_token() -> None:
    await refused(sign({"sub": "1"}, OTHER))
    good = sign({"sub": "1"})
    head, _, signature = good.split(".")
    claims = {"sub": "2", "exp": time.time() + 600}
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
    await refused(f"{head}.{body.rstrip('=')}.{signature}")
    await refused(f"{head}..{signature}")


@pytest.mark.parametrize(
    "alg", ["none", "None", "HS384", "HS512", "RS384", "PS256", "", None, 7, ["HS256"], {}]
)
async def test_rejects_another_algorithm(alg: object) -> None:
    await refused(raw({"alg": alg, "typ": "JWT"}, {"sub": "1", "exp": time.time() + 600}))


async def test_rejects_unsigned_token() -> None:
    await refused(jwt.encode({"sub": "1", "exp": time.time() + 600}, "", algorithm="none"))


async def test_rejects_unknown_critical_header() -> None:
    """RFC 7515, section 4.1.11."""
    await refused(raw({"alg": "HS256", "crit": ["exp"], "exp": 1}, {"exp": time.time() + 600}))


async def test_token_without_expiry_is_rejected() -> None:
    error = await refused(raw({"alg": "HS256"}, {"sub": "1"}))
    assert "exp" in str(error)


@pytest.mark.parametrize(
    "exp", [10**400, 9e9, time.time() + 100 * 86_400], ids=["huge", "2255", "in 100 days"]
)
async def test_a_token_that_would_outlive_its_revocation_is_refused(exp: float) -> None:
    for times in ({"exp": exp}, {"exp": exp, "iat": time.time()}, {"exp": exp, "iat": 0}):
        error = await refused(raw({"alg": "HS256"}, {"sub": "1", **times}))
        assert "--token-max-lifetime-s" in str(error)


async def test_the_longest_lifetime_is_an_option() -> None:
    now = time.time()
    for lifetime_s, is_good in ((59.0, False), (61.0, True)):
        token = raw({"alg": "HS256"}, {"sub": "1", "iat": now, "exp": now + 60})
        if is_good:
            await authenticator(max_lifetime_s=lifetime_s).authenticate(token)
        else:
            await refused(token, max_lifetime_s=lifetime_s)


@pytest.mark.parametrize("claim", ["sub", "jti"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\0", "a\n", "\x1b[2J", "\x7f", "\x85"])
async def test_refuses_text_that_cannot_be_printed(claim: str, text: str) -> None:
    error = await refused(raw({"alg": "HS256"}, {"exp": time.time() + 60, claim: text}))
    assert f"'{claim}'" in str(error)
    assert "no control characters and no lone surrogates" in str(error)
    assert str(error).isascii()


async def test_reason_repeats_no_input() -> None:
    for claims in ({"rooms": ["User_hunter2"]}, {"device": "hunter2 "}, {"sub": "hunter2\n"}):
        error = await refused(raw({"alg": "HS256"}, {"exp": time.time() + 60, **claims}))
        assert "hunter2" not in str(error)


async def test_reports_expiry_with_a_leeway() -> None:
    assert (await refused(sign({"exp": time.time() - 30}))).expired
    claims = await authenticator().authenticate(sign({"exp": time.time() - 5}))
    assert claims.expires_at is not None
    assert (await refused(sign({"exp": time.time() - 5}), leeway_s=0)).expired


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": "soon"}, {"exp": True}, {"exp": None}, {"exp": [1]}, {"exp": 1e400}, {"exp": {}},
        {"sub": 1}, {"sub": ""}, {"sub": ["1"]}, {"sub": "x" * 513},
        {"rooms": "user_1"}, {"rooms": [1]}, {"rooms": ["*_1"]}, {"rooms": ["user_1\n"]},
        {"rooms": ["synap_revocations"]}, {"rooms": ["a_b"] * 1001},
        {"scope": 1}, {"scope": [1]}, {"device": "a b"}, {"device": 1}, {"jti": 7},
        {"iat": "x"}, {"nbf": time.time() + 3600}, {"iat": time.time() + 3600},
        {"iat": None}, {"nbf": None}, {"nbf": "x"}, {"nbf": True},
    ],
)  # fmt: skip
async def test_rejects_invalid_claims(claims: dict[str, Any]) -> None:
    await refused(raw({"alg": "HS256"}, {"exp": time.time() + 60, **claims}))


@pytest.mark.parametrize("claim", ["iat", "nbf"])
async def test_tolerates_a_clock_that_is_ahead(claim: str) -> None:
    token = raw({"alg": "HS256"}, {"exp": time.time() + 60, claim: time.time() + 5})
    await authenticator().authenticate(token)
    error = await refused(token, leeway_s=0)
    assert str(error).startswith("token not valid yet")


def signed_as(body: str) -> str:
    """A token whose payload is this text, with a good signature."""
    head = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=").decode()
    signature = hmac.digest(NEW.encode(), f"{head}.{body}".encode(), hashlib.sha256)
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


async def test_accepts_padded_segments() -> None:
    """Some identity providers do not remove the padding."""
    claims = json.dumps({"sub": "1", "exp": int(time.time()) + 600, "a": ""})
    claims = claims.replace('"a": ""', f'"a": "{"x" * ((1 - len(claims)) % 3)}"')
    padded = base64.urlsafe_b64encode(claims.encode()).decode()
    assert padded.endswith("==")
    for body in (padded, padded.rstrip("=")):
        assert (await authenticator().authenticate(signed_as(body))).user == "1"
    await refused(signed_as(padded.removesuffix("=")))


@pytest.mark.parametrize("change", ["last bits", "standard alphabet", "line break", "not ASCII"])
async def test_rejects_another_spelling_of_a_segment(change: str) -> None:
    claims = json.dumps({"sub": "1", "exp": int(time.time()) + 600, "a": "??>>" * 3})
    body = base64.urlsafe_b64encode(claims.encode() + b" " * ((1 - len(claims)) % 3)).decode()
    body = body.rstrip("=")
    assert {"-", "_"} & set(body)
    match change:
        case "last bits":  # the same bytes
            body = body[:-1] + chr(ord(body[-1]) + 1)
        case "standard alphabet":
            body = body.replace("-", "+").replace("_", "/")
        case "line break":
            body = f"{body[:8]}\n{body[8:]}"
        case _:
            body = f"{body[:8]}\xe9{body[8:]}"
    await refused(signed_as(body))


@pytest.mark.parametrize("payload", [[], "x", 1, None])
async def test_rejects_payload_that_is_not_an_object(payload: object) -> None:
    await refused(raw({"alg": "HS256"}, payload))


async def test_unknown_scopes_grant_nothing() -> None:
    claims = await authenticator().authenticate(sign({"scope": "openid email presence"}))
    assert claims.scopes == {"presence"}


async def test_issuer_and_audience() -> None:
    token = sign({"iss": "https://id.example", "aud": "realtime"})
    await refused(token)  # it was made for somebody
    await refused(token, audience="another")
    await refused(token, audience="realtime", issuer="https://evil.example")
    await refused(sign({}), audience="realtime")
    found = await authenticator(audience="realtime", issuer="https://id.example").authenticate(
        token
    )
    assert found.raw_claims["iss"] == "https://id.example"


async def test_overlong_token_is_not_parsed() -> None:
    await refused("a" * 9000)


# --- the keys of others


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An identity provider's answer, without the network; test_jwks.py has a real one."""
    state: dict[str, Any] = {"document": DOCUMENT, "fetched": 0}

    async def load(self: jwks.Jwks) -> None:
        state["fetched"] += 1
        self.replace(jwks.parse_keys(json.dumps(state["document"]).encode()))

    monkeypatch.setattr(jwks.Jwks, "_load", load)
    return state


def with_provider() -> Authenticator:
    return Authenticator(KeyRing(token_secrets=[NEW], jwks_urls=["https://id.example/jwks"]))


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("kid", [True, False])
async def test_accepts_token_of_a_provider(provider: dict[str, Any], alg: str, kid: bool) -> None:
    headers = {"kid": alg} if kid else None
    token = jwt.encode(CLAIMS, PRIVATE[alg], alg, headers=headers)  # type: ignore[arg-type]
    assert (await with_provider().authenticate(token)).user == "1"


async def test_revocation_ignores_the_signature_encoding(provider: dict[str, Any]) -> None:
    """Of ES256's (r, s), (r, n - s) is good, too: who was revoked would be back with it."""
    n = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    token = jwt.encode({"sub": "1", "exp": time.time() + 600}, EC_KEY, "ES256")
    signed, _, signature = token.rpartition(".")
    r_and_s = base64.urlsafe_b64decode(signature + "==")
    s = n - int.from_bytes(r_and_s[32:])
    other = base64.urlsafe_b64encode(r_and_s[:32] + s.to_bytes(32)).decode().rstrip("=")
    one, two = [await with_provider().authenticate(each) for each in (token, f"{signed}.{other}")]
    assert one.token_id == two.token_id == await with_provider().id_of(token)


async def test_a_public_key_is_no_shared_secret(provider: dict[str, Any]) -> None:
    """RFC 8725, section 2.1: `alg` confusion."""
    from cryptography.hazmat.primitives import serialization as s

    pem = RSA_KEY.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem.decode(), json.dumps(DOCUMENT["keys"][0]), DOCUMENT["keys"][0]["n"]):
        token = raw({"alg": "HS256", "kid": "RS256"}, CLAIMS, secret)
        with pytest.raises(InvalidTokenError):
            await with_provider().authenticate(token)


@pytest.mark.parametrize(
    "broken",
    [
        {"kty": "OKP", "crv": "Ed448", "x": "A" * 76, "alg": "none"},
        {"kty": "RSA", "n": 1, "e": []},
        {"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"},
        {"kty": []},
        None,
    ],
)
async def test_unusable_public_key_does_not_affect_others(
    provider: dict[str, Any], broken: object
) -> None:
    provider["document"] = {"keys": [broken, *DOCUMENT["keys"]]}
    token = jwt.encode(CLAIMS, ED_KEY, "EdDSA")
    assert (await with_provider().authenticate(token)).user == "1"


async def test_ignores_shared_secret_in_jwks(provider: dict[str, Any]) -> None:
    k = base64.urlsafe_b64encode(OTHER.encode()).decode().rstrip("=")
    provider["document"] = {"keys": [{"kty": "oct", "k": k, "kid": "a"}, "junk", {"kty": "RSA"}]}
    with pytest.raises(InvalidTokenError):
        await with_provider().authenticate(sign({"sub": "1"}, OTHER, kid="a"))


async def test_unknown_key_ids_do_not_flood_the_provider(provider: dict[str, Any]) -> None:
    subject = with_provider()
    for number in range(20):
        token = jwt.encode(CLAIMS, RSA_KEY, "RS256", headers={"kid": f"k{number}"})
        with pytest.raises(InvalidTokenError):
            await subject.authenticate(token)
    assert provider["fetched"] == 1
