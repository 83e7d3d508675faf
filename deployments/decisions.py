"""What a person may decide when a deployment stopped at a failure. Each decision is kept, with its reason.

retry       the failed steps run again
override    the same, and a leader may be touched without a ready follower
skip        the failed step is left as it is, and the next ones run; never a step on which safety rests
exclude     an offline machine is left out; it gets the release by itself when it returns
roll back   this run ends, and what ran before is activated and deployed
abort       this run ends; nothing is changed any more

All but abort change machines again: outside the deployment windows and in a freeze they need an override with a reason, as a start does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.db.models import F

from deployments import looks, preview, promotion, rollback, rollout
from deployments.models import (
    BROKEN,
    DONE,
    LIVE,
    Activation,
    ActivationStatus,
    Choice,
    Decision,
    Deployment,
    Exclusion,
    Release,
    RunStatus,
    StepKind,
    StepRun,
)
from portal import access
from portal.errors import Invalid, NotAllowed
from portal.models import Environment
from runtimes import failover
from runtimes.models import FailoverGroup, Machine, Runtime

NEEDED_BY_SAFETY = {
    StepKind.DEPLOY_ROUTERS: "runtimes in failover need their routers",
    StepKind.WAIT_HEALTHY: "what comes next relies on its proof",
    StepKind.BALANCE_FAILOVER: "it proves who leads",
}
# Nobody does these on Production by a slip: the name of the project is typed first (the page asks; the API means what it says).
TYPED_ON_PRODUCTION = (Choice.OVERRIDE, Choice.ROLL_BACK)
REASONED = (Choice.OVERRIDE, Choice.SKIP, Choice.EXCLUDE)  # choices that somebody will ask about later


@dataclass(frozen=True)
class Offer:
    """A choice of the decision bar: what it does, to leadership too, or why it cannot be made now."""

    choice: Choice
    effect: str
    refusal: str = ""
    machine: str = ""  # which one Leave out is about
    steps: Sequence[int] = ()  # numbers of those it is about: to resume from, or the one to skip
    forbidden: str = ""  # which window or freeze forbids it now: an operator overrides that with a reason
    leaving_out: Sequence[str] = ()  # machines that a roll back goes without

    @property
    def label(self) -> str:
        if self.choice == Choice.RETRY:
            return f"Resume from {numbered(self.steps)}"
        if self.choice == Choice.SKIP:
            return f"Skip {numbered(self.steps)}"
        return f"Leave {self.machine} out" if self.machine else self.choice.label

    @property
    def needs_reason(self) -> bool:
        return self.choice in REASONED

    @property
    def typed_on_production(self) -> bool:
        return self.choice in TYPED_ON_PRODUCTION


def numbered(numbers: Sequence[int]) -> str:
    """ "step 9", "steps 9 and 12" """
    *front, last = map(str, numbers)
    return f"steps {', '.join(front)} and {last}" if front else f"step {last}"


def offers(deployment: Deployment, *, by: access.Person, now: datetime) -> list[Offer]:
    """What this person can decide about a deployment that stopped at a failure; empty for any other. Whether he may decide at all is for
    the gates."""
    broken = rollout.broken_steps(deployment) if deployment.status in BROKEN else []
    if not broken:
        return []
    returning = deployment.is_rollback
    rules = promotion.findings(deployment.release, deployment.environment, at=now, returning=returning, begun=deployment)
    closed = " ".join(finding.sentence for finding in rules if finding.rule == "window")
    gone = rollout.superseded(deployment)
    again = gone or " ".join(finding.sentence for finding in rules if finding.rule == "approvals" and deployment.completes_id is None)
    numbers = [one.number for one in broken]
    next_ones = list(dict.fromkeys(str(one.attempt + 1) for one in broken))
    attempts = f"attempt{'s' if len(next_ones) > 1 else ''} {' and '.join(next_ones)}"
    left = StepRun.objects.filter(deployment=deployment, status=RunStatus.PENDING).count()
    then = "" if not left else ", then the one that is left" if left == 1 else f", then the {left} that are left"
    found = [
        Offer(
            Choice.RETRY,
            f"Runs {numbered(numbers)} again ({attempts}){then}. What is done stays done, and leadership moves only as the steps say.",
            again,
            steps=numbers,
            forbidden=closed,
        )
    ]
    if gated := [one for one in broken if _gated(one) == "leader"]:
        targets = " and ".join(_target(one) for one in gated)
        alone = "it leads and nobody is ready to take over: the data waits until it runs again"
        if len(gated) > 1:
            alone = "each leads and nobody is ready to take over: the data waits until they run again"
        effect = f"{targets} {'is' if len(gated) == 1 else 'are'} touched although {alone}."
        if others := [one.number for one in broken if one not in gated]:
            effect += f" Runs {numbered(others)} again too."
        found.append(Offer(Choice.OVERRIDE, effect, again, steps=[one.number for one in gated], forbidden=closed))
    for one in broken:
        others = [number for number in numbers if number != one.number]
        effect = _effect_of_skipping(one)
        if others:
            effect += f" {numbered(others).capitalize()} still {'waits' if len(others) == 1 else 'wait'} for a decision."
        found.append(Offer(Choice.SKIP, effect, gone or unskippable(one, by), steps=[one.number], forbidden=closed))
    for name in _offline(deployment, broken, now):
        effect = (
            f"Skips what is left to do on {name}; leadership stays where it is, and {name} gets release {deployment.release.number} by "
            "itself when it returns, once this deployment has ended well."
        )
        effect = " ".join([effect, *_unproven_without(deployment.environment, name, now)])
        found.append(Offer(Choice.EXCLUDE, effect, gone, machine=name, forbidden=closed))
    former = former_release(deployment)
    away = [row.name for row in rollout.offline(deployment.environment, now=now)] if former else []
    effect = _effect_of_rolling_back(deployment, former, away, now) if former else ""
    nothing = "" if former else f"No other release was deployed successfully on {deployment.environment.name} before."
    found.append(Offer(Choice.ROLL_BACK, effect, _newer(deployment) or nothing, forbidden=closed, leaving_out=away))
    found.append(
        Offer(Choice.ABORT, "Ends this run for good. Everything stays as it is now, leadership too: runtimes may run different releases.")
    )
    return found


def _target(step: StepRun) -> str:
    return f"{step.machine}.{step.connector}" if step.connector else step.machine or step.title


def _gated(step: StepRun) -> str:
    """The rule that stopped the step; empty when none did."""
    rules = {told.get("gate", "") for told in step.memory.get("runtimes", {}).values()}
    return "last" if "last" in rules else "leader" if "leader" in rules else ""


def unskippable(step: StepRun, by: access.Person) -> str:
    """Why a step is not skipped by this person; empty when it may be. To skip a Manual step is to say that what it asks for may stay
    undone, which is for whoever confirms it."""
    if step.kind == StepKind.MANUAL and (whose := rollout.wrong_role(step, by)):
        return f"{step.title} is skipped only by who may confirm it. {whose}"
    if because := NEEDED_BY_SAFETY.get(StepKind(step.kind)):
        return f"{step.title} is not skipped: {because}."
    held = Runtime.objects.filter(environment=step.deployment.environment_id, machine__name=step.machine).exclude(held="")
    if step.kind in (StepKind.DEPLOY_MACHINE, StepKind.DEPLOY_RUNTIME):
        for runtime in (held.filter(connector__name=step.connector) if step.connector else held).select_related("machine", "connector"):
            return f"{step.title} is not skipped: {runtime.key} stays stopped until it is deployed."
    return ""


def _effect_of_skipping(step: StepRun) -> str:
    if step.kind in (StepKind.DEPLOY_MACHINE, StepKind.DEPLOY_RUNTIME):
        return f"{_target(step)} stays as it is now, on what it runs; leadership does not move by it."
    return f"{step.title} is not done; leadership does not move by it."


def _unproven_without(environment: Environment, machine: str, now: datetime) -> list[str]:
    """A sentence for each group that the machine led when it was last heard of, and nobody is known to lead since."""
    groups = FailoverGroup.objects.filter(environment=environment, failover=True, members__runtime__machine__name=machine)
    views = [failover.verdict(group, now=now) for group in groups.distinct().prefetch_related(failover.with_members())]
    led = [view.group.name for view in views if (said := failover.unheard_leader(view)) is not None and said.machine == machine]
    return [failover.unproven_without(name, machine) for name in sorted(led)]


def _effect_of_rolling_back(deployment: Deployment, former: Release, away: Sequence[str], now: datetime) -> str:
    """With the step at which it would stop as things are now, as its preview says."""
    environment = deployment.environment
    told = [
        f"Ends this run, activates release {former.number} again and deploys it by the plan, with the values of now: "
        "leadership moves as its steps say."
    ]
    if away:
        told.append(f"{' and '.join(away)}, not heard from, is left out and gets release {former.number} by itself when it returns.")
    if held := Activation.objects.filter(environment=environment, status=ActivationStatus.SCHEDULED).count():
        told.append(f"{'1 scheduled activation is' if held == 1 else f'{held} scheduled activations are'} held until a person looked.")
    if stops := preview.preview(former, environment, now=now, leaving_out=away).stops_at:
        why = f": {stops.sentence}" if stops.sentence else "."
        told.append(f"As things are now it would stop at step {stops.number}, {stops.title}{why}")
    return " ".join(told)


def _offline(deployment: Deployment, broken: list[StepRun], now: datetime) -> list[str]:
    """Silent machines on which something is left to do, those of the failed steps first."""
    left = StepRun.objects.filter(deployment=deployment).exclude(status__in=DONE).exclude(machine="").values_list("machine", flat=True)
    out = set(Exclusion.objects.filter(deployment=deployment).values_list("machine", flat=True))
    balancing = any(step.kind in (StepKind.BALANCE_FAILOVER, StepKind.WAIT_HEALTHY) for step in broken)
    rows = Machine.objects.filter(environment=deployment.environment).exclude(name__in=out)
    names = {row.name for row in rows if row.is_silent(now=now) and (balancing or row.name in set(left))}
    first = [step.machine for step in broken if step.machine in names]
    return list(dict.fromkeys([*first, *sorted(names)]))


def former_release(deployment: Deployment) -> Release | None:
    """What a roll back would bring (deployments/rollback.py)."""
    found = rollback.target(deployment.environment)
    return found.back_to.release if found else None


def _newer(deployment: Deployment) -> str:
    newer = Deployment.objects.filter(environment=deployment.environment, pk__gt=deployment.pk).order_by("-pk").first()
    return f"Deployment {newer.pk} ran since." if newer else ""


# -------------------------------------------------------------------------------------------------------------------- decide


def decide(
    deployment: Deployment,
    choice: Choice,
    *,
    by: AbstractBaseUser,
    now: datetime,
    reason: str = "",
    machine: str = "",
    step: int | None = None,
    override: str = "",
) -> Deployment:
    """Carry out a decision; returns the deployment that goes on (another one after a roll-back). `step` is the number of the one to skip,
    where several failed. `override` is the reason of a person who may set windows and freezes aside.

    Raises:
        Invalid: a reason is needed and missing, several steps failed and none is named to be skipped, or `machine` is none of those that
            can be left out.
        NotAllowed: what `offers` says, a window or freeze, the deployment did not fail, or somebody else decided in this moment. Busy:
            another one is under way.
    """
    reason = reason.strip()
    if deployment.status not in BROKEN:
        raise NotAllowed(f"Deployment {deployment.pk} is {deployment.get_status_display().lower()}: there is nothing to decide.")
    seen = rollout.broken_steps(deployment)
    offer = _offer(deployment, choice, machine, step, by, now)
    if offer.refusal:
        raise NotAllowed(offer.refusal)
    if offer.needs_reason and not reason:
        raise Invalid("Say why: the reason is kept with the deployment.", field="reason")
    acts = {
        Choice.RETRY: _retry,
        Choice.OVERRIDE: _override,
        Choice.SKIP: _skip,
        Choice.EXCLUDE: _exclude,
        Choice.ABORT: _abort,
        Choice.ROLL_BACK: _roll_back,
    }
    with transaction.atomic():
        # This UPDATE comes first: until the transaction ends, nobody else decides about this deployment. What was decided in between
        # may have set aside the very step that this decision is about.
        held = Deployment.objects.filter(pk=deployment.pk, status__in=BROKEN).update(status=F("status"))
        broken = rollout.broken_steps(deployment)
        if not held or [(one.pk, one.attempt) for one in broken] != [(one.pk, one.attempt) for one in seen]:
            raise NotAllowed(f"Somebody else decided about deployment {deployment.pk} in this moment: look at it again.")
        about = [one for one in broken if choice != Choice.SKIP or one.number in offer.steps]
        Decision.objects.create(
            deployment=deployment,
            step=about[0],
            steps=[one.number for one in about],
            choice=choice,
            machine=offer.machine,
            reason=reason,
            at=now,
            by_id=by.pk,
        )
        after = acts[choice](Decided(deployment, about[0], offer, by, now, reason, override))
    after.refresh_from_db()
    return after


def _offer(deployment: Deployment, choice: Choice, machine: str, step: int | None, by: AbstractBaseUser, now: datetime) -> Offer:
    mine = [offer for offer in offers(deployment, by=by, now=now) if offer.choice == choice]
    if choice == Choice.SKIP and mine:
        could = [number for offer in mine for number in offer.steps]
        if step is None and len(mine) > 1:
            raise Invalid(f"Several steps failed: say which one to skip, of {numbered(could)}.", field="step")
        mine = [offer for offer in mine if step is None or step in offer.steps]
        if not mine:
            raise NotAllowed(f"Step {step} of deployment {deployment.pk} waits for no decision: {numbered(could)} failed. Look again.")
    if choice == Choice.EXCLUDE and machine:
        mine = [offer for offer in mine if offer.machine == machine]
    if mine:
        return mine[0]
    if choice == Choice.EXCLUDE:
        known = Machine.objects.filter(environment=deployment.environment, name=machine).first()
        why = rollout.not_offline(known, machine, now) if machine else "No machine of this deployment is offline."
        raise Invalid(why or f"Nothing is left to do on {machine}.", field="machine")
    if choice == Choice.OVERRIDE:
        raise NotAllowed("No rule that a person may override stopped this deployment: retry it.")
    raise NotAllowed(f"Deployment {deployment.pk} has no step that failed.")


@dataclass(frozen=True)
class Decided:
    """What was decided, by whom."""

    deployment: Deployment
    step: StepRun  # the one to skip, else the first of those that failed
    offer: Offer
    by: AbstractBaseUser
    now: datetime
    reason: str
    override: str

    def by_whom(self, did: str) -> str:
        """ "Aborted by anna: not today" """
        return f"{did} by {self.by.get_username()}{': ' + self.reason if self.reason else '.'}"


def _retry(told: Decided) -> Deployment:
    rollout.resume(told.deployment, by=told.by, now=told.now, override=told.override)
    return told.deployment


def _override(told: Decided) -> Deployment:
    sentence = f"{told.by.get_username()} took it upon himself: {told.reason}"
    gated = [one.pk for one in rollout.broken_steps(told.deployment) if _gated(one) == "leader"]
    after = _retry(told)
    StepRun.objects.filter(pk__in=gated).update(override=sentence)  # for the attempt that begins now, and for no other
    return after


def _go_on(told: Decided) -> Deployment:
    """After a failed step was set aside: on, unless another lane's failure still waits for its own decision."""
    if not rollout.broken_steps(told.deployment):
        rollout.admit_again(told.deployment, by=told.by, now=told.now, override=told.override, rules=("window",))
        rollout.reopen(told.deployment, now=told.now)
        rollout.settle(told.deployment, told.now)
    return told.deployment


def _skip(told: Decided) -> Deployment:
    rollout.end_without(told.step, told.by_whom("Skipped"), told.now)
    return _go_on(told)


def _exclude(told: Decided) -> Deployment:
    rollout.leave_out(told.deployment, told.offer.machine, reason=told.reason, by=told.by, now=told.now)
    # What failed because of that machine alone is tried again without it.
    for one in rollout.broken_steps(told.deployment):
        if not one.machine:
            rollout.try_again(one, told.now)
    return _go_on(told)


def _abort(told: Decided) -> Deployment:
    _end(told, "aborted", told.by_whom("Aborted"))
    return told.deployment


def _end(told: Decided, did: str, sentence: str) -> None:
    """For good: what failed stays as it failed, what was left is cancelled, and machines that were left out get nothing by it."""
    deployment, now = told.deployment, told.now
    if not Deployment.objects.filter(pk=deployment.pk, status__in=BROKEN).update(status=RunStatus.CANCELLED, ended_at=now):
        raise NotAllowed(f"Deployment {deployment.pk} goes on already: somebody else decided.")
    looks.note(rollout.broken_steps(deployment)[0], sentence, now, level="warning")
    StepRun.objects.filter(deployment=deployment, status__in=LIVE).update(status=RunStatus.CANCELLED, reason=sentence, ended_at=now)
    rollout.break_promises(deployment, did, now)


def _roll_back(told: Decided) -> Deployment:
    environment = told.deployment.environment
    former = former_release(told.deployment)
    assert former is not None  # the offer said so
    _end(told, "rolled back", told.by_whom(f"Rolled back to release {former.number}"))
    return rollback.start(environment, by=told.by, now=told.now, override=told.override, leaving_out=told.offer.leaving_out)
