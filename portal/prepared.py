"""Queries that are asked at every report of every machine and at every look at a step. Django makes the SQL of a query anew each time it
is asked, which takes several times as long as SQLite or PostgreSQL take to answer; of these it is made once in a process.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from django.db import connections
from django.db.models import QuerySet

Row = TypeVar("Row")
Given = int | str | datetime


class Prepared(Generic[Row]):
    """One query with open places: `build` makes the queryset of what is given for them (ints, strings and moments, never None; each of one
    kind, compared as it is, and none of them decides which lookups the queryset has). It is called once; the rows are asked for at every
    call.

        of_machine = Prepared(lambda machine: Runtime.objects.filter(machine=machine).select_related("connector"))
        runtimes = of_machine.all(machine.pk)

    Not for select_for_update, which looks whether a transaction is open when its SQL is made.
    """

    def __init__(self, build: Callable[..., "QuerySet[Any, Row]"]) -> None:
        self._build = build
        self._names = list(inspect.signature(build).parameters)
        self._made: _Made | None = None

    def all(self, *given: Given) -> list[Row]:
        """All rows, prefetched what the queryset prefetches. One query (more by prefetching)."""
        if len(given) != len(self._names):
            raise TypeError(f"{len(given)} values are given for {', '.join(self._names)}.")
        if self._made is None:  # of two threads that make it at once both make the same
            self._made = _Made(self._build, given)
        return list(self._made.asked(given))

    def first(self, *given: Given) -> Row | None:
        """The first row of all that the queryset has; None: there is none."""
        return next(iter(self.all(*given)), None)

    def get(self, *given: Given) -> Row:
        """The only row. Raises DoesNotExist of the queryset's model, MultipleObjectsReturned."""
        found = self.all(*given)
        if len(found) == 1:
            return found[0]
        assert self._made is not None
        model = self._made.queryset.model
        raise model.MultipleObjectsReturned(f"{len(found)} rows.") if found else model.DoesNotExist(f"{model.__name__} does not exist.")


class _Made:
    """The SQL of a queryset, and where in its parameters each given value stands."""

    def __init__(self, build: Callable[..., "QuerySet[Any, Any]"], given: Sequence[Given]) -> None:
        signs = [_sign(number, value) for number, value in enumerate(given)]
        self.queryset = build(*signs)
        connection = connections[self.queryset.db]
        self._compiler: Any = self.queryset.query.get_compiler(self.queryset.db)
        self._sql, self._parameters = self._compiler.as_sql()
        stored = [_stored(sign, connection) for sign in signs]
        self._places = [
            (place, stored.index(parameter))
            for place, parameter in enumerate(self._parameters)
            if isinstance(parameter, (int, str, datetime)) and parameter in stored
        ]
        others = [str(parameter) for place, parameter in enumerate(self._parameters) if place not in dict(self._places)]
        made_into = any(str(sign) in other for sign in stored for other in others)
        if made_into or {number for _, number in self._places} != set(range(len(signs))):
            raise ValueError(f"Every value has to stand in the query as it is given, and not within another: {self._sql}")

    def asked(self, given: Sequence[Given]) -> "QuerySet[Any, Any]":
        """The queryset with these values, its SQL at hand; everything else is Django's own way from there to the rows."""
        queryset, connection, parameters = self.queryset, connections[self.queryset.db], list(self._parameters)
        values = [_stored(value, connection) for value in given]
        for place, number in self._places:
            kind, value = type(parameters[place]), values[number]
            parameters[place] = value if isinstance(value, kind) else kind(value)  # psycopg's own kinds of int
        compiler, query = copy.copy(self._compiler), copy.copy(queryset.query)
        compiler.connection, compiler.as_sql = connection, lambda *_, **__: (self._sql, tuple(parameters))
        query.get_compiler = lambda *_, **__: compiler  # type: ignore[method-assign]
        asked: Any = queryset.__class__(model=queryset.model, query=query, using=queryset.db)
        for name in ("_iterable_class", "_fields", "_prefetch_related_lookups"):
            setattr(asked, name, getattr(queryset, name))
        return asked  # type: ignore[no-any-return]


def _sign(number: int, value: Given) -> Given:
    """Stands in the SQL for a value of its kind, and is nothing that any query asks for."""
    if isinstance(value, bool) or not isinstance(value, (int, str, datetime)):
        raise TypeError(f"{value!r} is given: an int, a string or a moment can be.")
    if isinstance(value, datetime):
        return datetime(1815, 12, 10, tzinfo=UTC) + timedelta(days=number)
    return 2_011_235_813 + number if isinstance(value, int) else f"\N{SYMBOL FOR SUBSTITUTE}{number}"


def _stored(value: Given, connection: Any) -> Any:
    return connection.ops.adapt_datetimefield_value(value) if isinstance(value, datetime) else value
