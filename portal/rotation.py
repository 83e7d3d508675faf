"""A new property key: everything that is sealed is sealed anew under it, a few rows at a time, while the portal works.

It can be broken off at any moment and called again: a row is under the new key or still under a former one, and all keys are kept.
"""

from collections.abc import Callable, Iterator
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import connection

from portal import vault
from portal.errors import NotAllowed
from portal.models import Property

ROWS = 200


def sealed_columns() -> Iterator[tuple[str, str, str]]:
    """Table, primary key and column of everything that is sealed."""
    for model in apps.get_models():
        for field in model._meta.concrete_fields:
            if isinstance(field, vault.SealedText | vault.SealedBytes) and model._meta.managed:
                yield model._meta.db_table, str(model._meta.pk.column), str(field.column)


def under_former_keys() -> int:
    """How many sealed values are under a key that is not the first. One that no key opens is under none."""
    return sum(bool(_fresh(token)) for table, pk, column in sealed_columns() for _, token in _rows(table, pk, column))


def _fresh(token: Any) -> bytes | None:
    """The token under the first key; None when it is so already, empty when no key opens it."""
    try:
        return vault.reseal(_bytes(token))
    except vault.Unreadable:
        return b""


def begin() -> str:
    """Put a new key first, unless a rotation was broken off. Returns what was done."""
    keys = vault.keys()
    if settings.BATON_PROPERTY_KEYS:
        return "BATON_PROPERTY_KEYS is set: its first key is taken as the new one."
    if len(keys) > 1 and under_former_keys():
        return "An earlier rotation was broken off: it goes on with its key."
    vault.keep_keys([vault.new_key(), *keys])
    return f"A new key stands first in {vault.key_file()}."


def rotate(said: Callable[[str], None]) -> int:
    """Seal everything anew under the first key; returns how many values were. A value that changes meanwhile is left to its writer, who
    uses the first key too; one that no key opens is told, and stays as it is."""
    done = 0
    for table, pk, column in sealed_columns():
        count = lost = 0
        for row, token in _rows(table, pk, column):
            fresh = _fresh(token)
            if fresh:
                count += _replace(table, pk, column, row, token, fresh)
            lost += fresh == b""
        if count:
            said(f"{table}.{column}: {count} sealed anew.")
        if lost:
            said(f"{table}.{column}: {lost} cannot be read, their key is missing. They stay as they are.")
        done += count
    for name in unreadable():
        said(f"{name} cannot be read: put its key back, or set it anew.")
    return done


def unreadable() -> list[str]:
    """Secret properties that no key opens, with their environments."""
    rows = Property.objects.filter(secret=True).select_related("environment__project")
    return [f"{row} on {row.environment}" for row in rows if _fresh(row.sealed) == b""]


def forget_former() -> int:
    """Take former keys out of the file; returns how many. Raises NotAllowed while anything is under one, and for keys of the variable."""
    keys = vault.keys()
    if left := under_former_keys():
        raise NotAllowed(f"{left} sealed values are still under a former key: run rotate_property_keys first.")
    if settings.BATON_PROPERTY_KEYS:
        raise NotAllowed("The keys come from BATON_PROPERTY_KEYS: nothing is under the former ones, so take them out of that variable.")
    vault.keep_keys(keys[:1])
    return len(keys) - 1


def _rows(table: str, pk: str, column: str) -> Iterator[tuple[Any, Any]]:
    quote = connection.ops.quote_name
    last: Any = None
    while True:
        where = f"{quote(pk)} > %s AND " if last is not None else ""
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {quote(pk)}, {quote(column)} FROM {quote(table)} "  # noqa: S608 - names of our own models
                f"WHERE {where}length({quote(column)}) > 0 ORDER BY {quote(pk)} LIMIT {ROWS}",
                [last] if last is not None else [],
            )
            rows = cursor.fetchall()
        yield from rows
        if len(rows) < ROWS:
            return
        last = rows[-1][0]


def _replace(table: str, pk: str, column: str, row: Any, token: Any, fresh: bytes) -> int:
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {quote(table)} SET {quote(column)} = %s WHERE {quote(pk)} = %s AND {quote(column)} = %s",  # noqa: S608
            [fresh.decode() if isinstance(token, str) else fresh, row, token],
        )
        return int(cursor.rowcount)


def _bytes(token: Any) -> bytes:
    if isinstance(token, str):
        return token.encode()
    assert isinstance(token, bytes | memoryview)
    return bytes(token)
