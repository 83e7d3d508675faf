"""The property sheet of an environment: every key that flows and routers use or that has a value, with what each runtime gets.

A fixed number of queries however many properties there are: the scopes of all values are read once, whole rows only for one page.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from django.core.paginator import Page, Paginator
from django.utils import timezone

from deployments import newer, plans
from deployments.newer import Newer, Runs, Scope
from portal import properties, property_values
from portal.models import Connector, DesignedMachine, Environment, Placement, Project, Property
from portal.property_uses import Mentions, Use, drawn_routers, router_name, router_uses
from portal.property_values import Filled
from portal.router_addresses import is_failover_key
from runtimes import reach
from runtimes.models import Machine
from runtimes.protocol import runtime_key

ROWS_PER_PAGE = 100
FILTERS = {
    "missing": "Missing",
    "changed": "Newer than what runs",
    "failover": "Failover",
    "secret": "Secret",
    "unused": "Unused",
}


@dataclass(frozen=True)
class Place:
    """Somebody who needs a key: a runtime ("external01.erp"), a router ("router on external01")."""

    name: str
    machine: str
    connector: str

    def source(self, scopes: Iterable[Scope]) -> Scope | None:
        """Which of the filled-in scopes gives this place its value; None: the value is missing here."""
        present = set(scopes)
        return next((scope for scope in property_values.candidates(self.machine, self.connector) if scope in present), None)

    @property
    def scope(self) -> Scope:
        return self.machine, self.connector


PLAN = Place("the plan", "", "")  # its HTTP checks run in the portal


@dataclass(frozen=True)
class Need:
    """One key: by what it is used, and at which places."""

    used_by: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)


def _places(environment: Environment) -> tuple[dict[int, list[Place]], dict[str, Place]]:
    """Where connectors (by id) run and routers (by machine) stand: as applied here, or as designed while nothing is applied.

    The same rule as deployments.releases.missing, so that this page and the check before activation agree.
    """
    running: dict[int, list[Place]] = defaultdict(list)
    machines = list(Machine.objects.filter(environment=environment).select_related("router").prefetch_related("runtimes__connector"))
    if machines:
        for machine in machines:
            for runtime in machine.runtimes.all():
                name = runtime.connector.name
                running[runtime.connector_id].append(Place(runtime_key(machine.name, name), machine.name, name))
        routers = {
            machine.name: Place(router_name(machine.name, machine.kind), machine.name, "")
            for machine in machines
            if hasattr(machine, "router")
        }
        return running, routers
    for placement in Placement.objects.filter(connector__project=environment.project_id).select_related("machine", "connector"):
        name, on = placement.connector.name, placement.machine.name
        running[placement.connector_id].append(Place(runtime_key(on, name), on, name))
    designed = DesignedMachine.objects.filter(project=environment.project_id, router=True)
    return running, {machine.name: Place(router_name(machine.name, machine.kind), machine.name, "") for machine in designed}


@dataclass(frozen=True)
class Used:
    """What the project's flows (working copy and latest saved version) name, and its drawn routers; read once for all environments."""

    mentions: Mentions
    drawn: list[Use]


def used_in(project: int, *, naming: Collection[str] | None = None) -> Used:
    """Three queries. `naming`: only what names one of these few keys is read."""
    return Used(Mentions(project, naming=naming), drawn_routers(project))


class Needs:
    """Every key that the project's flows, its routers (drawn or applied) and the environment's plan use in one environment.

    Keys of what is drawn but not applied here have no places: their values can be filled in, but are not missed.
    """

    def __init__(self, environment: Environment, used: Used) -> None:
        self.used = used
        self.running, self.routers = _places(environment)
        self._others: dict[str, Need] = defaultdict(Need)
        for use in used.drawn:
            self._others[use.key].used_by.append(use.used_by)
        for name, place in self.routers.items():
            for use in router_uses(name):
                need, said = self._others[use.key], f"{place.name}, {use.used_by}"
                need.places.append(place)
                need.used_by.extend([said] if said not in need.used_by else [])

        for use in plans.url_uses(environment):
            need = self._others[use.key]
            need.places.extend([PLAN] if PLAN not in need.places else [])
            need.used_by.append(use.used_by)

    @property
    def keys(self) -> set[str]:
        return {*self.used.mentions.keys, *self._others}

    def of(self, keys: Collection[str]) -> dict[str, Need]:
        """Of these keys; empty needs of keys that nothing uses."""
        mentions = self.used.mentions
        found = {}
        for key, used_by in mentions.used_by(keys).items():
            other = self._others.get(key, Need())
            places = [place for connector in mentions.connectors(key) for place in self.running.get(connector, ())]
            found[key] = Need([*used_by, *other.used_by], [*places, *other.places])
        return found

    def places(self, keys: Collection[str]) -> dict[str, list[Scope]]:
        """Who uses each of these keys, and nothing else of it: thousands are looked up at once."""
        running = {connector: [place.scope for place in places] for connector, places in self.running.items()}
        found = {}
        for key in keys:
            runtimes = [scope for connector in self.used.mentions.connectors(key) for scope in running.get(connector, ())]
            other = self._others.get(key)
            found[key] = [*runtimes, *(place.scope for place in other.places)] if other else runtimes
        return found

    def missing(self, filled: Filled) -> dict[str, list[str]]:
        """ "external01.erp" -> keys without a value there, both sorted."""
        found: dict[str, list[str]] = defaultdict(list)
        for connector, keys in self.used.mentions.by_connector.items():
            places = self.running.get(connector)
            for key in keys - filled.everywhere if places else ():
                for place in places or ():
                    if filled.source(key, place.machine, place.connector) is None:
                        found[place.name].append(key)
        for key, need in self._others.items():
            for place in need.places:
                if filled.lacks_address(key, place.machine):
                    found[place.name].append(key)
        return {name: sorted(found[name]) for name in sorted(found)}


@dataclass(frozen=True)
class Elsewhere:
    """The same key in another environment."""

    environment: Environment
    values: list[Property]


@dataclass(frozen=True)
class Line:
    """A value of this environment, and who gets it."""

    value: Property
    places: list[Place]
    newer: "Behind | None"  # than what some of the places run with

    @property
    def seen(self) -> str:
        return properties.tag(self.value)


@dataclass(frozen=True)
class Behind:
    """Who runs with another value than he would get now, of those concerned, and the deployments that gave it."""

    places: list[Place]
    deployments: list[int]
    everywhere: bool  # all who are concerned

    @property
    def than(self) -> str:
        """ "deployment #4", "deployments #4 and #5 for external01.erp"."""
        numbers = [f"#{number}" for number in self.deployments]
        told = f"deployment {numbers[0]}" if len(numbers) == 1 else f"deployments {', '.join(numbers[:-1])} and {numbers[-1]}"
        return told if self.everywhere else f"{told} for {', '.join(place.name for place in self.places)}"


@dataclass(frozen=True)
class Row:
    key: str
    used_by: list[str]
    lines: list[Line]  # the most general value first
    missing: list[Place]
    taken_away: Behind | None  # who of the missing runs with a value still
    elsewhere: list[Elsewhere]
    tested: reach.Tested | None = None  # how the other machines reach the address, of an Internal IP or Failover port

    @property
    def is_failover(self) -> bool:
        return is_failover_key(self.key)


@dataclass(frozen=True)
class Found:
    """The keys that a filter leaves, and what was learned on the way."""

    environment: Environment
    keys: list[str]
    needs: Needs
    counts: dict[str, int]  # of keys, by filter, before the search
    missing_by_place: dict[str, list[str]]  # "external01.erp" -> keys without a value
    runs: Runs | None  # None: nothing was deployed yet
    newer: Newer

    @property
    def missing(self) -> int:
        """How many keys lack a value somewhere: each counts once, as it is filled in once."""
        return self.counts["missing"]

    @property
    def runs_since(self) -> datetime | None:
        return self.runs.rest.at if self.runs else None


@dataclass(frozen=True)
class Sheet(Found):
    page: Page[str]
    rows: list[Row]


def find(environment: Environment, *, search: str = "", only: Iterable[str] = (), used: Used | None = None) -> Found:
    """The keys of the sheet. `only` are names of FILTERS, all of which must hold; `search` is a part of the key."""
    needs = Needs(environment, used or used_in(environment.project_id))
    runs = newer.what_runs(environment)
    stored = Property.objects.filter(environment=environment).order_by()
    filled = property_values.filled(environment)
    present, needed = filled.keys, needs.keys
    known = present | needed
    secret = set(stored.filter(secret=True).values_list("key", flat=True))
    than_runs = newer.find(environment, runs, needs.places)
    missing_by_place = needs.missing(filled)
    having = {
        "missing": {key for keys in missing_by_place.values() for key in keys},
        "changed": set(than_runs),
        "failover": {key for key in known if is_failover_key(key)},
        "secret": secret,
        "unused": present - needed,
    }
    search = search.strip().lower()
    chosen = [having[name] for name in only if name in having]
    keys = known.intersection(*chosen)
    return Found(
        environment=environment,
        keys=sorted(key for key in keys if search in key) if search else sorted(keys),
        needs=needs,
        counts={name: len(some) for name, some in having.items()},
        missing_by_place=missing_by_place,
        runs=runs,
        newer=than_runs,
    )


def read(
    environment: Environment, *, search: str = "", only: Iterable[str] = (), page: int | str = 1, per_page: int = ROWS_PER_PAGE
) -> Sheet:
    """One page of the sheet, as `find` filters it."""
    found = find(environment, search=search, only=only)
    shown = Paginator(found.keys, per_page).get_page(page)
    rows = _rows(environment, list(shown.object_list), found.needs, found.newer)
    return Sheet(**vars(found), page=shown, rows=rows)


def _rows(environment: Environment, keys: list[str], needs: Needs, than_runs: Newer) -> list[Row]:
    needed = needs.of(keys)
    environments = list(environment.project.environments.all())
    values: dict[tuple[int, str], list[Property]] = defaultdict(list)
    stored = Property.objects.filter(environment__in=environments).select_related("updated_by")
    for value in stored.filter(key__in=keys) if len(keys) <= 500 else stored:  # databases limit the parameters of one query
        values[value.environment_id, value.key].append(value)
    tested = reach.tested([environment], now=timezone.now()) if any(map(is_failover_key, keys)) else {}
    rows = []
    for key in keys:
        need = needed[key]
        here = values[environment.pk, key]
        scopes = [(value.machine, value.connector) for value in here]
        gets: dict[Scope | None, list[Place]] = defaultdict(list)
        for place in need.places:
            gets[place.source(scopes)].append(place)
        rows.append(
            Row(
                key=key,
                used_by=need.used_by,
                lines=[
                    Line(value, gets[value.machine, value.connector], _behind(key, gets[value.machine, value.connector], than_runs))
                    for value in here
                ],
                missing=gets[None],
                taken_away=_behind(key, gets[None], than_runs),
                elsewhere=[Elsewhere(other, values[other.pk, key]) for other in environments if other.pk != environment.pk],
                tested=tested.get((environment.pk, reach.owner_of(key))) if tested else None,
            )
        )
    return rows


def _behind(key: str, places: list[Place], than_runs: Newer) -> Behind | None:
    givens = than_runs.get(key, {})
    behind = [place for place in places if place.scope in givens]
    deployments = sorted({givens[place.scope].pk for place in behind})
    return Behind(behind, deployments, everywhere=len(behind) == len(places)) if behind else None


Exported = tuple[str, str, str, str, bool, datetime | None]  # key, machine, connector, value, secret, updated at (None: no value)


def exported(found: Found) -> Iterator[tuple[Exported, Need]]:
    """Every value of the keys that were found, and a line without one for a key that has none. No models: there may be thousands."""
    chosen, needed = set(found.keys), found.needs.of(found.keys)
    lines: dict[str, list[Exported]] = defaultdict(list)
    rows = Property.objects.filter(environment=found.environment).order_by("key", "machine", "connector")
    for key, machine, connector, value, secret, at in rows.values_list("key", "machine", "connector", "value", "secret", "updated_at"):
        if key in chosen:
            lines[key].append((key, machine, connector, value, secret, at))
    for key in found.keys:
        for line in lines.get(key) or [(key, "", "", "", False, None)]:
            yield line, needed[key]


def row(environment: Environment, key: str) -> Row:
    """One row, as the page shows it."""
    needs = Needs(environment, used_in(environment.project_id, naming=[key]))
    than_runs = newer.find(environment, newer.what_runs(environment), needs.places, only=[key])
    return _rows(environment, [key], needs, than_runs)[0]


def scope_choices(project: Project) -> list[tuple[str, list[tuple[str, str]]]]:
    """What a value can apply to, for a picker: "machine|connector" and its name, by kind. Three queries."""
    machines = list(DesignedMachine.objects.filter(project=project).values_list("name", flat=True))
    connectors = list(Connector.objects.filter(project=project).values_list("name", flat=True))
    runtimes = list(Placement.objects.filter(connector__project=project).values_list("machine__name", "connector__name"))
    return [
        ("Everything", [("|", "global")]),
        ("One machine", [(f"{name}|", name) for name in machines]),
        ("One connector", [(f"|{name}", f"connector {name}") for name in connectors]),
        ("One runtime", [(f"{machine}|{connector}", f"{machine}.{connector}") for machine, connector in runtimes]),
    ]
