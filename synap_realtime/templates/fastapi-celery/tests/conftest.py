"""The environment of the tests: no broker, no room server, no network."""

import os

os.environ |= {
    "CELERY_BROKER_URL": "memory://",
    "REALTIME_PUBLIC_URL": "http://127.0.0.1:8787",
    "REALTIME_TOKEN_SECRET": "only-for-tests" * 3,
    "SESSION_SECRET": "only-for-tests",
}
