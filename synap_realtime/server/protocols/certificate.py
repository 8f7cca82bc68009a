"""The certificate that ``serve`` shows, and its key: files that are renewed meanwhile."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from ...errors import ConfigurationError
from ..watched import FileWatcher

logger = logging.getLogger(__name__)

_CERT, _KEY = "--tls-cert (SYNAP_REALTIME_TLS_CERT)", "--tls-key (SYNAP_REALTIME_TLS_KEY)"


class ReloadingCertificate:
    """What is shown to those who come now.

    Attributes:
        ends: until when it is good.
    """

    def __init__(
        self, chain: Path, key: Path, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            chain: PEM: the server's certificate first, then those between it and the root's.
            key: PEM, not encrypted.

        Raises:
            ConfigurationError: names the file that cannot be used, or says that they do not fit.
        """
        self._files = chain, key
        self._watched = FileWatcher(chain, key, clock=clock)
        self._context, self.not_after = _load(chain, key)

    def context(self) -> ssl.SSLContext:
        """For a handshake that begins now. Connections that are there keep what they have.

        Files that have become unreadable or wrong are said once, and their last good contents
        count.
        """
        if self._watched.have_changed():
            try:
                self._context, self.not_after = _load(*self._files)
            except ConfigurationError as error:
                logger.error("the certificate stays as it was: %s", error)
            else:
                logger.info("%s has changed: good until %s", self._files[0], self.not_after)
        return self._context


def open_certificate(chain: Path | None, key: Path | None) -> ReloadingCertificate | None:
    """The certificate of the settings; None: no TLS.

    Raises:
        ConfigurationError: it cannot be used, or there is only one of the two.
    """
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        given, missing = (_KEY, _CERT) if chain is None else (_CERT, _KEY)
        raise ConfigurationError(f"{given} needs {missing} as well")
    return ReloadingCertificate(chain, key)


def _load(chain: Path, key: Path) -> tuple[ssl.SSLContext, datetime]:
    """A context for the server's side, and until when its certificate is good."""
    ends = _end_of(chain, _read(_CERT, chain))
    if b"PRIVATE KEY-----" not in _read(_KEY, key):
        raise ConfigurationError(f"{_KEY}: {key}: expected a private key (PEM)")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996: the older ones are dead
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(chain, key, _refuse_password)
    except _EncryptedError:
        raise ConfigurationError(
            f"{_KEY}: {key} is encrypted, and nobody is there to type a password; "
            "openssl pkey writes it without one, into a file that only the server may read"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"{_KEY}: {key} is not the key of the first certificate in {chain}"
            ) from None
        raise ConfigurationError(
            f"{_CERT}, {_KEY}: {chain} and {key} cannot be used ({error.reason or error})"
        ) from None
    except OSError as error:  # one of them went away meanwhile
        raise ConfigurationError(f"{_CERT}, {_KEY}: {chain}, {key}: {error.strerror}") from None
    return context, ends


def _read(option: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{option}: {file}: {error.strerror}") from None


def _end_of(chain: Path, content: bytes) -> datetime:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(content)[0].not_valid_after_utc
    except ValueError:
        raise ConfigurationError(f"{_CERT}: {chain}: expected certificates (PEM)") from None


class _EncryptedError(Exception):
    """The key cannot be read without a password."""


def _refuse_password() -> NoReturn:
    raise _EncryptedError
