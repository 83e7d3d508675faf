"""The fencing helpers and the outbound `sql`: real databases, two real processes racing."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtimes.process.connectors import sql
from runtimes.process.connectors.base import ConfigError, Fenced, Item, ItemError, Origin, Setting, Unavailable
from runtimes.process.connectors.sql import SqlOutbound
from runtimes.process.fencing import EpochMarks, NotCommitted, SqlFence, StaleEpoch
from runtimes.process.permits import Duty, PermitEnded
from runtimes.protocol import Component, ComponentKind
from tests.runtimes.process.lab import ROOT, free_port, until

EPOCH = 10**12 + 5
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of its own, as the unprivileged user that it insists on."""
    if not POSTGRES:
        pytest.skip("no PostgreSQL server on this machine")
    home = Path(tempfile.mkdtemp(prefix="baton-pg-"))
    shutil.chown(home, "nobody")
    port = free_port()
    as_user: dict[str, Any] = {"user": "nobody"} if os.getuid() == 0 else {}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": home, **as_user}
    subprocess.run([POSTGRES[-1] / "initdb", "-D", home / "data", "-U", "baton", "-A", "trust", "-N"], check=True, timeout=60, **quiet)
    server = [POSTGRES[-1] / "postgres", "-D", home / "data", "-p", str(port), "-k", home, "-c", "listen_addresses=127.0.0.1", "-F"]
    process = subprocess.Popen(server, **quiet)
    url = f"postgresql://baton@127.0.0.1:{port}/postgres"
    try:
        until(lambda: _answers(url), 15, "PostgreSQL answers")
        yield url
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(home)


def _answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=1).close()
    except psycopg.Error:
        return False
    return True


@contextmanager
def opened(url: str) -> Iterator[Any]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite://"), timeout=10, isolation_level=None)) as connection:
            yield connection
    else:
        import psycopg

        with closing(psycopg.connect(url, autocommit=True)) as connection:
            yield connection


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    url = f"sqlite://{tmp_path}/orders.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    with opened(url) as connection:
        for table in ("orders", "baton_epochs", "baton_messages"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
        connection.execute(
            "CREATE TABLE orders (number VARCHAR(100), content VARCHAR(100) NOT NULL, epoch BIGINT, CHECK (content <> 'bad'))"
        )
    yield url


def rows(url: str) -> list[Any]:
    with opened(url) as connection:
        return [tuple(row) for row in connection.execute("SELECT number, content, epoch FROM orders ORDER BY epoch, number").fetchall()]


# ---------------------------------------------------------------------------------------------------------------------- the rules


@pytest.mark.parametrize(
    ("seen", "comes", "accepted"),
    [
        pytest.param([], 5, True, id="the first"),
        pytest.param([5], 5, True, id="the same leader again"),
        pytest.param([5], 7, True, id="a later leader"),
        pytest.param([5, 7], 5, False, id="a former leader"),
        pytest.param([7], 0, True, id="a single node is not compared"),
        pytest.param([7, 0], 5, False, id="a single node does not lower the mark"),
    ],
)
def test_an_epoch_lower_than_the_highest_seen_is_refused(database: str, seen: list[int], comes: int, accepted: bool) -> None:
    marks = EpochMarks()
    with opened(database) as connection:
        fence = SqlFence(connection)
        fence.prepare()
        for epoch in seen:
            fence.fence("g", epoch)
            marks.check("g", epoch)
        for check in (fence.fence, marks.check):
            if accepted:
                check("g", comes)
            else:
                with pytest.raises(StaleEpoch, match="epoch 7 was seen"):
                    check("g", comes)
        fence.fence("another group", 1)


def test_an_id_is_seen_once_and_what_failed_leaves_nothing(database: str) -> None:
    with opened(database) as connection:
        fence = SqlFence(connection)
        fence.prepare()
        with pytest.raises(ZeroDivisionError), fence.admit("g", 5, "a") as cursor:
            cursor.execute("INSERT INTO orders VALUES ('1', 'x', 5)")
            raise ZeroDivisionError
        assert rows(database) == []
        for _ in range(2):
            with fence.admit("g", 5, "a") as cursor:
                if cursor is not None:
                    cursor.execute("INSERT INTO orders VALUES ('1', 'x', 5)")
        assert rows(database) == [("1", "x", 5)]
        with fence.admit("another group", 5, "a") as cursor:
            assert cursor is not None, "publishers of two groups may number alike"
        tomorrow = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
        assert (fence.forget("g", tomorrow), fence.forget("g", tomorrow)) == (1, 0)
        with fence.admit("another group", 5, "a") as cursor:
            assert cursor is None, "the others' are kept"


def test_a_user_who_may_only_write_needs_no_right_to_make_tables(postgres: str) -> None:
    with opened(postgres) as owner:
        owner.execute("DROP TABLE IF EXISTS baton_epochs, baton_messages")
        owner.execute("DROP ROLE IF EXISTS writer")
        owner.execute("CREATE ROLE writer LOGIN")
        owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        SqlFence(owner).prepare()
        owner.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON baton_epochs, baton_messages TO writer")
        with opened(postgres.replace("baton@", "writer@")) as connection:
            fence = SqlFence(connection)
            fence.prepare()
            with fence.admit("g", 5, "a") as cursor:
                assert cursor is not None
        owner.execute("DROP OWNED BY writer")
        owner.execute("DROP ROLE writer")


def test_an_error_that_is_swallowed_within_the_block_is_no_success(database: str) -> None:
    """PostgreSQL answers COMMIT in a transaction that has failed, and undoes it."""
    with opened(database) as connection:
        fence = SqlFence(connection)
        fence.prepare()
        written = True
        try:
            with fence.admit("g", 5, "a") as cursor:
                cursor.execute("INSERT INTO orders VALUES ('1', 'x', 5)")
                with suppress(Exception):
                    cursor.execute("INSERT INTO orders VALUES ('2', 'bad', 5)")
        except NotCommitted:
            written = False
        assert rows(database) == ([("1", "x", 5)] if written else []), "what is told is what stands"
        with fence.admit("g", 5, "a") as cursor:
            assert (cursor is None) is written


def test_a_commit_that_fails_leaves_nothing_open_and_says_why(tmp_path: Path) -> None:
    """SQLite goes on with a transaction whose COMMIT failed: it would lock the database, and no other could begin."""
    path = tmp_path / "orders.db"
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection, closing(sqlite3.connect(path)) as reader:
        connection.execute("CREATE TABLE orders (number VARCHAR(100))")
        fence = SqlFence(connection)
        fence.prepare()
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM orders").fetchall()  # a long report
        with pytest.raises(sqlite3.OperationalError, match="database is locked"), fence.admit("g", 5, "a") as cursor:
            cursor.execute("INSERT INTO orders VALUES ('1')")
        reader.execute("COMMIT")
        with fence.admit("g", 5, "a") as cursor:
            cursor.execute("INSERT INTO orders VALUES ('1')")
        assert connection.execute("SELECT number FROM orders").fetchall() == [("1",)]


def test_an_error_that_ended_the_transaction_by_itself_is_the_one_that_is_told(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "orders.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE orders (number VARCHAR(100) UNIQUE ON CONFLICT ROLLBACK)")
        fence = SqlFence(connection)
        fence.prepare()
        connection.execute("INSERT INTO orders VALUES ('1')")
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"), fence.admit("g", 5, "a") as cursor:
            cursor.execute("INSERT INTO orders VALUES ('1')")


def test_the_outbound_forgets_the_ids_of_long_ago_by_itself(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "FORGET_SECONDS", 0.0)
    outbound = target(database, tmp_path)
    outbound.begin(duty())
    for key in ("a", "b", "c"):
        outbound.deliver(item(key), duty())
    long_ago = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=91)
    with opened(database) as connection:
        mark = "?" if database.startswith("sqlite") else "%s"
        connection.execute(f"UPDATE baton_messages SET seen_at = {mark} WHERE message_id <> 'c'", [long_ago])
        outbound.deliver(item("d"), duty())
        left = connection.execute("SELECT message_id FROM baton_messages ORDER BY message_id").fetchall()
    assert [row[0] for row in left] == ["c", "d"]
    outbound._close()


RACER = """
    import sys, time
    sys.path.insert(0, {root!r})
    from tests.runtimes.process.test_fencing import *
    url, epoch, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    with opened(url) as connection:
        fence = SqlFence(connection)
        time.sleep(wait)
        for number in range(300):
            try:
                with fence.admit("g", epoch, f"m{{number}}") as cursor:
                    if cursor is not None:
                        cursor.execute(f"INSERT INTO orders VALUES ('{{number}}', 'x', {{epoch}})")
            except StaleEpoch:
                print(number)
                break
"""


def test_of_two_racing_leaders_the_former_writes_nothing_after_the_laters_first_and_no_item_twice(database: str) -> None:
    with opened(database) as connection:
        SqlFence(connection).prepare()
        serial = "ROWID" if database.startswith("sqlite") else "position"
        if serial == "position":
            connection.execute("ALTER TABLE orders ADD COLUMN position SERIAL")
    script = textwrap.dedent(RACER.format(root=str(ROOT))).replace(
        "INSERT INTO orders VALUES", "INSERT INTO orders (number, content, epoch) VALUES"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    racers = [
        subprocess.Popen([sys.executable, "-c", script, database, str(epoch), str(wait)], env=environment, stdout=subprocess.PIPE)
        for epoch, wait in ((5, 0.0), (6, 0.1))
    ]
    said = [racer.communicate(timeout=60)[0].decode().strip() for racer in racers]
    assert all(racer.returncode == 0 for racer in racers)
    with opened(database) as connection:
        found = connection.execute(f"SELECT number, epoch FROM orders ORDER BY {serial}").fetchall()
    epochs = [epoch for _, epoch in found]
    assert epochs == sorted(epochs), "once the later leader wrote, the former wrote nothing"
    assert sorted(int(number) for number, _ in found) == list(range(300)), "each item once, none lost"
    assert said[1] == "" and (said[0] == "" or int(said[0]) == epochs.count(5))


# ------------------------------------------------------------------------------------------------------------------- the outbound


def target(
    url: str, tmp_path: Path, statement: str = "INSERT INTO orders (number, content, epoch) VALUES (:id, :text, :epoch)"
) -> SqlOutbound:
    component = Component(kind=ComponentKind.SQL, settings={"url": url, "statement": statement})
    made = SqlOutbound(Setting("f", "erp-orders", component, "outbound", "external01.erp", "external01", tmp_path, structlog.get_logger()))
    made.prepare()
    return made


def item(key: str, content: bytes = b"x") -> Item:
    @contextmanager
    def opening() -> Iterator[Iterator[bytes]]:
        yield iter([content])

    return Item(key, b"order.xml", len(content), Origin("erp-orders", "orders", EPOCH, "external01"), opening)


def duty(epoch: int = EPOCH, clock: Callable[[], float] = lambda: 0.0) -> Duty:
    return Duty("g", "orders", epoch, 1.0, clock)


def test_the_outbound_delivers_once_and_a_former_leader_is_refused(database: str, tmp_path: Path) -> None:
    old, new = target(database, tmp_path), target(database, tmp_path)
    old.begin(duty(EPOCH))
    old.deliver(item("a"), duty(EPOCH))
    old.deliver(item("a"), duty(EPOCH))
    new.begin(duty(EPOCH + 1))
    with pytest.raises(Fenced, match=f"epoch {EPOCH + 1} was seen"):
        old.deliver(item("b"), duty(EPOCH))
    new.deliver(item("b"), duty(EPOCH + 1))
    assert rows(database) == [("a", "x", EPOCH), ("b", "x", EPOCH + 1)]
    for outbound in (old, new):
        outbound._close()


def test_an_ended_permit_commits_nothing_and_a_bad_item_is_its_own_fault(database: str, tmp_path: Path) -> None:
    outbound = target(database, tmp_path)
    outbound.begin(duty())
    answers = iter([0.0, 2.0])
    with pytest.raises(PermitEnded):
        outbound.deliver(item("a"), duty(clock=lambda: next(answers)))
    with pytest.raises(ItemError, match="does not take it"):
        outbound.deliver(item("b", b"bad"), duty())
    with pytest.raises(ItemError, match="not UTF-8"):
        outbound.deliver(item("c", b"\xff"), duty())
    outbound.deliver(item("d"), duty())
    assert [row[0] for row in rows(database)] == ["d"]
    outbound._close()


def test_a_database_file_that_was_replaced_under_the_flow_gets_what_comes_next(tmp_path: Path) -> None:
    """As by a backup that was put in its place: SQLite refuses to write the former file, for as long as it is open."""
    for name in ("orders.db", "restored.db"):
        with opened(f"sqlite://{tmp_path}/{name}") as connection:
            connection.execute("CREATE TABLE orders (number TEXT, content TEXT, epoch BIGINT)")
    outbound = target(f"sqlite://{tmp_path}/orders.db", tmp_path)
    outbound.begin(duty())
    outbound.deliver(item("a"), duty())
    (tmp_path / "restored.db").replace(tmp_path / "orders.db")
    outbound.deliver(item("b"), duty())
    with opened(f"sqlite://{tmp_path}/orders.db") as connection:
        assert connection.execute("SELECT number FROM orders").fetchall() == [("b",)]
    (tmp_path / "orders.db").rename(tmp_path / "away.db")
    with pytest.raises(Unavailable, match="is gone: bring it back"):
        outbound.deliver(item("c"), duty())
    assert not (tmp_path / "orders.db").exists()
    (tmp_path / "away.db").rename(tmp_path / "orders.db")
    outbound.deliver(item("c"), duty())
    outbound._close()


def test_a_database_that_is_away_or_has_no_such_table_is_not_the_items_fault(database: str, tmp_path: Path) -> None:
    away = "sqlite:///no/such/folder/x.db" if database.startswith("sqlite") else "postgresql://baton@127.0.0.1:1/postgres"
    with pytest.raises(Unavailable, match="cannot be reached"):
        target(away, tmp_path).begin(duty())
    wrong = target(database, tmp_path, "INSERT INTO nowhere VALUES (:id)")
    wrong.begin(duty())
    with pytest.raises(Unavailable, match="refuses"):
        wrong.deliver(item("a"), duty())
    wrong._close()


@pytest.mark.parametrize(
    ("url", "statement", "says"),
    [
        pytest.param("mysql://x", "x", "setting url .* is not usable", id="a database it does not know"),
        pytest.param("sqlite://x.db", "x", "names no file by its absolute path", id="no absolute path"),
        pytest.param("sqlite:////tmp/x.db", "INSERT INTO t VALUES (:when)", "names :when; it may name :id", id="an unknown parameter"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(tmp_path: Path, url: str, statement: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        target(url, tmp_path, statement)
