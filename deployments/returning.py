"""Machines that were left out of a deployment: when one returns, its runtimes get the release's orders by themselves.

In a deployment of its own, so that the same gates, hand-overs, log and Balance apply: a machine that was silent may lead all the while.

What was promised is kept by a deployment that ended well, and by no other (docs/decisions/0074): while it runs or waits for a decision the
promise rests; cancelled, aborted or rolled back it ends at once (rollout.break_promises); set aside by another deployment or release it
ends with the next look. However it ends, the sentence why is kept and stands in the log.
"""

from datetime import datetime

from django.db import transaction

from deployments import releases, rollout
from deployments.models import BROKEN, DEPLOYS, LIVE, UNTIL_DEPLOYED, Choice, Decision, Deployment, Exclusion, RunStatus, StepKind, StepRun
from portal.access import may, role_to_deploy
from portal.errors import NotAllowed
from runtimes.models import Machine


def open_exclusions() -> list[Exclusion]:
    """Machines that have yet to catch up, of deployments that are not under way."""
    rows = Exclusion.objects.filter(ended_at=None).exclude(deployment__status__in=LIVE)
    return list(rows.select_related("deployment__environment__project", "deployment__release", "by").order_by("id"))


def catch_up(exclusion: Exclusion, *, now: datetime) -> str:
    """Deploy to a machine that returned what it missed, once. Returns a sentence."""
    deployment, name = exclusion.deployment, exclusion.machine
    environment = deployment.environment
    machine = Machine.objects.filter(environment=environment, name=name).first()
    if machine is None:
        return _over(exclusion, f"{name} is no machine of {environment.name} any more.", now)
    if reason := _needless(exclusion):
        return _over(exclusion, reason, now)
    if machine.is_silent(now=now):
        return _waits(exclusion, "", f"{name} is still away.")
    if exclusion.by is None or not may(exclusion.by, environment.project.team_id, role_to_deploy(environment)):
        number = deployment.release.number
        return _waits(exclusion, f"{name} is back and waits: who left it out may no longer deploy here. Deploy release {number} again.")
    if deployment.status in BROKEN:
        return _waits(exclusion, f"{name} is back and waits for the decision about deployment {deployment.pk}.")
    missed = _missed(deployment, name)
    balance = list(StepRun.objects.filter(deployment=deployment, kind=StepKind.BALANCE_FAILOVER).order_by("number"))
    if rollout.live(environment) is not None:
        return _waits(exclusion, f"{name} is back and waits for the deployment that is under way.")
    newest = Deployment.objects.filter(environment=environment).select_related("release", "environment").order_by("-pk").first()
    if newest is not None and newest != deployment and newest.status in BROKEN and not rollout.superseded(newest):
        return _waits(exclusion, f"{name} is back and waits for the decision about deployment {newest.pk}.")
    try:
        with transaction.atomic():
            open_one = Exclusion.objects.filter(pk=exclusion.pk, ended_at=None)
            because = f"{name} is back: it gets release {deployment.release.number}."
            if not open_one.update(ended_at=now, ended_because=because, waits=""):
                return f"{name} is caught up by another worker."
            made = rollout.begin(
                deployment.release,
                [*missed, *balance],
                on=environment,
                by=exclusion.by,
                now=now,
                completes=deployment,
                rules=("window",),  # with the values and steps of then, which were admitted then
            )
            Exclusion.objects.filter(pk=exclusion.pk).update(caught_up_by=made)
    except NotAllowed as refusal:  # somebody deployed in the same instant, or the environment is frozen: look again later
        return _waits(exclusion, f"{name} is back and waits: {refusal.sentence}")
    return f"{name} is back: deployment {made.pk} brings it release {deployment.release.number}."


def _over(exclusion: Exclusion, reason: str, now: datetime) -> str:
    rollout.end_promise(exclusion, reason, now)
    return f"{exclusion.machine} need not catch up: {reason}"


def _waits(exclusion: Exclusion, sentence: str, told: str = "") -> str:
    """Kept for the page where it is news."""
    Exclusion.objects.filter(pk=exclusion.pk, ended_at=None).exclude(waits=sentence).update(waits=sentence)
    return told or sentence


def _missed(deployment: Deployment, machine: str) -> list[StepRun]:
    mine = StepRun.objects.filter(deployment=deployment, machine=machine, status=RunStatus.SKIPPED, kind__in=DEPLOYS)
    return list(mine.order_by("number"))


def _needless(exclusion: Exclusion) -> str:
    """Why the machine need not get this release any more; empty when it must."""
    deployment, name = exclusion.deployment, exclusion.machine
    environment, number = deployment.environment, deployment.release.number
    if deployment.status == RunStatus.CANCELLED:
        return f"Deployment {deployment.pk} was cancelled and brings {name} nothing when it returns: {UNTIL_DEPLOYED}"
    if releases.active(environment) != deployment.release:
        return f"Release {number} is no longer active: the next deployment brings {name} the one that is."
    if deployment.status in BROKEN:
        gone = rollout.superseded(deployment)
        return f"Deployment {deployment.pk} failed and does not go on, for another one ran since: {UNTIL_DEPLOYED}" if gone else ""
    for later in Deployment.objects.filter(environment=environment, pk__gt=deployment.pk, status=RunStatus.SUCCEEDED).order_by("pk"):
        if Exclusion.objects.filter(deployment=later, machine=name).exists():
            if _missed(later, name):
                return f"Deployment {later.pk} left {name} out too, and brings it release {later.release.number} when it returns."
            continue
        brought = StepRun.objects.filter(deployment=later, machine=name, kind__in=DEPLOYS)
        if Decision.objects.filter(step__in=brought, choice=Choice.SKIP).exists():
            return f"In deployment {later.pk} a person skipped what was for {name}: {UNTIL_DEPLOYED}"
        if brought.exists():
            return f"Deployment {later.pk} brought it since."
    return "" if _missed(deployment, name) else "Nothing was to be deployed to it."
