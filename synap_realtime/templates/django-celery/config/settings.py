"""Django's settings, from the environment."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).parent.parent

SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
DEBUG = os.environ.get("DJANGO_DEBUG") == "1"
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "127.0.0.1,localhost").split(",")

INSTALLED_APPS = ["django.contrib.staticfiles", "reports"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"  # needs no database
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG
STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
TIME_ZONE = "UTC"
USE_TZ = True

# The room server as browsers reach it.
REALTIME_PUBLIC_URL = os.environ["REALTIME_PUBLIC_URL"]

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
if CELERY_BROKER_URL.startswith("filesystem:"):
    _queue = BASE_DIR / ".queue"
    _queue.mkdir(exist_ok=True)
    CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "data_folder_in": str(_queue),
        "data_folder_out": str(_queue),
        "control_folder": str(_queue),
        "polling_interval": 0.1,
    }
