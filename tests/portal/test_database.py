"""SQLite under many writers: whoever waits for the lock gets it when it is free, and no wait is longer than the time-out. And what is said
when a disk is full or the database away."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import InterfaceError, OperationalError, connections, transaction
from django.test import Client
from pytest_django import DjangoDbBlocker

from portal import problems
from portal.database import away
from portal.database.sqlite3.base import DatabaseWrapper

sqlite = pytest.mark.skipif(connections["default"].vendor != "sqlite", reason="PostgreSQL has as many writers as it is given")


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


@sqlite
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


@sqlite
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


# ---------------------------------------------------------------------------------------------------- what people are told then

WORDS = [
    pytest.param(OperationalError("database or disk is full"), "its disk is full", id="full"),
    pytest.param(OperationalError("database is locked"), "Too many write", id="locked"),
    pytest.param(InterfaceError("connection already closed"), "does not answer as it should", id="away"),
]


@sqlite
def test_a_full_disk_is_known_by_what_sqlite_says_itself(waiter: DatabaseWrapper) -> None:
    cursor = waiter.cursor()
    (pages,) = cursor.execute("PRAGMA page_count").fetchone()
    cursor.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OperationalError) as error, transaction.atomic(using="busy"):
        waiter.cursor().executemany("INSERT INTO line VALUES (%s)", [[number] for number in range(10_000)])
    refusal = away(error.value)
    assert refusal is not None and refusal.status == 503 and "its disk is full. Nothing of this was done." in refusal.sentence
    assert waiter.cursor().execute("SELECT count(*) FROM line").fetchone() == (0,)


@pytest.mark.django_db
@pytest.mark.parametrize(("error", "words"), WORDS)
def test_a_person_reads_why_the_portal_can_do_nothing(
    client: Client, viewer: User, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.force_login(viewer)
    client.raise_request_exception = False
    monkeypatch.setattr("django.contrib.sessions.backends.db.SessionStore.load", lambda self: (_ for _ in ()).throw(error))
    answer = client.get("/projects/")
    assert answer.status_code == 503 and answer["Retry-After"] == "5"
    assert words in answer.content.decode() and "Runtimes and their failover on the machines go on." in answer.content.decode()
    within = client.get("/projects/", headers={"HX-Request": "true"})
    assert within.status_code == 200 and within["HX-Reswap"] == "none" and words in within.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(("error", "words"), WORDS)
def test_programs_and_agents_are_told_too(client: Client, error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = problems.handle(error, {})
    assert answer is not None and (answer.status_code, answer.data["code"]) == (503, "database-away") and words in answer.data["detail"]
    monkeypatch.setattr("runtimes.joining.machine_of", lambda credential: (_ for _ in ()).throw(error))
    told = client.get("/agent/v1/bundles/abc/", headers={"Authorization": "Bearer x"})
    assert (told.status_code, told.json()["code"]) == (503, "database-away") and words in told.json()["detail"]


@pytest.mark.django_db
def test_a_mistake_of_ours_is_no_trouble_of_the_database(client: Client, viewer: User, monkeypatch: pytest.MonkeyPatch) -> None:
    client.force_login(viewer)
    client.raise_request_exception = False
    monkeypatch.setattr("django.contrib.sessions.backends.db.SessionStore.load", lambda self: 1 / 0)
    answer = client.get("/projects/")
    assert answer.status_code == 500 and "Something went wrong in the portal" in answer.content.decode()
