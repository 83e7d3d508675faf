"""Which releases may go: the rule of a project, what still needs a release, and removing the rest with what hangs on them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from deployments import rollback, schedules
from deployments.models import (
    BROKEN,
    LIVE,
    Activation,
    ActivationStatus,
    ApprovalRequest,
    ApprovalStatus,
    Deployment,
    Release,
    ReleaseRemoval,
    RetentionRule,
)
from portal.errors import Invalid, Stale
from portal.models import Environment, Project, Role
from runtimes.models import Bundle, Runtime

MAY_SET_RULE = Role.ADMINISTRATOR
LIMITS = {"keep_last": (1, 10_000), "keep_days": (0, 3650)}


@dataclass(frozen=True)
class Facts:
    """What of a release decides whether it may go."""

    number: int
    created_at: datetime
    needed: Sequence[str] = ()  # "active on Test", "needed to roll back Production"


@dataclass(frozen=True)
class Verdict:
    number: int
    goes: bool
    reason: str


def decide(releases: Sequence[Facts], *, keep_last: int, keep_days: int, now: datetime) -> list[Verdict]:
    """For each release, the newest first, whether it goes and why. Pure.

    The newest `keep_last` (at least one, so that no number is given twice) and those younger than `keep_days` days stay, and whatever
    is needed.
    """
    found = []
    for place, facts in enumerate(sorted(releases, key=lambda release: -release.number), start=1):
        age = now - facts.created_at
        if facts.needed:
            found.append(Verdict(facts.number, False, f"Kept: {', '.join(facts.needed)}."))
        elif place <= max(1, keep_last):
            found.append(Verdict(facts.number, False, f"Kept: among the newest {max(1, keep_last)}."))
        elif age < timedelta(days=keep_days):
            found.append(Verdict(facts.number, False, f"Kept: younger than {keep_days} days."))
        else:
            found.append(Verdict(facts.number, True, f"Goes: {age.days} days old, not among the newest {keep_last}, and nothing needs it."))
    return found


def rule_of(project: Project) -> RetentionRule:
    """The project's rule; switched off where nobody set any (then without a primary key)."""
    return RetentionRule.objects.filter(project=project).first() or RetentionRule(project=project)


def tag(rule: RetentionRule) -> str:
    """Names the rule as somebody saw it."""
    return f"{rule.enabled:d}-{rule.keep_last}-{rule.keep_days}"


def in_words(rule: RetentionRule) -> str:
    """ "on, the newest 20, younger than 90 days" """
    return f"{'on' if rule.enabled else 'off'}, the newest {rule.keep_last}, younger than {rule.keep_days} days"


def set_rule(project: Project, *, by: AbstractBaseUser, seen: str = "", **changes: Any) -> RetentionRule:
    """Change the rule (enabled, keep_last, keep_days). `seen` is its `tag` as the person saw it; empty: whatever it is now.

    Raises:
        Invalid: naming the field.
        Stale: somebody changed it since, to what.
    """
    for name, (least, most) in LIMITS.items():
        if name in changes and not least <= changes[name] <= most:
            raise Invalid(f"Say a number from {least} to {most}.", field=name)
    with transaction.atomic():
        RetentionRule.objects.get_or_create(project=project)
        rule = RetentionRule.objects.select_for_update().select_related("updated_by").get(project=project)
        if seen and seen != tag(rule):
            who = rule.updated_by.get_username() if rule.updated_by else "Somebody"
            raise Stale(f"{who} changed the rule since you opened it: {in_words(rule)}. Save again to replace that, or leave it.")
        for name, value in changes.items():
            setattr(rule, name, value)
        rule.updated_by_id = by.pk
        rule.save()
    return rule


def needs(project: Project) -> Mapping[int, list[str]]:
    """Release id -> why it may not go, in words. A fixed number of queries, and some per environment."""
    found: dict[int, list[str]] = defaultdict(list)

    def note(release: int, words: str) -> None:
        if words not in found[release]:
            found[release].append(words)

    environments = {environment.pk: environment for environment in Environment.objects.filter(project=project)}
    standing = (ActivationStatus.ACTIVE, *schedules.WAITING)
    chosen = Activation.objects.filter(environment__in=environments, status__in=standing)
    for release, where, status in chosen.values_list("release_id", "environment_id", "status"):
        word = "active" if status == ActivationStatus.ACTIVE else status
        note(release, f"{word} on {environments[where].name}")
    asked = ApprovalRequest.objects.filter(environment__in=environments, status=ApprovalStatus.OPEN)
    for release, where in asked.values_list("release_id", "environment_id"):
        note(release, f"approval requested on {environments[where].name}")
    going = Deployment.objects.filter(environment__in=environments, status__in=LIVE)
    for release, where in going.values_list("release_id", "environment_id"):
        note(release, f"being deployed on {environments[where].name}")
    for environment in environments.values():
        _what_runs(environment, project, note)
        _way_back(environment, note)
    return found


def _what_runs(environment: Environment, project: Project, note: Any) -> None:
    """A runtime whose bundle did not change runs the newer release, and the bundle that an older one made."""
    rows = list(
        Runtime.objects.filter(environment=environment).values_list("observed_release", "desired_release", "desired_bundle__release_number")
    )
    words = {made: f"its bundle runs on {environment.name}" for _, _, made in rows if made is not None}
    words |= {made: f"ordered on {environment.name}" for _, ordered, made in rows if made is not None and ordered == made}
    words |= {runs: f"runs on {environment.name}" for runs, _, _ in rows if runs is not None}
    for release, number in Release.objects.filter(project=project, number__in=words).values_list("pk", "number"):
        note(release, words[number])


def _way_back(environment: Environment, note: Any) -> None:
    newest = Deployment.objects.filter(environment=environment).order_by("-pk").values_list("release_id", "status").first()
    if newest and newest[1] in BROKEN:
        note(newest[0], f"its deployment on {environment.name} can be resumed")
    runs = rollback.runs_of(environment)
    last = rollback.standing(runs)[-1:]
    back = rollback.choose(runs)
    for run in last:
        note(run.release, f"deployed on {environment.name}")
    if back is not None:
        note(back.release, f"needed to roll back {environment.name}")


def verdicts(project: Project, *, now: datetime) -> list[tuple[Release, Verdict]]:
    """What the rule would do now: the dry run. The newest release first."""
    rule, needed = rule_of(project), needs(project)
    rows = {release.number: release for release in Release.objects.filter(project=project).defer("content").select_related("created_by")}
    facts = [Facts(release.number, release.created_at, needed.get(release.pk, [])) for release in rows.values()]
    found = decide(facts, keep_last=rule.keep_last, keep_days=rule.keep_days, now=now)
    return [(rows[verdict.number], verdict) for verdict in found]


def apply(project: Project, *, now: datetime, by: AbstractBaseUser | None = None) -> list[int]:
    """Remove what the rule lets go; the numbers removed. Each in its own transaction, in which it is decided once more."""
    removed = []
    for release, verdict in verdicts(project, now=now):
        if verdict.goes and _remove(release, now=now, by=by):
            removed.append(release.number)
    return removed


def _remove(release: Release, *, now: datetime, by: AbstractBaseUser | None) -> bool:
    project = release.project
    try:
        with transaction.atomic():
            # The row is held first: whoever schedules or activates the release at this moment holds it too (Release.hold), so that either
            # he is waited for and seen below, or he waits and is told that it is gone. Of two sweeps one does nothing.
            if not Release.objects.select_for_update().filter(pk=release.pk).values_list("pk", flat=True):
                return False
            if ReleaseRemoval.objects.filter(project=project, number=release.number).exists() or needs(project).get(release.pk):
                return False
            runs = Deployment.objects.filter(release=release)
            ReleaseRemoval.objects.create(
                project=project,
                number=release.number,
                name=release.name,
                digest=release.digest,
                deployments=runs.count(),
                at=now,
                by_id=by.pk if by else None,
            )
            Activation.objects.filter(release=release).delete()
            for environment in Environment.objects.filter(project=project):
                rollback.write_down(environment)
            runs.delete()
            Release.objects.filter(pk=release.pk).delete()
            # Of whatever project: environments may share a bundle that was made before its content named its own.
            used = Runtime.objects.filter(desired_bundle__isnull=False)
            bundles = Bundle.objects.filter(environment__project=project, release_number=release.number)
            bundles.exclude(pk__in=used.values("desired_bundle")).delete()
    except (IntegrityError, ProtectedError):  # somebody needs it since a moment ago
        return False
    return True


def sweep(*, now: datetime) -> str:
    """Apply every rule that is switched on. Returns a sentence."""
    said = []
    for rule in RetentionRule.objects.filter(enabled=True).select_related("project"):
        if removed := apply(rule.project, now=now):
            said.append(f"{rule.project}: removed release {', '.join(map(str, removed))}.")
    return " ".join(said) or "No release goes."
