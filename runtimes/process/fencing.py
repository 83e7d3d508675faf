"""Fencing for whoever receives what a group of Baton emits: standard library only, to be used from any program.

Failover alone cannot take back what a paused leader had already sent off: a machine that was frozen in the middle of a call finishes that
call when it thaws, and by then another leads. The receiver can tell, by two facts that come with every item (over HTTP as the headers
`Baton-Group`, `Baton-Epoch`, `Idempotency-Key`; to a command as BATON_GROUP_ID, BATON_EPOCH and its own message ids):

1. **Refuse an epoch lower than the highest seen for the group.** Epochs only grow. Epoch 0 comes from a single node, which has no rival:
   it is not compared and never lowers the mark.
2. **Accept each message id of a group once.** Delivery is at least once; the second time is answered as done, and changes nothing.

Both must be decided in the *same transaction* as the change that the item makes, otherwise a stale write slips in between:

    fence = SqlFence(connection)            # sqlite3, or psycopg
    fence.prepare()                         # once: makes the two tables
    with fence.admit(group, epoch, message_id) as cursor:
        if cursor is not None:              # None: seen before
            cursor.execute("INSERT INTO orders (number) VALUES (?)", [number])

`StaleEpoch` is raised for a lower epoch, and nothing of the transaction stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

TABLES = (
    "CREATE TABLE IF NOT EXISTS baton_epochs (group_id VARCHAR(200) PRIMARY KEY, epoch BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS baton_messages (group_id VARCHAR(200) NOT NULL, message_id VARCHAR(200) NOT NULL, epoch BIGINT NOT NULL, "
    "seen_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (group_id, message_id))",
    "CREATE INDEX IF NOT EXISTS baton_messages_seen_at ON baton_messages (seen_at)",
)
STAND = ("SELECT 1 FROM baton_epochs WHERE 1 = 0", "SELECT 1 FROM baton_messages WHERE 1 = 0")
# One statement, so that two writers of a group cannot both compare before either writes: the second waits for the first's row.
RAISE_MARK = """
INSERT INTO baton_epochs (group_id, epoch) VALUES ({0}, {0})
ON CONFLICT (group_id) DO UPDATE SET epoch = excluded.epoch WHERE excluded.epoch >= baton_epochs.epoch
"""
SEE = "INSERT INTO baton_messages (group_id, message_id, epoch) VALUES ({0}, {0}, {0}) ON CONFLICT (group_id, message_id) DO NOTHING"
FORGET = """
DELETE FROM baton_messages WHERE (group_id, message_id) IN
(SELECT group_id, message_id FROM baton_messages WHERE seen_at < {0} AND group_id = {0} LIMIT {0})
"""
FORGET_AT_ONCE = 1000  # ids in one transaction: the fence of the next item waits for it


class StaleEpoch(Exception):  # noqa: N818 - says what happened
    """A higher epoch of this group was seen: the sender no longer leads, and must stop."""

    def __init__(self, group: str, epoch: int, mark: int) -> None:
        super().__init__(f"epoch {epoch} of group {group} is refused: epoch {mark} was seen")
        self.mark = mark


class NotCommitted(Exception):  # noqa: N818 - says what happened
    """The database had ended the transaction by an error that the block kept to itself: nothing of it stands, the id neither."""

    def __init__(self) -> None:
        super().__init__("a statement of the transaction failed, so nothing of it was committed: let its error out of the block")


class EpochMarks:
    """Rule 1 in memory, for a receiver that keeps nothing: one process only, and forgotten at its end."""

    def __init__(self) -> None:
        self._marks: dict[str, int] = {}

    def check(self, group: str, epoch: int) -> None:
        """Raises StaleEpoch."""
        mark = self._marks.get(group, 0)
        if 0 < epoch < mark:
            raise StaleEpoch(group, epoch, mark)
        self._marks[group] = max(mark, epoch)


class SqlFence:
    """Both rules in a database that knows ON CONFLICT: SQLite from 3.24 (`sqlite3`, opened with `isolation_level=None`) or PostgreSQL
    (`psycopg`). One connection belongs to one thread."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._sqlite = type(connection).__module__.startswith("sqlite3")
        self._mark = "?" if self._sqlite else "%s"
        if self._sqlite and connection.isolation_level is not None:
            raise ValueError("open the database with isolation_level=None: this fence begins and ends its transactions by itself")
        if not self._sqlite:
            connection.autocommit = True

    def prepare(self) -> None:
        """Make the tables where they are missing. Where they stand nothing is made, so that a user needs no right to."""
        if self._stand():
            return
        with self._transaction() as cursor:
            for table in TABLES:
                cursor.execute(table)

    def _stand(self) -> bool:
        try:
            with self._transaction() as cursor:
                for look in STAND:
                    cursor.execute(look)
        except Exception:  # whatever else is wrong, making them says so
            return False
        return True

    def fence(self, group: str, epoch: int) -> None:
        """Raise the group's mark before anything is sent: from then on the former leader is refused. Raises StaleEpoch."""
        with self._transaction() as cursor:
            self._compare(cursor, group, epoch)

    @contextmanager
    def admit(self, group: str, epoch: int, message_id: str) -> Iterator[Any]:
        """A transaction for one item: a cursor to make its change with, or None when this id of the group was seen before. It is
        committed at the end of the block and rolled back by any exception.

        Raises:
            StaleEpoch: nothing was changed. NotCommitted: neither.
        """
        with self._transaction() as cursor:
            self._compare(cursor, group, epoch)
            cursor.execute(SEE.format(self._mark), [group, message_id, epoch])
            yield cursor if cursor.rowcount == 1 else None

    def forget(self, group: str, before: Any) -> int:
        """Forget ids of the group that were seen before a moment (UTC), when no sender can repeat them any more; how many. At most
        FORGET_AT_ONCE: repeat it until there are fewer."""
        with self._transaction() as cursor:
            cursor.execute(FORGET.format(self._mark), [before, group, FORGET_AT_ONCE])
            return int(cursor.rowcount)

    def _compare(self, cursor: Any, group: str, epoch: int) -> None:
        if epoch <= 0:
            return
        cursor.execute(RAISE_MARK.format(self._mark), [group, epoch])
        if cursor.rowcount != 1:
            cursor.execute(f"SELECT epoch FROM baton_epochs WHERE group_id = {self._mark}", [group])  # noqa: S608 - a mark of ours
            raise StaleEpoch(group, epoch, int(cursor.fetchone()[0]))

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE" if self._sqlite else "BEGIN")
        try:
            yield cursor
            cursor.execute("COMMIT")
            if not self._sqlite and cursor.statusmessage == "ROLLBACK":  # PostgreSQL's answer in a transaction that has failed
                raise NotCommitted
        except BaseException:
            # SQLite goes on with a transaction whose COMMIT failed (a reader was there too long), and has ended others by itself (a full
            # disk): what is told is why, not how the end of it went.
            with suppress(Exception):
                cursor.execute("ROLLBACK")
            raise
        finally:
            cursor.close()
