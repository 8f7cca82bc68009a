"""A server that answers with any bytes."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from tests.support.timeouts import TIMEOUT_S


@contextlib.contextmanager
def answering(
    answer: Callable[[socket.socket], None], scheme: str = "http", *, reads: bool = True
) -> Iterator[str]:
    """A server on which each connection gets one answer, written byte by byte if need be."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if reads:
                connection.recv(65536)
            answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR) if sys.platform == "linux" else None
        listener.close()
        thread.join(timeout=TIMEOUT_S)


def raw(status: str, body: bytes, *headers: str) -> Callable[[socket.socket], None]:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]

    def answer(connection: socket.socket) -> None:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    return answer
