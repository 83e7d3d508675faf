"""What a value has to look like: one check per type. Pure; the declared types are rows, the guessed ones come from components' settings."""

import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from portal.errors import Invalid
from portal.models import PropertyKind

_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_LONGEST = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}  # days of a month at most
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
# name, least, most, words for numbers from `least` on
_CRON_FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of the month", 1, 31, []),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
REMEDIES = {
    PropertyKind.NUMBER: "fill in a whole number such as 250",
    PropertyKind.DECIMAL: "fill in a number such as 0.5",
    PropertyKind.PORT: "fill in a number from 1 to 65535",
    PropertyKind.IP: "fill in an IP address such as 10.0.0.11 or fd00::11",
    PropertyKind.HOST: "fill in an IP address such as 10.0.0.11, or a host name",
    PropertyKind.URL: "fill in a URL such as https://erp.example.com/api or redis://10.0.0.5:6379/0",
    PropertyKind.CRON: "fill in five fields (minute, hour, day, month, day of the week) such as 30 2 * * mon-fri",
    PropertyKind.FILE: "fill in an absolute path such as /srv/erp/outbox",
}


def checked(kind: str, value: str, *, key: str, hidden: bool = False) -> str:
    """The value as it is kept: typed ones without blanks around them. Nothing of a `hidden` value is repeated in a refusal.

    Raises:
        Invalid: field "value", naming what is wrong with it and the remedy.
    """
    if "\0" in value:
        raise Invalid(f"The value of {key} holds a NUL character: leave it out.", field="value")
    if kind not in _CHECKS:
        return value
    value = value.strip()
    if trouble := fault(kind, value, hidden=hidden):
        said = "The value" if hidden else f'"{value}"' if value else "The value"
        raise Invalid(f"{said} {trouble}: {REMEDIES[PropertyKind(kind)]} for {key}.", field="value")
    return value


def fault(kind: str, value: str, *, hidden: bool = False) -> str:
    """What is wrong with the value, as "is no port"; empty when it is right. Of a `hidden` one only that it is: a reason may quote it."""
    if kind not in _CHECKS:
        return ""
    found = _CHECKS[kind](value.strip()) if value.strip() else "is empty"
    return f"is not of type {PropertyKind(kind).label}" if found and hidden else found


def is_checked(kind: str) -> bool:
    """Are there values that are not of this type?"""
    return kind in _CHECKS


def _number(value: str) -> str:
    return "" if re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", value, re.ASCII) else "is no whole number"


def _decimal(value: str) -> str:
    return "" if re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,9})?", value, re.ASCII) else "is no number"


def _port(value: str) -> str:
    sound = re.fullmatch(r"[1-9][0-9]{0,4}", value, re.ASCII) and int(value) <= 65535
    return "" if sound else "is no port"


def _ip(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return "is no IP address"
    if "%" in value:
        return "names a zone, which means something on one machine only"
    return "is not the address of one machine" if address.is_unspecified or address.is_multicast else ""


def _host(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return "" if _is_host_name(value) else "is neither an IP address nor a host name"
    return _ip(value)


def _is_host_name(value: str) -> bool:
    labels = value.removesuffix(".").split(".")
    # Resolvers take 127.1, 2130706433 and 0x7f000001 for IPv4 addresses.
    numeric = re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", labels[-1])
    return len(value) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in labels) and not numeric


def _url(value: str) -> str:
    if any(character.isspace() for character in value):
        return "is no URL, for it holds a blank"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return "is no URL, for its port or address is malformed"
    if not _SCHEME.fullmatch(parts.scheme) or "://" not in value:
        return "is no URL, for it does not begin with a scheme such as https://"
    if parts.scheme in ("file", "unix"):
        return "" if parts.path.startswith("/") else "is no URL of a file"
    if port == 0 or not parts.hostname or _host(parts.hostname):
        return "is no URL, for its host is missing or malformed"
    return ""


def _file(value: str) -> str:
    if not value.startswith("/") or any(ord(character) < 32 for character in value):
        return "is no absolute path"
    return "climbs up with .." if ".." in value.split("/") else ""


def _cron(value: str) -> str:
    fields = value.lower().split()
    if len(fields) != len(_CRON_FIELDS):
        return f"has {len(fields)} field{'s' if len(fields) != 1 else ''} instead of five"
    numbers: dict[str, set[int]] = {}
    for text, (name, least, most, words) in zip(fields, _CRON_FIELDS, strict=True):
        for part in text.split(","):
            named = _cron_range(part, least, most, words)
            if named is None:
                return f"has a wrong {name} ({part or 'empty'}; it goes from {least} to {most})"
            numbers.setdefault(name, set()).update(named)
    longest = max(_LONGEST[month] for month in numbers["month"])
    return "" if fields[4] != "*" or min(numbers["day of the month"]) <= longest else "never comes, for no such month has that day"


def _cron_range(part: str, least: int, most: int, words: list[str]) -> range | None:
    """The numbers that one part of a field names; None: it is malformed."""
    span, slash, step = part.partition("/")
    if slash and not (step.isascii() and step.isdigit() and 1 <= int(step) <= most):
        return None
    if span == "*":
        return range(least, most + 1, int(step or 1))
    first, dash, last = span.partition("-")
    if slash and not dash:
        return None
    begin, end = (_cron_number(text, least, most, words) for text in (first, last if dash else first))
    return None if begin is None or end is None or begin > end else range(begin, end + 1, int(step or 1))


def _cron_number(text: str, least: int, most: int, words: list[str]) -> int | None:
    if text in words:
        return words.index(text) + least
    return int(text) if text.isascii() and text.isdigit() and least <= int(text) <= most else None


_CHECKS: dict[str, Callable[[str], str]] = {
    PropertyKind.NUMBER: _number,
    PropertyKind.DECIMAL: _decimal,
    PropertyKind.PORT: _port,
    PropertyKind.IP: _ip,
    PropertyKind.HOST: _host,
    PropertyKind.URL: _url,
    PropertyKind.CRON: _cron,
    PropertyKind.FILE: _file,
}
