"""Operate › Timeline: who led when, why it changed, and how long nobody led."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.core.paginator import Paginator
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.http import HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from portal import exports
from portal.access import get_environment
from portal.htmx import UserRequest, render
from portal.models import Environment
from runtimes import boards, clocks, failover, history, protocol, solitude
from runtimes.models import Alarm, FailoverGroup, LeadershipChange, LeadershipEnd, LeadershipInterruption, Machine
from runtimes.protocol import Status
from runtimes.timeline import Known, Lane, Window, lanes

WINDOWS = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
}
MONTH = timedelta(days=30)
SPELLS_LOOKED_AT = 200  # in which members ran alone
UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@require_GET
def timeline(request: UserRequest, slug: str, kind: str) -> HttpResponse:
    """Lanes for a window, then every change; filters live in the URL, `?format=csv` exports the list."""
    environment = get_environment(request.user, slug, kind)
    asked = {name: request.GET.get(name, "") for name in ("group", "machine", "cause")}
    changes = chosen(environment, **asked)
    if exports.wanted(request.GET):
        return as_csv(environment, changes)
    now = timezone.now()
    page = Paginator(changes, 50).get_page(request.GET.get("page"))
    spells = solitude.spells().filter(group__environment=environment)[:SPELLS_LOOKED_AT]
    window = request.GET.get("window", "")
    window = window if window in WINDOWS else "1h"
    context = {
        "environment": environment,
        "window": window,
        "windows": list(WINDOWS),
        "page": page,
        "changes": [boards.in_words(change, spells) for change in page.object_list],
        "causes": [(cause.value, history.NAMES[cause]) for cause in protocol.Cause],
        "chosen": asked,
        "filters": urlencode({name: text for name, text in asked.items() if text}),
        "machines": Machine.objects.filter(environment=environment, runtimes__isnull=False).distinct().order_by("name"),
    }
    context |= drawn(environment, Window(now - WINDOWS[window], now))
    return render(request, "runtimes/timeline.html", context, part="runtimes/_timeline.html")


def chosen(environment: Environment, *, group: str, machine: str, cause: str) -> "QuerySet[LeadershipChange]":
    """The changes the filters ask for, newest first; a filter that makes no sense is ignored. `group` is a name, which groups of several
    connectors may bear, or its id; `machine` won or lost the leadership."""
    changes = LeadershipChange.objects.filter(group__environment=environment).select_related("group").order_by("-at", "-epoch")
    if group:
        changes = changes.filter(group=UUID(group)) if UUID_TEXT.fullmatch(group) else changes.filter(group__name=group)
    if machine:
        changes = changes.filter(Q(runtime__startswith=f"{machine}.") | Q(previous__startswith=f"{machine}."))
    if cause in list(protocol.Cause):
        changes = changes.filter(cause=cause)
    return changes


def drawn(environment: Environment, window: Window) -> dict[str, Any]:
    """Lanes of every group, and how often and how long nobody led in the last 30 days. A fixed number of queries."""
    month = Q(changes__at__gte=window.end - MONTH)
    ends = LeadershipEnd.objects.filter(group=OuterRef("pk")).order_by("-epoch")
    interrupted = LeadershipInterruption.objects.filter(group=OuterRef("pk"), until__gte=window.end - MONTH).order_by().values("group")
    groups = boards.with_members(FailoverGroup.objects.filter(environment=environment)).annotate(
        month_changes=Count("changes", filter=month),
        month_gap=Coalesce(Sum("changes__gap_seconds", filter=month & Q(changes__gap_seconds__gt=0)), 0.0)
        + Coalesce(Subquery(interrupted.annotate(seconds_in_all=Sum("seconds")).values("seconds_in_all")), 0.0),
        month_unseen=Count("changes", filter=month & Q(changes__gap_seconds=None) & ~Q(changes__previous="")),
        end_runtime=Subquery(ends.values("runtime")[:1]),
        end_epoch=Subquery(ends.values("epoch")[:1]),
        end_at=Subquery(ends.values("at")[:1]),
        before=Subquery(LeadershipChange.objects.filter(group=OuterRef("pk"), at__lt=window.start).order_by("-epoch").values("pk")[:1]),
    )
    found = list(groups)
    wanted = Q(at__gte=window.start) | Q(pk__in=[group.before for group in found if group.before])
    by_group: dict[Any, list[LeadershipChange]] = {}
    for change in LeadershipChange.objects.filter(wanted, group__in=found):
        by_group.setdefault(change.group_id, []).append(change)
    alone: dict[Any, list[Alarm]] = {}
    in_window = Q(cleared_at=None) | Q(cleared_at__gte=window.start)
    for spell in solitude.spells().filter(in_window, group__in=found):
        alone.setdefault(spell.group_id, []).append(spell)
    interruptions: dict[Any, list[LeadershipInterruption]] = {}
    for broken in LeadershipInterruption.objects.filter(group__in=found, until__gte=window.start):
        interruptions.setdefault(broken.group_id, []).append(broken)
    return {
        "window_start": window.start,
        "window_end": window.end,
        "ticks": window.ticks(),
        "groups": [
            {
                "group": group,
                "lanes": group_lanes(
                    group, by_group.get(group.pk, []), window, interruptions=interruptions.get(group.pk, []), alone=alone.get(group.pk, [])
                ),
            }
            for group in found
        ],
    }


def group_lanes(
    group: Any, changes: list[LeadershipChange], window: Window, *, interruptions: list[LeadershipInterruption], alone: list[Alarm]
) -> list[Lane]:
    """Needs the annotations of `drawn`."""
    newest = max(changes, key=lambda change: change.epoch, default=None)
    machines = sorted({member.runtime.machine.name for member in group.members.all()})
    return lanes(machines, changes, window, known=known_of(group, newest, window), interruptions=interruptions, alone=alone)


def known_of(group: Any, newest: LeadershipChange | None, window: Window) -> Known:
    """How far the newest leadership is known to go: on, while its member says that it leads; to where it ended, when that was told or when
    it says something else since; or to its machine's last report."""
    member = next((one for one in group.members.all() if newest is not None and one.runtime.key == newest.runtime), None)
    if newest is None or member is None:
        return Known(window.start)
    machine = member.runtime.machine
    silent = machine.is_silent(now=window.end)
    if member.observed_status == Status.LEADER or not failover.meant_to_fail_over(group):
        return Known(window.end if not silent else machine.last_report_at or window.start)
    told = group.end_at if group.end_runtime == newest.runtime and group.end_epoch >= newest.epoch else None
    until = told or (clocks.read(member.observed_since) if member.observed_status != Status.UNKNOWN else None)
    if silent:
        return Known(until or newest.at)
    leader = failover.verdict(group, now=window.end).leader
    if leader is not None and leader.status == Status.LEADER:
        return Known(until or newest.at, title=f"{leader.machine} leads, and has not told since when")
    return Known(until, "gap", "nobody leads") if until is not None else Known(newest.at, title="not known: it does not say")


def as_csv(environment: Environment, changes: "QuerySet[LeadershipChange]") -> HttpResponse:
    columns = ["at", "group", "epoch", "leader", "previous", "cause", "detail", "actor", "gap_seconds", "detection_seconds"]
    fields = ("at", "group__name", "epoch", "runtime", "previous", "cause", "detail", "actor", "gap_seconds", "detection_seconds")
    return exports.as_csv(f"leadership-{environment.project.slug}-{environment.kind}", columns, changes.values_list(*fields).iterator())
