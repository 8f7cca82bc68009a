"""TLS of ``serve``: bounded handshakes, and a certificate that is reloaded when it changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from ...errors import ConfigurationError
from ..config import FileWatcher
from ..deadlines import Closable, PendingConnections

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0
"""Time for a client to complete the handshake."""

SHUTDOWN_TIMEOUT_S = 5.0
"""Time for a client to answer the server's closure alert (RFC 8446, section 6.1)."""

_CERT, _KEY = "--tls-cert (SYNAP_REALTIME_TLS_CERT)", "--tls-key (SYNAP_REALTIME_TLS_KEY)"


class TlsAcceptor:
    """Performs the TLS handshake of new connections.

    The event loop's own server hides connections until their handshake is complete, so that none
    could be aborted to admit another, and it cannot replace its certificate.
    """

    def __init__(
        self,
        pending_connections: PendingConnections,
        connections: set[Closable],
        certificate: ReloadingCertificate,
        create_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        """
        Args:
            pending_connections, connections: hold the connections whose handshake is not complete.
            certificate: the certificate for new handshakes.
            create_protocol: called for each accepted connection.
        """
        self._pending_connections = pending_connections
        self._connections = connections
        self._certificate = certificate
        self._create_protocol = create_protocol
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, peer: socket.socket) -> None:
        """See :class:`server.Acceptor`."""
        task = asyncio.get_running_loop().create_task(self._handshake(peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handshake(self, peer: socket.socket) -> None:
        pending = _PendingTls(peer)
        self._connections.add(pending)
        self._pending_connections.add(pending, HANDSHAKE_TIMEOUT_S)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._create_protocol,
                peer,
                ssl=self._certificate.context(),
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except OSError as error:
            logger.debug("TLS handshake failed: %s", error)
        finally:
            self._pending_connections.remove(pending)
            self._connections.discard(pending)


class _PendingTls:
    """A connection whose TLS handshake is not complete."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def abort(self) -> None:
        """Close immediately: the transport reads the end of the stream and closes the socket."""
        with contextlib.suppress(OSError):  # closed already
            self._peer.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """Close immediately, as no request was sent yet. The server stops."""
        self.abort()


class ReloadingCertificate:
    """A certificate and its key, read again when their files change.

    Attributes:
        not_after: when the certificate expires.
    """

    def __init__(
        self, chain: Path, key: Path, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            chain: PEM file with the server's certificate, followed by the intermediate ones.
            key: PEM file with the private key, not encrypted.
            clock: monotonic seconds.

        Raises:
            ConfigurationError: a file cannot be used, or the key does not belong to the
                certificate.
        """
        self._files = chain, key
        self._watched = FileWatcher(chain, key, clock=clock)
        self._context, self.not_after = _load(chain, key)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context for a new handshake, after reloading changed files.

        If changed files cannot be used, an error is logged once and the previous certificate stays
        in use. Open connections are not affected.
        """
        if self._watched.have_changed():
            try:
                self._context, self.not_after = _load(*self._files)
            except ConfigurationError as error:
                logger.error("certificate reload failed, keeping previous one: %s", error)
            else:
                logger.info("reloaded certificate %s, expires %s", self._files[0], self.not_after)
        return self._context


def open_certificate(chain: Path | None, key: Path | None) -> ReloadingCertificate | None:
    """Open the certificate of the settings. Return None if TLS is not configured.

    Raises:
        ConfigurationError: a file cannot be used, or only one of the two is configured.
    """
    if chain is None and key is None:
        return None
    if chain is None or key is None:
        given, missing = (_KEY, _CERT) if chain is None else (_CERT, _KEY)
        raise ConfigurationError(f"{given} needs {missing} as well")
    return ReloadingCertificate(chain, key)


def _load(chain: Path, key: Path) -> tuple[ssl.SSLContext, datetime]:
    """Return a server-side TLS context and the expiry of its certificate."""
    not_after = _expiry(chain, _read(_CERT, chain))
    if b"PRIVATE KEY-----" not in _read(_KEY, key):
        raise ConfigurationError(f"{_KEY}: {key}: expected a private key (PEM)")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996 deprecates older versions
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(chain, key, _refuse_password)
    except _EncryptedError:
        raise ConfigurationError(
            f"{_KEY}: {key} is encrypted, and the server has no password for it; decrypt it with "
            "openssl pkey into a file that only the server may read"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigurationError(
                f"{_KEY}: {key} is not the key of the first certificate in {chain}"
            ) from None
        raise ConfigurationError(
            f"{_CERT}, {_KEY}: {chain} and {key} cannot be used ({error.reason or error})"
        ) from None
    except OSError as error:  # a file was removed after it was read above
        raise ConfigurationError(f"{_CERT}, {_KEY}: {chain}, {key}: {error.strerror}") from None
    return context, not_after


def _read(option: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{option}: {file}: {error.strerror}") from None


def _expiry(chain: Path, content: bytes) -> datetime:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(content)[0].not_valid_after_utc
    except ValueError:
        raise ConfigurationError(f"{_CERT}: {chain}: expected certificates (PEM)") from None


class _EncryptedError(Exception):
    """The private key is encrypted."""


def _refuse_password() -> NoReturn:
    raise _EncryptedError
