"""Waking an agent that waits for orders: a message on a channel of the Redis-protocol server, sent by any portal process.

Only a hint: who waits also looks into the database every second, so a broker that is away costs at most that second and nothing else.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from functools import cache

import redis
import redis.asyncio
from django.conf import settings
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = logging.getLogger(__name__)

SEND_TIMEOUT_SECONDS = 0.1  # each for connecting and for sending: a page waits 0.2 s at most
PAUSE_AFTER_FAILURE_SECONDS = 2.0  # a broker that is away is not asked again before

_failed_at = float("-inf")  # time.monotonic() of the last failure in this process


def channel(machine_id: int) -> str:
    return f"{settings.BATON_PREFIX}orders:{machine_id}"


@cache
def _client(url: str) -> "redis.Redis":
    return redis.Redis.from_url(
        url, socket_connect_timeout=SEND_TIMEOUT_SECONDS, socket_timeout=SEND_TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)
    )


def _away(error: Exception) -> None:
    global _failed_at
    if time.monotonic() - _failed_at > 60:
        logger.warning("Waiting agents are not woken, they look by themselves every second: the broker does not answer (%s).", error)
    _failed_at = time.monotonic()


def _asleep() -> bool:
    return time.monotonic() - _failed_at < PAUSE_AFTER_FAILURE_SECONDS


def send(machine_ids: Iterable[int]) -> None:
    """Wake the agents of these machines. Never raises, never takes longer than 0.3 s."""
    if _asleep():
        return
    try:
        pipeline = _client(settings.REDIS_URL).pipeline(transaction=False)
        for machine_id in machine_ids:
            pipeline.publish(channel(machine_id), b"")
        pipeline.execute()
    except (redis.RedisError, OSError) as error:
        _away(error)


class Ear:
    """Listens for one machine's wake-ups. Without a broker it only waits; it tries to connect again now and then."""

    def __init__(self, machine_id: int) -> None:
        self._channel = channel(machine_id)
        self._client: redis.asyncio.Redis | None = None
        self._pubsub: PubSub | None = None

    async def wait(self, seconds: float) -> bool:
        """True as soon as a wake-up comes; False after `seconds`."""
        end = time.monotonic() + seconds
        try:
            if self._pubsub is None and not _asleep():
                await self._open()
            while self._pubsub is not None and (left := end - time.monotonic()) > 0:
                message = await self._pubsub.get_message(timeout=left)
                if message is not None and message["type"] == "message":
                    return True
        except (redis.RedisError, OSError, TimeoutError) as error:
            _away(error)
            await self.close()
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        return False

    async def _open(self) -> None:
        self._client = redis.asyncio.Redis.from_url(
            settings.REDIS_URL, socket_connect_timeout=0.2, socket_timeout=0.5, retry=AsyncRetry(NoBackoff(), 0)
        )
        self._pubsub = self._client.pubsub()
        await self._pubsub.subscribe(self._channel)

    async def close(self) -> None:
        pubsub, client, self._pubsub, self._client = self._pubsub, self._client, None, None
        with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
            if pubsub is not None:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
        with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
            if client is not None:
                await client.aclose()
