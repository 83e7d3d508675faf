"""Celery tasks of runtimes. Each takes ids, may run twice, returns a sentence."""

from celery import shared_task
from django.conf import settings
from django.db.models import Count
from django.utils import timezone

from runtimes import alarms, failback, failover, items, reports
from runtimes.models import FailoverGroup, RuntimeLog


@shared_task
def expire_requests() -> str:
    """End wishes that no agent carried in time."""
    expired = failover.expire_overdue(now=timezone.now())
    return f"{expired} wishes for groups were not carried in time." if expired else "No wish is overdue."


@shared_task
def return_leaderships() -> str:
    """By beat: groups whose failback policy, or whose switch for a time, says that leadership returns now."""
    now = timezone.now()
    return " ".join(filter(None, (failback.carry_out(pk, now=now) for pk in failback.concerned()))) or "Nothing is to return now."


@shared_task
def watch_alarms() -> str:
    """By beat: what leads but does not work is raised, and cleared when it works again."""
    groups = FailoverGroup.objects.select_related("group").prefetch_related(failover.with_members())
    raised, cleared = alarms.watch(groups, now=timezone.now())
    return f"{raised} alarms were raised, {cleared} cleared." if raised or cleared else "No alarm was raised or cleared."


@shared_task
def forget_old_logs() -> str:
    """Keep settings.LOG_LINES_KEPT_PER_RUNTIME lines per machine and source."""
    sources = RuntimeLog.objects.order_by().values_list("machine_id", "source").annotate(lines=Count("id"))
    long = sources.filter(lines__gt=settings.LOG_LINES_KEPT_PER_RUNTIME)
    gone = sum(reports.forget_logs(machine_id, source) for machine_id, source, _ in long)
    return f"{gone} old log lines were deleted." if gone else "No log is too long."


@shared_task
def forget_item_answers() -> str:
    """Delete old questions about failed items with their answers."""
    gone = items.forget(now=timezone.now())
    return f"{gone} questions about failed items were deleted." if gone else "No question is old."
