"""The environment of the tests: no broker, no room server, no network."""

import os

import django
from django.test.utils import setup_test_environment

os.environ |= {
    "CELERY_BROKER_URL": "memory://",
    "REALTIME_PUBLIC_URL": "http://127.0.0.1:8787",
    "REALTIME_TOKEN_SECRET": "only-for-tests" * 3,
    "DJANGO_SECRET_KEY": "only-for-tests",
    "DJANGO_SETTINGS_MODULE": "config.settings",
}
django.setup()
setup_test_environment()
