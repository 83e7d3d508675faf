"""Lists as files: every list of a page exports the rows that its filters leave, as CSV."""

import csv
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from django.http import HttpResponse

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would calculate instead of show


def wanted(query: Any) -> bool:
    """Does the address ask for the file (`?format=csv`)?"""
    return bool(query.get("format") == "csv")


def as_csv(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> HttpResponse:
    """`name`.csv in UTF-8: times in UTC as RFC 3339, nothing for None. Texts that a spreadsheet would take for a formula get an
    apostrophe."""
    answer = HttpResponse(content_type="text/csv; charset=utf-8", headers={"Content-Disposition": f'attachment; filename="{name}.csv"'})
    out = csv.writer(answer)
    out.writerow(columns)
    out.writerows([_cell(value) for value in row] for row in rows)
    return answer


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value
