"""Who, and what was designed. Loads the Celery app, so that tasks of every process find their broker (Django's convention)."""

from portal.celery import app as celery_app

__all__ = ["celery_app"]
