"""Celery tasks of deployments. Each takes ids, may run twice, returns a sentence; none waits."""

import asyncio
import logging
import time
from typing import Any

import httpx
from celery import shared_task
from django.db import transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from deployments import frozen, retention, returning, rollout, schedules
from deployments.models import RunStatus, StepKind, StepRun
from portal import property_values
from portal.errors import NotAllowed

logger = logging.getLogger(__name__)


GO_ON_FOR_SECONDS = 1.0  # a task stays short: what a worker takes at once after a step that ended; the rest is sent


@shared_task
def run_step(step_id: int) -> str:
    """One look at one step of a deployment, and when it ended, at the next one: steps that need no machine take no way round by the
    broker. A worker that is killed in between loses nothing: the sweep finds the next step."""
    began, sentences, onward = time.monotonic(), [], [step_id]
    while onward:
        sentences.append(rollout.tick(onward.pop(), now=timezone.now(), onward=onward))
        if onward and time.monotonic() - began > GO_ON_FOR_SECONDS:
            _send(run_step, onward.pop())  # which is never Balance failover
    return " ".join(sentences)


@shared_task
def balance_failover(step_id: int) -> str:
    """The final task of a plan with failover: the same engine step, under its own name in the worker's log and monitoring."""
    return rollout.tick(step_id, now=timezone.now())


def send_step(step_id: int, kind: str) -> None:
    """Have a worker look at a step of this kind once the transaction is committed."""
    task = balance_failover if kind == StepKind.BALANCE_FAILOVER else run_step
    transaction.on_commit(lambda: _send(task, step_id))


def _send(task: Any, step_id: int) -> None:
    """A broker that is away loses nothing: the sweep sends again."""
    try:
        task.delay(step_id)
    except OperationalError as error:
        logger.warning("Step %s waits for the sweep: the broker does not answer (%s).", step_id, error)


PROBE_TIMEOUT_SECONDS = 3.0


@shared_task
def probe_http(step_id: int, attempt: int) -> str:
    """Ask an HTTP check's address once, outside of any transaction; follows no redirect, reads no body."""
    step = StepRun.objects.filter(pk=step_id, kind=StepKind.HTTP_CHECK, status=RunStatus.RUNNING).select_related("deployment").first()
    if step is None:
        return f"Step {step_id} asks nothing any more."
    status, reason = None, ""
    try:
        values = property_values.Values(frozen.values_of(step.deployment))
    except NotAllowed as no:
        reason = no.sentence
    else:
        found = property_values.resolve({"url": step.url}, values.winners())
        reason = f"no value for {', '.join(sorted(found.missing))}"
        if not found.missing:
            status, reason = _ask(found.settings["url"])
    rollout.record_answer(step_id, attempt, status=status, reason=reason, now=timezone.now())
    return f"Step {step_id}: {status or reason}."


def _ask(url: str) -> tuple[int | None, str]:
    """Status, or None and why there is none. The address itself may hold a secret, so it is never part of the reason."""
    try:
        return asyncio.run(_status_of(url)), ""
    except (TimeoutError, httpx.TimeoutException):
        return None, f"no answer within {PROBE_TIMEOUT_SECONDS:.0f} s"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return None, f"{type(error).__name__}"


async def _status_of(url: str) -> int:
    """Raises TimeoutError when it takes longer in all: a server that sends a byte now and then would hold the worker for ever."""
    async with (
        asyncio.timeout(PROBE_TIMEOUT_SECONDS),
        httpx.AsyncClient(timeout=PROBE_TIMEOUT_SECONDS, follow_redirects=False) as client,
        client.stream("GET", url, headers={"User-Agent": "baton"}) as answer,
    ):
        return answer.status_code


def send_probe(step_id: int, attempt: int) -> None:
    """Have a worker ask once the transaction is committed; when the broker is away, the next look asks again."""

    def deliver() -> None:
        try:
            probe_http.delay(step_id, attempt)
        except OperationalError as error:
            logger.warning("Step %s asks later: the broker does not answer (%s).", step_id, error)

    transaction.on_commit(deliver)


@shared_task
def activate_due_releases() -> str:
    """By beat: scheduled activations whose time has come enter by the same door as the button."""
    now = timezone.now()
    sentences = []
    for activation_id in schedules.due(now):
        try:
            sentences.append(schedules.activate_due(activation_id, now=now))
        except Exception:  # one that stumbles, for whatever reason, holds up no other; the next look tries it again
            logger.exception("Activation %s stumbled.", activation_id)
            sentences.append(f"Activation {activation_id} stumbled: it is tried again.")
    return " ".join(sentences) or "No activation is due."


@shared_task
def forget_old_releases() -> str:
    """By beat: the retention rules of all projects that switched theirs on."""
    return retention.sweep(now=timezone.now())


@shared_task
def nudge_stalled_deployments() -> str:
    """By beat: wake-ups that were lost with a worker or the broker are sent again; waits for people and for machines end."""
    ended = rollout.end_waits(timezone.now())
    stalled = rollout.stalled(timezone.now())
    for step_id, kind in stalled:
        send_step(step_id, kind)
    now = timezone.now()
    told = [returning.catch_up(exclusion, now=now) for exclusion in returning.open_exclusions()]
    return " ".join([f"Sent again: {len(stalled)}." if stalled else "Nothing stands still.", *ended, *told])
