"""The grid of properties: keys × environments, or keys × machines or runtimes of one environment, each cell with its value and the scope
it comes from. A fixed number of queries for each kind of column, however many properties there are; only one page of rows is read whole."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from django.core.paginator import Page, Paginator
from django.utils import timezone

from deployments import newer, sheet
from deployments.newer import Newer, Scope
from deployments.sheet import Need
from portal import properties, property_values, router_addresses
from portal.models import DesignedMachine, Environment, Placement, Property, scope_name
from portal.properties import Expectation
from runtimes import reach

ROWS_PER_PAGE = 50
EVERYWHERE: Scope = ("", "")
VIEWS = {"environments": "Environments", "machines": "Machines", "runtimes": "Runtimes"}


@dataclass(frozen=True)
class Column:
    """Where the values of a column apply: a value that is typed into it is kept for exactly this scope."""

    environment: Environment
    machine: str = ""
    connector: str = ""

    @property
    def name(self) -> str:
        return scope_name(self.machine, self.connector) if self.machine else self.environment.name

    @property
    def scope(self) -> Scope:
        return self.machine, self.connector


@dataclass(frozen=True)
class Cell:
    column: Column
    value: Property | None  # that applies here, own or inherited
    own: bool  # it is kept for this very scope
    more: list[Property]  # more specific ones beside it
    missing: list[str]  # "external01.erp": who lacks a value, among those this column is about
    changed: bool  # newer than what runs
    tested: reach.Tested | None = None  # of an Internal IP or Failover port: how the other machines reach it

    @property
    def source(self) -> str:
        return self.value.scope if self.value else ""


@dataclass(frozen=True)
class Row:
    key: str
    need: Need
    expectation: Expectation
    cells: list[Cell]

    @property
    def is_failover(self) -> bool:
        return router_addresses.is_failover_key(self.key)

    @property
    def secret(self) -> bool:
        return any(cell.value is not None and cell.value.secret for cell in self.cells)


@dataclass(frozen=True)
class Grid(sheet.Found):
    by: str
    columns: list[Column]
    page: Page[str]
    rows: list[Row]


def columns_of(environment: Environment, by: str) -> list[Column]:
    project = environment.project
    if by == "machines":
        return [Column(environment, machine.name) for machine in DesignedMachine.objects.filter(project=project)]
    if by == "runtimes":
        placed = Placement.objects.filter(connector__project=project).values_list("machine__name", "connector__name")
        return [Column(environment, machine, connector) for machine, connector in sorted(placed)]
    return [Column(other) for other in project.environments.all()]


def read(
    environment: Environment,
    *,
    by: str = "environments",
    search: str = "",
    only: Iterable[str] = (),
    page: int | str = 1,
    per_page: int = ROWS_PER_PAGE,
) -> Grid:
    """One page of the grid, filtered by what holds in `environment`."""
    used = sheet.used_in(environment.project_id)
    found = sheet.find(environment, search=search, only=only, used=used)
    columns = columns_of(environment, by)
    shown = Paginator(found.keys, per_page).get_page(page)
    rows = _rows(list(shown.object_list), columns, used, found.needs, environment, found.newer)
    return Grid(**vars(found), by=by, columns=columns, page=shown, rows=rows)


def row(environment: Environment, key: str, by: str) -> Row:
    """One row, as the grid shows it."""
    used = sheet.used_in(environment.project_id, naming=[key])
    needs = sheet.Needs(environment, used)
    here = newer.find(environment, newer.what_runs(environment), needs.places, only=[key])
    (made,) = _rows([key], columns_of(environment, by), used, needs, environment, here)
    return made


def _rows(
    keys: list[str], columns: list[Column], used: sheet.Used, needs: sheet.Needs, environment: Environment, than_runs: Newer
) -> list[Row]:
    """`needs` and what is newer than what runs are of the `environment` whose page it is; those of other columns' are read."""
    environments = {column.environment.pk: column.environment for column in columns} or {environment.pk: environment}
    needing = {pk: needs if pk == environment.pk else sheet.Needs(other, used) for pk, other in environments.items()}
    needed = {pk: some.of(keys) for pk, some in needing.items()}
    here = needed[environment.pk] if environment.pk in needed else needs.of(keys)
    newer_in = {
        pk: than_runs if pk == environment.pk else newer.find(other, newer.what_runs(other), needing[pk].places, only=keys)
        for pk, other in environments.items()
        if keys
    }
    values: dict[tuple[int, str], dict[Scope, Property]] = defaultdict(dict)
    stored = Property.objects.filter(environment__in=environments)
    for value in stored.filter(key__in=keys) if len(keys) <= properties.MANY_KEYS else stored:
        values[value.environment_id, value.key][value.machine, value.connector] = value
    known = properties.expectations(environment.project_id, only=set(keys), mentions=used.mentions)
    tested = reach.tested(environments.values(), now=timezone.now()) if any(map(router_addresses.is_failover_key, keys)) else {}
    sought = [(column, property_values.candidates(*column.scope)) for column in columns]
    return [
        Row(
            key=key,
            need=here[key],
            expectation=properties.expectation(key, known),
            cells=[
                _cell(
                    column,
                    scopes,
                    values[column.environment.pk, key],
                    needed[column.environment.pk][key],
                    newer_in[column.environment.pk].get(key, {}),
                    tested.get((column.environment.pk, reach.owner_of(key))) if tested else None,
                )
                for column, scopes in sought
            ],
        )
        for key in keys
    ]


def _cell(
    column: Column, scopes: list[Scope], values: dict[Scope, Property], need: Need, behind: Iterable[Scope], tested: reach.Tested | None
) -> Cell:
    """`scopes` are those that can give the column its value, the most specific first; `behind` are those who run with another one than they
    would get."""
    source = next((scope for scope in scopes if scope in values), None)
    value = values[source] if source is not None else None
    more = (
        [other for scope, other in sorted(values.items()) if scope != source and _narrower(scope, column.scope)] if len(values) > 1 else []
    )
    lacking = [] if EVERYWHERE in values else [place for place in need.places if place.source(values) is None]
    return Cell(
        column=column,
        value=value,
        own=source == column.scope,
        more=more,
        missing=[place.name for place in lacking if _narrower((place.machine, place.connector), column.scope)],
        changed=any(_narrower(place, column.scope) for place in behind),
        tested=tested if value else None,
    )


def _narrower(scope: Scope, column: Scope) -> bool:
    """Is this scope, or place, a part of the column."""
    return column[0] in ("", scope[0]) and column[1] in ("", scope[1])
