"""Operate › Groups › History: every change of leadership of one group, with its cause, who asked, and how long nobody led."""

from collections import Counter
from datetime import timedelta
from statistics import median
from typing import Any
from uuid import UUID

from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.views.decorators.http import require_GET

from portal import exports
from portal.access import get_environment
from portal.htmx import UserRequest, render
from runtimes import alarms, boards, history, protocol, solitude
from runtimes.models import FailoverGroup, LeadershipChange, LeadershipInterruption
from runtimes.views.timeline import SPELLS_LOOKED_AT, as_csv

MONTH = timedelta(days=30)
ON_A_PAGE = 50
ALARMS_SHOWN = 20
INTERRUPTIONS_SHOWN = 20


@require_GET
def group_history(request: UserRequest, slug: str, kind: str, pk: UUID) -> HttpResponse:
    """The list, newest first; the filter `?cause=` lives in the URL, `?format=csv` exports it."""
    environment = get_environment(request.user, slug, kind)
    group = get_object_or_404(FailoverGroup.objects.select_related("group__connector__system"), environment=environment, pk=pk)
    every = LeadershipChange.objects.filter(group=group).select_related("group")
    cause = request.GET.get("cause", "")
    chosen = every.filter(cause=cause) if cause in list(protocol.Cause) else every
    if exports.wanted(request.GET):
        return as_csv(environment, chosen)
    page = Paginator(chosen, ON_A_PAGE).get_page(request.GET.get("page"))
    spells = solitude.spells().filter(group=group)[:SPELLS_LOOKED_AT]
    counts = Counter(every.order_by().values_list("cause", flat=True))
    context = {
        "environment": environment,
        "group": group,
        "page": page,
        "changes": [boards.in_words(change, spells) for change in page.object_list],
        "chosen_cause": cause if cause in list(protocol.Cause) else "",
        "causes": [(known.value, history.NAMES[known], counts[known]) for known in protocol.Cause if counts[known]],
        "number": sum(counts.values()),
        "alarms": alarms.shown().filter(group=group)[:ALARMS_SHOWN],
        "interruptions": [
            (
                broken,
                broken.runtime.partition(".")[0],
                history.CAUSES[protocol.Cause(broken.cause)],
                solitude.meanwhile(spells, broken.since, broken.until),
            )
            for broken in group.interruptions.all()[:INTERRUPTIONS_SHOWN]
        ],
        "here": request.get_full_path(),
        **last_month(every, group.interruptions.all()),
    }
    return render(request, "runtimes/group_history.html", context, part="runtimes/_group_history.html")


def last_month(changes: Any, interruptions: "QuerySet[LeadershipInterruption]") -> dict[str, Any]:
    """How many in 30 days, and of what was measured: the usual gap, the worst, the sum, and the usual detection time. While a leadership
    was interrupted nobody led either."""
    since = timezone.now() - MONTH
    measures = list(changes.filter(at__gte=since).order_by().values_list("gap_seconds", "detection_seconds"))
    interrupted = list(interruptions.filter(until__gte=since).order_by().values_list("seconds", flat=True))
    gaps = [gap for gap, _ in measures if gap is not None]
    detections = [detection for _, detection in measures if detection is not None]
    return {
        "month_changes": len(measures),
        "month_gap_p50": median(gaps) if gaps else None,
        "month_gap_worst": max([*gaps, *interrupted], default=None),
        "month_gap": sum(gap for gap in [*gaps, *interrupted] if gap > 0),
        "month_detection_p50": median(detections) if detections else None,
    }
