"""How answers look in a terminal: tables that fit, words for moments and durations, and JSON for programs."""

import json as jsons
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED_WIDTH = 2000  # a line stays a line for grep


def _console(*, stderr: bool) -> Console:
    """Made per line, so that it writes to what standard output is now."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PIPED_WIDTH)


def line(text: Text | str, *, stderr: bool = False) -> None:
    _console(stderr=stderr).print(text, soft_wrap=True, markup=False)


GOOD = ("succeeded", "active", "leader", "ready", "on")
BAD = ("failed", "timed-out", "isolated", "unknown", "partly", "crashed")
BUSY = ("running", "waiting", "pending", "scheduled", "single-node", "disabled")


def document(found: Any) -> None:
    """For programs: the API's own document on standard output."""
    jsons.dump(found, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def status(word: str | None) -> Text:
    style = "green" if word in GOOD else "red" if word in BAD else "yellow" if word in BUSY else ""
    return Text(word or "–", style=style)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Rows below their headings; `empty` says what to do when there are none."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column.endswith("#") else "left", overflow="fold")
    count = 0
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text("–" if cell in (None, "") else str(cell)) for cell in row))
        count += 1
    if count:
        _console(stderr=False).print(made)
    else:
        line(empty)


def answer(found: Any, json: bool, tell: Callable[[Any], None]) -> None:
    """One document of the API: as it is for programs, told for people."""
    if json:
        document(found)
    else:
        tell(found)


def listed(rows: Sequence[Any], json: bool, columns: Mapping[str, Callable[[Any], Any]], *, empty: str) -> None:
    """The rows of a list of the API: as they are for programs, a table for people. `columns`: heading to what stands below it."""
    answer(rows, json, lambda found: table(list(columns), ([cell(row) for cell in columns.values()] for row in found), empty=empty))


def instant(text: str) -> datetime:
    """An RFC 3339 moment of the API; raises ValueError for anything else."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def moment(text: str | None) -> str:
    """An RFC 3339 moment in this terminal's time zone, with its offset."""
    if not text:
        return "–"
    return instant(text).astimezone().isoformat(sep=" ", timespec="seconds")


def seconds(number: float | None) -> str:
    if number is None:
        return "–"
    return f"{number * 1000:.0f} ms" if number < 1 else f"{number:.1f} s" if number < 90 else f"{number / 60:.1f} min"


def span(whole: int) -> str:
    """A time limit in whole units: "1 day", "2 min", "90 s"."""
    for size, unit in ((86400, "day"), (3600, "h"), (60, "min")):
        if whole and whole % size == 0:
            return f"{whole // size} {unit}{'s' if unit == 'day' and whole > size else ''}"
    return f"{whole} s"


def epoch(number: int | None) -> str:
    """Generation·revision, as pages say it; `--json` has the whole number."""
    generation, revision = divmod(number or 0, 10**12)
    return f"{generation}·{revision}" if number else "–"


def age(text: str | None) -> str:
    if not text:
        return "never"
    passed = max(0, int((datetime.now(UTC) - instant(text)).total_seconds()))  # rounded down, as on pages
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (2 * 86400, 3600, "h")):
        if passed < limit:
            return f"{passed // size} {unit} ago"
    return f"{passed // 86400} days ago"


def note(sentence: str) -> None:
    line(sentence)


def warn(sentence: str) -> None:
    line(Text(sentence, style="yellow"), stderr=True)


def refusal(sentence: str, reasons: Sequence[str]) -> None:
    line(Text(f"baton: {sentence}", style="red"), stderr=True)
    for reason in reasons:
        line(f"  · {reason}", stderr=True)
