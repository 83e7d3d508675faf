"""What /readyz asks: each check returns a sentence on what is missing, or nothing when all is well.

Higher apps add their own checks in `AppConfig.ready()` (docs/architecture.md, layer rule 5): the portal imports none of them.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.utils.dateparse import parse_datetime
from redis.backoff import NoBackoff
from redis.retry import Retry

from portal.models import Heartbeat

Check = Callable[[datetime], str]

HEARTBEAT_OLD_AFTER = timedelta(seconds=10)  # beat sends one every 2 s
BROKER_SECONDS = 1.0


def stack_started_at() -> datetime | None:
    """When this `make run` began; None for a portal that runs by other means."""
    return parse_datetime(settings.BATON_STACK_STARTED_AT) if settings.BATON_STACK_STARTED_AT else None


def database(now: datetime) -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM portal_heartbeat LIMIT 1")
    except DatabaseError as error:
        return f"The database does not answer: {error}."
    return ""


def broker(now: datetime) -> str:
    try:
        with redis.Redis.from_url(
            settings.REDIS_URL, socket_timeout=BROKER_SECONDS, socket_connect_timeout=BROKER_SECONDS, retry=Retry(NoBackoff(), 0)
        ) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        return f"The broker does not answer: {error}."
    return ""


def worker_and_beat(now: datetime) -> str:
    """One row proves both: beat sends a task, a worker writes when it ran it."""
    try:
        heartbeat = Heartbeat.objects.filter(name="beat").first()
    except DatabaseError as error:
        return f"The heartbeat cannot be read: {error}."
    started_at = stack_started_at()
    if heartbeat is None or (started_at and heartbeat.at < started_at):
        return "Worker and beat have not answered yet."
    if now - heartbeat.at > HEARTBEAT_OLD_AFTER:
        return f"Worker or beat are silent for {(now - heartbeat.at).total_seconds():.0f} s."
    return ""


checks: dict[str, Check] = {"database": database, "broker": broker, "worker and beat": worker_and_beat}


def look(now: datetime) -> dict[str, str]:
    """Every check with its sentence, empty when all is well. Without a database the checks that need one say nothing of their own."""
    missing = database(now)
    if missing:
        return {"database": missing, "broker": broker(now)}
    return {name: check(now) for name, check in checks.items()}
