"""Values from a spreadsheet: tab-separated as copied, or CSV as exported, read line by line with an error per line. Pure."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from portal.exports import FORMULA
from portal.models import EnvironmentKind

LINES_AT_MOST = 20_000
YES = {"yes", "true", "1", "x", "secret"}
NO = {"", "no", "false", "0"}
ENVIRONMENTS = {name.lower(): str(kind) for kind in EnvironmentKind for name in (kind.value, str(kind.label))}


class _Unreadable(Exception):  # noqa: N818 - said by name
    def __init__(self, line: int) -> None:
        self.line = line


@dataclass(frozen=True)
class Line:
    """One value as it was read; `error` says what cannot be understood."""

    number: int  # of the line in the text, from 1
    environment: str  # EnvironmentKind
    key: str
    machine: str = ""
    connector: str = ""
    value: str = ""
    secret: bool | None = None
    error: str = ""
    kept: bool = False  # a secret without its value, as exports leave it out: what is there stays


def parse(text: str, *, environment: str) -> list[Line]:
    """Read values.

    Shapes: a header with `key` and `value`, in any order, and any of `environment`, `scope`, `secret` (as exported; other columns are
    ignored); a header with `key` and names of environments or scopes (a matrix; its empty cells change nothing); no header, two columns
    (key, value) or three (key, scope, value). `environment` is where values go that name none.
    """
    text = text.lstrip("\ufeff")
    try:
        rows = _rows(text)
    except _Unreadable as no:
        said = (
            f"From here on it cannot be read as a table ({no.__cause__}). Is a quotation mark not closed? "
            "A value that begins with one is written in quotation marks, with its own doubled."
        )
        return [Line(no.line, environment, "", error=said)]
    if not rows:
        return []
    if len(rows) > LINES_AT_MOST:
        return [Line(LINES_AT_MOST + 1, environment, "", error=f"There are more than {LINES_AT_MOST} lines: paste them in parts.")]
    header = [cell.strip().lower() for cell in rows[0][1]]
    listed = {"key", "value"} <= {*header}
    if header[0] != "key" and not listed:
        return [line for number, cells in rows for line in _plain(number, cells, environment)]
    if listed:
        return [line for number, cells in rows[1:] for line in _listed(number, header, cells, environment)]
    wrong = [name for name in header[1:] if name and scope_of(name) is None and name not in ENVIRONMENTS]
    if wrong:
        return [Line(rows[0][0], environment, "", error=f'"{wrong[0]}" in the first line is neither an environment nor a scope.')]
    return [line for number, cells in rows[1:] for line in _matrix(number, header, cells, environment)]


def scope_of(name: str) -> tuple[str, str] | None:
    """Machine and connector of "global", "external01", "connector erp" or "external01.erp"; None for nonsense."""
    name = name.strip()
    if name in ("", "global"):
        return "", ""
    if name.startswith("connector "):
        return "", name.removeprefix("connector ").strip()
    machine, _, connector = name.partition(".")
    return None if " " in name or "." in connector else (machine, connector)


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """Non-empty rows with the number of their line; tabs win over semicolons over commas, as the first line has them."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = "\t" if "\t" in first else ";" if ";" in first and "," not in first else ","
    # Strict: a quotation mark that nobody closes would take all lines after it into one value.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found, before = [], 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((before + 1, cells))
            before = reader.line_num
    except csv.Error as error:
        raise _Unreadable(before + 1) from error
    return found


def _plain(number: int, cells: Sequence[str], environment: str) -> list[Line]:
    key = _key(cells[0])
    if len(cells) == 2:
        return [Line(number, environment, key, value=_value(cells[1]))]
    scope = scope_of(cells[1]) if len(cells) == 3 else None
    if scope is None:
        return [Line(number, environment, key, error="Write key and value, or key, scope and value, or begin with a line of column names.")]
    return [Line(number, environment, key, *scope, value=_value(cells[2]))]


def _listed(number: int, header: Sequence[str], cells: Sequence[str], environment: str) -> list[Line]:
    given: Mapping[str, str] = dict(zip(header, cells, strict=False))
    key, value, secret = _key(given.get("key", "")), _value(_exported(given.get("value", ""))), given.get("secret", "").strip().lower()
    where = given.get("environment", "").strip().lower()
    scope = scope_of(given.get("scope", ""))
    if where and where not in ENVIRONMENTS:
        return [Line(number, environment, key, error=f'"{given["environment"]}" is no environment: say Test, Acceptance or Production.')]
    kind = ENVIRONMENTS.get(where, environment)
    if scope is None:
        return [
            Line(number, kind, key, error=f'"{given.get("scope", "")}" is no scope: say global, a machine, a runtime or “connector erp”.')
        ]
    if secret not in YES | NO:
        return [Line(number, kind, key, *scope, error=f'secret is "{secret}": say yes or leave it empty.')]
    if not value and "scope" in header and not given.get("scope", "").strip():
        return []  # an exported key that has no value
    marked = None if "secret" not in header else secret in YES
    return [Line(number, kind, key, *scope, value=value, secret=marked or None, kept=bool(marked) and not value)]


def _matrix(number: int, header: Sequence[str], cells: Sequence[str], environment: str) -> list[Line]:
    key = _key(cells[0])
    lines = []
    for name, cell in zip(header[1:], cells[1:], strict=False):
        if name and cell.strip():
            scope = ("", "") if name in ENVIRONMENTS else scope_of(name) or ("", "")
            lines.append(Line(number, ENVIRONMENTS.get(name, environment), key, *scope, value=_value(cell)))
    return lines


def _key(cell: str) -> str:
    return cell.strip().removeprefix("${").removesuffix("}").strip()


def _value(cell: str) -> str:
    return cell.replace("\r\n", "\n")


def as_text(value: str) -> str:
    """As exports write it: an apostrophe before what a spreadsheet would take for a formula (numbers stay as they are), and before what
    begins with apostrophes and such a sign by itself, so that each comes back as it was."""
    number = value.lstrip("+-").replace(".", "", 1).isdigit()
    return f"'{value}" if value.lstrip("'").startswith(FORMULA) and not number else value


def _exported(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell.lstrip("'").startswith(FORMULA) else cell
