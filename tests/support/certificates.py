"""Certificates of an authority that only the tests trust."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)


@dataclass(frozen=True)
class Certified:
    """Files of a server, and what its clients trust.

    Attributes:
        chain: its certificate, and that of the authority between it and the root.
        root: what a client has to trust. It is not in the chain.
    """

    chain: Path
    key: Path
    root: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.root)


def certify(
    folder: Path, days: float = 1, host: str = "127.0.0.1", password: bytes | None = None
) -> Certified:
    """Write what a server at an address needs; what was there before is written over.

    Args:
        days: how long it is good; less than 0: it has ended.
        password: encrypts the key.
    """
    root, between, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    chain = [
        _signed("server", own, "between", between, days, host),
        _signed("between", between, "root", root, days + 1),
    ]
    certified = Certified(folder / "chain.pem", folder / "key.pem", folder / "root.pem")
    certified.root.write_bytes(_signed("root", root, "root", root, days + 1))
    certified.chain.write_bytes(b"".join(chain))
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    certified.key.write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    certified.key.chmod(0o600)
    return certified


def _signed(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuers: ec.EllipticCurvePrivateKey,
    days: float,
    host: str | None = None,
) -> bytes:
    now = datetime.now(UTC)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(authority, False)
        .add_extension(_key_usage(is_authority=host is None), True)
    )
    if host is not None:
        names = [x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(issuers, hashes.SHA256()).public_bytes(Encoding.PEM)


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    """RFC 5280, section 4.2.1.3: Python 3.13 requires it in an authority's."""
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
