"""The Celery app. It reads the settings that begin with ``CELERY_``."""

import os

import celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = celery.Celery("config")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
