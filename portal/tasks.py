"""Celery tasks of the portal itself."""

from celery import shared_task
from django.utils import timezone

from portal.models import Heartbeat


@shared_task
def beat_heartbeat() -> str:
    """Sent by beat, run by a worker: its row proves to /readyz that both live."""
    now = timezone.now()
    Heartbeat.objects.update_or_create(name="beat", defaults={"at": now})
    return f"Beat and worker lived at {now:%H:%M:%S}."
