"""Django's SQLite, with a fair wait for the one writer that SQLite allows (settings.DATABASES; PostgreSQL needs nothing of it).

SQLite itself asks for the lock more and more seldom, at last every 0.1 s: of many writers those that came late get in before those that
wait, some of whom reach the time-out ("database is locked") though the lock was free hundreds of times. Here a transaction asks every few
milliseconds for as long as the time-out says; of the threads of one process only one asks, the others stand in line behind it.
"""

import os
import random
import sqlite3
import threading
import time
from typing import Any

from django.db.backends.sqlite3 import base
from django.db.utils import OperationalError

ASK_EVERY_SECONDS = (0.001, 0.004)

_line = threading.Lock()  # many threads that ask would keep the interpreter from the very one that has the lock of the database


def _new_line() -> None:
    global _line
    _line = threading.Lock()


os.register_at_fork(after_in_child=_new_line)  # whoever held it is not there


class DatabaseWrapper(base.DatabaseWrapper):
    transaction_mode: str | None

    def _start_transaction_under_autocommit(self) -> None:
        """Raises OperationalError ("database is locked") after OPTIONS["timeout"] seconds."""
        if self.transaction_mode is None:
            super()._start_transaction_under_autocommit()  # type: ignore[misc]
            return
        seconds = float(self.settings_dict["OPTIONS"].get("timeout", 5.0))
        until, line = time.monotonic() + seconds, _line
        in_front = line.acquire(timeout=seconds)  # who does not get to the front in time asks once and is told
        raw: sqlite3.Connection = self.connection
        try:
            raw.execute("PRAGMA busy_timeout = 0")
            while not self._begun(last=time.monotonic() >= until):
                time.sleep(random.uniform(*ASK_EVERY_SECONDS))  # noqa: S311 - no secret
        finally:
            raw.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            if in_front:
                line.release()

    def _begun(self, *, last: bool) -> bool:
        try:
            self.cursor().execute(f"BEGIN {self.transaction_mode}")
        except OperationalError as error:
            if last or not _is_busy(error):
                raise
            return False
        return True


def _is_busy(error: OperationalError) -> bool:
    cause: Any = error.__cause__
    return isinstance(cause, sqlite3.OperationalError) and cause.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
