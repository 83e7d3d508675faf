"""All projects at a glance: which release is where, groups not healthy, silent machines, running deployments.

Reads only, in a fixed number of queries however many projects there are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Case, Count, F, Max, Q, When, Window
from django.db.models.functions import RowNumber

from deployments.landscape import active_releases
from deployments.models import (
    BROKEN,
    DONE,
    LIVE,
    Activation,
    ActivationStatus,
    ApprovalRequest,
    ApprovalStatus,
    Deployment,
    Release,
    RunStatus,
)
from portal.models import Environment, Project
from runtimes import authority, boards
from runtimes.boards import Board
from runtimes.failover import Health
from runtimes.models import Machine, Runtime
from runtimes.protocol import RuntimeState

FAILS = (RuntimeState.FAILED, RuntimeState.BACKOFF, RuntimeState.HANGING)  # nothing of it runs, though it should
ROWS_SHOWN = 6  # releases per project: those in use anywhere, filled up with the newest


@dataclass
class Place:
    """An environment's column."""

    environment: Environment
    active: Release | None = None
    runs: dict[int, int] = field(default_factory=dict)  # release number -> number of runtimes that run it
    runtimes: int = 0
    machines: list[Machine] = field(default_factory=list)
    silent: list[Machine] = field(default_factory=list)
    unregistered: list[Machine] = field(default_factory=list)
    broken: list[Runtime] = field(default_factory=list)  # they should run, their machines report, and they do not
    boards: list[Board] = field(default_factory=list)
    last: Deployment | None = None  # the newest deployment
    scheduled: list[Activation] = field(default_factory=list)
    held: list[Activation] = field(default_factory=list)  # they wait until a person resumes or cancels them
    asked: list[ApprovalRequest] = field(default_factory=list)  # open: they wait for people
    authority_due: str = ""  # what is to be done about its certificate authority

    @property
    def mixed(self) -> bool:
        """A plan stopped halfway leaves several releases running; a page must show it."""
        return len(self.runs) > 1

    @property
    def troubled(self) -> list[Board]:
        return boards.troubled(self.boards)

    @property
    def unhealthy(self) -> list[Board]:
        return [board for board in self.boards if board.health == Health.TROUBLED]

    @property
    def without_standby(self) -> list[Board]:
        """Their leader works, and nobody could take over."""
        return [board for board in self.boards if board.health == Health.NO_STANDBY]

    @property
    def is_live(self) -> bool:
        return self.last is not None and self.last.status in LIVE

    @property
    def undecided(self) -> Deployment | None:
        """The newest deployment, when it stands still until a person decides or confirms."""
        return self.last if self.last is not None and self.last.status in (*BROKEN, RunStatus.WAITING) else None

    @property
    def troubles(self) -> int:
        """How many things wait for a person here."""
        people = len(self.held) + len(self.asked) + (self.undecided is not None)
        return len(self.troubled) + len(self.silent) + len(self.broken) + people + bool(self.authority_due)

    @property
    def behind(self) -> bool:
        """What was activated is not (everywhere) what runs."""
        return bool(self.active and self.runtimes and self.runs.get(self.active.number, 0) < self.runtimes)


@dataclass(frozen=True)
class Cell:
    """A release in an environment."""

    place: Place
    active: bool
    running: int  # runtimes that run it
    deployment: Deployment | None  # the environment's last one, when it was of this release
    scheduled: Activation | None

    @property
    def is_empty(self) -> bool:
        return not (self.active or self.running or self.deployment or self.scheduled)


@dataclass(frozen=True)
class Row:
    release: Release
    cells: list[Cell]


@dataclass(frozen=True)
class Glance:
    """One project."""

    project: Project
    places: list[Place]
    rows: list[Row]
    releases: int  # how many there are altogether

    @property
    def troubles(self) -> int:
        return sum(place.troubles for place in self.places)

    @property
    def exceptions(self) -> bool:
        return self.troubles > 0

    @property
    def is_running(self) -> bool:
        """Something runs somewhere, so "all well" means something."""
        return any(place.boards for place in self.places)


def glances(projects: Sequence[Project], *, now: datetime) -> list[Glance]:
    """Every project; `projects` come with their environments prefetched."""
    environments = [environment for project in projects for environment in project.environments.all()]
    places = {environment.pk: Place(environment) for environment in environments}
    fill(places, environments, now=now)
    releases = newest(projects, used=used_numbers(places.values()))
    counts = dict(Release.objects.filter(project__in=projects).values_list("project").annotate(n=Count("pk")).order_by())
    return [glance(project, places, releases, counts.get(project.pk, 0)) for project in projects]


def fill(places: dict[int, Place], environments: Sequence[Environment], *, now: datetime) -> None:
    """Read what each column shows."""
    active = active_releases(environments)
    for pk, place in places.items():
        place.active = active.get(pk)
    for board in boards.boards(environments, now=now):
        places[board.group.environment_id].boards.append(board)
    for machine in Machine.objects.filter(environment__in=environments):
        place = places[machine.environment_id]
        place.machines.append(machine)
        if not machine.has_agent:
            place.unregistered.append(machine)
        elif machine.is_silent(now=now):
            place.silent.append(machine)
    # As landscape.runtime_box: what runs the very bundle of the active release counts for it, though a later one gave it the same.
    made = Case(When(observed_digest=F("desired_bundle"), observed_release=F("desired_release"), then=F("desired_bundle__release_number")))
    rows = Runtime.objects.filter(environment__in=environments, held="").annotate(made=made, fails=Q(observed_state__in=FAILS)).order_by()
    for pk, number, same, fails, count in rows.values_list("environment", "observed_release", "made", "fails").annotate(n=Count("pk")):
        place = places[pk]
        place.runtimes += count
        shown = same if place.active is not None and same == place.active.number else number
        if shown is not None and not fails:
            place.runs[shown] = place.runs.get(shown, 0) + count
    failing = Runtime.objects.filter(environment__in=environments, held="", desired_running=True, observed_state__in=FAILS)
    for runtime in failing.select_related("machine", "connector").order_by("pk"):
        if not runtime.machine.is_silent(now=now):
            places[runtime.environment_id].broken.append(runtime)
    for deployment in last_deployments(environments):
        places[deployment.environment_id].last = deployment
    ahead = (ActivationStatus.SCHEDULED, ActivationStatus.HELD)
    activations = Activation.objects.filter(environment__in=environments, status__in=ahead).select_related("release")
    for activation in activations.defer("release__content"):
        place = places[activation.environment_id]
        (place.held if activation.status == ActivationStatus.HELD else place.scheduled).append(activation)
    for request in lacking_approval(environments, now=now):
        places[request.environment_id].asked.append(request)
    due = authority.standings_due(environments, now=now)
    for pk, place in places.items():
        place.authority_due = due.get(pk, "")


def lacking_approval(environments: Iterable[Environment], *, now: datetime) -> Iterable[ApprovalRequest]:
    """Open requests that fewer people approved than the environment asks for. As approvals.counted, but for what a role allows."""
    standing = Q(approvals__withdrawn_at=None, approvals__person__memberships__team=F("environment__project__team"))
    given = Count("approvals__person", filter=standing & ~Q(approvals__person=F("created_by")), distinct=True)
    found = ApprovalRequest.objects.filter(environment__in=environments, status=ApprovalStatus.OPEN, expires_at__gt=now)
    lacking = found.annotate(given=given).filter(given__lt=F("environment__rules__approvals"))
    return lacking.select_related("release", "created_by").defer("release__content", "values")


def last_deployments(environments: Iterable[Environment]) -> Iterable[Deployment]:
    """The newest deployment of each environment, with `steps_done` of `steps_all`."""
    newest_ids = Deployment.objects.filter(environment__in=environments).values("environment").annotate(newest=Max("pk")).values("newest")
    found = (
        Deployment.objects.filter(pk__in=newest_ids)
        .select_related("release", "environment__project", "created_by")
        .defer("release__content")
    )
    return found.annotate(steps_all=Count("steps"), steps_done=Count("steps", filter=Q(steps__status__in=DONE)))


def used_numbers(places: Iterable[Place]) -> Q:
    """The releases that some environment runs, has chosen, will choose or deployed last."""
    used = Q(pk__in=[])
    for place in places:
        numbers = {*place.runs, *([place.active.number] if place.active else []), *([place.last.release.number] if place.last else [])}
        numbers |= {activation.release.number for activation in place.scheduled}
        if numbers:
            used |= Q(project=place.environment.project_id, number__in=numbers)
    return used


def newest(projects: Sequence[Project], *, used: Q) -> dict[int, list[Release]]:
    """Per project id the releases in use and the newest few, newest first."""
    rank = Window(RowNumber(), partition_by=F("project"), order_by=F("number").desc())
    ranked = Release.objects.filter(project__in=projects).annotate(rank=rank).filter(rank__lte=ROWS_SHOWN).values("pk")
    found = (
        Release.objects.filter(Q(pk__in=list(ranked.values_list("pk", flat=True))) | used).defer("content").order_by("project", "-number")
    )
    grouped: dict[int, list[Release]] = {}
    for release in found:
        grouped.setdefault(release.project_id, []).append(release)
    return grouped


def glance(project: Project, places: dict[int, Place], releases: dict[int, list[Release]], number: int) -> Glance:
    columns = [places[environment.pk] for environment in project.environments.all()]
    every = [Row(release, [cell(release, place) for place in columns]) for release in releases.get(project.pk, [])]
    used = [row for row in every if any(not cell.is_empty for cell in row.cells)]
    fillers = [row for row in every if row not in used][: max(0, ROWS_SHOWN - len(used))]
    rows = sorted([*used, *fillers], key=lambda row: -row.release.number)
    return Glance(project, columns, rows, number)


def cell(release: Release, place: Place) -> Cell:
    return Cell(
        place=place,
        active=place.active is not None and place.active.pk == release.pk,
        running=place.runs.get(release.number, 0),
        deployment=place.last if place.last and place.last.release_id == release.pk else None,
        scheduled=next((activation for activation in place.scheduled if activation.release_id == release.pk), None),
    )
