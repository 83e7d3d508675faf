"""Preferences and switches of failover groups: the portal's wishes, and its verdict on what it heard. Balance is in `balancing`."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import ClassVar

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Prefetch
from django.utils import timezone

from portal.ages import in_words
from portal.errors import Busy, Invalid, NotReady, Stale
from runtimes import clocks, fleet, protocol
from runtimes.models import LIVE_REQUESTS, Bundle, FailoverGroup, GroupMember, GroupRequest, Runtime
from runtimes.protocol import Cause, IsolationPolicy, Preference, RequestKind, RequestStatus, State, Status, epoch_words
from runtimes.reports import REQUEST_PENDING_SECONDS

WORDS = {
    Status.LEADER: "Leader",
    Status.FOLLOWER: "Follower",
    Status.DISABLED: "Disabled",
    Status.SINGLE_NODE: "Leader (single node)",
    Status.ISOLATED: "Isolated",
    Status.UNKNOWN: "Unknown",
}


POLICY_WORDS = {IsolationPolicy.STOP: "Stop", IsolationPolicy.RUN_ALONE: "Run alone"}
POLICY_CONSEQUENCES = {
    IsolationPolicy.STOP: "A member that loses the majority of the routers stops its inbounds, and the data waits in the source until a "
    "majority is back or another member leads.",
    IsolationPolicy.RUN_ALONE: "A member that loses the majority of the routers goes on by itself, without failover and without a fence. "
    "It runs on both sides when the link is cut: two may consume at once, and what they take may be delivered twice.",
}


ALL_DISABLED = "Nobody leads: every member is disabled."


class Health(StrEnum):
    """What a group is in one word, for pages, API and command line."""

    HEALTHY = "healthy"
    NO_STANDBY = "no-standby"  # it works, and nobody could take over
    TROUBLED = "not-healthy"


class UnknownCandidate(Invalid):
    code = "unknown-candidate"
    status: ClassVar[int] = 404


@dataclass(frozen=True)
class MemberVerdict:
    """What may be said of a member now. `reason` is one sentence; `age_seconds` None: never heard of."""

    member: GroupMember
    status: protocol.Status
    state: protocol.State
    reason: str
    age_seconds: float | None

    @property
    def machine(self) -> str:
        return self.member.runtime.machine.name

    @property
    def fresh(self) -> bool:
        return self.age_seconds is not None and self.age_seconds <= settings.AGENT_SILENT_AFTER_SECONDS


@dataclass(frozen=True)
class Verdict:
    """What may be said of a group now: at most one leader; silent agents and lower epochs are Unknown."""

    group: FailoverGroup
    members: list[MemberVerdict]
    leader: MemberVerdict | None
    healthy: bool  # exactly one leader, On; every other member Follower or Disabled, Off, fresh
    problems: list[str]  # one sentence each; empty when healthy
    at: datetime = field(default_factory=timezone.now)  # when it was judged

    @property
    def health(self) -> Health:
        if self.problems:
            return Health.TROUBLED
        return Health.NO_STANDBY if self.without_standby else Health.HEALTHY

    @property
    def without_standby(self) -> list[str]:
        """Why nobody could take over from the leader, a sentence per other member; empty when somebody could, or nobody was meant to."""
        if self.leader is None or self.leader.status != Status.LEADER or not meant_to_fail_over(self.group):
            return []
        reasons = [obstacle(self, said) for said in self.members if said is not self.leader]
        return reasons if all(reasons) else []


def with_members() -> "Prefetch[str]":
    """What verdict() reads of a group, in five queries for any number: FailoverGroup.objects.prefetch_related(with_members())."""
    return Prefetch(
        "members",
        GroupMember.objects.select_related("runtime__machine", "runtime__connector").prefetch_related(
            Prefetch("runtime__desired_bundle", Bundle.objects.defer("content")), "runtime__machine__router"
        ),
    )


def read_now(group: FailoverGroup) -> FailoverGroup:
    """The group as it is now: an act never decides on what a page read earlier."""
    return FailoverGroup.objects.select_related("environment", "group").prefetch_related(with_members()).get(pk=group.pk)


def clock(moment: str, *, now: datetime) -> str:
    """ "12:03:41 UTC" of an RFC 3339 moment, with the day if that is another than today's; as it is, if it is none."""
    read = clocks.read(moment)
    if read is None:
        return moment
    at = read.astimezone(UTC)
    return f"{at:%H:%M:%S} UTC" if at.date() == now.astimezone(UTC).date() else f"{at:%Y-%m-%d %H:%M:%S} UTC"


# ------------------------------------------------------------------------------------------------------------------- verdict


def verdict(group: FailoverGroup, *, now: datetime) -> Verdict:
    """Pure over rows already read: give it groups with members__runtime__machine and __connector prefetched."""
    heard = [_heard(member, now=now) for member in group.members.all()]
    heard = [_seen_by_siblings(said, heard, now) for said in heard]
    believed = _leaders(group, heard)
    members = [_disbelieved(group, said) if said.status == Status.LEADER and said is not believed else said for said in heard]
    leader = believed or _single(members)
    problems = _problems(group, members, leader)
    return Verdict(group, members, leader, healthy=not problems, problems=problems, at=now)


def _heard(member: GroupMember, *, now: datetime) -> MemberVerdict:
    """A member by its own last report and its age alone."""
    state, machine = State(member.observed_state), member.runtime.machine.name
    if member.observed_at is None:
        word = "has no agent yet" if not member.runtime.machine.has_agent else "has not reported this group yet"
        return MemberVerdict(member, Status.UNKNOWN, state, f"{machine} {word}.", None)
    age = max(0.0, (now - member.observed_at).total_seconds())
    if age > settings.AGENT_SILENT_AFTER_SECONDS:
        last = f"{WORDS[Status(member.observed_status)]}, {state.capitalize()}"
        return MemberVerdict(
            member, Status.UNKNOWN, state, f"{machine} has not been heard from for {in_words(age)}; it then was {last}.", age
        )
    return MemberVerdict(member, Status(member.observed_status), state, _sentence(member), age)


def _sentence(member: GroupMember) -> str:
    """The reason as the machine gave it, as a sentence."""
    reason = _reason(member)
    first = reason.split(" ", 1)[0]
    if first.rstrip(",;:").isalpha():  # not the name of a machine or runtime
        reason = reason[:1].upper() + reason[1:]
    return reason if not reason or reason.endswith((".", "!", "?")) else f"{reason}."


def _reason(member: GroupMember) -> str:
    """The reason as the machine gave it; the status that stands beside it is not said twice."""
    reason = member.observed_reason.strip()
    if member.observed_status == Status.ISOLATED:
        reason = reason.removeprefix(protocol.ISOLATED_BECAUSE)
    elif member.observed_status == Status.DISABLED and reason.startswith(protocol.ISOLATED_BECAUSE):
        reason = f"disabled until enabled again; besides, it is {reason}"
    return reason


# What a process says of a member when there is nothing else to say: who leads stands beside it anyway, and is no cause of anything.
_ONLY_WHO_LEADS = re.compile(r"leads with epoch \S+|follows \S+, which holds epoch \S+", re.IGNORECASE)
_BEHIND = re.compile(r"follows \S+, which holds epoch \S+; it is not ready to take over: ", re.IGNORECASE)


def cause(group: FailoverGroup, member: GroupMember) -> str:
    """Why a member does not do, or could not do, what it should, to end a sentence after its colon: as its inbounds in the group tell, or
    its process, or its machine. One query where `group.group` was not read."""
    runtime = member.runtime
    off = [flow for flow in runtime.observed_flows if flow.get("group") == group.group.key and not flow["on"]]
    reasons = [f"{flow['name']} is off: {flow['reason']}" for flow in off if flow.get("reason")]
    if reasons and not _BEHIND.match(member.observed_reason.strip()):  # of a follower that says so itself, they tell of when it led
        return f"{'; '.join(reasons).rstrip('.')}."
    if member.observed_reason and not _ONLY_WHO_LEADS.fullmatch(member.observed_reason.strip().rstrip(".")):
        return f"{_BEHIND.sub('', _reason(member), count=1).rstrip('.')}."
    if runtime.observed_reason:
        return f"{runtime.observed_reason.rstrip('.')}."
    if off and member.observed_status in (Status.LEADER, Status.SINGLE_NODE):
        return f"{', '.join(str(flow['name']) for flow in off)} does not run, and {runtime.machine.name} does not say why."
    return f"{runtime.machine.name} does not say why."


def _seen_by_siblings(said: MemberVerdict, heard: list[MemberVerdict], now: datetime) -> MemberVerdict:
    """A silent machine, with what its siblings' agents measure of it: is it gone, or only its way to the portal?"""
    if said.status != Status.UNKNOWN or said.age_seconds is None or said.fresh:
        return said
    for other in heard:
        router = getattr(other.member.runtime.machine, "router", None) if other.fresh else None
        for peer in router.observed_peers if router else []:
            if peer["machine"] != said.machine:
                continue
            measured = f"{other.machine} still reaches its router, so its agent or its way to the portal is at fault"
            if not peer["reachable"]:
                measured = (
                    f"{said.machine} cannot be reached from {other.machine} on {peer['address']} since {clock(peer['since'], now=now)}"
                )
            return replace(said, reason=f"{said.reason.rstrip('.')}; {measured}.")
    return said


def _leaders(group: FailoverGroup, heard: list[MemberVerdict]) -> MemberVerdict | None:
    """The one member that may be called Leader: of the highest epoch that was ever heard of, and alone in it."""
    leaders = [said for said in heard if said.status == Status.LEADER]
    top = max([group.epoch, *(said.member.observed_epoch for said in leaders)])
    newest = [said for said in leaders if said.member.observed_epoch == top]
    return newest[0] if len(newest) == 1 else None


def _disbelieved(group: FailoverGroup, said: MemberVerdict) -> MemberVerdict:
    claimed, newest = epoch_words(said.member.observed_epoch), epoch_words(group.epoch)
    if said.member.observed_epoch < group.epoch:
        reason = f"{said.machine} says it leads since epoch {claimed}, but epoch {newest} began since: another leader took over."
    else:
        reason = f"{said.machine} says it leads in epoch {claimed}, and another member says the same or a newer one."
    return MemberVerdict(said.member, Status.UNKNOWN, said.state, reason, said.age_seconds)


def _single(members: list[MemberVerdict]) -> MemberVerdict | None:
    """The only member that leads by itself, where nobody holds the group's key."""
    alone = [said for said in members if said.status == Status.SINGLE_NODE]
    return alone[0] if len(alone) == 1 else None


def meant_to_fail_over(group: FailoverGroup) -> bool:
    return group.failover and len(group.members.all()) > 1


def _problems(group: FailoverGroup, members: list[MemberVerdict], leader: MemberVerdict | None) -> list[str]:
    problems = []
    if not members:
        problems.append(f"{group.name} has no member.")
    elif meant_to_fail_over(group):
        everyone = all(said.status == Status.DISABLED for said in members)
        alone = sorted(said.machine for said in members if said.status == Status.SINGLE_NODE)
        if leader is not None and leader.status == Status.LEADER and alone:
            times = len(alone) + 1
            problems.append(
                f"{leader.machine} leads and {' and '.join(alone)} run{'s' if times == 2 else ''} alone: "
                f"{group.name} is consumed {times} times at once."
            )
        elif leader is None and len(alone) > 1:
            problems.append(f"{' and '.join(alone)} each run alone: {group.name} is consumed {len(alone)} times at once.")
        elif leader is None:
            problems.append(ALL_DISABLED if everyone else f"Nobody is known to lead {group.name}.")
    for said in members:
        leads = said.status == Status.SINGLE_NODE or said is leader
        if said.status == Status.SINGLE_NODE and meant_to_fail_over(group):
            problems.append(f"{said.machine} runs as a single node: {said.reason}")
        elif said.status in (Status.UNKNOWN, Status.ISOLATED):
            problems.append(f"{said.machine} is {WORDS[said.status]}: {said.reason}")
        if leads and said.state != State.ON:
            problems.append(f"{said.machine} leads, but its inbounds are {said.state.capitalize()}: {cause(group, said.member)}")
        if said.status in (Status.FOLLOWER, Status.DISABLED) and said.state != State.OFF:
            problems.append(f"{said.machine} is {WORDS[said.status]}, but its inbounds are {said.state.capitalize()}.")
    return problems


def without(found: Verdict, machines: Collection[str]) -> Verdict:
    """The verdict on the others, where some machines are left out of account."""
    members = [said for said in found.members if said.machine not in machines]
    if len(members) == len(found.members):
        return found
    problems = _problems(found.group, members, found.leader) if members else []
    return replace(found, members=members, healthy=not problems, problems=problems)


def unheard_leader(found: Verdict) -> MemberVerdict | None:
    """The silent member that led when it was last heard of, where nobody else is known to lead since: it may well lead still."""
    if found.leader is not None:
        return None
    silent = [said for said in found.members if said.status == Status.UNKNOWN and not said.fresh]
    led = [said for said in silent if said.member.observed_status == Status.LEADER and said.member.observed_epoch == found.group.epoch]
    return next(iter(led), None)


def unproven_without(group: str, machine: str) -> str:
    """What follows from leaving out the machine of an unheard leader, with the remedy."""
    return (
        f"{machine} led {group} when it was last heard of, and nobody is known to lead it since: without {machine} it cannot be proven. "
        f"Play another member first, or Disable {machine} (Operate › Groups)."
    )


# --------------------------------------------------------------------------------------------------------------- preference


def prefer(runtime: Runtime, preference: protocol.Preference) -> None:
    """Set a runtime's preference. At most one Leader per connector and environment: choosing it makes its siblings Backup.

    Raises:
        Invalid: the runtime does not run in failover. Busy: somebody else chose a leader in the same instant.
    """
    if preference != Preference.NONE and not Runtime.objects.filter(pk=runtime.pk, failover=True).exists():
        raise Invalid(f"{runtime.key} does not run in failover, so it has no preference.", field="preference")
    try:
        with transaction.atomic():
            touched = []
            members = Runtime.objects.filter(environment_id=runtime.environment_id, connector_id=runtime.connector_id, failover=True)
            fleet.take_rows([runtime.machine_id, *members.values_list("machine_id", flat=True)])
            if preference == Preference.LEADER:
                siblings = members.exclude(pk=runtime.pk)
                others = siblings.exclude(preference=Preference.BACKUP)
                touched += [sibling.machine for sibling in others.select_related("machine")]
                others.update(preference=Preference.BACKUP)
            if Runtime.objects.filter(pk=runtime.pk).exclude(preference=preference).update(preference=preference):
                touched.append(runtime.machine)
            fleet.touch(*touched)
    except IntegrityError:
        raise Busy(f"Somebody else just chose a preferred leader of {runtime.connector.name}: look again.") from None
    runtime.preference = preference


# ----------------------------------------------------------------------------------------------------------------- requests


def expire_overdue(*, now: datetime, group: FailoverGroup | None = None) -> int:
    """End the wishes whose time is over; returns how many."""
    overdue = GroupRequest.objects.filter(status__in=LIVE_REQUESTS, expires_at__lte=now)
    if group is not None:
        overdue = overdue.filter(group=group)
    return overdue.filter(status=RequestStatus.PENDING).update(
        status=RequestStatus.EXPIRED, code="expired", reason="No agent of the group's machines carried it in time.", ended_at=now
    ) + overdue.filter(status=RequestStatus.RUNNING).update(
        status=RequestStatus.EXPIRED, code="expired", reason="The machines did not say in time how it ended.", ended_at=now
    )


def _member(found: Verdict, machine: str, field: str = "machine") -> MemberVerdict:
    for said in found.members:
        if said.machine == machine:
            return said
    names = ", ".join(said.machine for said in found.members) or "nobody"
    raise UnknownCandidate(f"{machine} has no member in {found.group.name}: its members are {names}.", field=field)


def member_on(group: FailoverGroup, machine: str) -> GroupMember:
    """The group's member on a machine. Raises UnknownCandidate (404) naming the machines that have one."""
    return _member(verdict(read_now(group), now=timezone.now()), machine).member


def _refuse_when_busy(group: FailoverGroup) -> None:
    live = GroupRequest.objects.filter(group=group, status__in=LIVE_REQUESTS).first()
    if live is not None:
        acts = {RequestKind.SWITCH: "a hand-over", RequestKind.DISABLE: "Disable", RequestKind.ENABLE: "Enable"}
        act = acts.get(RequestKind(live.kind), "a change of its isolation policy")
        to = f" to {live.machine}" if live.machine and live.kind == RequestKind.SWITCH else ""
        raise Busy(f"{group.name} is busy: {act}{to} that {live.actor} asked for is under way.")


def _ask(group: FailoverGroup, *, now: datetime, **wish: object) -> GroupRequest:
    """One live request per group: the database says who was first."""
    try:
        with transaction.atomic():
            request = GroupRequest.objects.create(group=group, expires_at=now + timedelta(seconds=REQUEST_PENDING_SECONDS), **wish)
            fleet.touch(*(member.runtime.machine for member in group.members.all()))
    except IntegrityError:
        _refuse_when_busy(group)
        raise Busy(f"{group.name} is busy: somebody else asked for something in the same instant.") from None
    return request


def obstacle(found: Verdict, said: MemberVerdict) -> str:
    """Why a member could not take the group over now; empty when it could."""
    machine, name, row = said.machine, found.group.name, said.member
    if row.runtime.machine.joined_at is None:
        return f"{machine} has no agent yet: register it in Deploy › Architecture."
    if said.age_seconds is None:
        return f"{machine} has never been heard from in {name}."
    if not said.fresh:
        return f"{machine} has not been heard from for {in_words(said.age_seconds)}."
    if said.status == Status.DISABLED or row.observed_disabled:
        return f"{machine} is disabled in {name}: it takes over only once it is enabled."
    if said.status not in (Status.FOLLOWER, Status.LEADER):
        return f"{machine} is {WORDS[said.status]}: {said.reason}"
    if not row.observed_ready:
        return f"{machine} is not ready: {cause(found.group, row)}"
    ordered, runs = row.runtime.desired_release, row.runtime.observed_release
    allowed = {ordered, found.leader.member.runtime.observed_release if found.leader else None} - {None}
    if runs is None or (allowed and runs not in allowed):
        numbers = " or ".join(str(number) for number in sorted(filter(None, allowed))) or "ordered"
        return f"{machine} is not on the release {numbers}: it runs {runs or 'none'}."
    return ""


def switch(
    group: FailoverGroup,
    *,
    candidate: str | None,
    expected_leader: str | None,
    actor: str,
    cause: protocol.Cause = protocol.Cause.SWITCH,
    now: datetime,
) -> GroupRequest:
    """Ask for a hand-over to the member on machine `candidate` (None: Stop; any ready follower takes over).

    A candidate that leads already is an answered request. Times out after REQUEST_PENDING_SECONDS without an agent.

    Raises:
        UnknownCandidate (status 404, code "unknown-candidate"): no member of the group is on that machine.
        Busy: a live request exists. Stale: `expected_leader` is given and does not lead.
        NotReady: the candidate is disabled, silent or not ready, or no follower is ready (offers Disable).
    """
    group = read_now(group)
    found = verdict(group, now=now)
    chosen = _member(found, candidate, "candidate") if candidate else None
    expire_overdue(now=now, group=group)
    _refuse_when_busy(group)
    _refuse_stale(found, expected_leader)
    wish = {"kind": RequestKind.SWITCH, "machine": candidate or "", "expected_epoch": group.epoch or None, "cause": cause, "actor": actor}
    if chosen is not None and chosen is found.leader:
        done = {"status": RequestStatus.SUCCEEDED, "reason": f"{candidate} already leads {group.name}.", "created_at": now, "ended_at": now}
        return GroupRequest.objects.create(group=group, expires_at=now, **wish, **done)
    if chosen is not None:
        if reason := obstacle(found, chosen):
            raise NotReady(reason, reasons=[reason], field="candidate")
    else:
        _refuse_without_follower(found)
    return _ask(group, now=now, **wish)


def _refuse_without_follower(found: Verdict) -> None:
    """Stop needs somebody who takes over."""
    alone = [said for said in found.members if said.status == Status.SINGLE_NODE]
    if alone:
        raise NotReady(" ".join(stopping_alone(found, said) for said in alone))
    if found.leader is None:
        raise NotReady(f"Nobody is known to lead {found.group.name}, so there is nothing to stop.")
    reasons = {said.machine: obstacle(found, said) for said in found.members if said is not found.leader}
    if not reasons:
        raise NotReady(f"{found.group.name} has no other member that could take over. To stop it all the same, use Disable.")
    if all(reasons.values()):
        raise NotReady(
            f"No follower is ready to take over {found.group.name}: {' '.join(reasons.values())} To stop it all the same, use Disable.",
            reasons=list(reasons.values()),
        )


def disable(group: FailoverGroup, machine: str, *, actor: str, now: datetime, expected_leader: str | None = None) -> GroupRequest:
    """Ask that the member's inbounds stop and it takes no leadership until enabled again. Raises as `switch` does: who looked while
    another member led (`expected_leader`) was told another consequence."""
    return _set_disabled(group, machine, RequestKind.DISABLE, Cause.DISABLE, actor, now, expected_leader)


def enable(group: FailoverGroup, machine: str, *, actor: str, now: datetime) -> GroupRequest:
    """Ask that the member takes part again. Raises as `switch` does."""
    return _set_disabled(group, machine, RequestKind.ENABLE, Cause.SWITCH, actor, now)


def set_isolation_policy(group: FailoverGroup, policy: IsolationPolicy, *, actor: str, now: datetime) -> GroupRequest:
    """Wish what a member does without a majority, and ask the machines to take it over; asking for what is wished already asks again.

    Raises:
        Invalid: the group does not run in failover. Busy: a live request exists. NotReady: no agent of the group is heard of.
    """
    group = read_now(group)
    if not meant_to_fail_over(group):
        raise Invalid(f"{group.name} does not run in failover, so it has no isolation policy.", field="policy")
    found = verdict(group, now=now)
    expire_overdue(now=now, group=group)
    _refuse_when_busy(group)
    _refuse_without_agent(found)
    with transaction.atomic():
        request = _ask(group, now=now, kind=RequestKind.POLICY, policy=policy, cause=Cause.SWITCH, actor=actor)
        FailoverGroup.objects.filter(pk=group.pk).update(isolation_policy=policy)
    return request


def _refuse_stale(found: Verdict, expected_leader: str | None) -> None:
    if expected_leader and (found.leader is None or found.leader.machine != expected_leader):
        leads = f"{found.leader.machine} does" if found.leader else "nobody is known to lead"
        raise Stale(f"{expected_leader} does not lead {found.group.name}: {leads}. Look again.")


def _refuse_without_agent(found: Verdict) -> None:
    if not any(said.fresh for said in found.members):
        reasons = [said.reason for said in found.members]
        raise NotReady(f"No agent of {found.group.name} can carry this: {' '.join(reasons)}", reasons=reasons)


def _set_disabled(
    group: FailoverGroup, machine: str, kind: RequestKind, cause: Cause, actor: str, now: datetime, expected_leader: str | None = None
) -> GroupRequest:
    """Any member's agent can carry it, so one that is heard of is enough, even for a silent member."""
    group = read_now(group)
    found = verdict(group, now=now)
    said = _member(found, machine)
    expire_overdue(now=now, group=group)
    _refuse_when_busy(group)
    _refuse_stale(found, expected_leader)
    _refuse_without_agent(found)
    if kind == RequestKind.DISABLE and (reason := no_disable(found, said)):
        raise NotReady(reason)
    return _ask(group, now=now, kind=kind, machine=machine, cause=cause, actor=actor)


# -------------------------------------------------------------------------------------------------------------- consequence


def consequence(group: FailoverGroup, member: GroupMember, action: str, *, now: datetime) -> str:
    """What Play, Stop, Disable or Enable ("play", "stop", "disable", "enable") would do, in words for the button's title."""
    found = verdict(group, now=now)
    said = next(one for one in found.members if one.member.pk == member.pk)
    return {"play": _play, "stop": _stop, "disable": _disable, "enable": _enable}[action](found, said)


def _gap(found: Verdict) -> str:
    gap = found.group.last_gap_seconds
    return "" if gap is None else f" The last change of leader took {gap:.2f} s."


def _follower(found: Verdict, but: MemberVerdict) -> MemberVerdict | None:
    """Who would take over: the preferred one first."""
    ready = [said for said in found.members if said is not but and not obstacle(found, said)]
    order = [Preference.LEADER, Preference.BACKUP, Preference.NONE]
    return min(ready, key=lambda said: order.index(Preference(said.member.runtime.preference)), default=None)


def _play(found: Verdict, said: MemberVerdict) -> str:
    if said is found.leader:
        return f"{said.machine} leads already."
    if reason := obstacle(found, said):
        return f"Not now: {reason}"
    if (silent := unheard_leader(found)) is not None:
        return f"If {silent.machine} still leads, it stops first, then {said.machine} takes over."
    if found.leader is None:
        return f"Nobody is known to lead {found.group.name}: {said.machine} takes over by itself where nobody does."
    return f"{found.leader.machine} stops first, then {said.machine} takes over.{_gap(found)}"


def stopping_alone(found: Verdict, said: MemberVerdict) -> str:
    """What ends the consuming of a member that runs alone: it hears no wish that goes through the routers."""
    why = f"{found.group.name} does not fail over: {said.machine} runs it as a single node, and hears no Stop and no Disable."
    if meant_to_fail_over(found.group):
        why = f"{said.machine} runs alone, without a majority that could give its leadership to another member."
    return f"{why} To stop it, stop its runtime {said.member.runtime.key} on the page of {said.machine}, tab Runtimes."


def no_disable(found: Verdict, said: MemberVerdict) -> str:
    """Why Disable would do nothing to a member; empty where it does: a group that was deployed without failover never looks who is
    disabled, and would come up disabled once it fails over."""
    return stopping_alone(found, said) if said.status == Status.SINGLE_NODE and not meant_to_fail_over(found.group) else ""


def _stop(found: Verdict, said: MemberVerdict) -> str:
    if said.status == Status.SINGLE_NODE:
        return f"Not now: {stopping_alone(found, said)}"
    if said is not found.leader:
        return f"{said.machine} does not lead, so there is nothing to stop."
    heir = _follower(found, said)
    if heir is None:
        return "Not now: no follower is ready to take over. Disable stops it all the same."
    return f"Stops here, {heir.machine} takes over.{_gap(found)}"


def _disable(found: Verdict, said: MemberVerdict) -> str:
    if said.status == Status.DISABLED:
        return f"{said.machine} is disabled already."
    if reason := no_disable(found, said):
        return f"Not now: {reason}"
    rest = f"{said.machine} takes no part in {found.group.name} until it is enabled again."
    silent = unheard_leader(found)
    if said is not found.leader and said is not silent:
        return rest
    heir = _follower(found, said)
    takes = f"{heir.machine} takes over" if heir else "nobody takes over: the data waits in the source"
    return f"{'Stops here' if said is not silent else 'If it still leads, it stops'}, {takes}; {rest}"


def _enable(found: Verdict, said: MemberVerdict) -> str:
    if said.fresh and said.status != Status.DISABLED and not said.member.observed_disabled:
        return f"{said.machine} is enabled already."
    takes = "follows, ready to take over" if found.leader else "may lead at once"
    return f"{said.machine} takes part in {found.group.name} again: it {takes}."
