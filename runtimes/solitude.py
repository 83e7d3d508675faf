"""Members that ran alone, as their machines tell it, perhaps long after: kept as alarms, for then items may have come twice."""

from collections.abc import Iterable
from datetime import datetime

from django.db.models import QuerySet

from portal.ages import in_words
from runtimes.clocks import Clock
from runtimes.models import Alarm, AlarmKind, FailoverGroup, Machine
from runtimes.protocol import ALONE_BECAUSE, RanAlone

REMEDY = (
    "Mend what the reason names: it joins the others by itself when a majority of the routers answers. To stop one of several that "
    "consume, stop its runtime on its machine's page. Look for items delivered twice."
)


def sentence(machine: str, group: str, reason: str) -> str:
    why = (reason[:1].lower() + reason[1:]).removeprefix(ALONE_BECAUSE).rstrip(".")  # a member's reason begins as a sentence
    return f"{machine} runs {group} alone{': ' + why if why else ''}. Other members may consume too, and items come twice."


def spells() -> "QuerySet[Alarm]":
    """When members ran alone, newest first."""
    return Alarm.objects.filter(kind=AlarmKind.ALONE, raised_at__isnull=False).order_by("-since")


def meanwhile(known: Iterable[Alarm], since: datetime, until: datetime) -> str:
    """Who ran alone between two moments in which nobody led: "external01 and external02 ran alone meanwhile"; empty: nobody did."""
    beside = [spell for spell in known if spell.since < until and (spell.cleared_at is None or spell.cleared_at > since)]
    machines = sorted({spell.runtime.partition(".")[0] for spell in beside})
    return f"{' and '.join(machines)} ran alone meanwhile" if machines else ""


def store(machine: Machine, told: Iterable[RanAlone], clock: Clock) -> None:
    """Inside the caller's transaction. A spell may be told twice, and may be known already from what the reports showed."""
    for ran in told:
        own = {"environment_id": machine.environment_id, "group__key": ran.group, "members__runtime__machine": machine}
        group = FailoverGroup.objects.filter(**own).first()
        if group is not None and ran.runtime.startswith(f"{machine.name}."):
            _keep(machine, group, ran, clock)


def _keep(machine: Machine, group: FailoverGroup, ran: RanAlone, clock: Clock) -> None:
    since = clock.instant(ran.since, ran.since_boot, ran.boot_id)
    until = clock.instant(ran.until, ran.until_boot, ran.boot_id) if ran.until else None
    known = Alarm.objects.filter(group=group, runtime=ran.runtime, kind=AlarmKind.ALONE).exclude(cleared_at__lt=since)
    row = (known.filter(since__lte=until) if until is not None else known).order_by("since").first()
    if row is None:
        said = sentence(machine.name, group.name, ran.reason)
        row = Alarm(group=group, runtime=ran.runtime, kind=AlarmKind.ALONE, sentence=said, remedy=REMEDY, since=since)
    row.since, row.raised_at = min(since, row.since), min(since, row.raised_at or since)
    if until is not None:
        row.cleared_at = until
        row.cleared_because = f"By its machine's own word it ran alone for {in_words((until - row.since).total_seconds())}."
    row.save()
