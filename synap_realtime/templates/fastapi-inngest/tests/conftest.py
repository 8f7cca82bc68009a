"""The environment of the tests: an Inngest server of its own, no room server."""

import os
import socket

with socket.create_server(("127.0.0.1", 0)) as listener:
    free_port = listener.getsockname()[1]

os.environ |= {
    "INNGEST_DEV": f"http://127.0.0.1:{free_port}",
    "REALTIME_PUBLIC_URL": "http://127.0.0.1:8787",
    "REALTIME_TOKEN_SECRET": "only-for-tests" * 3,
    "SESSION_SECRET": "only-for-tests",
}
