"""Approvals: N people say yes to one release on one environment, with the property values and the plan of the moment it was asked for."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from deployments import frozen, plans
from deployments.models import (
    Approval,
    ApprovalRequest,
    ApprovalStatus,
    Deployment,
    EnvironmentRules,
    FrozenValues,
    Release,
    StepRun,
)
from portal.access import entitled, role_to_deploy
from portal.errors import Busy, Invalid, NotAllowed, Stale
from portal.models import Environment

SET_BACK = "Set back what changed, or request approval again"


@dataclass(frozen=True)
class State:
    """How far the approval of a release on an environment is."""

    requested: bool = False
    requester: str = ""
    approvers: Sequence[str] = ()  # who still may approve there, without the requester
    ended: str = ""  # a sentence: why there is no open request any more
    suspended: str = ""  # a sentence: why the open request does not hold now

    def lacking(self, needed: int) -> str:
        """Why `needed` approvals are not there, with the remedy; empty when they are. Pure."""
        if not self.requested:
            people = "1 person other than the requester" if needed == 1 else f"{needed} people other than the requester"
            if self.suspended:
                return f"{self.suspended} {SET_BACK}; {people} must approve it then."
            return f"{self.ended} Request approval; {people} must approve it.".strip()
        if len(self.approvers) < needed:
            so_far = f" ({', '.join(self.approvers)})" if self.approvers else ""
            return f"{len(self.approvers)} of {needed} people approved{so_far}; {self.requester or 'the requester'} does not count."
        return ""


def counted(approvals: Sequence[tuple[int, str]], *, requester: int | None, members: Collection[int]) -> list[str]:
    """Names whose approval counts: each person once, never the requester, only who may still deploy there. Pure."""
    return list(dict.fromkeys(name for person, name in approvals if person != requester and person in members))


def why_ended(request: ApprovalRequest, *, now: datetime) -> str:
    """Why an open request is over for good; empty while it is not. Pure."""
    if now < request.expires_at:
        return ""
    return f"The approval request ended on {request.expires_at:%Y-%m-%d %H:%M} UTC: it was open for its full time."


def why_suspended(request: ApprovalRequest, *, digest: str, changed: Sequence[str], plan: str) -> str:
    """Why an open request does not hold now: what would be brought is not what was approved; empty while it is. `plan` is the digest of the
    plan that would run. Pure."""
    if digest != request.values_digest:
        return f"Property values changed since approval was requested ({', '.join(changed)}): it does not hold while they differ."
    if plan != request.plan_digest:
        return "The plan changed since approval was requested: it does not hold while it differs."
    return ""


def open_request(release: Release, environment: Environment) -> ApprovalRequest | None:
    found = ApprovalRequest.objects.filter(release=release, environment=environment, status=ApprovalStatus.OPEN)
    return found.select_related("created_by").prefetch_related("approvals__person").first()


def state(release: Release, environment: Environment, *, now: datetime, begun: Deployment | None = None) -> State:
    """As it is at this moment, changed values, a changed plan and removed rights counted in. `begun`: a deployment that goes on with the
    steps it began with, so that the plan's later changes do not matter."""
    request = open_request(release, environment)
    if request is None:
        last = ApprovalRequest.objects.filter(release=release, environment=environment).first()
        return State(ended=last.reason if last else "")
    if ended := why_ended(request, now=now):
        return State(ended=ended)
    if suspended := _suspended(request, release, environment, begun=begun):
        return State(suspended=suspended)
    standing = [(row.person_id, row.person.username) for row in request.approvals.all() if row.withdrawn_at is None]
    members = entitled(environment.project.team_id, role=role_to_deploy(environment))
    names = counted(standing, requester=request.created_by_id, members=set(members.values_list("user_id", flat=True)))
    return State(requested=True, requester=request.created_by.get_username() if request.created_by else "", approvers=names)


def _suspended(request: ApprovalRequest, release: Release, environment: Environment, *, begun: Deployment | None = None) -> str:
    present = frozen.present(release, environment, begun=begun)
    plan = request.plan_digest if begun is not None else plans.digest(environment)
    digest = frozen.digest_of(present)
    changed = frozen.changed_keys(frozen.entries_of(request, environment), present) if digest != request.values_digest else []
    return why_suspended(request, digest=digest, changed=changed, plan=plan)


RUNS_LOOKED_AT = 20  # of the release here, the newest


def unlike_what_ran(release: Release, environment: Environment, *, begun: Deployment | None = None) -> str:
    """What a roll back to the release would bring that nobody has seen here, in a sentence: values other than those it ran with, or steps
    other than those it or the newest deployment here ran by. Empty: nothing. `begun` as in `state`. Six queries."""
    whole = Deployment.objects.filter(environment=environment, started_at__isnull=False, completes=None)
    ran = list(whole.that_ran().filter(release=release).order_by("-pk").values_list("pk", flat=True)[:RUNS_LOOKED_AT])
    present = frozen.present(release, environment, begun=begun)
    digest = frozen.digest_of(present)
    kept = FrozenValues.objects.filter(deployment__in=ran)
    if not kept.filter(digest=digest).exists():
        last = kept.order_by("-deployment", "-number").first()
        changed = ", ".join(frozen.changed_keys(frozen.entries_of(last, environment), present)) if last else "nobody kept which"
        return f"Release {release.number} ran here with other values ({changed}), so rolling back to it needs approval."
    newest = whole.order_by("-pk").values_list("pk", flat=True)[:1]
    steps: dict[int, list[StepRun]] = {}
    for step in StepRun.objects.filter(deployment__in=[*ran, *newest]).order_by("number"):
        steps.setdefault(step.deployment_id, []).append(step)
    if begun is not None or plans.digest(environment) in {plans.digest_of(mine) for mine in steps.values()}:
        return ""
    return "No deployment ran here by the plan as it is now, so rolling back needs approval."


# --------------------------------------------------------------------------------------------------------------------- acts


def request(release: Release, environment: Environment, *, note: str = "", by: AbstractBaseUser, now: datetime) -> ApprovalRequest:
    """Ask for approval with the values and the plan of now; an open request that no longer holds is ended first.

    Raises:
        Busy: an open request for the release stands.
        Invalid: the release belongs to another project.
        NotAllowed: the environment asks for no approval, or the project's rule of retention just removed the release.
    """
    if release.project_id != environment.project_id:
        raise Invalid(f"Release {release.number} belongs to another project.", field="release")
    rules = EnvironmentRules.objects.filter(environment=environment).first() or EnvironmentRules(environment=environment)
    if not rules.approvals:
        raise NotAllowed(f"{environment.name} asks for no approval: release {release.number} can be activated there without one.")
    values = frozen.present(release, environment)
    end_what_no_longer_holds(release, environment, now=now)
    try:
        with transaction.atomic():
            release.hold()
            return ApprovalRequest.objects.create(
                environment=environment,
                release=release,
                note=note.strip(),
                values_digest=frozen.digest_of(values),
                values=values,
                plan_digest=plans.digest(environment),
                created_at=now,
                created_by_id=by.pk,
                expires_at=now + timedelta(days=rules.approval_days),
            )
    except IntegrityError:
        raise Busy(
            f"Approval of release {release.number} on {environment.name} is requested already: withdraw that request first."
        ) from None


def end_what_no_longer_holds(release: Release, environment: Environment, *, now: datetime) -> None:
    """Before another is made: an open request whose values or plan changed, or that is too old, is closed with its reason."""
    present = open_request(release, environment)
    if present is None:
        return
    reason = why_ended(present, now=now)
    if not reason and (suspended := _suspended(present, release, environment)):
        reason = f"{suspended} It ended when approval was requested again."
    if reason:
        _open(present).update(status=ApprovalStatus.ENDED, reason=reason)


def _open(asked: ApprovalRequest) -> QuerySet[ApprovalRequest]:
    return ApprovalRequest.objects.filter(pk=asked.pk, status=ApprovalStatus.OPEN)


def _refuse_closed(asked: ApprovalRequest, now: datetime) -> None:
    asked.refresh_from_db()
    if asked.status == ApprovalStatus.OPEN:
        if reason := why_ended(asked, now=now):
            raise Stale(f"{reason} Request approval again.")
        if reason := _suspended(asked, asked.release, asked.environment):
            raise Stale(f"{reason} {SET_BACK}.")
    if asked.status != ApprovalStatus.OPEN:
        raise NotAllowed(f"This approval request is {asked.get_status_display().lower()}. {asked.reason}".strip())


def approve(asked: ApprovalRequest, *, comment: str = "", by: AbstractBaseUser, now: datetime) -> Approval:
    """Say yes; doing so twice succeeds. Raises NotAllowed for the requester and for a request that is no longer open."""
    if asked.created_by_id == by.pk:
        raise NotAllowed(f"{by.get_username()} requested this approval: somebody else must approve it.")
    with transaction.atomic():
        # Held until the end: of an approval and a rejection at once, one sees the other.
        _open(asked).update(status=ApprovalStatus.OPEN)
        _refuse_closed(asked, now)
        standing = Approval.objects.filter(request=asked, person_id=by.pk, withdrawn_at=None).first()
        return standing or Approval.objects.create(request=asked, person_id=by.pk, comment=comment.strip(), at=now)


def withdraw(asked: ApprovalRequest, *, by: AbstractBaseUser, now: datetime) -> str:
    """The requester takes the request back; anybody else his own approval. Doing so twice succeeds. Returns a sentence."""
    if asked.created_by_id == by.pk:
        closed = _open(asked).update(status=ApprovalStatus.WITHDRAWN, reason=f"Withdrawn by {by.get_username()}.")
        asked.refresh_from_db()
        if not closed and asked.status != ApprovalStatus.WITHDRAWN:
            raise NotAllowed(f"This approval request is {asked.get_status_display().lower()} already.")
        return "The request is withdrawn."
    mine = Approval.objects.filter(request=asked, person_id=by.pk)
    if not mine.filter(withdrawn_at=None).update(withdrawn_at=now) and not mine.exists():
        raise NotAllowed(f"{by.get_username()} has not approved this: there is nothing to withdraw.")
    return "Your approval is withdrawn."


def reject(asked: ApprovalRequest, *, comment: str, by: AbstractBaseUser, now: datetime) -> None:
    """Say no, with the reason; the request is closed. Raises Invalid without a comment, NotAllowed when it is no longer open."""
    if not comment.strip():
        raise Invalid("Say why: the requester reads it.", field="comment")
    if asked.created_by_id == by.pk:
        raise NotAllowed("Withdraw your own request instead of rejecting it.")
    reason = f"Rejected by {by.get_username()}: {comment.strip()}"
    if not _open(asked).update(status=ApprovalStatus.REJECTED, reason=reason):
        _refuse_closed(asked, now)
    asked.refresh_from_db()
