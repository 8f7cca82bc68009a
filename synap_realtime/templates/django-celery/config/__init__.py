"""The project. Celery finds its app here: ``celery -A config worker``."""

from .celery import app as celery_app

__all__ = ["celery_app"]
