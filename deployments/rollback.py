"""Roll back: a normal deployment of the earlier release that ran with success, with what is scheduled held until a person looked."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction

from deployments import releases, rollout, schedules
from deployments.models import Deployment
from portal.errors import NotAllowed, Stale
from portal.models import Environment


@dataclass(frozen=True)
class Run:
    """What of a deployment decides where a roll back leads. `succeeded`: DeploymentQuerySet.that_ran."""

    pk: int
    release: int
    succeeded: bool
    rollback: bool = False


@dataclass(frozen=True)
class Target:
    """`back_to` ran with success; `undone` is the newest deployment, which is rolled back."""

    back_to: Deployment
    undone: Deployment


def standing(runs: Sequence[Run]) -> list[Run]:
    """What succeeded and was not rolled back, oldest first: what a roll back removed does not come back by the next one. Pure.

    `runs` are those that began, oldest first.
    """
    stack: list[Run] = []
    for run in runs:
        if not run.succeeded:
            continue
        if run.rollback:
            while stack and stack[-1].release != run.release:
                stack.pop()
        if stack and stack[-1].release == run.release:
            stack[-1] = run
        else:
            stack.append(run)
    return stack


def choose(runs: Sequence[Run]) -> Run | None:
    """The run to go back to: the last standing one of another release than the newest run's. Pure. None: there is none."""
    if not runs:
        return None
    return next((run for run in reversed(standing(runs)) if run.release != runs[-1].release), None)


def runs_of(environment: Environment) -> list[Run]:
    """Every deployment by the whole plan that began, oldest first; one that only brings a machine what it missed belongs to the one that
    it completes. Two queries."""
    here = Deployment.objects.filter(environment=environment, started_at__isnull=False, completes=None)
    ran = set(here.that_ran().filter(undone=False).values_list("pk", flat=True))
    rows = here.order_by("pk").values_list("pk", "release_id", "is_rollback")
    return [Run(pk, release, pk in ran, rollback) for pk, release, rollback in rows]


def write_down(environment: Environment) -> None:
    """Before deployments of the environment are removed, roll backs perhaps: what they took away stays away. Inside a transaction."""
    runs = runs_of(environment)
    gone = {run.pk for run in runs if run.succeeded} - {run.pk for run in standing(runs)}
    Deployment.objects.filter(pk__in=gone).update(undone=True)


def target(environment: Environment) -> Target | None:
    """Where a roll back would lead now; None: nothing ran with success before what ran last. Three queries."""
    runs = runs_of(environment)
    chosen = choose(runs)
    if chosen is None:
        return None
    rows = Deployment.objects.select_related("release__project", "environment__project").in_bulk([chosen.pk, runs[-1].pk])
    return Target(rows[chosen.pk], rows[runs[-1].pk])


def start(
    environment: Environment,
    *,
    expected: int | None = None,
    by: AbstractBaseUser,
    now: datetime,
    override: str = "",
    leaving_out: Collection[str] = (),
) -> Deployment:
    """Activate and deploy the earlier release, and hold every scheduled activation of the environment. All of it or nothing.

    `expected` is the deployment that the person saw as the one to go back to; `leaving_out` as in rollout.prepare.

    Raises:
        NotAllowed: there is nothing to go back to, or what forbids any deployment; a release that ran here with the values of now needs no
            new approval.
        Stale: another deployment ran since the person looked.
        Busy: a deployment is under way.
    """
    rollout.refuse_while_deploying(environment)
    found = target(environment)
    if found is None:
        raise NotAllowed(f"There is nothing to roll back to on {environment.name}: no earlier release ran there with success.")
    if expected is not None and expected != found.back_to.pk:
        raise Stale(f"Another deployment ran on {environment.name} since you looked: look again before rolling back.")
    release, undone = found.back_to.release, found.undone
    with transaction.atomic():
        releases.activate(release, environment, by=by, now=now, override=override, returning=True)
        begun = rollout.prepare(release, on=environment, by=by, now=now, override=override, rollback_of=undone, leaving_out=leaving_out)
        schedules.hold_all(
            environment,
            reason=f"Held because deployment {begun.pk} rolls back to release {release.number}, by {by.get_username()}: "
            "resume, reschedule or cancel it.",
        )
    return begun
