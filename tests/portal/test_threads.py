"""A few threads that stay, for the calls of agents: each keeps its connection, until it broke."""

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection

from portal import threads

kept = threads.run  # before the cast's fixture puts the plain way in its place

pytestmark = pytest.mark.django_db(transaction=True)


def look() -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return connection.connection


def leave() -> None:
    connection.close()


async def everywhere(work: Any) -> list[Any]:
    """Once in every thread."""
    meeting = threading.Barrier(threads.AT_ONCE, timeout=30)

    def met() -> Any:
        meeting.wait()
        return work()

    return list(await asyncio.gather(*(kept(met) for _ in range(threads.AT_ONCE))))


def test_a_thread_keeps_its_connection_until_it_broke() -> None:
    def fail() -> None:
        connection.errors_occurred = True  # as Django notes any error of the database
        raise OperationalError("server closed the connection")

    async def story() -> None:
        try:
            first = {id(raw): raw for raw in await everywhere(look)}
            assert len(first) == threads.AT_ONCE
            assert {id(raw) for raw in await everywhere(look)} == first.keys()
            with pytest.raises(OperationalError):
                await kept(fail)
            again = [id(raw) for raw in await everywhere(look)]
            assert len(set(again) - first.keys()) == 1
        finally:
            await everywhere(leave)

    async_to_sync(story)()


def test_no_more_are_at_it_at_once_than_there_are_threads() -> None:
    at_it: list[int] = []
    most: list[int] = []

    def work() -> None:
        at_it.append(1)
        most.append(len(at_it))
        threading.Event().wait(0.02)
        at_it.pop()

    async def story() -> None:
        await asyncio.gather(*(kept(work) for _ in range(40)))

    async_to_sync(story)()
    assert len(most) == 40 and max(most) <= threads.AT_ONCE
