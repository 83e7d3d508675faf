"""The Celery app. Tasks live in `<app>/tasks.py`; the state of every long act lives in the database, never in a task."""

import os
from typing import Any

from celery import Celery
from celery.signals import task_postrun

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

app = Celery("baton")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf["CELERY_DB_REUSE_MAX"] = 1000  # tasks before a worker opens its connection to the database anew; Celery reads it by this name
app.autodiscover_tasks()


@task_postrun.connect
def close_broken_connections(**_: Any) -> None:
    """A worker keeps its connections to the database: opening one costs more than most tasks."""
    from portal import threads  # not before Django is set up

    threads.close_broken_connections()
