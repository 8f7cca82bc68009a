"""The TLS of connections to Redis."""

from __future__ import annotations

import ssl

from .address import RedisAddress


class TlsFileError(OSError):
    """A file of the URL cannot be used. The message names it, and the part of the URL."""


def tls_context(address: RedisAddress) -> ssl.SSLContext | None:
    """Read the files that the address names, at each connection: they may have been renewed.

    Returns:
        None: the connection is not encrypted.

    Raises:
        TlsFileError: a file cannot be read, or is no PEM file.
    """
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=address.ca)
    except OSError as error:
        raise TlsFileError(f"ca={address.ca}: {_reason(error)}") from None
    if address.cert is not None:
        try:
            context.load_cert_chain(address.cert, address.key, password="")
        except OSError as error:
            files = f"cert={address.cert}" + (f", key={address.key}" if address.key else "")
            raise TlsFileError(f"{files}: {_reason(error)}") from None
    return context


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "not a PEM file of the expected kind, or certificate and key do not belong together"
    return error.strerror or str(error)
