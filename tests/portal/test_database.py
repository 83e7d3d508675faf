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
    """A connection of the portal's own kind to a database of its own, with a time-out of 20 s."""
    settings = {**connections["default"].settings_dict, "NAME": str(tmp_path / "busy.sqlite3")}
    settings["OPTIONS"] = {**settings["OPTIONS"], "timeout": 20}
    made = DatabaseWrapper(settings, alias="busy")
    made.inc_thread_sharing()
    connections["busy"] = made
    with django_db_blocker.unblock():
        made.cursor().execute("CREATE TABLE line (number integer)")
        yield made
        made.close()
    del connections["busy"]


def test_whoever_waits_gets_in_as_soon_as_the_lock_is_free_however_long_he_waited(waiter: DatabaseWrapper) -> None:
    delays = []
    for held in (0.45, 0.47, 0.5, 0.53, 0.56):  # SQLite itself asks every 0.1 s by then: at 0.428, 0.528, 0.628 s
        freed: list[float] = []
        began = threading.Event()

        def hold(seconds: float = held, freed: list[float] = freed, began: threading.Event = began) -> None:
            other = sqlite3.connect(waiter.settings_dict["NAME"], isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            began.set()
            time.sleep(seconds)
            freed.append(time.monotonic())
            other.execute("COMMIT")
            other.close()

        holder = threading.Thread(target=hold)
        holder.start()
        began.wait()
        with transaction.atomic(using="busy"):
            delays.append(time.monotonic() - freed[0])
        holder.join()
    assert sorted(delays)[2] < 0.025, delays


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
