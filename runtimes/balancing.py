"""Balance failover: one idempotent step towards "the preferred member leads, proven" (docs/failover.md, Play, Stop, Balance)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from portal.ages import in_words
from portal.errors import Busy, NotReady, Stale
from runtimes.failover import (
    MemberVerdict,
    Verdict,
    expire_overdue,
    meant_to_fail_over,
    obstacle,
    read_now,
    switch,
    unheard_leader,
    unproven_without,
    verdict,
    without,
)
from runtimes.models import LIVE_REQUESTS, FailbackPolicy, FailoverGroup, GroupRequest, LeadershipChange
from runtimes.protocol import Cause, Preference, RequestKind, RequestStatus, State, Status

SILENT_FOR_LONG_SECONDS = 30.0  # no longer is waited for a preferred member whose agent is silent for so long
ASK_AGAIN_AFTER_SECONDS = 2.0  # after a hand-over that failed …
DRAIN_AGAIN_AFTER_SECONDS = 20.0  # … and after one for which the leader stood still for the whole drain limit, in vain


@dataclass(frozen=True)
class Balanced:
    """One look at a group during Balance failover: done, or what it waits for, or why it cannot."""

    group: FailoverGroup
    done: bool
    failed: bool
    reason: str


def balance(
    group: FailoverGroup,
    *,
    release: int,
    actor: str,
    step_began_at: datetime,
    now: datetime,
    left_out: Collection[str] = (),
    once: bool = False,
) -> Balanced:
    """One idempotent step towards "the preferred member leads, proven": asks for the hand-over when it is due, else looks.

    Never overrides a switch made after the step began, never enables (docs/failover.md, Balance failover). Members on machines that
    were left out of the deployment are not waited for: what can be proven without them is. With `once` a group that `actor` handed over
    already is proven where it is, instead of being handed over again.
    """
    group = read_now(group)
    expire_overdue(now=now, group=group)
    whole = verdict(group, now=now)
    found = without(whole, left_out)
    unheard = unheard_leader(whole)
    preferred = next((said for said in found.members if said.member.runtime.preference == Preference.LEADER), None)

    def done(reason: str) -> Balanced:
        return Balanced(group, done=True, failed=False, reason=reason)

    def failed(reason: str) -> Balanced:
        return Balanced(group, done=False, failed=True, reason=reason)

    def waits(reason: str) -> Balanced:
        if unheard is not None and unheard.machine in left_out:  # nothing comes of waiting: say what has to be done
            reason = unproven_without(group.name, unheard.machine)
        return Balanced(group, done=False, failed=False, reason=reason)

    if not found.members:
        return done(f"{group.name} has no member in this environment.")
    if all(said.fresh and said.status == Status.DISABLED for said in found.members):
        return failed(f"Every member of {group.name} is disabled, and Balance never enables: enable one and resume.")
    if not meant_to_fail_over(group):
        unproven = _unproven_single(found, release)
        return waits(unproven) if unproven else done(f"{group.name} has no peer; it runs on {found.members[0].machine}.")
    if preferred is None:
        unproven = _unproven(found, found.leader, release)
        where = found.leader.machine if found.leader else ""
        away = any(member.runtime.preference == Preference.LEADER for member in group.members.all())
        why = "The preferred leader is left out" if away else f"{group.name} has no preferred leader"
        return waits(unproven) if unproven else done(f"{why}: {group.name if away else 'it'} stays where it is, on {where}.")
    if once and found.leader not in (None, preferred) and _handed_over(group, actor):
        assert found.leader is not None
        unproven = _unproven(found, found.leader, release)
        stays = f"{group.name} was handed over once in this deployment and stays on {found.leader.machine}. {_later(group, preferred)}"
        return waits(unproven) if unproven else done(stays)
    if hopeless := _hopeless(found, preferred, step_began_at, now):
        return failed(hopeless)
    if found.leader is not preferred and (who := _switched_by(group, preferred, actor, step_began_at)):
        return failed(f"{who}; Balance does not undo that. Resume the step to bring {group.name} to {preferred.machine}.")
    if found.leader is preferred:
        unproven = _unproven(found, preferred, release)
        return waits(unproven) if unproven else done(f"{preferred.machine} leads {group.name}, as preferred.")
    return waits(_hand_over(found, preferred, release=release, actor=actor, step_began_at=step_began_at, now=now))


def _handed_over(group: FailoverGroup, actor: str) -> bool:
    """Did this deployment move the group before."""
    asked = GroupRequest.objects.filter(group=group, kind=RequestKind.SWITCH, actor=actor, status=RequestStatus.SUCCEEDED)
    return asked.exists()


def _later(group: FailoverGroup, preferred: MemberVerdict) -> str:
    """How the preference comes to its right without this deployment."""
    if group.failback == FailbackPolicy.MANUAL:
        return f"{preferred.machine} is preferred: Play there brings it back, or the next deployment."
    return f"{preferred.machine} is preferred: its failback policy ({group.get_failback_display().lower()}) brings it back."


def _hopeless(found: Verdict, preferred: MemberVerdict, step_began_at: datetime, now: datetime) -> str:
    """Why waiting for the preferred member helps nobody; empty while it may still come."""
    name, machine = found.group.name, preferred.machine
    stays = f"{name} stays on {found.leader.machine}." if found.leader else f"Nobody is known to lead {name}."
    if preferred.fresh and (preferred.status == Status.DISABLED or preferred.member.observed_disabled):
        return f"{machine} is preferred but disabled, and Balance never enables: enable it and resume. {stays}"
    silent = preferred.age_seconds if preferred.age_seconds is not None else (now - step_began_at).total_seconds()
    if silent > SILENT_FOR_LONG_SECONDS:
        word = "has not been heard from" if preferred.age_seconds is not None else "has not reported this group"
        return f"{machine} is preferred but {word} for {in_words(silent)}. {stays}"
    return ""


def _switched_by(group: FailoverGroup, preferred: MemberVerdict, balancer: str, since: datetime) -> str:
    """Who else moved the group elsewhere after the step began, by the portal or on a machine; empty when nobody did."""
    asked = (
        GroupRequest.objects.filter(group=group, kind=RequestKind.SWITCH, cause=Cause.SWITCH, created_at__gte=since)
        .filter(status__in=(*LIVE_REQUESTS, RequestStatus.SUCCEEDED))
        .exclude(actor=balancer)
        .first()
    )
    if asked is not None and asked.machine != preferred.machine:
        return f"{asked.actor} moved {group.name} {'to ' + asked.machine if asked.machine else 'away'} after this step began"
    change = LeadershipChange.objects.filter(group=group).first()
    on_a_machine = asked is None and change is not None and change.cause == Cause.SWITCH and change.at >= since
    on_a_machine = on_a_machine and change is not None and change.actor != balancer
    if change is not None and on_a_machine and change.runtime != preferred.member.runtime.key:
        return f"{change.actor or 'Somebody'} moved {group.name} to {change.runtime} after this step began"
    return ""


def _unreachable(found: Verdict) -> str:
    """A member whose router says that it cannot reach a sibling's; empty when all can."""
    machines = {said.machine for said in found.members}
    for said in found.members:
        router = getattr(said.member.runtime.machine, "router", None)
        for peer in router.observed_peers if router and said.fresh else []:
            if peer["machine"] in machines - {said.machine} and not peer["reachable"]:
                cause = f": {peer['error']}" if peer.get("error") else ""
                return f"{said.machine} does not reach {peer['machine']} at {peer['address']}{cause}."
    return ""


def _off_release(said: MemberVerdict, release: int) -> str:
    runs = said.member.runtime.observed_release
    return "" if runs == release else f"{said.machine} runs {f'release {runs}' if runs else 'no release'}, not {release}."


def _unproven(found: Verdict, leader: MemberVerdict | None, release: int) -> str:
    """What is missing from: one leader, On; the others Follower (or Disabled) and Off; all fresh, on the release, reaching each other."""
    if leader is None:
        return " ".join(found.problems) or f"Nobody leads {found.group.name} yet."
    if found.problems:
        return found.problems[0]
    return next(filter(None, [*(_off_release(said, release) for said in found.members), _unreachable(found)]), "")


def _unproven_single(found: Verdict, release: int) -> str:
    checks: list[Callable[[MemberVerdict], str]] = [
        lambda said: "" if said.fresh else said.reason,
        lambda said: "" if said.state == State.ON else f"{said.machine} is {said.state.capitalize()}: {said.reason}",
        lambda said: _off_release(said, release),
    ]
    running = [said for said in found.members if said.status != Status.DISABLED]
    return next((reason for said in running for check in checks if (reason := check(said))), "")


def _hand_over(found: Verdict, preferred: MemberVerdict, *, release: int, actor: str, step_began_at: datetime, now: datetime) -> str:
    """Ask for the hand-over when it is due; returns what Balance waits for."""
    name, machine = found.group.name, preferred.machine
    last = GroupRequest.objects.filter(group=found.group, kind=RequestKind.SWITCH, created_at__gte=step_began_at).first()
    if last is not None and last.status in LIVE_REQUESTS:
        return f"The hand-over of {name} to {machine} is under way."
    failure = f" The last hand-over failed: {last.reason}" if last is not None and last.status == RequestStatus.FAILED else ""
    if found.leader is None:
        return (" ".join(found.problems) or f"Nobody leads {name} yet.") + failure
    missing = next(filter(None, [*(_off_release(said, release) for said in found.members), _unreachable(found)]), "")
    if missing or (missing := obstacle(found, preferred)):
        return f"{name} stays on {found.leader.machine} for now: {missing}{failure}"
    pause = DRAIN_AGAIN_AFTER_SECONDS if last is not None and last.code == "drain-limit" else ASK_AGAIN_AFTER_SECONDS
    if failure and last is not None and last.ended_at and now - last.ended_at < timedelta(seconds=pause):
        return f"{name} stays on {found.leader.machine} for now.{failure}"
    try:
        switch(found.group, candidate=machine, expected_leader=found.leader.machine, actor=actor, cause=Cause.BALANCE, now=now)
    except (Busy, Stale, NotReady) as refusal:
        return f"{name} stays on {found.leader.machine} for now: {refusal.sentence}"
    return f"{name} is handed over from {found.leader.machine} to {machine}.{failure}"
