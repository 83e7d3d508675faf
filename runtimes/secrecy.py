"""The secret values of an environment, masked in what machines and steps tell before it is written down, in every spelling.

A runtime masks the secrets of its bundle itself, and an agent those of the bundles on its machine; here are the others, which a command's
output may hold although no runtime of that machine uses them.
"""

import re
from typing import NamedTuple

from django.db.models import Count, Max

from portal import vault
from portal.models import Property
from portal.prepared import Prepared
from runtimes.spellings import MASK, SHORT, pattern_of

KEPT = 50  # environments whose pattern is remembered


class _Known(NamedTuple):
    state: object
    pattern: re.Pattern[str] | None


# How many secrets, when the last one was changed, and the last one; no row where there is none.
_state = Prepared(
    lambda environment: (
        Property.objects.filter(environment_id=environment, secret=True)
        .order_by()
        .values_list("environment_id")
        .annotate(count=Count("pk"), latest=Max("updated_at"), last=Max("pk"))
    )
)
_known: dict[int, _Known] = {}


def pattern(environment_id: int) -> re.Pattern[str] | None:
    """What is to be masked there; None: nothing. One query, two when a secret has changed since it was last asked for in this process."""
    state = _state.first(environment_id)
    known = _known.get(environment_id)
    if known is None or known.state != state:
        found = set()
        for row in Property.objects.filter(environment_id=environment_id, secret=True):
            try:
                found.add(row.reveal())
            except vault.Unreadable:  # nobody can have put into a text what nobody can read
                continue
        # Masking a very short value would eat ordinary words, and tell the value by its absence.
        known = _Known(state, pattern_of(value for value in found if len(value) >= SHORT))
        _known.pop(environment_id, None)
        while len(_known) >= KEPT:
            _known.pop(next(iter(_known)))
        _known[environment_id] = known
    return known.pattern


def masked(text: str, found: re.Pattern[str] | None) -> str:
    return text if found is None else found.sub(MASK, text)
