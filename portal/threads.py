"""Threads for the calls of agents under ASGI: a few that stay, each with its connection to the database.

Django gives every request a thread of its own, which opens a connection of its own (1 ms of computing on SQLite, more on PostgreSQL), and
when a client gives up, the work goes on there: of agents that try again, more and more of them. Here what is too much waits its turn.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.db import connections

P = ParamSpec("P")
T = TypeVar("T")

AT_ONCE = 8

_pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="agents")


async def run(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns or raises, from one of the threads."""

    def kept() -> T:
        try:
            return work(*args, **kwargs)
        finally:
            close_broken_connections()

    done: Callable[[], Any] = sync_to_async(kept, thread_sensitive=False, executor=_pool)
    answer: T = await done()
    return answer


def close_broken_connections(**_: Any) -> None:
    """For threads that keep their connections: after any error of the database they are closed, so that one that broke serves nobody
    again."""
    for connection in connections.all(initialized_only=True):
        if connection.errors_occurred and not connection.in_atomic_block:
            connection.close()
