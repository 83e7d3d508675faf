"""What the worker of `make bench-rollout` also does: answer a bare task, and say how long its tasks keep it busy."""

import time
from typing import Any

import redis
from celery import shared_task, signals
from django.conf import settings

BUSY, LONGEST, COUNT = "bench:busy", "bench:longest", "bench:tasks"  # seconds; seconds per task name; how many per task name
_begun: dict[str, float] = {}


def client() -> "redis.Redis":
    return redis.Redis.from_url(settings.REDIS_URL)


@shared_task(name="benchmarks.echo")
def echo(key: str) -> None:
    """A bare Celery round trip: sent, taken, answered."""
    client().lpush(key, b"1")


def busy() -> float:
    """Seconds that tasks, all threads together, kept the worker busy until now; bare ones are left out."""
    return float(client().get(BUSY) or 0)


def counted() -> dict[str, int]:
    """How many tasks of which name ran until now."""
    return {name.decode().rpartition(".")[2]: int(count) for name, count in client().hgetall(COUNT).items()}


def _begins(task_id: str, **_: Any) -> None:
    _begun[task_id] = time.monotonic()


def _ends(task_id: str, task: Any, **_: Any) -> None:
    took = time.monotonic() - _begun.pop(task_id, time.monotonic())
    if task.name == echo.name:
        return
    pipeline = client().pipeline()
    pipeline.incrbyfloat(BUSY, took)
    pipeline.hincrby(COUNT, task.name, 1)
    pipeline.zadd(LONGEST, {task.name: took}, gt=True)
    pipeline.execute()


signals.task_prerun.connect(_begins, weak=False)
signals.task_postrun.connect(_ends, weak=False)
