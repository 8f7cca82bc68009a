"""A server that answers as a test says, for what no real one at hand does."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress


@contextmanager
def scripted_redis(*replies: bytes) -> Iterator[int]:
    """Answer each connection's first bytes with these replies. Yield the port."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(b"".join(replies))
                    while connection.recv(65536):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends accept()
    thread.join()


def info(**fields: str) -> bytes:
    """Return a reply to INFO."""
    text = "".join(f"{name}:{value}\r\n" for name, value in fields.items()).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)


def bulk(*words: str) -> bytes:
    """Return an array of strings."""
    strings = [b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words]
    return b"".join([b"*%d\r\n" % len(words), *strings])


@asynccontextmanager
async def answering(
    answer: Callable[[bytes], bytes], may: asyncio.Event | None = None
) -> AsyncIterator[int]:
    """A server that answers each request, as soon as it may. Yields the port."""

    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(serve(reader, writer)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.read(65536):
                if may is not None:
                    await may.wait()
                writer.write(answer(request))
        except OSError:
            pass  # reset
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        for each in serving:
            each.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
