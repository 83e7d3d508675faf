"""Which values are newer than what runs: what each runtime would get now, held against what was frozen for what it runs (decision 76).

Values are compared, not times: one that was changed and set back, or that a narrower one repeats, is not newer. Times only say which keys
need a look, and whether something is older than what runs although that never named its key.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from django.db.models import Min

from deployments import frozen
from deployments.frozen import Scoped
from deployments.models import Deployment
from portal import properties, property_values, vault
from portal.models import Environment, Property, PropertyChange

# machine, connector; both empty: global. Of who gets a value: a runtime, a router (no connector), the plan (neither)
Scope = tuple[str, str]
Newer = Mapping[str, Mapping[Scope, "Given"]]  # key -> who would get another value now, and what he runs with

GLOBAL: list[Scope] = [("", "")]

# An edit and a freeze that met may have been written down in another order than they were done: within this time the values decide alone.
MEETING = timedelta(minutes=1)


@dataclass(frozen=True)
class Given:
    """Values that something runs with: when they were frozen, and by which deployment."""

    at: datetime
    pk: int
    frozen: int | None = None  # of FrozenValues; None: the deployment was prepared before values were frozen


@dataclass(frozen=True)
class Runs:
    """What runs, as far as values go: a runtime with those that its bundle was made of, everything else (routers, the plan's checks) with
    those of the last deployment that ran."""

    rest: Given
    runtimes: Mapping[Scope, Given]

    @property
    def pk(self) -> int:
        return self.rest.pk

    @cached_property
    def oldest(self) -> datetime:
        return min([self.rest.at, *(given.at for given in self.runtimes.values())])

    def given(self, place: Scope) -> Given | None:
        """None: a runtime that was never given any runs nothing."""
        return self.runtimes.get(place) if place[1] else self.rest


def what_runs(environment: Environment) -> Runs | None:
    """Which values run where. None: nothing was deployed yet. Two queries."""
    known = {
        (row.runtime.machine.name, row.runtime.connector.name): Given(row.frozen.created_at, row.frozen.deployment_id, row.frozen_id)
        for row in frozen.running(environment)
    }
    ran = Deployment.objects.that_ran().filter(environment=environment, started_at__isnull=False)
    # One that was resumed froze its values again, for the steps from there on only: what came before has the first.
    first = ran.annotate(frozen_at=Min("frozen__created_at"), kept=Min("frozen__pk")).order_by("-id")
    last = first.values_list("pk", "frozen_at", "started_at", "kept").first()
    if last is not None:
        since = last[1] or last[2]
        assert since is not None
        return Runs(Given(since, last[0], last[3]), known)
    return Runs(min(known.values(), key=lambda given: given.at), known) if known else None


_Present = tuple[Scoped, str, bool, str, datetime]  # a value as it stands now: where, its text or else sealed, when it was changed


def find(
    environment: Environment,
    runs: Runs | None,
    places: Callable[[Collection[str]], Mapping[str, Iterable[Scope]]],
    *,
    only: Collection[str] = (),
) -> Newer:
    """Where another value would be given now than what runs there was made of. `places` tells who uses each of some keys; `only` these keys
    are looked at (none: all). Four queries; secrets are opened only where they were changed since, and compared by their digest."""
    if runs is None:
        return {}
    stored = Property.objects.filter(environment=environment).order_by()
    gone = PropertyChange.objects.filter(environment=environment, after__isnull=True).order_by()
    since = runs.oldest - MEETING
    touched = set(stored.filter(updated_at__gt=since).values_list("key", flat=True))
    touched.update(gone.filter(at__gt=since).values_list("key", flat=True))
    getting = {key: wanted for key, found in places(touched & set(only) if only else touched).items() if (wanted := list(found))}
    if not getting:
        return {}
    rows = stored.filter(key__in=getting) if len(getting) <= properties.MANY_KEYS else stored
    fields = ("key", "machine", "connector", "value", "secret", "sealed", "updated_at")
    present: dict[Scoped, _Present] = {
        (scoped := (key, machine, connector)): (scoped, value, secret, sealed, at)
        for key, machine, connector, value, secret, sealed, at in rows.values_list(*fields)
        if key in getting
    }
    givens = {place: runs.given(place) for wanted in getting.values() for place in wanted}
    kept = frozen.kept({given.frozen for given in givens.values() if given and given.frozen}, getting)
    sought = {place: property_values.candidates(*place) for place in givens}
    nothing: dict[Scoped, frozen.Entry] = {}
    narrower = {
        key for table in (present.keys(), *map(dict.keys, kept.values())) for key, machine, connector in table if machine or connector
    }
    found: dict[str, dict[Scope, Given]] = defaultdict(dict)
    for key, wanted in getting.items():
        for place in wanted:
            if (given := givens[place]) is None:
                continue
            then = kept[given.frozen] if given.frozen else nothing
            now: _Present | None = None
            was: frozen.Entry | None = None
            for machine, connector in sought[place] if key in narrower else GLOBAL:
                scoped = (key, machine, connector)
                now = now or present.get(scoped)
                was = was or then.get(scoped)
            if _is_newer(now, was, given):
                found[key][place] = given
    return found


def _is_newer(now: _Present | None, was: frozen.Entry | None, given: Given) -> bool:
    if now is None:
        return was is not None  # taken away since
    scoped, value, secret, sealed, at = now
    if was is None:  # what runs names no such key: that its value is older changes nothing there
        return at > given.at
    if not was.secret and not secret:
        return was.value != value
    if (was.key, was.machine, was.connector) == scoped and at <= given.at - MEETING:
        return False
    try:
        return not was.says(vault.unseal(sealed) if sealed else value)
    except vault.Unreadable:
        return at > given.at
