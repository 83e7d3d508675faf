"""The engine: a plan copied into StepRuns and executed stage by stage, the lanes of a stage side by side.

The state machine lives in the database; `send` and `wake` only say "look again". A lost or doubled wake-up changes nothing: the sweep
(tasks.nudge_stalled_deployments) sends again, and every move is a compare-and-set UPDATE inside one transaction with what it orders.

    step        PENDING -> RUNNING -> SUCCEEDED | SKIPPED   (or WAITING -> SUCCEEDED by a person, TIMED_OUT without one)
                              └-----> FAILED | TIMED_OUT -> PENDING, attempt + 1 (by itself or by a person), or SKIPPED
    deployment  PENDING -> RUNNING <-> WAITING -> SUCCEEDED | FAILED | TIMED_OUT (-> RUNNING by a decision) | CANCELLED

After a failure no step begins any more; those under way in other lanes come to their end, and then the deployment stops for a decision
(deployments/decisions.py).
"""

import copy
import logging
import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.contrib.auth.models import AbstractBaseUser
from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import F, Min, Q, QuerySet

from deployments import frozen, looks, moves, plans, promotion, releases, stages, steps
from deployments.looks import Outcome
from deployments.models import (
    BROKEN,
    DEPLOYS,
    DONE,
    LIVE,
    NOT_DONE,
    STEP_FIELDS,
    UNTIL_DEPLOYED,
    Condition,
    Deployment,
    Exclusion,
    Release,
    RunStatus,
    StepAttempt,
    StepFields,
    StepKind,
    StepRun,
)
from portal import access
from portal.errors import Busy, NotAllowed
from portal.models import Environment, Role
from portal.prepared import Prepared
from runtimes import reach
from runtimes.models import Machine, Runtime

logger = logging.getLogger(__name__)

STALLED_AFTER = timedelta(seconds=2)
CANCEL_ENDS_WITHIN = timedelta(seconds=5)  # it waits for no machine, only for a look at a step that is being written down
STUMBLES_ALLOWED = 5  # unforeseen errors in a row before a step is given up
TICKING = (RunStatus.PENDING, RunStatus.RUNNING)  # what a worker has something to do with


def _not_sent(step_id: int, kind: str) -> None:
    """Without a broker (tests of pure parts) nothing is sent; the sweep finds it."""


# Set by DeploymentsConfig.ready() to tasks.send_step.
send: Callable[[int, str], object] = _not_sent


# ----------------------------------------------------------------------------------------------------------------- prepare


def obstacles(release: Release, environment: Environment, *, now: datetime, leaving_out: Collection[str] = ()) -> list[str]:
    """Why this release cannot be deployed here now, one sentence each: not active, no machines applied, no agents ("Acceptance has no
    machines: …"), silent agents (but those of the machines that are left out), missing properties, an invalid plan."""
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
        elif name not in leaving_out and machines[name].is_silent(now=now):
            found.append(f"{looks.silence(machines[name], now)} Start its agent, or leave {name} out.")
    found += [item.sentence for item in releases.missing(release, environment)]
    found += releases.too_many_groups(release, environment)
    found += [refusal for name in leaving_out if (refusal := not_offline(machines.get(name), name, now))]
    found += [refusal for refusal in [without(environment, leaving_out)] if leaving_out and refusal]
    found += plans.problems(plan)
    found += [item.sentence for item in reach.findings(environment, now=now) if item.blocks]
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


def running_on(environments: Collection[int]) -> dict[int, str]:
    """ "Deployment 12 is under way." by the ids of those of the environments where one is."""
    live = Deployment.objects.filter(environment__in=environments, status__in=LIVE).values_list("environment", "pk")
    return {environment: f"Deployment {number} is under way." for environment, number in live}


def bringing(runtime: Runtime) -> str:
    """ "deployment 12, under way," while one has yet to deploy this runtime. One query."""
    steps = StepRun.objects.filter(deployment__environment__runtimes=runtime, deployment__status__in=LIVE, kind__in=DEPLOYS)
    steps = steps.filter(machine=runtime.machine.name, connector__in=("", runtime.connector.name), status__in=NOT_DONE)
    number = steps.values_list("deployment", flat=True).first()
    return "" if number is None else f"deployment {number}, under way,"


def touched(environment: Environment) -> list[Machine]:
    """Machines with an agent that a deployment has to do with. Two queries."""
    named = {step.machine for step in plans.plan_of(environment).steps.all()}
    rows = Machine.objects.filter(environment=environment).prefetch_related("runtimes").order_by("name")
    return [row for row in rows if row.has_agent and (row.name in named or row.runtimes.all())]


def offline(environment: Environment, *, now: datetime) -> list[Machine]:
    """Machines that a deployment could leave out now: their agent is silent. Two queries."""
    return [row for row in touched(environment) if row.is_silent(now=now)]


def quiet_on(environments: Collection[int]) -> set[int]:
    """Those of the environments (ids) whose alerts a deployment keeps off until it ends."""
    live = Deployment.objects.filter(environment__in=environments, status__in=LIVE, alerting_off=True)
    return set(live.values_list("environment", flat=True))


def not_offline(machine: Machine | None, name: str, now: datetime) -> str:
    """Why a machine cannot be left out; empty when it can. One that reports would be deployed at once again."""
    if machine is None:
        return f"{name} is no machine here."
    return "" if machine.is_silent(now=now) else f"{name} is online: only a machine that is offline can be left out."


def without(environment: Environment, names: Collection[str]) -> str:
    """Why nothing would be left to do without these machines; empty when something is."""
    deployed = {step.machine for step in plans.plan_of(environment).steps.all() if step.kind in DEPLOYS}
    if not deployed or deployed - set(names):
        return ""
    return f"The plan deploys to {' and '.join(sorted(deployed))} only: without, nothing would be deployed."


def prepare(
    release: Release,
    *,
    on: Environment,
    by: AbstractBaseUser | None,
    now: datetime,
    leaving_out: Collection[str] = (),
    override: str = "",
    rollback_of: Deployment | None = None,
) -> Deployment:
    """Copy the plan into a deployment and send its first steps. Raises NotAllowed with `reasons`, or Busy (one live each).

    `leaving_out`: names of offline machines; their steps are skipped, and they get the release by themselves when they return.
    `override` is the reason of a person who may set the environment's rules aside; `rollback_of` the deployment that is rolled back.
    """
    refuse_while_deploying(on)
    reasons = obstacles(release, on, now=now, leaving_out=leaving_out)
    if reasons:
        raise NotAllowed(f"Release {release.number} cannot be deployed on {on.name}. {' '.join(reasons)}", reasons=reasons)
    return begin(
        release,
        list(plans.plan_of(on).steps.all()),
        on=on,
        by=by,
        now=now,
        leaving_out=leaving_out,
        override=override,
        rollback_of=rollback_of,
    )


def begin(
    release: Release,
    recipe: Sequence[StepFields],
    *,
    on: Environment,
    by: AbstractBaseUser | None,
    now: datetime,
    leaving_out: Collection[str] = (),
    completes: Deployment | None = None,
    override: str = "",
    rollback_of: Deployment | None = None,
    rules: Sequence[promotion.Rule] = promotion.RULES,
) -> Deployment:
    """A deployment of these steps, which the caller has checked. Raises Busy (one live each), or NotAllowed when the environment's rules
    forbid it."""
    try:
        with transaction.atomic():
            who = by.pk if by else None
            deployment = Deployment.objects.create(
                environment=on,
                release=release,
                created_by_id=who,
                completes=completes,
                rollback_of=rollback_of,
                is_rollback=rollback_of is not None,
            )
            frozen.freeze(deployment, by=by, now=now)
            # After the values are frozen: one that changes in this instant ends the approval instead of slipping through.
            promotion.admit(
                release,
                on,
                act="deploy",
                by=by,
                at=now,
                override=override,
                returning=rollback_of is not None,
                begun=completes,
                rules=rules,
            )
            runs = [
                StepRun(deployment=deployment, number=number, stage_number=stage, **{name: getattr(step, name) for name in STEP_FIELDS})
                for number, (step, stage) in enumerate(zip(recipe, stages.stage_numbers(recipe), strict=True), start=1)
            ]
            StepRun.objects.bulk_create(runs)
            for name in leaving_out:
                leave_out(deployment, name, reason="It was offline when the deployment was started.", by=by, now=now)
            settle(deployment, now)
    except IntegrityError:
        raise _busy(on) from None
    return deployment


def leave_out(deployment: Deployment, machine: str, *, reason: str, by: AbstractBaseUser | None, now: datetime) -> None:
    """Skip what is left to do on an offline machine; tasks.catch_up brings it the release when it returns."""
    Exclusion.objects.get_or_create(
        deployment=deployment, machine=machine, defaults={"reason": reason, "at": now, "by_id": by.pk if by else None}
    )
    for step in StepRun.objects.filter(deployment=deployment, machine=machine).exclude(status__in=DONE).select_related("deployment"):
        then = f"It gets release {deployment.release.number} by itself when it returns, once this deployment has ended well."
        end_without(step, f"{machine} is left out. {then}", now)


def break_promises(deployment: Deployment, did: str, now: datetime) -> None:
    """The deployment ended for good before all was done ("cancelled"): it brings nothing to the machines that it left out any more."""
    for one in Exclusion.objects.filter(deployment=deployment, ended_at=None).select_related("deployment__release"):
        older = older_promise(one)
        then = (
            f"deployment {older.deployment_id} brings it release {older.deployment.release.number}, as promised before."
            if older is not None
            else UNTIL_DEPLOYED
        )
        end_promise(one, f"Deployment {deployment.pk} was {did} and brings {one.machine} nothing when it returns: {then}", now)


def older_promise(exclusion: Exclusion) -> Exclusion | None:
    """That of an earlier deployment of the same release, which ended well and has yet to be kept."""
    run = exclusion.deployment
    rows = Exclusion.objects.filter(machine=exclusion.machine, ended_at=None, deployment__environment=run.environment_id)
    rows = rows.filter(deployment__release=run.release_id, deployment__pk__lt=run.pk, deployment__status=RunStatus.SUCCEEDED)
    return rows.select_related("deployment__release").order_by("-deployment").first()


def end_promise(exclusion: Exclusion, sentence: str, now: datetime) -> bool:
    """A machine that was left out need not catch up any more; kept with its reason, and told in the log. False: it ended before."""
    with transaction.atomic():
        open_one = Exclusion.objects.filter(pk=exclusion.pk, ended_at=None)
        if not open_one.update(ended_at=now, ended_because=sentence, waits=""):
            return False
        mine = StepRun.objects.filter(deployment=exclusion.deployment_id).select_related("deployment").order_by("number")
        step = mine.filter(machine=exclusion.machine).first() or mine.first()
        if step is not None:
            looks.note(step, sentence, now, machine=exclusion.machine, level="warning")
        return True


def end_without(step: StepRun, sentence: str, now: datetime) -> None:
    """Skip a step that was not done; the attempt that failed is kept."""
    keep_attempt(step)
    StepRun.objects.filter(pk=step.pk).update(status=RunStatus.SKIPPED, reason=sentence, ended_at=now, started_at=step.started_at or now)
    looks.note(step, sentence, now, machine=step.machine, level="warning")


def keep_attempt(step: StepRun) -> None:
    """History is never overwritten: what an attempt came to stays."""
    if step.status in BROKEN:
        StepAttempt.objects.get_or_create(
            step=step,
            number=step.attempt,
            defaults={
                "status": step.status,
                "reason": step.reason,
                "memory": step.memory,
                "started_at": step.started_at,
                "ended_at": step.ended_at,
            },
        )


def try_again(step: StepRun, now: datetime, *, by_itself: bool = False) -> None:
    """Back to PENDING for another attempt. By itself it waits for the sweep; a person's decision begins it at once, and ends what a person
    took upon himself for the attempt before."""
    keep_attempt(step)
    if not by_itself:
        StepRun.objects.filter(pk=step.pk, status__in=BROKEN).update(override="")
    StepRun.objects.filter(pk=step.pk, status__in=BROKEN).update(
        status=RunStatus.PENDING,
        attempt=F("attempt") + 1,
        retried=F("retried") + 1 if by_itself else 0,
        reason="",
        memory={},
        started_at=None,
        ended_at=None,
        deadline_at=None,
        woken_at=now if by_itself else None,
    )


# -------------------------------------------------------------------------------------------------------------------- tick


def tick(step_id: int, *, now: datetime, onward: list[int] | None = None) -> str:
    """One look at one step: begin it, or check it; move on when it is done. Safe to call twice, from two workers. Returns a sentence.

    One transaction: a worker killed anywhere in it leaves everything as it was, and the sweep has the step looked at again. Of the steps
    that become due by it, the first is added to `onward` instead of being sent: the caller's to look at next, without a way round by the
    broker. Balance failover is always sent, for it is a task of its own.
    """
    mine: list[int] | None = None if onward is None else []
    try:
        with transaction.atomic():
            sentence = _tick(step_id, now, mine)
    except DatabaseError:  # not the step's fault: the sweep tries again for as long as it takes
        raise
    except Exception as error:
        _stumbled(step_id, error, now)
        raise
    if onward is not None:
        onward += mine or []
    return sentence


_looked_at = Prepared(lambda step: StepRun.objects.filter(pk=step).select_related("deployment__environment", "deployment__release"))


def _tick(step_id: int, now: datetime, onward: list[int] | None) -> str:
    # This UPDATE comes first: until the transaction ends, no other worker gets past it for this deployment, and no cancel.
    if not Deployment.objects.filter(steps=step_id, status__in=TICKING).update(status=RunStatus.RUNNING):
        return f"Step {step_id} has nothing to do: its deployment is not running."
    step = _looked_at.get(step_id)
    deployment = step.deployment
    begins = step.status == RunStatus.PENDING
    if step.status not in TICKING or (begins and step.pk not in {one.pk for one in due(deployment)}):
        return f"Step {step.number} of deployment {deployment.pk} is {step.status}: nothing to do."
    kind = steps.KINDS[StepKind(step.kind)]
    if begins and not _claim(step, now):
        return f"Step {step.number} of deployment {deployment.pk} was begun by another worker."
    if begins and (pointless := moves.pointless(deployment.release, step)):
        return _conclude(step, kind, looks.skipped(pointless), now, onward)
    if begins and step.condition == Condition.CHANGED and (unchanged := kind.unchanged(step, now)):
        return _conclude(step, kind, looks.skipped(unchanged), now, onward)
    memory = copy.deepcopy(step.memory)
    try:
        with transaction.atomic():
            if begins:
                kind.begin(step, now)
            outcome = kind.check(step, now)
    except NotAllowed as refusal:  # what was half ordered is undone
        step.memory = memory
        step.told.clear()
        outcome = looks.failed(refusal.sentence)
    return _conclude(step, kind, outcome, now, onward)


def _claim(step: StepRun, now: datetime) -> bool:
    """Of two workers one wins."""
    step.started_at, step.deadline_at = now, now + timedelta(seconds=step.timeout_seconds)
    if step.deployment.started_at is None:
        Deployment.objects.filter(pk=step.deployment_id, started_at=None).update(started_at=now)
    return bool(
        StepRun.objects.filter(pk=step.pk, status=RunStatus.PENDING).update(
            status=RunStatus.RUNNING, started_at=step.started_at, deadline_at=step.deadline_at, ended_at=None
        )
    )


def _conclude(step: StepRun, kind: steps.Kind, outcome: Outcome, now: datetime, onward: list[int] | None) -> str:
    """Write what one look found, and move on."""
    status = {
        "done": RunStatus.SUCCEEDED,
        "skipped": RunStatus.SKIPPED,
        "failed": RunStatus.FAILED,
        "waiting": RunStatus.WAITING,
        "running": RunStatus.RUNNING,
    }[outcome.state]
    sentence = outcome.sentence
    if status == RunStatus.RUNNING and step.deadline_at is not None and now >= step.deadline_at:
        status = RunStatus.TIMED_OUT
        sentence = f"{kind.overdue(step)} within {step.timeout_seconds} s{'.' if kind.by_group else ':'} {sentence}"
        kind.abandon(step, now)
    ended = None if status in LIVE else now
    step.memory.pop("stumbles", None)
    StepRun.objects.filter(pk=step.pk, status=RunStatus.RUNNING).update(
        status=status, reason=sentence, memory=step.memory, woken_at=now, ended_at=ended
    )
    told = status == RunStatus.RUNNING and any(line.text == sentence for line in step.told)  # by the look itself, which knows of whom
    if not told and (_without_numbers(sentence) != _without_numbers(step.reason) or status != RunStatus.RUNNING):
        level = "error" if status in BROKEN else "info"
        looks.tell(step, sentence, now, machine=step.machine, level=level)
    looks.write_down(step)
    if status in BROKEN:
        _broke(step, status, sentence, now)
    if status != RunStatus.RUNNING:
        settle(step.deployment, now, onward)
    return f"{step.number}. {step.title}: {status}. {sentence}"


def _broke(step: StepRun, status: RunStatus, sentence: str, now: datetime) -> None:
    """Try again by itself as often as the plan says. A gate is not worn down by trying: it waits for a person."""
    if step.retried >= step.retries or any(told.get("gate") for told in step.memory.get("runtimes", {}).values()):
        return
    step.status, step.reason, step.ended_at = status, sentence, now
    try_again(step, now, by_itself=True)
    looks.note(step, f"Tried again by itself ({step.retried + 1} of {step.retries}).", now, machine=step.machine, level="warning")


def _without_numbers(sentence: str) -> str:
    """So that "not heard from for 41 s" is no news after "… for 40 s"."""
    return re.sub(r"\d+", "#", sentence)


class Due(NamedTuple):
    """What of a step decides when it comes."""

    pk: int
    kind: str
    stage_number: int
    lane: str
    status: str
    woken_at: datetime | None


def _firsts(deployment: int) -> "QuerySet[StepRun, tuple[Any, ...]]":
    ahead = StepRun.objects.filter(deployment=deployment, status__in=NOT_DONE).order_by()
    firsts = ahead.values("stage_number", "lane").annotate(first=Min("number")).values("first")
    return StepRun.objects.filter(deployment=deployment, number__in=firsts).order_by("number").values_list(*Due._fields)


_first_of_each_lane = Prepared(_firsts)


def due(deployment: Deployment) -> list[Due]:
    """The steps to look at: of the stage that is under way, in each lane the first that is not done. Nothing begins after a failure."""
    found = list(map(Due._make, _first_of_each_lane.all(deployment.pk)))
    found = [step for step in found if step.stage_number == found[0].stage_number]
    if any(step.status in BROKEN for step in found):
        return [step for step in found if step.status != RunStatus.PENDING]
    return found


def settle(deployment: Deployment, now: datetime, onward: list[int] | None = None) -> None:
    """After a step ended: send what is due (one of it goes to `onward`, see tick), or end the deployment, or let it wait for a person."""
    current = due(deployment)
    statuses = {step.status for step in current}
    broken = next((step for step in current if step.status in BROKEN), None)
    if not current:
        _end(deployment, RunStatus.SUCCEEDED, now)
    elif broken is not None and RunStatus.RUNNING not in statuses:
        # A person who is waited for in another lane is asked again when it goes on.
        waits = StepRun.objects.filter(deployment=deployment, status=RunStatus.WAITING)
        waits.update(status=RunStatus.PENDING, reason="", memory={}, started_at=None, deadline_at=None, woken_at=None)
        _end(deployment, RunStatus(broken.status), now)
    elif statuses == {RunStatus.WAITING}:
        Deployment.objects.filter(pk=deployment.pk, status__in=TICKING).update(status=RunStatus.WAITING)
    elif broken is None:
        for step in current:
            if step.status == RunStatus.PENDING and step.woken_at is None:
                # Also of one that goes onward: should its worker be killed, the next report sends another one, not only the sweep.
                StepRun.objects.filter(pk=step.pk).update(woken_at=now)
                if onward is not None and not onward and step.kind != StepKind.BALANCE_FAILOVER:
                    onward.append(step.pk)
                else:
                    send(step.pk, step.kind)


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
        looks.note(step, sentence, now, machine=step.machine, level="error")
        given_up = count >= STUMBLES_ALLOWED
        changes = {"status": RunStatus.FAILED, "reason": sentence, "ended_at": now} if given_up else {}
        StepRun.objects.filter(pk=step_id, status__in=TICKING).update(
            memory={**step.memory, "stumbles": 0 if given_up else count}, woken_at=now, **changes
        )
        if given_up:
            settle(step.deployment, now)


def end_waits(now: datetime) -> list[str]:
    """Time out the manual steps that nobody confirmed within their limit. By the sweep; a sentence each."""
    told = []
    overdue = StepRun.objects.filter(status=RunStatus.WAITING, deadline_at__lte=now)
    for step in overdue.select_related("deployment__environment__project", "deployment__release"):
        sentence = f"{steps.KINDS[StepKind(step.kind)].overdue(step)} within {step.timeout_seconds} s: {step.instruction}"
        with transaction.atomic():
            waits = Deployment.objects.filter(pk=step.deployment_id, status__in=(RunStatus.WAITING, RunStatus.RUNNING))
            if not waits.update(status=RunStatus.RUNNING):
                continue
            mine = StepRun.objects.filter(pk=step.pk, status=RunStatus.WAITING, deadline_at=step.deadline_at)
            if not mine.update(status=RunStatus.TIMED_OUT, reason=sentence, ended_at=now):
                transaction.set_rollback(True)  # confirmed in this instant
                continue
            looks.note(step, sentence, now, level="error")
            _broke(step, RunStatus.TIMED_OUT, sentence, now)
            settle(step.deployment, now)
        told.append(f"{step.number}. {step.title}: {sentence}")
    return told


def next_step(deployment: Deployment) -> StepRun | None:
    """The step to look at: the first that is not DONE."""
    return StepRun.objects.filter(deployment=deployment).exclude(status__in=DONE).order_by("number").first()


# ----------------------------------------------------------------------------------------------------------------- wake-ups


_under_way = Prepared(
    lambda environment: (
        StepRun.objects.filter(deployment__environment=environment, deployment__status__in=TICKING, status__in=TICKING)
        .filter(Q(status=RunStatus.RUNNING) | Q(woken_at__isnull=False))
        .order_by("number")
        .values_list("pk", "kind", "machine", "connector")
    )
)
_waited_for = Prepared(
    lambda environment: (
        Runtime.objects.filter(environment=environment)
        .filter(Q(failover=True) | ~Q(held=""))
        .order_by()
        .values_list("machine__name", "connector__name")
    )
)


def wake(environment_id: int, machine: str = "") -> None:
    """News came from one of the environment's machines (empty: from any): look at the steps of its live deployment that it may concern.

    One query when there is none. A step concerns its own machine, those with a runtime of the same connector that it may have to wait for
    (they take over from each other, or are held until it is done), and without a machine every one.
    """
    under_way = _under_way.all(environment_id)
    if machine and any(name not in ("", machine) for _, _, name, _ in under_way):
        runs: dict[str, set[str]] = {}
        for name, connector in _waited_for.all(environment_id):
            runs.setdefault(name, set()).add(connector)
        here = runs.get(machine, set())
        under_way = [
            (pk, kind, name, connector)
            for pk, kind, name, connector in under_way
            if name in ("", machine) or here.intersection({connector} if connector else runs.get(name, set()))
        ]
    for pk, kind, _, _ in under_way:
        send(pk, kind)


def stalled(now: datetime) -> list[tuple[int, str]]:
    """Steps (id and kind) that are due, or under way, and that nobody has looked at for 2 s."""
    unseen = Q(woken_at=None) | Q(woken_at__lte=now - STALLED_AFTER)
    found: list[tuple[int, str]] = []
    for deployment in Deployment.objects.filter(status__in=TICKING):
        ids = [step.pk for step in due(deployment)]
        found += StepRun.objects.filter(unseen, pk__in=ids, status__in=TICKING).values_list("pk", "kind")
    return found


# ---------------------------------------------------------------------------------------------------------- what people may do


def cancel(deployment: Deployment, *, by: AbstractBaseUser, now: datetime) -> None:
    """End it at once, within CANCEL_ENDS_WITHIN: steps under way and all later ones are cancelled; what was ordered stays ordered, and a
    hand-over under way ends by itself. Repeated cancel succeeds. Raises NotAllowed when it ended otherwise."""
    sentence = f"Cancelled by {by.get_username()}."
    with transaction.atomic():
        ended = Deployment.objects.filter(pk=deployment.pk, status__in=LIVE).update(
            status=RunStatus.CANCELLED, ended_at=now, alerting_off=False
        )
        if ended:
            current = next_step(deployment)
            if current is not None:
                looks.note(current, sentence, now)
            for step in StepRun.objects.filter(deployment=deployment, status=RunStatus.RUNNING):
                steps.KINDS[StepKind(step.kind)].abandon(step, now)
            StepRun.objects.filter(deployment=deployment, status__in=LIVE).update(status=RunStatus.CANCELLED, reason=sentence, ended_at=now)
            break_promises(deployment, "cancelled", now)
    deployment.refresh_from_db()
    if deployment.status != RunStatus.CANCELLED:
        raise NotAllowed(
            f"Deployment {deployment.pk} has ended already ({deployment.get_status_display().lower()}): there is nothing to cancel."
        )


def superseded(deployment: Deployment) -> str:
    """Why a broken deployment cannot go on any more; empty when it can. Three queries."""
    environment = deployment.environment
    newer = Deployment.objects.filter(environment=environment, pk__gt=deployment.pk).order_by("-pk").first()
    if newer is not None:
        return f"Deployment {newer.pk} ran since: deploy again instead of resuming deployment {deployment.pk}."
    if releases.active(environment) != deployment.release:
        return f"Release {deployment.release.number} is no longer active on {environment.name}: deploy the active release instead."
    return ""


def reopen(deployment: Deployment, *, now: datetime) -> None:
    """The same run goes on, inside the caller's transaction: its history is kept.

    Raises:
        NotAllowed: it did not fail, another release is active by now, or a newer deployment ran since.
        Busy: another deployment is under way, or somebody else reopened it in the same instant.
    """
    environment = deployment.environment
    deployment.refresh_from_db(fields=["status"])
    if deployment.status not in BROKEN:
        raise NotAllowed(f"Deployment {deployment.pk} is {deployment.get_status_display().lower()}: only one that failed can be resumed.")
    refuse_while_deploying(environment)
    if reason := superseded(deployment):
        raise NotAllowed(reason)
    quiet = deployment.steps.filter(kind=StepKind.ALERTING_OFF, status=RunStatus.SUCCEEDED).exists()
    try:
        with transaction.atomic():
            reopened = Deployment.objects.filter(pk=deployment.pk, status__in=BROKEN).update(
                status=RunStatus.RUNNING, ended_at=None, alerting_off=quiet
            )
    except IntegrityError:
        reopened = 0
    if not reopened:
        raise _busy(environment)
    # What was sent and had not begun in another lane is sent again, instead of waiting for the sweep.
    StepRun.objects.filter(deployment=deployment, status=RunStatus.PENDING).update(woken_at=None)


def broken_steps(deployment: Deployment) -> list[StepRun]:
    """The steps at which it stopped: one, or one in each of several lanes."""
    return list(StepRun.objects.filter(deployment=deployment, status__in=BROKEN).select_related("deployment").order_by("number"))


def admit_again(deployment: Deployment, *, by: AbstractBaseUser, now: datetime, override: str, rules: Sequence[promotion.Rule]) -> None:
    """The rules of the environment hold for going on as for beginning; the order of promotion was proven then. Raises NotAllowed."""
    returning = deployment.is_rollback
    release, environment = deployment.release, deployment.environment
    promotion.admit(
        release, environment, act="resume", by=by, at=now, override=override, returning=returning, begun=deployment, rules=rules
    )


def resume(deployment: Deployment, *, by: AbstractBaseUser, now: datetime, override: str = "") -> None:
    """Go on from the steps that failed: the same run, its history kept. `override` is the reason of a person who may set windows and
    freezes aside. Raises as `reopen` does, and NotAllowed when the rules of the environment forbid it."""
    with transaction.atomic():
        reopen(deployment, now=now)
        broken = broken_steps(deployment)
        for step in broken:
            looks.note(step, f"Resumed by {by.get_username()}, attempt {step.attempt + 1}.", now)
        _freeze_anew(deployment, broken[0], by, now)
        # What was mended may be a value: whoever approved must have seen it. What completes another brings the values of that one.
        rules: Sequence[promotion.Rule] = ("approvals", "window") if deployment.completes_id is None else ("window",)
        admit_again(deployment, by=by, now=now, override=override, rules=rules)
        for step in broken:
            try_again(step, now)
        settle(deployment, now)
    deployment.refresh_from_db()


def _freeze_anew(deployment: Deployment, step: StepRun, by: AbstractBaseUser, now: datetime) -> None:
    """What was mended before resuming counts from this step on; the log names it."""
    before = frozen.of(deployment)
    after = frozen.freeze(deployment, by=by, now=now)
    if before is not None and before.digest != after.digest:
        keys = ", ".join(frozen.changed_keys(frozen.entries_of(before, deployment.environment), after.values))
        looks.note(step, f"From here on with values that changed since: {keys}. Earlier steps keep theirs.", now, level="warning")


def confirm(step: StepRun, *, by: AbstractBaseUser, now: datetime) -> None:
    """A person did what a Manual step asked for. Repeated confirmation succeeds.

    Raises:
        NotAllowed: nobody is waited for, or the step asks for a role that the person does not have.
    """
    _refuse_wrong_role(step, by)
    sentence = f"Confirmed by {by.get_username()}."
    with transaction.atomic():
        going = Deployment.objects.filter(pk=step.deployment_id, status__in=(RunStatus.WAITING, RunStatus.RUNNING)).update(
            status=RunStatus.RUNNING
        )
        confirmed = StepRun.objects.filter(pk=step.pk, status=RunStatus.WAITING).update(
            status=RunStatus.SUCCEEDED, reason=sentence, ended_at=now
        )
        if going and confirmed:
            looks.note(step, sentence, now)
            settle(step.deployment, now)
        elif going or confirmed:
            transaction.set_rollback(True)
    step.refresh_from_db()
    if step.status != RunStatus.SUCCEEDED or step.kind != StepKind.MANUAL:
        raise NotAllowed(f"Step {step.number}, {step.title}, is {step.get_status_display().lower()}: it waits for nobody.")


def confirmed_by(step: StepRun) -> Role:
    """The least role that may confirm a Manual step: the one it names, else who may deploy there."""
    return Role(step.confirm_role) if step.confirm_role else access.role_to_deploy(step.deployment.environment)


def wrong_role(step: StepRun, by: access.Person) -> str:
    """Why a person does not settle a Manual step, neither as done nor as not needed; empty when he may."""
    role = confirmed_by(step)
    entitled = access.may(by, step.deployment.environment.project.team_id, role)
    return "" if entitled else f"Step {step.number} is confirmed by the role {role.label.lower()}: ask one of them."


def _refuse_wrong_role(step: StepRun, by: AbstractBaseUser) -> None:
    if sentence := wrong_role(step, by):
        raise NotAllowed(sentence)


def record_answer(step_id: int, attempt: int, *, status: int | None, reason: str, now: datetime) -> None:
    """What an HTTP check's address answered; the step looks at it next."""
    with transaction.atomic():
        if not Deployment.objects.filter(steps=step_id, status__in=TICKING).update(status=RunStatus.RUNNING):
            return
        step = StepRun.objects.get(pk=step_id)
        memory = {**step.memory, "answer": {"status": status, "reason": reason, "at": now.isoformat()}}
        if StepRun.objects.filter(pk=step_id, status=RunStatus.RUNNING, attempt=attempt).update(memory=memory):
            send(step_id, step.kind)
