"""What the worker of `make bench-rollout` also does: answer a bare task, and say how long its tasks keep it busy and its looks take."""

import functools
import json
import time
from typing import Any

import redis
from celery import shared_task, signals
from django.conf import settings

BUSY, LONGEST, COUNT = "bench:busy", "bench:longest", "bench:tasks"  # seconds; seconds per task name; how many per task name
LOOKS = "bench:looks"  # [id of the step, moment when the look began, moment when it was committed] of each look at a step
_begun: dict[str, float] = {}


@functools.cache
def client() -> "redis.Redis":
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=None)


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


def looks() -> dict[int, list[tuple[float, float]]]:
    """Begin and end (seconds since the epoch) of each look at a step until now, by its id."""
    found: dict[int, list[tuple[float, float]]] = {}
    for said in client().lrange(LOOKS, 0, -1):
        step, begun, ended = json.loads(said)
        found.setdefault(step, []).append((begun, ended))
    return found


def time_looks() -> None:
    """From here on this process writes down how long each of its looks takes."""
    from deployments import rollout

    tick = rollout.tick

    @functools.wraps(tick)
    def timed(step_id: int, **more: Any) -> str:
        begun = time.time()
        try:
            return tick(step_id, **more)
        finally:
            client().rpush(LOOKS, json.dumps([step_id, begun, time.time()]))

    rollout.tick = timed


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


signals.worker_init.connect(lambda **_: time_looks(), weak=False)
signals.task_prerun.connect(_begins, weak=False)
signals.task_postrun.connect(_ends, weak=False)
