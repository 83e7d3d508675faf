"""Machines that were left out of a deployment: when one returns, its runtimes get the release's orders by themselves.

In a deployment of its own, so that the same gates, hand-overs, log and Balance apply: a machine that was silent may lead all the while.
"""

from datetime import datetime

from django.db.models import Q

from deployments import releases, rollout
from deployments.models import BROKEN, LIVE, Deployment, Exclusion, RunStatus, StepKind, StepRun
from portal.errors import NotAllowed
from runtimes.models import Machine

BROUGHT = (StepKind.DEPLOY_MACHINE, StepKind.DEPLOY_RUNTIME)  # what is made up for; a command or a stop of that day is not


def open_exclusions() -> list[Exclusion]:
    """Machines that have yet to catch up, of deployments that came to an end."""
    rows = Exclusion.objects.filter(ended_at=None).exclude(deployment__status__in=(*LIVE, *BROKEN))
    return list(rows.select_related("deployment__environment__project", "deployment__release", "by").order_by("id"))


def catch_up(exclusion: Exclusion, *, now: datetime) -> str:
    """Deploy to a machine that returned what it missed, once. Returns a sentence."""
    deployment, name = exclusion.deployment, exclusion.machine
    environment = deployment.environment
    if reason := _needless(exclusion):
        Exclusion.objects.filter(pk=exclusion.pk, ended_at=None).update(ended_at=now, ended_because=reason)
        return f"{name} need not catch up: {reason}"
    machine = Machine.objects.filter(environment=environment, name=name).first()
    if machine is None or machine.is_silent(now=now):
        return f"{name} is still away."
    mine = StepRun.objects.filter(deployment=deployment).order_by("number")
    missed = list(mine.filter(machine=name, status=RunStatus.SKIPPED, kind__in=BROUGHT))
    balance = list(mine.filter(kind=StepKind.BALANCE_FAILOVER))
    if rollout.live(environment) is not None:
        return f"{name} is back and waits for the deployment that is under way."
    newest = Deployment.objects.filter(environment=environment).select_related("release", "environment").order_by("-pk").first()
    if newest is not None and newest != deployment and newest.status in BROKEN and not rollout.superseded(newest):
        return f"{name} is back and waits for the decision about deployment {newest.pk}."
    if not Exclusion.objects.filter(pk=exclusion.pk, ended_at=None).update(
        ended_at=now, ended_because=f"{name} is back: it gets release {deployment.release.number}."
    ):
        return f"{name} is caught up by another worker."
    try:
        made = rollout.begin(
            deployment.release,
            [*missed, *balance],
            on=environment,
            by=exclusion.by,
            now=now,
            completes=deployment,
            rules=("approvals", "window"),
        )
    except NotAllowed as refusal:  # somebody deployed in the same instant, or the environment is frozen: look again later
        Exclusion.objects.filter(pk=exclusion.pk).update(ended_at=None, ended_because="")
        return refusal.sentence
    Exclusion.objects.filter(pk=exclusion.pk).update(caught_up_by=made)
    return f"{name} is back: deployment {made.pk} brings it release {deployment.release.number}."


def _needless(exclusion: Exclusion) -> str:
    """Why the machine need not get this release any more; empty when it must."""
    deployment, name = exclusion.deployment, exclusion.machine
    if deployment.status == RunStatus.CANCELLED:
        return f"Deployment {deployment.pk} was cancelled."
    if releases.active(deployment.environment) != deployment.release:
        return f"Release {deployment.release.number} is no longer active: the next deployment brings the one that is."
    later = Deployment.objects.filter(environment=deployment.environment, pk__gt=deployment.pk).exclude(exclusions__machine=name)
    done = later.filter(Q(steps__machine=name), steps__kind__in=BROUGHT, steps__status__in=(RunStatus.SUCCEEDED, RunStatus.SKIPPED)).first()
    if done is not None:
        return f"Deployment {done.pk} brought it since."
    missed = StepRun.objects.filter(deployment=deployment, machine=name, status=RunStatus.SKIPPED, kind__in=BROUGHT)
    return "" if missed.exists() else "Nothing was to be deployed to it."
