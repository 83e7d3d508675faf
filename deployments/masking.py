"""Values of secret properties never stand in a log: they are masked before a line is written, and again before it is shown."""

from collections.abc import Iterable

from portal import vault
from portal.models import Property

MASK = "••••••"
SHORTEST = 4  # characters; masking a shorter value would eat ordinary words and tell the value by its absence


def secrets_of(environment_id: int) -> list[str]:
    """The environment's secret values, the longest first, so that one within another leaves no rest. One query."""
    found = set()
    for row in Property.objects.filter(environment_id=environment_id, secret=True):
        try:
            found.add(row.reveal())
        except vault.Unreadable:  # nobody can have put into a log what nobody can read
            continue
    return sorted({value for value in found if len(value) >= SHORTEST}, key=len, reverse=True)


def mask(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text
