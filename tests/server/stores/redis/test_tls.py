"""TLS to a real server; each mistake is one clear error."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import Retention
from tests.support.certificates import Certified, certify
from tests.support.polling import until_ready
from tests.support.program import free_port
from tests.support.stores import publication
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import REDIS, Valkey, needs_redis, running_valkey

pytestmark = needs_redis


class TlsServer:
    """A server with a TLS port beside the plain one."""

    def __init__(self, folder: Path, **certificate: float | str) -> None:
        self.certified: Certified = certify(folder, **certificate)  # type: ignore[arg-type]
        self.port = free_port()
        self.options = (
            *("--tls-port", str(self.port), "--tls-cert-file", str(self.certified.chain)),
            *("--tls-key-file", str(self.certified.key)),
            *("--tls-ca-cert-file", str(self.certified.root)),
        )

    def url(self, options: str = "", port: int | None = None) -> str:
        return f"rediss://127.0.0.1:{port or self.port}{options}"

    @property
    def ca(self) -> str:
        return f"?ca={self.certified.root}"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsServer:
    return TlsServer(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(tls: TlsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    options = (*tls.options, "--tls-auth-clients", "no")
    with running_valkey(tmp_path_factory.mktemp("redis"), *options, program=REDIS) as server:
        yield server


@pytest.mark.usefixtures("server")
async def test_a_file_names_the_authority_to_trust(tls: TlsServer) -> None:
    store = open_store(tls.url(tls.ca), Retention())
    room = publication("n1").room
    await store.join(room)
    async with asyncio.timeout(TIMEOUT_S):
        assert (await store.publish([publication("n1")]))[0].broadcast_count == 1
    await until_ready(store)
    await store.close()


@pytest.mark.usefixtures("server")
def test_an_untrusted_certificate(tls: TlsServer) -> None:
    with pytest.raises(ConfigurationError, match=r"not trusted: .*\?ca=") as wrong:
        open_store(tls.url(), Retention())
    assert "--store" in str(wrong.value)


def test_a_certificate_for_another_host(tmp_path: Path) -> None:
    tls = TlsServer(tmp_path, host="127.0.0.2")
    options = (*tls.options, "--tls-auth-clients", "no")
    with (
        running_valkey(tmp_path / "redis", *options, program=REDIS),
        pytest.raises(ConfigurationError, match=r"not trusted: .*127\.0\.0\.1"),
    ):
        open_store(tls.url(tls.ca), Retention())


async def test_tls_to_a_port_without(
    tls: TlsServer, server: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tls.url(tls.ca, server.port), Retention())
    assert "if this port does not use TLS, write redis://" in caplog.text
    await store.close()


@pytest.mark.usefixtures("server")
async def test_no_tls_to_a_port_with_it(tls: TlsServer, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(f"redis://127.0.0.1:{tls.port}", Retention())
    assert "if this port expects TLS, write rediss://" in caplog.text
    await store.close()


async def test_a_server_that_asks_for_a_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = TlsServer(tmp_path)
    with running_valkey(tmp_path / "redis", *tls.options, program=REDIS):
        said = ""
        try:  # whether the reason arrives before the reset of the connection is a race
            await open_store(tls.url(tls.ca), Retention()).close()
        except ConfigurationError as error:
            said = str(error)
        assert "if it asks for a certificate of the client" in said + caplog.text
        assert "?cert=" in said + caplog.text
        files = f"&cert={tls.certified.chain}&key={tls.certified.key}"
        store = open_store(tls.url(tls.ca + files), Retention())
        await store.publish([publication("n1")])
        await store.close()


@pytest.mark.usefixtures("server")
def test_a_file_that_is_no_certificate(tls: TlsServer, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    with pytest.raises(ConfigurationError, match=f"ca={file}: not a PEM file"):
        open_store(tls.url(f"?ca={file}"), Retention())
    with pytest.raises(ConfigurationError, match=f"cert={file}, key={tls.certified.key}: not a"):
        open_store(tls.url(f"{tls.ca}&cert={file}&key={tls.certified.key}"), Retention())
