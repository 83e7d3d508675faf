"""Scheduled activations: rows with a due moment, carried out by beat exactly once, or held, or expired, always with a reason.

    SCHEDULED -> ACTIVE (with its deployment, in one transaction) | FAILED | EXPIRED | CANCELLED
    SCHEDULED <-> HELD (a person, a roll back, or a freeze that came in between); HELD -> SCHEDULED by a person only

However many beats and workers look at a row, one compare-and-set UPDATE decides; a worker killed anywhere leaves it as it was.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.db.models import Case, F, Q, QuerySet, TextField, Value, When

from deployments import looks, preview, promotion, releases, rollout, windows
from deployments.models import Activation, ActivationStatus, Release
from deployments.promotion import Finding
from portal.access import may, role_to_deploy
from portal.errors import Busy, Invalid, NotAllowed
from portal.models import Environment
from runtimes.models import Machine

logger = logging.getLogger(__name__)

WAITING = (ActivationStatus.SCHEDULED, ActivationStatus.HELD)  # what can still be changed or cancelled
DEFAULT = -1  # expires_after_minutes: as the environment's rules say
LONGEST_MINUTES = 366 * 24 * 60


# --------------------------------------------------------------------------------------------------------------------- acts


def schedule(
    release: Release,
    environment: Environment,
    *,
    due_at: datetime,
    by: AbstractBaseUser,
    now: datetime,
    deploys: bool = False,
    leaving_out: Collection[str] = (),
    expires_after_minutes: int | None = DEFAULT,
    override: str = "",
) -> Activation:
    """Activate later, and `deploys` the release then. Later than `expires_after_minutes` it is not carried out (None: however late).

    `leaving_out`: machines to deploy without, those of them that are offline then; one that reports then is deployed with the others.

    Raises:
        Invalid: `due_at` is not in the future, or more than 5 years ahead; a release of another project; `leaving_out` names what is no
            machine here, all that the plan deploys to, or anything where nothing is deployed.
        NotAllowed: `due_at` lies in a freeze or outside the windows, with the next allowed time.
    """
    if release.project_id != environment.project_id:
        raise Invalid(f"Release {release.number} belongs to another project.", field="release")
    _check_future(due_at, now)
    if expires_after_minutes == DEFAULT:
        expires_after_minutes = promotion.rules_of(environment).expires_after_minutes
    if expires_after_minutes is not None and not 1 <= expires_after_minutes <= LONGEST_MINUTES:
        raise Invalid(f"Say a number of minutes from 1 to {LONGEST_MINUTES}, or never.", field="expires_after_minutes")
    out = sorted(set(leaving_out))
    _refuse_leaving_out(environment, out, deploys=deploys)
    with transaction.atomic():
        release.hold()
        _admit_then(release, environment, due_at, by, override)
        return Activation.objects.create(
            environment=environment,
            release=release,
            status=ActivationStatus.SCHEDULED,
            due_at=due_at,
            expires_after_minutes=expires_after_minutes,
            deploys=deploys,
            leaving_out=out,
            override=override.strip(),
            created_by_id=by.pk,
        )


def _check_future(due_at: datetime, now: datetime) -> None:
    if due_at <= now:
        raise Invalid("Choose a time in the future, or activate now.", field="due_at")
    windows.refuse_far(due_at, now, field="due_at")


def _refuse_leaving_out(environment: Environment, names: Sequence[str], *, deploys: bool) -> None:
    if names and not deploys:
        raise Invalid("Machines are left out of a deployment: say that it deploys after activation too.", field="leaving_out")
    known = set(Machine.objects.filter(environment=environment).values_list("name", flat=True))
    for name in names:
        if name not in known:
            raise Invalid(f"{name} is no machine of {environment.name}.", field="leaving_out")
    if names and (nothing := rollout.without(environment, names)):
        raise Invalid(nothing, field="leaving_out")


def _admit_then(release: Release, environment: Environment, due_at: datetime, by: AbstractBaseUser, override: str) -> None:
    """Order and approvals may come until then; a window must be open."""
    act = f"schedule at {due_at:%Y-%m-%d %H:%M} UTC"
    promotion.admit(release, environment, act=act, by=by, at=due_at, override=override, rules=("window",))


def reschedule(activation: Activation, *, due_at: datetime, by: AbstractBaseUser, now: datetime, override: str = "") -> None:
    """Another time for a scheduled or held activation, which is scheduled from then on, as `by` wishes it: an override of somebody else
    ends. Raises as `schedule` does."""
    _check_future(due_at, now)
    with transaction.atomic():
        _admit_then(activation.release, activation.environment, due_at, by, override)
        own = {"override": override.strip(), "reason": ""} if override.strip() else {}
        waiting = Activation.objects.filter(pk=activation.pk, status__in=WAITING)
        moved = waiting.update(**{**_taken_over(activation, by), **own}, due_at=due_at)
        if not moved:
            raise _over(activation, "rescheduled")
    activation.refresh_from_db()


def _taken_over(activation: Activation, by: AbstractBaseUser) -> dict[str, Any]:
    """Scheduled by this person from now on. The reason to set rules aside is of whoever gave it: another's ends, and that is said."""
    told = ""
    if activation.override and activation.created_by_id != by.pk:
        former = activation.created_by.get_username() if activation.created_by else "somebody who is gone"
        told = (
            f"The reason of {former} to set rules aside ended when {by.get_username()} took it over: give one where they still forbid it."
        )
    return {
        "status": ActivationStatus.SCHEDULED,
        "reason": told,
        "override": Case(When(created_by_id=by.pk, then=F("override")), default=Value(""), output_field=TextField()),
        "created_by_id": by.pk,
    }


def hold(activation: Activation, *, reason: str, by: AbstractBaseUser) -> None:
    """Pause a scheduled activation; doing so twice succeeds. Raises NotAllowed when it is over."""
    because = f"Held by {by.get_username()}" + (f": {reason.strip().rstrip('.')}." if reason.strip() else ".")
    scheduled = Activation.objects.filter(pk=activation.pk, status=ActivationStatus.SCHEDULED)
    held = scheduled.update(status=ActivationStatus.HELD, reason=because)
    activation.refresh_from_db()
    if not held and activation.status != ActivationStatus.HELD:
        raise _over(activation, "held")


def hold_all(environment: Environment, *, reason: str) -> int:
    """Pause everything that is scheduled for an environment; how many."""
    scheduled = Activation.objects.filter(environment=environment, status=ActivationStatus.SCHEDULED)
    return scheduled.update(status=ActivationStatus.HELD, reason=reason)


def resume(activation: Activation, *, by: AbstractBaseUser, now: datetime) -> None:
    """Let a held activation go on at its own time, at once when that has passed and it is not too late, as `by` wishes it: an override of
    somebody else ends. Doing so twice succeeds.

    Raises:
        NotAllowed: it is too late for it, or it is over.
    """
    if activation.status == ActivationStatus.HELD and activation.expires_at is not None and now >= activation.expires_at:
        raise NotAllowed(f"Its time, {_when(activation, activation.due_at)}, has passed: reschedule it.")
    held = Activation.objects.filter(pk=activation.pk, status=ActivationStatus.HELD)
    resumed = held.update(**_taken_over(activation, by))
    activation.refresh_from_db()
    if not resumed and activation.status != ActivationStatus.SCHEDULED:
        raise _over(activation, "resumed")


def cancel(activation: Activation, *, by: AbstractBaseUser) -> None:
    """Take back a scheduled or held activation; doing so twice succeeds. Raises NotAllowed when it was carried out before."""
    waiting = Activation.objects.filter(pk=activation.pk, status__in=WAITING)
    cancelled = waiting.update(status=ActivationStatus.CANCELLED, reason=f"Cancelled by {by.get_username()}.")
    activation.refresh_from_db()
    if not cancelled and activation.status != ActivationStatus.CANCELLED:
        raise _over(activation, "cancelled")


def _over(activation: Activation, word: str) -> NotAllowed:
    activation.refresh_from_db()
    return NotAllowed(f"This activation is {activation.status} already: it can no longer be {word}.")


def _when(activation: Activation, moment: datetime | None) -> str:
    assert moment is not None
    return windows.in_zone(moment, promotion.calendar_of(activation.environment).zone)


# ---------------------------------------------------------------------------------------------------------------- when due


@dataclass(frozen=True)
class Decision:
    """What becomes of a scheduled activation at one look, and why."""

    do: Literal["activate", "wait", "hold", "expire", "fail"]
    sentence: str = ""


def decide(
    *,
    due_at: datetime,
    expires_at: datetime | None,
    now: datetime,
    entitled: bool,
    lacking: str,
    findings: Sequence[Finding],
    override: bool,
    ahead: str,
    busy: str,
) -> Decision:
    """Pure. `lacking`, `ahead` and `busy` are sentences, empty when nothing lacks, none was due earlier and nothing is under way."""
    if now < due_at:
        return Decision("wait", "It is not due.")
    if expires_at is not None and now >= expires_at:
        allowed, late = expires_at - due_at, now - due_at
        return Decision("expire", f"It was looked at {_span(late)} after its time and expires after {_span(allowed)}. Schedule it again.")
    if ahead:  # before all else: what that one activates may be what this one lacks
        return Decision("wait", ahead)
    if not entitled:
        return Decision("fail", "Whoever scheduled it may no longer deploy here: somebody who may must schedule it again.")
    if lacking:
        return Decision("fail", lacking)
    standing = [finding for finding in findings if not (override and finding.overridable)]
    if any(finding.rule != "window" for finding in standing):
        return Decision("fail", " ".join(finding.sentence for finding in standing))
    if standing:
        return Decision("hold", f"{standing[0].sentence} Resume or reschedule it then.")
    return Decision("wait", busy) if busy else Decision("activate")


def _span(length: timedelta) -> str:
    minutes = int(length.total_seconds() // 60)
    if minutes < 120:
        return "1 minute" if minutes == 1 else f"{minutes} minutes"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def due(now: datetime) -> Sequence[int]:
    """Ids of scheduled activations whose time has come, the oldest first."""
    scheduled = Activation.objects.filter(status=ActivationStatus.SCHEDULED, due_at__lte=now)
    return list(scheduled.order_by("due_at", "pk").values_list("pk", flat=True))


class _Handled(Exception):  # noqa: N818 - not an error: another worker was first
    pass


def activate_due(activation_id: int, *, now: datetime) -> str:
    """One look at one scheduled activation; carried out exactly once however often it is called. Returns a sentence."""
    rows = Activation.objects.select_related("release__project", "environment__project", "created_by")
    activation = rows.filter(pk=activation_id).first()
    if activation is None:
        return f"Activation {activation_id} is gone."
    if activation.status != ActivationStatus.SCHEDULED or activation.due_at is None or now < activation.due_at:
        return _handled(activation_id)
    decision = _waits_its_turn(activation, now) or _decided(activation, now)
    release, environment = activation.release, activation.environment
    if decision.do == "activate":
        try:
            return _carry_out(activation, now)
        except _Handled:
            return _handled(activation_id)
        except Busy as refusal:
            decision = Decision("wait", refusal.sentence)
        except NotAllowed as refusal:
            decision = Decision("fail", refusal.sentence)
    if decision.do == "wait":
        _still(activation).exclude(reason=decision.sentence).update(reason=decision.sentence)
        return f"Activation {activation_id} waits: {decision.sentence}"
    status = {"hold": ActivationStatus.HELD, "expire": ActivationStatus.EXPIRED, "fail": ActivationStatus.FAILED}[decision.do]
    if not _still(activation).update(status=status, reason=decision.sentence):
        return _handled(activation_id)
    return f"Release {release.number} was not activated on {environment.name}: {decision.sentence}"


def _handled(activation_id: int) -> str:
    return f"Activation {activation_id} was handled already, or is not due."


def _still(activation: Activation) -> QuerySet[Activation]:
    """The row, as long as it is the one that was looked at: not carried out, held, cancelled or rescheduled since."""
    return Activation.objects.filter(pk=activation.pk, status=ActivationStatus.SCHEDULED, due_at=activation.due_at)


def _waits_its_turn(activation: Activation, now: datetime) -> Decision | None:
    """Without asking anything else: there may be many of them, and they are looked at every few seconds."""
    ahead = _ahead(activation) if activation.expires_at is None or now < activation.expires_at else ""
    return Decision("wait", ahead) if ahead else None


def _decided(activation: Activation, now: datetime) -> Decision:
    release, environment, by = activation.release, activation.environment, activation.created_by
    assert activation.due_at is not None
    try:
        releases.refuse_incomplete(release, environment)
        lacking = ""
    except NotAllowed as refusal:
        lacking = refusal.sentence
    live = rollout.live(environment) if activation.deploys else None
    return decide(
        due_at=activation.due_at,
        expires_at=activation.expires_at,
        now=now,
        entitled=by is not None and may(by, environment.project.team_id, role_to_deploy(environment)),
        lacking=lacking,
        findings=promotion.findings(release, environment, at=now),
        override=bool(activation.override),
        ahead=_ahead(activation),
        busy=f"Deployment {live.pk} of release {live.release.number} is under way." if live else "",
    )


def _ahead(activation: Activation) -> str:
    """Of one environment's scheduled activations the one that was due first goes first: an older release never replaces a newer one,
    because a deployment was under way when both became due. A held one holds up nobody."""
    scheduled = Activation.objects.filter(environment_id=activation.environment_id, status=ActivationStatus.SCHEDULED)
    earlier = scheduled.filter(Q(due_at__lt=activation.due_at) | Q(due_at=activation.due_at, pk__lt=activation.pk))
    first = earlier.select_related("release", "environment__project").order_by("due_at", "pk").first()
    if first is None:
        return ""
    return f"Release {first.release.number}, which was due at {_when(first, first.due_at)}, goes first (or hold or cancel that)."


def _carry_out(activation: Activation, now: datetime) -> str:
    """Activate, and deploy where it was asked for: all of it or nothing. Raises NotAllowed, Busy, or _Handled."""
    release, environment, by = activation.release, activation.environment, activation.created_by
    for _ in range(releases.ATTEMPTS):
        try:
            with transaction.atomic():
                # This UPDATE comes first: until the transaction ends, no other worker gets past it for this activation.
                if not _still(activation).update(reason=""):
                    raise _Handled
                if ahead := _ahead(activation):  # rescheduled or resumed since it was decided
                    raise Busy(ahead)
                promotion.admit(release, environment, act="activate", by=by, at=now, override=activation.override)
                Activation.objects.filter(environment=environment, status=ActivationStatus.ACTIVE).update(status=ActivationStatus.REPLACED)
                _still(activation).update(status=ActivationStatus.ACTIVE, activated_at=now)
                if not activation.deploys:
                    return f"Release {release.number} is active on {environment.name}."
                rollout.refuse_while_deploying(environment)
                out, told = _leaving_out(activation, now)
                begun = rollout.prepare(release, on=environment, by=by, now=now, override=activation.override, leaving_out=out)
                Activation.objects.filter(pk=activation.pk).update(deployment=begun, reason=told)
                who = by.get_username() if by is not None else "somebody who is gone"
                looks.note(begun.steps.all()[0], f"Begun by schedule, due {_when(activation, activation.due_at)}, asked by {who}.", now)
                said = f"Release {release.number} is active on {environment.name}, and deployment {begun.pk} began."
                return f"{said} {told}".strip()
        except IntegrityError:  # somebody else activated at this moment: theirs is replaced in turn
            continue
    raise Busy(f"Others are activating releases on {environment.name} at this moment.")


def _leaving_out(activation: Activation, now: datetime) -> tuple[list[str], str]:
    """Whom its deployment goes without, and a sentence on it. Nobody looks on who could decide at the first gate, so what the preview says
    would stop without them is refused before anything changes.

    Raises:
        NotAllowed: one of them is no machine here any more, or a step would stop without them.
    """
    environment = activation.environment
    if not activation.leaving_out:
        return [], ""
    machines = {row.name: row for row in Machine.objects.filter(environment=environment)}
    if gone := [name for name in activation.leaving_out if name not in machines]:
        names = " and ".join(gone)
        raise NotAllowed(f"{names}, to be left out, is no machine of {environment.name} any more: schedule it again without naming it.")
    out = [name for name in activation.leaving_out if machines[name].is_silent(now=now)]
    back = [name for name in activation.leaving_out if name not in out]
    told = [f"{' and '.join(out)}: left out, offline when it was due."] if out else []
    told += [f"{' and '.join(back)}: not left out, for it reported when it was due."] if back else []
    if out:
        foreseen = preview.preview(activation.release, environment, now=now, leaving_out=out)
        if stops := next((step for step in foreseen.steps if step.outcome == "fails"), None):
            raise NotAllowed(
                f"Without {' and '.join(out)}, which is offline, step {stops.number} ({stops.title}) would stop: {stops.sentence} "
                "Nothing was changed; deploy by hand, where a person can decide."
            )
    return out, " ".join(told)
