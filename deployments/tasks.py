"""Celery tasks of deployments. Each takes ids, may run twice, returns a sentence; none waits."""

import logging

from celery import shared_task
from django.db import transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from deployments import releases, rollout
from deployments.models import StepKind, StepRun

logger = logging.getLogger(__name__)


@shared_task
def run_step(step_id: int) -> str:
    """One look at one step of a deployment."""
    return rollout.tick(step_id, now=timezone.now())


@shared_task
def balance_failover(step_id: int) -> str:
    """The final task of a plan with failover: the same engine step, under its own name in the worker's log and monitoring."""
    return rollout.tick(step_id, now=timezone.now())


def send_step(step_id: int) -> None:
    """Have a worker look at a step once the transaction is committed. A broker that is away loses nothing: the sweep sends again."""

    def deliver() -> None:
        task = balance_failover if StepRun.objects.filter(pk=step_id, kind=StepKind.BALANCE_FAILOVER).exists() else run_step
        try:
            task.delay(step_id)
        except OperationalError as error:
            logger.warning("Step %s waits for the sweep: the broker does not answer (%s).", step_id, error)

    transaction.on_commit(deliver)


@shared_task
def activate_due_releases() -> str:
    """By beat: scheduled activations whose time has come enter by the same door as the button."""
    now = timezone.now()
    sentences = [releases.activate_due(activation_id, now=now) for activation_id in releases.due(now)]
    return " ".join(sentences) or "No activation is due."


@shared_task
def nudge_stalled_deployments() -> str:
    """By beat: wake-ups that were lost with a worker or the broker are sent again."""
    stalled = rollout.stalled(timezone.now())
    for step_id in stalled:
        send_step(step_id)
    return f"Sent again: {len(stalled)}." if stalled else "Nothing stands still."
