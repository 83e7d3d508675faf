"""What an environment asks before a release may be activated or deployed there: the order of promotion, approvals, windows and freezes.

`forbids` is pure; `findings` reads what it needs; `admit` is the one gate that every act goes through, whoever or whatever acts:
releases.activate, rollout.prepare, rollout.resume and the scheduled activations.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time
from typing import Any, Literal

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.utils import timezone

from deployments import approvals, windows
from deployments.models import (
    DEPLOYS,
    Choice,
    Decision,
    Deployment,
    DeploymentFreeze,
    DeploymentWindow,
    EnvironmentRules,
    Exclusion,
    Release,
    RuleChange,
    RuleOverride,
    RunStatus,
    StepRun,
)
from portal.access import may
from portal.errors import Invalid, NotAllowed, Stale
from portal.models import Environment, Role
from portal.time_zones import zone_of

Rule = Literal["order", "approvals", "window"]
RULES: Sequence[Rule] = ("order", "approvals", "window")
MAY_OVERRIDE = Role.OPERATOR
MAY_FREEZE = Role.OPERATOR
MAY_SET_RULES = Role.ADMINISTRATOR
LONGEST_REASON = 500
LONGEST_FREEZE_REASON = 200


@dataclass(frozen=True)
class Finding:
    """A rule that forbids an act now."""

    rule: Rule
    sentence: str
    next_at: datetime | None = None  # of a window: when it opens

    @property
    def overridable(self) -> bool:
        """Order, windows and freezes; approvals never, or one person could do alone what asks for several."""
        return self.rule != "approvals"


# -------------------------------------------------------------------------------------------------------------------- rules


def rules_of(environment: Environment) -> EnvironmentRules:
    """The environment's rules; the defaults where nobody set any (then without a primary key)."""
    return EnvironmentRules.objects.filter(environment=environment).first() or EnvironmentRules(environment=environment)


def calendar_of(environment: Environment, rules: EnvironmentRules | None = None) -> windows.Calendar:
    rules = rules or rules_of(environment)
    return windows.Calendar(
        zone=zone_of(rules.time_zone),
        windows=[
            windows.Window(frozenset(int(day) for day in row.days), row.opens, row.closes)
            for row in DeploymentWindow.objects.filter(environment=environment)
        ],
        freezes=[
            windows.Freeze(row.starts_at, row.ends_at, row.reason) for row in DeploymentFreeze.objects.filter(environment=environment)
        ],
    )


def environment_before(environment: Environment) -> Environment | None:
    """The one that a release passes first."""
    earlier = Environment.objects.filter(project=environment.project_id, position__lt=environment.position)
    return earlier.order_by("-position").first()


def environment_after(environment: Environment) -> Environment | None:
    later = Environment.objects.filter(project=environment.project_id, position__gt=environment.position)
    return later.order_by("position").first()


def passed(release: Release, environment: Environment) -> Deployment | None:
    """The newest deployment that brought the release there with success, to every machine of the plan: one that was left out counts when
    it caught up. Two queries, and as many for each machine that caught up."""
    runs = Deployment.objects.that_ran().filter(environment=environment, release=release).order_by("-pk")
    return next((run for run in runs.select_related("environment__project") if not behind(run)), None)


def behind(run: Deployment) -> list[str]:
    """Machines that have yet to get what the deployment brings, sorted."""
    missed = StepRun.objects.filter(deployment=run, kind__in=DEPLOYS, status=RunStatus.SKIPPED).values("machine")
    left_out = Exclusion.objects.filter(deployment=run, machine__in=missed).select_related("caught_up_by").order_by("machine")
    return [one.machine for one in left_out if not _caught_up(one)]


def _caught_up(one: Exclusion) -> bool:
    later = one.caught_up_by
    if later is None or later.status != RunStatus.SUCCEEDED or one.machine in behind(later):
        return False
    return _skipped(later) is None


def _skipped(run: Deployment) -> Decision | None:
    """By which a person left undone what the deployment was to deploy."""
    return Decision.objects.filter(deployment=run, choice=Choice.SKIP, step__kind__in=DEPLOYS).select_related("step").first()


def _not_passed(release: Release, environment: Environment) -> str:
    """What a deployment that ended well lacked, to be told in brackets; empty when none ended well. For a release that has not passed."""
    whole = Deployment.objects.filter(environment=environment, release=release, completes=None)
    last = whole.filter(status=RunStatus.SUCCEEDED).order_by("-pk").first()
    if last is None:
        return ""
    skipped = _skipped(last)
    if skipped is not None and skipped.step is not None:
        return f" (in deployment {last.pk} a person skipped {skipped.step.title})"
    if names := " and ".join(behind(last)):
        return f" (deployment {last.pk} left {names} out, and it has yet to catch up)"
    return f" (deployment {last.pk} deployed nothing)"


def forbids(
    release: int,
    environment: str,
    *,
    in_order: bool,
    before: str | None,
    passed_before: bool,
    but: str = "",
    needed: int,
    approval: approvals.State,
    calendar: windows.Calendar,
    at: datetime,
) -> list[Finding]:
    """Every rule that forbids release number `release` on the environment at that moment. `but`: what its deployment before lacked,
    in brackets. Pure."""
    found = []
    if in_order and before is not None and not passed_before:
        found.append(
            Finding(
                "order",
                f"Release {release} was not yet deployed with success on {before}{but}: deploy it there first, "
                f"for releases reach {environment} after {before}.",
            )
        )
    if needed and (reason := approval.lacking(needed)):
        found.append(Finding("approvals", f"Release {release} lacks approval on {environment}: {reason}"))
    verdict = windows.verdict(calendar, at)
    if not verdict.open:
        when = windows.in_zone(at, calendar.zone)
        found.append(Finding("window", f"{environment} may not be changed on {when}. {verdict.sentence}", verdict.next_at))
    return found


def findings(
    release: Release, environment: Environment, *, at: datetime, returning: bool = False, begun: Deployment | None = None
) -> list[Finding]:
    """What forbids activating or deploying the release there at that moment.

    `returning`: it is a roll back, to a release that succeeded there before; it needs no new approval as long as it brings the values
    and the plan that ran there. `begun`: a deployment that goes on with the steps it began with.
    """
    rules = rules_of(environment)
    before = environment_before(environment) if rules.in_order else None
    needed, approval = rules.approvals, approvals.State()
    if needed:
        unlike = approvals.unlike_what_ran(release, environment, begun=begun) if returning else ""
        if returning and not unlike:
            needed = 0
        else:
            approval = approvals.state(release, environment, now=at, begun=begun)
            approval = approval if approval.requested or approval.suspended or not unlike else replace(approval, ended=unlike)
    passes = before is None or returning or passed(release, before) is not None
    return forbids(
        release.number,
        environment.name,
        in_order=rules.in_order,
        before=before.name if before else None,
        passed_before=passes,
        but=_not_passed(release, before) if before is not None and not passes else "",
        needed=needed,
        approval=approval,
        calendar=calendar_of(environment, rules),
        at=at,
    )


def admit(
    release: Release,
    environment: Environment,
    *,
    act: str,
    by: AbstractBaseUser | None,
    at: datetime,
    override: str = "",
    returning: bool = False,
    begun: Deployment | None = None,
    rules: Sequence[Rule] = RULES,
) -> None:
    """Let the act pass, or refuse it. With `override` a person who may do so sets the rules aside, and that is kept with the reason.

    Raises:
        NotAllowed: with one reason per rule; an approval that lacks can never be overridden.
    """
    found = [finding for finding in findings(release, environment, at=at, returning=returning, begun=begun) if finding.rule in rules]
    if not found:
        return
    reasons = [finding.sentence for finding in found]
    reason = override.strip()
    if not reason or not all(finding.overridable for finding in found):
        tail = "" if reason or not any(finding.overridable for finding in found) else _REMEDY
        raise NotAllowed(" ".join([*reasons, tail]).strip(), reasons=reasons)
    if len(reason) > LONGEST_REASON:
        raise Invalid(f"The reason is too long: use at most {LONGEST_REASON} characters.", field="override")
    if by is None or not may(by, environment.project.team_id, MAY_OVERRIDE):
        raise NotAllowed(f"Overriding the rules of {environment.name} needs the role {MAY_OVERRIDE.label.lower()}.", field="override")
    RuleOverride.objects.create(
        environment=environment, release=release, act=act, rules=reasons, reason=reason, at=timezone.now(), by_id=by.pk
    )


_REMEDY = "An operator or administrator can override this with a reason."


# ----------------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class WindowInput:
    days: str  # digits, 0 Monday to 6 Sunday
    opens: time
    closes: time


def tag(environment: Environment) -> str:
    """Of the rules and windows as they stand: whoever saves them says by this what he saw. Two queries."""
    rules = rules_of(environment)
    told = [str(getattr(rules, name)) for name in _NAMES]
    told += sorted(f"{row.days} {row.opens} {row.closes}" for row in DeploymentWindow.objects.filter(environment=environment))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def set_rules(
    environment: Environment,
    *,
    by: AbstractBaseUser,
    now: datetime,
    windows_: Sequence[WindowInput] | None = None,
    seen: str = "",
    **changes: Any,
) -> EnvironmentRules:
    """Change the rules (in_order, approvals, approval_days, time_zone, expires_after_minutes; `windows_` replaces all windows).

    What changed is kept with who and when. `seen` is their `tag` as the person saw them; empty: whatever they are now.

    Raises:
        Invalid: naming the field.
        Stale: somebody changed them since, with what.
    """
    if "time_zone" in changes:
        zone_of(changes["time_zone"])
    for name, (least, most) in _LIMITS.items():
        if name in changes and not least <= changes[name] <= most:
            raise Invalid(f"Say a number from {least} to {most}.", field=name)
    with transaction.atomic():
        EnvironmentRules.objects.get_or_create(environment=environment)
        rules = EnvironmentRules.objects.select_for_update().get(environment=environment)
        if seen and seen != tag(environment):
            last = RuleChange.objects.filter(environment=environment).select_related("by").first()
            who, what = (last.by.get_username() if last and last.by else "Somebody"), f": {last.sentence}" if last else "."
            raise Stale(f"{who} changed the rules since you opened them{what} Save again to replace that, or leave it.")
        said = [
            f"{_NAMES[name]}: {_said(getattr(rules, name))} → {_said(value)}."
            for name, value in changes.items()
            if getattr(rules, name) != value
        ]
        for name, value in changes.items():
            setattr(rules, name, value)
        rules.save()
        if windows_ is not None:
            said += _replace_windows(environment, windows_)
        if said:
            RuleChange.objects.create(environment=environment, at=now, by_id=by.pk, sentence=" ".join(said))
    return rules


_NAMES = {
    "in_order": "In order",
    "approvals": "Approvals needed",
    "approval_days": "Days an approval request stays open",
    "time_zone": "Time zone",
    "expires_after_minutes": "Minutes until a late activation expires",
}
_LIMITS: Mapping[str, tuple[int, int]] = {"approvals": (0, 20), "approval_days": (1, 365), "expires_after_minutes": (1, 7 * 24 * 60)}


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _replace_windows(environment: Environment, wanted: Sequence[WindowInput]) -> list[str]:
    for window in wanted:
        if not window.days or set(window.days) - set("0123456"):
            raise Invalid("Choose at least one day of the week.", field="windows")
    present = DeploymentWindow.objects.filter(environment=environment)
    before = {(row.days, row.opens, row.closes) for row in present}
    after = {("".join(sorted(set(window.days))), window.opens, window.closes) for window in wanted}
    if before == after:
        return []
    present.delete()
    DeploymentWindow.objects.bulk_create(
        DeploymentWindow(environment=environment, days=days, opens=opens, closes=closes) for days, opens, closes in sorted(after)
    )
    words = [windows.Window(frozenset(map(int, days)), opens, closes).words for days, opens, closes in sorted(after)]
    return [f"Deployment windows: {', '.join(words) or 'none, always open'}."]


def freeze(
    environment: Environment, *, starts_at: datetime, ends_at: datetime, reason: str, by: AbstractBaseUser, now: datetime
) -> DeploymentFreeze:
    """Forbid activating and deploying for a time. Raises Invalid."""
    if not reason.strip():
        raise Invalid("Say why: whoever is refused reads it.", field="reason")
    if len(reason.strip()) > LONGEST_FREEZE_REASON:
        raise Invalid(f"Say why in at most {LONGEST_FREEZE_REASON} characters.", field="reason")
    if ends_at <= starts_at:
        raise Invalid("A freeze ends after it starts.", field="ends_at")
    if ends_at <= now:
        raise Invalid("This freeze would be over already.", field="ends_at")
    windows.refuse_far(starts_at, now, field="starts_at")
    windows.refuse_far(ends_at, now, field="ends_at")
    zone = zone_of(rules_of(environment).time_zone)
    with transaction.atomic():
        made = DeploymentFreeze.objects.create(
            environment=environment, starts_at=starts_at, ends_at=ends_at, reason=reason.strip(), created_by_id=by.pk
        )
        sentence = f"Frozen from {windows.in_zone(starts_at, zone)} until {windows.in_zone(ends_at, zone)}: {reason.strip()}"
        RuleChange.objects.create(environment=environment, at=now, by_id=by.pk, sentence=sentence)
    return made


def lift(made: DeploymentFreeze, *, by: AbstractBaseUser, now: datetime) -> None:
    """End or take back a freeze; doing so twice succeeds."""
    with transaction.atomic():
        if DeploymentFreeze.objects.filter(pk=made.pk).delete()[0]:
            RuleChange.objects.create(environment=made.environment, at=now, by_id=by.pk, sentence=f"Freeze lifted: {made.reason}")


def move(environment: Environment, *, earlier: bool, by: AbstractBaseUser, now: datetime) -> None:
    """One place earlier or later in the order of promotion; at the end nothing happens."""
    with transaction.atomic():
        # Held until the end: of two who move at once the second moves in the order that the first made.
        list(Environment.objects.select_for_update().filter(project=environment.project_id).order_by("pk"))
        environment.refresh_from_db(fields=["position"])
        neighbour = environment_before(environment) if earlier else environment_after(environment)
        if neighbour is None:
            return
        Environment.objects.filter(pk=environment.pk).update(position=neighbour.position)
        Environment.objects.filter(pk=neighbour.pk).update(position=environment.position)
        RuleChange.objects.create(
            environment=environment,
            at=now,
            by_id=by.pk,
            sentence=f"{environment.name} comes {'before' if earlier else 'after'} {neighbour.name} in the order of promotion.",
        )
    environment.refresh_from_db(fields=["position"])
