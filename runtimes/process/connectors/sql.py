"""Outbound `sql`: one statement per item in SQLite or PostgreSQL, in one transaction with the fence (runtimes/process/fencing.py).

A stale epoch is refused by the database itself, and an item that was delivered before changes nothing.
"""

import importlib
import os
import re
import socket
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from runtimes.process.connectors.base import Fenced, Item, ItemError, NotReady, Outbound, Refusing, Setting, Unavailable, outbound
from runtimes.process.fencing import FORGET_AT_ONCE, SqlFence, StaleEpoch
from runtimes.process.permits import Duty, PermitEnded
from runtimes.protocol import ComponentKind

PARAMETER = re.compile(r"(?<!:):([a-z_]+)")
KNOWN = ("id", "content", "text", "name", "size", "flow", "group", "epoch", "machine")
CONNECT_SECONDS, ANSWER_SECONDS = 3, 5
REMEMBER_DAYS = 90.0  # a delivered item's id; longer than a failed one is kept
FORGET_SECONDS = 3600.0
CONTENT_LIMIT = 64 * 1024 * 1024  # bytes of one item, which is held in memory


@outbound(ComponentKind.SQL)
class SqlOutbound(Outbound):
    """Settings: url, statement, remember_days."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._url = setting.text("url")
        parts = urlsplit(self._url)
        if parts.scheme not in ("sqlite", "postgresql", "postgres"):
            raise setting.error("url", "is not usable", "write it as sqlite:///path or postgresql://user:password@host/database")
        self._sqlite = parts.scheme == "sqlite"
        self._path = unquote(parts.path)
        if self._sqlite and (parts.netloc or not self._path.startswith("/") or self._path == "/"):
            raise setting.error("url", "names no file by its absolute path", "write it as sqlite:///var/lib/orders.db")
        self._where = self._path if self._sqlite else f"{parts.hostname or 'localhost'}{parts.path}"
        statement = setting.text("statement")
        self._parameters: list[str] = PARAMETER.findall(statement)
        unknown = sorted(set(self._parameters) - set(KNOWN))
        if unknown:
            raise setting.error("statement", f"names :{unknown[0]}", f"it may name {', '.join(':' + name for name in KNOWN)}")
        self._statement = PARAMETER.sub("?", statement) if self._sqlite else PARAMETER.sub("%s", statement.replace("%", "%%"))
        self._remembered = timedelta(days=setting.number("remember_days", REMEMBER_DAYS, 1, 3650))
        self._forget_at = 0.0  # time.monotonic()
        self._driver: Any = sqlite3
        self._connection: Any = None
        self._fence: SqlFence | None = None
        self._file: tuple[int, int] | None = None  # device and inode of the open SQLite file

    def prepare(self) -> None:
        if self._sqlite:
            return
        try:
            self._driver = importlib.import_module("psycopg")
        except ImportError as error:
            raise NotReady("PostgreSQL needs psycopg on this machine: install the extra `postgres` of the agent's package") from error

    def begin(self, duty: Duty) -> None:
        """Connect, and raise the group's mark before anything is taken."""
        self._close()
        try:
            fence = self._connect()
            fence.prepare()
            if duty.group is not None:
                fence.fence(duty.group, duty.epoch)
        except StaleEpoch as error:
            raise Fenced(f"the database {self._where} refuses: {error}") from error
        except (sqlite3.Error, self._driver.Error) as error:
            raise self._away(error) from error

    def deliver(self, item: Item, duty: Duty) -> None:
        values = self._values(item, duty)
        try:
            fence = self._standing()
            duty.check()
            with fence.admit(duty.group or "", duty.epoch if duty.group is not None else 0, item.id) as cursor:
                if cursor is None:
                    self._setting.log.info(f"item {item.id} was written before: it counts as delivered, nothing is changed", item=item.id)
                else:
                    cursor.execute(self._statement, [values[name] for name in self._parameters])
                duty.check()  # the commit comes next
            self._forget(fence, duty)
        except StaleEpoch as error:
            raise Fenced(f"the database {self._where} refuses: {error}") from error
        except (ItemError, PermitEnded):
            raise
        except (sqlite3.Error, self._driver.Error) as error:
            if isinstance(error, (sqlite3.IntegrityError, sqlite3.DataError, self._driver.IntegrityError, self._driver.DataError)):
                raise ItemError(f"the database {self._where} does not take it: {_first_line(error)}") from error
            raise self._away(error) from error

    def _forget(self, fence: SqlFence, duty: Duty) -> None:
        """Old ids, now and then: the item itself is delivered, so what goes wrong here is only said."""
        if time.monotonic() < self._forget_at:
            return
        self._forget_at = time.monotonic() + FORGET_SECONDS
        before = datetime.now(UTC).replace(tzinfo=None) - self._remembered
        try:
            while duty.taking and fence.forget(duty.group or "", before) == FORGET_AT_ONCE:
                pass
        except (sqlite3.Error, self._driver.Error) as error:
            self._setting.log.warning(f"the database {self._where} does not let old ids be forgotten: {_first_line(error)}")

    def abort(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if self._sqlite:
                connection.interrupt()
            else:
                with socket.socket(fileno=os.dup(connection.fileno())) as cut:
                    cut.shutdown(socket.SHUT_RDWR)
        except Exception:  # noqa: S110 - the worker uses the connection that is cut here; nothing may reach the election loop
            pass

    def _values(self, item: Item, duty: Duty) -> dict[str, Any]:
        if item.size > CONTENT_LIMIT:
            raise ItemError(f"it has {item.size} bytes: a statement takes at most {CONTENT_LIMIT}")
        with item.open() as chunks:
            content = b"".join(chunks)
        values: dict[str, Any] = {
            "id": item.id,
            "content": content,
            "name": item.name.decode("utf-8", "replace"),
            "size": len(content),
            "flow": item.origin.flow,
            "group": item.origin.group,
            "epoch": duty.epoch,
            "machine": item.origin.machine,
        }
        if "text" in self._parameters:
            try:
                values["text"] = content.decode()
            except UnicodeDecodeError as error:
                raise ItemError(f"it is not UTF-8 text, which :text asks for: {error}; use :content for bytes") from error
        return values

    def _standing(self) -> SqlFence:
        """The connection that stands, or a new one. Raises Unavailable."""
        if self._fence is not None and self._file is not None and self._file != (now := _file_of(self._path)):
            if now is None:  # nothing is made where one was
                raise Unavailable(f"the database {self._path} is gone: bring it back")
            self._setting.log.warning(f"the database {self._path} was replaced by another file: it is opened anew")
            self._close()  # SQLite would refuse the former one as read-only for good
        if self._fence is not None:
            return self._fence
        fence = self._connect()
        fence.prepare()
        return fence

    def _connect(self) -> SqlFence:
        if self._sqlite:
            seconds = float(ANSWER_SECONDS)
            self._connection = sqlite3.connect(self._path, timeout=seconds, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous=FULL")
            self._file = _file_of(self._path)
        else:
            milliseconds = ANSWER_SECONDS * 1000
            options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
            self._connection = self._driver.connect(self._url, connect_timeout=CONNECT_SECONDS, options=options, autocommit=True)
        self._fence = SqlFence(self._connection)
        return self._fence

    def _away(self, error: Exception) -> Unavailable:
        """A locked table or a syntax error is answered by a database that is there, a broken connection is not."""
        alive = self._connection is not None and (self._sqlite or not getattr(self._connection, "closed", True))
        if not alive:
            self._close()
            return Unavailable(f"the database {self._where} cannot be reached: {_first_line(error)}")
        return Refusing(f"the database {self._where} refuses: {_first_line(error)}")

    def _close(self) -> None:
        connection, self._connection, self._fence = self._connection, None, None
        if connection is not None:
            try:
                connection.close()
            except Exception:
                self._setting.log.debug("a broken database connection could not be closed")


def _file_of(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
