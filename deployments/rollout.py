"""The engine: a plan copied into StepRuns and executed one step at a time.

The state machine lives in the database; `send` and `wake` only say "look again". A lost or doubled wake-up changes nothing: the sweep
(tasks.nudge_stalled_deployments) sends again, and every move is a compare-and-set UPDATE inside one transaction with what it orders.

    step        PENDING -> RUNNING -> SUCCEEDED            (or WAITING -> SUCCEEDED, by a person)
                              └-----> FAILED | TIMED_OUT -> PENDING, attempt + 1 (resume)
    deployment  PENDING -> RUNNING <-> WAITING -> SUCCEEDED | FAILED | TIMED_OUT (-> RUNNING by resume) | CANCELLED
"""

import copy
import logging
import re
from collections.abc import Callable
from datetime import datetime, timedelta

from django.contrib.auth.models import AbstractBaseUser
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import F, Max, OuterRef, Q, Subquery

from deployments import frozen, moves, plans, releases, steps
from deployments.models import BROKEN, DONE, LIVE, Deployment, Release, RunStatus, StepKind, StepLog, StepRun
from deployments.steps import Outcome
from portal.errors import Busy, NotAllowed
from portal.models import Environment
from runtimes.models import Machine

logger = logging.getLogger(__name__)

STALLED_AFTER = timedelta(seconds=2)
STUMBLES_ALLOWED = 5  # unforeseen errors in a row before a step is given up
TICKING = (RunStatus.PENDING, RunStatus.RUNNING)  # what a worker has something to do with


def _not_sent(step_id: int) -> None:
    """Without a broker (tests of pure parts) nothing is sent; the sweep finds it."""


# Set by DeploymentsConfig.ready() to tasks.send_step.
send: Callable[[int], object] = _not_sent


# ----------------------------------------------------------------------------------------------------------------- prepare


def obstacles(release: Release, environment: Environment, *, now: datetime) -> list[str]:
    """Why this release cannot be deployed here now, one sentence each: not active, no machines applied, no agents ("Acceptance has no
    machines: …"), silent agents, missing properties, an invalid plan."""
    machines = {machine.name: machine for machine in Machine.objects.filter(environment=environment)}
    if not machines:
        return [f"{environment.name} has no machines: apply the architecture and register agents there first."]
    found = []
    if releases.active(environment) != release:
        found.append(f"Release {release.number} is not active on {environment.name}: activate it first.")
    plan = plans.plan_of(environment)
    wanted = {step.machine for step in plan.steps.all() if step.machine}
    for name in sorted(wanted & machines.keys()):
        if not machines[name].has_agent:
            found.append(f"{name} has no agent: register it in Deploy › Architecture.")
        elif machines[name].is_silent(now=now):
            found.append(steps.silence(machines[name], now))
    found += [item.sentence for item in releases.missing(release, environment)]
    found += plans.problems(plan)
    for gap in moves.foreseen(release, environment, list(plan.steps.all())):
        found += [moves.not_deployed_later(runtime, gap.clauses) for runtime in gap.left]
    return found


def live(environment: Environment) -> Deployment | None:
    """The deployment that is under way here."""
    return Deployment.objects.filter(environment=environment, status__in=LIVE).select_related("release", "environment").first()


def _busy(environment: Environment) -> Busy:
    under_way = live(environment)
    what = f"Deployment {under_way.pk} of release {under_way.release.number}" if under_way else "Another deployment"
    return Busy(f"{what} is under way on {environment.name}: wait for it to end, or cancel it.")


def refuse_while_deploying(environment: Environment) -> None:
    """For acts that would pull the ground from under a deployment, such as applying the architecture. Raises Busy."""
    if live(environment) is not None:
        raise _busy(environment)


def prepare(release: Release, *, on: Environment, by: AbstractBaseUser | None, now: datetime) -> Deployment:
    """Copy the plan into a deployment and send its first step. Raises NotAllowed with `reasons`, or Busy (one live each)."""
    refuse_while_deploying(on)
    reasons = obstacles(release, on, now=now)
    if reasons:
        raise NotAllowed(f"Release {release.number} cannot be deployed on {on.name}. {' '.join(reasons)}", reasons=reasons)
    names = ("kind", "machine", "connector", "group", "instruction", "timeout_seconds")
    try:
        with transaction.atomic():
            deployment = Deployment.objects.create(environment=on, release=release, created_by_id=by.pk if by else None)
            frozen.freeze(deployment, by=by, now=now)
            runs = [
                StepRun(deployment=deployment, number=number, **{name: getattr(step, name) for name in names})
                for number, step in enumerate(plans.plan_of(on).steps.all(), start=1)
            ]
            StepRun.objects.bulk_create(runs)
            _send_next(deployment, now)
    except IntegrityError:
        raise _busy(on) from None
    return deployment


# -------------------------------------------------------------------------------------------------------------------- tick


def tick(step_id: int, *, now: datetime) -> str:
    """One look at one step: begin it, or check it; move on when it is done. Safe to call twice, from two workers. Returns a sentence.

    One transaction: a worker killed anywhere in it leaves everything as it was, and the sweep has the step looked at again.
    """
    try:
        with transaction.atomic():
            return _tick(step_id, now)
    except DatabaseError:  # not the step's fault: the sweep tries again for as long as it takes
        raise
    except Exception as error:
        _stumbled(step_id, error, now)
        raise


def _tick(step_id: int, now: datetime) -> str:
    # This UPDATE comes first: until the transaction ends, no other worker gets past it for this deployment, and no cancel.
    if not Deployment.objects.filter(steps=step_id, status__in=TICKING).update(status=RunStatus.RUNNING):
        return f"Step {step_id} has nothing to do: its deployment is not running."
    step = StepRun.objects.select_related("deployment__environment__project", "deployment__release").get(pk=step_id)
    deployment = step.deployment
    current = next_step(deployment)
    if current is None or current.pk != step.pk or step.status not in TICKING:
        return f"Step {step.number} of deployment {deployment.pk} is {step.status}: nothing to do."
    kind = steps.KINDS[StepKind(step.kind)]
    begins = step.status == RunStatus.PENDING
    if begins and not _claim(step, now):
        return f"Step {step.number} of deployment {deployment.pk} was begun by another worker."
    memory = copy.deepcopy(step.memory)
    try:
        with transaction.atomic():
            if begins:
                kind.begin(step, now)
            outcome = kind.check(step, now)
    except NotAllowed as refusal:  # what was half ordered is undone
        step.memory = memory
        outcome = steps.failed(refusal.sentence)
    return _conclude(step, kind, outcome, now)


def _claim(step: StepRun, now: datetime) -> bool:
    """Of two workers one wins."""
    step.started_at, step.deadline_at = now, now + timedelta(seconds=step.timeout_seconds)
    Deployment.objects.filter(pk=step.deployment_id, started_at=None).update(started_at=now)
    return bool(
        StepRun.objects.filter(pk=step.pk, status=RunStatus.PENDING).update(
            status=RunStatus.RUNNING, started_at=step.started_at, deadline_at=step.deadline_at, ended_at=None
        )
    )


def _conclude(step: StepRun, kind: steps.Kind, outcome: Outcome, now: datetime) -> str:
    """Write what one look found, and move on."""
    status = {
        "done": RunStatus.SUCCEEDED,
        "failed": RunStatus.FAILED,
        "waiting": RunStatus.WAITING,
        "running": RunStatus.RUNNING,
    }[outcome.state]
    sentence = outcome.sentence
    if status == RunStatus.RUNNING and step.deadline_at is not None and now >= step.deadline_at:
        status = RunStatus.TIMED_OUT
        sentence = f"{kind.overdue(step)} within {step.timeout_seconds} s: {sentence}"
    ended = None if status in LIVE else now
    step.memory.pop("stumbles", None)
    StepRun.objects.filter(pk=step.pk, status=RunStatus.RUNNING).update(
        status=status, reason=sentence, memory=step.memory, woken_at=now, ended_at=ended
    )
    if _without_numbers(sentence) != _without_numbers(step.reason) or status != RunStatus.RUNNING:
        level = "error" if status in BROKEN else "info"
        steps.note(step, sentence, now, machine=step.machine, level=level)
    if status == RunStatus.SUCCEEDED:
        _send_next(step.deployment, now)
    elif status == RunStatus.WAITING:
        Deployment.objects.filter(pk=step.deployment_id, status=RunStatus.RUNNING).update(status=RunStatus.WAITING)
    elif status in BROKEN:
        _end(step.deployment, status, now)
    return f"{step.number}. {step.title}: {status}. {sentence}"


def _without_numbers(sentence: str) -> str:
    """So that "not heard from for 41 s" is no news after "… for 40 s"."""
    return re.sub(r"\d+", "#", sentence)


def _send_next(deployment: Deployment, now: datetime) -> None:
    """Send the step that is due, or end the deployment when none is left."""
    step = next_step(deployment)
    if step is None:
        _end(deployment, RunStatus.SUCCEEDED, now)
    else:
        StepRun.objects.filter(pk=step.pk).update(woken_at=now)
        send(step.pk)


def _end(deployment: Deployment, status: RunStatus, now: datetime) -> None:
    Deployment.objects.filter(pk=deployment.pk, status__in=LIVE).update(status=status, ended_at=now, alerting_off=False)


def _stumbled(step_id: int, error: Exception, now: datetime) -> None:
    """An error nobody foresaw undid the look. It is told, tried again by the sweep, and after a few times ends the step."""
    logger.exception("Step %s stumbled.", step_id)
    with transaction.atomic():
        if not Deployment.objects.filter(steps=step_id, status__in=TICKING).update(status=RunStatus.RUNNING):
            return
        step = StepRun.objects.select_related("deployment").get(pk=step_id)
        count = step.memory.get("stumbles", 0) + 1
        sentence = f"An error that should not happen: {type(error).__name__}: {error} (time {count} of {STUMBLES_ALLOWED})."
        steps.note(step, sentence, now, machine=step.machine, level="error")
        given_up = count >= STUMBLES_ALLOWED
        changes = {"status": RunStatus.FAILED, "reason": sentence, "ended_at": now} if given_up else {}
        StepRun.objects.filter(pk=step_id, status__in=TICKING).update(
            memory={**step.memory, "stumbles": 0 if given_up else count}, woken_at=now, **changes
        )
        if given_up:
            _end(step.deployment, RunStatus.FAILED, now)


def next_step(deployment: Deployment) -> StepRun | None:
    """The step to look at: the first that is not DONE."""
    return StepRun.objects.filter(deployment=deployment).exclude(status__in=DONE).order_by("number").first()


# ----------------------------------------------------------------------------------------------------------------- wake-ups


def wake(environment_id: int) -> None:
    """News came from the environment's machines: look at the current step of its live deployment. One query when there is none."""
    step = (
        StepRun.objects.filter(deployment__environment_id=environment_id, deployment__status__in=TICKING)
        .exclude(status__in=DONE)
        .order_by("number")
        .values_list("pk", flat=True)
        .first()
    )
    if step is not None:
        send(step)


def stalled(now: datetime) -> list[int]:
    """Ids of current steps nobody has looked at for 2 s."""
    first = StepRun.objects.filter(deployment=OuterRef("pk")).exclude(status__in=DONE).order_by("number").values("pk")[:1]
    current = Deployment.objects.filter(status__in=TICKING).values_list(Subquery(first), flat=True)
    unseen = Q(woken_at=None) | Q(woken_at__lte=now - STALLED_AFTER)
    return list(StepRun.objects.filter(unseen, pk__in=list(current), status__in=TICKING).values_list("pk", flat=True))


# ---------------------------------------------------------------------------------------------------------- what people may do


def cancel(deployment: Deployment, *, by: AbstractBaseUser, now: datetime) -> None:
    """End it at once: the step under way and all later ones are cancelled; what was ordered stays ordered, and a hand-over under way
    ends by itself. Repeated cancel succeeds. Raises NotAllowed when it ended otherwise."""
    sentence = f"Cancelled by {by.get_username()}."
    with transaction.atomic():
        ended = Deployment.objects.filter(pk=deployment.pk, status__in=LIVE).update(
            status=RunStatus.CANCELLED, ended_at=now, alerting_off=False
        )
        if ended:
            current = next_step(deployment)
            if current is not None:
                steps.note(current, sentence, now)
            StepRun.objects.filter(deployment=deployment, status__in=LIVE).update(status=RunStatus.CANCELLED, reason=sentence, ended_at=now)
    deployment.refresh_from_db()
    if deployment.status != RunStatus.CANCELLED:
        raise NotAllowed(
            f"Deployment {deployment.pk} has ended already ({deployment.get_status_display().lower()}): there is nothing to cancel."
        )


def resume(deployment: Deployment, *, by: AbstractBaseUser, now: datetime) -> None:
    """Go on from the step that failed: the same run, its history kept. Raises NotAllowed when it did not fail.

    Raises:
        NotAllowed: it did not fail, another release is active by now, or a newer deployment ran since.
        Busy: another deployment is under way.
    """
    environment = deployment.environment
    deployment.refresh_from_db()
    if deployment.status not in BROKEN:
        raise NotAllowed(f"Deployment {deployment.pk} is {deployment.get_status_display().lower()}: only one that failed can be resumed.")
    refuse_while_deploying(environment)
    if releases.active(environment) != deployment.release:
        raise NotAllowed(
            f"Release {deployment.release.number} is no longer active on {environment.name}: deploy the active release instead."
        )
    newest = Deployment.objects.filter(environment=environment).aggregate(newest=Max("pk"))["newest"]
    if newest != deployment.pk:
        raise NotAllowed(f"Deployment {newest} ran since: deploy again instead of resuming deployment {deployment.pk}.")
    quiet = deployment.steps.filter(kind=StepKind.ALERTING_OFF, status=RunStatus.SUCCEEDED).exists()
    try:
        with transaction.atomic():
            if not Deployment.objects.filter(pk=deployment.pk, status__in=BROKEN).update(
                status=RunStatus.RUNNING, ended_at=None, alerting_off=quiet
            ):
                raise _busy(environment)
            step = next_step(deployment)
            if step is not None:
                steps.note(step, f"Resumed by {by.get_username()}, attempt {step.attempt + 1}.", now)
                _freeze_anew(deployment, step, by, now)
                StepRun.objects.filter(pk=step.pk, status__in=BROKEN).update(
                    status=RunStatus.PENDING,
                    attempt=F("attempt") + 1,
                    reason="",
                    memory={},
                    started_at=None,
                    ended_at=None,
                    deadline_at=None,
                )
            _send_next(deployment, now)
    except IntegrityError:
        raise _busy(environment) from None
    deployment.refresh_from_db()


def _freeze_anew(deployment: Deployment, step: StepRun, by: AbstractBaseUser, now: datetime) -> None:
    """What was mended before resuming counts from this step on; the log names it."""
    before = frozen.of(deployment)
    after = frozen.freeze(deployment, by=by, now=now)
    if before is not None and before.digest != after.digest:
        keys = ", ".join(frozen.changed_keys(before.values, after.values))
        steps.note(step, f"From here on with values that changed since: {keys}. Earlier steps keep theirs.", now, level="warning")


def confirm(step: StepRun, *, by: AbstractBaseUser, now: datetime) -> None:
    """A person did what a Manual step asked for. Repeated confirmation succeeds. Raises NotAllowed when nobody is waited for."""
    sentence = f"Confirmed by {by.get_username()}."
    with transaction.atomic():
        going = Deployment.objects.filter(pk=step.deployment_id, status=RunStatus.WAITING).update(status=RunStatus.RUNNING)
        confirmed = StepRun.objects.filter(pk=step.pk, status=RunStatus.WAITING).update(
            status=RunStatus.SUCCEEDED, reason=sentence, ended_at=now
        )
        if going and confirmed:
            steps.note(step, sentence, now)
            _send_next(step.deployment, now)
        elif going or confirmed:
            transaction.set_rollback(True)
    step.refresh_from_db()
    if step.status != RunStatus.SUCCEEDED or step.kind != StepKind.MANUAL:
        raise NotAllowed(f"Step {step.number}, {step.title}, is {step.get_status_display().lower()}: it waits for nobody.")


def log_of(deployment: Deployment) -> list[StepLog]:
    """Every line of the deployment's log, oldest first."""
    return list(StepLog.objects.filter(step__deployment=deployment).select_related("step"))
