"""The log of a deployment: what the engine did, per step and machine, and what the machines said meanwhile. Read from a place on.

Lines of steps are numbered within their deployment without a gap; lines of machines are counted per machine, for two machines' lines
may be written down in any order. So a reader that goes on from its `Place` misses nothing and sees nothing twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from django.db.models import Q, QuerySet
from django.utils import timezone

from deployments.models import BROKEN, Deployment, StepKind, StepLog
from runtimes import secrecy
from runtimes.models import RuntimeLog
from runtimes.protocol import LogLevel

LEVELS = [level.value for level in LogLevel]
LINES_AT_ONCE = 500  # of each source
MACHINES_AT_MOST = 200  # in one `Place`, which is part of an address and of a query
ROUTER = "router"  # the source of what etcd itself says
AFTERWARDS = timedelta(seconds=5)  # machines' lines that tell how a deployment ended may come a little later


@dataclass(frozen=True)
class Place:
    """How far a reader is: the number of the last step line, and per machine (its id) the id of its last line."""

    step: int = 0
    machines: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, step: str, machines: str) -> "Place":
        """From the address of a page; what is not a number counts as the beginning."""
        pairs = [part.partition(":") for part in machines.split(",", MACHINES_AT_MOST)[:MACHINES_AT_MOST] if part]
        known = {int(key): int(value) for key, _, value in pairs if _is_id(key) and _is_id(value)}
        return cls(int(step) if step.isdecimal() and len(step) < 10 else 0, known)

    @property
    def machines_text(self) -> str:
        return ",".join(f"{key}:{value}" for key, value in sorted(self.machines.items()))


def _is_id(text: str) -> bool:
    return text.isdecimal() and len(text) <= 18  # what a database can hold


@dataclass(frozen=True)
class Wanted:
    """Which lines: of a level or above, of one step, of one machine, holding a text."""

    level: str = LogLevel.INFO.value
    step: int | None = None
    machine: str = ""
    search: str = ""

    @property
    def levels(self) -> list[str]:
        return LEVELS[LEVELS.index(self.level) :]


@dataclass(frozen=True)
class Line:
    at: datetime
    level: str
    source: str  # "external01", "external01.erp", "router on external01"; empty for the engine itself
    text: str
    step: int | None = None
    attempt: int = 1
    number: int | None = None

    @property
    def plain(self) -> str:
        """One line of the downloaded file."""
        where = f"step {self.step}" + (f" (attempt {self.attempt})" if self.attempt > 1 else "") if self.step else ""
        parts = [f"{self.at:%Y-%m-%dT%H:%M:%S.%fZ}", f"{self.level:<7}", ", ".join(part for part in (where, self.source) if part)]
        return "  ".join(parts) + "  " + self.text.replace("\n", "\n    ")


@dataclass(frozen=True)
class Piece:
    lines: list[Line]
    place: Place
    complete: bool  # there was no more when it was read


def read(deployment: Deployment, wanted: Wanted, after: Place, *, at_once: int = LINES_AT_ONCE) -> Piece:
    """The next lines after a place, in order of time. A fixed number of queries."""
    told = list(_told(deployment, wanted, after)[:at_once])
    heard = list(_heard(deployment, wanted, after)[:at_once]) if wanted.step is None else []
    lines = _masked([*map(_of_step, told), *map(_of_machine, heard)], deployment, wanted)
    machines = dict(after.machines)
    for line in heard:
        machines[line.machine_id] = max(line.pk, machines.get(line.machine_id, 0))
    place = replace(after, step=max([after.step, *(line.number for line in told)]), machines=machines)
    complete = len(told) < at_once and len(heard) < at_once
    return Piece(sorted(lines, key=lambda line: (line.at, line.number or 0)), place, complete)


def whole(deployment: Deployment, wanted: Wanted) -> Iterator[str]:
    """The log as a text file, piece by piece. A search leaves lines out, never parts of lines."""
    place = Place()
    yield f"Deployment {deployment.pk} of release {deployment.release} on {deployment.environment}: {deployment.status}\n"
    while True:
        piece = read(deployment, wanted, place, at_once=2000)
        yield "".join(f"{line.plain}\n" for line in piece.lines)
        if piece.complete:
            return
        place = piece.place


def _masked(lines: list[Line], deployment: Deployment, wanted: Wanted) -> list[Line]:
    """As they may be shown: also without what became a secret since they were written down. A search finds only what is shown, or it would
    tell a secret letter by letter."""
    secrets = secrecy.pattern(deployment.environment_id)
    shown = lines if secrets is None else [replace(line, text=secrecy.masked(line.text, secrets)) for line in lines]
    return [line for line in shown if wanted.search.lower() in line.text.lower()] if secrets and wanted.search else shown


def may_say_more(deployment: Deployment) -> bool:
    return deployment.ended_at is None or timezone.now() <= deployment.ended_at + AFTERWARDS


def _told(deployment: Deployment, wanted: Wanted, after: Place) -> QuerySet[StepLog]:
    rows = StepLog.objects.filter(deployment=deployment, number__gt=after.step, level__in=wanted.levels).select_related("step")
    if wanted.step is not None:
        rows = rows.filter(step__number=wanted.step)
    if wanted.machine:
        rows = rows.filter(machine=wanted.machine)
    if wanted.search:
        rows = rows.filter(text__icontains=wanted.search)
    return rows.order_by("number")


def _heard(deployment: Deployment, wanted: Wanted, after: Place) -> QuerySet[RuntimeLog]:
    if deployment.started_at is None:
        return RuntimeLog.objects.none()
    rows = RuntimeLog.objects.filter(machine__environment=deployment.environment_id, at__gte=deployment.started_at)
    if deployment.ended_at is not None:  # a line may come later, but what happened later is not the deployment's
        rows = rows.filter(at__lte=deployment.ended_at)
    rows = rows.filter(level__in=wanted.levels).select_related("machine")
    if not deployment.steps.filter(kind=StepKind.DEPLOY_ROUTERS, status__in=BROKEN).exists():
        rows = rows.exclude(source=ROUTER, level=LogLevel.WARNING.value)  # etcd's own: they are in each machine's log
    seen = Q()
    for machine, last in after.machines.items():
        seen |= Q(machine_id=machine, id__lte=last)
    if after.machines:
        rows = rows.exclude(seen)
    if wanted.machine:
        rows = rows.filter(machine__name=wanted.machine)
    if wanted.search:
        rows = rows.filter(text__icontains=wanted.search)
    return rows.order_by("id")


def _of_step(line: StepLog) -> Line:
    return Line(line.at, line.level, line.machine, line.text, line.step.number, line.attempt, line.number)


def _of_machine(line: RuntimeLog) -> Line:
    """A runtime's key tells its machine; "router" and "agent" do not."""
    own = line.source.startswith(f"{line.machine.name}.")
    return Line(line.at, line.level, line.source if own else f"{line.source} on {line.machine.name}", line.text)
