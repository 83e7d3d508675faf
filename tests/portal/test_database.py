"""SQLite under many writers: whoever waits for the lock gets it when it is free, and no wait is longer than the time-out."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import OperationalError, connections, transaction
from pytest_django import DjangoDbBlocker

from portal.database.sqlite3.base import DatabaseWrapper

pytestmark = pytest.mark.skipif(connections["default"].vendor != "sqlite", reason="PostgreSQL has as many writers as it is given")


@pytest.fixture
def waiter(tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[DatabaseWrapper]:
    """A connection of the portal's own kind to a database of its own, with a time-out of 5 s."""
    settings = {**connections["default"].settings_dict, "NAME": str(tmp_path / "busy.sqlite3")}
    settings["OPTIONS"] = {**settings["OPTIONS"], "timeout": 5}
    made = DatabaseWrapper(settings, alias="busy")
    made.inc_thread_sharing()
    connections["busy"] = made
    with django_db_blocker.unblock():
        made.cursor().execute("CREATE TABLE line (number integer)")
        yield made
        made.close()
    del connections["busy"]


def test_whoever_waits_gets_in_when_the_lock_is_free_for_a_moment(waiter: DatabaseWrapper) -> None:
    over = threading.Event()

    def hold() -> None:
        """Somebody who is nearly always writing: 100 ms on, 5 ms off."""
        other = sqlite3.connect(waiter.settings_dict["NAME"], isolation_level=None, timeout=10)
        while not over.is_set():
            other.execute("BEGIN IMMEDIATE")
            time.sleep(0.1)
            other.execute("COMMIT")
            time.sleep(0.005)
        other.close()

    holder = threading.Thread(target=hold)
    holder.start()
    began = time.monotonic()
    try:
        for number in range(10):
            with transaction.atomic(using="busy"):
                waiter.cursor().execute("INSERT INTO line VALUES (%s)", [number])
        took = time.monotonic() - began
    finally:
        over.set()
        holder.join()
    assert took < 8.0, "SQLite's own wait takes about 20 s for it"


def test_a_wait_ends_at_the_time_out_and_says_why(waiter: DatabaseWrapper) -> None:
    waiter.settings_dict["OPTIONS"]["timeout"] = 0.3
    other = sqlite3.connect(waiter.settings_dict["NAME"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(OperationalError, match="database is locked"), transaction.atomic(using="busy"):
        raise AssertionError("two writers at once")
    assert 0.3 <= time.monotonic() - began < 2.0
    other.execute("ROLLBACK")
    other.close()
    with transaction.atomic(using="busy"):
        waiter.cursor().execute("INSERT INTO line VALUES (1)")
